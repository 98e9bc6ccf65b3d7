#pragma once
// Conditions of rules: expressions over facts, in three-valued logic.
//
// Syntax, precedence and meaning are those of Python expressions: or, and, not, comparisons and in, &, + -, * / //
// %, numbers, 'strings', (tuples,), True, False, names of facts, and the functions has(list, x), has_any(list,
// tuple), has_prefix(list, s), len(x), ver(x), ver2(x), jetpack_before(x). A fact that is not known makes whatever
// needs it unknown (Kleene's logic: false and unknown is false).

#include <stdbool.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/str.h"
#include "platform/facts.h"

struct ew_expr; // in the caller's arena

enum ew_truth { EW_FALSE, EW_TRUE, EW_UNKNOWN };

int ew_expr_parse(struct ew_arena *arena, struct ew_str source, const struct ew_expr **out,
                  struct ew_error *err) EW_MUST_CHECK;
// A type error (a string times a list) makes the result unknown; *why (may be NULL) names the first fact that was
// missing.
enum ew_truth ew_expr_eval(const struct ew_expr *expr, const struct ew_facts *facts, struct ew_str *why);
