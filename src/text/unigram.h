#pragma once
// The unigram language model of SentencePiece: the segmentation with the best sum of log probabilities, by Viterbi
// over a trie of the tokens. Source: Kudo 2018, and the reference implementations' rules for unknown characters.

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"
#include "text/tokenizer.h"
#include "text/trie.h"
#include "text/vocab.h"

struct ew_unigram {
    const struct ew_vocab *vocab;
    struct ew_trie trie;
    double *scores;     // [vocab->count]
    double score_min;   // of the tokens in the trie
    int32_t unk;        // EW_TOKEN_NONE: an unknown character is an error
    int32_t bytes[256];
    bool byte_fallback; // bytes[] is complete
};

// Best path to one position of the text.
struct ew_unigram_node {
    double score;
    uint32_t from; // start of the last token
    int32_t id;    // EW_TOKEN_NONE: not reached
};

struct ew_unigram_scratch {
    struct ew_unigram_node *nodes;
    size_t cap;
};

int ew_unigram_init(struct ew_unigram *unigram, const struct ew_vocab *vocab, struct ew_error *err) EW_MUST_CHECK;
void ew_unigram_fini(struct ew_unigram *unigram);
int ew_unigram_add(struct ew_unigram *unigram, uint32_t id, double score, struct ew_error *err) EW_MUST_CHECK;
void ew_unigram_ready(struct ew_unigram *unigram, bool byte_fallback);
int ew_unigram_encode(const struct ew_unigram *unigram, struct ew_unigram_scratch *scratch, struct ew_str text,
                      bool illformed, struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;
void ew_unigram_scratch_fini(struct ew_unigram_scratch *scratch);
