// The NVIDIA driver and its GPUs: by asking the driver in a child process with a time limit, and from files. A captured
// tree keeps what the child said.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "platform/cuda_cache.h"
#include "platform/cuda_driver.h"
#include "platform/cuda_tier.h"
#include "platform/driver_child.h"
#include "platform/nvml.h"
#include "platform/probe.h"
#include "platform/sysfile.h"

#define DRIVER_TIME_LIMIT_S 8.0 // a cold driver loads its kernel module and starts the GPU in 1 to 3 s
#define NVLINKS_MAX 18
#define GPUS_MAX 16
#define KEY_BYTES 64

// ---- in the child ----

// The keys of further GPUs: "gpu_name" of the second is "gpu1_name", "pcie_gen" is "gpu1_pcie_gen".
static const char *key_of(char text[KEY_BYTES], const char *key, unsigned gpu)
{
    if (gpu == 0)
        return key;
    snprintf(text, KEY_BYTES, "gpu%u_%s", gpu, strncmp(key, "gpu_", 4) == 0 ? key + 4 : key);
    return text;
}

static void say_device(FILE *to, const struct ew_cuda_driver *cuda, unsigned gpu)
{
    static const struct {
        const char *key;
        int attribute;
        double scale;
    } attributes[] = {
        {"gpu_sm_count", EW_CUDA_ATTR_MULTIPROCESSORS, 1},   {"gpu_l2_kib", EW_CUDA_ATTR_L2_BYTES, 1.0 / 1024},
        {"gpu_bus_bits", EW_CUDA_ATTR_MEMORY_BUS_BITS, 1},   {"gpu_mem_clock_mhz", EW_CUDA_ATTR_MEMORY_CLOCK_KHZ, 1e-3},
        {"gpu_clock_max_mhz", EW_CUDA_ATTR_CLOCK_KHZ, 1e-3},
    };
    int device, major, minor, value;
    char name[256], key[KEY_BYTES];
    size_t bytes;

    if (cuda->cuDeviceGet(&device, (int)gpu) != EW_CUDA_SUCCESS)
        return;
    if (cuda->cuDeviceGetName(name, sizeof(name), device) == EW_CUDA_SUCCESS)
        ew_say_text(to, key_of(key, "gpu_name", gpu), name);
    if (cuda->cuDeviceGetAttribute(&major, EW_CUDA_ATTR_CC_MAJOR, device) == EW_CUDA_SUCCESS &&
        cuda->cuDeviceGetAttribute(&minor, EW_CUDA_ATTR_CC_MINOR, device) == EW_CUDA_SUCCESS)
        ew_say_number(to, key_of(key, "gpu_cc", gpu), major * 10 + minor);
    if (cuda->cuDeviceTotalMem_v2(&bytes, device) == EW_CUDA_SUCCESS)
        ew_say_number(to, key_of(key, "gpu_mem_mib", gpu), (double)(bytes >> 20));
    if (gpu > 0)
        return;
    if (cuda->cuDeviceGetAttribute(&value, EW_CUDA_ATTR_INTEGRATED, device) == EW_CUDA_SUCCESS)
        fprintf(to, "integrated=b:%d\n", value != 0);
    for (size_t i = 0; i < EW_COUNT_OF(attributes); i++)
        if (cuda->cuDeviceGetAttribute(&value, attributes[i].attribute, device) == EW_CUDA_SUCCESS && value > 0)
            ew_say_number(to, attributes[i].key, value * attributes[i].scale);
}

