// Mixers whose past is a state: causal convolutions over tokens (CONV) and linear recurrences (SCAN). States are f32,
// and lie in blocks of a STATE cache group. Tokens go one after the other, so that chunks, single steps and batches
// give the same bits; what is wide is a head.

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cpu/cpu_backend.h"

#define CHANNELS 256u // of a work item of CONV
#define TOKENS 32u    // that a work item of SCAN prepares together

static uint32_t conv_items(uint32_t width)
{
    return (width + CHANNELS - 1) / CHANNELS;
}

uint64_t ew_cpu_state_scratch(const struct ew_program *program)
{
    uint64_t floats = 0;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_CONV)
            floats = EW_MAX(floats, (uint64_t)op->conv.n_taps * CHANNELS);
        else if (op->kind == EW_OP_SCAN)
            floats = EW_MAX(floats, 2ull * TOKENS * (op->scan.k_dim + 1));
    }
    return floats;
}

static uint32_t items_of(const struct ew_cpu_backend *backend, const struct ew_op *op)
{
    return op->kind == EW_OP_CONV ? conv_items(backend->program->slot_width[op->out]) : op->scan.n_heads;
}

uint32_t ew_cpu_state_items(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step)
{
    return backend->batch->n_seqs * items_of(backend, &backend->program->ops[step->op]);
}

static const float *vector_of(const struct ew_cpu_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? NULL : backend->vectors[weight];
}

// Rows of a sequence's tokens in one buffer.
struct rows {
    float *first;
    uint64_t stride;
};

static struct rows rows_of(const struct ew_cpu_backend *backend, uint32_t buffer, const struct ew_batch_seq *seq)
{
    uint64_t stride = buffer == EW_CPU_NO_BUFFER ? 0 : backend->plan.buffers[buffer].width;

    return (struct rows){stride ? backend->work.buffers[buffer] + seq->first * stride : NULL, stride};
}

// ---- convolution --------------------------------------------------------------------------------

// The last rows of what came before and of this step's input, which become what came before.
static void conv_advance(float *past, uint32_t width, uint32_t n_past, const struct rows *in, uint32_t n_tokens,
                         uint32_t n)
{
    for (uint32_t j = 0; j < n_past; j++) { // what is read stands at or behind what is written
        uint32_t at = n_tokens + j;
        const float *from = at < n_past ? past + (uint64_t)at * width : in->first + (at - n_past) * in->stride;

        memmove(past + (uint64_t)j * width, from, n * sizeof(*past));
    }
}

// Channels [c, c + n) of a sequence.
static void conv_item(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step,
                      const struct ew_batch_seq *seq, uint32_t c, float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t width = backend->program->slot_width[op->out], n = EW_MIN(CHANNELS, width - c), n_taps = op->conv.n_taps;
    const float *weight = backend->vectors[op->weight] + (uint64_t)c * n_taps, *bias = vector_of(backend, op->bias);
    float *past = ew_cpu_cache_state(&backend->caches[op->conv.group], seq->blocks[op->conv.group][0],
                                     op->conv.cache_layer) +
                  c;
    struct rows in = rows_of(backend, step->in, seq), out = rows_of(backend, step->out, seq);
    const float *taps[EW_CONV_TAPS_MAX];

    in.first += c, out.first += c;
    for (uint32_t j = 0; j + 1 < n_taps && seq->n_past == 0; j++)
        memset(past + (uint64_t)j * width, 0, n * sizeof(*past));
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t tap = 0; tap < n_taps; tap++)
            scratch[tap * CHANNELS + i] = weight[(uint64_t)i * n_taps + tap];
    for (uint32_t t = 0; t < seq->n_tokens; t++) {
        float *row = out.first + t * out.stride;

        for (uint32_t tap = 0; tap < n_taps; tap++) {
            uint32_t at = t + tap; // among the n_taps - 1 rows of the past and this step's

            taps[tap] = at + 1 < n_taps ? past + (uint64_t)at * width : in.first + (at + 1 - n_taps) * in.stride;
        }
        backend->ops.conv(row, taps, scratch, CHANNELS, bias ? bias + c : NULL, n_taps, n);
        backend->ops.act(row, row, n, op->conv.act);
    }
    conv_advance(past, width, n_taps - 1, &in, seq->n_tokens, n);
}

// ---- recurrence ---------------------------------------------------------------------------------

// A head of a sequence: where its columns are, and what it prepares for a run of tokens.
struct head {
    const struct ew_cpu_backend *backend;
    const struct ew_op *op;
    uint32_t head, group;
    struct rows in, step, gain;
    float *q, *k;         // [TOKENS, k_dim]
    float *decay, *gains; // [TOKENS]
};

