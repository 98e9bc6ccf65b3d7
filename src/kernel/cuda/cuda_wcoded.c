// Products of quantised matrices with some dozens and more rows of activations on sm_90a that read the matrices as they
// are (ptx/wgmma_coded.c): the choice of kernels and of shares, launches. cuda_wgmma.c has the maps.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/vector_job.h"
#include "kernel/cuda/wcoded_job.h"

#define TOKENS_MIN 33   // fewer are for ptx/few.c and ptx/some.c
#define TOKENS_SMALL 64 // of the smaller kernels
#define TOKENS_LARGE 128
#define SPLITS_MAX 8
#define SPLIT_STEPS_MIN 6 // of a part of the columns
#define JOIN_THREADS 256

_Static_assert(EW_WCODED_PARTS == EW_VECTOR_PARTS_MAX, "products of one input");

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

#define KINDS(name) \
    {{EW_CUDA_WGMMA_##name##_64, EW_CUDA_WGMMA_##name##_64_GATED}, \
     {EW_CUDA_WGMMA_##name##_128, EW_CUDA_WGMMA_##name##_128_GATED}}

// By the tokens of a tile, and of gates. 0, a kernel of another kind: the layout has none.
static const enum ew_cuda_kernel KERNELS[EW_CUDA_LAYOUT_COUNT][2][2] = {
    [EW_CUDA_I8] = KINDS(I8),
    [EW_CUDA_U4] = KINDS(U4),
    [EW_CUDA_U4_MIN] = KINDS(U4),
    [EW_CUDA_IQ4] = KINDS(TABLE),
    [EW_CUDA_MX4] = KINDS(TABLE),
    [EW_CUDA_NV4] = KINDS(TABLE),
    [EW_CUDA_IQ1] = KINDS(TABLE),
    [EW_CUDA_IQ2] = KINDS(TABLE),
    [EW_CUDA_IQ3_XXS] = KINDS(TABLE),
    [EW_CUDA_IQ3_S] = KINDS(TABLE),
    [EW_CUDA_IQ1_16] = KINDS(TABLE_16),
    [EW_CUDA_IQ2_16] = KINDS(TABLE_16),
    [EW_CUDA_U3_16] = KINDS(TABLE_16),
    [EW_CUDA_U5] = KINDS(U5),
    [EW_CUDA_U5_MIN] = KINDS(U5),
    [EW_CUDA_U6] = KINDS(U6),
};

// Bytes of a row in a step or, of scales, minima and high bits, in a span.
struct widths {
    uint32_t codes, scales, mins, bits;
};

static struct widths widths_of(enum ew_cuda_layout layout)
{
    bool is_halved = (layout >= EW_CUDA_IQ1_16 && layout <= EW_CUDA_U3_16) || layout == EW_CUDA_U6;
    bool is_u5 = layout == EW_CUDA_U5 || layout == EW_CUDA_U5_MIN;

    return (struct widths){
        .codes = layout == EW_CUDA_I8 ? EW_WCODED_STEP : EW_WCODED_STEP / 2,
        .scales = is_halved ? 32 : 16,
        .mins = is_u5 || layout == EW_CUDA_U4 || layout == EW_CUDA_U4_MIN ? 16 : 0,
        .bits = layout == EW_CUDA_U6 ? 64 : is_u5 ? 32 : 0,
    };
}

static uint32_t shared_bytes(enum ew_cuda_layout layout, uint32_t tokens)
{
    struct widths w = widths_of(layout);

    return EW_WCODED_STAGES * (tokens * EW_WCODED_STEP * 2 + EW_WCODED_ROWS * w.codes) +
           EW_WCODED_SLOTS * EW_WCODED_ROWS * (w.scales + w.mins + w.bits) + 1024;
}

uint32_t ew_cuda_wcoded_planes(const struct ew_cuda_matrix *matrix, struct ew_cuda_plane *out)
{
    struct widths w = widths_of(matrix->layout);
    uint32_t cols = matrix->cols, row = (uint32_t)ew_cuda_code_bytes(matrix->layout, cols);
    uint32_t nibbles = matrix->layout == EW_CUDA_I8 ? cols : cols / 2;

    if (!KERNELS[matrix->layout][0][0] || cols % EW_WCODED_COLS_MULTIPLE)
        return 0;
    out[0] = (struct ew_cuda_plane){matrix->codes, nibbles, row, w.codes};
    out[1] = (struct ew_cuda_plane){matrix->scales, cols / 256 * w.scales, cols / 256 * w.scales, w.scales};
    out[2] = (struct ew_cuda_plane){matrix->mins, cols / 256 * w.mins, cols / 256 * w.mins, w.mins};
    out[3] = (struct ew_cuda_plane){matrix->codes + nibbles, cols / 256 * w.bits, row, w.bits};
    if (matrix->layout != EW_CUDA_U4_MIN && matrix->layout != EW_CUDA_U5_MIN)
        out[2].width = 0;
    return EW_CUDA_WCODED_PLANES;
}

int ew_cuda_wcoded_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT; i++) {
        for (int large = 0; large < 2 && KERNELS[i][0][0]; large++) {
            for (int gated = 0; gated < 2 && rc == 0; gated++)
                rc = ew_cuda_allow_shared(&backend->device, KERNELS[i][large][gated],
                                          shared_bytes(i, large ? TOKENS_LARGE : TOKENS_SMALL), err);
        }
    }
    return rc;
}

bool ew_cuda_wcoded_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    enum ew_cuda_kernel kernel = KERNELS[p->matrix->layout][0][0];

    return kernel && backend->device.functions[kernel] && backend->work.has_maps && p->n_rows >= TOKENS_MIN &&
           p->matrix->cols % EW_WCODED_COLS_MULTIPLE == 0;
}

