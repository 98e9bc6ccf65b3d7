// Attention over paged caches. Tokens are known by their index in the sequence: masks, windows and chunks count tokens,
// not rotary positions.

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cpu/cpu_backend.h"

struct range { // of key indices, the end excluded
    uint32_t begin, end;
};

struct job {
    const struct ew_cpu_backend *backend;
    const struct ew_op *op;
    const struct ew_cpu_cache *cache; // NULL where the program has none
    uint32_t k_own;                   // elements of a key past those that it shares with its value (LATENT)
    const float *q, *k, *v, *sinks;
    float *out;
    uint32_t q_stride, k_stride, v_stride, out_stride;
};

// The image span around token t: a run of equal span numbers inside its sequence.
static struct range span_of(const struct ew_batch *batch, const struct ew_batch_seq *seq, uint32_t t)
{
    struct range run = {t, t + 1};

    while (run.begin > seq->first && batch->span[run.begin - 1] == batch->span[t])
        run.begin--;
    while (run.end < seq->first + seq->n_tokens && batch->span[run.end] == batch->span[t])
        run.end++;
    return run;
}

// The keys that token t of the batch sees. A window of w is the token and the w - 1 before it; of a bidirectional mask
// it is w / 2 tokens to each side.
static struct range visible(const struct ew_op *op, const struct ew_batch *batch, struct ew_cpu_token token, uint32_t t)
{
    const struct ew_batch_seq *seq = &batch->seqs[token.seq];
    uint32_t past = token.index - (t - seq->first), all = past + seq->n_tokens, window = op->attention.window;
    struct range keys = {0, token.index + 1};

    if (op->attention.mask == EW_MASK_BIDIRECTIONAL) {
        keys.end = window ? EW_MIN(all, token.index + window / 2 + 1) : all;
        keys.begin = window && token.index > window / 2 ? token.index - window / 2 : 0;
        return keys;
    }
    if (window && token.index >= window)
        keys.begin = token.index + 1 - window;
    if (op->attention.chunk)
        keys.begin = EW_MAX(keys.begin, token.index / op->attention.chunk * op->attention.chunk);
    if (op->attention.mask == EW_MASK_IMAGE_SPAN && batch->span && batch->span[t]) {
        struct range run = span_of(batch, seq, t);

        keys.begin = EW_MIN(keys.begin, past + run.begin - seq->first);
        keys.end = past + run.end - seq->first;
    }
    return keys;
}

// Factor on the query: the scale of the scores and, for some families, a slow growth with position.
static float query_scale(const struct ew_op *op, const struct ew_batch *batch, uint32_t t)
{
    uint32_t step = op->attention.q_scale_floor;
    float beta = op->attention.q_scale_beta;

    if (beta == 0 || step == 0)
        return op->attention.scale;
    return (float)(op->attention.scale *
                   (1 + beta * log(1 + floor(((double)batch->position[t] + op->attention.q_scale_offset) / step))));
}

// Softcap and distance bias of the scores of keys [begin, begin + n).
static void adjust(const struct job *job, float *score, uint32_t n, uint32_t begin, uint32_t index, uint32_t head)
{
    const struct ew_op *op = job->op;

    if (op->attention.softcap > 0)
        job->backend->ops.softcap(score, score, n, op->attention.softcap);
    if (op->attention.alibi) {
        for (uint32_t i = 0; i < n; i++)
            score[i] -= op->attention.alibi[head] * fabsf((float)index - (float)(begin + i));
    }
}

// ---- the reference: one token and head at a time, two passes, sums in double --------------------

// What K or V holds of key `index`, written to row.
static void read_stored(const struct job *job, const struct ew_batch_seq *seq, uint32_t index, uint32_t head, bool of_v,
                        float *row)
{
    const struct ew_cpu_cache *cache = job->cache;
    uint32_t dim = of_v ? job->op->attention.v_dim : job->k_own, in_block;
    struct ew_cpu_kv_tile tile;
    uint64_t offset;

    if (seq->no_cache) {
        memcpy(row,
               (of_v ? job->v : job->k) + (uint64_t)(seq->first + index) * (of_v ? job->v_stride : job->k_stride) +
                   head * dim,
               dim * sizeof(*row));
        return;
    }
    in_block = index % cache->block_tokens;
    offset = (uint64_t)in_block * dim * ew_cpu_kv_bytes(cache->dtype);
    tile = ew_cpu_cache_tile(cache, seq->blocks[job->op->attention.group][index / cache->block_tokens],
                             job->op->attention.cache_layer, head);
    job->backend->ops.kv_decode(cache->dtype, (of_v ? tile.v : tile.k) + offset,
                                (of_v ? tile.v_scale : tile.k_scale) + in_block, 1, dim, row, dim);
}

