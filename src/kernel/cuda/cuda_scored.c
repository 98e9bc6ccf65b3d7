// Where a product leaves the input of a layer of experts, and one token is there:
//
//   product, residual | norm, [8-bit activations] product with the router's matrix | choice, ...
//
// the kernel of the first steps (cuda_fuse.c) makes the scores, too, and that of the last (cuda_chosen.c) does the
// norm, which is a factor of all scores (score_job.h). Between them nothing is started and nothing waits.

#include "base/assert.h"
#include "kernel/cuda/cuda_experts.h"

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

_Static_assert(EW_CUDA_VECTOR_U6_SCORED - EW_CUDA_VECTOR_U4_SCORED == EW_CUDA_VECTOR_U6 - EW_CUDA_VECTOR_U4,
               "kernels with scores are in the order of those without");

struct match {
    const struct ew_cuda_backend *backend;
    const struct ew_cuda_fused *fused;
    const struct ew_cpu_step *norm, *router;
    const struct ew_cuda_matrix *matrix; // the router's
    uint32_t next; // the step behind them
};

static const struct ew_op *op_of(const struct match *m, const struct ew_cpu_step *step)
{
    return &m->backend->program->ops[step->op];
}

static const struct ew_cpu_step *take(struct match *m, enum ew_op_kind kind)
{
    const struct ew_cpu_step *step = &m->backend->plan.steps[m->next];

    if (m->next >= m->backend->plan.n_steps || step->kind != EW_CPU_STEP_OP || op_of(m, step)->kind != kind)
        return NULL;
    m->next++;
    return step;
}

static bool is_plain_norm(const struct match *m)
{
    const struct ew_op *op = op_of(m, m->norm);

    return op->norm.kind == EW_NORM_RMS && op->weight != EW_WEIGHT_NONE && op->bias == EW_WEIGHT_NONE &&
           (!op->norm.group || op->norm.group == m->fused->job.rows) && m->norm->in == m->fused->out &&
           m->norm->out != m->norm->in;
}

// Whether the experts behind it are one kernel's, which alone reads the logits, and choose by these.
static bool feeds_experts(const struct match *m)
{
    const struct ew_cuda_chosen *chosen = &m->backend->chosen[m->next];
    const struct ew_chosen_job *job = &chosen->jobs[0];

    return chosen->count && chosen->n_kernels == 1 && job->x == m->backend->work.buffers[m->norm->out] &&
           job->logits == m->backend->work.buffers[m->router->out] && job->cols == m->fused->job.rows &&
           m->router->out != m->norm->out && !ew_cuda_is_read(m->backend, m->next + chosen->count, m->router->out);
}

static bool match(struct match *m)
{
    const struct ew_vector_job *job = &m->fused->job;
    bool quantises;

    // One product and a residual, of every token.
    if (m->fused->residual == EW_CPU_NO_BUFFER || job->parts[1].rows ||
        m->backend->plan.buffers[m->fused->x].rows != EW_CPU_ROWS_TOKENS)
        return false;
    m->norm = take(m, EW_OP_NORM);
    if (!m->norm || !is_plain_norm(m) || m->next >= m->backend->plan.n_steps)
        return false;
    quantises = m->backend->plan.steps[m->next].kind == EW_CPU_STEP_QUANTISE;
    m->next += quantises;
    m->router = take(m, EW_OP_LINEAR);
    if (!m->router || m->router->in != m->norm->out || m->next >= m->backend->plan.n_steps ||
        (quantises && ew_cuda_reads_codes(m->backend, m->next)))
        return false;
    m->matrix = &m->backend->matrices[op_of(m, m->router)->weight];
    return !m->matrix->order && m->matrix->cols == job->rows &&
           job->rows % 4 == 0 && feeds_experts(m);
}

static uint64_t vector_of(const struct match *m, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : m->backend->vectors[weight];
}

static uint32_t stride_of(const struct ew_cuda_backend *backend, uint64_t rows)
{
    return (uint32_t)EW_SCORE_STRIDE(rows, (uint64_t)backend->device.n_multiprocessors);
}

// What a product's blocks ask for beyond their own: see ptx/vector.c.
static uint32_t shared_bytes(const struct match *m)
{
    return ((uint32_t)m->matrix->rows + 1) * stride_of(m->backend, m->fused->job.rows) * (uint32_t)sizeof(float);
}

// ---- the router's columns, block by block ----------------------------------------------------------

static uint64_t laid_bytes(const struct ew_cuda_backend *backend, uint64_t n_experts, uint64_t rows)
{
    return (uint64_t)backend->device.n_multiprocessors * n_experts * stride_of(backend, rows) * sizeof(float);
}

uint64_t ew_cuda_scored_router_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program)
{
    uint64_t bytes = 0;

    for (uint32_t i = 1; i < program->n_ops && !backend->config.deterministic; i++) {
        const struct ew_op *route = &program->ops[i], *router = route - 1;

        if (route->kind == EW_OP_ROUTE && router->kind == EW_OP_LINEAR && router->out == route->in)
            bytes += laid_bytes(backend, route->route.n_experts, program->weights[router->weight].cols);
    }
    return bytes;
}

