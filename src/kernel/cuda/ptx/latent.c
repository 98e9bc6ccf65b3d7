// Attention over latents: all heads share one key, whose first v_dim elements are its value; and the products by each
// head's own matrix around it.

#include "kernel/cuda/ptx/kv.h"

#define WARPS 8
#define TOKENS 8 // of a block of `heads`

// ---- a matrix for each head ---------------------------------------------------------------------

// Grid: 8 rows, 8 tokens, head. A warp takes a row; the first block of a head also copies what follows its columns.
KERNEL heads(float *out, u32 out_stride, const float *x, u32 x_stride, const u8 *weight, u32 layout, u32 rows, u32 cols,
             u32 in_dim, u32 out_dim, u32 n_tokens)
{
    u32 head = BLOCK_Z, first = BLOCK_Y * TOKENS, n = min_u32(n_tokens - first, TOKENS), lane = THREAD % 32;
    u32 row = BLOCK_X * WARPS + THREAD / 32, rest = in_dim - cols;
    u64 at = ((u64)head * rows + row) * cols;
    float sum[TOKENS] = {0};

    kernel_begin();
    x += (u64)first * x_stride + head * in_dim;
    out += (u64)first * out_stride + head * out_dim;
    for (u32 i = THREAD; BLOCK_X == 0 && i < n * rest; i += WARPS * 32)
        out[(u64)(i / rest) * out_stride + rows + i % rest] = x[(u64)(i / rest) * x_stride + cols + i % rest];
    if (row >= rows)
        return;
    for (u32 i = lane; layout == LAYOUT_F32 && i < cols; i += 32) {
        float w = ((const float *)weight)[at + i];

        UNROLL
        for (u32 t = 0; t < TOKENS; t++)
            sum[t] += w * x[(u64)min_u32(t, n - 1) * x_stride + i];
    }
    for (u32 i = lane * 2; layout != LAYOUT_F32 && i < cols; i += 64) { // cols is a multiple of 8
        u32 w = *(const u32 *)((const u16 *)weight + at + i);
        float low = layout == LAYOUT_F16 ? low_f16(w) : low_bf16(w), high = layout == LAYOUT_F16 ? high_f16(w)
                                                                                                : high_bf16(w);

        UNROLL
        for (u32 t = 0; t < TOKENS; t++) {
            f32x2 v = *(const f32x2 *)(x + (u64)min_u32(t, n - 1) * x_stride + i);

            sum[t] += low * v.x + high * v.y;
        }
    }
    UNROLL
    for (u32 t = 0; t < TOKENS; t++) {
        float s = warp_sum(sum[t]);

        if (lane == 0 && t < n)
            out[(u64)t * out_stride + row] = s;
    }
}

// ---- attention ----------------------------------------------------------------------------------

#define KEYS 16 // of a tile, which lies in shared memory in f32
#define HEADS 2 // of a warp
#define LATENT_MAX 512
#define KEY_MAX (LATENT_MAX + 64)
#define KEY_STEPS (KEY_MAX / 32)
#define VALUE_STEPS (LATENT_MAX / 32)

static SHARED float g_key[KEYS][KEY_MAX] __attribute__((aligned(16)));

// Eight elements of a row of f16, or zeros past its end.
INLINE void put_eight(SHARED float *to, const u8 *row, u32 i, u32 dim)
{
    u32x4 v = i < dim ? *(const u32x4 *)(row + i * 2) : (u32x4){0, 0, 0, 0};

    *(SHARED f32x4 *)to = (f32x4){low_f16(v.x), high_f16(v.x), low_f16(v.y), high_f16(v.y)};
    *(SHARED f32x4 *)(to + 4) = (f32x4){low_f16(v.z), high_f16(v.z), low_f16(v.w), high_f16(v.w)};
}

INLINE float key_element(const struct cache *cache, const struct tile *tile, u32 row, u32 i)
{
    u32 v_dim = cache->v_dim, kv = cache->kv, of_v = i < v_dim, dim = of_v ? v_dim : cache->k_dim;
    const u8 *at = (of_v ? tile->v : tile->k) + (u64)row * dim * kv_bytes(kv);
    float x;

    if (i >= v_dim + cache->k_dim)
        return 0;
    x = kv_element(kv, at, of_v ? i : i - v_dim);
    return kv_has_scales(kv) ? x * f32_of_f16((of_v ? tile->v_scale : tile->k_scale)[row]) : x;
}

// Keys [at, at + n) into g_key, each with zeros up to a multiple of 32 elements.
INLINE void stage_keys(const struct cache *cache, const i32 *table, u32 at, u32 n, u32 width)
{
    u32 in_eights = cache->kv == KV_F16 && cache->v_dim % 8 == 0 && cache->k_dim % 8 == 0, chunk = in_eights ? 8 : 1;

    for (u32 i = THREAD; i < n * (width / chunk); i += WARPS * 32) {
        u32 key = i / (width / chunk), e = i % (width / chunk) * chunk, row = (at + key) % cache->block_tokens;
        struct tile tile = cache_tile(cache, table[(at + key) / cache->block_tokens], 0);

        if (!in_eights)
            g_key[key][e] = key_element(cache, &tile, row, e);
        else if (e < cache->v_dim)
            put_eight(&g_key[key][e], tile.v + (u64)row * cache->v_dim * 2, e, cache->v_dim);
        else
            put_eight(&g_key[key][e], tile.k + (u64)row * cache->k_dim * 2, e - cache->v_dim, cache->k_dim);
    }
}

