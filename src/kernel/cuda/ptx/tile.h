#pragma once
// A tile of a product on the tensor cores, by a block of 256 threads: 32 tokens and 128 rows of the matrix, 32 columns
// at a time; activations are rounded and weights decoded to f16 or bf16 on their way into shared memory; accumulation
// in f32.

#include "kernel/cuda/ptx/gpu.h"

#define BN 128     // rows of the matrix
#define BK 32      // columns
#define PITCH 40   // elements of a row in shared memory: 80 bytes, so that ldmatrix meets every bank once
#define BM 32      // tokens

static SHARED u16 g_a[2][BM * PITCH] __attribute__((aligned(16)));
static SHARED u16 g_b[2][BN * PITCH] __attribute__((aligned(16)));

INLINE void mma(u32 is_bf16, float *c, const u32 *a, u32 b0, u32 b1)
{
    if (is_bf16)
        mma_bf16(c, a, b0, b1);
    else
        mma_f16(c, a, b0, b1);
}

struct job {
    float *out;
    const float *x, *bias;
    struct weight w;
    u32 out_stride, x_stride, rows, cols, n_tokens;
    u32 first_token, first_row;
    u64 matrix_row; // of LAYOUT_ANY: the first of this product in the matrix
    u32 layout;     // of LAYOUT_ANY: which one
};

#define LAYOUT_ANY 0xFFu // beyond U4_MIN

INLINE u32 pack(u32 layout, float low, float high)
{
    return layout == LAYOUT_BF16 ? bf16x2_of(low, high) : f16x2_of(low, high);
}

// f16 cannot hold what some families' activations reach: they stop at its largest number.
INLINE u32 pack_x(u32 layout, float low, float high)
{
    if (layout == LAYOUT_BF16)
        return bf16x2_of(low, high);
    return f16x2_of(max_f32(min_f32(low, 65504), -65504), max_f32(min_f32(high, 65504), -65504));
}

// What one thread holds of the next tiles: 16 columns of a row of the matrix, four activations.
struct staged {
    u32x4 b[2];
    float scale, min;
    f32x4 a;
};

INLINE void fetch_any(const struct job *job, u64 row, u32 column, struct staged *s)
{
    float v[8];

    UNROLL
    for (u32 i = 0; i < 2; i++) {
        eight_at(job->layout, &job->w, job->matrix_row + row, column + i * 8, job->cols, v);
        s->b[i] = (u32x4){f16x2_of(v[0], v[1]), f16x2_of(v[2], v[3]), f16x2_of(v[4], v[5]), f16x2_of(v[6], v[7])};
    }
}

// Thread t: row t / 2, columns (t % 2) * 16 on. Rows beyond the last one repeat it: nobody stores their results.
INLINE void fetch_b(u32 layout, const struct job *job, u32 k, struct staged *s)
{
    u64 row = min_u32(job->first_row + THREAD / 2, job->rows - 1), at = row * job->cols + k + THREAD % 2 * 16;
    u64 group = at / 32;

    if (layout == LAYOUT_ANY) {
        fetch_any(job, row, k + THREAD % 2 * 16, s);
        return;
    }
    if (layout == LAYOUT_F16 || layout == LAYOUT_BF16) {
        s->b[0] = *(const u32x4 *)(job->w.codes + at * 2);
        s->b[1] = *(const u32x4 *)(job->w.codes + at * 2 + 16);
        return;
    }
    s->scale = f32_of_f16(job->w.scales[group]);
    s->b[0] = *(const u32x4 *)(job->w.codes + (layout == LAYOUT_I8 ? at : group * 16));
    if (layout == LAYOUT_U4_MIN)
        s->min = f32_of_f16(job->w.mins[group]);
}

INLINE float code_at(u32 layout, u32 word, u32 byte, const struct staged *s)
{
    i32 code = layout == LAYOUT_I8 ? (i32)(i8)(word >> 8 * byte) : (i32)(word >> 8 * byte & 15);

    if (layout == LAYOUT_U4_MIN)
        return (float)code * s->scale - s->min;
    return (float)(layout == LAYOUT_U4 ? code - 8 : code) * s->scale;
}

