#pragma once
// Ill-formed UTF-8 inside the tokeniser. Regular expressions and normalisers want well-formed text, byte-level
// vocabularies and byte fallback want the very bytes back. So a text that is not well-formed is rewritten once, at
// the door: each bad byte 0x80..0xFF becomes the private character U+10FF80..U+10FFFF, category Co: no letter, no
// digit, no space. Such characters that were in the text themselves count as four bad bytes, which makes the way back
// unambiguous. Vocabularies that cannot express bytes get U+FFFD instead.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/str.h"

#define EW_ILLFORMED_FIRST 0x10FF80u
#define EW_ILLFORMED_LAST 0x10FFFFu

static inline bool ew_illformed_is(uint32_t c)
{
    return c >= EW_ILLFORMED_FIRST && c <= EW_ILLFORMED_LAST;
}

static inline unsigned char ew_illformed_byte(uint32_t c)
{
    return (unsigned char)(c & 0xFF);
}

// Appends text with its bad bytes rewritten (keep_bytes) or replaced by U+FFFD.
void ew_illformed_escape(struct ew_str text, bool keep_bytes, struct ew_buf *out);
