// Attention of tokens that each end a sequence of their own: the decode step. One kernel normalises and rotates the
// heads, appends to the cache, attends, and joins what the splits of the keys found; the last block of a run to arrive
// does that.
//
// A block: one token, up to 8 query heads of one KV head, one split of the keys, which its warps take in tiles of 16.
// The limit is the memory: keys and values go from global memory straight into the fragments of mma.m16n8k16, 16 bytes
// a lane. The order of dimensions within a product is free as long as both sides have the same one, so that a lane's 16
// bytes are 8 dimensions of one key, four of them (two products) at a time:
//
//   scores = q k^T     a: 8 heads (rows 8 to 15 are zero) x 16 dimensions, b: 16 dimensions x 8 keys
//   out^T = v^T p^T    a: 16 dimensions x 16 keys, b: 16 keys x 8 heads, which is how the scores lie already
//
// What is in the cache before this step is asked for before the kernel before this one has ended.

#include "kernel/cuda/attend_job.h"
#include "kernel/cuda/ptx/kv.h"
#include "kernel/cuda/ptx/mask.h"

#define WARPS (EW_ATTEND_THREADS / 32)
#define HEADS EW_ATTEND_HEADS
#define TILE EW_ATTEND_TILE
#define DIMS_MAX 256

static SHARED float g_q[HEADS][DIMS_MAX];
static SHARED float g_max[WARPS][HEADS], g_sum[WARPS][HEADS];
static SHARED float g_acc[WARPS][HEADS][DIMS_MAX];
static SHARED u32x4 g_wide[DIMS_MAX / 32][32];
static SHARED float g_share[WARPS][HEADS]; // what a warp's sums are worth
static SHARED u32 g_last, g_n_splits;

// This block's place.
struct place {
    u32 token, kv_head, first_head, n_heads, run;
    u32 index, first, begin, end; // first: key that the token sees; begin, end: of the split
    u32 n_splits;                 // that have keys; the other blocks have nothing to do
    u32 owns;              // the token's own key is in it, to be appended
    const i32 *table;
    struct cache cache;
};

// Of the block, without a look at what it works on.
INLINE struct place find_block(const struct ew_attend_job *job)
{
    u32 per_kv = job->n_heads / job->n_kv_heads, in_kv = BLOCK_Y % job->runs * job->per_run;
    struct place p = {.token = BLOCK_X, .run = BLOCK_Y, .kv_head = BLOCK_Y / job->runs};

    p.first_head = p.kv_head * per_kv + in_kv;
    p.n_heads = min_u32(per_kv - in_kv, job->per_run);
    return p;
}

