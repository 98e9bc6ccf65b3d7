#include "engine/prefix.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/map.h"

#define SIBLINGS_MAX 64 // looked at for a prefix that ends inside a node, the newest first
// Tokens between two states of one prompt that are kept: a state weighs as much as the keys of a thousand tokens or
// more, and keeping one while its sequence goes on is a copy.
#define STATE_DISTANCE 256
#define STATE_BLOCKS_LEAST 4 // blocks of new tokens that are worth a step's end for a state

// ---- nodes ---------------------------------------------------------------------------------------------------------

static int32_t *tokens_of(const struct ew_prefix *prefix, uint32_t node)
{
    return prefix->tokens + (size_t)node * prefix->cache->block_tokens;
}

static int32_t *blocks_of(const struct ew_prefix *prefix, uint32_t node)
{
    return prefix->blocks + (size_t)node * prefix->cache->n_groups;
}

static bool is_whole(const struct ew_prefix *prefix, uint32_t node)
{
    return prefix->nodes[node].n_tokens == prefix->cache->block_tokens;
}

static uint64_t hash_after(const struct ew_prefix *prefix, uint64_t key, uint32_t parent, const int32_t *tokens,
                           uint32_t n)
{
    return ew_hash_bytes(tokens, n * sizeof(*tokens), parent == EW_NODE_NONE ? key : prefix->nodes[parent].hash);
}

static uint32_t *bucket_of(const struct ew_prefix *prefix, uint64_t hash)
{
    return &prefix->buckets[hash & (prefix->n_buckets - 1)];
}

static uint32_t *children_of(struct ew_prefix *prefix, uint32_t parent)
{
    return parent == EW_NODE_NONE ? &prefix->root_child : &prefix->nodes[parent].child;
}

static uint32_t find_child(const struct ew_prefix *prefix, uint64_t key, uint32_t parent, const int32_t *tokens)
{
    uint32_t n = prefix->cache->block_tokens, node;
    uint64_t hash = hash_after(prefix, key, parent, tokens, n);

    for (node = *bucket_of(prefix, hash); node != EW_NODE_NONE; node = prefix->nodes[node].same_bucket)
        if (prefix->nodes[node].hash == hash && prefix->nodes[node].parent == parent &&
            prefix->nodes[node].root == key && memcmp(tokens_of(prefix, node), tokens, n * sizeof(*tokens)) == 0)
            break;
    return node;
}

static uint32_t add_node(struct ew_prefix *prefix, uint64_t key, uint32_t parent, const int32_t *tokens, uint32_t n)
{
    uint32_t node = prefix->free, *children = children_of(prefix, parent);
    struct ew_prefix_node *added;

    if (node == EW_NODE_NONE)
        return node;
    added = &prefix->nodes[node];
    prefix->free = added->same_bucket;
    prefix->n_used++;
    *added = (struct ew_prefix_node){
        .hash = hash_after(prefix, key, parent, tokens, n),
        .root = key,
        .parent = parent,
        .child = EW_NODE_NONE,
        .older = *children,
        .newer = EW_NODE_NONE,
        .same_bucket = EW_NODE_NONE,
        .n_tokens = n,
    };
    if (*children != EW_NODE_NONE)
        prefix->nodes[*children].newer = node;
    *children = node;
    memcpy(tokens_of(prefix, node), tokens, n * sizeof(*tokens));
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        blocks_of(prefix, node)[g] = EW_BLOCK_NONE;
    if (is_whole(prefix, node)) {
        added->same_bucket = *bucket_of(prefix, added->hash);
        *bucket_of(prefix, added->hash) = node;
    }
    return node;
}

