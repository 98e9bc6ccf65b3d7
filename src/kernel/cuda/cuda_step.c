// One step as a sequence of kernels, in the order of the plan.

#include "base/assert.h"
#include "kernel/cuda/cuda_experts.h"
#include "kernel/cuda/cuda_prefill.h"

#define WIDE 256         // threads of elementwise kernels
#define LINEAR_ROWS 8    // rows of a matrix that a block of a few-token product takes
#define LINEAR_THREADS 256
#define FEW_TOKENS (EW_CUDA_PREFILL_TOKENS - 1) // up to so many the matrix-vector kernels are used
#define ATTENTION_THREADS 128
#define LATENT_THREADS 256
#define SPLIT_TOKENS_MAX 64
#define BLOCKS_PER_SM 4  // of attention, to begin with

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

// What the launches of one step share.
struct launch {
    struct ew_cuda_backend *backend;
    const struct ew_op *op;
    const struct ew_cpu_step *step;
    const struct ew_batch *batch;
    uint32_t n_rows, n_tokens;
    uint32_t width;                                     // of the output
    uint64_t in, in2, in3, out;                         // addresses
    uint32_t in_stride, in2_stride, in3_stride, out_stride;
    struct ew_error *err;
};

static int run(const struct launch *l, enum ew_cuda_kernel kernel, struct ew_cuda_grid grid, void **arguments)
{
    return ew_cuda_launch(&l->backend->device, kernel, grid, arguments, l->err);
}

static uint32_t ceil_div(uint32_t n, uint32_t by)
{
    return n / by + (n % by != 0);
}

static struct ew_cuda_grid elements(const struct launch *l)
{
    return (struct ew_cuda_grid){ceil_div(l->width, WIDE), l->n_rows, 1, WIDE};
}

static uint64_t batch_at(const struct launch *l, uint64_t offset)
{
    return l->backend->work.batch.device + offset;
}

static uint64_t vector_of(const struct launch *l, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : l->backend->vectors[weight];
}

// ---- rows ---------------------------------------------------------------------------------------

static int launch_embed(struct launch *l)
{
    struct ew_cuda_matrix *m = &l->backend->matrices[l->op->weight];
    uint64_t token = batch_at(l, l->backend->work.batch.token);
    uint32_t layout = m->layout;
    float scale = l->op->embed.scale;

    return run(l, EW_CUDA_EMBED, (struct ew_cuda_grid){l->n_rows, ceil_div(l->width, WIDE), 1, WIDE},
               ARGUMENTS(&l->out, &l->out_stride, &token, &m->codes, &m->scales, &m->mins, &layout, &l->width, &scale));
}

static int launch_position(struct launch *l)
{
    struct ew_cuda_matrix *m = &l->backend->matrices[l->op->weight];
    bool by_segment = l->op->position.by_segment;
    uint64_t position = batch_at(l, by_segment ? l->backend->work.batch.segment : l->backend->work.batch.position);
    uint32_t layout = m->layout;
    int32_t first = by_segment ? 0 : l->op->position.first;

    return run(l, EW_CUDA_POSITION, (struct ew_cuda_grid){l->n_rows, ceil_div(l->width, WIDE), 1, WIDE},
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &position, &first, &m->codes, &m->scales,
                         &m->mins, &layout, &l->width));
}

static int launch_norm(struct launch *l)
{
    uint64_t weight = vector_of(l, l->op->weight), bias = vector_of(l, l->op->bias);
    uint32_t group = l->op->norm.group ? l->op->norm.group : l->width, per_group = l->op->norm.weight_per_group;
    uint32_t is_layer = l->op->norm.kind == EW_NORM_LAYER;
    uint32_t threads = EW_MIN(ceil_div(group, 128) * 32, 1024);
    float eps = l->op->norm.eps, offset = l->op->norm.weight_offset;

    return run(l, EW_CUDA_NORM, (struct ew_cuda_grid){l->n_rows, l->width / group, 1, threads},
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &weight, &bias, &group, &eps, &offset,
                         &per_group, &is_layer));
}

