// Products on the tensor cores of sm_90a (ptx/wgmma.c): maps for the tensor copy engine, the choice of tiles, launches.

#include <string.h>

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/wcoded_job.h"

#define THREADS 288
#define TOKENS 128               // of a tile
#define STEP 64                  // columns that a product takes at a time
#define BOX_ROWS 128             // of one copy
#define SHARED_BYTES (4 * (128 + 256) * STEP * 2 + 1024) // four stages of the large tile, or six
#define SPLITS_MAX 8
#define SPLIT_STEPS_MIN 8          // of a part of the columns, so that its pipeline fills
#define JOIN_THREADS 256
#define SMALL_COST 1.15          // of the small tile's products against the large one's, measured

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

// Of a weight: of its activations in either place, and of itself; for products of codes the same with other boxes.
struct maps {
    struct ew_cuda_tensor_map x[2], w, x_part[2], planes[EW_CUDA_WCODED_PLANES];
};

uint64_t ew_cuda_wgmma_maps_bytes(const struct ew_program *program)
{
    return program->n_weights * sizeof(struct maps);
}

bool ew_cuda_wgmma_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return backend->work.has_maps && matrix->cols % STEP == 0 && matrix->f8_form == EW_CUDA_F8_ANY;
}

static int encode(struct ew_cuda_backend *backend, struct ew_cuda_tensor_map *map, uint64_t address, uint64_t rows,
                  uint64_t cols, uint32_t box_rows, bool is_f8, struct ew_error *err)
{
    const uint64_t dims[] = {cols, rows}, strides[] = {is_f8 ? cols : cols * 2};
    const uint32_t box[] = {is_f8 ? 2 * STEP : STEP, box_rows}, element_strides[] = {1, 1};
    int status = backend->device.driver.cuTensorMapEncodeTiled(
        map, is_f8 ? EW_CUDA_TENSOR_U8 : EW_CUDA_TENSOR_U16, 2, address, dims, strides, box, element_strides, 0,
        EW_CUDA_TENSOR_SWIZZLE_128, EW_CUDA_TENSOR_PROMOTE_256, 0);

    return ew_cuda_check(&backend->device, status, "describing a matrix", err);
}

static int encode_planes(struct ew_cuda_backend *backend, struct maps *maps, const struct ew_cuda_matrix *m,
                         uint64_t n_rows, struct ew_error *err)
{
    struct ew_cuda_plane planes[EW_CUDA_WCODED_PLANES];
    uint32_t n = ew_cuda_wcoded_planes(m, planes);
    int rc = 0;

    for (uint32_t turn = 0; turn < 2 && n && rc == 0; turn++)
        rc = encode(backend, &maps->x_part[turn], backend->work.x16[turn], n_rows, m->cols, EW_WCODED_TOKENS, false,
                    err);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const uint64_t dims[] = {planes[i].width, m->rows}, strides[] = {planes[i].stride};
        const uint32_t box[] = {planes[i].box, EW_WCODED_BOX}, element_strides[] = {1, 1};

        if (planes[i].width)
            rc = ew_cuda_check(&backend->device,
                               backend->device.driver.cuTensorMapEncodeTiled(
                                   &maps->planes[i], EW_CUDA_TENSOR_U8, 2, planes[i].address, dims, strides, box,
                                   element_strides, 0, 0, EW_CUDA_TENSOR_PROMOTE_256, 0),
                               "describing a plane of a matrix", err);
    }
    return rc;
}

static int encode_all(struct ew_cuda_backend *backend, struct maps *maps, struct ew_error *err)
{
    const struct ew_program *program = backend->program;
    uint64_t n_rows = EW_MAX(backend->limits.n_tokens_max, backend->limits.n_logits_max);
    int rc = 0;

    for (uint32_t i = 0; i < program->n_ops && rc == 0; i++) {
        uint32_t weight = program->ops[i].weight;
        const struct ew_cuda_matrix *m;
        bool is_quantised, is_f8;

        if (program->ops[i].kind != EW_OP_LINEAR)
            continue;
        m = &backend->matrices[weight];
        is_f8 = m->f8_form != EW_CUDA_F8_ANY;
        is_quantised = ew_cuda_layout_is_quantised(m->layout) && !is_f8;
        if (!ew_cuda_prefill_takes(backend, m, (uint32_t)n_rows) || m->cols % STEP != 0)
            continue;
        for (int turn = 0; turn < 2 && rc == 0; turn++)
            rc = encode(backend, &maps[weight].x[turn], backend->work.x16[turn], n_rows, m->cols, BOX_ROWS, is_f8, err);
        if (rc == 0)
            rc = encode_planes(backend, &maps[weight], m, n_rows, err);
        if (rc == 0)
            rc = encode(backend, &maps[weight].w, is_quantised ? backend->work.w16 : m->codes,
                        is_quantised ? backend->work.w16_bytes / (m->cols * 2ull) : m->rows, m->cols,
                        BOX_ROWS, is_f8, err);
    }
    return rc;
}

