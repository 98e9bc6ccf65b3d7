#include "text/jinja_builtin.h"

#include "base/assert.h"

const struct ew_jj_builtin *ew_jj_find_builtin(const struct ew_jj_builtin *table, struct ew_str name)
{
    for (; table->name; table++)
        if (table->name[0] == (name.len ? name.ptr[0] : '\0') && ew_str_is(name, table->name))
            return table;
    return NULL;
}

const struct ew_jj_builtin *ew_jj_find_filter(struct ew_str name)
{
    const struct ew_jj_builtin *found = ew_jj_find_builtin(ew_jj_text_filters, name);

    return found ? found : ew_jj_find_builtin(ew_jj_sequence_filters, name);
}

const struct ew_jj_builtin *ew_jj_find_test(struct ew_str name)
{
    return ew_jj_find_builtin(ew_jj_tests, name);
}

static uint32_t count_params(const char *params)
{
    uint32_t count = params[0] ? 1 : 0;

    for (; *params; params++)
        count += *params == ' ';
    return count;
}

// The place of the parameter with this name, or n.
static uint32_t find_param(const char *params, uint32_t n, struct ew_str name)
{
    for (uint32_t i = 0; i < n; i++, params += strcspn(params, " ") + 1)
        if (strcspn(params, " ") == name.len && memcmp(params, name.ptr, name.len) == 0)
            return i;
    return n;
}

static bool bind(struct ew_jj_run *run, const struct ew_jj_builtin *builtin, const struct ew_jj_args *args,
                 struct ew_jj_value *v)
{
    uint32_t n = count_params(builtin->params);

    EW_ASSERT(n <= EW_JJ_PARAMS_MAX);
    if (args->n_pos > n) {
        ew_jj_fail(run, "%s takes at most %u argument%s, not %u", builtin->name, n, n == 1 ? "" : "s", args->n_pos);
        return false;
    }
    for (uint32_t i = 0; i < n; i++)
        v[i] = i < args->n_pos ? args->pos[i] : (struct ew_jj_value){.type = EW_JJ_MISSING};
    for (uint32_t i = 0; i < args->n_kw; i++) {
        uint32_t at = find_param(builtin->params, n, args->kw[i].name);

        if (at == n || v[at].type != EW_JJ_MISSING) {
            ew_jj_fail(run, "%s does not take the argument '" EW_STR_FMT "'%s", builtin->name,
                       EW_STR_ARG(args->kw[i].name), at == n ? "" : " twice");
            return false;
        }
        v[at] = args->kw[i].value;
    }
    for (uint32_t i = 0; i < builtin->n_required; i++)
        if (v[i].type == EW_JJ_MISSING) {
            ew_jj_fail(run, "%s needs %u argument%s", builtin->name, builtin->n_required,
                       builtin->n_required == 1 ? "" : "s");
            return false;
        }
    return true;
}

struct ew_jj_value ew_jj_call_builtin(struct ew_jj_run *run, const struct ew_jj_builtin *builtin,
                                      struct ew_jj_value self, const struct ew_jj_args *args)
{
    struct ew_jj_value v[EW_JJ_PARAMS_MAX], result;

    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    if (!builtin->params || bind(run, builtin, args, v))
        result = builtin->fn(run, self, v, args);
    else
        result = EW_JJ_UNDEFINED_VALUE;
    ew_jj_leave(run);
    return result;
}

int64_t ew_jj_arg_int(struct ew_jj_run *run, struct ew_jj_value v, int64_t fallback)
{
    int64_t value = fallback;

    if (v.type == EW_JJ_MISSING || v.type == EW_JJ_NONE || ew_jj_is_integer(v, &value))
        return value;
    if (v.type == EW_JJ_UNDEFINED)
        ew_jj_fail_undefined(run, v);
    else
        ew_jj_fail(run, "'%s' object cannot be interpreted as an integer", ew_jj_type_name(v));
    return fallback;
}

bool ew_jj_arg_bool(struct ew_jj_value v, bool fallback)
{
    return v.type == EW_JJ_MISSING ? fallback : ew_jj_truth(v);
}

struct ew_str ew_jj_arg_str(struct ew_jj_run *run, struct ew_jj_value v, const char *fallback)
{
    if (v.type == EW_JJ_STRING)
        return ew_jj_str(v);
    if (v.type != EW_JJ_MISSING && v.type != EW_JJ_NONE)
        ew_jj_fail(run, "a string is needed, not %s", ew_jj_type_name(v));
    return ew_str_of(fallback);
}
