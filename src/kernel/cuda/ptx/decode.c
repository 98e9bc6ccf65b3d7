// Attention of tokens that each end a sequence of their own: the decode step. One kernel normalises and rotates the
// heads, appends to the cache, attends, and joins what the splits of the keys found.
//
// A block: one token, up to 8 query heads of one KV head, one split of the keys, which its warps take in tiles of 16.
// The limit is the memory: keys and values go from global memory straight into the fragments of mma.m16n8k16, 16 bytes
// a lane. The order of dimensions within a product is free as long as both sides have the same one, so that a lane's 16
// bytes are 8 dimensions of one key, four of them (two products) at a time:
//
//   scores = q k^T     a: 8 heads (rows 8 to 15 are zero) x 16 dimensions, b: 16 dimensions x 8 keys
//   out^T = v^T p^T    a: 16 dimensions x 16 keys, b: 16 keys x 8 heads, which is how the scores lie already
//
// What is in the cache before this step is asked for before the kernel before this one has ended; the token's own key
// and value, which are not, come out of shared memory.
//
// Neighbouring splits are a cluster, where the tier has clusters and the launch asks for them: their blocks put what
// they found into each other's shared memory, and each finishes its share of the dimensions. Between clusters, the last
// one to arrive joins what all of them left in global memory. Without clusters each block is one by itself.

#include "kernel/cuda/attend_job.h"
#include "kernel/cuda/ptx/kv.h"
#include "kernel/cuda/ptx/mask.h"

#define WARPS (EW_ATTEND_THREADS / 32)
#define HEADS EW_ATTEND_HEADS
#define TILE EW_ATTEND_TILE
#define DIMS_MAX 256
#define TILES_AHEAD 1     // of a warp, in the second cache
#define PREFETCH_BYTES 32 // that one instruction of a lane brings

// ---- shared memory ------------------------------------------------------------------------------
//
// All of it is what the launch asks for (ew_attend_shared_bytes): other blocks of the cluster write into it.

struct notes {
    u8 own[2][DIMS_MAX * 2]; // the token's key and value as the cache has them, and their scales
    u16 own_scale[2];
    u32 n_parts, is_last;
    f32x2 ends[WARPS][HEADS];             // maxima and sums of what each warp found
    f32x2 came[EW_ATTEND_CLUSTER][HEADS]; // of each block of the cluster
};
#define NOTES ((SHARED struct notes *)g_dynamic)
_Static_assert(sizeof(struct notes) <= EW_ATTEND_NOTES_BYTES, "the notes have outgrown their place");

// Dimensions that a kernel has room for.
struct spans {
    u32 k, v; // of 32, of 64
};

INLINE SHARED float *floats_at(u32 at) { return (SHARED float *)(g_dynamic + EW_ATTEND_NOTES_BYTES) + at; }

INLINE SHARED float *query_row(struct spans n, u32 h) { return floats_at(h * n.k * 32); }

INLINE SHARED float *found_row(struct spans n, const struct ew_attend_job *job, u32 warp, u32 h)
{
    return floats_at(job->per_run * n.k * 32 + (warp * job->per_run + h) * (n.v * 64 + EW_ATTEND_PAD));
}

// What blocks of the cluster found of this one's share of the dimensions.
INLINE SHARED float *box_at(struct spans n, const struct ew_attend_job *job)
{
    return found_row(n, job, WARPS, 0);
}

// Queries of wide heads, as fragments.
INLINE SHARED u32x4 *wide_at(struct spans n, const struct ew_attend_job *job)
{
    return (SHARED u32x4 *)(box_at(n, job) + job->per_run * n.v * 64);
}

// This block's place.
struct place {
    u32 token, run, kv_head, first_head, n_heads;
    u32 index, first, begin, end; // first: key that the token sees; begin, end: of the split
    u32 n_parts;                  // a cluster's splits; parts from n_parts on have nothing to do
    const i32 *table;
};

INLINE u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }

INLINE struct place find_place(const struct ew_attend_job *job)
{
    struct mask mask = {job->window, job->chunk, 0};
    struct place p = {.token = BLOCK_X, .run = BLOCK_Y, .kv_head = BLOCK_Y / job->runs};
    u32 in_kv = (p.run - p.kv_head * job->runs) * job->per_run, begin, end, n_tiles, n_blocks, share;

    p.first_head = p.kv_head * job->per_kv + in_kv;
    p.n_heads = min_u32(job->per_kv - in_kv, job->per_run);
    p.index = ((const u32 *)job->index)[p.token];
    p.table = (const i32 *)job->tables + ((const u32 *)job->table_at)[p.token];
    visible(&mask, p.index, p.index + 1, &begin, &end);
    p.first = begin;
    begin = begin / TILE * TILE; // tiles do not cross blocks of the cache; keys before the first one are masked
    n_tiles = divide_up(end - begin, TILE);
    n_blocks = min_u32(divide_up(n_tiles, job->tiles_near * N_CLUSTER) * N_CLUSTER, N_BLOCKS_Z);
    share = divide_up(n_tiles, n_blocks);
    p.n_parts = divide_up(n_tiles, share * N_CLUSTER);
    p.begin = min_u32(begin + BLOCK_Z * share * TILE, end);
    p.end = min_u32(p.begin + share * TILE, end);
    return p;
}

