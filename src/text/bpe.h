#pragma once
// Byte pair encoding with ranked merges, as GPT-2 introduced it and tokenizer.json describes it. Works on characters;
// for byte-level vocabularies the pre-tokeniser has already turned bytes into characters.

#include "base/error.h"
#include "base/str.h"
#include "text/merge.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

#define EW_BPE_CHARS 0x180     // the byte alphabet ends at U+0143
#define EW_BPE_AFFIX_MAX 32    // bytes of continuing_subword_prefix and of end_of_word_suffix

#define EW_BPE_FREE UINT32_MAX

struct ew_bpe_pair {
    uint64_t key;  // left << 32 | right
    uint32_t rank; // EW_BPE_FREE: the slot is free
    int32_t id;
};

struct ew_bpe {
    const struct ew_vocab *vocab;
    struct ew_bpe_pair *pairs;
    size_t pair_mask;
    int32_t chars[EW_BPE_CHARS]; // tokens of single characters, EW_TOKEN_NONE where there is none
    int32_t bytes[256];
    int32_t unk;                 // EW_TOKEN_NONE: characters without a token are dropped
    bool byte_fallback;          // bytes[] is complete
    bool fuse_unk, ignore_merges;
    bool whole_newlines;         // words of nothing but newlines are looked up whole (gemma4)
    bool first_pair_wins;        // of a pair that is listed twice; GGUF readers keep the first, tokenizer.json the last
    struct ew_str prefix, suffix;
    uint32_t n_merges;           // so far, those left out included
};

int ew_bpe_init(struct ew_bpe *bpe, const struct ew_vocab *vocab, uint64_t n_merges,
                struct ew_error *err) EW_MUST_CHECK;
void ew_bpe_fini(struct ew_bpe *bpe);
// Call after all options are set: fills chars[] and bytes[].
void ew_bpe_ready(struct ew_bpe *bpe, bool byte_fallback);
// Merges are added in batches, for speed; their ranks follow those of the batch before.
#define EW_BPE_BATCH 64

struct ew_bpe_batch {
    size_t count;
    struct ew_str halves[EW_BPE_BATCH][2];
};
// Adds and empties the batch; at most n_merges in all. Merges that do not join two tokens into a third can never be
// taken and are left out; the return value is their number.
uint32_t ew_bpe_add(struct ew_bpe *bpe, struct ew_bpe_batch *batch);
int ew_bpe_encode(const struct ew_bpe *bpe, struct ew_merge *scratch, struct ew_str word, bool illformed,
                  struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;
