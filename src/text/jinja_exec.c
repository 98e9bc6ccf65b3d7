// Statements, scopes, macros and loops.

#include <stdlib.h>

#include "base/assert.h"
#include "text/jinja_builtin.h"
#include "text/jinja_eval.h"

// Scopes.

struct ew_jj_scope *ew_jj_scope_new(struct ew_jj_run *run, struct ew_jj_scope *parent)
{
    struct ew_jj_scope *scope = ew_jj_alloc(run, 1, sizeof(*scope));

    if (scope)
        scope->parent = parent;
    return scope;
}

static struct ew_jj_value *find_own(struct ew_jj_scope *scope, uint32_t name)
{
    if (!scope->parent)
        return &scope->slots[name].value;
    for (uint32_t i = 0; i < scope->count; i++)
        if (scope->slots[i].name == name)
            return &scope->slots[i].value;
    return NULL;
}

bool ew_jj_scope_set(struct ew_jj_run *run, uint32_t name, struct ew_jj_value value)
{
    struct ew_jj_scope *scope = run->scope;
    struct ew_jj_value *own = find_own(scope, name);

    if (run->code != EW_OK)
        return false;
    if (own) {
        *own = value;
        return true;
    }
    if (scope->count == scope->cap) {
        uint32_t cap = scope->cap ? scope->cap * 2 : 4;
        struct ew_jj_slot *grown = ew_jj_alloc(run, cap, sizeof(*grown));

        if (!grown)
            return false;
        if (scope->count)
            memcpy(grown, scope->slots, scope->count * sizeof(*grown));
        scope->slots = grown;
        scope->cap = cap;
    }
    scope->slots[scope->count++] = (struct ew_jj_slot){name, value};
    return true;
}

static bool set_namespace(struct ew_jj_run *run, const struct ew_jj_node *target, struct ew_jj_value value)
{
    struct ew_jj_node name = {
        .kind = EW_JJ_N_NAME, .line = target->line, .name = target->name, .constant = target->constant};
    struct ew_jj_value object = ew_jj_eval(run, &name);

    if (run->code == EW_OK && object.type != EW_JJ_NAMESPACE)
        ew_jj_fail(run, "cannot assign attribute on non-namespace object");
    return run->code == EW_OK && ew_jj_dict_set(run, object.dict, target->constant, value);
}

static bool assign(struct ew_jj_run *run, const struct ew_jj_node *target, struct ew_jj_value value);

static bool unpack(struct ew_jj_run *run, const struct ew_jj_node *target, struct ew_jj_value value)
{
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, value, &items))
        return false;
    if (items.count != target->n_items) {
        ew_jj_fail(run, "%u values cannot be unpacked into %u names", items.count, target->n_items);
        return false;
    }
    for (uint32_t i = 0; i < items.count; i++)
        if (!assign(run, target->items[i], items.items[i]))
            return false;
    return true;
}

static bool assign(struct ew_jj_run *run, const struct ew_jj_node *target, struct ew_jj_value value)
{
    if (run->code != EW_OK)
        return false;
    if (target->kind == EW_JJ_N_TUPLE)
        return unpack(run, target, value);
    if (target->kind == EW_JJ_N_NS_ATTR)
        return set_namespace(run, target, value);
    return ew_jj_scope_set(run, target->name, value);
}

struct ew_jj_value ew_jj_take_output(struct ew_jj_run *run, size_t mark)
{
    struct ew_buf *out = &run->out;
    struct ew_jj_value taken;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    taken = ew_jj_string_copy(run, (struct ew_str){out->ptr ? out->ptr + mark : "", out->len - mark});
    out->len = mark;
    return taken;
}

// Simple statements. All return false where the run must stop or jump.

static bool exec_text(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    ew_buf_append_str(&run->out, ew_jj_str(node->constant));
    return true;
}

static bool exec_print(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    for (uint32_t i = 0; i < node->n_items && run->code == EW_OK; i++) {
        struct ew_jj_value value = ew_jj_eval(run, node->items[i]);

        if (run->code == EW_OK)
            ew_jj_append_str(run, &run->out, value);
    }
    return true;
}

static bool exec_if(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    for (; node; node = node->b) {
        bool holds = !node->a || ew_jj_truth(ew_jj_eval(run, node->a));

        if (run->code != EW_OK)
            return false;
        if (holds)
            return ew_jj_exec_body(run, node);
    }
    return true;
}

static bool exec_break(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    run->flow = EW_JJ_FLOW_BREAK;
    return false;
}

static bool exec_continue(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    run->flow = EW_JJ_FLOW_CONTINUE;
    return false;
}

static bool exec_set(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return assign(run, node->a, ew_jj_eval(run, node->b));
}

