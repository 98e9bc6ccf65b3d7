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

            sum[t] = __builtin_fmaf(high, v.y, __builtin_fmaf(low, v.x, sum[t])); // as add_pair in dot.h
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

// ---- the same on the tensor cores, for caches of 16 and 8 bits --------------------------------------
//
// 16 heads of a token are the rows of the matrices, tiles of 64 keys lie in shared memory in f16. Of the scores a warp
// computes 8 keys, of the values 64 elements.

#define TILE 64
#define ROWS (WARPS * HEADS)
#define ROW_STRIDE (KEY_MAX + 8) // of queries and keys, in elements: eight neighbouring rows lie in all banks
#define P_STRIDE (TILE + 8)
#define WARP_KEYS (TILE / WARPS)
#define WARP_PAIRS (LATENT_MAX / WARPS / 16) // of 8 elements of the values

struct shared {
    SHARED u16 *q, *keys, *p; // [ROWS, ROW_STRIDE], [TILE, ROW_STRIDE], [ROWS, P_STRIDE]
    SHARED float *of_warps;   // [WARPS, ROWS]
};

// SHARED_BYTES of cuda_latent.c is the sum.
INLINE struct shared share_out(void)
{
    SHARED u16 *q = (SHARED u16 *)g_dynamic, *keys = q + ROWS * ROW_STRIDE, *p = keys + TILE * ROW_STRIDE;

    return (struct shared){q, keys, p, (SHARED float *)(p + ROWS * P_STRIDE)};
}

// Eight elements of a row of 8 bits as f16.
INLINE void put_eight_bytes(SHARED u16 *to, const struct cache *cache, const struct tile *tile, u32 row, u32 e)
{
    for (u32 i = 0; i < 8; i++)
        to[i] = f16_of_f32(key_element(cache, tile, row, e + i));
}

// Keys [at, at + TILE) of which those from `end` on are zeros, as are elements from dim to width.
INLINE void stage_tile(SHARED u16 *keys, const struct cache *cache, const i32 *table, u32 at, u32 end, u32 width)
{
    u32 v_dim = cache->v_dim, dim = v_dim + cache->k_dim, chunks = width / 8;

    for (u32 i = THREAD; i < TILE * chunks; i += WARPS * 32) {
        u32 key = at + i / chunks, e = i % chunks * 8, there = key < end && e < dim, row = key % cache->block_tokens;
        SHARED u16 *to = keys + i / chunks * ROW_STRIDE + e;
        struct tile tile = cache_tile(cache, table[there ? key / cache->block_tokens : at / cache->block_tokens], 0);
        const u8 *from = e < v_dim ? tile.v + ((u64)row * v_dim + e) * 2
                                   : tile.k + ((u64)row * cache->k_dim + e - v_dim) * 2;

        if (cache->kv == KV_F16 || !there)
            copy_async(to, there ? from : cache->data, there);
        else
            put_eight_bytes(to, cache, &tile, row, e);
    }
    copy_commit();
    copy_wait(0);
}

INLINE void stage_queries(SHARED u16 *to, const float *q, u32 used, u32 dim, u32 width, float scale)
{
    for (u32 i = THREAD; i < ROWS * width; i += WARPS * 32) {
        u32 row = i / width, e = i % width;

        to[row * ROW_STRIDE + e] = row < used && e < dim ? f16_of_f32(q[(u64)row * dim + e] * scale) : 0;
    }
}

// Of this thread: two rows, and of each two neighbouring keys of its warp's.
INLINE void score_tile(const struct shared *s, u32 width, float *score)
{
    u32 lane = THREAD % 32;
    SHARED const u16 *a_at = s->q + lane % 16 * ROW_STRIDE + lane / 16 * 8;
    SHARED const u16 *b_at = s->keys + (THREAD / 32 * WARP_KEYS + lane % 8) * ROW_STRIDE + lane / 8 * 8;

    for (u32 i = 0; i < 4; i++)
        score[i] = 0;
    for (u32 k = 0; k < width; k += 32) {
        u32 a[4], b[4];

        ldmatrix4(b, b_at + k);
        ldmatrix4(a, a_at + k);
        mma_f16(score, a, b[0], b[1]);
        ldmatrix4(a, a_at + k + 16);
        mma_f16(score, a, b[2], b[3]);
    }
}

