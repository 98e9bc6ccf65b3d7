// Steps with several sequences: the products that cuda_fuse.c put together for one row of activations, by the kernels
// of ptx/few.c for up to 32 rows.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/few_job.h"

#define TILE 16       // rows of a matrix
#define TOKEN_TILE 8
#define SIZES_COUNT (EW_FEW_TOKENS_MAX / TOKEN_TILE) // of kernels, by token tiles
#define STATIC_BYTES 1024                            // of a kernel's own shared arrays, and what the driver takes
#define TILE_BYTES (128 * 128 * sizeof(float))
#define PARTIAL_BYTES_MAX ((uint64_t)32 << 20)

#define SIZES(name) {EW_CUDA_FEW_##name##_1, EW_CUDA_FEW_##name##_2, EW_CUDA_FEW_##name##_3, EW_CUDA_FEW_##name##_4}
#define TABLE {SIZES(TABLE), 32, 1, 0}
#define TABLE_16 {SIZES(TABLE_16), 32, 1, 0}

static const struct {
    enum ew_cuda_kernel kernels[SIZES_COUNT];
    uint32_t columns, planes, bits; // as COLUMNS, PLANES and BITS in ptx/few.c
} CLASSES[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F16] = {SIZES(F16), 8, 0, 0},
    [EW_CUDA_BF16] = {SIZES(BF16), 8, 0, 0},
    [EW_CUDA_I8] = {SIZES(I8), 16, 1, 0},
    [EW_CUDA_U4] = {SIZES(U4), 32, 2, 0},
    [EW_CUDA_U4_MIN] = {SIZES(U4), 32, 2, 0},
    [EW_CUDA_F8] = {SIZES(F8), 16, 1, 0},
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
    [EW_CUDA_U5] = {SIZES(U5), 32, 2, 1},
    [EW_CUDA_U5_MIN] = {SIZES(U5), 32, 2, 1},
    [EW_CUDA_U6] = {SIZES(U6), 32, 1, 2},
};

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

uint64_t ew_cuda_few_normals_bytes(void)
{
    return EW_FEW_TOKENS_MAX * 2 * sizeof(float);
}

uint64_t ew_cuda_few_arrived_bytes(const struct ew_cuda_backend *backend)
{
    return (uint64_t)backend->device.n_multiprocessors * sizeof(uint32_t);
}

// Of 16 rows each of the results of up to EW_FEW_TOKENS_MAX tokens.
uint64_t ew_cuda_few_squares_bytes(const struct ew_program *program)
{
    uint64_t rows = 0;

    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (program->weights[i].is_matrix)
            rows = EW_MAX(rows, program->weights[i].rows);
    }
    return rows / TILE * EW_FEW_TOKENS_MAX * sizeof(float);
}

// Two halves of the columns of the two matrices of a gate (what needs more is done by other kernels); or a tile of
// every multiprocessor (cuda_wgmma.c).
uint64_t ew_cuda_few_partial_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program,
                                   uint32_t n_tokens_max)
{
    uint64_t rows = 0, n_tokens = EW_MIN(n_tokens_max, EW_FEW_TOKENS_MAX);
    uint64_t tiles = n_tokens_max > EW_CUDA_GRAPH_TOKENS_MAX ? (uint64_t)backend->device.n_multiprocessors * TILE_BYTES
                                                             : 0;

    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (program->weights[i].is_matrix)
            rows = EW_MAX(rows, program->weights[i].rows);
    }
    rows = EW_MIN(rows * 4 * ((n_tokens + TOKEN_TILE - 1) / TOKEN_TILE * TOKEN_TILE) * sizeof(float),
                  PARTIAL_BYTES_MAX);
    return EW_MAX(rows, tiles);
}

// ---- shares -------------------------------------------------------------------------------------

// How a product is shared out, as find_share in ptx/few.c does it.
struct sharing {
    uint32_t n_splits, n_parts, n_groups, threads, shared_bytes;
    double cost;
};

// Estimates in clock cycles of a multiprocessor, from measurements on one of compute capability 9.0.
#define STAGE_CYCLES 800.0     // of a warp's chunk, where there are eight warps
#define PASS_CYCLES 400.0      // of joining the warps' sums
#define ACTIVATION_BYTES 40.0  // a cycle, as they are staged
#define JOIN_CYCLES 600.0      // of a block's sums with those of others, and
#define JOIN_BYTES 50.0        // a cycle of these

static void estimate(const struct ew_vector_job *job, uint32_t n_tiles, struct sharing *s)
{
    uint32_t per_unit = job->is_glu ? 2 : 1, at_once = EW_FEW_TILES / per_unit, warps = s->threads / 32;
    uint32_t n_units = ceil_div(job->rows / TILE, s->n_groups);
    uint32_t n_chunks = ceil_div(job->cols / (CLASSES[job->layout].columns * 4), s->n_splits);
    uint32_t n_passes = ceil_div(n_units, warps / s->n_parts * at_once);
    double sum_bytes = (double)n_units * per_unit * TILE * n_tiles * TOKEN_TILE * sizeof(float);

    s->cost = n_passes * (ceil_div(n_chunks, s->n_parts) * STAGE_CYCLES * warps / 8 + PASS_CYCLES) +
              job->cols * 4.0 / s->n_splits * n_tiles * TOKEN_TILE / ACTIVATION_BYTES;
    if (s->n_splits > 1)
        s->cost += s->n_splits * (JOIN_CYCLES + sum_bytes / JOIN_BYTES);
}

