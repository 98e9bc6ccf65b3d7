#pragma once
// The text of an answer as it grows: whole characters only, and nothing that may turn out to be the beginning of a stop
// string.

#include "base/buf.h"
#include "text/tokenizer.h"

struct ew_answer {
    const struct ew_tokenizer *tok; // NULL: the answer has no text
    struct ew_detok detok;
    const struct ew_str *stop; // borrowed
    uint32_t n_stop;
    const int32_t *shown; // special tokens that are text here; borrowed, set after init
    uint32_t n_shown;
    bool is_over;        // a stop string was found
    struct ew_buf held;  // not yet given: it may begin a stop string
    struct ew_buf given; // what the newest token released; valid until the next push
};

// Reserves its buffers, so that pushing allocates only for texts beyond any usual token. EW_ERR_USAGE: an empty stop
// string, one that is not UTF-8, or any where there is no tokenizer.
int ew_answer_init(struct ew_answer *answer, const struct ew_tokenizer *tok_or_null, const struct ew_str *stop,
                   uint32_t n_stop, struct ew_error *err) EW_MUST_CHECK;
void ew_answer_fini(struct ew_answer *answer);
// Adds a token's text. *stopped: a stop string is complete; answer->given ends before it, and the answer is over.
int ew_answer_push(struct ew_answer *answer, int32_t token, bool *stopped, struct ew_error *err) EW_MUST_CHECK;
// What is still held back when the answer ends; nothing after a stop string. Valid until fini.
struct ew_str ew_answer_end(struct ew_answer *answer);
