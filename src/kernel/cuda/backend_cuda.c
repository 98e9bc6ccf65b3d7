// The CUDA backend behind kernel/backend.h: create, size, load, prepare, step.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cpu/cpu_cache.h"
#include "kernel/cuda/cuda_experts.h"
#include "kernel/cuda/cuda_kernel.h"
#include "kernel/cuda/cuda_prefill.h"
#include "platform/cuda_tier.h"
#include "platform/memory.h"

#define HELD_BYTES_MAX ((uint64_t)640 << 20)
#define STEP_MULTIPROCESSORS 64
#define STEP_BYTES_FREE ((uint64_t)16 << 30)

static struct ew_cuda_backend *of(const struct ew_backend *backend)
{
    return (struct ew_cuda_backend *)backend;
}

static void land(const struct ew_cuda_driver *driver, const struct ew_cuda_flight *flight)
{
    if (flight->batch_host)
        (void)driver->cuMemFreeHost(flight->batch_host);
    if (flight->picks_host)
        (void)driver->cuMemFreeHost(flight->picks_host);
    if (flight->done)
        (void)driver->cuEventDestroy_v2(flight->done);
}

static void cuda_destroy(struct ew_backend *base)
{
    struct ew_cuda_backend *backend = of(base);
    const struct ew_cuda_driver *driver = &backend->device.driver;

    if (driver->library && backend->device.context) {
        (void)driver->cuCtxSetCurrent(backend->device.context);
        (void)driver->cuCtxSynchronize(); // a step of which nobody wanted anything may be under way
        ew_cuda_graphs_fini(backend);
        if (backend->logits)
            (void)driver->cuMemFreeHost(backend->logits);
        for (int i = 0; i < EW_CUDA_FLIGHTS; i++)
            land(driver, &backend->flights[i]);
        ew_cuda_arena_fini(&backend->device, &backend->memory);
        ew_cuda_arena_fini(&backend->device, &backend->weights);
    }
    ew_cuda_device_close(&backend->device);
    ew_free(backend->trace_rows);
    ew_arena_fini(&backend->plan_arena);
    ew_arena_fini(&backend->arena);
    ew_free(backend);
}

// The context and what it needs for kernels: 535 MiB on an H200. Other processes' memory may be in the difference: it
// is not believed beyond HELD_BYTES_MAX.
static int read_held_bytes(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    int rc;

    if (backend->device.is_integrated)
        return 0;
    rc = ew_cuda_enter(&backend->device, err);
    if (rc == 0)
        rc = ew_cuda_free_bytes(&backend->device, &free_bytes, &total_bytes, err);
    if (rc == 0)
        backend->held_bytes = EW_MIN(total_bytes - EW_MIN(free_bytes, total_bytes), HELD_BYTES_MAX);
    return rc;
}

static struct ew_cuda_backend *alloc_backend(const struct ew_backend_config *config, struct ew_error *err)
{
    struct ew_cuda_backend *backend = ew_alloc(sizeof(*backend));

    if (!backend) {
        ew_fail_memory(err, sizeof(*backend), "the CUDA backend");
        return NULL;
    }
    backend->base.ops = &ew_backend_cuda;
    backend->config = *config;
    ew_arena_init(&backend->arena, SIZE_MAX);
    ew_arena_init(&backend->plan_arena, SIZE_MAX);
    return backend;
}

static int cuda_sibling(struct ew_backend *base, struct ew_backend **out, struct ew_error *err)
{
    struct ew_cuda_backend *backend = alloc_backend(&of(base)->config, err);

    *out = NULL;
    if (!backend)
        return EW_ERR_MEMORY;
    ew_cuda_device_share(&of(base)->device, &backend->device);
    backend->held_bytes = of(base)->held_bytes;
    memcpy(backend->text, of(base)->text, sizeof(backend->text));
    *out = &backend->base;
    return 0;
}

static int cuda_create(const struct ew_backend_config *config, struct ew_backend **out, struct ew_error *err)
{
    struct ew_cuda_backend *backend = alloc_backend(config, err);
    int rc;

    *out = NULL;
    if (!backend)
        return EW_ERR_MEMORY;
    rc = ew_cuda_device_open(&backend->device, config->cache, err);
    if (rc == 0)
        rc = read_held_bytes(backend, err);
    if (rc) {
        cuda_destroy(&backend->base);
        return rc;
    }
    snprintf(backend->text, sizeof(backend->text), "cuda %s, sm_%d%d, driver %d.%d", backend->device.name,
             backend->device.major, backend->device.minor, backend->device.driver_version / 1000,
             backend->device.driver_version % 1000 / 10);
    *out = &backend->base;
    return 0;
}

// ---- what is supported --------------------------------------------------------------------------

static int check_latent(const struct ew_op *op, struct ew_error *err)
{
    uint32_t rest = op->attention.head_dim - op->attention.v_dim;

    if (op->attention.v_dim > EW_CUDA_LATENT_MAX || rest > EW_CUDA_LATENT_REST_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "the CUDA backend has attention over latents of up to %d elements and %d beside them, not %u "
                       "and %u",
                       EW_CUDA_LATENT_MAX, EW_CUDA_LATENT_REST_MAX, op->attention.v_dim, rest);
    return 0;
}

