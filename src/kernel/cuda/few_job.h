#pragma once
// What the kernels of ptx/few.c work on: the products of vector_job.h with several rows of activations. Shared by both
// sides; addresses are the GPU's, strides in floats.

#include "kernel/cuda/vector_job.h"

#define EW_FEW_THREADS 256
#define EW_FEW_TOKENS_MAX 32
#define EW_FEW_TILES 4 // of 16 matrix rows, that a block has under way at once

// Of sums that the warps have in shared memory for up to n_tiles times eight tokens.
#define EW_FEW_SHARED_BYTES(n_tiles) (EW_FEW_THREADS / 32 * EW_FEW_TILES * 16 * ((n_tiles) * 8 + 1) * 4)

struct ew_few_job {
    struct ew_vector_job v;
    uint64_t packed; // activations in 16 bits, in the order in which the tensor cores take them
    uint32_t x_stride, residual_stride, n_tokens, n_tiles; // tiles of eight tokens
    uint32_t out_strides[EW_VECTOR_PARTS_MAX];
};