static void say_cuda(FILE *to)
{
    struct ew_cuda_driver cuda;
    struct ew_error err;
    int version, count = 0, status;
    char name[96];

    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1); // NVML's order; and all GPUs of the box, whatever the user hides
    unsetenv("CUDA_VISIBLE_DEVICES");
    if (ew_cuda_driver_open(&cuda, &err) != EW_OK) {
        ew_say_text(to, "drv_error", err.message);
        return;
    }
    if (cuda.cuDriverGetVersion(&version) == EW_CUDA_SUCCESS) // 12020 is 12.2
        ew_say_number(to, "drv_cuda", version / 1000 * 100 + version % 1000);
    status = cuda.cuInit(0);
    if (status == EW_CUDA_SUCCESS)
        status = cuda.cuDeviceGetCount(&count);
    if (status != EW_CUDA_SUCCESS) {
        ew_cuda_error_name(&cuda, status, name, sizeof(name));
        ew_say_text(to, "drv_error", name);
    } else {
        ew_say_number(to, "gpu_count", count);
        for (unsigned gpu = 0; gpu < GPUS_MAX && (int)gpu < count; gpu++)
            say_device(to, &cuda, gpu);
    }
    fprintf(to, "libcuda_is_stub=b:%d\n", status == 34); // CUDA_ERROR_STUB_LIBRARY
}

static void say_unsigned(FILE *to, const char *key, int (*get)(ew_nvml_device, unsigned *), ew_nvml_device device,
                         double scale)
{
    unsigned value;

    if (get && get(device, &value) == EW_NVML_SUCCESS)
        ew_say_number(to, key, value * scale);
}

// How long the GPU has been held down since the driver started, by what.
static void say_violations(FILE *to, const struct ew_nvml *nvml, ew_nvml_device device)
{
    static const struct {
        int policy;
        const char *key;
    } policies[] = {{EW_NVML_VIOLATION_POWER, "throttled_power_s"}, {EW_NVML_VIOLATION_THERMAL, "throttled_heat_s"}};
    struct ew_nvml_violation time;

    for (size_t i = 0; i < EW_COUNT_OF(policies) && nvml->nvmlDeviceGetViolationStatus; i++)
        if (nvml->nvmlDeviceGetViolationStatus(device, policies[i].policy, &time) == EW_NVML_SUCCESS)
            ew_say_number(to, policies[i].key, (double)(time.violation_ns / 100000000) / 10);
}

// What changes from second to second, of every GPU.
static void say_readings(FILE *to, const struct ew_nvml *nvml, ew_nvml_device device, unsigned gpu)
{
    char key[KEY_BYTES];
    unsigned value;

    say_unsigned(to, key_of(key, "gpu_power_w", gpu), nvml->nvmlDeviceGetPowerUsage, device, 1e-3);
    say_unsigned(to, key_of(key, "gpu_power_limit_w", gpu), nvml->nvmlDeviceGetEnforcedPowerLimit, device, 1e-3);
    if (nvml->nvmlDeviceGetTemperature && nvml->nvmlDeviceGetTemperature(device, 0, &value) == EW_NVML_SUCCESS)
        ew_say_number(to, key_of(key, "gpu_temp_c", gpu), value);
    if (nvml->nvmlDeviceGetClockInfo &&
        nvml->nvmlDeviceGetClockInfo(device, EW_NVML_CLOCK_SM, &value) == EW_NVML_SUCCESS)
        ew_say_number(to, key_of(key, "gpu_clock_mhz", gpu), value);
}