static int check_attention(const struct ew_program *program, const struct ew_op *op, struct ew_error *err)
{
    if (program->groups[op->attention.group].kind == EW_CACHE_LATENT)
        return check_latent(op, err);
    if (op->attention.head_dim > EW_CUDA_HEAD_DIM_MAX || op->attention.v_dim > EW_CUDA_HEAD_DIM_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend has attention for heads of up to %d, not %u",
                       EW_CUDA_HEAD_DIM_MAX, EW_MAX(op->attention.head_dim, op->attention.v_dim));
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *other = &program->ops[i];

        if (other->kind == EW_OP_ATTENTION && other->attention.q_scale_beta != 0 && op->attention.q_scale_beta != 0 &&
            (other->attention.q_scale_beta != op->attention.q_scale_beta ||
             other->attention.q_scale_floor != op->attention.q_scale_floor ||
             other->attention.q_scale_offset != op->attention.q_scale_offset))
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend scales the queries of all layers alike");
    }
    return 0;
}

static int check_op(const struct ew_program *program, const struct ew_op *op, struct ew_error *err)
{
    switch (op->kind) {
    case EW_OP_ROUTE:
        if (op->route.n_groups > EW_CUDA_ROUTE_GROUPS_MAX)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend chooses among up to %d groups of experts, not %u",
                           EW_CUDA_ROUTE_GROUPS_MAX, op->route.n_groups);
        return 0;
    case EW_OP_ATTENTION:
        return check_attention(program, op, err);
    default:
        return ew_cuda_state_check(op, err);
    }
}

static int check_program(const struct ew_program *program, struct ew_error *err)
{
    if (program->n_groups == 0 || program->n_groups > EW_CUDA_GROUPS_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend takes programs with 1 to %d cache groups, not %u",
                       EW_CUDA_GROUPS_MAX, program->n_groups);
    for (uint32_t i = 0; i < program->n_groups; i++) {
        if (program->groups[i].kind == EW_CACHE_CROSS)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend has no caches of kind \"%s\" yet",
                           ew_cache_kind_name(program->groups[i].kind));
    }
    for (uint32_t i = 0; i < program->n_ropes; i++) {
        if (program->ropes[i].n_dims > EW_CUDA_HEAD_DIM_MAX)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "the CUDA backend rotates up to %d elements of a head, not %u",
                           EW_CUDA_HEAD_DIM_MAX, program->ropes[i].n_dims);
    }
    for (uint32_t i = 0; i < program->n_ops; i++) {
        int rc = check_op(program, &program->ops[i], err);

        if (rc)
            return rc;
    }
    return 0;
}

static int cuda_supports(const struct ew_backend *backend, const struct ew_program *program, enum ew_kv_dtype kv,
                         struct ew_error *err)
{
    const struct ew_program *own = program;
    struct ew_arena arena;
    int rc = 0;

    ew_arena_init(&arena, SIZE_MAX);
    if (ew_cuda_is_uncached(program))
        rc = ew_cuda_uncached_adapt(program, true, &arena, &own, err);
    if (rc == 0)
        rc = check_program(own, err);
    ew_arena_fini(&arena);
    return rc ? ew_remedy(err, rc, "Use --backend cpu") : 0;
}

// ---- sizes --------------------------------------------------------------------------------------

// Hands out 256-byte aligned pieces of one allocation. With base 0 it only counts.
struct carver {
    uint64_t base, used;
};

static uint64_t carve(struct carver *carver, uint64_t bytes)
{
    uint64_t at = carver->base + carver->used;

    carver->used += (bytes + 255) & ~(uint64_t)255;
    return at;
}

