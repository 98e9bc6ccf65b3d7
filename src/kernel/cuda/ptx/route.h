#pragma once
// How one warp chooses the experts of a token: lanes 0 to 31 of a block.

#include "kernel/cuda/ptx/gpu.h"

#define NONE 0xFFFFFFFFu

struct best {
    float value;
    u32 index;
};

INLINE void take_better(struct best *best, float value, u32 index)
{
    if (value > best->value || (value == best->value && index < best->index)) {
        best->value = value;
        best->index = index;
    }
}

// Of equal ones the first, in all lanes.
INLINE struct best warp_best(struct best best)
{
    UNROLL
    for (u32 o = 16; o; o >>= 1) {
        float value = shuffle_xor(best.value, o);

        take_better(&best, value, shuffle_xor_u32(best.index, o));
    }
    return best;
}

INLINE struct best find_best(SHARED const float *values, u32 n)
{
    struct best best = {NEG_INFINITY, NONE};

    for (u32 i = THREAD; i < n; i += 32)
        take_better(&best, values[i], i);
    return warp_best(best);
}

// Values of enum ew_route_score.
enum { SCORE_SOFTMAX, SCORE_SIGMOID, SCORE_SPARSEMIXER };

struct route {
    const float *logits, *bias;
    u32 n_experts, n_active, score, n_groups, n_groups_active, normalise;
    float jitter, scale;
    SHARED float *scores; // [n_experts] what weights are made of
    SHARED float *ranks;  // [n_experts] what the choice is made by; -infinity where an expert was taken
    SHARED float *weights; // [n_active]
    SHARED u32 *experts;   // [n_active], each warp's own where each one chooses for itself
};

INLINE float no_nan(float x) { return x == x ? x : NEG_INFINITY; }

INLINE void find_scores(const struct route *r)
{
    float max = NEG_INFINITY, sum = 0;

    if (r->score == SCORE_SIGMOID) {
        ROLL
        for (u32 i = THREAD % 32; i < r->n_experts; i += 32)
            r->scores[i] = 1 / (1 + exp_f32(-r->logits[i]));
    } else {
        ROLL
        for (u32 i = THREAD % 32; i < r->n_experts; i += 32)
            max = max_f32(max, r->logits[i]);
        max = warp_max(max);
        ROLL
        for (u32 i = THREAD % 32; i < r->n_experts; i += 32)
            sum += r->scores[i] = exp_f32(r->logits[i] - max);
        sum = 1 / warp_sum(sum);
        ROLL
        for (u32 i = THREAD % 32; i < r->n_experts; i += 32)
            r->scores[i] *= sum;
    }
    ROLL
    for (u32 i = THREAD % 32; i < r->n_experts; i += 32)
        r->ranks[i] = no_nan(r->scores[i] + (r->bias ? r->bias[i] : 0));
    warp_sync();
}

// How good a group of experts is: its best, or the sum of its two best.
INLINE float group_score(const struct route *r, u32 first, u32 n, u32 of_two)
{
    float best = NEG_INFINITY, second = NEG_INFINITY;

    for (u32 i = first; i < first + n; i++) {
        if (r->ranks[i] > best) {
            second = best;
            best = r->ranks[i];
        } else {
            second = max_f32(second, r->ranks[i]);
        }
    }
    return of_two && n > 1 ? best + second : best;
}

// Rules out the experts of all groups but the best ones; a lane has a group.
INLINE void keep_groups(const struct route *r)
{
    u32 size = r->n_experts / r->n_groups, keep = 0, lane = THREAD;
    float value = lane < r->n_groups ? group_score(r, lane * size, size, r->bias != 0) : NEG_INFINITY;

    for (u32 i = 0; i < r->n_groups_active; i++) {
        struct best best = warp_best((struct best){value, lane});

        keep |= 1u << best.index;
        if (best.index == lane)
            value = NEG_INFINITY;
    }
    warp_sync(); // all have read the ranks of their group
    for (u32 i = lane; i < r->n_experts; i += 32)
        if (!(keep >> i / size & 1))
            r->ranks[i] = NEG_INFINITY;
    warp_sync();
}

// An expert that was chosen is not chosen again.
INLINE void take(const struct route *r, u32 j, u32 expert, float weight)
{
    warp_sync();
    if (THREAD == 0) {
        r->ranks[expert] = NEG_INFINITY;
        r->weights[j] = weight;
        r->experts[j] = expert;
    }
    warp_sync();
}

INLINE void choose_best(const struct route *r)
{
    find_scores(r);
    if (r->n_groups > 1)
        keep_groups(r);
    for (u32 j = 0; j < r->n_active; j++) {
        u32 expert = find_best(r->ranks, r->n_experts).index;

        take(r, j, expert, r->scores[expert]);
    }
}

