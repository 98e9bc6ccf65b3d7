// Which steps of the plan one kernel of ptx/vector.c does at once where there is one row of activations:
//
//   [norm] [8-bit activations] products of one input [activation of a gate | residual]
//
// What lies between them is not written. So nothing behind may read it, and nothing may be written that another block
// still reads: slots share buffers.

#include "base/alloc.h"
#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/vector_job.h"

#define WARPS (EW_VECTOR_THREADS / 32)
#define DRIVER_BYTES 1024u // of shared memory, which each block has beside its own

struct match {
    const struct ew_cuda_backend *backend;
    uint32_t next;                  // step
    uint32_t x;                     // buffer that the kernel reads
    uint32_t width;                 // of x
    const struct ew_op *norm;
    uint32_t normed;                // buffer of its result, written only where it is read later
    bool quantises;
    uint32_t products[EW_VECTOR_PARTS_MAX], n_products; // steps
    const struct ew_cpu_step *glu, *add;
};

static const struct ew_cpu_step *step_at(const struct match *m, uint32_t i)
{
    return i < m->backend->plan.n_steps ? &m->backend->plan.steps[i] : NULL;
}

static const struct ew_op *op_of(const struct match *m, const struct ew_cpu_step *step)
{
    return &m->backend->program->ops[step->op];
}

static bool is_op(const struct match *m, const struct ew_cpu_step *step, enum ew_op_kind kind)
{
    return step && step->kind == EW_CPU_STEP_OP && op_of(m, step)->kind == kind;
}

bool ew_cuda_is_read(const struct ew_cuda_backend *backend, uint32_t first, uint32_t buffer)
{
    const struct ew_cpu_plan *plan = &backend->plan;

    for (uint32_t i = first; i < plan->n_steps; i++) {
        const struct ew_cpu_step *step = &plan->steps[i];

        if (step->in == buffer || step->in2 == buffer || step->in3 == buffer)
            return true;
        if (step->out == buffer && step->kind == EW_CPU_STEP_OP)
            return false;
    }
    return plan->result == buffer;
}

// Whether a step behind those of the match wants what is in the buffer now.
static bool is_read_later(const struct match *m, uint32_t buffer)
{
    return ew_cuda_is_read(m->backend, m->next, buffer);
}

static bool is_quantised_product(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step)
{
    const struct ew_op *op = &backend->program->ops[step->op];

    return step->kind == EW_CPU_STEP_OP && (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS) &&
           ew_cuda_layout_wants_q8(backend->matrices[op->weight].layout);
}

bool ew_cuda_reads_codes(const struct ew_cuda_backend *backend, uint32_t first)
{
    const struct ew_cpu_plan *plan = &backend->plan;

    for (uint32_t i = first; i < plan->n_steps; i++) {
        if (plan->steps[i].kind == EW_CPU_STEP_QUANTISE)
            return false;
        if (is_quantised_product(backend, &plan->steps[i]))
            return true;
    }
    return false;
}

static void match_norm(struct match *m)
{
    const struct ew_cpu_step *step = step_at(m, m->next);
    const struct ew_op *op;
    uint32_t width;

    m->normed = EW_CPU_NO_BUFFER;
    if (!is_op(m, step, EW_OP_NORM))
        return;
    op = op_of(m, step);
    width = m->backend->program->slot_width[op->in];
    if ((op->norm.group && op->norm.group != width) || step->in == step->out)
        return;
    m->norm = op;
    m->x = step->in;
    m->normed = step->out;
    m->next++;
}

// A sum over one device.
static bool is_nothing(const struct match *m, const struct ew_cpu_step *step)
{
    return is_op(m, step, EW_OP_ALL_REDUCE) && step->in == step->out;
}

