// The CPU backend behind kernel/backend.h: create, size, load, prepare, step.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cpu/cpu_backend.h"
#include "platform/cpu.h"
#include "platform/topology.h"

#define QUERY_TOKENS_LEAST 8

static struct ew_cpu_backend *of(const struct ew_backend *backend)
{
    return (struct ew_cpu_backend *)backend;
}

static void cpu_destroy(struct ew_backend *base)
{
    struct ew_cpu_backend *backend = of(base);

    ew_cpu_region_unmap(&backend->trace_rows);
    ew_cpu_region_unmap(&backend->cache_region);
    ew_cpu_region_unmap(&backend->work.region);
    ew_arena_fini(&backend->plan_arena);
    ew_cpu_weights_unload(backend);
    ew_pool_destroy(backend->pool);
    ew_free(backend);
}

static int choose_ops(struct ew_cpu_backend *backend, struct ew_error *err)
{
    uint32_t cap = 0;
    int rc = ew_isa_cap(backend->config.cpu_max, &cap, err);

    if (rc)
        return rc;
    if (backend->config.kernels == EW_KERNELS_REFERENCE)
        ew_cpu_ops_init_reference(&backend->ops);
    else
        ew_cpu_ops_init(&backend->ops, ew_cpu_isa() & cap);
    if (backend->config.deterministic) // a prompt's tokens may be recomputed after an answer, or taken from one
        memset(backend->ops.linear_prompt, 0, sizeof(backend->ops.linear_prompt));
    return 0;
}

static int cpu_create(const struct ew_backend_config *config, struct ew_backend **out, struct ew_error *err)
{
    struct ew_cpu_backend *backend = ew_alloc(sizeof(*backend));
    struct ew_topology topology;
    int rc;

    *out = NULL;
    if (!backend)
        return ew_fail_memory(err, sizeof(*backend), "the CPU backend");
    backend->base.ops = &ew_backend_cpu;
    backend->config = *config;
    ew_topology_read(NULL, &topology);
    backend->n_threads = config->n_threads ? EW_MIN(config->n_threads, EW_POOL_THREADS_MAX) : topology.n_usable;
    rc = choose_ops(backend, err);
    if (rc == 0)
        rc = ew_pool_create(backend->n_threads, "ew-cpu", &backend->pool, err);
    if (rc) {
        cpu_destroy(&backend->base);
        return rc;
    }
    snprintf(backend->text, sizeof(backend->text), "cpu %s, %u thread%s", backend->ops.isa, backend->n_threads,
             backend->n_threads == 1 ? "" : "s");
    *out = &backend->base;
    return 0;
}

// ---- sizes --------------------------------------------------------------------------------------

static uint64_t rows_of(const struct ew_cpu_plan *plan, enum ew_cpu_rows rows, const struct ew_limits *limits)
{
    return rows == EW_CPU_ROWS_LOGITS  ? limits->n_logits_max
           : rows == EW_CPU_ROWS_PAIRS ? (uint64_t)limits->n_tokens_max * plan->n_active
                                       : limits->n_tokens_max;
}

static void carve_q8(struct ew_cpu_q8 *q8, struct ew_cpu_carver *carver, const struct ew_cpu_plan *plan,
                     uint64_t n_rows)
{
    uint32_t cols = plan->q8_cols_max;

    *q8 = (struct ew_cpu_q8){0};
    q8->q_stride = ((cols + 63) / 64 | 1) * 64; // an odd number of lines: no two of 64 neighbouring rows share a set
    q8->group_stride = q8->q_stride / EW_CPU_GROUP;
    if (plan->has_bf16 || plan->prompt_has_bf16)
        q8->bf16 = ew_cpu_carve(carver, n_rows * q8->q_stride * sizeof(*q8->bf16));
    if (!plan->has_q8 && !plan->prompt_has_q8)
        return;
    q8->q = ew_cpu_carve(carver, n_rows * q8->q_stride);
    q8->scale = ew_cpu_carve(carver, n_rows * q8->group_stride * sizeof(*q8->scale));
    q8->scaled_sum = ew_cpu_carve(carver, n_rows * q8->group_stride * sizeof(*q8->scaled_sum));
    q8->sum = ew_cpu_carve(carver, n_rows * q8->group_stride * 2 * sizeof(*q8->sum));
}

