// What a step is told: checked, packed into one copy, and the rotary frequencies of its sequences.

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cuda/cuda_backend.h"

#define TURN 6.283185307179586476925 // radians

static uint64_t reserve(uint64_t *used, uint64_t count)
{
    uint64_t at = *used;

    *used += (count * sizeof(uint32_t) + 63) & ~(uint64_t)63;
    return at;
}

void ew_cuda_batch_shape(struct ew_cuda_batch *batch, const struct ew_program *program, const struct ew_limits *limits)
{
    uint64_t n = limits->n_tokens_max, used = 0;
    uint64_t blocks = ((uint64_t)limits->context_max + limits->block_tokens - 1) / limits->block_tokens;

    batch->token = reserve(&used, n);
    batch->position = reserve(&used, n * program->n_position_dims);
    batch->token_seq = reserve(&used, n);
    batch->token_index = reserve(&used, n);
    batch->token_scale = reserve(&used, n);
    batch->segment = reserve(&used, n);
    batch->selected = reserve(&used, limits->n_logits_max);
    batch->seq_total = reserve(&used, limits->n_seqs_max);
    batch->seq_first = reserve(&used, (uint64_t)limits->n_seqs_max + 1);
    batch->table_at = reserve(&used, (uint64_t)program->n_groups * limits->n_seqs_max);
    batch->tables_max = program->n_groups * limits->n_seqs_max * blocks;
    batch->tables = reserve(&used, batch->tables_max);
    batch->bytes = used;
}

// ---- checks -------------------------------------------------------------------------------------

static uint32_t blocks_of(const struct ew_cuda_backend *backend, const struct ew_batch_seq *seq, uint32_t group)
{
    uint32_t tokens = seq->n_past + seq->n_tokens;

    if (backend->program->groups[group].kind == EW_CACHE_STATE)
        return 1;
    return tokens / backend->limits.block_tokens + (tokens % backend->limits.block_tokens != 0);
}

static int check_blocks(const struct ew_cuda_backend *backend, const struct ew_batch_seq *seq, uint32_t group,
                        struct ew_error *err)
{
    const struct ew_cache_group *shape = &backend->program->groups[group];
    uint32_t first = 0;

    if (shape->kind == EW_CACHE_WINDOW && seq->n_past + 1 > shape->window)
        first = (seq->n_past + 1 - shape->window) / backend->limits.block_tokens;
    for (uint32_t i = first; i < blocks_of(backend, seq, group); i++) {
        int32_t block = seq->blocks[group][i];

        if (block < 0 || (uint32_t)block >= backend->caches[group].n_blocks)
            return ew_fail(err, EW_ERR_USAGE, "block %u of a sequence is %d, but its pool has %u blocks", i, block,
                           backend->caches[group].n_blocks);
    }
    return 0;
}

static int check_seq(const struct ew_cuda_backend *backend, const struct ew_batch *batch,
                     const struct ew_batch_seq *seq, uint32_t first, struct ew_error *err)
{
    if (seq->first != first || seq->n_tokens == 0 || seq->n_tokens > batch->n_tokens - first)
        return ew_fail(err, EW_ERR_USAGE, "the sequences of a batch do not follow each other");
    if (seq->no_cache != backend->is_uncached)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend leaves caches out for whole programs only");
    if (seq->no_cache && seq->n_past)
        return ew_fail(err, EW_ERR_USAGE, "a sequence without a cache cannot have a past");
    if (seq->n_past > backend->limits.context_max || seq->n_tokens > backend->limits.context_max - seq->n_past)
        return ew_fail(err, EW_ERR_LIMIT, "a sequence of %llu tokens is past the context of %u",
                       (unsigned long long)seq->n_past + seq->n_tokens, backend->limits.context_max);
    for (uint32_t group = 0; group < backend->program->n_groups && !seq->no_cache; group++) {
        int rc = check_blocks(backend, seq, group, err);

        if (rc)
            return rc;
    }
    return 0;
}

