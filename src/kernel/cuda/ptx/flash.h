#pragma once
// Attention of prompts on the tensor cores: a block takes 64 queries, which are neighbouring tokens of a sequence times
// the query heads of one KV head, and goes through the keys that any of them sees, tile by tile, with a running
// softmax. Tiles begin at multiples of their size, so that a query's result does not depend on who shares its block.

#include "kernel/cuda/ptx/kv.h"
#include "kernel/cuda/ptx/mask.h"

#define WARPS 4
#define THREADS (WARPS * 32)
#define ROWS (WARPS * 16) // queries of a block
#define KEYS_MAX 64
#define DIMS_MAX 256
#define PAD 8             // elements after a row, so that ldmatrix meets every bank once
#define TILE_MAX (32 * (256 + PAD) > 64 * (128 + PAD) ? 32 * (256 + PAD) : 64 * (128 + PAD))
#define LOG2_E 1.44269504f

static SHARED u16 g_k[TILE_MAX] __attribute__((aligned(16)));
static SHARED u16 g_v[TILE_MAX] __attribute__((aligned(16)));
static SHARED struct row { // where a key of a tile lies; of this tile and the next
    const u8 *k, *v;
    float k_scale, v_scale;
} g_rows[2][KEYS_MAX];

struct job {
    struct cache cache;
    struct mask mask;
    const i32 *table;
    const float *q, *alibi; // of the first token of the sequence in this step
    float scale, cap;
    u32 q_stride, per_kv, kv_head, n_past, n_tokens, total, first_row;
};

// Two queries that a lane holds: rows lane / 4 and 8 more of its warp's 16.
struct query {
    u32 token, head, begin, end, index;
    u32 is_real; // otherwise it repeats the last one
    float slope;
};

INLINE struct query query_of(const struct job *job, u32 row)
{
    u32 n_rows = job->n_tokens * job->per_kv, used = min_u32(row, n_rows - 1);
    struct query query = {.token = used / job->per_kv, .is_real = row < n_rows};

    query.head = job->kv_head * job->per_kv + used % job->per_kv;
    query.index = job->n_past + query.token;
    query.slope = job->alibi ? job->alibi[query.head] : 0;
    visible(&job->mask, query.index, job->total, &query.begin, &query.end);
    return query;
}

// 16-bit halves of 16 numbers, from 16 bytes of a row.
INLINE void widen(u32 kv, u32x4 bytes, float scale, u32 *out)
{
    u32 factor = f16x2_of(kv == KV_F8 ? scale * 256 : scale, kv == KV_F8 ? scale * 256 : scale);

    UNROLL
    for (u32 i = 0; i < 8; i++) {
        u32 pair = bytes[i / 2] >> (i % 2 * 16), spread = (pair & 0xFF) << 8 | (pair & 0xFF00) << 16;

        if (kv == KV_F8) // f16 has one bit of exponent more, whose bias is 8 more
            out[i] = mul_f16x2((spread & 0x80008000) | (spread & 0x7F007F00) >> 1, factor);
        else // 1024 + code + 128, less 1152
            out[i] = mul_f16x2(add_f16x2((spread >> 8 ^ 0x00800080) | 0x64006400, 0xE480E480), factor);
    }
}

// Where the keys of the tile at `first` lie. Keys that nobody sees may be in blocks that were given back.
INLINE void find_rows(const struct job *job, u32 KEYS, u32 first, u32 begin, u32 end, SHARED struct row *rows)
{
    u32 key, block, in_block, thread = THREAD;
    struct tile tile;

    if (thread >= KEYS)
        return;
    key = min_u32(max_u32(first + THREAD, begin), end - 1);
    block = key / job->cache.block_tokens;
    in_block = key % job->cache.block_tokens;
    tile = cache_tile(&job->cache, job->table[block], job->kv_head);
    rows[THREAD].k = tile.k + (u64)in_block * job->cache.k_dim * kv_bytes(job->cache.kv);
    rows[THREAD].v = tile.v + (u64)in_block * job->cache.v_dim * kv_bytes(job->cache.kv);
    if (kv_has_scales(job->cache.kv)) {
        rows[THREAD].k_scale = f32_of_f16(tile.k_scale[in_block]);
        rows[THREAD].v_scale = f32_of_f16(tile.v_scale[in_block]);
    }
}

