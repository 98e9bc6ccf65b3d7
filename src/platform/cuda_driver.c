#include "platform/cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"

#define LIBRARY "libcuda.so.1"

struct function {
    const char *name;
    size_t offset; // in struct ew_cuda_driver
};

#define FUNCTION(name) {#name, offsetof(struct ew_cuda_driver, name)}

// What probing needs; without one of these there is no driver.
static const struct function PROBING[] = {
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
    FUNCTION(cuMemAlloc_v2),
    FUNCTION(cuMemcpyHtoD_v2),
    FUNCTION(cuMemcpyDtoH_v2),
    FUNCTION(cuModuleLoadData),
    FUNCTION(cuModuleGetFunction),
    FUNCTION(cuLaunchKernel),
};

// What computing needs beyond that.
static const struct function COMPUTING[] = {
    FUNCTION(cuDevicePrimaryCtxRelease_v2),
    FUNCTION(cuMemGetInfo_v2),
    FUNCTION(cuMemFree_v2),
    FUNCTION(cuMemHostAlloc),
    FUNCTION(cuMemFreeHost),
    FUNCTION(cuMemcpyHtoDAsync_v2),
    FUNCTION(cuMemcpyDtoHAsync_v2),
    FUNCTION(cuMemcpyDtoDAsync_v2),
    FUNCTION(cuMemsetD8Async),
    FUNCTION(cuStreamCreate),
    FUNCTION(cuStreamDestroy_v2),
    FUNCTION(cuStreamSynchronize),
    FUNCTION(cuEventCreate),
    FUNCTION(cuEventDestroy_v2),
    FUNCTION(cuEventRecord),
    FUNCTION(cuEventSynchronize),
    FUNCTION(cuStreamBeginCapture_v2),
    FUNCTION(cuStreamEndCapture),
    FUNCTION(cuGraphInstantiateWithFlags),
    FUNCTION(cuGraphLaunch),
    FUNCTION(cuGraphExecDestroy),
    FUNCTION(cuGraphDestroy),
    FUNCTION(cuModuleLoadDataEx),
    FUNCTION(cuModuleUnload),
    FUNCTION(cuFuncSetAttribute),
};

// What newer drivers have, or not every GPU; the code that uses one asks for it.
static const struct function OPTIONAL[] = {
    FUNCTION(cuMemGetAllocationGranularity),
    FUNCTION(cuMemAddressReserve),
    FUNCTION(cuMemAddressFree),
    FUNCTION(cuMemCreate),
    FUNCTION(cuMemRelease),
    FUNCTION(cuMemMap),
    FUNCTION(cuMemUnmap),
    FUNCTION(cuMemSetAccess),
    FUNCTION(cuLibraryLoadData),
    FUNCTION(cuLibraryUnload),
    FUNCTION(cuLibraryGetKernel),
    FUNCTION(cuKernelGetFunction),
    FUNCTION(cuEventElapsedTime),
    FUNCTION(cuLaunchKernelEx),
    FUNCTION(cuOccupancyMaxActiveClusters),
    FUNCTION(cuTensorMapEncodeTiled),
};

#undef FUNCTION

static void find(struct ew_cuda_driver *driver, const struct function *functions, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        void *symbol = dlsym(driver->library, functions[i].name);

        memcpy((char *)driver + functions[i].offset, &symbol, sizeof(symbol));
    }
}

static int check(const struct ew_cuda_driver *driver, const struct function *functions, size_t n, struct ew_error *err)
{
    for (size_t i = 0; i < n; i++) {
        void *symbol;

        memcpy(&symbol, (const char *)driver + functions[i].offset, sizeof(symbol));
        if (symbol)
            continue;
        ew_fail(err, EW_ERR_DEVICE, "the NVIDIA driver's %s has no %s", LIBRARY, functions[i].name);
        return ew_remedy(err, EW_ERR_DEVICE, "It is older than CUDA 11.4 or damaged: install a newer driver");
    }
    return EW_OK;
}

int ew_cuda_driver_open(struct ew_cuda_driver *driver, struct ew_error *err)
{
    int rc;

    *driver = (struct ew_cuda_driver){.library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL)};
    if (!driver->library) {
        ew_fail(err, EW_ERR_DEVICE, "no NVIDIA driver: %s", dlerror());
        return ew_remedy(err, EW_ERR_DEVICE,
                         "Install the driver; in a container, start it with the GPU (--runtime nvidia or --gpus all)");
    }
    find(driver, PROBING, EW_COUNT_OF(PROBING));
    find(driver, COMPUTING, EW_COUNT_OF(COMPUTING));
    find(driver, OPTIONAL, EW_COUNT_OF(OPTIONAL));
    rc = check(driver, PROBING, EW_COUNT_OF(PROBING), err);
    if (rc)
        ew_cuda_driver_close(driver);
    return rc;
}

int ew_cuda_driver_can_compute(const struct ew_cuda_driver *driver, struct ew_error *err)
{
    return check(driver, COMPUTING, EW_COUNT_OF(COMPUTING), err);
}

void ew_cuda_driver_close(struct ew_cuda_driver *driver)
{
    if (driver->library)
        dlclose(driver->library);
    *driver = (struct ew_cuda_driver){0};
}

bool ew_cuda_has_mps(void)
{
    const char *folder = getenv("CUDA_MPS_PIPE_DIRECTORY");
    char path[1024];

    snprintf(path, sizeof(path), "%.1000s/control", folder && *folder ? folder : "/tmp/nvidia-mps");
    return access(path, F_OK) == 0;
}

void ew_cuda_error_name(const struct ew_cuda_driver *driver, int error, char *text, size_t size)
{
    const char *name = NULL;

    if (driver->cuGetErrorName && driver->cuGetErrorName(error, &name) == EW_CUDA_SUCCESS && name)
        snprintf(text, size, "%s (%d)", name, error);
    else
        snprintf(text, size, "CUDA error %d", error);
}
