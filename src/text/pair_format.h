#pragma once
// How a language model that scores pairs of texts is asked: its own template around an instruction, a query and a
// document. Special tokens come from the template alone; what the texts spell out is text.

#include "text/tokenizer.h"

struct ew_pair_format; // immutable

// A Jinja template on messages of the roles "system" (the instruction, where there is one), "query" and "document", or
// a plain text with {query}, {document} and maybe {instruction} in it.
int ew_pair_format_compile(struct ew_str source, const struct ew_tokenizer *tok, struct ew_pair_format **out,
                           struct ew_error *err) EW_MUST_CHECK;
void ew_pair_format_free(struct ew_pair_format *format); // NULL is fine
// Appends the ids of a pair. An empty instruction: the template's own, or none. max > 0: the document loses its end
// where there are more, and it is an EW_ERR_LIMIT where that is not enough.
int ew_pair_format_ids(const struct ew_pair_format *format, const struct ew_tokenizer *tok, struct ew_str instruction,
                       struct ew_str query, struct ew_str document, uint32_t max, struct ew_ids *out,
                       struct ew_error *err) EW_MUST_CHECK;
