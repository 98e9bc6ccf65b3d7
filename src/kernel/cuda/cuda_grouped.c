// Experts of a few tokens: products of each expert with the rows of its pairs, by the kernels of ptx/few.c. Two gates
// and their activation are one launch.

#include "base/assert.h"
#include "kernel/cuda/cuda_experts.h"

#define TILE 16 // rows of a matrix
#define TOKEN_TILE 8

static const struct ew_cpu_step *step_at(const struct ew_cuda_backend *backend, uint32_t i, enum ew_op_kind kind)
{
    const struct ew_cpu_step *step = i < backend->plan.n_steps ? &backend->plan.steps[i] : NULL;

    return step && step->kind == EW_CPU_STEP_OP && backend->program->ops[step->op].kind == kind ? step : NULL;
}

static const struct ew_cuda_matrix *matrix_of(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step)
{
    return &backend->matrices[backend->program->ops[step->op].weight];
}

static void fill_part(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint64_t out,
                      struct ew_vector_part *part)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    const struct ew_cuda_matrix *m = matrix_of(backend, step);

    *part = (struct ew_vector_part){m->codes, m->scales, m->mins,
                                    op->bias == EW_WEIGHT_NONE ? 0 : backend->vectors[op->bias], out,
                                    backend->program->slot_width[op->out]};
}

// The activation behind two products that make its operands, or NULL.
static const struct ew_cpu_step *find_glu(const struct ew_cuda_backend *backend, uint32_t i,
                                          const struct ew_cpu_step *first)
{
    const struct ew_cpu_step *second = step_at(backend, i, EW_OP_EXPERTS), *glu = step_at(backend, i + 1, EW_OP_GLU);

    if (!second || !glu || second->in != first->in ||
        matrix_of(backend, first)->layout != matrix_of(backend, second)->layout)
        return NULL;
    if ((glu->in == first->out && glu->in2 == second->out) || (glu->in == second->out && glu->in2 == first->out))
        return glu;
    return NULL;
}

static void fill_act(const struct ew_cuda_backend *backend, const struct ew_cpu_step *glu, struct ew_vector_job *v)
{
    const struct ew_op *op = &backend->program->ops[glu->op];

    v->is_glu = 1;
    v->act = op->act.act;
    v->limit = op->act.limit;
    v->alpha = op->act.alpha;
}

static void plan_grouped(const struct ew_cuda_backend *backend, uint32_t i, struct ew_cuda_grouped *grouped)
{
    uint32_t next = i + (backend->plan.steps[i].kind == EW_CPU_STEP_QUANTISE), out;
    const struct ew_cpu_step *first = step_at(backend, next, EW_OP_EXPERTS), *glu;
    const uint64_t *buffers = backend->work.buffers;
    struct ew_vector_job *v = &grouped->job.v;

    if (!first)
        return;
    glu = find_glu(backend, next + 1, first);
    out = glu ? glu->out : first->out;
    *v = (struct ew_vector_job){.x = buffers[first->in], .layout = matrix_of(backend, first)->layout,
                                .cols = matrix_of(backend, first)->cols};
    fill_part(backend, first, buffers[out], &v->parts[0]);
    v->rows = (uint32_t)v->parts[0].rows;
    if (glu) {
        fill_act(backend, glu, v);
        fill_part(backend, &backend->plan.steps[next + 1], buffers[out], &v->parts[glu->in == first->out]);
        if (glu->in != first->out)
            fill_part(backend, first, buffers[out], &v->parts[1]);
    }
    grouped->job.expert_rows = backend->work.pairs.first;
    grouped->job.x_stride = backend->plan.buffers[first->in].width;
    grouped->job.out_strides[0] = backend->plan.buffers[out].width;
    grouped->n_experts = matrix_of(backend, first)->rows / v->rows;
    next += glu ? 3 : 1;
    if (v->rows % TILE == 0 && v->cols % EW_FEW_COLS_MULTIPLE == 0 && grouped->job.x_stride % 4 == 0 &&
        (next == i + 1 || !ew_cuda_reads_codes(backend, next)))
        grouped->count = next - i;
}

int ew_cuda_grouped_plan(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint32_t n_steps = backend->plan.n_steps;

    backend->grouped = ew_arena_array(&backend->plan_arena, n_steps, sizeof(*backend->grouped));
    if (!backend->grouped)
        return ew_fail_memory(err, n_steps * sizeof(*backend->grouped), "the experts' steps");
    for (uint32_t i = 0; i < n_steps; i++)
        plan_grouped(backend, i, &backend->grouped[i]);
    return 0;
}

// Of blocks that take 8 n_tiles rows.
static bool find_launch(const struct ew_cuda_backend *backend, const struct ew_cuda_grouped *grouped, uint32_t n_tiles,
                        struct ew_few_job *job, enum ew_cuda_kernel *kernel, struct ew_cuda_grid *grid)
{
    uint32_t at_once = EW_FEW_THREADS / 32 * (grouped->job.v.is_glu ? 1 : EW_FEW_TILES);
    uint32_t n_groups = (grouped->job.v.rows / TILE + at_once - 1) / at_once;

    *job = grouped->job;
    *grid = (struct ew_cuda_grid){n_groups, grouped->n_experts, 1, EW_FEW_THREADS};
    return ew_cuda_few_group(backend, n_tiles, n_groups, job, kernel, &grid->shared_bytes);
}

static uint32_t tiles_of(uint32_t n_tokens)
{
    return (n_tokens + TOKEN_TILE - 1) / TOKEN_TILE;
}

bool ew_cuda_grouped_takes(const struct ew_cuda_backend *backend, uint32_t i, uint32_t n_tokens)
{
    enum ew_cuda_kernel kernel;
    struct ew_cuda_grid grid;
    struct ew_few_job job;

    return backend->grouped && backend->grouped[i].count && n_tokens > 1 && n_tokens <= EW_FEW_TOKENS_MAX &&
           find_launch(backend, &backend->grouped[i], tiles_of(n_tokens), &job, &kernel, &grid);
}

// Most experts have no more than eight rows; those that have are another launch's, as it costs shared memory.
int ew_cuda_grouped(struct ew_cuda_backend *backend, const struct ew_cuda_grouped *grouped, uint32_t n_tokens,
                    struct ew_error *err)
{
    int rc = 0;

    for (uint32_t least = 1; least <= n_tokens && rc == 0; least += least == 1 ? TOKEN_TILE : EW_FEW_TOKENS_MAX) {
        enum ew_cuda_kernel kernel;
        struct ew_cuda_grid grid;
        struct ew_few_job job;
        bool fits = find_launch(backend, grouped, least == 1 ? 1 : tiles_of(n_tokens), &job, &kernel, &grid);

        EW_ASSERT(fits); // ew_cuda_grouped_takes saw to it
        job.least = least;
        rc = ew_cuda_launch(&backend->device, kernel, grid, (void *[]){&job}, err);
    }
    return rc;
}
