// Weights into the GPU's memory: rows are read and converted by all threads, slab by slab, into pinned memory.

#include <stdatomic.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"
#include "platform/topology.h"

#define SLAB_BYTES ((uint64_t)32 << 20) // of codes, scales and minima together
#define TASK_ROWS 32

struct loading {
    struct ew_cuda_backend *backend;
    struct ew_pool *pool;
    uint32_t n_threads;
    uint8_t *slab; // pinned
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
    uint64_t done, total, said; // said: bit a type: that it was expanded
};

// What the threads share while they convert one slab.
struct slab {
    const struct ew_weight *weight;
    const struct ew_cuda_matrix *matrix;
    uint64_t first, n_rows;
    uint8_t *codes, *scales, *mins;
    uint8_t *scratch; // [n_threads, scratch_bytes]: file rows, then a row of f32
    uint64_t scratch_bytes, rows_bytes;
    _Atomic int rc;
    struct ew_error *err;
};

_Static_assert(EW_DTYPE_COUNT <= 64, "a bit a type");

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + 255) & ~(uint64_t)255;
}

static uint64_t row_bytes_of(enum ew_cuda_layout layout, uint64_t cols)
{
    return ew_cuda_code_bytes(layout, cols) + ew_cuda_scale_bytes(layout, cols) + ew_cuda_min_bytes(layout, cols);
}

static uint64_t weight_bytes(const struct ew_weight *weight, bool reference)
{
    bool exact;
    enum ew_cuda_layout layout = ew_cuda_layout_of(weight->source.dtype, weight->cols, reference, &exact);

    if (!weight->is_matrix)
        return aligned(weight->rows * weight->cols * sizeof(float));
    return aligned(weight->rows * ew_cuda_code_bytes(layout, weight->cols)) +
           aligned(weight->rows * ew_cuda_scale_bytes(layout, weight->cols)) +
           aligned(weight->rows * ew_cuda_min_bytes(layout, weight->cols));
}

uint64_t ew_cuda_weights_bytes(const struct ew_program *program, bool reference)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < program->n_weights; i++)
        bytes += weight_bytes(&program->weights[i], reference);
    return bytes;
}

static int check_weight(const struct ew_weight *weight, struct ew_error *err)
{
    const struct ew_dtype_info *info = ew_dtype_info(weight->source.dtype);

    if (!info->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "it has type %s, which holds no weights", info->name);
    if (weight->rows == 0 || weight->rows > INT32_MAX || weight->cols == 0 || weight->cols > INT32_MAX / 8)
        return ew_fail(err, EW_ERR_LIMIT, "it is empty or too large");
    if (ew_dtype_row_bytes(weight->source.dtype, weight->cols) == 0)
        return ew_fail(err, EW_ERR_FORMAT, "its rows have %llu elements, which blocks of type %s do not divide",
                       (unsigned long long)weight->cols, info->name);
    return 0;
}