static int launch_rope(struct launch *l)
{
    const struct ew_rope *rope = &l->backend->program->ropes[l->op->rope.table];
    uint64_t table = l->backend->work.ropes[l->op->rope.table].table;
    uint32_t n_dims = rope->n_dims, first = l->op->rope.first, pairs = rope->kind == EW_ROPE_PAIRS;
    uint32_t n_heads = l->op->rope.n_heads, head_dim = l->op->rope.head_dim;

    return run(l, EW_CUDA_ROPE, (struct ew_cuda_grid){l->n_rows, 1, 1, WIDE},
               ARGUMENTS(&l->out, &l->out_stride, &table, &n_dims, &first, &n_heads, &head_dim, &pairs));
}

static int launch_rope_tables(struct launch *l)
{
    uint64_t position = batch_at(l, l->backend->work.batch.position);
    uint64_t seq = batch_at(l, l->backend->work.batch.token_seq);
    int rc = 0;

    for (uint32_t i = 0; i < l->backend->program->n_ropes && rc == 0; i++) {
        const struct ew_rope *rope = &l->backend->program->ropes[i];
        struct ew_cuda_rope *to = &l->backend->work.ropes[i];
        bool has_sections = l->backend->program->n_position_dims > 1;
        uint32_t half = rope->n_dims / 2, sections[3];

        for (int d = 0; d < 3; d++)
            sections[d] = has_sections ? rope->sections[d] : 0;
        rc = run(l, EW_CUDA_ROPE_TABLE, (struct ew_cuda_grid){l->n_tokens, 1, 1, 64},
                 ARGUMENTS(&to->table, &position, &l->n_tokens, &seq, &to->frequency, &to->scale, &half, &sections[0],
                           &sections[1], &sections[2]));
    }
    return rc;
}

static int launch_act(struct launch *l)
{
    uint32_t kind = l->op->act.act;
    float limit = l->op->act.limit, alpha = l->op->act.alpha;

    if (l->op->kind == EW_OP_ACT)
        return run(l, EW_CUDA_ACT, elements(l),
                   ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &l->width, &kind, &limit));
    return run(l, EW_CUDA_GLU, elements(l),
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &l->in2, &l->in2_stride, &l->width, &kind,
                         &limit, &alpha));
}

static int launch_add(struct launch *l)
{
    float scale = l->op->add.scale;

    return run(l, EW_CUDA_ADD, elements(l),
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &l->in2, &l->in2_stride, &l->width, &scale));
}

static int launch_scale(struct launch *l)
{
    bool by_row = l->op->kind == EW_OP_SCALE_BY;
    uint64_t by = by_row ? l->in2 : 0;
    uint32_t column = by_row ? l->op->scale_by.column : 0;
    float factor = by_row ? 1 : l->op->mul.scale;

    return run(l, EW_CUDA_SCALE, elements(l),
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &by, &l->in2_stride, &column, &l->width,
                         &factor));
}

static int launch_softcap(struct launch *l)
{
    float cap = l->op->softcap.cap;

    return run(l, EW_CUDA_SOFTCAP, elements(l),
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &l->width, &cap));
}

static int launch_gather(struct launch *l)
{
    uint64_t from = l->op->kind == EW_OP_SELECT ? batch_at(l, l->backend->work.batch.selected) : 0;
    uint64_t seq = batch_at(l, l->backend->work.batch.token_seq);
    uint64_t first = batch_at(l, l->backend->work.batch.seq_first);

    if (!from && l->in == l->out)
        return 0;
    if (from && l->op->select.is_mean)
        return run(l, EW_CUDA_GATHER_MEAN, elements(l),
                   ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &from, &seq, &first, &l->width));
    return run(l, EW_CUDA_GATHER, elements(l),
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &from, &l->width));
}

// ---- products -----------------------------------------------------------------------------------

