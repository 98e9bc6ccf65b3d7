// Mixtures of experts: the choice of experts, the order of pairs (a token and one of its experts) by expert, products
// of each expert's matrix with the rows of its pairs, and the way back to tokens. Nothing of it comes to the host.

#include "kernel/cuda/ptx/dot.h"
#include "kernel/cuda/ptx/route.h"
#include "kernel/cuda/ptx/tile.h"

#define EXPERTS_MAX 4096 // EW_EXPERTS_MAX
#define ACTIVE_MAX 64    // EW_EXPERTS_ACTIVE_MAX

// ---- the choice: one warp a token -----------------------------------------------------------------

static SHARED float g_scores[EXPERTS_MAX], g_ranks[EXPERTS_MAX], g_weights[ACTIVE_MAX];
static SHARED u32 g_experts[ACTIVE_MAX];

// `out`: experts, then their weights.
KERNEL route(float *out, u32 out_stride, const float *logits, u32 stride, const float *bias, u32 n_experts,
             u32 n_active, u32 score, u32 n_groups, u32 n_groups_active, float jitter, u32 normalise, float scale)
{
    struct route r = {logits + (u64)BLOCK_X * stride, bias, n_experts, n_active, score, n_groups, n_groups_active,
                      normalise, jitter, scale, g_scores, g_ranks, g_weights, g_experts};

    kernel_begin();
    out += (u64)BLOCK_X * out_stride;
    choose(&r);
    for (u32 j = THREAD; j < n_active; j += 32) {
        out[j] = (float)g_experts[j];
        out[n_active + j] = g_weights[j];
    }
}

// ---- order ----------------------------------------------------------------------------------------

struct pairs {
    u32 *first;  // [n_experts + 1] pair of each expert
    u32 *expert; // [n_pairs]
    u32 *token;  // [n_pairs]
    u32 *place;  // [n_tokens, n_active] where a token's pair stands in the order
    u32 *tiles;  // [n_experts + n_pairs / BM] first pairs of tiles, NONE where there is none
};

static SHARED u32 g_count[32];

INLINE u32 count_bits(u32 bits) { return (u32)__builtin_popcount(bits); }

// How many threads of the block before this one have `is`, and in *all of the whole block.
INLINE u32 block_rank(u32 is, u32 *all)
{
    u32 warp = THREAD / 32, lane = THREAD % 32, n_warps = N_THREADS / 32, bits = warp_ballot(is), before = 0;

    block_sync();
    if (lane == 0)
        g_count[warp] = count_bits(bits);
    block_sync();
    *all = 0;
    for (u32 i = 0; i < n_warps; i++) {
        before += i < warp ? g_count[i] : 0;
        *all += g_count[i];
    }
    return before + count_bits(bits & ((1u << lane) - 1));
}

INLINE u32 block_total(u32 n)
{
    u32 n_warps = N_THREADS / 32, all = 0;

    UNROLL
    for (u32 o = 16; o; o >>= 1)
        n += shuffle_xor_u32(n, o);
    if (THREAD % 32 == 0)
        g_count[THREAD / 32] = n;
    block_sync();
    for (u32 i = 0; i < n_warps; i++)
        all += g_count[i];
    return all;
}

INLINE u32 expert_at(const float *routes, u32 stride, u32 n_active, u32 pair)
{
    return (u32)routes[(u64)(pair / n_active) * stride + pair % n_active];
}

// A block an expert: it counts the pairs of all experts before it, and then gives its own their places, in the order of
// tokens. So the order is the same in every run, and nothing is counted in memory. Tiles need no count of other
// experts' either: those of expert e begin at e + first / BM, and there are as many as fit before the next one's.
KERNEL sort_pairs(struct pairs pairs, const float *routes, u32 stride, u32 n_active, u32 n_pairs)
{
    u32 expert = BLOCK_X, n_before = 0, first, place, all, tile, tiles_end;

    kernel_begin();
    for (u32 pair = THREAD; pair < n_pairs; pair += N_THREADS)
        n_before += expert_at(routes, stride, n_active, pair) < expert;
    place = first = block_total(n_before);
    for (u32 i = 0; i < n_pairs; i += N_THREADS) {
        u32 pair = i + THREAD, is = pair < n_pairs && expert_at(routes, stride, n_active, pair) == expert;
        u32 at = place + block_rank(is, &all);

        if (is) {
            pairs.expert[at] = expert;
            pairs.token[at] = pair / n_active;
            pairs.place[pair] = at;
        }
        place += all;
    }
    tile = expert + first / BM;
    tiles_end = expert + 1 + place / BM;
    for (u32 i = tile + THREAD; i < tiles_end; i += N_THREADS)
        pairs.tiles[i] = first + (i - tile) * BM < place ? first + (i - tile) * BM : NONE;
    if (THREAD == 0) {
        pairs.first[expert] = first;
        pairs.first[expert + 1] = place; // which the next expert's block writes, too
    }
}

// Sums of a token's pairs, in the order of their choice. `weights` NULL: plain.
KERNEL combine(float *out, u32 out_stride, const float *in, u32 in_stride, const float *weights, u32 stride,
               const u32 *place, u32 n_active, u32 width)
{
    u64 token = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;
    float sum = 0;

    kernel_begin();
    if (i >= width)
        return;
    for (u32 j = 0; j < n_active; j++)
        sum += (weights ? weights[token * stride + j] : 1) * in[(u64)place[token * n_active + j] * in_stride + i];
    out[token * out_stride + i] = sum;
}

// ---- products of few pairs: a block eight rows of one pair's expert -------------------------------

