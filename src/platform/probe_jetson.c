// What a Jetson says of itself: model, SoC, L4T, JetPack, module, GPU stack.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "platform/packages.h"
#include "platform/probe.h"
#include "platform/sysfile.h"

#define DEVICE_TREE "/proc/device-tree"

// L4T releases and the JetPack they came with (NVIDIA's JetPack archive; release notes of L4T).
static const struct {
    const char *l4t, *jetpack;
} g_jetpacks[] = {
    {"35.2.1", "5.1"},   {"35.3.1", "5.1.1"}, {"35.4.1", "5.1.2"}, {"35.5.0", "5.1.3"}, {"35.6.0", "5.1.4"},
    {"35.6.1", "5.1.5"}, {"35.6.2", "5.1.5"}, {"35.6.3", "5.1.5"}, {"35.6.4", "5.1.6"}, {"36.2.0", "6.0"},
    {"36.3.0", "6.0"},   {"36.4.0", "6.1"},   {"36.4.2", "6.1"},   {"36.4.3", "6.2"},   {"36.4.4", "6.2.1"},
    {"36.4.7", "6.2.1"}, {"36.5.0", "6.2.2"}, {"38.2.0", "7.0"},   {"38.2.1", "7.0"},   {"38.2.2", "7.0"},
    {"38.4.0", "7.1"},   {"39.0.0", "7.2"},   {"39.1.0", "7.2"},   {"39.2.0", "7.2"},
};

// SoCs by their device-tree name, with the compute capability of their GPU.
static const struct {
    const char *compatible, *soc;
    uint32_t cc;
} g_socs[] = {
    {"nvidia,tegra264", "tegra264", 110},
    {"nvidia,tegra234", "tegra234", 87},
    {"nvidia,tegra194", "tegra194", 72},
};

static void read_model(const char *root, struct ew_facts *facts)
{
    char text[256];

    if (ew_sysfile_read(root, DEVICE_TREE "/model", text, sizeof(text)) > 0)
        ew_facts_set_str(facts, "board_model", ew_str_of(text), DEVICE_TREE "/model"); // the file ends with a NUL
}

static bool read_soc(const char *root, struct ew_facts *facts)
{
    char text[1024];
    ptrdiff_t len = ew_sysfile_read(root, DEVICE_TREE "/compatible", text, sizeof(text));

    for (const char *at = text; len > 0 && at < text + len; at += strlen(at) + 1) // NUL-separated
        for (size_t i = 0; i < EW_COUNT_OF(g_socs); i++)
            if (strcmp(at, g_socs[i].compatible) == 0) {
                ew_facts_set_str(facts, "soc", ew_str_of(g_socs[i].soc), DEVICE_TREE "/compatible");
                ew_facts_set_number(facts, "gpu_cc", g_socs[i].cc, DEVICE_TREE "/compatible");
                ew_facts_set_bool(facts, "integrated", true, DEVICE_TREE "/compatible");
                return true;
            }
    return false;
}

// "# R38 (release), REVISION: 4.0, GCID: ..." is L4T 38.4.0.
static bool read_release_file(const char *root, struct ew_facts *facts, char *l4t, size_t size)
{
    char text[512];
    unsigned major;
    const char *revision;
    struct ew_str minor;

    if (ew_sysfile_read(root, "/etc/nv_tegra_release", text, sizeof(text)) <= 0 || sscanf(text, "# R%u", &major) != 1)
        return false;
    revision = strstr(text, "REVISION: ");
    if (!revision)
        return false;
    revision += strlen("REVISION: ");
    minor = (struct ew_str){revision, strspn(revision, "0123456789.")};
    snprintf(l4t, size, "%u.%.*s", major, (int)EW_MIN(minor.len, 16), minor.ptr);
    ew_facts_set_str(facts, "l4t", ew_str_of(l4t), "/etc/nv_tegra_release");
    return true;
}

static void read_packages(const char *root, struct ew_facts *facts, char *l4t, size_t size)
{
    struct ew_packages packages;
    struct ew_str core, jetpack;

    ew_packages_read(root, &packages);
    core = ew_package_upstream(ew_package_version(&packages, "nvidia-l4t-core"));
    jetpack = ew_package_upstream(ew_package_version(&packages, "nvidia-jetpack"));
    if (core.len && !l4t[0]) {
        snprintf(l4t, size, "%.*s", (int)EW_MIN(core.len, size - 1), core.ptr);
        ew_facts_set_str(facts, "l4t", ew_str_of(l4t), "package nvidia-l4t-core");
    }
    if (jetpack.len)
        ew_facts_set_str(facts, "jetpack", jetpack, "package nvidia-jetpack");
    ew_packages_free(&packages);
}

