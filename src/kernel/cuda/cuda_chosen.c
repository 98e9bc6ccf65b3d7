// Which steps of the plan one kernel of ptx/chosen.c does at once where there is one token:
//
//   choice, order, rows of pairs, [8-bit activations] gate and up, activation,
//   [8-bit activations] down, sum, [residual]
//
// Of what lies between them only the activated rows are written, so that nothing behind may read the rest. Where the
// layouts of gate and down differ, two kernels do it; also under MPS: the blocks of one kernel wait for each other, and
// those of two processes might do so with half of the multiprocessors each.

#include "base/assert.h"
#include "kernel/cuda/cuda_experts.h"

#define WARPS (EW_CHOSEN_THREADS / 32)
// Columns of two spans, the longest layout's: activations are padded to whole ones.
#define SPANS 2048
// Of a multiprocessor's shared memory, what a block of vector.c wants beside one of these: it is started while this one
// runs, and asks for its first weights.
#define NEIGHBOUR_BYTES (72u << 10)

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

struct match {
    const struct ew_cuda_backend *backend;
    uint32_t next; // step
    const struct ew_cpu_step *route, *dispatch, *gate, *up, *act, *down, *combine, *add;
};

static const struct ew_op *op_of(const struct match *m, const struct ew_cpu_step *step)
{
    return &m->backend->program->ops[step->op];
}

// Takes the next step where it is such an op.
static const struct ew_cpu_step *take(struct match *m, enum ew_op_kind kind)
{
    const struct ew_cpu_step *step = &m->backend->plan.steps[m->next];

    if (m->next == m->backend->plan.n_steps || step->kind != EW_CPU_STEP_OP || op_of(m, step)->kind != kind)
        return NULL;
    m->next++;
    return step;
}

static void skip(struct match *m, enum ew_cpu_step_kind kind)
{
    if (m->next < m->backend->plan.n_steps && m->backend->plan.steps[m->next].kind == kind)
        m->next++;
}

// Both gates, or what stands for them where there is but one matrix.
static bool match_gates(struct match *m)
{
    const struct ew_cpu_step *first, *second;

    skip(m, EW_CPU_STEP_QUANTISE);
    first = take(m, EW_OP_EXPERTS);
    second = take(m, EW_OP_EXPERTS);
    m->act = take(m, second ? EW_OP_GLU : EW_OP_ACT);
    if (!first || !m->act || first->in != m->dispatch->out || (second && second->in != first->in))
        return false;
    m->gate = !second || m->act->in == first->out ? first : second;
    m->up = !second || m->gate == second ? first : second;
    return m->act->in == m->gate->out && (!second || m->act->in2 == m->up->out);
}

static void match_add(struct match *m)
{
    uint32_t next = m->next;
    const struct ew_cpu_step *step;

    do // sums over one device
        step = take(m, EW_OP_ALL_REDUCE);
    while (step && step->in == step->out);
    step = take(m, EW_OP_ADD);
    if (step && step->in != step->in2 && (step->in == m->combine->out || step->in2 == m->combine->out))
        m->add = step;
    else
        m->next = next;
}

static bool match(struct match *m)
{
    m->route = take(m, EW_OP_ROUTE);
    skip(m, EW_CPU_STEP_SORT);
    m->dispatch = m->route ? take(m, EW_OP_DISPATCH) : NULL;
    if (!m->dispatch || !match_gates(m))
        return false;
    skip(m, EW_CPU_STEP_QUANTISE);
    m->down = take(m, EW_OP_EXPERTS);
    m->combine = m->down && m->down->in == m->act->out ? take(m, EW_OP_COMBINE) : NULL;
    if (!m->combine || m->combine->in != m->down->out || m->combine->in2 != m->route->out)
        return false;
    match_add(m);
    return true;
}

// ---- safety -------------------------------------------------------------------------------------

