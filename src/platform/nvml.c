#include "platform/nvml.h"

#include <dlfcn.h>
#include <string.h>

#include "base/assert.h"

#define LIBRARY "libnvidia-ml.so.1"

static const struct {
    const char *name;
    size_t offset;
    bool needed;
} g_functions[] = {
#define NEEDED(name)                                                                                                   \
    {                                                                                                                  \
#name, offsetof(struct ew_nvml, name), true                                                                    \
    }
#define OPTIONAL(name)                                                                                                 \
    {                                                                                                                  \
#name, offsetof(struct ew_nvml, name), false                                                                   \
    }
    NEEDED(nvmlInit_v2),
    NEEDED(nvmlShutdown),
    NEEDED(nvmlDeviceGetCount_v2),
    NEEDED(nvmlDeviceGetHandleByIndex_v2),
    OPTIONAL(nvmlSystemGetDriverVersion),
    OPTIONAL(nvmlSystemGetCudaDriverVersion_v2),
    OPTIONAL(nvmlDeviceGetName),
    OPTIONAL(nvmlDeviceGetMemoryInfo_v2),
    OPTIONAL(nvmlDeviceGetPowerUsage),
    OPTIONAL(nvmlDeviceGetEnforcedPowerLimit),
    OPTIONAL(nvmlDeviceGetTotalEnergyConsumption),
    OPTIONAL(nvmlDeviceGetTemperature),
    OPTIONAL(nvmlDeviceGetTemperatureThreshold),
    OPTIONAL(nvmlDeviceGetClockInfo),
    OPTIONAL(nvmlDeviceGetMaxClockInfo),
    OPTIONAL(nvmlDeviceGetCurrentClocksThrottleReasons),
    OPTIONAL(nvmlDeviceGetViolationStatus),
    OPTIONAL(nvmlDeviceGetMigMode),
    OPTIONAL(nvmlDeviceGetMaxMigDeviceCount),
    OPTIONAL(nvmlDeviceGetMigDeviceHandleByIndex),
    OPTIONAL(nvmlDeviceGetNvLinkState),
    OPTIONAL(nvmlDeviceGetCurrPcieLinkGeneration),
    OPTIONAL(nvmlDeviceGetMaxPcieLinkGeneration),
    OPTIONAL(nvmlDeviceGetCurrPcieLinkWidth),
    OPTIONAL(nvmlDeviceGetMaxPcieLinkWidth),
#undef NEEDED
#undef OPTIONAL
};

int ew_nvml_open(struct ew_nvml *nvml, struct ew_error *err)
{
    int status;

    *nvml = (struct ew_nvml){.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL)};
    if (!nvml->library)
        return ew_fail(err, EW_ERR_DEVICE, "no NVML: %s", dlerror());
    for (size_t i = 0; i < EW_COUNT_OF(g_functions); i++) {
        void *symbol = dlsym(nvml->library, g_functions[i].name);

        if (!symbol && g_functions[i].needed) {
            dlclose(nvml->library);
            *nvml = (struct ew_nvml){0};
            return ew_fail(err, EW_ERR_DEVICE, "%s has no %s", LIBRARY, g_functions[i].name);
        }
        memcpy((char *)nvml + g_functions[i].offset, &symbol, sizeof(symbol));
    }
    status = nvml->nvmlInit_v2();
    if (status == EW_NVML_SUCCESS)
        return EW_OK;
    dlclose(nvml->library);
    *nvml = (struct ew_nvml){0};
    return ew_fail(err, EW_ERR_DEVICE, "NVML does not start (error %d)", status);
}

void ew_nvml_close(struct ew_nvml *nvml)
{
    if (!nvml->library)
        return;
    nvml->nvmlShutdown();
    dlclose(nvml->library);
    *nvml = (struct ew_nvml){0};
}
