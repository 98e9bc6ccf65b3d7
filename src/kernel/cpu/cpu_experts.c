#include "kernel/cpu/cpu_experts.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"

static uint32_t find_best(const float *scores, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t i = 1; i < n; i++)
        if (scores[i] > scores[best] || isnan(scores[best]))
            best = i;
    return best;
}

static void softmax(const float *logits, uint32_t n, float *out)
{
    float max = logits[find_best(logits, n)];
    double sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        out[i] = expf(logits[i] - max);
        sum += (double)out[i];
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)(out[i] / sum);
}

// ---- the usual choice: the best scores ----------------------------------------------------------

// How good a group is: its best score, or the sum of its two best.
static float group_score(const float *scores, uint32_t n, bool of_two)
{
    float best = -INFINITY, second = -INFINITY;

    for (uint32_t i = 0; i < n; i++) {
        if (scores[i] > best) {
            second = best;
            best = scores[i];
        } else if (scores[i] > second) {
            second = scores[i];
        }
    }
    return of_two && n > 1 ? best + second : best;
}

// Rules out the experts of all groups but the best ones.
static void keep_groups(const struct ew_op *op, float *scores, bool of_two)
{
    uint32_t n_groups = op->route.n_groups, size = op->route.n_experts / n_groups, kept = 0;
    float goodness[EW_EXPERTS_MAX];
    bool keep[EW_EXPERTS_MAX] = {false};

    for (uint32_t g = 0; g < n_groups; g++)
        goodness[g] = group_score(scores + g * size, size, of_two);
    for (; kept < op->route.n_groups_active; kept++) {
        uint32_t best = find_best(goodness, n_groups);

        keep[best] = true;
        goodness[best] = -INFINITY;
    }
    for (uint32_t i = 0; i < op->route.n_experts; i++)
        if (!keep[i / size])
            scores[i] = -INFINITY;
}

static float score_of(const struct ew_op *op, const float *logits, const float *probabilities, uint32_t expert)
{
    return op->route.score == EW_ROUTE_SIGMOID ? 1 / (1 + expf(-logits[expert])) : probabilities[expert];
}

static void scale_weights(const struct ew_op *op, float *weights)
{
    double sum = 0;

    for (uint32_t j = 0; j < op->route.n_active; j++)
        sum += (double)weights[j];
    for (uint32_t j = 0; j < op->route.n_active; j++)
        weights[j] = (float)(weights[j] / (op->route.normalise && sum > 0 ? sum : 1) * (double)op->route.scale);
}

static void choose_best(const struct ew_op *op, const float *logits, const float *bias, float *out, float *scratch)
{
    uint32_t n = op->route.n_experts, n_active = op->route.n_active;
    float scores[EW_EXPERTS_MAX];

    if (op->route.score == EW_ROUTE_SOFTMAX)
        softmax(logits, n, scratch);
    for (uint32_t i = 0; i < n; i++)
        scores[i] = score_of(op, logits, scratch, i) + (bias ? bias[i] : 0);
    if (op->route.n_groups > 1)
        keep_groups(op, scores, bias != NULL);
    for (uint32_t j = 0; j < n_active; j++) {
        uint32_t best = find_best(scores, n);

        out[j] = (float)best;
        out[n_active + j] = score_of(op, logits, scratch, best);
        scores[best] = -INFINITY;
    }
    scale_weights(op, out + n_active);
}

// ---- PhiMoE's -----------------------------------------------------------------------------------

// One expert after the other; each one's weight is its share of those that are nearly as good as it.
static void choose_sparse(const struct ew_op *op, const float *logits, float *out, float *scratch)
{
    uint32_t n = op->route.n_experts, n_active = op->route.n_active;

    memcpy(scratch, logits, n * sizeof(*scratch));
    for (uint32_t j = 0; j < n_active; j++) {
        uint32_t best = find_best(scratch, n);
        double sum = 0;

        for (uint32_t i = 0; i < n; i++) {
            // The distance is taken from what is left; what it is compared with, from all.
            float room = fmaxf(fabsf(logits[i]), scratch[best]);

            if ((scratch[best] - logits[i]) / room <= 2 * op->route.jitter)
                sum += exp((double)(scratch[i] - scratch[best]));
        }
        out[j] = (float)best;
        out[n_active + j] = sum > 0 ? (float)(1 / sum) : 1;
        scratch[best] = -INFINITY;
    }
    scale_weights(op, out + n_active);
}

void ew_cpu_route(const struct ew_op *op, const float *logits, const float *bias, float *out, float *scratch)
{
    if (op->route.score == EW_ROUTE_SPARSEMIXER)
        choose_sparse(op, logits, out, scratch);
    else
        choose_best(op, logits, bias, out, scratch);
}

// ---- order --------------------------------------------------------------------------------------

void ew_cpu_pairs_sort(struct ew_cpu_pairs *pairs, const struct ew_op *op, const float *routes, uint32_t stride,
                       uint32_t n_tokens)
{
    uint32_t n_experts = op->route.n_experts, n_active = op->route.n_active, n_pairs = n_tokens * n_active;

    memset(pairs->first, 0, (n_experts + 1) * sizeof(*pairs->first));
    pairs->n_used = 0;
    for (uint32_t i = 0; i < n_pairs; i++) // how many of each, one place further
        pairs->first[(uint32_t)routes[(uint64_t)(i / n_active) * stride + i % n_active] + 1]++;
    for (uint32_t e = 0; e < n_experts; e++) {
        if (pairs->first[e + 1])
            pairs->used[pairs->n_used++] = e;
        pairs->first[e + 1] += pairs->first[e];
    }
    for (uint32_t i = 0; i < n_pairs; i++) {
        uint32_t expert = (uint32_t)routes[(uint64_t)(i / n_active) * stride + i % n_active];
        uint32_t place = pairs->first[expert]++;

        pairs->token[place] = i / n_active;
        pairs->place[i] = place;
    }
    memmove(pairs->first + 1, pairs->first, n_experts * sizeof(*pairs->first)); // undoes the counting up
    pairs->first[0] = 0;
}
