// Attention over paged caches, and appending to them.

#include "kernel/cuda/ptx/kv.h"
#include "kernel/cuda/ptx/mask.h"

#define WARPS 4   // of a block, which share the keys of one token, KV head and split
#define DIMS_MAX 256
#define LANE_DIMS (DIMS_MAX / 32)

// Keys and values of the step's tokens into their blocks: two warps a token and KV head, of which one takes the keys.
// table_at is the place of each sequence's table in `tables`.
KERNEL append(u8 *data, u64 block_bytes, u64 layer_at, u64 head_bytes, u32 block_tokens, u32 kv, const float *k,
              u32 k_stride, u32 k_dim, const float *v, u32 v_stride, u32 v_dim, const u32 *token_seq,
              const u32 *token_index, const u32 *table_at, const i32 *tables)
{
    struct cache cache = {data, block_bytes, layer_at, head_bytes, block_tokens, kv, k_dim, v_dim};
    u32 token = BLOCK_X, head = BLOCK_Y, index = token_index[token], row = index % block_tokens;
    struct tile tile = cache_tile(&cache, tables[table_at[token_seq[token]] + index / block_tokens], head);

    kernel_begin();
    if (THREAD < 32)
        kv_put_row(kv, tile.k + (u64)row * k_dim * kv_bytes(kv), tile.k_scale + row,
                   k + (u64)token * k_stride + head * k_dim, k_dim);
    else
        kv_put_row(kv, tile.v + (u64)row * v_dim * kv_bytes(kv), tile.v_scale + row,
                   v + (u64)token * v_stride + head * v_dim, v_dim);
}

static SHARED float g_q[8 * DIMS_MAX] __attribute__((aligned(16)));
static SHARED float g_p[WARPS][8][32];
static SHARED float g_max[WARPS][8], g_sum[WARPS][8];
static SHARED float g_acc[WARPS][8][DIMS_MAX];

INLINE float dot_f16(const u8 *row, SHARED const float *q, u32 dim)
{
    float sum = 0;

    for (u32 i = 0; i < dim; i += 8) {
        u32x4 v = *(const u32x4 *)(row + i * 2);
        f32x4 a = *(SHARED const f32x4 *)(q + i), b = *(SHARED const f32x4 *)(q + i + 4);

        sum += low_f16(v.x) * a.x + high_f16(v.x) * a.y + low_f16(v.y) * a.z + high_f16(v.y) * a.w +
               low_f16(v.z) * b.x + high_f16(v.z) * b.y + low_f16(v.w) * b.z + high_f16(v.w) * b.w;
    }
    return sum;
}

INLINE float dot_any(const u8 *row, SHARED const float *q, u32 dim, u32 kv)
{
    float sum = 0;

    for (u32 i = 0; i < dim; i++)
        sum += kv_element(kv, row, i) * q[i];
    return sum;
}

// A block: one token, up to G query heads of one KV head, one share of the keys. A lane takes a key for the scores, and
// dimensions of the values; the warps' results are joined at the end, those of the splits by `attention_join`.
INLINE void attend(u32 G, const struct cache *cache, const float *q, u32 kv_head, u32 n_heads, u32 first_head, u32 used,
                   const i32 *table, u32 begin, u32 end, float scale, float cap, const float *alibi, u32 index,
                   float *out, float *partial)
{
    u32 warp = THREAD / 32, lane = THREAD % 32, kv = cache->kv, k_dim = cache->k_dim, v_dim = cache->v_dim;
    float max[8], sum[8], acc[8][LANE_DIMS];

    UNROLL
    for (u32 g = 0; g < G; g++) {
        max[g] = NEG_INFINITY;
        sum[g] = 0;
        UNROLL
        for (u32 i = 0; i < LANE_DIMS; i++)
            acc[g][i] = 0;
    }
    for (u32 i = THREAD; i < used * k_dim; i += WARPS * 32)
        g_q[i / k_dim * DIMS_MAX + i % k_dim] = q[i] * scale;
    block_sync();
    for (u32 at = begin + warp * 32; at < end; at += WARPS * 32) {
        u32 key = min_u32(at + lane, end - 1), n = min_u32(end - at, 32);
        struct tile tile = cache_tile(cache, table[key / cache->block_tokens], kv_head);
        const u8 *row = tile.k + (u64)(key % cache->block_tokens) * k_dim * kv_bytes(kv);
        float k_scale = kv_has_scales(kv) ? f32_of_f16(tile.k_scale[key % cache->block_tokens]) : 1;
        float v_scale = kv_has_scales(kv) ? f32_of_f16(tile.v_scale[key % cache->block_tokens]) : 1;

        UNROLL
        for (u32 g = 0; g < G; g++) {
            float score = NEG_INFINITY, top, factor;

            if (g < used && lane < n) {
                score = kv == KV_F16 && k_dim % 8 == 0 ? dot_f16(row, g_q + g * DIMS_MAX, k_dim)
                                                       : k_scale * dot_any(row, g_q + g * DIMS_MAX, k_dim, kv);
                if (cap > 0)
                    score = cap * tanh_f32(score / cap);
                if (alibi)
                    score -= alibi[first_head + g] * abs_f32((float)index - (float)key);
            }
            top = max_f32(max[g], warp_max(score));
            factor = max[g] == top ? 1 : exp_f32(max[g] - top);
            score = g < used ? exp_f32(score - top) : 0;
            sum[g] = sum[g] * factor + warp_sum(score);
            max[g] = top;
            g_p[warp][g][lane] = score * v_scale;
            UNROLL
            for (u32 i = 0; i < LANE_DIMS; i++)
                acc[g][i] *= factor;
        }
        warp_sync();
        for (u32 j = 0; j < n; j++) {
            struct tile tile = cache_tile(cache, table[(at + j) / cache->block_tokens], kv_head);
            const u8 *v = tile.v + (u64)((at + j) % cache->block_tokens) * v_dim * kv_bytes(kv);

            UNROLL
            for (u32 i = 0; i < LANE_DIMS; i++) {
                if (i * 32 < v_dim) {
                    float x = i * 32 + lane < v_dim ? kv_element(kv, v, i * 32 + lane) : 0;

                    UNROLL
                    for (u32 g = 0; g < G; g++)
                        acc[g][i] += g_p[warp][g][j] * x;
                }
            }
        }
        warp_sync();
    }
    UNROLL
    for (u32 g = 0; g < G; g++) {
        g_max[warp][g] = max[g];
        g_sum[warp][g] = sum[g];
        UNROLL
        for (u32 i = 0; i < LANE_DIMS; i++)
            if (i * 32 < v_dim)
                g_acc[warp][g][i * 32 + lane] = acc[g][i];
    }
    block_sync();
    for (u32 i = THREAD; i < used * v_dim; i += WARPS * 32) {
        u32 g = i / v_dim, d = i % v_dim;
        float top = NEG_INFINITY, total = 0, value = 0;

        for (u32 w = 0; w < WARPS; w++)
            top = max_f32(top, g_max[w][g]);
        for (u32 w = 0; w < WARPS && top > NEG_INFINITY; w++) {
            float factor = exp_f32(g_max[w][g] - top);

            total += g_sum[w][g] * factor;
            value += g_acc[w][g][d] * factor;
        }
        if (partial) {
            partial[g * (v_dim + 2) + 2 + d] = value;
            if (d == 0) {
                partial[g * (v_dim + 2)] = top;
                partial[g * (v_dim + 2) + 1] = total;
            }
        } else {
            out[i] = total > 0 ? value / total : 0;
        }
    }
}

