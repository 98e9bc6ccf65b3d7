#pragma once
// What models that make vectors are fed: one text, or a pair of texts, between the vocabulary's special tokens, cut to
// a length where that is asked for. Special tokens written in a text are text like any other.

#include "text/tokenizer.h"

// Appends the ids of prefix and text as one. max > 0: what is too long loses its end, but not the special tokens.
int ew_tokenize_text(const struct ew_tokenizer *tok, struct ew_str prefix, struct ew_str text, uint32_t max,
                     struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;
// The same of a pair; segments gets a byte, the token type, for each id. The second text is what is cut, and it is an
// EW_ERR_LIMIT where that is not enough.
int ew_tokenize_pair(const struct ew_tokenizer *tok, struct ew_str first, struct ew_str second, uint32_t max,
                     struct ew_ids *out, struct ew_buf *segments, struct ew_error *err) EW_MUST_CHECK;
