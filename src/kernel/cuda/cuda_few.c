// Steps with several sequences: the products that cuda_fuse.c put together for one row of activations, by the kernels
// of ptx/few.c for up to 32 rows. These take their activations in 16 bits and in an order of their own: a kernel before
// them, which normalises, leaves them like that, and so does a gate for the product behind it.

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
#define TABLE {SIZES(TABLE), 32, 1, 0, EW_FEW_F16}
#define TABLE_16 {SIZES(TABLE_16), 32, 1, 0, EW_FEW_F16}

static const struct {
    enum ew_cuda_kernel kernels[SIZES_COUNT];
    uint32_t columns, planes, bits; // as COLUMNS, PLANES and BITS in ptx/few.c
    enum ew_few_form form;
} CLASSES[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F16] = {SIZES(F16), 8, 0, 0, EW_FEW_F16},
    [EW_CUDA_BF16] = {SIZES(BF16), 8, 0, 0, EW_FEW_BF16},
    [EW_CUDA_I8] = {SIZES(I8), 16, 1, 0, EW_FEW_F16},
    [EW_CUDA_U4] = {SIZES(U4), 32, 2, 0, EW_FEW_F16_EXCHANGED},
    [EW_CUDA_U4_MIN] = {SIZES(U4), 32, 2, 0, EW_FEW_F16_EXCHANGED},
    [EW_CUDA_F8] = {SIZES(F8), 16, 1, 0, EW_FEW_F16_EXCHANGED},
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
    [EW_CUDA_U5] = {SIZES(U5), 32, 2, 1, EW_FEW_F16_EXCHANGED},
    [EW_CUDA_U5_MIN] = {SIZES(U5), 32, 2, 1, EW_FEW_F16_EXCHANGED},
    [EW_CUDA_U6] = {SIZES(U6), 32, 1, 2, EW_FEW_F16_EXCHANGED},
};

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return (n + by - 1) / by;
}

uint64_t ew_cuda_few_arrived_bytes(const struct ew_cuda_backend *backend)
{
    return (uint64_t)backend->device.n_multiprocessors * sizeof(uint32_t);
}

// In whole token tiles.
uint64_t ew_cuda_few_staged_bytes(const struct ew_program *program, uint32_t n_tokens_max)
{
    uint64_t cols = 0, n_tokens = EW_MIN(n_tokens_max, EW_FEW_TOKENS_MAX);

    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (program->weights[i].is_matrix)
            cols = EW_MAX(cols, program->weights[i].cols);
    }
    return cols * ((n_tokens + TOKEN_TILE - 1) / TOKEN_TILE * TOKEN_TILE) * sizeof(uint16_t);
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

bool ew_cuda_few_group(const struct ew_cuda_backend *backend, uint32_t n_tiles, struct ew_few_job *job,
                       enum ew_cuda_kernel *kernel, uint32_t *shared_bytes)
{
    uint32_t layout = job->v.layout, ring = EW_FEW_RING_BYTES(CLASSES[layout].planes, CLASSES[layout].bits);

    if (!CLASSES[layout].columns)
        return false;
    job->form = CLASSES[layout].form;
    *kernel = CLASSES[layout].kernels[n_tiles - 1];
    *shared_bytes = EW_FEW_THREADS / 32 * (ring + EW_FEW_SUM_BYTES(n_tiles)) + job->v.cols * n_tiles * TOKEN_TILE * 2;
    return *shared_bytes + STATIC_BYTES <= (uint32_t)backend->device.shared_bytes_max;
}

// ---- shares -------------------------------------------------------------------------------------

// How a product is shared out, as find_share in ptx/few.c does it.
struct sharing {
    uint32_t n_splits, n_parts, n_groups, threads, shared_bytes;
    double cost;
};

// Estimates in clock cycles, fitted to 99 measurements of 8 B q8_0 on compute capability 9.0 (7 % off on average).
#define CHUNK_CYCLES 131.0      // of a multiprocessor: a warp's chunk, bound by memory, but
#define CHUNK_CYCLES_MIN 478.0  // from one to a warp's next, and
#define CHUNK_CYCLES_TILE 89.0  // so many more for each token tile
#define SYNC_CYCLES 843.0       // of joining warps' sums, for each token tile
#define ACTIVATION_BYTES 36.0   // a cycle, as they are copied
#define JOIN_CYCLES 4547.0      // of joining blocks' sums: four rows of a token a thread

