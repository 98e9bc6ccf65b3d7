// The statement half of the template parser.

#include <stdio.h>

#include "base/assert.h"
#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"

#define NESTING_MAX 100 // of blocks in blocks

struct ew_jj_node *ew_jj_parse_fail(struct ew_jj_parser *parser, const char *fmt, ...)
{
    char what[400];
    va_list args;

    if (parser->code != EW_OK)
        return NULL;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    parser->code = ew_fail(parser->err, EW_ERR_FORMAT, "line %u of the chat template: %s", parser->at->line, what);
    return NULL;
}

void *ew_jj_parse_alloc(struct ew_jj_parser *parser, size_t count, size_t size)
{
    void *ptr = ew_arena_array(parser->arena, count, size);

    if (!ptr && parser->code == EW_OK)
        parser->code = ew_fail(parser->err, EW_ERR_LIMIT, "the chat template is too large");
    return ptr;
}

struct ew_jj_node *ew_jj_new_node(struct ew_jj_parser *parser, enum ew_jj_kind kind)
{
    struct ew_jj_node *node = ew_jj_parse_alloc(parser, 1, sizeof(*node));

    if (!node)
        return NULL;
    node->kind = kind;
    node->line = parser->at->line;
    return node;
}

bool ew_jj_push_node(struct ew_jj_parser *parser, struct ew_jj_node *list, struct ew_jj_node *item)
{
    if (!item || parser->code != EW_OK)
        return false;
    if ((list->n_items & (list->n_items - 1)) == 0) { // at every power of two the array doubles
        struct ew_jj_node **grown = ew_jj_parse_alloc(parser, list->n_items ? (size_t)list->n_items * 2 : 1,
                                                      sizeof(*grown));

        if (!grown)
            return false;
        if (list->n_items)
            memcpy(grown, list->items, list->n_items * sizeof(*grown));
        list->items = grown;
    }
    list->items[list->n_items++] = item;
    return true;
}

uint32_t ew_jj_symbol(const struct ew_jj_names *names, struct ew_str name)
{
    for (uint32_t i = 0; i < names->count; i++)
        if (ew_str_eq(names->names[i], name))
            return i;
    return UINT32_MAX;
}

#define NAMES_MAX 4096 // they are searched one by one; real templates have about a hundred

uint32_t ew_jj_intern(struct ew_jj_parser *parser, struct ew_str name)
{
    struct ew_jj_names *names = parser->names;
    uint32_t symbol = ew_jj_symbol(names, name);

    if (symbol != UINT32_MAX)
        return symbol;
    if (names->count == names->cap) {
        uint32_t cap = names->cap ? names->cap * 2 : 64;
        struct ew_str *grown = ew_jj_parse_alloc(parser, cap, sizeof(*grown));

        if (cap > NAMES_MAX)
            ew_jj_parse_fail(parser, "it has more than %d names", NAMES_MAX);
        if (!grown || parser->code != EW_OK)
            return 0;
        if (names->count)
            memcpy(grown, names->names, names->count * sizeof(*grown));
        names->names = grown;
        names->cap = cap;
    }
    names->names[names->count] = name;
    return names->count++;
}

// Blocks.

// Parses statements into body until a tag whose name is in `ends` ("elif|else|endif"); the parser then stands on
// that name.
static bool parse_body(struct ew_jj_parser *parser, struct ew_jj_node *body, const char *ends);

static bool is_listed(struct ew_str name, const char *list)
{
    while (list) {
        size_t len = strcspn(list, "|");

        if (name.len == len && memcmp(name.ptr, list, len) == 0)
            return true;
        list = list[len] ? list + len + 1 : NULL;
    }
    return false;
}

static bool expect_block_end(struct ew_jj_parser *parser)
{
    return ew_jj_expect(parser, EW_JJ_TOK_BLOCK_END, "the end of the tag");
}

// The rest of a tag, the body and the name of the tag that ends it.
static bool parse_block(struct ew_jj_parser *parser, struct ew_jj_node *body, const char *ends)
{
    ew_jj_skip(parser, EW_JJ_TOK_COLON);
    return parser->code == EW_OK && expect_block_end(parser) && parse_body(parser, body, ends);
}