// Runs the body in a scope of its own.
static bool exec_scope(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_scope *outer = run->scope;
    bool goes_on;

    run->scope = ew_jj_scope_new(run, outer);
    goes_on = run->scope && ew_jj_exec_body(run, node);
    run->scope = outer;
    return goes_on;
}

// The text that a block's body prints, through the block's filters.
static struct ew_jj_value capture(struct ew_jj_run *run, const struct ew_jj_node *node, bool *goes_on)
{
    size_t mark = run->out.len;

    *goes_on = exec_scope(run, node);
    return ew_jj_eval_filters(run, node->b, ew_jj_take_output(run, mark));
}

static bool exec_set_block(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    bool goes_on;
    struct ew_jj_value text = capture(run, node, &goes_on);

    return goes_on && assign(run, node->a, text);
}

static bool exec_filter_block(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    bool goes_on;
    struct ew_jj_value text = capture(run, node, &goes_on);

    if (run->code == EW_OK)
        ew_jj_append_str(run, &run->out, text);
    return goes_on;
}

static bool exec_with(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_scope *outer = run->scope, *inner = ew_jj_scope_new(run, outer);
    bool goes_on = inner != NULL;

    for (uint32_t i = 0; i < node->call->n_kw && goes_on; i++) { // values see the outer names only
        struct ew_jj_value value = ew_jj_eval(run, node->call->kw[i].value);

        run->scope = inner;
        goes_on = assign(run, node->call->kw[i].target, value);
        run->scope = outer;
    }
    if (!goes_on)
        return false;
    run->scope = inner;
    goes_on = ew_jj_exec_body(run, node);
    run->scope = outer;
    return goes_on;
}

// Macros.

static struct ew_jj_value new_macro(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_macro *macro = ew_jj_alloc(run, 1, sizeof(*macro));

    if (!macro)
        return EW_JJ_UNDEFINED_VALUE;
    *macro = (struct ew_jj_macro){node->macro, node, run->scope};
    for (struct ew_jj_scope *scope = run->scope; scope; scope = scope->parent)
        scope->is_captured = true;
    return (struct ew_jj_value){.type = EW_JJ_MACRO, .macro = macro};
}

static bool exec_macro(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    return ew_jj_scope_set(run, node->macro->symbol, new_macro(run, node));
}

static bool exec_call_block(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_node call = *node->a;
    struct ew_jj_node caller = {.kind = EW_JJ_N_CONST, .line = node->line};
    struct ew_jj_call with_caller = *call.call;
    struct ew_jj_value text;

    caller.constant = new_macro(run, node);
    with_caller.kw = ew_jj_alloc(run, (size_t)call.call->n_kw + 1, sizeof(*with_caller.kw));
    if (run->code != EW_OK)
        return false;
    if (call.call->n_kw)
        memcpy(with_caller.kw, call.call->kw, call.call->n_kw * sizeof(*with_caller.kw));
    with_caller.kw[with_caller.n_kw++] = (struct ew_jj_named){.name = EW_STR("caller"), .value = &caller};
    call.call = &with_caller;
    text = ew_jj_eval(run, &call);
    if (run->code == EW_OK)
        ew_jj_append_str(run, &run->out, text);
    return run->code == EW_OK;
}

static const struct ew_jj_kwarg *find_kwarg(const struct ew_jj_args *args, struct ew_str name)
{
    for (uint32_t i = 0; i < args->n_kw; i++)
        if (ew_str_eq(args->kw[i].name, name))
            return &args->kw[i];
    return NULL;
}

static uint32_t find_param(const struct ew_jj_params *macro, struct ew_str name)
{
    uint32_t i = 0;

    while (i < macro->n_params && !ew_str_eq(macro->params[i].name, name))
        i++;
    return i;
}

// Parameters without an argument take their default, which sees the parameters before it.
static bool bind_params(struct ew_jj_run *run, const struct ew_jj_params *macro, const struct ew_jj_args *args)
{
    for (uint32_t i = 0; i < macro->n_params && run->code == EW_OK; i++) {
        const struct ew_jj_param *param = &macro->params[i];
        const struct ew_jj_kwarg *kwarg = find_kwarg(args, param->name);
        struct ew_jj_value value;

        if (i < args->n_pos)
            value = args->pos[i];
        else if (kwarg)
            value = kwarg->value;
        else if (param->fallback)
            value = ew_jj_eval(run, param->fallback);
        else
            value = ew_jj_hint(run, "a parameter of a macro was not provided");
        ew_jj_scope_set(run, param->symbol, value);
    }
    return run->code == EW_OK;
}

static uint32_t symbol_of(const struct ew_jj_run *run, const char *name)
{
    return ew_jj_symbol(run->names, ew_str_of(name));
}

