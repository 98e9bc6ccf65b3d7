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

// ---- the reference: one token and head at a time, two passes, sums in double ----------------------------------------

// Row of K or V of key `index`, decoded into row where it is in a cache.
static const float *key_row(const struct job *job, const struct ew_batch_seq *seq, uint32_t index, uint32_t head,
                            bool of_v, float *row)
{
    const struct ew_cpu_cache *cache = job->cache;
    uint32_t dim = of_v ? job->op->attention.v_dim : job->op->attention.head_dim, in_block;
    struct ew_cpu_kv_tile tile;
    uint64_t offset;

    if (seq->no_cache)
        return (of_v ? job->v : job->k) + (uint64_t)(seq->first + index) * (of_v ? job->v_stride : job->k_stride) +
               head * dim;
    in_block = index % cache->block_tokens;
    offset = (uint64_t)in_block * dim * ew_cpu_kv_bytes(cache->dtype);
    tile = ew_cpu_cache_tile(cache, seq->blocks[job->op->attention.group][index / cache->block_tokens],
                             job->op->attention.cache_layer, head);
    job->backend->ops.kv_decode(cache->dtype, (of_v ? tile.v : tile.k) + offset,
                                (of_v ? tile.v_scale : tile.k_scale) + in_block, 1, dim, row, dim);
    return row;
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
    float scale = query_scale(op, backend->batch, t), max = job->sinks ? job->sinks[head] : -INFINITY;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        backend->ops.scores(score + i, q, key_row(job, seq, keys.begin + i, kv_head, false, row), 1,
                            op->attention.head_dim, scale);
    adjust(job, score, n, keys.begin, token.index, head);
    for (uint32_t i = 0; i < n; i++)
        max = fmaxf(max, score[i]);
    if (job->sinks)
        sum = exp((double)job->sinks[head] - max);
    for (uint32_t i = 0; i < n; i++)
        sum += score[i] = (float)exp((double)score[i] - max);
    memset(out, 0, v_dim * sizeof(*out));
    for (uint32_t i = 0; i < n; i++)
        backend->ops.values(out, score + i, key_row(job, seq, keys.begin + i, kv_head, true, row), 1, v_dim, 1);
    backend->ops.scale(out, out, v_dim, (float)(1 / sum));
}

uint64_t ew_cpu_attention_scratch(const struct ew_program *program, const struct ew_limits *limits)
{
    uint64_t keys = EW_MAX(limits->context_max, limits->n_tokens_max), dims = 0;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_ATTENTION)
            dims = EW_MAX(dims, EW_MAX(op->attention.head_dim, op->attention.v_dim));
    }
    return dims ? keys + dims : 0;
}

void ew_cpu_attention_run(struct ew_cpu_backend *backend, const struct ew_cpu_step *step, _Atomic uint32_t *next,
                          float *scratch)
{
    const struct ew_program *program = backend->program;
    const struct ew_op *op = &program->ops[step->op];
    const struct ew_cpu_buffer *buffers = backend->plan.buffers;
    uint32_t n_items = backend->batch->n_tokens * op->attention.n_heads, item;
    struct job job = {
        .backend = backend, .op = op, .cache = program->n_groups ? &backend->caches[op->attention.group] : NULL,
        .q = backend->work.buffers[step->in], .q_stride = buffers[step->in].width,
        .out = backend->work.buffers[step->out], .out_stride = buffers[step->out].width,
        .sinks = op->attention.sinks == EW_WEIGHT_NONE ? NULL : backend->vectors[op->attention.sinks],
    };

    if (step->in2 != EW_CPU_NO_BUFFER) {
        job.k = backend->work.buffers[step->in2], job.k_stride = buffers[step->in2].width;
        job.v = backend->work.buffers[step->in3], job.v_stride = buffers[step->in3].width;
    }
    while ((item = atomic_fetch_add_explicit(next, 1, memory_order_relaxed)) < n_items)
        attend_plainly(&job, item / op->attention.n_heads, item % op->attention.n_heads, scratch);
}
