// doctor/expr: Python's precedence, Kleene's logic.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "base/assert.h"
#include "doctor/expr.h"

static void make_facts(struct ew_facts *facts)
{
    static const double sms[] = {80, 86, 90};
    static const struct ew_str missing[] = {{"libcudart.so.12", 15}, {"libcublas.so.12", 15}};

    assert_int_equal(ew_facts_init(facts, NULL, NULL), EW_OK);
    ew_facts_set_number(facts, "drv_cuda", 1300, "test");
    ew_facts_set_number(facts, "gpu_cc", 110, "test");
    ew_facts_set_numbers(facts, "fb_sms", sms, 3, "test");
    ew_facts_set_strs(facts, "elf_missing", missing, 2, "test");
    ew_facts_set_str(facts, "l4t", EW_STR("38.4.0"), "test");
    ew_facts_set_str(facts, "jetpack", EW_STR("6.0"), "test");
    ew_facts_set_str(facts, "elf_glibc", EW_STR("GLIBC_2.38"), "test");
    ew_facts_set_str(facts, "empty", EW_STR(""), "test");
    ew_facts_set_bool(facts, "yes", true, "test");
    ew_facts_set_bool(facts, "no", false, "test");
    assert_false(facts->failed);
}

static void conditions_have_their_python_meaning(void **state)
{
    static const struct {
        const char *source;
        enum ew_truth want;
    } cases[] = {
        {"has(elf_missing,'libcudart.so.12') and drv_cuda >= 1300", EW_TRUE},
        {"has_prefix(elf_missing,'libcublas')", EW_TRUE},
        {"has_prefix(elf_missing,'libnope')", EW_FALSE},
        {"gpu_cc in (110,120,121) and not has_any(fb_sms,(110,120,121))", EW_TRUE},
        {"gpu_cc in (87,)", EW_FALSE},
        {"ver(l4t) >= ver('38.4') and ver(l4t) < ver('39.2')", EW_TRUE},
        {"ver(elf_glibc) > ver('2.35')", EW_TRUE},
        {"ver('2.9') < ver('2.35')", EW_TRUE},
        {"ver2('10.13.3') != ver2('10.16.2')", EW_TRUE},
        {"jetpack_before('6.1')", EW_TRUE},
        {"1 + 2 * 3 == 7 and 7 // 2 == 3 and 7 % 4 == 3 and 7 / 2 == 3.5", EW_TRUE},
        {"0xE8 & 0x08", EW_TRUE},
        {"0xE8 & 0x10", EW_FALSE},
        {"not no and yes", EW_TRUE},
        {"no or yes and no", EW_FALSE},
        {"yes == True and no == False", EW_TRUE},
        {"empty != ''", EW_FALSE},
        {"len(fb_sms) == 3", EW_TRUE},
        {"-1 < 0", EW_TRUE},
        {"absent", EW_UNKNOWN},
        {"not absent", EW_UNKNOWN},
        {"no and absent", EW_FALSE},
        {"absent and no", EW_FALSE},
        {"yes or absent", EW_TRUE},
        {"absent or yes", EW_TRUE},
        {"absent or no", EW_UNKNOWN},
        {"absent == 1", EW_UNKNOWN},
        {"has(absent, 1)", EW_UNKNOWN},
        {"1 / 0 > 1", EW_UNKNOWN},
        {"elf_missing + 1 == 2", EW_UNKNOWN},
    };
    struct ew_facts facts;
    struct ew_arena arena;
    const struct ew_expr *expr;

    make_facts(&facts);
    ew_arena_init(&arena, 1 << 20);
    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        assert_int_equal(ew_expr_parse(&arena, ew_str_of(cases[i].source), &expr, NULL), EW_OK);
        if (ew_expr_eval(expr, &facts, NULL) != cases[i].want)
            fail_msg("%s", cases[i].source);
    }
    ew_arena_fini(&arena);
    ew_facts_fini(&facts);
}

static void the_missing_fact_is_named(void **state)
{
    struct ew_facts facts;
    struct ew_arena arena;
    const struct ew_expr *expr;
    struct ew_str why;

    make_facts(&facts);
    ew_arena_init(&arena, 1 << 20);
    assert_int_equal(ew_expr_parse(&arena, EW_STR("yes and trip_c > 90"), &expr, NULL), EW_OK);
    assert_int_equal(ew_expr_eval(expr, &facts, &why), EW_UNKNOWN);
    assert_true(ew_str_is(why, "trip_c"));
    ew_arena_fini(&arena);
    ew_facts_fini(&facts);
}

static void malformed_conditions_are_refused(void **state)
{
    static const char *const sources[] = {"",     "a ==",  "(a",  "a b", "'x", "1x",
                                          "f(a)", "a and", "not", "a,b", "&",  "has(a"};
    struct ew_arena arena;
    const struct ew_expr *expr;
    char deep[1000];
    struct ew_error err;

    ew_arena_init(&arena, 1 << 20);
    for (size_t i = 0; i < EW_COUNT_OF(sources); i++)
        assert_int_equal(ew_expr_parse(&arena, ew_str_of(sources[i]), &expr, &err), EW_ERR_FORMAT);
    memset(deep, '(', sizeof(deep));
    assert_int_equal(ew_expr_parse(&arena, (struct ew_str){deep, sizeof(deep)}, &expr, &err), EW_ERR_FORMAT);
    ew_arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conditions_have_their_python_meaning),
        cmocka_unit_test(the_missing_fact_is_named),
        cmocka_unit_test(malformed_conditions_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