static const float *value_row(const struct job *job, const struct ew_batch_seq *seq, uint32_t index, uint32_t head,
                              float *row)
{
    read_stored(job, seq, index, head, true, row);
    return row;
}

static const float *key_row(const struct job *job, const struct ew_batch_seq *seq, uint32_t index, uint32_t head,
                            float *row)
{
    uint32_t shared = job->op->attention.head_dim - job->k_own;

    if (shared)
        read_stored(job, seq, index, head, true, row);
    read_stored(job, seq, index, head, false, row + shared);
    return row;
}

static float dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return (float)sum;
}

static void attend_plainly(const struct job *job, uint32_t t, uint32_t head, float *scratch)
{
    const struct ew_cpu_backend *backend = job->backend;
    const struct ew_op *op = job->op;
    struct ew_cpu_token token = backend->work.tokens[t];
    const struct ew_batch_seq *seq = &backend->batch->seqs[token.seq];
    struct range keys = visible(op, backend->batch, token, t);
    uint32_t v_dim = op->attention.v_dim, kv_head = head / (op->attention.n_heads / op->attention.n_kv_heads),
             n = keys.end - keys.begin;
    const float *q = job->q + (uint64_t)t * job->q_stride + head * op->attention.head_dim;
    float *out = job->out + (uint64_t)t * job->out_stride + head * v_dim, *row = scratch,
          *score = row + EW_MAX(op->attention.head_dim, v_dim);
    float one = 1, scale = query_scale(op, backend->batch, t), max = job->sinks ? job->sinks[head] : -INFINITY;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        score[i] = dot(q, key_row(job, seq, keys.begin + i, kv_head, row), op->attention.head_dim);
    backend->ops.scale(score, score, n, scale);
    adjust(job, score, n, keys.begin, token.index, head);
    for (uint32_t i = 0; i < n; i++)
        max = fmaxf(max, score[i]);
    if (job->sinks)
        sum = exp((double)job->sinks[head] - max);
    for (uint32_t i = 0; i < n; i++)
        sum += score[i] = (float)exp((double)score[i] - max);
    memset(out, 0, v_dim * sizeof(*out));
    for (uint32_t i = 0; i < n; i++)
        backend->ops.values(out, &one, score + i, 1, 1, value_row(job, seq, keys.begin + i, kv_head, row), 1,
                            v_dim);
    backend->ops.scale(out, out, v_dim, (float)(1 / sum));
}

// ---- tiles: some tokens of a sequence and heads of one KV head, keys EW_CPU_KEYS at a time, softmax on the way
//
// Tiles of keys begin at multiples of EW_CPU_KEYS of the sequence, and each query takes of a tile what it sees:
// its result depends on nothing but its keys. Keys and values are decoded to f32 once for all queries of the
// item. Where many heads share one KV head, an item has ITEM_HEADS of them, so that threads find work in one token,
// too.

#define ITEM_HEADS 16

struct tile_item {
    uint32_t n_queries, first_head, n_heads, kv_head, k_dim, v_dim; // dims padded
    float *q, *acc;                                                 // [n_queries * n_heads, k_dim], [..., v_dim]
    float *max, *sum;                                               // [n_queries * n_heads]
    float *k, *v;                                                   // [EW_CPU_KEYS, k_dim], [EW_CPU_KEYS, v_dim]
    float *k_lanes;                                                 // [k_dim, EW_CPU_KEYS]
    float *score, *factor; // [n_queries * n_heads, EW_CPU_KEYS], [n_queries * n_heads]
    struct range keys[EW_CPU_QUERY_TOKENS];
};

static uint32_t padded(uint32_t dim)
{
    return (dim + EW_CPU_DIM - 1) & ~(uint32_t)(EW_CPU_DIM - 1);
}

static uint32_t heads_per_kv(const struct ew_op *op)
{
    return op->attention.n_heads / op->attention.n_kv_heads;
}

// Items that the heads of one KV head make.
static uint32_t slices_per_kv(const struct ew_op *op)
{
    return (heads_per_kv(op) + ITEM_HEADS - 1) / ITEM_HEADS;
}

static uint64_t tile_scratch(const struct ew_op *op)
{
    uint64_t rows = (uint64_t)EW_CPU_QUERY_TOKENS * EW_MIN(heads_per_kv(op), ITEM_HEADS);
    uint64_t k_dim = padded(op->attention.head_dim), v_dim = padded(op->attention.v_dim);

    return rows * (k_dim + v_dim + EW_CPU_KEYS) + 3 * padded((uint32_t)rows) + EW_CPU_KEYS * (2 * k_dim + v_dim);
}