// tables: host arrays of the workspace are there to be filled.
static void carve_workspace(const struct ew_cuda_backend *backend, const struct ew_cpu_plan *plan,
                            const struct ew_limits *limits, struct carver *carver, struct ew_cuda_work *work,
                            bool tables)
{
    const struct ew_program *program = plan->program;
    uint64_t n_tokens = limits->n_tokens_max, n_rows = EW_MAX(n_tokens, limits->n_logits_max);
    uint64_t groups = plan->q8_cols_max / EW_CUDA_GROUP, x_bytes, q8_rows, pairs;

    for (uint32_t i = 0; i < plan->n_buffers; i++) {
        uint64_t rows = plan->buffers[i].rows == EW_CPU_ROWS_LOGITS  ? limits->n_logits_max
                        : plan->buffers[i].rows == EW_CPU_ROWS_PAIRS ? n_tokens * plan->n_active
                                                                     : n_tokens;
        uint64_t at = carve(carver, rows * plan->buffers[i].width * sizeof(float));

        if (tables)
            work->buffers[i] = at;
    }
    for (uint32_t i = 0; i < program->n_ropes; i++) {
        uint64_t n_dims = program->ropes[i].n_dims, n_seqs = limits->n_seqs_max;
        uint64_t frequency = carve(carver, n_seqs * n_dims / 2 * sizeof(double));
        uint64_t scale = carve(carver, n_seqs * sizeof(float));
        uint64_t table = carve(carver, n_tokens * n_dims * sizeof(float));

        if (tables) {
            work->ropes[i].frequency = frequency;
            work->ropes[i].scale = scale;
            work->ropes[i].table = table;
        }
    }
    q8_rows = EW_MAX(n_rows, ew_cuda_experts_q8_rows(plan, n_tokens));
    work->q8_codes = carve(carver, q8_rows * plan->q8_cols_max);
    work->q8_scales = carve(carver, q8_rows * groups * sizeof(float));
    work->q8_sums = carve(carver, q8_rows * groups * sizeof(float));
    pairs = carve(carver, ew_cuda_pairs_place(plan, n_tokens, 0, &work->pairs));
    (void)ew_cuda_pairs_place(plan, n_tokens, pairs, &work->pairs);
    ew_cuda_prefill_bytes(backend, program, n_rows, &x_bytes, &work->w16_bytes);
    work->x16[0] = carve(carver, x_bytes);
    work->x16[1] = carve(carver, x_bytes);
    work->w16 = carve(carver, work->w16_bytes);
    work->maps = carve(carver, ew_cuda_wgmma_maps_bytes(program));
    work->partial = carve(carver, ew_cuda_attention_partial_bytes(program, limits->n_tokens_max,
                                                                  backend->device.n_multiprocessors));
    work->few_staged.at[0] = carve(carver, ew_cuda_few_staged_bytes(program, limits->n_tokens_max));
    work->few_staged.at[1] = carve(carver, ew_cuda_few_staged_bytes(program, limits->n_tokens_max));
    work->few_partial_bytes = ew_cuda_few_partial_bytes(backend, program, limits->n_tokens_max);
    work->few_partial = carve(carver, work->few_partial_bytes);
    work->few_arrived = carve(carver, ew_cuda_few_arrived_bytes(backend));
    work->chosen_arrived = carve(carver, EW_CUDA_CHOSEN_ARRIVED_BYTES);
    work->scores = carve(carver, EW_SCORE_BYTES(plan->n_experts));
    work->routers = carve(carver, ew_cuda_scored_router_bytes(backend, program));
    work->attend_partial = carve(carver, ew_cuda_attend_partial_bytes(program, backend->device.n_multiprocessors));
    work->attend_arrived = carve(carver, ew_cuda_attend_arrived_bytes(program));
    ew_cuda_batch_shape(&work->batch, program, limits);
    work->batch.device = carve(carver, work->batch.bytes);
    ew_cuda_pick_shape(&work->picks, program, limits);
    work->picks.device = carve(carver, work->picks.bytes);
}

// The CPU backend's blocks: its code reads and writes them, too.
static int cache_shape(struct ew_cuda_cache *cache, const struct ew_cache_group *group, const struct ew_limits *limits,
                       struct ew_error *err)
{
    struct ew_cpu_cache shape;
    int rc = ew_cpu_cache_shape(&shape, group, limits, err);

    if (rc)
        return rc;
    *cache = (struct ew_cuda_cache){
        .kv = shape.dtype,
        .block_tokens = shape.block_tokens,
        .n_layers = shape.n_layers,
        .n_kv_heads = shape.n_kv_heads,
        .k_dim = shape.k_dim,
        .v_dim = shape.v_dim,
        .head_bytes = shape.head_bytes,
        .layer_bytes = shape.layer_bytes,
        .block_bytes = shape.block_bytes,
        .state_bytes = shape.state_bytes,
    };
    return 0;
}

static int build_plan(const struct ew_cuda_backend *backend, const struct ew_program *program, struct ew_arena *arena,
                      struct ew_cpu_plan *plan, struct ew_error *err)
{
    struct ew_cpu_plan_need *needs = ew_arena_array(arena, program->n_weights + 1, sizeof(*needs));
    bool reference = backend->config.kernels == EW_KERNELS_REFERENCE, exact;

    if (!needs)
        return ew_fail_memory(err, program->n_weights, "the lowered program");
    for (uint32_t i = 0; i < program->n_weights; i++) {
        const struct ew_weight *weight = &program->weights[i];

        needs[i].q8 = weight->is_matrix && ew_cuda_layout_wants_q8(ew_cuda_layout_of(program, i, reference, &exact));
        if (ew_cuda_source_of(program, i, reference) != &weight->source)
            needs[i].order = weight->source.order;
    }
    return ew_cpu_plan_build(plan, program, needs, arena, err);
}

// Programs without caches are computed in a form of our own.
static int adapt(const struct ew_cuda_backend *backend, const struct ew_program **program, struct ew_arena *arena,
                 struct ew_error *err)
{
    if (!ew_cuda_is_uncached(*program))
        return 0;
    return ew_cuda_uncached_adapt(*program, backend->config.kernels == EW_KERNELS_REFERENCE, arena, program, err);
}

