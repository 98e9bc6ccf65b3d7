// Weights into memory: vectors as f32, matrices in their layout, tile by tile.

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cpu/cpu_backend.h"

#define SLAB_BYTES (32u << 20) // what is read between two reports of progress

int ew_cpu_region_map(struct ew_cpu_region *region, uint64_t bytes, const char *what, struct ew_error *err)
{
    void *data;

    *region = (struct ew_cpu_region){0};
    if (bytes == 0)
        return 0;
    data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
        return ew_fail_memory(err, bytes, what);
    (void)madvise(data, bytes, MADV_HUGEPAGE); // only a wish: fewer misses of the address cache on long streams
    *region = (struct ew_cpu_region){data, bytes};
    return 0;
}

void ew_cpu_region_unmap(struct ew_cpu_region *region)
{
    if (region->data)
        munmap(region->data, region->bytes);
    *region = (struct ew_cpu_region){0};
}

static int choose_vector(const struct ew_weight *weight, struct ew_cpu_weight_plan *out, struct ew_error *err)
{
    if (weight->rows * weight->cols > UINT32_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "weight %s has too many elements for a vector", weight->name);
    *out = (struct ew_cpu_weight_plan){EW_CPU_LAYOUT_COUNT, weight->rows * weight->cols * sizeof(float), false};
    return 0;
}

int ew_cpu_weight_choose(const struct ew_cpu_backend *backend, const struct ew_program *program, uint32_t index, bool in_linear,
                         struct ew_cpu_weight_plan *out, struct ew_error *err)
{
    const struct ew_weight *weight = &program->weights[index];
    const struct ew_dtype_info *info = ew_dtype_info(weight->source.dtype);
    uint64_t row_bytes = ew_dtype_row_bytes(weight->source.dtype, weight->cols);
    size_t bytes;

    if (!info->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "weight %s has type %s, which holds no weights", weight->name, info->name);
    if (row_bytes == 0)
        return ew_fail(err, EW_ERR_FORMAT, "rows of weight %s have %llu elements, which blocks of type %s do not divide",
                       weight->name, (unsigned long long)weight->cols, info->name);
    if (!weight->is_matrix)
        return choose_vector(weight, out, err);
    if (weight->rows > INT32_MAX || weight->cols > INT32_MAX || !ew_mul_size(row_bytes, weight->rows, &bytes))
        return ew_fail(err, EW_ERR_LIMIT, "weight %s is too large", weight->name);
    *out = (struct ew_cpu_weight_plan){EW_CPU_FILE, bytes, weight->source.mapped != NULL};
    return 0;
}

static bool is_in_linear(const struct ew_program *program, uint32_t weight)
{
    for (uint32_t i = 0; i < program->n_ops; i++) {
        if (program->ops[i].kind == EW_OP_LINEAR && program->ops[i].weight == weight)
            return true;
    }
    return false;
}

int ew_cpu_weights_plan(const struct ew_cpu_backend *backend, const struct ew_program *program, struct ew_cpu_weight_plan *plans,
                        uint64_t *bytes, struct ew_error *err)
{
    *bytes = 0;
    for (uint32_t i = 0; i < program->n_weights; i++) {
        int rc = ew_cpu_weight_choose(backend, program, i, is_in_linear(program, i), &plans[i], err);

        if (rc)
            return rc;
        *bytes += (plans[i].bytes + 63) & ~(uint64_t)63;
    }
    return 0;
}

// ---- loading ---------------------------------------------------------------------------------------------------------------

static int load_vector(const struct ew_weight *weight, float *out, struct ew_error *err)
{
    uint64_t row_bytes = ew_dtype_row_bytes(weight->source.dtype, weight->cols);
    const struct ew_dtype_info *info = ew_dtype_info(weight->source.dtype);
    unsigned char *rows = ew_alloc_array(weight->rows, row_bytes);
    int rc;

    if (!rows)
        return ew_fail_memory(err, weight->rows * row_bytes, weight->name);
    rc = weight->source.read(&weight->source, 0, weight->rows, rows, err);
    for (uint64_t i = 0; i < weight->rows && rc == 0; i++)
        info->decode(rows + i * row_bytes, out + i * weight->cols, weight->cols);
    ew_free(rows);
    return rc;
}

struct progress {
    bool (*fn)(void *ctx, uint64_t done, uint64_t total);
    void *ctx;
    uint64_t done, total;
};

