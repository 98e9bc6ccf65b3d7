#include "text/trie.h"

#include "base/alloc.h"
#include "text/tokenizer.h"

#define NODES_MAX (1u << 24) // a node and a byte share 32 bits
#define NODES_FIRST 256

static int resize(struct ew_trie *trie, uint32_t node_cap, struct ew_error *err)
{
    struct ew_trie_edge *edges = ew_alloc_array((size_t)node_cap * 2, sizeof(*edges));
    int32_t *values = ew_realloc_array(trie->values, node_cap, sizeof(*values));
    uint32_t mask = node_cap * 2 - 1;

    if (values)
        trie->values = values;
    if (!edges || !values) {
        ew_free(edges);
        return ew_fail_memory(err, (size_t)node_cap * 2 * sizeof(*edges), "the token trie");
    }
    for (uint32_t i = 0; trie->edges && i <= trie->edge_mask; i++) {
        uint32_t at = ew_trie_hash(trie->edges[i].key) & mask;

        if (trie->edges[i].child == 0)
            continue;
        while (edges[at].child)
            at = (at + 1) & mask;
        edges[at] = trie->edges[i];
    }
    ew_free(trie->edges);
    trie->edges = edges;
    trie->edge_mask = mask;
    trie->node_cap = node_cap;
    return EW_OK;
}

int ew_trie_init(struct ew_trie *trie, struct ew_error *err)
{
    int code;

    *trie = (struct ew_trie){.n_nodes = 1};
    code = resize(trie, NODES_FIRST, err);
    if (code == EW_OK)
        trie->values[EW_TRIE_ROOT] = EW_TOKEN_NONE;
    return code;
}

void ew_trie_fini(struct ew_trie *trie)
{
    ew_free(trie->edges);
    ew_free(trie->values);
    *trie = (struct ew_trie){0};
}

static int add_node(struct ew_trie *trie, uint32_t parent, unsigned char byte, uint32_t *out, struct ew_error *err)
{
    uint32_t key = parent << 8 | byte, i;
    int code;

    if (trie->n_nodes == NODES_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the vocabulary's texts have more than %u different prefixes", NODES_MAX);
    if (trie->n_nodes == trie->node_cap) {
        code = resize(trie, trie->node_cap * 2, err);
        if (code != EW_OK)
            return code;
    }
    for (i = ew_trie_hash(key) & trie->edge_mask; trie->edges[i].child; i = (i + 1) & trie->edge_mask)
        ;
    *out = trie->n_nodes++;
    trie->edges[i] = (struct ew_trie_edge){key, *out};
    trie->values[*out] = EW_TOKEN_NONE;
    return EW_OK;
}

int ew_trie_put(struct ew_trie *trie, struct ew_str key, int32_t value, struct ew_error *err)
{
    uint32_t node = EW_TRIE_ROOT;

    for (size_t i = 0; i < key.len; i++) {
        unsigned char byte = (unsigned char)key.ptr[i];
        uint32_t next = ew_trie_step(trie, node, byte);
        int code = next == EW_TRIE_NONE ? add_node(trie, node, byte, &next, err) : EW_OK;

        if (code != EW_OK)
            return code;
        node = next;
    }
    if (trie->values[node] == EW_TOKEN_NONE)
        trie->values[node] = value;
    return EW_OK;
}

int32_t ew_trie_longest(const struct ew_trie *trie, uint32_t node, struct ew_str text, size_t at, size_t *len)
{
    int32_t best = EW_TOKEN_NONE;

    for (size_t i = at; i < text.len; i++) {
        node = ew_trie_step(trie, node, (unsigned char)text.ptr[i]);
        if (node == EW_TRIE_NONE)
            break;
        if (trie->values[node] != EW_TOKEN_NONE) {
            best = trie->values[node];
            *len = i + 1 - at;
        }
    }
    return best;
}