static const struct {
    enum ew_cuda_kernel one, few;
} PRODUCTS[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F32] = {EW_CUDA_LINEAR_F32, EW_CUDA_LINEAR_F32},
    [EW_CUDA_F16] = {EW_CUDA_LINEAR_F16_1, EW_CUDA_LINEAR_F16_8},
    [EW_CUDA_BF16] = {EW_CUDA_LINEAR_BF16_1, EW_CUDA_LINEAR_BF16_8},
    [EW_CUDA_I8] = {EW_CUDA_LINEAR_I8_1, EW_CUDA_LINEAR_I8_8},
    [EW_CUDA_U4] = {EW_CUDA_LINEAR_U4_1, EW_CUDA_LINEAR_U4_8},
    [EW_CUDA_U4_MIN] = {EW_CUDA_LINEAR_U4_MIN_1, EW_CUDA_LINEAR_U4_MIN_8},
};

// What experts are chosen by is never rounded: another one might be chosen.
static bool takes_prefill(const struct launch *l, const struct ew_cuda_matrix *m)
{
    bool is_last = l->step->op + 1 == l->backend->program->n_ops;

    if (l->op->kind == EW_OP_EXPERTS)
        return ew_cuda_experts_take_tiles(l->backend, l->op, l->n_tokens);
    return ew_cuda_prefill_takes(l->backend, m, l->n_rows) && (is_last || l->op[1].kind != EW_OP_ROUTE);
}

static int launch_linear(struct launch *l)
{
    struct ew_cuda_matrix *m = &l->backend->matrices[l->op->weight];
    struct ew_cuda_work *work = &l->backend->work;
    uint64_t bias = vector_of(l, l->op->bias);
    uint32_t layout = m->layout;
    bool is_one = l->n_rows == 1 && !l->backend->config.deterministic;
    enum ew_cuda_kernel kernel = is_one ? PRODUCTS[m->layout].one : PRODUCTS[m->layout].few;
    struct ew_cuda_grid grid = {ceil_div(m->rows, LINEAR_ROWS), ceil_div(l->n_rows, FEW_TOKENS), 1, LINEAR_THREADS};
    struct ew_cuda_product product = {m, l->in, l->out, bias, l->in_stride, l->out_stride, l->n_rows};

    if (takes_prefill(l, m))
        return ew_cuda_prefill_product(l->backend, &product, l->err);
    if (ew_cuda_layout_wants_q8(m->layout))
        return run(l, kernel, grid,
                   ARGUMENTS(&l->out, &l->out_stride, &work->q8_codes, &work->q8_scales, &work->q8_sums, &m->codes,
                             &m->scales, &m->mins, &bias, &m->rows, &m->cols, &l->n_rows));
    if (ew_cuda_layout_is_quantised(m->layout))
        return run(l, EW_CUDA_LINEAR_ANY, grid,
                   ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &m->codes, &m->scales, &m->mins, &layout,
                             &bias, &m->rows, &m->cols, &l->n_rows));
    return run(l, kernel, grid,
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &m->codes, &bias, &m->rows, &m->cols,
                         &l->n_rows));
}

// The tensor cores take the activations as they are.
static int launch_quantise(struct launch *l)
{
    struct ew_cuda_matrix *m = &l->backend->matrices[l->op->weight];
    struct ew_cuda_work *work = &l->backend->work;
    uint64_t order = m->order;
    uint32_t cols = m->cols;

    if (takes_prefill(l, m))
        return 0;
    return run(l, EW_CUDA_QUANTISE,
               (struct ew_cuda_grid){ceil_div(cols / EW_CUDA_GROUP, WIDE / 32), l->n_rows, 1, WIDE},
               ARGUMENTS(&work->q8_codes, &work->q8_scales, &work->q8_sums, &l->in, &l->in_stride, &cols,
                         &order));
}

// Of each head by its own matrix.
static int launch_heads(struct launch *l)
{
    struct ew_cuda_matrix *m = &l->backend->matrices[l->op->weight];
    uint32_t n = l->op->heads.n_heads, rows = m->rows / n, layout = m->layout;
    uint32_t in_dim = l->op->heads.in_dim, out_dim = l->op->heads.out_dim;

    return run(l, EW_CUDA_HEADS,
               (struct ew_cuda_grid){ceil_div(rows, LINEAR_ROWS), ceil_div(l->n_rows, FEW_TOKENS), n, LINEAR_THREADS},
               ARGUMENTS(&l->out, &l->out_stride, &l->in, &l->in_stride, &m->codes, &layout, &rows, &m->cols, &in_dim,
                         &out_dim, &l->n_rows));
}

