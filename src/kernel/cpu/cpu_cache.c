#include "kernel/cpu/cpu_cache.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

uint32_t ew_cpu_kv_bytes(enum ew_kv_dtype dtype)
{
    return dtype == EW_KV_F32 ? 4 : dtype == EW_KV_F16 ? 2 : 1;
}

static bool has_scales(enum ew_kv_dtype dtype)
{
    return dtype == EW_KV_F8 || dtype == EW_KV_I8;
}

// A block is the state of every layer, each from a line's beginning on.
static int shape_states(struct ew_cpu_cache *cache, const struct ew_cache_group *group, const struct ew_limits *limits,
                        struct ew_error *err)
{
    *cache = (struct ew_cpu_cache){
        .dtype = EW_KV_F32,
        .block_tokens = limits->block_tokens,
        .n_layers = group->n_layers,
        .layer_bytes = (group->state_bytes + 63) & ~(uint64_t)63,
        .state_bytes = group->state_bytes,
    };
    if (!ew_mul_size(cache->layer_bytes, group->n_layers, &cache->block_bytes))
        return ew_fail(err, EW_ERR_LIMIT, "a state of %u layers is too large", group->n_layers);
    return 0;
}

float *ew_cpu_cache_state(const struct ew_cpu_cache *cache, int32_t block, uint32_t layer)
{
    return (float *)(cache->data + (uint64_t)block * cache->block_bytes + layer * cache->layer_bytes);
}

int ew_cpu_cache_shape(struct ew_cpu_cache *cache, const struct ew_cache_group *group, const struct ew_limits *limits,
                       struct ew_error *err)
{
    uint64_t row = ((uint64_t)group->k_dim + group->v_dim) * ew_cpu_kv_bytes(limits->kv) +
                   (has_scales(limits->kv) ? 4 : 0);

    if (group->kind == EW_CACHE_STATE)
        return shape_states(cache, group, limits, err);
    if (group->kind != EW_CACHE_FULL && group->kind != EW_CACHE_WINDOW && group->kind != EW_CACHE_LATENT)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the CPU backend has no caches of kind \"%s\" yet",
                       ew_cache_kind_name(group->kind));
    *cache = (struct ew_cpu_cache){
        .dtype = limits->kv,
        .block_tokens = limits->block_tokens,
        .n_layers = group->n_layers,
        .n_kv_heads = group->n_kv_heads,
        .k_dim = group->k_dim,
        .v_dim = group->v_dim,
    };
    // 1: see ew_cpu_cache_tile
    cache->head_bytes = (row * limits->block_tokens + (has_scales(limits->kv) ? 1 : 0) + 63) & ~(uint64_t)63;
    if (!ew_mul_size(cache->head_bytes, group->n_kv_heads, &cache->layer_bytes) ||
        !ew_mul_size(cache->layer_bytes, group->n_layers, &cache->block_bytes))
        return ew_fail(err, EW_ERR_LIMIT, "a cache block of %u tokens is too large", limits->block_tokens);
    return 0;
}

struct ew_cpu_kv_tile ew_cpu_cache_tile(const struct ew_cpu_cache *cache, int32_t block, uint32_t layer, uint32_t head)
{
    uint8_t *base = cache->data + (uint64_t)block * cache->block_bytes + layer * cache->layer_bytes +
                    head * cache->head_bytes;
    uint64_t element = ew_cpu_kv_bytes(cache->dtype), k_bytes = element * cache->k_dim * cache->block_tokens,
             v_bytes = element * cache->v_dim * cache->block_tokens;

    // 8-bit rows may end at an odd address where block and heads are odd; the scales then start one byte later.
    uint16_t *scales = (uint16_t *)(base + ((k_bytes + v_bytes + 1) & ~(uint64_t)1));

    return (struct ew_cpu_kv_tile){base, base + k_bytes, scales, scales + cache->block_tokens};
}

void ew_cpu_cache_append(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block, uint32_t layer,
                         uint32_t row, const float *k, const float *v)
{
    uint64_t element = ew_cpu_kv_bytes(cache->dtype);

    for (uint32_t head = 0; head < cache->n_kv_heads; head++) {
        struct ew_cpu_kv_tile tile = ew_cpu_cache_tile(cache, block, layer, head);

        ops->kv_encode(cache->dtype, k + head * cache->k_dim, cache->k_dim, tile.k + row * cache->k_dim * element,
                       tile.k_scale + row);
        ops->kv_encode(cache->dtype, v + head * cache->v_dim, cache->v_dim, tile.v + row * cache->v_dim * element,
                       tile.v_scale + row);
    }
}

// Where row `token` of a head stands in the canonical form.
static uint64_t canonical(const struct ew_cpu_cache *cache, uint32_t layer, uint32_t n_tokens, uint32_t head,
                          uint32_t dim)
{
    return ((uint64_t)layer * n_tokens * cache->n_kv_heads + head) * dim;
}

void ew_cpu_cache_export(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block,
                         uint32_t n_tokens, float *out)
{
    float *v_out = out + (uint64_t)cache->n_layers * n_tokens * cache->n_kv_heads * cache->k_dim;

    for (uint32_t layer = 0; layer < cache->n_layers && cache->state_bytes; layer++)
        memcpy((uint8_t *)out + layer * cache->state_bytes, ew_cpu_cache_state(cache, block, layer),
               cache->state_bytes);

    for (uint32_t layer = 0; layer < cache->n_layers; layer++) {
        for (uint32_t head = 0; head < cache->n_kv_heads; head++) {
            struct ew_cpu_kv_tile tile = ew_cpu_cache_tile(cache, block, layer, head);

            ops->kv_decode(cache->dtype, tile.k, tile.k_scale, n_tokens, cache->k_dim,
                           out + canonical(cache, layer, n_tokens, head, cache->k_dim),
                           cache->n_kv_heads * cache->k_dim);
            ops->kv_decode(cache->dtype, tile.v, tile.v_scale, n_tokens, cache->v_dim,
                           v_out + canonical(cache, layer, n_tokens, head, cache->v_dim),
                           cache->n_kv_heads * cache->v_dim);
        }
    }
}

void ew_cpu_cache_import(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block,
                         uint32_t n_tokens, const float *in)
{
    const float *v_in = in + (uint64_t)cache->n_layers * n_tokens * cache->n_kv_heads * cache->k_dim;

    for (uint32_t layer = 0; layer < cache->n_layers && cache->state_bytes; layer++)
        memcpy(ew_cpu_cache_state(cache, block, layer), (const uint8_t *)in + layer * cache->state_bytes,
               cache->state_bytes);

    for (uint32_t layer = 0; layer < cache->n_layers; layer++) {
        const float *k = in + canonical(cache, layer, n_tokens, 0, cache->k_dim);
        const float *v = v_in + canonical(cache, layer, n_tokens, 0, cache->v_dim);

        for (uint32_t token = 0; token < n_tokens; token++)
            ew_cpu_cache_append(ops, cache, block, layer, token, k + (uint64_t)token * cache->n_kv_heads * cache->k_dim,
                                v + (uint64_t)token * cache->n_kv_heads * cache->v_dim);
    }
}
