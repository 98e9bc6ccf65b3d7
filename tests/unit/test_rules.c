// data/rules: every rule loads, fires and keeps silent by the facts of tests/rules/cases.yaml, and is not checked
// where a fact that it needs is not known.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "doctor/rules.h"
#include "format/mapfile.h"
#include "format/yaml_tree.h"

#define ITEMS_MAX 16

static struct ew_rules rules;
static struct ew_arena arena;
static const struct ew_yaml *cases;

static void set_list(struct ew_facts *facts, const char *key, const struct ew_yaml *list)
{
    struct ew_str texts[ITEMS_MAX];
    double numbers[ITEMS_MAX];
    uint32_t count = 0;
    bool quoted = !list->child || list->child->quoted;

    for (const struct ew_yaml *item = list->child; item; item = item->next) {
        assert_true(count < ITEMS_MAX);
        numbers[count] = strtod(item->text.ptr, NULL);
        texts[count++] = item->text;
    }
    if (quoted)
        ew_facts_set_strs(facts, key, texts, count, "case");
    else
        ew_facts_set_numbers(facts, key, numbers, count, "case");
}

static void set_facts(struct ew_facts *facts, const struct ew_yaml *map, const struct ew_yaml *without)
{
    for (const struct ew_yaml *value = map->child; value; value = value->next) {
        char key[64];

        if (value == without)
            continue;
        snprintf(key, sizeof(key), EW_STR_FMT, EW_STR_ARG(value->key));
        if (value->type == EW_YAML_LIST)
            set_list(facts, key, value);
        else if (value->quoted)
            ew_facts_set_str(facts, key, value->text, "case");
        else if (ew_str_is(value->text, "true") || ew_str_is(value->text, "false"))
            ew_facts_set_bool(facts, key, ew_str_is(value->text, "true"), "case");
        else
            ew_facts_set_number(facts, key, strtod(value->text.ptr, NULL), "case");
    }
    assert_false(facts->failed);
}

static enum ew_truth judge(const struct ew_rule *rule, const struct ew_yaml *map, const struct ew_yaml *without)
{
    struct ew_facts facts;
    enum ew_truth truth;

    assert_int_equal(ew_facts_init(&facts, NULL, NULL), EW_OK);
    set_facts(&facts, map, without);
    truth = ew_expr_eval(rule->when, &facts, NULL);
    ew_facts_fini(&facts);
    return truth;
}

static const struct ew_yaml *case_of(struct ew_str id)
{
    for (const struct ew_yaml *one = cases->child; one; one = one->next)
        if (ew_str_eq(ew_yaml_get(one, "id")->text, id))
            return one;
    return NULL;
}

static void every_rule_fires_and_keeps_silent(void **state)
{
    for (uint32_t i = 0; i < rules.count; i++) {
        const struct ew_rule *rule = &rules.list[i];
        const struct ew_yaml *one = case_of(rule->id);

        if (!one)
            fail_msg("%s has no case in tests/rules/cases.yaml", rule->id.ptr);
        if (judge(rule, ew_yaml_get(one, "fires"), NULL) != EW_TRUE)
            fail_msg("%s does not fire", rule->id.ptr);
        if (judge(rule, ew_yaml_get(one, "silent"), NULL) != EW_FALSE)
            fail_msg("%s is not silent", rule->id.ptr);
    }
}

static void a_fact_not_known_is_never_taken_for_no(void **state)
{
    for (uint32_t i = 0; i < rules.count; i++) {
        const struct ew_rule *rule = &rules.list[i];
        const struct ew_yaml *fires = ew_yaml_get(case_of(rule->id), "fires");
        bool unchecked = false;

        for (const struct ew_yaml *fact = fires->child; fact; fact = fact->next) {
            enum ew_truth truth = judge(rule, fires, fact);

            if (truth == EW_FALSE)
                fail_msg("%s is silent without %s", rule->id.ptr, fact->key.ptr);
            unchecked |= truth == EW_UNKNOWN;
        }
        if (!unchecked)
            fail_msg("%s needs none of its facts", rule->id.ptr);
    }
}