static bool fits(const struct match *m, const struct ew_cpu_step *step)
{
    const struct ew_cuda_matrix *matrix, *first;

    if (!is_op(m, step, EW_OP_LINEAR) || m->n_products == EW_VECTOR_PARTS_MAX)
        return false;
    matrix = &m->backend->matrices[op_of(m, step)->weight];
    if (matrix->layout == EW_CUDA_F32 || matrix->cols % EW_VECTOR_COLS_MULTIPLE)
        return false;
    if (m->n_products == 0)
        return !m->norm || step->in == m->normed;
    first = &m->backend->matrices[op_of(m, step_at(m, m->products[0]))->weight];
    return matrix->layout == first->layout && matrix->cols == first->cols && matrix->order == first->order &&
           step->in == step_at(m, m->products[0])->in;
}

static void match_products(struct match *m)
{
    const struct ew_cpu_step *step = step_at(m, m->next);

    if (step && step->kind == EW_CPU_STEP_QUANTISE) {
        m->quantises = true;
        m->next++;
    }
    while (fits(m, step_at(m, m->next)))
        m->products[m->n_products++] = m->next++;
}

static void match_end(struct match *m)
{
    const struct ew_cpu_step *first = m->n_products ? step_at(m, m->products[0]) : NULL, *second, *step;
    uint32_t next = m->next;

    while (is_nothing(m, step_at(m, next)))
        next++;
    step = step_at(m, next);
    if (m->n_products == 2 && is_op(m, step, EW_OP_GLU)) {
        second = step_at(m, m->products[1]);
        if ((step->in == first->out && step->in2 == second->out) ||
            (step->in == second->out && step->in2 == first->out))
            m->glu = step;
    } else if (m->n_products == 1 && is_op(m, step, EW_OP_ADD) && step->in != step->in2 &&
               (step->in == first->out || step->in2 == first->out)) {
        m->add = step;
    }
    if (m->glu || m->add)
        m->next = next + 1;
}

static bool is_written(const struct match *m, uint32_t buffer)
{
    bool is = (m->glu && m->glu->out == buffer) || (m->add && m->add->out == buffer);

    for (uint32_t i = 0; i < m->n_products && !m->glu && !m->add; i++)
        is |= step_at(m, m->products[i])->out == buffer;
    return is;
}

// Whether the kernel may run without writing what lies between, and nothing that it writes is read by its other blocks.
static bool is_safe(const struct match *m)
{
    const struct ew_cpu_step *last = m->glu ? m->glu : m->add;
    const struct ew_cuda_matrix *first = &m->backend->matrices[op_of(m, step_at(m, m->products[0]))->weight];

    // What was normalised others want as it is.
    if (m->norm && first->order && !is_written(m, m->normed) && is_read_later(m, m->normed))
        return false;
    // One block alone writes what was normalised, where others want it: for them, not for these.
    if (m->norm && m->add && (m->add->in == m->normed || m->add->in2 == m->normed))
        return false;
    if (m->quantises && ew_cuda_reads_codes(m->backend, m->next))
        return false;
    if (last && last->out == m->x)
        return false;
    for (uint32_t i = 0; i < m->n_products; i++) {
        const struct ew_cpu_step *step = step_at(m, m->products[i]);

        if (last ? step->out != last->out && is_read_later(m, step->out) : step->out == m->x)
            return false;
    }
    return true;
}

static bool match(struct match *m)
{
    match_norm(m);
    match_products(m);
    if (m->n_products == 0)
        return false;
    if (!m->norm)
        m->x = step_at(m, m->products[0])->in;
    m->width = m->backend->matrices[op_of(m, step_at(m, m->products[0]))->weight].cols;
    match_end(m);
    // Codes that an earlier step made for several products are not there where that step was fused.
    return is_safe(m) && (m->quantises || !is_quantised_product(m->backend, step_at(m, m->products[0])));
}

// ---- jobs ---------------------------------------------------------------------------------------

static uint64_t vector_of(const struct ew_cuda_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : backend->vectors[weight];
}

static void fill_part(const struct match *m, uint32_t product, uint64_t out, struct ew_vector_part *part)
{
    const struct ew_op *op = op_of(m, step_at(m, product));
    const struct ew_cuda_matrix *matrix = &m->backend->matrices[op->weight];

    *part = (struct ew_vector_part){matrix->codes, matrix->scales, matrix->mins, vector_of(m->backend, op->bias), out,
                                    matrix->rows};
}

