// platform/cuda_cache: which folder is taken for compiled kernels, and which is not.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "platform/cuda_cache.h"

static char g_root[64], g_text[200];

static const char *in_root(const char *name)
{
    snprintf(g_text, sizeof(g_text), "%s/%s", g_root, name);
    return g_text;
}

static int set_up(void **state)
{
    static const char *const variables[] = {"EDGEWISE_CACHE", "CUDA_CACHE_PATH", "CUDA_CACHE_DISABLE",
                                            "CACHE_DIRECTORY", "XDG_CACHE_HOME"};

    snprintf(g_root, sizeof(g_root), "/tmp/test_cuda_cache-XXXXXX");
    assert_non_null(mkdtemp(g_root));
    for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++)
        unsetenv(variables[i]);
    setenv("HOME", g_root, 1);
    return 0;
}

static int tear_down(void **state)
{
    char command[100];

    snprintf(command, sizeof(command), "rm -r %s", g_root);
    return system(command);
}

static struct ew_cuda_cache found(const char *asked)
{
    struct ew_cuda_cache cache;
    struct ew_error err;

    assert_int_equal(ew_cuda_cache_find(asked, &cache, &err), 0);
    return cache;
}

static void refused(const char *asked, const char *why)
{
    struct ew_cuda_cache cache;
    struct ew_error err;

    assert_int_equal(ew_cuda_cache_find(asked, &cache, &err), EW_ERR_IO);
    assert_non_null(strstr(err.message, why));
    assert_true(err.remedy[0]);
}

static void test_usual(void **state)
{
    struct ew_cuda_cache cache = found(NULL);
    struct ew_error err;
    struct stat s;

    assert_int_equal(cache.kind, EW_CUDA_CACHE_USUAL);
    assert_string_equal(cache.path, in_root(".cache/edgewise"));
    assert_int_not_equal(stat(cache.path, &s), 0); // looking makes nothing
    assert_int_equal(ew_cuda_cache_use(&cache, &err), 0);
    assert_int_equal(stat(cache.path, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0700);
    assert_string_equal(getenv("CUDA_CACHE_PATH"), cache.path);
    assert_null(getenv("CUDA_CACHE_DISABLE"));
    cache = found(NULL); // now the environment says it
    assert_int_equal(cache.kind, EW_CUDA_CACHE_LEFT);
}

// A folder that others can write, or that is not ours, is passed over for the next one.
static void test_unsafe(void **state)
{
    setenv("XDG_CACHE_HOME", g_root, 1);
    assert_int_equal(mkdir(in_root("edgewise"), 0700), 0);
    assert_string_equal(found(NULL).path, in_root("edgewise"));
    assert_int_equal(chmod(g_text, 0770), 0);
    assert_string_equal(found(NULL).path, in_root(".cache/edgewise"));
    assert_int_equal(chmod(in_root("edgewise"), 0700), 0);
    assert_string_equal(found(NULL).path, g_text);
    if (geteuid() == 0) {
        assert_int_equal(chown(g_text, 12345, 12345), 0);
        assert_string_equal(found(NULL).path, in_root(".cache/edgewise"));
    }
    assert_int_equal(rmdir(in_root("edgewise")), 0);
    assert_int_equal(symlink("/tmp", g_text), 0); // into which everybody may write
    assert_string_equal(found(NULL).path, in_root(".cache/edgewise"));
    assert_int_equal(unlink(in_root("edgewise")), 0);
    assert_int_equal(symlink(".", g_text), 0);
    assert_string_equal(found(NULL).path, in_root("edgewise"));
    if (geteuid() == 0) {
        assert_int_equal(lchown(g_text, 12345, 12345), 0);
        assert_string_equal(found(NULL).path, in_root(".cache/edgewise"));
    }
}

static void test_unwritable(void **state)
{
    setenv("HOME", "/proc/no/home", 1);
    assert_int_equal(strncmp(found(NULL).path, "/var/tmp/edgewise-", 18), 0);
    setenv("CACHE_DIRECTORY", g_root, 1);
    assert_string_equal(found(NULL).path, g_root);
}

static void test_asked(void **state)
{
    struct ew_cuda_cache cache;
    struct ew_error err;

    setenv("CUDA_CACHE_DISABLE", "1", 1);
    assert_int_equal(found(NULL).kind, EW_CUDA_CACHE_LEFT);
    cache = found(in_root("a/b"));
    assert_int_equal(cache.kind, EW_CUDA_CACHE_ASKED);
    assert_int_equal(ew_cuda_cache_use(&cache, &err), 0);
    assert_string_equal(getenv("CUDA_CACHE_PATH"), in_root("a/b"));
    assert_string_equal(getenv("CUDA_CACHE_DISABLE"), "0"); // who names a place wants it used
    assert_int_equal(chmod(g_text, 0777), 0);
    assert_int_equal(ew_cuda_cache_use(&cache, &err), EW_ERR_IO);
    refused(g_text, "everybody may write into");
    setenv("EDGEWISE_CACHE", g_text, 1);
    refused(NULL, "everybody may write into");
    refused("/proc/kernels", "/proc");
    refused("kernels", "does not begin with /");
    refused("", "does not begin with /");
    fclose(fopen(in_root("file"), "w"));
    refused(g_text, "is no directory");
    refused(in_root("file/below"), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_usual, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unsafe, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unwritable, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_asked, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
