// cli: what the option tables promise.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "cli/args.h"

static const struct ew_opt g_own[] = {
    {"count", 'n', EW_OPT_INT, "N", "how many", NULL, 1, 10},
    {"stop", 0, EW_OPT_STRINGS, "TEXT", "may repeat"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_engine, ew_opts_common, NULL};
static const struct ew_command g_command = {
    .name = "test", .usage = "test FILE", .summary = "Test", .options = g_options, .n_args_min = 1, .n_args_max = 1};

static int parse(struct ew_args *args, const char *line, struct ew_error *err)
{
    static char copy[256];
    char *argv[32];
    int argc = 0;

    strcpy(copy, line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    return ew_args_parse(args, &g_command, argc, argv, err);
}

static void values_are_read_in_every_form(void **state)
{
    static const char *const lines[] = {"-n 5 f", "-n5 f", "--count 5 f", "--count=5 f", "f --count 7 -n 5"};
    struct ew_args args;
    struct ew_error err;

    for (size_t i = 0; i < EW_COUNT_OF(lines); i++) {
        assert_int_equal(parse(&args, lines[i], &err), EW_OK);
        assert_int_equal(ew_args_int(&args, "count", 0), 5);
        assert_string_equal(ew_args_at(&args, 0), "f");
    }
    assert_int_equal(parse(&args, "--memory-budget 1.5G -- -f", &err), EW_OK);
    assert_true(ew_args_bytes(&args, "memory-budget", 0) == 3ull << 29);
    assert_string_equal(ew_args_at(&args, 0), "-f");
}

static void repeated_strings_are_all_kept(void **state)
{
    const char *stops[4];
    struct ew_args args;
    struct ew_error err;

    assert_int_equal(parse(&args, "--stop a --stop b f", &err), EW_OK);
    assert_int_equal(ew_args_strings(&args, "stop", stops, 4), 2);
    assert_string_equal(stops[1], "b");
}

static void wrong_usage_is_named(void **state)
{
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"--nope f", "test does not know the option --nope"},
        {"-n x f", "--count needs a whole number, not \"x\""},
        {"-n 11 f", "--count must lie between 1 and 10, not 11"},
        {"f -n", "--count needs a value (N)"},
        {"--json=1 f", "--json takes no value"},
        {"--backend tpu f", "--backend does not know \"tpu\""},
        {"--ctx 1e9 f", "--ctx needs a whole number, not \"1e9\""},
        {"--memory-budget 5Q f", "--memory-budget needs a size, not \"5Q\""},
        {"f g", "test does not expect \"g\""},
        {"--json", "test needs 1 argument"},
    };
    struct ew_args args;
    struct ew_error err;

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        assert_int_equal(parse(&args, cases[i].line, &err), EW_ERR_USAGE);
        assert_string_equal(err.message, cases[i].message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_read_in_every_form),
        cmocka_unit_test(repeated_strings_are_all_kept),
        cmocka_unit_test(wrong_usage_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