static void fill_parts(const struct match *m, struct ew_cuda_fused *fused)
{
    struct ew_vector_job *job = &fused->job;
    const uint64_t *buffers = m->backend->work.buffers;
    bool swapped = m->glu && m->glu->in != step_at(m, m->products[0])->out;

    for (uint32_t i = 0; i < m->n_products; i++) {
        uint32_t product = m->products[swapped ? 1 - i : i];
        uint64_t out = buffers[m->glu ? m->glu->out : m->add ? m->add->out : step_at(m, product)->out];

        fill_part(m, product, out, &job->parts[i]);
        fused->weights[i] = op_of(m, step_at(m, product))->weight;
        fused->outs[i] = step_at(m, product)->out;
        if (i == 0 || !m->glu)
            job->rows += (uint32_t)job->parts[i].rows;
    }
}

static void fill_add(const struct match *m, struct ew_vector_job *job)
{
    bool product_first = m->add->in == step_at(m, m->products[0])->out;
    float scale = op_of(m, m->add)->add.scale;

    job->residual = m->backend->work.buffers[product_first ? m->add->in2 : m->add->in];
    job->residual_scale = product_first ? scale : 1;
    job->y_scale = product_first ? 1 : scale;
}

static void fill(const struct match *m, struct ew_cuda_fused *fused)
{
    const struct ew_cuda_matrix *matrix = &m->backend->matrices[op_of(m, step_at(m, m->products[0]))->weight];
    struct ew_vector_job *job = &fused->job;

    fused->x = m->x;
    fused->normed = m->normed;
    fused->out = m->glu ? m->glu->out : m->add ? m->add->out : EW_CPU_NO_BUFFER;
    fused->residual = EW_CPU_NO_BUFFER;
    if (m->add)
        fused->residual = m->add->in == step_at(m, m->products[0])->out ? m->add->in2 : m->add->in;
    *job = (struct ew_vector_job){.x = m->backend->work.buffers[m->x], .cols = m->width};
    job->layout = matrix->layout;
    job->order = matrix->order;
    if (m->norm) {
        if (!is_written(m, m->normed) && is_read_later(m, m->normed))
            job->normed = m->backend->work.buffers[m->normed];
        job->norm = m->norm->norm.kind == EW_NORM_LAYER ? EW_VECTOR_LAYER : EW_VECTOR_RMS;
        job->norm_weight = vector_of(m->backend, m->norm->weight);
        job->norm_bias = vector_of(m->backend, m->norm->bias);
        job->eps = m->norm->norm.eps;
        job->norm_offset = m->norm->norm.weight_offset;
    }
    if (m->glu) {
        const struct ew_op *op = op_of(m, m->glu);

        job->is_glu = 1;
        job->act = op->act.act;
        job->limit = op->act.limit;
        job->alpha = op->act.alpha;
    }
    if (m->add)
        fill_add(m, job);
    fill_parts(m, fused);
}

// Whether what these steps write is read by the products behind them alone.
static bool feeds_products(const struct ew_cuda_backend *backend, uint32_t first)
{
    const struct ew_cuda_fused *fused = &backend->fused[first], *next;
    struct match m = {.backend = backend, .next = first + fused->count};

    if (!fused->job.is_glu || m.next >= backend->plan.n_steps)
        return false;
    next = &backend->fused[m.next];
    if (!next->count || next->x != fused->out || next->job.norm != EW_VECTOR_PLAIN || next->job.order ||
        ew_cuda_operand_of(&backend->matrices[next->weights[0]], UINT32_MAX) !=
            ew_cuda_operand_of(&backend->matrices[fused->weights[0]], UINT32_MAX) ||
        ew_cuda_wcoded_knows(next->job.layout) != ew_cuda_wcoded_knows(fused->job.layout)) // in what order
        return false;
    m.next += next->count;
    return next->out == fused->out || !is_read_later(&m, fused->out);
}

