#include "platform/cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define LIBRARY "libcuda.so.1"

static const struct {
    const char *name;
    size_t offset;
} g_functions[] = {
#define FUNCTION(name)                                                                                                 \
    {                                                                                                                  \
#name, offsetof(struct ew_cuda_driver, name)                                                                   \
    }
    FUNCTION(cuInit),
    FUNCTION(cuDriverGetVersion),
    FUNCTION(cuGetErrorName),
    FUNCTION(cuDeviceGetCount),
    FUNCTION(cuDeviceGet),
    FUNCTION(cuDeviceGetName),
    FUNCTION(cuDeviceGetAttribute),
    FUNCTION(cuDeviceTotalMem_v2),
    FUNCTION(cuDevicePrimaryCtxRetain),
    FUNCTION(cuCtxSetCurrent),
    FUNCTION(cuCtxSynchronize),
    FUNCTION(cuDevicePrimaryCtxRelease_v2),
    FUNCTION(cuMemGetInfo_v2),
    FUNCTION(cuMemAlloc_v2),
    FUNCTION(cuMemFree_v2),
    FUNCTION(cuMemHostAlloc),
    FUNCTION(cuMemFreeHost),
    FUNCTION(cuMemcpyHtoD_v2),
    FUNCTION(cuMemcpyDtoH_v2),
    FUNCTION(cuMemcpyHtoDAsync_v2),
    FUNCTION(cuMemcpyDtoHAsync_v2),
    FUNCTION(cuMemcpyDtoDAsync_v2),
    FUNCTION(cuStreamCreate),
    FUNCTION(cuStreamDestroy_v2),
    FUNCTION(cuStreamSynchronize),
    FUNCTION(cuStreamBeginCapture_v2),
    FUNCTION(cuStreamEndCapture),
    FUNCTION(cuGraphInstantiateWithFlags),
    FUNCTION(cuGraphLaunch),
    FUNCTION(cuGraphExecDestroy),
    FUNCTION(cuGraphDestroy),
    FUNCTION(cuModuleLoadData),
    FUNCTION(cuModuleLoadDataEx),
    FUNCTION(cuModuleUnload),
    FUNCTION(cuModuleGetFunction),
    FUNCTION(cuLaunchKernel),
#undef FUNCTION
};

int ew_cuda_driver_open(struct ew_cuda_driver *driver, struct ew_error *err)
{
    *driver = (struct ew_cuda_driver){.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL)};
    if (!driver->library) {
        ew_fail(err, EW_ERR_DEVICE, "no NVIDIA driver: %s", dlerror());
        return ew_remedy(err, EW_ERR_DEVICE,
                         "Install the driver; in a container, start it with the GPU (--runtime nvidia or --gpus all)");
    }
    for (size_t i = 0; i < EW_COUNT_OF(g_functions); i++) {
        void *symbol = dlsym(driver->library, g_functions[i].name);

        if (!symbol) {
            ew_cuda_driver_close(driver);
            ew_fail(err, EW_ERR_DEVICE, "the NVIDIA driver's %s has no %s", LIBRARY, g_functions[i].name);
            return ew_remedy(err, EW_ERR_DEVICE, "It is older than CUDA 11.4 or damaged: install a newer driver");
        }
        memcpy((char *)driver + g_functions[i].offset, &symbol, sizeof(symbol));
    }
    return EW_OK;
}

void ew_cuda_driver_close(struct ew_cuda_driver *driver)
{
    if (driver->library)
        dlclose(driver->library);
    *driver = (struct ew_cuda_driver){0};
}

void ew_cuda_error_name(const struct ew_cuda_driver *driver, int error, char *text, size_t size)
{
    const char *name = NULL;

    if (driver->cuGetErrorName && driver->cuGetErrorName(error, &name) == EW_CUDA_SUCCESS && name)
        snprintf(text, size, "%s (%d)", name, error);
    else
        snprintf(text, size, "CUDA error %d", error);
}
