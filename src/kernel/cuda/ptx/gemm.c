// Products of a matrix with many rows of activations, both in 16 bits, on the tensor cores of every GPU since sm_80:
// tiles of 128 tokens and 128 rows, 32 columns at a time, three stages of them on their way at once; accumulation in
// f32.

#include "kernel/cuda/ptx/gpu.h"

#define BM 128    // tokens
#define BN 128    // rows of the matrix
#define BK 32     // columns
#define STAGES 3  // 48 KiB: two blocks a multiprocessor also where it has but 100 KiB
#define THREADS 128
#define MT 4      // a warp's tiles of 16 tokens ...
#define NT 8      // ... and of 8 rows: 64 x 64, warps lie two by two

static SHARED u16 g_a[STAGES][BM * BK] __attribute__((aligned(128)));
static SHARED u16 g_b[STAGES][BN * BK] __attribute__((aligned(128)));

struct job {
    const u16 *x, *w; // [n_tokens, cols], [rows, cols]
    float *out;
    const float *bias;
    u32 out_stride, rows, cols, n_tokens, first_token, first_row;
};

// Eight rows of one chunk of 16 bytes lie in different banks.
INLINE u32 place(u32 row, u32 chunk)
{
    return row * BK + (chunk ^ (row >> 1 & 3)) * 8;
}

// Rows beyond the last one repeat it: nobody stores their results.
INLINE void load_stage(const struct job *job, u32 stage, u32 k)
{
    u32 row = THREAD / 4, chunk = THREAD % 4;

    UNROLL
    for (u32 i = 0; i < BM; i += THREADS / 4) {
        u64 token = min_u32(job->first_token + row + i, job->n_tokens - 1);
        u64 of_w = min_u32(job->first_row + row + i, job->rows - 1);

        copy_async(g_a[stage] + place(row + i, chunk), job->x + token * job->cols + k + chunk * 8, 1);
        copy_async(g_b[stage] + place(row + i, chunk), job->w + of_w * job->cols + k + chunk * 8, 1);
    }
}

INLINE void multiply(u32 is_bf16, u32 stage, float (*acc)[4])
{
    u32 warp = THREAD / 32, lane = THREAD % 32, m0 = warp / 2 * MT * 16, n0 = warp % 2 * NT * 8;

    UNROLL
    for (u32 k = 0; k < BK / 8; k += 2) {
        u32 a[MT][4], b[NT / 2][4];

        UNROLL
        for (u32 m = 0; m < MT; m++)
            ldmatrix4(a[m], g_a[stage] + place(m0 + m * 16 + lane % 16, k + lane / 16));
        UNROLL
        for (u32 n = 0; n < NT / 2; n++) // two tiles at once: rows 0 to 7 and 8 to 15, each of both halves of k
            ldmatrix4(b[n], g_b[stage] + place(n0 + n * 16 + lane % 8 + lane / 16 * 8, k + lane / 8 % 2));
        UNROLL
        for (u32 m = 0; m < MT; m++) {
            UNROLL
            for (u32 n = 0; n < NT; n++) {
                if (is_bf16)
                    mma_bf16(acc[m * NT + n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                else
                    mma_f16(acc[m * NT + n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
            }
        }
    }
}

// Two neighbours of a row of the result.
INLINE void store_pair(const struct job *job, u32 token, u32 row, float low, float high)
{
    float *out = job->out + (u64)token * job->out_stride + row;

    if (token >= job->n_tokens || row >= job->rows)
        return;
    low += job->bias ? job->bias[row] : 0;
    if (row + 1 < job->rows)
        high += job->bias ? job->bias[row + 1] : 0;
    if (row + 1 < job->rows && job->out_stride % 2 == 0) {
        *(f32x2 *)out = (f32x2){low, high};
        return;
    }
    out[0] = low;
    if (row + 1 < job->rows)
        out[1] = high;
}

INLINE void store_out(const struct job *job, float (*acc)[4])
{
    u32 warp = THREAD / 32, lane = THREAD % 32, m0 = warp / 2 * MT * 16, n0 = warp % 2 * NT * 8;

    UNROLL
    for (u32 m = 0; m < MT; m++) {
        UNROLL
        for (u32 n = 0; n < NT; n++) {
            u32 token = job->first_token + m0 + m * 16 + lane / 4, row = job->first_row + n0 + n * 8 + lane % 4 * 2;
            float *c = acc[m * NT + n];

            store_pair(job, token, row, c[0], c[1]);
            store_pair(job, token + 8, row, c[2], c[3]);
        }
    }
}

INLINE void gemm(u32 is_bf16, const struct job *job)
{
    float acc[MT * NT][4];
    u32 n_stages = job->cols / BK, stage = 0;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++)
        acc[i / 4][i % 4] = 0;
    UNROLL
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < n_stages)
            load_stage(job, i, i * BK);
        copy_commit();
    }
    for (u32 i = 0; i < n_stages; i++) {
        u32 next = stage ? stage - 1 : STAGES - 1;

        copy_wait(STAGES - 2);
        block_sync(); // what has come is seen by all, and `next` is no longer read
        if (i + STAGES - 1 < n_stages)
            load_stage(job, next, (i + STAGES - 1) * BK);
        copy_commit();
        multiply(is_bf16, stage, acc);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    store_out(job, acc);
}

// cols is a multiple of 32; rows of x and w follow each other without gaps. Blocks in x are tiles of tokens, so that
// those that run side by side share the rows of the matrix.
#define DEFINE(name, is_bf16) \
    KERNEL name(float *out, u32 out_stride, const u16 *x, const u16 *w, const float *bias, u32 rows, u32 cols, \
                u32 n_tokens) \
    { \
        struct job job = {x,    w,        out,          bias,        out_stride, rows, \
                          cols, n_tokens, BLOCK_X * BM, BLOCK_Y * BN}; \
                                                                                                                       \
        gemm(is_bf16, &job); \
    }

DEFINE(gemm_f16, 0)
DEFINE(gemm_bf16, 1)