// The token's own key is this block's to append.
INLINE u32 owns(const struct ew_attend_job *job, const struct place *p)
{
    return job->k && p->begin < p->end && p->end == p->index + 1;
}

// ---- the cache ----------------------------------------------------------------------------------

// Where a tile is: what the block of the cache has of this KV head, and the tile's first key in it.
struct spot {
    u8 *base;
    u32 first;
};

// What is in the cache's table for a tile (the last one's for those behind it), for which there is time until it is
// needed.
INLINE i32 ask_block(const struct ew_attend_job *job, const struct place *p, u32 key)
{
    return p->table[(u32)(min_u32(key, p->end - 1) / TILE * job->block_inverse >> 32)];
}

INLINE struct spot spot_of(const struct ew_attend_job *job, const struct place *p, u32 key, i32 block)
{
    u32 in_table = (u32)(key / TILE * job->block_inverse >> 32);
    u8 *base = (u8 *)job->data + job->layer_at + p->kv_head * job->head_bytes;

    return (struct spot){base + (u64)(u32)block * job->block_bytes, key - in_table * job->block_tokens};
}

INLINE u32 row_bytes(u32 kv, const struct ew_attend_job *job, u32 is_value)
{
    return (is_value ? job->v_dim : job->k_dim) * kv_bytes(kv);
}

// Keys, then values, then a scale of each key, then of each value.
INLINE u8 *rows_at(u32 kv, const struct ew_attend_job *job, const struct spot *at, u32 is_value)
{
    return at->base + (is_value ? job->block_tokens * row_bytes(kv, job, 0) : 0) +
           at->first * row_bytes(kv, job, is_value);
}

INLINE u16 *scales_at(u32 kv, const struct ew_attend_job *job, const struct spot *at, u32 is_value)
{
    u8 *scales = at->base + job->block_tokens * (row_bytes(kv, job, 0) + row_bytes(kv, job, 1));

    return (u16 *)scales + (is_value ? job->block_tokens : 0) + at->first;
}

// ---- keys and values as fragments ----------------------------------------------------------------

// 8 elements of a row of the cache as they lie: what is widened waits for the memory, and that is not done here, where
// tiles are asked for ahead of time.
INLINE u32x4 load_elements(u32 kv, const u8 *row, u32 first)
{
    u32x2 bytes;

    if (kv == KV_F16)
        return *(const u32x4 *)(row + first * 2);
    bytes = *(const u32x2 *)(row + first);
    return (u32x4){bytes.x, bytes.y, 0, 0};
}

// Pair i of these elements in f16.
INLINE u32 pair_of(u32 kv, u32x4 elements, u32 i)
{
    u32 word = i < 2 ? elements.x : elements.y;

    if (kv == KV_F16)
        return elements[i];
    if (kv == KV_F8)
        return f16x2_of_e4m3(word >> i % 2 * 16);
    word ^= 0x80808080; // 128 more, without a sign; 1152 more in f16
    return add_f16x2(i % 2 ? high_bytes(word) : low_bytes(word), 0xE480E480);
}

// What a lane has of a tile: of the keys, dimensions 8 c to 8 c + 7 of every 32 of keys g and g + 8; of the values,
// dimensions 8 g to 8 g + 7 of every 64 of keys 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 (g = lane / 4, c = lane % 4). Scales
// are of the latter keys, too, whose scores the lane has.
struct keys {
    u32x4 d[2][DIMS_MAX / 32];
    u32 scales[2]; // two f16 each
};

struct values {
    u32x4 d[4][2];
    u32 scales[2];
};

INLINE u32 key_of(u32 i) { return THREAD % 4 * 2 + i % 2 + i / 2 * 8; }

// Loads stand under no condition: behind a branch, a compiler waits for each before it asks for the next. What is not
// there is something else that is: dimensions beyond the last are the last 8 (queries have zeros there, and of values
// they are nobody's), keys beyond the last are the last, whose scores are 0. Memory that nobody wrote may hold NaN.
INLINE u32 element_at(u32 d, u32 dim) { return min_u32(d, dim - 8); }

// Two at a time: halves of a register would be put together, which waits for the memory. Keys 2 c and 2 c + 1 are
// neighbours.
INLINE void load_scales(u32 kv, const struct ew_attend_job *job, const struct spot *at, u32 is_value, u32 *scales)
{
    const u32 *pairs = (const u32 *)scales_at(kv, job, at, is_value) + THREAD % 4;

    if (!kv_has_scales(kv))
        return;
    scales[0] = pairs[0];
    scales[1] = pairs[4];
}

// Of key_of(i).
INLINE float scale_of(u32 kv, const u32 *scales, u32 i)
{
    return !kv_has_scales(kv) ? 1 : i % 2 ? high_f16(scales[i / 2]) : low_f16(scales[i / 2]);
}

// The token's own, in place of key_of(i)'s.
INLINE void take_own_scale(u32 is_value, u32 i, u32 *scales)
{
    u32 own = NOTES->own_scale[is_value];

    scales[i / 2] = i % 2 ? (scales[i / 2] & 0xFFFF) | own << 16 : (scales[i / 2] & 0xFFFF0000) | own;
}

