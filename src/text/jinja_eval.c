#include "text/jinja_eval.h"

#include <stdlib.h>

#include "base/assert.h"
#include "text/jinja_builtin.h"

#define ARGS_ON_STACK 6

// Names.

static const struct ew_jj_value *find_name(const struct ew_jj_run *run, uint32_t name)
{
    const struct ew_jj_scope *scope = run->scope;

    for (; scope->parent; scope = scope->parent)
        for (uint32_t i = scope->count; i-- > 0;)
            if (scope->slots[i].name == name)
                return &scope->slots[i].value;
    return scope->slots[name].value.type == EW_JJ_MISSING ? NULL : &scope->slots[name].value;
}

static struct ew_jj_value eval_name(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    const struct ew_jj_value *found = find_name(run, node->name);
    const struct ew_jj_builtin *builtin;
    struct ew_jj_undef *undef;

    if (found)
        return *found;
    builtin = ew_jj_find_builtin(ew_jj_globals, ew_jj_str(node->constant));
    if (builtin)
        return (struct ew_jj_value){.type = EW_JJ_BUILTIN, .builtin = builtin};
    undef = ew_jj_alloc(run, 1, sizeof(*undef));
    if (undef)
        undef->key = node->constant;
    return (struct ew_jj_value){.type = EW_JJ_UNDEFINED, .undef = undef};
}

// Literals.

static struct ew_jj_value eval_constant(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return node->constant;
}

static struct ew_jj_value eval_items(struct ew_jj_run *run, const struct ew_jj_node *node, enum ew_jj_type type)
{
    struct ew_jj_value list = ew_jj_list(run, type, node->n_items);

    for (uint32_t i = 0; i < node->n_items && run->code == EW_OK; i++)
        ew_jj_list_push(run, list.list, ew_jj_eval(run, node->items[i]));
    return list;
}

static struct ew_jj_value eval_list(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return eval_items(run, node, EW_JJ_LIST);
}

static struct ew_jj_value eval_tuple(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return eval_items(run, node, EW_JJ_TUPLE);
}

static struct ew_jj_value eval_dict(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value dict = ew_jj_dict(run, EW_JJ_DICT);

    for (uint32_t i = 0; i + 1 < node->n_items && run->code == EW_OK; i += 2) {
        struct ew_jj_value key = ew_jj_eval(run, node->items[i]);

        ew_jj_dict_set(run, dict.dict, key, ew_jj_eval(run, node->items[i + 1]));
    }
    return dict;
}

// Lookups.

static struct ew_jj_value eval_attr(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return ew_jj_get_attr(run, ew_jj_eval(run, node->a), node->constant);
}

static struct ew_jj_value eval_slice(struct ew_jj_run *run, struct ew_jj_value object, const struct ew_jj_node *slice)
{
    struct ew_jj_value bounds[3];

    for (uint32_t i = 0; i < 3; i++)
        bounds[i] = slice->items[i] ? ew_jj_eval(run, slice->items[i]) : EW_JJ_NONE_VALUE;
    return ew_jj_slice(run, object, bounds);
}

static struct ew_jj_value eval_item(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value object = ew_jj_eval(run, node->a);

    if (node->b->kind == EW_JJ_N_SLICE)
        return eval_slice(run, object, node->b);
    return ew_jj_get_item(run, object, ew_jj_eval(run, node->b));
}

// Calls. Arguments live on the stack where they are few: callees copy what they keep.

struct arguments {
    struct ew_jj_args args;
    struct ew_jj_value pos[ARGS_ON_STACK];
    struct ew_jj_kwarg kw[ARGS_ON_STACK];
};

static bool reserve_arguments(struct ew_jj_run *run, struct arguments *to, size_t n_pos, size_t n_kw)
{
    to->args = (struct ew_jj_args){.pos = to->pos, .kw = to->kw};
    if (n_pos > ARGS_ON_STACK)
        to->args.pos = ew_jj_alloc(run, n_pos, sizeof(struct ew_jj_value));
    if (n_kw > ARGS_ON_STACK)
        to->args.kw = ew_jj_alloc(run, n_kw, sizeof(struct ew_jj_kwarg));
    return run->code == EW_OK;
}

// What *a and **b bring.
static bool expand(struct ew_jj_run *run, const struct ew_jj_call *call, struct ew_jj_items *more,
                   const struct ew_jj_dict **more_kw)
{
    struct ew_jj_value dict;

    if (call->star && !ew_jj_iterate(run, ew_jj_eval(run, call->star), more))
        return false;
    if (!call->star_star)
        return true;
    dict = ew_jj_eval(run, call->star_star);
    if (run->code == EW_OK && dict.type != EW_JJ_DICT)
        ew_jj_fail(run, "what follows ** must be a mapping, not %s", ew_jj_type_name(dict));
    *more_kw = run->code == EW_OK ? dict.dict : NULL;
    return run->code == EW_OK;
}