#define WARPS 8

#define BEGIN_PAIR \
    u32 row = BLOCK_X * WARPS + THREAD / 32; \
    u64 pair = BLOCK_Y, expert, at; \
    struct product p = {out + pair * out_stride, bias, out_stride, rows, 1}; \
                                                                                                                       \
    kernel_begin(); \
    if (row >= rows) \
        return; \
    expert = pair_expert[pair]; \
    at = expert * rows + row; \
    p.bias = bias ? bias + expert * rows : 0

#define DEFINE_PLAIN(name, type, call) \
    KERNEL name(float *out, u32 out_stride, const float *x, u32 x_stride, const type *weight, const float *bias, \
                u32 rows, u32 cols, const u32 *pair_expert) \
    { \
        BEGIN_PAIR; \
        call; \
    }

DEFINE_PLAIN(experts_f32, float, linear_f32_row(&p, row, x + pair * x_stride, x_stride, weight + at * cols, cols))
DEFINE_PLAIN(experts_f16, u16, linear_half(1, 0, &p, row, x + pair * x_stride, x_stride, weight + at * cols, cols))
DEFINE_PLAIN(experts_bf16, u16, linear_half(1, 1, &p, row, x + pair * x_stride, x_stride, weight + at * cols, cols))

#define DEFINE_QUANTISED(name, call) \
    KERNEL name(float *out, u32 out_stride, const i8 *x_codes, const float *x_scales, const float *x_sums, \
                const u8 *weight, const u16 *scales, const u16 *mins, const float *bias, u32 rows, u32 cols, \
                const u32 *pair_expert) \
    { \
        u32 n_groups = cols / 32; \
        struct q8 x = {x_codes + (u64)BLOCK_Y * cols, x_scales + (u64)BLOCK_Y * n_groups, \
                       x_sums + (u64)BLOCK_Y * n_groups}; \
        BEGIN_PAIR; \
        call; \
    }

#define U4(has_min) \
    linear_u4(1, has_min, &p, row, &x, weight + at * (cols / 2), scales + at * n_groups, mins + at * n_groups, cols)

DEFINE_QUANTISED(experts_i8, linear_i8(1, &p, row, &x, weight + at * cols, scales + at * n_groups, cols))
DEFINE_QUANTISED(experts_u4, U4(0))
DEFINE_QUANTISED(experts_u4_min, U4(1))

KERNEL experts_any(float *out, u32 out_stride, const float *x, u32 x_stride, const u8 *codes, const u16 *scales,
                   const u16 *mins, u32 layout, const float *bias, u32 rows, u32 cols, struct pairs pairs)
{
    const u32 *pair_expert = pairs.expert;
    struct weight w = {codes, scales, mins};

    BEGIN_PAIR;
    linear_any_row(&p, layout, &w, at, row, x + pair * x_stride, x_stride, cols);
}

// ---- products of many pairs: tiles of one expert's, on the tensor cores ---------------------------

// Whether this block's tile is one. In layouts up to U4_MIN the expert's matrix begins where others' end; the rest find
// its rows by their numbers.
INLINE u32 enter_tile(u32 layout, struct job *job, const struct pairs *pairs)
{
    u32 first = pairs->tiles[BLOCK_X];
    u64 expert, at;

    if (first == NONE)
        return 0;
    expert = pairs->expert[first];
    at = expert * job->rows * job->cols;
    job->n_tokens = min_u32(pairs->first[expert + 1] - first, BM);
    job->x += (u64)first * job->x_stride;
    job->out += (u64)first * job->out_stride;
    job->bias = job->bias ? job->bias + expert * job->rows : 0;
    job->matrix_row = expert * job->rows;
    if (layout == LAYOUT_ANY)
        return 1;
    job->w.codes += layout == LAYOUT_F16 || layout == LAYOUT_BF16 ? at * 2 : layout == LAYOUT_I8 ? at : at / 2;
    job->w.scales += at / 32;
    job->w.mins += at / 32;
    return 1;
}

#define DEFINE_TILES(name, layout) \
    KERNEL name(float *out, u32 out_stride, const float *x, u32 x_stride, const u8 *codes, const u16 *scales, \
                const u16 *mins, const float *bias, u32 rows, u32 cols, struct pairs pairs) \
    { \
        struct job job = {out, x, bias, {codes, scales, mins}, out_stride, x_stride, rows, cols, 0, 0, BLOCK_Y * BN, \
                          0, layout}; \
                                                                                                                       \
        kernel_begin(); \
        if (enter_tile(layout, &job, &pairs)) \
            gemm(layout, &job); \
    }

DEFINE_TILES(experts_f16_32, LAYOUT_F16)
DEFINE_TILES(experts_bf16_32, LAYOUT_BF16)
DEFINE_TILES(experts_i8_32, LAYOUT_I8)
DEFINE_TILES(experts_u4_32, LAYOUT_U4)
DEFINE_TILES(experts_u4_min_32, LAYOUT_U4_MIN)

KERNEL experts_any_32(float *out, u32 out_stride, const float *x, u32 x_stride, const u8 *codes, const u16 *scales,
                      const u16 *mins, u32 layout, const float *bias, u32 rows, u32 cols, struct pairs pairs)
{
    struct job job = {out, x, bias, {codes, scales, mins}, out_stride, x_stride, rows, cols, 0, 0, BLOCK_Y * BN, 0,
                      layout};

    kernel_begin();
    if (enter_tile(LAYOUT_ANY, &job, &pairs))
        gemm(LAYOUT_ANY, &job);
}
