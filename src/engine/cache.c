#include "engine/cache.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/prefix.h"

static int pool_init(struct ew_cache_pool *pool, const struct ew_cache_group *group, uint32_t n_blocks,
                     struct ew_error *err)
{
    EW_ASSERT(group->kind != EW_CACHE_WINDOW || group->window > 0);
    pool->group = *group;
    pool->free = ew_alloc_array(n_blocks, sizeof(*pool->free));
    pool->n_refs = ew_alloc_array(n_blocks, sizeof(*pool->n_refs));
    pool->node = ew_alloc_array(n_blocks, sizeof(*pool->node));
    pool->links = ew_alloc_array(n_blocks, sizeof(*pool->links));
    if (!pool->free || !pool->n_refs || !pool->node || !pool->links)
        return ew_fail_memory(err, (size_t)n_blocks * EW_CACHE_BLOCK_HOST_BYTES, "the cache block lists");
    pool->n_blocks = pool->n_free = n_blocks;
    pool->oldest = pool->newest = EW_BLOCK_NONE;
    for (uint32_t i = 0; i < n_blocks; i++) {
        pool->free[i] = (int32_t)(n_blocks - 1 - i);
        pool->node[i] = EW_NODE_NONE;
    }
    return 0;
}

static void pool_fini(struct ew_cache_pool *pool)
{
    ew_free(pool->free);
    ew_free(pool->n_refs);
    ew_free(pool->node);
    ew_free(pool->links);
}

int ew_cache_init(struct ew_cache *cache, const struct ew_program *program, const uint32_t *n_blocks,
                  uint32_t block_tokens, struct ew_error *err)
{
    int rc;

    EW_ASSERT(block_tokens > 0);
    *cache = (struct ew_cache){.block_tokens = block_tokens};
    if (program->n_groups > EW_CACHE_GROUPS_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the model has %u cache groups and at most %u are supported",
                       program->n_groups, EW_CACHE_GROUPS_MAX);
    cache->n_groups = program->n_groups;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        rc = pool_init(&cache->pools[g], &program->groups[g], n_blocks[g], err);
        if (rc < 0) {
            ew_cache_fini(cache);
            return rc;
        }
    }
    return 0;
}

void ew_cache_fini(struct ew_cache *cache)
{
    for (uint32_t g = 0; g < cache->n_groups; g++)
        pool_fini(&cache->pools[g]);
    *cache = (struct ew_cache){0};
}

// ---- holding and giving back ---------------------------------------------------------------------------------------

static void list_append(struct ew_cache_pool *pool, int32_t block)
{
    pool->links[block] = (struct ew_cache_link){.older = pool->newest, .newer = EW_BLOCK_NONE};
    if (pool->newest != EW_BLOCK_NONE)
        pool->links[pool->newest].newer = block;
    else
        pool->oldest = block;
    pool->newest = block;
    pool->n_reusable++;
}

static void list_remove(struct ew_cache_pool *pool, int32_t block)
{
    struct ew_cache_link link = pool->links[block];

    if (link.older != EW_BLOCK_NONE)
        pool->links[link.older].newer = link.newer;
    else
        pool->oldest = link.newer;
    if (link.newer != EW_BLOCK_NONE)
        pool->links[link.newer].older = link.older;
    else
        pool->newest = link.older;
    pool->n_reusable--;
}

int32_t ew_cache_take(struct ew_cache *cache, uint32_t group)
{
    struct ew_cache_pool *pool = &cache->pools[group];
    int32_t block;

    if (pool->n_free == 0 && pool->n_reusable > 0)
        ew_prefix_evict(cache->prefix, group);
    if (pool->n_free == 0)
        return EW_BLOCK_NONE;
    block = pool->free[--pool->n_free];
    EW_ASSERT(pool->n_refs[block] == 0);
    pool->n_refs[block] = 1;
    return block;
}

