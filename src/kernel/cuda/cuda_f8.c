// Products of matrices in e4m3 with many rows of activations in e4m3 (f8_job.h), where the GPU has the instructions.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/f8_job.h"
#include "kernel/cuda/narrow_job.h"

#define FORM_THREADS 256
#define ROWS_STEP 8         // that the number of rows is a multiple of
#define MMA_SHARED_BYTES (EW_F8_MMA_STAGES * EW_F8_MMA_STAGE_BYTES)
#define SHARED_BYTES (EW_F8_STAGES * EW_F8_STAGE_BYTES + 1024)

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

// ---- which matrices -----------------------------------------------------------------------------

// The flags of form_f8.
struct flags {
    uint32_t differs_in_row, differs_in_block;
};

static bool may_take(const struct ew_cuda_matrix *m)
{
    return m->layout == EW_CUDA_F8 && m->cols % EW_F8_GROUP == 0 && m->rows % ROWS_STEP == 0;
}

// Into the place of the maps, which are made later.
static int find_flags(struct ew_cuda_backend *backend, struct flags *flags, uint64_t bytes, struct ew_error *err)
{
    struct ew_cuda_device *device = &backend->device;
    int rc = ew_cuda_check(device, device->driver.cuMemsetD8Async(backend->work.maps, 0, bytes, device->stream),
                           "clearing flags", err);

    for (uint32_t i = 0; i < backend->program->n_weights && rc == 0; i++) {
        struct ew_cuda_matrix *m = &backend->matrices[i];
        uint64_t to = backend->work.maps + i * sizeof(*flags);

        if (may_take(m))
            rc = ew_cuda_launch(device, EW_CUDA_FORM_F8,
                                (struct ew_cuda_grid){ceil_div(m->rows, FORM_THREADS / 32), 1, 1, FORM_THREADS, 0},
                                ARGUMENTS(&to, &m->scales, &m->rows, &m->cols), err);
    }
    if (rc == 0)
        rc = ew_cuda_check(device,
                           device->driver.cuMemcpyDtoHAsync_v2(flags, backend->work.maps, bytes, device->stream),
                           "copying flags", err);
    return rc ? rc : ew_cuda_check(device, device->driver.cuStreamSynchronize(device->stream), "reading scales", err);
}

static bool widths_are_even(const struct ew_cpu_plan *plan)
{
    for (uint32_t i = 0; i < plan->n_buffers; i++) {
        if (plan->buffers[i].width % 2)
            return false;
    }
    return true;
}

// With the kernels of ptx/wgmma_f8.c, or else with that of ptx/gemm_f8.c.
static bool has_wgmma(const struct ew_cuda_backend *backend)
{
    const struct ew_cuda_device *device = &backend->device;

    return device->functions[EW_CUDA_WGMMA_F8] && device->functions[EW_CUDA_WGMMA_F8_GATED] &&
           device->driver.cuTensorMapEncodeTiled && device->shared_bytes_max >= SHARED_BYTES;
}

static int allow_shared(struct ew_cuda_backend *backend, bool *has_kernels, struct ew_error *err)
{
    struct ew_cuda_device *device = &backend->device;
    int rc;

    *has_kernels = true;
    if (has_wgmma(backend)) {
        rc = ew_cuda_allow_shared(device, EW_CUDA_WGMMA_F8, SHARED_BYTES, err);
        return rc ? rc : ew_cuda_allow_shared(device, EW_CUDA_WGMMA_F8_GATED, SHARED_BYTES, err);
    }
    *has_kernels = device->functions[EW_CUDA_GEMM_F8] && device->shared_bytes_max >= MMA_SHARED_BYTES;
    return *has_kernels ? ew_cuda_allow_shared(device, EW_CUDA_GEMM_F8, MMA_SHARED_BYTES, err) : 0;
}

int ew_cuda_f8_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    uint32_t n = backend->program->n_weights;
    struct flags *flags;
    bool has_kernels;
    int rc = allow_shared(backend, &has_kernels, err);

    if (rc || !has_kernels || backend->config.deterministic || !widths_are_even(&backend->plan))
        return rc;
    flags = ew_alloc_array(n, sizeof(*flags));
    if (!flags)
        return ew_fail_memory(err, n * sizeof(*flags), "flags of matrices");
    rc = find_flags(backend, flags, n * sizeof(*flags), err);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        struct ew_cuda_matrix *m = &backend->matrices[i];

        if (may_take(m))
            m->f8_form = !flags[i].differs_in_row     ? EW_CUDA_F8_ROWS
                         : !flags[i].differs_in_block ? EW_CUDA_F8_BLOCKS
                                                      : EW_CUDA_F8_ANY;
    }
    ew_free(flags);
    return rc;
}

enum ew_cuda_layout ew_cuda_operand_of(const struct ew_cuda_matrix *matrix, uint32_t n_rows)
{
    if (matrix->f8_form != EW_CUDA_F8_ANY && n_rows >= EW_CUDA_F8_TOKENS)
        return EW_CUDA_F8;
    return matrix->layout == EW_CUDA_BF16 ? EW_CUDA_BF16 : EW_CUDA_F16;
}