INLINE void load_keys(u32 kv, u32 spans, const struct ew_attend_job *job, const struct spot *at, struct keys *keys)
{
    u32 lane = THREAD % 32;
    const u8 *row = rows_at(kv, job, at, 0) + lane / 4 * row_bytes(kv, job, 0);

    UNROLL
    for (u32 s = 0; s < spans; s++) {
        UNROLL
        for (u32 i = 0; i < 2; i++)
            keys->d[i][s] = load_elements(kv, row + i * 8 * row_bytes(kv, job, 0),
                                          element_at(s * 32 + lane % 4 * 8, job->k_dim));
    }
    load_scales(kv, job, at, 0, keys->scales);
}

// Two spans of 64 dimensions at most, from the first one on, of so many keys.
INLINE void load_values(u32 kv, u32 first_span, u32 spans, const struct ew_attend_job *job, const struct spot *at,
                        u32 n_keys, struct values *values)
{
    const u8 *rows = rows_at(kv, job, at, 1);

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 key = min_u32(key_of(i), n_keys - 1);

        UNROLL
        for (u32 s = 0; s < spans; s++)
            values->d[i][s] = load_elements(kv, rows + key * row_bytes(kv, job, 1),
                                            element_at((first_span + s) * 64 + THREAD % 32 / 4 * 8, job->v_dim));
    }
    load_scales(kv, job, at, 1, values->scales);
}

// Into the second cache.
INLINE void prefetch_rows(const u8 *rows, u32 bytes)
{
    ROLL
    for (u32 at = THREAD % 32 * PREFETCH_BYTES; at < bytes; at += 32 * PREFETCH_BYTES)
        prefetch(rows + at);
}

INLINE void prefetch_tile(u32 kv, const struct ew_attend_job *job, const struct spot *at)
{
    u32 lane = THREAD % 32;

    prefetch_rows(rows_at(kv, job, at, 0), TILE * row_bytes(kv, job, 0));
    prefetch_rows(rows_at(kv, job, at, 1), TILE * row_bytes(kv, job, 1));
    if (kv_has_scales(kv) && lane < 2)
        prefetch(scales_at(kv, job, at, lane));
}

// So many of this warp's tiles.
INLINE void prefetch_tiles(u32 kv, const struct ew_attend_job *job, const struct place *p, u32 key, u32 count)
{
    ROLL
    for (; count && key < p->end; count--, key += WARPS * TILE) {
        struct spot at = spot_of(job, p, key, ask_block(job, p, key));

        prefetch_tile(kv, job, &at);
    }
}

// The token's own key and value, which the cache did not have yet when the tile was asked for, and which stand for the
// keys beyond.
INLINE void take_own_key(u32 kv, u32 spans, const struct ew_attend_job *job, u32 row, struct keys *keys)
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 i = 0; i < 2; i++) {
        UNROLL
        for (u32 s = 0; s < spans; s++)
            if (lane / 4 + i * 8 == row)
                keys->d[i][s] = load_elements(kv, (const u8 *)NOTES->own[0],
                                              element_at(s * 32 + lane % 4 * 8, job->k_dim));
    }
    UNROLL
    for (u32 i = 0; i < 4; i++)
        if (kv_has_scales(kv) && key_of(i) == row)
            take_own_scale(0, i, keys->scales);
}

INLINE void take_own_value(u32 kv, u32 first_span, u32 spans, const struct ew_attend_job *job, u32 row,
                           struct values *values)
{
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        UNROLL
        for (u32 s = 0; s < spans; s++)
            if (key_of(i) >= row)
                values->d[i][s] = load_elements(kv, (const u8 *)NOTES->own[1],
                                                element_at((first_span + s) * 64 + THREAD % 32 / 4 * 8, job->v_dim));
        if (kv_has_scales(kv) && key_of(i) >= row)
            take_own_scale(1, i, values->scales);
    }
}

// ---- what stands before -------------------------------------------------------------------------
//
// Rows of heads, a warp's one after the other: queries, then the key and the value that are to be appended. The next
// one is asked for before this one is used.

#define LANE_DIMS (DIMS_MAX / 32)

struct row {
    float x[LANE_DIMS]; // elements lane, lane + 32 and so on
};

struct turns {
    float cosine[LANE_DIMS / 2], sine[LANE_DIMS / 2];
};

// Elements beyond the last are the last.
INLINE void load_row(u32 spans, const float *x, u32 dim, struct row *r)
{
    UNROLL
    for (u32 j = 0; j < spans; j++)
        r->x[j] = x[min_u32(j * 32 + THREAD % 32, dim - 1)];
}

INLINE void load_turns(u32 spans, const struct ew_attend_job *job, u32 token, struct turns *t)
{
    const float *table = (const float *)job->rope + (u64)token * job->n_dims;
    u32 half = job->n_dims / 2;

    if (!job->rope)
        return;
    UNROLL
    for (u32 j = 0; j < (spans + 1) / 2; j++) {
        u32 i = min_u32(j * 32 + THREAD % 32, half - 1);

        t->cosine[j] = table[i];
        t->sine[j] = table[half + i];
    }
}

INLINE void normalise(u32 spans, struct row *r, const struct row *weight, u32 dim, float eps, float offset)
{
    float sum = 0, factor;

    UNROLL
    for (u32 j = 0; j < spans; j++)
        sum += r->x[j] * r->x[j];
    factor = rsqrt_f32(warp_sum(sum) / (float)dim + eps);
    UNROLL
    for (u32 j = 0; j < spans; j++)
        r->x[j] *= factor * (weight->x[j] + offset);
}

