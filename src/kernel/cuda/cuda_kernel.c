#include "kernel/cuda/cuda_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "kernel/cuda/cuda_ptx.h"
#include "platform/cuda_tier.h"

#define CHAIN_VERSION_MIN 12030
#define LIBRARY_VERSION_MIN 12000
#define LOG_BYTES 400

extern const struct ew_data_file ew_cuda_ptx_files[];

// ---- texts --------------------------------------------------------------------------------------

// "rows.sm_90.ptx"; the base tier's are "rows.ptx".
static const struct ew_data_file *find_file(const char *name, const struct ew_cuda_tier *tier)
{
    bool is_base = !tier[1].name;
    char path[64];

    snprintf(path, sizeof(path), "%s%s%s.ptx", name, is_base ? "" : ".", is_base ? "" : tier->name);
    for (const struct ew_data_file *file = ew_cuda_ptx_files; file->path; file++) {
        if (strcmp(file->path, path) == 0)
            return file;
    }
    return NULL;
}

// Of the tiers from *tier on, the first that GPU and driver know; *tier is what to go on with. NULL: there is no more.
static const struct ew_data_file *next_file(const struct ew_cuda_device *device, enum ew_cuda_module module,
                                            const struct ew_cuda_tier **tier)
{
    while ((*tier)->name) {
        const struct ew_cuda_tier *at = (*tier)++;
        const struct ew_data_file *file = find_file(ew_cuda_module_name(module), at);

        if (file && ew_cuda_tier_runs(at, device->major * 10 + device->minor, device->driver_version))
            return file;
    }
    return NULL;
}

// The text of a module, which tools/embed.py --deflate has packed; the caller frees it.
static int unpack(const struct ew_data_file *file, char **text, struct ew_error *err)
{
    uint64_t n = 0;
    uLongf length;

    EW_ASSERT(file->text.len > sizeof(n));
    memcpy(&n, file->text.ptr, sizeof(n)); // all our machines have the little end first
    length = n;
    *text = ew_alloc(n + 1);
    if (!*text)
        return ew_fail_memory(err, n + 1, "the text of a module of kernels");
    if (uncompress((Bytef *)*text, &length, (const Bytef *)file->text.ptr + sizeof(n),
                   file->text.len - sizeof(n)) != Z_OK || length != n) {
        ew_free(*text);
        *text = NULL;
        return ew_fail(err, EW_ERR_FORMAT, "the kernels in this program are damaged");
    }
    (*text)[n] = 0;
    return 0;
}

static int open_from(const struct ew_cuda_device *device, enum ew_cuda_module module, const struct ew_cuda_tier *tier,
                     struct ew_cuda_text *out, struct ew_error *err)
{
    *out = (struct ew_cuda_text){.older = tier};
    out->file = next_file(device, module, &out->older);
    return out->file ? unpack(out->file, &out->text, err) : 0;
}

// EW_CUDA_TIER=sm_80 leaves newer tiers out, to compare and to test them.
static const struct ew_cuda_tier *newest_tier(void)
{
    const char *name = getenv("EW_CUDA_TIER");

    for (const struct ew_cuda_tier *tier = ew_cuda_tiers; name && tier->name; tier++) {
        if (strcmp(tier->name, name) == 0)
            return tier;
    }
    return ew_cuda_tiers;
}

int ew_cuda_text_open(const struct ew_cuda_device *device, enum ew_cuda_module module, struct ew_cuda_text *out,
                      struct ew_error *err)
{
    return open_from(device, module, newest_tier(), out, err);
}

void ew_cuda_text_close(struct ew_cuda_text *text)
{
    ew_free(text->text);
    *text = (struct ew_cuda_text){0};
}

// ---- kernels ------------------------------------------------------------------------------------

static bool has_libraries(const struct ew_cuda_device *device)
{
    const struct ew_cuda_driver *driver = &device->driver;

    return driver->cuLibraryLoadData && driver->cuLibraryUnload && driver->cuLibraryGetKernel &&
           driver->cuKernelGetFunction && device->driver_version >= LIBRARY_VERSION_MIN;
}

static int compile(const struct ew_cuda_device *device, const char *file, const char *text, void **handle,
                   struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &device->driver;
    char said[LOG_BYTES] = "";
    int options[] = {EW_CUDA_JIT_ERROR_LOG, EW_CUDA_JIT_ERROR_LOG_BYTES}, status, rc;
    void *values[] = {said, (void *)(uintptr_t)(sizeof(said) - 1)};

    if (has_libraries(device))
        status = driver->cuLibraryLoadData(handle, text, options, values, EW_COUNT_OF(options), NULL, NULL, 0);
    else
        status = driver->cuModuleLoadDataEx(handle, text, EW_COUNT_OF(options), options, values);
    rc = ew_cuda_check(device, status, "loading a kernel", err);
    return rc ? ew_fail_in(err, rc, "%s (%s)", file, said[0] ? said : "no log") : 0;
}