static void unlink_node(struct ew_prefix *prefix, uint32_t node)
{
    struct ew_prefix_node *gone = &prefix->nodes[node];

    if (gone->older != EW_NODE_NONE)
        prefix->nodes[gone->older].newer = gone->newer;
    if (gone->newer != EW_NODE_NONE)
        prefix->nodes[gone->newer].older = gone->older;
    else
        *children_of(prefix, gone->parent) = gone->older;
    if (is_whole(prefix, node)) {
        uint32_t *at = bucket_of(prefix, gone->hash);

        while (*at != node)
            at = &prefix->nodes[*at].same_bucket;
        *at = gone->same_bucket;
    }
}

static void drop_block(struct ew_prefix *prefix, uint32_t node, uint32_t group)
{
    int32_t *block = &blocks_of(prefix, node)[group];

    if (*block != EW_BLOCK_NONE)
        ew_cache_unkeep(prefix->cache, group, *block);
    *block = EW_BLOCK_NONE;
}

static void remove_node(struct ew_prefix *prefix, uint32_t node)
{
    EW_ASSERT(prefix->nodes[node].child == EW_NODE_NONE);
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        drop_block(prefix, node, g);
    unlink_node(prefix, node);
    prefix->nodes[node].same_bucket = prefix->free;
    prefix->free = node;
    prefix->n_used--;
}

static bool has_blocks(const struct ew_prefix *prefix, uint32_t node)
{
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        if (blocks_of(prefix, node)[g] != EW_BLOCK_NONE)
            return true;
    return false;
}

void ew_prefix_evict(struct ew_prefix *prefix, uint32_t group)
{
    const struct ew_cache_pool *pool = &prefix->cache->pools[group];
    uint32_t node = pool->node[pool->oldest];

    if (pool->group.kind != EW_CACHE_WINDOW && pool->group.kind != EW_CACHE_STATE) {
        remove_node(prefix, node);
        return;
    }
    drop_block(prefix, node, group);
    while (node != EW_NODE_NONE && prefix->nodes[node].child == EW_NODE_NONE && !has_blocks(prefix, node)) {
        uint32_t parent = prefix->nodes[node].parent;

        remove_node(prefix, node);
        node = parent;
    }
}

// ---- creation ------------------------------------------------------------------------------------------------------

static bool is_whole_group(enum ew_cache_kind kind)
{
    return kind == EW_CACHE_FULL || kind == EW_CACHE_LATENT;
}

// States alone would leave nodes that nobody gives up.
static bool can_reuse(const struct ew_cache *cache)
{
    bool has_whole = false, has_states = false;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        enum ew_cache_kind kind = cache->pools[g].group.kind;

        has_whole = has_whole || is_whole_group(kind);
        has_states = has_states || kind == EW_CACHE_STATE;
        if (!is_whole_group(kind) && kind != EW_CACHE_WINDOW && kind != EW_CACHE_STATE)
            return false;
    }
    return cache->n_groups > 0 && (has_whole || !has_states);
}

// A node has a block in each full group. Where all groups are windows, most nodes of a long path have none: four times
// the blocks remember the beginnings of a few windows' length.
static uint32_t nodes_for(const struct ew_cache_group *groups, uint32_t n_groups, const uint32_t *n_blocks)
{
    uint64_t most = 0;

    for (uint32_t g = 0; g < n_groups; g++) {
        if (is_whole_group(groups[g].kind))
            return n_blocks[g];
        most += groups[g].kind == EW_CACHE_WINDOW ? 4 * (uint64_t)n_blocks[g] : 0;
    }
    return (uint32_t)EW_MIN(most, (uint64_t)INT32_MAX);
}

static uint32_t buckets_for(uint32_t n_nodes)
{
    uint32_t n = 64;

    while (n < n_nodes && n < 1u << 30)
        n *= 2;
    return n;
}

uint64_t ew_prefix_host_bytes(const struct ew_cache_group *groups, uint32_t n_groups, const uint32_t *n_blocks,
                              uint32_t block_tokens, uint32_t context_max)
{
    uint64_t n_nodes = nodes_for(groups, n_groups, n_blocks);
    uint64_t node_bytes = sizeof(struct ew_prefix_node) + (block_tokens + n_groups) * sizeof(int32_t);

    return sizeof(struct ew_prefix) + n_nodes * node_bytes + buckets_for((uint32_t)n_nodes) * sizeof(uint32_t) +
           (context_max / block_tokens + 1) * sizeof(uint32_t);
}