// ---- products -----------------------------------------------------------------------------------

// Codes take half of what 16 bits would; scales lie behind them.
struct ew_codes_job ew_cuda_f8_codes(const struct ew_cuda_backend *backend, uint32_t turn, uint32_t cols,
                                     uint32_t n_rows)
{
    uint64_t codes = backend->work.x16[turn], bytes = ((uint64_t)n_rows * cols + 255) / 256 * 256;

    return (struct ew_codes_job){codes, codes + bytes, cols, ceil_div(n_rows, EW_F8_TOKENS) * EW_F8_TOKENS};
}

static struct ew_f8_operand operand_of(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    const struct ew_cuda_matrix *m = p->matrix;
    bool has_rows = m->f8_form == EW_CUDA_F8_ROWS;

    return (struct ew_f8_operand){.map = ew_cuda_wgmma_map(backend, m),
                                  .codes = m->codes,
                                  .blocks = has_rows ? 0 : m->scales,
                                  .row_scales = has_rows ? m->mins : 0,
                                  .bias = p->bias};
}

static struct ew_f8_job job_of(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    uint32_t turn = backend->work.narrow.turn;
    struct ew_codes_job codes = ew_cuda_f8_codes(backend, turn, p->matrix->cols, p->n_rows);

    return (struct ew_f8_job){
        .w = operand_of(backend, p),
        .x_map = ew_cuda_wgmma_x_map(backend, p->matrix),
        .x = codes.codes,
        .x_scales = codes.scales,
        .out = p->out,
        .residual = p->residual,
        .y_scale = p->y_scale,
        .residual_scale = p->residual_scale,
        .out_stride = p->out_stride,
        .residual_stride = p->residual_stride,
        .scale_stride = codes.scale_stride,
        .rows = p->matrix->rows,
        .cols = p->matrix->cols,
        .n_tokens = p->n_rows,
        .once = 1,
        .n_splits = 1,
    };
}

static int launch(struct ew_cuda_backend *backend, enum ew_cuda_kernel kernel, uint32_t n_items, struct ew_f8_job *job,
                  struct ew_error *err)
{
    uint32_t n_blocks = EW_MIN(n_items, (uint32_t)backend->device.n_multiprocessors);

    return ew_cuda_launch(&backend->device, kernel,
                          (struct ew_cuda_grid){n_blocks, 1, 1, EW_F8_THREADS, SHARED_BYTES}, ARGUMENTS(job), err);
}

static int launch_mma(struct ew_cuda_backend *backend, struct ew_f8_job *job, struct ew_error *err)
{
    struct ew_cuda_grid grid = {ceil_div(job->n_tokens, EW_F8_TOKENS), ceil_div(job->rows, EW_F8_MMA_ROWS), 1,
                                EW_F8_MMA_THREADS, MMA_SHARED_BYTES};

    EW_ASSERT(!job->residual);
    return ew_cuda_launch(&backend->device, EW_CUDA_GEMM_F8, grid, ARGUMENTS(job), err);
}

int ew_cuda_f8_product(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, struct ew_error *err)
{
    struct ew_f8_job job = job_of(backend, p);
    uint32_t n_tiles = ceil_div(p->n_rows, EW_F8_TOKENS) * ceil_div(job.rows, EW_F8_ROWS);
    int rc;

    if (!has_wgmma(backend))
        return launch_mma(backend, &job, err);
    job.n_splits = ew_cuda_wgmma_splits(backend, p, n_tiles, job.rows);
    if (job.n_splits > 1) {
        job.out = backend->work.few_partial;
        job.out_stride = job.rows;
        job.w.bias = job.residual = 0;
    }
    rc = launch(backend, EW_CUDA_WGMMA_F8, n_tiles * job.n_splits, &job, err);
    return rc || job.n_splits == 1 ? rc : ew_cuda_wgmma_join(backend, p, 0, job.rows, job.n_splits, err);
}

int ew_cuda_f8_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *g, uint64_t out_of,
                    struct ew_error *err)
{
    uint32_t turn = backend->work.narrow.turn ^ 1, rows = g->gate.matrix->rows, n_rows = g->gate.n_rows;
    struct ew_codes_job out = ew_cuda_f8_codes(backend, turn, rows, n_rows);
    struct ew_f8_job job = job_of(backend, &g->gate);
    int rc;

    EW_ASSERT(rows % EW_F8_GROUP == 0);
    job.up = operand_of(backend, &g->up);
    job.out = out.codes;
    job.out_scales = out.scales;
    job.residual = 0;
    job.gate_linear = g->linear;
    job.gate_cubic = g->cubic;
    rc = launch(backend, EW_CUDA_WGMMA_F8_GATED, ceil_div(n_rows, EW_F8_TOKENS) * (rows / EW_F8_GROUP), &job, err);
    backend->work.narrow = (struct ew_cuda_narrow){out_of, 0, rows, n_rows, EW_CUDA_F8, turn};
    return rc;
}
