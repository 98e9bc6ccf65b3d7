// Memory of the GPU. A span of addresses is reserved whole and gets memory piece by piece as it is handed out, so that
// no single allocation is large (newer Jetsons refuse those near 1 GiB) and nothing is lost between the pieces. Where
// reserving or mapping is refused, cuMemAlloc gives spans that have their memory from the start.

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cuda/cuda_device.h"

#define PART_BYTES_MIN ((uint64_t)64 << 20) // unless the span ends before
#define PART_BYTES_MAX ((uint64_t)256 << 20)
#define SPAN_BYTES_MIN ((uint64_t)4 << 20)
#define PLAIN_BYTES_MIN ((uint64_t)64 << 20) // of cuMemAlloc, where so much is expected

static uint64_t rounded(uint64_t bytes, uint64_t to)
{
    return (bytes + to - 1) / to * to;
}

static struct ew_cuda_memory_kind kind_of(const struct ew_cuda_device *device)
{
    return (struct ew_cuda_memory_kind){.type = EW_CUDA_ALLOCATION_PINNED,
                                        .location_type = EW_CUDA_LOCATION_DEVICE,
                                        .location = device->device};
}

void ew_cuda_arena_probe(struct ew_cuda_device *device)
{
    const struct ew_cuda_driver *driver = &device->driver;
    struct ew_cuda_memory_kind kind = kind_of(device);
    size_t bytes = 0;

    if (!driver->cuMemGetAllocationGranularity || !driver->cuMemAddressReserve || !driver->cuMemAddressFree ||
        !driver->cuMemCreate || !driver->cuMemRelease || !driver->cuMemMap || !driver->cuMemUnmap ||
        !driver->cuMemSetAccess)
        return;
    if (driver->cuMemGetAllocationGranularity(&bytes, &kind, EW_CUDA_GRANULARITY_RECOMMENDED) == EW_CUDA_SUCCESS)
        device->part_bytes = bytes;
}

// The driver keeps the memory as long as it is mapped; the handle is not needed for that.
static int map_part(const struct ew_cuda_device *device, uint64_t address, uint64_t bytes)
{
    const struct ew_cuda_driver *driver = &device->driver;
    struct ew_cuda_memory_kind kind = kind_of(device);
    struct ew_cuda_memory_access access = {EW_CUDA_LOCATION_DEVICE, device->device, EW_CUDA_ACCESS_READ_WRITE};
    uint64_t handle = 0;
    int status = driver->cuMemCreate(&handle, bytes, &kind, 0), released;

    if (status)
        return status;
    status = driver->cuMemMap(address, bytes, 0, handle, 0);
    released = driver->cuMemRelease(handle);
    if (status)
        return status;
    status = driver->cuMemSetAccess(address, bytes, &access, 1);
    status = status ? status : released;
    if (status)
        (void)driver->cuMemUnmap(address, bytes);
    return status;
}

static int grow(const struct ew_cuda_device *device, struct ew_cuda_span *span, uint64_t bytes)
{
    int status = EW_CUDA_SUCCESS;

    while (span->mapped < bytes && status == EW_CUDA_SUCCESS) {
        uint64_t part = EW_MIN(EW_MAX(bytes - span->mapped, PART_BYTES_MIN), PART_BYTES_MAX);

        part = EW_MIN(rounded(part, device->part_bytes), span->bytes - span->mapped);
        status = map_part(device, span->address + span->mapped, part);
        if (status == EW_CUDA_SUCCESS)
            span->mapped += part;
    }
    return status;
}

// As much as is expected, or what is needed now: an Orin refuses 32 GiB of addresses at once.
static int reserve_span(const struct ew_cuda_device *device, uint64_t expected, uint64_t bytes,
                        struct ew_cuda_span *span)
{
    const uint64_t wishes[] = {EW_MAX(expected, bytes), EW_MAX(bytes, SPAN_BYTES_MIN)};
    int status = EW_CUDA_SUCCESS;

