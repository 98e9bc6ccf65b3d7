// What the launches of a step cost, by kind: those of one kind, in all layers, are recorded as a graph of their own and
// repeated. So each layer's weights come from memory as they do in a step, and nothing but the kernels is timed.
//
// What they leave in the workspace is not what the next kind would find there. Times do not depend on values but where
// experts are chosen, whose choice stays that of the step before.

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "kernel/cuda/cuda_experts.h"

#define SECONDS_LEAST 0.004 // of one measurement, of which ...
#define REPEATS 3           // ... the best of so many counts
#define LAUNCHES_MAX 2000

struct profile {
    struct ew_cuda_backend *backend;
    const struct ew_batch *batch;
    bool *only;
    void *graph; // executable; NULL: too many tokens for one
    struct ew_error *err;
};

// ---- what a kind is and has to do ---------------------------------------------------------------

static void add_word(char *out, size_t size, const char *word)
{
    size_t length = strlen(out);

    snprintf(out + length, size - length, "%s%s", length ? " " : "", word);
}

static void name_step(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step, char *out, size_t size)
{
    static const char *const others[] = {
        [EW_CPU_STEP_OP] = "",
        [EW_CPU_STEP_ROPE_TABLES] = "rope_tables",
        [EW_CPU_STEP_QUANTISE] = "quantise",
        [EW_CPU_STEP_APPEND] = "append",
        [EW_CPU_STEP_SORT] = "sort",
    };
    const struct ew_op *op = &backend->program->ops[step->op];
    char label[96];

    if (step->kind != EW_CPU_STEP_OP) {
        add_word(out, size, others[step->kind]);
        return;
    }
    ew_op_label(backend->program, op, label, sizeof(label));
    if (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS || op->kind == EW_OP_HEADS)
        add_word(out, size, strchr(label, ' ') ? strchr(label, ' ') + 1 : label);
    else if (op->kind != EW_OP_ALL_REDUCE)
        add_word(out, size, ew_op_name(op->kind));
}

static void name_unit(const struct ew_cuda_backend *backend, const struct ew_cuda_unit *unit, char *out, size_t size)
{
    out[0] = 0;
    for (uint32_t i = unit->first; i < unit->first + unit->count; i++)
        name_step(backend, &backend->plan.steps[i], out, size);
}

static double row_bytes(const struct ew_cuda_matrix *m)
{
    return (double)(ew_cuda_code_bytes(m->layout, m->cols) + ew_cuda_scale_bytes(m->layout, m->cols) +
                    ew_cuda_min_bytes(m->layout, m->cols));
}

// Keys that the tokens of a sequence see, summed over them; *last: those that are read at least once.
static double seen_keys(const struct ew_op *op, const struct ew_batch_seq *seq, double *once)
{
    double n = seq->n_tokens, past = seq->n_past, sum = n * past + n * (n + 1) / 2, window = op->attention.window;

    *once = past + n;
    if (window > 0 && *once > window) {
        sum = fmin(sum, n * window);
        *once = fmin(*once, window + n);
    }
    return sum;
}

static void add_attention(const struct profile *p, const struct ew_op *op, struct ew_profile_row *row)
{
    const struct ew_cuda_cache *cache = &p->backend->caches[op->attention.group];
    double token_bytes = (double)cache->layer_bytes / cache->block_tokens;

    for (uint32_t i = 0; i < p->batch->n_seqs; i++) {
        double once, sum = seen_keys(op, &p->batch->seqs[i], &once);

        row->bytes += once * token_bytes;
        row->flops += 2 * sum * op->attention.n_heads * (op->attention.head_dim + op->attention.v_dim);
    }
}

// Experts that some row is expected to choose, were all chosen alike.
static double experts_read(uint32_t n_experts, uint32_t n_active, uint32_t n_tokens)
{
    return n_experts * (1 - pow(1 - (double)n_active / n_experts, n_tokens));
}

static void add_product(const struct profile *p, const struct ew_op *op, uint32_t n_rows, struct ew_profile_row *row)
{
    const struct ew_weight *weight = &p->backend->program->weights[op->weight];
    const struct ew_cuda_matrix *m = &p->backend->matrices[op->weight];
    double rows = m->rows;

    if (op->kind == EW_OP_EXPERTS) {
        rows = (double)m->rows / weight->n_experts;
        row->flops += 2 * rows * m->cols * n_rows;
        rows *= experts_read(weight->n_experts, p->backend->plan.n_active, p->batch->n_tokens);
    } else {
        row->flops += 2 * rows * m->cols * n_rows;
    }
    row->bytes += rows * row_bytes(m);
}

