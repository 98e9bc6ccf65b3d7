// Steps with several sequences: the products that cuda_fuse.c put together for one row of activations, by the kernels
// of ptx/few.c for up to 32 rows.

#include "base/assert.h"
#include "kernel/cuda/cuda_prefill.h"
#include "kernel/cuda/few_job.h"

#define TILE 16       // rows of a matrix
#define SIZES_COUNT 3 // of kernels, by token tiles: 1, 2, 4

static const enum ew_cuda_kernel KERNELS[EW_CUDA_LAYOUT_COUNT][SIZES_COUNT] = {
    [EW_CUDA_F16] = {EW_CUDA_FEW_F16_1, EW_CUDA_FEW_F16_2, EW_CUDA_FEW_F16_4},
    [EW_CUDA_BF16] = {EW_CUDA_FEW_BF16_1, EW_CUDA_FEW_BF16_2, EW_CUDA_FEW_BF16_4},
    [EW_CUDA_I8] = {EW_CUDA_FEW_I8_1, EW_CUDA_FEW_I8_2, EW_CUDA_FEW_I8_4},
    [EW_CUDA_U4] = {EW_CUDA_FEW_U4_1, EW_CUDA_FEW_U4_2, EW_CUDA_FEW_U4_4},
    [EW_CUDA_U4_MIN] = {EW_CUDA_FEW_U4_1, EW_CUDA_FEW_U4_2, EW_CUDA_FEW_U4_4},
};

uint64_t ew_cuda_few_bytes(const struct ew_program *program)
{
    uint64_t cols = 0;

    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (program->weights[i].is_matrix)
            cols = EW_MAX(cols, program->weights[i].cols);
    }
    return cols * EW_FEW_TOKENS_MAX * sizeof(uint16_t);
}

int ew_cuda_few_init(struct ew_cuda_backend *backend, struct ew_error *err)
{
    int rc = 0;

    for (int i = EW_CUDA_F16; i <= EW_CUDA_U4_MIN && rc == 0; i++)
        rc = ew_cuda_allow_shared(&backend->device, KERNELS[i][SIZES_COUNT - 1], EW_FEW_SHARED_BYTES(4), err);
    return rc;
}

static uint32_t stride_of(const struct ew_cuda_backend *backend, uint64_t address)
{
    for (uint32_t i = 0; i < backend->plan.n_buffers; i++) {
        if (backend->work.buffers[i] == address)
            return backend->plan.buffers[i].width;
    }
    return 0;
}

bool ew_cuda_few_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused,
                       const struct ew_batch *batch)
{
    const struct ew_vector_job *job = &fused->job;

    if (!fused->count || !KERNELS[job->layout][0] || job->normed || backend->trace || batch->n_tokens < 2 || batch->n_tokens > EW_FEW_TOKENS_MAX ||
        batch->n_tokens != batch->n_logits || stride_of(backend, job->x) % 4)
        return false;
    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++) {
        if (job->parts[i].rows % TILE)
            return false;
    }
    return true;
}

int ew_cuda_few(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, const struct ew_batch *batch,
                struct ew_error *err)
{
    uint32_t n_tiles = (batch->n_tokens + 7) / 8, size = n_tiles == 1 ? 0 : n_tiles == 2 ? 1 : 2;
    struct ew_cuda_grid pack = {n_tiles * 8, 1, 1, EW_FEW_THREADS};
    struct ew_cuda_grid grid = {(uint32_t)backend->device.n_multiprocessors, 1, 1, EW_FEW_THREADS,
                                EW_FEW_SHARED_BYTES(1u << size)};
    struct ew_few_job job = {
        .v = fused->job,
        .packed = backend->work.few_packed,
        .x_stride = stride_of(backend, fused->job.x),
        .residual_stride = stride_of(backend, fused->job.residual),
        .n_tokens = batch->n_tokens,
        .n_tiles = n_tiles,
    };
    int rc;

    for (uint32_t i = 0; i < EW_VECTOR_PARTS_MAX; i++)
        job.out_strides[i] = stride_of(backend, fused->job.parts[i].out);
    backend->work.narrow.of = 0;
    rc = ew_cuda_launch(&backend->device, EW_CUDA_FEW_PACK, pack, (void *[]){&job}, err);
    return rc ? rc
              : ew_cuda_launch(&backend->device, KERNELS[fused->job.layout][size], grid, (void *[]){&job}, err);
}