// PhiMoE's: each one's weight is its share of those that are nearly as good as it. The distance is taken from what is
// left; what it is compared with, from all.
INLINE void choose_sparse(const struct route *r)
{
    for (u32 i = THREAD; i < r->n_experts; i += 32)
        r->ranks[i] = no_nan(r->logits[i]);
    warp_sync();
    for (u32 j = 0; j < r->n_active; j++) {
        struct best best = find_best(r->ranks, r->n_experts);
        float sum = 0;

        for (u32 i = THREAD; i < r->n_experts; i += 32) {
            float room = max_f32(abs_f32(r->logits[i]), best.value);

            if ((best.value - r->logits[i]) / room <= 2 * r->jitter)
                sum += exp_f32(r->ranks[i] - best.value);
        }
        sum = warp_sum(sum);
        take(r, j, best.index, sum > 0 ? 1 / sum : 1);
    }
}

// From scores to weights, once all are there.
INLINE void settle_weights(const struct route *r)
{
    float sum = 0;

    ROLL
    for (u32 j = 0; j < r->n_active; j++)
        sum += r->weights[j];
    warp_sync();
    sum = r->normalise && sum > 0 ? sum : 1;
    ROLL
    for (u32 j = THREAD % 32; j < r->n_active; j += 32)
        r->weights[j] = r->weights[j] / sum * r->scale;
    warp_sync();
}

INLINE void choose_alone(const struct route *r)
{
    if (r->score == SCORE_SPARSEMIXER)
        choose_sparse(r);
    else
        choose_best(r);
}

// Experts by falling rank, and their weights.
INLINE void choose(const struct route *r)
{
    choose_alone(r);
    settle_weights(r);
}

// ---- by each warp of a block for itself -----------------------------------------------------------

#define LANE_EXPERTS 8

// Whether that is possible; if not, one warp chooses for all.
INLINE u32 chooses_in_warps(const struct route *r)
{
    return r->score != SCORE_SPARSEMIXER && r->n_groups <= 1 && r->n_experts <= 32 * LANE_EXPERTS;
}

// What a lane's experts are chosen by: numbers in the order of ranks, 0 where there is none. Expert j * 32 + i is lane
// i's. Softmax alone changes no order, and need not be waited for.
INLINE void find_keys(u32 n, const struct route *r, u32 *keys)
{
    float rank[LANE_EXPERTS], max = NEG_INFINITY, sum = 0;

    UNROLL
    for (u32 j = 0; j < n; j++)
        rank[j] = j * 32 + THREAD % 32 < r->n_experts ? r->logits[j * 32 + THREAD % 32] : NEG_INFINITY;
    if (r->score == SCORE_SIGMOID) {
        UNROLL
        for (u32 j = 0; j < n; j++)
            rank[j] = 1 / (1 + exp_f32(-rank[j]));
    } else if (r->bias) {
        UNROLL
        for (u32 j = 0; j < n; j++)
            max = max_f32(max, rank[j]);
        max = warp_max(max);
        UNROLL
        for (u32 j = 0; j < n; j++)
            sum += rank[j] = exp_f32(rank[j] - max);
        sum = 1 / warp_sum(sum);
        UNROLL
        for (u32 j = 0; j < n; j++)
            rank[j] *= sum;
    }
    UNROLL
    for (u32 j = 0; j < n; j++) {
        u32 i = j * 32 + THREAD % 32, is_there = i < r->n_experts;
        u32 bits = bits_of_f32(no_nan(rank[j] + (r->bias && is_there ? r->bias[i] : 0)));

        keys[j] = !is_there ? 0 : bits >> 31 ? ~bits : bits | 0x80000000;
    }
}

// n: experts of a lane at most.
INLINE void choose_in_warp(u32 n, const struct route *r)
{
    u32 keys[LANE_EXPERTS], lane = THREAD % 32;

    find_keys(n, r, keys);
    for (u32 k = 0; k < r->n_active; k++) {
        u32 best = 0, at = 0, first;

        UNROLL
        for (u32 j = 0; j < n; j++) {
            at = keys[j] > best ? j : at;
            best = max_u32(best, keys[j]);
        }
        first = warp_min_u32(best == warp_max_u32(best) ? at * 32 + lane : NONE);
        UNROLL
        for (u32 j = 0; j < n; j++)
            keys[j] = first == j * 32 + lane ? 0 : keys[j];
        if (lane == 0)
            r->experts[k] = first;
    }
    warp_sync();
}

// By all threads of the block; weights are not there yet.
INLINE void choose_together(const struct route *r)
{
    if (!chooses_in_warps(r)) {
        if (THREAD < 32)
            choose_alone(r);
        block_sync();
    } else if (r->n_experts <= 128) {
        choose_in_warp(4, r);
    } else {
        choose_in_warp(LANE_EXPERTS, r);
    }
}

// After that, by one warp.
INLINE void weigh(const struct route *r)
{
    if (chooses_in_warps(r)) {
        find_scores(r);
        for (u32 k = THREAD % 32; k < r->n_active; k += 32)
            r->weights[k] = r->scores[r->experts[k]];
        warp_sync();
    }
    settle_weights(r);
}