// A head's row in shared memory, by a warp.
INLINE void rotate(u32 spans, const struct ew_attend_job *job, SHARED float *row, const struct turns *t)
{
    u32 lane = THREAD % 32, half = job->n_dims / 2;

    UNROLL
    for (u32 j = 0; j < (spans + 1) / 2; j++) {
        u32 i = j * 32 + lane;
        SHARED float *a = row + job->rope_first + (job->rope_pairs ? 2 * i : i);
        SHARED float *b = a + (job->rope_pairs ? 1 : half);

        if (i < half) {
            float old = *a;

            *a = old * t->cosine[j] - *b * t->sine[j];
            *b = *b * t->cosine[j] + old * t->sine[j];
        }
    }
    warp_sync();
}

// 8 bytes a lane: rows of the cache are multiples of that.
INLINE void copy_row(u8 *to, SHARED const u8 *from, u32 bytes)
{
    ROLL
    for (u32 i = THREAD % 32 * 8; i < bytes; i += 32 * 8)
        *(u32x2 *)(to + i) = *(SHARED const u32x2 *)(from + i);
}

// A row into NOTES as the cache has it, for this block, and into the cache. Runs of the same KV head write the same
// bytes.
INLINE void append(u32 kv, const struct ew_attend_job *job, const struct place *p,
                   SHARED const float *row, u32 is_value)
{
    struct spot at = spot_of(job, p, p->index, p->table[(u32)(p->index / TILE * job->block_inverse >> 32)]);
    SHARED u8 *own = NOTES->own[is_value];
    u32 dim = is_value ? job->v_dim : job->k_dim;

    kv_put_row(kv, (u8 *)own, (u16 *)&NOTES->own_scale[is_value], (const float *)row, dim);
    warp_sync();
    copy_row(rows_at(kv, job, &at, is_value), own, dim * kv_bytes(kv));
    if (kv_has_scales(kv) && THREAD % 32 == 0)
        *scales_at(kv, job, &at, is_value) = NOTES->own_scale[is_value];
}

INLINE void load_head(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 i, struct row *r)
{
    const float *q = (const float *)job->q + (u64)p->token * job->q_stride + (p->first_head + i) * job->k_dim;
    const float *k = (const float *)job->k + (u64)p->token * job->k_stride + p->kv_head * job->k_dim;
    const float *v = (const float *)job->v + (u64)p->token * job->v_stride + p->kv_head * job->v_dim;

    load_row(max_u32(n.k, n.v * 2), i < p->n_heads ? q : i == p->n_heads ? k : v,
             i <= p->n_heads ? job->k_dim : job->v_dim, r);
}

// Row i is here: to where it goes.
INLINE void put_head(u32 kv, struct spans n, const struct ew_attend_job *job, const struct place *p, u32 i,
                     struct row *r, const struct row *norm, const struct turns *t, float scale)
{
    u32 is_query = i < p->n_heads, is_value = i > p->n_heads, dim = is_value ? job->v_dim : job->k_dim;
    SHARED float *to = is_query ? query_row(n, i) : found_row(n, job, is_value, 0);

    UNROLL
    for (u32 j = 0; j < max_u32(n.k, n.v * 2); j++)
        r->x[j] = j * 32 + THREAD % 32 < dim ? r->x[j] : 0;
    if (is_query ? job->q_norm : !is_value && job->k_norm)
        normalise(n.k, r, norm, dim, is_query ? job->q_eps : job->k_eps,
                  is_query ? job->q_offset : job->k_offset);
    if (is_query) { // rotation is linear
        UNROLL
        for (u32 j = 0; j < n.k; j++)
            r->x[j] *= scale;
    }
    UNROLL
    for (u32 j = 0; j < max_u32(n.k, n.v * 2); j++)
        if (j < n.k || !is_query)
            to[j * 32 + THREAD % 32] = r->x[j];
    warp_sync();
    if (job->rope && !is_value)
        rotate(n.k, job, to, t);
    if (!is_query)
        append(kv, job, p, to, is_value);
}

INLINE void stage(u32 kv, struct spans n, const struct ew_attend_job *job, const struct place *p,
                  const struct row *q_norm)
{
    u32 n_rows = p->n_heads + (owns(job, p) ? 2 : 0);
    float scale = job->scale * (job->token_scale ? ((const float *)job->token_scale)[p->token] : 1);
    struct row next;
    struct turns turns;

    if ((u32)THREAD / 32 < n_rows)
        load_head(n, job, p, THREAD / 32, &next);
    load_turns(n.k, job, p->token, &turns);
    ROLL
    for (u32 i = THREAD / 32; i < n_rows; i += WARPS) {
        struct row row = next, norm = *q_norm;

        if (i + WARPS < n_rows)
            load_head(n, job, p, i + WARPS, &next);
        if (job->k_norm && i == p->n_heads)
            load_row(n.k, (const float *)job->k_norm, job->k_dim, &norm);
        put_head(kv, n, job, p, i, &row, &norm, &turns, scale);
    }
}

// ---- scores, softmax, values ---------------------------------------------------------------------

struct found { // by a warp; max and sum of head g, the sum of this lane's keys alone
    float max, sum, acc[DIMS_MAX / 64][4][4]; // of 16 dimensions: 8 g + 2 t of heads 2 c and 2 c + 1, 8 g + 2 t + 1
};

INLINE u32 query_pair(SHARED const float *q)
{
    return f16x2_of(max_f32(min_f32(q[0], 65504), -65504), max_f32(min_f32(q[1], 65504), -65504));
}

