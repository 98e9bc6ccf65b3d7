#include "platform/memory.h"

#include "base/assert.h"
#include "platform/cgroup.h"
#include "platform/sysfile.h"

#define FILE_BYTES_MAX 16384
#define NO_LIMIT_BYTES (UINT64_C(1) << 62) // version 1 says "no limit" by the largest page-aligned number

// The files of a group's memory controller, by version.
struct memory_files {
    const char *limit, *used, *droppable_key;
};

static const struct memory_files g_files_v1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
static const struct memory_files g_files_v2 = {"memory.max", "memory.current", "inactive_file"};

static uint64_t left_of(uint64_t limit, uint64_t used)
{
    return limit - EW_MIN(used, limit);
}

static uint64_t file_number(const char *root, const char *dir, const char *name, uint64_t fallback)
{
    char text[64];
    uint64_t value;

    if (ew_sysfile_readf(root, text, sizeof(text), "%s/%s", dir, name) <= 0 || !ew_sysfile_number(text, &value))
        return fallback;
    return value;
}

static void consider_group(void *ctx, const char *root, const char *dir, bool v2)
{
    const struct memory_files *files = v2 ? &g_files_v2 : &g_files_v1;
    struct ew_memory *memory = ctx;
    char stat[FILE_BYTES_MAX];
    uint64_t limit = file_number(root, dir, files->limit, UINT64_MAX), used, droppable = 0;

    if (limit >= NO_LIMIT_BYTES)
        return;
    used = file_number(root, dir, files->used, 0);
    if (ew_sysfile_readf(root, stat, sizeof(stat), "%s/memory.stat", dir) > 0)
        ew_sysfile_field(stat, files->droppable_key, &droppable);
    used -= EW_MIN(droppable, used);
    if (!memory->cgroup_limit_bytes ||
        left_of(limit, used) < left_of(memory->cgroup_limit_bytes, memory->cgroup_used_bytes)) {
        memory->cgroup_limit_bytes = limit;
        memory->cgroup_used_bytes = used;
    }
}

static bool field_kb(const char *text, const char *key, uint64_t *bytes)
{
    uint64_t kb;

    return ew_sysfile_field(text, key, &kb) && !__builtin_mul_overflow(kb, 1024, bytes);
}

int ew_memory_read(const char *root, struct ew_memory *out, struct ew_error *err)
{
    char text[FILE_BYTES_MAX];

    *out = (struct ew_memory){0};
    if (ew_sysfile_read(root, "/proc/meminfo", text, sizeof(text)) < 0)
        return ew_fail(err, EW_ERR_IO, "cannot read %s/proc/meminfo", root ? root : "");
    if (!field_kb(text, "MemTotal", &out->total_bytes) || !field_kb(text, "MemAvailable", &out->free_bytes))
        return ew_fail(err, EW_ERR_FORMAT, "%s/proc/meminfo has no MemTotal or no MemAvailable", root ? root : "");
    ew_cgroup_visit(root, "memory", consider_group, out);
    out->available_bytes = out->free_bytes;
    if (out->cgroup_limit_bytes)
        out->available_bytes = EW_MIN(out->available_bytes, left_of(out->cgroup_limit_bytes, out->cgroup_used_bytes));
    return 0;
}

static uint64_t own_status_bytes(const char *key)
{
    char text[FILE_BYTES_MAX];
    uint64_t bytes;

    if (ew_sysfile_read(NULL, "/proc/self/status", text, sizeof(text)) <= 0 || !field_kb(text, key, &bytes))
        return 0;
    return bytes;
}

uint64_t ew_memory_resident_bytes(void)
{
    return own_status_bytes("VmRSS");
}

uint64_t ew_memory_peak_bytes(void)
{
    return own_status_bytes("VmHWM");
}
