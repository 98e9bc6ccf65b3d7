// Weights into the GPU's memory: rows are read and converted by all threads, slab by slab, into pinned memory, while
// the slab before is copied.

#include <stdatomic.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cuda/cuda_backend.h"
#include "kernel/cuda/cuda_upload.h"
#include "platform/topology.h"

#define SLAB_BYTES ((uint64_t)32 << 20) // of codes, scales and minima together
#define TASK_BYTES ((uint64_t)512 << 10) // that a thread reads at once, or a row where that is longer

// Matrices that have one input have one order of columns, each its own copy of it: they come near each other.
#define ORDERS_KEPT 4

struct order {
    const uint32_t *host;
    uint64_t cols, device;
};

struct loading {
    struct ew_cuda_backend *backend;
    struct ew_pool *pool;
    uint32_t n_threads;
    struct ew_cuda_upload upload;
    uint8_t *scratch; // [n_threads, scratch_bytes]: file rows, then a row of f32
    uint64_t scratch_bytes;
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
    uint64_t done, total, said; // said: bit a type: that it was expanded
    struct order orders[ORDERS_KEPT]; // by turns
    uint32_t n_orders;
};

// What the threads share while they convert one slab.
struct slab {
    const struct ew_weight *weight;
    const struct ew_weight_source *source;
    const struct ew_cuda_matrix *matrix;
    uint64_t first, n_rows, task_rows;
    uint8_t *codes, *scales, *mins;
    uint8_t *scratch; // as in struct loading
    uint64_t scratch_bytes;
    bool is_copy; // rows lie in the file as they will in memory
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

static uint64_t weight_bytes(const struct ew_program *program, uint32_t index, bool reference)
{
    const struct ew_weight *weight = &program->weights[index];
    bool exact, is_ordered = ew_cuda_source_of(program, index, reference) != &weight->source;
    enum ew_cuda_layout layout = ew_cuda_layout_of(program, index, reference, &exact);

    if (!weight->is_matrix)
        return aligned(weight->rows * weight->cols * sizeof(float));
    return aligned(weight->rows * ew_cuda_code_bytes(layout, weight->cols)) +
           aligned(weight->rows * ew_cuda_scale_bytes(layout, weight->cols)) +
           aligned(weight->rows * ew_cuda_min_bytes(layout, weight->cols)) +
           aligned(is_ordered ? weight->cols * sizeof(uint32_t) : 0) +
           aligned(is_ordered ? weight->cols * sizeof(float) : 0); // of a norm before it (cuda_fuse.c)
}

uint64_t ew_cuda_weights_bytes(const struct ew_program *program, bool reference)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < program->n_weights; i++)
        bytes += weight_bytes(program, i, reference);
    return bytes;
}

static int check_weight(const struct ew_weight *weight, enum ew_dtype dtype, struct ew_error *err)
{
    const struct ew_dtype_info *info = ew_dtype_info(dtype);

    if (!info->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "it has type %s, which holds no weights", info->name);
    if (weight->rows == 0 || weight->rows > INT32_MAX || weight->cols == 0 || weight->cols > INT32_MAX / 8)
        return ew_fail(err, EW_ERR_LIMIT, "it is empty or too large");
    if (ew_dtype_row_bytes(dtype, weight->cols) == 0)
        return ew_fail(err, EW_ERR_FORMAT, "its rows have %llu elements, which blocks of type %s do not divide",
                       (unsigned long long)weight->cols, info->name);
    return 0;
}

// Rows of the file that a thread reads at once.
static uint64_t task_rows(enum ew_dtype dtype, uint64_t cols)
{
    return EW_MAX(TASK_BYTES / ew_dtype_row_bytes(dtype, cols), 1);
}

static void pack_rows(const struct slab *slab, const uint8_t *rows, uint64_t at, uint64_t n, float *scratch)
{
    enum ew_cuda_layout layout = slab->matrix->layout;
    enum ew_dtype dtype = slab->source->dtype;
    uint64_t cols = slab->weight->cols, file_bytes = ew_dtype_row_bytes(dtype, cols);
    uint64_t code_bytes = ew_cuda_code_bytes(layout, cols), scale_bytes = ew_cuda_scale_bytes(layout, cols);
    uint64_t min_bytes = ew_cuda_min_bytes(layout, cols);

    for (uint64_t i = 0; i < n; i++)
        ew_cuda_pack_row(layout, dtype, rows + i * file_bytes, cols, slab->codes + (at + i) * code_bytes,
                         slab->scales + (at + i) * scale_bytes, slab->mins + (at + i) * min_bytes, scratch);
}

