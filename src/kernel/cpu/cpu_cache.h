#pragma once
// The block pools of one cache group. A block holds, for each layer and KV head, block_tokens rows of K, as many of V,
// and (8-bit types) one f16 scale of each row: what one work item of attention reads is contiguous.

#include "kernel/cpu/cpu_ops.h"

struct ew_cpu_cache {
    enum ew_kv_dtype dtype;
    uint32_t n_blocks, block_tokens, n_layers, n_kv_heads, k_dim, v_dim;
    uint64_t head_bytes, layer_bytes, block_bytes;
    uint64_t state_bytes; // > 0: blocks hold this much of f32 for each layer, and the heads' sizes are 0
    uint8_t *data;
};

struct ew_cpu_kv_tile { // of one block, layer and head
    uint8_t *k, *v;
    uint16_t *k_scale, *v_scale;
};

int ew_cpu_cache_shape(struct ew_cpu_cache *cache, const struct ew_cache_group *group, const struct ew_limits *limits,
                       struct ew_error *err) EW_MUST_CHECK; // all but data and n_blocks
struct ew_cpu_kv_tile ew_cpu_cache_tile(const struct ew_cpu_cache *cache, int32_t block, uint32_t layer, uint32_t head);
float *ew_cpu_cache_state(const struct ew_cpu_cache *cache, int32_t block, uint32_t layer);
uint32_t ew_cpu_kv_bytes(enum ew_kv_dtype dtype); // of one element
// Stores one token's heads: k [n_kv_heads, k_dim], v [n_kv_heads, v_dim].
void ew_cpu_cache_append(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block, uint32_t layer,
                         uint32_t row, const float *k, const float *v);
// The canonical form: f32 K, then V, each [n_layers, n_tokens, heads, dim]; of a state [n_layers, its elements].
void ew_cpu_cache_export(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block,
                         uint32_t n_tokens, float *out);
void ew_cpu_cache_import(const struct ew_cpu_ops *ops, const struct ew_cpu_cache *cache, int32_t block,
                         uint32_t n_tokens, const float *in);