static bool bind_varargs(struct ew_jj_run *run, const struct ew_jj_params *macro, const struct ew_jj_args *args)
{
    struct ew_jj_value rest;

    if (!macro->uses_varargs) {
        if (args->n_pos > macro->n_params)
            ew_jj_fail(run, "macro '" EW_STR_FMT "' takes not more than %u argument(s)", EW_STR_ARG(macro->macro_name),
                       macro->n_params);
        return run->code == EW_OK;
    }
    rest = ew_jj_list(run, EW_JJ_TUPLE, 0);
    for (uint32_t i = macro->n_params; i < args->n_pos && run->code == EW_OK; i++)
        ew_jj_list_push(run, rest.list, args->pos[i]);
    return ew_jj_scope_set(run, symbol_of(run, "varargs"), rest);
}

static bool bind_kwargs(struct ew_jj_run *run, const struct ew_jj_params *macro, const struct ew_jj_args *args)
{
    struct ew_jj_value rest = ew_jj_dict(run, EW_JJ_DICT), caller = ew_jj_hint(run, "No caller defined");

    for (uint32_t i = 0; i < args->n_kw && run->code == EW_OK; i++) {
        const struct ew_jj_kwarg *kwarg = &args->kw[i];
        uint32_t param = find_param(macro, kwarg->name);

        if (param < macro->n_params && param >= args->n_pos)
            continue;
        if (macro->uses_caller && ew_str_is(kwarg->name, "caller"))
            caller = kwarg->value;
        else if (macro->uses_kwargs)
            ew_jj_dict_set(run, rest.dict, ew_jj_string_view(run, kwarg->name), kwarg->value);
        else
            ew_jj_fail(run, "macro '" EW_STR_FMT "' takes no keyword argument '" EW_STR_FMT "'",
                       EW_STR_ARG(macro->macro_name), EW_STR_ARG(kwarg->name));
    }
    if (macro->uses_caller && find_param(macro, EW_STR("caller")) == macro->n_params)
        ew_jj_scope_set(run, symbol_of(run, "caller"), caller);
    if (macro->uses_kwargs)
        ew_jj_scope_set(run, symbol_of(run, "kwargs"), rest);
    return run->code == EW_OK;
}

struct ew_jj_value ew_jj_call_macro(struct ew_jj_run *run, struct ew_jj_value value, const struct ew_jj_args *args)
{
    const struct ew_jj_macro *macro = value.macro;
    struct ew_jj_scope *outer = run->scope;
    size_t mark = run->out.len;

    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    run->scope = ew_jj_scope_new(run, macro->scope);
    if (run->scope && bind_params(run, macro->params, args) && bind_varargs(run, macro->params, args) &&
        bind_kwargs(run, macro->params, args))
        ew_jj_exec_body(run, macro->body);
    run->scope = outer;
    ew_jj_leave(run);
    return ew_jj_take_output(run, mark);
}

// Loops.

struct ew_jj_value ew_jj_loop_attr(struct ew_jj_run *run, const struct ew_jj_loop *loop, struct ew_str name)
{
    static const char *const names[] = {"index", "index0", "revindex", "revindex0", "length", "depth", "depth0"};
    const int64_t values[] = {loop->index + 1,
                              loop->index,
                              loop->items.count - loop->index,
                              loop->items.count - loop->index - 1,
                              loop->items.count,
                              loop->depth + 1,
                              loop->depth};
    bool is_first = loop->index == 0, is_last = loop->index + 1 >= loop->items.count;

    for (size_t i = 0; i < EW_COUNT_OF(names); i++)
        if (ew_str_is(name, names[i]))
            return ew_jj_int(values[i]);
    if (ew_str_is(name, "first"))
        return ew_jj_bool(is_first);
    if (ew_str_is(name, "last"))
        return ew_jj_bool(is_last);
    if (ew_str_is(name, "previtem"))
        return is_first ? ew_jj_hint(run, "there is no previous item") : loop->items.items[loop->index - 1];
    if (ew_str_is(name, "nextitem"))
        return is_last ? ew_jj_hint(run, "there is no next item") : loop->items.items[loop->index + 1];
    return (struct ew_jj_value){.type = EW_JJ_MISSING};
}

// The items that the loop's `if` lets through. They are tried in a scope that has the target, but no `loop`.
static bool filter_items(struct ew_jj_run *run, const struct ew_jj_node *node, struct ew_jj_items *items)
{
    struct ew_jj_scope *outer = run->scope;
    struct ew_jj_value kept = ew_jj_list(run, EW_JJ_LIST, 0);

    run->scope = ew_jj_scope_new(run, outer);
    for (uint32_t i = 0; i < items->count && run->code == EW_OK; i++) {
        run->scope->count = 0;
        if (assign(run, node->a, items->items[i]) && ew_jj_truth(ew_jj_eval(run, node->c)) && run->code == EW_OK)
            ew_jj_list_push(run, kept.list, items->items[i]);
    }
    run->scope = outer;
    if (run->code != EW_OK)
        return false;
    *items = (struct ew_jj_items){kept.list->items, kept.list->count};
    return true;
}