bool ew_cuda_wcoded_knows(enum ew_cuda_layout layout)
{
    return KERNELS[layout][0][0] != 0;
}

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

static uint32_t tokens_of_tile(uint32_t n_rows)
{
    return n_rows <= TOKENS_SMALL ? TOKENS_SMALL : TOKENS_LARGE;
}

static struct ew_wcoded_part part_of(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    return (struct ew_wcoded_part){.maps = ew_cuda_wgmma_plane_maps(backend, p->matrix),
                                   .factors = p->matrix->layout == EW_CUDA_NV4 ? p->matrix->mins : 0,
                                   .bias = p->bias,
                                   .out = p->out,
                                   .rows = p->matrix->rows,
                                   .out_stride = p->out_stride};
}

static struct ew_wcoded_job job_of(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    return (struct ew_wcoded_job){.x_map = ew_cuda_wgmma_x_part_map(backend, p->matrix),
                                  .residual = p->residual,
                                  .partial = backend->work.few_partial,
                                  .layout = p->matrix->layout,
                                  .cols = p->matrix->cols,
                                  .n_tokens = p->n_rows,
                                  .n_splits = 1,
                                  .residual_stride = p->residual_stride,
                                  .y_scale = p->y_scale,
                                  .residual_scale = p->residual_scale};
}

static int launch(struct ew_cuda_backend *backend, struct ew_wcoded_job *job, uint32_t n_tiles, bool is_gated,
                  struct ew_error *err)
{
    uint32_t tokens = tokens_of_tile(job->n_tokens);

    return ew_cuda_launch(&backend->device, KERNELS[job->layout][tokens == TOKENS_LARGE][is_gated],
                          (struct ew_cuda_grid){n_tiles * job->n_splits, 1, 1, EW_WCODED_THREADS,
                                                shared_bytes(job->layout, tokens)},
                          ARGUMENTS(job), err);
}

// Into how many parts a tile's columns go, so that few tiles fill the GPU, too. Who joins them takes four rows at once.
static uint32_t splits_of(const struct ew_cuda_backend *backend, const struct ew_wcoded_job *job, uint32_t n_tiles)
{
    uint32_t n = (uint32_t)backend->device.n_multiprocessors / n_tiles, odd = job->residual_stride;
    uint64_t bytes = (uint64_t)job->n_tokens * job->rows * sizeof(float);

    for (uint32_t i = 0; i < EW_WCODED_PARTS; i++)
        odd |= job->parts[i].rows | job->parts[i].out_stride;
    if (odd % 4)
        return 1;
    n = EW_MIN(EW_MIN(n, SPLITS_MAX), job->cols / EW_WCODED_STEP / SPLIT_STEPS_MIN);
    return EW_MAX(EW_MIN(n, (uint32_t)(backend->work.few_partial_bytes / bytes)), 1u);
}

int ew_cuda_wcoded_products(struct ew_cuda_backend *backend, const struct ew_cuda_product *products, uint32_t n,
                            struct ew_error *err)
{
    struct ew_wcoded_job job = job_of(backend, products);
    uint32_t n_tiles = 0;
    int rc;

    for (uint32_t i = 0; i < n; i++) {
        job.parts[i] = part_of(backend, &products[i]);
        job.rows += job.parts[i].rows;
        n_tiles += ceil_div(job.parts[i].rows, EW_WCODED_ROWS);
    }
    n_tiles *= ceil_div(job.n_tokens, tokens_of_tile(job.n_tokens));
    job.n_splits = splits_of(backend, &job, n_tiles);
    rc = launch(backend, &job, n_tiles, false, err);
    if (rc || job.n_splits == 1)
        return rc;
    return ew_cuda_launch(&backend->device, EW_CUDA_WCODED_JOIN,
                          (struct ew_cuda_grid){ceil_div(job.rows, JOIN_THREADS * 4), job.n_tokens, 1, JOIN_THREADS, 0},
                          ARGUMENTS(&job), err);
}

int ew_cuda_wcoded_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *gate, uint64_t out_of,
                        struct ew_error *err)
{
    struct ew_wcoded_job job = job_of(backend, &gate->gate);
    uint32_t turn = backend->work.narrow.turn ^ 1, rows = gate->gate.matrix->rows;
    uint32_t n_tiles = ceil_div(rows, EW_WCODED_BOX) * ceil_div(job.n_tokens, tokens_of_tile(job.n_tokens));
    int rc;

    job.parts[0] = part_of(backend, &gate->gate);
    job.parts[1] = part_of(backend, &gate->up);
    job.parts[0].out = backend->work.x16[turn];
    job.parts[0].out_stride = job.rows = rows;
    job.residual = 0;
    job.gate_linear = gate->linear;
    job.gate_cubic = gate->cubic;
    rc = launch(backend, &job, n_tiles, true, err);
    backend->work.narrow = (struct ew_cuda_narrow){out_of, 0, rows, job.n_tokens, EW_CUDA_F16, turn, true};
    return rc;
}
