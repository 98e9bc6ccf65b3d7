// The experts that one token chose: their gates, their activation and the sum of their results, in two kernels. Every
// block chooses the experts for itself, since that costs less than a kernel of its own; then its warps read rows of the
// chosen ones' matrices and nothing else of them.

#include "kernel/cuda/chosen_job.h"
#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/route.h"

#define WARPS (EW_CHOSEN_THREADS / 32)
#define GATES 4 // loads of 16 bytes of a lane that are under way together, of each of two matrices
#define SUMS 4

// Parts of dynamic shared memory.
struct places {
    SHARED u32x4 *low;    // columns 0 to 15 of each group of 32 in 8 bits; or 0 to 3 of 8 in f32
    SHARED u32x4 *high;   // the others
    SHARED f32x2 *scales; // of 8 bits: scale, and scale times the sum of the codes
    struct route route;
};

#define IS_HALF(layout) ((layout) == LAYOUT_F16 || (layout) == LAYOUT_BF16)
// A unit is what 16 bytes of codes are: so many columns.
#define UNIT(layout) (IS_HALF(layout) ? 8u : (layout) == LAYOUT_I8 ? 16u : 32u)

INLINE struct places find_places(u32 layout, const struct ew_chosen_job *job, u32 cols)
{
    u32 planes = IS_HALF(layout) ? cols / 8 : cols / 32;
    struct places p;
    SHARED float *at;

    p.low = (SHARED u32x4 *)g_dynamic;
    p.high = p.low + planes;
    p.scales = (SHARED f32x2 *)(p.high + planes);
    at = (SHARED float *)(p.scales + (IS_HALF(layout) ? 0 : planes));
    p.route = (struct route){(const float *)job->logits, (const float *)job->choice_bias, job->n_experts, job->n_active,
                             job->score, job->n_groups, job->n_groups_active, job->normalise, job->jitter, job->scale,
                             at, at + job->n_experts, at + 2 * job->n_experts,
                             (SHARED u32 *)(at + 2 * job->n_experts + job->n_active)};
    return p;
}

// ---- activations --------------------------------------------------------------------------------

INLINE u32 code(float v, float factor) { return (u32)(i32)__builtin_rintf(v * factor) & 0xFF; }

// Four columns, of which eight lanes have a group of 32; numbers as in rows.c, quantise.
INLINE void stage_q8(const struct places *p, u32 i, f32x4 v, float weight, u32 is_there)
{
    float max = max_f32(max_f32(abs_f32(v.x), abs_f32(v.y)), max_f32(abs_f32(v.z), abs_f32(v.w))), factor;
    u32 word;
    int sum;

    UNROLL
    for (u32 o = 1; o < 8; o *= 2)
        max = max_f32(max, shuffle_xor(max, o));
    factor = max > 1e-30f ? 127 / max : 0;
    word = code(v.x, factor) | code(v.y, factor) << 8 | code(v.z, factor) << 16 | code(v.w, factor) << 24;
    sum = dp4a(word, 0x01010101, 0);
    UNROLL
    for (u32 o = 1; o < 8; o *= 2)
        sum += (int)shuffle_xor_u32((u32)sum, o);
    if (!is_there)
        return;
    ((SHARED u32 *)((i % 8 < 4 ? p->low : p->high) + i / 8))[i % 4] = word;
    if (i % 8 == 0)
        p->scales[i / 8] = (f32x2){max / 127 * weight, max / 127 * weight * (float)sum};
}

// Rows of activations by warps `warp`, warp + n_warps ...; `weights` multiplies each row by its own, NULL: 1.
INLINE void stage(u32 layout, const struct places *p, const float *x, u32 stride, u32 cols, u32 n_rows,
                  SHARED const float *weights, u32 warp, u32 n_warps)
{
    u32 n_quads = cols / 4, total = n_rows * n_quads;

    for (u32 first = warp * 32; first < total; first += n_warps * 32) {
        u32 i = first + THREAD % 32, is_there = i < total, row = is_there ? i / n_quads : 0;
        float weight = weights ? weights[row] : 1;
        f32x4 v = {0, 0, 0, 0};

        if (is_there)
            v = *(const f32x4 *)(x + (u64)row * stride + (i - row * n_quads) * 4);
        if (!IS_HALF(layout))
            stage_q8(p, i, v, weight, is_there);
        else if (is_there)
            ((SHARED f32x4 *)(i % 2 ? p->high : p->low))[i / 2] = v * weight;
    }
}