static void estimate(const struct ew_vector_job *job, uint32_t n_tiles, struct sharing *s)
{
    uint32_t at_once = EW_FEW_TILES / (job->is_glu ? 2 : 1), warps = s->threads / 32;
    uint32_t n_units = ceil_div(job->rows / TILE, s->n_groups);
    uint32_t n_chunks = ceil_div(job->cols / (CLASSES[job->layout].columns * 4), s->n_splits);
    uint32_t n_passes = ceil_div(n_units, warps / s->n_parts * at_once);
    uint32_t n_busy = EW_MIN(ceil_div(n_units, at_once) * s->n_parts, warps);
    double chunk = EW_MAX(CHUNK_CYCLES * n_busy, CHUNK_CYCLES_MIN + CHUNK_CYCLES_TILE * n_tiles);

    s->cost = n_passes * (ceil_div(n_chunks, s->n_parts) * chunk + (s->n_parts > 1 ? SYNC_CYCLES * n_tiles : 0)) +
              job->cols * 2.0 / s->n_splits * n_tiles * TOKEN_TILE / ACTIVATION_BYTES;
    if (s->n_splits > 1)
        s->cost += ceil_div(n_units * n_tiles * TILE * TOKEN_TILE / 4, s->threads) * JOIN_CYCLES;
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
        n_rows > EW_FEW_TOKENS_MAX || job->cols % 256 || stride_of(backend, job->x) % 4 ||
        stride_of(backend, job->normed) % 4)
        return false;
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++) {
        if (job->parts[i].rows % TILE)
            return false;
    }
    return find_sharing(backend, job, ceil_div(n_rows, TOKEN_TILE), &sharing);
}

// Whether it is a gate that leaves its result for the product behind it alone.
bool ew_cuda_few_stages(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows)
{
    return fused->is_narrow && ew_cuda_few_takes(backend, fused + fused->count, n_rows);
}

void ew_cuda_few_wrote(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows)
{
    struct ew_cuda_staged *staged = &backend->work.few_staged;

    staged->of = ew_cuda_few_stages(backend, fused, n_rows) ? fused->job.parts[0].out : 0;
    staged->turn ^= 1;
}

static int stage(struct ew_cuda_backend *backend, struct ew_few_job *job, struct ew_error *err)
{
    struct ew_cuda_grid grid = {job->n_tokens, ceil_div(job->v.cols / 8, EW_FEW_THREADS), 1, EW_FEW_THREADS, 0};

    return ew_cuda_launch(&backend->device, EW_CUDA_FEW_STAGE, grid, (void *[]){job}, err);
}

static struct ew_few_job job_of(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused,
                                uint32_t n_rows)
{
    const struct ew_cuda_staged *staged = &backend->work.few_staged;
    struct ew_few_job job = {
        .v = fused->job,
        .staged = staged->at[staged->turn],
        .partial = backend->work.few_partial,
        .arrived = backend->work.few_arrived,
        .x_stride = stride_of(backend, fused->job.x),
        .normed_stride = stride_of(backend, fused->job.normed),
        .residual_stride = stride_of(backend, fused->job.residual),
        .n_tokens = n_rows,
        .columns = CLASSES[fused->job.layout].columns,
        .form = CLASSES[fused->job.layout].form,
    };

    if (ew_cuda_few_stages(backend, fused, n_rows)) {
        const struct ew_cuda_fused *next = fused + fused->count;

        job.staged_out = staged->at[staged->turn ^ 1];
        job.out_columns = CLASSES[next->job.layout].columns;
        job.out_form = CLASSES[next->job.layout].form;
    }
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++)
        job.out_strides[i] = stride_of(backend, fused->job.parts[i].out);
    return job;
}

int ew_cuda_few(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                struct ew_error *err)
{
    uint32_t n_tiles = ceil_div(n_rows, TOKEN_TILE);
    struct ew_few_job job = job_of(backend, fused, n_rows);
    bool is_staged = backend->work.few_staged.of == fused->job.x;
    struct sharing sharing = {0};
    struct ew_cuda_grid grid;
    bool found = find_sharing(backend, &fused->job, n_tiles, &sharing);
    int rc = 0;

    EW_ASSERT(found); // ew_cuda_few_takes saw to it
    job.n_splits = sharing.n_splits;
    job.n_parts = sharing.n_parts;
    grid = (struct ew_cuda_grid){sharing.n_groups * sharing.n_splits, 1, 1, sharing.threads, sharing.shared_bytes};
    backend->work.narrow.of = 0;
    ew_cuda_few_wrote(backend, fused, n_rows);
    if (!is_staged)
        rc = stage(backend, &job, err);
    return rc ? rc
              : ew_cuda_launch(&backend->device, CLASSES[fused->job.layout].kernels[n_tiles - 1], grid,
                               (void *[]){&job}, err);
}