INLINE u32x4 query_at(struct spans n, u32 n_heads, u32 span)
{
    u32 h = THREAD % 32 / 4;
    SHARED const float *q = query_row(n, h) + span * 32 + THREAD % 4 * 8;

    if (h >= n_heads)
        return (u32x4){0, 0, 0, 0};
    return (u32x4){query_pair(q), query_pair(q + 2), query_pair(q + 4), query_pair(q + 6)};
}

// Wide heads have no registers left for the queries: every warp has the same ones, in shared memory.
INLINE void load_queries(struct spans n, const struct ew_attend_job *job, u32 n_heads, u32x4 *q)
{
    UNROLL
    for (u32 s = 0; s < n.k && n.k <= 4; s++)
        q[s] = query_at(n, n_heads, s);
    for (u32 s = THREAD / 32; s < n.k && n.k > 4; s += WARPS)
        wide_at(n, job)[s * 32 + THREAD % 32] = query_at(n, n_heads, s);
    if (n.k > 4)
        block_sync();
}

INLINE void find_scores(u32 kv, u32 spans, const u32x4 *q, SHARED const u32x4 *wide, const struct keys *keys,
                        float *score)
{
    float c[2][4] = {{0}};

    UNROLL
    for (u32 s = 0; s < spans; s++) {
        u32x4 words = spans > 4 ? wide[s * 32 + THREAD % 32] : q[s];
        u32 low[4] = {words.x, 0, words.y, 0}, high[4] = {words.z, 0, words.w, 0};

        UNROLL
        for (u32 i = 0; i < 2; i++) {
            u32x4 key = keys->d[i][s];

            mma_f16(c[i], low, pair_of(kv, key, 0), pair_of(kv, key, 1));
            mma_f16(c[i], high, pair_of(kv, key, 2), pair_of(kv, key, 3));
        }
    }
    UNROLL
    for (u32 i = 0; i < 4; i++)
        score[i] = c[i / 2][i % 2];
}

// Of what is at most 0, down to -infinity; of NaN, the difference of two infinities, 0. No branches.
INLINE float exp_below(float x)
{
    float least = -1000, n, low;

    x = x > least ? x : least;
    n = x * 1.44269504f;
    low = __builtin_fmaf(x, 1.44269504f, -n) + x * 1.92596299e-8f;
    return exp2_approx(n) * (1 + low * 0.69314718f);
}

// Scores become what the softmax's sum consists of; *factor is what the sums so far are worth now.
INLINE void soften(u32 kv, const struct ew_attend_job *job, const struct place *p, u32 tile_at, const u32 *scales,
                   float *score, struct found *found, float *factor)
{
    u32 head = p->first_head + min_u32(THREAD % 32 / 4, p->n_heads - 1);
    float top = NEG_INFINITY;

    UNROLL
    for (u32 i = 0; i < 4; i++)
        score[i] *= scale_of(kv, scales, i);
    if (job->cap > 0) {
        UNROLL
        for (u32 i = 0; i < 4; i++)
            score[i] = job->cap * tanh_f32(score[i] / job->cap);
    }
    if (job->alibi) {
        float slope = ((const float *)job->alibi)[head];

        UNROLL
        for (u32 i = 0; i < 4; i++)
            score[i] -= slope * (float)(p->index - tile_at - key_of(i));
    }
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 key = tile_at + key_of(i);

        score[i] = key >= p->first && key < p->end ? score[i] : NEG_INFINITY;
        top = max_f32(top, score[i]);
    }
    top = max_f32(top, shuffle_xor(top, 1));
    top = max_f32(found->max, max_f32(top, shuffle_xor(top, 2)));
    *factor = exp_below(found->max - top);
    found->max = top;
    found->sum *= *factor;
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        score[i] = exp_below(score[i] - top);
        found->sum += score[i];
    }
}

INLINE u32 low_halves(u32 a, u32 b) { return (a & 0xFFFF) | b << 16; }
INLINE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xFFFF0000); }

INLINE void add_values(u32 kv, u32 first_span, u32 spans, const struct values *v, const float *p, float factor,
                       struct found *found)
{
    float scaled[4];
    u32 b0, b1;

    UNROLL
    for (u32 i = 0; i < 4; i++) // scales of keys beyond the last may be anything
        scaled[i] = p[i] > 0 ? p[i] * scale_of(kv, v->scales, i) : 0;
    b0 = f16x2_of(scaled[0], scaled[1]);
    b1 = f16x2_of(scaled[2], scaled[3]);
    if (warp_ballot(factor != 1)) {
        float f0 = f32_of_bits(shuffle_from(bits_of_f32(factor), THREAD % 4 * 8));
        float f1 = f32_of_bits(shuffle_from(bits_of_f32(factor), THREAD % 4 * 8 + 4));

        UNROLL
        for (u32 i = 0; i < spans * 4; i++) {
            float *acc = found->acc[first_span + i / 4][i % 4];

            acc[0] *= f0;
            acc[1] *= f1;
            acc[2] *= f0;
            acc[3] *= f1;
        }
    }
    UNROLL
    for (u32 s = 0; s < spans; s++) {
        UNROLL
        for (u32 t = 0; t < 4; t++) {
            u32 pair[4], a[4];

            UNROLL
            for (u32 i = 0; i < 4; i++)
                pair[i] = pair_of(kv, v->d[i][s], t);
            a[0] = low_halves(pair[0], pair[1]);
            a[1] = high_halves(pair[0], pair[1]);
            a[2] = low_halves(pair[2], pair[3]);
            a[3] = high_halves(pair[2], pair[3]);

            mma_f16(found->acc[first_span + s][t], a, b0, b1);
        }
    }
}

