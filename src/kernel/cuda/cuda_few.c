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

// ---- shares -------------------------------------------------------------------------------------

// How a product is shared out, as find_share in ptx/few.c does it. Splits are blocks of a cluster where there are
// clusters.
struct sharing {
    uint32_t n_splits, n_parts, n_groups, row_warps, n_passes, n_boxes, box_bytes, shared_bytes;
    bool is_cluster;
    double cost;
};

// Estimates in clock cycles, fitted to 114 measurements of 8 B q8_0 and bf16 on an H200 (10 % off on average).
#define START_CYCLES 6300.0     // until the first chunks are there, with the kernel before
#define CHUNK_CYCLES 130.0      // of a multiprocessor: a warp's chunk, bound by memory, but
#define CHUNK_CYCLES_MIN 411.0  // from one to a warp's next, and
#define CHUNK_CYCLES_TILE 50.0  // so many more for each token tile; and of each quarter, whose warps take turns,
#define CHUNK_CYCLES_HALF 345.0 // chunks of f16 and bf16, of
#define CHUNK_CYCLES_BYTE 470.0 // 8 bits, and
#define CHUNK_CYCLES_FOUR 900.0 // of nibbles
#define IDLE_CYCLES 800.0       // of each warp less than eight
#define PASS_CYCLES 300.0       // until sums are finished, or where they are joined,
#define PASS_CYCLES_JOIN 2000.0 // and
#define PASS_CYCLES_TILE 100.0  // for each token tile
#define ACTIVATION_BYTES 76.0   // a cycle, as they are copied
#define CLUSTER_CYCLES 600.0    // of each block more
#define SPLIT_CYCLES 4547.0     // of joining blocks' sums in memory: four rows of a token a thread

static double chunk_cycles(uint32_t columns, uint32_t n_busy)
{
    double one = columns == 8 ? CHUNK_CYCLES_HALF : columns == 16 ? CHUNK_CYCLES_BYTE : CHUNK_CYCLES_FOUR;

    return one * ceil_div(n_busy, 4);
}

static void estimate(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                     struct sharing *s)
{
    uint32_t at_once = EW_FEW_TILES / (job->is_glu ? 2 : 1), columns = CLASSES[job->layout].columns;
    uint32_t n_units = ceil_div(job->rows / TILE, s->n_groups), most = EW_FEW_THREADS / 32;
    uint32_t n_chunks = ceil_div(ceil_div(job->cols / (columns * 4), s->n_splits), s->n_parts);
    uint32_t n_busy = EW_MIN(ceil_div(n_units, at_once), s->row_warps) * s->n_parts;
    bool joins = s->n_parts > 1 || (s->is_cluster && s->n_splits > 1);
    double used = (double)(s->n_groups * s->n_splits) / backend->device.n_multiprocessors;
    double chunk = EW_MAX(CHUNK_CYCLES * n_busy * used, CHUNK_CYCLES_MIN + CHUNK_CYCLES_TILE * n_tiles);

    chunk = EW_MAX(chunk, chunk_cycles(columns, n_busy));
    s->cost = START_CYCLES + IDLE_CYCLES * (most - n_busy) +
              s->n_passes * (n_chunks * chunk + (joins ? PASS_CYCLES_JOIN : PASS_CYCLES) + PASS_CYCLES_TILE * n_tiles) +
              job->cols * 2.0 / s->n_splits * n_tiles * TOKEN_TILE / ACTIVATION_BYTES;
    if (s->is_cluster)
        s->cost += CLUSTER_CYCLES * (s->n_splits - 1);
    else if (s->n_splits > 1)
        s->cost += ceil_div(n_units * n_tiles * TILE * TOKEN_TILE / 4, s->row_warps * s->n_parts * 32) * SPLIT_CYCLES;
}

// Clusters of more than two blocks leave some multiprocessors of a GPU empty.
static uint32_t groups_of(const struct ew_cuda_backend *backend, const struct sharing *s)
{
    if (s->is_cluster && s->n_splits > 1)
        return backend->few_clusters[s->n_splits];
    return (uint32_t)backend->device.n_multiprocessors / s->n_splits;
}

