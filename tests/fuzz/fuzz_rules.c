// A user's rules: the first line is a condition, all of it a rule file. Whatever parses can be evaluated and filled.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/buf.h"
#include "doctor/expr.h"
#include "doctor/rules.h"

#define ARENA_MAX ((size_t)4 << 20)

static struct ew_facts facts;

static void make_facts(void)
{
    static const double sms[] = {80, 90};
    static const struct ew_str missing[] = {{"libcudart.so.12", 15}};

    EW_ASSERT(ew_facts_init(&facts, NULL, NULL) == EW_OK);
    ew_facts_set_number(&facts, "drv_cuda", 1300, "");
    ew_facts_set_numbers(&facts, "fb_sms", sms, 2, "");
    ew_facts_set_strs(&facts, "elf_missing", missing, 1, "");
    ew_facts_set_str(&facts, "l4t", EW_STR("38.4.0"), "");
    ew_facts_set_bool(&facts, "integrated", true, "");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_str text = {(const char *)data, size}, line = text, why;
    const void *end = size ? memchr(data, '\n', size) : NULL;
    const struct ew_expr *expr;
    struct ew_arena arena;
    struct ew_rules rules;
    struct ew_error err;
    struct ew_buf out;

    if (!facts.count)
        make_facts();
    line.len = end ? (size_t)((const uint8_t *)end - data) : size;
    ew_arena_init(&arena, ARENA_MAX);
    if (ew_expr_parse(&arena, line, &expr, &err) == EW_OK)
        ew_expr_eval(expr, &facts, &why);
    ew_arena_fini(&arena);
    ew_buf_init(&out, 4096);
    ew_rule_fill(&out, line, &facts);
    ew_buf_fini(&out);
    if (ew_rules_parse(&rules, "fuzz.yaml", text, &err) == EW_OK) {
        for (uint32_t i = 0; i < rules.count; i++)
            ew_expr_eval(rules.list[i].when, &facts, NULL);
        ew_rules_fini(&rules);
    }
    return 0;
}
