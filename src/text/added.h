#pragma once
// Added tokens: texts that are cut out before the model sees anything, the longest first. Control tokens among them
// are found only on request.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"
#include "text/trie.h"

#define EW_ADDED_LEN_MAX 4096 // bytes of one; bounds what each position of a text can cost

struct ew_added_token {
    int32_t id;
    bool special, single_word, lstrip, rstrip;
};

struct ew_added {
    struct ew_trie trie; // values are indices into tokens
    struct ew_added_token *tokens;
    uint32_t count, cap;
    uint8_t first[256];  // whether some token begins with the byte
};

struct ew_added_match {
    size_t start, end;   // with the white space that the token takes
    int32_t id;
};

int ew_added_init(struct ew_added *added, struct ew_error *err) EW_MUST_CHECK;
void ew_added_fini(struct ew_added *added);
// Empty and ill-formed texts are never found; of two equal ones the first counts.
int ew_added_put(struct ew_added *added, struct ew_str text, struct ew_added_token token,
                 struct ew_error *err) EW_MUST_CHECK;
// The first match at or after `from`, which is the end of the match before. text must be well-formed.
bool ew_added_find(const struct ew_added *added, struct ew_str text, size_t from, bool parse_special,
                   struct ew_added_match *match);