INLINE struct place find_place(const struct ew_attend_job *job)
{
    struct mask mask = {job->window, job->chunk, 0};
    struct place p = find_block(job);
    u32 begin, end, share;

    p.index = ((const u32 *)job->index)[p.token];
    p.table = (const i32 *)job->tables + ((const u32 *)job->table_at)[p.token];
    visible(&mask, p.index, p.index + 1, &begin, &end);
    p.first = begin;
    begin = begin / TILE * TILE; // tiles do not cross blocks of the cache; keys before the first one are masked
    share = (end - begin + N_BLOCKS_Z - 1) / N_BLOCKS_Z;
    share = (share + TILE * WARPS - 1) / (TILE * WARPS) * (TILE * WARPS);
    p.n_splits = (end - begin + share - 1) / share;
    p.begin = min_u32(begin + BLOCK_Z * share, end);
    p.end = min_u32(p.begin + share, end);
    p.owns = p.begin < p.end && p.end == end;
    p.cache = (struct cache){(u8 *)job->data, job->block_bytes, job->layer_at, job->head_bytes, job->block_tokens,
                             job->kv, job->k_dim, job->v_dim};
    return p;
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

INLINE float scale_of(u32 kv, const u16 *scales, u32 row) { return kv == KV_F16 ? 1 : f32_of_f16(scales[row]); }

// What a lane has of a tile: of the keys, dimensions 8 c to 8 c + 7 of every 32 of keys g and g + 8; of the values,
// dimensions 8 g to 8 g + 7 of every 64 of keys 2 c, 2 c + 1, 2 c + 8 and 2 c + 9 (g = lane / 4, c = lane % 4).
struct keys {
    u32x4 d[2][DIMS_MAX / 32];
    float scale[4]; // of the keys whose scores the lane has: 2 c, 2 c + 1, 2 c + 8, 2 c + 9
};

struct values {
    u32x4 d[4][2];
    float scale[4];
};

INLINE u32 key_of(u32 i) { return THREAD % 4 * 2 + i % 2 + i / 2 * 8; }

INLINE void load_keys(u32 kv, u32 spans, const struct place *p, u32 tile_at, struct keys *keys)
{
    struct tile tile = cache_tile(&p->cache, p->table[tile_at / p->cache.block_tokens], p->kv_head);
    u32 first = tile_at % p->cache.block_tokens, lane = THREAD % 32, row_bytes = p->cache.k_dim * kv_bytes(kv);

    UNROLL
    for (u32 s = 0; s < spans; s++) {
        u32 d = s * 32 + lane % 4 * 8;

        UNROLL
        for (u32 i = 0; i < 2; i++) {
            keys->d[i][s] = (u32x4){0, 0, 0, 0};
            if (d < p->cache.k_dim)
                keys->d[i][s] = load_elements(kv, tile.k + (u64)(first + lane / 4 + i * 8) * row_bytes, d);
        }
    }
    UNROLL
    for (u32 i = 0; i < 4; i++)
        keys->scale[i] = scale_of(kv, tile.k_scale, first + key_of(i));
}

// Two spans of 64 dimensions at most, from the first one on.
INLINE void load_values(u32 kv, u32 first_span, u32 spans, const struct place *p, u32 tile_at, struct values *values)
{
    struct tile tile = cache_tile(&p->cache, p->table[tile_at / p->cache.block_tokens], p->kv_head);
    u32 first = tile_at % p->cache.block_tokens, lane = THREAD % 32, row_bytes = p->cache.v_dim * kv_bytes(kv);

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 key = first + key_of(i), there = tile_at + key_of(i) < p->end; // others may be anything, even NaN

        UNROLL
        for (u32 s = 0; s < spans; s++) {
            u32 d = (first_span + s) * 64 + lane / 4 * 8;

            values->d[i][s] = (u32x4){0, 0, 0, 0};
            if (there && d < p->cache.v_dim)
                values->d[i][s] = load_elements(kv, tile.v + (u64)key * row_bytes, d);
        }
        values->scale[i] = there ? scale_of(kv, tile.v_scale, key) : 0;
    }
}

// ---- what stands before -------------------------------------------------------------------------
//
// Everything is asked for before anything is used: latencies are what this takes.

#define WARP_HEADS (HEADS / WARPS)
#define LANE_DIMS (DIMS_MAX / 32)

struct row {
    float x[LANE_DIMS]; // elements lane, lane + 32 and so on
};

struct turns {
    float cosine[LANE_DIMS / 2], sine[LANE_DIMS / 2];
};

// Of norms: they do not wait for the kernel before.
struct norms {
    struct row q, k;
};

INLINE void load_row(u32 spans, const float *x, u32 dim, struct row *r)
{
    UNROLL
    for (u32 j = 0; j < spans; j++)
        r->x[j] = j * 32 + THREAD % 32 < dim ? x[j * 32 + THREAD % 32] : 0;
}

INLINE void load_norms(u32 spans, const struct ew_attend_job *job, const struct place *p, struct norms *n)
{
    if (job->q_norm)
        load_row(spans, (const float *)job->q_norm, job->k_dim, &n->q);
    if (job->k_norm && p->owns && THREAD / 32 == 0)
        load_row(spans, (const float *)job->k_norm, job->k_dim, &n->k);
}

