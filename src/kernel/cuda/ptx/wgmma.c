// Products of a matrix with many rows of activations on sm_90a: tiles of 128 tokens and 128 or 256 rows, 64 columns at
// a time. One thread has the tensor copy engine fill stages of shared memory; two warpgroups take 64 tokens each.
// Blocks stay and take tile after tile, so that the copies of the next one begin while results are written. Where there
// are fewer tiles than multiprocessors, a tile's columns are shared out, and `join_sums` (expand.c) adds their results.

#include "kernel/cuda/ptx/gate.h"
#include "kernel/cuda/ptx/hopper.h"

#define BM 128          // tokens
#define BK 64           // columns: 128 bytes, the widest pattern of the copy engine
#define BOX 128         // rows of one copy
#define BOX_BYTES (BOX * BK * 2)
#define STAGES_MAX 6
#define CONSUMERS 256   // threads; one more warp copies

static SHARED barrier g_full[STAGES_MAX], g_empty[STAGES_MAX];

struct job {
    const void *x_map, *w_map, *up_map; // up: of the gated form, whose w is the gate
    void *out;                          // f32, gated: 16 bits
    const float *bias, *up_bias;
    const float *residual; // NULL, or out = y_scale * (product + bias) + residual_scale * residual
    float y_scale, residual_scale;
    float gate_linear, gate_cubic;
    u32 residual_stride, out_stride, up_row, rows, cols, n_tokens;
    u32 token_tiles, n_tiles, n_splits; // n_splits: of a tile's columns; the n-th result is n_tokens * out_stride on
};

// What a block takes at a time.
struct item {
    u32 tile, split, begin, end; // columns
};

INLINE struct item item_at(const struct job *job, u32 i)
{
    u32 n = job->cols / BK, split = i % job->n_splits;

    return (struct item){i / job->n_splits, split, n * split / job->n_splits * BK,
                         n * (split + 1) / job->n_splits * BK};
}

// Patterns repeat every 1,024 bytes of the address.
INLINE SHARED u8 *stage_at(u32 stage, u32 stage_bytes)
{
    u32 base = (shared_address(g_dynamic) + 1023) & ~1023u;

    return g_dynamic + (base - shared_address(g_dynamic)) + stage * stage_bytes;
}

