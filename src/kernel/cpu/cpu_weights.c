// Weights into memory: vectors as f32, matrices in their layout, tile by tile.

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cpu/cpu_backend.h"

#define MATRIX_UNIT_COLS 512
#define ENCODER_COLS 128       // narrower matrices have few products to save on
#define SLAB_BYTES (16u << 20) // what is read between two reports of progress, and may be in memory twice
#define READ_BYTES (512u << 10) // what one thread reads at a time, of rows that stay as the file has them

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
    *out = (struct ew_cpu_weight_plan){
        .layout = EW_CPU_LAYOUT_COUNT, .bytes = weight->rows * weight->cols * sizeof(float), .is_exact = true};
    return 0;
}

static bool is_in_linear(const struct ew_program *program, uint32_t weight)
{
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if ((op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS) && op->weight == weight)
            return true;
    }
    return false;
}

static bool is_router(const struct ew_program *program, uint32_t weight)
{
    for (uint32_t i = 0; i + 1 < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_LINEAR && op->weight == weight && op[1].kind == EW_OP_ROUTE)
            return true;
    }
    return false;
}

// What a matrix unit takes of f16 and bf16, but for two: matrices whose conversions would cost more than their
// products, and those that choose experts, where a rounding may choose another one.
static bool fits_matrix_unit(const struct ew_cpu_backend *backend, const struct ew_program *program, uint32_t weight)
{
    return backend->ops.has_bf16_tiles && program->weights[weight].cols >= MATRIX_UNIT_COLS &&
           !is_router(program, weight);
}

// Whether the op's result goes into attention before anything is added to the stream: a product for q, k or v.
static bool feeds_attention(const struct ew_program *program, uint32_t op)
{
    while (++op < program->n_ops && program->ops[op].kind != EW_OP_ADD)
        if (program->ops[op].kind == EW_OP_ATTENTION)
            return true;
    return false;
}

// An encoder is nothing but large products, and what it makes is compared by angles: its matrices are rounded to 8 bits
// where no matrix unit takes them as they are. Those for q, k and v stay, because the softmax makes the most of their
// errors: with them rounded MiniLM's vectors are off by up to 0.0007 of a cosine, without by half of that.
static bool is_rounded(const struct ew_program *program, uint32_t weight)
{
    bool encodes = false, feeds = false;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        encodes |= op->kind == EW_OP_ATTENTION && op->attention.mask == EW_MASK_BIDIRECTIONAL;
        feeds |= op->kind == EW_OP_LINEAR && op->weight == weight && feeds_attention(program, i);
    }
    return encodes && !feeds && program->weights[weight].cols >= ENCODER_COLS &&
           program->weights[weight].cols % EW_CPU_GROUP == 0;
}

static enum ew_cpu_layout tiled_layout(enum ew_cpu_layout layout)
{
    return layout == EW_CPU_F16 ? EW_CPU_F16_TILES : layout == EW_CPU_BF16 ? EW_CPU_BF16_TILES : layout;
}

// The reference keeps matrices as the file has them; so do matrices whose rows are only looked up.
static enum ew_cpu_layout choose_layout(const struct ew_cpu_backend *backend, const struct ew_program *program,
                                        uint32_t weight, enum ew_dtype dtype, bool *exact)
{
    bool of_heads = program->weights[weight].n_heads > 0;
    enum ew_cpu_layout layout;

    *exact = true;
    if (backend->config.kernels == EW_KERNELS_REFERENCE || (!of_heads && !is_in_linear(program, weight)))
        return EW_CPU_FILE;
    layout = ew_cpu_layout_of(dtype, exact);
    if (layout == EW_CPU_FP8 && !backend->ops.has_fp8) {
        *exact = false;
        return EW_CPU_I8;
    }
    if (of_heads) // of activations in f32, parts can be taken anywhere
        return layout;
    if (tiled_layout(layout) != layout && fits_matrix_unit(backend, program, weight))
        return tiled_layout(layout);
    if (layout > EW_CPU_BF16 || !is_rounded(program, weight))
        return layout;
    *exact = false;
    return EW_CPU_I8;
}