// ---- joining ------------------------------------------------------------------------------------

INLINE float weight_of(float max, float top) { return exp_below(max - top); }

// A warp's sums into shared memory: 8 dimensions of every 64 of two heads are a lane's.
INLINE void share_found(struct spans n, const struct ew_attend_job *job, u32 n_heads, struct found *found)
{
    u32 warp = THREAD / 32, g = THREAD % 32 / 4, c = THREAD % 4;

    found->sum += shuffle_xor(found->sum, 1);
    found->sum += shuffle_xor(found->sum, 2);
    if (c == 0)
        NOTES->ends[warp][g] = (f32x2){found->max, found->sum};
    UNROLL
    for (u32 e = 0; e < 2; e++) {
        SHARED float *row = found_row(n, job, warp, c * 2 + e) + g * 8;

        if (c * 2 + e >= n_heads)
            continue;
        UNROLL
        for (u32 i = 0; i < n.v * 2; i++) {
            float (*acc)[4] = &found->acc[i / 2][i % 2 * 2];

            *(SHARED f32x4 *)(row + i / 2 * 64 + i % 2 * 4) =
                (f32x4){acc[0][e], acc[0][2 + e], acc[1][e], acc[1][2 + e]};
        }
    }
}

// What a head's sums in several places are worth beside each other, and beside a sink: place i has its maximum and sum
// in ends[i * HEADS].
struct worth {
    float top, total, of[EW_ATTEND_CLUSTER];
};

INLINE struct worth weigh(SHARED const f32x2 *ends, u32 count, u32 most, float sink)
{
    struct worth w = {.top = sink};
    f32x2 end[EW_ATTEND_CLUSTER];

    UNROLL
    for (u32 i = 0; i < most; i++) {
        end[i] = ends[(i < count ? i : 0) * HEADS];
        end[i].x = i < count ? end[i].x : NEG_INFINITY;
        end[i].y = i < count ? end[i].y : 0; // what nobody wrote may be NaN
        w.top = max_f32(w.top, end[i].x);
    }
    w.total = weight_of(sink, w.top);
    UNROLL
    for (u32 i = 0; i < most; i++) {
        w.of[i] = weight_of(end[i].x, w.top);
        w.total += end[i].y * w.of[i];
    }
    return w;
}

// Dimensions of all heads, a kernel's room for each, are dealt to the cluster's blocks 8 at a time: word `at` of a
// block's share is one of these.
struct word {
    u32 head, dim;
};

INLINE struct word word_of(struct spans n, u32 rank, u32 at)
{
    u32 i = (at / 8 * N_CLUSTER + rank) * 8 + at % 8;

    return (struct word){i / (n.v * 64), i % (n.v * 64)};
}

INLINE u32 share_words(struct spans n, const struct ew_attend_job *job) { return job->per_run * n.v * 64 / N_CLUSTER; }

// What the block's warps found, to the blocks that finish it.
INLINE void give_found(struct spans n, const struct ew_attend_job *job, u32 n_heads, u32 has_keys)
{
    u32 rank = BLOCK_Z % N_CLUSTER, share = share_words(n, job);

    ROLL
    for (u32 i = THREAD * 4; i < n_heads * n.v * 64; i += EW_ATTEND_THREADS * 4) {
        u32 h = i / (n.v * 64), d = i % (n.v * 64);
        struct worth worth = weigh(&NOTES->ends[0][h], has_keys ? WARPS : 0, WARPS, NEG_INFINITY);
        f32x4 value = {0, 0, 0, 0};

        if (d / 4 < N_CLUSTER)
            cluster_put_two(&NOTES->came[rank][h], d / 4, (f32x2){worth.top, worth.total});
        if (!has_keys)
            continue;
        UNROLL
        for (u32 w = 0; w < WARPS; w++)
            value += *(SHARED const f32x4 *)(found_row(n, job, w, h) + d) * worth.of[w];
        cluster_put_four(box_at(n, job) + rank * share + i / 8 / N_CLUSTER * 8 + i % 8, i / 8 % N_CLUSTER, value);
    }
}

INLINE float *result_at(const struct ew_attend_job *job, const struct place *p, struct word word)
{
    return (float *)job->out + (u64)p->token * job->out_stride + (p->first_head + word.head) * job->v_dim + word.dim;
}

INLINE float sink_of(const struct ew_attend_job *job, const struct place *p, u32 h)
{
    return job->sinks ? ((const float *)job->sinks)[p->first_head + h] : NEG_INFINITY;
}

// A block's share of what a cluster found: values, then maxima and sums of the heads.
INLINE float *part_at(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 part)
{
    u64 run = (u64)p->token * N_BLOCKS_Y + p->run, share = share_words(n, job) + HEADS * 2;

    return (float *)job->partial + ((run * (N_BLOCKS_Z / N_CLUSTER) + part) * N_CLUSTER + BLOCK_Z % N_CLUSTER) * share;
}