static void every_case_has_its_rule(void **state)
{
    uint32_t count = 0;

    for (const struct ew_yaml *one = cases->child; one; one = one->next, count++)
        if (!ew_rules_find(&rules, ew_yaml_get(one, "id")->text))
            fail_msg("there is no rule %s", ew_yaml_get(one, "id")->text.ptr);
    assert_int_equal(count, rules.count); // and no case twice
}

static void ids_are_unique_and_texts_are_there(void **state)
{
    assert_true(rules.count >= 126);
    for (uint32_t i = 0; i < rules.count; i++) {
        const struct ew_rule *rule = &rules.list[i];

        assert_ptr_equal(ew_rules_find(&rules, rule->id), rule);
        assert_true(rule->message.len > 0 && rule->source.len > 0);
        assert_true(rule->severity == EW_SEVERITY_OK || rule->remedy.len > 0);
    }
}

// Facts that messages name beside those of their condition, as a real report would have them.
static const char g_reported[] =
    "file=s:x.so\npkg=s:x\npkg_ver=s:1.0\nimage=s:x:1\ngpu_name=s:NVIDIA Thor\ngpu_cc=n:110\n"
    "drv_cuda=n:1300\ndrv_ver=s:580.00\ndrv_branch=n:580\ncompat_cuda=n:1290\ndrv_error=s:x\n"
    "l4t=s:38.4.0\nl4t_major=n:38\njetpack=s:7.1\nhost_mem_mib=n:7607\npow_name=s:120W\n"
    "pow_max_name=s:MAXN\nthrottle_which=s:x\ntemp_zone=s:tj-thermal\noc_rail=s:VDD_GPU\n"
    "fb_sms=s:80\nfb_a_sms=s:90\nfb_f_sms=s:100\nelf_needed=s:x\nhave_torch=s:2.5\n"
    "whl_arch=s:x86_64\n";

static void messages_name_facts_that_exist(void **state)
{
    for (uint32_t i = 0; i < rules.count; i++) {
        const struct ew_rule *rule = &rules.list[i];
        struct ew_facts reported, facts;
        char text[sizeof(g_reported)];
        struct ew_buf out;

        memcpy(text, g_reported, sizeof(text));
        assert_int_equal(ew_facts_init(&reported, NULL, NULL), EW_OK);
        ew_facts_parse_lines(&reported, text, "test");
        assert_int_equal(ew_facts_init(&facts, &reported, NULL), EW_OK);
        set_facts(&facts, ew_yaml_get(case_of(rule->id), "fires"), NULL);
        ew_buf_init(&out, 1 << 16);
        ew_rule_fill(&out, rule->message, &facts);
        ew_rule_fill(&out, rule->remedy, &facts);
        if (strchr(out.ptr, '?'))
            fail_msg("%s names a fact that is not known: %s", rule->id.ptr, out.ptr);
        ew_buf_fini(&out);
        ew_facts_fini(&facts);
        ew_facts_fini(&reported);
    }
}

static int load(void **state)
{
    const char *root = getenv("EW_SOURCE_ROOT");
    char path[4096], *text;
    struct ew_error err;
    size_t len;

    snprintf(path, sizeof(path), "%s/tests/rules/cases.yaml", root ? root : ".");
    ew_arena_init(&arena, 8 << 20);
    if (ew_rules_load(&rules, NULL, &err) != EW_OK || ew_file_read(path, 1 << 20, &text, &len, &err) != EW_OK)
        return -1;
    if (ew_yaml_parse(&arena, path, (struct ew_str){text, len}, &cases, &err) != EW_OK) {
        print_error("%s\n", err.message);
        return -1;
    }
    ew_free(text);
    return 0;
}

static int unload(void **state)
{
    ew_rules_fini(&rules);
    ew_arena_fini(&arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_rule_fires_and_keeps_silent), cmocka_unit_test(a_fact_not_known_is_never_taken_for_no),
        cmocka_unit_test(every_case_has_its_rule),           cmocka_unit_test(ids_are_unique_and_texts_are_there),
        cmocka_unit_test(messages_name_facts_that_exist),
    };

    return cmocka_run_group_tests(tests, load, unload);
}