static void convert_rows(void *ctx, uint32_t task, uint32_t thread)
{
    struct slab *slab = ctx;
    const struct ew_weight *weight = slab->weight;
    uint64_t at = task * slab->task_rows, n = EW_MIN(slab->n_rows - at, slab->task_rows);
    uint64_t rows_bytes = aligned(ew_dtype_row_bytes(slab->source->dtype, weight->cols) * slab->task_rows);
    uint8_t *rows = slab->scratch + thread * slab->scratch_bytes;
    struct ew_error err;
    int rc, ok = 0;

    if (atomic_load(&slab->rc))
        return;
    if (slab->is_copy)
        rows = slab->codes + at * ew_cuda_code_bytes(slab->matrix->layout, weight->cols);
    rc = slab->source->read(slab->source, slab->first + at, n, rows, &err);
    if (rc == 0 && !slab->is_copy)
        pack_rows(slab, rows, at, n, (float *)(rows + rows_bytes));
    if (rc && atomic_compare_exchange_strong(&slab->rc, &ok, rc) && slab->err)
        *slab->err = err;
}

static int copy_planes(struct loading *loading, const struct slab *slab, struct ew_error *err)
{
    const struct ew_cuda_matrix *matrix = slab->matrix;
    const struct {
        uint64_t to, row_bytes;
        const uint8_t *from;
    } planes[] = {
        {matrix->codes, ew_cuda_code_bytes(matrix->layout, matrix->cols), slab->codes},
        {matrix->scales, ew_cuda_scale_bytes(matrix->layout, matrix->cols), slab->scales},
        {matrix->mins, ew_cuda_min_bytes(matrix->layout, matrix->cols), slab->mins},
    };
    int rc = 0;

    for (size_t i = 0; i < EW_COUNT_OF(planes) && rc == 0; i++)
        rc = ew_cuda_upload_copy(&loading->upload, planes[i].to + slab->first * planes[i].row_bytes, planes[i].from,
                                 slab->n_rows * planes[i].row_bytes, err);
    return rc ? rc : ew_cuda_upload_turn(&loading->upload, err);
}

static int load_slab(struct loading *loading, struct slab *slab, struct ew_error *err)
{
    const struct ew_cuda_matrix *matrix = slab->matrix;
    const struct ew_weight_source *source = slab->source;
    int rc = ew_cuda_upload_next(&loading->upload, &slab->codes, err);

    if (rc)
        return rc;
    slab->scales = slab->codes + slab->n_rows * ew_cuda_code_bytes(matrix->layout, matrix->cols);
    slab->mins = slab->scales + slab->n_rows * ew_cuda_scale_bytes(matrix->layout, matrix->cols);
    ew_pool_run(loading->pool, convert_rows, slab, (uint32_t)((slab->n_rows + slab->task_rows - 1) / slab->task_rows));
    rc = slab->rc;
    if (source->release)
        source->release(source, slab->first, slab->n_rows);
    if (rc == 0)
        rc = copy_planes(loading, slab, err);
    loading->done += slab->n_rows * row_bytes_of(matrix->layout, matrix->cols);
    if (rc == 0 && loading->progress && !loading->progress(loading->ctx, loading->done, loading->total))
        return ew_fail(err, EW_ERR_CANCELLED, "loading was stopped");
    return rc;
}