// A tile of keys or values; zeros past the rows' ends.
INLINE void load_tile(u32 kv, u32 D, u32 KEYS, u32 dim, u32 of_v, SHARED const struct row *rows, SHARED u16 *to)
{
    if (kv == KV_F16) {
        UNROLL
        for (u32 i = 0; i < KEYS * D / 8; i += THREADS) {
            u32 row = (i + THREAD) / (D / 8), at = (i + THREAD) % (D / 8) * 8;
            const u8 *from = of_v ? rows[row].v : rows[row].k;

            copy_async(to + row * (D + PAD) + at, from + (at < dim ? at * 2 : 0), at < dim);
        }
        return;
    }
    UNROLL
    for (u32 i = 0; i < KEYS * D / 16; i += THREADS) {
        u32 row = (i + THREAD) / (D / 16), at = (i + THREAD) % (D / 16) * 16, words[8];
        const u8 *from = of_v ? rows[row].v : rows[row].k;
        SHARED u32x4 *place = (SHARED u32x4 *)(to + row * (D + PAD) + at);

        widen(kv, at < dim ? *(const u32x4 *)(from + at) : (u32x4){0, 0, 0, 0},
              at < dim ? of_v ? rows[row].v_scale : rows[row].k_scale : 0, words);
        place[0] = (u32x4){words[0], words[1], words[2], words[3]};
        place[1] = (u32x4){words[4], words[5], words[6], words[7]};
    }
}

// Queries of heads this wide stay in shared memory, which the launch asks for: registers would not hold them.
#define DIMS_SHARED 256

INLINE SHARED u16 *shared_queries(void)
{
    return (SHARED u16 *)g_dynamic + THREAD / 32 * 16 * (DIMS_SHARED + PAD);
}

// Queries in f16, scaled: fragments of 16 x 16.
INLINE void load_queries(const struct job *job, u32 D, const struct query *queries, const float *token_scale,
                         u32 (*q)[4])
{
    UNROLL
    for (u32 r = 0; r < 2; r++) {
        const float *row = job->q + (u64)queries[r].token * job->q_stride + queries[r].head * job->cache.k_dim;
        float scale = job->scale * (token_scale ? token_scale[queries[r].token] : 1);

        UNROLL
        for (u32 d = 0; d < D; d += 8) {
            u32 at = d + THREAD % 4 * 2;
            f32x2 x = at < job->cache.k_dim ? *(const f32x2 *)(row + at) : (f32x2){0, 0};
            u32 pair = f16x2_of(x.x * scale, x.y * scale);

            if (D == DIMS_SHARED)
                *(SHARED u32 *)(shared_queries() + (THREAD % 32 / 4 + r * 8) * (D + PAD) + at) = pair;
            else
                q[d / 16][d / 8 % 2 * 2 + r] = pair;
        }
    }
}

INLINE void scores_of(u32 D, u32 KEYS, u32 (*q)[4], float (*s)[4])
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 n = 0; n < KEYS / 8; n++)
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
    UNROLL
    for (u32 d = 0; d < D / 16; d++) {
        if (D == DIMS_SHARED)
            ldmatrix4(q[d], shared_queries() + lane % 16 * (D + PAD) + d * 16 + lane / 16 * 8);
        UNROLL
        for (u32 n = 0; n < KEYS / 16; n++) {
            u32 b[4];

            ldmatrix4(b, g_k + (n * 16 + lane % 8 + lane / 16 * 8) * (D + PAD) + d * 16 + lane / 8 % 2 * 8);
            mma_f16(s[2 * n], q[d], b[0], b[1]);
            mma_f16(s[2 * n + 1], q[d], b[2], b[3]);
        }
    }
}

// What is not a plain product of query and key: caps, slopes, and keys that a query does not see.
INLINE void bend(const struct job *job, u32 KEYS, const struct query *queries, u32 first, u32 has_edge, float (*s)[4])
{
    float to_cap = 2 * LOG2_E / job->cap;

    UNROLL
    for (u32 i = 0; i < KEYS / 8 * 4; i++) {
        const struct query *query = &queries[i % 4 / 2];
        u32 key = first + i / 4 * 8 + THREAD % 4 * 2 + i % 2;
        float x = s[i / 4][i % 4];

        if (job->cap > 0)
            x = job->cap - 2 * job->cap / (1 + exp2_approx(x * to_cap)); // cap * tanh(x / cap)
        x -= query->slope * abs_f32((float)query->index - (float)key);
        s[i / 4][i % 4] = has_edge && (key < query->begin || key >= query->end) ? NEG_INFINITY : x;
    }
}

