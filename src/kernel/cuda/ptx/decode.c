// Attention of tokens that each end a sequence of their own: the decode step. One kernel normalises and rotates the
// heads, appends to the cache, attends, and joins what the splits of the keys found.
//
// A block: one token, up to 8 query heads of one KV head, one split of the keys, which its warps take in tiles of 16.
// The limit is the memory: each warp has a ring of tiles in shared memory, as they lie in the cache, of which it asks
// for the next ones by asynchronous copies while it computes. Nothing but fragments is in registers:
//
//   scores = q k^T     a: 8 heads (rows 8 to 15 are zero) x 16 dimensions, b: 16 dimensions x 8 keys
//   out^T = v^T p^T    a: 16 dimensions x 16 keys, b: 16 keys x 8 heads, which is how the scores lie already
//
// The order of dimensions within a product is free as long as both sides have the same one: what ldmatrix gives of
// elements of 8 bits are two neighbouring dimensions for each half.
//
// What is in the cache before this step is asked for before the kernel before this one has ended; the token's own key
// and value, which are not, are put into the ring by the block that appends them.
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
#define LOG2_E 1.44269504f

// ---- shared memory ------------------------------------------------------------------------------
//
// All of it is what the launch asks for: other blocks of the cluster write into it.

struct notes {
    u64 arrivals[2];         // the first counts the bytes that blocks of the cluster put here
    u8 own[2][DIMS_MAX * 2]; // the token's key and value as the cache has them, and their scales
    u16 own_scale[2];
    u32 n_parts, is_last;
    f32x2 ends[WARPS][HEADS];             // maxima and sums of what each warp found
    f32x2 came[EW_ATTEND_CLUSTER][HEADS]; // of each block of the cluster
};
#define NOTES ((SHARED struct notes *)g_dynamic)
_Static_assert(sizeof(struct notes) <= EW_ATTEND_NOTES_BYTES, "the notes have outgrown their place");

// `room`: dimensions that a kernel has room for. Queries in f16, as ldmatrix wants them.
INLINE u32 query_stride(u32 room) { return ew_attend_row_stride(2, room) / 2; }
INLINE SHARED u16 *query_row(u32 room, u32 h)
{
    return (SHARED u16 *)(g_dynamic + EW_ATTEND_NOTES_BYTES) + h * query_stride(room);
}

// A head of the queries, or, behind them, the token's own key and value.
INLINE SHARED float *head_row(u32 room, u32 i) { return (SHARED float *)query_row(room, HEADS) + i * room; }

// What blocks of the cluster found of this one's share of the dimensions.
INLINE SHARED float *box_at(u32 room, const struct ew_attend_job *job) { return head_row(room, job->per_run + 2); }

INLINE SHARED u8 *ring_at(u32 kv, u32 room, const struct ew_attend_job *job, u32 warp)
{
    SHARED u8 *rings = (SHARED u8 *)(box_at(room, job) + job->per_run * room);

    return rings + warp * job->depth * ew_attend_tile_bytes(kv_bytes(kv), room);
}

// Of what a warp found, in its ring once that is done with.
INLINE SHARED float *found_row(u32 kv, u32 room, const struct ew_attend_job *job, u32 warp, u32 h)
{
    return (SHARED float *)ring_at(kv, room, job, warp) + h * (room + EW_ATTEND_PAD);
}

// This block's place.
struct place {
    u32 token, run, kv_head, first_head, n_heads;
    u32 index, first, begin, end; // first: key that the token sees; begin, end: of the split
    u32 n_parts;                  // a cluster's splits; parts from n_parts on have nothing to do
    const i32 *table;
};

INLINE u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }

// Blocks of a cluster are a power of two: the cluster that block or word i is of, and its rank there.
INLINE u32 n_in_cluster(const struct ew_attend_job *job) { return 1u << job->cluster_log2; }
INLINE u32 cluster_of(const struct ew_attend_job *job, u32 i) { return i >> job->cluster_log2; }
INLINE u32 rank_of(const struct ew_attend_job *job, u32 i) { return i & (n_in_cluster(job) - 1); }

