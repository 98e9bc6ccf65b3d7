// Mixers whose past is a state: what the host does for the kernels of ptx/state.c.

#include "base/assert.h"
#include "kernel/cuda/cuda_backend.h"
#include "kernel/cuda/state_job.h"

#define WIDE 256 // threads of kernels that work on channels

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

static uint64_t address_of(const struct ew_cuda_backend *backend, uint32_t buffer, uint32_t *stride)
{
    *stride = buffer == EW_CPU_NO_BUFFER ? 0 : backend->plan.buffers[buffer].width;
    return buffer == EW_CPU_NO_BUFFER ? 0 : backend->work.buffers[buffer];
}

static uint64_t vector_of(const struct ew_cuda_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : backend->vectors[weight];
}

static struct ew_state_place place_of(const struct ew_cuda_backend *backend, uint32_t group, uint32_t layer)
{
    const struct ew_cuda_cache *cache = &backend->caches[group];
    const struct ew_cuda_batch *batch = &backend->work.batch;

    return (struct ew_state_place){
        .data = cache->data,
        .block_bytes = cache->block_bytes,
        .layer_at = layer * cache->layer_bytes,
        .table_at = batch->device + batch->table_at + (uint64_t)group * backend->limits.n_seqs_max * sizeof(uint32_t),
        .tables = batch->device + batch->tables,
        .seq_first = batch->device + batch->seq_first,
        .token_seq = batch->device + batch->token_seq,
        .token_index = batch->device + batch->token_index,
    };
}

static int launch_pick(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_rows,
                       struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t first[3] = {0}, width[3] = {0}, in_stride, out_stride, n = op->pick.n_groups, stride = op->pick.stride;
    uint64_t in = address_of(backend, step->in, &in_stride), out = address_of(backend, step->out, &out_stride);
    struct ew_cuda_grid grid = {ceil_div(backend->program->slot_width[op->out], WIDE), n_rows, 1, WIDE};

    for (uint32_t i = 0; i < op->pick.n_pieces; i++) {
        first[i] = op->pick.first[i];
        width[i] = op->pick.width[i];
    }
    return ew_cuda_launch(&backend->device, EW_CUDA_PICK_COLUMNS, grid,
                          ARGUMENTS(&out, &out_stride, &in, &in_stride, &stride, &n, &first[0], &width[0], &first[1],
                                    &width[1], &first[2], &width[2]),
                          err);
}

static int launch_conv(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step,
                       const struct ew_batch *batch, struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct ew_conv_job job = {
        .place = place_of(backend, op->conv.group, op->conv.cache_layer),
        .weight = vector_of(backend, op->weight),
        .bias = vector_of(backend, op->bias),
        .width = backend->program->slot_width[op->out],
        .n_taps = op->conv.n_taps,
        .act = op->conv.act,
        .advances = batch->n_tokens == batch->n_seqs,
    };
    struct ew_cuda_grid tokens = {ceil_div(job.width, WIDE), batch->n_tokens, 1, WIDE};
    struct ew_cuda_grid seqs = {ceil_div(job.width, WIDE), batch->n_seqs, 1, WIDE};
    int rc;

    job.in = address_of(backend, step->in, &job.in_stride);
    job.out = address_of(backend, step->out, &job.out_stride);
    rc = ew_cuda_launch(&backend->device, EW_CUDA_CONV, tokens, ARGUMENTS(&job), err);
    if (rc || job.advances)
        return rc;
    return ew_cuda_launch(&backend->device, EW_CUDA_CONV_ADVANCE, seqs, ARGUMENTS(&job), err);
}

static int launch_scan(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step,
                       const struct ew_batch *batch, struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    enum ew_cuda_kernel kernel = op->scan.k_dim <= 64    ? EW_CUDA_SCAN_64
                                 : op->scan.k_dim <= 128 ? EW_CUDA_SCAN_128
                                                         : EW_CUDA_SCAN_256;
    struct ew_scan_job job = {
        .place = place_of(backend, op->scan.group, op->scan.cache_layer),
        .rate = vector_of(backend, op->weight),
        .bias = vector_of(backend, op->bias),
        .skip = vector_of(backend, op->scan.skip),
        .state_first = op->scan.state_first,
        .n_heads = op->scan.n_heads,
        .n_groups = op->scan.n_groups,
        .k_dim = op->scan.k_dim,
        .v_dim = op->scan.v_dim,
        .q_first = op->scan.q_first,
        .k_first = op->scan.k_first,
        .v_first = op->scan.v_first,
        .is_delta = op->scan.is_delta,
        .is_tiled = op->scan.is_tiled,
    };
    struct ew_cuda_grid grid = {job.n_heads * ceil_div(job.v_dim, EW_STATE_COLUMNS), batch->n_seqs, 1,
                                EW_STATE_THREADS};

    EW_ASSERT(job.k_dim <= EW_STATE_KEY_DIM_MAX);
    job.in = address_of(backend, step->in, &job.in_stride);
    job.step = address_of(backend, step->in2, &job.step_stride);
    job.gain = address_of(backend, step->in3, &job.gain_stride);
    job.out = address_of(backend, step->out, &job.out_stride);
    return ew_cuda_launch(&backend->device, kernel, grid, ARGUMENTS(&job), err);
}

int ew_cuda_state_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, const struct ew_batch *batch,
                     uint32_t n_rows, struct ew_error *err)
{
    switch (backend->program->ops[step->op].kind) {
    case EW_OP_PICK:
        return launch_pick(backend, step, n_rows, err);
    case EW_OP_CONV:
        return launch_conv(backend, step, batch, err);
    case EW_OP_SCAN:
        return launch_scan(backend, step, batch, err);
    default:
        EW_ASSERT(!"an op of mixers with a state");
        return 0;
    }
}

int ew_cuda_state_check(const struct ew_op *op, struct ew_error *err)
{
    if (op->kind == EW_OP_SCAN && op->scan.k_dim > EW_STATE_KEY_DIM_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend has states with keys of up to %d elements, not %u",
                       EW_STATE_KEY_DIM_MAX, op->scan.k_dim);
    return 0;
}