static void carve_item(const struct ew_op *op, struct tile_item *item, float *scratch)
{
    uint32_t rows = item->n_queries * item->n_heads;

    item->q = scratch;
    item->acc = item->q + (uint64_t)rows * item->k_dim;
    item->k = item->acc + (uint64_t)rows * item->v_dim;
    item->v = item->k + (uint64_t)EW_CPU_KEYS * item->k_dim;
    item->k_lanes = item->v + (uint64_t)EW_CPU_KEYS * item->v_dim;
    item->score = item->k_lanes + (uint64_t)EW_CPU_KEYS * item->k_dim;
    item->max = item->score + (uint64_t)rows * EW_CPU_KEYS;
    item->sum = item->max + padded(rows);
    item->factor = item->sum + padded(rows);
    memset(item->acc, 0, (size_t)rows * item->v_dim * sizeof(*item->acc));
    if (item->k_dim != op->attention.head_dim) { // padding must be zero, and scratch has had other uses
        memset(item->q, 0, (size_t)rows * item->k_dim * sizeof(*item->q));
        memset(item->k, 0, (size_t)EW_CPU_KEYS * item->k_dim * sizeof(*item->k));
    }
    if (item->v_dim != op->attention.v_dim)
        memset(item->v, 0, (size_t)EW_CPU_KEYS * item->v_dim * sizeof(*item->v));
}

static void begin_item(const struct job *job, const struct ew_cpu_query *query, struct tile_item *item)
{
    const struct ew_op *op = job->op;
    uint32_t dim = op->attention.head_dim, first_head = item->first_head;

    for (uint32_t i = 0; i < item->n_queries; i++) {
        const float *q = job->q + (uint64_t)(query->first + i) * job->q_stride + first_head * dim;

        float scale = query_scale(op, job->backend->batch, query->first + i);

        item->keys[i] = visible(op, job->backend->batch, job->backend->work.tokens[query->first + i], query->first + i);
        for (uint32_t h = 0; h < item->n_heads; h++) {
            uint32_t row = i * item->n_heads + h;

            job->backend->ops.scale(item->q + (uint64_t)row * item->k_dim, q + h * dim, dim, scale);
            item->max[row] = job->sinks ? job->sinks[first_head + h] : -INFINITY;
            item->sum[row] = job->sinks ? 1 : 0;
        }
    }
}

// The beginnings of keys, which are their values.
static void share_values(const struct tile_item *item, const float *v, float *k, uint32_t n_keys, uint32_t n)
{
    for (uint32_t i = 0; i < n_keys && n; i++)
        memcpy(k + (uint64_t)i * item->k_dim, v + (uint64_t)i * item->v_dim, n * sizeof(*k));
}

// Decodes keys [begin, end) of a tile, which lie in one or more blocks.
static void load_tile(const struct job *job, const struct ew_batch_seq *seq, const struct tile_item *item,
                      uint32_t begin, uint32_t end)
{
    const struct ew_cpu_cache *cache = job->cache;
    const struct ew_op *op = job->op;
    uint32_t shared = op->attention.head_dim - job->k_own;

    while (begin < end) {
        uint32_t row = begin % EW_CPU_KEYS, n = 1;
        float *k = item->k + (uint64_t)row * item->k_dim, *v = item->v + (uint64_t)row * item->v_dim;

        if (seq->no_cache) {
            memcpy(k + shared, job->k + (uint64_t)(seq->first + begin) * job->k_stride + item->kv_head * job->k_own,
                   job->k_own * sizeof(*k));
            memcpy(v, job->v + (uint64_t)(seq->first + begin) * job->v_stride + item->kv_head * op->attention.v_dim,
                   op->attention.v_dim * sizeof(*v));
        } else {
            uint32_t in_block = begin % cache->block_tokens, element = ew_cpu_kv_bytes(cache->dtype);
            struct ew_cpu_kv_tile tile = ew_cpu_cache_tile(
                cache, seq->blocks[op->attention.group][begin / cache->block_tokens], op->attention.cache_layer,
                item->kv_head);

            n = EW_MIN(end - begin, cache->block_tokens - in_block);
            job->backend->ops.kv_decode(cache->dtype, tile.k + (uint64_t)in_block * cache->k_dim * element,
                                        tile.k_scale + in_block, n, cache->k_dim, k + shared, item->k_dim);
            job->backend->ops.kv_decode(cache->dtype, tile.v + (uint64_t)in_block * cache->v_dim * element,
                                        tile.v_scale + in_block, n, cache->v_dim, v, item->v_dim);
        }
        share_values(item, v, k, n, shared);
        begin += n;
    }
}

