#pragma once
// The pools of cache blocks: which blocks of the backend's memory are free, how many sequences hold each of the
// others, and which ones nobody but the prefix tree holds: those are given up, the least recently used first, when a
// block is taken and none is free.
//
// One pool a cache group of the program. A block's contents are the backend's own; here it is a number. Blocks are
// counted, so that sequences may share a prefix. Everything is allocated by init. Engine thread only.

#include <stdbool.h>

#include "kernel/ops.h"

#define EW_CACHE_GROUPS_MAX 8
#define EW_BLOCK_NONE (-1)

#define EW_NODE_NONE UINT32_MAX

struct ew_cache_link { // of a block among those that only the tree holds
    int32_t older, newer;
};

struct ew_cache_pool {
    struct ew_cache_group group;
    uint32_t n_blocks, n_free, n_reusable;
    int32_t *free;               // [n_blocks] a stack: the block given back last is taken first, still warm
    uint32_t *n_refs;            // [n_blocks] the tree's included
    uint32_t *node;              // [n_blocks] of the prefix tree, or EW_NODE_NONE
    struct ew_cache_link *links; // [n_blocks]
    int32_t oldest, newest;      // of the reusable ones
};

#define EW_CACHE_BLOCK_HOST_BYTES 20 // of the arrays above, one block

struct ew_prefix;

struct ew_cache {
    uint32_t n_groups, block_tokens;
    struct ew_cache_pool pools[EW_CACHE_GROUPS_MAX];
    struct ew_prefix *prefix; // NULL: nothing is kept for reuse
};

// n_blocks: [program->n_groups].
int ew_cache_init(struct ew_cache *cache, const struct ew_program *program, const uint32_t *n_blocks,
                  uint32_t block_tokens, struct ew_error *err) EW_MUST_CHECK;
void ew_cache_fini(struct ew_cache *cache);

// Held once by the caller; EW_BLOCK_NONE where all are held.
int32_t ew_cache_take(struct ew_cache *cache, uint32_t group);
void ew_cache_ref(struct ew_cache *cache, uint32_t group, int32_t block);
void ew_cache_unref(struct ew_cache *cache, uint32_t group, int32_t block);
static inline bool ew_cache_is_shared(const struct ew_cache *cache, uint32_t group, int32_t block)
{
    return cache->pools[group].n_refs[block] > 1;
}

// Blocks that can be taken: the free ones and those that only the tree holds.
static inline uint32_t ew_cache_available(const struct ew_cache *cache, uint32_t group)
{
    return cache->pools[group].n_free + cache->pools[group].n_reusable;
}
// For the tree: makes it a holder of a block that a sequence holds, or no longer one.
void ew_cache_keep(struct ew_cache *cache, uint32_t group, int32_t block, uint32_t node);
void ew_cache_unkeep(struct ew_cache *cache, uint32_t group, int32_t block);

// The most blocks that a sequence of n_tokens holds at once, when a step adds at most step_tokens to it. The one
// place that knows how the kinds differ in size.
uint32_t ew_cache_blocks_needed(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t step_tokens,
                                uint32_t block_tokens);
// Table entries of a sequence of n_tokens.
uint32_t ew_cache_table_length(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t block_tokens);
// First block that a sequence whose next token has this position still needs (0 unless the group is a window).
uint32_t ew_cache_first_needed(const struct ew_cache_group *group, uint32_t position, uint32_t block_tokens);

uint32_t ew_cache_blocks_total(const struct ew_cache *cache);
uint32_t ew_cache_blocks_used(const struct ew_cache *cache);     // by sequences, by the tree, or both
uint32_t ew_cache_blocks_reusable(const struct ew_cache *cache); // of these, by the tree alone
