#pragma once
// The CUDA driver, dlopen'ed: the only code that knows its soname. The oldest entry points that do the job, so that
// every driver since CUDA 11.4 has them. Source of names and numbers: the driver API reference (cuda.h).

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define EW_CUDA_SUCCESS 0

enum ew_cuda_attribute { // CUdevice_attribute
    EW_CUDA_ATTR_MULTIPROCESSORS = 16,
    EW_CUDA_ATTR_INTEGRATED = 18,
    EW_CUDA_ATTR_CLOCK_KHZ = 13,
    EW_CUDA_ATTR_MEMORY_CLOCK_KHZ = 36,
    EW_CUDA_ATTR_MEMORY_BUS_BITS = 37,
    EW_CUDA_ATTR_L2_BYTES = 38,
    EW_CUDA_ATTR_CC_MAJOR = 75,
    EW_CUDA_ATTR_CC_MINOR = 76,
};

// One member a function, filled by name; a NULL one is missing from this driver.
struct ew_cuda_driver {
    void *library;
    int (*cuInit)(unsigned flags);
    int (*cuDriverGetVersion)(int *version);
    int (*cuGetErrorName)(int error, const char **name);
    int (*cuDeviceGetCount)(int *count);
    int (*cuDeviceGet)(int *device, int ordinal);
    int (*cuDeviceGetName)(char *name, int len, int device);
    int (*cuDeviceGetAttribute)(int *value, int attribute, int device);
    int (*cuDeviceTotalMem_v2)(size_t *bytes, int device);
    int (*cuDevicePrimaryCtxRetain)(void **context, int device);
    int (*cuCtxSetCurrent)(void *context);
    int (*cuCtxSynchronize)(void);
    int (*cuMemAlloc_v2)(uint64_t *address, size_t bytes);
    int (*cuMemcpyHtoD_v2)(uint64_t to, const void *from, size_t bytes);
    int (*cuMemcpyDtoH_v2)(void *to, uint64_t from, size_t bytes);
    int (*cuModuleLoadData)(void **module, const void *image);
    int (*cuModuleGetFunction)(void **function, void *module, const char *name);
    int (*cuLaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                          void **extra);
};

// EW_ERR_DEVICE with the reason and the remedy: no library, a stub, a missing function. Loading makes no driver call.
int ew_cuda_driver_open(struct ew_cuda_driver *driver, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_driver_close(struct ew_cuda_driver *driver);
// "CUDA_ERROR_NO_DEVICE (100)" into text.
void ew_cuda_error_name(const struct ew_cuda_driver *driver, int error, char *text, size_t size);
