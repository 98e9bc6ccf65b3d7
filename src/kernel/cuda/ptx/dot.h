#pragma once
// A row of a matrix by a few rows of activations: what a warp does in the kernels for few tokens. The limit is the
// memory, so that every lane keeps several loads of 16 bytes in flight; activations come from the first cache.

#include "kernel/cuda/ptx/gpu.h"

#define TOKENS_MAX 8 // rows of activations of one call

struct product {
    float *out;
    const float *bias;
    u32 out_stride, rows, n_tokens; // of this block's slice
};

INLINE void finish(const struct product *p, u32 row, u32 t, float sum)
{
    sum = warp_sum(sum);
    if (THREAD % 32 == 0)
        p->out[(u64)t * p->out_stride + row] = sum + (p->bias ? p->bias[row] : 0);
}

INLINE void linear_f32_row(const struct product *p, u32 row, const float *x, u32 x_stride, const float *w, u32 cols)
{
    float sum[TOKENS_MAX] = {0};

    for (u32 i = THREAD % 32; i < cols; i += 32) {
        float v = w[i];

        UNROLL
        for (u32 t = 0; t < TOKENS_MAX; t++)
            if (t < p->n_tokens)
                sum[t] += v * x[(u64)t * x_stride + i];
    }
    UNROLL
    for (u32 t = 0; t < TOKENS_MAX; t++)
        if (t < p->n_tokens)
            finish(p, row, t, sum[t]);
}

INLINE float low_of(u32 v, u32 is_bf16) { return is_bf16 ? low_bf16(v) : low_f16(v); }
INLINE float high_of(u32 v, u32 is_bf16) { return is_bf16 ? high_bf16(v) : high_f16(v); }

// Of two products in one sum the compiler chooses which it rounds, for each row of activations anew. Said so, it is the
// same for all.
INLINE float add_pair(float sum, u32 v, float x, float y, u32 is_bf16)
{
    return __builtin_fmaf(high_of(v, is_bf16), y, __builtin_fmaf(low_of(v, is_bf16), x, sum));
}

INLINE float dot8(u32x4 v, const float *x, u32 is_bf16)
{
    f32x4 a = *(const f32x4 *)x, b = *(const f32x4 *)(x + 4);
    float sum = add_pair(0, v.x, a.x, a.y, is_bf16);

    sum = add_pair(sum, v.y, a.z, a.w, is_bf16);
    sum = add_pair(sum, v.z, b.x, b.y, is_bf16);
    return add_pair(sum, v.w, b.z, b.w, is_bf16);
}

// cols is a multiple of 8 and rows of x are 16-byte aligned. N is the most tokens of a slice.
INLINE void linear_half(u32 N, u32 is_bf16, const struct product *p, u32 row, const float *x, u32 x_stride,
                        const u16 *w, u32 cols)
{
    u32 lane = THREAD % 32, i = lane * 8;
    float sum[TOKENS_MAX] = {0};

    for (; i + 768 < cols; i += 1024) {
        u32x4 v[4];

        UNROLL
        for (u32 j = 0; j < 4; j++)
            v[j] = load_once(w + i + j * 256);
        UNROLL
        for (u32 t = 0; t < N; t++) {
            UNROLL
            for (u32 j = 0; j < 4; j++)
                sum[t] += dot8(v[j], x + (u64)min_u32(t, p->n_tokens - 1) * x_stride + i + j * 256, is_bf16);
        }
    }
    for (; i < cols; i += 256) {
        u32x4 v = load_once(w + i);

        UNROLL
        for (u32 t = 0; t < N; t++)
            sum[t] += dot8(v, x + (u64)min_u32(t, p->n_tokens - 1) * x_stride + i, is_bf16);
    }
    UNROLL
    for (u32 t = 0; t < N; t++)
        if (t < p->n_tokens)
            finish(p, row, t, sum[t]);
}

// ---- 8-bit activations --------------------------------------------------------------------------

struct q8 {
    const i8 *codes;
    const float *scales, *sums;
};