static void say_nvml_device(FILE *to, const struct ew_nvml *nvml, ew_nvml_device device)
{
    struct ew_nvml_memory memory = {.version = (unsigned)(sizeof(memory) | 2u << 24)};
    unsigned long long reasons;
    unsigned value, pending;
    int active, links = 0;
    bool link_known = false;

    say_violations(to, nvml, device);
    if (nvml->nvmlDeviceGetTemperatureThreshold &&
        nvml->nvmlDeviceGetTemperatureThreshold(device, EW_NVML_THRESHOLD_SLOWDOWN, &value) == EW_NVML_SUCCESS)
        ew_say_number(to, "gpu_slowdown_c", value);
    say_unsigned(to, "pcie_gen", nvml->nvmlDeviceGetCurrPcieLinkGeneration, device, 1);
    say_unsigned(to, "pcie_gen_max", nvml->nvmlDeviceGetMaxPcieLinkGeneration, device, 1);
    say_unsigned(to, "pcie_width", nvml->nvmlDeviceGetCurrPcieLinkWidth, device, 1);
    say_unsigned(to, "pcie_width_max", nvml->nvmlDeviceGetMaxPcieLinkWidth, device, 1);
    say_unsigned(to, "mig_max", nvml->nvmlDeviceGetMaxMigDeviceCount, device, 1);
    if (nvml->nvmlDeviceGetMemoryInfo_v2 && nvml->nvmlDeviceGetMemoryInfo_v2(device, &memory) == EW_NVML_SUCCESS) {
        ew_say_number(to, "gpu_mem_free_mib", (double)(memory.free >> 20));
        ew_say_number(to, "gpu_mem_used_mib", (double)(memory.used >> 20));
    }
    if (nvml->nvmlDeviceGetCurrentClocksThrottleReasons &&
        nvml->nvmlDeviceGetCurrentClocksThrottleReasons(device, &reasons) == EW_NVML_SUCCESS)
        ew_say_number(to, "clock_reasons", (double)reasons);
    if (nvml->nvmlDeviceGetMigMode && nvml->nvmlDeviceGetMigMode(device, &value, &pending) == EW_NVML_SUCCESS)
        fprintf(to, "mig_enabled=b:%d\n", value != 0);
    for (unsigned i = 0; i < NVLINKS_MAX && nvml->nvmlDeviceGetNvLinkState; i++)
        if (nvml->nvmlDeviceGetNvLinkState(device, i, &active) == EW_NVML_SUCCESS) {
            link_known = true;
            links += active;
        }
    if (link_known)
        ew_say_number(to, "nvlink_active", links);
}

static void say_mig_instances(FILE *to, const struct ew_nvml *nvml, ew_nvml_device device)
{
    ew_nvml_device mig;
    unsigned max, found = 0;

    if (!nvml->nvmlDeviceGetMaxMigDeviceCount || !nvml->nvmlDeviceGetMigDeviceHandleByIndex ||
        nvml->nvmlDeviceGetMaxMigDeviceCount(device, &max) != EW_NVML_SUCCESS)
        return;
    for (unsigned i = 0; i < max && i < 64; i++)
        found += nvml->nvmlDeviceGetMigDeviceHandleByIndex(device, i, &mig) == EW_NVML_SUCCESS;
    ew_say_number(to, "mig_instances", found);
}

static void say_nvml(FILE *to)
{
    struct ew_nvml nvml;
    struct ew_error err;
    ew_nvml_device device;
    unsigned count;
    char version[96];

    if (ew_nvml_open(&nvml, &err) != EW_OK) {
        ew_say_text(to, "nvml_error", err.message);
        return;
    }
    if (nvml.nvmlSystemGetDriverVersion && nvml.nvmlSystemGetDriverVersion(version, sizeof(version)) == EW_NVML_SUCCESS)
        ew_say_text(to, "drv_ver", version);
    if (nvml.nvmlDeviceGetCount_v2(&count) != EW_NVML_SUCCESS)
        count = 0;
    for (unsigned gpu = 0; gpu < EW_MIN(count, GPUS_MAX); gpu++) {
        if (nvml.nvmlDeviceGetHandleByIndex_v2(gpu, &device) != EW_NVML_SUCCESS)
            continue;
        say_readings(to, &nvml, device, gpu);
        if (gpu == 0) {
            say_nvml_device(to, &nvml, device);
            say_mig_instances(to, &nvml, device);
        }
    }
    ew_nvml_close(&nvml);
}

static void say_all(FILE *to)
{
    say_nvml(to);
    say_cuda(to);
}

// ---- in the parent ----