static int check_token(const struct ew_cuda_backend *backend, const struct ew_batch *batch, const struct ew_op *op,
                       uint32_t t, struct ew_error *err)
{
    bool by_segment = op->kind == EW_OP_POSITION && op->position.by_segment;
    int64_t row = op->kind == EW_OP_EMBED ? batch->token[t]
                  : by_segment            ? (batch->segment ? batch->segment[t] : 0)
                                          : (int64_t)batch->position[t] + op->position.first;

    if (op->kind == EW_OP_EMBED && row < 0)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend takes no rows of embeddings yet");
    if (row < 0 || row >= backend->matrices[op->weight].rows)
        return ew_fail(err, EW_ERR_LIMIT, "%s %lld is outside the %u that the model has",
                       op->kind == EW_OP_EMBED ? "token id" : by_segment ? "token type" : "position", (long long)row,
                       backend->matrices[op->weight].rows);
    return 0;
}

static int check_tokens(const struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    for (uint32_t i = 0; i < backend->program->n_ops; i++) {
        const struct ew_op *op = &backend->program->ops[i];

        if (op->kind != EW_OP_EMBED && op->kind != EW_OP_POSITION)
            continue;
        for (uint32_t t = 0; t < batch->n_tokens; t++) {
            int rc = check_token(backend, batch, op, t, err);

            if (rc)
                return rc;
        }
    }
    return 0;
}

int ew_cuda_batch_check(const struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    const struct ew_limits *limits = &backend->limits;
    uint32_t first = 0, n_logits = 0;

    if (batch->n_tokens == 0 || batch->n_tokens > limits->n_tokens_max || batch->n_seqs > limits->n_seqs_max ||
        batch->n_logits > limits->n_logits_max)
        return ew_fail(err, EW_ERR_LIMIT, "a step of %u tokens, %u sequences and %u logits is past what was prepared",
                       batch->n_tokens, batch->n_seqs, batch->n_logits);
    if (batch->span)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend has no masks of image spans yet");
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        int rc = check_seq(backend, batch, &batch->seqs[i], first, err);

        if (rc)
            return rc;
        first += batch->seqs[i].n_tokens;
    }
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        n_logits += batch->want_logits[i] != 0;
    if (first != batch->n_tokens || n_logits != batch->n_logits)
        return ew_fail(err, EW_ERR_USAGE, "the tokens of a batch do not add up");
    return check_tokens(backend, batch, err);
}

// ---- rotary frequencies -------------------------------------------------------------------------

static double dynamic_base(const struct ew_rope *rope, uint32_t span)
{
    double n = rope->n_dims, factor = rope->dynamic_factor;

    if (rope->dynamic_base <= 0 || span <= rope->span_short_max || rope->n_dims <= 2)
        return 0;
    return rope->dynamic_base * pow(factor * span / rope->span_short_max - (factor - 1), n / (n - 2));
}

static uint64_t kind_of(const struct ew_rope *rope, uint32_t span)
{
    if (dynamic_base(rope, span) > 0)
        return 3 + (uint64_t)span;
    return rope->freq_long && span > rope->span_short_max ? 2 : 1;
}

// From the stack, which the driver copies before it returns; on the step's own stream, since a copy without one may
// still be under way when the step begins.
static int send_frequencies(struct ew_cuda_backend *backend, uint32_t index, uint32_t seq, uint32_t span,
                            struct ew_error *err)
{
    const struct ew_rope *rope = &backend->program->ropes[index];
    struct ew_cuda_rope *to = &backend->work.ropes[index];
    const struct ew_cuda_driver *driver = &backend->device.driver;
    uint64_t kind = kind_of(rope, span);
    double dynamic = dynamic_base(rope, span), frequency[EW_CUDA_HEAD_DIM_MAX / 2];
    float scale = kind == 2 ? rope->scale_long : rope->scale_short;
    uint32_t half = rope->n_dims / 2;
    int rc;

    if (to->kinds[seq] == kind)
        return 0;
    for (uint32_t i = 0; i < half; i++)
        frequency[i] = (dynamic > 0 ? pow(dynamic, -2.0 * i / rope->n_dims)
                        : kind == 2 ? rope->freq_long[i]
                                    : rope->freq_short[i]) / TURN;
    rc = ew_cuda_check(&backend->device,
                       driver->cuMemcpyHtoDAsync_v2(to->frequency + (uint64_t)seq * half * sizeof(double),
                                                    frequency, half * sizeof(double), backend->device.stream),
                       "copying frequencies", err);
    if (rc == 0)
        rc = ew_cuda_check(&backend->device,
                           driver->cuMemcpyHtoDAsync_v2(to->scale + seq * sizeof(float), &scale, sizeof(scale),
                                                        backend->device.stream),
                           "copying a scale", err);
    if (rc == 0)
        to->kinds[seq] = kind;
    return rc;
}