// The running softmax of a lane's two rows; `sum` is of this lane's keys alone until the end.
struct softmax {
    float max[2], sum[2];
};

INLINE void exponentials(u32 D, u32 KEYS, struct softmax *softmax, float (*s)[4], float (*acc)[4])
{
    UNROLL
    for (u32 r = 0; r < 2; r++) {
        float max = softmax->max[r], base, factor;

        UNROLL
        for (u32 n = 0; n < KEYS / 8; n++)
            max = max_f32(max, max_f32(s[n][2 * r], s[n][2 * r + 1]));
        max = max_f32(max, shuffle_xor(max, 1));
        max = max_f32(max, shuffle_xor(max, 2));
        base = max == NEG_INFINITY ? 0 : max * LOG2_E; // nothing is seen yet
        // Exactly 1 where nothing changes: tiles that only other queries of the block see leave no trace.
        factor = softmax->max[r] == max ? 1 : exp2_approx(softmax->max[r] * LOG2_E - base);
        softmax->max[r] = max;
        softmax->sum[r] *= factor;
        UNROLL
        for (u32 n = 0; n < KEYS / 8; n++) {
            s[n][2 * r] = exp2_approx(s[n][2 * r] * LOG2_E - base);
            s[n][2 * r + 1] = exp2_approx(s[n][2 * r + 1] * LOG2_E - base);
            softmax->sum[r] += s[n][2 * r] + s[n][2 * r + 1];
        }
        UNROLL
        for (u32 n = 0; n < D / 8; n++) {
            acc[n][2 * r] *= factor;
            acc[n][2 * r + 1] *= factor;
        }
    }
}

INLINE void add_values(u32 D, u32 KEYS, float (*s)[4], float (*acc)[4])
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 k = 0; k < KEYS / 16; k++) {
        u32 p[4] = {f16x2_of(s[2 * k][0], s[2 * k][1]), f16x2_of(s[2 * k][2], s[2 * k][3]),
                    f16x2_of(s[2 * k + 1][0], s[2 * k + 1][1]), f16x2_of(s[2 * k + 1][2], s[2 * k + 1][3])};

        UNROLL
        for (u32 n = 0; n < D / 16; n++) {
            u32 b[4];

            ldmatrix4_trans(b, g_v + (k * 16 + lane % 16) * (D + PAD) + n * 16 + lane / 16 * 8);
            mma_f16(acc[2 * n], p, b[0], b[1]);
            mma_f16(acc[2 * n + 1], p, b[2], b[3]);
        }
    }
}

INLINE void store_rows(const struct job *job, u32 D, const struct query *queries, struct softmax *softmax,
                       const float *sinks, float *out, u32 out_stride, float (*acc)[4])
{
    UNROLL
    for (u32 r = 0; r < 2; r++) {
        float *row = out + (u64)queries[r].token * out_stride + queries[r].head * job->cache.v_dim;
        float sum = softmax->sum[r], factor = 1;

        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (sinks) {
            float max = max_f32(softmax->max[r], sinks[queries[r].head]);

            factor = exp_f32(softmax->max[r] - max);
            sum = sum * factor + exp_f32(sinks[queries[r].head] - max);
        }
        factor = sum > 0 ? factor / sum : 0;
        UNROLL
        for (u32 n = 0; n < D / 8; n++) {
            u32 at = n * 8 + THREAD % 4 * 2;

            if (queries[r].is_real && at < job->cache.v_dim)
                *(f32x2 *)(row + at) = (f32x2){acc[n][2 * r] * factor, acc[n][2 * r + 1] * factor};
        }
    }
}

