#include "kernel/cuda/cuda_experts.h"

#include "base/assert.h"

#define THREADS 256
#define ROWS 8        // of a matrix, of a block for one pair
#define TILE_ROWS 128 // as in ptx/tile.h
#define TILE_PAIRS 32
#define SORT_THREADS_MAX 1024

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

// Of a buffer, and how much of each is a slot's.
struct rows {
    uint64_t at;
    uint32_t stride, width;
};

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

static struct rows rows_of(const struct ew_cuda_backend *backend, uint32_t buffer, uint32_t slot)
{
    return (struct rows){backend->work.buffers[buffer], backend->plan.buffers[buffer].width,
                         backend->program->slot_width[slot]};
}

static uint64_t vector_of(const struct ew_cuda_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : backend->vectors[weight];
}

// ---- sizes --------------------------------------------------------------------------------------

// Slots of tiles: see sort_pairs in ptx/experts.c.
static uint32_t tiles_of(const struct ew_cpu_plan *plan, uint64_t n_pairs)
{
    return plan->n_experts + (uint32_t)(n_pairs / TILE_PAIRS);
}

static uint64_t place(uint64_t *at, uint64_t n, uint64_t *address)
{
    *address = *at;
    return *at += (n * sizeof(uint32_t) + 255) & ~(uint64_t)255;
}

uint64_t ew_cuda_pairs_place(const struct ew_cpu_plan *plan, uint64_t n_tokens_max, uint64_t base,
                             struct ew_cuda_pairs *pairs)
{
    uint64_t n_pairs = n_tokens_max * plan->n_active, at = base;

    place(&at, plan->n_experts + 1, &pairs->first);
    place(&at, n_pairs, &pairs->expert);
    place(&at, n_pairs, &pairs->token);
    place(&at, n_pairs, &pairs->place);
    return place(&at, tiles_of(plan, n_pairs), &pairs->tiles) - base;
}

// Where experts have more than one pair each, tiles are the better way.
static bool are_few(const struct ew_cpu_plan *plan, uint64_t n_tokens)
{
    return n_tokens * plan->n_active <= plan->n_experts;
}

uint64_t ew_cuda_experts_q8_rows(const struct ew_cpu_plan *plan, uint64_t n_tokens_max)
{
    return EW_MIN(n_tokens_max * plan->n_active, plan->n_experts);
}

bool ew_cuda_experts_take_tiles(const struct ew_cuda_backend *backend, const struct ew_op *op, uint32_t n_tokens)
{
    const struct ew_cuda_matrix *m = &backend->matrices[op->weight];

    return m->layout != EW_CUDA_F32 && m->cols % EW_CUDA_GROUP == 0 &&
           (backend->config.deterministic || !are_few(&backend->plan, n_tokens));
}

// ---- ops ----------------------------------------------------------------------------------------

static int launch_route(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                        struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct rows in = rows_of(backend, step->in, op->in), out = rows_of(backend, step->out, op->out);
    uint64_t bias = vector_of(backend, op->bias);
    uint32_t n_experts = op->route.n_experts, n_active = op->route.n_active, score = op->route.score;
    uint32_t n_groups = op->route.n_groups, n_groups_active = op->route.n_groups_active;
    uint32_t normalise = op->route.normalise;
    float jitter = op->route.jitter, scale = op->route.scale;

    return ew_cuda_launch(&backend->device, EW_CUDA_ROUTE, (struct ew_cuda_grid){n_tokens, 1, 1, 32},
                          ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &bias, &n_experts, &n_active, &score,
                                    &n_groups, &n_groups_active, &jitter, &normalise, &scale),
                          err);
}

int ew_cuda_experts_sort(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                         struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct rows routes = rows_of(backend, step->out, op->out);
    uint32_t n_active = op->route.n_active, n_pairs = n_tokens * n_active;
    uint32_t threads = EW_MIN(ceil_div(n_pairs, 32) * 32, SORT_THREADS_MAX);

    return ew_cuda_launch(&backend->device, EW_CUDA_SORT_PAIRS,
                          (struct ew_cuda_grid){op->route.n_experts, 1, 1, threads},
                          ARGUMENTS(&backend->work.pairs, &routes.at, &routes.stride, &n_active, &n_pairs), err);
}

static int launch_dispatch(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                           struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct rows in = rows_of(backend, step->in, op->in), out = rows_of(backend, step->out, op->out);
    struct ew_cuda_grid grid = {ceil_div(out.width, THREADS), n_tokens * backend->plan.n_active, 1, THREADS};

    return ew_cuda_launch(&backend->device, EW_CUDA_GATHER, grid,
                          ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &backend->work.pairs.token, &out.width),
                          err);
}

