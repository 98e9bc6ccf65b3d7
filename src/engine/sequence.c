#include "engine/sequence.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/prefix.h"

static int alloc_table(struct ew_sequence *seq, uint32_t g, struct ew_error *err)
{
    const struct ew_cache *cache = seq->cache;
    uint32_t length = ew_cache_table_length(&cache->pools[g].group, seq->capacity, cache->block_tokens);

    seq->tables[g] = ew_alloc_array(length, sizeof(**seq->tables));
    if (!seq->tables[g])
        return ew_fail_memory(err, length * sizeof(**seq->tables), "a sequence's block table");
    for (uint32_t i = 0; i < length; i++)
        seq->tables[g][i] = EW_BLOCK_NONE;
    return 0;
}

int ew_sequence_init(struct ew_sequence *seq, struct ew_cache *cache, uint32_t capacity, struct ew_error *err)
{
    int rc = 0;

    *seq = (struct ew_sequence){.cache = cache, .capacity = capacity, .node = EW_NODE_NONE};
    seq->tokens = ew_alloc_array(capacity, sizeof(*seq->tokens));
    if (!seq->tokens)
        return ew_fail_memory(err, (size_t)capacity * sizeof(*seq->tokens), "a sequence's tokens");
    for (uint32_t g = 0; g < cache->n_groups && rc == 0; g++)
        rc = alloc_table(seq, g, err);
    if (rc < 0)
        ew_sequence_fini(seq);
    return rc;
}

void ew_sequence_fini(struct ew_sequence *seq)
{
    if (seq->cache)
        ew_sequence_reset(seq);
    for (uint32_t g = 0; g < EW_CACHE_GROUPS_MAX; g++)
        ew_free(seq->tables[g]);
    ew_free(seq->tokens);
    *seq = (struct ew_sequence){0};
}

void ew_sequence_append(struct ew_sequence *seq, const int32_t *tokens, uint32_t n)
{
    EW_ASSERT(n <= seq->capacity - seq->n_tokens);
    memcpy(seq->tokens + seq->n_tokens, tokens, n * sizeof(*tokens));
    seq->n_tokens += n;
}

void ew_sequence_push(struct ew_sequence *seq, int32_t token)
{
    ew_sequence_append(seq, &token, 1);
}

static bool can_continue_at(const struct ew_sequence *seq, uint32_t n)
{
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        const struct ew_cache_group *group = &seq->cache->pools[g].group;

        if (group->kind == EW_CACHE_STATE && n != seq->n_cached)
            return false;
        if (group->kind == EW_CACHE_WINDOW && n > 0 &&
            (uint64_t)seq->first[g] * seq->cache->block_tokens + group->window > (uint64_t)n + 1 && seq->first[g] > 0)
            return false;
    }
    return true;
}

// From the end on: the blocks that the prefix tree keeps are then given up from the leaves to the root.
static void cut_table(struct ew_sequence *seq, uint32_t g, uint32_t length)
{
    for (uint32_t i = seq->n_blocks[g], end = EW_MAX(length, seq->first[g]); i-- > end;) {
        ew_cache_unref(seq->cache, g, seq->tables[g][i]);
        seq->tables[g][i] = EW_BLOCK_NONE;
    }
    seq->n_blocks[g] = EW_MIN(seq->n_blocks[g], length);
    seq->first[g] = EW_MIN(seq->first[g], length);
}

uint32_t ew_sequence_rewind(struct ew_sequence *seq, uint32_t n)
{
    EW_ASSERT(n <= seq->n_cached);
    if (!can_continue_at(seq, n))
        n = 0;
    for (; seq->n_kept > n / seq->cache->block_tokens; seq->n_kept--)
        seq->node = seq->cache->prefix->nodes[seq->node].parent;
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        const struct ew_cache_group *group = &seq->cache->pools[g].group;

        cut_table(seq, g, n == 0 ? 0 : ew_cache_table_length(group, n, seq->cache->block_tokens));
    }
    seq->n_cached = n;
    seq->n_state = EW_MIN(seq->n_state, n);
    return n;
}

uint32_t ew_sequence_truncate(struct ew_sequence *seq, uint32_t n)
{
    seq->n_tokens = ew_sequence_rewind(seq, n);
    return seq->n_tokens;
}

void ew_sequence_reset(struct ew_sequence *seq)
{
    ew_sequence_truncate(seq, 0);
}

// Whether the next token will be written into a block that already holds something, and which.
static bool has_begun_block(const struct ew_sequence *seq, uint32_t g, uint32_t *index)
{
    bool is_state = seq->cache->pools[g].group.kind == EW_CACHE_STATE;

    *index = is_state ? 0 : seq->n_cached / seq->cache->block_tokens;
    return seq->n_cached > 0 && (is_state || seq->n_cached % seq->cache->block_tokens != 0);
}

static int own_begun_block(struct ew_sequence *seq, struct ew_backend *backend, uint32_t g, struct ew_error *err)
{
    int32_t old, copy;
    uint32_t index;
    int rc;

    if (!has_begun_block(seq, g, &index) || !ew_cache_is_shared(seq->cache, g, seq->tables[g][index]))
        return 0;
    old = seq->tables[g][index];
    copy = ew_cache_take(seq->cache, g);
    if (copy == EW_BLOCK_NONE)
        return ew_fail(err, EW_ERR_MEMORY, "cache group %u has no free block left", g);
    rc = backend->ops->copy_block(backend, g, old, copy, err);
    if (rc < 0) {
        ew_cache_unref(seq->cache, g, copy);
        return rc;
    }
    ew_cache_unref(seq->cache, g, old);
    seq->tables[g][index] = copy;
    return 0;
}

int ew_sequence_extend(struct ew_sequence *seq, struct ew_backend *backend, uint32_t n_more, struct ew_error *err)
{
    EW_ASSERT(n_more <= seq->capacity - seq->n_cached);
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        uint32_t length = ew_cache_table_length(&seq->cache->pools[g].group, seq->n_cached + n_more,
                                                seq->cache->block_tokens);
        int rc = own_begun_block(seq, backend, g, err);

        if (rc < 0)
            return rc;
        for (; seq->n_blocks[g] < length; seq->n_blocks[g]++) {
            int32_t block = ew_cache_take(seq->cache, g);

            if (block == EW_BLOCK_NONE)
                return ew_fail(err, EW_ERR_MEMORY, "cache group %u has no free block left", g);
            seq->tables[g][seq->n_blocks[g]] = block;
        }
    }
    return 0;
}

void ew_sequence_release_passed(struct ew_sequence *seq)
{
    for (uint32_t g = 0; g < seq->cache->n_groups; g++) {
        uint32_t needed = ew_cache_first_needed(&seq->cache->pools[g].group, seq->n_cached, seq->cache->block_tokens);

        for (; seq->first[g] < needed; seq->first[g]++) {
            ew_cache_unref(seq->cache, g, seq->tables[g][seq->first[g]]);
            seq->tables[g][seq->first[g]] = EW_BLOCK_NONE;
        }
    }
}
