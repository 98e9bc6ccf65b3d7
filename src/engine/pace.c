#include "engine/pace.h"

#include "base/assert.h"

#define CHUNK_UNKNOWN 64u // before anything was measured
#define CHUNK_LEAST 16u   // smaller ones waste most of a matrix kernel's tile
#define TILE 128u         // of large GPUs' kernels; steps of several tiles have no begun one
#define TILES_FROM 256u   // tokens
#define WEIGHT 0.125      // of a new measurement
// A step with a prompt, in terms of one without. Less than the ratio of prompts' to answers' work, and sequences wait
// for their prompts while others decode in small batches; more, and tokens come late. With the bundled model and
// prompts four times as long as answers, 2 cost a third of the throughput at 8 clients, and from 3.5 on nothing was
// gained.
#define DECODE_TIMES 3.5
// Nobody sees a token that comes sooner, and chunks of fast models would be too small for their kernels. With the
// bundled model this gave 8 clients a tenth more throughput and half the time to the first token.
#define TARGET_LEAST_S 0.010
// On a GPU a step with a prompt may take several times as long as one without, however short the prompt: quantised
// matrices are expanded for it. What makes it this much longer is nearly free.
#define SHORTEST_TIMES 1.25

uint32_t ew_batch_bucket_max(uint32_t bucket)
{
    return bucket + 1 < EW_BATCH_BUCKETS ? 1u << bucket : UINT32_MAX;
}

uint32_t ew_batch_bucket(uint32_t n_seqs)
{
    uint32_t bucket = 0;

    while (n_seqs > ew_batch_bucket_max(bucket))
        bucket++;
    return bucket;
}

// One that is far off, because the system had something else to do, counts as twice the usual.
static void update(double *mean, double value)
{
    if (*mean <= 0)
        *mean = value;
    else
        *mean += WEIGHT * (EW_MIN(value, 2 * *mean) - *mean);
}

// Of the nearest number of sequences that is known, smaller ones first: rather too little than too much.
static double decode_s(const struct ew_pace *pace, uint32_t n_decoding)
{
    uint32_t bucket = ew_batch_bucket(n_decoding);

    for (uint32_t i = bucket + 1; i-- > 0;)
        if (pace->decode_s[i] > 0)
            return pace->decode_s[i];
    for (uint32_t i = bucket + 1; i < EW_BATCH_BUCKETS; i++)
        if (pace->decode_s[i] > 0)
            return pace->decode_s[i];
    return 0;
}

void ew_pace_note(struct ew_pace *pace, uint32_t n_decoding, uint32_t n_prompt, double seconds)
{
    uint32_t n_tokens = n_decoding + n_prompt, i = 0;
    struct ew_pace_size *size;

    if (n_prompt == 0)
        update(&pace->decode_s[ew_batch_bucket(n_decoding)], seconds);
    if (n_prompt == 0 || n_tokens < CHUNK_LEAST)
        return;
    while (i + 1 < EW_PACE_SIZES && n_tokens >= CHUNK_LEAST << (i + 1))
        i++;
    size = &pace->sizes[i];
    // The first one may have loaded what the later ones find.
    if (size->count++ == 0 || (size->count == 2 && seconds < size->seconds)) {
        size->n_tokens = n_tokens;
        size->seconds = seconds;
        return;
    }
    update(&size->n_tokens, n_tokens);
    update(&size->seconds, seconds);
}

// Tokens of the largest step that takes no longer. Times are lines between the sizes that are known; below them
// they go to nothing, and twice the largest is tried: one step tells more.
static double tokens_within(const struct ew_pace *pace, double limit_s)
{
    const struct ew_pace_size *longer = NULL;

    for (uint32_t i = EW_PACE_SIZES; i-- > 0;) {
        const struct ew_pace_size *size = &pace->sizes[i];

        if (size->count == 0)
            continue;
        if (size->seconds <= limit_s)
            return longer ? size->n_tokens + (longer->n_tokens - size->n_tokens) * (limit_s - size->seconds) /
                                                 (longer->seconds - size->seconds)
                          : 2 * size->n_tokens;
        longer = size;
    }
    return longer ? longer->n_tokens * limit_s / longer->seconds : CHUNK_UNKNOWN;
}

static double shortest_s(const struct ew_pace *pace)
{
    double shortest = pace->sizes[0].seconds; // 0: not known, and something smaller can be tried

    for (uint32_t i = 1; i < EW_PACE_SIZES; i++)
        if (pace->sizes[i].count)
            shortest = EW_MIN(shortest, pace->sizes[i].seconds);
    return shortest;
}

uint32_t ew_pace_chunk(const struct ew_pace *pace, uint32_t n_decoding, double target_s, uint32_t n_max)
{
    double limit = EW_MAX(DECODE_TIMES * decode_s(pace, n_decoding), EW_MAX(target_s, TARGET_LEAST_S));
    uint32_t n_tokens, n;

    limit = EW_MAX(limit, SHORTEST_TIMES * shortest_s(pace));
    n_tokens = (uint32_t)EW_MIN(tokens_within(pace, limit), 1e6);
    if (n_tokens >= TILES_FROM)
        n_tokens = (n_tokens + TILE / 2) / TILE * TILE;
    n = n_tokens > n_decoding ? n_tokens - n_decoding : 0;
    if (n_tokens < TILES_FROM)
        n = n / CHUNK_LEAST * CHUNK_LEAST;
    return EW_MIN(EW_MAX(n, CHUNK_LEAST), n_max);
}
