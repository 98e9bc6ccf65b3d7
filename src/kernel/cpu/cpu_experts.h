#pragma once
// Mixtures of experts on the CPU: the choice of experts for a token, and the order in which their products are done.
//
// All pairs of a token and one of its experts are sorted by expert, so that the rows of one expert are neighbours and
// its matrices are read once a step, however many tokens chose it. Everything is for one layer at a time.

#include "kernel/cpu/cpu_plan.h"

struct ew_cpu_pairs {
    uint32_t n_used; // experts with at least one pair
    uint32_t *token;          // [n_tokens * n_active] of each pair, sorted by expert
    uint32_t *place;          // [n_tokens, n_active] where the pair stands in that order
    uint32_t *first;          // [n_experts + 1] pair of each expert
    uint32_t *used;           // [n_used] experts, rising
};

// Chooses the experts of one token: `out` is [2 * n_active], experts by falling weight, then their weights. `scratch`
// has n_experts elements. Of equal scores the lower expert wins. NaN never wins against a number.
void ew_cpu_route(const struct ew_op *op, const float *logits, const float *bias, float *out, float *scratch);
// routes: rows of what ew_cpu_route wrote, `stride` apart.
void ew_cpu_pairs_sort(struct ew_cpu_pairs *pairs, const struct ew_op *op, const float *routes, uint32_t stride,
                       uint32_t n_tokens);
