#pragma once
// SentencePiece's precompiled normalisation map: a double-array trie (the layout of darts-clone) whose values are
// offsets of NUL-terminated replacements. Bytes are borrowed; every index is checked, the map may come from anywhere.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

struct ew_charsmap {
    const unsigned char *units; // little-endian u32, unaligned
    uint32_t unit_count;        // 0: no map
    struct ew_str replacements; // well-formed UTF-8 with NULs
};

int ew_charsmap_parse(struct ew_charsmap *map, struct ew_str blob, struct ew_error *err) EW_MUST_CHECK;
// The longest (or shortest) key that is a prefix of text: its length and replacement. 0 where there is none.
size_t ew_charsmap_find(const struct ew_charsmap *map, struct ew_str text, bool shortest, struct ew_str *replacement);