static void carve_pairs(struct ew_cpu_pairs *pairs, struct ew_cpu_carver *carver, uint64_t n_pairs, uint64_t n_experts)
{
    pairs->token = ew_cpu_carve(carver, n_pairs * sizeof(*pairs->token));
    pairs->place = ew_cpu_carve(carver, n_pairs * sizeof(*pairs->place));
    pairs->first = ew_cpu_carve(carver, (n_experts + 1) * sizeof(*pairs->first));
    pairs->used = ew_cpu_carve(carver, n_experts * sizeof(*pairs->used));
}

static uint64_t scratch_floats(const struct ew_program *program, const struct ew_limits *limits)
{
    uint64_t floats = EW_MAX(ew_cpu_attention_scratch(program, limits), ew_cpu_state_scratch(program));

    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (program->weights[i].is_matrix)
            floats = EW_MAX(floats, program->weights[i].cols);
    }
    for (uint32_t i = 0; i < program->n_ops; i++) {
        if (program->ops[i].kind == EW_OP_ROUTE)
            floats = EW_MAX(floats, program->ops[i].route.n_experts);
    }
    return (floats + 15) & ~(uint64_t)15;
}

// Lays out everything that a step needs; with carver->base NULL it only counts.
static void carve_workspace(const struct ew_cpu_backend *backend, const struct ew_cpu_plan *plan,
                            const struct ew_limits *limits, struct ew_cpu_carver *carver, struct ew_cpu_workspace *work)
{
    const struct ew_program *program = plan->program;
    uint64_t n_tokens = limits->n_tokens_max, floats = scratch_floats(program, limits);
    float **tables = ew_cpu_carve(carver, (plan->n_buffers + program->n_ropes + backend->n_threads) * sizeof(*tables));
    uint64_t n_pairs = n_tokens * plan->n_active;
    bool real = carver->base != NULL;

    work->buffers = tables;
    work->rope_rows = real ? tables + plan->n_buffers : NULL;
    work->scratch = real ? work->rope_rows + program->n_ropes : NULL;
    for (uint32_t i = 0; i < plan->n_buffers; i++) {
        float *data = ew_cpu_carve(carver, rows_of(plan, plan->buffers[i].rows, limits) * plan->buffers[i].width *
                                               sizeof(float));

        if (real)
            work->buffers[i] = data;
    }
    for (uint32_t i = 0; i < program->n_ropes; i++) {
        float *data = ew_cpu_carve(carver, n_tokens * program->ropes[i].n_dims * sizeof(float));

        if (real)
            work->rope_rows[i] = data;
    }
    for (uint32_t i = 0; i < backend->n_threads; i++) {
        float *data = ew_cpu_carve(carver, floats * sizeof(float));

        if (real)
            work->scratch[i] = data;
    }
    carve_q8(&work->q8, carver, plan, EW_MAX(EW_MAX(n_tokens, limits->n_logits_max), n_pairs));
    if (n_pairs)
        carve_pairs(&work->pairs, carver, n_pairs, plan->n_experts);
    work->tokens = ew_cpu_carve(carver, n_tokens * sizeof(*work->tokens));
    work->queries = ew_cpu_carve(carver, n_tokens * sizeof(*work->queries));
    work->spans = ew_cpu_carve(carver, limits->n_seqs_max * sizeof(*work->spans));
    work->selected = ew_cpu_carve(carver, limits->n_logits_max * sizeof(*work->selected));
    work->progress = ew_cpu_carve(carver, EW_MAX(plan->n_stages, plan->n_singles) * sizeof(*work->progress));
}

static int build_plan(const struct ew_cpu_backend *backend, const struct ew_program *program,
                      const struct ew_cpu_weight_plan *weights, struct ew_arena *arena, struct ew_cpu_plan *plan,
                      struct ew_error *err)
{
    struct ew_cpu_plan_need *needs = ew_arena_array(arena, program->n_weights + 1, sizeof(*needs));
    bool has_q8 = false, has_bf16 = false, has_prompt = false;
    int rc;

