#pragma once
// WordPiece: a word is cut greedily, the longest token first; a word that cannot be cut whole is one unknown token.
// tokenizer.json marks the tokens inside of words ("##ing"), GGUF those that begin one (U+2581).

#include "base/error.h"
#include "base/str.h"
#include "text/tokenizer.h"
#include "text/trie.h"
#include "text/vocab.h"

struct ew_wordpiece {
    struct ew_trie trie;
    uint32_t first_node,
        inner_node; // where the two kinds of token begin in the trie; EW_TRIE_NONE where there are none
    int32_t unk;
    uint32_t word_len_max;           // characters; longer words are unknown
};

// Puts every token of the model into the trie. first and inner are the marks, possibly empty.
int ew_wordpiece_init(struct ew_wordpiece *wordpiece, const struct ew_vocab *vocab, struct ew_str first,
                      struct ew_str inner, struct ew_error *err) EW_MUST_CHECK;
void ew_wordpiece_fini(struct ew_wordpiece *wordpiece);
int ew_wordpiece_encode(const struct ew_wordpiece *wordpiece, struct ew_str word, struct ew_ids *out,
                        struct ew_error *err) EW_MUST_CHECK;