static bool fits(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                 struct sharing *s)
{
    uint32_t chunk = CLASSES[job->layout].columns * 4, warps = s->row_warps * s->n_parts, n_groups, at_once, items;
    uint32_t cluster = s->is_cluster ? s->n_splits : 1;
    uint64_t tiles = (uint64_t)job->rows / TILE * (job->is_glu ? 2 : 1);

    s->n_groups = n_groups = groups_of(backend, s);
    if (!n_groups || s->n_splits * s->n_parts > job->cols / chunk)
        return false;
    at_once = s->row_warps * (job->is_glu ? 1 : EW_FEW_TILES);
    s->n_passes = ceil_div(ceil_div(job->rows / TILE, n_groups), at_once);
    s->n_boxes = s->n_passes > 1 && s->n_parts * cluster > 1 ? 2 : 1;
    items = at_once * n_tiles;
    s->box_bytes = EW_FEW_BOX_BYTES(items, job->is_glu ? 2 : 1, s->n_parts * cluster, cluster);
    s->shared_bytes = warps * EW_FEW_RING_BYTES(CLASSES[job->layout].planes, CLASSES[job->layout].bits) +
                      s->n_boxes * s->box_bytes +
                      ceil_div(job->cols / chunk, s->n_splits) * chunk * n_tiles * TOKEN_TILE * 2;
    return s->shared_bytes + STATIC_BYTES <= (uint32_t)backend->device.shared_bytes_max &&
           (s->n_splits == cluster || s->n_splits * tiles * n_tiles * 512 <= backend->work.few_partial_bytes);
}

// Of so many splits.
static bool find_best(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                      bool clusters, uint32_t least, uint32_t most, struct sharing *best)
{
    bool found = false;

    for (uint32_t n_splits = least; n_splits <= most; n_splits++) {
        for (uint32_t warps = 1; warps <= EW_FEW_THREADS / 32; warps++) {
            for (uint32_t n_parts = 1; n_parts <= warps; n_parts++) {
                struct sharing s = {.n_splits = n_splits, .n_parts = n_parts, .row_warps = warps / n_parts,
                                    .is_cluster = clusters};

                if (warps % n_parts || !fits(backend, job, n_tiles, &s))
                    continue;
                estimate(backend, job, n_tiles, &s);
                if (!found || s.cost < best->cost)
                    *best = s;
                found = true;
            }
        }
    }
    return found;
}

// What find_share in ptx/few.c reads.
static void share_out(struct ew_few_job *job, const struct sharing *s)
{
    uint32_t n_units = job->v.rows / TILE, n_chunks = job->v.cols / (CLASSES[job->v.layout].columns * 4);

    job->units = n_units / s->n_groups;
    job->units_more = n_units % s->n_groups;
    job->chunks = n_chunks / s->n_splits;
    job->chunks_more = n_chunks % s->n_splits;
    job->cluster = s->is_cluster ? s->n_splits : 1;
    job->row_warps = s->row_warps;
    job->n_parts = s->n_parts;
    job->n_boxes = s->n_boxes;
    job->box = s->box_bytes / 16;
    job->cluster_factor = EW_FEW_FACTOR(job->cluster);
    job->row_factor = EW_FEW_FACTOR(job->row_warps);
    job->part_factor = EW_FEW_FACTOR(job->n_parts);
}

// Of experts: blocks of eight warps, each with rows of its own.
bool ew_cuda_few_group(const struct ew_cuda_backend *backend, uint32_t n_tiles, uint32_t n_groups,
                       struct ew_few_job *job, enum ew_cuda_kernel *kernel, uint32_t *shared_bytes)
{
    uint32_t layout = job->v.layout, warps = EW_FEW_THREADS / 32;
    struct sharing s = {.n_splits = 1, .n_parts = 1, .n_groups = n_groups, .row_warps = warps, .n_boxes = 1,
                        .box_bytes = warps * EW_FEW_BOX_BYTES(EW_FEW_TILES * n_tiles, 1, 1, 1)};

    if (!CLASSES[layout].columns)
        return false;
    job->form = CLASSES[layout].form;
    share_out(job, &s);
    *kernel = CLASSES[layout].kernels[n_tiles - 1];
    *shared_bytes = warps * EW_FEW_RING_BYTES(CLASSES[layout].planes, CLASSES[layout].bits) + s.box_bytes +
                    job->v.cols * n_tiles * TOKEN_TILE * 2;
    return *shared_bytes + STATIC_BYTES <= (uint32_t)backend->device.shared_bytes_max;
}