INLINE struct place find_place(const struct ew_attend_job *job)
{
    struct mask mask = {job->window, job->chunk, 0};
    struct place p = {.token = BLOCK_X, .run = BLOCK_Y, .kv_head = job->runs == 1 ? BLOCK_Y : BLOCK_Y / job->runs};
    u32 in_kv = (p.run - p.kv_head * job->runs) * job->per_run, begin, end, n_tiles, n_blocks, share;

    p.first_head = p.kv_head * job->per_kv + in_kv;
    p.n_heads = min_u32(job->per_kv - in_kv, job->per_run);
    p.index = ((const u32 *)job->index)[p.token];
    p.table = (const i32 *)job->tables + ((const u32 *)job->table_at)[p.token];
    visible(&mask, p.index, p.index + 1, &begin, &end);
    p.first = begin;
    begin = begin / TILE * TILE; // tiles do not cross blocks of the cache; keys before the first one are masked
    n_tiles = divide_up(end - begin, TILE);
    n_blocks = cluster_of(job, (n_tiles - 1) >> job->tiles_near_log2) + 1;
    n_blocks = min_u32(n_blocks << job->cluster_log2, N_BLOCKS_Z);
    share = divide_up(n_tiles, n_blocks);
    p.n_parts = cluster_of(job, (n_tiles - 1) / share) + 1;
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

// ---- the ring -----------------------------------------------------------------------------------
//
// A tile in shared memory: rows of keys, rows of values, with zeros up to the kernel's room and a stride of an odd
// number of 16 bytes, so that eight rows of a matrix lie in different banks; then the scales of keys and of values.

INLINE u32 row_stride(u32 kv, u32 room) { return ew_attend_row_stride(kv_bytes(kv), room); }

INLINE SHARED u16 *scales_in(u32 kv, u32 room, SHARED u8 *tile, u32 is_value)
{
    return (SHARED u16 *)(tile + 2 * TILE * row_stride(kv, room)) + is_value * TILE;
}

// So many lanes ask for a row, of which those beyond it have nothing to do.
INLINE u32 row_lanes(u32 chunks) { return chunks <= 4 ? 4 : chunks <= 8 ? 8 : chunks <= 16 ? 16 : 32; }

// Rows of keys or values, which lie one behind the other.
INLINE void ask_rows(u32 kv, u32 room, const u8 *rows, u32 bytes, SHARED u8 *to)
{
    u32 chunks = room * kv_bytes(kv) / 16, lanes = row_lanes(chunks), at_once = 32 / lanes;
    u32 row = THREAD % 32 / lanes, at = THREAD % lanes * 16, there = at < bytes;
    const u8 *from = rows + row * bytes + (there ? at : 0);

    to += row * row_stride(kv, room) + at;
    if (at >= chunks * 16)
        return;
    UNROLL
    for (u32 i = 0; i < TILE; i += at_once)
        copy_async(to + i * row_stride(kv, room), from + i * bytes, there);
}

INLINE void ask_tile(u32 kv, u32 room, const struct ew_attend_job *job, const struct spot *at, SHARED u8 *to)
{
    u32 lane = THREAD % 32, full = room * kv_bytes(kv);
    const u8 *keys = rows_at(kv, job, at, 0), *values = rows_at(kv, job, at, 1);
    SHARED u8 *to_values = to + TILE * row_stride(kv, room);

    if (job->k_dim == room && job->v_dim == room) { // constants as addresses
        ask_rows(kv, room, keys, full, to);
        ask_rows(kv, room, values, full, to_values);
    } else {
        ask_rows(kv, room, keys, row_bytes(kv, job, 0), to);
        ask_rows(kv, room, values, row_bytes(kv, job, 1), to_values);
    }
    if (kv_has_scales(kv) && lane < 4)
        copy_async((SHARED u8 *)scales_in(kv, room, to, lane / 2) + lane % 2 * 16,
                   (const u8 *)scales_at(kv, job, at, lane / 2) + lane % 2 * 16, 1);
}

// Until the oldest of `depth` tiles that were asked for is there.
INLINE void wait_tile(u32 depth)
{
    if (depth == 1)
        copy_wait(0);
    else if (depth == 2)
        copy_wait(1);
    else if (depth == 3)
        copy_wait(2);
    else
        copy_wait(3);
    warp_sync();
}

// The last tile: keys beyond the last have no value (memory that nobody wrote may hold NaN), and the cache did not have
// the token's own when the tile was asked for.
INLINE void mend_tile(u32 kv, u32 room, const struct ew_attend_job *job, u32 n_keys, u32 is_own, SHARED u8 *tile)
{
    u32 lane = THREAD % 32, stride = row_stride(kv, room), last = n_keys - 1;
    SHARED u8 *values = tile + TILE * stride;

    ROLL
    for (u32 at = n_keys * stride + lane * 16; at < TILE * stride; at += 32 * 16)
        *(SHARED u32x4 *)(values + at) = (u32x4){0, 0, 0, 0};
    if (is_own) {
        if (lane * 16 < row_bytes(kv, job, 0))
            *(SHARED u32x4 *)(tile + last * stride + lane * 16) = ((SHARED const u32x4 *)NOTES->own[0])[lane];
        if (lane * 16 < row_bytes(kv, job, 1))
            *(SHARED u32x4 *)(values + last * stride + lane * 16) = ((SHARED const u32x4 *)NOTES->own[1])[lane];
        if (kv_has_scales(kv) && lane < 2)
            scales_in(kv, room, tile, lane)[last] = NOTES->own_scale[lane];
    }
    warp_sync();
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

INLINE u32 query_pair(float low, float high)
{
    return f16x2_of(max_f32(min_f32(low, 65504), -65504), max_f32(min_f32(high, 65504), -65504));
}

// A query in f16, in the order of dimensions that a lane has of the keys.
INLINE void narrow(u32 kv, u32 room, SHARED const float *from, SHARED u16 *to)
{
    UNROLL
    for (u32 d = THREAD % 32 * 4; d < room; d += 32 * 4) {
        f32x4 x = *(SHARED const f32x4 *)(from + d);
        u32 low = query_pair(x.x, x.y), high = query_pair(x.z, x.w);

        if (kv == KV_F16) {
            *(SHARED u32x2 *)(to + d) = (u32x2){low, high};
            continue;
        }
        *(SHARED u32 *)(to + d / 16 * 16 + d % 16 / 2) = low;
        *(SHARED u32 *)(to + d / 16 * 16 + d % 16 / 2 + 8) = high;
    }
}

// Rows of heads that there are not.
INLINE void clear_queries(u32 room, u32 n_heads)
{
    ROLL
    for (u32 at = n_heads * query_stride(room) + THREAD * 8; at < HEADS * query_stride(room);
         at += EW_ATTEND_THREADS * 8)
        *(SHARED u32x4 *)(query_row(room, 0) + at) = (u32x4){0, 0, 0, 0};
}

INLINE void load_head(u32 room, const struct ew_attend_job *job, const struct place *p, u32 i, struct row *r)
{
    const float *q = (const float *)job->q + (u64)p->token * job->q_stride + (p->first_head + i) * job->k_dim;
    const float *k = (const float *)job->k + (u64)p->token * job->k_stride + p->kv_head * job->k_dim;
    const float *v = (const float *)job->v + (u64)p->token * job->v_stride + p->kv_head * job->v_dim;

    load_row(room / 32, i < p->n_heads ? q : i == p->n_heads ? k : v,
             i <= p->n_heads ? job->k_dim : job->v_dim, r);
}

// Row i is here: to where it goes.
INLINE void put_head(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 i,
                     struct row *r, const struct row *norm, const struct turns *t, float scale)
{
    u32 is_query = i < p->n_heads, is_value = i > p->n_heads, dim = is_value ? job->v_dim : job->k_dim;
    SHARED float *to = head_row(room, i);

    UNROLL
    for (u32 j = 0; j < room / 32; j++)
        r->x[j] = j * 32 + THREAD % 32 < dim ? r->x[j] : 0;
    if (is_query ? job->q_norm : !is_value && job->k_norm)
        normalise(room / 32, r, norm, dim, is_query ? job->q_eps : job->k_eps,
                  is_query ? job->q_offset : job->k_offset);
    UNROLL
    for (u32 j = 0; j < room / 32; j++) // rotation is linear
        to[j * 32 + THREAD % 32] = is_query ? r->x[j] * scale : r->x[j];
    warp_sync();
    if (job->rope && !is_value)
        rotate(room / 32, job, to, t);
    if (is_query)
        narrow(kv, room, to, query_row(room, i));
    else
        append(kv, job, p, to, is_value);
}

INLINE void stage(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p,
                  const struct row *q_norm)
{
    u32 n_rows = p->n_heads + (owns(job, p) ? 2 : 0);
    float scale = LOG2_E * job->scale * (job->token_scale ? ((const float *)job->token_scale)[p->token] : 1);
    struct row next;
    struct turns turns;

    if ((u32)THREAD / 32 < n_rows)
        load_head(room, job, p, THREAD / 32, &next);
    load_turns(room / 32, job, p->token, &turns);
    ROLL
    for (u32 i = THREAD / 32; i < n_rows; i += WARPS) {
        struct row row = next, norm = *q_norm;

        if (i + WARPS < n_rows)
            load_head(room, job, p, i + WARPS, &next);
        if (job->k_norm && i == p->n_heads)
            load_row(room / 32, (const float *)job->k_norm, job->k_dim, &norm);
        put_head(kv, room, job, p, i, &row, &norm, &turns, scale);
    }
}

// ---- scores, softmax, values ---------------------------------------------------------------------
//
// Scores are logarithms to base 2: queries are multiplied by log2(e) besides their scale.

#define STEPS_MAX (DIMS_MAX / 16)

// By a warp; max and sum of head g, the sum of this lane's keys alone (g = lane / 4, c = lane % 4).
struct found {
    float max, sum, acc[STEPS_MAX][4]; // of 16 dimensions each, low_dim and high_dim of heads 2 c and 2 c + 1
};

INLINE u32 low_dim(u32 kv) { return kv == KV_F16 ? THREAD % 32 / 4 : THREAD % 32 / 4 * 2; }
INLINE u32 high_dim(u32 kv) { return kv == KV_F16 ? low_dim(kv) + 8 : low_dim(kv) + 1; }

INLINE u32 key_of(u32 i) { return THREAD % 4 * 2 + i % 2 + i / 2 * 8; } // whose score i is

// Of 16 dimensions each.
INLINE void load_queries(u32 room, u32x2 *q)
{
    SHARED const u16 *from = query_row(room, THREAD % 8) + THREAD % 32 / 8 * 8;

    UNROLL
    for (u32 s = 0; s < room / 16; s += 2) {
        u32 r[4];

        ldmatrix4(r, from + s * 16);
        q[s] = (u32x2){r[0], r[1]};
        q[s + 1] = (u32x2){r[2], r[3]};
    }
}

// Two of four elements of 8 bits in f16.
INLINE u32 widen(u32 kv, u32 word, u32 is_high)
{
    if (kv == KV_F8)
        return f16x2_of_e4m3(is_high ? word >> 16 : word);
    word ^= 0x80808080; // 128 more, without a sign; 1152 more in f16
    return add_f16x2(is_high ? high_bytes(word) : low_bytes(word), 0xE480E480);
}

// Of keys and of values alike: rows 0 to 7 at 16 bytes and at the next 16, then rows 8 to 15.
INLINE SHARED const u16 *matrix_at(u32 kv, u32 room, SHARED const u8 *rows)
{
    u32 lane = THREAD % 32;

    return (SHARED const u16 *)(rows + (lane % 8 + lane / 16 * 8) * row_stride(kv, room) + lane / 8 % 2 * 16);
}

INLINE void multiply_keys(float *c, u32x2 q, u32 b0, u32 b1)
{
    u32 a[4] = {q.x, 0, q.y, 0};

    mma_f16(c, a, b0, b1);
}

// Every other 16 dimensions have sums of their own: a product waits for the one that it adds to.
INLINE void find_scores(u32 kv, u32 room, const u32x2 *q, SHARED const u8 *keys, float *score)
{
    SHARED const u16 *from = matrix_at(kv, room, keys);
    float c[2][2][4] = {{{0}}};

    UNROLL
    for (u32 s = 0; s < room * kv_bytes(kv) / 32; s++) {
        u32 r[4];

        ldmatrix4(r, from + s * 16);
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            if (kv == KV_F16) {
                multiply_keys(c[i][s % 2], q[s], r[2 * i], r[2 * i + 1]);
                continue;
            }
            multiply_keys(c[i][0], q[2 * s], widen(kv, r[2 * i], 0), widen(kv, r[2 * i], 1));
            multiply_keys(c[i][1], q[2 * s + 1], widen(kv, r[2 * i + 1], 0), widen(kv, r[2 * i + 1], 1));
        }
    }
    UNROLL
    for (u32 i = 0; i < 4; i++)
        score[i] = c[i / 2][0][i % 2] + c[i / 2][1][i % 2];
}

// Of key_of(i).
INLINE void load_scales(u32 kv, u32 room, SHARED u8 *tile, u32 is_value, float *scales)
{
    SHARED const u32 *pairs = (SHARED const u32 *)scales_in(kv, room, tile, is_value) + THREAD % 4;

    UNROLL
    for (u32 i = 0; i < 4; i++)
        scales[i] = !kv_has_scales(kv) ? 1 : i % 2 ? high_f16(pairs[i / 2 * 4]) : low_f16(pairs[i / 2 * 4]);
}

// What is not a plain product of query and key.
INLINE void bend(const struct ew_attend_job *job, const struct place *p, u32 tile_at, float *score)
{
    u32 head = p->first_head + min_u32(THREAD % 32 / 4, p->n_heads - 1);
    float cap = job->cap * LOG2_E, slope = job->alibi ? ((const float *)job->alibi)[head] * LOG2_E : 0;

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        if (job->cap > 0)
            score[i] = cap * tanh_f32(score[i] / cap);
        score[i] -= slope * (float)(p->index - tile_at - key_of(i));
    }
}