// A lane takes half a group of 16 bytes of codes at a time.
INLINE void linear_i8(u32 N, const struct product *p, u32 row, const struct q8 *x, const u8 *w, const u16 *scales,
                      u32 cols)
{
    u32 lane = THREAD % 32, n_groups = cols / 32;
    float sum[TOKENS_MAX] = {0};

    for (u32 i = lane * 16; i < cols; i += 2048) {
        u32x4 v[4];
        float d[4];

        UNROLL
        for (u32 j = 0; j < 4; j++) {
            u32 at = min_u32(i + j * 512, cols - 16);

            v[j] = load_once(w + at);
            d[j] = i + j * 512 < cols ? f32_of_f16(scales[at / 32]) : 0;
        }
        UNROLL
        for (u32 t = 0; t < N; t++) {
            u32 token = min_u32(t, p->n_tokens - 1);

            UNROLL
            for (u32 j = 0; j < 4; j++) {
                u32 at = min_u32(i + j * 512, cols - 16);
                u32x4 q = *(const u32x4 *)(x->codes + (u64)token * cols + at);
                int s = dp4a(v[j].x, q.x, dp4a(v[j].y, q.y, dp4a(v[j].z, q.z, dp4a(v[j].w, q.w, 0))));

                sum[t] += d[j] * x->scales[(u64)token * n_groups + at / 32] * (float)s;
            }
        }
    }
    UNROLL
    for (u32 t = 0; t < N; t++)
        if (t < p->n_tokens)
            finish(p, row, t, sum[t]);
}

INLINE int dot_nibbles(u32x4 v, const i8 *codes)
{
    u32x4 a = *(const u32x4 *)codes, b = *(const u32x4 *)(codes + 16);
    int s = dp4a(v.x & 0x0F0F0F0F, a.x, 0);

    s = dp4a(v.y & 0x0F0F0F0F, a.y, s);
    s = dp4a(v.z & 0x0F0F0F0F, a.z, s);
    s = dp4a(v.w & 0x0F0F0F0F, a.w, s);
    s = dp4a(v.x >> 4 & 0x0F0F0F0F, b.x, s);
    s = dp4a(v.y >> 4 & 0x0F0F0F0F, b.y, s);
    s = dp4a(v.z >> 4 & 0x0F0F0F0F, b.z, s);
    return dp4a(v.w >> 4 & 0x0F0F0F0F, b.w, s);
}

// A lane takes a group at a time. Without minima the codes are 8 too large.
INLINE void linear_u4(u32 N, u32 has_min, const struct product *p, u32 row, const struct q8 *x, const u8 *w,
                      const u16 *scales, const u16 *mins, u32 cols)
{
    u32 lane = THREAD % 32, n_groups = cols / 32;
    float sum[TOKENS_MAX] = {0};

    for (u32 i = lane; i < n_groups; i += 128) {
        u32x4 v[4];
        float d[4], m[4];

        UNROLL
        for (u32 j = 0; j < 4; j++) {
            u32 at = min_u32(i + j * 32, n_groups - 1);

            v[j] = load_once(w + (u64)at * 16);
            d[j] = i + j * 32 < n_groups ? f32_of_f16(scales[at]) : 0;
            m[j] = !has_min ? d[j] * 8 : i + j * 32 < n_groups ? f32_of_f16(mins[at]) : 0;
        }
        UNROLL
        for (u32 t = 0; t < N; t++) {
            u64 token = min_u32(t, p->n_tokens - 1);

            UNROLL
            for (u32 j = 0; j < 4; j++) {
                u32 at = min_u32(i + j * 32, n_groups - 1);
                int s = dot_nibbles(v[j], x->codes + token * cols + at * 32);

                sum[t] = __builtin_fmaf(d[j] * x->scales[token * n_groups + at], (float)s, sum[t]);
                sum[t] = __builtin_fmaf(-m[j], x->sums[token * n_groups + at], sum[t]);
            }
        }
    }
    UNROLL
    for (u32 t = 0; t < N; t++)
        if (t < p->n_tokens)
            finish(p, row, t, sum[t]);
}

// ---- any layout ---------------------------------------------------------------------------------

// Row `at` of the matrix, whose product is row `row` of the result.
INLINE void linear_any_row(const struct product *p, u32 layout, const struct weight *w, u64 at, u32 row,
                           const float *x, u32 x_stride, u32 cols)
{
    float sum[TOKENS_MAX] = {0}, v[8];

    for (u32 i = THREAD % 32 * 8; i < cols; i += 256) {
        eight_at(layout, w, at, i, cols, v);
        UNROLL
        for (u32 t = 0; t < TOKENS_MAX; t++) {
            const float *from = x + (u64)min_u32(t, p->n_tokens - 1) * x_stride + i;

            UNROLL
            for (u32 j = 0; j < 8; j++)
                sum[t] += v[j] * from[j];
        }
    }
    UNROLL
    for (u32 t = 0; t < TOKENS_MAX; t++)
        if (t < p->n_tokens)
            finish(p, row, t, sum[t]);
}
