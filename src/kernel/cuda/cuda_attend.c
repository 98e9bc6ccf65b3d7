// Which steps of the plan one kernel of ptx/decode.c does at once where every token is the last of its own sequence:
// norms of the queries' and keys' heads, their rotation, appending, attention.

#include "base/assert.h"
#include "kernel/cuda/attend_job.h"
#include "kernel/cuda/cuda_backend.h"

#define BLOCKS_PER_SM 2 // asked for, of splits together
#define SHARED_BYTES_USUAL (48u << 10) // of which nobody has to be asked
#define SHARED_BYTES_ENOUGH (80u << 10)
#define SHARED_BYTES_LONG (96u << 10)
#define TOKENS_FAR 4096 // before a token: a long context
#define CLUSTER_FAR 4
#define WAVES 4         // of blocks, where contexts are long and may differ
#define TILES_NEAR_MIN 8u
#define TILES_NEAR_MAX 64u
#define STEPS_MAX 6     // two norms, two rotations, appending, attention

struct found {
    const struct ew_op *q_norm, *k_norm, *q_rope, *k_rope;
    const struct ew_cpu_step *append, *attention;
    uint32_t count;
};

static const struct ew_op *op_of(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step)
{
    return &backend->program->ops[step->op];
}

static bool is_op(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step, enum ew_op_kind kind)
{
    return step->kind == EW_CPU_STEP_OP && op_of(backend, step)->kind == kind;
}

// The next ATTENTION, where it is near.
static bool find_attention(const struct ew_cuda_backend *backend, uint32_t first, struct found *found)
{
    for (uint32_t i = first; i < backend->plan.n_steps && i < first + STEPS_MAX; i++) {
        const struct ew_cpu_step *step = &backend->plan.steps[i];

        if (step->kind == EW_CPU_STEP_APPEND)
            found->append = step;
        if (is_op(backend, step, EW_OP_ATTENTION)) {
            found->attention = step;
            found->count = i + 1 - first;
            return true;
        }
    }
    return false;
}

// A step before the attention: its op goes to the place that is meant for it.
static bool take(const struct ew_cuda_backend *backend, const struct ew_cpu_step *step, struct found *found)
{
    const struct ew_op *op = op_of(backend, step), *attention = op_of(backend, found->attention);
    bool is_q = step->in == found->attention->in, is_k = found->append && step->in == found->append->in2;

    if (step == found->append || step == found->attention)
        return true;
    if (step->kind != EW_CPU_STEP_OP || step->in != step->out || is_q == is_k)
        return false;
    if (op->kind == EW_OP_NORM && op->norm.kind == EW_NORM_RMS && op->norm.group == attention->attention.head_dim &&
        !op->norm.weight_per_group && op->bias == EW_WEIGHT_NONE && op->weight != EW_WEIGHT_NONE) {
        const struct ew_op **to = is_q ? &found->q_norm : &found->k_norm;
        bool is_first = !*to && !(is_q ? found->q_rope : found->k_rope);

        *to = op;
        return is_first;
    }
    if (op->kind == EW_OP_ROPE) {
        const struct ew_op **to = is_q ? &found->q_rope : &found->k_rope;
        bool is_first = !*to;

        *to = op;
        return is_first;
    }
    return false;
}

static bool is_possible(const struct ew_cuda_backend *backend, const struct found *found)
{
    const struct ew_op *op = op_of(backend, found->attention);
    uint32_t dim = EW_MAX(op->attention.head_dim, op->attention.v_dim);
    uint32_t step = backend->limits.kv == EW_KV_F16 ? 8 : 16; // rows of the cache are multiples of 16 bytes

    if (op->attention.mask != EW_MASK_CAUSAL || backend->limits.block_tokens % EW_ATTEND_TILE ||
        backend->limits.kv == EW_KV_F32 || backend->config.kernels == EW_KERNELS_REFERENCE ||
        backend->program->groups[op->attention.group].kind == EW_CACHE_LATENT || op->attention.head_dim % step ||
        op->attention.v_dim % step || dim > EW_CUDA_HEAD_DIM_MAX)
        return false;
    if (found->append) // both are rotated, alike
        return !found->q_rope == !found->k_rope &&
               (!found->q_rope || (found->q_rope->rope.table == found->k_rope->rope.table &&
                                   found->q_rope->rope.first == found->k_rope->rope.first));
    return !found->k_norm && !found->k_rope;
}

