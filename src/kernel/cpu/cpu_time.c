#include "kernel/cpu/cpu_time.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "kernel/cpu/cpu_backend.h"

#define COLS 4096 // of timed rows and matrices
#define REPEATS 5
#define ROUNDS 64 // of a row kernel in one measurement

// ---- rows: in the first cache, one row a thread -------------------------------------------------

struct row_job {
    const struct ew_cpu_ops *ops;
    enum ew_cpu_time_row row;
    int which;
    float *data; // [n_threads, 4 * COLS]
};

#define STATE_DIM 64 // squared it is COLS

static void run_scan(const struct ew_cpu_ops *ops, float *state, float *in, float *out, bool is_delta)
{
    struct ew_cpu_scan scan = {.state = state,
                               .q = in,
                               .k = in + STATE_DIM,
                               .v = in + 2 * STATE_DIM,
                               .decay = in + 3 * STATE_DIM,
                               .gain = in + 3 * STATE_DIM + 1,
                               .out = out,
                               .n_tokens = 1,
                               .k_dim = STATE_DIM,
                               .v_dim = STATE_DIM,
                               .is_delta = is_delta};

    in[3 * STATE_DIM] = 0.5f, in[3 * STATE_DIM + 1] = 0.1f; // the state stays finite, round after round
    ops->scan(&scan);
}

static void run_conv(const struct ew_cpu_ops *ops, float *out, const float *in)
{
    const float *rows[] = {in, in + COLS / 4, in + COLS / 2, in + 3 * COLS / 4};

    ops->conv(out, rows, in, COLS / 4, NULL, EW_COUNT_OF(rows), COLS / 4);
}

#define HEAD_DIM 128
#define QUERIES (COLS / HEAD_DIM) // as many as keys

static void run_row(const struct row_job *job, float *a)
{
    float *b = a + COLS, *out = a + 2 * COLS, *more = a + 3 * COLS;
    const struct ew_cpu_ops *ops = job->ops;

    switch (job->row) {
    case EW_CPU_TIME_NORM:
        ops->norm[job->which](out, a, b, NULL, COLS, 1e-5f, 0);
        break;
    case EW_CPU_TIME_ACT:
        ops->act(out, a, COLS, (enum ew_act)job->which);
        break;
    case EW_CPU_TIME_GLU:
        ops->glu(out, a, b, COLS, (enum ew_act)job->which, 0, 0);
        break;
    case EW_CPU_TIME_QUANTISE:
        ops->quantise(a, COLS, (int8_t *)out, more, (int16_t *)(more + COLS / 2));
        break;
    case EW_CPU_TIME_EXP:
        ops->exp_sum(a, COLS, 0);
        break;
    case EW_CPU_TIME_CONV:
        run_conv(ops, out, a);
        break;
    case EW_CPU_TIME_SCAN:
        run_scan(ops, a, b, out, job->which);
        break;
    case EW_CPU_TIME_ADD:
        ops->add(out, a, b, COLS, 0.5f);
        break;
    case EW_CPU_TIME_SCALE:
        ops->scale(out, a, COLS, 0.5f);
        break;
    case EW_CPU_TIME_SOFTCAP:
        ops->softcap(out, a, COLS, 30);
        break;
    case EW_CPU_TIME_ROPE:
        ops->rope(out, b, HEAD_DIM, COLS / HEAD_DIM, HEAD_DIM, (enum ew_rope_kind)job->which);
        break;
    case EW_CPU_TIME_KV:
        ops->kv_decode((enum ew_kv_dtype)job->which, a, (const uint16_t *)b, QUERIES, HEAD_DIM, out, HEAD_DIM);
        break;
    case EW_CPU_TIME_SCORES:
        ops->scores(out, a, QUERIES, b, HEAD_DIM);
        break;
    case EW_CPU_TIME_VALUES:
        ops->values(out, more, a, EW_CPU_KEYS, QUERIES, b, EW_CPU_KEYS, HEAD_DIM);
        break;
    }
}

_Static_assert(QUERIES == EW_CPU_KEYS, "tiles of one size");