static bool push_keywords(struct ew_jj_run *run, struct arguments *to, const struct ew_jj_dict *dict)
{
    for (uint32_t i = 0; i < dict->count; i++) {
        if (dict->entries[i].key.type != EW_JJ_STRING) {
            ew_jj_fail(run, "keywords must be strings");
            return false;
        }
        to->args.kw[to->args.n_kw++] = (struct ew_jj_kwarg){ew_jj_str(dict->entries[i].key), dict->entries[i].value};
    }
    return true;
}

static bool eval_arguments(struct ew_jj_run *run, const struct ew_jj_call *call, struct arguments *to)
{
    struct ew_jj_items more = {0};
    const struct ew_jj_dict *more_kw = NULL;

    if (!call)
        return reserve_arguments(run, to, 0, 0);
    if (!expand(run, call, &more, &more_kw) || !reserve_arguments(run, to, (size_t)call->n_pos + more.count,
                                                                  (size_t)call->n_kw + (more_kw ? more_kw->count : 0)))
        return false;
    for (uint32_t i = 0; i < call->n_pos; i++)
        to->args.pos[to->args.n_pos++] = ew_jj_eval(run, call->pos[i]);
    for (uint32_t i = 0; i < more.count; i++)
        to->args.pos[to->args.n_pos++] = more.items[i];
    for (uint32_t i = 0; i < call->n_kw; i++)
        to->args.kw[to->args.n_kw++] = (struct ew_jj_kwarg){call->kw[i].name, ew_jj_eval(run, call->kw[i].value)};
    return run->code == EW_OK && (!more_kw || push_keywords(run, to, more_kw));
}

struct ew_jj_value ew_jj_call_value(struct ew_jj_run *run, struct ew_jj_value callee, const struct ew_jj_args *args)
{
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    switch (callee.type) {
    case EW_JJ_UNDEFINED: return ew_jj_fail_undefined(run, callee);
    case EW_JJ_BUILTIN: return ew_jj_call_builtin(run, callee.builtin, EW_JJ_NONE_VALUE, args);
    case EW_JJ_METHOD: return ew_jj_call_builtin(run, callee.method->builtin, callee.method->self, args);
    case EW_JJ_MACRO: return ew_jj_call_macro(run, callee, args);
    case EW_JJ_LOOP: return ew_jj_call_loop(run, callee.loop, args);
    case EW_JJ_JOINER: return callee.cycler->at++ ? callee.cycler->items->items[0] : ew_jj_string_view(run, EW_STR(""));
    default: return ew_jj_fail(run, "'%s' object is not callable", ew_jj_type_name(callee));
    }
}

static struct ew_jj_value eval_call(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value callee = ew_jj_eval(run, node->a);
    struct arguments to;

    if (run->code != EW_OK || !eval_arguments(run, node->call, &to))
        return EW_JJ_UNDEFINED_VALUE;
    run->line = node->line;
    return ew_jj_call_value(run, callee, &to.args);
}

static struct ew_jj_value apply(struct ew_jj_run *run, const struct ew_jj_node *node, struct ew_jj_value value)
{
    struct arguments to;

    if (!node->builtin)
        return ew_jj_fail(run, "there is no %s named '" EW_STR_FMT "'",
                          node->kind == EW_JJ_N_FILTER ? "filter" : "test", EW_STR_ARG(ew_jj_str(node->constant)));
    if (run->code != EW_OK || !eval_arguments(run, node->call, &to))
        return EW_JJ_UNDEFINED_VALUE;
    run->line = node->line;
    return ew_jj_call_builtin(run, node->builtin, value, &to.args);
}

static struct ew_jj_value eval_apply(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return apply(run, node, ew_jj_eval(run, node->a));
}

struct ew_jj_value ew_jj_eval_filters(struct ew_jj_run *run, const struct ew_jj_node *chain, struct ew_jj_value text)
{
    if (!chain)
        return text;
    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    text = apply(run, chain, ew_jj_eval_filters(run, chain->a, text));
    ew_jj_leave(run);
    return text;
}

// Logic.

static struct ew_jj_value eval_not(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return ew_jj_bool(!ew_jj_truth(ew_jj_eval(run, node->a)));
}

static struct ew_jj_value eval_and(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value a = ew_jj_eval(run, node->a);

    return run->code == EW_OK && ew_jj_truth(a) ? ew_jj_eval(run, node->b) : a;
}

static struct ew_jj_value eval_or(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value a = ew_jj_eval(run, node->a);

    return run->code != EW_OK || ew_jj_truth(a) ? a : ew_jj_eval(run, node->b);
}