// Scales to length 1 (times factor), as the RMS norm of n elements does but for sqrt(n). 1e-6 is the published
// models' and stands beside the sum of squares.
static void unit_row(const struct ew_cpu_ops *ops, float *out, const float *in, uint32_t n, float factor)
{
    ops->norm[EW_NORM_RMS](out, in, NULL, NULL, n, 1e-6f / (float)n, 0);
    ops->scale(out, out, n, factor / sqrtf((float)n));
}

static void prepare_keys(const struct head *h, uint32_t t, uint32_t i)
{
    const struct ew_op *op = h->op;
    uint32_t k_dim = op->scan.k_dim;
    const float *row = h->in.first + t * h->in.stride, *q = row + op->scan.q_first + h->group * k_dim,
                *k = row + op->scan.k_first + h->group * k_dim;

    if (op->scan.is_delta) {
        unit_row(&h->backend->ops, h->q + i * k_dim, q, k_dim, 1 / sqrtf((float)k_dim));
        unit_row(&h->backend->ops, h->k + i * k_dim, k, k_dim, 1);
    } else {
        memcpy(h->q + i * k_dim, q, k_dim * sizeof(*q));
        memcpy(h->k + i * k_dim, k, k_dim * sizeof(*k));
    }
}

static float softplus(float x)
{
    return x > 20 ? x : log1pf(expf(x)); // the difference is below f32's resolution
}

static void prepare_gates(const struct head *h, uint32_t t, uint32_t i)
{
    const struct ew_op *op = h->op;
    float rate = h->backend->vectors[op->weight][h->head], bias = h->backend->vectors[op->bias][h->head];
    float step = softplus(h->step.first[t * h->step.stride + h->head] + bias);

    h->decay[i] = expf(rate * step);
    h->gains[i] = op->scan.is_delta ? 1 / (1 + expf(-h->gain.first[t * h->gain.stride + h->head])) : step;
}

static void scan_item(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step,
                      const struct ew_batch_seq *seq, uint32_t head, float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t k_dim = op->scan.k_dim, v_dim = op->scan.v_dim, heads_per_group = op->scan.n_heads / op->scan.n_groups;
    const float *skip = vector_of(backend, op->scan.skip);
    struct rows out = rows_of(backend, step->out, seq);
    struct head h = {.backend = backend,
                     .op = op,
                     .head = head,
                     .group = op->scan.is_tiled ? head % op->scan.n_groups : head / heads_per_group,
                     .in = rows_of(backend, step->in, seq),
                     .step = rows_of(backend, step->in2, seq),
                     .gain = rows_of(backend, step->in3, seq),
                     .q = scratch};
    struct ew_cpu_scan job = {.k_dim = k_dim,
                              .v_dim = v_dim,
                              .v_stride = (uint32_t)h.in.stride,
                              .out_stride = (uint32_t)out.stride,
                              .is_delta = op->scan.is_delta,
                              .skip = skip ? skip[head] : 0};

    job.state = ew_cpu_cache_state(&backend->caches[op->scan.group], seq->blocks[op->scan.group][0],
                                   op->scan.cache_layer) +
                op->scan.state_first + (uint64_t)head * k_dim * v_dim;
    if (seq->n_past == 0)
        memset(job.state, 0, (size_t)k_dim * v_dim * sizeof(*job.state));
    job.q = h.q, job.k = h.k = h.q + (uint64_t)TOKENS * k_dim;
    job.decay = h.decay = h.k + (uint64_t)TOKENS * k_dim, job.gain = h.gains = h.decay + TOKENS;
    for (uint32_t t = 0; t < seq->n_tokens; t += TOKENS) {
        job.n_tokens = EW_MIN(TOKENS, seq->n_tokens - t);
        for (uint32_t i = 0; i < job.n_tokens; i++) {
            prepare_keys(&h, t + i, i);
            prepare_gates(&h, t + i, i);
        }
        job.v = h.in.first + t * h.in.stride + op->scan.v_first + head * v_dim;
        job.out = out.first + t * out.stride + head * v_dim;
        backend->ops.scan(&job);
    }
}

void ew_cpu_state_run(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t from, uint32_t to,
                      float *scratch)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t n_items = items_of(backend, op);

    for (uint32_t item = from; item < to; item++) {
        const struct ew_batch_seq *seq = &backend->batch->seqs[item / n_items];

        if (op->kind == EW_OP_CONV)
            conv_item(backend, step, seq, item % n_items * CHANNELS, scratch);
        else
            scan_item(backend, step, seq, item % n_items, scratch);
    }
}
