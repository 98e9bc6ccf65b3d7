#include "text/jinja.h"

#include "base/alloc.h"
#include "text/jinja_eval.h"

#define SOURCE_MAX ((size_t)4 << 20)         // the largest real chat template has 40 kB
#define TEMPLATE_MEMORY_MAX ((size_t)256 << 20)
#define STEPS_DEFAULT 20000000u              // a second or so; a long conversation takes some 100,000
#define DEPTH_DEFAULT 800u // some 100 levels of a macro that calls itself; about 1 MB of stack at most
#define OUTPUT_DEFAULT ((size_t)64 << 20)
#define MEMORY_DEFAULT ((size_t)512 << 20)

int ew_jinja_compile(struct ew_str source, struct ew_jinja **out, struct ew_error *err)
{
    struct ew_jinja *tmpl;
    struct ew_jj_tokens tokens;
    int code;

    if (source.len > SOURCE_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the chat template has %zu bytes, more than the %zu that are read",
                       source.len, SOURCE_MAX);
    tmpl = ew_alloc(sizeof(*tmpl));
    if (!tmpl)
        return ew_fail_memory(err, sizeof(*tmpl), "a chat template");
    ew_arena_init(&tmpl->arena, TEMPLATE_MEMORY_MAX);
    code = ew_jj_lex(&tmpl->arena, source, &tokens, err);
    if (code == EW_OK)
        code = ew_jj_parse(tmpl, &tokens, err);
    if (code != EW_OK) {
        ew_jinja_free(tmpl);
        return code;
    }
    *out = tmpl;
    return EW_OK;
}

void ew_jinja_free(struct ew_jinja *tmpl)
{
    if (!tmpl)
        return;
    ew_arena_fini(&tmpl->arena);
    ew_free(tmpl);
}

static void set_variable(struct ew_jj_run *run, struct ew_str name, struct ew_jj_value value)
{
    uint32_t symbol = ew_jj_symbol(run->names, name);

    if (symbol != UINT32_MAX)
        ew_jj_scope_set(run, symbol, value);
}

static void set_text(struct ew_jj_run *run, const char *name, const char *text)
{
    if (text)
        set_variable(run, ew_str_of(name), ew_jj_string_view(run, ew_str_of(text)));
}

// Variables that the template does not name are not even converted.
static void set_variables(struct ew_jj_run *run, const struct ew_jinja_vars *vars)
{
    const struct ew_json *member = vars->object && vars->object->type == EW_JSON_T_OBJECT ? vars->object->child : NULL;

    set_text(run, "bos_token", vars->bos_token);
    set_text(run, "eos_token", vars->eos_token);
    for (; member && run->code == EW_OK; member = member->next)
        if (ew_jj_symbol(run->names, member->key) != UINT32_MAX)
            set_variable(run, member->key, ew_jj_from_json(run, member));
}

static void begin(struct ew_jj_run *run, const struct ew_jinja *tmpl, const struct ew_jinja_vars *vars,
                  const struct ew_jinja_limits *limits)
{
    static const struct ew_jinja_limits defaults;

    if (!limits)
        limits = &defaults;
    run->steps_max = limits->steps_max ? limits->steps_max : STEPS_DEFAULT;
    run->depth_max = limits->depth_max ? limits->depth_max : DEPTH_DEFAULT;
    ew_arena_init(&run->arena, limits->memory_max ? limits->memory_max : MEMORY_DEFAULT);
    ew_buf_init(&run->out, limits->output_max ? limits->output_max : OUTPUT_DEFAULT);
    ew_buf_init(&run->scratch, run->out.max);
    run->names = &tmpl->names;
    run->loop_name = ew_jj_symbol(run->names, EW_STR("loop"));
    run->now = vars->now;
    run->scope = ew_jj_scope_new(run, NULL);
    if (run->scope)
        run->scope->slots = ew_jj_alloc(run, run->names->count, sizeof(struct ew_jj_slot)); // all zero: all MISSING
}

int ew_jinja_render(const struct ew_jinja *tmpl, const struct ew_jinja_vars *vars, const struct ew_jinja_limits *limits,
                    struct ew_buf *out, struct ew_error *err)
{
    struct ew_jj_run run = {.err = err, .line = 1};

    begin(&run, tmpl, vars, limits);
    if (run.code == EW_OK)
        set_variables(&run, vars);
    if (run.code == EW_OK)
        ew_jj_exec_body(&run, tmpl->root);
    if (run.code == EW_OK) {
        ew_buf_append_str(out, ew_buf_str(&run.out));
        if (!ew_buf_ok(out))
            run.code = ew_fail(err, EW_ERR_LIMIT, "the rendered prompt is longer than %zu bytes", out->max);
    }
    ew_buf_fini(&run.out);
    ew_buf_fini(&run.scratch);
    ew_arena_fini(&run.arena);
    return run.code;
}