// ---- attention ----------------------------------------------------------------------------------

// How query heads of one KV head are shared out: runs of at most `heads`.
struct sharing {
    enum ew_cuda_kernel kernel;
    uint32_t heads, threads, blocks; // blocks: runs of all KV heads
};

static struct sharing share_heads(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t per_kv = op->attention.n_heads / op->attention.n_kv_heads;
    struct sharing s = {EW_CUDA_ATTENTION_8, 8, ATTENTION_THREADS, 0};

    if (program->groups[op->attention.group].kind == EW_CACHE_LATENT)
        s = (struct sharing){EW_CUDA_ATTENTION_LATENT, EW_CUDA_LATENT_HEADS, LATENT_THREADS, 0};
    else if (per_kv == 1)
        s = (struct sharing){EW_CUDA_ATTENTION_1, 1, ATTENTION_THREADS, 0};
    else if (per_kv <= 4)
        s = (struct sharing){EW_CUDA_ATTENTION_4, 4, ATTENTION_THREADS, 0};
    s.blocks = op->attention.n_kv_heads * ceil_div(per_kv, s.heads);
    return s;
}

// Depends on the number of tokens alone, so that a graph serves every context.
static uint32_t splits_of(const struct sharing *s, uint32_t n_tokens, int n_multiprocessors)
{
    uint32_t wanted = (uint32_t)n_multiprocessors * BLOCKS_PER_SM, blocks = n_tokens * s->blocks;

    if (n_tokens > SPLIT_TOKENS_MAX || blocks >= wanted)
        return 1;
    return EW_MIN(ceil_div(wanted, blocks), EW_CUDA_SPLITS_MAX);
}

uint64_t ew_cuda_attention_partial_bytes(const struct ew_program *program, uint32_t n_tokens_max, int n_multiprocessors)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];
        uint64_t blocks, floats;
        struct sharing s;

        if (op->kind != EW_OP_ATTENTION)
            continue;
        s = share_heads(program, op);
        blocks = (uint64_t)n_multiprocessors * BLOCKS_PER_SM +
                 (uint64_t)EW_MIN(n_tokens_max, SPLIT_TOKENS_MAX) * s.blocks;
        if (op->attention.sinks != EW_WEIGHT_NONE)
            blocks = EW_MAX(blocks, (uint64_t)n_tokens_max * s.blocks);
        floats = blocks * s.heads * (op->attention.v_dim + 2);
        bytes = EW_MAX(bytes, floats * sizeof(float));
    }
    return bytes;
}

static int launch_append(struct launch *l)
{
    struct ew_cuda_cache *cache = &l->backend->caches[l->op->attention.group];
    const struct ew_cuda_batch *batch = &l->backend->work.batch;
    uint64_t layer_at = l->op->attention.cache_layer * cache->layer_bytes;
    uint64_t seq = batch_at(l, batch->token_seq), index = batch_at(l, batch->token_index);
    uint64_t at = batch_at(l, batch->table_at) +
                  (uint64_t)l->op->attention.group * l->backend->limits.n_seqs_max * sizeof(uint32_t);
    uint64_t tables = batch_at(l, batch->tables);
    uint32_t kv = cache->kv;

    return run(l, EW_CUDA_APPEND, (struct ew_cuda_grid){l->n_tokens, cache->n_kv_heads, 1, 64},
               ARGUMENTS(&cache->data, &cache->block_bytes, &layer_at, &cache->head_bytes, &cache->block_tokens,
                         &kv, &l->in2, &l->in2_stride, &cache->k_dim, &l->in3, &l->in3_stride, &cache->v_dim, &seq,
                         &index, &at, &tables));
}

static int launch_join(struct launch *l, const struct sharing *s, uint32_t n_splits, uint64_t partial)
{
    uint64_t sinks = vector_of(l, l->op->attention.sinks);
    uint32_t v_dim = l->op->attention.v_dim, heads = s->heads, n_heads = l->op->attention.n_heads;
    uint32_t n_kv_heads = l->op->attention.n_kv_heads;

    return run(l, EW_CUDA_ATTENTION_JOIN, (struct ew_cuda_grid){l->n_tokens, n_heads, 1, 64},
               ARGUMENTS(&l->out, &l->out_stride, &v_dim, &partial, &n_splits, &heads, &n_heads, &n_kv_heads, &sinks));
}