    for (size_t i = 0; i < EW_COUNT_OF(wishes); i++) {
        *span = (struct ew_cuda_span){.bytes = rounded(wishes[i], device->part_bytes)};
        status = device->driver.cuMemAddressReserve(&span->address, span->bytes, 0, 0, 0);
        if (status == EW_CUDA_SUCCESS)
            break;
    }
    return status;
}

static int take_plain(const struct ew_cuda_device *device, uint64_t expected, uint64_t bytes,
                      struct ew_cuda_span *span)
{
    *span = (struct ew_cuda_span){.bytes = EW_MAX(bytes, EW_MIN(expected, PLAIN_BYTES_MIN)), .is_plain = true};
    return device->driver.cuMemAlloc_v2(&span->address, span->bytes);
}

static int add_span(const struct ew_cuda_device *device, struct ew_cuda_arena *arena, uint64_t bytes, bool plain,
                    const char *what, struct ew_error *err)
{
    struct ew_cuda_span *span = &arena->spans[arena->n_spans];
    int status;

    if (arena->n_spans == EW_CUDA_SPANS_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "%s: more than %d spans of GPU memory", what, EW_CUDA_SPANS_MAX);
    status = (plain ? take_plain : reserve_span)(device, arena->expected, bytes, span);
    if (status)
        return ew_cuda_check(device, status, what, err);
    arena->n_spans++;
    arena->used = 0;
    return 0;
}

static struct ew_cuda_span *last_span(struct ew_cuda_arena *arena)
{
    return arena->n_spans ? &arena->spans[arena->n_spans - 1] : NULL;
}

static bool has_room(const struct ew_cuda_arena *arena, const struct ew_cuda_span *span, uint64_t bytes)
{
    return span && span->bytes - arena->used >= bytes;
}

// Room for that many bytes at the end of the last span; false where the driver has no more of this kind.
static bool map_room(const struct ew_cuda_device *device, struct ew_cuda_arena *arena, uint64_t bytes, const char *what)
{
    struct ew_error err;
    char name[96];
    int status;

    if (device->part_bytes == 0)
        return false;
    if (!has_room(arena, last_span(arena), bytes) && add_span(device, arena, bytes, false, what, &err)) {
        ew_log(EW_LOG_INFO, "%s: in one piece, as the driver reserves no addresses", what);
        return false;
    }
    if (last_span(arena)->is_plain)
        return true;
    status = grow(device, last_span(arena), arena->used + bytes);
    if (status) {
        ew_cuda_error_name(&device->driver, status, name, sizeof(name));
        ew_log(EW_LOG_INFO, "%s: in one piece, as the driver maps no more parts (%s)", what, name);
    }
    return status == EW_CUDA_SUCCESS;
}

void ew_cuda_arena_expect(struct ew_cuda_arena *arena, uint64_t bytes)
{
    arena->expected = bytes;
}

int ew_cuda_arena_alloc(const struct ew_cuda_device *device, struct ew_cuda_arena *arena, uint64_t bytes,
                        const char *what, uint64_t *address, struct ew_error *err)
{
    struct ew_cuda_span *span = last_span(arena);

    bytes = rounded(bytes, 256);
    if (!(has_room(arena, span, bytes) && span->is_plain) && !map_room(device, arena, bytes, what)) {
        int rc = add_span(device, arena, bytes, true, what, err);

        if (rc)
            return rc;
    }
    *address = last_span(arena)->address + arena->used;
    arena->used += bytes;
    arena->expected -= EW_MIN(arena->expected, bytes);
    return 0;
}

// What a broken context answers here changes nothing: everything goes with it.
void ew_cuda_arena_fini(const struct ew_cuda_device *device, struct ew_cuda_arena *arena)
{
    const struct ew_cuda_driver *driver = &device->driver;

    for (uint32_t i = 0; i < arena->n_spans; i++) {
        const struct ew_cuda_span *span = &arena->spans[i];

        if (span->is_plain) {
            (void)driver->cuMemFree_v2(span->address);
            continue;
        }
        if (span->mapped)
            (void)driver->cuMemUnmap(span->address, span->mapped);
        (void)driver->cuMemAddressFree(span->address, span->bytes);
    }
    arena->n_spans = 0;
    arena->used = arena->expected = 0;
}