// What a norm multiplies a short row in another order with lies in that order, too (is_short in ptx/vector.c): each
// block would gather it anew.
static int order_norm(struct ew_cuda_backend *backend, struct ew_cuda_fused *fused, struct ew_error *err)
{
    const struct ew_vector_job *job = &fused->job;
    const uint32_t *order = backend->program->weights[fused->weights[0]].source.order;
    uint64_t bytes = job->cols * sizeof(float);
    float *values, *ordered;
    int rc = 0;

    if (!job->order || !job->norm_weight || job->norm_bias || job->norm != EW_VECTOR_RMS ||
        job->cols > EW_VECTOR_COLS_SHORT)
        return 0;
    values = ew_alloc(bytes);
    ordered = ew_alloc(bytes);
    if (!values || !ordered)
        rc = ew_fail_memory(err, 2 * bytes, "a norm's weights in another order");
    if (rc == 0)
        rc = ew_cuda_check(&backend->device,
                           backend->device.driver.cuMemcpyDtoH_v2(values, job->norm_weight, bytes),
                           "reading a norm's weights", err);
    for (uint32_t i = 0; i < job->cols && rc == 0; i++)
        ordered[i] = values[order[i]];
    if (rc == 0)
        rc = ew_cuda_arena_alloc(&backend->device, &backend->weights, bytes,
                                 "taking memory for a norm's weights in another order", &fused->ordered_norm, err);
    if (rc == 0)
        rc = ew_cuda_check(&backend->device,
                           backend->device.driver.cuMemcpyHtoD_v2(fused->ordered_norm, ordered, bytes),
                           "copying a norm's weights in another order", err);
    ew_free(ordered);
    ew_free(values);
    return rc;
}

#define TABLE {EW_CUDA_VECTOR_TABLE, EW_VECTOR_COLS_TABLE, EW_VECTOR_BYTES_TABLE, 40, 4}
#define TABLE_16 {EW_CUDA_VECTOR_TABLE_16, EW_VECTOR_COLS_TABLE, EW_VECTOR_BYTES_TABLE_16, 40, 4}

// n_early: the pieces asked for before activations are there. Where asking and multiplying take the threads' time, some
// are left for later, as activations wait for the same threads (8 B q4_0 on an H200: 551 tok/s with all seven, 565 with
// four; q8_0 394 and 388).
static const struct {
    enum ew_cuda_kernel kernel;
    uint32_t cols, piece_bytes, column_bytes_times_32, n_early;
} CLASSES[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F16] = {EW_CUDA_VECTOR_HALF, EW_VECTOR_COLS_HALF, EW_VECTOR_BYTES_HALF, 128, 7},
    [EW_CUDA_BF16] = {EW_CUDA_VECTOR_HALF, EW_VECTOR_COLS_HALF, EW_VECTOR_BYTES_HALF, 128, 7},
    [EW_CUDA_I8] = {EW_CUDA_VECTOR_I8, EW_VECTOR_COLS_I8, EW_VECTOR_BYTES_I8, 40, 7},
    [EW_CUDA_IQ4] = TABLE,
    [EW_CUDA_MX4] = TABLE,
    [EW_CUDA_NV4] = TABLE,
    [EW_CUDA_IQ1] = TABLE,
    [EW_CUDA_IQ2] = TABLE,
    [EW_CUDA_IQ3_XXS] = TABLE,
    [EW_CUDA_IQ3_S] = TABLE,
    [EW_CUDA_IQ1_16] = TABLE_16,
    [EW_CUDA_IQ2_16] = TABLE_16,
    [EW_CUDA_U3_16] = TABLE_16,
    [EW_CUDA_U5] = {EW_CUDA_VECTOR_U5, EW_VECTOR_COLS_U5, EW_VECTOR_BYTES_U5, 40, 5},
    [EW_CUDA_U5_MIN] = {EW_CUDA_VECTOR_U5, EW_VECTOR_COLS_U5, EW_VECTOR_BYTES_U5, 40, 5},
    [EW_CUDA_U6] = {EW_CUDA_VECTOR_U6, EW_VECTOR_COLS_U6, EW_VECTOR_BYTES_U6, 40, 5},
    [EW_CUDA_F8] = {EW_CUDA_VECTOR_F8, EW_VECTOR_COLS_F8, EW_VECTOR_BYTES_F8, 64, 5},
    [EW_CUDA_U4] = {EW_CUDA_VECTOR_U4, EW_VECTOR_COLS_U4, EW_VECTOR_BYTES_U4, 40, 4},
    [EW_CUDA_U4_MIN] = {EW_CUDA_VECTOR_U4, EW_VECTOR_COLS_U4, EW_VECTOR_BYTES_U4, 40, 4},
};

