#pragma once
// GPT-2's byte alphabet: every byte as a printable character, so that vocabularies can be written as text. Printable
// Latin-1 bytes stand for themselves, the other 68 follow from U+0100 on in order. Source: the encoder of the GPT-2
// release.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/str.h"

static inline uint32_t ew_bytelevel_char(unsigned char byte)
{
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return byte == 0x7F ? 0x121u : 0x122u + (byte - 0x80u);
    return byte == 0xAD ? 0x143u : byte;
}

// The byte of a character of the alphabet, or -1.
static inline int ew_bytelevel_byte(uint32_t c)
{
    if (c >= 0x100)
        return c <= 0x120   ? (int)c - 0x100
               : c == 0x121 ? 0x7F
               : c <= 0x142 ? (int)c - 0x122 + 0x80
               : c == 0x143 ? 0xAD
                            : -1;
    return ew_bytelevel_char((unsigned char)c) == c ? (int)c : -1;
}

// Appends text in the alphabet. illformed: text went through ew_illformed_escape, whose characters become bytes again.
void ew_bytelevel_encode(struct ew_str text, bool illformed, struct ew_buf *out);
// Appends the bytes of a text in the alphabet; false, with nothing appended, where some character is not of it.
bool ew_bytelevel_decode(struct ew_str text, struct ew_buf *out);