// Scores become what the softmax's sum consists of; what sums so far are worth now.
INLINE float soften(u32 kv, const struct ew_attend_job *job, const struct place *p, u32 tile_at, const float *scales,
                    float *score, struct found *found)
{
    float top = NEG_INFINITY, factor;

    UNROLL
    for (u32 i = 0; i < 4 && kv_has_scales(kv); i++)
        score[i] *= scales[i];
    if (job->cap > 0 || job->alibi)
        bend(job, p, tile_at, score);
    if (tile_at < p->first || tile_at + TILE > p->end) {
        UNROLL
        for (u32 i = 0; i < 4; i++)
            score[i] = tile_at + key_of(i) >= p->first && tile_at + key_of(i) < p->end ? score[i] : NEG_INFINITY;
    }
    UNROLL
    for (u32 i = 0; i < 4; i++)
        top = max_f32(top, score[i]);
    top = max_f32(top, shuffle_xor(top, 1));
    top = max_f32(found->max, max_f32(top, shuffle_xor(top, 2)));
    factor = exp2_approx(found->max - top);
    found->max = top;
    found->sum *= factor;
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        score[i] = exp2_approx(score[i] - top);
        found->sum += score[i];
    }
    return factor;
}

INLINE void weaken(u32 room, float factor, struct found *found)
{
    float f0 = f32_of_bits(shuffle_from(bits_of_f32(factor), THREAD % 4 * 8));
    float f1 = f32_of_bits(shuffle_from(bits_of_f32(factor), THREAD % 4 * 8 + 4));

    UNROLL
    for (u32 s = 0; s < room / 16; s++) {
        found->acc[s][0] *= f0;
        found->acc[s][1] *= f1;
        found->acc[s][2] *= f0;
        found->acc[s][3] *= f1;
    }
}

