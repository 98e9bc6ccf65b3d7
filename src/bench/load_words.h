#pragma once
// Prompts of random words, and how many tokens they make on a server that is only known from outside.
//
// A prompt of n words costs about overhead + n * tokens_per_word tokens: the words are common ones, which most
// vocabularies have whole, and those that a server's /tokenize does not give one token each are left out. Then the
// count is exact.

#include "base/buf.h"

#define EW_LOAD_WORDS 256

struct ew_load_words {
    uint16_t usable[EW_LOAD_WORDS]; // indexes of the words in use
    uint32_t n_usable;
    double tokens_per_word, overhead;
    bool exact; // each word in use is one token
};

void ew_load_words_init(struct ew_load_words *words); // all words, one token each, no overhead
struct ew_str ew_load_word(uint32_t index);
// How many words make this many tokens, the overhead not counted; at least 1.
uint32_t ew_load_words_for(const struct ew_load_words *words, double n_tokens);
// Appends n words, the same for the same key, with a space before each but, where `first`, the first.
void ew_load_words_append(const struct ew_load_words *words, uint64_t seed, uint64_t key, uint32_t n, bool first,
                          struct ew_buf *out);