// "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.00  Release Build ...": open or closed, and the
// version.
static void read_module(const char *root, struct ew_facts *facts)
{
    char text[1024], *at;
    bool loaded = ew_sysfile_read(root, "/proc/driver/nvidia/version", text, sizeof(text)) > 0;

    ew_facts_set_bool(facts, "drv_module_loaded", loaded, "/proc/driver/nvidia/version");
    if (!loaded)
        return;
    ew_facts_set_bool(facts, "drv_open", strstr(text, "Open Kernel Module") != NULL, "/proc/driver/nvidia/version");
    for (at = text; *at && *at != '\n'; at++) {
        size_t len = strspn(at, "0123456789.");

        if (len > 3 && memchr(at, '.', len) && (at[len] == ' ' || at[len] == '\n') && at > text && at[-1] == ' ') {
            ew_facts_set_str(facts, "drv_module_ver", (struct ew_str){at, len}, "/proc/driver/nvidia/version");
            if (!ew_facts_get(facts, EW_STR("drv_ver")))
                ew_facts_set_str(facts, "drv_ver", (struct ew_str){at, len}, "/proc/driver/nvidia/version");
            return;
        }
    }
}

// The bits of NVML's clock event reasons that mean less speed than asked for (nvml.h).
static void set_clock_limits(struct ew_facts *facts)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } limits[] = {{0x08, "hardware slowdown"},
                  {0x20, "software thermal slowdown"},
                  {0x40, "hardware thermal slowdown"},
                  {0x80, "power brake"}};
    const struct ew_fact *reasons = ew_facts_get(facts, EW_STR("clock_reasons"));
    struct ew_str active[EW_COUNT_OF(limits)];
    uint32_t count = 0;

    if (!reasons || reasons->type != EW_FACT_NUMBER || !(reasons->number >= 0 && reasons->number < 0x1p53))
        return;
    for (size_t i = 0; i < EW_COUNT_OF(limits); i++)
        if ((uint64_t)reasons->number & limits[i].bit)
            active[count++] = ew_str_of(limits[i].name);
    ew_facts_set_strs(facts, "clock_limits", active, count, "clock_reasons");
}

// NVIDIA's data-center boards, which alone among discrete GPUs may use forward compatibility packages.
static void set_datacenter(struct ew_facts *facts)
{
    static const char *const names[] = {"H100", "H200", "H20", "GH200", "A100", "A800", "A30",   "A40",
                                        "A10",  "A16",  "A2",  "B100",  "B200", "B300", "GB200", "L4",
                                        "L40",  "L40S", "L20", "T4",    "V100", "P100", "P40",   "P4"};
    struct ew_str name = ew_facts_str(facts, "gpu_name", "");
    bool found = false;

    if (!name.len)
        return;
    for (size_t i = 0; i < name.len;) { // word by word: "NVIDIA L4" is one, "NVIDIA RTX PRO 4000" is none
        size_t len = 0;

        while (i + len < name.len && name.ptr[i + len] != ' ' && name.ptr[i + len] != '-')
            len++;
        for (size_t k = 0; k < EW_COUNT_OF(names); k++)
            found |= ew_str_is((struct ew_str){name.ptr + i, len}, names[k]);
        i += len + 1;
    }
    ew_facts_set_bool(facts, "gpu_is_datacenter", found, "name of the GPU");
}

// Whether the box has GPUs of different compute capabilities: files are judged for the first.
static void set_mixed(struct ew_facts *facts)
{
    double first = ew_facts_number(facts, "gpu_cc", 0), count = ew_facts_number(facts, "gpu_count", 0);
    bool mixed = false;

    if (count < 1 || first == 0)
        return;
    for (unsigned gpu = 1; gpu < EW_MIN(count, (double)GPUS_MAX); gpu++) {
        char key[KEY_BYTES];

        mixed |= ew_facts_number(facts, key_of(key, "gpu_cc", gpu), first) != first;
    }
    ew_facts_set_bool(facts, "gpu_mixed", mixed, "compute capabilities of all GPUs");
}

// Which of our own kernels this box would run. The GPU is the first, as for everything else.
static void set_tier(struct ew_facts *facts)
{
    int cc = (int)ew_facts_number(facts, "gpu_cc", 0), cuda = (int)ew_facts_number(facts, "drv_cuda", 0);
    char text[96];

    if (!cc || !cuda)
        return;
    ew_cuda_tier_explain(cc, cuda / 100 * 1000 + cuda % 100, text, sizeof(text));
    ew_facts_set_str(facts, "kernel_tier", ew_str_of(text), "gpu_cc, drv_cuda");
}