static bool match(const struct ew_cuda_backend *backend, uint32_t first, struct found *found)
{
    if (!find_attention(backend, first, found))
        return false;
    for (uint32_t i = 0; i < found->count; i++) {
        if (!take(backend, &backend->plan.steps[first + i], found))
            return false;
    }
    // Rotated queries and keys are not written.
    if (found->attention->out != found->attention->in &&
        ew_cuda_is_read(backend, first + found->count, found->attention->in))
        return false;
    if (found->append && found->append->in2 != found->attention->out &&
        ew_cuda_is_read(backend, first + found->count, found->append->in2))
        return false;
    return is_possible(backend, found);
}

static uint64_t vector_of(const struct ew_cuda_backend *backend, uint32_t weight)
{
    return weight == EW_WEIGHT_NONE ? 0 : backend->vectors[weight];
}

static void fill_rows(const struct ew_cuda_backend *backend, const struct found *found, struct ew_attend_job *job)
{
    const struct ew_cuda_work *work = &backend->work;
    const struct ew_cpu_buffer *buffers = backend->plan.buffers;
    const struct ew_cpu_step *append = found->append, *attention = found->attention;

    job->q = work->buffers[attention->in];
    job->q_stride = buffers[attention->in].width;
    job->out = work->buffers[attention->out];
    job->out_stride = buffers[attention->out].width;
    if (append) {
        job->k = work->buffers[append->in2];
        job->k_stride = buffers[append->in2].width;
        job->v = work->buffers[append->in3];
        job->v_stride = buffers[append->in3].width;
    }
}

static void fill_before(const struct ew_cuda_backend *backend, const struct found *found, struct ew_attend_job *job)
{
    if (found->q_norm) {
        job->q_norm = vector_of(backend, found->q_norm->weight);
        job->q_eps = found->q_norm->norm.eps;
        job->q_offset = found->q_norm->norm.weight_offset;
    }
    if (found->k_norm) {
        job->k_norm = vector_of(backend, found->k_norm->weight);
        job->k_eps = found->k_norm->norm.eps;
        job->k_offset = found->k_norm->norm.weight_offset;
    }
    if (found->q_rope) {
        const struct ew_rope *rope = &backend->program->ropes[found->q_rope->rope.table];

        job->rope = backend->work.ropes[found->q_rope->rope.table].table;
        job->n_dims = rope->n_dims;
        job->rope_first = found->q_rope->rope.first;
        job->rope_pairs = rope->kind == EW_ROPE_PAIRS;
    }
}

static void fill_cache(const struct ew_cuda_backend *backend, const struct ew_op *op, struct ew_attend_job *job)
{
    const struct ew_cuda_cache *cache = &backend->caches[op->attention.group];
    const struct ew_cuda_batch *batch = &backend->work.batch;
    uint32_t tiles = cache->block_tokens / EW_ATTEND_TILE;

    job->data = cache->data;
    job->block_bytes = cache->block_bytes;
    job->layer_at = op->attention.cache_layer * cache->layer_bytes;
    job->head_bytes = cache->head_bytes;
    job->block_tokens = cache->block_tokens;
    job->block_inverse = (((uint64_t)1 << 32) + tiles - 1) / tiles;
    job->kv = backend->limits.kv;
    job->index = batch->device + batch->token_index;
    job->table_at = batch->device + batch->table_at +
                    (uint64_t)op->attention.group * backend->limits.n_seqs_max * sizeof(uint32_t);
    job->tables = batch->device + batch->tables;
    job->token_scale = op->attention.q_scale_beta != 0 && op->attention.q_scale_floor
                           ? batch->device + batch->token_scale : 0;
}

static uint32_t per_run_of(const struct ew_op *op)
{
    return EW_MIN(op->attention.n_heads / op->attention.n_kv_heads, EW_ATTEND_HEADS);
}

static uint32_t runs_of(const struct ew_op *op)
{
    uint32_t per_kv = op->attention.n_heads / op->attention.n_kv_heads, per_run = per_run_of(op);

    return (per_kv + per_run - 1) / per_run;
}

static void fill_job(const struct ew_cuda_backend *backend, const struct found *found, struct ew_attend_job *job)
{
    const struct ew_op *op = op_of(backend, found->attention);

    *job = (struct ew_attend_job){
        .k_dim = op->attention.head_dim, .v_dim = op->attention.v_dim,
        .n_kv_heads = op->attention.n_kv_heads, .per_kv = op->attention.n_heads / op->attention.n_kv_heads,
        .per_run = per_run_of(op), .runs = runs_of(op),
        .window = op->attention.window, .chunk = op->attention.chunk, .scale = op->attention.scale,
        .cap = op->attention.softcap, .alibi = backend->alibi[found->attention->op],
        .sinks = vector_of(backend, op->attention.sinks), .partial = backend->work.attend_partial,
        .arrived = backend->work.attend_arrived,
    };
    fill_rows(backend, found, job);
    fill_before(backend, found, job);
    fill_cache(backend, op, job);
}

