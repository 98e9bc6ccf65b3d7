// kernel/cuda/cuda_ptx: texts of single kernels out of a module's.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/alloc.h"
#include "kernel/cuda/cuda_ptx.h"

static const char TEXT[] =
    ".version 7.4\n.shared .b8 g_q[8192];\n\n"
    "\t// .globl\tone\n.visible .entry one(\n\t.param .u64 one_param_0\n)\n{\n"
    "\t{\nmov {%r1, %r2};\n}\n\tadd;\n\tret;\n}\n"
    "\t// .globl\tone_more\n.visible .entry one_more(\n)\n{\n\tgriddepcontrol.wait;\n\tret;\n"
    "\t// -- End function\n}\n"
    ".visible .entry last(\n)\n{\n\tret;\n}";

static void test_entry(void **state)
{
    struct ew_str entry = ew_cuda_ptx_entry(TEXT, "one");

    assert_memory_equal(entry.ptr, ".visible .entry one(", 20);
    assert_memory_equal(entry.ptr + entry.len - 8, "\n\tret;\n}", 8);
    assert_true(ew_cuda_ptx_entry(TEXT, "last").len > 20); // the end of the text is the end of an entry, too
    assert_int_equal(ew_cuda_ptx_entry(TEXT, "on").len, 0);
    assert_int_equal(ew_cuda_ptx_entry(TEXT, "nothing").len, 0);
}

static void test_only(void **state)
{
    char *one = ew_cuda_ptx_only(TEXT, "one"), *more = ew_cuda_ptx_only(TEXT, "one_more");
    char *last = ew_cuda_ptx_only(TEXT, "last"), *none = ew_cuda_ptx_only(TEXT, "nothing");

    assert_non_null(strstr(one, "g_q[8192]"));
    assert_non_null(strstr(one, ".entry one("));
    assert_null(strstr(one, ".entry one_more("));
    assert_null(strstr(one, ".entry last("));
    assert_string_equal(strstr(one, "\tadd;"), "\tadd;\n\tret;\n}\n\t// .globl\tone_more\n\n");
    assert_false(ew_cuda_ptx_waits(one));
    assert_null(strstr(more, ".entry one("));
    assert_true(ew_cuda_ptx_waits(more));
    assert_non_null(strstr(last, ".entry last("));
    assert_non_null(strstr(last, "g_q[8192]"));
    assert_null(strstr(none, ".entry"));
    ew_free(one);
    ew_free(more);
    ew_free(last);
    ew_free(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_entry), cmocka_unit_test(test_only)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