INLINE void load_turns(u32 spans, const struct ew_attend_job *job, u32 token, struct turns *t)
{
    const float *table = (const float *)job->rope + (u64)token * job->n_dims;
    u32 half = job->n_dims / 2;

    UNROLL
    for (u32 j = 0; j < (spans + 1) / 2; j++) {
        u32 i = j * 32 + THREAD % 32, there = job->rope && i < half;

        t->cosine[j] = there ? table[i] : 1;
        t->sine[j] = there ? table[half + i] : 0;
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

// A head's row by a warp, rotated, `to` in shared memory.
INLINE void put_rotated(u32 spans, const struct ew_attend_job *job, SHARED float *to, const struct row *r, u32 dim,
                        const struct turns *t)
{
    u32 lane = THREAD % 32, half = job->n_dims / 2;

    UNROLL
    for (u32 j = 0; j < spans; j++)
        if (j * 32 + lane < dim)
            to[j * 32 + lane] = r->x[j];
    warp_sync();
    UNROLL
    for (u32 j = 0; j < (spans + 1) / 2; j++) {
        u32 i = j * 32 + lane;
        SHARED float *a = to + job->rope_first + (job->rope_pairs ? 2 * i : i), *b = a + (job->rope_pairs ? 1 : half);

        if (job->rope && i < half) {
            float old = *a;

            *a = old * t->cosine[j] - *b * t->sine[j];
            *b = *b * t->cosine[j] + old * t->sine[j];
        }
    }
    warp_sync();
}

// The token's key and value into the cache, by the first two warps. Runs of the same KV head write the same bytes, and
// each block reads what it wrote itself.
INLINE void append(u32 spans, const struct ew_attend_job *job, const struct place *p, struct row *r,
                   const struct row *norm, const struct turns *t)
{
    struct tile tile = cache_tile(&p->cache, p->table[p->index / job->block_tokens], p->kv_head);
    u32 row = p->index % job->block_tokens, bytes = kv_bytes(job->kv), lane = THREAD % 32;
    SHARED float *staged = g_acc[THREAD / 32][0];

    if (THREAD / 32 == 0) {
        if (job->k_norm)
            normalise(spans, r, norm, job->k_dim, job->k_eps, job->k_offset);
        put_rotated(spans, job, staged, r, job->k_dim, t);
        kv_put_row(job->kv, tile.k + (u64)row * job->k_dim * bytes, tile.k_scale + row, (const float *)staged,
                   job->k_dim);
    } else {
        UNROLL
        for (u32 j = 0; j < spans; j++)
            if (j * 32 + lane < job->v_dim)
                staged[j * 32 + lane] = r->x[j];
        warp_sync();
        kv_put_row(job->kv, tile.v + (u64)row * job->v_dim * bytes, tile.v_scale + row, (const float *)staged,
                   job->v_dim);
    }
}

INLINE void stage_query(u32 spans, const struct ew_attend_job *job, u32 h, u32 there, struct row *r,
                        const struct row *norm, const struct turns *t, float scale)
{
    u32 lane = THREAD % 32;

    if (job->q_norm)
        normalise(spans, r, norm, job->k_dim, job->q_eps, job->q_offset);
    put_rotated(spans, job, g_q[h], r, job->k_dim, t);
    UNROLL
    for (u32 j = 0; j < spans; j++) {
        u32 i = j * 32 + lane;

        g_q[h][i] = there && i < job->k_dim ? g_q[h][i] * scale : 0;
    }
}

INLINE void stage(u32 k_spans, u32 v_spans, const struct ew_attend_job *job, const struct place *p,
                  const struct norms *norms)
{
    const float *q = (const float *)job->q + (u64)p->token * job->q_stride + p->first_head * job->k_dim;
    const float *k = (const float *)job->k + (u64)p->token * job->k_stride + p->kv_head * job->k_dim;
    const float *v = (const float *)job->v + (u64)p->token * job->v_stride + p->kv_head * job->v_dim;
    u32 appends = p->owns && job->k && THREAD / 32 < 2, spans = max_u32(k_spans, v_spans * 2);
    float scale = job->scale * (job->token_scale ? ((const float *)job->token_scale)[p->token] : 1);
    struct row heads[WARP_HEADS], own;
    struct turns turns;

    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++)
        load_row(k_spans, q + min_u32(i * WARPS + THREAD / 32, p->n_heads - 1) * job->k_dim, job->k_dim, &heads[i]);
    if (appends)
        load_row(spans, THREAD / 32 == 0 ? k : v, THREAD / 32 == 0 ? job->k_dim : job->v_dim, &own);
    load_turns(k_spans, job, p->token, &turns);
    if (appends)
        append(spans, job, p, &own, &norms->k, &turns);
    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++)
        stage_query(k_spans, job, i * WARPS + THREAD / 32, i * WARPS + THREAD / 32 < p->n_heads, &heads[i], &norms->q,
                    &turns, scale);
}

// ---- scores, softmax, values ---------------------------------------------------------------------

struct found { // by a warp; max and sum of head g, the sum of this lane's keys alone
    float max, sum, acc[DIMS_MAX / 64][4][4]; // of 16 dimensions: 8 g + 2 t of heads 2 c and 2 c + 1, 8 g + 2 t + 1
};

INLINE u32 query_pair(u32 dim)
{
    SHARED const float *q = g_q[THREAD % 32 / 4] + dim;

    return f16x2_of(max_f32(min_f32(q[0], 65504), -65504), max_f32(min_f32(q[1], 65504), -65504));
}