INLINE void store_b(u32 layout, u32 buffer, const struct staged *s)
{
    SHARED u32x4 *to = (SHARED u32x4 *)(g_b[buffer] + THREAD / 2 * PITCH + THREAD % 2 * 16);
    u32 words[8];

    if (layout == LAYOUT_F16 || layout == LAYOUT_BF16 || layout == LAYOUT_ANY) {
        to[0] = s->b[0];
        to[1] = s->b[1];
        return;
    }
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 word = s->b[0][i];

        if (layout != LAYOUT_I8) // low nibbles are columns 0 to 15 of a group
            word = THREAD % 2 ? word >> 4 : word;
        words[2 * i] = pack(layout, code_at(layout, word, 0, s), code_at(layout, word, 1, s));
        words[2 * i + 1] = pack(layout, code_at(layout, word, 2, s), code_at(layout, word, 3, s));
    }
    to[0] = (u32x4){words[0], words[1], words[2], words[3]};
    to[1] = (u32x4){words[4], words[5], words[6], words[7]};
}

// Eight threads a row of 32 activations.
INLINE void fetch_a(const struct job *job, u32 k, struct staged *s)
{
    u64 token = min_u32(job->first_token + THREAD / 8, job->n_tokens - 1);

    s->a = *(const f32x4 *)(job->x + token * job->x_stride + k + THREAD % 8 * 4);
}

INLINE void store_a(u32 layout, u32 buffer, const struct staged *s)
{
    SHARED u32x2 *to = (SHARED u32x2 *)(g_a[buffer] + THREAD / 8 * PITCH + THREAD % 8 * 4);

    *to = (u32x2){pack_x(layout, s->a.x, s->a.y), pack_x(layout, s->a.z, s->a.w)};
}

// A warp takes all tokens and 16 rows: MT x NT tiles of 16 x 8.
#define MT 2
#define NT 2

INLINE void multiply(u32 is_bf16, u32 buffer, float (*acc)[4])
{
    u32 lane = THREAD % 32, n0 = THREAD / 32 * NT * 8;

    UNROLL
    for (u32 k = 0; k < BK; k += 16) {
        u32 a[MT][4], b[4];

        UNROLL
        for (u32 m = 0; m < MT; m++)
            ldmatrix4(a[m], g_a[buffer] + (m * 16 + lane % 16) * PITCH + k + lane / 16 * 8);
        // two tiles at once: rows 0 to 7 and 8 to 15, each of both halves of k
        ldmatrix4(b, g_b[buffer] + (n0 + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
        UNROLL
        for (u32 m = 0; m < MT; m++) {
            UNROLL
            for (u32 n = 0; n < NT; n++)
                mma(is_bf16, acc[m * NT + n], a[m], b[n * 2], b[n * 2 + 1]);
        }
    }
}

INLINE void store_out(const struct job *job, float (*acc)[4])
{
    u32 lane = THREAD % 32, n0 = THREAD / 32 * NT * 8;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++) {
        u32 tile = i / 4, token = job->first_token + tile / NT * 16 + lane / 4 + i % 4 / 2 * 8;
        u32 row = job->first_row + n0 + tile % NT * 8 + lane % 4 * 2 + i % 2;

        if (token < job->n_tokens && row < job->rows)
            job->out[(u64)token * job->out_stride + row] = acc[tile][i % 4] + (job->bias ? job->bias[row] : 0);
    }
}

INLINE void gemm(u32 layout, const struct job *job)
{
    float acc[MT * NT][4];
    struct staged staged;
    u32 buffer = 0;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++)
        acc[i / 4][i % 4] = 0;
    fetch_a(job, 0, &staged);
    fetch_b(layout, job, 0, &staged);
    store_a(layout, 0, &staged);
    store_b(layout, 0, &staged);
    block_sync();
    for (u32 k = BK; k < job->cols; k += BK) {
        fetch_a(job, k, &staged);
        fetch_b(layout, job, k, &staged);
        multiply(layout == LAYOUT_BF16, buffer, acc);
        buffer ^= 1;
        store_a(layout, buffer, &staged);
        store_b(layout, buffer, &staged);
        block_sync();
    }
    multiply(layout == LAYOUT_BF16, buffer, acc);
    store_out(job, acc);
}
