#pragma once
// From tokens back to text: a chain of steps, applied to one token after the other, so that decoding streams. What
// tokenizer.json describes in terms of a list of tokens is expressed here in terms of the first token and of the one
// before.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "text/tokenizer.h"

#define EW_DECODER_STEPS_MAX 16

enum ew_decoder_kind {
    EW_DECODER_BYTES,         // from GPT-2's byte alphabet
    EW_DECODER_BYTE_FALLBACK, // <0xNN> is a byte
    EW_DECODER_REPLACE,
    EW_DECODER_METASPACE,
    EW_DECODER_STRIP,         // characters at the ends of each token
    EW_DECODER_STRIP_START,   // characters at the start of the whole text
    EW_DECODER_WORDPIECE,
    EW_DECODER_BPE,           // an end-of-word suffix becomes a space
    EW_DECODER_CTC,
    EW_DECODER_JOIN,          // no decoder at all: tokens with spaces between
};

struct ew_decoder_step {
    enum ew_decoder_kind kind;
    // REPLACE: what is replaced; METASPACE: the replacement; WORDPIECE: the prefix; BPE: the suffix; STRIP*: the
    // character; CTC: padding.
    struct ew_str text;
    struct ew_str content; // REPLACE: by what; CTC: the word delimiter
    uint32_t start, stop;  // STRIP*: at most so many
    bool drop_first;       // METASPACE: the first token loses its replacements
    bool cleanup;          // WORDPIECE, CTC: no space before punctuation and contractions
};

struct ew_decoder {
    uint32_t count;
    struct ew_decoder_step steps[EW_DECODER_STEPS_MAX];
};

int ew_decoder_add(struct ew_decoder *decoder, struct ew_decoder_step step, struct ew_error *err) EW_MUST_CHECK;
// Appends what a token adds to the text. literal: an added token, whose text is no longer in the model's alphabet.
void ew_decoder_run(const struct ew_decoder *decoder, struct ew_detok *state, int32_t id, struct ew_str token,
                    bool literal, struct ew_buf *out);