// Slots share buffers, whose rows are as long as the longest of them.
static double slot_bytes(const struct profile *p, uint32_t buffer, uint32_t slot)
{
    if (buffer == EW_CPU_NO_BUFFER || slot == EW_SLOT_NONE)
        return 0;
    return (double)ew_cuda_step_rows(p->backend, p->batch, buffer) * p->backend->program->slot_width[slot] *
           sizeof(float);
}

static double appended_bytes(const struct profile *p, const struct ew_op *op)
{
    const struct ew_cuda_cache *cache = &p->backend->caches[op->attention.group];

    return (double)p->batch->n_tokens * cache->layer_bytes / cache->block_tokens;
}

// What attention reads of the cache is counted apart.
static double read_bytes(const struct profile *p, const struct ew_cpu_step *step)
{
    const struct ew_op *op = &p->backend->program->ops[step->op];
    bool attends = op->kind == EW_OP_ATTENTION && step->kind != EW_CPU_STEP_QUANTISE;
    double first = slot_bytes(p, step->in, op->in);
    double others = slot_bytes(p, step->in2, op->in2) + slot_bytes(p, step->in3, op->in3);

    if (step->kind == EW_CPU_STEP_ROPE_TABLES || step->kind == EW_CPU_STEP_SORT)
        return 0;
    if (op->kind == EW_OP_SELECT && !op->select.is_mean)
        return slot_bytes(p, step->out, op->out);
    if (!attends)
        return first + others;
    return step->kind == EW_CPU_STEP_APPEND ? others : first;
}

// The cosine and the sine of each pair.
static double table_bytes(const struct profile *p)
{
    double bytes = 0;

    for (uint32_t i = 0; i < p->backend->program->n_ropes; i++)
        bytes += (double)p->batch->n_tokens * p->backend->program->ropes[i].n_dims * sizeof(float);
    return bytes;
}

static double written_bytes(const struct profile *p, const struct ew_cpu_step *step)
{
    const struct ew_op *op = &p->backend->program->ops[step->op];

    switch (step->kind) {
    case EW_CPU_STEP_OP:
        return slot_bytes(p, step->out, op->out);
    case EW_CPU_STEP_ROPE_TABLES:
        return table_bytes(p);
    case EW_CPU_STEP_APPEND:
        return appended_bytes(p, op);
    case EW_CPU_STEP_QUANTISE: // a byte each, and two floats for a group
        return slot_bytes(p, step->in, op->in) * (1.0 / sizeof(float) + 2.0 / EW_CUDA_GROUP);
    default:
        return 0;
    }
}

// Between the first and the last step of a fused unit no activations have to move, but for a residual.
static void add_rows(const struct profile *p, const struct ew_cuda_unit *unit, struct ew_profile_row *row)
{
    const struct ew_cpu_step *first = &p->backend->plan.steps[unit->first];
    const struct ew_cpu_step *last = &p->backend->plan.steps[unit->first + unit->count - 1];

    row->bytes += read_bytes(p, first) + written_bytes(p, last);
    if (unit->count > 1 && p->backend->program->ops[last->op].kind == EW_OP_ADD)
        row->bytes += written_bytes(p, last);
}

static void add_unit(const struct profile *p, const struct ew_cuda_unit *unit, struct ew_profile_row *row)
{
    row->n_launches++;
    add_rows(p, unit, row);
    for (uint32_t i = unit->first; i < unit->first + unit->count; i++) {
        const struct ew_cpu_step *step = &p->backend->plan.steps[i];
        const struct ew_op *op = &p->backend->program->ops[step->op];

        if (step->kind != EW_CPU_STEP_OP)
            continue;
        if (op->kind == EW_OP_ATTENTION)
            add_attention(p, op, row);
        else if (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS || op->kind == EW_OP_HEADS)
            add_product(p, op, ew_cuda_step_rows(p->backend, p->batch, step->out), row);
    }
}

// ---- time ---------------------------------------------------------------------------------------

static int launch_once(struct profile *p)
{
    const struct ew_cuda_device *device = &p->backend->device;

    if (!p->graph)
        return ew_cuda_step_launch(p->backend, p->batch, p->err);
    return ew_cuda_check(device, device->driver.cuGraphLaunch(p->graph, device->stream), "a measurement", p->err);
}

static int time_launches(struct profile *p, uint32_t n, double *seconds)
{
    const struct ew_cuda_device *device = &p->backend->device;
    double started_s = ew_clock_s();
    int rc = 0;

    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = launch_once(p);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuStreamSynchronize(device->stream), "a measurement", p->err);
    *seconds = (ew_clock_s() - started_s) / n;
    return rc;
}