// Four words that block i of the cluster gave, where they are worth something.
INLINE f32x4 came_of(struct spans n, const struct ew_attend_job *job, u32 i, u32 at, float worth)
{
    f32x4 v = *(SHARED const f32x4 *)(box_at(n, job) + i % N_CLUSTER * share_words(n, job) + at) * worth;

    return (f32x4){worth > 0 ? v.x : 0, worth > 0 ? v.y : 0, worth > 0 ? v.z : 0, worth > 0 ? v.w : 0};
}

// This block's share, over the blocks of its cluster: the result where there is one part, else a part.
INLINE void finish(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 is_result)
{
    u32 share = share_words(n, job);
    float *part = part_at(n, job, p, BLOCK_Z / N_CLUSTER);

    ROLL
    for (u32 at = THREAD * 4; at < share; at += EW_ATTEND_THREADS * 4) {
        struct word word = word_of(n, BLOCK_Z % N_CLUSTER, at);
        struct worth worth;
        f32x4 value = {0, 0, 0, 0};

        if (word.head >= p->n_heads || word.dim >= job->v_dim)
            continue;
        worth = weigh(&NOTES->came[0][word.head], N_CLUSTER, EW_ATTEND_CLUSTER,
                      is_result ? sink_of(job, p, word.head) : NEG_INFINITY);
        UNROLL
        for (u32 i = 0; i < EW_ATTEND_CLUSTER; i++)
            value += came_of(n, job, i, at, worth.of[i]);
        if (is_result)
            *(f32x4 *)result_at(job, p, word) = value * (worth.total > 0 ? 1 / worth.total : 0);
        else
            *(f32x4 *)(part + at) = value;
    }
    if (!is_result && (u32)THREAD < p->n_heads) {
        struct worth worth = weigh(&NOTES->came[0][THREAD], N_CLUSTER, EW_ATTEND_CLUSTER, NEG_INFINITY);

        *(f32x2 *)(part + share + THREAD * 2) = (f32x2){worth.top, worth.total};
    }
}

// Whether this block is the last of its run and share; the counter is zero again then.
INLINE u32 is_last(const struct ew_attend_job *job, const struct place *p)
{
    u32 *arrived = (u32 *)job->arrived + (p->token * N_BLOCKS_Y + p->run) * N_CLUSTER + BLOCK_Z % N_CLUSTER;

    block_sync();
    if (THREAD == 0) {
        NOTES->is_last = atomic_add_ordered(arrived, 1) == NOTES->n_parts - 1;
        if (NOTES->is_last)
            *arrived = 0;
    }
    block_sync();
    return NOTES->is_last;
}

#define WARP_HEADS (HEADS / WARPS)
#define PARTS_MAX 64 // EW_CUDA_SPLITS_MAX
#define PARTS_AT_ONCE 8u

// What each part of a head is worth, and 1 / total behind them; where the warps' sums were.
INLINE SHARED float *worth_row(struct spans n, const struct ew_attend_job *job, u32 h)
{
    return found_row(n, job, 0, 0) + h * (PARTS_MAX + 4);
}

// A warp a head.
INLINE void weigh_parts(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 n_parts)
{
    u32 lane = THREAD % 32;
    f32x2 ends[WARP_HEADS][PARTS_MAX / 32];

    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++) {
        UNROLL
        for (u32 j = 0; j < PARTS_MAX / 32; j++) {
            u32 h = min_u32(i * WARPS + THREAD / 32, p->n_heads - 1), part = min_u32(j * 32 + lane, n_parts - 1);

            ends[i][j] = *(const f32x2 *)(part_at(n, job, p, part) + share_words(n, job) + 2 * h);
            ends[i][j].x = j * 32 + lane < n_parts ? ends[i][j].x : NEG_INFINITY;
        }
    }
    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++) {
        u32 h = i * WARPS + THREAD / 32;
        float sink = h < p->n_heads ? sink_of(job, p, h) : NEG_INFINITY;
        float top = max_f32(sink, warp_max(max_f32(ends[i][0].x, ends[i][1].x))), total = 0;

        if (h >= p->n_heads)
            continue;
        UNROLL
        for (u32 j = 0; j < PARTS_MAX / 32; j++) {
            float weight = weight_of(ends[i][j].x, top);

            total += ends[i][j].y * weight;
            worth_row(n, job, h)[j * 32 + lane] = weight;
        }
        total = warp_sum(total) + weight_of(sink, top);
        if (lane == 0)
            worth_row(n, job, h)[PARTS_MAX] = total > 0 ? 1 / total : 0;
    }
}

// Four dimensions a thread, of several parts at once: they wait for each other's latency only once.
INLINE void join_parts(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 n_parts)
{
    u64 step = (u64)(part_at(n, job, p, 1) - part_at(n, job, p, 0));
    const float *first = part_at(n, job, p, 0);

    weigh_parts(n, job, p, n_parts);
    block_sync();
    ROLL
    for (u32 at = THREAD * 4; at < share_words(n, job); at += EW_ATTEND_THREADS * 4) {
        struct word word = word_of(n, BLOCK_Z % N_CLUSTER, at);
        SHARED const float *worth = worth_row(n, job, word.head);
        f32x4 value = {0, 0, 0, 0};

        if (word.head >= p->n_heads || word.dim >= job->v_dim)
            continue;
        ROLL
        for (u32 s = 0; s < n_parts; s += PARTS_AT_ONCE) {
            f32x4 part[PARTS_AT_ONCE];

            UNROLL
            for (u32 j = 0; j < PARTS_AT_ONCE; j++)
                part[j] = *(const f32x4 *)(first + min_u32(s + j, n_parts - 1) * step + at);
            UNROLL
            for (u32 j = 0; j < PARTS_AT_ONCE; j++)
                value += part[j] * (s + j < n_parts ? worth[s + j] : 0);
        }
        *(f32x4 *)result_at(job, p, word) = value * worth[PARTS_MAX];
    }
}

