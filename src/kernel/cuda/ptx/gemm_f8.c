// Products of a matrix in e4m3 with many rows of activations in e4m3, on GPUs whose mma.sync has e4m3 (sm_89 and
// newer): tiles of 128 tokens and 128 rows, 128 columns at a time, three stages of them. Sums of 128 columns are made
// anew and added by their scales, as in wgmma_f8.c.

#include "kernel/cuda/f8_job.h"
#include "kernel/cuda/ptx/gpu.h"

#define THREADS EW_F8_MMA_THREADS
#define BM EW_F8_TOKENS
#define BN EW_F8_MMA_ROWS
#define BK EW_F8_GROUP
#define STAGES EW_F8_MMA_STAGES
#define MT 4 // a warp's tiles of 16 tokens ...
#define NT 4 // ... and of 8 rows: 64 x 32, warps lie two by four

// Eight rows of one chunk of 16 bytes lie in different banks.
INLINE u32 place(u32 row, u32 chunk) { return row * BK + (chunk ^ (row & 7)) * 16; }

INLINE SHARED u8 *a_at(u32 stage) { return g_dynamic + stage * EW_F8_MMA_STAGE_BYTES; }
INLINE SHARED u8 *b_at(u32 stage) { return a_at(stage) + BM * BK; }
INLINE SHARED u8 *scales_at(u32 stage) { return b_at(stage) + BN * BK; }

struct tile {
    u32 token, row; // the tile's first ones
};

// Rows beyond the last one repeat it: nobody stores their results.
INLINE void load_stage(const struct ew_f8_job *job, const struct tile *tile, u32 stage, u32 group)
{
    u32 row = THREAD / 8, chunk = THREAD % 8;

    UNROLL
    for (u32 i = 0; i < BM; i += THREADS / 8) {
        u64 token = min_u32(tile->token + row + i, job->n_tokens - 1);
        u64 of_w = min_u32(tile->row + row + i, job->rows - 1), column = group * BK + chunk * 16;

        copy_async(a_at(stage) + place(row + i, chunk), (const u8 *)job->x + token * job->cols + column, 1);
        copy_async(b_at(stage) + place(row + i, chunk), (const u8 *)job->w.codes + of_w * job->cols + column, 1);
    }
    if (THREAD < BM / 4)
        copy_async(scales_at(stage) + THREAD * 16,
                   (const float *)job->x_scales + (u64)group * job->scale_stride + tile->token + THREAD * 4, 1);
}

INLINE u32 first_token(const struct tile *tile) { return tile->token + THREAD / 128 * MT * 16; }
INLINE u32 first_row(const struct tile *tile) { return tile->row + THREAD / 32 % 4 * NT * 8; }

INLINE void multiply(u32 stage, float (*sums)[4])
{
    u32 warp = THREAD / 32, lane = THREAD % 32, m0 = warp / 4 * MT * 16, n0 = warp % 4 * NT * 8;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++)
        sums[i / 4][i % 4] = 0;
    UNROLL
    for (u32 k = 0; k < BK / 16; k += 2) {
        u32 a[MT][4], b[NT / 2][4];

        UNROLL
        for (u32 m = 0; m < MT; m++)
            ldmatrix4(a[m], (SHARED const u16 *)(a_at(stage) + place(m0 + m * 16 + lane % 16, k + lane / 16)));
        UNROLL
        for (u32 n = 0; n < NT / 2; n++) // two tiles at once: rows 0 to 7 and 8 to 15, each of both halves of k
            ldmatrix4(b[n], (SHARED const u16 *)(b_at(stage) +
                                                 place(n0 + n * 16 + lane % 8 + lane / 16 * 8, k + lane / 8 % 2)));
        UNROLL
        for (u32 i = 0; i < MT * NT; i++)
            mma_e4m3(sums[i], a[i / NT], b[i % NT / 2][i % 2 * 2], b[i % NT / 2][i % 2 * 2 + 1]);
    }
}

// Of each tile of tokens a lane has two.
INLINE void add_scaled(u32 stage, float of_block, float (*sums)[4], float (*acc)[4])
{
    SHARED const float *x = (SHARED const float *)scales_at(stage) + THREAD / 128 * MT * 16 + THREAD % 32 / 4;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++) {
        u32 m = i / 4 / NT;

        acc[i / 4][i % 4] += sums[i / 4][i % 4] * (of_block * x[m * 16 + (i & 2 ? 8 : 0)]);
    }
}

INLINE f32x2 pair_at(u64 v, u32 row, float otherwise)
{
    return v ? *(const f32x2 *)((const float *)v + row) : (f32x2){otherwise, otherwise};
}

INLINE void store_out(const struct ew_f8_job *job, const struct tile *tile, float (*acc)[4])
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 i = 0; i < MT * NT * 2; i++) {
        u32 token = first_token(tile) + i / 2 / NT * 16 + lane / 4 + i % 2 * 8;
        u32 row = first_row(tile) + i / 2 % NT * 8 + lane % 4 * 2;
        f32x2 sum = {acc[i / 2][i % 2 * 2], acc[i / 2][i % 2 * 2 + 1]};

        if (token < job->n_tokens && row < job->rows)
            *(f32x2 *)((float *)job->out + (u64)token * job->out_stride + row) =
                sum * pair_at(job->w.row_scales, row, 1) + pair_at(job->w.bias, row, 0);
    }
}

// cols is a multiple of 128, rows of 8; strides are even. There is no residual. Blocks in x are tiles of tokens, so
// that those that run side by side share the rows of the matrix.
KERNEL gemm_f8(struct ew_f8_job job)
{
    struct tile tile = {BLOCK_X * BM, BLOCK_Y * BN};
    u32 n_groups = job.cols / BK, stage = 0;
    float acc[MT * NT][4], sums[MT * NT][4];

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++)
        acc[i / 4][i % 4] = 0;
    UNROLL
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < n_groups)
            load_stage(&job, &tile, i, i);
        copy_commit();
    }
    for (u32 i = 0; i < n_groups; i++) {
        u32 next = stage ? stage - 1 : STAGES - 1;
        float of_block = 1;

        copy_wait(STAGES - 2);
        block_sync(); // what has come is seen by all, and `next` is no longer read
        if (job.w.blocks)
            of_block = ((const float *)job.w.blocks)[(u64)tile.row * f8_scales(job.cols) + i];
        if (i + STAGES - 1 < n_groups)
            load_stage(&job, &tile, next, i + STAGES - 1);
        copy_commit();
        multiply(stage, sums);
        add_scaled(stage, of_block, sums, acc);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    store_out(&job, &tile, acc);
}
