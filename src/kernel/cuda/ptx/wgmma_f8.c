// Products of a matrix in e4m3 with many rows of activations in e4m3, on sm_90a: as wgmma.c, with tiles of 128 tokens
// and 256 rows, 128 columns at a time.
//
// The tensor cores add up e4m3 with some 14 bits (DeepSeek-V3, section 3.5.2) and scales are of 128 columns: so the
// sums of these are made anew for half of a tile's rows at a time, and added in f32 by their scales. Meanwhile the
// other warpgroup's products keep the tensor cores busy. One warpgroup copies, since the two that compute need its
// registers.

#include "kernel/cuda/f8_job.h"
#include "kernel/cuda/ptx/gate.h"
#include "kernel/cuda/ptx/hopper.h"

#define CONSUMERS 256 // threads
#define HALF (EW_F8_ROWS / 2)
#define BOX_BYTES (EW_F8_GROUP * 128)
#define STAGES EW_F8_STAGES

static SHARED barrier g_full[STAGES], g_empty[STAGES];
static SHARED float g_x_scales[STAGES][EW_F8_TOKENS] __attribute__((aligned(16)));
static SHARED float g_blocks[STAGES][2][4] __attribute__((aligned(16))); // of four groups of columns

// What a block takes at a time.
struct item {
    u32 token, row; // its first ones
    u32 split, begin, end; // groups of columns
};

INLINE u32 token_tiles(const struct ew_f8_job *job) { return (job->n_tokens + EW_F8_TOKENS - 1) / EW_F8_TOKENS; }

INLINE u32 count_items(u32 is_gated, const struct ew_f8_job *job)
{
    u32 rows = is_gated ? HALF : EW_F8_ROWS;

    return token_tiles(job) * ((job->rows + rows - 1) / rows) * job->n_splits;
}

// Tiles next to each other share rows of the matrix.
INLINE struct item item_at(u32 is_gated, const struct ew_f8_job *job, u32 i)
{
    u32 n = job->cols / EW_F8_GROUP, split = i % job->n_splits, tile = i / job->n_splits;

    return (struct item){tile % token_tiles(job) * EW_F8_TOKENS,
                         tile / token_tiles(job) * (is_gated ? HALF : EW_F8_ROWS), split,
                         n * split / job->n_splits, n * (split + 1) / job->n_splits};
}

// Patterns repeat every 1,024 bytes of the address.
INLINE SHARED u8 *stage_at(u32 stage)
{
    u32 base = (shared_address(g_dynamic) + 1023) & ~1023u;

    return g_dynamic + (base - shared_address(g_dynamic)) + stage * EW_F8_STAGE_BYTES;
}

// ---- copies -------------------------------------------------------------------------------------

// Of the 128 rows from `row` on; past the last one, those of the last block.
INLINE void copy_blocks(const struct ew_f8_job *job, const struct ew_f8_operand *w, u32 row, u32 group, u32 half,
                        u32 stage)
{
    u32 first = min_u32(row, (job->rows - 1) / EW_F8_GROUP * EW_F8_GROUP);

    copy_bytes(g_blocks[stage][half], w->blocks + ((u64)first * f8_scales(job->cols) + group / 4 * 4) * 4, 16,
               &g_full[stage]);
}