static struct ew_jj_node *parse_whole_block(struct ew_jj_parser *parser, struct ew_jj_node *node, const char *end)
{
    if (!node || !parse_block(parser, node, end))
        return NULL;
    parser->at++;
    return node;
}

// Statements. Each begins behind its keyword and ends before the tag's end.

static struct ew_jj_node *parse_if(struct ew_jj_parser *parser)
{
    struct ew_jj_node *first = NULL, **link = &first;
    bool is_else = false;

    for (;;) {
        struct ew_jj_node *branch = *link = ew_jj_new_node(parser, EW_JJ_N_IF);

        if (branch && !is_else)
            branch->a = ew_jj_parse_tuple(parser, false, NULL);
        if (!branch || (!is_else && !branch->a) || !parse_block(parser, branch, is_else ? "endif" : "elif|else|endif"))
            return NULL;
        if (ew_jj_skip_name(parser, "endif"))
            return first;
        is_else = ew_jj_at_name(parser, "else");
        parser->at++;
        link = &branch->b;
    }
}

static struct ew_jj_node *parse_for_head(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_FOR);

    if (!node || !(node->a = ew_jj_parse_target(parser, "in", false)))
        return NULL;
    if (!ew_jj_skip_name(parser, "in"))
        return ew_jj_parse_fail(parser, "a for loop lacks its \"in\"");
    node->b = ew_jj_parse_tuple(parser, false, "recursive");
    if (node->b && ew_jj_skip_name(parser, "if"))
        node->c = ew_jj_parse_expression(parser, true);
    node->is_recursive = ew_jj_skip_name(parser, "recursive");
    return parser->code == EW_OK ? node : NULL;
}

static struct ew_jj_node *parse_for(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = parse_for_head(parser);
    bool has_body;

    if (!node)
        return NULL;
    parser->n_loops++;
    has_body = parse_block(parser, node, "else|endfor");
    parser->n_loops--;
    if (!has_body || ew_jj_skip_name(parser, "endfor"))
        return has_body ? node : NULL;
    parser->at++;
    node->other = ew_jj_new_node(parser, EW_JJ_N_SCOPE);
    return parse_whole_block(parser, node->other, "endfor") ? node : NULL;
}

static struct ew_jj_node *parse_jump(struct ew_jj_parser *parser, enum ew_jj_kind kind)
{
    if (parser->n_loops == 0)
        return ew_jj_parse_fail(parser, "break and continue have a meaning only inside a loop");
    return ew_jj_new_node(parser, kind);
}

static struct ew_jj_node *parse_break(struct ew_jj_parser *parser)
{
    return parse_jump(parser, EW_JJ_N_BREAK);
}

static struct ew_jj_node *parse_continue(struct ew_jj_parser *parser)
{
    return parse_jump(parser, EW_JJ_N_CONTINUE);
}

static struct ew_jj_node *parse_set(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_SET);

    if (!node || !(node->a = ew_jj_parse_target(parser, NULL, true)))
        return NULL;
    if (ew_jj_skip(parser, EW_JJ_TOK_ASSIGN)) {
        node->b = ew_jj_parse_tuple(parser, true, NULL);
        return node->b ? node : NULL;
    }
    node->kind = EW_JJ_N_SET_BLOCK;
    node->b = ew_jj_parse_filters(parser, NULL, false);
    return parse_whole_block(parser, node, "endset");
}

static struct ew_jj_node *parse_print(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_PRINT);

    while (node && parser->at->kind != EW_JJ_TOK_BLOCK_END) {
        if (node->n_items && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        if (!ew_jj_push_node(parser, node, ew_jj_parse_expression(parser, true)))
            return NULL;
    }
    return node;
}

static struct ew_jj_node *parse_with(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_WITH);
    struct ew_jj_call *call = ew_jj_parse_alloc(parser, 1, sizeof(*call));

    if (!node || !call)
        return NULL;
    node->call = call;
    while (parser->at->kind != EW_JJ_TOK_BLOCK_END) {
        struct ew_jj_named named = {0};

        if (call->n_kw && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return NULL;
        named.target = ew_jj_parse_target(parser, NULL, false);
        if (!named.target || !ew_jj_expect(parser, EW_JJ_TOK_ASSIGN, "="))
            return NULL;
        named.value = ew_jj_parse_expression(parser, true);
        if (!ew_jj_push_named(parser, call, named))
            return NULL;
    }
    return parse_whole_block(parser, node, "endwith");
}

