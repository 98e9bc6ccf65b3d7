#pragma once
// The CUDA driver, dlopen'ed: the only code that knows its soname. The oldest entry points that do the job, so that
// every driver since CUDA 11.4 has them. Source of names and numbers: the driver API reference (cuda.h).

#include <stdbool.h>
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
    EW_CUDA_ATTR_SHARED_BYTES_MAX = 97, // of a block, where it asks for more than 48 KiB
    EW_CUDA_ATTR_VIRTUAL_MEMORY = 102,  // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    EW_CUDA_ATTR_CLUSTER_LAUNCH = 120,
};

#define EW_CUDA_STREAM_NON_BLOCKING 1     // CU_STREAM_NON_BLOCKING
#define EW_CUDA_CAPTURE_RELAXED 2         // CU_STREAM_CAPTURE_MODE_RELAXED: kernels may be loaded meanwhile
#define EW_CUDA_JIT_ERROR_LOG 5           // CU_JIT_ERROR_LOG_BUFFER
#define EW_CUDA_JIT_ERROR_LOG_BYTES 6     // CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
#define EW_CUDA_ERROR_OUT_OF_MEMORY 2

#define EW_CUDA_FUNC_MAX_DYNAMIC_SHARED_BYTES 8 // CU_FUNC_ATTRIBUTE_...
#define EW_CUDA_FUNC_SHARED_CARVEOUT 9          // percent
#define EW_CUDA_LAUNCH_CLUSTER 4      // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
#define EW_CUDA_LAUNCH_PROGRAMMATIC 6 // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

struct ew_cuda_launch_attribute { // CUlaunchAttribute
    int id;
    char pad[4];
    union {
        int allowed;
        unsigned dims[3];
        char size[64];
    } value;
};

struct ew_cuda_launch_config { // CUlaunchConfig
    unsigned grid[3], block[3], shared_bytes;
    void *stream;
    struct ew_cuda_launch_attribute *attributes;
    unsigned n_attributes;
};

#define EW_CUDA_TENSOR_U8 0          // CU_TENSOR_MAP_DATA_TYPE_UINT8
#define EW_CUDA_TENSOR_U16 1         // CU_TENSOR_MAP_DATA_TYPE_UINT16
#define EW_CUDA_TENSOR_SWIZZLE_128 3 // CU_TENSOR_MAP_SWIZZLE_128B
#define EW_CUDA_TENSOR_PROMOTE_256 3 // CU_TENSOR_MAP_L2_PROMOTION_L2_256B

struct ew_cuda_tensor_map { // CUtensorMap
    _Alignas(64) uint64_t opaque[16];
};

#define EW_CUDA_ALLOCATION_PINNED 1     // CU_MEM_ALLOCATION_TYPE_PINNED: the only type
#define EW_CUDA_LOCATION_DEVICE 1       // CU_MEM_LOCATION_TYPE_DEVICE
#define EW_CUDA_ACCESS_READ_WRITE 3     // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
#define EW_CUDA_GRANULARITY_RECOMMENDED 1 // CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
#define EW_CUDA_EVENT_QUIET 2           // CU_EVENT_DISABLE_TIMING

struct ew_cuda_memory_kind { // CUmemAllocationProp
    int type, handle_types, location_type, location;
    void *windows;
    unsigned char flags[8];
};