// Grid: token, KV head and run of G heads, split. partial: [token][head][split][v_dim + 2], or NULL with one split.
#define DEFINE(name, G) \
    KERNEL name(u8 *data, u64 block_bytes, u64 layer_at, u64 head_bytes, u32 block_tokens, u32 kv, const float *q, \
                u32 q_stride, float *out, u32 out_stride, u32 k_dim, u32 v_dim, u32 n_heads, u32 n_kv_heads, \
                float scale, float cap, const float *alibi, u32 window, u32 chunk, u32 bidirectional, \
                const float *token_scale, const u32 *token_seq, const u32 *token_index, const u32 *seq_total, \
                const u32 *table_at, const i32 *tables, float *partial) \
    { \
        u32 token = BLOCK_X, per_kv = n_heads / n_kv_heads, runs = (per_kv + G - 1) / G, kv_head = BLOCK_Y / runs; \
        u32 in_kv = BLOCK_Y % runs * G, head = kv_head * per_kv + in_kv, used = min_u32(per_kv - in_kv, G); \
        u32 seq = token_seq[token], index = token_index[token], begin, end, share; \
        struct cache cache = {data, block_bytes, layer_at, head_bytes, block_tokens, kv, k_dim, v_dim}; \
        struct mask mask = {window, chunk, bidirectional}; \
                                                                                                                       \
        kernel_begin(); \
        visible(&mask, index, seq_total[seq], &begin, &end); \
        share = (end - begin + N_BLOCKS_Z - 1) / N_BLOCKS_Z; \
        share = (share + 31) / 32 * 32; \
        begin = min_u32(begin + BLOCK_Z * share, end); \
        end = min_u32(begin + share, end); \
        if (partial) \
            partial += (((u64)token * (n_kv_heads * runs) + BLOCK_Y) * N_BLOCKS_Z + BLOCK_Z) * G * (v_dim + 2); \
        attend(G, &cache, q + (u64)token * q_stride + head * k_dim, kv_head, n_heads, head, used, \
               tables + table_at[seq], begin, end, scale * (token_scale ? token_scale[token] : 1), cap, alibi, index, \
               out + (u64)token * out_stride + head * v_dim, partial); \
    }

DEFINE(attention_1, 1)
DEFINE(attention_4, 4)
DEFINE(attention_8, 8)

// Joins the splits and adds the sink's share of the softmax. Grid: token, head.
KERNEL attention_join(float *out, u32 out_stride, u32 v_dim, const float *partial, u32 n_splits, u32 g, u32 n_heads,
                      u32 n_kv_heads, const float *sinks)
{
    u32 token = BLOCK_X, head = BLOCK_Y, per_kv = n_heads / n_kv_heads, runs = (per_kv + g - 1) / g;
    u32 run = head / per_kv * runs + head % per_kv / g, in_run = head % per_kv % g, width = v_dim + 2;
    const float *first = partial + (((u64)token * (n_kv_heads * runs) + run) * n_splits * g + in_run) * width;
    u64 step = (u64)g * width;
    float top = sinks ? sinks[head] : NEG_INFINITY, total;

    kernel_begin();
    for (u32 s = 0; s < n_splits; s++)
        top = max_f32(top, first[s * step]);
    total = sinks ? exp_f32(sinks[head] - top) : 0;
    for (u32 s = 0; s < n_splits; s++)
        total += first[s * step + 1] * exp_f32(first[s * step] - top);
    for (u32 d = THREAD; d < v_dim; d += N_THREADS) {
        float value = 0;

        for (u32 s = 0; s < n_splits; s++)
            value += first[s * step + 2 + d] * exp_f32(first[s * step] - top);
        out[(u64)token * out_stride + head * v_dim + d] = total > 0 ? value / total : 0;
    }
}