static int record(struct profile *p)
{
    const struct ew_cuda_device *device = &p->backend->device;
    void *graph = NULL;
    int rc = ew_cuda_check(device,
                           device->driver.cuStreamBeginCapture_v2(device->stream, EW_CUDA_CAPTURE_RELAXED),
                           "recording a step", p->err), status;

    if (rc)
        return rc;
    p->backend->device.way = ew_cuda_graph_way(p->backend, p->batch);
    rc = ew_cuda_step_launch(p->backend, p->batch, p->err);
    p->backend->device.way = EW_CUDA_WAY_EARLY;
    status = device->driver.cuStreamEndCapture(device->stream, &graph);
    if (rc == 0)
        rc = ew_cuda_check(device, status, "recording a step", p->err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuGraphInstantiateWithFlags(&p->graph, graph, 0),
                           "making a graph of a step", p->err);
    if (graph)
        (void)device->driver.cuGraphDestroy(graph);
    return rc;
}

// Each kernel once, in the order in which they were first launched.
static void name_kernels(struct ew_cuda_backend *backend, char *out, size_t size)
{
    const struct ew_cuda_launches *launches = &backend->launches;

    out[0] = 0;
    for (uint32_t i = 0; i < launches->n; i++) {
        uint32_t k = 0;

        while (launches->kernels[k] != launches->kernels[i])
            k++;
        if (k == i)
            add_word(out, size, ew_cuda_kernel_name(launches->kernels[i]));
    }
}

// Of what p->backend->only lets through.
static int measure(struct profile *p, struct ew_profile_row *row)
{
    bool is_small = p->batch->n_tokens <= EW_CUDA_GRAPH_TOKENS_MAX;
    double seconds;
    uint32_t n;
    int rc = 0;

    p->backend->device.launches = &p->backend->launches;
    p->backend->launches.n = 0;
    rc = is_small ? record(p) : ew_cuda_step_launch(p->backend, p->batch, p->err);
    p->backend->device.launches = NULL;
    if (*row->ops)
        name_kernels(p->backend, row->kernels, sizeof(row->kernels));
    row->seconds = INFINITY;
    if (rc == 0)
        rc = time_launches(p, 1, &seconds);
    n = rc ? 1 : (uint32_t)fmin(LAUNCHES_MAX, ceil(SECONDS_LEAST / fmax(seconds, 1e-6)));
    for (int i = 0; i < REPEATS && rc == 0; i++) {
        rc = time_launches(p, n, &seconds);
        row->seconds = fmin(row->seconds, seconds);
    }
    if (p->graph)
        (void)p->backend->device.driver.cuGraphExecDestroy(p->graph);
    p->graph = NULL;
    return rc;
}

// All units with the name of the one at `first`, which is the first of them; false: an earlier one has its name.
static bool choose_kind(struct profile *p, uint32_t first, struct ew_profile_row *row)
{
    struct ew_cuda_unit unit = ew_cuda_step_unit(p->backend, p->batch, first);

    *row = (struct ew_profile_row){0};
    name_unit(p->backend, &unit, row->ops, sizeof(row->ops));
    for (uint32_t i = 0; i < p->backend->plan.n_steps; i += unit.count) {
        char name[sizeof(row->ops)];

        unit = ew_cuda_step_unit(p->backend, p->batch, i);
        name_unit(p->backend, &unit, name, sizeof(name));
        p->only[i] = strcmp(name, row->ops) == 0;
        if (p->only[i] && i < first)
            return false;
        if (p->only[i])
            add_unit(p, &unit, row);
    }
    return *row->ops != 0;
}

static int measure_step(struct profile *p, ew_profile_fn fn, void *ctx)
{
    struct ew_profile_row whole = {0};
    struct ew_cuda_unit unit;
    int rc;

    for (uint32_t i = 0; i < p->backend->plan.n_steps; i += unit.count) {
        unit = ew_cuda_step_unit(p->backend, p->batch, i);
        add_unit(p, &unit, &whole);
    }
    rc = measure(p, &whole);
    if (rc == 0)
        fn(ctx, &whole);
    return rc;
}

int ew_cuda_profile(struct ew_cuda_backend *backend, const struct ew_batch *batch, ew_profile_fn fn, void *ctx,
                    struct ew_error *err)
{
    uint32_t n_steps = backend->plan.n_steps, count = 1;
    struct profile p = {.backend = backend, .batch = batch, .err = err};
    int rc;

    p.only = ew_alloc_array(n_steps, sizeof(*p.only));
    if (!p.only)
        return ew_fail_memory(err, n_steps, "a measurement");
    rc = measure_step(&p, fn, ctx);
    backend->only = p.only;
    for (uint32_t i = 0; i < n_steps && rc == 0; i += count) {
        struct ew_profile_row row;

        count = ew_cuda_step_unit(backend, batch, i).count;
        if (!choose_kind(&p, i, &row))
            continue;
        rc = measure(&p, &row);
        if (rc == 0 && *row.kernels) // some have nothing to do in steps of this size
            fn(ctx, &row);
    }
    backend->only = NULL;
    ew_free(p.only);
    return rc ? rc : ew_cuda_scored_clear(backend, err);
}
