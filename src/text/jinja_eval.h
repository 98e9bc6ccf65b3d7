#pragma once
// Running a parsed template: what jinja_eval.c (expressions) and jinja_exec.c (statements, macros, loops) need of
// each other.

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

struct ew_jj_macro {
    const struct ew_jj_params *params;
    const struct ew_jj_node *body; // its items
    struct ew_jj_scope *scope;     // where it was defined
};

struct ew_jj_loop {
    const struct ew_jj_node *node;
    struct ew_jj_scope *outer; // the scope that the loop stands in
    struct ew_jj_items items;
    uint32_t index, depth;
    struct ew_jj_value changed; // what loop.changed saw last, a tuple, or MISSING
};

struct ew_jj_value ew_jj_eval(struct ew_jj_run *run, const struct ew_jj_node *node);
bool ew_jj_exec_body(struct ew_jj_run *run,
                     const struct ew_jj_node *node); // all items; false where the run must stop or jump
struct ew_jj_value ew_jj_call_macro(struct ew_jj_run *run, struct ew_jj_value macro, const struct ew_jj_args *args);
struct ew_jj_value ew_jj_call_loop(struct ew_jj_run *run, struct ew_jj_loop *loop, const struct ew_jj_args *args);
struct ew_jj_value ew_jj_loop_attr(struct ew_jj_run *run, const struct ew_jj_loop *loop,
                                   struct ew_str name); // MISSING where there is none
// A filter chain of a block, applied to its text.
struct ew_jj_value ew_jj_eval_filters(struct ew_jj_run *run, const struct ew_jj_node *chain, struct ew_jj_value text);

// What was printed since `mark`, taken off the output again.
struct ew_jj_value ew_jj_take_output(struct ew_jj_run *run, size_t mark);

struct ew_jj_scope *ew_jj_scope_new(struct ew_jj_run *run, struct ew_jj_scope *parent);
bool ew_jj_scope_set(struct ew_jj_run *run, uint32_t name, struct ew_jj_value value); // in the innermost scope