INLINE void produce(u32 is_gated, const struct ew_f8_job *job)
{
    u32 stage = 0, parity = 1, n_items = count_items(is_gated, job);
    u32 bytes = EW_F8_STAGE_BYTES + EW_F8_TOKENS * 4 + (job->w.blocks ? 32 : 0);
    const struct ew_f8_operand *second = is_gated ? &job->up : &job->w;

    for (u32 i = BLOCK_X; i < n_items; i += N_BLOCKS_X) {
        struct item item = item_at(is_gated, job, i);
        u32 second_row = item.row + (is_gated ? 0 : HALF);

        for (u32 group = item.begin; group < item.end; group++) {
            SHARED u8 *to = stage_at(stage);

            barrier_wait(&g_empty[stage], parity);
            barrier_expect(&g_full[stage], bytes);
            copy_tile(to, (const void *)job->x_map, group * EW_F8_GROUP, item.token, &g_full[stage]);
            copy_tile(to + BOX_BYTES, (const void *)job->w.map, group * EW_F8_GROUP, item.row, &g_full[stage]);
            copy_tile(to + 2 * BOX_BYTES, (const void *)second->map, group * EW_F8_GROUP, second_row,
                      &g_full[stage]);
            copy_bytes(g_x_scales[stage], job->x_scales + ((u64)group * job->scale_stride + item.token) * 4,
                       EW_F8_TOKENS * 4, &g_full[stage]);
            if (job->w.blocks) {
                copy_blocks(job, &job->w, item.row, group, 0, stage);
                copy_blocks(job, second, second_row, group, 1, stage);
            }
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

// ---- results ------------------------------------------------------------------------------------

// A warpgroup's accumulators: warp w has tokens 16 w on, of them a lane has lane / 4 and 8 more; of each 8 rows it has
// 2 (lane % 4) and the next.
INLINE u32 first_token(const struct item *item) { return item->token + THREAD / 32 * 16 + THREAD % 32 / 4; }

INLINE f32x2 pair_at(u64 v, u32 row, float otherwise)
{
    return v ? *(const f32x2 *)((const float *)v + row) : (f32x2){otherwise, otherwise};
}

#define AT_ONCE 4

// Pairs of AT_ONCE eights of rows. What is read comes before what is written: reads do not wait for each other, and the
// result may stand where the residual does.
INLINE void store_pairs(const struct ew_f8_job *job, float *out, const float *residual, u32 row, const float *acc)
{
    f32x2 scale[AT_ONCE], rest[AT_ONCE];

    UNROLL
    for (u32 i = 0; i < AT_ONCE; i++) {
        u32 at = min_u32(row + i * 8, job->rows - 2);
        f32x2 bias = pair_at(job->w.bias, at, 0);

        scale[i] = pair_at(job->w.row_scales, at, 1);
        rest[i] = residual ? job->y_scale * bias + job->residual_scale * *(const f32x2 *)(residual + at) : bias;
        scale[i] *= residual ? job->y_scale : 1;
    }
    UNROLL
    for (u32 i = 0; i < AT_ONCE; i++) {
        if (row + i * 8 < job->rows)
            *(f32x2 *)(out + row + i * 8) = (f32x2){acc[i * 4], acc[i * 4 + 1]} * scale[i] + rest[i];
    }
}

INLINE void store_out(const struct ew_f8_job *job, const struct item *item, const float *acc)
{
    u32 row = item->row + THREAD % 4 * 2;

    UNROLL
    for (u32 half = 0; half < 2; half++) {
        u32 token = first_token(item) + half * 8;
        float *out = (float *)job->out + ((u64)item->split * job->n_tokens + token) * job->out_stride;
        const float *residual = job->residual ? (const float *)job->residual + (u64)token * job->residual_stride : 0;

        UNROLL
        for (u32 n = 0; n < EW_F8_ROWS / 8 && token < job->n_tokens; n += AT_ONCE)
            store_pairs(job, out, residual, row + n * 8, acc + n * 4 + half * 2);
    }
}

// Four lanes have, of each of four eights of rows, a pair of codes each (16 bits, two eights in a word): afterwards
// each of them has the eight whose number is its own.
INLINE u32x2 gather_eight(u32 first, u32 second)
{
    u32 lane = THREAD % 4, is_odd = lane & 1, is_late = lane >> 1;
    u32 other = shuffle_xor_u32(is_late ? first : second, 2), own = is_late ? second : first;
    u32 keep = byte_permute(own, other, is_odd ? 0x7632 : 0x5410);
    u32 got = shuffle_xor_u32(byte_permute(own, other, is_odd ? 0x5410 : 0x7632), 1);
    u32 a = is_odd ? got : keep, b = is_odd ? keep : got;

    return (u32x2){byte_permute(a, b, is_late ? 0x7632 : 0x5410), byte_permute(a, b, is_late ? 0x5410 : 0x7632)};
}

// The first half of the rows are the gate's, the second the same rows of `up`: a lane has both. The gate's place takes
// the result; the greatest of the token's 128 is known to all four lanes that have them.
INLINE float gate_all(const struct ew_f8_job *job, u32 row, u32 half, float *acc)
{
    float most = 0;

    UNROLL
    for (u32 n = 0; n < HALF / 8; n++) {
        f32x2 scale = pair_at(job->w.row_scales, row + n * 8, 1);
        f32x2 up_scale = pair_at(job->up.row_scales, row + n * 8, 1);
        f32x2 bias = pair_at(job->w.bias, row + n * 8, 0), up_bias = pair_at(job->up.bias, row + n * 8, 0);

        UNROLL
        for (u32 e = 0; e < 2; e++) {
            float *gate = acc + n * 4 + half * 2 + e, up = gate[HALF / 2] * up_scale[e] + up_bias[e];

            *gate = gate_of(*gate * scale[e] + bias[e], up, job->gate_linear, job->gate_cubic);
            most = max_f32(most, abs_f32(*gate));
        }
    }
    most = max_f32(most, shuffle_xor(most, 1));
    return max_f32(most, shuffle_xor(most, 2));
}

INLINE u32 codes_of(const float *acc, float factor)
{
    return e4m3x4_of((f32x4){acc[0], acc[1], acc[4], acc[5]}, factor);
}

INLINE void store_gated(const struct ew_f8_job *job, const struct item *item, float *acc)
{
    u32 lane = THREAD % 4;

    UNROLL
    for (u32 half = 0; half < 2; half++) {
        u32 token = first_token(item) + half * 8, is_there = token < job->n_tokens;
        u8 *out = (u8 *)job->out + (u64)token * job->rows + item->row + lane * 8;
        float most = gate_all(job, item->row + lane * 2, half, acc), factor = e4m3_factor(most);

        if (is_there && lane == 0)
            ((float *)job->out_scales)[item->row / EW_F8_GROUP * job->scale_stride + token] = e4m3_scale(most);
        UNROLL
        for (u32 n = 0; n < HALF / 8; n += 4) {
            const float *a = acc + n * 4 + half * 2;
            u32x2 eight = gather_eight(codes_of(a, factor), codes_of(a + 8, factor));

            if (is_there)
                *(u32x2 *)(out + n * 8) = eight;
        }
    }
}

// ---- products -----------------------------------------------------------------------------------

// A loop whose end the compiler does not know: else it would begin the next products before, in registers that there
// are not enough of.
INLINE void add_scaled(float *acc, const float *sums, f32x2 scales, u32 once)
{
    ROLL
    for (u32 n = 0; n < once; n++) {
        UNROLL
        for (u32 i = 0; i < 64; i++)
            acc[i] += sums[i] * (i & 2 ? scales.y : scales.x);
    }
}

// Of the lane's two tokens.
INLINE f32x2 scales_of(const struct ew_f8_job *job, u32 stage, u32 group, u32 half)
{
    SHARED const float *x = g_x_scales[stage] + THREAD / 32 * 16 + THREAD % 32 / 4;

    return (f32x2){x[0], x[8]} * (job->w.blocks ? g_blocks[stage][half][group % 4] : 1);
}

INLINE void consume(u32 is_gated, const struct ew_f8_job *job)
{
    u32 stage = 0, parity = 0, n_items = count_items(is_gated, job);
    float acc[128], sums[64];

    for (u32 i = BLOCK_X; i < n_items; i += N_BLOCKS_X) {
        struct item item = item_at(is_gated, job, i);

        UNROLL
        for (u32 e = 0; e < 128; e++)
            acc[e] = 0;
        for (u32 group = item.begin; group < item.end; group++) {
            SHARED u8 *at = stage_at(stage);
            u64 a = tile_descriptor(at + THREAD / 128 * 64 * EW_F8_GROUP), b = tile_descriptor(at + BOX_BYTES);
            f32x2 scales;

            barrier_wait(&g_full[stage], parity);
            warpgroup_f8(sums, a, b);
            scales = scales_of(job, stage, group, 0);
            warpgroup_wait_sums(sums);
            add_scaled(acc, sums, scales, job->once);
            warpgroup_f8(sums, a, b + (BOX_BYTES >> 4));
            scales = scales_of(job, stage, group, 1);
            warpgroup_wait_sums(sums);
            barrier_arrive(&g_empty[stage]); // this thread has read the scales
            add_scaled(acc + 64, sums, scales, job->once);
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        if (is_gated)
            store_gated(job, &item, acc);
        else
            store_out(job, &item, acc);
    }
}

INLINE void multiply(u32 is_gated, const struct ew_f8_job *job)
{
    if (THREAD == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(&g_full[i], 1);
            barrier_init(&g_empty[i], CONSUMERS);
        }
        barrier_init_done();
    }
    block_sync();
    if (THREAD >= CONSUMERS) {
        registers_shrink(24);
        if (THREAD == CONSUMERS)
            produce(is_gated, job);
    } else {
        registers_grow(240);
        consume(is_gated, job);
    }
}

// cols is a multiple of 128, rows of 8 (with a gate, of 128); strides are even.
KERNEL wgmma_f8(struct ew_f8_job job) { multiply(0, &job); }
// out = act(w) * up, quantised.
KERNEL wgmma_f8_gated(struct ew_f8_job job) { multiply(1, &job); }
