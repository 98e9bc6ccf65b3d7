#pragma once
// Pinned memory that is filled and copied to the GPU by turns: while one slab is under way, the next is filled.

#include "kernel/cuda/cuda_device.h"

#define EW_CUDA_SLABS 2

struct ew_cuda_slab {
    uint8_t *data; // pinned
    void *copied;  // event: behind the last copy out of it
    bool is_busy;
};

struct ew_cuda_upload {
    const struct ew_cuda_device *device;
    void *stream;
    struct ew_cuda_slab slabs[EW_CUDA_SLABS];
    uint32_t turn;
    bool is_under_way; // a copy, perhaps
};

int ew_cuda_upload_init(struct ew_cuda_upload *upload, const struct ew_cuda_device *device, uint64_t slab_bytes,
                        struct ew_error *err) EW_MUST_CHECK;
// The next slab to fill, once what was copied out of it has arrived.
int ew_cuda_upload_next(struct ew_cuda_upload *upload, uint8_t **data, struct ew_error *err) EW_MUST_CHECK;
// Starts a copy out of that slab.
int ew_cuda_upload_copy(struct ew_cuda_upload *upload, uint64_t to, const uint8_t *from, uint64_t bytes,
                        struct ew_error *err) EW_MUST_CHECK;
// Behind the last copy out of that slab.
int ew_cuda_upload_turn(struct ew_cuda_upload *upload, struct ew_error *err) EW_MUST_CHECK;
// Until all copies have arrived.
int ew_cuda_upload_wait(struct ew_cuda_upload *upload, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_upload_fini(struct ew_cuda_upload *upload); // also of one that was not made whole