// ---- weights ------------------------------------------------------------------------------------

struct unit {
    u32x4 codes;
    float scale, min;
};

// Unit `at` of the matrix. No branch: loads follow each other without waiting for anything.
INLINE struct unit load_unit(u32 layout, const struct ew_chosen_matrix *m, u64 at)
{
    struct unit unit = {load_once((const u8 *)m->codes + at * 16), 0, 0};

    if (layout == LAYOUT_I8)
        unit.scale = f32_of_f16(((const u16 *)m->scales)[at / 2]);
    if (layout == LAYOUT_U4 || layout == LAYOUT_U4_MIN)
        unit.scale = f32_of_f16(((const u16 *)m->scales)[at]);
    unit.min = layout == LAYOUT_U4_MIN ? f32_of_f16(((const u16 *)m->mins)[at]) : unit.scale * 8;
    return unit;
}

INLINE int dot16(u32x4 a, u32x4 b, int sum)
{
    return dp4a(a.x, b.x, dp4a(a.y, b.y, dp4a(a.z, b.z, dp4a(a.w, b.w, sum))));
}

INLINE float low_of(u32 v, u32 layout) { return layout == LAYOUT_BF16 ? low_bf16(v) : low_f16(v); }
INLINE float high_of(u32 v, u32 layout) { return layout == LAYOUT_BF16 ? high_bf16(v) : high_f16(v); }

// With unit `at` of the activations.
INLINE float dot_unit(u32 layout, const struct unit *unit, const struct places *p, u32 at)
{
    u32x4 w = unit->codes;

    if (IS_HALF(layout)) {
        f32x4 a = ((SHARED const f32x4 *)p->low)[at], b = ((SHARED const f32x4 *)p->high)[at];

        return low_of(w.x, layout) * a.x + high_of(w.x, layout) * a.y + low_of(w.y, layout) * a.z +
               high_of(w.y, layout) * a.w + low_of(w.z, layout) * b.x + high_of(w.z, layout) * b.y +
               low_of(w.w, layout) * b.z + high_of(w.w, layout) * b.w;
    }
    if (layout == LAYOUT_I8)
        return unit->scale * p->scales[at / 2].x * (float)dot16(w, at % 2 ? p->high[at / 2] : p->low[at / 2], 0);
    return unit->scale * p->scales[at].x *
               (float)dot16(w & 0x0F0F0F0F, p->low[at], dot16(w >> 4 & 0x0F0F0F0F, p->high[at], 0)) -
           unit->min * p->scales[at].y;
}

// ---- gates: a warp a row of both matrices of one expert -------------------------------------------

INLINE float bias_at(const struct ew_chosen_matrix *m, u64 row) { return m->bias ? ((const float *)m->bias)[row] : 0; }

INLINE void gate_row(u32 layout, const struct ew_chosen_job *job, const struct places *p, u32 slot, u32 row)
{
    u64 at = (u64)p->route.experts[slot] * job->hidden_cols + row;
    u32 n_units = job->cols / UNIT(layout);
    float gate = 0, up = 0;

    for (u32 first = THREAD % 32; first < n_units; first += 32 * GATES) {
        struct unit of_gate[GATES], of_up[GATES];

        UNROLL
        for (u32 i = 0; i < GATES; i++) {
            u32 unit = min_u32(first + i * 32, n_units - 1);

            of_gate[i] = load_unit(layout, &job->gate, at * n_units + unit);
            of_up[i] = load_unit(layout, &job->up, at * n_units + unit);
        }
        UNROLL
        for (u32 i = 0; i < GATES; i++) {
            u32 unit = min_u32(first + i * 32, n_units - 1), counts = first + i * 32 < n_units;
            float g = dot_unit(layout, &of_gate[i], p, unit), u = dot_unit(layout, &of_up[i], p, unit);

            gate += counts ? g : 0;
            up += counts ? u : 0;
        }
    }
    gate = warp_sum(gate) + bias_at(&job->gate, at);
    up = warp_sum(up) + bias_at(&job->up, at);
    if (THREAD % 32 == 0)
        ((float *)job->hidden)[(u64)slot * job->hidden_stride + row] =
            job->no_gate ? act_one(up, job->act) : glu_one(gate, up, job->act, job->limit, job->alpha);
}

