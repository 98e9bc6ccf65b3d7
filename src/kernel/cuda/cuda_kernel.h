#pragma once
// Kernels from the text in this program to what the driver can start. Each is given to the driver by itself: since CUDA
// 12 it compiles as many at once as there are threads that ask (cuLibraryLoadData; cuModuleLoadDataEx, which serves
// older drivers, takes them one after the other).

#include "base/data.h"
#include "kernel/backend.h"
#include "kernel/cuda/cuda_device.h"

struct ew_cuda_tier;

// A module in the newest tier that GPU and driver know, for who loads some of its kernels.
struct ew_cuda_text {
    char *text; // NULL: this GPU or driver has none
    const struct ew_data_file *file;
    const struct ew_cuda_tier *older; // where to look where the driver refuses this one
};

int ew_cuda_text_open(const struct ew_cuda_device *device, enum ew_cuda_module module, struct ew_cuda_text *out,
                      struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_text_close(struct ew_cuda_text *text);

// The driver compiles a kernel for this GPU, or takes what it compiled before. Threads that made the context current
// may load different kernels at once. 0 also where the text is NULL: the device then has no function for it.
int ew_cuda_kernel_load(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, const struct ew_cuda_text *text,
                        struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_kernel_unload(const struct ew_cuda_device *device, void *handle);

// Each file of which kernels were loaded.
void ew_cuda_loaded_files(const struct ew_cuda_device *device, ew_module_fn fn, void *ctx);