static int launch_combine(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                          struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct rows in = rows_of(backend, step->in, op->in), out = rows_of(backend, step->out, op->out);
    struct rows routes = rows_of(backend, step->in2, op->in2);
    uint32_t n_active = op->combine.n_active;
    uint64_t weights = op->combine.is_plain ? 0 : routes.at + n_active * sizeof(float);
    struct ew_cuda_grid grid = {ceil_div(out.width, THREADS), n_tokens, 1, THREADS};

    return ew_cuda_launch(&backend->device, EW_CUDA_COMBINE, grid,
                          ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &weights, &routes.stride,
                                    &backend->work.pairs.place, &n_active, &out.width),
                          err);
}

static const struct {
    enum ew_cuda_kernel few, tiles;
} PRODUCTS[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F32] = {EW_CUDA_EXPERTS_F32, EW_CUDA_EXPERTS_F32},
    [EW_CUDA_F16] = {EW_CUDA_EXPERTS_F16, EW_CUDA_EXPERTS_F16_32},
    [EW_CUDA_BF16] = {EW_CUDA_EXPERTS_BF16, EW_CUDA_EXPERTS_BF16_32},
    [EW_CUDA_I8] = {EW_CUDA_EXPERTS_I8, EW_CUDA_EXPERTS_I8_32},
    [EW_CUDA_U4] = {EW_CUDA_EXPERTS_U4, EW_CUDA_EXPERTS_U4_32},
    [EW_CUDA_U4_MIN] = {EW_CUDA_EXPERTS_U4_MIN, EW_CUDA_EXPERTS_U4_MIN_32},
};

// Of layouts beyond these.
static int launch_any(struct ew_cuda_backend *backend, const struct ew_op *op, struct rows in, struct rows out,
                      uint32_t n_tokens, struct ew_error *err)
{
    struct ew_cuda_matrix *m = &backend->matrices[op->weight];
    uint32_t layout = m->layout, rows = out.width, n_pairs = n_tokens * backend->plan.n_active;
    uint64_t bias = vector_of(backend, op->bias);
    bool tiles = ew_cuda_experts_take_tiles(backend, op, n_tokens);
    struct ew_cuda_grid few = {ceil_div(rows, ROWS), n_pairs, 1, THREADS};
    struct ew_cuda_grid many = {tiles_of(&backend->plan, n_pairs), ceil_div(rows, TILE_ROWS), 1, THREADS};

    return ew_cuda_launch(&backend->device, tiles ? EW_CUDA_EXPERTS_ANY_32 : EW_CUDA_EXPERTS_ANY, tiles ? many : few,
                          ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &m->codes, &m->scales, &m->mins,
                                    &layout, &bias, &rows, &m->cols, &backend->work.pairs),
                          err);
}

static int launch_experts(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                          struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    struct ew_cuda_matrix *m = &backend->matrices[op->weight];
    struct ew_cuda_work *work = &backend->work;
    struct rows in = rows_of(backend, step->in, op->in), out = rows_of(backend, step->out, op->out);
    uint32_t rows = out.width, n_pairs = n_tokens * backend->plan.n_active;
    uint64_t bias = vector_of(backend, op->bias);
    struct ew_cuda_grid few = {ceil_div(rows, ROWS), n_pairs, 1, THREADS};
    struct ew_cuda_grid tiles = {tiles_of(&backend->plan, n_pairs), ceil_div(rows, TILE_ROWS), 1, THREADS};

    if (m->layout > EW_CUDA_U4_MIN)
        return launch_any(backend, op, in, out, n_tokens, err);
    if (ew_cuda_experts_take_tiles(backend, op, n_tokens))
        return ew_cuda_launch(&backend->device, PRODUCTS[m->layout].tiles, tiles,
                              ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &m->codes, &m->scales, &m->mins,
                                        &bias, &rows, &m->cols, &work->pairs),
                              err);
    if (ew_cuda_layout_is_quantised(m->layout))
        return ew_cuda_launch(&backend->device, PRODUCTS[m->layout].few, few,
                              ARGUMENTS(&out.at, &out.stride, &work->q8_codes, &work->q8_scales, &work->q8_sums,
                                        &m->codes, &m->scales, &m->mins, &bias, &rows, &m->cols, &work->pairs.expert),
                              err);
    return ew_cuda_launch(&backend->device, PRODUCTS[m->layout].few, few,
                          ARGUMENTS(&out.at, &out.stride, &in.at, &in.stride, &m->codes, &bias, &rows, &m->cols,
                                    &work->pairs.expert),
                          err);
}

int ew_cuda_experts_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                       struct ew_error *err)
{
    switch (backend->program->ops[step->op].kind) {
    case EW_OP_ROUTE:
        return launch_route(backend, step, n_tokens, err);
    case EW_OP_DISPATCH:
        return launch_dispatch(backend, step, n_tokens, err);
    case EW_OP_EXPERTS:
        return launch_experts(backend, step, n_tokens, err);
    default:
        EW_ASSERT(backend->program->ops[step->op].kind == EW_OP_COMBINE);
        return launch_combine(backend, step, n_tokens, err);
    }
}
