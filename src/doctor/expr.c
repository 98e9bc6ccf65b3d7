#include "doctor/expr.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"

#define DEPTH_MAX 64 // nesting of parentheses and operators in one condition
#define VERSION_PARTS_MAX 8
#define ARGS_MAX 16 // of a call or a tuple

enum node_kind { N_CONST, N_FACT, N_TUPLE, N_NOT, N_NEGATE, N_AND, N_OR, N_BINARY, N_CALL };

enum operator{
    OP_EQ,
    OP_NE,
    OP_LE,
    OP_GE,
    OP_LT,
    OP_GT,
    OP_IN,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_FLOORDIV,
    OP_DIV,
    OP_MOD,
    OP_BITAND
};

enum value_type { V_UNKNOWN, V_BOOL, V_NUMBER, V_STRING, V_NUMBERS, V_STRINGS, V_VERSION, V_TUPLE };

struct value {
    enum value_type type;
    bool boolean;
    double number;
    struct ew_str text;
    const double *numbers;
    const struct ew_str *texts;
    const struct ew_expr *const *items; // V_TUPLE: evaluated when asked for
    uint32_t count;
    uint32_t version[VERSION_PARTS_MAX];
};

struct ew_expr {
    enum node_kind kind;
    enum operator op;
    struct value constant;
    struct ew_str name; // FACT and CALL
    const struct ew_expr *args[ARGS_MAX];
    uint32_t n_args;
};

// ---- parsing ----

struct parser {
    struct ew_arena *arena;
    struct ew_str source;
    size_t at;
    uint32_t depth;
    struct ew_error *err;
};

static const struct ew_expr *parse_or(struct parser *p);

static const struct ew_expr *fail(struct parser *p, const char *what)
{
    ew_fail(p->err, EW_ERR_FORMAT, "condition \"" EW_STR_FMT "\": %s at column %zu", EW_STR_ARG(p->source), what,
            p->at + 1);
    return NULL;
}

static struct ew_expr *node(struct parser *p, enum node_kind kind)
{
    struct ew_expr *expr = ew_arena_alloc(p->arena, sizeof(*expr));

    if (expr)
        expr->kind = kind;
    else
        ew_fail_memory(p->err, sizeof(*expr), "a rule");
    return expr;
}