// Sums of p times values onto acc, of this warp's share of their elements.
INLINE void add_values(const struct shared *s, u32 v_dim, float (*acc)[4])
{
    u32 lane = THREAD % 32, first = THREAD / 32 * WARP_PAIRS * 16;
    SHARED const u16 *a_at = s->p + lane % 16 * P_STRIDE + lane / 16 * 8;
    SHARED const u16 *b_at = s->keys + lane % 16 * ROW_STRIDE + first + lane / 16 * 8;

    UNROLL
    for (u32 k = 0; k < TILE; k += 16) {
        u32 a[4], b[4];

        ldmatrix4(a, a_at + k);
        UNROLL
        for (u32 n = 0; n < WARP_PAIRS; n++) {
            if (first + n * 16 >= v_dim)
                continue;
            ldmatrix4_trans(b, b_at + k * ROW_STRIDE + n * 16);
            mma_f16(acc[2 * n], a, b[0], b[1]);
            mma_f16(acc[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// The larger, or the sum, over the lanes that share a row.
INLINE float row_max(float x) { x = max_f32(x, shuffle_xor(x, 1)); return max_f32(x, shuffle_xor(x, 2)); }
INLINE float row_sum(float x) { x += shuffle_xor(x, 1); return x + shuffle_xor(x, 2); }

// Scores of a tile become shares in p; max, sum and what acc is to be multiplied by change for this thread's two rows.
INLINE void weigh_tile(const struct shared *s, const float *score, u32 n, float *max, float *sum, float *factor)
{
    u32 lane = THREAD % 32, warp = THREAD / 32, column = warp * WARP_KEYS + lane % 4 * 2;

    UNROLL
    for (u32 h = 0; h < 2; h++) {
        float low = column < n ? score[2 * h] : NEG_INFINITY, high = column + 1 < n ? score[2 * h + 1] : NEG_INFINITY;
        float top = row_max(max_f32(low, high));

        if (lane % 4 == 0)
            s->of_warps[warp * ROWS + h * 8 + lane / 4] = top;
    }
    block_sync();
    UNROLL
    for (u32 h = 0; h < 2; h++) {
        u32 row = h * 8 + lane / 4;
        float top = max[h], low, high;

        for (u32 w = 0; w < WARPS; w++)
            top = max_f32(top, s->of_warps[w * ROWS + row]);
        factor[h] = max[h] == top ? 1 : exp_f32(max[h] - top);
        max[h] = top;
        low = column < n ? exp_f32(score[2 * h] - top) : 0;
        high = column + 1 < n ? exp_f32(score[2 * h + 1] - top) : 0;
        sum[h] = sum[h] * factor[h] + low + high;
        *(SHARED u32 *)(s->p + row * P_STRIDE + column) = f16x2_of(low, high);
    }
    block_sync();
}

// The sums of all warps, for this thread's two rows.
INLINE void join_sums(const struct shared *s, float *sum)
{
    u32 lane = THREAD % 32, warp = THREAD / 32;

    block_sync();
    UNROLL
    for (u32 h = 0; h < 2; h++) {
        sum[h] = row_sum(sum[h]);
        if (lane % 4 == 0)
            s->of_warps[warp * ROWS + h * 8 + lane / 4] = sum[h];
    }
    block_sync();
    UNROLL
    for (u32 h = 0; h < 2; h++) {
        sum[h] = 0;
        for (u32 w = 0; w < WARPS; w++)
            sum[h] += s->of_warps[w * ROWS + h * 8 + lane / 4];
    }
}

// As attention_latent.
KERNEL attention_latent_16(u8 *data, u64 block_bytes, u64 layer_at, u64 head_bytes, u32 block_tokens, u32 kv,
                           const float *q, u32 q_stride, float *out, u32 out_stride, u32 k_dim, u32 v_dim, u32 n_heads,
                           u32 n_kv_heads, float scale, float cap, const float *alibi, u32 window, u32 chunk,
                           u32 bidirectional, const float *token_scale, const u32 *token_seq, const u32 *token_index,
                           const u32 *seq_total, const u32 *table_at, const i32 *tables, float *partial)
{
    struct cache cache = {data, block_bytes, layer_at, head_bytes, block_tokens, kv, k_dim, v_dim};
    struct shared s = share_out();
    u32 token = BLOCK_X, lane = THREAD % 32, dim = v_dim + k_dim, width = (dim + 31) / 32 * 32;
    u32 first = BLOCK_Y * ROWS, used = min_u32(n_heads - first, ROWS), begin, end, share;
    float acc[2 * WARP_PAIRS][4], max[2] = {NEG_INFINITY, NEG_INFINITY}, sum[2] = {0, 0}, score[4], factor[2];
    const i32 *table;

    kernel_begin();
    table = tables + table_at[token_seq[token]];
    end = token_index[token] + 1;
    share = ((end + N_BLOCKS_Z - 1) / N_BLOCKS_Z + TILE - 1) / TILE * TILE;
    begin = min_u32(BLOCK_Z * share, end);
    end = min_u32(begin + share, end);
    UNROLL
    for (u32 i = 0; i < 2 * WARP_PAIRS; i++)
        acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;
    stage_queries(s.q, q + (u64)token * q_stride + (u64)first * dim, used, dim, width,
                  scale * (token_scale ? token_scale[token] : 1));
    for (u32 at = begin; at < end; at += TILE) {
        stage_tile(s.keys, &cache, table, at, end, width);
        block_sync();
        score_tile(&s, width, score);
        weigh_tile(&s, score, end - at, max, sum, factor);
        UNROLL
        for (u32 i = 0; i < 2 * WARP_PAIRS; i++) {
            acc[i][0] *= factor[0], acc[i][1] *= factor[0];
            acc[i][2] *= factor[1], acc[i][3] *= factor[1];
        }
        add_values(&s, v_dim, acc);
        block_sync(); // the tile was used
    }
    join_sums(&s, sum);
    if (partial)
        partial += ((u64)(token * N_BLOCKS_Y + BLOCK_Y) * N_BLOCKS_Z + BLOCK_Z) * ROWS * (v_dim + 2);
    UNROLL
    for (u32 h = 0; h < 2; h++) {
        u32 row = h * 8 + lane / 4, d = THREAD / 32 * WARP_PAIRS * 16 + lane % 4 * 2;
        float *to = partial ? partial + row * (v_dim + 2) + 2
                            : out + (u64)token * out_stride + (u64)(first + row) * v_dim;
        float by = partial ? 1 : 1 / sum[h];

        if (row >= used)
            continue;
        if (partial && THREAD / 32 == 0 && lane % 4 == 0) {
            to[-2] = max[h];
            to[-1] = sum[h];
        }
        UNROLL
        for (u32 i = 0; i < 2 * WARP_PAIRS; i++, d += 8)
            if (d < v_dim) {
                to[d] = acc[i][2 * h] * by;
                to[d + 1] = acc[i][2 * h + 1] * by;
            }
    }
}
