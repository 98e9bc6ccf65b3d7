#pragma once
// Pairwise merging, best pair first, leftmost of equals: the core of both kinds of byte pair encoding. A linked list of
// symbols and a heap of candidate pairs: O(n log n) for a word of n symbols.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

#define EW_MERGE_END UINT32_MAX

struct ew_merge_symbol {
    int32_t id;          // token, or EW_TOKEN_NONE where the text is no token (yet)
    uint32_t at;         // first byte in the word
    uint32_t prev, next; // EW_MERGE_END at the ends; prev is EW_MERGE_DEAD where it was merged into its left neighbour
};

#define EW_MERGE_DEAD (UINT32_MAX - 1)

// Scratch of one caller, reused from word to word.
struct ew_merge {
    struct ew_merge_symbol *symbols;
    size_t count, cap;
    uint64_t *heap;      // rank << 32 | left symbol
    size_t heap_count, heap_cap;
    const char *text;    // the word
    size_t text_len;
};

void ew_merge_fini(struct ew_merge *merge);
void ew_merge_reset(struct ew_merge *merge, struct ew_str word); // word must live until ew_merge_run is done
int ew_merge_push(struct ew_merge *merge, int32_t id, size_t at, struct ew_error *err) EW_MUST_CHECK;

// Whether two neighbours merge: their rank (low is merged first) and the token that they become.
typedef bool ew_merge_rank_fn(const void *model, const struct ew_merge *merge, uint32_t left, uint32_t right,
                              uint32_t *rank, int32_t *id);
int ew_merge_run(struct ew_merge *merge, ew_merge_rank_fn *rank, const void *model, struct ew_error *err) EW_MUST_CHECK;

// End of a symbol's bytes in the word.
static inline size_t ew_merge_end(const struct ew_merge *merge, uint32_t symbol)
{
    uint32_t next = merge->symbols[symbol].next;

    return next == EW_MERGE_END ? merge->text_len : merge->symbols[next].at;
}
