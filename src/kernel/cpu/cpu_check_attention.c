// Attention as a whole, on the tables of one layer of caches: against the reference's two passes in double, and timed
// by the length of the context.

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"
#include "kernel/cpu/cpu_backend.h"
#include "kernel/cpu/cpu_check.h"
#include "kernel/cpu/cpu_time.h"

#define BLOCK_TOKENS 32
#define REPEATS 3

// One sequence whose last n_tokens are attended. The caches of every layer are read, so that they come from memory
// where there are enough layers.
struct scene {
    struct ew_cpu_backend backend;
    struct ew_program program;
    struct ew_cache_group group;
    struct ew_op *ops; // [n_layers]
    struct ew_cpu_buffer shapes[2];
    float *buffers[2]; // queries, results
    struct ew_batch batch;
    struct ew_batch_seq seq;
    int32_t *blocks;
    const int32_t *tables[1];
    uint32_t context, n_tokens, n_layers;
    uint64_t scratch_floats;
    struct ew_pool *pool;
    _Atomic uint32_t next; // item of all layers
    struct ew_cpu_region region;
};

struct shape {
    uint32_t n_heads, n_kv_heads, dim, context, n_tokens, n_layers;
    enum ew_kv_dtype kv;
};

static void describe(struct scene *scene, const struct shape *shape)
{
    scene->group = (struct ew_cache_group){.kind = EW_CACHE_FULL,
                                           .n_layers = shape->n_layers,
                                           .n_kv_heads = shape->n_kv_heads,
                                           .k_dim = shape->dim,
                                           .v_dim = shape->dim};
    scene->program = (struct ew_program){
        .n_ops = shape->n_layers, .ops = scene->ops, .n_groups = 1, .groups = &scene->group};
    for (uint32_t i = 0; i < shape->n_layers; i++) {
        scene->ops[i] = (struct ew_op){.kind = EW_OP_ATTENTION};
        scene->ops[i].attention.n_heads = shape->n_heads;
        scene->ops[i].attention.n_kv_heads = shape->n_kv_heads;
        scene->ops[i].attention.head_dim = scene->ops[i].attention.v_dim = shape->dim;
        scene->ops[i].attention.scale = 1 / sqrtf((float)shape->dim);
        scene->ops[i].attention.cache_layer = i;
        scene->ops[i].attention.sinks = EW_WEIGHT_NONE;
    }
    scene->tables[0] = scene->blocks;
    scene->seq = (struct ew_batch_seq){
        .n_tokens = shape->n_tokens, .n_past = shape->context - shape->n_tokens, .blocks = scene->tables};
    scene->batch = (struct ew_batch){.n_tokens = shape->n_tokens, .n_seqs = 1, .seqs = &scene->seq};
    scene->context = shape->context, scene->n_tokens = shape->n_tokens, scene->n_layers = shape->n_layers;
}

// The maps of a step, as the backend makes them.
static void map_tokens(struct scene *scene)
{
    struct ew_cpu_backend *backend = &scene->backend;

    backend->program = &scene->program;
    backend->batch = &scene->batch;
    backend->plan.buffers = scene->shapes;
    backend->work.buffers = scene->buffers;
    for (uint32_t i = 0; i < scene->n_tokens; i++)
        backend->work.tokens[i] = (struct ew_cpu_token){0, scene->seq.n_past + i};
    for (uint32_t i = 0; i < scene->n_tokens; i += EW_CPU_QUERY_TOKENS)
        backend->work.queries[backend->n_queries++] = (struct ew_cpu_query){
            i, EW_MIN(scene->n_tokens - i, EW_CPU_QUERY_TOKENS)};
    for (uint32_t i = 0; i * BLOCK_TOKENS < scene->context; i++)
        scene->blocks[i] = (int32_t)i;
}

static void carve_scene(struct scene *scene, const struct shape *shape, uint32_t n_threads,
                        struct ew_cpu_carver *carver)
{
    struct ew_cpu_workspace *work = &scene->backend.work;
    struct ew_cpu_cache *cache = &scene->backend.caches[0];
    uint32_t n_blocks = (shape->context + BLOCK_TOKENS - 1) / BLOCK_TOKENS, width = shape->n_heads * shape->dim;
    float **scratch = ew_cpu_carve(carver, n_threads * sizeof(*scratch));

