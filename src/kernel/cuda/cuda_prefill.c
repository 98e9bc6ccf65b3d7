#include "kernel/cuda/cuda_prefill.h"

#include "base/assert.h"

#define THREADS 256
#define TILE 128                            // rows and tokens of a tile
#define TILE_THREADS 128
#define PART_STEP 256                       // rows of the largest tile of any tier
#define STEP 32                             // columns that a product takes at a time
#define SOME_TOKENS 64                      // up to so many the kernels of ptx/some.c are used,
#define SOME_TOKENS_FAST 32                 // and where those of ptx/wgmma.c read the matrix as it is
#define SOME_ROWS 32                        // of the matrix, that a block of theirs takes
#define RARE_TOKENS 2
#define GRID_ROWS_MAX 65535u               // blocks in y
#define SOME_STEP 64                        // columns that they take at a time
// Of decoded parts of matrices: large enough for the tiles of a part to fill a GPU of this size several times.
#define SCRATCH_BYTES_LARGE ((uint64_t)128 << 20)
#define SCRATCH_BYTES_SMALL ((uint64_t)32 << 20)
#define MULTIPROCESSORS_LARGE 64

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

static uint32_t ceil_div(uint64_t n, uint32_t by)
{
    return (uint32_t)((n + by - 1) / by);
}

static uint64_t scratch_bytes(const struct ew_cuda_backend *backend)
{
    return backend->device.n_multiprocessors >= MULTIPROCESSORS_LARGE ? SCRATCH_BYTES_LARGE : SCRATCH_BYTES_SMALL;
}

// Rows of a quantised matrix that are decoded at a time: parts of equal size, so that the last one fills the GPU, too.
static uint32_t part_rows(const struct ew_cuda_backend *backend, uint64_t rows, uint64_t cols)
{
    uint64_t fit = EW_MAX(scratch_bytes(backend) / (cols * 2) / PART_STEP * PART_STEP, PART_STEP);
    uint64_t parts = (rows + fit - 1) / fit;

    return ceil_div(ceil_div(rows, (uint32_t)parts), PART_STEP) * PART_STEP;
}

static bool takes(enum ew_cuda_layout layout, uint64_t cols)
{
    return layout != EW_CUDA_F32 && cols % STEP == 0;
}

static bool some_knows(enum ew_cuda_layout layout)
{
    return layout != EW_CUDA_F32 && layout <= EW_CUDA_F8;
}

bool ew_cuda_prefill_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix, uint32_t n_rows)
{
    // Of layouts whose products with few rows have no kernels but the slow one of ptx/linear.c.
    bool is_rare = matrix->layout > EW_CUDA_U4_MIN;

    if (backend->config.deterministic) // the shape decides, whatever the number of rows
        return takes(matrix->layout, matrix->cols) &&
               (!some_knows(matrix->layout) || !ew_cuda_layout_is_quantised(matrix->layout) ||
                matrix->cols % SOME_STEP == 0);
    return n_rows >= (is_rare ? RARE_TOKENS : EW_CUDA_PREFILL_TOKENS) && takes(matrix->layout, matrix->cols);
}

void ew_cuda_prefill_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program, uint64_t n_rows,
                           uint64_t *x_bytes, uint64_t *w_bytes)
{
    bool reference = backend->config.kernels == EW_KERNELS_REFERENCE;
    uint32_t least = backend->config.deterministic ? 1 : RARE_TOKENS;

    *x_bytes = *w_bytes = 0;
    for (uint32_t i = 0; i < program->n_ops && n_rows >= least; i++) {
        const struct ew_weight *weight;
        enum ew_cuda_layout layout;
        bool exact;

        if (program->ops[i].kind != EW_OP_LINEAR)
            continue;
        weight = &program->weights[program->ops[i].weight];
        layout = ew_cuda_layout_of(program, program->ops[i].weight, reference, &exact);
        if (!takes(layout, weight->cols))
            continue;
        *x_bytes = EW_MAX(*x_bytes, n_rows * weight->cols * 2);
        if (ew_cuda_layout_is_quantised(layout))
            *w_bytes = EW_MAX(*w_bytes, part_rows(backend, weight->rows, weight->cols) * weight->cols * 2);
    }
}

void ew_cuda_prefill_wrote(struct ew_cuda_backend *backend, uint64_t address)
{
    if (backend->work.narrow.of == address)
        backend->work.narrow.of = 0;
}

static int narrow_f8(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, struct ew_error *err)
{
    struct ew_codes_job to = ew_cuda_f8_codes(backend, backend->work.narrow.turn, p->matrix->cols, p->n_rows);
    struct ew_cuda_grid grid = {ceil_div(to.cols / 4, THREADS), p->n_rows, 1, THREADS};
    uint32_t in_stride = p->in_stride;
    uint64_t in = p->in;

    return ew_cuda_launch(&backend->device, EW_CUDA_NARROW_F8, grid, ARGUMENTS(&to, &in, &in_stride), err);
}

