#include "kernel/cuda/cuda_upload.h"

static int init_slab(struct ew_cuda_upload *upload, struct ew_cuda_slab *slab, uint64_t bytes, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &upload->device->driver;
    void *data = NULL;
    int rc = ew_cuda_check(upload->device, driver->cuMemHostAlloc(&data, bytes, 0), "taking pinned memory", err);

    slab->data = data;
    return rc ? rc : ew_cuda_check(upload->device, driver->cuEventCreate(&slab->copied, EW_CUDA_EVENT_QUIET),
                                   "making an event", err);
}

int ew_cuda_upload_init(struct ew_cuda_upload *upload, const struct ew_cuda_device *device, uint64_t slab_bytes,
                        struct ew_error *err)
{
    int rc;

    *upload = (struct ew_cuda_upload){.device = device};
    rc = ew_cuda_check(device, device->driver.cuStreamCreate(&upload->stream, EW_CUDA_STREAM_NON_BLOCKING),
                       "making a stream", err);
    for (uint32_t i = 0; i < EW_CUDA_SLABS && rc == 0; i++)
        rc = init_slab(upload, &upload->slabs[i], slab_bytes, err);
    return rc;
}

int ew_cuda_upload_next(struct ew_cuda_upload *upload, uint8_t **data, struct ew_error *err)
{
    struct ew_cuda_slab *slab = &upload->slabs[upload->turn];

    *data = slab->data;
    if (!slab->is_busy)
        return 0;
    slab->is_busy = false;
    return ew_cuda_check(upload->device, upload->device->driver.cuEventSynchronize(slab->copied), "copying weights",
                         err);
}

int ew_cuda_upload_copy(struct ew_cuda_upload *upload, uint64_t to, const uint8_t *from, uint64_t bytes,
                        struct ew_error *err)
{
    if (bytes == 0)
        return 0;
    upload->is_under_way = true;
    return ew_cuda_check(upload->device,
                         upload->device->driver.cuMemcpyHtoDAsync_v2(to, from, bytes, upload->stream),
                         "copying weights", err);
}

int ew_cuda_upload_turn(struct ew_cuda_upload *upload, struct ew_error *err)
{
    struct ew_cuda_slab *slab = &upload->slabs[upload->turn];

    slab->is_busy = true;
    upload->turn = (upload->turn + 1) % EW_CUDA_SLABS;
    return ew_cuda_check(upload->device, upload->device->driver.cuEventRecord(slab->copied, upload->stream),
                         "copying weights", err);
}

int ew_cuda_upload_wait(struct ew_cuda_upload *upload, struct ew_error *err)
{
    int rc = ew_cuda_check(upload->device, upload->device->driver.cuStreamSynchronize(upload->stream),
                           "copying weights", err);

    for (uint32_t i = 0; i < EW_CUDA_SLABS; i++)
        upload->slabs[i].is_busy = false;
    upload->is_under_way = rc != 0;
    return rc;
}

// What a broken context answers here changes nothing: everything goes with it. A copy may still read the slabs, even
// of one that was never handed over.
void ew_cuda_upload_fini(struct ew_cuda_upload *upload)
{
    const struct ew_cuda_driver *driver = &upload->device->driver;

    if (upload->is_under_way)
        (void)driver->cuStreamSynchronize(upload->stream);
    for (uint32_t i = 0; i < EW_CUDA_SLABS; i++) {
        if (upload->slabs[i].copied)
            (void)driver->cuEventDestroy_v2(upload->slabs[i].copied);
        if (upload->slabs[i].data)
            (void)driver->cuMemFreeHost(upload->slabs[i].data);
    }
    if (upload->stream)
        (void)driver->cuStreamDestroy_v2(upload->stream);
    *upload = (struct ew_cuda_upload){0};
}