static void ask_for(const uint8_t *from, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(from + i, 0, 2);
}

// Asks memory for the keys [begin, end) ahead of time: blocks lie anywhere, so that no hardware foresees them.
static void ask_for_tile(const struct job *job, const struct ew_batch_seq *seq, const struct tile_item *item,
                         uint32_t begin, uint32_t end)
{
    const struct ew_cpu_cache *cache = job->cache;
    uint64_t element = seq->no_cache ? 0 : ew_cpu_kv_bytes(cache->dtype);

    while (begin < end && !seq->no_cache) {
        uint32_t in_block = begin % cache->block_tokens, n = EW_MIN(end - begin, cache->block_tokens - in_block);
        struct ew_cpu_kv_tile tile = ew_cpu_cache_tile(
            cache, seq->blocks[job->op->attention.group][begin / cache->block_tokens], job->op->attention.cache_layer,
            item->kv_head);

        ask_for(tile.k + in_block * cache->k_dim * element, n * cache->k_dim * element);
        ask_for(tile.v + in_block * cache->v_dim * element, n * cache->v_dim * element);
        begin += n;
    }
}

// The scores of one query and head become shares relative to the largest score so far.
static void weigh_row(const struct job *job, const struct tile_item *item, uint32_t t, uint32_t row, uint32_t begin,
                      uint32_t n)
{
    float *score = item->score + (uint64_t)row * EW_CPU_KEYS + begin % EW_CPU_KEYS, max = item->max[row], factor;

    adjust(job, score, n, begin, job->backend->work.tokens[t].index,
           item->first_head + row % item->n_heads);
    max = job->backend->ops.largest(score, n, max);
    factor = item->max[row] == max ? 1 : expf(item->max[row] - max); // nothing is scaled where the maximum stays
    item->sum[row] = item->sum[row] * factor + job->backend->ops.exp_sum(score, n, max);
    item->max[row] = max;
    item->factor[row] = factor;
}

// Queries [i, end) of the item, which see the same keys of the tile.
static void attend_tile(const struct job *job, const struct tile_item *item, const struct ew_cpu_query *query,
                        uint32_t i, uint32_t end, struct range keys)
{
    const struct ew_cpu_ops *ops = &job->backend->ops;
    uint32_t row = i * item->n_heads, n_rows = (end - i) * item->n_heads;
    uint32_t first = keys.begin % EW_CPU_KEYS, n = keys.end - keys.begin;
    float *score = item->score + (uint64_t)row * EW_CPU_KEYS;

    ops->scores(score, item->q + (uint64_t)row * item->k_dim, n_rows, item->k_lanes, item->k_dim);
    for (uint32_t r = row; r < row + n_rows; r++)
        weigh_row(job, item, query->first + r / item->n_heads, r, keys.begin, n);
    ops->values(item->acc + (uint64_t)row * item->v_dim, item->factor + row, score + first, EW_CPU_KEYS, n_rows,
                item->v + (uint64_t)first * item->v_dim, n, item->v_dim);
}

static struct range of_tile(struct range keys, uint32_t begin, uint32_t end)
{
    return (struct range){EW_MAX(keys.begin, begin), EW_MIN(keys.end, end)};
}

static void attend_keys(const struct job *job, const struct tile_item *item, const struct ew_cpu_query *query,
                        uint32_t begin, uint32_t end)
{
    for (uint32_t i = 0, next; i < item->n_queries; i = next) {
        struct range keys = of_tile(item->keys[i], begin, end);

        for (next = i + 1; next < item->n_queries; next++) {
            struct range other = of_tile(item->keys[next], begin, end);

            if (other.begin != keys.begin || other.end != keys.end)
                break;
        }
        if (keys.begin < keys.end)
            attend_tile(job, item, query, i, next, keys);
    }
}

static void end_item(const struct job *job, const struct ew_cpu_query *query, const struct tile_item *item)
{
    uint32_t dim = job->op->attention.v_dim;

    for (uint32_t row = 0; row < item->n_queries * item->n_heads; row++) {
        uint32_t t = query->first + row / item->n_heads, head = item->first_head + row % item->n_heads;

        job->backend->ops.scale(job->out + (uint64_t)t * job->out_stride + head * dim,
                                item->acc + (uint64_t)row * item->v_dim, dim, 1 / item->sum[row]);
    }
}