static int lay_router(struct ew_cuda_backend *backend, const struct match *m, uint64_t out, struct ew_error *err)
{
    const struct ew_op *norm = op_of(m, m->norm);
    struct ew_cuda_grid grid = {(uint32_t)backend->device.n_multiprocessors, 1, 1, EW_CHOSEN_THREADS, 0};
    struct ew_router_job job = {
        .codes = m->matrix->codes,
        .scales = m->matrix->scales,
        .mins = m->matrix->mins,
        .norm_weight = vector_of(m, norm->weight),
        .out = out,
        .layout = m->matrix->layout,
        .n_experts = (uint32_t)m->matrix->rows,
        .rows = m->fused->job.rows,
        .stride = stride_of(backend, m->fused->job.rows),
        .norm_offset = norm->norm.weight_offset,
    };

    return ew_cuda_launch(&backend->device, EW_CUDA_LAY_ROUTER, grid, ARGUMENTS(&job), err);
}

// ---- all ----------------------------------------------------------------------------------------

static void plan_scored(struct ew_cuda_backend *backend, struct match *m, uint32_t first, uint64_t router)
{
    struct ew_cuda_scored *scored = &backend->scored[first];
    struct ew_chosen_job *experts = &backend->chosen[m->next].jobs[0];
    const struct ew_op *norm = op_of(m, m->norm);
    uint32_t after = m->next + backend->chosen[m->next].count;

    scored->count = m->next - first;
    scored->kernel = m->fused->kernel - EW_CUDA_VECTOR_U4 + EW_CUDA_VECTOR_U4_SCORED;
    scored->chosen = m->next;
    scored->shared_bytes = shared_bytes(m);
    scored->normed = experts->x;
    scored->logits = experts->logits;
    scored->job = (struct ew_score_job){backend->work.scores, router, (uint32_t)m->matrix->rows,
                                        stride_of(backend, m->fused->job.rows)};
    experts->scores = backend->work.scores;
    experts->x = backend->work.buffers[m->norm->in];
    experts->norm_weight = vector_of(m, norm->weight);
    experts->normed = ew_cuda_is_read(m->backend, after, m->norm->out) ? scored->normed : 0;
    experts->logits_bias = vector_of(m, op_of(m, m->router)->bias);
    experts->eps = norm->norm.eps;
    experts->norm_offset = norm->norm.weight_offset;
}

// Where there is room, the steps from `first` on become one kernel's. *router: where the next matrix may lie.
static int try_scored(struct ew_cuda_backend *backend, uint32_t first, uint64_t *router, struct ew_error *err)
{
    const struct ew_cuda_fused *fused = &backend->fused[first];
    struct ew_cuda_device *device = &backend->device;
    struct match m = {.backend = backend, .fused = fused, .next = first + fused->count};
    uint32_t bytes, most = (uint32_t)device->shared_bytes_max - EW_VECTOR_STATIC_BYTES;
    uint64_t at = *router;
    int rc = 0;

    if (!fused->count || m.next >= backend->plan.n_steps || !match(&m))
        return 0;
    bytes = fused->rings[EW_CUDA_RING_LONGEST].bytes + shared_bytes(&m);
    *router += laid_bytes(backend, m.matrix->rows, m.matrix->cols);
    if (bytes > most || *router > backend->work.routers + ew_cuda_scored_router_bytes(backend, backend->program))
        return 0;
    plan_scored(backend, &m, first, at);
    if (bytes > device->shared_bytes[backend->scored[first].kernel])
        rc = ew_cuda_allow_shared(device, backend->scored[first].kernel, bytes, err);
    return rc ? rc : lay_router(backend, &m, at, err);
}

int ew_cuda_scored_plan(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint32_t n_steps = backend->plan.n_steps;
    uint64_t router = backend->work.routers;
    int rc = 0;

    backend->scored = ew_arena_array(&backend->plan_arena, n_steps, sizeof(*backend->scored));
    if (!backend->scored)
        return ew_fail_memory(err, n_steps * sizeof(*backend->scored), "the fused steps");
    for (uint32_t i = 0; i < n_steps && rc == 0; i++)
        rc = try_scored(backend, i, &router, err);
    return rc;
}

int ew_cuda_scored_clear(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint64_t bytes = EW_SCORE_BYTES(backend->plan.n_experts);

    if (bytes == 0)
        return 0;
    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemsetD8Async(backend->work.scores, 0, bytes, backend->device.stream),
                         "clearing memory", err);
}

// ---- traces -------------------------------------------------------------------------------------

static int convert(struct ew_cuda_backend *backend, const struct ew_cuda_scored *scored, enum ew_cuda_kernel kernel,
                   struct ew_error *err)
{
    struct ew_chosen_job job = backend->chosen[scored->chosen].jobs[0];

    job.normed = scored->normed;
    job.logits = scored->logits;
    return ew_cuda_launch(&backend->device, kernel, (struct ew_cuda_grid){1, 1, 1, EW_CHOSEN_THREADS, 0},
                          ARGUMENTS(&job), err);
}

int ew_cuda_scored_show(struct ew_cuda_backend *backend, const struct ew_cuda_scored *scored, struct ew_error *err)
{
    return convert(backend, scored, EW_CUDA_SHOW_SCORES, err);
}

int ew_cuda_scored_take(struct ew_cuda_backend *backend, const struct ew_cuda_scored *scored, struct ew_error *err)
{
    return convert(backend, scored, EW_CUDA_TAKE_SCORES, err);
}