// What an element costs: additions, multiplications and comparisons of f32 as math_tmpl.h writes them (exp has 20),
// and bytes that are read and written, all in the first cache.
static void cost_of(enum ew_cpu_time_row row, int which, double *flops, double *bytes)
{
    static const double ACTS[] = {[EW_ACT_SILU] = 22, [EW_ACT_GELU] = 43,  [EW_ACT_GELU_TANH] = 29,
                                  [EW_ACT_RELU] = 1,  [EW_ACT_RELU2] = 2,  [EW_ACT_SIGMOID] = 22,
                                  [EW_ACT_TANH] = 24};
    static const struct {
        double flops, bytes;
    } ROWS[] = {[EW_CPU_TIME_NORM] = {4, 16},    [EW_CPU_TIME_ACT] = {0, 8},    [EW_CPU_TIME_GLU] = {1, 12},
                [EW_CPU_TIME_QUANTISE] = {3, 5}, [EW_CPU_TIME_EXP] = {22, 8},   [EW_CPU_TIME_ADD] = {2, 12},
                [EW_CPU_TIME_SCALE] = {1, 8},    [EW_CPU_TIME_SOFTCAP] = {26, 8}, [EW_CPU_TIME_ROPE] = {3, 8},
                [EW_CPU_TIME_CONV] = {2, 9},     [EW_CPU_TIME_SCAN] = {4, 8},
                [EW_CPU_TIME_KV] = {0, 4},       [EW_CPU_TIME_SCORES] = {2 * EW_CPU_KEYS, 8},
                [EW_CPU_TIME_VALUES] = {2 * EW_CPU_KEYS, 12}};

    *flops = ROWS[row].flops, *bytes = ROWS[row].bytes;
    if (row == EW_CPU_TIME_ACT || row == EW_CPU_TIME_GLU)
        *flops += ACTS[which];
    if (row == EW_CPU_TIME_NORM && which == EW_NORM_LAYER)
        *flops += 2;
    if (row == EW_CPU_TIME_SCAN && which) // the delta rule reads the state twice
        *flops += 2, *bytes += 4;
    if (row == EW_CPU_TIME_KV)
        *bytes += which == EW_KV_F32 ? 4 : which == EW_KV_F16 ? 2 : 1, *flops += which >= EW_KV_F8;
}

static void run_rows(void *ctx, uint32_t thread, uint32_t n_threads)
{
    const struct row_job *job = ctx;

    for (uint32_t i = 0; i < ROUNDS; i++)
        run_row(job, job->data + (uint64_t)thread * 4 * COLS);
}

static double best_of(struct ew_pool *pool, ew_pool_all_fn fn, void *ctx)
{
    double best = INFINITY;

    for (uint32_t i = 0; i <= REPEATS; i++) { // the first one only warms
        double start = ew_clock_s();

        ew_pool_all(pool, fn, ctx);
        if (i > 0)
            best = fmin(best, ew_clock_s() - start);
    }
    return best;
}

void ew_cpu_time_rows(const struct ew_cpu_check_config *config, const struct ew_cpu_ops *ops, enum ew_cpu_time_row row,
                      int which, struct ew_cpu_check *out)
{
    struct row_job job = {.ops = ops, .row = row, .which = which};
    uint32_t n_threads;

    if (!config->pool)
        return;
    n_threads = ew_pool_threads(config->pool);
    job.data = ew_alloc_aligned((uint64_t)n_threads * 4 * COLS * sizeof(float));
    if (!job.data)
        return;
    for (uint64_t i = 0; i < (uint64_t)n_threads * 4 * COLS; i++)
        job.data[i] = (float)(i % 17) * 0.1f - 0.8f;
    out->seconds = best_of(config->pool, run_rows, &job) / ROUNDS / n_threads;
    cost_of(row, which, &out->flops, &out->cache_bytes);
    out->flops *= COLS, out->cache_bytes *= COLS;
    ew_free(job.data);
}

// ---- products -----------------------------------------------------------------------------------

struct linear_job {
    ew_cpu_linear_fn run;
    struct ew_pool *pool;
    struct ew_cpu_linear linear;
    _Atomic uint32_t next;
    uint32_t share;
};

static void run_linear(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct linear_job *job = ctx;
    uint32_t n = ew_cpu_tiles(job->linear.matrix->rows), from;

    while ((from = atomic_fetch_add(&job->next, job->share)) < n)
        job->run(&job->linear, from, EW_MIN(from + job->share, n));
    ew_pool_barrier(job->pool);
    if (thread == 0)
        job->next = 0;
}