static int cuda_sizes(struct ew_backend *base, const struct ew_program *program, const struct ew_limits *limits,
                      struct ew_backend_sizes *out, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    bool is_uncached = ew_cuda_is_uncached(program);
    struct carver carver = {0};
    struct ew_cuda_work work;
    struct ew_cpu_plan plan;
    struct ew_arena arena;
    int rc = cuda_supports(base, program, limits->kv, err);

    *out = (struct ew_backend_sizes){0};
    if (rc)
        return rc;
    ew_arena_init(&arena, SIZE_MAX);
    rc = adapt(backend, &program, &arena, err);
    backend->kv_sized = limits->kv;
    if (rc == 0)
        rc = build_plan(backend, program, &arena, &plan, err);
    if (rc == 0 && (uint64_t)limits->n_tokens_max * plan.n_active > EW_CUDA_PAIRS_MAX) {
        ew_fail(err, EW_ERR_LIMIT, "steps of %u tokens with %u experts each have more than %d pairs of both",
                limits->n_tokens_max, plan.n_active, EW_CUDA_PAIRS_MAX);
        rc = ew_remedy(err, EW_ERR_LIMIT, "Ask for shorter ones with --chunk");
    }
    if (rc == 0)
        carve_workspace(backend, &plan, limits, &carver, &work, false);
    out->weight_bytes = ew_cuda_weights_bytes(program, backend->config.kernels == EW_KERNELS_REFERENCE);
    out->workspace_bytes = carver.used;
    for (uint32_t i = 0; i < program->n_groups && rc == 0; i++) {
        struct ew_cuda_cache cache;

        rc = cache_shape(&cache, &program->groups[i], limits, err);
        out->block_bytes[i] = rc ? 0 : cache.block_bytes;
    }
    if (is_uncached) {
        out->workspace_bytes += out->block_bytes[0] * ew_cuda_uncached_blocks(limits);
        out->block_bytes[0] = 0;
    }
    ew_arena_fini(&arena);
    return rc;
}

// A GPU without memory of its own takes the machine's. Its driver calls only that free which is not in use as a cache
// of files; and what control groups leave this process, it does not know.
static int machine_bytes(uint64_t *bytes, uint64_t *total_bytes, struct ew_error *err)
{
    struct ew_memory memory;
    int rc = ew_memory_read(NULL, &memory, err);

    if (rc)
        return rc;
    *bytes = memory.available_bytes;
    *total_bytes = memory.cgroup_limit_bytes ? EW_MIN(memory.cgroup_limit_bytes, memory.total_bytes)
                                             : memory.total_bytes;
    return 0;
}

static int cuda_free_bytes(const struct ew_backend *base, uint64_t *bytes, uint64_t *total_bytes, struct ew_error *err)
{
    int rc = ew_cuda_enter(&of(base)->device, err);

    if (rc)
        return rc;
    if (of(base)->device.is_integrated)
        return machine_bytes(bytes, total_bytes, err);
    return ew_cuda_free_bytes(&of(base)->device, bytes, total_bytes, err);
}

static uint64_t cuda_held_bytes(const struct ew_backend *base)
{
    return of(base)->held_bytes;
}

// Large GPUs are filled by so many rows: an H200 reads prompts with the 8 B shape at 35,000 tok/s in steps of 512, and
// at 40,000 in steps of 2,048. The workspace grows with them, so that small memories keep to the usual number.
static uint32_t cuda_step_tokens(const struct ew_backend *base)
{
    uint64_t free_bytes = 0, total_bytes = 0;
    struct ew_error ignored;
    bool is_large = of(base)->device.n_multiprocessors >= STEP_MULTIPROCESSORS &&
                    cuda_free_bytes(base, &free_bytes, &total_bytes, &ignored) == 0 && free_bytes >= STEP_BYTES_FREE;

    return is_large ? 2048 : 512;
}

static bool cuda_is_trying(const struct ew_backend *base)
{
    return ew_cuda_graph_is_trying(of(base));
}

static int cuda_measure(struct ew_backend *base, struct ew_backend_speed *out, struct ew_error *err)
{
    int rc = ew_cuda_enter(&of(base)->device, err);

    return rc ? rc : ew_cuda_measure(&of(base)->device, out, err);
}

// ---- load and prepare ---------------------------------------------------------------------------

static int cuda_load(struct ew_backend *base, const struct ew_program *program,
                     bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    struct ew_cuda_compile *compile = NULL;
    struct ew_error other;
    int rc, rc_compile;

    EW_ASSERT(!backend->program);
    backend->is_uncached = ew_cuda_is_uncached(program);
    rc = adapt(backend, &program, &backend->arena, err);
    if (rc)
        return rc;
    backend->program = program;
    backend->matrices = ew_arena_array(&backend->arena, program->n_weights + 1, sizeof(*backend->matrices));
    backend->vectors = ew_arena_array(&backend->arena, program->n_weights + 1, sizeof(*backend->vectors));
    backend->alibi = ew_arena_array(&backend->arena, program->n_ops, sizeof(*backend->alibi));
    if (!backend->matrices || !backend->vectors || !backend->alibi)
        return ew_fail_memory(err, program->n_weights * sizeof(*backend->matrices), "the table of weights");
    rc = ew_cuda_enter(&backend->device, err);
    if (rc == 0)
        rc = ew_cuda_compile_begin(backend, &compile, err);
    if (rc)
        return rc;
    rc = ew_cuda_weights_load(backend, progress, ctx, err);
    rc_compile = ew_cuda_compile_end(compile, rc ? &other : err);
    return rc ? rc : rc_compile;
}