// As find_share and find_places in ptx/vector.c; blocks have one of two numbers of rows.
static uint32_t shared_bytes(const struct ew_cuda_backend *backend, const struct ew_vector_job *job,
                             uint32_t n_stages)
{
    uint32_t n_blocks = (uint32_t)backend->device.n_multiprocessors, cols = CLASSES[job->layout].cols, most = 0;
    uint32_t n_pieces = (job->cols + cols - 1) / cols;
    uint32_t row_bytes = job->order && job->cols <= EW_VECTOR_COLS_SHORT ? job->cols * sizeof(float) : 0;

    for (uint32_t n = job->rows / n_blocks; n <= job->rows / n_blocks + 1; n++) {
        uint32_t n_rows = n * (job->is_glu ? 2 : 1), per_warp = EW_MAX((n_rows * n_pieces + WARPS - 1) / WARPS, 1u);

        most = EW_MAX(most, n_rows * ((n_pieces - 1) / per_warp + 2));
    }
    return WARPS * n_stages * CLASSES[job->layout].piece_bytes +
           n_pieces * (cols / 32) * CLASSES[job->layout].column_bytes_times_32 + row_bytes +
           most * (uint32_t)sizeof(float);
}

// The longest of a block that may have so many bytes.
static void find_ring(const struct ew_cuda_backend *backend, struct ew_cuda_fused *fused, enum ew_cuda_ring ring,
                      uint32_t bytes_max)
{
    for (uint32_t n = EW_VECTOR_STAGES_MIN; n <= EW_VECTOR_STAGES_MAX; n++) {
        uint32_t bytes = shared_bytes(backend, &fused->job, n);

        if (n > EW_VECTOR_STAGES_MIN && bytes > bytes_max)
            return;
        fused->rings[ring].n_stages = n;
        fused->rings[ring].bytes = bytes;
    }
}

// False: there is no room for any.
static bool find_rings(const struct ew_cuda_backend *backend, struct ew_cuda_fused *fused)
{
    uint32_t bytes_max = (uint32_t)backend->device.shared_bytes_max - EW_VECTOR_STATIC_BYTES;

    find_ring(backend, fused, EW_CUDA_RING_SHORT, 0);
    find_ring(backend, fused, EW_CUDA_RING_LONGEST, bytes_max);
    return fused->rings[EW_CUDA_RING_SHORT].bytes <= bytes_max;
}

int ew_cuda_fuse(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint32_t n_steps = backend->plan.n_steps, most[EW_CUDA_KERNEL_COUNT] = {0};
    uint32_t n_blocks = (uint32_t)backend->device.n_multiprocessors;
    int rc = 0;

    backend->fused = ew_arena_array(&backend->plan_arena, n_steps, sizeof(*backend->fused));
    if (!backend->fused)
        return ew_fail_memory(err, n_steps * sizeof(*backend->fused), "the fused steps");
    // Fused or not is a matter of the number of rows, and with it the order of sums.
    for (uint32_t i = 0; i < n_steps && !backend->config.deterministic; i++) {
        struct match m = {.backend = backend, .next = i};
        struct ew_cuda_fused *fused = &backend->fused[i];

        if (!match(&m))
            continue;
        fill(&m, fused);
        fused->kernel = CLASSES[fused->job.layout].kernel;
        fused->n_early = CLASSES[fused->job.layout].n_early;
        if (!find_rings(backend, fused) || fused->job.rows > UINT32_MAX / (n_blocks + 1))
            continue; // blocks count rows in 32 bits
        rc = order_norm(backend, fused, err);
        if (rc)
            return rc;
        fused->count = m.next - i;
        most[fused->kernel] = EW_MAX(most[fused->kernel], fused->rings[EW_CUDA_RING_LONGEST].bytes);
        i = m.next - 1;
    }
    for (uint32_t i = 0; i < n_steps; i++)
        backend->fused[i].is_narrow = backend->fused[i].count && feeds_products(backend, i);
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT && rc == 0; i++) {
        if (most[i])
            rc = ew_cuda_allow_shared(&backend->device, i, most[i], err);
    }
    return rc;
}