// Products take 8-bit activations in any order, as these are written for them anyway.
static bool takes_order(const struct ew_cpu_backend *backend, const struct ew_program *program, uint32_t index)
{
    const struct ew_weight *weight = &program->weights[index];
    bool exact;

    if (!weight->source.ordered || backend->config.kernels == EW_KERNELS_REFERENCE || ew_weight_parts(weight) > 1)
        return false;
    for (uint32_t i = 0; i < program->n_ops; i++) {
        if (program->ops[i].weight == index && program->ops[i].kind != EW_OP_LINEAR)
            return false;
    }
    return ew_cpu_layout_wants_q8(ew_cpu_layout_of(weight->source.ordered->dtype, &exact)) && exact;
}

static bool file_has_layout(enum ew_cpu_layout layout, bool exact)
{
    return !ew_cpu_layout_is_tiled(layout) && exact;
}

// Of a stack of experts, each is a matrix by itself.
static uint32_t rows_of_one(const struct ew_weight *weight)
{
    return (uint32_t)(weight->rows / ew_weight_parts(weight));
}

static int choose_weight(const struct ew_cpu_backend *backend, const struct ew_program *program, uint32_t index,
                         struct ew_cpu_weight_plan *out, struct ew_error *err)
{
    const struct ew_weight *weight = &program->weights[index];
    bool exact, ordered = takes_order(backend, program, index);
    enum ew_dtype dtype = ordered ? weight->source.ordered->dtype : weight->source.dtype;
    const struct ew_dtype_info *info = ew_dtype_info(dtype);
    struct ew_cpu_matrix matrix = {.dtype = dtype, .rows = rows_of_one(weight), .cols = (uint32_t)weight->cols};

    if (!info->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "weight %s has type %s, which holds no weights", weight->name,
                       info->name);
    if (ew_dtype_row_bytes(dtype, weight->cols) == 0)
        return ew_fail(err, EW_ERR_FORMAT,
                       "rows of weight %s have %llu elements, which blocks of type %s do not divide", weight->name,
                       (unsigned long long)weight->cols, info->name);
    if (!weight->is_matrix)
        return choose_vector(weight, out, err);
    matrix.layout = choose_layout(backend, program, index, dtype, &exact);
    *out = (struct ew_cpu_weight_plan){.layout = matrix.layout, .is_exact = exact, .is_ordered = ordered};
    out->is_mapped = file_has_layout(matrix.layout, exact) && weight->source.mapped;
    out->bytes = weight->rows > INT32_MAX || weight->cols > INT32_MAX ? 0 : ew_cpu_matrix_shape(&matrix);
    if (__builtin_mul_overflow(out->bytes, (uint64_t)ew_weight_parts(weight), &out->bytes) || out->bytes == 0)
        return ew_fail(err, EW_ERR_LIMIT, "weight %s is empty or too large", weight->name);
    return 0;
}

int ew_cpu_weights_plan(const struct ew_cpu_backend *backend, const struct ew_program *program,
                        struct ew_cpu_weight_plan *plans, uint64_t *bytes, struct ew_error *err)
{
    *bytes = 0;
    for (uint32_t i = 0; i < program->n_weights; i++) {
        int rc = choose_weight(backend, program, i, &plans[i], err);

        if (rc)
            return rc;
        *bytes += (plans[i].bytes + 63) & ~(uint64_t)63;
    }
    return 0;
}

// ---- loading ------------------------------------------------------------------------------------

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
    uint64_t matrix_bytes; // of the matrix being packed
    uint64_t said;         // bit a type: that it was expanded
};

_Static_assert(EW_DTYPE_COUNT <= 64, "a bit a type");

static int report(struct progress *progress, uint64_t bytes, struct ew_error *err)
{
    progress->done += bytes;
    if (progress->fn && !progress->fn(progress->ctx, progress->done, progress->total))
        return ew_fail(err, EW_ERR_CANCELLED, "loading was stopped");
    return 0;
}

static void release_rows(const struct ew_weight *weight, uint64_t row, uint64_t n)
{
    if (weight->source.release)
        weight->source.release(&weight->source, row, EW_MIN(n, weight->rows - row));
}

