#include "engine/sampler.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/half.h"
#include "base/rng.h"

#define LANES 16 // kept apart, so that compilers can use vectors of any width
#define TILE 64
#define N_CLASSES 128

struct ew_candidate {
    int32_t token;
    float logit;
    float weight; // exp((logit - greatest logit) / temperature): not normalised
};

struct ew_sampling ew_sampling_default(void)
{
    return (struct ew_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

static int check_bias(const struct ew_sampling *sampling, uint32_t n_vocab, struct ew_error *err)
{
    for (uint32_t i = 0; i < sampling->n_bias; i++) {
        const struct ew_logit_bias *bias = &sampling->bias[i];

        if (bias->token < 0 || (uint32_t)bias->token >= n_vocab)
            return ew_fail(err, EW_ERR_USAGE, "the logit bias names token %d and the vocabulary has %u", bias->token,
                           n_vocab);
        if (!isfinite(bias->bias))
            return ew_fail(err, EW_ERR_USAGE, "the logit bias of token %d is not a finite number", bias->token);
    }
    return 0;
}

int ew_sampling_check(const struct ew_sampling *sampling, uint32_t n_vocab, struct ew_error *err)
{
    const struct {
        const char *name;
        float value, min, max;
    } checks[] = {
        {"temperature", sampling->temperature, 0, 1000},
        {"top_p", sampling->top_p, 0, 1},
        {"min_p", sampling->min_p, 0, 1},
        {"repetition_penalty", sampling->repetition_penalty, 1e-3f, 1000},
        {"presence_penalty", sampling->presence_penalty, -1000, 1000},
        {"frequency_penalty", sampling->frequency_penalty, -1000, 1000},
    };

    for (size_t i = 0; i < EW_COUNT_OF(checks); i++)
        if (!(checks[i].value >= checks[i].min && checks[i].value <= checks[i].max)) // false for NaN
            return ew_fail(err, EW_ERR_USAGE, "%s is %g and must be from %g to %g", checks[i].name,
                           (double)checks[i].value, (double)checks[i].min, (double)checks[i].max);
    return check_bias(sampling, n_vocab, err);
}

int ew_sampler_init(struct ew_sampler *sampler, uint32_t n_vocab, struct ew_error *err)
{
    *sampler = (struct ew_sampler){.n_vocab = n_vocab};
    sampler->candidates = ew_alloc_array(n_vocab, sizeof(*sampler->candidates));
    sampler->members = ew_alloc_array(n_vocab, sizeof(*sampler->members));
    sampler->logits = ew_alloc_array(n_vocab, sizeof(*sampler->logits));
    sampler->counts = ew_alloc_array(n_vocab, sizeof(*sampler->counts));
    if (!sampler->candidates || !sampler->members || !sampler->logits || !sampler->counts) {
        ew_sampler_fini(sampler);
        return ew_fail_memory(err, n_vocab * (2 * sizeof(*sampler->candidates) + 2 * sizeof(float)), "the sampler");
    }
    return 0;
}

void ew_sampler_fini(struct ew_sampler *sampler)
{
    ew_free(sampler->candidates);
    ew_free(sampler->members);
    ew_free(sampler->logits);
    ew_free(sampler->counts);
    *sampler = (struct ew_sampler){0};
}

// ---- the greatest logit --------------------------------------------------------------------------------------------


// Leaves the greatest in *max. false where some are NaN or infinite.
static bool find_max(const float *logits, uint32_t n, float *max)
{
    float lanes[LANES];
    uint32_t i, bad = 0, bads[LANES] = {0};

    for (uint32_t j = 0; j < LANES; j++)
        lanes[j] = -INFINITY;
    for (i = 0; i + LANES <= n; i += LANES) {
        for (uint32_t j = 0; j < LANES; j++) {
            float x = logits[i + j];

            bads[j] |= !(x < INFINITY);
            lanes[j] = x > lanes[j] ? x : lanes[j];
        }
    }
    *max = -INFINITY;
    for (; i < n; i++) {
        bad |= !(logits[i] < INFINITY);
        *max = logits[i] > *max ? logits[i] : *max;
    }
    for (uint32_t j = 0; j < LANES; j++) {
        bad |= bads[j];
        *max = lanes[j] > *max ? lanes[j] : *max;
    }
    return !bad;
}

static int refuse_logits(const float *logits, struct ew_error *err)
{
    uint32_t i = 0;

    while (logits[i] < INFINITY)
        i++;
    return ew_fail(err, EW_ERR_DEVICE, "the model's logit of token %u is %s", i,
                   isnan(logits[i]) ? "not a number" : "infinite");
}

// ---- bias, mask, penalties: over a copy of all logits --------------------------------------------------------------

static void apply_bias(float *logits, const struct ew_sampling *sampling)
{
    for (uint32_t i = 0; i < sampling->n_bias; i++)
        logits[sampling->bias[i].token] += sampling->bias[i].bias;
}

static void apply_mask(float *logits, uint32_t n, const uint32_t *mask)
{
    for (uint32_t i = 0; i < n; i++)
        if (!(mask[i / 32] >> i % 32 & 1))
            logits[i] = -INFINITY;
}

// Keskar et al. 2019, section 4.1, with the sign rule that made it usable: a token once seen becomes less likely
// whichever the sign of its logit.
static void apply_repetition(struct ew_sampler *sampler, const struct ew_sampler_input *input, float penalty)
{
    for (uint32_t i = 0; i < input->n_history; i++) {
        float *logit = &sampler->logits[input->history[i]];

        if (sampler->counts[input->history[i]]++ == 0)
            *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
    }
    for (uint32_t i = 0; i < input->n_history; i++)
        sampler->counts[input->history[i]] = 0;
}

static void apply_presence(struct ew_sampler *sampler, const struct ew_sampler_input *input,
                           const struct ew_sampling *sampling)
{
    for (uint32_t i = input->n_prompt; i < input->n_history; i++)
        sampler->counts[input->history[i]]++;
    for (uint32_t i = input->n_prompt; i < input->n_history; i++) {
        uint32_t *count = &sampler->counts[input->history[i]];

        if (*count > 0)
            sampler->logits[input->history[i]] -= sampling->presence_penalty +
                                                  (float)*count * sampling->frequency_penalty;
        *count = 0;
    }
}

static bool has_penalties(const struct ew_sampling *sampling)
{
    return sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
}

static void apply_penalties(struct ew_sampler *sampler, const struct ew_sampler_input *input,
                            const struct ew_sampling *sampling)
{
    if (sampling->repetition_penalty != 1)
        apply_repetition(sampler, input, sampling->repetition_penalty);
    if (sampling->presence_penalty != 0 || sampling->frequency_penalty != 0)
        apply_presence(sampler, input, sampling);
}

// The logits to choose by: the model's own where nothing changes them.
static const float *adjust(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                           const struct ew_sampler_input *input)
{
    if (sampling->n_bias == 0 && !input->mask && !has_penalties(sampling))
        return input->logits;
    memcpy(sampler->logits, input->logits, sampler->n_vocab * sizeof(*sampler->logits));
    apply_bias(sampler->logits, sampling);
    if (input->mask)
        apply_mask(sampler->logits, sampler->n_vocab, input->mask);
    apply_penalties(sampler, input, sampling);
    return sampler->logits;
}

// ---- the best of many: a heap, so that only what is kept is ever put in order --------------------------------------

static bool is_better(const struct ew_candidate *a, const struct ew_candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static void sift_down(struct ew_candidate *heap, uint32_t at, uint32_t n)
{
    struct ew_candidate moving = heap[at];

    for (uint32_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && is_better(&heap[child + 1], &heap[child]))
            child++;
        if (!is_better(&heap[child], &moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

// Puts the best in front, in order: at least one, at most n_max, and no more than it takes to reach the weight. Returns
// how many.
static uint32_t keep_best(struct ew_candidate *list, uint32_t n, uint32_t n_max, double weight)
{
    uint32_t left = n;
    double sum = 0;

    for (uint32_t i = n / 2; i-- > 0;)
        sift_down(list, i, n);
    while (left == n || (left > 0 && n - left < n_max && sum < weight)) {
        struct ew_candidate best = list[0];

        list[0] = list[--left];
        list[left] = best; // the best ones gather at the end, worst of them first
        sift_down(list, 0, left);
        sum += best.weight;
    }
    for (uint32_t i = 0, j = n - 1; i < j; i++, j--) {
        struct ew_candidate swapped = list[i];

        list[i] = list[j];
        list[j] = swapped;
    }
    return n - left;
}

// ---- temperature, top-k, top-p, min-p, draw ------------------------------------------------------------------------

// Weights far below the rounding of the greatest one's are left out: those of a whole vocabulary together are less than
// 2^-24 of it. Of the usual hundred thousand candidates this leaves some hundreds. Returns how many.
static uint32_t gather(struct ew_sampler *sampler, const float *logits, float max, float temperature)
{
    float least = max - temperature * (logf((float)sampler->n_vocab) + 24 * 0.6931472f);
    uint32_t n = 0;

    for (uint32_t i = 0; i < sampler->n_vocab; i++)
        if (logits[i] >= least && logits[i] > -INFINITY)
            sampler->candidates[n++] = (struct ew_candidate){.token = (int32_t)i, .logit = logits[i]};
    return n;
}

// exp for arguments from -60 to 0, within two units of the last place: x = k ln 2 + r, 2^k from the exponent's bits, a
// Taylor polynomial of r. In a loop of its own, so that compilers can use vectors.
static void exp_tile(float *x)
{
    for (uint32_t j = 0; j < TILE; j++) {
        float shifted = x[j] * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
        float k = shifted - 12582912.0f, r = x[j] - k * 0.693359375f + k * 2.12194440e-4f, p = 1.0f / 720;

        p = p * r + 1.0f / 120;
        p = p * r + 1.0f / 24;
        p = p * r + 1.0f / 6;
        p = p * r + 0.5f;
        p = p * r + 1;
        p = p * r + 1;
        x[j] = p * ew_f32_of_bits((ew_bits_of_f32(shifted) << 23) + 0x3F800000u);
    }
}

// Sets the weights at this temperature and returns their sum.
static double weigh(struct ew_candidate *list, uint32_t n, float max, float temperature)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i += TILE) {
        uint32_t n_here = EW_MIN(n - i, (uint32_t)TILE);
        float x[TILE] = {0};

        for (uint32_t j = 0; j < n_here; j++)
            x[j] = (list[i + j].logit - max) / temperature;
        exp_tile(x);
        for (uint32_t j = 0; j < n_here; j++)
            sum += list[i + j].weight = x[j];
    }
    return sum;
}

static double sum_weights(const struct ew_candidate *list, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += list[i].weight;
    return sum;
}

// By distance from the greatest logit, in halves of the temperature.
static uint32_t class_of(const struct ew_candidate *candidate, float max, float temperature)
{
    return (uint32_t)EW_MIN((max - candidate->logit) / temperature * 2, (float)(N_CLASSES - 1));
}

// Leaves the best: at most n_max, and no more than it takes to reach the weight. Only those of the class where the cut
// falls have to be put in order; what stays keeps the order of the ids, in which it is drawn from. Returns how many.
static uint32_t cut(struct ew_sampler *sampler, uint32_t n, float max, float temperature, uint32_t n_max, double weight)
{
    struct ew_candidate *list = sampler->candidates, *members = sampler->members;
    uint32_t counts[N_CLASSES] = {0}, n_before = 0, at = 0, n_members = 0, n_kept = 0, n_out = 0;
    double sums[N_CLASSES] = {0}, before = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t class = class_of(&list[i], max, temperature);

        counts[class]++;
        sums[class] += list[i].weight;
    }
    while (at + 1 < N_CLASSES && n_before + counts[at] < n_max && before + sums[at] < weight) {
        n_before += counts[at];
        before += sums[at++];
    }
    for (uint32_t i = 0; i < n; i++)
        if (class_of(&list[i], max, temperature) == at)
            members[n_members++] = list[i];
    if (n_members)
        n_kept = keep_best(members, n_members, n_max - n_before, weight - before);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t class = class_of(&list[i], max, temperature);

        if (class < at || (class == at && n_kept && !is_better(&members[n_kept - 1], &list[i])))
            list[n_out++] = list[i];
    }
    return n_out;
}

// The greatest weight is 1, so min_p is a bound on the weight itself.
static uint32_t drop_below(struct ew_candidate *list, uint32_t n, float min_p)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++)
        if (list[i].weight >= min_p)
            list[kept++] = list[i];
    return kept;
}