static enum ew_cuda_place place_of(const struct ew_cuda_backend *backend, uint32_t i, bool is_after_attention)
{
    uint32_t next = i + backend->fused[i].count;

    if (is_after_attention)
        return EW_CUDA_AFTER_ATTENTION;
    if (backend->fused[i].job.is_glu)
        return EW_CUDA_GATES;
    return next < backend->plan.n_steps && backend->attends[next].count ? EW_CUDA_BEFORE_ATTENTION : EW_CUDA_ELSEWHERE;
}

// Finds out beside which blocks, of products and of experts, a product's may have to find room; returns the last one.
static struct ew_cuda_fused *find_places(struct ew_cuda_backend *backend)
{
    uint32_t n_steps = backend->plan.n_steps, behind = n_steps; // step behind an attention
    uint32_t bytes = 0, before;                                 // of a block of what comes next, and of what was last
    struct ew_cuda_fused *last = NULL, *neighbour = NULL;

    for (uint32_t i = 0; i < n_steps; i++) {
        struct ew_cuda_fused *fused = &backend->fused[i];
        const struct ew_cuda_chosen *chosen = backend->chosen ? &backend->chosen[i] : NULL;
        const struct ew_cuda_scored *scored = backend->scored ? &backend->scored[i] : NULL;

        if (backend->attends[i].count)
            behind = i + backend->attends[i].count;
        if (!fused->count && !(chosen && chosen->count))
            continue;
        before = bytes;
        bytes = chosen && chosen->count ? chosen->shared_bytes[0] : fused->rings[EW_CUDA_RING_SHORT].bytes;
        bytes += scored ? scored->shared_bytes : 0;
        if (neighbour)
            neighbour->beside_bytes = EW_MAX(neighbour->beside_bytes, bytes);
        neighbour = NULL;
        if (chosen && chosen->count) {
            bytes = chosen->shared_bytes[chosen->n_kernels - 1];
            continue;
        }
        fused->place = place_of(backend, i, i == behind);
        fused->beside_bytes = before;
        last = neighbour = fused;
        if (scored && scored->count) // the router's product is a part of this one
            i += scored->count - 1;
    }
    if (last)
        last->place = EW_CUDA_LAST;
    return last;
}

void ew_cuda_fuse_place(struct ew_cuda_backend *backend)
{
    const struct ew_cuda_fused *last = find_places(backend);
    // A multiprocessor has the driver's share of one block more than what the largest block can ask for.
    uint32_t of_two = (uint32_t)backend->device.shared_bytes_max - DRIVER_BYTES - 2 * EW_VECTOR_STATIC_BYTES;

    for (uint32_t i = 0; last && i < backend->plan.n_steps; i++) {
        struct ew_cuda_fused *fused = &backend->fused[i];

        if (!fused->count)
            continue;
        if (backend->scored && backend->scored[i].count)
            fused->beside_bytes += backend->scored[i].shared_bytes;
        find_ring(backend, fused, EW_CUDA_RING_FITTING, of_two - EW_MIN(of_two, fused->beside_bytes));
        if (fused == last || !fused->beside_bytes) // or among experts
            continue;
        if (fused->rings[EW_CUDA_RING_FITTING].n_stages > fused->rings[EW_CUDA_RING_SHORT].n_stages)
            backend->fitting_places |= 1u << fused->place;
        if (fused->rings[EW_CUDA_RING_LONGEST].n_stages > fused->rings[EW_CUDA_RING_FITTING].n_stages)
            backend->longest_places |= 1u << fused->place;
    }
}