// A kernel that was not loaded yet is not known to have clusters.
static bool find_sharing(const struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                         struct sharing *best)
{
    enum ew_cuda_kernel kernel = CLASSES[job->layout].kernels[n_tiles - 1];

    return (backend->device.clusters[kernel] &&
            find_best(backend, job, n_tiles, true, 1, EW_FEW_SPLITS_MAX, best)) ||
           find_best(backend, job, n_tiles, false, 1, EW_FEW_SPLITS_MAX, best);
}

// The self-test's matrices are small: its launches have splits by turns, as larger ones would.
static void show_splits(struct ew_cuda_backend *backend, const struct ew_vector_job *job, uint32_t n_tiles,
                        struct sharing *sharing)
{
    uint32_t n_splits = 1u << backend->few_shown++ % 3;

    (void)find_best(backend, job, n_tiles, backend->device.clusters[CLASSES[job->layout].kernels[n_tiles - 1]],
                    n_splits, n_splits, sharing);
}

// ---- steps --------------------------------------------------------------------------------------

// Clusters of so many blocks that have a multiprocessor each; 0 where the driver does not say.
static uint32_t count_clusters(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, uint32_t size)
{
    struct ew_cuda_launch_attribute cluster = {.id = EW_CUDA_LAUNCH_CLUSTER, .value.dims = {1, 1, size}};
    struct ew_cuda_launch_config config = {
        .grid = {1, 1, size}, .block = {EW_FEW_THREADS, 1, 1},
        .shared_bytes = (uint32_t)device->shared_bytes_max - STATIC_BYTES,
        .stream = device->stream, .attributes = &cluster, .n_attributes = 1,
    };
    int n = 0;

    if (!device->driver.cuOccupancyMaxActiveClusters ||
        device->driver.cuOccupancyMaxActiveClusters(&n, device->functions[kernel], &config) != EW_CUDA_SUCCESS)
        return 0;
    return (uint32_t)EW_MAX(n, 0);
}

static void find_clusters(struct ew_cuda_backend *backend, enum ew_cuda_kernel kernel)
{
    for (uint32_t size = 2; size <= EW_FEW_SPLITS_MAX && backend->device.clusters[kernel]; size++)
        backend->few_clusters[size] = count_clusters(&backend->device, kernel, size);
}

int ew_cuda_few_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT && !backend->config.deterministic; i++) {
        for (int size = 0; CLASSES[i].columns && size < SIZES_COUNT && rc == 0; size++) {
            rc = ew_cuda_allow_shared(&backend->device, CLASSES[i].kernels[size],
                                      (uint32_t)backend->device.shared_bytes_max - STATIC_BYTES, err);
            if (rc == 0 && !backend->few_clusters[2])
                find_clusters(backend, CLASSES[i].kernels[size]);
        }
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
        n_rows > EW_FEW_TOKENS_MAX || job->cols % EW_FEW_COLS_MULTIPLE || stride_of(backend, job->x) % 4 ||
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
        job.out_log = (uint32_t)__builtin_ctz(CLASSES[next->job.layout].columns);
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
    int rc = ew_cuda_kernel_need(&backend->device, CLASSES[fused->job.layout].kernels[n_tiles - 1], err);
    bool found = rc == 0 && find_sharing(backend, &fused->job, n_tiles, &sharing);

    if (rc)
        return rc;
    EW_ASSERT(found); // ew_cuda_few_takes saw to it
    if (backend->traces_launches)
        show_splits(backend, &fused->job, n_tiles, &sharing);
    share_out(&job, &sharing);
    grid = (struct ew_cuda_grid){sharing.n_groups, 1, sharing.n_splits, sharing.row_warps * sharing.n_parts * 32,
                                 sharing.shared_bytes, sharing.is_cluster ? sharing.n_splits : 1};
    backend->work.narrow.of = 0;
    ew_cuda_few_wrote(backend, fused, n_rows);
    if (!is_staged)
        rc = stage(backend, &job, err);
    return rc ? rc
              : ew_cuda_launch(&backend->device, CLASSES[fused->job.layout].kernels[n_tiles - 1], grid,
                               (void *[]){&job}, err);
}