// Neighbouring dimensions of two neighbouring keys, in the order of keys within dimensions.
INLINE void multiply_values(u32 kv, float *acc, u32 low_keys, u32 high_keys, u32 b0, u32 b1)
{
    u32 low = byte_permute(low_keys, 0, 0x3120), high = byte_permute(high_keys, 0, 0x3120);
    u32 a[4] = {widen(kv, low, 0), widen(kv, low, 1), widen(kv, high, 0), widen(kv, high, 1)};

    mma_f16(acc, a, b0, b1);
}

INLINE void add_values(u32 kv, u32 room, SHARED const u8 *values, const float *scales, const float *p,
                       struct found *found)
{
    SHARED const u16 *from = matrix_at(kv, room, values);
    float scaled[4];
    u32 b0, b1;

    UNROLL
    for (u32 i = 0; i < 4; i++) // scales of keys beyond the last may be anything
        scaled[i] = !kv_has_scales(kv) ? p[i] : p[i] > 0 ? p[i] * scales[i] : 0;
    b0 = f16x2_of(scaled[0], scaled[1]);
    b1 = f16x2_of(scaled[2], scaled[3]);
    UNROLL
    for (u32 s = 0; s < room * kv_bytes(kv) / 32; s++) {
        u32 r[4];

        ldmatrix4_trans(r, from + s * 16);
        if (kv == KV_F16) {
            mma_f16(found->acc[s], r, b0, b1);
            continue;
        }
        multiply_values(kv, found->acc[2 * s], r[0], r[2], b0, b1);
        multiply_values(kv, found->acc[2 * s + 1], r[1], r[3], b0, b1);
    }
}

