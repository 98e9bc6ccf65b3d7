// A captured tree: files that probes read, and the linker's cache. The input is split at NULs; of each part the first
// byte says which file it is.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/doctor.h"
#include "doctor/library_index.h"
#include "platform/probe.h"

static const char *const g_paths[] = {
    "/etc/os-release",
    "/etc/nv_tegra_release",
    "/etc/nvpmodel.conf",
    "/var/lib/nvpmodel/status",
    "/proc/meminfo",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/proc/driver/nvidia/version",
    "/proc/self/cgroup",
    "/sys/fs/cgroup/captured/memory.max",
    "/sys/class/hwmon/hwmon0/name",
    "/sys/class/hwmon/hwmon0/in1_label",
    "/sys/class/hwmon/hwmon0/in1_input",
    "/sys/class/hwmon/hwmon0/curr1_input",
    "/sys/class/thermal/thermal_zone0/type",
    "/sys/class/thermal/thermal_zone0/temp",
    "/sys/class/thermal/thermal_zone0/trip_point_0_type",
    "/sys/class/thermal/thermal_zone0/trip_point_0_temp",
    "/sys/class/thermal/cooling_device0/type",
    "/sys/class/thermal/cooling_device0/cur_state",
    "/sys/class/thermal/cooling_device0/stats/time_in_state_ms",
    "/sys/block/nvme0n1/device/device/current_link_speed",
    "/sys/block/nvme0n1/device/device/current_link_width",
    "/usr/local/cuda/version.json",
    "/usr/local/cuda/include/cuda.h",
    "/var/lib/dpkg/status",
    "/var/lib/rancher/k3s/server/manifests/plugin.yaml",
    "/opt/venv/pyvenv.cfg",
    "/.edgewise/uname",
    "/.edgewise/facts",
    "/.edgewise/gpu",
    "/.edgewise/libraries",
};
static char g_root[64];

static void path_of(char full[512], size_t which)
{
    snprintf(full, 512, "%s%s", g_root, g_paths[which]);
}

static void make_tree(void)
{
    char full[512];

    snprintf(g_root, sizeof(g_root), "/tmp/ew-fuzz-XXXXXX");
    EW_ASSERT(mkdtemp(g_root));
    for (size_t i = 0; i < EW_COUNT_OF(g_paths); i++) {
        path_of(full, i);
        for (char *slash = strchr(full + strlen(g_root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
            *slash = '\0';
            mkdir(full, 0777);
            *slash = '/';
        }
    }
}

static void put(size_t which, const uint8_t *data, size_t size)
{
    char full[512];
    FILE *file;

    path_of(full, which);
    file = fopen(full, "wb");
    EW_ASSERT(file);
    fwrite(data, 1, size, file);
    fclose(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_library_index index = {0};
    struct ew_facts facts;
    char full[512];

    if (!g_root[0])
        make_tree();
    for (size_t at = 0; at < size;) {
        const uint8_t *end = memchr(data + at, 0, size - at);
        size_t len = end ? (size_t)(end - data) - at : size - at;

        if (len)
            put(data[at] % EW_COUNT_OF(g_paths), data + at + 1, len - 1);
        at += len + 1;
    }
    EW_ASSERT(ew_facts_init(&facts, NULL, NULL) == EW_OK);
    ew_probe_all(g_root, &facts);
    ew_doctor_probe_libraries(g_root, &facts);
    ew_facts_fini(&facts);
    ew_library_index_read(&index, g_root);
    ew_library_index_add_cache(&index, (const char *)data, size);
    ew_library_index_fini(&index);
    for (size_t i = 0; i < EW_COUNT_OF(g_paths); i++) {
        path_of(full, i);
        unlink(full);
    }
    return 0;
}