static void attend_item(const struct job *job, const struct ew_cpu_query *query, uint32_t slice, float *scratch)
{
    const struct ew_op *op = job->op;
    uint32_t kv_head = slice / slices_per_kv(op), in_kv = slice % slices_per_kv(op) * ITEM_HEADS;
    const struct ew_batch_seq *seq = &job->backend->batch->seqs[job->backend->work.tokens[query->first].seq];
    struct tile_item item = {.n_queries = query->n_tokens,
                             .first_head = kv_head * heads_per_kv(op) + in_kv,
                             .n_heads = EW_MIN(ITEM_HEADS, heads_per_kv(op) - in_kv),
                             .kv_head = kv_head,
                             .k_dim = padded(op->attention.head_dim),
                             .v_dim = padded(op->attention.v_dim)};
    struct range all = {UINT32_MAX, 0};

    carve_item(op, &item, scratch);
    begin_item(job, query, &item);
    for (uint32_t i = 0; i < item.n_queries; i++) {
        all.begin = EW_MIN(all.begin, item.keys[i].begin);
        all.end = EW_MAX(all.end, item.keys[i].end);
    }
    for (uint32_t at = all.begin; at < all.end; at = (at / EW_CPU_KEYS + 1) * EW_CPU_KEYS) {
        uint32_t tile_end = EW_MIN((at / EW_CPU_KEYS + 1) * EW_CPU_KEYS, all.end);

        load_tile(job, seq, &item, at, tile_end);
        job->backend->ops.transpose(item.k, item.k_dim, item.k_lanes);
        ask_for_tile(job, seq, &item, tile_end, EW_MIN(tile_end + EW_CPU_KEYS, all.end));
        attend_keys(job, &item, query, at, tile_end);
    }
    end_item(job, query, &item);
}

// ---- both ---------------------------------------------------------------------------------------

uint64_t ew_cpu_attention_scratch(const struct ew_program *program, const struct ew_limits *limits)
{
    uint64_t keys = EW_MAX(limits->context_max, limits->n_tokens_max), floats = 0;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_ATTENTION) {
            floats = EW_MAX(floats, keys + EW_MAX(op->attention.head_dim, op->attention.v_dim));
            floats = EW_MAX(floats, tile_scratch(op));
        }
    }
    return floats;
}

// The reference takes one token and head at a time, the others a run of tokens and some heads of one KV head.
static bool is_plain(const struct ew_cpu_backend *backend)
{
    return backend->config.kernels == EW_KERNELS_REFERENCE;
}

uint32_t ew_cpu_attention_items(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step)
{
    const struct ew_op *op = &backend->program->ops[step->op];

    return is_plain(backend) ? backend->batch->n_tokens * op->attention.n_heads
                             : backend->n_queries * op->attention.n_kv_heads * slices_per_kv(op);
}

static bool is_latent(const struct ew_program *program, const struct ew_op *op)
{
    return program->n_groups && program->groups[op->attention.group].kind == EW_CACHE_LATENT;
}

static struct job job_of(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    const struct ew_cpu_buffer *buffers = backend->plan.buffers;
    struct job job = {
        .backend = backend,
        .op = op,
        .cache = backend->program->n_groups ? &backend->caches[op->attention.group] : NULL,
        .q = backend->work.buffers[step->in],
        .q_stride = buffers[step->in].width,
        .out = backend->work.buffers[step->out],
        .out_stride = buffers[step->out].width,
        .k_own = op->attention.head_dim - (is_latent(backend->program, op) ? op->attention.v_dim : 0),
        .sinks = op->attention.sinks == EW_WEIGHT_NONE ? NULL : backend->vectors[op->attention.sinks],
    };

    if (step->in2 != EW_CPU_NO_BUFFER) {
        job.k = backend->work.buffers[step->in2], job.k_stride = buffers[step->in2].width;
        job.v = backend->work.buffers[step->in3], job.v_stride = buffers[step->in3].width;
    }
    return job;
}

void ew_cpu_attention_run(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t from,
                          uint32_t to, float *scratch)
{
    struct job job = job_of(backend, step);
    uint32_t n = is_plain(backend) ? job.op->attention.n_heads : job.op->attention.n_kv_heads * slices_per_kv(job.op);

    for (uint32_t item = from; item < to; item++) {
        if (is_plain(backend))
            attend_plainly(&job, item / n, item % n, scratch);
        else
            attend_item(&job, &backend->work.queries[item / n], item % n, scratch);
    }
}
