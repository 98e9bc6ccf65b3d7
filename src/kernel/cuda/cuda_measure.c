// The limits of the GPU at hand, measured: what its figures are compared with.

#include <math.h>

#include "base/assert.h"
#include "base/clock.h"
#include "kernel/cuda/cuda_backend.h"

#define BYTES_MAX ((uint64_t)1 << 30)
#define BYTES_MIN ((uint64_t)64 << 20)
#define LAUNCHES 10 // of which one measurement is made; the best of
#define REPEATS 4   // them counts, and the first warms up
#define THREADS 256
#define ROUNDS 2000
#define FLOPS_A_ROUND (8 * 2 * 16 * 8 * 16.0) // of a warp: ptx/measure.c

#define ARGUMENTS(...) ((void *[]){__VA_ARGS__})

struct job {
    const struct ew_cuda_device *device;
    enum ew_cuda_kernel kernel;
    struct ew_cuda_grid grid;
    void **arguments;
};

static int time_job(const struct job *job, double *seconds, struct ew_error *err)
{
    const struct ew_cuda_device *device = job->device;
    int rc = 0;

    *seconds = INFINITY;
    for (int i = 0; i < REPEATS && rc == 0; i++) {
        double started_s = ew_clock_s();

        for (int k = 0; k < LAUNCHES && rc == 0; k++)
            rc = ew_cuda_launch(device, job->kernel, job->grid, job->arguments, err);
        if (rc == 0)
            rc = ew_cuda_check(device, device->driver.cuStreamSynchronize(device->stream), "a measurement", err);
        *seconds = fmin(*seconds, (ew_clock_s() - started_s) / LAUNCHES);
    }
    return rc;
}

static int measure_reads(const struct ew_cuda_device *device, uint64_t data, uint64_t bytes, double *bytes_s,
                         struct ew_error *err)
{
    uint64_t sink = data;
    struct job job = {device, EW_CUDA_READ_ALL, {(uint32_t)device->n_multiprocessors * 8, 1, 1, THREADS},
                      ARGUMENTS(&data, &bytes, &sink)};
    double seconds;
    int rc = time_job(&job, &seconds, err);

    *bytes_s = rc ? 0 : (double)bytes / seconds;
    return rc;
}

static int measure_tiles(const struct ew_cuda_device *device, uint64_t sink, double *flops_s, struct ew_error *err)
{
    uint32_t rounds = ROUNDS, n_blocks = (uint32_t)device->n_multiprocessors * 4;
    struct job job = {device, EW_CUDA_MULTIPLY_TILES, {n_blocks, 1, 1, THREADS}, ARGUMENTS(&sink, &rounds)};
    double seconds;
    int rc = time_job(&job, &seconds, err);

    *flops_s = rc ? 0 : FLOPS_A_ROUND * ROUNDS * n_blocks * (THREADS / 32) / seconds;
    return rc;
}

int ew_cuda_measure(struct ew_cuda_device *device, struct ew_backend_speed *out, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &device->driver;
    uint64_t bytes = BYTES_MAX, data = 0;
    int rc = ew_cuda_device_load_module(device, EW_CUDA_MEASURE, err), status = EW_CUDA_ERROR_OUT_OF_MEMORY;

    *out = (struct ew_backend_speed){0};
    if (rc)
        return rc;
    for (; bytes >= BYTES_MIN && status == EW_CUDA_ERROR_OUT_OF_MEMORY; bytes /= 2)
        status = driver->cuMemAlloc_v2(&data, bytes);
    bytes *= 2;
    rc = ew_cuda_check(device, status, "taking memory for a measurement", err);
    if (rc)
        return rc;
    rc = ew_cuda_check(device, driver->cuMemsetD8Async(data, 0x3C, bytes, device->stream), "filling memory", err);
    if (rc == 0)
        rc = measure_reads(device, data, bytes, &out->read_bytes_s, err);
    if (rc == 0)
        rc = measure_tiles(device, data, &out->multiply_flops_s, err);
    (void)driver->cuMemFree_v2(data);
    return rc;
}
