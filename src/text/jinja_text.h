#pragma once
// Text as Python sees it, for the template interpreter: code points over UTF-8 (lone surrogates as 3-byte WTF-8,
// any other bad byte a character of its own), Python's idea of white space, case and printability, and its way to
// write floats and literals.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/str.h"

// Decodes the character at s.ptr[at], at < s.len; returns its length, at least 1. Bad bytes give U+FFFD.
size_t ew_jj_decode(struct ew_str s, size_t at, uint32_t *out);
size_t ew_jj_encode(uint32_t c, char *to); // at most 4 bytes; surrogates are written as they are
size_t ew_jj_char_count(struct ew_str s);
size_t ew_jj_char_offset(struct ew_str s, size_t index); // of the index-th character; s.len where there are fewer

bool ew_jj_is_space(uint32_t c);                       // str.isspace
size_t ew_jj_space_prefix(struct ew_str s);            // bytes of white space at the start
size_t ew_jj_without_space_suffix(struct ew_str s);    // bytes before the white space at the end
size_t ew_jj_line_break(struct ew_str s,
                        size_t at); // bytes of the line break at `at` (str.splitlines), 0 where there is none

// Character classes of the str.isX methods.
enum ew_jj_class {
    EW_JJ_IS_ALPHA,
    EW_JJ_IS_DIGIT,
    EW_JJ_IS_DECIMAL,
    EW_JJ_IS_NUMERIC,
    EW_JJ_IS_ALNUM,
    EW_JJ_IS_SPACE,
    EW_JJ_IS_PRINTABLE,
    EW_JJ_IS_UPPER,
    EW_JJ_IS_LOWER,
    EW_JJ_IS_WORD
};
bool ew_jj_is(enum ew_jj_class class, uint32_t c);

enum ew_jj_case { EW_JJ_UPPER, EW_JJ_LOWER, EW_JJ_TITLE };
void ew_jj_append_cased(struct ew_buf *buf, uint32_t c, enum ew_jj_case to);

#define EW_JJ_DOUBLE_CHARS 40
void ew_jj_format_double(double number, char out[EW_JJ_DOUBLE_CHARS]); // repr(float)
void ew_jj_append_repr(struct ew_buf *buf, struct ew_str s);           // repr(str)
void ew_jj_append_json(struct ew_buf *buf, struct ew_str s, bool ascii); // json.dumps(str)