struct ew_cuda_memory_access { // CUmemAccessDesc
    int location_type, location, flags;
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
    int (*cuDevicePrimaryCtxRelease_v2)(int device);
    int (*cuMemGetInfo_v2)(size_t *free_bytes, size_t *total_bytes);
    int (*cuMemAlloc_v2)(uint64_t *address, size_t bytes);
    int (*cuMemFree_v2)(uint64_t address);
    int (*cuMemHostAlloc)(void **data, size_t bytes, unsigned flags);
    int (*cuMemFreeHost)(void *data);
    int (*cuMemcpyHtoD_v2)(uint64_t to, const void *from, size_t bytes);
    int (*cuMemcpyDtoH_v2)(void *to, uint64_t from, size_t bytes);
    int (*cuMemcpyHtoDAsync_v2)(uint64_t to, const void *from, size_t bytes, void *stream);
    int (*cuMemcpyDtoHAsync_v2)(void *to, uint64_t from, size_t bytes, void *stream);
    int (*cuMemsetD8Async)(uint64_t to, unsigned char value, size_t bytes, void *stream);
    int (*cuMemcpyDtoDAsync_v2)(uint64_t to, uint64_t from, size_t bytes, void *stream);
    int (*cuStreamCreate)(void **stream, unsigned flags);
    int (*cuStreamDestroy_v2)(void *stream);
    int (*cuStreamSynchronize)(void *stream);
    int (*cuEventCreate)(void **event, unsigned flags);
    int (*cuEventDestroy_v2)(void *event);
    int (*cuEventRecord)(void *event, void *stream);
    int (*cuEventSynchronize)(void *event);
    int (*cuStreamBeginCapture_v2)(void *stream, int mode);
    int (*cuStreamEndCapture)(void *stream, void **graph);
    int (*cuGraphInstantiateWithFlags)(void **executable, void *graph, unsigned long long flags);
    int (*cuGraphLaunch)(void *executable, void *stream);
    int (*cuGraphExecDestroy)(void *executable);
    int (*cuGraphDestroy)(void *graph);
    int (*cuModuleLoadData)(void **module, const void *image);
    int (*cuModuleLoadDataEx)(void **module, const void *image, unsigned n_options, int *options, void **values);
    int (*cuModuleUnload)(void *module);
    int (*cuModuleGetFunction)(void **function, void *module, const char *name);
    int (*cuLaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments,
                          void **extra);
    int (*cuFuncSetAttribute)(void *function, int attribute, int value);
    // Of newer drivers, or not of every GPU; may be NULL.
    int (*cuMemGetAllocationGranularity)(size_t *bytes, const struct ew_cuda_memory_kind *kind, int which);
    int (*cuMemAddressReserve)(uint64_t *address, size_t bytes, size_t alignment, uint64_t wish, uint64_t flags);
    int (*cuMemAddressFree)(uint64_t address, size_t bytes);
    int (*cuMemCreate)(uint64_t *handle, size_t bytes, const struct ew_cuda_memory_kind *kind, uint64_t flags);
    int (*cuMemRelease)(uint64_t handle);
    int (*cuMemMap)(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t flags);
    int (*cuMemUnmap)(uint64_t address, size_t bytes);
    int (*cuMemSetAccess)(uint64_t address, size_t bytes, const struct ew_cuda_memory_access *access, size_t count);
    int (*cuLibraryLoadData)(void **library, const void *image, int *options, void **values, unsigned n_options,
                             int *library_options, void **library_values, unsigned n_library_options);
    int (*cuLibraryUnload)(void *library);
    int (*cuLibraryGetKernel)(void **kernel, void *library, const char *name);
    int (*cuKernelGetFunction)(void **function, void *kernel); // in the current context
    int (*cuEventElapsedTime)(float *ms, void *from, void *to);
    int (*cuLaunchKernelEx)(const struct ew_cuda_launch_config *config, void *function, void **arguments, void **extra);
    int (*cuOccupancyMaxActiveClusters)(int *n, void *function, const struct ew_cuda_launch_config *config);
    int (*cuTensorMapEncodeTiled)(struct ew_cuda_tensor_map *map, int type, uint32_t rank, uint64_t address,
                                  const uint64_t *dims, const uint64_t *strides, const uint32_t *box,
                                  const uint32_t *element_strides, int interleave, int swizzle, int promotion,
                                  int fill);
};

// EW_ERR_DEVICE with the reason and the remedy: no library, a stub, a missing function. Loading makes no driver call.
int ew_cuda_driver_open(struct ew_cuda_driver *driver, struct ew_error *err) EW_MUST_CHECK;
// Whether the driver has what computing needs beyond probing; otherwise the error names what is missing.
int ew_cuda_driver_can_compute(const struct ew_cuda_driver *driver, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_driver_close(struct ew_cuda_driver *driver);
// Whether the driver finds a control daemon of MPS, so that kernels of several processes may run on a GPU at the same
// moment: by the pipe that it looks for (NVIDIA's documentation of MPS, CUDA_MPS_PIPE_DIRECTORY).
bool ew_cuda_has_mps(void);
// "CUDA_ERROR_NO_DEVICE (100)" into text.
void ew_cuda_error_name(const struct ew_cuda_driver *driver, int error, char *text, size_t size);