static int launch_attention(struct launch *l)
{
    const struct ew_op *op = l->op;
    struct ew_cuda_cache *cache = &l->backend->caches[op->attention.group];
    const struct ew_cuda_batch *batch = &l->backend->work.batch;
    struct sharing s = share_heads(l->backend->program, op);
    uint32_t n_splits = l->backend->config.deterministic
                            ? 1 : splits_of(&s, l->n_tokens, l->backend->device.n_multiprocessors);
    bool joined = n_splits > 1 || op->attention.sinks != EW_WEIGHT_NONE;
    uint64_t partial = joined ? l->backend->work.partial : 0;
    uint64_t layer_at = op->attention.cache_layer * cache->layer_bytes, alibi = l->backend->alibi[l->step->op];
    uint64_t seq = batch_at(l, batch->token_seq), index = batch_at(l, batch->token_index);
    uint64_t total = batch_at(l, batch->seq_total), tables = batch_at(l, batch->tables);
    uint64_t at = batch_at(l, batch->table_at) +
                  (uint64_t)op->attention.group * l->backend->limits.n_seqs_max * sizeof(uint32_t);
    bool grows = op->attention.q_scale_beta != 0 && op->attention.q_scale_floor;
    uint64_t scales = grows ? batch_at(l, batch->token_scale) : 0;
    uint32_t kv = cache->kv, n_heads = op->attention.n_heads, n_kv_heads = op->attention.n_kv_heads;
    uint32_t window = op->attention.window, chunk = op->attention.chunk;
    uint32_t bidirectional = op->attention.mask == EW_MASK_BIDIRECTIONAL;
    float scale = op->attention.scale, cap = op->attention.softcap;
    struct ew_cuda_grid grid = {l->n_tokens, s.blocks, n_splits, s.threads};
    int rc;

    if (s.kernel == EW_CUDA_ATTENTION_LATENT)
        s.kernel = ew_cuda_latent_kernel(l->backend, op, &grid.shared_bytes);
    rc = run(l, s.kernel, grid,
             ARGUMENTS(&cache->data, &cache->block_bytes, &layer_at, &cache->head_bytes, &cache->block_tokens,
                       &kv, &l->in, &l->in_stride, &l->out, &l->out_stride, &cache->k_dim, &cache->v_dim,
                       &n_heads, &n_kv_heads, &scale, &cap, &alibi, &window, &chunk, &bidirectional, &scales, &seq,
                       &index, &total, &at, &tables, &partial));

    return rc || !joined ? rc : launch_join(l, &s, n_splits, partial);
}

static int launch_any_attention(struct launch *l)
{
    struct ew_cuda_queries queries = {l->step->op, l->in, l->out, l->in_stride, l->out_stride};

    if (ew_cuda_flash_takes(l->backend, l->op, l->batch, l->in_stride, l->out_stride))
        return ew_cuda_flash(l->backend, l->batch, &queries, l->err);
    return launch_attention(l);
}

// ---- experts ------------------------------------------------------------------------------------

static int launch_experts(struct launch *l)
{
    return ew_cuda_experts_op(l->backend, l->step, l->n_tokens, l->err);
}

static int launch_state(struct launch *l)
{
    return ew_cuda_state_op(l->backend, l->step, l->batch, l->n_rows, l->err);
}

// ---- all ----------------------------------------------------------------------------------------