// ---- the copy -----------------------------------------------------------------------------------

// Growth of queries with their position; one set of parameters a program (ew_cuda_supports sees to it).
static void fill_scales(const struct ew_cuda_backend *backend, const struct ew_batch *batch, float *scale)
{
    for (uint32_t i = 0; i < backend->program->n_ops; i++) {
        const struct ew_op *op = &backend->program->ops[i];
        float beta = op->attention.q_scale_beta;

        if (op->kind != EW_OP_ATTENTION || beta == 0 || op->attention.q_scale_floor == 0)
            continue;
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            scale[t] = (float)(1 + beta * log(1 + floor(((double)batch->position[t] + op->attention.q_scale_offset) /
                                                        op->attention.q_scale_floor)));
        return;
    }
}

static void fill_tokens(const struct ew_cuda_backend *backend, const struct ew_batch *batch)
{
    const struct ew_cuda_batch *to = &backend->work.batch;
    uint32_t *seq_of = (uint32_t *)(to->host + to->token_seq), *index = (uint32_t *)(to->host + to->token_index);
    uint32_t *selected = (uint32_t *)(to->host + to->selected), n_selected = 0;
    uint32_t *segment = (uint32_t *)(to->host + to->segment);

    memcpy(to->host + to->token, batch->token, batch->n_tokens * sizeof(*batch->token));
    memcpy(to->host + to->position, batch->position,
           (size_t)batch->n_tokens * backend->program->n_position_dims * sizeof(*batch->position));
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        const struct ew_batch_seq *seq = &batch->seqs[s];

        for (uint32_t i = 0; i < seq->n_tokens; i++) {
            seq_of[seq->first + i] = s;
            index[seq->first + i] = seq->n_past + i;
        }
    }
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        if (batch->want_logits[t])
            selected[n_selected++] = t;
    }
    for (uint32_t t = 0; t < batch->n_tokens; t++)
        segment[t] = batch->segment ? batch->segment[t] : 0;
    fill_scales(backend, batch, (float *)(to->host + to->token_scale));
}

// Returns the bytes of the whole copy that are in use.
static uint64_t fill_tables(const struct ew_cuda_backend *backend, const struct ew_batch *batch)
{
    const struct ew_cuda_batch *to = &backend->work.batch;
    uint32_t *total = (uint32_t *)(to->host + to->seq_total), *at = (uint32_t *)(to->host + to->table_at), used = 0;
    uint32_t *first = (uint32_t *)(to->host + to->seq_first);
    int32_t *tables = (int32_t *)(to->host + to->tables);

    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        const struct ew_batch_seq *seq = &batch->seqs[s];
        total[s] = seq->n_past + seq->n_tokens;
        first[s] = seq->first;
        for (uint32_t g = 0; g < backend->program->n_groups; g++) {
            uint32_t n_blocks = blocks_of(backend, seq, g);

            EW_ASSERT(used + n_blocks <= to->tables_max);
            at[g * backend->limits.n_seqs_max + s] = used;
            for (uint32_t i = 0; i < n_blocks && seq->no_cache; i++)
                tables[used + i] = (int32_t)(used + i); // one group: each text has blocks of its own
            if (!seq->no_cache)
                memcpy(tables + used, seq->blocks[g], n_blocks * sizeof(*tables));
            used += n_blocks;
        }
    }
    first[batch->n_seqs] = batch->n_tokens;
    return to->tables + (uint64_t)used * sizeof(*tables);
}

int ew_cuda_batch_send(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    const struct ew_cuda_batch *to = &backend->work.batch;
    uint64_t bytes, from;

    for (uint32_t i = 0; i < backend->program->n_ropes; i++) {
        for (uint32_t s = 0; s < batch->n_seqs; s++) {
            int rc = send_frequencies(backend, i, s, batch->seqs[s].rope_span, err);

            if (rc)
                return rc;
        }
    }
    fill_tokens(backend, batch);
    bytes = fill_tables(backend, batch);
    from = batch->follows ? to->position : 0; // the step before picks its tokens where this one reads them
    return ew_cuda_check(device,
                         device->driver.cuMemcpyHtoDAsync_v2(to->device + from, to->host + from, bytes - from,
                                                             device->stream),
                         "copying a batch", err);
}