static int32_t draw(const struct ew_candidate *list, uint32_t n, struct ew_rng rng)
{
    double at = ew_rng_unit(&rng) * sum_weights(list, n);
    uint32_t last = 0; // where rounding leaves a rest, it is the last possible one's

    for (uint32_t i = 0; i < n && at >= 0; i++) {
        at -= list[i].weight;
        if (list[i].weight > 0)
            last = i;
    }
    return list[last].token;
}

static int32_t pick_random(struct ew_sampler *sampler, const float *logits, float max,
                           const struct ew_sampling *sampling, struct ew_rng rng)
{
    struct ew_candidate *list = sampler->candidates;
    uint32_t n = gather(sampler, logits, max, sampling->temperature);
    double sum = weigh(list, n, max, sampling->temperature);

    if (sampling->top_k > 0 && (uint32_t)sampling->top_k < n) {
        n = cut(sampler, n, max, sampling->temperature, (uint32_t)sampling->top_k, INFINITY);
        sum = sum_weights(list, n);
    }
    if (sampling->top_p < 1)
        n = cut(sampler, n, max, sampling->temperature, n, sum * (double)sampling->top_p);
    if (sampling->min_p > 0)
        n = drop_below(list, n, sampling->min_p);
    return draw(list, n, rng);
}