static void cuda_when_ready(struct ew_backend *base, ew_ready_fn fn, void *ctx)
{
    of(base)->when_ready = fn;
    of(base)->ready_ctx = ctx;
}

static int map_caches(struct ew_cuda_backend *backend, const uint32_t *n_blocks, struct ew_error *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < backend->program->n_groups && rc == 0; i++) {
        struct ew_cuda_cache *cache = &backend->caches[i];
        size_t bytes = 0;

        rc = cache_shape(cache, &backend->program->groups[i], &backend->limits, err);
        if (rc)
            break;
        cache->n_blocks = backend->is_uncached ? ew_cuda_uncached_blocks(&backend->limits) : n_blocks[i];
        if (!ew_mul_size(cache->block_bytes, cache->n_blocks, &bytes))
            return ew_fail_memory(err, bytes, "the caches");
        rc = ew_cuda_arena_alloc(&backend->device, &backend->memory, bytes, "taking memory for the caches",
                                 &cache->data, err);
    }
    return rc;
}

static int pin(struct ew_cuda_backend *backend, uint64_t bytes, void **out, struct ew_error *err)
{
    return ew_cuda_check(&backend->device, backend->device.driver.cuMemHostAlloc(out, bytes, 0), "taking pinned memory",
                         err);
}

static int clear(struct ew_cuda_backend *backend, uint64_t address, uint64_t bytes, struct ew_error *err)
{
    if (bytes == 0)
        return 0;
    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemsetD8Async(address, 0, bytes, backend->device.stream),
                         "clearing memory", err);
}

static int pin_zeros(struct ew_cuda_backend *backend, uint64_t bytes, uint8_t **out, struct ew_error *err)
{
    void *host = NULL;
    int rc = pin(backend, bytes, &host, err);

    *out = host;
    if (rc == 0)
        memset(host, 0, bytes);
    return rc;
}

// Kernels leave their states ready for the next step; before the first they are zero.
static int clear_states(struct ew_cuda_backend *backend, struct ew_error *err)
{
    const struct ew_cuda_work *work = &backend->work;
    const struct ew_cuda_picks *picks = &work->picks;
    int rc = clear(backend, picks->device + picks->shared_bytes, picks->bytes - picks->shared_bytes, err);

    if (rc == 0)
        rc = clear(backend, work->attend_arrived, ew_cuda_attend_arrived_bytes(backend->program), err);
    if (rc == 0)
        rc = clear(backend, work->few_arrived, ew_cuda_few_arrived_bytes(backend), err);
    return rc;
}

static int map_flights(struct ew_cuda_backend *backend, struct ew_error *err)
{
    const struct ew_cuda_picks *picks = &backend->work.picks;
    int rc = 0;

    for (int i = 0; i < EW_CUDA_FLIGHTS && rc == 0; i++) {
        struct ew_cuda_flight *flight = &backend->flights[i];

        rc = pin_zeros(backend, backend->work.batch.bytes, &flight->batch_host, err);
        if (rc == 0)
            rc = pin_zeros(backend, picks->shared_bytes, &flight->picks_host, err);
        if (rc == 0)
            rc = ew_cuda_check(&backend->device,
                               backend->device.driver.cuEventCreate(&flight->done, EW_CUDA_EVENT_QUIET),
                               "making an event", err);
    }
    return rc;
}

static int map_workspace(struct ew_cuda_backend *backend, struct ew_error *err)
{
    struct ew_cuda_work *work = &backend->work;
    struct carver carver = {0};
    int rc;

    work->buffers = ew_arena_array(&backend->plan_arena, backend->plan.n_buffers, sizeof(*work->buffers));
    work->ropes = ew_arena_array(&backend->plan_arena, backend->program->n_ropes + 1, sizeof(*work->ropes));
    if (!work->buffers || !work->ropes)
        return ew_fail_memory(err, backend->plan.n_buffers * sizeof(*work->buffers), "the table of buffers");
    for (uint32_t i = 0; i < backend->program->n_ropes; i++) {
        work->ropes[i].kinds = ew_arena_array(&backend->plan_arena, backend->limits.n_seqs_max, sizeof(uint64_t));
        if (!work->ropes[i].kinds)
            return ew_fail_memory(err, backend->limits.n_seqs_max * sizeof(uint64_t), "the rotary frequencies");
    }
    carve_workspace(backend, &backend->plan, &backend->limits, &carver, work, false);
    rc = ew_cuda_arena_alloc(&backend->device, &backend->memory, carver.used, "taking memory for the workspace",
                             &carver.base, err);
    if (rc)
        return rc;
    carver.used = 0;
    carve_workspace(backend, &backend->plan, &backend->limits, &carver, work, true);
    rc = ew_cuda_f8_init(backend, err);
    if (rc == 0)
        rc = ew_cuda_wgmma_init(backend, err);
    if (rc == 0)
        rc = clear_states(backend, err);
    if (rc == 0)
        rc = clear(backend, work->chosen_arrived, EW_CUDA_CHOSEN_ARRIVED_BYTES, err);
    if (rc == 0)
        rc = ew_cuda_scored_clear(backend, err);
    if (rc == 0)
        rc = ew_cuda_few_init(backend, err);
    if (rc == 0)
        rc = ew_cuda_wcoded_init(backend, err);
    if (rc)
        return rc;
    return map_flights(backend, err);
}

