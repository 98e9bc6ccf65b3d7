#pragma once
// NVML, dlopen'ed: driver version, memory, power, temperature, clocks, throttle reasons of NVIDIA GPUs. Every
// function may be missing or answer "not supported" (integrated GPUs support few): then the reading is not known.
// Source: nvml.h of the NVML API reference.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct ew_nvml_device_opaque *ew_nvml_device;

struct ew_nvml_memory { // nvmlMemory_v2_t
    unsigned version;
    unsigned long long total, reserved, free, used;
};

struct ew_nvml_violation { // nvmlViolationTime_t
    unsigned long long reference_us, violation_ns;
};

struct ew_nvml {
    void *library;
    int (*nvmlInit_v2)(void);
    int (*nvmlShutdown)(void);
    int (*nvmlSystemGetDriverVersion)(char *version, unsigned len);
    int (*nvmlSystemGetCudaDriverVersion_v2)(int *version);
    int (*nvmlDeviceGetCount_v2)(unsigned *count);
    int (*nvmlDeviceGetHandleByIndex_v2)(unsigned index, ew_nvml_device *device);
    int (*nvmlDeviceGetName)(ew_nvml_device device, char *name, unsigned len);
    int (*nvmlDeviceGetMemoryInfo_v2)(ew_nvml_device device, struct ew_nvml_memory *memory);
    int (*nvmlDeviceGetPowerUsage)(ew_nvml_device device, unsigned *mw);
    int (*nvmlDeviceGetEnforcedPowerLimit)(ew_nvml_device device, unsigned *mw);
    int (*nvmlDeviceGetTotalEnergyConsumption)(ew_nvml_device device, unsigned long long *mj);
    int (*nvmlDeviceGetTemperature)(ew_nvml_device device, int sensor, unsigned *celsius);
    int (*nvmlDeviceGetTemperatureThreshold)(ew_nvml_device device, int type, unsigned *celsius);
    int (*nvmlDeviceGetClockInfo)(ew_nvml_device device, int type, unsigned *mhz);
    int (*nvmlDeviceGetMaxClockInfo)(ew_nvml_device device, int type, unsigned *mhz);
    int (*nvmlDeviceGetCurrentClocksThrottleReasons)(ew_nvml_device device,
                                                     unsigned long long *reasons); // its newer name says EventReasons
    int (*nvmlDeviceGetViolationStatus)(ew_nvml_device device, int policy, struct ew_nvml_violation *time);
    int (*nvmlDeviceGetMigMode)(ew_nvml_device device, unsigned *current, unsigned *pending);
    int (*nvmlDeviceGetMaxMigDeviceCount)(ew_nvml_device device, unsigned *count);
    int (*nvmlDeviceGetMigDeviceHandleByIndex)(ew_nvml_device device, unsigned index, ew_nvml_device *mig);
    int (*nvmlDeviceGetNvLinkState)(ew_nvml_device device, unsigned link, int *active);
    int (*nvmlDeviceGetCurrPcieLinkGeneration)(ew_nvml_device device, unsigned *generation);
    int (*nvmlDeviceGetMaxPcieLinkGeneration)(ew_nvml_device device, unsigned *generation);
    int (*nvmlDeviceGetCurrPcieLinkWidth)(ew_nvml_device device, unsigned *width);
    int (*nvmlDeviceGetMaxPcieLinkWidth)(ew_nvml_device device, unsigned *width);
};

#define EW_NVML_SUCCESS 0
#define EW_NVML_THRESHOLD_SLOWDOWN 1
#define EW_NVML_CLOCK_SM 1
#define EW_NVML_CLOCK_MEM 2
#define EW_NVML_VIOLATION_POWER 0
#define EW_NVML_VIOLATION_THERMAL 1

// Loads and initialises. Functions other than init, shutdown and the device list may be NULL afterwards.
int ew_nvml_open(struct ew_nvml *nvml, struct ew_error *err) EW_MUST_CHECK;
void ew_nvml_close(struct ew_nvml *nvml);
