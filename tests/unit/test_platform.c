// platform: this machine as it is, and captured trees with quotas, limits and SMT.
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

#include "platform/cpu.h"
#include "platform/memory.h"
#include "platform/sysfile.h"
#include "platform/topology.h"

// Writes a file of a captured tree, making its directories.
static void put(const char *root, const char *path, const char *text)
{
    char full[512];
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(full, 0777);
        *slash = '/';
    }
    file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void new_root(char *root, size_t size)
{
    const char *base = getenv("TMPDIR");

    snprintf(root, size, "%s/ew-test-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(root));
}

static void remove_root(const char *root)
{
    char command[600];

    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    assert_int_equal(system(command), 0);
}

static void caps_leave_the_levels_below(void **state)
{
    struct ew_error err = {0};
    uint32_t mask;

    (void)state;
    assert_int_equal(ew_isa_cap("reference", &mask, &err), 0);
    assert_int_equal(mask, 0);
    assert_int_equal(ew_isa_cap("avx2", &mask, &err), 0);
    assert_int_equal(mask, EW_ISA_SSE2 | EW_ISA_SSE42 | EW_ISA_AVX2);
    assert_int_equal(ew_isa_cap("dotprod", &mask, &err), 0);
    assert_int_equal(mask, EW_ISA_NEON | EW_ISA_DOTPROD);
    assert_int_equal(ew_isa_cap(NULL, &mask, &err), 0);
    assert_int_equal(mask, UINT32_MAX);
    assert_int_equal(ew_isa_cap("mmx", &mask, &err), EW_ERR_USAGE);
    assert_string_equal(ew_isa_best(EW_ISA_SSE2 | EW_ISA_AVX512), "avx512");
    assert_string_equal(ew_isa_best(0), "reference");
    assert_string_equal(ew_isa_name(EW_ISA_AVX512_VNNI), "avx512-vnni");
    assert_string_equal(ew_isa_name(EW_ISA_AVX512_VBMI), "avx512-vbmi");
}

static void this_machine_is_known(void **state)
{
    struct ew_topology topology;
    struct ew_memory memory;
    uint64_t resident_bytes;
    char brand[64];

    (void)state;
    assert_true(ew_cpu_isa() & (EW_ISA_SSE2 | EW_ISA_NEON));
    ew_cpu_brand(brand, sizeof(brand));
    assert_true(strlen(brand) > 0);
    ew_topology_read(NULL, &topology);
    assert_true(topology.n_usable >= 1 && topology.n_usable <= topology.n_physical);
    assert_true(topology.n_physical <= topology.n_logical);
    assert_int_equal(ew_memory_read(NULL, &memory, NULL), 0);
    assert_true(memory.available_bytes > 0 && memory.available_bytes <= memory.total_bytes);
    resident_bytes = ew_memory_resident_bytes(); // first: it may grow in between
    assert_true(resident_bytes > 0 && ew_memory_peak_bytes() >= resident_bytes);
}

static void smt_siblings_count_once(void **state)
{
    struct ew_topology topology;
    char root[256], path[128];

    (void)state;
    new_root(root, sizeof(root));
    put(root, "/sys/devices/system/cpu/online", "0-7\n");
    for (int cpu = 0; cpu < 8; cpu++) {
        char siblings[16];

        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        snprintf(siblings, sizeof(siblings), "%d,%d\n", cpu % 4, cpu % 4 + 4);
        put(root, path, siblings);
    }
    put(root, "/sys/devices/system/cpu/cpu0/cache/index0/level", "1\n");
    put(root, "/sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n");
    put(root, "/sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n");
    put(root, "/sys/devices/system/cpu/cpu0/cache/index1/level", "3\n");
    put(root, "/sys/devices/system/cpu/cpu0/cache/index1/type", "Unified\n");
    put(root, "/sys/devices/system/cpu/cpu0/cache/index1/size", "32M\n");
    ew_topology_read(root, &topology);
    assert_int_equal(topology.n_logical, 8);
    assert_int_equal(topology.n_physical, 4);
    assert_int_equal(topology.n_usable, 4);
    assert_int_equal(topology.l1d_bytes, 48 << 10);
    assert_int_equal(topology.l3_bytes, 32 << 20);

    // The tightest of the levels counts; 2.5 CPUs are worth three threads.
    put(root, "/proc/self/cgroup", "0::/outer/inner\n");
    put(root, "/sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n");
    put(root, "/sys/fs/cgroup/outer/cpu.max", "250000 100000\n");
    ew_topology_read(root, &topology);
    assert_true(topology.quota_cpus == 2.5);
    assert_int_equal(topology.n_usable, 3);
    remove_root(root);
}

static void old_control_groups_are_understood(void **state)
{
    struct ew_topology topology;
    struct ew_memory memory;
    char root[256];

    (void)state;
    new_root(root, sizeof(root));
    put(root, "/sys/devices/system/cpu/online", "0-3");
    put(root, "/proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n");
    put(root, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n"); // a container sees its group as the root
    put(root, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    put(root, "/proc/meminfo", "MemTotal:  8000000 kB\nMemFree: 1 kB\nMemAvailable:  6000000 kB\n");
    put(root, "/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    ew_topology_read(root, &topology);
    assert_int_equal(topology.n_usable, 1);
    assert_int_equal(ew_memory_read(root, &memory, NULL), 0);
    assert_int_equal(memory.cgroup_limit_bytes, 0);
    assert_int_equal(memory.available_bytes, 6000000ull * 1024);
    remove_root(root);
}

static void memory_limits_of_groups_hold(void **state)
{
    struct ew_memory memory;
    struct ew_error err = {0};
    char root[256];

    (void)state;
    new_root(root, sizeof(root));
    assert_int_equal(ew_memory_read(root, &memory, &err), EW_ERR_IO);
    put(root, "/proc/meminfo", "MemTotal:  8000000 kB\n");
    assert_int_equal(ew_memory_read(root, &memory, &err), EW_ERR_FORMAT);
    put(root, "/proc/meminfo", "MemTotal:  8000000 kB\nMemAvailable:  6000000 kB\n");
    put(root, "/proc/self/cgroup", "0::/job\n");
    put(root, "/sys/fs/cgroup/job/memory.max", "1000000000\n");
    put(root, "/sys/fs/cgroup/job/memory.current", "700000000\n");
    put(root, "/sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 200000000\n");
    assert_int_equal(ew_memory_read(root, &memory, &err), 0);
    assert_int_equal(memory.cgroup_limit_bytes, 1000000000);
    assert_int_equal(memory.cgroup_used_bytes, 500000000);
    assert_int_equal(memory.available_bytes, 500000000);
    remove_root(root);
}

static void lists_are_walked_and_nonsense_ends_them(void **state)
{
    const char *cursor = "0-2,5,9-7";
    uint32_t first, last;

    (void)state;
    assert_true(ew_sysfile_range(&cursor, &first, &last));
    assert_true(first == 0 && last == 2);
    assert_true(ew_sysfile_range(&cursor, &first, &last));
    assert_true(first == 5 && last == 5);
    assert_false(ew_sysfile_range(&cursor, &first, &last));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(caps_leave_the_levels_below),
        cmocka_unit_test(this_machine_is_known),
        cmocka_unit_test(smt_siblings_count_once),
        cmocka_unit_test(old_control_groups_are_understood),
        cmocka_unit_test(memory_limits_of_groups_hold),
        cmocka_unit_test(lists_are_walked_and_nonsense_ends_them),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