static bool fits(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                 struct sharing *s)
{
    uint32_t chunk = CLASSES[job->layout].columns * 4, warps = s->threads / 32;
    uint64_t tiles = (uint64_t)job->rows / TILE * (job->is_glu ? 2 : 1);

    s->n_groups = (uint32_t)backend->device.n_multiprocessors / s->n_splits;
    s->shared_bytes = warps * (EW_FEW_RING_BYTES(CLASSES[job->layout].planes, CLASSES[job->layout].bits) +
                               EW_FEW_SUM_BYTES(n_tiles)) +
                      ceil_div(job->cols / chunk, s->n_splits) * chunk * n_tiles * TOKEN_TILE * 2;
    return s->n_groups && s->n_splits * 4 <= job->cols / chunk &&
           s->shared_bytes + STATIC_BYTES <= (uint32_t)backend->device.shared_bytes_max &&
           (s->n_splits == 1 || s->n_splits * tiles * n_tiles * 512 <= backend->work.few_partial_bytes);
}

static bool find_sharing(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                         struct sharing *best)
{
    bool found = false;

    for (uint32_t threads = EW_FEW_THREADS; threads >= 128 && !found; threads /= 2) {
        for (uint32_t n_splits = 1; n_splits <= EW_FEW_SPLITS_MAX; n_splits++) {
            for (uint32_t n_parts = 1; n_parts <= threads / 32; n_parts *= 2) {
                struct sharing s = {.n_splits = n_splits, .n_parts = n_parts, .threads = threads};

                if (!fits(backend, job, n_tiles, &s))
                    continue;
                estimate(job, n_tiles, &s);
                if (!found || s.cost < best->cost)
                    *best = s;
                found = true;
            }
        }
    }
    return found;
}

// ---- steps --------------------------------------------------------------------------------------

int ew_cuda_few_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT && !backend->config.deterministic; i++) {
        for (int size = 0; CLASSES[i].columns && size < SIZES_COUNT && rc == 0; size++)
            rc = ew_cuda_allow_shared(&backend->device, CLASSES[i].kernels[size],
                                      (uint32_t)backend->device.shared_bytes_max - STATIC_BYTES, err);
    }
    return rc;
}

static uint32_t stride_of(const struct ew_cuda_backend *backend, uint64_t address)
{
    for (uint32_t i = 0; i < backend->plan.n_buffers; i++) {
        if (backend->work.buffers[i] == address)
            return backend->plan.buffers[i].width;
    }
    return 0;
}

bool ew_cuda_few_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows)
{
    const struct ew_vector_job *job = &fused->job;
    struct sharing sharing;

    if (!fused->count || !CLASSES[job->layout].columns || ew_cuda_shows_ops(backend) || n_rows < 2 ||
        n_rows > EW_FEW_TOKENS_MAX || stride_of(backend, job->x) % 4 ||
        stride_of(backend, job->normed) % 4)
        return false;
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++) {
        if (job->parts[i].rows % TILE)
            return false;
    }
    return find_sharing(backend, job, ceil_div(n_rows, TOKEN_TILE), &sharing);
}

int ew_cuda_few(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                struct ew_error *err)
{
    uint32_t n_tiles = ceil_div(n_rows, TOKEN_TILE);
    struct ew_cuda_grid norm = {n_rows, 1, 1, EW_FEW_THREADS}, grid;
    struct sharing sharing = {0};
    struct ew_cuda_squares *squares = &backend->work.few_squares;
    bool is_summed = fused->job.norm == EW_VECTOR_RMS && squares->of == fused->job.x && squares->n_rows == n_rows;
    struct ew_few_job job = {
        .v = fused->job,
        .normals = is_summed ? 0 : backend->work.few_normals,
        .squares = squares->sums,
        .squares_out = fused->job.parts[1].rows || fused->job.norm != EW_VECTOR_PLAIN ? 0 : squares->sums,
        .partial = backend->work.few_partial,
        .arrived = backend->work.few_arrived,
        .x_stride = stride_of(backend, fused->job.x),
        .normed_stride = stride_of(backend, fused->job.normed),
        .residual_stride = stride_of(backend, fused->job.residual),
        .n_tokens = n_rows,
    };
    bool found = find_sharing(backend, &fused->job, n_tiles, &sharing);
    int rc = 0;

    EW_ASSERT(found); // ew_cuda_few_takes saw to it
    job.n_splits = sharing.n_splits;
    job.n_parts = sharing.n_parts;
    grid = (struct ew_cuda_grid){sharing.n_groups * sharing.n_splits, 1, 1, sharing.threads, sharing.shared_bytes};
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++)
        job.out_strides[i] = stride_of(backend, fused->job.parts[i].out);
    backend->work.narrow.of = 0;
    squares->of = job.squares_out ? fused->job.parts[0].out : 0;
    squares->n_rows = n_rows;
    if (fused->job.norm != EW_VECTOR_PLAIN && !is_summed)
        rc = ew_cuda_launch(&backend->device, EW_CUDA_FEW_NORM, norm, (void *[]){&job}, err);
    return rc ? rc
              : ew_cuda_launch(&backend->device, CLASSES[fused->job.layout].kernels[n_tiles - 1], grid,
                               (void *[]){&job}, err);
}