static int alloc_arrays(struct ew_prefix *prefix, struct ew_error *err)
{
    size_t n = prefix->n_nodes, block_tokens = prefix->cache->block_tokens, n_tokens;

    if (!ew_mul_size(n, block_tokens, &n_tokens))
        return ew_fail_memory(err, SIZE_MAX, "the prefix tree");
    prefix->nodes = ew_alloc_array(n, sizeof(*prefix->nodes));
    prefix->tokens = ew_alloc_array(n_tokens, sizeof(*prefix->tokens));
    prefix->blocks = ew_alloc_array(n * prefix->cache->n_groups, sizeof(*prefix->blocks));
    prefix->buckets = ew_alloc_array(prefix->n_buckets, sizeof(*prefix->buckets));
    prefix->path = ew_alloc_array(prefix->path_max, sizeof(*prefix->path));
    if (!prefix->nodes || !prefix->tokens || !prefix->blocks || !prefix->buckets || !prefix->path)
        return ew_fail_memory(err, n * (sizeof(*prefix->nodes) + block_tokens * sizeof(*prefix->tokens)),
                              "the prefix tree");
    return 0;
}

int ew_prefix_create(struct ew_cache *cache, uint32_t context_max, struct ew_prefix **out, struct ew_error *err)
{
    struct ew_cache_group groups[EW_CACHE_GROUPS_MAX];
    uint32_t n_blocks[EW_CACHE_GROUPS_MAX];
    struct ew_prefix *prefix;
    int rc;

    *out = NULL;
    for (uint32_t g = 0; g < cache->n_groups; g++) {
        groups[g] = cache->pools[g].group;
        n_blocks[g] = cache->pools[g].n_blocks;
    }
    if (!can_reuse(cache))
        return 0;
    prefix = ew_alloc(sizeof(*prefix));
    if (!prefix)
        return ew_fail_memory(err, sizeof(*prefix), "the prefix tree");
    *prefix = (struct ew_prefix){
        .cache = cache,
        .n_nodes = nodes_for(groups, cache->n_groups, n_blocks),
        .root_child = EW_NODE_NONE,
        .path_max = context_max / cache->block_tokens + 1,
    };
    for (uint32_t g = 0; g < cache->n_groups; g++)
        prefix->has_states = prefix->has_states || groups[g].kind == EW_CACHE_STATE;
    prefix->n_buckets = buckets_for(prefix->n_nodes);
    rc = alloc_arrays(prefix, err);
    if (rc < 0) {
        ew_prefix_destroy(prefix);
        return rc;
    }
    for (uint32_t i = 0; i < prefix->n_buckets; i++)
        prefix->buckets[i] = EW_NODE_NONE;
    for (uint32_t i = 0; i < prefix->n_nodes; i++)
        prefix->nodes[i].same_bucket = i + 1 < prefix->n_nodes ? i + 1 : EW_NODE_NONE;
    prefix->free = prefix->n_nodes ? 0 : EW_NODE_NONE;
    *out = cache->prefix = prefix;
    return 0;
}

// Removes leaf after leaf, without recursion: the first child of the first child is one.
static void remove_all(struct ew_prefix *prefix)
{
    while (prefix->root_child != EW_NODE_NONE) {
        uint32_t node = prefix->root_child;

        while (prefix->nodes[node].child != EW_NODE_NONE)
            node = prefix->nodes[node].child;
        remove_node(prefix, node);
    }
}