static struct ew_jj_value eval_condition(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    bool holds = ew_jj_truth(ew_jj_eval(run, node->a));

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    if (holds)
        return ew_jj_eval(run, node->b);
    return node->c ? ew_jj_eval(run, node->c)
                   : ew_jj_hint(run, "the inline if-expression evaluated to false and no else section was defined");
}

static bool compare(struct ew_jj_run *run, enum ew_jj_token_kind op, struct ew_jj_value a, struct ew_jj_value b)
{
    int order;

    switch (op) {
    case EW_JJ_TOK_EQ: return ew_jj_equal(run, a, b);
    case EW_JJ_TOK_NE: return !ew_jj_equal(run, a, b);
    case EW_JJ_TOK_NAME: return ew_jj_contains(run, b, a);
    case EW_JJ_TOK_SEMICOLON: return !ew_jj_contains(run, b, a);
    case EW_JJ_TOK_LT: return ew_jj_compare(run, a, b, "<") == -1;
    case EW_JJ_TOK_GT: return ew_jj_compare(run, a, b, ">") == 1;
    case EW_JJ_TOK_LE: order = ew_jj_compare(run, a, b, "<="); return order == -1 || order == 0;
    default: order = ew_jj_compare(run, a, b, ">="); return order == 1 || order == 0;
    }
}

static struct ew_jj_value eval_compare(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value left = ew_jj_eval(run, node->items[0]), right;

    for (uint32_t i = 1; i < node->n_items; i++, left = right) {
        right = ew_jj_eval(run, node->items[i]->a);
        if (run->code != EW_OK || !compare(run, node->items[i]->op, left, right))
            return ew_jj_bool(false);
    }
    return ew_jj_bool(true);
}

// Arithmetic.

static struct ew_jj_value eval_negate(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return ew_jj_negate(run, ew_jj_eval(run, node->a));
}

static struct ew_jj_value eval_plus(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return ew_jj_negate(run, ew_jj_negate(run, ew_jj_eval(run, node->a)));
}

static struct ew_jj_value eval_binary(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value a = ew_jj_eval(run, node->a), b = ew_jj_eval(run, node->b);

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    switch (node->op) {
    case EW_JJ_TOK_ADD: return ew_jj_add(run, a, b);
    case EW_JJ_TOK_SUB: return ew_jj_arithmetic(run, '-', a, b);
    case EW_JJ_TOK_MUL: return ew_jj_arithmetic(run, '*', a, b);
    case EW_JJ_TOK_DIV: return ew_jj_arithmetic(run, '/', a, b);
    case EW_JJ_TOK_FLOORDIV: return ew_jj_arithmetic(run, 'F', a, b);
    case EW_JJ_TOK_MOD: return ew_jj_arithmetic(run, '%', a, b);
    default: return ew_jj_arithmetic(run, 'P', a, b);
    }
}

// The result of ~ is plain text, whatever is marked safe.
static struct ew_jj_value eval_concat(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value joined = ew_jj_to_string(run, ew_jj_eval(run, node->items[0]));

    joined.is_markup = false;

    for (uint32_t i = 1; i < node->n_items && run->code == EW_OK; i++) {
        struct ew_jj_value next = ew_jj_to_string(run, ew_jj_eval(run, node->items[i]));

        next.is_markup = false;
        if (run->code == EW_OK)
            joined = ew_jj_concat(run, joined, next);
    }
    return joined;
}

static struct ew_jj_value (*const g_eval[EW_JJ_N_KINDS])(struct ew_jj_run *, const struct ew_jj_node *) = {
    [EW_JJ_N_CONST] = eval_constant, [EW_JJ_N_NAME] = eval_name,       [EW_JJ_N_LIST] = eval_list,
    [EW_JJ_N_TUPLE] = eval_tuple,    [EW_JJ_N_DICT] = eval_dict,       [EW_JJ_N_ATTR] = eval_attr,
    [EW_JJ_N_ITEM] = eval_item,      [EW_JJ_N_CALL] = eval_call,       [EW_JJ_N_FILTER] = eval_apply,
    [EW_JJ_N_TEST] = eval_apply,     [EW_JJ_N_NOT] = eval_not,         [EW_JJ_N_NEG] = eval_negate,
    [EW_JJ_N_POS] = eval_plus,       [EW_JJ_N_AND] = eval_and,         [EW_JJ_N_OR] = eval_or,
    [EW_JJ_N_COND] = eval_condition, [EW_JJ_N_COMPARE] = eval_compare, [EW_JJ_N_BINARY] = eval_binary,
    [EW_JJ_N_CONCAT] = eval_concat,
};

// Every expression counts as a step and as a level: one place bounds both the work and the stack.
struct ew_jj_value ew_jj_eval(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value value;

    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    if (!g_eval[node->kind])
        value = ew_jj_fail(run, "a slice stands where it has no meaning");
    else
        value = g_eval[node->kind](run, node);
    ew_jj_leave(run);
    return value;
}
