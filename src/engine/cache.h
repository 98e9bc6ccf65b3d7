#pragma once
// The pools of cache blocks: which blocks of the backend's memory are free, and how many sequences hold each of the
// others.
//
// One pool a cache group of the program. A block's contents are the backend's own; here it is a number. Blocks are
// counted, so that sequences may share a prefix. Everything is allocated by init. Engine thread only.

#include <stdbool.h>

#include "kernel/ops.h"

#define EW_CACHE_GROUPS_MAX 8
#define EW_BLOCK_NONE (-1)

struct ew_cache_pool {
    struct ew_cache_group group;
    uint32_t n_blocks, n_free;
    int32_t *free;    // [n_blocks] a stack: the block given back last is taken first, while its memory is warm
    uint32_t *n_refs; // [n_blocks]
};

struct ew_cache {
    uint32_t n_groups, block_tokens;
    struct ew_cache_pool pools[EW_CACHE_GROUPS_MAX];
};

// n_blocks: [program->n_groups].
int ew_cache_init(struct ew_cache *cache, const struct ew_program *program, const uint32_t *n_blocks,
                  uint32_t block_tokens, struct ew_error *err) EW_MUST_CHECK;
void ew_cache_fini(struct ew_cache *cache);

int32_t ew_cache_take(struct ew_cache *cache,
                      uint32_t group); // held once by the caller; EW_BLOCK_NONE where the pool is empty
void ew_cache_ref(struct ew_cache *cache, uint32_t group, int32_t block);
void ew_cache_unref(struct ew_cache *cache, uint32_t group, int32_t block);
static inline bool ew_cache_is_shared(const struct ew_cache *cache, uint32_t group, int32_t block)
{
    return cache->pools[group].n_refs[block] > 1;
}

// The most blocks that a sequence of n_tokens holds at once, when a step adds at most step_tokens to it. The one
// place that knows how the kinds differ in size.
uint32_t ew_cache_blocks_needed(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t step_tokens,
                                uint32_t block_tokens);
// Table entries of a sequence of n_tokens.
uint32_t ew_cache_table_length(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t block_tokens);
// First block that a sequence whose next token has this position still needs (0 unless the group is a window).
uint32_t ew_cache_first_needed(const struct ew_cache_group *group, uint32_t position, uint32_t block_tokens);

uint32_t ew_cache_blocks_total(const struct ew_cache *cache);
uint32_t ew_cache_blocks_used(const struct ew_cache *cache);