static int (*const OPS[EW_OP_COUNT])(struct launch *l) = {
    [EW_OP_EMBED] = launch_embed,     [EW_OP_POSITION] = launch_position, [EW_OP_NORM] = launch_norm,
    [EW_OP_LINEAR] = launch_linear,   [EW_OP_ROPE] = launch_rope,         [EW_OP_ATTENTION] = launch_any_attention,
    [EW_OP_ACT] = launch_act,         [EW_OP_GLU] = launch_act,           [EW_OP_ADD] = launch_add,
    [EW_OP_SCALE] = launch_scale,     [EW_OP_SOFTCAP] = launch_softcap,   [EW_OP_SCALE_BY] = launch_scale,
    [EW_OP_SELECT] = launch_gather,   [EW_OP_ALL_REDUCE] = launch_gather, [EW_OP_HEADS] = launch_heads,
    [EW_OP_ROUTE] = launch_experts,   [EW_OP_DISPATCH] = launch_experts,  [EW_OP_EXPERTS] = launch_experts,
    [EW_OP_COMBINE] = launch_experts, [EW_OP_PICK] = launch_state,        [EW_OP_CONV] = launch_state,
    [EW_OP_SCAN] = launch_state,
};

static void take_buffer(const struct ew_cuda_backend *backend, uint32_t buffer, uint64_t *address, uint32_t *stride)
{
    *address = buffer == EW_CPU_NO_BUFFER ? 0 : backend->work.buffers[buffer];
    *stride = buffer == EW_CPU_NO_BUFFER ? 0 : backend->plan.buffers[buffer].width;
}

uint32_t ew_cuda_step_rows(const struct ew_cuda_backend *backend, const struct ew_batch *batch, uint32_t buffer)
{
    enum ew_cpu_rows rows = buffer == EW_CPU_NO_BUFFER ? EW_CPU_ROWS_TOKENS : backend->plan.buffers[buffer].rows;

    return rows == EW_CPU_ROWS_LOGITS  ? batch->n_logits
           : rows == EW_CPU_ROWS_PAIRS ? batch->n_tokens * backend->plan.n_active
                                       : batch->n_tokens;
}

static int launch_step(struct ew_cuda_backend *backend, const struct ew_batch *batch, const struct ew_cpu_step *step,
                       struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[step->op];
    uint32_t rows_of = step->kind == EW_CPU_STEP_OP ? step->out : step->in;
    struct launch l = {.backend = backend, .op = op, .step = step, .batch = batch,
                       .n_tokens = batch->n_tokens, .err = err};
    int rc;

    l.width = backend->program->slot_width[op->out];
    take_buffer(backend, step->in, &l.in, &l.in_stride);
    take_buffer(backend, step->in2, &l.in2, &l.in2_stride);
    take_buffer(backend, step->in3, &l.in3, &l.in3_stride);
    take_buffer(backend, step->out, &l.out, &l.out_stride);
    l.n_rows = ew_cuda_step_rows(backend, batch, rows_of);
    switch (step->kind) {
    case EW_CPU_STEP_ROPE_TABLES:
        return launch_rope_tables(&l);
    case EW_CPU_STEP_QUANTISE:
        return l.n_rows ? launch_quantise(&l) : 0;
    case EW_CPU_STEP_APPEND:
        return launch_append(&l);
    case EW_CPU_STEP_OP:
        EW_ASSERT(OPS[op->kind]); // cuda_supports refused the program otherwise
        rc = l.n_rows ? OPS[op->kind](&l) : 0;
        ew_cuda_prefill_wrote(backend, l.out);
        if (rc == 0 && backend->trace)
            rc = ew_cuda_trace_op(backend, step, l.n_rows, err);
        return rc;
    case EW_CPU_STEP_SORT:
        return ew_cuda_experts_sort(backend, step, l.n_tokens, err);
    default:
        EW_ASSERT(!"a step that this backend has");
        return 0;
    }
}

// Pieces. (4.4 B q8_0 on an H200: 1.487 ms a step with six, 1.479 with four, 1.509 with none.)
#define EARLY_BESIDE_ATTENTION 4

// As the way says; launches of a self-test have all of them by turns.
static enum ew_cuda_ring ring_of(const struct ew_cuda_backend *backend, struct ew_cuda_fused *fused)
{
    uint32_t way = backend->device.way;

    if (backend->traces_launches)
        return fused->n_shown++ % EW_CUDA_RING_COUNT;
    if (way >= EW_CUDA_WAY_PRODUCTS_LATE)
        return EW_CUDA_RING_SHORT;
    if (fused->place == EW_CUDA_LAST)
        return EW_CUDA_RING_LONGEST;
    if (!(way >> fused->place & 1))
        return EW_CUDA_RING_SHORT;
    return way & EW_CUDA_WAY_LONGEST ? EW_CUDA_RING_LONGEST : EW_CUDA_RING_FITTING;
}