static bool push_param(struct ew_jj_parser *parser, struct ew_jj_params *macro, struct ew_jj_param param)
{
    struct ew_jj_param *params = macro->params;

    if ((macro->n_params & (macro->n_params - 1)) == 0) {
        params = ew_jj_parse_alloc(parser, macro->n_params ? (size_t)macro->n_params * 2 : 1, sizeof(*params));
        if (!params)
            return false;
        if (macro->n_params)
            memcpy(params, macro->params, macro->n_params * sizeof(*params));
        macro->params = params;
    }
    params[macro->n_params++] = param;
    return true;
}

static bool parse_signature(struct ew_jj_parser *parser, struct ew_jj_params *macro)
{
    if (!ew_jj_expect(parser, EW_JJ_TOK_LPAREN, "("))
        return false;
    while (parser->at->kind != EW_JJ_TOK_RPAREN) {
        struct ew_jj_param param = {0};

        if (macro->n_params && !ew_jj_expect(parser, EW_JJ_TOK_COMMA, "a comma"))
            return false;
        param.name = ew_jj_expect_name(parser);
        if (!param.name.ptr)
            return false;
        param.symbol = ew_jj_intern(parser, param.name);
        if (ew_jj_skip(parser, EW_JJ_TOK_ASSIGN) && !(param.fallback = ew_jj_parse_expression(parser, true)))
            return false;
        if (!param.fallback && macro->n_params && macro->params[macro->n_params - 1].fallback) {
            ew_jj_parse_fail(parser, "a parameter without a default follows one that has it");
            return false;
        }
        if (!push_param(parser, macro, param))
            return false;
    }
    parser->at++;
    return parser->code == EW_OK;
}

// The body of a macro or call block: loops outside do not count, special names inside do, outwards too.
static struct ew_jj_node *parse_macro_body(struct ew_jj_parser *parser, struct ew_jj_node *node,
                                           struct ew_jj_params *macro, const char *end)
{
    struct ew_jj_params *outer = parser->macro;
    uint32_t n_loops = parser->n_loops;

    parser->macro = macro;
    parser->n_loops = 0;
    node->macro = macro;
    node = parse_whole_block(parser, node, end);
    parser->n_loops = n_loops;
    parser->macro = outer;
    if (outer) {
        outer->uses_varargs |= macro->uses_varargs;
        outer->uses_kwargs |= macro->uses_kwargs;
        outer->uses_caller |= macro->uses_caller;
    }
    return node;
}

static struct ew_jj_node *parse_macro(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_MACRO);
    struct ew_jj_params *macro = ew_jj_parse_alloc(parser, 1, sizeof(*macro));

    if (!node || !macro)
        return NULL;
    macro->macro_name = ew_jj_expect_name(parser);
    if (!macro->macro_name.ptr)
        return NULL;
    macro->symbol = ew_jj_intern(parser, macro->macro_name);
    return parse_signature(parser, macro) ? parse_macro_body(parser, node, macro, "endmacro") : NULL;
}

static struct ew_jj_node *parse_call_block(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_CALL_BLOCK);
    struct ew_jj_params *macro = ew_jj_parse_alloc(parser, 1, sizeof(*macro));

    if (!node || !macro)
        return NULL;
    macro->macro_name = EW_STR("caller");
    macro->symbol = ew_jj_intern(parser, macro->macro_name);
    if (parser->at->kind == EW_JJ_TOK_LPAREN && !parse_signature(parser, macro))
        return NULL;
    node->a = ew_jj_parse_expression(parser, true);
    if (!node->a)
        return NULL;
    if (node->a->kind != EW_JJ_N_CALL)
        return ew_jj_parse_fail(parser, "a call block needs a call");
    return parse_macro_body(parser, node, macro, "endcall");
}

static struct ew_jj_node *parse_filter_block(struct ew_jj_parser *parser)
{
    struct ew_jj_node *node = ew_jj_new_node(parser, EW_JJ_N_FILTER_BLOCK);

