// The expression half of the template parser: Jinja's own precedence, which is not quite Python's (a filter binds
// tighter than any operator, ~ binds between + and *).

#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"
#include "text/jinja_text.h"

#define NESTING_MAX 200 // of expressions in expressions; what follows one another is bounded when it is evaluated

bool ew_jj_at_name(const struct ew_jj_parser *parser, const char *name)
{
    return parser->at->kind == EW_JJ_TOK_NAME && ew_str_is(parser->at->text, name);
}

bool ew_jj_skip(struct ew_jj_parser *parser, enum ew_jj_token_kind kind)
{
    if (parser->at->kind != kind)
        return false;
    if (kind != EW_JJ_TOK_EOF)
        parser->at++;
    return true;
}

bool ew_jj_skip_name(struct ew_jj_parser *parser, const char *name)
{
    if (!ew_jj_at_name(parser, name))
        return false;
    parser->at++;
    return true;
}

static struct ew_jj_node *unexpected(struct ew_jj_parser *parser, const char *wanted)
{
    const struct ew_jj_token *at = parser->at;

    if (at->kind == EW_JJ_TOK_EOF)
        return ew_jj_parse_fail(parser, "the template ends where %s is expected", wanted);
    if (at->kind == EW_JJ_TOK_BLOCK_END || at->kind == EW_JJ_TOK_VARIABLE_END)
        return ew_jj_parse_fail(parser, "the tag ends where %s is expected", wanted);
    return ew_jj_parse_fail(parser, "\"" EW_STR_FMT "\" stands where %s is expected", EW_STR_ARG(at->text), wanted);
}

bool ew_jj_expect(struct ew_jj_parser *parser, enum ew_jj_token_kind kind, const char *what)
{
    if (ew_jj_skip(parser, kind))
        return true;
    unexpected(parser, what);
    return false;
}

struct ew_str ew_jj_expect_name(struct ew_jj_parser *parser)
{
    struct ew_str name = parser->at->text;

    return ew_jj_expect(parser, EW_JJ_TOK_NAME, "a name") ? name : (struct ew_str){0};
}

static struct ew_jj_node *new_unary(struct ew_jj_parser *parser, enum ew_jj_kind kind, struct ew_jj_node *a)
{
    struct ew_jj_node *node = a ? ew_jj_new_node(parser, kind) : NULL;

    if (node)
        node->a = a;
    return node;
}

static struct ew_jj_node *new_binary(struct ew_jj_parser *parser, enum ew_jj_kind kind, struct ew_jj_node *a,
                                     struct ew_jj_node *b)
{
    struct ew_jj_node *node = b ? new_unary(parser, kind, a) : NULL;

    if (node)
        node->b = b;
    return node;
}

static struct ew_jj_value string_constant(struct ew_jj_parser *parser, struct ew_str text)
{
    struct ew_jj_string *string = ew_jj_parse_alloc(parser, 1, sizeof(*string));

    if (!string)
        return EW_JJ_NONE_VALUE;
    *string = (struct ew_jj_string){text.len ? text.ptr : "", text.len, ew_jj_char_count(text), NULL};
    return (struct ew_jj_value){.type = EW_JJ_STRING, .string = string};
}

struct ew_jj_node *ew_jj_new_string(struct ew_jj_parser *parser, enum ew_jj_kind kind, struct ew_str text)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, kind);

    if (node)
        node->constant = string_constant(parser, text);
    return node;
}

static struct ew_jj_node *new_constant(struct ew_jj_parser *parser, struct ew_jj_value value)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_CONST);

    if (node)
        node->constant = value;
    return node;
}

// Neighbouring literals are one string.
static struct ew_jj_node *parse_string(struct ew_jj_parser *parser)
{
    const struct ew_jj_token *first = parser->at;
    size_t len = 0;
    char *joined, *to;