INLINE u32x4 query_at(u32 span)
{
    u32 d = span * 32 + THREAD % 4 * 8;

    return (u32x4){query_pair(d), query_pair(d + 2), query_pair(d + 4), query_pair(d + 6)};
}

// Wide heads have no registers left for the queries: every warp has the same ones, in shared memory.
INLINE void load_queries(u32 spans, u32x4 *q)
{
    UNROLL
    for (u32 s = 0; s < spans && spans <= 4; s++)
        q[s] = query_at(s);
    for (u32 s = THREAD / 32; s < spans && spans > 4; s += WARPS)
        g_wide[s][THREAD % 32] = query_at(s);
    if (spans > 4)
        block_sync();
}

INLINE void find_scores(u32 kv, u32 spans, const u32x4 *q, const struct keys *keys, float *score)
{
    float c[2][4] = {{0}};

    UNROLL
    for (u32 s = 0; s < spans; s++) {
        u32x4 words = spans > 4 ? g_wide[s][THREAD % 32] : q[s];
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

// Scores become what the softmax's sum consists of; *factor is what the sums so far are worth now.
INLINE void soften(const struct ew_attend_job *job, const struct place *p, u32 tile_at, const float *scales,
                   float *score, struct found *found, float *factor)
{
    u32 head = p->first_head + min_u32(THREAD % 32 / 4, p->n_heads - 1);
    float top = NEG_INFINITY;

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 key = tile_at + key_of(i);

        score[i] *= scales[i];
        if (job->cap > 0)
            score[i] = job->cap * tanh_f32(score[i] / job->cap);
        if (job->alibi)
            score[i] -= ((const float *)job->alibi)[head] * (float)(p->index - key);
        score[i] = key >= p->first && key < p->end ? score[i] : NEG_INFINITY;
        top = max_f32(top, score[i]);
    }
    top = max_f32(top, shuffle_xor(top, 1));
    top = max_f32(found->max, max_f32(top, shuffle_xor(top, 2)));
    *factor = found->max == top ? 1 : exp_f32(found->max - top);
    found->max = top;
    found->sum *= *factor;
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        score[i] = top > NEG_INFINITY ? exp_f32(score[i] - top) : 0;
        found->sum += score[i];
    }
}

INLINE u32 low_halves(u32 a, u32 b) { return (a & 0xFFFF) | b << 16; }
INLINE u32 high_halves(u32 a, u32 b) { return a >> 16 | (b & 0xFFFF0000); }