    if (node)
        node->b = ew_jj_parse_filters(parser, NULL, true);
    return node && node->b ? parse_whole_block(parser, node, "endfilter") : NULL;
}

// Marks the answers of the assistant for training; here it only gives its body a scope.
static struct ew_jj_node *parse_generation(struct ew_jj_parser *parser)
{
    return parse_whole_block(parser, ew_jj_new_node(parser, EW_JJ_N_SCOPE), "endgeneration");
}

static struct ew_jj_node *parse_refused(struct ew_jj_parser *parser)
{
    return ew_jj_parse_fail(parser, "\"" EW_STR_FMT "\" needs other templates, which a chat template does not have",
                            EW_STR_ARG(parser->at[-1].text));
}

static const struct {
    const char *name;
    struct ew_jj_node *(*parse)(struct ew_jj_parser *parser);
} g_statements[] = {
    {"if", parse_if},
    {"set", parse_set},
    {"for", parse_for},
    {"macro", parse_macro},
    {"break", parse_break},
    {"continue", parse_continue},
    {"generation", parse_generation},
    {"with", parse_with},
    {"call", parse_call_block},
    {"filter", parse_filter_block},
    {"print", parse_print},
    {"include", parse_refused},
    {"import", parse_refused},
    {"from", parse_refused},
    {"extends", parse_refused},
    {"block", parse_refused},
};

static struct ew_jj_node *parse_statement(struct ew_jj_parser *parser)
{
    struct ew_str name = ew_jj_expect_name(parser);

    if (!name.ptr)
        return NULL;
    for (size_t i = 0; i < EW_COUNT_OF(g_statements); i++)
        if (ew_str_is(name, g_statements[i].name))
            return g_statements[i].parse(parser);
    parser->at--;
    return ew_jj_parse_fail(parser, "the tag \"" EW_STR_FMT "\" is unknown or has no beginning", EW_STR_ARG(name));
}

static bool parse_block_tag(struct ew_jj_parser *parser, struct ew_jj_node *body)
{
    struct ew_jj_node *statement;

    if (++parser->depth > NESTING_MAX) {
        ew_jj_parse_fail(parser, "blocks are nested too deeply");
        return false;
    }
    statement = parse_statement(parser);
    parser->depth--;
    return ew_jj_push_node(parser, body, statement) && expect_block_end(parser);
}

static bool parse_variable(struct ew_jj_parser *parser, struct ew_jj_node *body)
{
    struct ew_jj_node *print = ew_jj_new_node(parser, EW_JJ_N_PRINT);

    return print && ew_jj_push_node(parser, print, ew_jj_parse_tuple(parser, true, NULL)) &&
           ew_jj_expect(parser, EW_JJ_TOK_VARIABLE_END, "}}") && ew_jj_push_node(parser, body, print);
}

static bool parse_body(struct ew_jj_parser *parser, struct ew_jj_node *body, const char *ends)
{
    for (;;) {
        const struct ew_jj_token *token = parser->at;

        if (token->kind == EW_JJ_TOK_EOF) {
            if (ends)
                ew_jj_parse_fail(parser, "the template ends where one of %s is expected", ends);
            return !ends;
        }
        parser->at++;
        if (token->kind == EW_JJ_TOK_DATA) {
            if (!ew_jj_push_node(parser, body, ew_jj_new_string(parser, EW_JJ_N_TEXT, token->text)))
                return false;
        } else if (token->kind == EW_JJ_TOK_VARIABLE_BEGIN) {
            if (!parse_variable(parser, body))
                return false;
        } else {
            if (ends && parser->at->kind == EW_JJ_TOK_NAME && is_listed(parser->at->text, ends))
                return true;
            if (!parse_block_tag(parser, body))
                return false;
        }
    }
}

int ew_jj_parse(struct ew_jinja *tmpl, const struct ew_jj_tokens *tokens, struct ew_error *err)
{
    struct ew_jj_parser parser = {.arena = &tmpl->arena, .at = tokens->tokens, .names = &tmpl->names, .err = err};

    tmpl->root = ew_jj_new_node(&parser, EW_JJ_N_SCOPE);
    if (tmpl->root)
        parse_body(&parser, tmpl->root, NULL);
    ew_jj_intern(&parser, EW_STR("loop"));
    return parser.code;
}