void ew_prefix_destroy(struct ew_prefix *prefix)
{
    if (!prefix)
        return;
    if (prefix->cache->prefix == prefix) {
        remove_all(prefix);
        prefix->cache->prefix = NULL;
    }
    ew_free(prefix->nodes);
    ew_free(prefix->tokens);
    ew_free(prefix->blocks);
    ew_free(prefix->buckets);
    ew_free(prefix->path);
    ew_free(prefix);
}

// ---- reuse ---------------------------------------------------------------------------------------------------------

struct match {
    uint32_t n_whole;  // nodes of prefix->path
    uint32_t partial;  // a child of the last of them, or EW_NODE_NONE
    uint32_t n_tokens; // all together
};

// The first token that the one at position n sees in this group.
static uint32_t first_seen(const struct ew_cache_group *group, uint32_t n)
{
    return group->kind == EW_CACHE_WINDOW && n + 1 > group->window ? n + 1 - group->window : 0;
}

// runs[g]: how many of the nodes up to here have a block of the group without a gap.
static void count_runs(const struct ew_prefix *prefix, uint32_t node, uint32_t *runs)
{
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        runs[g] = blocks_of(prefix, node)[g] == EW_BLOCK_NONE ? 0 : runs[g] + 1;
}

// Whether a sequence could go on after n tokens, which lie in n_nodes nodes.
static bool can_go_on(const struct ew_prefix *prefix, const uint32_t *runs, uint32_t n_nodes, uint32_t n)
{
    const struct ew_cache *cache = prefix->cache;

    for (uint32_t g = 0; g < cache->n_groups; g++)
        if (cache->pools[g].group.kind == EW_CACHE_STATE
                ? runs[g] == 0
                : n_nodes - runs[g] > first_seen(&cache->pools[g].group, n) / cache->block_tokens)
            return false;
    return true;
}

static uint32_t common(const int32_t *a, const int32_t *b, uint32_t n)
{
    uint32_t i = 0;

    while (i < n && a[i] == b[i])
        i++;
    return i;
}

static bool has_state(const struct ew_prefix *prefix, uint32_t node)
{
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        if (prefix->cache->pools[g].group.kind == EW_CACHE_STATE && blocks_of(prefix, node)[g] == EW_BLOCK_NONE)
            return false;
    return true;
}

// The child that goes the longest way along with the next n tokens. A state is of a node's end and of no other place.
static uint32_t find_partial(struct ew_prefix *prefix, uint64_t key, uint32_t parent, const int32_t *tokens, uint32_t n,
                             uint32_t *n_common)
{
    uint32_t best = EW_NODE_NONE, node = *children_of(prefix, parent);

    *n_common = 0;
    for (uint32_t i = 0; i < SIBLINGS_MAX && node != EW_NODE_NONE; i++, node = prefix->nodes[node].older) {
        uint32_t same = common(tokens_of(prefix, node), tokens, EW_MIN(n, prefix->nodes[node].n_tokens));

        if (prefix->nodes[node].root != key || same <= *n_common)
            continue;
        if (prefix->has_states && (same < prefix->nodes[node].n_tokens || !has_state(prefix, node)))
            continue;
        best = node;
        *n_common = same;
    }
    return best;
}

// Goes on into a child of the last of `depth` nodes, where that leads further than *best.
static void find_inside(struct ew_prefix *prefix, uint64_t key, uint32_t parent, const int32_t *tokens, uint32_t n,
                        uint32_t depth, const uint32_t *runs, struct match *best)
{
    uint32_t own_runs[EW_CACHE_GROUPS_MAX], begin = depth * prefix->cache->block_tokens, n_common;
    uint32_t partial = find_partial(prefix, key, parent, tokens + begin, n - begin, &n_common);

    if (partial == EW_NODE_NONE)
        return;
    memcpy(own_runs, runs, sizeof(own_runs));
    count_runs(prefix, partial, own_runs);
    if (can_go_on(prefix, own_runs, depth + 1, begin + n_common))
        *best = (struct match){depth, partial, begin + n_common};
}