    if (!needs)
        return ew_fail_memory(err, program->n_weights, "the lowered program");
    for (uint32_t i = 0; i < program->n_weights; i++) {
        enum ew_cpu_layout layout = weights ? weights[i].layout : backend->matrices[i].layout;

        has_q8 |= ew_cpu_layout_wants_q8(layout), has_bf16 |= ew_cpu_layout_wants_bf16(layout);
        needs[i].q8 = ew_cpu_layout_wants_q8(layout) || ew_cpu_layout_wants_bf16(layout);
        needs[i].order = (weights ? weights[i].is_ordered : backend->matrices[i].order != NULL)
                             ? program->weights[i].source.order
                             : NULL;
        if (layout < EW_CPU_LAYOUT_COUNT && backend->ops.linear_prompt[layout])
            needs[i].q8 = has_prompt = true;
    }
    rc = ew_cpu_plan_build(plan, program, needs, arena, err);
    plan->has_q8 = has_q8, plan->has_bf16 = has_bf16;
    plan->has_prompt = has_prompt;
    plan->prompt_has_bf16 = has_bf16 || (has_prompt && backend->ops.prompt_takes_bf16);
    plan->prompt_has_q8 = has_prompt && !backend->ops.prompt_takes_bf16;
    return rc;
}

static int check_groups(const struct ew_program *program, struct ew_error *err)
{
    if (program->n_groups > EW_CPU_GROUPS_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the program has %u cache groups, the CPU backend at most %d",
                       program->n_groups, EW_CPU_GROUPS_MAX);
    return 0;
}

static int size_program(struct ew_cpu_backend *backend, const struct ew_program *program,
                        const struct ew_limits *limits, struct ew_arena *arena, struct ew_backend_sizes *out,
                        struct ew_error *err)
{
    struct ew_cpu_weight_plan *weights = ew_arena_array(arena, program->n_weights + 1, sizeof(*weights));
    struct ew_cpu_carver carver = {0};
    struct ew_cpu_workspace work;
    struct ew_cpu_plan plan;
    int rc;

    if (!weights)
        return ew_fail_memory(err, program->n_weights * sizeof(*weights), "the table of weights");
    rc = check_groups(program, err);
    if (rc == 0)
        rc = ew_cpu_weights_plan(backend, program, weights, &out->weight_bytes, err);
    if (rc == 0)
        rc = build_plan(backend, program, weights, arena, &plan, err);
    if (rc)
        return rc;
    carve_workspace(backend, &plan, limits, &carver, &work);
    out->workspace_bytes = carver.used;
    for (uint32_t i = 0; i < program->n_groups && rc == 0; i++) {
        struct ew_cpu_cache cache;

        rc = ew_cpu_cache_shape(&cache, &program->groups[i], limits, err);
        out->block_bytes[i] = rc ? 0 : cache.block_bytes;
    }
    return rc;
}

static int cpu_sizes(struct ew_backend *base, const struct ew_program *program, const struct ew_limits *limits,
                     struct ew_backend_sizes *out, struct ew_error *err)
{
    struct ew_arena arena;
    int rc;

    *out = (struct ew_backend_sizes){0};
    ew_arena_init(&arena, SIZE_MAX);
    rc = size_program(of(base), program, limits, &arena, out, err);
    ew_arena_fini(&arena);
    return rc;
}

// ---- load and prepare ---------------------------------------------------------------------------

static int cpu_load(struct ew_backend *base, const struct ew_program *program,
                    bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx, struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    int rc;

    EW_ASSERT(!backend->program);
    rc = ew_cpu_weights_load(backend, program, progress, ctx, err);
    if (rc)
        ew_cpu_weights_unload(backend);
    return rc;
}

static int map_caches(struct ew_cpu_backend *backend, struct ew_error *err)
{
    struct ew_cpu_carver carver = {0};
    uint64_t offset[EW_CPU_GROUPS_MAX];
    int rc = check_groups(backend->program, err);

    for (uint32_t i = 0; i < backend->program->n_groups && rc == 0; i++) {
        struct ew_cpu_cache *cache = &backend->caches[i];
        size_t bytes = 0;

        rc = ew_cpu_cache_shape(cache, &backend->program->groups[i], &backend->limits, err);
        if (rc)
            break;
        cache->n_blocks = backend->limits.n_blocks[i];
        offset[i] = carver.used;
        if (!ew_mul_size(cache->block_bytes, cache->n_blocks, &bytes) || bytes > INT64_MAX / EW_CPU_GROUPS_MAX)
            return ew_fail_memory(err, bytes, "the caches");
        ew_cpu_carve(&carver, bytes);
    }
    if (rc == 0)
        rc = ew_cpu_region_map(&backend->cache_region, carver.used, "the caches", err);
    for (uint32_t i = 0; i < backend->program->n_groups && rc == 0; i++)
        backend->caches[i].data = backend->cache_region.data + offset[i];
    return rc;
}

