#pragma once
// Pre-tokenisation: cutting a text into the pieces that the model then encodes one by one. A chain of steps, each of
// which cuts or rewrites what the one before gives; pieces stream through the chain, so that memory does not grow
// with their number.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "text/pattern.h"

#define EW_PRETOK_STEPS_MAX 24

enum ew_pretok_kind {
    EW_PRETOK_PATTERN,      // cut at the matches of a regular expression
    EW_PRETOK_LITERAL,      // cut at the occurrences of a text
    EW_PRETOK_CLASS,        // cut at characters of a class, each its own match
    EW_PRETOK_LENGTH,       // cut into pieces of so many characters
    EW_PRETOK_DIGITS,       // cut runs of digits into groups of three from their end
    EW_PRETOK_PREFIX_SPACE, // put a space in front where there is none
    EW_PRETOK_METASPACE,    // spaces become another character, which may be put in front
    EW_PRETOK_BYTES,        // into GPT-2's byte alphabet
};

// What becomes of a match, the delimiter, and of the text between matches. Names as in tokenizer.json.
enum ew_split {
    EW_SPLIT_ISOLATED,
    EW_SPLIT_REMOVED,
    EW_SPLIT_CONTIGUOUS,
    EW_SPLIT_MERGED_PREVIOUS,
    EW_SPLIT_MERGED_NEXT
};
enum ew_prepend { EW_PREPEND_NEVER, EW_PREPEND_FIRST, EW_PREPEND_ALWAYS };
enum ew_digit_groups {
    EW_DIGITS_NUMERIC, // every run of \p{N}
    EW_DIGITS_WORD,    // \d{1,3}(?=(?:\d{3})*\b): runs of \d that end a word
    EW_DIGITS_LOOK,    // (?=(\d{3})+(?!\d)): cuts in front of groups, matches nothing
};

struct ew_pretok_step {
    enum ew_pretok_kind kind;
    enum ew_split split;
    bool invert;                // matches count as the text between, and the other way round
    struct ew_pattern *pattern; // owned
    struct ew_str text;         // LITERAL; METASPACE: the replacement. Borrowed
    bool (*in_class)(uint32_t c);
    enum ew_prepend prepend;
    enum ew_digit_groups digits;
    uint32_t length;
};

struct ew_pretok {
    const char *name; // of the GGUF table, or NULL
    uint32_t count;
    struct ew_pretok_step steps[EW_PRETOK_STEPS_MAX];
};

struct ew_pretok_scratch {
    struct ew_pattern_scratch pattern;
    struct ew_buf texts[EW_PRETOK_STEPS_MAX]; // of the steps that rewrite
    bool illformed;                           // the text went through ew_illformed_escape
};

void ew_pretok_fini(struct ew_pretok *pretok);
void ew_pretok_scratch_init(struct ew_pretok_scratch *scratch);
void ew_pretok_scratch_fini(struct ew_pretok_scratch *scratch);
// EW_ERR_UNSUPPORTED past EW_PRETOK_STEPS_MAX. Takes the pattern, also on failure.
int ew_pretok_add(struct ew_pretok *pretok, struct ew_pretok_step step, struct ew_error *err) EW_MUST_CHECK;
// Adds a cut at a regular expression; expressions whose plain form would be slow are replaced by equivalents.
int ew_pretok_add_pattern(struct ew_pretok *pretok, struct ew_str source, enum ew_split split, bool invert,
                          struct ew_error *err) EW_MUST_CHECK;
int ew_pretok_add_gpt2(struct ew_pretok *pretok,
                       struct ew_error *err) EW_MUST_CHECK; // the expression that ByteLevel implies

// Takes each piece in order; returns an ew_code.
typedef int ew_pretok_emit_fn(void *user, struct ew_str piece, struct ew_error *err);
// first: the text is the beginning of the whole input.
int ew_pretok_run(const struct ew_pretok *pretok, struct ew_pretok_scratch *scratch, struct ew_str text, bool first,
                  ew_pretok_emit_fn *emit, void *user, struct ew_error *err) EW_MUST_CHECK;

// What a GGUF file's tokenizer.ggml.pre stands for.
enum ew_pre_flag {
    EW_PRE_IGNORE_MERGES = 1,
    EW_PRE_ADD_BOS = 2,     // where the file does not say
    EW_PRE_METASPACE = 4,   // spaces are U+2581 and bytes <0xNN>: no byte alphabet
    EW_PRE_NEWLINES = 8,    // runs of newlines are looked up whole
    EW_PRE_ADD_SEP = 16,
    EW_PRE_FORCE_BOS = 32,  // whatever the file says
    EW_PRE_MASK_LSTRIP = 64, // <mask> takes the spaces before it
};
int ew_pretok_by_name(struct ew_str name, struct ew_pretok *pretok, unsigned *flags,
                      struct ew_error *err) EW_MUST_CHECK;