INLINE void add_values(u32 kv, u32 first_span, u32 spans, const struct values *v, const float *p, float factor,
                       struct found *found)
{
    u32 b0 = f16x2_of(p[0] * v->scale[0], p[1] * v->scale[1]), b1 = f16x2_of(p[2] * v->scale[2], p[3] * v->scale[3]);

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

INLINE void share_found(u32 spans, struct found *found)
{
    u32 warp = THREAD / 32, g = THREAD % 32 / 4, c = THREAD % 4;

    found->sum += shuffle_xor(found->sum, 1);
    found->sum += shuffle_xor(found->sum, 2);
    if (c == 0) {
        g_max[warp][g] = found->max;
        g_sum[warp][g] = found->sum;
    }
    UNROLL
    for (u32 i = 0; i < spans * 16; i++) {
        u32 d = i / 16 * 64 + g * 8 + i / 4 % 4 * 2 + i / 2 % 2;

        g_acc[warp][c * 2 + i % 2][d] = found->acc[i / 16][i / 4 % 4][i % 4];
    }
}

INLINE float weight_of(float max, float top) { return max > NEG_INFINITY ? exp_f32(max - top) : 0; }

// What the warps' sums are worth beside each other, and beside a sink: of each head the largest maximum, and the sum.
INLINE void weigh_warps(const struct ew_attend_job *job, const struct place *p, u32 with_sink, float *top, float *total)
{
    u32 h = THREAD % HEADS;
    float sink = with_sink && job->sinks && h < p->n_heads ? ((const float *)job->sinks)[p->first_head + h]
                                                           : NEG_INFINITY;

    *top = sink;
    UNROLL
    for (u32 w = 0; w < WARPS; w++)
        *top = max_f32(*top, g_max[w][h]);
    *total = weight_of(sink, *top);
    UNROLL
    for (u32 w = 0; w < WARPS; w++) {
        float weight = weight_of(g_max[w][h], *top);

        *total += g_sum[w][h] * weight;
        g_share[w][h] = weight;
    }
}

// Four elements of the values of head h, over the warps.
INLINE f32x4 joined_values(u32 h, u32 d)
{
    f32x4 value = {0, 0, 0, 0};

    UNROLL
    for (u32 w = 0; w < WARPS; w++)
        value += *(SHARED const f32x4 *)&g_acc[w][h][d] * g_share[w][h];
    return value;
}

// One split: straight into the result.
INLINE void write_result(const struct ew_attend_job *job, const struct place *p)
{
    float *out = (float *)job->out + (u64)p->token * job->out_stride + p->first_head * job->v_dim, top, total;

    if (THREAD < HEADS) {
        weigh_warps(job, p, 1, &top, &total);
        UNROLL
        for (u32 w = 0; w < WARPS; w++)
            g_share[w][THREAD] = total > 0 ? g_share[w][THREAD] / total : 0;
    }
    block_sync();
    for (u32 i = THREAD * 4; i < p->n_heads * job->v_dim; i += EW_ATTEND_THREADS * 4)
        *(f32x4 *)(out + i) = joined_values(i / job->v_dim, i % job->v_dim);
}

// What a split found: values of all heads, then their maxima and sums.
INLINE float *partial_at(const struct ew_attend_job *job, const struct place *p, u32 split)
{
    return (float *)job->partial +
           (((u64)p->token * N_BLOCKS_Y + p->run) * N_BLOCKS_Z + split) * HEADS * (job->v_dim + 2);
}

INLINE void write_partial(const struct ew_attend_job *job, const struct place *p)
{
    float *to = partial_at(job, p, BLOCK_Z), top, total;

    if (THREAD < HEADS) {
        weigh_warps(job, p, 0, &top, &total);
        *(f32x2 *)(to + HEADS * job->v_dim + 2 * THREAD) = (f32x2){top, total};
    }
    block_sync();
    for (u32 i = THREAD * 4; i < p->n_heads * job->v_dim; i += EW_ATTEND_THREADS * 4)
        *(f32x4 *)(to + i) = joined_values(i / job->v_dim, i % job->v_dim);
}

// Whether this block is the last of its run; the counter is zero again then.
INLINE u32 is_last(const struct ew_attend_job *job, const struct place *p)
{
    u32 *arrived = (u32 *)job->arrived + p->token * N_BLOCKS_Y + p->run;

    block_sync();
    if (THREAD == 0) {
        g_last = atomic_add_ordered(arrived, 1) == p->n_splits - 1;
        if (g_last)
            *arrived = 0;
    }
    block_sync();
    return g_last;
}

#define SPLITS_MAX 64     // EW_CUDA_SPLITS_MAX
#define SPLITS_AT_ONCE 8u

// What each split is worth, a warp a head; g_q serves as the table, with 1 / total behind the splits.
INLINE void weigh_partials(const struct ew_attend_job *job, const struct place *p)
{
    u32 lane = THREAD % 32;
    f32x2 ends[WARP_HEADS][SPLITS_MAX / 32];

    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++) {
        UNROLL
        for (u32 j = 0; j < SPLITS_MAX / 32; j++) {
            u32 h = i * WARPS + THREAD / 32, split = j * 32 + lane;

            ends[i][j] = (f32x2){NEG_INFINITY, 0};
            if (h < p->n_heads && split < p->n_splits)
                ends[i][j] = *(const f32x2 *)(partial_at(job, p, split) + HEADS * job->v_dim + 2 * h);
        }
    }
    UNROLL
    for (u32 i = 0; i < WARP_HEADS; i++) {
        u32 h = i * WARPS + THREAD / 32;
        float sink = job->sinks && h < p->n_heads ? ((const float *)job->sinks)[p->first_head + h] : NEG_INFINITY;
        float top = max_f32(sink, warp_max(max_f32(ends[i][0].x, ends[i][1].x))), total = 0;

        UNROLL
        for (u32 j = 0; j < SPLITS_MAX / 32; j++) {
            float weight = weight_of(ends[i][j].x, top);

            total += ends[i][j].y * weight;
            g_q[h][j * 32 + lane] = weight;
        }
        total = warp_sum(total) + weight_of(sink, top);
        if (lane == 0)
            g_q[h][SPLITS_MAX] = total > 0 ? 1 / total : 0;
    }
}