    while (parser->at->kind == EW_JJ_TOK_STRING)
        len += parser->at++->text.len;
    if (parser->at == first + 1)
        return ew_jj_new_string(parser, EW_JJ_N_CONST, first->text);
    joined = to = ew_jj_parse_alloc(parser, len + 1, 1);
    if (!joined)
        return NULL;
    for (; first < parser->at; first++) {
        if (first->text.len)
            memcpy(to, first->text.ptr, first->text.len);
        to += first->text.len;
    }
    return ew_jj_new_string(parser, EW_JJ_N_CONST, (struct ew_str){joined, len});
}

static struct ew_jj_node *parse_number(struct ew_jj_parser *parser)
{
    const struct ew_jj_token *token = parser->at++;
    struct ew_jj_value big;
    int64_t integer;

    if (token->kind == EW_JJ_TOK_FLOAT)
        return new_constant(parser, ew_jj_float(strtod(token->text.ptr, NULL)));
    if (ew_str_to_i64(token->text, &integer))
        return new_constant(parser, ew_jj_int(integer));
    big = string_constant(parser, token->text);
    big.type = EW_JJ_BIG;
    return new_constant(parser, big);
}

static void note_special_name(struct ew_jj_parser *parser, struct ew_str name)
{
    if (!parser->macro)
        return;
    parser->macro->uses_varargs |= ew_str_is(name, "varargs");
    parser->macro->uses_kwargs |= ew_str_is(name, "kwargs");
    parser->macro->uses_caller |= ew_str_is(name, "caller");
}

static struct ew_jj_node *new_name(struct ew_jj_parser *parser, struct ew_str text)
{
    struct ew_jj_node *node = ew_jj_new_string(parser, EW_JJ_N_NAME, text);

    if (node)
        node->name = ew_jj_intern(parser, text);
    note_special_name(parser, text);
    return node;
}

static struct ew_jj_node *parse_name(struct ew_jj_parser *parser)
{
    struct ew_str name = parser->at++->text;

    if (ew_str_is(name, "true") || ew_str_is(name, "True"))
        return new_constant(parser, ew_jj_bool(true));
    if (ew_str_is(name, "false") || ew_str_is(name, "False"))
        return new_constant(parser, ew_jj_bool(false));
    if (ew_str_is(name, "none") || ew_str_is(name, "None"))
        return new_constant(parser, EW_JJ_NONE_VALUE);
    return new_name(parser, name);
}

static struct ew_jj_node *parse_list(struct ew_jj_parser *parser)
{
    struct ew_jj_node *list = ew_jj_new_node(parser, EW_JJ_N_LIST);

    parser->at++;
    while (parser->code == EW_OK && parser->at->kind != EW_JJ_TOK_RBRACKET) {
        if (list->n_items && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        if (parser->at->kind == EW_JJ_TOK_RBRACKET)
            break;
        ew_jj_push_node(parser, list, ew_jj_parse_expression(parser, true));
    }
    return ew_jj_expect(parser, EW_JJ_TOK_RBRACKET, "]") ? list : NULL;
}

static struct ew_jj_node *parse_dict(struct ew_jj_parser *parser)
{
    struct ew_jj_node *dict = ew_jj_new_node(parser, EW_JJ_N_DICT);