// scored: NULL, or what it makes scores for.
static int launch_fused(struct ew_cuda_backend *backend, struct ew_cuda_fused *fused,
                        const struct ew_cuda_scored *scored, struct ew_error *err)
{
    enum ew_cuda_ring ring = ring_of(backend, fused);
    struct ew_cuda_grid grid = {(uint32_t)backend->device.n_multiprocessors, 1, 1, EW_VECTOR_THREADS,
                                fused->rings[ring].bytes};
    struct ew_vector_job job = fused->job;

    if (fused->ordered_norm)
        job.norm_weight = fused->ordered_norm;
    job.n_stages = fused->rings[ring].n_stages;
    job.n_early = EW_MIN(job.n_stages - 1, fused->n_early);
    if (fused->place == EW_CUDA_AFTER_ATTENTION) // which has copies of its own under way meanwhile
        job.n_early = EW_MIN(job.n_early, EARLY_BESIDE_ATTENTION);
    if (scored) {
        job.score = scored->job;
        grid.shared_bytes += scored->shared_bytes;
    }
    return ew_cuda_launch(&backend->device, scored ? scored->kernel : fused->kernel, grid, ARGUMENTS(&job), err);
}

// ---- units --------------------------------------------------------------------------------------

struct ew_cuda_unit ew_cuda_step_unit(const struct ew_cuda_backend *backend, const struct ew_batch *batch, uint32_t i)
{
    const struct ew_cuda_fused *fused = &backend->fused[i];
    bool alone = batch->n_tokens == batch->n_seqs && batch->n_tokens <= EW_CUDA_GRAPH_TOKENS_MAX;
    uint32_t n_rows = fused->count ? ew_cuda_step_rows(backend, batch, fused->x) : 0;

    if (ew_cuda_shows_ops(backend))
        return (struct ew_cuda_unit){EW_CUDA_UNIT_STEP, i, 1, 0};
    if (batch->n_tokens == 1 && backend->chosen && backend->chosen[i].count)
        return (struct ew_cuda_unit){EW_CUDA_UNIT_CHOSEN, i, backend->chosen[i].count, 1};
    if (batch->n_tokens == 1 && backend->scored && backend->scored[i].count)
        return (struct ew_cuda_unit){EW_CUDA_UNIT_SCORED, i, backend->scored[i].count, 1};
    if (n_rows == 1)
        return (struct ew_cuda_unit){EW_CUDA_UNIT_ONE, i, fused->count, 1};
    if (ew_cuda_few_takes(backend, fused, n_rows))
        return (struct ew_cuda_unit){EW_CUDA_UNIT_FEW, i, fused->count, n_rows};
    if (alone && backend->attends[i].count)
        return (struct ew_cuda_unit){EW_CUDA_UNIT_ATTEND, i, backend->attends[i].count, batch->n_tokens};
    if (ew_cuda_grouped_takes(backend, i, batch->n_tokens))
        return (struct ew_cuda_unit){EW_CUDA_UNIT_GROUPED, i, backend->grouped[i].count, batch->n_tokens};
    if (ew_cuda_many_takes(backend, fused, batch->n_tokens))
        return (struct ew_cuda_unit){EW_CUDA_UNIT_MANY, i, fused->count, batch->n_tokens};
    return (struct ew_cuda_unit){EW_CUDA_UNIT_STEP, i, 1, 0};
}