static bool has_kernels(const struct ew_cuda_device *device)
{
    for (int kernel = EW_CUDA_WGMMA_F16_256; kernel <= EW_CUDA_WGMMA_F8_GATED; kernel++) {
        if (device->functions[kernel])
            return true;
    }
    return false;
}

int ew_cuda_wgmma_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    struct ew_cuda_device *device = &backend->device;
    uint64_t bytes = ew_cuda_wgmma_maps_bytes(backend->program);
    struct maps *maps;
    int rc = 0;

    if (!has_kernels(device) || !device->driver.cuTensorMapEncodeTiled ||
        device->shared_bytes_max < SHARED_BYTES)
        return 0;
    for (int kernel = EW_CUDA_WGMMA_F16_256; kernel <= EW_CUDA_WGMMA_BF16_GATED && rc == 0; kernel++)
        rc = ew_cuda_allow_shared(device, kernel, SHARED_BYTES, err);
    if (rc)
        return rc;
    maps = ew_alloc_aligned(bytes);
    if (!maps)
        return ew_fail_memory(err, bytes, "the maps of matrices");
    memset(maps, 0, bytes);
    rc = encode_all(backend, maps, err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuMemcpyHtoD_v2(backend->work.maps, maps, bytes), "copying maps",
                           err);
    backend->work.has_maps = rc == 0;
    ew_free(maps);
    return rc;
}

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

static uint64_t maps_of(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return backend->work.maps + (uint64_t)(matrix - backend->matrices) * sizeof(struct maps);
}

uint64_t ew_cuda_wgmma_x_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return maps_of(backend, matrix) + backend->work.narrow.turn * sizeof(struct ew_cuda_tensor_map);
}

uint64_t ew_cuda_wgmma_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return maps_of(backend, matrix) + offsetof(struct maps, w);
}

uint64_t ew_cuda_wgmma_plane_maps(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return maps_of(backend, matrix) + offsetof(struct maps, planes);
}

uint64_t ew_cuda_wgmma_x_part_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix)
{
    return maps_of(backend, matrix) + offsetof(struct maps, x_part) +
           backend->work.narrow.turn * sizeof(struct ew_cuda_tensor_map);
}

// Tiles of 256 rows are faster, those of 128 leave less of the GPU idle at the end.
static bool wants_large(uint32_t n_multiprocessors, uint32_t token_tiles, uint32_t rows)
{
    uint32_t large = ceil_div(token_tiles * ceil_div(rows, 256), n_multiprocessors);
    uint32_t small = ceil_div(token_tiles * ceil_div(rows, 128), n_multiprocessors);

    return large * 2 <= small * SMALL_COST;
}

uint32_t ew_cuda_wgmma_splits(const struct ew_cuda_backend *backend, const struct ew_cuda_product *p, uint32_t n_tiles,
                              uint32_t rows)
{
    uint32_t n = (uint32_t)backend->device.n_multiprocessors / n_tiles;
    uint64_t bytes = (uint64_t)p->n_rows * rows * sizeof(float);

    if (rows % 4 || p->out_stride % 4 || p->residual_stride % 4)
        return 1;
    n = EW_MIN(EW_MIN(n, SPLITS_MAX), p->matrix->cols / STEP / SPLIT_STEPS_MIN);
    return EW_MAX(EW_MIN(n, (uint32_t)(backend->work.few_partial_bytes / bytes)), 1u);
}

int ew_cuda_wgmma_join(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, uint32_t first, uint32_t rows,
                       uint32_t n_splits, struct ew_error *err)
{
    uint64_t out = p->out + first * sizeof(float), bias = p->bias ? p->bias + first * sizeof(float) : 0;
    uint64_t residual = p->residual ? p->residual + first * sizeof(float) : 0, partial = backend->work.few_partial;
    uint32_t out_stride = p->out_stride, n_rows = p->n_rows, residual_stride = p->residual_stride;
    float y_scale = p->y_scale, residual_scale = p->residual_scale;

    return ew_cuda_launch(&backend->device, EW_CUDA_JOIN_SUMS,
                          (struct ew_cuda_grid){ceil_div(rows, JOIN_THREADS * 4), n_rows, 1, JOIN_THREADS, 0},
                          ARGUMENTS(&out, &out_stride, &partial, &n_splits, &rows, &n_rows, &bias, &residual,
                                    &residual_stride, &y_scale, &residual_scale),
                          err);
}