// ---- joining ------------------------------------------------------------------------------------

// Of what is at most `top`; of two infinities, nothing.
INLINE float weight_of(float max, float top) { return exp2_approx(max_f32(max - top, -1000)); }

// A warp's sums into shared memory.
INLINE void share_found(u32 kv, u32 room, const struct ew_attend_job *job, u32 n_heads, struct found *found)
{
    u32 warp = THREAD / 32, g = THREAD % 32 / 4, c = THREAD % 4;

    found->sum += shuffle_xor(found->sum, 1);
    found->sum += shuffle_xor(found->sum, 2);
    if (c == 0)
        NOTES->ends[warp][g] = (f32x2){found->max, found->sum};
    UNROLL
    for (u32 e = 0; e < 2; e++) {
        SHARED float *row = found_row(kv, room, job, warp, c * 2 + e);

        if (c * 2 + e >= n_heads)
            continue;
        UNROLL
        for (u32 s = 0; s < room / 16; s++) {
            row[s * 16 + low_dim(kv)] = found->acc[s][e];
            row[s * 16 + high_dim(kv)] = found->acc[s][2 + e];
        }
    }
}

// What a head's sums in several places are worth beside each other, and beside a sink: place i has its maximum and sum
// in ends[i * HEADS]; a power of two of them.
struct worth {
    float top, total, of[EW_ATTEND_CLUSTER];
};