static int cuda_prepare(struct ew_backend *base, const struct ew_limits *limits, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    void *logits = NULL;
    int rc;

    EW_ASSERT(backend->program && !backend->is_prepared);
    backend->limits = *limits;
    backend->limits.n_blocks = NULL; // the caller's array
    rc = ew_cuda_enter(&backend->device, err);
    if (rc == 0)
        rc = build_plan(backend, backend->program, &backend->plan_arena, &backend->plan, err);
    if (rc == 0)
        rc = ew_cuda_flash_init(backend, err);
    if (rc == 0)
        rc = ew_cuda_latent_init(backend, err);
    if (rc == 0)
        rc = map_workspace(backend, err);
    if (rc == 0)
        rc = ew_cuda_fuse(backend, err);
    if (rc == 0 && backend->plan.n_experts && !backend->config.deterministic)
        rc = ew_cuda_chosen_plan(backend, err);
    if (rc == 0 && backend->plan.n_experts && !backend->config.deterministic)
        rc = ew_cuda_scored_plan(backend, err);
    if (rc == 0 && backend->plan.n_experts && !backend->config.deterministic)
        rc = ew_cuda_grouped_plan(backend, err);
    if (rc == 0)
        rc = map_caches(backend, limits->n_blocks, err);
    if (rc == 0)
        rc = ew_cuda_attend_find(backend, err);
    if (rc == 0)
        ew_cuda_fuse_place(backend);
    if (rc == 0 && limits->n_seqs_max == 1)
        rc = ew_cuda_share_multiprocessors(&backend->device, err);
    if (rc == 0)
        rc = pin(backend, (uint64_t)limits->n_logits_max * backend->plan.result_width * sizeof(float), &logits, err);
    if (rc == 0) // copies of small things may still be under way, and the step's stream does not wait for them
        rc = ew_cuda_check(&backend->device, backend->device.driver.cuCtxSynchronize(), "making ready", err);
    backend->logits = logits;
    backend->is_prepared = rc == 0;
    return rc;
}

// ---- steps --------------------------------------------------------------------------------------

// Steps in which every sequence has one token and wants its logits differ in nothing but the copied batch.
static bool is_decode(const struct ew_batch *batch)
{
    return batch->n_tokens == batch->n_seqs && batch->n_logits == batch->n_tokens &&
           batch->n_tokens <= EW_CUDA_GRAPH_TOKENS_MAX;
}

static int run_step(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_cuda_flight *flight,
                    struct ew_error *err)
{
    if (!is_decode(batch) || backend->trace)
        return ew_cuda_step_launch(backend, batch, err);
    return ew_cuda_graph_start(backend, batch, flight, err);
}

// Tokens or logits, to the host.
static int fetch_results(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    uint64_t bytes = (uint64_t)batch->n_logits * backend->plan.result_width * sizeof(float);

    if (batch->n_logits == 0)
        return 0;
    if (batch->picks)
        return ew_cuda_pick_launch(backend, batch, err);
    return ew_cuda_check(device,
                         device->driver.cuMemcpyDtoHAsync_v2(backend->logits,
                                                             backend->work.buffers[backend->plan.result], bytes,
                                                             device->stream),
                         "copying logits", err);
}

// After a call that failed, the GPU may be well all the same. What was started before has to end, since the next step
// writes where it reads; and what kernels leave ready for the next step may be half done.
static void abandon(struct ew_cuda_backend *backend)
{
    struct ew_error ignored; // the failure that is told is the one before

    (void)backend->device.driver.cuCtxSynchronize();
    (void)clear_states(backend, &ignored);
}

static int start(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_cuda_flight *flight,
                 struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    int rc = ew_cuda_batch_send(backend, batch, err);

    if (rc == 0 && batch->picks)
        rc = ew_cuda_pick_send(backend, batch, err);
    if (rc == 0)
        rc = run_step(backend, batch, flight, err);
    if (rc == 0)
        rc = fetch_results(backend, batch, err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuEventRecord(flight->done, device->stream), "starting a step",
                           err);
    return rc;
}