// Carves matrix, activations and results out of one region. Bytes of 0x3C are ordinary numbers in every layout.
static int set_up(struct linear_job *timed, struct ew_cpu_matrix *matrix, struct ew_cpu_q8 *q8,
                  struct ew_cpu_region *region, uint32_t n_rows)
{
    uint64_t bytes = ew_cpu_matrix_shape(matrix);
    struct ew_cpu_carver carver = {0};

    for (int pass = 0; pass < 2; pass++) {
        matrix->data = ew_cpu_carve(&carver, bytes);
        timed->linear.x = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS * sizeof(float));
        timed->linear.out = ew_cpu_carve(&carver, (uint64_t)n_rows * matrix->rows * sizeof(float));
        q8->q = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS);
        q8->scale = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS / EW_CPU_GROUP * sizeof(float));
        q8->scaled_sum = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS / EW_CPU_GROUP * sizeof(float));
        q8->sum = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS / EW_CPU_GROUP * 2 * sizeof(int16_t));
        q8->bf16 = ew_cpu_carve(&carver, (uint64_t)n_rows * COLS * sizeof(uint16_t));
        if (pass == 0) {
            int rc = ew_cpu_region_map(region, carver.used, "the timed matrix", NULL);

            if (rc)
                return rc;
            memset(region->data, 0x3C, region->bytes);
            carver = (struct ew_cpu_carver){.base = region->data};
        }
    }
    return 0;
}

void ew_cpu_time_linear(const struct ew_cpu_check_config *config, ew_cpu_linear_fn linear, enum ew_cpu_layout layout,
                        uint32_t n_rows, struct ew_cpu_check *out)
{
    struct ew_cpu_matrix matrix = {.layout = layout, .cols = COLS, .rows = EW_CPU_TILE_ROWS};
    struct ew_cpu_q8 q8 = {.q_stride = COLS, .group_stride = COLS / EW_CPU_GROUP};
    struct linear_job timed = {.run = linear, .pool = config->pool};
    struct ew_cpu_region region;
    uint64_t bytes;

    if (!config->pool)
        return;
    bytes = n_rows == 1 ? config->stream_bytes : EW_MIN(config->stream_bytes, 16u << 20);
    matrix.rows = (uint32_t)(bytes / ew_cpu_matrix_shape(&matrix)) * EW_CPU_TILE_ROWS;
    timed.share = EW_MAX(1, ew_cpu_tiles(matrix.rows) / (ew_pool_threads(config->pool) * 8));
    if (set_up(&timed, &matrix, &q8, &region, n_rows))
        return;
    timed.linear.matrix = &matrix;
    timed.linear.q8 = &q8;
    timed.linear.n_rows = n_rows;
    timed.linear.x_stride = COLS;
    timed.linear.out_stride = matrix.rows;
    out->seconds = best_of(config->pool, run_linear, &timed);
    out->bytes = n_rows == 1 ? (double)ew_cpu_matrix_shape(&matrix) : 0;
    out->flops = 2.0 * matrix.rows * COLS * n_rows;
    ew_cpu_region_unmap(&region);
}

// ---- the machine's peak -------------------------------------------------------------------------

#define PEAK_ROUNDS (4u << 20) // some 10 ms

struct peak_job {
    struct ew_cpu_ops ops;
    struct {
        _Alignas(64) float sink;
        double flops;
    } each[EW_POOL_THREADS_MAX];
};

static void run_multiply(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct peak_job *job = ctx;

    job->each[thread].flops = job->ops.multiply_add(PEAK_ROUNDS, &job->each[thread].sink);
}

int ew_cpu_measure_flops(struct ew_pool *pool, uint32_t isa_mask, double *flops_s, struct ew_error *err)
{
    struct peak_job *job = ew_alloc_aligned(sizeof(*job));
    double seconds;

    if (!job)
        return ew_fail_memory(err, sizeof(*job), "the measurement");
    ew_cpu_ops_init(&job->ops, isa_mask);
    seconds = best_of(pool, run_multiply, job);
    *flops_s = job->each[0].flops * ew_pool_threads(pool) / seconds;
    ew_free(job);
    return 0;
}
