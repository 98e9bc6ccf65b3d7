#include "platform/topology.h"

#include <math.h>
#include <sched.h>
#include <string.h>

#include "base/assert.h"
#include "platform/cgroup.h"
#include "platform/sysfile.h"

#define CPUS_MAX 4096
#define CACHE_INDEXES_MAX 8
#define LIST_BYTES_MAX 8192

struct cpu_mask {
    uint8_t has[CPUS_MAX];
};

static void mask_of_list(const char *list, struct cpu_mask *mask)
{
    uint32_t first, last;

    while (ew_sysfile_range(&list, &first, &last))
        for (uint32_t cpu = first; cpu <= last && cpu < CPUS_MAX; cpu++)
            mask->has[cpu] = 1;
}

static bool mask_of_affinity(struct cpu_mask *mask)
{
    // One set holds 1024 CPUs, a machine may have more: the kernel refuses (EINVAL) a set that is too small.
    cpu_set_t sets[CPUS_MAX / CPU_SETSIZE];

    CPU_ZERO_S(sizeof(sets), sets);
    if (sched_getaffinity(0, sizeof(sets), sets) != 0)
        return false;
    for (uint32_t cpu = 0; cpu < CPUS_MAX; cpu++)
        mask->has[cpu] = CPU_ISSET_S(cpu, sizeof(sets), sets) != 0;
    return true;
}

static void read_allowed(const char *root, struct cpu_mask *mask)
{
    char list[LIST_BYTES_MAX];

    memset(mask, 0, sizeof(*mask));
    if ((!root || !*root) && mask_of_affinity(mask))
        return;
    if (ew_sysfile_read(root, "/sys/devices/system/cpu/online", list, sizeof(list)) > 0)
        mask_of_list(list, mask);
}

// A core is counted at the first of its siblings that is allowed.
static bool is_first_sibling(const char *root, uint32_t cpu, const struct cpu_mask *allowed)
{
    char list[LIST_BYTES_MAX];
    const char *cursor = list;
    uint32_t first, last;

    if (ew_sysfile_readf(root, list, sizeof(list), "/sys/devices/system/cpu/cpu%u/topology/thread_siblings_list",
                         cpu) <= 0)
        return true;
    while (ew_sysfile_range(&cursor, &first, &last))
        for (uint32_t sibling = first; sibling <= last && sibling < cpu; sibling++)
            if (sibling < CPUS_MAX && allowed->has[sibling])
                return false;
    return true;
}

// "48K", "2048K", "32M".
static uint64_t cache_size(const char *text)
{
    uint64_t value;

    if (!ew_sysfile_number(text, &value) || value > UINT32_MAX)
        return 0;
    text += strspn(text, "0123456789");
    return *text == 'K' ? value << 10 : *text == 'M' ? value << 20 : value;
}

static void read_caches(const char *root, uint32_t cpu, struct ew_topology *out)
{
    char level[16], type[32], size[32];

    for (uint32_t index = 0; index < CACHE_INDEXES_MAX; index++) {
        const char *fmt = "/sys/devices/system/cpu/cpu%u/cache/index%u/%s";

        if (ew_sysfile_readf(root, level, sizeof(level), fmt, cpu, index, "level") <= 0 ||
            ew_sysfile_readf(root, type, sizeof(type), fmt, cpu, index, "type") <= 0 ||
            ew_sysfile_readf(root, size, sizeof(size), fmt, cpu, index, "size") <= 0)
            return;
        if (type[0] == 'I')
            continue;
        if (level[0] == '1')
            out->l1d_bytes = cache_size(size);
        else if (level[0] == '2')
            out->l2_bytes = cache_size(size);
        else if (level[0] == '3')
            out->l3_bytes = cache_size(size);
    }
}

// Version 2 has "max 100000" or "150000 100000" in one file, version 1 has two files and -1 for no limit.
static bool read_quota(const char *root, const char *dir, bool v2, uint64_t *time_us, uint64_t *period_us)
{
    char text[64];

    if (ew_sysfile_readf(root, text, sizeof(text), "%s/%s", dir, v2 ? "cpu.max" : "cpu.cfs_quota_us") <= 0)
        return false;
    if (!ew_sysfile_number(text, time_us))
        return false;
    if (v2)
        return ew_sysfile_number(text + strspn(text, "0123456789"), period_us);
    if (ew_sysfile_readf(root, text, sizeof(text), "%s/cpu.cfs_period_us", dir) <= 0)
        return false;
    return ew_sysfile_number(text, period_us);
}

static void consider_quota(void *ctx, const char *root, const char *dir, bool v2)
{
    double *quota_cpus = ctx, cpus;
    uint64_t time_us, period_us;

    if (!read_quota(root, dir, v2, &time_us, &period_us) || !time_us || !period_us)
        return;
    cpus = (double)time_us / (double)period_us;
    if (*quota_cpus == 0 || cpus < *quota_cpus)
        *quota_cpus = cpus;
}

void ew_topology_read(const char *root, struct ew_topology *out)
{
    struct cpu_mask allowed;

    *out = (struct ew_topology){0};
    read_allowed(root, &allowed);
    for (uint32_t cpu = 0; cpu < CPUS_MAX; cpu++) {
        if (!allowed.has[cpu])
            continue;
        if (out->n_logical++ == 0)
            read_caches(root, cpu, out);
        out->n_physical += is_first_sibling(root, cpu, &allowed);
    }
    out->n_logical = EW_MAX(out->n_logical, 1);
    out->n_physical = EW_MAX(out->n_physical, 1);
    ew_cgroup_visit(root, "cpu", consider_quota, &out->quota_cpus);
    out->n_usable = out->n_physical;
    if (out->quota_cpus > 0 && ceil(out->quota_cpus) < out->n_usable)
        out->n_usable = (uint32_t)ceil(out->quota_cpus);
}