static int32_t first_equal(const float *logits, float value)
{
    int32_t i = 0;

    while (logits[i] != value)
        i++;
    return i;
}

int ew_sampler_pick(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                    const struct ew_sampler_input *input, int32_t *token, struct ew_error *err)
{
    const float *logits;
    float max;

    if (!find_max(input->logits, sampler->n_vocab, &max))
        return refuse_logits(input->logits, err);
    logits = adjust(sampler, sampling, input);
    if (logits != input->logits && !find_max(logits, sampler->n_vocab, &max))
        return refuse_logits(logits, err);
    if (!(max > -INFINITY))
        return ew_fail(err, EW_ERR_LIMIT, "no token is left to choose from");
    if (sampling->temperature <= 0)
        *token = first_equal(logits, max);
    else
        *token = pick_random(sampler, logits, max, sampling, ew_rng_at(sampling->seed, input->n_history));
    return 0;
}

// ---- log probabilities ---------------------------------------------------------------------------------------------

double ew_log_sum_exp(const float *logits, uint32_t n)
{
    float max = -INFINITY;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        max = EW_MAX(max, logits[i]);
    if (!(max > -INFINITY))
        return -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        sum += expf(logits[i] - max);
    return max + log(sum);
}

// Inserts into best[0..n), sorted, n at most max; returns the new n. Of equal ones the earlier stays in front.
static uint32_t insert_best(struct ew_logprob *best, uint32_t n, uint32_t max, struct ew_logprob entry)
{
    uint32_t at = n;

    if (n == max && (max == 0 || !(entry.logprob > best[n - 1].logprob)))
        return n;
    if (n == max)
        at = --n;
    for (; at > 0 && entry.logprob > best[at - 1].logprob; at--)
        best[at] = best[at - 1];
    best[at] = entry;
    return n + 1;
}

void ew_sampler_logprobs(const float *logits, uint32_t n_vocab, int32_t chosen, struct ew_logprob *out, uint32_t n)
{
    double norm = ew_log_sum_exp(logits, n_vocab);
    uint32_t found = 0;

    EW_ASSERT(n > 0 && n <= EW_LOGPROBS_MAX && n <= n_vocab);
    out[0] = (struct ew_logprob){chosen, logits[chosen]};
    for (uint32_t i = 0; i < n_vocab; i++)
        if ((int32_t)i != chosen)
            found = insert_best(out + 1, found, n - 1, (struct ew_logprob){(int32_t)i, logits[i]});
    for (uint32_t i = 0; i < n; i++)
        out[i].logprob = (float)((double)out[i].logprob - norm);
}