static int cpu_prepare(struct ew_backend *base, const struct ew_limits *limits, struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    struct ew_cpu_carver carver = {0};
    int rc;

    EW_ASSERT(backend->program && !backend->is_prepared);
    backend->limits = *limits;
    backend->limits.n_blocks = NULL; // the caller's array
    ew_arena_init(&backend->plan_arena, SIZE_MAX);
    rc = build_plan(backend, backend->program, NULL, &backend->plan_arena, &backend->plan, err);
    if (rc)
        return rc;
    carve_workspace(backend, &backend->plan, limits, &carver, &backend->work);
    rc = ew_cpu_region_map(&backend->work.region, carver.used, "the workspace", err);
    if (rc)
        return rc;
    carver = (struct ew_cpu_carver){.base = backend->work.region.data};
    carve_workspace(backend, &backend->plan, limits, &carver, &backend->work);
    backend->limits.n_blocks = limits->n_blocks;
    rc = map_caches(backend, err);
    backend->limits.n_blocks = NULL;
    backend->is_prepared = rc == 0;
    return rc;
}

static void cpu_trace(struct ew_backend *base, ew_trace_fn fn, void *ctx)
{
    struct ew_cpu_backend *backend = of(base);
    uint64_t width = 0;

    EW_ASSERT(backend->is_prepared);
    for (uint32_t i = 0; i < backend->plan.n_buffers; i++) {
        if (!backend->plan.buffers[i].is_exact)
            width = EW_MAX(width, backend->plan.buffers[i].width);
    }
    backend->trace = NULL;
    if (fn && !backend->trace_rows.data &&
        ew_cpu_region_map(&backend->trace_rows,
                          width * sizeof(float) *
                              EW_MAX(EW_MAX(1, backend->plan.n_active) * (uint64_t)backend->limits.n_tokens_max,
                                     backend->limits.n_logits_max),
                          "traced rows", NULL))
        return; // no memory: nothing is traced
    backend->trace = fn;
    backend->trace_ctx = ctx;
}

// ---- steps --------------------------------------------------------------------------------------

static int check_blocks(const struct ew_cpu_backend *backend, const struct ew_batch_seq *seq, uint32_t group,
                        struct ew_error *err)
{
    const struct ew_cpu_cache *cache = &backend->caches[group];
    const struct ew_cache_group *shape = &backend->program->groups[group];
    uint32_t end = shape->kind == EW_CACHE_STATE ? 1 : seq->n_past + seq->n_tokens, first = 0;

    if (shape->kind == EW_CACHE_WINDOW && seq->n_past + 1 > shape->window)
        first = (seq->n_past + 1 - shape->window) / cache->block_tokens;
    for (uint32_t i = first; (uint64_t)i * cache->block_tokens < end; i++) {
        int32_t block = seq->blocks[group][i];

        if (block < 0 || (uint32_t)block >= cache->n_blocks)
            return ew_fail(err, EW_ERR_USAGE, "block %u of a sequence is %d, but its pool has %u blocks", i, block,
                           cache->n_blocks);
    }
    return 0;
}

static int check_seq(const struct ew_cpu_backend *backend, const struct ew_batch_seq *seq, uint32_t first,
                     struct ew_error *err)
{
    uint32_t left = backend->batch->n_tokens - first;

    if (seq->first != first || seq->n_tokens == 0 || seq->n_tokens > left)
        return ew_fail(err, EW_ERR_USAGE, "the sequences of a batch do not follow each other");
    if (seq->no_cache && backend->plan.has_states)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "a program with states cannot run without a cache");
    if (seq->no_cache)
        return seq->n_past ? ew_fail(err, EW_ERR_USAGE, "a sequence without a cache cannot have a past") : 0;
    if (seq->n_past > backend->limits.context_max || seq->n_tokens > backend->limits.context_max - seq->n_past)
        return ew_fail(err, EW_ERR_LIMIT, "a sequence of %llu tokens is past the context of %u",
                       (unsigned long long)seq->n_past + seq->n_tokens, backend->limits.context_max);
    for (uint32_t group = 0; group < backend->program->n_groups; group++) {
        int rc = check_blocks(backend, seq, group, err);

        if (rc)
            return rc;
    }
    return 0;
}

