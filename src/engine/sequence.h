#pragma once
// One sequence: its tokens, how many of them the caches hold, and its block table in each cache group.
//
// Allocated once for the longest sequence and reused. Engine thread only. Blocks are taken by extend just before a step
// writes them, and given back by truncate, by reset and, in window groups, as soon as the window has passed them.

#include "engine/cache.h"
#include "kernel/backend.h"

struct ew_sequence {
    struct ew_cache *cache;
    uint32_t capacity;  // tokens
    int32_t *tokens;    // [capacity]
    uint32_t n_tokens;  // known: prompt and answer
    uint32_t n_cached;  // of these, computed (or being computed by the step in flight); the next token's position
    uint32_t rope_span; // see struct ew_batch_seq
    int32_t *tables[EW_CACHE_GROUPS_MAX]; // entries [first, n_blocks) are held, earlier ones EW_BLOCK_NONE
    uint32_t first[EW_CACHE_GROUPS_MAX], n_blocks[EW_CACHE_GROUPS_MAX];
    uint32_t n_kept; // of its whole blocks, those that are in the prefix tree
    uint32_t node;   // the last of these; EW_NODE_NONE: there is none
    uint32_t n_state; // cached tokens when the tree last had the state of this sequence
};

int ew_sequence_init(struct ew_sequence *seq, struct ew_cache *cache, uint32_t capacity,
                     struct ew_error *err) EW_MUST_CHECK;
void ew_sequence_fini(struct ew_sequence *seq);

void ew_sequence_push(struct ew_sequence *seq, int32_t token);
void ew_sequence_append(struct ew_sequence *seq, const int32_t *tokens, uint32_t n);

// Makes the caches forget all tokens from n on (n <= n_cached); they are to be computed again. Returns how many are
// left: n, or 0 where a group no longer has what the token at n would see (a window that moved on, a state).
uint32_t ew_sequence_rewind(struct ew_sequence *seq, uint32_t n);
// The same, and the tokens themselves go too.
uint32_t ew_sequence_truncate(struct ew_sequence *seq, uint32_t n);
void ew_sequence_reset(struct ew_sequence *seq);

// Makes room in the caches for n_more tokens after the cached ones; a block that others hold too is copied before it
// would be written. EW_ERR_MEMORY where a pool is empty.
int ew_sequence_extend(struct ew_sequence *seq, struct ew_backend *backend, uint32_t n_more,
                       struct ew_error *err) EW_MUST_CHECK;
// Gives back the blocks that no later token will see.
void ew_sequence_release_passed(struct ew_sequence *seq);