static int find_function(const struct ew_cuda_device *device, void *handle, const char *name, void **function,
                         struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &device->driver;
    void *kernel = NULL;
    int status;

    if (!has_libraries(device))
        return ew_cuda_check(device, driver->cuModuleGetFunction(function, handle, name), name, err);
    status = driver->cuLibraryGetKernel(&kernel, handle, name);
    if (status == EW_CUDA_SUCCESS)
        status = driver->cuKernelGetFunction(function, kernel);
    return ew_cuda_check(device, status, name, err);
}

void ew_cuda_kernel_unload(const struct ew_cuda_device *device, void *handle)
{
    (void)(has_libraries(device) ? device->driver.cuLibraryUnload(handle) : device->driver.cuModuleUnload(handle));
}

// A kernel whose text waits for its predecessor may be started before that has ended. Graphs record such launches since
// CUDA 12.3.
static bool waits_itself(const struct ew_cuda_device *device, const char *text)
{
    return device->driver.cuLaunchKernelEx && device->driver_version >= CHAIN_VERSION_MIN && ew_cuda_ptx_waits(text);
}

static int load_from(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, const struct ew_cuda_text *text,
                     struct ew_error *err)
{
    char *only = ew_cuda_ptx_only(text->text, ew_cuda_kernel_name(kernel));
    double started_s = ew_clock_s();
    void *handle = NULL, *function = NULL;
    int rc;

    if (!only)
        return ew_fail_memory(err, strlen(text->text), "the text of a kernel");
    rc = compile(device, text->file->path, only, &handle, err);
    if (rc)
        goto free_text;
    rc = find_function(device, handle, ew_cuda_kernel_name(kernel), &function, err);
    if (rc) {
        ew_cuda_kernel_unload(device, handle);
        goto free_text;
    }
    device->handles[kernel] = handle;
    device->functions[kernel] = function;
    device->waits_itself[kernel] = waits_itself(device, only);
    device->clusters[kernel] = device->has_clusters && ew_cuda_ptx_clusters(only);
    device->files[kernel] = text->file->path;
    device->load_s[kernel] = ew_clock_s() - started_s;
    ew_log(EW_LOG_DEBUG, "kernel %s of %s, ready in %.2f s", ew_cuda_kernel_name(kernel), text->file->path,
           device->load_s[kernel]);
    rc = ew_cuda_kernel_set_up(device, kernel, err);
free_text:
    ew_free(only);
    return rc;
}

// A tier that the driver refuses is left out for the one before it; the last one is for every GPU.
static int load_older(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, const struct ew_cuda_text *refused,
                      struct ew_error *why)
{
    enum ew_cuda_module module = ew_cuda_kernel_module(kernel);
    struct ew_cuda_text text;
    int rc;

    if (!refused->older->name)
        return why->code;
    if (!atomic_exchange(&device->is_refused[module], true))
        ew_log(EW_LOG_WARN, "kernels of %s are not used: %s", refused->file->path, why->message);
    rc = open_from(device, module, refused->older, &text, why);
    if (rc == 0)
        rc = ew_cuda_kernel_load(device, kernel, &text, why);
    ew_cuda_text_close(&text);
    return rc;
}

int ew_cuda_kernel_load(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, const struct ew_cuda_text *text,
                        struct ew_error *err)
{
    struct ew_error why;
    int rc = text->text ? load_from(device, kernel, text, &why) : 0;

    if (rc == 0)
        return 0;
    rc = load_older(device, kernel, text, &why);
    if (rc && err)
        *err = why;
    return rc;
}

int ew_cuda_device_load_module(struct ew_cuda_device *device, enum ew_cuda_module module, struct ew_error *err)
{
    struct ew_cuda_text text = {0};
    int rc = 0;

    for (int i = 0; i < EW_CUDA_KERNEL_COUNT && rc == 0; i++) {
        if (ew_cuda_kernel_module(i) != module || !ew_cuda_kernel_is_missing(device, i))
            continue;
        if (!text.file)
            rc = ew_cuda_text_open(device, module, &text, err);
        if (rc == 0)
            rc = ew_cuda_kernel_load(device, i, &text, err);
    }
    ew_cuda_text_close(&text);
    return rc;
}

void ew_cuda_loaded_files(const struct ew_cuda_device *device, ew_module_fn fn, void *ctx)
{
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        uint32_t n = 0, n_all = 0;
        bool is_first = device->files[i] != NULL;
        double seconds = 0;

        for (int k = 0; k < EW_CUDA_KERNEL_COUNT; k++) {
            bool is_same = device->files[k] == device->files[i];

            is_first &= k >= i || !is_same;
            n += is_same;
            n_all += ew_cuda_kernel_module(k) == ew_cuda_kernel_module(i);
            seconds += is_same ? device->load_s[k] : 0;
        }
        if (is_first)
            fn(ctx, device->files[i], n, n_all, seconds);
    }
}