int ew_cuda_wgmma_multiply(struct ew_cuda_backend *backend, const struct ew_cuda_product *p, uint32_t first,
                           uint32_t rows, struct ew_error *err)
{
    static const enum ew_cuda_kernel kernels[2][2] = {{EW_CUDA_WGMMA_F16_128, EW_CUDA_WGMMA_F16_256},
                                                      {EW_CUDA_WGMMA_BF16_128, EW_CUDA_WGMMA_BF16_256}};
    uint32_t n_multiprocessors = (uint32_t)backend->device.n_multiprocessors, token_tiles = ceil_div(p->n_rows, TOKENS);
    bool large = wants_large(n_multiprocessors, token_tiles, rows), is_bf16 = p->matrix->layout == EW_CUDA_BF16;
    uint32_t n_tiles = token_tiles * ceil_div(rows, large ? 256 : 128);
    uint32_t n_splits = ew_cuda_wgmma_splits(backend, p, n_tiles, rows);
    uint64_t x_map = ew_cuda_wgmma_x_map(backend, p->matrix), w_map = ew_cuda_wgmma_map(backend, p->matrix);
    uint64_t out = p->out + first * sizeof(float), bias = p->bias ? p->bias + first * sizeof(float) : 0;
    uint64_t residual = p->residual ? p->residual + first * sizeof(float) : 0;
    uint32_t out_stride = p->out_stride, n_rows = p->n_rows, cols = p->matrix->cols;
    uint32_t residual_stride = p->residual_stride;
    float y_scale = p->y_scale, residual_scale = p->residual_scale;
    int rc;

    if (n_splits > 1) {
        out = backend->work.few_partial;
        out_stride = rows;
        bias = residual = 0;
    }
    rc = ew_cuda_launch(&backend->device, kernels[is_bf16][large],
                        (struct ew_cuda_grid){EW_MIN(n_tiles * n_splits, n_multiprocessors), 1, 1, THREADS,
                                              SHARED_BYTES},
                        ARGUMENTS(&out, &out_stride, &x_map, &w_map, &bias, &rows, &cols, &n_rows, &residual,
                                  &residual_stride, &y_scale, &residual_scale, &n_splits),
                        err);
    return rc || n_splits == 1 ? rc : ew_cuda_wgmma_join(backend, p, first, rows, n_splits, err);
}

// `rows` rows of both from `first` on, where those of `up` are rows up_row on of its map.
static int multiply_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *g, uint32_t first, uint32_t rows,
                         uint32_t up_row, struct ew_error *err)
{
    const struct ew_cuda_matrix *m = g->gate.matrix;
    uint32_t turn = backend->work.narrow.turn ^ 1, token_tiles = ceil_div(g->gate.n_rows, TOKENS);
    uint32_t n_tiles = token_tiles * ceil_div(rows, BOX_ROWS), out_stride = m->rows, cols = m->cols;
    uint64_t x_map = ew_cuda_wgmma_x_map(backend, m), gate_map = ew_cuda_wgmma_map(backend, m);
    uint64_t up_map = ew_cuda_wgmma_map(backend, g->up.matrix);
    uint64_t out = backend->work.x16[turn] + first * 2ull;
    uint64_t gate_bias = g->gate.bias ? g->gate.bias + first * sizeof(float) : 0;
    uint64_t up_bias = g->up.bias ? g->up.bias + first * sizeof(float) : 0;
    uint32_t n_rows = g->gate.n_rows;
    float linear = g->linear, cubic = g->cubic;

    return ew_cuda_launch(&backend->device,
                          m->layout == EW_CUDA_BF16 ? EW_CUDA_WGMMA_BF16_GATED : EW_CUDA_WGMMA_F16_GATED,
                          (struct ew_cuda_grid){EW_MIN(n_tiles, (uint32_t)backend->device.n_multiprocessors), 1, 1,
                                                THREADS, SHARED_BYTES},
                          ARGUMENTS(&out, &out_stride, &x_map, &gate_map, &up_map, &up_row, &gate_bias, &up_bias, &rows,
                                    &cols, &n_rows, &linear, &cubic),
                          err);
}

int ew_cuda_wgmma_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *g, uint64_t out_of,
                       struct ew_error *err)
{
    const struct ew_cuda_matrix *m = g->gate.matrix;
    bool is_quantised = ew_cuda_layout_is_quantised(m->layout);
    uint32_t fit = (uint32_t)(backend->work.w16_bytes / (m->cols * 4ull) / BOX_ROWS * BOX_ROWS), part = m->rows;
    int rc = 0;

    if (is_quantised) // both matrices share the scratch, in parts of equal size
        part = ceil_div(ceil_div(m->rows, ceil_div(m->rows, fit)), BOX_ROWS) * BOX_ROWS;
    for (uint32_t first = 0; first < m->rows && rc == 0; first += part) {
        uint32_t rows = EW_MIN(part, m->rows - first);

        if (is_quantised)
            rc = ew_cuda_prefill_expand(backend, m, first, rows, 0, err);
        if (is_quantised && rc == 0)
            rc = ew_cuda_prefill_expand(backend, g->up.matrix, first, rows, part, err);
        if (rc == 0)
            rc = multiply_gate(backend, g, first, rows, is_quantised ? part : 0, err);
    }
    backend->work.narrow = (struct ew_cuda_narrow){out_of, 0, m->rows, g->gate.n_rows,
                                                   ew_cuda_operand_of(m, g->gate.n_rows),
                                                   backend->work.narrow.turn ^ 1};
    return rc;
}