int ew_cuda_prefill_narrow(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, enum ew_cuda_layout as,
                           struct ew_error *err)
{
    struct ew_cuda_narrow *to = &backend->work.narrow;
    uint32_t cols = p->matrix->cols, in_stride = p->in_stride;
    uint64_t in = p->in, order = p->matrix->order;
    struct ew_cuda_grid grid = {ceil_div(cols / 8, THREADS), p->n_rows, 1, THREADS};
    bool is_mixed = ew_cuda_wcoded_takes(backend, p);

    if (to->of == in && to->cols == cols && to->n_rows == p->n_rows && to->as == as && to->order == order &&
        to->is_mixed == is_mixed)
        return 0;
    *to = (struct ew_cuda_narrow){in, order, cols, p->n_rows, as, to->turn ^ 1, is_mixed};
    if (as == EW_CUDA_F8)
        return narrow_f8(backend, p, err);
    return ew_cuda_launch(&backend->device,
                          is_mixed             ? EW_CUDA_NARROW_MIXED
                          : as == EW_CUDA_BF16 ? EW_CUDA_NARROW_BF16
                                               : EW_CUDA_NARROW_F16,
                          grid,
                          ARGUMENTS(&backend->work.x16[to->turn], &in, &in_stride, &cols, &order), err);
}

int ew_cuda_prefill_expand(struct ew_cuda_backend *backend, const struct ew_cuda_matrix *m, uint32_t first,
                           uint32_t rows, uint32_t row, struct ew_error *err)
{
    static const enum ew_cuda_kernel kernels[EW_CUDA_LAYOUT_COUNT] = {
        [EW_CUDA_I8] = EW_CUDA_EXPAND_I8,
        [EW_CUDA_U4] = EW_CUDA_EXPAND_U4,
        [EW_CUDA_U4_MIN] = EW_CUDA_EXPAND_U4_MIN,
    };
    uint64_t codes = m->codes + first * ew_cuda_code_bytes(m->layout, m->cols);
    uint64_t scales = m->scales + first * ew_cuda_scale_bytes(m->layout, m->cols);
    uint64_t mins = m->mins + first * ew_cuda_min_bytes(m->layout, m->cols);
    uint64_t n_groups = (uint64_t)rows * m->cols / EW_CUDA_GROUP;
    uint64_t to = backend->work.w16 + (uint64_t)row * m->cols * 2;
    uint32_t cols = m->cols, layout = m->layout;

    if (!ew_cuda_layout_wants_q8(m->layout))
        return ew_cuda_launch(&backend->device, EW_CUDA_EXPAND_ANY,
                              (struct ew_cuda_grid){ceil_div(cols / 8, THREADS), EW_MIN(rows, GRID_ROWS_MAX), 1,
                                                    THREADS},
                              ARGUMENTS(&to, &codes, &scales, &mins, &layout, &rows, &cols), err);
    return ew_cuda_launch(&backend->device, kernels[m->layout],
                          (struct ew_cuda_grid){ceil_div(n_groups, THREADS / 4), 1, 1, THREADS},
                          ARGUMENTS(&to, &codes, &scales, &mins, &n_groups), err);
}

// `rows` rows of the result, whose matrix lies at `w`.
static int multiply(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, bool is_bf16, uint64_t w,
                    uint32_t first, uint32_t rows, struct ew_error *err)
{
    uint64_t out = p->out + first * sizeof(float), bias = p->bias ? p->bias + first * sizeof(float) : 0;
    uint64_t x = backend->work.x16[backend->work.narrow.turn];
    uint32_t out_stride = p->out_stride, n_rows = p->n_rows, cols = p->matrix->cols;

    if (ew_cuda_wgmma_takes(backend, p->matrix))
        return ew_cuda_wgmma_multiply(backend, p, first, rows, err);
    return ew_cuda_launch(&backend->device, is_bf16 ? EW_CUDA_GEMM_BF16 : EW_CUDA_GEMM_F16,
                          (struct ew_cuda_grid){ceil_div(n_rows, TILE), ceil_div(rows, TILE), 1, TILE_THREADS},
                          ARGUMENTS(&out, &out_stride, &x, &w, &bias, &rows, &cols, &n_rows), err);
}

static bool is_for_some(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p)
{
    bool is_fast = ew_cuda_wgmma_takes(backend, p->matrix) && !ew_cuda_layout_is_quantised(p->matrix->layout);

    return p->n_rows <= (is_fast ? SOME_TOKENS_FAST : SOME_TOKENS) && p->matrix->cols % SOME_STEP == 0 &&
           some_knows(p->matrix->layout);
}