static int check_token(const struct ew_cpu_backend *backend, const struct ew_op *op, uint32_t t, struct ew_error *err)
{
    const struct ew_batch *batch = backend->batch;
    bool by_segment = op->kind == EW_OP_POSITION && op->position.by_segment;
    int64_t row = op->kind == EW_OP_EMBED ? batch->token[t]
                  : by_segment            ? (batch->segment ? batch->segment[t] : 0)
                                          : (int64_t)batch->position[t] + op->position.first;

    if (op->kind == EW_OP_EMBED && row < 0 && batch->embedding)
        return 0;
    if (row < 0 || row >= backend->matrices[op->weight].rows)
        return ew_fail(err, EW_ERR_LIMIT, "%s %lld is outside the %u that the model has",
                       op->kind == EW_OP_EMBED ? "token id"
                       : by_segment            ? "token type"
                                               : "position",
                       (long long)row, backend->matrices[op->weight].rows);
    return 0;
}

static int check_tokens(const struct ew_cpu_backend *backend, struct ew_error *err)
{
    for (uint32_t i = 0; i < backend->program->n_ops; i++) {
        const struct ew_op *op = &backend->program->ops[i];

        if (op->kind != EW_OP_EMBED && op->kind != EW_OP_POSITION)
            continue;
        for (uint32_t t = 0; t < backend->batch->n_tokens; t++) {
            int rc = check_token(backend, op, t, err);

            if (rc)
                return rc;
        }
    }
    return 0;
}

static int check_batch(const struct ew_cpu_backend *backend, struct ew_error *err)
{
    const struct ew_batch *batch = backend->batch;
    uint32_t first = 0, n_logits = 0;

    if (batch->n_tokens == 0 || batch->n_tokens > backend->limits.n_tokens_max ||
        batch->n_seqs > backend->limits.n_seqs_max || batch->n_logits > backend->limits.n_logits_max)
        return ew_fail(err, EW_ERR_LIMIT, "a step of %u tokens, %u sequences and %u logits is past what was prepared",
                       batch->n_tokens, batch->n_seqs, batch->n_logits);
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        int rc = check_seq(backend, &batch->seqs[i], first, err);

        if (rc)
            return rc;
        first += batch->seqs[i].n_tokens;
    }
    for (uint32_t i = 0; i < batch->n_tokens; i++)
        n_logits += batch->want_logits[i] != 0;
    if (first != batch->n_tokens || n_logits != batch->n_logits)
        return ew_fail(err, EW_ERR_USAGE, "the tokens of a batch do not add up");
    return check_tokens(backend, err);
}

static void add_span(struct ew_cpu_backend *backend, const struct ew_batch_seq *seq)
{
    struct ew_cpu_span *spans = backend->work.spans;
    bool is_prompt = seq->is_prompt && backend->plan.has_prompt;

    if (backend->n_spans == 0 || spans[backend->n_spans - 1].is_prompt != is_prompt)
        spans[backend->n_spans++] = (struct ew_cpu_span){.first = seq->first, .is_prompt = is_prompt};
    spans[backend->n_spans - 1].n_rows += seq->n_tokens;
}

// A work item of attention brings its keys and values into place once for all its queries: many are better, as long as
// every thread finds enough items.
static uint32_t query_tokens(const struct ew_cpu_backend *backend)
{
    uint32_t n = EW_CPU_QUERY_TOKENS;

    while (n > QUERY_TOKENS_LEAST && backend->batch->n_tokens / n < 2 * backend->n_threads)
        n /= 2;
    return n;
}

