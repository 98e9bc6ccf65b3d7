// Products with 2 to 32 rows of activations, the decode of several sequences. As in vector.c weights are read once, and
// by every block its own run of rows; here the tensor cores multiply them: rows of the matrix are the rows of their
// tiles, eight tokens the columns. A lane takes 16 bytes of two matrix rows at a time and decodes them where they are:
// which of the columns of a tile they are does not matter as long as activations have the same order. `few_pack` brings
// them into it, after the norm that stands before the product.
//
// The warps of a block take parts of the columns; their sums meet in shared memory.

#include "kernel/cuda/few_job.h"
#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/normal.h"

#define WARPS (EW_FEW_THREADS / 32)
#define TILES EW_FEW_TILES
#define TOKEN_TILES_MAX (EW_FEW_TOKENS_MAX / 8)

// Tiles that registers have room for.
#define TILES_OF(class, N) \
    ((class) <= LAYOUT_BF16 || (N) == 1 || ((class) == LAYOUT_I8 && (N) == 2) ? TILES : TILES / 2)

// Columns of a row in 16 bytes, by layout; a chunk is those of four lanes.
#define COLUMNS(layout) ((layout) <= LAYOUT_BF16 ? 8u : (layout) == LAYOUT_I8 ? 16u : 32u)

// ---- activations --------------------------------------------------------------------------------

INLINE float clamp_f16(float x) { return max_f32(min_f32(x, 65504), -65504); }

// Four columns in 16 bits; those of 4-bit layouts change places as their codes do.
INLINE u32x2 narrow(u32 layout, f32x4 x)
{
    if (layout == LAYOUT_BF16)
        return (u32x2){bf16x2_of(x.x, x.y), bf16x2_of(x.z, x.w)};
    x = (f32x4){clamp_f16(x.x), clamp_f16(x.y), clamp_f16(x.z), clamp_f16(x.w)};
    if (layout >= LAYOUT_U4)
        return (u32x2){f16x2_of(x.x, x.z), f16x2_of(x.y, x.w)};
    return (u32x2){f16x2_of(x.x, x.y), f16x2_of(x.z, x.w)};
}

// A block a token; those past the last one leave zeros.
KERNEL few_pack(struct ew_few_job job)
{
    u32 token = BLOCK_X, layout = job.v.layout, columns = COLUMNS(layout), per_lane = columns / 8;
    const f32x4 *x = (const f32x4 *)((const float *)job.v.x + (u64)token * job.x_stride);
    u32x4 *to = (u32x4 *)job.packed;
    struct normal n = {0, 1};

    kernel_begin();
    if (token < job.n_tokens)
        n = find_normal(EW_FEW_THREADS, &job.v, x);
    for (u32 i = THREAD; i < job.v.cols / 8; i += EW_FEW_THREADS) {
        u32 chunk = i / (4 * per_lane), lane = token % 8 * 4 + i / per_lane % 4, j = i % per_lane;
        u32x2 low = {0, 0}, high = {0, 0};

        if (token < job.n_tokens) {
            low = narrow(layout, normal_at(&job.v, x, &n, 2 * i));
            high = narrow(layout, normal_at(&job.v, x, &n, 2 * i + 1));
        }
        to[((u64)(chunk * job.n_tiles + token / 8) * per_lane + j) * 32 + lane] =
            (u32x4){low.x, low.y, high.x, high.y};
    }
}

// ---- weights ------------------------------------------------------------------------------------

// Where a lane's columns of its two rows of a tile begin; the second row is 8 further.
struct rows {
    u64 codes, scales, mins;
};

// What is under way of a chunk.
struct stage {
    u32x4 codes[TILES][2];
    u32 scales[TILES][2], mins[TILES][2]; // twice in a register
};

INLINE struct rows find_rows(const struct ew_vector_job *v, u32 unit, u32 part)
{
    u32 layout = v->layout, begin = 0, lane = THREAD % 32;
    u64 row = (u64)unit * 16, codes = v->parts[0].codes, scales = v->parts[0].scales, mins = v->parts[0].mins;

    UNROLL
    for (u32 i = 1; i < EW_VECTOR_PARTS_MAX; i++) {
        begin += (u32)v->parts[i - 1].rows;
        if (v->is_glu ? i == 1 && part == 1 : v->parts[i].rows && unit * 16 >= begin) {
            row = v->is_glu ? row : unit * 16 - begin;
            codes = v->parts[i].codes;
            scales = v->parts[i].scales;
            mins = v->parts[i].mins;
        }
    }
    row += lane / 4;
    return (struct rows){codes + row * (v->cols * 16 / COLUMNS(layout)) + lane % 4 * 16,
                         scales + row * (v->cols / 32) * 2, mins + row * (v->cols / 32) * 2};
}

INLINE u32 twice(const u64 at) { return (u32) * (const u16 *)at * 0x10001u; }

