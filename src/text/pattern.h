#pragma once
// Regular expressions as tokenizer.json files write them (the Oniguruma dialect, Ruby syntax), run by PCRE2 with JIT
// where the machine allows it. Differences of dialect are translated: \s is Unicode's White_Space exactly, \w counts
// marks and connectors, ^ and $ match at lines. What cannot be translated is EW_ERR_UNSUPPORTED. Immutable after
// compiling.

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/str.h"

struct ew_pattern;

// One caller's working memory, for any number of patterns.
struct ew_pattern_scratch {
    void *match_data, *context, *jit_stack; // of PCRE2, made at the first match
};

int ew_pattern_compile(struct ew_str source, struct ew_pattern **out, struct ew_error *err) EW_MUST_CHECK;
void ew_pattern_free(struct ew_pattern *pattern);
void ew_pattern_scratch_fini(struct ew_pattern_scratch *scratch);

// The first match in text at or after `from`. text must be well-formed UTF-8; an empty match is possible. *found tells;
// EW_ERR_LIMIT where the expression backtracks without end.
int ew_pattern_find(const struct ew_pattern *pattern, struct ew_pattern_scratch *scratch, struct ew_str text,
                    size_t from, bool *found, size_t *start, size_t *end, struct ew_error *err) EW_MUST_CHECK;