static const struct ew_cuda_matrix *matrix_of(const struct match *m, const struct ew_cpu_step *step)
{
    return &m->backend->matrices[op_of(m, step)->weight];
}

static const struct ew_cpu_step *last_of(const struct match *m)
{
    return m->add ? m->add : m->combine;
}

// Whether rows begin at 16 bytes, have more than one unit, and their scales begin at a word; of f8, whether four lanes'
// columns have one scale.
static bool has_whole_words(const struct ew_cuda_matrix *m)
{
    switch (m->layout) {
    case EW_CUDA_F32:
        return false;
    case EW_CUDA_F16:
    case EW_CUDA_BF16:
        return m->cols % 16 == 0;
    case EW_CUDA_F8:
    case EW_CUDA_U5:
    case EW_CUDA_U5_MIN:
        return m->cols % (4 * EW_CUDA_GROUP) == 0;
    default:
        return m->cols % (2 * EW_CUDA_GROUP) == 0;
    }
}

// The second kernel chooses the experts, too: it must not write where others still read the scores.
static bool is_safe(const struct match *m)
{
    const struct ew_cuda_matrix *gate = matrix_of(m, m->gate), *down = matrix_of(m, m->down);

    // Up to here products with hidden_inverse are quotients.
    if ((uint64_t)op_of(m, m->route)->route.n_active * down->cols * down->cols > UINT32_MAX)
        return false;
    if ((uint64_t)gate->rows * gate->cols / 8 > UINT32_MAX || (uint64_t)down->rows * down->cols / 8 > UINT32_MAX)
        return false;
    if (gate->layout != matrix_of(m, m->up)->layout || !has_whole_words(gate) || !has_whole_words(down))
        return false;
    if (last_of(m)->out == m->route->in)
        return false;
    return !ew_cuda_is_read(m->backend, m->next, m->route->out) && (!m->add || m->add->out == m->combine->out ||
                                                !ew_cuda_is_read(m->backend, m->next, m->combine->out));
}

// ---- jobs ---------------------------------------------------------------------------------------

static uint64_t vector_of(const struct match *m, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : m->backend->vectors[weight];
}

static struct ew_chosen_matrix chosen_matrix(const struct match *m, const struct ew_cpu_step *step)
{
    const struct ew_cuda_matrix *matrix = matrix_of(m, step);

    return (struct ew_chosen_matrix){matrix->codes, matrix->scales, matrix->mins, vector_of(m, op_of(m, step)->bias),
                                     matrix->layout};
}

static void fill_route(const struct match *m, struct ew_chosen_job *job)
{
    const struct ew_op *op = op_of(m, m->route);

    job->logits = m->backend->work.buffers[m->route->in];
    job->choice_bias = vector_of(m, op->bias);
    job->n_experts = op->route.n_experts;
    job->n_active = op->route.n_active;
    job->score = op->route.score;
    job->n_groups = op->route.n_groups;
    job->n_groups_active = op->route.n_groups_active;
    job->normalise = op->route.normalise;
    job->jitter = op->route.jitter;
    job->scale = op->route.scale;
    job->is_plain = op_of(m, m->combine)->combine.is_plain;
}