// What the threads share while they read rows as the file has them.
struct reading {
    const struct ew_weight *weight;
    uint64_t row_bytes, first, end, step; // rows
    uint8_t *dst;                         // of the first
    _Atomic int rc;
    struct ew_error *err; // of whoever failed first
};

static void read_rows(void *ctx, uint32_t task, uint32_t thread)
{
    struct reading *reading = ctx;
    uint64_t row = reading->first + task * reading->step, n = EW_MIN(reading->step, reading->end - row);
    uint8_t *dst = reading->dst + (row - reading->first) * reading->row_bytes;
    struct ew_error err;
    int rc = atomic_load(&reading->rc), ok = 0;

    (void)thread;
    if (rc)
        return;
    rc = reading->weight->source.read(&reading->weight->source, row, n, dst, &err);
    if (rc && atomic_compare_exchange_strong(&reading->rc, &ok, rc) && reading->err)
        *reading->err = err;
}

static int load_file_rows(struct ew_cpu_backend *backend, const struct ew_weight *weight, uint64_t row_bytes,
                          uint8_t *dst, struct progress *progress, struct ew_error *err)
{
    struct reading reading = {.weight = weight, .row_bytes = row_bytes, .err = err};
    uint64_t slab = EW_MAX(1, SLAB_BYTES / row_bytes);
    int rc = 0;

    reading.step = EW_MAX(1, READ_BYTES / row_bytes);
    for (uint64_t row = 0; row < weight->rows && rc == 0; row += slab) {
        uint64_t n = EW_MIN(slab, weight->rows - row);

        reading.first = row;
        reading.end = row + n;
        reading.dst = dst + row * row_bytes;
        ew_pool_run(backend->pool, read_rows, &reading, (uint32_t)((n + reading.step - 1) / reading.step));
        rc = reading.rc;
        if (rc == 0)
            rc = report(progress, n * row_bytes, err);
    }
    return rc;
}

// What the threads share while they pack one matrix.
struct packing {
    const struct ew_weight *weight;
    const struct ew_cpu_matrix *matrix;
    uint8_t *dst;
    uint8_t *buffers; // [n_threads, buffer_bytes]: 16 rows of the file, then one decoded row
    uint64_t buffer_bytes, rows_bytes;
    uint32_t first; // tile
    _Atomic int rc;
    struct ew_error *err; // of whoever failed first
};

static uint64_t packing_rows_bytes(const struct ew_weight *weight)
{
    return (ew_dtype_row_bytes(weight->source.dtype, weight->cols) * EW_CPU_TILE_ROWS + 63) & ~(uint64_t)63;
}

// First row of a tile, counted through all experts.
static uint32_t row_of_tile(const struct ew_cpu_matrix *matrix, uint32_t tile)
{
    uint32_t tiles = ew_cpu_tiles(matrix->rows);

    return tile / tiles * matrix->rows + tile % tiles * EW_CPU_TILE_ROWS;
}

static void pack_tile(void *ctx, uint32_t task, uint32_t thread)
{
    struct packing *packing = ctx;
    const struct ew_weight *weight = packing->weight;
    uint32_t tile = packing->first + task, in_expert = tile % ew_cpu_tiles(packing->matrix->rows);
    uint32_t row = row_of_tile(packing->matrix, tile);
    uint32_t n = EW_MIN(packing->matrix->rows - in_expert * EW_CPU_TILE_ROWS, EW_CPU_TILE_ROWS);
    uint8_t *rows = packing->buffers + thread * packing->buffer_bytes;
    struct ew_error err;
    int rc = atomic_load(&packing->rc), ok = 0;

    if (rc)
        return;
    rc = weight->source.read(&weight->source, row, n, rows, &err);
    if (rc == 0)
        ew_cpu_tile_pack(packing->matrix, tile, weight->source.dtype, rows, n, packing->dst,
                         (float *)(rows + packing->rows_bytes));
    else if (atomic_compare_exchange_strong(&packing->rc, &ok, rc) && packing->err)
        *packing->err = err;
}

