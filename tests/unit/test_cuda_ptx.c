// kernel/cuda/cuda_ptx: which entries of a module's text are kept, and which wait.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "kernel/cuda/cuda_ptx.h"

static const char TEXT[] =
    ".version 7.4\n.shared .b8 g_q[8192];\n\n"
    "\t// .globl\tone\n.visible .entry one(\n\t.param .u64 one_param_0\n)\n{\n"
    "\t{\nmov {%r1, %r2};\n}\n\tadd;\n\tret;\n}\n"
    "\t// .globl\tone_more\n.visible .entry one_more(\n)\n{\n\tgriddepcontrol.wait;\n\tret;\n"
    "\t// -- End function\n}\n"
    ".visible .entry last(\n)\n{\n\tret;\n}";

static bool is_in(void *ctx, struct ew_str name)
{
    const char *list = ctx;

    for (const char *at = strstr(list, " "); at; at = strstr(at + 1, " "))
        if (strncmp(at + 1, name.ptr, name.len) == 0 && at[1 + name.len] == ' ')
            return true;
    return false;
}

static unsigned keep(char *text, const char *list)
{
    unsigned n_all, n;

    memcpy(text, TEXT, sizeof(TEXT));
    n = ew_cuda_ptx_keep(text, is_in, (void *)list, &n_all);
    assert_int_equal(n_all, 3);
    return n;
}

static void test_keep(void **state)
{
    char text[sizeof(TEXT)];

    assert_int_equal(keep(text, " one one_more last "), 3);
    assert_string_equal(text, TEXT);
    assert_int_equal(keep(text, " one "), 1);
    assert_non_null(strstr(text, "g_q[8192]"));
    assert_non_null(strstr(text, ".entry one("));
    assert_null(strstr(text, ".entry one_more("));
    assert_null(strstr(text, ".entry last("));
    assert_null(strstr(text, "griddepcontrol"));
    assert_string_equal(strstr(text, "\tadd;"), "\tadd;\n\tret;\n}\n\t// .globl\tone_more\n\n");
    assert_int_equal(keep(text, " last "), 1); // the end of the text is the end of an entry, too
    assert_non_null(strstr(text, ".entry last("));
    assert_int_equal(keep(text, " nothing "), 0);
}

static void test_waits(void **state)
{
    assert_false(ew_cuda_ptx_waits(TEXT, "one"));
    assert_true(ew_cuda_ptx_waits(TEXT, "one_more"));
    assert_false(ew_cuda_ptx_waits(TEXT, "last"));
    assert_false(ew_cuda_ptx_waits(TEXT, "nothing"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_keep), cmocka_unit_test(test_waits)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