static int load_rows(struct loading *loading, const struct ew_weight *weight, const struct ew_weight_source *source,
                     const struct ew_cuda_matrix *matrix, struct ew_error *err)
{
    struct slab slab = {.weight = weight, .source = source, .matrix = matrix, .err = err,
                        .task_rows = task_rows(source->dtype, weight->cols)};
    uint64_t step = SLAB_BYTES / row_bytes_of(matrix->layout, matrix->cols);
    int rc = 0;

    if (step == 0)
        return ew_fail(err, EW_ERR_LIMIT, "its rows are too long");
    slab.scratch = loading->scratch;
    slab.scratch_bytes = loading->scratch_bytes;
    slab.is_copy = ew_cuda_pack_is_copy(matrix->layout, source->dtype);
    for (; slab.first < weight->rows && rc == 0; slab.first += slab.n_rows) {
        slab.n_rows = EW_MIN(step, weight->rows - slab.first);
        rc = load_slab(loading, &slab, err);
    }
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

// The order of columns, where no weight before had the same.
static int load_order(struct loading *loading, const struct ew_weight *weight, struct ew_cuda_matrix *matrix,
                      struct ew_error *err)
{
    struct ew_cuda_backend *backend = loading->backend;
    const uint32_t *host = weight->source.order;
    uint64_t bytes = weight->cols * sizeof(*host);
    struct order *slot = &loading->orders[loading->n_orders % ORDERS_KEPT];
    int rc;

    for (uint32_t i = 0; i < EW_MIN(loading->n_orders, ORDERS_KEPT); i++) {
        const struct order *order = &loading->orders[i];

        if (order->cols == weight->cols && memcmp(order->host, host, bytes) == 0) {
            matrix->order = order->device;
            return 0;
        }
    }
    rc = ew_cuda_arena_alloc(&backend->device, &backend->weights, bytes, "taking memory for an order of columns",
                             &matrix->order, err);
    if (rc)
        return rc;
    *slot = (struct order){host, weight->cols, matrix->order};
    loading->n_orders++;
    return ew_cuda_check(&backend->device, backend->device.driver.cuMemcpyHtoD_v2(matrix->order, host, bytes),
                         "copying an order of columns", err);
}

static int load_weight(struct loading *loading, uint32_t index, struct ew_error *err)
{
    struct ew_cuda_backend *backend = loading->backend;
    const struct ew_weight *weight = &backend->program->weights[index];
    const struct ew_weight_source *source;
    struct ew_cuda_matrix *matrix = &backend->matrices[index];
    bool exact = true, reference = backend->config.kernels == EW_KERNELS_REFERENCE;
    int rc;

    *matrix = (struct ew_cuda_matrix){.rows = (uint32_t)weight->rows, .cols = (uint32_t)weight->cols};
    matrix->layout = ew_cuda_layout_of(backend->program, index, reference, &exact);
    source = ew_cuda_source_of(backend->program, index, reference);
    rc = allocate(loading, weight, matrix, err);
    if (rc == 0 && source != &weight->source)
        rc = load_order(loading, weight, matrix, err);
    if (rc)
        return rc;
    if (!exact)
        say_expanded(loading, weight, matrix);
    if (!weight->is_matrix)
        backend->vectors[index] = matrix->codes;
    return load_rows(loading, weight, source, matrix, err);
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

static int alloc_scratch(struct loading *loading, struct ew_error *err)
{
    const struct ew_program *program = loading->backend->program;
    bool reference = loading->backend->config.kernels == EW_KERNELS_REFERENCE;

    for (uint32_t i = 0; i < program->n_weights; i++) {
        const struct ew_weight *weight = &program->weights[i];
        enum ew_dtype dtype = ew_cuda_source_of(program, i, reference)->dtype;
        uint64_t row_bytes = ew_dtype_row_bytes(dtype, weight->cols);
        int rc = check_weight(weight, dtype, err);

        if (rc)
            return ew_fail_in(err, rc, "weight %s", weight->name);
        loading->scratch_bytes = EW_MAX(loading->scratch_bytes, aligned(row_bytes * task_rows(dtype, weight->cols)) +
                                                                    aligned(weight->cols * sizeof(float)));
    }
    loading->scratch = ew_alloc_aligned(loading->scratch_bytes * loading->n_threads);
    if (!loading->scratch)
        return ew_fail_memory(err, loading->scratch_bytes * loading->n_threads, "the rows being loaded");
    return 0;
}

int ew_cuda_weights_load(struct ew_cuda_backend *backend, bool (*progress)(void *ctx, uint64_t done, uint64_t total),
                         void *ctx, struct ew_error *err)
{
    struct loading loading = {.backend = backend, .progress = progress, .ctx = ctx};
    struct ew_topology topology;
    int rc;

    ew_topology_read(NULL, &topology);
    loading.n_threads = backend->config.n_threads ? EW_MIN(backend->config.n_threads, EW_POOL_THREADS_MAX)
                                                  : topology.n_usable;
    loading.total = ew_cuda_weights_bytes(backend->program, backend->config.kernels == EW_KERNELS_REFERENCE);
    ew_cuda_arena_expect(&backend->weights, loading.total);
    rc = alloc_scratch(&loading, err);
    if (rc)
        return rc;
    rc = ew_pool_create(loading.n_threads, "ew-load", &loading.pool, err);
    if (rc)
        goto free_scratch;
    rc = ew_cuda_upload_init(&loading.upload, &backend->device, SLAB_BYTES, err);
    if (rc == 0)
        rc = load_all(&loading, err);
    if (rc == 0)
        rc = ew_cuda_upload_wait(&loading.upload, err);
    ew_cuda_upload_fini(&loading.upload);
    ew_pool_destroy(loading.pool);
free_scratch:
    ew_free(loading.scratch);
    return rc;
}
