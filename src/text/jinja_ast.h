#pragma once
// The parsed template. Nodes live in the template's arena and are never changed after parsing.

#include "text/jinja_lex.h"
#include "text/jinja_value.h"

enum ew_jj_kind {
    // Expressions: a, b, c are operands, items are elements.
    EW_JJ_N_CONST,   // constant
    EW_JJ_N_NAME,    // name
    EW_JJ_N_LIST,    // items
    EW_JJ_N_TUPLE,   // items; also an assignment target
    EW_JJ_N_DICT,    // items: key, value, key, value, ...
    EW_JJ_N_ATTR,    // a.constant
    EW_JJ_N_ITEM,    // a[b]
    EW_JJ_N_SLICE,   // items: start, stop, step, each may be NULL; only as b of ITEM
    EW_JJ_N_CALL,    // a(call)
    EW_JJ_N_FILTER,  // a|constant(call); a NULL: the text of a block
    EW_JJ_N_TEST,    // a is constant(call)
    EW_JJ_N_NOT,     // not a
    EW_JJ_N_NEG,     // -a
    EW_JJ_N_POS,     // +a
    EW_JJ_N_AND,     // a and b
    EW_JJ_N_OR,      // a or b
    EW_JJ_N_COND,    // b if a else c; c may be NULL
    EW_JJ_N_COMPARE, // items: first operand, then operands whose `op` compares them with the one before
    EW_JJ_N_OPERAND, // op, a: only inside COMPARE
    EW_JJ_N_BINARY,  // a op b
    EW_JJ_N_CONCAT,  // items joined by ~
    // Statements: items is the body.
    EW_JJ_N_TEXT,  // constant
    EW_JJ_N_PRINT, // items, printed one after another
    EW_JJ_N_IF,    // a, items; b: the next branch (IF), or NULL; the else branch has no a
    EW_JJ_N_FOR,   // a: target, b: what to run through, c: filter or NULL, items; other: else or NULL; is_recursive
    EW_JJ_N_BREAK,
    EW_JJ_N_CONTINUE,
    EW_JJ_N_SET,          // a: target, b: value
    EW_JJ_N_SET_BLOCK,    // a: target, b: filter chain or NULL, items
    EW_JJ_N_NS_ATTR,      // name.constant: an assignment target
    EW_JJ_N_MACRO,        // macro, items
    EW_JJ_N_CALL_BLOCK,   // macro (the caller), a: the call, items
    EW_JJ_N_FILTER_BLOCK, // b: filter chain, items
    EW_JJ_N_WITH,         // names: targets a.. in call->kw; items
    EW_JJ_N_SCOPE,        // items, with their own names (generation blocks)
    EW_JJ_N_KINDS,
};

struct ew_jj_node;

struct ew_jj_call {
    struct ew_jj_node **pos;
    struct ew_jj_named {
        struct ew_str name;
        uint32_t symbol; // WITH: the target
        struct ew_jj_node *target, *value;
    } *kw;
    uint32_t n_pos, n_kw;
    struct ew_jj_node *star, *star_star; // *a and **b, or NULL
};

struct ew_jj_params {
    struct ew_str macro_name;
    uint32_t symbol;                 // of the macro
    struct ew_jj_param {
        struct ew_str name;
        uint32_t symbol;
        struct ew_jj_node *fallback; // or NULL
    } *params;
    uint32_t n_params;
    bool uses_varargs, uses_kwargs, uses_caller; // the body names them, so calls may bring them
};

struct ew_jj_node {
    enum ew_jj_kind kind;
    enum ew_jj_token_kind op; // COMPARE's operands and BINARY; NAME stands for "in", SEMICOLON for "not in"
    uint32_t line, name;      // name: a symbol
    bool is_recursive;
    uint32_t n_items;
    struct ew_jj_node **items;
    struct ew_jj_node *a, *b, *c, *other;
    struct ew_jj_value constant;
    const struct ew_jj_call *call;
    const struct ew_jj_params *macro;
    const struct ew_jj_builtin *builtin; // of FILTER and TEST; NULL: unknown, an error where it is reached
};

// Names become numbers, so that scopes compare integers.
struct ew_jj_names {
    struct ew_str *names;
    uint32_t count, cap;
};

struct ew_jinja {
    struct ew_arena arena;
    struct ew_jj_names names;
    struct ew_jj_node *root; // SCOPE
};

uint32_t ew_jj_symbol(const struct ew_jj_names *names, struct ew_str name); // UINT32_MAX where it is not used

struct ew_jj_parser {
    struct ew_arena *arena;
    const struct ew_jj_token *at;
    struct ew_jj_names *names;
    uint32_t depth, n_loops;
    struct ew_jj_params *macro; // the innermost one, or NULL
    struct ew_error *err;
    int code;                   // the first failure; everything returns NULL after it
};

// jinja_parse.c
struct ew_jj_node *ew_jj_parse_fail(struct ew_jj_parser *parser, const char *fmt, ...) EW_PRINTF(2, 3);
void *ew_jj_parse_alloc(struct ew_jj_parser *parser, size_t count, size_t size);
struct ew_jj_node *ew_jj_new_node(struct ew_jj_parser *parser, enum ew_jj_kind kind);
bool ew_jj_push_node(struct ew_jj_parser *parser, struct ew_jj_node *list, struct ew_jj_node *item);
uint32_t ew_jj_intern(struct ew_jj_parser *parser, struct ew_str name);
int ew_jj_parse(struct ew_jinja *tmpl, const struct ew_jj_tokens *tokens, struct ew_error *err) EW_MUST_CHECK;

// jinja_expr.c
bool ew_jj_at_name(const struct ew_jj_parser *parser, const char *name);
bool ew_jj_skip(struct ew_jj_parser *parser, enum ew_jj_token_kind kind);
bool ew_jj_skip_name(struct ew_jj_parser *parser, const char *name);
bool ew_jj_expect(struct ew_jj_parser *parser, enum ew_jj_token_kind kind, const char *what);
struct ew_str ew_jj_expect_name(struct ew_jj_parser *parser);
struct ew_jj_node *ew_jj_parse_expression(struct ew_jj_parser *parser, bool with_condition);
struct ew_jj_node *ew_jj_parse_tuple(struct ew_jj_parser *parser, bool with_condition, const char *end_name);
struct ew_jj_node *ew_jj_parse_target(struct ew_jj_parser *parser, const char *end_name, bool with_namespace);
struct ew_jj_node *ew_jj_new_string(struct ew_jj_parser *parser, enum ew_jj_kind kind, struct ew_str text);
bool ew_jj_push_named(struct ew_jj_parser *parser, struct ew_jj_call *call, struct ew_jj_named named);
struct ew_jj_node *ew_jj_parse_filters(struct ew_jj_parser *parser, struct ew_jj_node *of, bool begins_inline);