static void fill_job(const struct match *m, struct ew_chosen_job *job)
{
    const uint64_t *buffers = m->backend->work.buffers;
    const struct ew_op *act = op_of(m, m->act);
    uint32_t n_blocks = (uint32_t)m->backend->device.n_multiprocessors;

    fill_route(m, job);
    job->x = buffers[m->dispatch->in];
    job->arrived = m->backend->work.chosen_arrived;
    job->hidden = buffers[m->act->out];
    job->hidden_stride = m->backend->plan.buffers[m->act->out].width;
    job->out = buffers[last_of(m)->out];
    job->gate = chosen_matrix(m, m->gate);
    job->up = chosen_matrix(m, m->up);
    job->down = chosen_matrix(m, m->down);
    job->cols = matrix_of(m, m->gate)->cols;
    job->hidden_cols = matrix_of(m, m->down)->cols;
    job->hidden_inverse = (uint32_t)(((1ull << 32) + job->hidden_cols - 1) / job->hidden_cols);
    job->gates_each = job->n_active * job->hidden_cols / n_blocks;
    job->gates_more = job->n_active * job->hidden_cols % n_blocks;
    job->sums_each = job->cols / n_blocks;
    job->sums_more = job->cols % n_blocks;
    job->act = act->act.act;
    job->no_gate = act->kind == EW_OP_ACT;
    job->limit = act->act.limit;
    job->alpha = act->act.alpha;
    if (m->add) {
        bool sum_first = m->add->in == m->combine->out;
        float scale = op_of(m, m->add)->add.scale;

        job->residual = buffers[sum_first ? m->add->in2 : m->add->in];
        job->residual_scale = sum_first ? scale : 1;
        job->y_scale = sum_first ? 1 : scale;
    }
}

#define TABLE {EW_CUDA_CHOSEN_TABLE, 1, 40}
#define TABLE_16 {EW_CUDA_CHOSEN_TABLE_16, 1, 40}

static const struct {
    enum ew_cuda_kernel kernel;
    uint32_t words;                 // beside the codes of a unit, as in ptx/chosen.c
    uint32_t column_bytes_times_32; // in shared memory: f32, f16, or codes and two scales
} LAYOUTS[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F16] = {EW_CUDA_CHOSEN_F16, 0, 128},
    [EW_CUDA_BF16] = {EW_CUDA_CHOSEN_BF16, 0, 128},
    [EW_CUDA_I8] = {EW_CUDA_CHOSEN_I8, 1, 40},
    [EW_CUDA_U4] = {EW_CUDA_CHOSEN_U4, 1, 40},
    [EW_CUDA_U4_MIN] = {EW_CUDA_CHOSEN_U4_MIN, 2, 40},
    [EW_CUDA_F8] = {EW_CUDA_CHOSEN_F8, 1, 64},
    [EW_CUDA_IQ4] = TABLE,
    [EW_CUDA_MX4] = TABLE,
    [EW_CUDA_NV4] = {EW_CUDA_CHOSEN_NV4, 2, 40},
    [EW_CUDA_IQ1] = TABLE,
    [EW_CUDA_IQ2] = TABLE,
    [EW_CUDA_IQ3_XXS] = TABLE,
    [EW_CUDA_IQ3_S] = TABLE,
    [EW_CUDA_IQ1_16] = TABLE_16,
    [EW_CUDA_IQ2_16] = TABLE_16,
    [EW_CUDA_U3_16] = TABLE_16,
    [EW_CUDA_U5] = {EW_CUDA_CHOSEN_U5, 2, 40},
    [EW_CUDA_U5_MIN] = {EW_CUDA_CHOSEN_U5_MIN, 3, 40},
    [EW_CUDA_U6] = {EW_CUDA_CHOSEN_U6, 3, 40},
};

// As find_places in ptx/chosen.c has it.
static uint32_t shared_bytes(const struct ew_chosen_job *job, enum ew_cuda_layout layout, uint32_t cols,
                             uint32_t n_stages)
{
    uint32_t ring = WARPS * n_stages * 2 * (EW_CHOSEN_CODE_BYTES + EW_CHOSEN_WORD_BYTES * LAYOUTS[layout].words);

    return ring + (3 * job->n_experts + (1 + WARPS) * job->n_active + 3) / 4 * 16 + (job->sums_each + 2) / 2 * 16 +
           (cols + SPANS - 1) / SPANS * (SPANS / 32) * LAYOUTS[layout].column_bytes_times_32;
}