static int cuda_submit(struct ew_backend *base, const struct ew_batch *batch, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    struct ew_cuda_flight *flight = &backend->flights[backend->n_submitted % EW_CUDA_FLIGHTS];
    int rc;

    EW_ASSERT(backend->is_prepared && backend->n_submitted - backend->n_waited < EW_CUDA_FLIGHTS);
    flight->batch = batch;
    backend->work.batch.host = flight->batch_host;
    backend->work.picks.host = flight->picks_host;
    rc = ew_cuda_enter(&backend->device, err);
    if (rc == 0)
        rc = ew_cuda_batch_check(backend, batch, err);
    if (rc)
        return rc;
    rc = start(backend, batch, flight, err);
    if (rc)
        abandon(backend);
    backend->n_submitted += rc == 0;
    return rc;
}

static void cuda_trace(struct ew_backend *base, ew_trace_fn fn, void *ctx)
{
    ew_cuda_trace_set(of(base), fn, ctx);
}

static void cuda_trace_launches(struct ew_backend *base, ew_trace_fn fn, void *ctx)
{
    ew_cuda_trace_set(of(base), fn, ctx);
    of(base)->traces_launches = of(base)->trace != NULL;
}

static const char *cuda_launched(struct ew_backend *base)
{
    return ew_cuda_trace_launched(of(base));
}

static int cuda_wait(struct ew_backend *base, const float **logits, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    const struct ew_cuda_flight *flight = &backend->flights[backend->n_waited % EW_CUDA_FLIGHTS];
    int rc;

    EW_ASSERT(backend->n_waited != backend->n_submitted);
    backend->n_waited++;
    *logits = flight->batch->picks ? NULL : backend->logits;
    rc = ew_cuda_check(&backend->device, backend->device.driver.cuEventSynchronize(flight->done), "a step", err);
    if (rc)
        abandon(backend);
    return rc;
}

static const int32_t *cuda_picked(const struct ew_backend *base)
{
    const struct ew_cuda_backend *backend = of((struct ew_backend *)base);
    const struct ew_cuda_flight *flight = &backend->flights[(backend->n_waited - 1) % EW_CUDA_FLIGHTS];

    return (const int32_t *)(flight->picks_host + backend->work.picks.tokens);
}

static int cuda_logits_row(struct ew_backend *base, uint32_t row, const float **logits, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    uint64_t bytes = (uint64_t)backend->plan.result_width * sizeof(float);
    uint64_t at = backend->work.buffers[backend->plan.result] + row * bytes;

    EW_ASSERT(row < backend->limits.n_logits_max);
    *logits = backend->logits;
    return ew_cuda_check(&backend->device, backend->device.driver.cuMemcpyDtoH_v2(backend->logits, at, bytes),
                         "copying logits", err);
}

// ---- caches -------------------------------------------------------------------------------------

static int check_block(const struct ew_cuda_backend *backend, uint32_t group, int32_t block, uint32_t n_tokens,
                       struct ew_error *err)
{
    if (group >= backend->program->n_groups || block < 0 || (uint32_t)block >= backend->caches[group].n_blocks ||
        n_tokens > backend->caches[group].block_tokens)
        return ew_fail(err, EW_ERR_USAGE, "there is no block %d with %u tokens in cache group %u", block, n_tokens,
                       group);
    return 0;
}

static int cuda_copy_block(struct ew_backend *base, uint32_t group, int32_t from, int32_t to, struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    const struct ew_cuda_cache *cache = &backend->caches[group];
    int rc = check_block(backend, group, from, 0, err);

    if (rc == 0)
        rc = check_block(backend, group, to, 0, err);
    if (rc == 0)
        rc = ew_cuda_enter(&backend->device, err);
    if (rc || from == to)
        return rc;
    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemcpyDtoDAsync_v2(cache->data + (uint64_t)to * cache->block_bytes,
                                                                     cache->data + (uint64_t)from * cache->block_bytes,
                                                                     cache->block_bytes, backend->device.stream),
                         "copying a cache block", err);
}

// Of a block that was read into host memory.
static void convert_block(const struct ew_cuda_cache *cache, uint32_t n_tokens, uint8_t *block, float *out,
                          const float *in)
{
    static const struct ew_cpu_ops ops = {.kv_encode = ew_cpu_ref_kv_encode, .kv_decode = ew_cpu_ref_kv_decode};
    const struct ew_cpu_cache as_cpu = {
        .dtype = cache->kv,
        .n_blocks = 1,
        .block_tokens = cache->block_tokens,
        .n_layers = cache->n_layers,
        .n_kv_heads = cache->n_kv_heads,
        .k_dim = cache->k_dim,
        .v_dim = cache->v_dim,
        .head_bytes = cache->head_bytes,
        .layer_bytes = cache->layer_bytes,
        .block_bytes = cache->block_bytes,
        .state_bytes = cache->state_bytes,
        .data = block,
    };

    if (out)
        ew_cpu_cache_export(&ops, &as_cpu, 0, n_tokens, out);
    else
        ew_cpu_cache_import(&ops, &as_cpu, 0, n_tokens, in);
}