INLINE void ask(u32 class, u32 T, const struct ew_vector_job *v, const struct rows *rows, u32 n, u32 chunk,
                struct stage *s)
{
    u64 row_bytes = (u64)v->cols * 16 / COLUMNS(class);
    u32 group = class == LAYOUT_I8 ? chunk * 2 + THREAD % 4 / 2 : chunk * 4 + THREAD % 4;

    UNROLL
    for (u32 i = 0; i < T * 2; i++) {
        u32 tile = i / 2, lower = i % 2 * 8;

        if (tile >= n)
            continue;
        s->codes[tile][i % 2] = load_once((const void *)(rows[tile].codes + chunk * 64 + lower * row_bytes));
        if (class >= LAYOUT_I8)
            s->scales[tile][i % 2] = twice(rows[tile].scales + (group + lower * (v->cols / 32)) * 2);
        if (class >= LAYOUT_U4)
            s->mins[tile][i % 2] = v->layout == LAYOUT_U4_MIN
                                       ? twice(rows[tile].mins + (group + lower * (v->cols / 32)) * 2) ^ 0x80008000
                                       : 0;
    }
}

// Columns 4 i to 4 i + 3 of a lane, in 16 bits.
INLINE u32x2 decode(u32 class, u32 layout, u32x4 codes, u32 scale, u32 min, u32 i)
{
    u32 word, offset;

    if (class <= LAYOUT_BF16)
        return (u32x2){codes[2 * i], codes[2 * i + 1]};
    if (class == LAYOUT_I8) { // 1024 + code + 128, less 1152
        word = codes[i] ^ 0x80808080;
        return (u32x2){mul_f16x2(add_f16x2(low_bytes(word), 0xE480E480), scale),
                       mul_f16x2(add_f16x2(high_bytes(word), 0xE480E480), scale)};
    }
    word = codes[i % 4] >> i / 4 * 4;
    offset = layout == LAYOUT_U4 ? 0xE408E408 : 0xE400E400; // -1032, -1024
    return (u32x2){fma_f16x2(add_f16x2((word & 0x000F000F) | 0x64006400, offset), scale, min),
                   fma_f16x2(add_f16x2((word >> 8 & 0x000F000F) | 0x64006400, offset), scale, min)};
}

INLINE void multiply_chunk(u32 class, u32 N, const struct ew_few_job *job, u32 n, u32 chunk, const struct stage *s,
                           float (*acc)[TOKEN_TILES_MAX][4])
{
    const u32x4 *packed = (const u32x4 *)job->packed + (u64)chunk * job->n_tiles * (COLUMNS(class) / 8) * 32 +
                          THREAD % 32;

    UNROLL
    for (u32 j = 0; j < COLUMNS(class) / 8; j++) {
        u32x4 b[TOKEN_TILES_MAX];

        UNROLL
        for (u32 t = 0; t < N; t++)
            b[t] = packed[(min_u32(t, job->n_tiles - 1) * (COLUMNS(class) / 8) + j) * 32];
        UNROLL
        for (u32 i = 0; i < 2 * TILES_OF(class, N); i++) {
            u32 tile = i / 2, k = i % 2;
            u32x2 upper, lower;
            u32 a[4];

            if (tile >= n)
                continue;
            upper = decode(class, job->v.layout, s->codes[tile][0], s->scales[tile][0], s->mins[tile][0], 2 * j + k);
            lower = decode(class, job->v.layout, s->codes[tile][1], s->scales[tile][1], s->mins[tile][1], 2 * j + k);
            a[0] = upper.x;
            a[1] = lower.x;
            a[2] = upper.y;
            a[3] = lower.y;
            UNROLL
            for (u32 t = 0; t < N; t++) {
                if (class == LAYOUT_BF16)
                    mma_bf16(acc[tile][t], a, b[t][2 * k], b[t][2 * k + 1]);
                else
                    mma_f16(acc[tile][t], a, b[t][2 * k], b[t][2 * k + 1]);
            }
        }
    }
}

// ---- results ------------------------------------------------------------------------------------

INLINE SHARED float *shared_sum(u32 N, u32 warp, u32 row, u32 token)
{
    return (SHARED float *)g_dynamic + (warp * TILES * 16 + row) * (N * 8 + 1) + token;
}

INLINE void leave(u32 T, u32 N, u32 n, float (*acc)[TOKEN_TILES_MAX][4])
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 i = 0; i < T * N * 4; i++) {
        u32 tile = i / 4 / N, t = i / 4 % N, e = i % 4;

        if (tile < n)
            *shared_sum(N, THREAD / 32, tile * 16 + lane / 4 + e / 2 * 8, t * 8 + lane % 4 * 2 + e % 2) =
                acc[tile][t][e];
    }
}

INLINE float sum_of(u32 N, u32 row, u32 token)
{
    float sum = 0;

    UNROLL
    for (u32 w = 0; w < WARPS; w++)
        sum += *shared_sum(N, w, row, token);
    return sum;
}