// With room enough, rings are long. False: what it works on does not fit.
static bool add_kernel(const struct ew_cuda_backend *backend, struct ew_cuda_chosen *chosen,
                       const struct ew_chosen_job *job, uint32_t does, enum ew_cuda_layout layout)
{
    uint32_t most = (uint32_t)backend->device.shared_bytes_max - EW_CHOSEN_STATIC_BYTES, i = chosen->n_kernels++;
    uint32_t n_all = job->hidden_cols * job->n_active, n_stages = EW_CHOSEN_STAGES;
    uint32_t cols = EW_MAX(does & EW_CHOSEN_GATES ? job->cols : 0, does & EW_CHOSEN_SUMS ? n_all : 0);

    if (shared_bytes(job, layout, cols, n_stages) + NEIGHBOUR_BYTES > most)
        n_stages = EW_CHOSEN_STAGES_FEW;
    chosen->kernels[i] = LAYOUTS[layout].kernel;
    chosen->jobs[i] = *job;
    chosen->jobs[i].does = does;
    chosen->jobs[i].n_stages = n_stages;
    chosen->shared_bytes[i] = shared_bytes(job, layout, cols, n_stages);
    return chosen->shared_bytes[i] <= most;
}

// False: the steps are done one by one. can_wait: whether blocks may wait for others.
static bool plan_chosen(struct ew_cuda_backend *backend, uint32_t step, bool can_wait, struct ew_cuda_chosen *chosen)
{
    struct match m = {.backend = backend, .next = step};
    struct ew_chosen_job job = {0};
    enum ew_cuda_layout in, out;
    bool fits;

    if (!match(&m) || !is_safe(&m))
        return false;
    in = matrix_of(&m, m.gate)->layout;
    out = matrix_of(&m, m.down)->layout;
    fill_job(&m, &job);
    if (LAYOUTS[in].kernel == LAYOUTS[out].kernel && can_wait)
        fits = add_kernel(backend, chosen, &job, EW_CHOSEN_GATES | EW_CHOSEN_SUMS, in);
    else
        fits = add_kernel(backend, chosen, &job, EW_CHOSEN_GATES, in) &&
               add_kernel(backend, chosen, &job, EW_CHOSEN_SUMS, out);
    chosen->count = fits ? m.next - step : 0;
    return fits;
}

int ew_cuda_chosen_plan(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint32_t n_steps = backend->plan.n_steps, most[EW_CUDA_KERNEL_COUNT] = {0};
    bool can_wait = !ew_cuda_has_mps();
    int rc = 0;

    backend->chosen = ew_arena_array(&backend->plan_arena, n_steps, sizeof(*backend->chosen));
    if (!backend->chosen)
        return ew_fail_memory(err, n_steps * sizeof(*backend->chosen), "the fused steps");
    for (uint32_t i = 0; i < n_steps; i++) {
        struct ew_cuda_chosen *chosen = &backend->chosen[i];

        if (!plan_chosen(backend, i, can_wait, chosen))
            continue;
        for (uint32_t k = 0; k < chosen->n_kernels; k++)
            most[chosen->kernels[k]] = EW_MAX(most[chosen->kernels[k]], chosen->shared_bytes[k]);
    }
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT && rc == 0; i++) {
        if (most[i])
            rc = ew_cuda_allow_shared(&backend->device, i, most[i], err);
    }
    return rc;
}

int ew_cuda_chosen_launch(struct ew_cuda_backend *backend, struct ew_cuda_chosen *chosen, struct ew_error *err)
{
    struct ew_cuda_grid grid = {(uint32_t)backend->device.n_multiprocessors, 1, 1, EW_CHOSEN_THREADS, 0};
    int rc = 0;

    for (uint32_t i = 0; i < chosen->n_kernels && rc == 0; i++) {
        grid.shared_bytes = chosen->shared_bytes[i];
        rc = ew_cuda_launch(&backend->device, chosen->kernels[i], grid, ARGUMENTS(&chosen->jobs[i]), err);
    }
    return rc;
}
