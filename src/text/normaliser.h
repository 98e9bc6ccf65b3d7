#pragma once
// Normalisation of a text before it is cut: a chain of steps, each from one text to the next.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "text/charsmap.h"
#include "text/pattern.h"

#define EW_NORMALISER_STEPS_MAX 24

enum ew_normaliser_kind {
    EW_NORMALISER_FORM,         // a Unicode normalisation form
    EW_NORMALISER_MAP,          // character by character
    EW_NORMALISER_STRIP,        // white space at the ends
    EW_NORMALISER_REPLACE,      // a text or a regular expression
    EW_NORMALISER_PREPEND,
    EW_NORMALISER_CHARSMAP,     // tokenizer.json's Precompiled
    EW_NORMALISER_SENTENCEPIECE, // what SentencePiece does itself: map, spaces, prefix
    EW_NORMALISER_BYTES,        // into GPT-2's byte alphabet
};

enum ew_unicode_form { EW_FORM_NFC, EW_FORM_NFD, EW_FORM_NFKC, EW_FORM_NFKD };

// Writes what a character becomes, at most three characters; returns their number.
typedef int ew_normaliser_map_fn(uint32_t c, uint32_t out[3]);
ew_normaliser_map_fn ew_normaliser_lowercase, ew_normaliser_strip_accents, ew_normaliser_strip_nonspacing,
    ew_normaliser_nmt, ew_normaliser_clean, ew_normaliser_space_chinese;

struct ew_normaliser_step {
    enum ew_normaliser_kind kind;
    enum ew_unicode_form form;
    ew_normaliser_map_fn *map;
    bool left, right;           // STRIP
    struct ew_pattern *pattern; // REPLACE; owned. NULL: `text` is searched for
    struct ew_str text;         // REPLACE
    struct ew_str content;      // REPLACE, PREPEND. Borrowed, well-formed
    struct ew_charsmap charsmap;
    bool collapse_spaces, prefix_space, suffix_space, escape_spaces; // SENTENCEPIECE
};

struct ew_normaliser {
    uint32_t count;
    struct ew_normaliser_step steps[EW_NORMALISER_STEPS_MAX];
};

struct ew_normaliser_scratch {
    struct ew_buf texts[2];
    struct ew_pattern_scratch pattern;
    int32_t *characters;
    size_t character_cap;
    bool illformed; // the text went through ew_illformed_escape
};

void ew_normaliser_fini(struct ew_normaliser *normaliser);
void ew_normaliser_scratch_init(struct ew_normaliser_scratch *scratch);
void ew_normaliser_scratch_fini(struct ew_normaliser_scratch *scratch);
// EW_ERR_UNSUPPORTED past EW_NORMALISER_STEPS_MAX. Takes the pattern, also on failure.
int ew_normaliser_add(struct ew_normaliser *normaliser, struct ew_normaliser_step step,
                      struct ew_error *err) EW_MUST_CHECK;
// *out is text itself or lies in scratch, until the next call.
int ew_normaliser_run(const struct ew_normaliser *normaliser, struct ew_normaliser_scratch *scratch, struct ew_str text,
                      struct ew_str *out, struct ew_error *err) EW_MUST_CHECK;

// Appends text in a Unicode normalisation form (text/normform.c).
int ew_normform(enum ew_unicode_form form, struct ew_normaliser_scratch *scratch, struct ew_str text,
                struct ew_buf *out, struct ew_error *err) EW_MUST_CHECK;
