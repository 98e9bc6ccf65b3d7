#include "engine/sampler.h"

#include <math.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

struct ew_candidate {
    int32_t token;
    float logit;
    float weight; // exp(logit - greatest logit): not normalised
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
    sampler->counts = ew_alloc_array(n_vocab, sizeof(*sampler->counts));
    if (!sampler->candidates || !sampler->counts) {
        ew_sampler_fini(sampler);
        return ew_fail_memory(err, n_vocab * (sizeof(*sampler->candidates) + sizeof(*sampler->counts)), "the sampler");
    }
    return 0;
}

void ew_sampler_fini(struct ew_sampler *sampler)
{
    ew_free(sampler->candidates);
    ew_free(sampler->counts);
    *sampler = (struct ew_sampler){0};
}

// ---- bias, mask, penalties: over all candidates, in the order of their ids -----------------------------------------

static int load_logits(struct ew_sampler *sampler, const float *logits, struct ew_error *err)
{
    for (uint32_t i = 0; i < sampler->n_vocab; i++) {
        if (!(logits[i] < INFINITY))
            return ew_fail(err, EW_ERR_DEVICE, "the model's logit of token %u is %s", i,
                           isnan(logits[i]) ? "not a number" : "infinite");
        sampler->candidates[i] = (struct ew_candidate){.token = (int32_t)i, .logit = logits[i]};
    }
    return 0;
}

static void apply_bias(struct ew_candidate *all, const struct ew_sampling *sampling)
{
    for (uint32_t i = 0; i < sampling->n_bias; i++)
        all[sampling->bias[i].token].logit += sampling->bias[i].bias;
}

static void apply_mask(struct ew_candidate *all, uint32_t n, const uint32_t *mask)
{
    for (uint32_t i = 0; i < n; i++)
        if (!(mask[i / 32] >> i % 32 & 1))
            all[i].logit = -INFINITY;
}

// Keskar et al. 2019, section 4.1, with the sign rule that made it usable: a token once seen becomes less likely
// whichever the sign of its logit.
static void apply_repetition(struct ew_sampler *sampler, const struct ew_sampler_input *input, float penalty)
{
    for (uint32_t i = 0; i < input->n_history; i++) {
        float *logit = &sampler->candidates[input->history[i]].logit;

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
            sampler->candidates[input->history[i]].logit -= sampling->presence_penalty +
                                                            (float)*count * sampling->frequency_penalty;
        *count = 0;
    }
}

static void apply_penalties(struct ew_sampler *sampler, const struct ew_sampler_input *input,
                            const struct ew_sampling *sampling)
{
    if (sampling->repetition_penalty != 1)
        apply_repetition(sampler, input, sampling->repetition_penalty);
    if (sampling->presence_penalty != 0 || sampling->frequency_penalty != 0)
        apply_presence(sampler, input, sampling);
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

static const struct ew_candidate *greatest(const struct ew_candidate *list, uint32_t n)
{
    const struct ew_candidate *best = list;

    for (uint32_t i = 1; i < n; i++)
        if (list[i].logit > best->logit)
            best = &list[i];
    return best;
}

static uint32_t drop_impossible(struct ew_candidate *list, uint32_t n)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++)
        if (list[i].logit > -INFINITY)
            list[kept++] = list[i];
    return kept;
}

// Sets the weights at this temperature and returns their sum.
static double weigh(struct ew_candidate *list, uint32_t n, float temperature)
{
    float max = greatest(list, n)->logit;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        list[i].weight = expf((list[i].logit - max) / temperature);
        sum += list[i].weight;
    }
    return sum;
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
    uint32_t last = 0; // where rounding leaves a rest, it is the last possible one's
    double sum = 0, at;

    for (uint32_t i = 0; i < n; i++)
        sum += list[i].weight;
    at = ew_rng_unit(&rng) * sum;
    for (uint32_t i = 0; i < n && at >= 0; i++) {
        at -= list[i].weight;
        if (list[i].weight > 0)
            last = i;
    }
    return list[last].token;
}

static int32_t pick_random(struct ew_candidate *list, uint32_t n, const struct ew_sampling *sampling, struct ew_rng rng)
{
    double sum;

    if (sampling->top_k > 0 && (uint32_t)sampling->top_k < n)
        n = keep_best(list, n, (uint32_t)sampling->top_k, INFINITY);
    sum = weigh(list, n, sampling->temperature);
    if (sampling->top_p < 1)
        n = keep_best(list, n, n, sum * (double)sampling->top_p);
    if (sampling->min_p > 0)
        n = drop_below(list, n, sampling->min_p);
    return draw(list, n, rng);
}

int ew_sampler_pick(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                    const struct ew_sampler_input *input, int32_t *token, struct ew_error *err)
{
    struct ew_candidate *list = sampler->candidates;
    uint32_t n = sampler->n_vocab;
    int rc = load_logits(sampler, input->logits, err);

    if (rc < 0)
        return rc;
    apply_bias(list, sampling);
    if (input->mask)
        apply_mask(list, n, input->mask);
    apply_penalties(sampler, input, sampling);
    n = drop_impossible(list, n);
    if (n == 0)
        return ew_fail(err, EW_ERR_LIMIT, "no token is left to choose from");
    if (sampling->temperature <= 0)
        *token = greatest(list, n)->token;
    else
        *token = pick_random(list, n, sampling, ew_rng_at(sampling->seed, input->n_history));
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