// Up to SOME_TOKENS rows of activations, from `first` on. Rows of `m` are those of the result from first_row on.
static int multiply_some(struct ew_cuda_backend *backend, const struct ew_cuda_product *p,
                         const struct ew_cuda_matrix *m, uint32_t first_row, uint32_t first, struct ew_error *err)
{
    static const enum ew_cuda_kernel kernels[EW_CUDA_LAYOUT_COUNT][4] = {
        [EW_CUDA_F16] = {EW_CUDA_SOME_F16_16, EW_CUDA_SOME_F16_24, EW_CUDA_SOME_F16_32, EW_CUDA_SOME_F16_64},
        [EW_CUDA_BF16] = {EW_CUDA_SOME_BF16_16, EW_CUDA_SOME_BF16_24, EW_CUDA_SOME_BF16_32, EW_CUDA_SOME_BF16_64},
        [EW_CUDA_I8] = {EW_CUDA_SOME_I8_16, EW_CUDA_SOME_I8_24, EW_CUDA_SOME_I8_32, EW_CUDA_SOME_I8_64},
        [EW_CUDA_U4] = {EW_CUDA_SOME_U4_16, EW_CUDA_SOME_U4_24, EW_CUDA_SOME_U4_32, EW_CUDA_SOME_U4_64},
        [EW_CUDA_U4_MIN] = {EW_CUDA_SOME_U4_MIN_16, EW_CUDA_SOME_U4_MIN_24, EW_CUDA_SOME_U4_MIN_64,
                            EW_CUDA_SOME_U4_MIN_64},
        [EW_CUDA_F8] = {EW_CUDA_SOME_F8_16, EW_CUDA_SOME_F8_24, EW_CUDA_SOME_F8_32, EW_CUDA_SOME_F8_64},
    };
    uint64_t x = backend->work.x16[backend->work.narrow.turn] + (uint64_t)first * m->cols * 2;
    uint64_t out = p->out + ((uint64_t)first * p->out_stride + first_row) * sizeof(float);
    uint64_t codes = m->codes, scales = m->scales, mins = m->mins;
    uint64_t bias = p->bias ? p->bias + first_row * sizeof(float) : 0;
    uint32_t out_stride = p->out_stride, rows = m->rows, cols = m->cols;
    uint32_t n_rows = EW_MIN(p->n_rows - first, SOME_TOKENS);
    uint32_t kind = n_rows <= 16 ? 0 : n_rows <= 24 ? 1 : n_rows <= 32 ? 2 : 3;

    return ew_cuda_launch(&backend->device, kernels[m->layout][kind],
                          (struct ew_cuda_grid){ceil_div(rows, SOME_ROWS), 1, 1, THREADS, 0},
                          ARGUMENTS(&out, &out_stride, &x, &codes, &scales, &mins, &bias, &rows, &cols, &n_rows),
                          err);
}

static int multiply_slices(struct ew_cuda_backend *backend, const struct ew_cuda_product *p,
                           const struct ew_cuda_matrix *m, uint32_t first_row, struct ew_error *err)
{
    int rc = 0;

    for (uint32_t first = 0; first < p->n_rows && rc == 0; first += SOME_TOKENS)
        rc = multiply_some(backend, p, m, first_row, first, err);
    return rc;
}

// For --deterministic: the kernels of ptx/some.c sum in one order for any number of rows, of which they take some at a
// time. Layouts that they do not know are decoded first.
static int multiply_exact(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, struct ew_error *err)
{
    const struct ew_cuda_matrix *m = p->matrix;
    uint32_t part = part_rows(backend, m->rows, m->cols);
    int rc = 0;

    if (some_knows(m->layout))
        return multiply_slices(backend, p, m, 0, err);
    for (uint32_t first = 0; first < m->rows && rc == 0; first += part) {
        struct ew_cuda_matrix decoded = {.layout = EW_CUDA_F16, .codes = backend->work.w16, .cols = m->cols,
                                         .rows = EW_MIN(part, m->rows - first)};

        rc = ew_cuda_prefill_expand(backend, m, first, decoded.rows, 0, err);
        if (rc == 0)
            rc = multiply_slices(backend, p, &decoded, first, err);
    }
    return rc;
}

int ew_cuda_prefill_product(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, struct ew_error *err)
{
    const struct ew_cuda_matrix *m = p->matrix;
    bool is_bf16 = m->layout == EW_CUDA_BF16;
    uint32_t part = part_rows(backend, m->rows, m->cols);
    enum ew_cuda_layout as = ew_cuda_operand_of(m, p->n_rows);
    int rc = ew_cuda_prefill_narrow(backend, p, as, err);

    if (rc == 0 && as == EW_CUDA_F8)
        return ew_cuda_f8_product(backend, p, err);
    if (rc == 0 && backend->config.deterministic)
        return multiply_exact(backend, p, err);
    if (rc == 0 && ew_cuda_wcoded_takes(backend, p))
        return ew_cuda_wcoded_products(backend, p, 1, err);
    if (rc == 0 && is_for_some(backend, p))
        return multiply_some(backend, p, m, 0, 0, err);
    if (rc || !ew_cuda_layout_is_quantised(m->layout))
        return rc ? rc : multiply(backend, p, is_bf16, m->codes, 0, m->rows, err);
    for (uint32_t first = 0; first < m->rows && rc == 0; first += part) {
        uint32_t rows = EW_MIN(part, m->rows - first);

        rc = ew_cuda_prefill_expand(backend, m, first, rows, 0, err);
        if (rc == 0)
            rc = multiply(backend, p, is_bf16, backend->work.w16, first, rows, err);
    }
    return rc;
}
