#pragma once
// A byte trie for longest-prefix and common-prefix search. Edges live in one hash table, so that a quarter of a million
// tokens build in one pass without sorting. Immutable once filled.

#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

#define EW_TRIE_ROOT 0u
#define EW_TRIE_NONE UINT32_MAX

struct ew_trie_edge {
    uint32_t key;   // parent << 8 | byte
    uint32_t child; // 0: free (nothing leads to the root)
};

struct ew_trie {
    struct ew_trie_edge *edges;
    uint32_t edge_mask, n_nodes, node_cap;
    int32_t *values; // [n_nodes], EW_TOKEN_NONE inside of keys
};

int ew_trie_init(struct ew_trie *trie, struct ew_error *err) EW_MUST_CHECK;
void ew_trie_fini(struct ew_trie *trie);
// A key put twice keeps its first value.
int ew_trie_put(struct ew_trie *trie, struct ew_str key, int32_t value, struct ew_error *err) EW_MUST_CHECK;

static inline uint32_t ew_trie_hash(uint32_t key)
{
    return (uint32_t)(key * 0x9E3779B97F4A7C15u >> 32);
}

// The node reached from `node` by one more byte, or EW_TRIE_NONE.
static inline uint32_t ew_trie_step(const struct ew_trie *trie, uint32_t node, unsigned char byte)
{
    uint32_t key = node << 8 | byte;

    for (uint32_t i = ew_trie_hash(key) & trie->edge_mask;; i = (i + 1) & trie->edge_mask) {
        if (trie->edges[i].child == 0)
            return EW_TRIE_NONE;
        if (trie->edges[i].key == key)
            return trie->edges[i].child;
    }
}

// The longest key that is a prefix of text[at..]; its value and length. EW_TOKEN_NONE where there is none.
int32_t ew_trie_longest(const struct ew_trie *trie, uint32_t node, struct ew_str text, size_t at, size_t *len);
