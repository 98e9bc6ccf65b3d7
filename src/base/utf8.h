#pragma once
// UTF-8 (RFC 3629): one decoder and one encoder, shared by everything.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Decodes one scalar value at the start of bytes[0..len). Returns its length 1..4, or 0 where the bytes are not
// well-formed UTF-8 (overlong, surrogate, truncated, past U+10FFFF) or len is 0.
size_t ew_utf8_decode(const char *bytes, size_t len, uint32_t *out);
// Writes 1..4 bytes, returns their number. Surrogates and values past U+10FFFF are written as U+FFFD.
size_t ew_utf8_encode(uint32_t c, char out[4]);
bool ew_utf8_valid(const char *bytes, size_t len);
// Length of the longest prefix that does not end inside a character that more bytes could complete; for streaming.
size_t ew_utf8_complete_prefix(const char *bytes, size_t len);
