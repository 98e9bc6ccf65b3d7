// Attention of prompts: which kernel takes it, and its launch.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"

#define ROWS 64     // queries of a block: tokens times the query heads of a KV head
#define THREADS 128
#define TOKENS 64   // of a step, or
#define PER_SEQ 16  // of a sequence, from which on these kernels are used
#define QUERY_BYTES (ROWS * (256 + 8) * 2) // in shared memory, for the widest heads

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

enum { DIMS_COUNT = 4 };
static const uint32_t DIMS[DIMS_COUNT] = {64, 96, 128, 256};

static const enum ew_cuda_kernel KERNELS[][DIMS_COUNT] = {
    [EW_KV_F16] = {EW_CUDA_FLASH_F16_64, EW_CUDA_FLASH_F16_96, EW_CUDA_FLASH_F16_128, EW_CUDA_FLASH_F16_256},
    [EW_KV_F8] = {EW_CUDA_FLASH_F8_64, EW_CUDA_FLASH_F8_96, EW_CUDA_FLASH_F8_128, EW_CUDA_FLASH_F8_256},
    [EW_KV_I8] = {EW_CUDA_FLASH_I8_64, EW_CUDA_FLASH_I8_96, EW_CUDA_FLASH_I8_128, EW_CUDA_FLASH_I8_256},
};

static uint32_t kind_of(uint32_t dim)
{
    uint32_t kind = 0;

    while (DIMS[kind] < dim)
        kind++; // cuda_supports refused what is wider than the last
    return kind;
}

int ew_cuda_flash_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    static const enum ew_cuda_module modules[] = {
        [EW_KV_F16] = EW_CUDA_FLASH_F16, [EW_KV_F8] = EW_CUDA_FLASH_F8, [EW_KV_I8] = EW_CUDA_FLASH_I8,
    };
    enum ew_kv_dtype kv = backend->limits.kv;
    int rc;

    if (backend->config.kernels == EW_KERNELS_REFERENCE || kv == EW_KV_F32)
        return 0;
    rc = ew_cuda_device_load_module(&backend->device, modules[kv], err);
    return rc ? rc : ew_cuda_allow_shared(&backend->device, KERNELS[kv][DIMS_COUNT - 1], QUERY_BYTES, err);
}

bool ew_cuda_flash_takes(const struct ew_cuda_backend *backend, const struct ew_op *op, const struct ew_batch *batch,
                         uint32_t q_stride, uint32_t out_stride)
{
    const struct ew_cuda_cache *cache = &backend->caches[op->attention.group];
    uint32_t step = cache->kv == EW_KV_F16 ? 8 : 16; // elements of 16 bytes

    if (backend->config.kernels == EW_KERNELS_REFERENCE || cache->kv == EW_KV_F32)
        return false;
    if (op->attention.head_dim != cache->k_dim) // latents have a kernel of their own
        return false;
    if (!backend->config.deterministic && batch->n_tokens <= TOKENS && batch->n_tokens < batch->n_seqs * PER_SEQ)
        return false;
    return cache->k_dim % step == 0 && cache->v_dim % step == 0 && q_stride % 2 == 0 && out_stride % 2 == 0;
}

// Tiles of 64 queries of all sequences.
static uint32_t count_tiles(const struct ew_batch *batch, uint32_t per_kv)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < batch->n_seqs; i++)
        n += (uint32_t)(((uint64_t)batch->seqs[i].n_tokens * per_kv + ROWS - 1) / ROWS);
    return n;
}

int ew_cuda_flash(struct ew_cuda_backend *backend, const struct ew_batch *batch, const struct ew_cuda_queries *queries,
                  struct ew_error *err)
{
    const struct ew_op *op = &backend->program->ops[queries->op];
    struct ew_cuda_cache *cache = &backend->caches[op->attention.group];
    const struct ew_cuda_batch *b = &backend->work.batch;
    uint64_t q = queries->q, out = queries->out, layer_at = op->attention.cache_layer * cache->layer_bytes;
    uint64_t at = b->device + b->table_at +
                  (uint64_t)op->attention.group * backend->limits.n_seqs_max * sizeof(uint32_t);
    uint64_t first = b->device + b->seq_first, total = b->device + b->seq_total, tables = b->device + b->tables;
    uint64_t alibi = backend->alibi[queries->op];
    uint64_t sinks = op->attention.sinks == EW_WEIGHT_NONE ? 0 : backend->vectors[op->attention.sinks];
    bool grows = op->attention.q_scale_beta != 0 && op->attention.q_scale_floor;
    uint64_t scales = grows ? b->device + b->token_scale : 0;
    uint32_t q_stride = queries->q_stride, out_stride = queries->out_stride, n_seqs = batch->n_seqs;
    uint32_t per_kv = op->attention.n_heads / op->attention.n_kv_heads;
    uint32_t kind = kind_of(EW_MAX(cache->k_dim, cache->v_dim));
    uint32_t window = op->attention.window, chunk = op->attention.chunk;
    uint32_t bidirectional = op->attention.mask == EW_MASK_BIDIRECTIONAL;
    float scale = op->attention.scale, cap = op->attention.softcap;
    struct ew_cuda_grid grid = {count_tiles(batch, per_kv), cache->n_kv_heads, 1, THREADS,
                                kind == DIMS_COUNT - 1 ? QUERY_BYTES : 0};

    return ew_cuda_launch(&backend->device, KERNELS[cache->kv][kind], grid,
                          ARGUMENTS(&cache->data, &cache->block_bytes, &layer_at, &cache->head_bytes,
                                    &cache->block_tokens, &q, &q_stride, &out, &out_stride, &cache->k_dim,
                                    &cache->v_dim, &per_kv, &scale, &cap, &alibi, &window, &chunk, &bidirectional,
                                    &scales, &sinks, &n_seqs, &first, &total, &at, &tables),
                          err);
}