// Fills the maps from rows to tokens and from tokens to sequences.
static void map_tokens(struct ew_cpu_backend *backend)
{
    const struct ew_batch *batch = backend->batch;
    uint32_t n_selected = 0, n_tokens = query_tokens(backend);

    backend->n_queries = backend->n_spans = 0;
    for (uint32_t s = 0; s < batch->n_seqs; s++) {
        const struct ew_batch_seq *seq = &batch->seqs[s];

        add_span(backend, seq);
        for (uint32_t i = 0; i < seq->n_tokens; i++)
            backend->work.tokens[seq->first + i] = (struct ew_cpu_token){s, seq->n_past + i};
        for (uint32_t i = 0; i < seq->n_tokens; i += n_tokens)
            backend->work.queries[backend->n_queries++] = (struct ew_cpu_query){seq->first + i,
                                                                                EW_MIN(seq->n_tokens - i, n_tokens)};
    }
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        if (batch->want_logits[t])
            backend->work.selected[n_selected++] = t;
    }
}

static int cpu_submit(struct ew_backend *base, const struct ew_batch *batch, struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    int rc;

    EW_ASSERT(backend->is_prepared);
    backend->batch = batch;
    rc = check_batch(backend, err);
    if (rc)
        return rc;
    map_tokens(backend);
    memset(backend->work.progress, 0,
           EW_MAX(backend->plan.n_stages, backend->plan.n_singles) * sizeof(*backend->work.progress));
    ew_cpu_step_run(backend);
    return 0;
}

static int cpu_wait(struct ew_backend *base, const float **logits, struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);

    *logits = backend->work.buffers[backend->plan.result];
    return 0;
}

// ---- caches -------------------------------------------------------------------------------------

static int check_block(const struct ew_cpu_backend *backend, uint32_t group, int32_t block, uint32_t n_tokens,
                       struct ew_error *err)
{
    if (group >= backend->program->n_groups || block < 0 || (uint32_t)block >= backend->caches[group].n_blocks ||
        n_tokens > backend->caches[group].block_tokens)
        return ew_fail(err, EW_ERR_USAGE, "there is no block %d with %u tokens in cache group %u", block, n_tokens,
                       group);
    return 0;
}

static int cpu_copy_block(struct ew_backend *base, uint32_t group, int32_t from, int32_t to, struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    int rc = check_block(backend, group, from, 0, err);

    if (rc == 0)
        rc = check_block(backend, group, to, 0, err);
    if (rc == 0 && from != to) {
        const struct ew_cpu_cache *cache = &backend->caches[group];

        memcpy(cache->data + (uint64_t)to * cache->block_bytes, cache->data + (uint64_t)from * cache->block_bytes,
               cache->block_bytes);
    }
    return rc;
}

static int cpu_export_block(struct ew_backend *base, uint32_t group, int32_t block, uint32_t n_tokens, float *out,
                            struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    int rc = check_block(backend, group, block, n_tokens, err);

    if (rc == 0)
        ew_cpu_cache_export(&backend->ops, &backend->caches[group], block, n_tokens, out);
    return rc;
}

static int cpu_import_block(struct ew_backend *base, uint32_t group, int32_t block, uint32_t n_tokens, const float *in,
                            struct ew_error *err)
{
    struct ew_cpu_backend *backend = of(base);
    int rc = check_block(backend, group, block, n_tokens, err);

    if (rc == 0)
        ew_cpu_cache_import(&backend->ops, &backend->caches[group], block, n_tokens, in);
    return rc;
}

static enum ew_arith cpu_arith(const struct ew_backend *base)
{
    const struct ew_cpu_backend *backend = of(base);
    enum ew_arith arith = EW_ARITH_REFERENCE; // f32 activations

    for (uint32_t i = 0; i < backend->program->n_weights; i++) {
        if (ew_cpu_layout_wants_q8(backend->matrices[i].layout))
            return EW_ARITH_I8;
        if (ew_cpu_layout_wants_bf16(backend->matrices[i].layout))
            arith = EW_ARITH_BF16;
    }
    return arith;
}

static const char *cpu_describe(const struct ew_backend *base)
{
    return of(base)->text;
}

const struct ew_backend_ops ew_backend_cpu = {
    .name = "cpu",
    .create = cpu_create,
    .destroy = cpu_destroy,
    .sizes = cpu_sizes,
    .load = cpu_load,
    .prepare = cpu_prepare,
    .trace = cpu_trace,
    .submit = cpu_submit,
    .wait = cpu_wait,
    .copy_block = cpu_copy_block,
    .export_block = cpu_export_block,
    .import_block = cpu_import_block,
    .arith = cpu_arith,
    .describe = cpu_describe,
};