INLINE struct worth weigh(SHARED const f32x2 *ends, u32 count, u32 most, float sink)
{
    struct worth w = {.top = sink};
    f32x2 end[EW_ATTEND_CLUSTER];

    UNROLL
    for (u32 i = 0; i < most; i++) {
        end[i] = ends[(i & (count - 1)) * HEADS];
        w.top = max_f32(w.top, end[i].x);
    }
    w.total = weight_of(sink, w.top);
    UNROLL
    for (u32 i = 0; i < most; i++) {
        w.of[i] = i < count ? weight_of(end[i].x, w.top) : 0;
        w.total += end[i].y * w.of[i];
    }
    return w;
}

// Dimensions of all heads, a kernel's room for each, are dealt to the cluster's blocks a few at a time: word `at` of a
// block's share is one of these.
struct word {
    u32 head, dim;
};

INLINE u32 dealt(u32 room) { return room % 64 ? 4 : 8; } // divides the room of a head among 8 blocks

INLINE struct word word_of(u32 room, const struct ew_attend_job *job, u32 at)
{
    u32 n = dealt(room), i = ((at / n << job->cluster_log2) + rank_of(job, BLOCK_Z)) * n + at % n;

    return (struct word){i / room, i % room};
}

INLINE u32 share_words(u32 room, const struct ew_attend_job *job) { return cluster_of(job, job->per_run * room); }

// What the block's warps found, to the blocks that finish it; of a block without keys, nothing.
INLINE void give_found(u32 kv, u32 room, const struct ew_attend_job *job, u32 n_heads, u32 has_keys)
{
    u32 rank = rank_of(job, BLOCK_Z), share = share_words(room, job), n = dealt(room);

    ROLL
    for (u32 i = THREAD * 4; i < n_heads * room; i += EW_ATTEND_THREADS * 4) {
        u32 h = i / room, d = i % room;
        struct worth worth = {.top = NEG_INFINITY};
        f32x4 value = {0, 0, 0, 0};

        if (has_keys) {
            worth = weigh(&NOTES->ends[0][h], WARPS, WARPS, NEG_INFINITY);
            UNROLL
            for (u32 w = 0; w < WARPS; w++)
                value += *(SHARED const f32x4 *)(found_row(kv, room, job, w, h) + d) * worth.of[w];
        }
        if (job->cluster_log2 == 0) { // a launch without clusters
            NOTES->came[0][h] = (f32x2){worth.top, worth.total};
            *(SHARED f32x4 *)(box_at(room, job) + i) = value;
            continue;
        }
        if (d / 4 < n_in_cluster(job))
            cluster_put_two(&NOTES->came[rank][h], d / 4, (f32x2){worth.top, worth.total}, NOTES->arrivals);
        cluster_put_four(box_at(room, job) + rank * share + cluster_of(job, i / n) * n + i % n,
                         rank_of(job, i / n), value, NOTES->arrivals);
    }
}

// All that blocks of the cluster give to each other.
INLINE u32 given_bytes(u32 room, const struct ew_attend_job *job, u32 n_heads)
{
    return n_heads * (room * sizeof(float) + (u32)sizeof(f32x2) * n_in_cluster(job));
}