// Four dimensions a thread, of several splits at once: they wait for each other's latency only once.
INLINE void join_partials(const struct ew_attend_job *job, const struct place *p)
{
    float *out = (float *)job->out + (u64)p->token * job->out_stride + p->first_head * job->v_dim;
    u64 step = (u64)HEADS * (job->v_dim + 2);
    const float *first = partial_at(job, p, 0);

    weigh_partials(job, p);
    block_sync();
    for (u32 i = THREAD * 4; i < p->n_heads * job->v_dim; i += EW_ATTEND_THREADS * 4) {
        u32 h = i / job->v_dim;
        f32x4 value = {0, 0, 0, 0};

        for (u32 s = 0; s < p->n_splits; s += SPLITS_AT_ONCE) {
            f32x4 part[SPLITS_AT_ONCE];

            UNROLL
            for (u32 j = 0; j < SPLITS_AT_ONCE; j++)
                part[j] = *(const f32x4 *)(first + min_u32(s + j, p->n_splits - 1) * step + i);
            UNROLL
            for (u32 j = 0; j < SPLITS_AT_ONCE; j++)
                value += part[j] * (s + j < p->n_splits ? g_q[h][s + j] : 0);
        }
        *(f32x4 *)(out + i) = value * g_q[h][SPLITS_MAX];
    }
}

// ---- kernels ------------------------------------------------------------------------------------

// Whether a tile was in the cache before this step.
INLINE u32 is_old(const struct place *p, u32 tile_at) { return tile_at < p->end && tile_at + TILE <= p->index; }

INLINE void attend(u32 kv, u32 k_spans, u32 v_spans, const struct ew_attend_job *job)
{
    struct place p = find_place(job);
    u32 wide = v_spans > 2; // there are no registers for all of a tile at once, and none ahead of time
    u32 at = p.begin + THREAD / 32 * TILE, early = !wide && is_old(&p, at), near = min_u32(v_spans, 2);
    u32x4 q[4];
    struct norms norms;
    struct keys keys;
    struct values values;
    struct found found = {.max = NEG_INFINITY};

    next_may_start();
    if (p.begin >= p.end)
        return;
    load_norms(k_spans, job, &p, &norms);
    if (THREAD == 0)
        g_n_splits = p.n_splits;
    if (early) {
        load_keys(kv, k_spans, &p, at, &keys);
        load_values(kv, 0, near, &p, at, &values);
    }
    previous_wait();
    stage(k_spans, v_spans, job, &p, &norms);
    block_sync();
    load_queries(k_spans, q);
    if (!early && !wide && at < p.end) {
        load_keys(kv, k_spans, &p, at, &keys);
        load_values(kv, 0, near, &p, at, &values);
    }
    for (; at < p.end; at += WARPS * TILE) {
        float score[4], scales[4], factor;
        u32 next = at + WARPS * TILE;

        if (wide)
            load_keys(kv, k_spans, &p, at, &keys);
        find_scores(kv, k_spans, q, &keys, score);
        UNROLL
        for (u32 i = 0; i < 4; i++)
            scales[i] = keys.scale[i];
        if (wide)
            load_values(kv, 0, near, &p, at, &values);
        else if (next < p.end)
            load_keys(kv, k_spans, &p, next, &keys);
        soften(job, &p, at, scales, score, &found, &factor);
        add_values(kv, 0, near, &values, score, factor, &found);
        if (wide) {
            load_values(kv, 2, v_spans - 2, &p, at, &values);
            add_values(kv, 2, v_spans - 2, &values, score, factor, &found);
        }
        if (next < p.end && !wide)
            load_values(kv, 0, near, &p, next, &values);
    }
    share_found(v_spans, &found);
    block_sync();
    p = find_block(job); // anew: the loop has no registers to keep it in
    p.n_splits = g_n_splits;
    if (p.n_splits == 1) {
        write_result(job, &p);
        return;
    }
    write_partial(job, &p);
    if (is_last(job, &p))
        join_partials(job, &p);
}

#define DEFINE(name, kv) \
    KERNEL decode_##name##_64(struct ew_attend_job job) { attend(kv, 2, 1, &job); } \
    KERNEL decode_##name##_96(struct ew_attend_job job) { attend(kv, 3, 2, &job); } \
    KERNEL decode_##name##_128(struct ew_attend_job job) { attend(kv, 4, 2, &job); }

DEFINE(f16, KV_F16)
DEFINE(f8, KV_F8)
DEFINE(i8, KV_I8)
// Of wide heads in int8 the registers do not suffice.
KERNEL decode_f16_256(struct ew_attend_job job) { attend(KV_F16, 8, 4, &job); }
KERNEL decode_f8_256(struct ew_attend_job job) { attend(KV_F8, 8, 4, &job); }