// The scores are there for the next kernel, too, once it may start: see sum_rows.
INLINE void gates(u32 layout, const struct ew_chosen_job *job)
{
    struct places p = find_places(layout, job, job->cols);
    u32 warp = THREAD / 32, n_rows = job->n_active * job->hidden_cols;

    previous_wait();
    next_may_start();
    stage(layout, &p, (const float *)job->x, 0, job->cols, 1, 0, warp, WARPS);
    choose_together(&p.route);
    for (u32 i = BLOCK_X * WARPS + warp; i < n_rows; i += N_BLOCKS_X * WARPS)
        gate_row(layout, job, &p, i / job->hidden_cols, i % job->hidden_cols);
}

// ---- sums: a warp a row of all experts' matrices ----------------------------------------------------

// Where a lane is in the units of all experts' rows, one after the other.
struct cursor {
    u32 slot, unit;
};

INLINE struct unit load_next(u32 layout, const struct ew_chosen_job *job, const struct places *p, u32 row,
                             struct cursor *c)
{
    u32 n_units = job->hidden_cols / UNIT(layout);
    u64 expert = p->route.experts[min_u32(c->slot, job->n_active - 1)];
    u64 at = expert * job->cols + min_u32(row, job->cols - 1);
    struct unit unit = load_unit(layout, &job->down, at * n_units + c->unit);

    c->unit += 32;
    while (c->unit >= n_units) {
        c->unit -= n_units;
        c->slot++;
    }
    return unit;
}

INLINE struct cursor begin_row(u32 layout, const struct ew_chosen_job *job)
{
    u32 n_units = job->hidden_cols / UNIT(layout), lane = THREAD % 32;

    return (struct cursor){lane / n_units, lane % n_units};
}

INLINE void store_sum(const struct ew_chosen_job *job, const struct places *p, u32 row, float sum)
{
    float *out = (float *)job->out + row;

    if (job->down.bias) {
        for (u32 j = THREAD % 32; j < job->n_active; j += 32)
            sum += (job->is_plain ? 1 : p->route.weights[j]) *
                   ((const float *)job->down.bias)[(u64)p->route.experts[j] * job->cols + row];
    }
    sum = warp_sum(sum);
    if (THREAD % 32 == 0)
        *out = job->residual ? job->y_scale * sum + job->residual_scale * ((const float *)job->residual)[row] : sum;
}

// The kernel before this one let it start when the scores were there: so the choice, and the first weights, need not
// wait for its end.
INLINE void sum_rows(u32 layout, const struct ew_chosen_job *job)
{
    u32 n_all = job->n_active * job->hidden_cols, n_units = n_all / UNIT(layout);
    u32 warp = THREAD / 32, row = BLOCK_X * WARPS + warp;
    struct places p = find_places(layout, job, n_all);
    struct cursor cursor = begin_row(layout, job);
    struct unit units[SUMS];

    choose_together(&p.route);
    UNROLL
    for (u32 i = 0; i < SUMS; i++)
        units[i] = load_next(layout, job, &p, row, &cursor);
    if (warp == 0)
        settle_weights(&p.route);
    block_sync();
    previous_wait();
    next_may_start();
    stage(layout, &p, (const float *)job->hidden, job->hidden_stride, job->hidden_cols, job->n_active,
          job->is_plain ? 0 : p.route.weights, warp, WARPS);
    block_sync();
    for (; row < job->cols; row += N_BLOCKS_X * WARPS) {
        float sum = 0;

        for (u32 first = 0; first < n_units; first += 32 * SUMS) {
            UNROLL
            for (u32 i = 0; i < SUMS; i++) {
                u32 at = first + i * 32 + THREAD % 32;
                float dot = dot_unit(layout, &units[i], &p, min_u32(at, n_units - 1));

                sum += at < n_units ? dot : 0;
            }
            if (first + 32 * SUMS >= n_units)
                cursor = begin_row(layout, job);
            UNROLL
            for (u32 i = 0; i < SUMS; i++)
                units[i] = load_next(layout, job, &p,
                                     first + 32 * SUMS < n_units ? row : row + N_BLOCKS_X * WARPS, &cursor);
        }
        store_sum(job, &p, row, sum);
    }
}

#define DEFINE(name, layout) \
    KERNEL chosen_in_##name(struct ew_chosen_job job) { gates(layout, &job); } \
    KERNEL chosen_out_##name(struct ew_chosen_job job) { sum_rows(layout, &job); }

DEFINE(f16, LAYOUT_F16)
DEFINE(bf16, LAYOUT_BF16)
DEFINE(i8, LAYOUT_I8)
DEFINE(u4, LAYOUT_U4)
DEFINE(u4_min, LAYOUT_U4_MIN)