INLINE float *result_at(const struct ew_attend_job *job, const struct place *p, struct word word)
{
    return (float *)job->out + (u64)p->token * job->out_stride + (p->first_head + word.head) * job->v_dim + word.dim;
}

INLINE float sink_of(const struct ew_attend_job *job, const struct place *p, u32 h)
{
    return job->sinks ? ((const float *)job->sinks)[p->first_head + h] * LOG2_E : NEG_INFINITY;
}

// A block's share of what a cluster found: values, then maxima and sums of the heads.
INLINE float *part_at(u32 room, const struct ew_attend_job *job, const struct place *p, u32 part)
{
    u64 at = ((u64)p->token * N_BLOCKS_Y + p->run) * cluster_of(job, N_BLOCKS_Z) + part;

    at = at * n_in_cluster(job) + rank_of(job, BLOCK_Z);
    return (float *)job->partial + at * (share_words(room, job) + HEADS * 2);
}

// This block's share, over the blocks of its cluster: the result where there is one part, else a part.
INLINE void finish(u32 room, const struct ew_attend_job *job, const struct place *p, u32 is_result)
{
    u32 share = share_words(room, job);
    float *part = part_at(room, job, p, cluster_of(job, BLOCK_Z));

    ROLL
    for (u32 at = THREAD; at < share; at += EW_ATTEND_THREADS) {
        struct word word = word_of(room, job, at);
        struct worth worth;
        float value = 0;

        if (word.head >= p->n_heads || word.dim >= job->v_dim)
            continue;
        worth = weigh(&NOTES->came[0][word.head], n_in_cluster(job), EW_ATTEND_CLUSTER,
                      is_result ? sink_of(job, p, word.head) : NEG_INFINITY);
        UNROLL
        for (u32 i = 0; i < EW_ATTEND_CLUSTER; i++)
            value += box_at(room, job)[rank_of(job, i) * share + at] * worth.of[i];
        if (is_result)
            *result_at(job, p, word) = value * (worth.total > 0 ? 1 / worth.total : 0);
        else
            part[at] = value;
        if (!is_result && word.dim < dealt(room) * n_in_cluster(job) && word.dim % dealt(room) == 0)
            *(f32x2 *)(part + share + word.head * 2) = (f32x2){worth.top, worth.total};
    }
}

// Whether this block is the last of its run and share; the counter is zero again then.
INLINE u32 is_last(const struct ew_attend_job *job, const struct place *p)
{
    u32 *arrived = (u32 *)job->arrived + (p->token * N_BLOCKS_Y + p->run) * n_in_cluster(job) + rank_of(job, BLOCK_Z);

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
INLINE SHARED float *worth_row(u32 kv, u32 room, const struct ew_attend_job *job, u32 h)
{
    return found_row(kv, room, job, 0, 0) + h * (PARTS_MAX + 4);
}

// A warp a head.
INLINE void weigh_parts(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 n_parts)
{
    u32 lane = THREAD % 32;
    f32x2 ends[WARP_HEADS][PARTS_MAX / 32];

    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++) {
        UNROLL
        for (u32 j = 0; j < PARTS_MAX / 32; j++) {
            u32 h = min_u32(i * WARPS + THREAD / 32, p->n_heads - 1), part = min_u32(j * 32 + lane, n_parts - 1);

            ends[i][j] = *(const f32x2 *)(part_at(room, job, p, part) + share_words(room, job) + 2 * h);
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
            worth_row(kv, room, job, h)[j * 32 + lane] = weight;
        }
        total = warp_sum(total) + weight_of(sink, top);
        if (lane == 0)
            worth_row(kv, room, job, h)[PARTS_MAX] = total > 0 ? 1 / total : 0;
    }
}