static int launch_unit(struct ew_cuda_backend *backend, const struct ew_batch *batch,
                       const struct ew_cuda_unit *unit, struct ew_error *err)
{
    if (unit->kind != EW_CUDA_UNIT_STEP && unit->kind != EW_CUDA_UNIT_MANY) // others do not say what they wrote
        backend->work.narrow.of = 0;
    switch (unit->kind) {
    case EW_CUDA_UNIT_CHOSEN:
        return ew_cuda_chosen_launch(backend, &backend->chosen[unit->first], err);
    case EW_CUDA_UNIT_ONE:
        return launch_fused(backend, &backend->fused[unit->first], NULL, err);
    case EW_CUDA_UNIT_SCORED:
        return launch_fused(backend, &backend->fused[unit->first], &backend->scored[unit->first], err);
    case EW_CUDA_UNIT_FEW:
        return ew_cuda_few(backend, &backend->fused[unit->first], unit->n_rows, err);
    case EW_CUDA_UNIT_ATTEND:
        return ew_cuda_attend(backend, &backend->attends[unit->first], batch, err);
    case EW_CUDA_UNIT_GROUPED:
        return ew_cuda_grouped(backend, &backend->grouped[unit->first], unit->n_rows, err);
    case EW_CUDA_UNIT_MANY:
        return ew_cuda_many(backend, &backend->fused[unit->first], unit->n_rows, err);
    case EW_CUDA_UNIT_STEP:
    default:
        return launch_step(backend, batch, &backend->plan.steps[unit->first], err);
    }
}

// Of products without anything behind them every result is left, else what the last step wrote; but gates of several
// rows may leave nothing in f32.
static bool leaves_result(const struct ew_cuda_backend *backend, const struct ew_cuda_unit *unit, uint32_t i)
{
    const struct ew_cuda_fused *fused = &backend->fused[unit->first];
    const struct ew_cpu_step *step = &backend->plan.steps[i];

    if (unit->kind == EW_CUDA_UNIT_ATTEND || unit->kind == EW_CUDA_UNIT_CHOSEN || unit->kind == EW_CUDA_UNIT_GROUPED)
        return i + 1 == unit->first + unit->count;
    if (unit->kind == EW_CUDA_UNIT_SCORED)
        return step->kind == EW_CPU_STEP_OP && i + 1 >= unit->first + fused->count;
    if (fused->out == EW_CPU_NO_BUFFER)
        return step->kind == EW_CPU_STEP_OP && backend->program->ops[step->op].kind == EW_OP_LINEAR;
    if ((unit->kind == EW_CUDA_UNIT_MANY && fused->job.is_glu) ||
        (unit->kind == EW_CUDA_UNIT_FEW && ew_cuda_few_stages(backend, fused, unit->n_rows)))
        return false;
    return i + 1 == unit->first + unit->count;
}

static int trace_unit(struct ew_cuda_backend *backend, const struct ew_batch *batch, const struct ew_cuda_unit *unit,
                      struct ew_error *err)
{
    const struct ew_cuda_scored *scored = unit->kind == EW_CUDA_UNIT_SCORED ? &backend->scored[unit->first] : NULL;
    int rc = 0;

    for (uint32_t i = unit->first; i < unit->first + unit->count && rc == 0; i++) {
        const struct ew_cpu_step *step = &backend->plan.steps[i];

        if (!leaves_result(backend, unit, i))
            continue;
        if (scored && i >= unit->first + backend->fused[unit->first].count)
            rc = ew_cuda_scored_show(backend, scored, err);
        if (rc == 0)
            rc = ew_cuda_trace_op(backend, step, ew_cuda_step_rows(backend, batch, step->out), err);
    }
    return rc || !scored ? rc : ew_cuda_scored_take(backend, scored, err);
}

int ew_cuda_step_launch(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    struct ew_cuda_unit unit;
    int rc = 0;

    backend->work.narrow.of = 0;
    for (uint32_t i = 0; i < backend->plan.n_steps && rc == 0; i += unit.count) {
        unit = ew_cuda_step_unit(backend, batch, i);
        if (unit.kind != EW_CUDA_UNIT_FEW)
            backend->work.few_staged.of = 0;
        if (backend->only && !backend->only[i]) {
            if (unit.kind == EW_CUDA_UNIT_FEW) // so that what is launched is what a whole step launches
                ew_cuda_few_wrote(backend, &backend->fused[i], unit.n_rows);
            continue;
        }
        rc = launch_unit(backend, batch, &unit, err);
        if (rc == 0 && backend->trace && unit.kind != EW_CUDA_UNIT_STEP)
            rc = trace_unit(backend, batch, &unit, err);
    }
    return rc;
}