void ew_cache_ref(struct ew_cache *cache, uint32_t group, int32_t block)
{
    struct ew_cache_pool *pool = &cache->pools[group];

    EW_ASSERT(block >= 0 && (uint32_t)block < pool->n_blocks && pool->n_refs[block] > 0);
    if (pool->n_refs[block]++ == 1 && pool->node[block] != EW_NODE_NONE)
        list_remove(pool, block);
}

void ew_cache_unref(struct ew_cache *cache, uint32_t group, int32_t block)
{
    struct ew_cache_pool *pool = &cache->pools[group];

    EW_ASSERT(block >= 0 && (uint32_t)block < pool->n_blocks && pool->n_refs[block] > 0);
    if (--pool->n_refs[block] == 0)
        pool->free[pool->n_free++] = block;
    else if (pool->n_refs[block] == 1 && pool->node[block] != EW_NODE_NONE)
        list_append(pool, block);
}

void ew_cache_keep(struct ew_cache *cache, uint32_t group, int32_t block, uint32_t node)
{
    struct ew_cache_pool *pool = &cache->pools[group];

    EW_ASSERT(pool->n_refs[block] > 0 && pool->node[block] == EW_NODE_NONE);
    pool->node[block] = node;
    pool->n_refs[block]++;
}

void ew_cache_unkeep(struct ew_cache *cache, uint32_t group, int32_t block)
{
    struct ew_cache_pool *pool = &cache->pools[group];

    EW_ASSERT(pool->n_refs[block] > 0 && pool->node[block] != EW_NODE_NONE);
    if (pool->n_refs[block] == 1)
        list_remove(pool, block);
    pool->node[block] = EW_NODE_NONE;
    ew_cache_unref(cache, group, block);
}

// ---- how many ------------------------------------------------------------------------------------------------------

static uint32_t blocks_of(uint32_t n_tokens, uint32_t block_tokens)
{
    return n_tokens / block_tokens + (n_tokens % block_tokens != 0);
}

uint32_t ew_cache_table_length(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t block_tokens)
{
    return group->kind == EW_CACHE_STATE ? 1 : blocks_of(n_tokens, block_tokens);
}

uint32_t ew_cache_first_needed(const struct ew_cache_group *group, uint32_t position, uint32_t block_tokens)
{
    uint64_t kept;

    if (group->kind != EW_CACHE_WINDOW)
        return 0;
    // The token at `position` sees window - 1 earlier ones. A block's worth more is kept, so that a session whose new
    // prompt departs in its last few tokens can be cut back instead of being computed anew.
    kept = (uint64_t)group->window - 1 + block_tokens;
    return position > kept ? (uint32_t)(position - kept) / block_tokens : 0;
}

uint32_t ew_cache_blocks_needed(const struct ew_cache_group *group, uint32_t n_tokens, uint32_t step_tokens,
                                uint32_t block_tokens)
{
    uint32_t all = ew_cache_table_length(group, n_tokens, block_tokens), held;

    if (group->kind != EW_CACHE_WINDOW)
        return all;
    // Before a step the window and the block kept besides, then the step's own tokens; both ends may fall inside a
    // block.
    held = blocks_of(EW_MIN(group->window, n_tokens), block_tokens) + blocks_of(step_tokens, block_tokens) + 2;
    return EW_MIN(all, held);
}

uint32_t ew_cache_blocks_total(const struct ew_cache *cache)
{
    uint32_t total = 0;

    for (uint32_t g = 0; g < cache->n_groups; g++)
        total += cache->pools[g].n_blocks;
    return total;
}

uint32_t ew_cache_blocks_used(const struct ew_cache *cache)
{
    uint32_t used = 0;

    for (uint32_t g = 0; g < cache->n_groups; g++)
        used += cache->pools[g].n_blocks - cache->pools[g].n_free;
    return used;
}

uint32_t ew_cache_blocks_reusable(const struct ew_cache *cache)
{
    uint32_t reusable = 0;

    for (uint32_t g = 0; g < cache->n_groups; g++)
        reusable += cache->pools[g].n_reusable;
    return reusable;
}
