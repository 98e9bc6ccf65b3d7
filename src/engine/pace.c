#include "engine/pace.h"

#include "base/assert.h"

#define CHUNK_UNKNOWN 64u // before anything was measured
#define CHUNK_LEAST 16u   // smaller ones waste most of a matrix kernel's tile
#define WEIGHT 0.125      // of a new measurement
// Time for prompts beside decoding, in terms of the latter's. Less than the ratio of prompts' to answers' work, and
// sequences wait for their prompts while others decode in small batches; more, and tokens come late. With the bundled
// model and prompts four times as long as answers, 1 cost a third of the throughput at 8 clients, and from 2.5 on
// nothing was gained.
#define PROMPT_SHARE 2.5
// Nobody sees a token that comes sooner, and chunks of fast models would be too small for their kernels. With the
// bundled model this gave 8 clients a tenth more throughput and half the time to the first token.
#define TARGET_LEAST_S 0.010

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
    double rest = seconds - (n_decoding ? decode_s(pace, n_decoding) : 0);

    if (n_prompt == 0)
        update(&pace->decode_s[ew_batch_bucket(n_decoding)], seconds);
    else if (n_prompt >= CHUNK_LEAST && rest > 0 && (n_decoding || !pace->is_mixed))
        update(&pace->prompt_token_s, rest / n_prompt);
    pace->is_mixed |= n_prompt >= CHUNK_LEAST && n_decoding;
}

uint32_t ew_pace_chunk(const struct ew_pace *pace, uint32_t n_decoding, double target_s, uint32_t n_max)
{
    double decode = decode_s(pace, n_decoding);
    double budget = EW_MAX(PROMPT_SHARE * decode, EW_MAX(target_s, TARGET_LEAST_S) - decode);
    uint32_t n = CHUNK_UNKNOWN;

    if (pace->prompt_token_s > 0 && decode > 0)
        n = (uint32_t)EW_MIN(budget / pace->prompt_token_s, 1e6);
    n = EW_MAX(n / CHUNK_LEAST * CHUNK_LEAST, CHUNK_LEAST);
    return EW_MIN(n, n_max);
}
