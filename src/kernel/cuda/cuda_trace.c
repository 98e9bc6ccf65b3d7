// Traces: after each op its rows come to the host, are shown, and go back as the trace left them.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "kernel/cuda/cuda_backend.h"
#include "kernel/cuda/cuda_prefill.h"

static uint64_t rows_bytes(const struct ew_cuda_backend *backend)
{
    uint64_t rows = EW_MAX(backend->limits.n_tokens_max, backend->limits.n_logits_max), bytes = 0;

    for (uint32_t i = 0; i < backend->plan.n_buffers; i++) {
        const struct ew_cpu_buffer *buffer = &backend->plan.buffers[i];
        uint64_t of_token = buffer->rows == EW_CPU_ROWS_PAIRS ? backend->plan.n_active : 1;

        bytes = EW_MAX(bytes, rows * of_token * buffer->width * sizeof(float));
    }
    return bytes;
}

void ew_cuda_trace_set(struct ew_cuda_backend *backend, ew_trace_fn fn, void *ctx)
{
    ew_free(backend->trace_rows);
    backend->trace_rows = fn ? ew_alloc(rows_bytes(backend)) : NULL;
    backend->trace = backend->trace_rows ? fn : NULL; // no memory: nothing is traced
    backend->trace_ctx = ctx;
    backend->traces_launches = false;
    backend->device.launches = fn ? &backend->launches : NULL;
    backend->launches.n = 0;
}

const char *ew_cuda_trace_launched(struct ew_cuda_backend *backend)
{
    size_t at = 0;

    backend->launched[0] = 0;
    for (uint32_t i = 0; i < backend->launches.n && at < sizeof(backend->launched); i++) {
        const char *name = ew_cuda_kernel_name(backend->launches.kernels[i]);

        at += (size_t)snprintf(backend->launched + at, sizeof(backend->launched) - at, "%s%s", i ? " " : "", name);
    }
    backend->launches.n = 0;
    return backend->launched;
}

// Rows of `stride` floats to rows of `width`, in place, or back.
static void pack(float *rows, uint32_t n_rows, uint32_t width, uint32_t stride)
{
    for (uint64_t i = 1; i < n_rows; i++)
        memmove(rows + i * width, rows + i * stride, width * sizeof(*rows));
}

static void unpack(float *rows, uint32_t n_rows, uint32_t width, uint32_t stride)
{
    for (uint64_t i = n_rows; i-- > 1;)
        memmove(rows + i * stride, rows + i * width, width * sizeof(*rows));
}

int ew_cuda_trace_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_rows,
                     struct ew_error *err)
{
    const struct ew_cuda_device *device = &backend->device;
    uint32_t stride = backend->plan.buffers[step->out].width;
    uint32_t width = backend->program->slot_width[backend->program->ops[step->op].out];
    uint64_t address = backend->work.buffers[step->out], bytes = (uint64_t)n_rows * stride * sizeof(float);
    int rc = ew_cuda_check(device, device->driver.cuStreamSynchronize(device->stream), "an op", err);

    if (rc == 0 && bytes)
        rc = ew_cuda_check(device, device->driver.cuMemcpyDtoH_v2(backend->trace_rows, address, bytes),
                           "reading what an op computed", err);
    if (rc)
        return rc;
    pack(backend->trace_rows, n_rows, width, stride);
    backend->trace(backend->trace_ctx, backend->program, step->op, backend->trace_rows, n_rows, width);
    unpack(backend->trace_rows, n_rows, width, stride);
    ew_cuda_prefill_wrote(backend, address);
    if (bytes == 0)
        return 0;
    // In the stream's order: another copy has only left the host's memory when it returns, and the stream, which waits
    // for no other, would read what the op had written.
    return ew_cuda_check(device,
                         device->driver.cuMemcpyHtoDAsync_v2(address, backend->trace_rows, bytes, device->stream),
                         "writing what an op computed", err);
}