struct state { // of one head
    float q[KEY_STEPS], acc[VALUE_STEPS], max, sum, score;
};

// The scores of n keys, of which lane j keeps that of key j, become shares relative to the largest score so far.
INLINE void weigh(struct state *s, u32 n, u32 v_dim)
{
    u32 lane = THREAD % 32;
    float score = lane < n ? s->score : NEG_INFINITY, top = max_f32(s->max, warp_max(score));
    float factor = s->max == top ? 1 : exp_f32(s->max - top);

    s->score = exp_f32(score - top);
    s->sum = s->sum * factor + warp_sum(s->score);
    s->max = top;
    UNROLL
    for (u32 i = 0; i < VALUE_STEPS; i++)
        if (i * 32 < v_dim)
            s->acc[i] *= factor;
}

INLINE void attend_tile(struct state *s, u32 n, u32 width, u32 v_dim)
{
    u32 lane = THREAD % 32;

    for (u32 j = 0; j < n; j++) {
        float dot[HEADS] = {0, 0};

        UNROLL
        for (u32 i = 0; i < KEY_STEPS; i++) {
            float x = i * 32 < width ? g_key[j][i * 32 + lane] : 0;

            UNROLL
            for (u32 h = 0; h < HEADS; h++)
                dot[h] += s[h].q[i] * x;
        }
        UNROLL
        for (u32 h = 0; h < HEADS; h++) {
            float sum = warp_sum(dot[h]);

            s[h].score = lane == j ? sum : s[h].score;
        }
    }
    UNROLL
    for (u32 h = 0; h < HEADS; h++)
        weigh(&s[h], n, v_dim);
    for (u32 j = 0; j < n; j++) {
        float p[HEADS];

        UNROLL
        for (u32 h = 0; h < HEADS; h++)
            p[h] = f32_of_bits(shuffle_from(bits_of_f32(s[h].score), j));
        UNROLL
        for (u32 i = 0; i < VALUE_STEPS; i++) {
            float x = i * 32 < v_dim ? g_key[j][i * 32 + lane] : 0;

            UNROLL
            for (u32 h = 0; h < HEADS; h++)
                s[h].acc[i] += p[h] * x;
        }
    }
}

// Queries begin with the part that meets the latent. Grid: token, run of 16 heads, split; the arguments are those of
// the other attention kernels (attention.c), of which heads of latents have no use for some.
KERNEL attention_latent(u8 *data, u64 block_bytes, u64 layer_at, u64 head_bytes, u32 block_tokens, u32 kv,
                        const float *q, u32 q_stride, float *out, u32 out_stride, u32 k_dim, u32 v_dim, u32 n_heads,
                        u32 n_kv_heads, float scale, float cap, const float *alibi, u32 window, u32 chunk,
                        u32 bidirectional, const float *token_scale, const u32 *token_seq, const u32 *token_index,
                        const u32 *seq_total, const u32 *table_at, const i32 *tables, float *partial)
{
    struct cache cache = {data, block_bytes, layer_at, head_bytes, block_tokens, kv, k_dim, v_dim};
    u32 token = BLOCK_X, lane = THREAD % 32, dim = v_dim + k_dim, width = (dim + 31) / 32 * 32;
    u32 in_run = THREAD / 32 * HEADS, first = BLOCK_Y * WARPS * HEADS + in_run, begin, end, share;
    const i32 *table;
    struct state s[HEADS];

    kernel_begin();
    table = tables + table_at[token_seq[token]];
    end = token_index[token] + 1;
    share = ((end + N_BLOCKS_Z - 1) / N_BLOCKS_Z + KEYS - 1) / KEYS * KEYS;
    begin = min_u32(BLOCK_Z * share, end);
    end = min_u32(begin + share, end);
    scale *= token_scale ? token_scale[token] : 1;
    UNROLL
    for (u32 h = 0; h < HEADS; h++) {
        const float *from = q + (u64)token * q_stride + (u64)min_u32(first + h, n_heads - 1) * dim;

        s[h].max = NEG_INFINITY;
        s[h].sum = s[h].score = 0;
        UNROLL
        for (u32 i = 0; i < KEY_STEPS; i++)
            s[h].q[i] = i * 32 + lane < dim ? from[i * 32 + lane] * scale : 0;
        UNROLL
        for (u32 i = 0; i < VALUE_STEPS; i++)
            s[h].acc[i] = 0;
    }
    for (u32 at = begin; at < end; at += KEYS) {
        u32 n = min_u32(end - at, KEYS);

        block_sync(); // the tile before was used
        stage_keys(&cache, table, at, n, width);
        block_sync();
        attend_tile(s, n, width, v_dim);
    }
    if (partial)
        partial += ((u64)(token * N_BLOCKS_Y + BLOCK_Y) * N_BLOCKS_Z + BLOCK_Z) * WARPS * HEADS * (v_dim + 2);
    UNROLL
    for (u32 h = 0; h < HEADS; h++) {
        float *to = partial ? partial + (in_run + h) * (v_dim + 2) + 2
                            : out + (u64)token * out_stride + (u64)(first + h) * v_dim;
        float factor = partial ? 1 : 1 / s[h].sum;

        if (first + h >= n_heads)
            continue;
        if (partial && lane == 0) {
            to[-2] = s[h].max;
            to[-1] = s[h].sum;
        }
        UNROLL
        for (u32 i = 0; i < VALUE_STEPS; i++)
            if (i * 32 + lane < v_dim)
                to[i * 32 + lane] = s[h].acc[i] * factor;
    }
}