static void read_kernel_cache(struct ew_facts *facts)
{
    struct ew_cuda_cache cache;
    struct ew_error err;
    int rc = ew_cuda_cache_find(NULL, &cache, &err);
    bool kept = rc == 0 && cache.kind != EW_CUDA_CACHE_NONE;

    ew_facts_set_bool(facts, "kernel_cache_kept", kept, "environment, file systems");
    if (!kept)
        ew_facts_set_str(facts, "kernel_cache_error", ew_str_of(rc ? err.message : cache.why), "file systems");
}

// Variables of the environment that change what a CUDA program sees or does; nothing of a captured tree's.
static void read_environment(const char *root, struct ew_facts *facts)
{
    static const char *const names[] = {"CUDA_VISIBLE_DEVICES", "CUDA_FORCE_PTX_JIT", "CUDA_DISABLE_PTX_JIT",
                                        "CUDA_LAUNCH_BLOCKING", "CUDA_CACHE_DISABLE", "TRITON_PTXAS_PATH"};
    struct ew_str found[EW_COUNT_OF(names)];
    uint32_t count = 0;

    ew_facts_set_bool(facts, "env_known", !root || !root[0], "environment");
    if (root && root[0])
        return;
    for (size_t i = 0; i < EW_COUNT_OF(names); i++)
        if (getenv(names[i]))
            found[count++] = ew_str_of(names[i]);
    ew_facts_set_strs(facts, "env_cuda", found, count, "environment");
    read_kernel_cache(facts);
}

void ew_probe_nvidia_derive(struct ew_facts *facts)
{
    struct ew_str version = ew_facts_str(facts, "drv_ver", ""), module = ew_facts_str(facts, "drv_module_ver", "");
    uint64_t branch;

    if (version.len && ew_str_to_u64((struct ew_str){version.ptr, strcspn(version.ptr, ".")}, &branch))
        ew_facts_set_number(facts, "drv_branch", (double)branch, "driver version");
    if (version.len && module.len)
        ew_facts_set_bool(facts, "nvml_mismatch", !ew_str_eq(version, module), "NVML against the kernel module");
    if (!ew_facts_get(facts, EW_STR("gpu_stack")) && module.len)
        ew_facts_set_str(facts, "gpu_stack", EW_STR("dgpu"), "/proc/driver/nvidia/version");
    set_clock_limits(facts);
    set_datacenter(facts);
    set_mixed(facts);
    set_tier(facts);
}

// True where somebody asked the driver, now or when the tree was captured.
static bool read_driver(const char *root, void (*say)(FILE *to), struct ew_facts *facts)
{
    char *text = ew_alloc(EW_DRIVER_REPORT_BYTES_MAX);
    bool asked = true;

    if (!text) {
        facts->failed = true;
        return false;
    }
    if (root && root[0]) {
        asked = ew_sysfile_read(root, "/.edgewise/gpu", text, EW_DRIVER_REPORT_BYTES_MAX) > 0;
        ew_facts_parse_lines(facts, text, "/.edgewise/gpu");
    } else {
        bool finished = ew_driver_ask(say, DRIVER_TIME_LIMIT_S, text, EW_DRIVER_REPORT_BYTES_MAX);

        ew_facts_set_bool(facts, "drv_hangs", !finished, "driver calls in a child process");
        ew_facts_parse_lines(facts, text, "driver");
    }
    ew_free(text);
    return asked;
}

void ew_probe_nvidia(const char *root, struct ew_facts *facts)
{
    bool asked = read_driver(root, say_all, facts);

    read_module(root, facts);
    if (asked)
        ew_facts_set_number(facts, "drv_cuda_major", floor(ew_facts_number(facts, "drv_cuda", 0) / 100),
                            "the driver's CUDA; 0 where none answers");
    read_environment(root, facts);
}

void ew_probe_gpu_readings(const char *root, struct ew_facts *facts)
{
    read_driver(root, say_nvml, facts);
    set_clock_limits(facts);
}
