#pragma once
// Prefixes that were computed before: a tree whose nodes are runs of block_tokens tokens, each with the cache blocks
// that hold them.
//
// Sequences put their blocks into the tree as they fill up, and the last, begun one when they end. A new sequence walks
// the tree along its prompt and shares the blocks; of a node that it leaves in the middle it gets a copy. A prefix can
// be taken up at a place only where every cache group has what the next token sees: all blocks of a full group, the
// last ones of a window, the state after exactly these tokens. Programs with groups that keep other tokens (cross), or
// states and nothing else, have no tree.
//
// A node has at most one block of a state group: the state at its end. Few have one, as a state is large: those where a
// sequence ended, and, of a prompt, where ew_prefix_chunk made a chunk end. Keeping it costs nothing until
// its sequence goes on: that writes into a copy.
//
// A node holds its blocks like a sequence does. Blocks that only the tree holds are given up when the pools need them,
// the least recently used first (engine/cache.h): in a full group that ends the node, and as sequences give back their
// blocks from the last to the first, and hold the tree's block wherever there is one, it is always a leaf's. A window's
// block or a state can go from any node.
//
// A node's hash is that of all tokens up to its end and of the root's key: it names the contents of the node's blocks,
// for whoever wants to keep them elsewhere. Everything is allocated by create. Engine thread only.

#include "engine/sequence.h"

struct ew_prefix_node {
    uint64_t hash, root;
    uint32_t parent, child, older, newer; // the newest child; siblings
    uint32_t same_bucket;                 // or the next free node
    uint32_t n_tokens;                    // fewer than a block's: a leaf, and not in the hash table
};

struct ew_prefix {
    struct ew_cache *cache;
    uint32_t n_nodes, n_used, free;
    struct ew_prefix_node *nodes; // [n_nodes]
    int32_t *tokens;              // [n_nodes, block_tokens]
    int32_t *blocks;              // [n_nodes, n_groups], EW_BLOCK_NONE where given up
    uint32_t *buckets;            // [n_buckets], a power of two
    uint32_t n_buckets;
    uint32_t root_child; // the newest node without a parent
    uint32_t *path;      // [path_max] of the newest match
    uint32_t path_max;
    bool has_states;
};

// Attaches itself to the cache, which must outlive it. *out NULL: the program's groups cannot be reused.
int ew_prefix_create(struct ew_cache *cache, uint32_t context_max, struct ew_prefix **out,
                     struct ew_error *err) EW_MUST_CHECK;
void ew_prefix_destroy(struct ew_prefix *prefix); // gives all blocks back; NULL is allowed
// Upper bound of what create takes.
uint64_t ew_prefix_host_bytes(const struct ew_cache_group *groups, uint32_t n_groups, const uint32_t *n_blocks,
                              uint32_t block_tokens, uint32_t context_max);

// Makes seq, which holds no blocks, start after the longest prefix of its first n_tokens - 1 tokens that can be reused;
// what it then counts as cached. Only what was kept under the same key counts: keys tell apart caches that differ for
// equal tokens, such as by their rotation.
uint32_t ew_prefix_adopt(struct ew_prefix *prefix, uint64_t key, struct ew_sequence *seq, struct ew_backend *backend);
// Puts the blocks that seq has filled into the tree; with_tail: the begun one too, after which it must be written no
// more. Its cached tokens must really be computed.
void ew_prefix_keep(struct ew_prefix *prefix, uint64_t key, struct ew_sequence *seq, bool with_tail);
// How many of the next n tokens a step should compute, so that a state can be kept where it ends: n, or fewer.
uint32_t ew_prefix_chunk(const struct ew_prefix *prefix, const struct ew_sequence *seq, uint32_t n);
// For the cache: gives up the least recently used block of a group that only the tree holds.
void ew_prefix_evict(struct ew_prefix *prefix, uint32_t group);
