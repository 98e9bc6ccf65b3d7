#pragma once
// Steps with more than a few tokens: products of 16-bit operands on the tensor cores. Activations are narrowed once for
// all products that take the same rows. With up to 64 rows matrices are read as they are; with more, quantised ones are
// decoded into a scratch matrix, part by part.

#include "kernel/cuda/cuda_backend.h"

#define EW_CUDA_PREFILL_TOKENS 9 // rows from which on these products are used

// A product of a step: rows of f32 at `in`, to `out`; addresses and strides in floats. bias 0: none.
struct ew_cuda_product {
    const struct ew_cuda_matrix *matrix;
    uint64_t in, out, bias;
    uint32_t in_stride, out_stride, n_rows;
};

// Bytes of the two 16-bit operands: activations of the widest product, and a part of the largest quantised matrix.
void ew_cuda_prefill_bytes(const struct ew_program *program, bool reference, uint64_t n_rows, uint64_t *x_bytes,
                           uint64_t *w_bytes);
bool ew_cuda_prefill_takes(const struct ew_cuda_matrix *matrix, uint32_t n_rows);
int ew_cuda_prefill_product(struct ew_cuda_backend *backend, const struct ew_cuda_product *product,
                            struct ew_error *err) EW_MUST_CHECK;
// The buffer at `address` was written: what was narrowed from it is of no use any more.
void ew_cuda_prefill_wrote(struct ew_cuda_backend *backend, uint64_t address);

// Rows of a matrix that are decoded at a time.
uint32_t ew_cuda_prefill_part(uint64_t rows, uint64_t cols);

// The tier of sm_90a: maps are made once the workspace has its place.
uint64_t ew_cuda_wgmma_maps_bytes(const struct ew_program *program);
int ew_cuda_wgmma_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
bool ew_cuda_wgmma_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
// As `multiply` of the base tier: `rows` rows of the matrix from `first` on, of narrowed activations.
int ew_cuda_wgmma_multiply(struct ew_cuda_backend *backend, const struct ew_cuda_product *product, uint32_t first,
                           uint32_t rows, struct ew_error *err) EW_MUST_CHECK;

// Whether a step's attention goes to the kernels for prompts.
bool ew_cuda_flash_takes(const struct ew_cuda_backend *backend, const struct ew_op *op, const struct ew_batch *batch,
                         uint32_t q_stride, uint32_t out_stride);
// Rows of queries and of the result; `op` is the index of the program's op.
struct ew_cuda_queries {
    uint32_t op;
    uint64_t q, out;
    uint32_t q_stride, out_stride;
};
int ew_cuda_flash(struct ew_cuda_backend *backend, const struct ew_batch *batch, const struct ew_cuda_queries *queries,
                  struct ew_error *err) EW_MUST_CHECK;
// Loads the kernels for the type of caches that the limits have.
int ew_cuda_flash_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