static const uint32_t ROOMS[] = {64, 96, 128, 256}; // dimensions that kernels have room for

static uint32_t room_index(uint32_t k_dim, uint32_t v_dim)
{
    uint32_t i = 0;

    while (i + 1 < EW_COUNT_OF(ROOMS) && ROOMS[i] < EW_MAX(k_dim, v_dim))
        i++;
    return i;
}

static uint32_t room_of(uint32_t k_dim, uint32_t v_dim)
{
    return ROOMS[room_index(k_dim, v_dim)];
}

static uint32_t shared_bytes(const struct ew_attend_job *job, uint32_t depth)
{
    uint32_t room = room_of(job->k_dim, job->v_dim), dim_bytes = job->kv == EW_KV_F16 ? 2 : 1;

    return ew_attend_fixed_bytes(room, job->per_run) +
           EW_ATTEND_THREADS / 32 * depth * ew_attend_tile_bytes(dim_bytes, room);
}

// Two tiles of a warp, where the GPU has the memory, more while they are small. With long contexts so many that a
// multiprocessor has no room for more blocks than it is to have: clusters would crowd on some.
static uint32_t depth_of(const struct ew_attend_job *job, bool is_long, uint32_t bytes_max)
{
    uint32_t depth = EW_ATTEND_DEPTH;

    while (depth > 2 && shared_bytes(job, depth) > (is_long ? SHARED_BYTES_LONG : SHARED_BYTES_ENOUGH))
        depth--;
    while (depth > 1 && shared_bytes(job, depth) > bytes_max)
        depth--;
    return depth;
}

static enum ew_cuda_kernel kernel_of(const struct ew_attend_job *job)
{
    static const enum ew_cuda_kernel kernels[][EW_COUNT_OF(ROOMS)] = {
        [EW_KV_F16] = {EW_CUDA_DECODE_F16_64, EW_CUDA_DECODE_F16_96, EW_CUDA_DECODE_F16_128, EW_CUDA_DECODE_F16_256},
        [EW_KV_F8] = {EW_CUDA_DECODE_F8_64, EW_CUDA_DECODE_F8_96, EW_CUDA_DECODE_F8_128, EW_CUDA_DECODE_F8_256},
        [EW_KV_I8] = {EW_CUDA_DECODE_I8_64, EW_CUDA_DECODE_I8_96, EW_CUDA_DECODE_I8_128, EW_CUDA_DECODE_I8_256},
    };

    return kernels[job->kv][room_index(job->k_dim, job->v_dim)];
}

// Layers of one kernel may have runs of different sizes.
static int allow_shared(struct ew_cuda_device *device, const struct ew_cuda_attend *attend, struct ew_error *err)
{
    uint32_t depth = depth_of(&attend->job, true, (uint32_t)device->shared_bytes_max);
    uint32_t bytes = EW_MAX(shared_bytes(&attend->job, depth), device->shared_bytes[attend->kernel]);

    return bytes > SHARED_BYTES_USUAL ? ew_cuda_allow_shared(device, attend->kernel, bytes, err) : 0;
}

int ew_cuda_attend_find(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    backend->attends = ew_arena_array(&backend->plan_arena, backend->plan.n_steps, sizeof(*backend->attends));
    if (!backend->attends)
        return ew_fail_memory(err, backend->plan.n_steps * sizeof(*backend->attends), "the fused steps");
    for (uint32_t i = 0; i < backend->plan.n_steps && !backend->config.deterministic && rc == 0; i++) {
        struct ew_cuda_attend *attend = &backend->attends[i];
        struct found found = {0};

        if (!match(backend, i, &found))
            continue;
        fill_job(backend, &found, &attend->job);
        attend->kernel = kernel_of(&attend->job);
        attend->count = found.count;
        i += found.count - 1;
        rc = allow_shared(&backend->device, attend, err);
    }
    return rc;
}

// How the keys of a token's run are shared out.
struct splits {
    uint32_t count, cluster; // blocks, and how many of them join what they found in each other's shared memory
    uint32_t tiles_near;     // of a block's, up to which one cluster (without clusters: so few blocks) has all keys
};

