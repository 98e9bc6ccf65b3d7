#include "cli/selftest.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "bench/bandwidth.h"
#include "bench/disk.h"
#include "kernel/cpu/cpu_check.h"
#include "platform/cpu.h"
#include "platform/gpu_test.h"
#include "platform/topology.h"

static double rounded(double value)
{
    return round(value * 100) / 100;
}

static int measure_memory(struct ew_facts *facts, struct ew_error *err)
{
    struct ew_topology topology;
    double gb_s;
    char source[64];
    int rc = ew_bandwidth_read(0, &gb_s, err);

    if (rc < 0)
        return rc;
    ew_topology_read(NULL, &topology);
    snprintf(source, sizeof(source), "measured: %u threads of the CPU read", topology.n_usable);
    ew_facts_set_number(facts, "mem_read_gbs", rounded(gb_s), source);
    return 0;
}

static void measure_disk(const struct ew_selftest *selftest, struct ew_facts *facts)
{
    char found[4096];
    const char *path = selftest->disk_file;
    struct ew_error err;
    double gb_s;

    if (!path && ew_disk_find_file(found, sizeof(found)))
        path = found;
    if (!path)
        return;
    if (ew_disk_read(path, &gb_s, &err) == 0) {
        ew_facts_set_number(facts, "disk_gbs", rounded(gb_s), "measured: reads past the page cache");
        ew_facts_set_str(facts, "disk_file", ew_str_of(path), "measured");
    } else {
        ew_facts_set_str(facts, "disk_error", ew_str_of(err.message), "measured");
    }
}

struct kernels {
    uint32_t n_checked, n_wrong;
    char first_wrong[64];
};

static void count(void *ctx, const struct ew_cpu_check *check)
{
    struct kernels *kernels = ctx;

    kernels->n_checked += check->n_cases > 0;
    if (check->error <= 1)
        return;
    if (kernels->n_wrong++ == 0)
        snprintf(kernels->first_wrong, sizeof(kernels->first_wrong), "%s %s of %s", check->op, check->variant,
                 check->isa);
}

static int check_kernels(struct ew_facts *facts, struct ew_error *err)
{
    struct kernels kernels = {0};
    struct ew_cpu_check_config config = {.isa_mask = ew_cpu_isa(), .report = count, .ctx = &kernels};
    int rc = ew_cpu_check_run(&config, err);

    if (rc < 0 && rc != EW_ERR_MISMATCH)
        return rc;
    ew_facts_set_number(facts, "kernels_checked", kernels.n_checked, "measured: against the plain C reference");
    ew_facts_set_number(facts, "kernels_wrong", kernels.n_wrong, "measured: against the plain C reference");
    ew_facts_set_str(facts, "kernel_first_wrong", ew_str_of(kernels.first_wrong), "measured");
    return 0;
}

int ew_selftest_measure(void *ctx, struct ew_facts *facts, struct ew_error *err)
{
    int rc = measure_memory(facts, err);

    if (rc < 0)
        return rc;
    measure_disk(ctx, facts);
    if (ew_facts_number(facts, "gpu_count", 0) > 0)
        ew_gpu_test(facts);
    return check_kernels(facts, err);
}