static int report(struct progress *progress, uint64_t bytes, struct ew_error *err)
{
    progress->done += bytes;
    if (progress->fn && !progress->fn(progress->ctx, progress->done, progress->total))
        return ew_fail(err, EW_ERR_CANCELLED, "loading was stopped");
    return 0;
}

// Rows as the file has them.
static int load_file_rows(const struct ew_weight *weight, uint64_t row_bytes, uint8_t *dst, struct progress *progress, struct ew_error *err)
{
    uint64_t step = EW_MAX(1, SLAB_BYTES / row_bytes);

    for (uint64_t row = 0; row < weight->rows; row += step) {
        uint64_t n = EW_MIN(step, weight->rows - row);
        int rc = weight->source.read(&weight->source, row, n, dst + row * row_bytes, err);

        if (rc == 0)
            rc = report(progress, n * row_bytes, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int load_weight(struct ew_cpu_backend *backend, uint32_t index, const struct ew_cpu_weight_plan *plan,
                       struct ew_cpu_carver *carver, struct progress *progress, struct ew_error *err)
{
    const struct ew_weight *weight = &backend->program->weights[index];
    struct ew_cpu_matrix *matrix = &backend->matrices[index];
    uint8_t *dst = plan->is_mapped ? NULL : ew_cpu_carve(carver, plan->bytes);

    *matrix = (struct ew_cpu_matrix){
        .layout = plan->layout, .dtype = weight->source.dtype, .rows = (uint32_t)weight->rows, .cols = (uint32_t)weight->cols,
        .data = plan->is_mapped ? weight->source.mapped : dst, .is_mapped = plan->is_mapped,
        .row_bytes = ew_dtype_row_bytes(weight->source.dtype, weight->cols),
    };
    if (plan->layout == EW_CPU_LAYOUT_COUNT) {
        int rc = load_vector(weight, (float *)dst, err);

        backend->vectors[index] = (float *)dst;
        return rc ? rc : report(progress, plan->bytes, err);
    }
    if (plan->is_mapped)
        return report(progress, plan->bytes, err);
    return load_file_rows(weight, matrix->row_bytes, dst, progress, err);
}

static int load_all(struct ew_cpu_backend *backend, const struct ew_cpu_weight_plan *plans, struct progress *progress, struct ew_error *err)
{
    const struct ew_program *program = backend->program;
    struct ew_cpu_carver carver = {0};
    int rc = 0;

    for (uint32_t i = 0; i < program->n_weights; i++) {
        progress->total += plans[i].bytes;
        if (!plans[i].is_mapped)
            ew_cpu_carve(&carver, plans[i].bytes);
    }
    rc = ew_cpu_region_map(&backend->weights, carver.used, "the weights", err);
    carver = (struct ew_cpu_carver){.base = backend->weights.data};
    for (uint32_t i = 0; i < program->n_weights && rc == 0; i++) {
        rc = load_weight(backend, i, &plans[i], &carver, progress, err);
        if (rc)
            ew_fail_in(err, rc, "weight %s", program->weights[i].name);
    }
    return rc;
}

int ew_cpu_weights_load(struct ew_cpu_backend *backend, const struct ew_program *program,
                        bool (*progress_fn)(void *ctx, uint64_t done, uint64_t total), void *ctx, struct ew_error *err)
{
    struct progress progress = {.fn = progress_fn, .ctx = ctx};
    struct ew_cpu_weight_plan *plans;
    int rc;

    ew_arena_init(&backend->arena, SIZE_MAX);
    backend->program = program;
    backend->matrices = ew_arena_array(&backend->arena, program->n_weights, sizeof(*backend->matrices));
    backend->vectors = ew_arena_array(&backend->arena, program->n_weights, sizeof(*backend->vectors));
    plans = ew_arena_array(&backend->arena, program->n_weights, sizeof(*plans));
    if (!backend->matrices || !backend->vectors || !plans)
        return ew_fail_memory(err, program->n_weights * sizeof(*plans), "the table of weights");
    rc = ew_cpu_weights_plan(backend, program, plans, &backend->weight_bytes, err);
    return rc ? rc : load_all(backend, plans, &progress, err);
}

void ew_cpu_weights_unload(struct ew_cpu_backend *backend)
{
    ew_cpu_region_unmap(&backend->weights);
    ew_arena_fini(&backend->arena);
    backend->program = NULL;
    backend->matrices = NULL;
    backend->vectors = NULL;
}