INLINE void flash(u32 kv, u32 D, u32 KEYS, const struct job *job, const float *token_scale, const float *sinks,
                  float *out, u32 out_stride)
{
    u32 lane_row = job->first_row + THREAD / 32 * 16 + THREAD % 32 / 4, q[DIMS_MAX / 16][4], tile = 0;
    struct query first = query_of(job, job->first_row), last = query_of(job, job->first_row + ROWS - 1);
    struct query queries[2] = {query_of(job, lane_row), query_of(job, lane_row + 8)};
    u32 begin = first.begin, end = last.end, start = begin / KEYS * KEYS;
    u32 bends = job->cap > 0 || job->alibi;
    struct softmax softmax = {{NEG_INFINITY, NEG_INFINITY}, {0, 0}};
    float acc[DIMS_MAX / 8][4], s[KEYS_MAX / 8][4];

    UNROLL
    for (u32 i = 0; i < D / 8; i++)
        acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;
    find_rows(job, KEYS, start, begin, end, g_rows[0]);
    load_queries(job, D, queries, token_scale, q);
    block_sync();
    load_tile(kv, D, KEYS, job->cache.k_dim, 0, g_rows[0], g_k);
    copy_commit();
    for (u32 at = start; at < end; at += KEYS, tile ^= 1) {
        u32 has_edge = at < last.begin || at + KEYS > first.end;

        copy_wait(0);
        block_sync(); // keys are there; nobody reads the values of the tile before
        load_tile(kv, D, KEYS, job->cache.v_dim, 1, g_rows[tile], g_v);
        copy_commit();
        find_rows(job, KEYS, at + KEYS, begin, end, g_rows[tile ^ 1]);
        scores_of(D, KEYS, q, s);
        if (bends || has_edge)
            bend(job, KEYS, queries, at, has_edge, s);
        exponentials(D, KEYS, &softmax, s, acc);
        copy_wait(0);
        block_sync(); // values are there; nobody reads the keys any more
        if (at + KEYS < end)
            load_tile(kv, D, KEYS, job->cache.k_dim, 0, g_rows[tile ^ 1], g_k);
        copy_commit();
        add_values(D, KEYS, s, acc);
    }
    store_rows(job, D, queries, &softmax, sinks, out, out_stride, acc);
}

// Grid: tiles of queries of all sequences in turn, some more than there are; KV heads. seq_first: the first token of
// each sequence of the step, and one more. Rows of q and out have even strides.
#define DEFINE(name, kv, D, KEYS) \
    KERNEL name(u8 *data, u64 block_bytes, u64 layer_at, u64 head_bytes, u32 block_tokens, const float *q, \
                u32 q_stride, float *out, u32 out_stride, u32 k_dim, u32 v_dim, u32 per_kv, float scale, float cap, \
                const float *alibi, u32 window, u32 chunk, u32 bidirectional, const float *token_scale, \
                const float *sinks, u32 n_seqs, const u32 *seq_first, const u32 *seq_total, const u32 *table_at, \
                const i32 *tables) \
    { \
        struct job job = {.cache = {data, block_bytes, layer_at, head_bytes, block_tokens, kv, k_dim, v_dim}, \
                          .mask = {window, chunk, bidirectional}, .alibi = alibi, .scale = scale, .cap = cap, \
                          .q_stride = q_stride, .per_kv = per_kv, .kv_head = BLOCK_Y}; \
        u32 tile = BLOCK_X, seq = 0, from = 0; \
                                                                                                                       \
        for (; seq < n_seqs; seq++) { \
            u32 n_tiles; \
                                                                                                                       \
            from = seq_first[seq]; \
            job.n_tokens = seq_first[seq + 1] - from; \
            n_tiles = (job.n_tokens * per_kv + ROWS - 1) / ROWS; \
            if (tile < n_tiles) { \
                tile = n_tiles - 1 - tile; /* those that see most begin first */ \
                break; \
            } \
            tile -= n_tiles; \
        } \
        if (seq == n_seqs) \
            return; \
        job.total = seq_total[seq]; \
        job.n_past = job.total - job.n_tokens; \
        job.table = tables + table_at[seq]; \
        job.first_row = tile * ROWS; \
        job.q = q + (u64)from * q_stride; \
        flash(kv, D, KEYS, &job, token_scale ? token_scale + from : token_scale, sinks, \
              out + (u64)from * out_stride, out_stride); \
    }

// A file of kernels for each type of cache, so that a program loads one of them.
#define DEFINE_OF(kv, name) \
    DEFINE(flash_##name##_64, kv, 64, 64) \
    DEFINE(flash_##name##_96, kv, 96, 64) \
    DEFINE(flash_##name##_128, kv, 128, 64) \
    DEFINE(flash_##name##_256, kv, 256, 32)