static void skip_space(struct parser *p)
{
    while (p->at < p->source.len && strchr(" \t\r\n", p->source.ptr[p->at]))
        p->at++;
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// Takes the operator or keyword if it is next; keywords must end where the word ends.
static bool take(struct parser *p, const char *token)
{
    size_t len = strlen(token);

    skip_space(p);
    if (p->source.len - p->at < len || memcmp(p->source.ptr + p->at, token, len) != 0)
        return false;
    if (is_word(token[0]) && p->at + len < p->source.len && is_word(p->source.ptr[p->at + len]))
        return false;
    p->at += len;
    return true;
}

static const struct ew_expr *parse_string(struct parser *p, char quote)
{
    const char *begin = p->source.ptr + p->at, *end = memchr(begin, quote, p->source.len - p->at);
    struct ew_expr *expr;

    if (!end)
        return fail(p, "the string does not end");
    expr = node(p, N_CONST);
    if (expr)
        expr->constant = (struct value){.type = V_STRING, .text = {begin, (size_t)(end - begin)}};
    p->at += (size_t)(end - begin) + 1;
    return expr;
}

static const struct ew_expr *parse_number(struct parser *p)
{
    size_t begin = p->at;
    struct ew_expr *expr;
    int base = 10;
    double number = 0;

    if (take(p, "0x"))
        base = 16;
    while (p->at < p->source.len && (is_word(p->source.ptr[p->at]) || p->source.ptr[p->at] == '.'))
        p->at++;
    if (base == 16) {
        for (size_t i = begin + 2; i < p->at; i++) {
            const char *digits = "0123456789abcdef", *digit = strchr(digits, p->source.ptr[i] | 0x20);

            if (!digit)
                return fail(p, "a malformed number ends");
            number = number * 16 + (double)(digit - digits);
        }
    } else if (!ew_str_to_double((struct ew_str){p->source.ptr + begin, p->at - begin}, &number)) {
        return fail(p, "a malformed number ends");
    }
    expr = node(p, N_CONST);
    if (expr)
        expr->constant = (struct value){.type = V_NUMBER, .number = number};
    return expr;
}

// Reads "item, item)" into expr's arguments; the opening parenthesis is behind us.
static bool parse_args(struct parser *p, struct ew_expr *expr)
{
    if (take(p, ")"))
        return true;
    do {
        if (expr->n_args > 0 && take(p, ")")) // a trailing comma, as in ('x',)
            return true;
        if (expr->n_args == ARGS_MAX)
            return fail(p, "too many items stand") != NULL;
        expr->args[expr->n_args] = parse_or(p);
        if (!expr->args[expr->n_args++])
            return false;
    } while (take(p, ","));
    return take(p, ")") || fail(p, "a closing parenthesis is missing") != NULL;
}

static const struct ew_expr *parse_parenthesis(struct parser *p)
{
    struct ew_expr *tuple = node(p, N_TUPLE);

    if (!tuple || !parse_args(p, tuple))
        return NULL;
    // One item without a comma is just a parenthesis.
    return tuple->n_args == 1 && p->source.ptr[p->at - 2] != ',' ? tuple->args[0] : tuple;
}

static const struct ew_expr *parse_name(struct parser *p)
{
    static const char *const functions[] = {"has", "has_any", "has_prefix", "len", "ver", "ver2", "jetpack_before"};
    size_t begin = p->at;
    struct ew_expr *expr = node(p, N_FACT);

    if (!expr)
        return NULL;
    while (p->at < p->source.len && is_word(p->source.ptr[p->at]))
        p->at++;
    expr->name = (struct ew_str){p->source.ptr + begin, p->at - begin};
    if (ew_str_is(expr->name, "True") || ew_str_is(expr->name, "False")) {
        expr->kind = N_CONST;
        expr->constant = (struct value){.type = V_BOOL, .boolean = expr->name.len == 4};
        return expr;
    }
    if (!take(p, "("))
        return expr;
    expr->kind = N_CALL;
    for (size_t i = 0; i < EW_COUNT_OF(functions); i++)
        if (ew_str_is(expr->name, functions[i]))
            return parse_args(p, expr) ? expr : NULL;
    p->at = begin;
    return fail(p, "an unknown function stands");
}

static const struct ew_expr *parse_primary(struct parser *p)
{
    char c;

    skip_space(p);
    if (p->at == p->source.len)
        return fail(p, "something is missing");
    c = p->source.ptr[p->at];
    if (c == '\'' || c == '"') {
        p->at++;
        return parse_string(p, c);
    }
    if (c == '(') {
        p->at++;
        return parse_parenthesis(p);
    }
    if (c >= '0' && c <= '9')
        return parse_number(p);
    return is_word(c) ? parse_name(p) : fail(p, "something unexpected stands");
}

static const struct ew_expr *parse_unary(struct parser *p)
{
    struct ew_expr *expr;

    if (!take(p, "-"))
        return parse_primary(p);
    expr = node(p, N_NEGATE);
    if (!expr || !(expr->args[0] = parse_primary(p)))
        return NULL;
    expr->n_args = 1;
    return expr;
}

struct level {
    struct {
        const char *token;
        enum operator op;
    } operators[8];
};

// Loosest first. Longer tokens come before their prefixes.
static const struct level g_levels[] = {
    {{{"==", OP_EQ}, {"!=", OP_NE}, {"<=", OP_LE}, {">=", OP_GE}, {"<", OP_LT}, {">", OP_GT}, {"in", OP_IN}}},
    {{{"&", OP_BITAND}}},
    {{{"+", OP_ADD}, {"-", OP_SUB}}},
    {{{"*", OP_MUL}, {"//", OP_FLOORDIV}, {"/", OP_DIV}, {"%", OP_MOD}}},
};

static bool take_operator(struct parser *p, const struct level *level, enum operator* op)
{
    for (size_t i = 0; i < EW_COUNT_OF(level->operators) && level->operators[i].token; i++)
        if (take(p, level->operators[i].token)) {
            *op = level->operators[i].op;
            return true;
        }
    return false;
}

static const struct ew_expr *parse_binary(struct parser *p, size_t level)
{
    const struct ew_expr *left;
    struct ew_expr *expr;
    enum operator op;

    if (level == EW_COUNT_OF(g_levels))
        return parse_unary(p);
    left = parse_binary(p, level + 1);
    while (left && take_operator(p, &g_levels[level], &op)) {
        expr = node(p, N_BINARY);
        if (!expr)
            return NULL;
        expr->op = op;
        expr->n_args = 2;
        expr->args[0] = left;
        expr->args[1] = parse_binary(p, level + 1);
        left = expr->args[1] ? expr : NULL;
    }
    return left;
}

static const struct ew_expr *parse_not(struct parser *p)
{
    struct ew_expr *expr;
    uint32_t nots = 0;
    const struct ew_expr *inner;

    while (take(p, "not"))
        nots++;
    inner = parse_binary(p, 0);
    if (!inner || nots % 2 == 0)
        return inner;
    expr = node(p, N_NOT);
    if (!expr)
        return NULL;
    expr->n_args = 1;
    expr->args[0] = inner;
    return expr;
}

static const struct ew_expr *parse_logic(struct parser *p, enum node_kind kind, const char *token,
                                         const struct ew_expr *(*inner)(struct parser *p))
{
    const struct ew_expr *left = inner(p);

    while (left && take(p, token)) {
        struct ew_expr *expr = node(p, kind);

        if (!expr)
            return NULL;
        expr->n_args = 2;
        expr->args[0] = left;
        expr->args[1] = inner(p);
        left = expr->args[1] ? expr : NULL;
    }
    return left;
}

static const struct ew_expr *parse_and(struct parser *p)
{
    return parse_logic(p, N_AND, "and", parse_not);
}

static const struct ew_expr *parse_or(struct parser *p)
{
    const struct ew_expr *expr;

    if (p->depth == DEPTH_MAX)
        return fail(p, "the nesting is too deep");
    p->depth++;
    expr = parse_logic(p, N_OR, "or", parse_and);
    p->depth--;
    return expr;
}

int ew_expr_parse(struct ew_arena *arena, struct ew_str source, const struct ew_expr **out, struct ew_error *err)
{
    struct ew_error local;
    struct parser p = {.arena = arena, .source = source, .err = err ? err : &local};

    *out = parse_or(&p);
    if (!*out)
        return p.err->code;
    skip_space(&p);
    if (p.at < source.len) {
        fail(&p, "something unexpected stands");
        return p.err->code;
    }
    return EW_OK;
}

// ---- evaluation ----

struct eval {
    const struct ew_facts *facts;
    struct ew_str missing; // the first fact that was not known
};

static struct value eval(struct eval *e, const struct ew_expr *expr);

static struct value unknown(void)
{
    return (struct value){.type = V_UNKNOWN};
}

static struct value boolean(bool truth)
{
    return (struct value){.type = V_BOOL, .boolean = truth};
}

static struct value of_truth(enum ew_truth truth)
{
    return truth == EW_UNKNOWN ? unknown() : boolean(truth == EW_TRUE);
}

static struct value of_fact(struct eval *e, struct ew_str name)
{
    const struct ew_fact *fact = ew_facts_get(e->facts, name);
    static const enum value_type types[] = {
        [EW_FACT_BOOL] = V_BOOL,       [EW_FACT_NUMBER] = V_NUMBER,   [EW_FACT_STRING] = V_STRING,
        [EW_FACT_NUMBERS] = V_NUMBERS, [EW_FACT_STRINGS] = V_STRINGS,
    };

    if (!fact) {
        if (!e->missing.len)
            e->missing = name;
        return unknown();
    }
    return (struct value){.type = types[fact->type],
                          .boolean = fact->boolean,
                          .number = fact->number,
                          .text = fact->text,
                          .numbers = fact->numbers,
                          .texts = fact->texts,
                          .count = fact->count};
}

static enum ew_truth truth(struct value value)
{
    switch (value.type) {
    case V_UNKNOWN:
        return EW_UNKNOWN;
    case V_BOOL:
        return value.boolean ? EW_TRUE : EW_FALSE;
    case V_NUMBER:
        return value.number != 0 ? EW_TRUE : EW_FALSE;
    case V_STRING:
        return value.text.len ? EW_TRUE : EW_FALSE;
    default:
        return value.count ? EW_TRUE : EW_FALSE;
    }
}

// "GLIBC_2.38", "3.4.32", "1.18.0~rc1", 13.2: the dotted numbers at the first digit.
static struct value version_of(struct value value, uint32_t parts_max)
{
    struct value out = {.type = V_VERSION};
    uint64_t part = 0;
    size_t at = 0;
    bool in_digits = false;

    if (value.type != V_STRING)
        return unknown();
    while (at < value.text.len && (value.text.ptr[at] < '0' || value.text.ptr[at] > '9'))
        at++;
    for (; at <= value.text.len && out.count < parts_max; at++) {
        char c = at < value.text.len ? value.text.ptr[at] : '\0';

        if (c >= '0' && c <= '9') {
            part = EW_MIN(part * 10 + (uint64_t)(c - '0'), UINT32_MAX);
            in_digits = true;
            continue;
        }
        if (!in_digits)
            break;
        out.version[out.count++] = (uint32_t)part;
        part = 0;
        in_digits = false;
        if (c != '.')
            break;
    }
    return out.count ? out : unknown();
}

static struct value compare_versions(enum operator op, struct value a, struct value b)
{
    int order = 0;

    for (uint32_t i = 0; i < VERSION_PARTS_MAX && order == 0; i++) // missing parts are 0: 13 equals 13.0
        order = (a.version[i] > b.version[i]) - (a.version[i] < b.version[i]);
    switch (op) {
    case OP_EQ:
        return boolean(order == 0);
    case OP_NE:
        return boolean(order != 0);
    case OP_LT:
        return boolean(order < 0);
    case OP_LE:
        return boolean(order <= 0);
    case OP_GT:
        return boolean(order > 0);
    case OP_GE:
        return boolean(order >= 0);
    default:
        return unknown();
    }
}

static double number_of(struct value value)
{
    return value.type == V_BOOL ? (double)value.boolean : value.number;
}

static struct value arithmetic(enum operator op, double a, double b)
{
    double result;

    switch (op) {
    case OP_ADD:
        result = a + b;
        break;
    case OP_SUB:
        result = a - b;
        break;
    case OP_MUL:
        result = a * b;
        break;
    case OP_DIV:
        result = b != 0 ? a / b : NAN;
        break;
    case OP_FLOORDIV:
        result = b != 0 ? floor(a / b) : NAN;
        break;
    case OP_MOD:
        result = b != 0 ? a - b * floor(a / b) : NAN;
        break;
    case OP_BITAND:
        if (fabs(a) >= 0x1p53 || fabs(b) >= 0x1p53)
            return unknown();
        result = (double)((int64_t)a & (int64_t)b);
        break;
    default:
        return unknown();
    }
    return isnan(result) ? unknown() : (struct value){.type = V_NUMBER, .number = result};
}

static struct value compare_numbers(enum operator op, double a, double b)
{
    switch (op) {
    case OP_EQ:
        return boolean(a == b);
    case OP_NE:
        return boolean(a != b);
    case OP_LT:
        return boolean(a < b);
    case OP_LE:
        return boolean(a <= b);
    case OP_GT:
        return boolean(a > b);
    case OP_GE:
        return boolean(a >= b);
    default:
        return arithmetic(op, a, b);
    }
}

static bool is_number(struct value value)
{
    return value.type == V_NUMBER || value.type == V_BOOL;
}

static struct value binary(enum operator op, struct value a, struct value b)
{
    if (a.type == V_VERSION && b.type == V_VERSION)
        return compare_versions(op, a, b);
    if (is_number(a) && is_number(b))
        return compare_numbers(op, number_of(a), number_of(b));
    if (a.type == V_STRING && b.type == V_STRING && (op == OP_EQ || op == OP_NE))
        return boolean(ew_str_eq(a.text, b.text) == (op == OP_EQ));
    return unknown();
}

static enum ew_truth contains(struct eval *e, struct value list, struct value item)
{
    enum ew_truth found = EW_FALSE;

    if (list.type == V_UNKNOWN || item.type == V_UNKNOWN)
        return EW_UNKNOWN;
    for (uint32_t i = 0; i < list.count && found != EW_TRUE; i++) {
        enum ew_truth same = EW_FALSE;

        if (list.type == V_NUMBERS)
            same = is_number(item) && list.numbers[i] == number_of(item) ? EW_TRUE : EW_FALSE;
        else if (list.type == V_STRINGS)
            same = item.type == V_STRING && ew_str_eq(list.texts[i], item.text) ? EW_TRUE : EW_FALSE;
        else if (list.type == V_TUPLE)
            same = truth(binary(OP_EQ, eval(e, list.items[i]), item));
        found = same == EW_FALSE ? found : same;
    }
    return found;
}

static enum ew_truth contains_any(struct eval *e, struct value list, struct value items)
{
    enum ew_truth found = EW_FALSE;

    if (items.type != V_TUPLE)
        return EW_UNKNOWN;
    for (uint32_t i = 0; i < items.count && found != EW_TRUE; i++) {
        enum ew_truth one = contains(e, list, eval(e, items.items[i]));

        found = one == EW_FALSE ? found : one;
    }
    return found;
}

static enum ew_truth contains_prefix(struct value list, struct value prefix)
{
    if (list.type != V_STRINGS || prefix.type != V_STRING)
        return EW_UNKNOWN;
    for (uint32_t i = 0; i < list.count; i++)
        if (list.texts[i].len >= prefix.text.len && memcmp(list.texts[i].ptr, prefix.text.ptr, prefix.text.len) == 0)
            return EW_TRUE;
    return EW_FALSE;
}

static struct value length_of(struct value value)
{
    if (value.type == V_STRING)
        return (struct value){.type = V_NUMBER, .number = (double)value.text.len};
    if (value.type == V_NUMBERS || value.type == V_STRINGS || value.type == V_TUPLE)
        return (struct value){.type = V_NUMBER, .number = value.count};
    return unknown();
}

static struct value call(struct eval *e, const struct ew_expr *expr)
{
    struct value a = expr->n_args > 0 ? eval(e, expr->args[0]) : unknown();
    struct value b = expr->n_args > 1 ? eval(e, expr->args[1]) : unknown();

    if (ew_str_is(expr->name, "has"))
        return of_truth(contains(e, a, b));
    if (ew_str_is(expr->name, "has_any"))
        return of_truth(contains_any(e, a, b));
    if (ew_str_is(expr->name, "has_prefix"))
        return of_truth(contains_prefix(a, b));
    if (ew_str_is(expr->name, "len"))
        return length_of(a);
    if (ew_str_is(expr->name, "ver"))
        return version_of(a, VERSION_PARTS_MAX);
    if (ew_str_is(expr->name, "ver2"))
        return version_of(a, 2);
    EW_ASSERT(ew_str_is(expr->name, "jetpack_before"));
    b = version_of(of_fact(e, EW_STR("jetpack")), VERSION_PARTS_MAX);
    return binary(OP_LT, b, version_of(a, VERSION_PARTS_MAX));
}

static struct value logic(struct eval *e, const struct ew_expr *expr)
{
    enum ew_truth decides = expr->kind == N_AND ? EW_FALSE : EW_TRUE;
    enum ew_truth a = truth(eval(e, expr->args[0])), b;

    if (a == decides)
        return boolean(decides == EW_TRUE);
    b = truth(eval(e, expr->args[1]));
    if (b == decides)
        return boolean(decides == EW_TRUE);
    return a == EW_UNKNOWN || b == EW_UNKNOWN ? unknown() : boolean(decides == EW_FALSE);
}

static struct value eval(struct eval *e, const struct ew_expr *expr)
{
    struct value value;

    switch (expr->kind) {
    case N_CONST:
        return expr->constant;
    case N_FACT:
        return of_fact(e, expr->name);
    case N_TUPLE:
        return (struct value){.type = V_TUPLE, .items = expr->args, .count = expr->n_args};
    case N_NOT:
        value = eval(e, expr->args[0]);
        return truth(value) == EW_UNKNOWN ? unknown() : boolean(truth(value) == EW_FALSE);
    case N_NEGATE:
        value = eval(e, expr->args[0]);
        return is_number(value) ? (struct value){.type = V_NUMBER, .number = -number_of(value)} : unknown();
    case N_AND:
    case N_OR:
        return logic(e, expr);
    case N_BINARY:
        if (expr->op == OP_IN)
            return of_truth(contains(e, eval(e, expr->args[1]), eval(e, expr->args[0])));
        return binary(expr->op, eval(e, expr->args[0]), eval(e, expr->args[1]));
    case N_CALL:
        return call(e, expr);
    }
    return unknown();
}

enum ew_truth ew_expr_eval(const struct ew_expr *expr, const struct ew_facts *facts, struct ew_str *why)
{
    struct eval e = {.facts = facts};
    enum ew_truth result = truth(eval(&e, expr));

    if (why)
        *why = result == EW_UNKNOWN ? e.missing : (struct ew_str){0};
    return result;
}