INLINE void produce(u32 is_gated, u32 BN, u32 STAGES, const struct job *job)
{
    u32 stage = 0, parity = 1, stage_bytes = (BM + BN) * BK * 2;

    for (u32 i = BLOCK_X; i < job->n_tiles * job->n_splits; i += N_BLOCKS_X) {
        struct item item = item_at(job, i);
        u32 token = item.tile % job->token_tiles * BM, row = item.tile / job->token_tiles * (is_gated ? BN / 2 : BN);

        for (u32 k = item.begin; k < item.end; k += BK) {
            SHARED u8 *to = stage_at(stage, stage_bytes);

            barrier_wait(&g_empty[stage], parity);
            barrier_expect(&g_full[stage], stage_bytes);
            copy_tile(to, job->x_map, k, token, &g_full[stage]);
            copy_tile(to + BOX_BYTES, job->w_map, k, row, &g_full[stage]);
            if (is_gated)
                copy_tile(to + 2 * BOX_BYTES, job->up_map, k, row + job->up_row, &g_full[stage]);
            else if (BN > BOX)
                copy_tile(to + 2 * BOX_BYTES, job->w_map, k, row + BOX, &g_full[stage]);
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

INLINE float finish(const struct job *job, const float *residual, u32 row, float x)
{
    x += job->bias ? job->bias[row] : 0;
    return residual ? job->y_scale * x + job->residual_scale * residual[row] : x;
}

// Two neighbours of a row of the result. It may stand where the residual does: who writes an element has read it.
INLINE void store_pair(const struct job *job, float *out, const float *residual, u32 row, float low, float high)
{
    if (row >= job->rows)
        return;
    low = finish(job, residual, row, low);
    if (row + 1 < job->rows)
        high = finish(job, residual, row + 1, high);
    if (row + 1 < job->rows && job->out_stride % 2 == 0) {
        *(f32x2 *)(out + row) = (f32x2){low, high};
        return;
    }
    out[row] = low;
    if (row + 1 < job->rows)
        out[row + 1] = high;
}

#define AT_ONCE 2

// Pairs of AT_ONCE eights of rows. What is read comes before what is written, so that reads do not wait for each other.
INLINE void store_pairs(const struct job *job, float *out, const float *residual, u32 row, const float *acc)
{
    f32x2 bias[AT_ONCE], added[AT_ONCE];
    float scale = residual ? job->y_scale : 1;

    UNROLL
    for (u32 i = 0; i < AT_ONCE; i++) {
        bias[i] = job->bias ? *(const f32x2 *)(job->bias + row + i * 8) : (f32x2){0, 0};
        added[i] = residual ? job->residual_scale * *(const f32x2 *)(residual + row + i * 8) : (f32x2){0, 0};
    }
    UNROLL
    for (u32 i = 0; i < AT_ONCE; i++)
        *(f32x2 *)(out + row + i * 8) = ((f32x2){acc[i * 4], acc[i * 4 + 1]} + bias[i]) * scale + added[i];
}

// A warpgroup's accumulators: warp w has tokens 16 w on, of them a lane has lane / 4 and 8 more; of each 8 rows it has
// 2 (lane % 4) and the next.
INLINE void store_out(u32 BN, const struct job *job, u32 tile, u32 split, const float *acc)
{
    u32 lane = THREAD % 32, first_row = tile / job->token_tiles * BN + lane % 4 * 2;
    u32 token = tile % job->token_tiles * BM + THREAD / 32 * 16 + lane / 4;
    u32 is_whole = (tile / job->token_tiles + 1) * BN <= job->rows && (job->out_stride | job->residual_stride) % 2 == 0;

    UNROLL
    for (u32 half = 0; half < 2; half++) {
        float *out = (float *)job->out + ((u64)split * job->n_tokens + token + half * 8) * job->out_stride;
        const float *residual = job->residual;

        if (residual)
            residual += (u64)(token + half * 8) * job->residual_stride;
        if (token + half * 8 < job->n_tokens && is_whole) {
            UNROLL
            for (u32 n = 0; n < BN / 8; n += AT_ONCE)
                store_pairs(job, out, residual, first_row + n * 8, acc + n * 4 + half * 2);
        } else if (token + half * 8 < job->n_tokens) {
            UNROLL
            for (u32 n = 0; n < BN / 8; n++)
                store_pair(job, out, residual, first_row + n * 8, acc[n * 4 + half * 2], acc[n * 4 + half * 2 + 1]);
        }
    }
}

// f16 stops at its largest number.
INLINE float gated(u32 is_bf16, const struct job *job, u32 row, float gate, float up)
{
    float y;

    gate += job->bias ? job->bias[row] : 0;
    up += job->up_bias ? job->up_bias[row] : 0;
    y = gate_of(gate, up, job->gate_linear, job->gate_cubic);
    return is_bf16 ? y : max_f32(min_f32(y, 65504), -65504);
}

// The lower half of the rows are the gate's, the upper half the same rows of `up`: a lane has both. rows is even.
INLINE void store_gated(u32 is_bf16, const struct job *job, u32 tile, const float *acc)
{
    u32 lane = THREAD % 32, first_row = tile / job->token_tiles * BOX + lane % 4 * 2;
    u32 token = tile % job->token_tiles * BM + THREAD / 32 * 16 + lane / 4;

    UNROLL
    for (u32 half = 0; half < 2; half++) {
        u16 *out = (u16 *)job->out + (u64)(token + half * 8) * job->out_stride;

        if (token + half * 8 >= job->n_tokens)
            continue;
        UNROLL
        for (u32 n = 0; n < BOX / 8; n++) {
            u32 row = first_row + n * 8;
            const float *gate = acc + n * 4 + half * 2, *up = gate + BOX / 2;

            if (row < job->rows) {
                float low = gated(is_bf16, job, row, gate[0], up[0]);
                float high = gated(is_bf16, job, row + 1, gate[1], up[1]);

                *(u32 *)(out + row) = is_bf16 ? bf16x2_of(low, high) : f16x2_of(low, high);
            }
        }
    }
}

INLINE void consume(u32 is_bf16, u32 is_gated, u32 BN, u32 STAGES, const struct job *job)
{
    u32 stage = 0, parity = 0, stage_bytes = (BM + BN) * BK * 2, group = THREAD / 128;
    float acc[128];

    for (u32 i = BLOCK_X; i < job->n_tiles * job->n_splits; i += N_BLOCKS_X) {
        struct item item = item_at(job, i);
        u32 before = 0;

        for (u32 k = item.begin; k < item.end; k += BK) {
            SHARED u8 *at = stage_at(stage, stage_bytes);
            u64 a = tile_descriptor(at + group * 64 * BK * 2), b = tile_descriptor(at + BOX_BYTES);

            barrier_wait(&g_full[stage], parity);
            if (BN == 256)
                warpgroup_256(is_bf16, acc, a, b, k - item.begin);
            else
                warpgroup_128(is_bf16, acc, a, b, k - item.begin);
            warpgroup_wait(1);
            if (k != item.begin && THREAD % 128 == 0)
                barrier_arrive(&g_empty[before]);
            before = stage;
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        warpgroup_wait(0);
        if (THREAD % 128 == 0)
            barrier_arrive(&g_empty[before]);
        if (is_gated)
            store_gated(is_bf16, job, item.tile, acc);
        else
            store_out(BN, job, item.tile, item.split, acc);
    }
}

INLINE void multiply(u32 is_bf16, u32 is_gated, u32 BN, u32 STAGES, const struct job *job)
{
    if (THREAD == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(&g_full[i], 1);
            barrier_init(&g_empty[i], 2); // a thread of each warpgroup
        }
        barrier_init_done();
    }
    block_sync();
    if (THREAD >= CONSUMERS) {
        if (THREAD == CONSUMERS)
            produce(is_gated, BN, STAGES, job);
    } else {
        consume(is_bf16, is_gated, BN, STAGES, job);
    }
}

// x_map, w_map: maps of the activations and of the matrix, boxes of 64 columns and 128 rows. cols is a multiple of 64.
// Tiles next to each other share rows of the matrix.
#define DEFINE(name, is_bf16, BN, STAGES) \
    KERNEL name(float *out, u32 out_stride, const void *x_map, const void *w_map, const float *bias, u32 rows, \
                u32 cols, u32 n_tokens, const float *residual, u32 residual_stride, float y_scale, \
                float residual_scale, u32 n_splits) \
    { \
        u32 token_tiles = (n_tokens + BM - 1) / BM; \
        struct job job = {.x_map = x_map, .w_map = w_map, .out = out, .bias = bias, .residual = residual, \
                          .y_scale = y_scale, .residual_scale = residual_scale, .residual_stride = residual_stride, \
                          .out_stride = out_stride, .rows = rows, .cols = cols, .n_tokens = n_tokens, \
                          .token_tiles = token_tiles, .n_tiles = token_tiles * ((rows + BN - 1) / BN), \
                          .n_splits = n_splits}; \
                                                                                                                       \
        multiply(is_bf16, 0, BN, STAGES, &job); \
    }

DEFINE(wgmma_f16_256, 0, 256, 4)
DEFINE(wgmma_f16_128, 0, 128, 6)
DEFINE(wgmma_bf16_256, 1, 256, 4)
DEFINE(wgmma_bf16_128, 1, 128, 6)

// out = act(gate) * up in 16 bits; row 0 of `up` is row up_row of its map.
#define DEFINE_GATED(name, is_bf16) \
    KERNEL name(u16 *out, u32 out_stride, const void *x_map, const void *gate_map, const void *up_map, u32 up_row, \
                const float *gate_bias, const float *up_bias, u32 rows, u32 cols, u32 n_tokens, float gate_linear, \
                float gate_cubic) \
    { \
        u32 token_tiles = (n_tokens + BM - 1) / BM; \
        struct job job = {.x_map = x_map, .w_map = gate_map, .up_map = up_map, .out = out, .bias = gate_bias, \
                          .up_bias = up_bias, .gate_linear = gate_linear, .gate_cubic = gate_cubic, \
                          .out_stride = out_stride, .up_row = up_row, .rows = rows, .cols = cols, \
                          .n_tokens = n_tokens, .token_tiles = token_tiles, \
                          .n_tiles = token_tiles * ((rows + BOX - 1) / BOX), .n_splits = 1}; \
                                                                                                                       \
        multiply(is_bf16, 1, 256, 4, &job); \
    }

DEFINE_GATED(wgmma_f16_gated, 0)
DEFINE_GATED(wgmma_bf16_gated, 1)