    scene->blocks = ew_cpu_carve(carver, n_blocks * sizeof(*scene->blocks));
    work->tokens = ew_cpu_carve(carver, shape->n_tokens * sizeof(*work->tokens));
    work->queries = ew_cpu_carve(carver, shape->n_tokens * sizeof(*work->queries));
    for (int i = 0; i < 2; i++) {
        scene->shapes[i] = (struct ew_cpu_buffer){.width = width};
        scene->buffers[i] = ew_cpu_carve(carver, (uint64_t)shape->n_tokens * width * sizeof(float));
    }
    for (uint32_t i = 0; i < n_threads; i++) {
        float *floats = ew_cpu_carve(carver, scene->scratch_floats * sizeof(float));

        if (scratch)
            scratch[i] = floats;
    }
    work->scratch = scratch;
    cache->n_blocks = n_blocks;
    cache->data = ew_cpu_carve(carver, n_blocks * cache->block_bytes);
}

static int make_scene(struct scene *scene, const struct shape *shape, uint32_t n_threads)
{
    struct ew_limits limits = {
        .context_max = shape->context, .n_tokens_max = shape->n_tokens, .block_tokens = BLOCK_TOKENS, .kv = shape->kv};
    struct ew_cpu_carver carver = {0};
    int rc;

    scene->ops = ew_alloc_array(shape->n_layers, sizeof(*scene->ops));
    if (!scene->ops)
        return EW_ERR_MEMORY;
    describe(scene, shape);
    scene->scratch_floats = (ew_cpu_attention_scratch(&scene->program, &limits) + 15) & ~(uint64_t)15;
    rc = ew_cpu_cache_shape(&scene->backend.caches[0], &scene->group, &limits, NULL);
    if (rc == 0) {
        carve_scene(scene, shape, n_threads, &carver);
        rc = ew_cpu_region_map(&scene->region, carver.used, "attention that is checked", NULL);
    }
    if (rc)
        return rc;
    carver = (struct ew_cpu_carver){.base = scene->region.data};
    carve_scene(scene, shape, n_threads, &carver);
    describe(scene, shape);
    map_tokens(scene);
    return 0;
}

static void free_scene(struct scene *scene)
{
    ew_cpu_region_unmap(&scene->region);
    ew_free(scene->ops);
}

// ---- right --------------------------------------------------------------------------------------

static void fill_scene(struct scene *scene)
{
    const struct ew_op *op = &scene->ops[0];
    uint32_t width = op->attention.n_kv_heads * op->attention.head_dim;
    uint32_t n = scene->n_tokens * op->attention.n_heads * op->attention.head_dim;
    struct ew_rng rng = ew_rng_at(23, scene->context);

    for (uint32_t i = 0; i < n; i++)
        scene->buffers[0][i] = ew_rng_normal(&rng) * 2;
    for (uint32_t t = 0; t < scene->context; t++) {
        float *row = scene->buffers[1]; // not yet in use; a row of keys is no longer than one of queries

        for (uint32_t i = 0; i < width; i++)
            row[i] = ew_rng_normal(&rng);
        ew_cpu_cache_append(&scene->backend.ops, &scene->backend.caches[0], scene->blocks[t / BLOCK_TOKENS], 0,
                            t % BLOCK_TOKENS, row, row);
    }
}

static void attend(struct scene *scene, enum ew_kernels kernels)
{
    struct ew_cpu_step step = {.in = 0, .in2 = EW_CPU_NO_BUFFER, .in3 = EW_CPU_NO_BUFFER, .out = 1};

    scene->backend.config.kernels = kernels;
    ew_cpu_attention_run(&scene->backend, &step, 0, ew_cpu_attention_items(&scene->backend, &step),
                         scene->backend.work.scratch[0]);
}