INLINE void join(struct spans n, const struct ew_attend_job *job, const struct place *p, u32 has_keys)
{
    cluster_wait(); // all blocks of the cluster are there
    give_found(n, job, p->n_heads, has_keys);
    cluster_arrive();
    cluster_wait();
    finish(n, job, p, NOTES->n_parts == 1);
    if (NOTES->n_parts > 1 && is_last(job, p))
        join_parts(n, job, p, NOTES->n_parts);
}

// ---- kernels ------------------------------------------------------------------------------------

// All tiles of this warp, the first of which was asked for.
INLINE void take_tiles(u32 kv, struct spans n, const struct ew_attend_job *job, const struct place *p, u32 at,
                       const struct spot *spots, struct keys *keys, struct values *values, struct found *found)
{
    u32 wide = n.v > 2, near = min_u32(n.v, 2), step = WARPS * TILE;
    struct spot here = spots[0], next = spots[1];
    u32x4 q[4];

    load_queries(n, job, p->n_heads, q);
    ROLL
    for (; at < p->end; at += step) {
        float score[4], factor;
        u32 scales[2];
        u32 own = job->k ? p->index - at : TILE, left = p->end - at;
        i32 far = ask_block(job, p, at + 2 * step);

        if (wide)
            load_keys(kv, n.k, job, &here, keys);
        if (own < TILE)
            take_own_key(kv, n.k, job, own, keys);
        find_scores(kv, n.k, q, wide_at(n, job), keys, score);
        scales[0] = keys->scales[0];
        scales[1] = keys->scales[1];
        if (wide)
            load_values(kv, 0, near, job, &here, left, values);
        else if (left > step)
            load_keys(kv, n.k, job, &next, keys);
        soften(kv, job, p, at, scales, score, found, &factor);
        if (own < TILE)
            take_own_value(kv, 0, near, job, own, values);
        add_values(kv, 0, near, values, score, factor, found);
        if (wide) {
            load_values(kv, 2, n.v - 2, job, &here, left, values);
            if (own < TILE)
                take_own_value(kv, 2, n.v - 2, job, own, values);
            add_values(kv, 2, n.v - 2, values, score, factor, found);
        } else if (left > step) {
            load_values(kv, 0, near, job, &next, left - step, values);
        }
        here = next;
        next = spot_of(job, p, at + 2 * step, far);
        prefetch_tiles(kv, job, p, at + (TILES_AHEAD + 1) * step, 1);
    }
}

INLINE void attend(u32 kv, struct spans n, const struct ew_attend_job *job)
{
    struct place p = find_place(job);
    u32 at = p.begin + THREAD / 32 * TILE, second = at + WARPS * TILE, has_keys = p.begin < p.end;
    i32 blocks[2] = {ask_block(job, &p, at), ask_block(job, &p, second)};
    struct spot spots[2] = {spot_of(job, &p, at, blocks[0]), spot_of(job, &p, second, blocks[1])};
    struct row q_norm;
    struct keys keys;
    struct values values;
    struct found found = {.max = NEG_INFINITY};

    next_may_start();
    if (BLOCK_Z / N_CLUSTER >= p.n_parts)
        return;
    cluster_arrive();
    if (job->q_norm)
        load_row(n.k, (const float *)job->q_norm, job->k_dim, &q_norm);
    if (THREAD == 0)
        NOTES->n_parts = p.n_parts;
    if (!job->k) // an earlier kernel has appended
        previous_wait();
    if (at < p.end && n.v <= 2) { // of wide heads there are no registers for all of a tile at once
        load_keys(kv, n.k, job, &spots[0], &keys);
        load_values(kv, 0, n.v, job, &spots[0], p.end - at, &values);
    }
    prefetch_tiles(kv, job, &p, second, TILES_AHEAD);
    previous_wait();
    if (has_keys) {
        stage(kv, n, job, &p, &q_norm);
        block_sync();
        take_tiles(kv, n, job, &p, at, spots, &keys, &values, &found);
        share_found(n, job, p.n_heads, &found);
    }
    block_sync();
    join(n, job, &p, has_keys);
}

#define DEFINE(name, kv) \
    KERNEL decode_##name##_64(struct ew_attend_job job) { attend(kv, (struct spans){2, 1}, &job); } \
    KERNEL decode_##name##_96(struct ew_attend_job job) { attend(kv, (struct spans){3, 2}, &job); } \
    KERNEL decode_##name##_128(struct ew_attend_job job) { attend(kv, (struct spans){4, 2}, &job); }

DEFINE(f16, KV_F16)
DEFINE(f8, KV_F8)
DEFINE(i8, KV_I8)
// Of wide heads in int8 the registers do not suffice.
KERNEL decode_f16_256(struct ew_attend_job job) { attend(KV_F16, (struct spans){8, 4}, &job); }
KERNEL decode_f8_256(struct ew_attend_job job) { attend(KV_F8, (struct spans){8, 4}, &job); }