static void set_release(struct ew_facts *facts, const char *l4t)
{
    unsigned major = 0;
    bool known = false;

    if (sscanf(l4t, "%u", &major) != 1)
        return;
    ew_facts_set_number(facts, "l4t_major", major, "L4T");
    for (size_t i = 0; i < EW_COUNT_OF(g_jetpacks); i++) {
        if (strcmp(g_jetpacks[i].l4t, l4t) != 0)
            continue;
        known = true;
        if (!ew_facts_get(facts, EW_STR("jetpack")))
            ew_facts_set_str(facts, "jetpack", ew_str_of(g_jetpacks[i].jetpack), "table of L4T releases");
    }
    ew_facts_set_bool(facts, "l4t_known", known, "table of L4T releases");
}

// The module's part number tells boards apart that look alike to the driver: 3834-0008 is T5000, 3834-0000 T4000.
static void read_module(const char *root, struct ew_facts *facts)
{
    char text[2048];
    const char *spec;

    if (ew_sysfile_read(root, "/etc/nv_boot_control.conf", text, sizeof(text)) <= 0)
        return;
    spec = strstr(text, "COMPATIBLE_SPEC ");
    spec = spec ? spec + strlen("COMPATIBLE_SPEC ") : strstr(text, "TNSPEC ");
    if (!spec)
        return;
    if (strncmp(spec, "TNSPEC ", 7) == 0)
        spec += 7;
    ew_facts_set_str(facts, "module_spec", (struct ew_str){spec, strcspn(spec, " \n")}, "/etc/nv_boot_control.conf");
}

// Without part number: Thor modules differ in memory, T5000 has 128 GB and T4000 64 GB.
static const char *thor_plat(const struct ew_facts *facts)
{
    struct ew_str spec = ew_facts_str(facts, "module_spec", "");
    double mem_mib = ew_facts_number(facts, "host_mem_mib", 0);

    if (ew_str_starts(spec, "3834-0000") || ew_str_find(spec, EW_STR("t4000"), 0) >= 0)
        return "thor_t4000";
    if (ew_str_starts(spec, "3834-0008") || mem_mib >= 96 * 1024)
        return "thor_t5000";
    return mem_mib >= 32 * 1024 ? "thor_t4000" : "thor";
}

static const char *orin_plat(const struct ew_facts *facts)
{
    struct ew_str model = ew_facts_str(facts, "board_model", "");
    double mem_mib = ew_facts_number(facts, "host_mem_mib", 0);

    if (ew_str_find(model, EW_STR("Orin Nano"), 0) >= 0)
        return mem_mib > 5 * 1024 ? "orin_nano8" : "orin_nano4";
    if (ew_str_find(model, EW_STR("Orin NX"), 0) >= 0)
        return mem_mib > 9 * 1024 ? "orin_nx16" : "orin_nx8";
    return mem_mib > 40 * 1024 ? "agx_orin64" : "agx_orin32";
}

static void read_stack(const char *root, struct ew_facts *facts)
{
    char text[512];

    // Orin loads nvidia.ko too, for its display: nvgpu, where it is, drives the GPU.
    if (ew_sysfile_read(root, "/sys/module/nvgpu/refcnt", text, sizeof(text)) >= 0 ||
        ew_sysfile_read(root, "/sys/module/nvgpu/initstate", text, sizeof(text)) >= 0)
        ew_facts_set_str(facts, "gpu_stack", EW_STR("nvgpu"), "/sys/module/nvgpu");
    else if (ew_sysfile_read(root, "/proc/driver/nvidia/version", text, sizeof(text)) > 0)
        ew_facts_set_str(facts, "gpu_stack", EW_STR("openrm"), "/proc/driver/nvidia/version");
}

void ew_probe_jetson(const char *root, struct ew_facts *facts)
{
    char l4t[64] = "";
    struct ew_str soc;

    if (!read_soc(root, facts) && !read_release_file(root, facts, l4t, sizeof(l4t))) {
        ew_facts_set_str(facts, "soc", EW_STR(""), DEVICE_TREE); // known not to be a Tegra
        return;
    }
    read_model(root, facts);
    if (!l4t[0])
        read_release_file(root, facts, l4t, sizeof(l4t));
    read_packages(root, facts, l4t, sizeof(l4t));
    set_release(facts, l4t);
    read_module(root, facts);
    read_stack(root, facts);
    soc = ew_facts_str(facts, "soc", "");
    if (ew_str_is(soc, "tegra264"))
        ew_facts_set_str(facts, "plat", ew_str_of(thor_plat(facts)), "module and memory");
    else if (ew_str_is(soc, "tegra234"))
        ew_facts_set_str(facts, "plat", ew_str_of(orin_plat(facts)), "model and memory");
}