// Values of about 1 weighed with shares that sum to 1; scores of about 10 err by 1e-6 of that, and shares with them.
static double compare_scene(struct scene *scene, const struct ew_cpu_ops *ref, const struct ew_cpu_ops *ops)
{
    uint64_t n = (uint64_t)scene->n_tokens * scene->shapes[1].width;
    float *want = ew_alloc_array(n, sizeof(*want));
    double worst = 0;

    if (!want)
        return INFINITY;
    scene->backend.ops = *ref;
    fill_scene(scene);
    attend(scene, EW_KERNELS_REFERENCE);
    memcpy(want, scene->buffers[1], n * sizeof(*want));
    scene->backend.ops = *ops;
    attend(scene, EW_KERNELS_AUTO);
    for (uint64_t i = 0; i < n; i++) {
        double error = fabs((double)scene->buffers[1][i] - want[i]) / 3e-5;

        if (!(error <= worst))
            worst = isnan(error) ? INFINITY : error;
    }
    ew_free(want);
    return worst;
}

void ew_cpu_check_attention(const struct ew_cpu_ops *ref, const struct ew_cpu_ops *ops, enum ew_kv_dtype kv,
                            struct ew_cpu_check *out)
{
    static const struct shape SHAPES[] = {{4, 4, 16, 1, 1, 1, 0}, {8, 2, 64, 31, 9, 1, 0}, {3, 1, 80, 77, 21, 1, 0},
                                          {8, 1, 128, 150, 1, 1, 0}};

    for (uint32_t i = 0; i < EW_COUNT_OF(SHAPES); i++, out->n_cases++) {
        struct scene scene = {0};
        struct shape shape = SHAPES[i];
        double error;

        shape.kv = kv;
        error = make_scene(&scene, &shape, 1) ? INFINITY : compare_scene(&scene, ref, ops);
        out->error = fmax(out->error, error);
        free_scene(&scene);
    }
}

// ---- fast ---------------------------------------------------------------------------------------

static void run_scene(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct scene *scene = ctx;
    struct ew_cpu_step step = {.in = 0, .in2 = EW_CPU_NO_BUFFER, .in3 = EW_CPU_NO_BUFFER, .out = 1};
    uint32_t n = ew_cpu_attention_items(&scene->backend, &step), at;

    while ((at = atomic_fetch_add(&scene->next, 1)) < n * scene->n_layers) {
        step.op = at / n;
        ew_cpu_attention_run(&scene->backend, &step, at % n, at % n + 1, scene->backend.work.scratch[thread]);
    }
    ew_pool_barrier(scene->pool);
    if (thread == 0)
        scene->next = 0;
}

void ew_cpu_time_attention(const struct ew_cpu_check_config *config, const struct ew_cpu_ops *ops, enum ew_kv_dtype kv,
                           uint32_t context, uint32_t n_tokens, struct ew_cpu_check *out)
{
    struct shape shape = {32, 8, 128, context, n_tokens, 1, kv}; // a layer of the usual 8 B
    uint64_t layer = (uint64_t)context * 8 * 2 * (128 * ew_cpu_kv_bytes(kv) + (kv >= EW_KV_F8 ? 2 : 0));
    double keys = n_tokens * (context - (n_tokens - 1) / 2.0), best = INFINITY;
    struct scene scene = {0};

    if (!config->pool)
        return;
    if (n_tokens == 1)
        shape.n_layers = (uint32_t)(1 + config->stream_bytes / layer);
    if (make_scene(&scene, &shape, ew_pool_threads(config->pool)) == 0) {
        memset(scene.region.data + ((uint8_t *)scene.backend.caches[0].data - scene.region.data), 0x3C,
               scene.backend.caches[0].n_blocks * scene.backend.caches[0].block_bytes);
        for (uint64_t i = 0; i < (uint64_t)n_tokens * scene.shapes[0].width; i++)
            scene.buffers[0][i] = (float)(i % 13) * 0.1f - 0.6f;
        scene.backend.ops = *ops;
        scene.pool = config->pool;
        for (int i = 0; i < REPEATS; i++) {
            double start = ew_clock_s();

            ew_pool_all(config->pool, run_scene, &scene);
            best = fmin(best, ew_clock_s() - start);
        }
        out->seconds = best / shape.n_layers;
        out->bytes = n_tokens == 1 ? (double)layer : 0;
        out->flops = keys * 32 * 128 * 2 * 2;
    }
    free_scene(&scene);
}