static void convert_rows(void *ctx, uint32_t task, uint32_t thread)
{
    struct slab *slab = ctx;
    const struct ew_weight *weight = slab->weight;
    enum ew_cuda_layout layout = slab->matrix->layout;
    uint64_t at = (uint64_t)task * TASK_ROWS, n = EW_MIN(slab->n_rows - at, TASK_ROWS), cols = weight->cols;
    uint64_t file_bytes = ew_dtype_row_bytes(weight->source.dtype, cols);
    uint64_t code_bytes = ew_cuda_code_bytes(layout, cols), scale_bytes = ew_cuda_scale_bytes(layout, cols);
    uint8_t *rows = slab->scratch + thread * slab->scratch_bytes;
    struct ew_error err;
    int rc, ok = 0;

    if (atomic_load(&slab->rc))
        return;
    rc = weight->source.read(&weight->source, slab->first + at, n, rows, &err);
    if (rc) {
        if (atomic_compare_exchange_strong(&slab->rc, &ok, rc) && slab->err)
            *slab->err = err;
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        ew_cuda_pack_row(layout, weight->source.dtype, rows + i * file_bytes, cols, slab->codes + (at + i) * code_bytes,
                         slab->scales + (at + i) * scale_bytes, slab->mins + (at + i) * scale_bytes,
                         (float *)(rows + slab->rows_bytes));
}

static int copy_plane(const struct ew_cuda_device *device, uint64_t to, uint64_t row, uint64_t n_rows,
                      uint64_t row_bytes, const uint8_t *from, struct ew_error *err)
{
    if (row_bytes == 0)
        return 0;
    return ew_cuda_check(device, device->driver.cuMemcpyHtoD_v2(to + row * row_bytes, from, n_rows * row_bytes),
                         "copying weights", err);
}

static int load_slab(struct loading *loading, struct slab *slab, struct ew_error *err)
{
    const struct ew_cuda_device *device = &loading->backend->device;
    const struct ew_cuda_matrix *matrix = slab->matrix;
    uint64_t cols = matrix->cols, code_bytes = ew_cuda_code_bytes(matrix->layout, cols);
    uint64_t scale_bytes = ew_cuda_scale_bytes(matrix->layout, cols);
    uint64_t min_bytes = ew_cuda_min_bytes(matrix->layout, cols);
    int rc;

    slab->codes = loading->slab;
    slab->scales = slab->codes + slab->n_rows * code_bytes;
    slab->mins = slab->scales + slab->n_rows * scale_bytes;
    ew_pool_run(loading->pool, convert_rows, slab, (uint32_t)((slab->n_rows + TASK_ROWS - 1) / TASK_ROWS));
    rc = slab->rc;
    if (slab->weight->source.release)
        slab->weight->source.release(&slab->weight->source, slab->first, slab->n_rows);
    if (rc == 0)
        rc = copy_plane(device, matrix->codes, slab->first, slab->n_rows, code_bytes, slab->codes, err);
    if (rc == 0)
        rc = copy_plane(device, matrix->scales, slab->first, slab->n_rows, scale_bytes, slab->scales, err);
    if (rc == 0)
        rc = copy_plane(device, matrix->mins, slab->first, slab->n_rows, min_bytes, slab->mins, err);
    loading->done += slab->n_rows * (code_bytes + scale_bytes + min_bytes);
    if (rc == 0 && loading->progress && !loading->progress(loading->ctx, loading->done, loading->total))
        return ew_fail(err, EW_ERR_CANCELLED, "loading was stopped");
    return rc;
}

static int load_rows(struct loading *loading, const struct ew_weight *weight, const struct ew_cuda_matrix *matrix,
                     struct ew_error *err)
{
    struct slab slab = {.weight = weight, .matrix = matrix, .err = err};
    uint64_t step = SLAB_BYTES / row_bytes_of(matrix->layout, matrix->cols);
    int rc = 0;

    if (step == 0)
        return ew_fail(err, EW_ERR_LIMIT, "its rows are too long");
    slab.rows_bytes = aligned(ew_dtype_row_bytes(weight->source.dtype, weight->cols) * TASK_ROWS);
    slab.scratch_bytes = slab.rows_bytes + aligned(weight->cols * sizeof(float));
    slab.scratch = ew_alloc_aligned(slab.scratch_bytes * loading->n_threads);
    if (!slab.scratch)
        return ew_fail_memory(err, slab.scratch_bytes * loading->n_threads, "the rows being loaded");
    for (; slab.first < weight->rows && rc == 0; slab.first += slab.n_rows) {
        slab.n_rows = EW_MIN(step, weight->rows - slab.first);
        rc = load_slab(loading, &slab, err);
    }
    ew_free(slab.scratch);
    return rc;
}

static int allocate(struct loading *loading, const struct ew_weight *weight, struct ew_cuda_matrix *matrix,
                    struct ew_error *err)
{
    struct ew_cuda_backend *backend = loading->backend;
    const uint64_t bytes[] = {weight->rows * ew_cuda_code_bytes(matrix->layout, weight->cols),
                              weight->rows * ew_cuda_scale_bytes(matrix->layout, weight->cols),
                              weight->rows * ew_cuda_min_bytes(matrix->layout, weight->cols)};
    uint64_t *const addresses[] = {&matrix->codes, &matrix->scales, &matrix->mins};
    int rc = 0;

    for (size_t i = 0; i < EW_COUNT_OF(bytes) && rc == 0; i++) {
        if (bytes[i])
            rc = ew_cuda_arena_alloc(&backend->device, &backend->weights, bytes[i], "taking memory for weights",
                                     addresses[i], err);
    }
    return rc;
}

static void say_expanded(struct loading *loading, const struct ew_weight *weight, const struct ew_cuda_matrix *matrix)
{
    if (loading->said >> weight->source.dtype & 1)
        return;
    loading->said |= 1ull << weight->source.dtype;
    ew_log(EW_LOG_INFO, "weights of type %s have no GPU kernels of their own and are expanded to %s (%s is the first)",
           ew_dtype_name(weight->source.dtype), ew_cuda_layout_name(matrix->layout), weight->name);
}

static int load_weight(struct loading *loading, uint32_t index, struct ew_error *err)
{
    struct ew_cuda_backend *backend = loading->backend;
    const struct ew_weight *weight = &backend->program->weights[index];
    struct ew_cuda_matrix *matrix = &backend->matrices[index];
    bool exact = true, reference = backend->config.kernels == EW_KERNELS_REFERENCE || !weight->is_matrix;
    int rc = check_weight(weight, err);

    if (rc)
        return rc;
    *matrix = (struct ew_cuda_matrix){.rows = (uint32_t)weight->rows, .cols = (uint32_t)weight->cols};
    matrix->layout = ew_cuda_layout_of(weight->source.dtype, weight->cols, reference, &exact);
    rc = allocate(loading, weight, matrix, err);
    if (rc)
        return rc;
    if (!exact)
        say_expanded(loading, weight, matrix);
    if (!weight->is_matrix)
        backend->vectors[index] = matrix->codes;
    return load_rows(loading, weight, matrix, err);
}

// Slopes are the program's, not a file's.
static int load_alibi(struct ew_cuda_backend *backend, uint32_t index, struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[index];
    uint64_t bytes = op->attention.n_heads * sizeof(float);
    int rc = ew_cuda_arena_alloc(&backend->device, &backend->weights, bytes, "taking memory for slopes",
                                 &backend->alibi[index], err);

    if (rc)
        return rc;
    return ew_cuda_check(&backend->device,
                         backend->device.driver.cuMemcpyHtoD_v2(backend->alibi[index], op->attention.alibi, bytes),
                         "copying slopes", err);
}

static int load_all(struct loading *loading, struct ew_error *err)
{
    struct ew_cuda_backend *backend = loading->backend;
    const struct ew_program *program = backend->program;
    int rc = 0;

    for (uint32_t i = 0; i < program->n_weights && rc == 0; i++) {
        rc = load_weight(loading, i, err);
        if (rc)
            ew_fail_in(err, rc, "weight %s", program->weights[i].name);
    }
    for (uint32_t i = 0; i < program->n_ops && rc == 0; i++) {
        if (program->ops[i].kind == EW_OP_ATTENTION && program->ops[i].attention.alibi)
            rc = load_alibi(backend, i, err);
    }
    return rc;
}

int ew_cuda_weights_load(struct ew_cuda_backend *backend, bool (*progress)(void *ctx, uint64_t done, uint64_t total),
                         void *ctx, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &backend->device.driver;
    struct loading loading = {.backend = backend, .progress = progress, .ctx = ctx};
    struct ew_topology topology;
    void *slab = NULL;
    int rc;

    ew_topology_read(NULL, &topology);
    loading.n_threads = backend->config.n_threads ? EW_MIN(backend->config.n_threads, EW_POOL_THREADS_MAX)
                                                  : topology.n_usable;
    loading.total = ew_cuda_weights_bytes(backend->program, backend->config.kernels == EW_KERNELS_REFERENCE);
    rc = ew_pool_create(loading.n_threads, "ew-load", &loading.pool, err);
    if (rc)
        return rc;
    rc = ew_cuda_check(&backend->device, driver->cuMemHostAlloc(&slab, SLAB_BYTES, 0), "taking pinned memory", err);
    loading.slab = slab;
    if (rc == 0)
        rc = load_all(&loading, err);
    if (slab)
        (void)driver->cuMemFreeHost(slab);
    ew_pool_destroy(loading.pool);
    return rc;
}