// The block is read whole, maybe changed, and written back.
static int move_block(struct ew_cuda_backend *backend, uint32_t group, int32_t index, uint32_t n_tokens, float *out,
                      const float *in, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &backend->device.driver;
    int rc = check_block(backend, group, index, n_tokens, err);
    const struct ew_cuda_cache *cache = &backend->caches[group];
    uint64_t address;
    uint8_t *block;

    if (rc == 0)
        rc = ew_cuda_enter(&backend->device, err);
    if (rc)
        return rc;
    block = ew_alloc(cache->block_bytes);
    if (!block)
        return ew_fail_memory(err, cache->block_bytes, "a cache block");
    address = cache->data + (uint64_t)index * cache->block_bytes;
    rc = ew_cuda_check(&backend->device, driver->cuStreamSynchronize(backend->device.stream), "a step", err);
    if (rc == 0)
        rc = ew_cuda_check(&backend->device, driver->cuMemcpyDtoH_v2(block, address, cache->block_bytes),
                           "reading a cache block", err);
    if (rc == 0)
        convert_block(cache, n_tokens, block, out, in);
    if (rc == 0 && in)
        rc = ew_cuda_check(&backend->device,
                           driver->cuMemcpyHtoDAsync_v2(address, block, cache->block_bytes, backend->device.stream),
                           "writing a cache block", err);
    if (rc == 0 && in) // a GPU that reads all of the machine's memory takes it from there itself
        rc = ew_cuda_check(&backend->device, driver->cuStreamSynchronize(backend->device.stream),
                           "writing a cache block", err);
    ew_free(block);
    return rc;
}

static int cuda_export_block(struct ew_backend *base, uint32_t group, int32_t block, uint32_t n_tokens, float *out,
                             struct ew_error *err)
{
    return move_block(of(base), group, block, n_tokens, out, NULL, err);
}

static int cuda_import_block(struct ew_backend *base, uint32_t group, int32_t block, uint32_t n_tokens, const float *in,
                             struct ew_error *err)
{
    return move_block(of(base), group, block, n_tokens, NULL, in, err);
}

static enum ew_arith arith_of(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    if (ew_cuda_operand_of(matrix, backend->limits.n_tokens_max) == EW_CUDA_F8)
        return EW_ARITH_I8;
    switch (matrix->layout) {
    case EW_CUDA_F32:
        return EW_ARITH_REFERENCE;
    case EW_CUDA_F16:
    case EW_CUDA_F8:
        return EW_ARITH_F16;
    case EW_CUDA_BF16:
        return EW_ARITH_BF16;
    default:
        return EW_ARITH_I8;
    }
}

static enum ew_arith cuda_arith(const struct ew_backend *base)
{
    const struct ew_cuda_backend *backend = of(base);
    enum ew_arith widest = EW_ARITH_REFERENCE;

    for (uint32_t i = 0; i < backend->program->n_ops; i++) {
        const struct ew_op *op = &backend->program->ops[i];

        if (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS)
            widest = EW_MAX(widest, arith_of(backend, &backend->matrices[op->weight]));
    }
    return widest;
}

static const char *cuda_describe(const struct ew_backend *base)
{
    return of(base)->text;
}

static int cuda_profile(struct ew_backend *base, const struct ew_batch *batch, ew_profile_fn fn, void *ctx,
                        struct ew_error *err)
{
    struct ew_cuda_backend *backend = of(base);
    int rc = ew_cuda_enter(&backend->device, err);

    if (rc == 0)
        rc = ew_cuda_batch_check(backend, batch, err);
    if (rc == 0)
        rc = ew_cuda_batch_send(backend, batch, err);
    return rc ? rc : ew_cuda_profile(backend, batch, fn, ctx, err);
}

static void cuda_modules(const struct ew_backend *base, ew_module_fn fn, void *ctx, char *tier, size_t tier_size)
{
    const struct ew_cuda_device *device = &of(base)->device;

    ew_cuda_tier_explain(device->major * 10 + device->minor, device->driver_version, tier, tier_size);
    ew_cuda_loaded_files(device, fn, ctx);
}

const struct ew_backend_ops ew_backend_cuda = {
    .name = "cuda",
    .runs_ahead = true,
    .create = cuda_create,
    .destroy = cuda_destroy,
    .supports = cuda_supports,
    .free_bytes = cuda_free_bytes,
    .held_bytes = cuda_held_bytes,
    .step_tokens = cuda_step_tokens,
    .is_trying = cuda_is_trying,
    .measure = cuda_measure,
    .profile = cuda_profile,
    .modules = cuda_modules,
    .sizes = cuda_sizes,
    .load = cuda_load,
    .when_ready = cuda_when_ready,
    .prepare = cuda_prepare,
    .trace = cuda_trace,
    .trace_launches = cuda_trace_launches,
    .launched = cuda_launched,
    .sibling = cuda_sibling,
    .submit = cuda_submit,
    .wait = cuda_wait,
    .picked = cuda_picked,
    .logits_row = cuda_logits_row,
    .copy_block = cuda_copy_block,
    .export_block = cuda_export_block,
    .import_block = cuda_import_block,
    .arith = cuda_arith,
    .describe = cuda_describe,
};