// Four dimensions a thread, of several parts at once: they wait for each other's latency only once.
INLINE void join_parts(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 n_parts)
{
    u64 step = (u64)(part_at(room, job, p, 1) - part_at(room, job, p, 0));
    const float *first = part_at(room, job, p, 0);

    weigh_parts(kv, room, job, p, n_parts);
    block_sync();
    ROLL
    for (u32 at = THREAD * 4; at < share_words(room, job); at += EW_ATTEND_THREADS * 4) {
        struct word word = word_of(room, job, at);
        SHARED const float *worth = worth_row(kv, room, job, word.head);
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

INLINE void join(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 has_keys)
{
    if (job->cluster_log2)
        cluster_wait(); // all blocks of the cluster are there
    give_found(kv, room, job, p->n_heads, has_keys);
    if (job->cluster_log2)
        cluster_await(NOTES->arrivals);
    else
        block_sync();
    finish(room, job, p, NOTES->n_parts == 1);
    if (NOTES->n_parts > 1 && is_last(job, p))
        join_parts(kv, room, job, p, NOTES->n_parts);
}

// ---- kernels ------------------------------------------------------------------------------------

// All tiles of this warp, of which it has asked for the first `depth`.
INLINE void take_tiles(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 at,
                       struct found *found)
{
    u32 step = WARPS * TILE, ahead = job->depth * step, slot = 0;
    SHARED u8 *ring = ring_at(kv, room, job, THREAD / 32);
    u32x2 q[STEPS_MAX];

    load_queries(room, q);
    ROLL
    for (; at < p->end; at += step) {
        SHARED u8 *tile = ring + slot * ew_attend_tile_bytes(kv_bytes(kv), room);
        float score[4], scales[4], factor;
        i32 far = ask_block(job, p, at + ahead);

        wait_tile(job->depth);
        if (at + TILE >= p->end)
            mend_tile(kv, room, job, p->end - at, owns(job, p), tile);
        find_scores(kv, room, q, tile, score);
        load_scales(kv, room, tile, 0, scales);
        factor = soften(kv, job, p, at, scales, score, found);
        if (warp_ballot(factor != 1))
            weaken(room, factor, found);
        load_scales(kv, room, tile, 1, scales);
        add_values(kv, room, tile + TILE * row_stride(kv, room), scales, score, found);
        warp_sync();
        if (at + ahead < p->end) {
            struct spot spot = spot_of(job, p, at + ahead, far);

            ask_tile(kv, room, job, &spot, tile);
        }
        copy_commit();
        slot = slot + 1 < job->depth ? slot + 1 : 0;
    }
}

// The first tiles of this warp: a group of copies each, also where there is none.
INLINE void ask_first(u32 kv, u32 room, const struct ew_attend_job *job, const struct place *p, u32 at)
{
    SHARED u8 *to = ring_at(kv, room, job, THREAD / 32);

    ROLL
    for (u32 i = 0; i < job->depth; i++, at += WARPS * TILE) {
        if (at < p->end) {
            struct spot spot = spot_of(job, p, at, ask_block(job, p, at));

            ask_tile(kv, room, job, &spot, to);
        }
        copy_commit();
        to += ew_attend_tile_bytes(kv_bytes(kv), room);
    }
}

INLINE void attend(u32 kv, u32 room, const struct ew_attend_job *job)
{
    struct place p = find_place(job);
    u32 at = p.begin + THREAD / 32 * TILE, has_keys = p.begin < p.end;
    struct row q_norm;
    struct found found = {.max = NEG_INFINITY};

    next_may_start();
    if (cluster_of(job, BLOCK_Z) >= p.n_parts)
        return;
    if (THREAD == 0) {
        NOTES->n_parts = p.n_parts;
        if (job->cluster_log2)
            cluster_expect(NOTES->arrivals, given_bytes(room, job, p.n_heads));
    }
    clear_queries(room, p.n_heads);
    if (job->cluster_log2)
        cluster_arrive();
    if (job->q_norm)
        load_row(room / 32, (const float *)job->q_norm, job->k_dim, &q_norm);
    if (!job->k) // an earlier kernel has appended
        previous_wait();
    ask_first(kv, room, job, &p, at);
    previous_wait();
    if (has_keys) {
        stage(kv, room, job, &p, &q_norm);
        block_sync();
        take_tiles(kv, room, job, &p, at, &found);
        share_found(kv, room, job, p.n_heads, &found);
    }
    block_sync();
    join(kv, room, job, &p, has_keys);
}

#define DEFINE(name, kv) \
    KERNEL decode_##name##_64(struct ew_attend_job job) { attend(kv, 64, &job); } \
    KERNEL decode_##name##_96(struct ew_attend_job job) { attend(kv, 96, &job); } \
    KERNEL decode_##name##_128(struct ew_attend_job job) { attend(kv, 128, &job); } \
    KERNEL decode_##name##_256(struct ew_attend_job job) { attend(kv, 256, &job); }

DEFINE(f16, KV_F16)
DEFINE(f8, KV_F8)
DEFINE(i8, KV_I8)