    parser->at++;
    while (parser->code == EW_OK && parser->at->kind != EW_JJ_TOK_RBRACE) {
        if (dict->n_items && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        if (parser->at->kind == EW_JJ_TOK_RBRACE)
            break;
        ew_jj_push_node(parser, dict, ew_jj_parse_expression(parser, true));
        if (!ew_jj_expect(parser, EW_JJ_TOK_COLON, "a colon"))
            return NULL;
        ew_jj_push_node(parser, dict, ew_jj_parse_expression(parser, true));
    }
    return ew_jj_expect(parser, EW_JJ_TOK_RBRACE, "}") ? dict : NULL;
}

static struct ew_jj_node *parse_parentheses(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node;

    parser->at++;
    node = parser->at->kind == EW_JJ_TOK_RPAREN ? ew_jj_new_node(parser, EW_JJ_N_TUPLE)
                                                : ew_jj_parse_tuple(parser, true, NULL);
    return ew_jj_expect(parser, EW_JJ_TOK_RPAREN, ")") ? node : NULL;
}

static struct ew_jj_node *parse_primary(struct ew_jj_parser *parser)
{
    switch (parser->at->kind) {
    case EW_JJ_TOK_NAME: return parse_name(parser);
    case EW_JJ_TOK_STRING: return parse_string(parser);
    case EW_JJ_TOK_INTEGER:
    case EW_JJ_TOK_FLOAT: return parse_number(parser);
    case EW_JJ_TOK_LPAREN: return parse_parentheses(parser);
    case EW_JJ_TOK_LBRACKET: return parse_list(parser);
    case EW_JJ_TOK_LBRACE: return parse_dict(parser);
    default: return unexpected(parser, "an expression");
    }
}

// Calls.

static bool push_positional(struct ew_jj_parser *parser, struct ew_jj_call *call, struct ew_jj_node *list)
{
    if (call->n_kw || call->star || call->star_star) {
        ew_jj_parse_fail(parser, "a positional argument follows named ones");
        return false;
    }
    if (!ew_jj_push_node(parser, list, ew_jj_parse_expression(parser, true)))
        return false;
    call->pos = list->items;
    call->n_pos = list->n_items;
    return true;
}

bool ew_jj_push_named(struct ew_jj_parser *parser, struct ew_jj_call *call, struct ew_jj_named named)
{
    if (!named.value)
        return false;
    if ((call->n_kw & (call->n_kw - 1)) == 0) { // at every power of two the array doubles
        struct ew_jj_named *grown = ew_jj_parse_alloc(parser, call->n_kw ? call->n_kw * 2 : 1, sizeof(*grown));

        if (!grown)
            return false;
        if (call->n_kw)
            memcpy(grown, call->kw, call->n_kw * sizeof(*grown));
        call->kw = grown;
    }
    call->kw[call->n_kw++] = named;
    return true;
}

static bool parse_argument(struct ew_jj_parser *parser, struct ew_jj_call *call, struct ew_jj_node *list)
{
    if (!call->star && !call->star_star && ew_jj_skip(parser, EW_JJ_TOK_MUL))
        return (call->star = ew_jj_parse_expression(parser, true)) != NULL;
    if (!call->star_star && ew_jj_skip(parser, EW_JJ_TOK_POW))
        return (call->star_star = ew_jj_parse_expression(parser, true)) != NULL;
    if (parser->at->kind == EW_JJ_TOK_NAME && parser->at[1].kind == EW_JJ_TOK_ASSIGN && !call->star_star) {
        struct ew_jj_named named = {.name = parser->at->text};

        parser->at += 2;
        named.value = ew_jj_parse_expression(parser, true);
        return ew_jj_push_named(parser, call, named);
    }
    return push_positional(parser, call, list);
}

static const struct ew_jj_call *parse_arguments(struct ew_jj_parser *parser)
{
    struct ew_jj_call *call = ew_jj_parse_alloc(parser, 1, sizeof(*call));
    struct ew_jj_node list = {.kind = EW_JJ_N_LIST};
    bool is_first = true;

    if (!call || !ew_jj_expect(parser, EW_JJ_TOK_LPAREN, "("))
        return NULL;
    for (; parser->at->kind != EW_JJ_TOK_RPAREN; is_first = false) {
        if (!is_first && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        if (!is_first && parser->at->kind == EW_JJ_TOK_RPAREN)
            break;
        if (!parse_argument(parser, call, &list))
            return NULL;
    }
    parser->at++;
    return call;
}

static struct ew_jj_node *parse_call(struct ew_jj_parser *parser, struct ew_jj_node *of)
{
    struct ew_jj_node *node = new_unary(parser, EW_JJ_N_CALL, of);

    if (node)
        node->call = parse_arguments(parser);
    return node && node->call ? node : NULL;
}

// Subscripts.

static bool at_subscript_end(const struct ew_jj_parser *parser)
{
    return parser->at->kind == EW_JJ_TOK_RBRACKET || parser->at->kind == EW_JJ_TOK_COMMA;
}

static struct ew_jj_node *parse_slice(struct ew_jj_parser *parser, struct ew_jj_node *start)
{
    struct ew_jj_node *slice = ew_jj_new_node(parser, EW_JJ_N_SLICE);

    if (!slice)
        return NULL;
    slice->items = ew_jj_parse_alloc(parser, 3, sizeof(struct ew_jj_node *));
    if (!slice->items)
        return NULL;
    slice->n_items = 3;
    slice->items[0] = start;
    for (uint32_t i = 1; i < 3 && ew_jj_skip(parser, EW_JJ_TOK_COLON); i++) {
        if (at_subscript_end(parser) || parser->at->kind == EW_JJ_TOK_COLON)
            continue;
        slice->items[i] = ew_jj_parse_expression(parser, true);
        if (!slice->items[i])
            return NULL;
    }
    return slice;
}

static struct ew_jj_node *parse_subscribed(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = NULL;

    if (parser->at->kind != EW_JJ_TOK_COLON) {
        node = ew_jj_parse_expression(parser, true);
        if (!node || parser->at->kind != EW_JJ_TOK_COLON)
            return node;
    }
    return parse_slice(parser, node);
}

static struct ew_jj_node *parse_subscript(struct ew_jj_parser *parser, struct ew_jj_node *of)
{
    struct ew_jj_node *keys = ew_jj_new_node(parser, EW_JJ_N_TUPLE), *key;

    parser->at++;
    while (keys && parser->at->kind != EW_JJ_TOK_RBRACKET) {
        if (keys->n_items && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        if (!ew_jj_push_node(parser, keys, parse_subscribed(parser)))
            return NULL;
    }
    if (!keys)
        return NULL;
    parser->at++;
    key = keys->n_items == 1 ? keys->items[0] : keys;
    return new_binary(parser, EW_JJ_N_ITEM, of, key);
}

static struct ew_jj_node *parse_dot(struct ew_jj_parser *parser, struct ew_jj_node *of)
{
    struct ew_jj_node *node;

    parser->at++;
    if (parser->at->kind == EW_JJ_TOK_INTEGER)
        return new_binary(parser, EW_JJ_N_ITEM, of, parse_number(parser));
    node = new_unary(parser, EW_JJ_N_ATTR, of);
    if (!node || parser->at->kind != EW_JJ_TOK_NAME)
        return unexpected(parser, "a name or number");
    node->constant = string_constant(parser, parser->at++->text);
    return node;
}

static struct ew_jj_node *parse_postfix(struct ew_jj_parser *parser, struct ew_jj_node *node)
{
    while (node && parser->code == EW_OK) {
        if (parser->at->kind == EW_JJ_TOK_DOT)
            node = parse_dot(parser, node);
        else if (parser->at->kind == EW_JJ_TOK_LBRACKET)
            node = parse_subscript(parser, node);
        else if (parser->at->kind == EW_JJ_TOK_LPAREN)
            node = parse_call(parser, node);
        else
            break;
    }
    return node;
}

// Filters and tests.

static struct ew_jj_node *parse_filter(struct ew_jj_parser *parser, struct ew_jj_node *of)
{
    struct ew_str name = ew_jj_expect_name(parser);
    struct ew_jj_node *node = name.ptr ? ew_jj_new_string(parser, EW_JJ_N_FILTER, name) : NULL;

    if (!node)
        return NULL;
    node->a = of;
    node->builtin = ew_jj_find_filter(name);
    if (parser->at->kind == EW_JJ_TOK_LPAREN) {
        node->call = parse_arguments(parser);
        if (!node->call)
            return NULL;
    }
    return node;
}

struct ew_jj_node *ew_jj_parse_filters(struct ew_jj_parser *parser, struct ew_jj_node *of, bool begins_inline)
{
    while (parser->code == EW_OK && (begins_inline || ew_jj_skip(parser, EW_JJ_TOK_PIPE))) {
        of = parse_filter(parser, of);
        begins_inline = false;
    }
    return of;
}

static bool begins_test_argument(const struct ew_jj_parser *parser)
{
    switch (parser->at->kind) {
    case EW_JJ_TOK_NAME:
        return !ew_jj_at_name(parser, "else") && !ew_jj_at_name(parser, "or") && !ew_jj_at_name(parser, "and");
    case EW_JJ_TOK_STRING:
    case EW_JJ_TOK_INTEGER:
    case EW_JJ_TOK_FLOAT:
    case EW_JJ_TOK_LBRACKET:
    case EW_JJ_TOK_LBRACE: return true;
    default: return false;
    }
}

// `x is divisibleby 3`: one argument may stand without parentheses.
static const struct ew_jj_call *parse_bare_argument(struct ew_jj_parser *parser)
{
    struct ew_jj_call *call = ew_jj_parse_alloc(parser, 1, sizeof(*call));
    struct ew_jj_node list = {.kind = EW_JJ_N_LIST};

    if (!call)
        return NULL;
    if (ew_jj_at_name(parser, "is")) {
        ew_jj_parse_fail(parser, "tests cannot be chained with \"is\"");
        return NULL;
    }
    if (!ew_jj_push_node(parser, &list, parse_postfix(parser, parse_primary(parser))))
        return NULL;
    call->pos = list.items;
    call->n_pos = 1;
    return call;
}

static struct ew_jj_node *parse_test(struct ew_jj_parser *parser, struct ew_jj_node *of)
{
    bool is_negated = ew_jj_skip_name(parser, "not");
    struct ew_str name = ew_jj_expect_name(parser);
    struct ew_jj_node *node = name.ptr ? ew_jj_new_string(parser, EW_JJ_N_TEST, name) : NULL;
    bool has_arguments;

    if (!node)
        return NULL;
    node->a = of;
    node->builtin = ew_jj_find_test(name);
    has_arguments = parser->at->kind == EW_JJ_TOK_LPAREN || begins_test_argument(parser);
    if (has_arguments)
        node->call = parser->at->kind == EW_JJ_TOK_LPAREN ? parse_arguments(parser) : parse_bare_argument(parser);
    if (has_arguments && !node->call)
        return NULL;
    return is_negated ? new_unary(parser, EW_JJ_N_NOT, node) : node;
}

static struct ew_jj_node *parse_filters_and_tests(struct ew_jj_parser *parser, struct ew_jj_node *node)
{
    while (node && parser->code == EW_OK) {
        if (ew_jj_skip(parser, EW_JJ_TOK_PIPE))
            node = parse_filter(parser, node);
        else if (ew_jj_skip_name(parser, "is"))
            node = parse_test(parser, node);
        else if (parser->at->kind == EW_JJ_TOK_LPAREN)
            node = parse_call(parser, node);
        else
            break;
    }
    return node;
}

// Operators, from the tightest to the loosest.

static struct ew_jj_node *parse_unary(struct ew_jj_parser *parser, bool with_filter)
{
    enum ew_jj_token_kind sign = parser->at->kind;
    struct ew_jj_node *node;

    if (++parser->depth > NESTING_MAX)
        return ew_jj_parse_fail(parser, "expressions are nested too deeply");
    if (sign == EW_JJ_TOK_SUB || sign == EW_JJ_TOK_ADD) {
        parser->at++;
        node = new_unary(parser, sign == EW_JJ_TOK_SUB ? EW_JJ_N_NEG : EW_JJ_N_POS, parse_unary(parser, false));
    } else {
        node = parse_primary(parser);
    }
    node = parse_postfix(parser, node);
    if (with_filter)
        node = parse_filters_and_tests(parser, node);
    parser->depth--;
    return node;
}

static struct ew_jj_node *parse_operand(struct ew_jj_parser *parser)
{
    return parse_unary(parser, true);
}

static bool is_one_of(enum ew_jj_token_kind kind, const enum ew_jj_token_kind *kinds)
{
    while (*kinds != EW_JJ_TOK_EOF && *kinds != kind)
        kinds++;
    return *kinds == kind && kind != EW_JJ_TOK_EOF;
}

// Left-associative operators of one level.
static struct ew_jj_node *parse_level(struct ew_jj_parser *parser, const enum ew_jj_token_kind *kinds,
                                      struct ew_jj_node *(*parse_next)(struct ew_jj_parser *))
{
    struct ew_jj_node *node = parse_next(parser);

    while (node && is_one_of(parser->at->kind, kinds)) {
        enum ew_jj_token_kind op = parser->at++->kind;

        node = new_binary(parser, EW_JJ_N_BINARY, node, parse_next(parser));
        if (node)
            node->op = op;
    }
    return node;
}

static struct ew_jj_node *parse_power(struct ew_jj_parser *parser)
{
    static const enum ew_jj_token_kind kinds[] = {EW_JJ_TOK_POW, EW_JJ_TOK_EOF};

    return parse_level(parser, kinds, parse_operand);
}

static struct ew_jj_node *parse_product(struct ew_jj_parser *parser)
{
    static const enum ew_jj_token_kind kinds[] = {EW_JJ_TOK_MUL, EW_JJ_TOK_DIV, EW_JJ_TOK_FLOORDIV, EW_JJ_TOK_MOD,
                                                  EW_JJ_TOK_EOF};

    return parse_level(parser, kinds, parse_power);
}

static struct ew_jj_node *parse_concat(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = parse_product(parser), *concat;

    if (!node || parser->at->kind != EW_JJ_TOK_TILDE)
        return node;
    concat = ew_jj_new_node(parser, EW_JJ_N_CONCAT);
    if (!concat || !ew_jj_push_node(parser, concat, node))
        return NULL;
    while (ew_jj_skip(parser, EW_JJ_TOK_TILDE))
        if (!ew_jj_push_node(parser, concat, parse_product(parser)))
            return NULL;
    return concat;
}

static struct ew_jj_node *parse_sum(struct ew_jj_parser *parser)
{
    static const enum ew_jj_token_kind kinds[] = {EW_JJ_TOK_ADD, EW_JJ_TOK_SUB, EW_JJ_TOK_EOF};

    return parse_level(parser, kinds, parse_concat);
}

// The comparison at the current place, or EOF. "in" is NAME and "not in" is SEMICOLON, which no expression has.
static enum ew_jj_token_kind skip_comparison(struct ew_jj_parser *parser)
{
    static const enum ew_jj_token_kind kinds[] = {EW_JJ_TOK_EQ, EW_JJ_TOK_NE, EW_JJ_TOK_LT, EW_JJ_TOK_LE,
                                                  EW_JJ_TOK_GT, EW_JJ_TOK_GE, EW_JJ_TOK_EOF};

    if (is_one_of(parser->at->kind, kinds))
        return parser->at++->kind;
    if (ew_jj_skip_name(parser, "in"))
        return EW_JJ_TOK_NAME;
    if (ew_jj_at_name(parser, "not") && parser->at[1].kind == EW_JJ_TOK_NAME && ew_str_is(parser->at[1].text, "in")) {
        parser->at += 2;
        return EW_JJ_TOK_SEMICOLON;
    }
    return EW_JJ_TOK_EOF;
}

static struct ew_jj_node *parse_comparison(struct ew_jj_parser *parser)
{
    struct ew_jj_node *first = parse_sum(parser), *chain = NULL;
    enum ew_jj_token_kind op;

    while (first && (op = skip_comparison(parser)) != EW_JJ_TOK_EOF) {
        struct ew_jj_node *operand;

        if (!chain) {
            chain = ew_jj_new_node(parser, EW_JJ_N_COMPARE);
            if (!chain || !ew_jj_push_node(parser, chain, first))
                return NULL;
        }
        operand = new_unary(parser, EW_JJ_N_OPERAND, parse_sum(parser));
        if (!ew_jj_push_node(parser, chain, operand))
            return NULL;
        operand->op = op;
    }
    return chain ? chain : first;
}

static struct ew_jj_node *parse_not(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node;

    if (!ew_jj_skip_name(parser, "not"))
        return parse_comparison(parser);
    if (++parser->depth > NESTING_MAX)
        return ew_jj_parse_fail(parser, "expressions are nested too deeply");
    node = new_unary(parser, EW_JJ_N_NOT, parse_not(parser));
    parser->depth--;
    return node;
}

static struct ew_jj_node *parse_and(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = parse_not(parser);

    while (node && ew_jj_skip_name(parser, "and"))
        node = new_binary(parser, EW_JJ_N_AND, node, parse_not(parser));
    return node;
}

static struct ew_jj_node *parse_or(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = parse_and(parser);

    while (node && ew_jj_skip_name(parser, "or"))
        node = new_binary(parser, EW_JJ_N_OR, node, parse_and(parser));
    return node;
}

static struct ew_jj_node *parse_condition(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = parse_or(parser);

    while (node && ew_jj_skip_name(parser, "if")) {
        node = new_binary(parser, EW_JJ_N_COND, parse_or(parser), node);
        if (!node || !ew_jj_skip_name(parser, "else"))
            continue;
        node->c = ew_jj_parse_expression(parser, true);
        if (!node->c)
            return NULL;
    }
    return node;
}

struct ew_jj_node *ew_jj_parse_expression(struct ew_jj_parser *parser, bool with_condition)
{
    struct ew_jj_node *node;

    if (++parser->depth > NESTING_MAX)
        return ew_jj_parse_fail(parser, "expressions are nested too deeply");
    node = with_condition ? parse_condition(parser) : parse_or(parser);
    parser->depth--;
    return node;
}

static bool at_tuple_end(const struct ew_jj_parser *parser, const char *end_name)
{
    switch (parser->at->kind) {
    case EW_JJ_TOK_VARIABLE_END:
    case EW_JJ_TOK_BLOCK_END:
    case EW_JJ_TOK_RPAREN: return true;
    default: return end_name && ew_jj_at_name(parser, end_name);
    }
}

// One part, or a tuple of parts where there is a comma.
static struct ew_jj_node *parse_parts(struct ew_jj_parser *parser, const char *end_name,
                                      struct ew_jj_node *(*parse_part)(struct ew_jj_parser *, bool), bool option)
{
    struct ew_jj_node *first = parse_part(parser, option), *tuple;

    if (!first || parser->at->kind != EW_JJ_TOK_COMMA)
        return first;
    tuple = ew_jj_new_node(parser, EW_JJ_N_TUPLE);
    if (!tuple || !ew_jj_push_node(parser, tuple, first))
        return NULL;
    while (ew_jj_skip(parser, EW_JJ_TOK_COMMA) && !at_tuple_end(parser, end_name))
        if (!ew_jj_push_node(parser, tuple, parse_part(parser, option)))
            return NULL;
    return tuple;
}

struct ew_jj_node *ew_jj_parse_tuple(struct ew_jj_parser *parser, bool with_condition, const char *end_name)
{
    return parse_parts(parser, end_name, ew_jj_parse_expression, with_condition);
}

// Assignment targets: names, tuples of targets in parentheses or not, and where allowed namespace.attribute.

static struct ew_jj_node *parse_target_part(struct ew_jj_parser *parser, bool with_namespace)
{
    struct ew_jj_node *node;
    struct ew_str name;

    if (++parser->depth > NESTING_MAX)
        return ew_jj_parse_fail(parser, "targets are nested too deeply");
    if (ew_jj_skip(parser, EW_JJ_TOK_LPAREN)) {
        node = ew_jj_parse_target(parser, NULL, with_namespace);
        parser->depth--;
        return ew_jj_expect(parser, EW_JJ_TOK_RPAREN, ")") ? node : NULL;
    }
    parser->depth--;
    name = ew_jj_expect_name(parser);
    if (!name.ptr)
        return NULL;
    if (ew_str_is(name, "true") || ew_str_is(name, "false") || ew_str_is(name, "none") || ew_str_is(name, "True") ||
        ew_str_is(name, "False") || ew_str_is(name, "None"))
        return ew_jj_parse_fail(parser, "a constant cannot be assigned to");
    node = new_name(parser, name);
    if (node && with_namespace && ew_jj_skip(parser, EW_JJ_TOK_DOT)) {
        name = ew_jj_expect_name(parser);
        node->kind = EW_JJ_N_NS_ATTR;
        node->constant = string_constant(parser, name);
    }
    return parser->code == EW_OK ? node : NULL;
}

struct ew_jj_node *ew_jj_parse_target(struct ew_jj_parser *parser, const char *end_name, bool with_namespace)
{
    return parse_parts(parser, end_name, parse_target_part, with_namespace);
}
