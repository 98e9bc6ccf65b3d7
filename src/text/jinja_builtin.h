#pragma once
// The tables of filters, tests, methods and global functions, and what their implementations share.

#include "text/jinja_value.h"

#define EW_JJ_BUILTIN(name)                                                                                            \
    static struct ew_jj_value name(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_value *v,        \
                                   const struct ew_jj_args *args)

// Tables end with an entry without a name.
extern const struct ew_jj_builtin ew_jj_text_filters[];     // jinja_filters_text.c
extern const struct ew_jj_builtin ew_jj_sequence_filters[]; // jinja_filters_seq.c
extern const struct ew_jj_builtin ew_jj_tests[];            // jinja_tests.c
extern const struct ew_jj_builtin ew_jj_globals[];          // jinja_globals.c
extern const struct ew_jj_builtin ew_jj_str_methods[],
    ew_jj_str_methods_more[]; // jinja_methods_str.c, jinja_methods_case.c
extern const struct ew_jj_builtin ew_jj_dict_methods[], ew_jj_list_methods[], ew_jj_tuple_methods[],
    ew_jj_loop_methods[],
    ew_jj_cycler_methods[]; // jinja_methods.c

const struct ew_jj_builtin *ew_jj_find_builtin(const struct ew_jj_builtin *table, struct ew_str name);
const struct ew_jj_builtin *ew_jj_find_filter(struct ew_str name);
const struct ew_jj_builtin *ew_jj_find_test(struct ew_str name);

// Binds the arguments and calls. self: the filtered or tested value, or a method's object.
struct ew_jj_value ew_jj_call_builtin(struct ew_jj_run *run, const struct ew_jj_builtin *builtin,
                                      struct ew_jj_value self, const struct ew_jj_args *args);

// jinja_object.c: a.b, a['b'], a[1:2].
struct ew_jj_value ew_jj_get_attr(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value name);
struct ew_jj_value ew_jj_get_item(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key);
struct ew_jj_value ew_jj_slice(struct ew_jj_run *run, struct ew_jj_value object,
                               const struct ew_jj_value bounds[3]); // NONE: not given

// jinja_ops.c
struct ew_jj_value ew_jj_add(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b);
struct ew_jj_value ew_jj_arithmetic(struct ew_jj_run *run, char op, struct ew_jj_value a,
                                    struct ew_jj_value b); // op: - * / % and F for //, P for **
struct ew_jj_value ew_jj_negate(struct ew_jj_run *run, struct ew_jj_value a);

// jinja_methods.c
struct ew_jj_value ew_jj_dict_items(struct ew_jj_run *run, const struct ew_jj_dict *dict,
                                    enum ew_jj_type type); // VIEW or GENERATOR

// jinja_format.c
struct ew_jj_value ew_jj_format_percent(struct ew_jj_run *run, struct ew_jj_value format, struct ew_jj_value values);
struct ew_jj_value ew_jj_format_braces(struct ew_jj_run *run, struct ew_jj_value format, const struct ew_jj_args *args);

// jinja_eval.c
struct ew_jj_value ew_jj_call_value(struct ew_jj_run *run, struct ew_jj_value callee, const struct ew_jj_args *args);

// Arguments as C values; where one has another type the call fails with a message that names it.
int64_t ew_jj_arg_int(struct ew_jj_run *run, struct ew_jj_value v, int64_t fallback); // fallback: MISSING or NONE
bool ew_jj_arg_bool(struct ew_jj_value v, bool fallback);
struct ew_str ew_jj_arg_str(struct ew_jj_run *run, struct ew_jj_value v, const char *fallback);