static bool run_loop_body(struct ew_jj_run *run, struct ew_jj_loop *loop)
{
    const struct ew_jj_node *node = loop->node;
    struct ew_jj_value self = {.type = EW_JJ_LOOP, .loop = loop};

    run->scope = ew_jj_scope_new(run, loop->outer);
    for (loop->index = 0; loop->index < loop->items.count && run->code == EW_OK; loop->index++) {
        if (run->scope->is_captured)
            run->scope = ew_jj_scope_new(run, loop->outer);
        if (run->code != EW_OK)
            break;
        run->scope->count = 0; // names set by one turn are not seen by the next
        if (!assign(run, node->a, loop->items.items[loop->index]) || !ew_jj_scope_set(run, run->loop_name, self))
            break;
        if (ew_jj_exec_body(run, node))
            continue;
        if (run->flow == EW_JJ_FLOW_BREAK)
            break;
        run->flow = EW_JJ_FLOW_NORMAL;
    }
    if (run->code == EW_OK)
        run->flow = EW_JJ_FLOW_NORMAL;
    return run->code == EW_OK;
}

static bool run_loop(struct ew_jj_run *run, const struct ew_jj_node *node, struct ew_jj_scope *outer,
                     struct ew_jj_value over, uint32_t depth)
{
    struct ew_jj_loop *loop = ew_jj_alloc(run, 1, sizeof(*loop));
    struct ew_jj_scope *caller = run->scope;
    bool goes_on;

    if (!loop)
        return false;
    *loop = (struct ew_jj_loop){.node = node, .outer = outer, .depth = depth};
    if (!ew_jj_iterate(run, over, &loop->items))
        return false;
    run->scope = outer;
    if (node->c && !filter_items(run, node, &loop->items))
        goes_on = false;
    else if (loop->items.count == 0)
        goes_on = !node->other || exec_scope(run, node->other);
    else
        goes_on = run_loop_body(run, loop);
    run->scope = caller;
    return goes_on;
}

static bool exec_for(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    struct ew_jj_value over = ew_jj_eval(run, node->b);

    return run->code == EW_OK && run_loop(run, node, run->scope, over, 0);
}

struct ew_jj_value ew_jj_call_loop(struct ew_jj_run *run, struct ew_jj_loop *loop, const struct ew_jj_args *args)
{
    size_t mark = run->out.len;

    if (!loop->node->is_recursive)
        return ew_jj_fail(run, "The loop must have the 'recursive' marker to be called recursively.");
    if (args->n_pos != 1 || args->n_kw)
        return ew_jj_fail(run, "a loop is called with what to run through, and nothing else");
    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    run_loop(run, loop->node, loop->outer, args->pos[0], loop->depth + 1);
    ew_jj_leave(run);
    return ew_jj_take_output(run, mark);
}

// Dispatch.

static bool (*const g_exec[EW_JJ_N_KINDS])(struct ew_jj_run *, const struct ew_jj_node *) = {
    [EW_JJ_N_TEXT] = exec_text,
    [EW_JJ_N_PRINT] = exec_print,
    [EW_JJ_N_IF] = exec_if,
    [EW_JJ_N_FOR] = exec_for,
    [EW_JJ_N_BREAK] = exec_break,
    [EW_JJ_N_CONTINUE] = exec_continue,
    [EW_JJ_N_SET] = exec_set,
    [EW_JJ_N_SET_BLOCK] = exec_set_block,
    [EW_JJ_N_MACRO] = exec_macro,
    [EW_JJ_N_CALL_BLOCK] = exec_call_block,
    [EW_JJ_N_FILTER_BLOCK] = exec_filter_block,
    [EW_JJ_N_WITH] = exec_with,
    [EW_JJ_N_SCOPE] = exec_scope,
};

static bool exec_one(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    bool goes_on;

    if (!ew_jj_enter(run))
        return false;
    run->line = node->line;
    EW_ASSERT(g_exec[node->kind]);
    goes_on = g_exec[node->kind](run, node) && run->code == EW_OK;
    if (!ew_buf_ok(&run->out)) {
        if (run->out.no_memory)
            ew_jj_fail_memory(run, run->out.len, "what the chat template prints");
        else
            ew_jj_fail_limit(run, "it prints more than is allowed");
        goes_on = false;
    }
    ew_jj_leave(run);
    return goes_on;
}

bool ew_jj_exec_body(struct ew_jj_run *run, const struct ew_jj_node *node)
{
    for (uint32_t i = 0; i < node->n_items; i++)
        if (!exec_one(run, node->items[i]))
            return false;
    return true;
}