// Depends on the number of tokens, and on whether a context is long, so that a graph serves all others. Where a GPU has
// places for several blocks of a run, these are a cluster: a large one, which needs no other, where contexts are short;
// smaller ones, which leave fewer places empty, where they are long, as all multiprocessors must read alike for all of
// the memory's bandwidth. Several tokens' contexts may differ, and what one wave of blocks leaves empty is lost for as
// long as the longest takes: long contexts go to several waves.
static struct splits splits_of(uint32_t n_tokens, uint32_t n_runs, int n_multiprocessors, bool has_clusters,
                               bool is_far)
{
    uint32_t n = n_tokens * n_runs, places = (uint32_t)n_multiprocessors * BLOCKS_PER_SM;
    uint32_t per_run = (has_clusters ? places - places / 10 : places) / n; // clusters leave some places empty
    uint32_t most = is_far ? CLUSTER_FAR : EW_ATTEND_CLUSTER;
    struct splits s = {EW_MAX(EW_MIN(per_run, EW_CUDA_SPLITS_MAX), 1u), 1, EW_ATTEND_THREADS / 32};

    while (has_clusters && s.cluster < most && s.cluster * 2 <= s.count)
        s.cluster *= 2;
    if (s.cluster > 1)
        s.tiles_near = EW_MAX(TILES_NEAR_MIN, EW_MIN(n, TILES_NEAR_MAX));
    else if (s.count == 1)
        s.tiles_near = TILES_NEAR_MAX;
    if (n_tokens > 1 && (s.cluster > 1 || s.count == 1))
        s.count = EW_MIN((WAVES * places + n - 1) / n, EW_CUDA_SPLITS_MAX);
    s.count -= s.count % s.cluster;
    return s;
}

// The self-test's contexts are short: every other launch leaves parts to be joined all the same.
static struct splits more_parts(struct splits splits)
{
    return (struct splits){splits.count, EW_MIN(splits.cluster, 2u), 1};
}

static uint32_t log2_of(uint32_t n)
{
    return 31 - (uint32_t)__builtin_clz(n);
}

bool ew_cuda_attend_is_far(const struct ew_batch *batch)
{
    for (uint32_t i = 0; i < batch->n_seqs; i++) {
        if (batch->seqs[i].n_past > TOKENS_FAR)
            return true;
    }
    return false;
}

int ew_cuda_attend(struct ew_cuda_backend *backend, struct ew_cuda_attend *attend, const struct ew_batch *batch,
                   struct ew_error *err)
{
    struct ew_cuda_device *device = &backend->device;
    struct ew_attend_job *job = &attend->job;
    uint32_t n_runs = job->n_kv_heads * job->runs;
    int rc = ew_cuda_kernel_need(device, attend->kernel, err);
    bool is_far = ew_cuda_attend_is_far(batch);
    struct splits splits = splits_of(batch->n_tokens, n_runs, device->n_multiprocessors,
                                     device->clusters[attend->kernel], is_far);
    struct ew_cuda_grid grid;

    if (rc)
        return rc;
    if (backend->traces_launches && attend->n_shown++ % 2)
        splits = more_parts(splits);
    job->depth = depth_of(job, is_far && splits.cluster > 1, (uint32_t)device->shared_bytes_max);
    grid = (struct ew_cuda_grid){batch->n_tokens, n_runs, splits.count, EW_ATTEND_THREADS,
                                 shared_bytes(job, job->depth), splits.cluster};
    job->tiles_near_log2 = log2_of(splits.tiles_near);
    job->cluster_log2 = log2_of(splits.cluster);
    return ew_cuda_launch(device, attend->kernel, grid, (void *[]){job}, err);
}

// Of programs' ATTENTIONs: runs of a token at most, and floats of a split of one.
static void widest(const struct ew_program *program, uint32_t *n_runs, uint32_t *n_floats)
{
    *n_runs = *n_floats = 0;
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind != EW_OP_ATTENTION)
            continue;
        *n_runs = EW_MAX(*n_runs, op->attention.n_kv_heads * runs_of(op));
        *n_floats = EW_MAX(*n_floats, EW_ATTEND_HEADS * (room_of(op->attention.head_dim, op->attention.v_dim) + 2));
    }
}

uint64_t ew_cuda_attend_arrived_bytes(const struct ew_program *program)
{
    uint32_t n_runs, n_floats;

    widest(program, &n_runs, &n_floats);
    return (uint64_t)EW_CUDA_GRAPH_TOKENS_MAX * n_runs * EW_ATTEND_CLUSTER * sizeof(uint32_t);
}

uint64_t ew_cuda_attend_partial_bytes(const struct ew_program *program, int n_multiprocessors)
{
    uint32_t n_runs, n_floats;
    uint64_t most = 0;

    widest(program, &n_runs, &n_floats);
    for (uint32_t n = 1; n <= EW_CUDA_GRAPH_TOKENS_MAX && n_runs; n++) {
        for (int kind = 0; kind < 4; kind++) {
            uint32_t count = splits_of(n, n_runs, n_multiprocessors, kind % 2 == 1, kind / 2 == 1).count;

            most = EW_MAX(most, (uint64_t)n * n_runs * count);
        }
    }
    return most * n_floats * sizeof(float);
}