static int pack_matrix(struct ew_cpu_backend *backend, struct packing *packing, struct progress *progress)
{
    uint32_t n_tiles = ew_cpu_tiles(packing->matrix->rows) * ew_weight_parts(packing->weight),
             step = (uint32_t)EW_MAX(1, SLAB_BYTES / packing->rows_bytes);
    int rc = 0;

    for (uint32_t tile = 0; tile < n_tiles && rc == 0; tile += step) {
        uint32_t n = EW_MIN(step, n_tiles - tile);

        packing->first = tile;
        ew_pool_run(backend->pool, pack_tile, packing, n);
        release_rows(packing->weight, row_of_tile(packing->matrix, tile), (uint64_t)n * EW_CPU_TILE_ROWS);
        rc = packing->rc;
        if (rc == 0)
            rc = report(progress, (uint64_t)n * (progress->matrix_bytes / n_tiles), packing->err);
    }
    return rc;
}

static int load_matrix(struct ew_cpu_backend *backend, const struct ew_weight *weight,
                       const struct ew_cpu_matrix *matrix, uint8_t *dst, struct progress *progress,
                       struct ew_error *err)
{
    struct packing packing = {
        .weight = weight, .matrix = matrix, .dst = dst, .err = err, .rows_bytes = packing_rows_bytes(weight)};
    int rc;

    packing.buffer_bytes = packing.rows_bytes + ((weight->cols * sizeof(float) + 63) & ~(uint64_t)63);
    packing.buffers = ew_alloc_aligned(packing.buffer_bytes * backend->n_threads);
    if (!packing.buffers)
        return ew_fail_memory(err, packing.buffer_bytes * backend->n_threads, "the rows being loaded");
    rc = pack_matrix(backend, &packing, progress);
    ew_free(packing.buffers);
    return rc;
}

static void say_expanded(const struct ew_weight *weight, const struct ew_cpu_matrix *matrix, uint64_t *said)
{
    if (*said >> weight->source.dtype & 1)
        return;
    *said |= 1ull << weight->source.dtype;
    ew_log(EW_LOG_INFO, "weights of type %s have no kernels of their own and are expanded to %s (%s is the first)",
           ew_dtype_name(weight->source.dtype), ew_cpu_layout_name(matrix->layout), weight->name);
}

static int load_weight(struct ew_cpu_backend *backend, uint32_t index, const struct ew_cpu_weight_plan *plan,
                       struct ew_cpu_carver *carver, struct progress *progress, struct ew_error *err)
{
    struct ew_weight held = backend->program->weights[index];
    const struct ew_weight *weight = &held;
    struct ew_cpu_matrix *matrix = &backend->matrices[index];
    const uint32_t *order = plan->is_ordered ? held.source.order : NULL;
    uint8_t *dst = plan->is_mapped ? NULL : ew_cpu_carve(carver, plan->bytes);

    if (plan->is_ordered)
        held.source = *held.source.ordered;
    *matrix = (struct ew_cpu_matrix){
        .order = order,
        .layout = plan->layout,
        .dtype = weight->source.dtype,
        .rows = rows_of_one(weight),
        .cols = (uint32_t)weight->cols,
        .data = plan->is_mapped ? weight->source.mapped : dst,
        .is_mapped = plan->is_mapped,
    };
    if (plan->layout == EW_CPU_LAYOUT_COUNT) {
        int rc = load_vector(weight, (float *)dst, err);

        backend->vectors[index] = (float *)dst;
        return rc ? rc : report(progress, plan->bytes, err);
    }
    matrix->expert_bytes = ew_cpu_matrix_shape(matrix);
    if (plan->is_mapped)
        return report(progress, plan->bytes, err);
    if (file_has_layout(plan->layout, plan->is_exact))
        return load_file_rows(backend, weight, matrix->row_bytes, dst, progress, err);
    if (!plan->is_exact)
        say_expanded(weight, matrix, &progress->said);
    progress->matrix_bytes = plan->bytes;
    return load_matrix(backend, weight, matrix, dst, progress, err);
}

static int load_all(struct ew_cpu_backend *backend, const struct ew_cpu_weight_plan *plans, struct progress *progress,
                    struct ew_error *err)
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