INLINE float with_bias(u64 bias, u32 row, float sum) { return bias ? sum + ((const float *)bias)[row] : sum; }

// Output row `row` of one token, from row `at` of the sums.
INLINE void finish(u32 N, const struct ew_few_job *job, u32 row, u32 at, u32 token)
{
    const struct ew_vector_job *v = &job->v;
    u32 begin = 0, all = row, stride = job->out_strides[0];
    u64 out = v->parts[0].out, bias = v->parts[0].bias;
    float value = sum_of(N, at, token);

    if (v->is_glu) {
        float up = with_bias(v->parts[1].bias, row, sum_of(N, at + 16, token));

        value = glu_one(with_bias(bias, row, value), up, v->act, v->limit, v->alpha);
        ((float *)out)[(u64)token * stride + row] = value;
        return;
    }
    UNROLL
    for (u32 part = 1; part < EW_VECTOR_PARTS_MAX; part++) {
        begin += (u32)v->parts[part - 1].rows;
        if (v->parts[part].rows && all >= begin) {
            row = all - begin;
            out = v->parts[part].out;
            bias = v->parts[part].bias;
            stride = job->out_strides[part];
        }
    }
    value = with_bias(bias, row, value);
    if (v->residual)
        value = v->y_scale * value +
                v->residual_scale * ((const float *)v->residual)[(u64)token * job->residual_stride + row];
    ((float *)out)[(u64)token * stride + row] = value;
}

// Units are 16 output rows: a tile, or with a gate two of them.
INLINE void finish_all(u32 N, const struct ew_few_job *job, u32 first_unit, u32 n_units)
{
    u32 n_rows = n_units * 16, step = job->v.is_glu ? 32 : 16;

    for (u32 i = THREAD; i < n_rows * job->n_tokens; i += EW_FEW_THREADS) {
        u32 row = i % n_rows;

        finish(N, job, first_unit * 16 + row, row / 16 * step + row % 16, i / n_rows);
    }
}

// Some units at once: the parts of the columns go to the warps.
INLINE void pass(u32 class, u32 N, const struct ew_few_job *job, u32 unit, u32 n_units, u32 is_first)
{
    u32 per_unit = job->v.is_glu ? 2 : 1, n = n_units * per_unit, n_chunks = job->v.cols / (COLUMNS(class) * 4);
    u32 at = n_chunks * (THREAD / 32) / WARPS, end = n_chunks * (THREAD / 32 + 1) / WARPS;
    float acc[TILES][TOKEN_TILES_MAX][4];
    struct rows rows[TILES];
    struct stage stages[2];

    UNROLL
    for (u32 i = 0; i < TILES_OF(class, N); i++) {
        rows[i] = find_rows(&job->v, unit + min_u32(i, n - 1) / per_unit, i % per_unit);
        UNROLL
        for (u32 t = 0; t < N * 4; t++)
            acc[i][t / 4][t % 4] = 0;
    }
    if (at < end)
        ask(class, TILES_OF(class, N), &job->v, rows, n, at, &stages[0]);
    if (is_first)
        previous_wait();
    for (; at < end; at += 2) {
        if (at + 1 < end)
            ask(class, TILES_OF(class, N), &job->v, rows, n, at + 1, &stages[1]);
        multiply_chunk(class, N, job, n, at, &stages[0], acc);
        if (at + 1 == end)
            break;
        if (at + 2 < end)
            ask(class, TILES_OF(class, N), &job->v, rows, n, at + 2, &stages[0]);
        multiply_chunk(class, N, job, n, at + 1, &stages[1], acc);
    }
    leave(TILES_OF(class, N), N, n, acc);
    block_sync();
    finish_all(N, job, unit, n_units);
    block_sync();
}

INLINE void few(u32 class, u32 N, const struct ew_few_job *job)
{
    u32 n_units = job->v.rows / 16, most = TILES_OF(class, N) / (job->v.is_glu ? 2 : 1);
    u32 first = n_units * BLOCK_X / N_BLOCKS_X, end = n_units * (BLOCK_X + 1) / N_BLOCKS_X, n_passes;

    next_may_start();
    n_passes = (end - first + most - 1) / most;
    for (u32 i = 0; i < n_passes; i++) {
        u32 from = first + (end - first) * i / n_passes, to = first + (end - first) * (i + 1) / n_passes;

        pass(class, N, job, from, to - from, i == 0);
    }
}

#define DEFINE(name, class) \
    KERNEL few_##name##_1(struct ew_few_job job) { few(class, 1, &job); } \
    KERNEL few_##name##_2(struct ew_few_job job) { few(class, 2, &job); } \
    KERNEL few_##name##_4(struct ew_few_job job) { few(class, 4, &job); }

DEFINE(f16, LAYOUT_F16)
DEFINE(bf16, LAYOUT_BF16)
DEFINE(i8, LAYOUT_I8)
DEFINE(u4, LAYOUT_U4)