static struct match find(struct ew_prefix *prefix, uint64_t key, const int32_t *tokens, uint32_t n)
{
    uint32_t block_tokens = prefix->cache->block_tokens, depth = 0, parent = EW_NODE_NONE;
    uint32_t runs[EW_CACHE_GROUPS_MAX] = {0};
    struct match best = {.partial = EW_NODE_NONE};

    for (; (depth + 1) * block_tokens <= n; depth++) {
        uint32_t node = find_child(prefix, key, parent, tokens + depth * block_tokens);

        if (node == EW_NODE_NONE)
            break;
        if (prefix->has_states) // which further nodes may lack
            find_inside(prefix, key, parent, tokens, n, depth, runs, &best);
        prefix->path[depth] = parent = node;
        count_runs(prefix, node, runs);
        if (can_go_on(prefix, runs, depth + 1, (depth + 1) * block_tokens))
            best = (struct match){depth + 1, EW_NODE_NONE, (depth + 1) * block_tokens};
    }
    find_inside(prefix, key, parent, tokens, n, depth, runs, &best);
    return best;
}

// The begun block stays the tree's; the sequence gets a copy as soon as it extends. Where there is no block for that,
// it starts at the block's beginning.
static uint32_t own_partial(struct ew_sequence *seq, struct ew_backend *backend, const struct match *match)
{
    if (match->partial == EW_NODE_NONE || ew_sequence_extend(seq, backend, 0, NULL) == 0)
        return match->n_tokens;
    return ew_sequence_rewind(seq, match->n_whole * seq->cache->block_tokens);
}

// The last of the path's nodes has the state; the sequence gets its own when it extends.
static void adopt_state(struct ew_prefix *prefix, uint32_t group, uint32_t n_nodes, struct ew_sequence *seq)
{
    seq->n_blocks[group] = n_nodes > 0;
    if (n_nodes == 0)
        return;
    seq->tables[group][0] = blocks_of(prefix, prefix->path[n_nodes - 1])[group];
    ew_cache_ref(prefix->cache, group, seq->tables[group][0]);
}

uint32_t ew_prefix_adopt(struct ew_prefix *prefix, uint64_t key, struct ew_sequence *seq, struct ew_backend *backend)
{
    struct match match = find(prefix, key, seq->tokens, seq->n_tokens - 1);
    uint32_t n_nodes = match.n_whole + (match.partial != EW_NODE_NONE);

    EW_ASSERT(seq->n_cached == 0);
    if (match.partial != EW_NODE_NONE)
        prefix->path[match.n_whole] = match.partial;
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++) {
        uint32_t first = first_seen(&prefix->cache->pools[g].group, match.n_tokens) / prefix->cache->block_tokens;

        if (prefix->cache->pools[g].group.kind == EW_CACHE_STATE) {
            adopt_state(prefix, g, n_nodes, seq);
            continue;
        }
        seq->first[g] = EW_MIN(first, n_nodes);
        seq->n_blocks[g] = n_nodes;
        for (uint32_t i = seq->first[g]; i < n_nodes; i++) {
            seq->tables[g][i] = blocks_of(prefix, prefix->path[i])[g];
            ew_cache_ref(prefix->cache, g, seq->tables[g][i]);
        }
    }
    seq->n_cached = seq->n_state = match.n_tokens;
    seq->n_kept = match.n_whole;
    seq->node = match.n_whole ? prefix->path[match.n_whole - 1] : EW_NODE_NONE;
    return own_partial(seq, backend, &match);
}

// ---- keeping -------------------------------------------------------------------------------------------------------

// From here on node and sequence hold the same block, where the sequence has one: the tree's if there are two.
static void merge_block(struct ew_prefix *prefix, uint32_t node, uint32_t group, int32_t *own)
{
    int32_t *kept = &blocks_of(prefix, node)[group];

    if (*own == EW_BLOCK_NONE || *own == *kept)
        return;
    if (*kept == EW_BLOCK_NONE) {
        *kept = *own;
        ew_cache_keep(prefix->cache, group, *own, node);
        return;
    }
    ew_cache_ref(prefix->cache, group, *kept);
    ew_cache_unref(prefix->cache, group, *own);
    *own = *kept;
}

static void merge_tokens(struct ew_prefix *prefix, uint32_t node, struct ew_sequence *seq, uint32_t index)
{
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        if (prefix->cache->pools[g].group.kind != EW_CACHE_STATE)
            merge_block(prefix, node, g, &seq->tables[g][index]);
}

// The node ends where the sequence is.
static void merge_states(struct ew_prefix *prefix, uint32_t node, struct ew_sequence *seq)
{
    for (uint32_t g = 0; g < prefix->cache->n_groups; g++)
        if (prefix->cache->pools[g].group.kind == EW_CACHE_STATE)
            merge_block(prefix, node, g, &seq->tables[g][0]);
    seq->n_state = seq->n_cached;
}

// The begun block, unless some node has all of its tokens.
static void keep_tail(struct ew_prefix *prefix, uint64_t key, struct ew_sequence *seq)
{
    uint32_t block_tokens = prefix->cache->block_tokens, n = seq->n_cached % block_tokens, n_common, node;
    const int32_t *tokens = seq->tokens + seq->n_cached - n;

    if (n == 0 || seq->n_kept != seq->n_cached / block_tokens)
        return;
    find_partial(prefix, key, seq->node, tokens, n, &n_common);
    if (n_common == n)
        return;
    node = add_node(prefix, key, seq->node, tokens, n);
    if (node == EW_NODE_NONE)
        return;
    merge_tokens(prefix, node, seq, seq->n_kept);
    merge_states(prefix, node, seq);
}

// Whether the state that the sequence has now is worth a block and, where it goes on, a copy: at its end, near
// that of a prompt, where the next turn of a conversation departs, and every so often on a long way there.
static bool wants_state(const struct ew_prefix *prefix, const struct ew_sequence *seq, bool with_tail)
{
    uint32_t pending = seq->n_tokens - seq->n_cached;

    if (!prefix->has_states || with_tail)
        return with_tail;
    return pending > 0 &&
           (pending <= 2 * prefix->cache->block_tokens || seq->n_cached - seq->n_state >= STATE_DISTANCE);
}

uint32_t ew_prefix_chunk(const struct ew_prefix *prefix, const struct ew_sequence *seq, uint32_t n)
{
    uint32_t block_tokens = prefix->cache->block_tokens, end = seq->n_cached + n;

    if (!prefix->has_states)
        return n;
    if (end == seq->n_tokens) { // prompts end with words of the chat template that the next turn may not have
        if (n < STATE_BLOCKS_LEAST * block_tokens)
            return n;
        end -= block_tokens + 1;
    }
    end -= end % block_tokens;
    return end > seq->n_cached ? end - seq->n_cached : n;
}

void ew_prefix_keep(struct ew_prefix *prefix, uint64_t key, struct ew_sequence *seq, bool with_tail)
{
    uint32_t block_tokens = prefix->cache->block_tokens;

    for (; seq->n_kept < seq->n_cached / block_tokens; seq->n_kept++) {
        const int32_t *tokens = seq->tokens + seq->n_kept * block_tokens;
        uint32_t node = find_child(prefix, key, seq->node, tokens);

        if (node == EW_NODE_NONE)
            node = add_node(prefix, key, seq->node, tokens, block_tokens);
        if (node == EW_NODE_NONE)
            return; // the tree is full: again later
        merge_tokens(prefix, node, seq, seq->n_kept);
        seq->node = node;
    }
    if (seq->n_kept && seq->n_cached == seq->n_kept * block_tokens && wants_state(prefix, seq, with_tail))
        merge_states(prefix, seq->node, seq);
    if (with_tail)
        keep_tail(prefix, key, seq);
}
