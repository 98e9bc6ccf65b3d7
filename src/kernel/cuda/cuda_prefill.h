#pragma once
// Steps with more than a few tokens: products of 16-bit operands on the tensor cores. Activations are narrowed once for
// all products that take the same rows. With up to 64 rows matrices are read as they are; with more, quantised ones are
// decoded into a scratch matrix, part by part, where ptx/wgmma_coded.c does not read them as they are, too.

#include "kernel/cuda/cuda_backend.h"
#include "kernel/cuda/narrow_job.h"

#define EW_CUDA_PREFILL_TOKENS 9 // rows from which on these products are used
#define EW_CUDA_F8_TOKENS 65     // and from which on activations are quantised to e4m3 for them

// A product of a step: rows of f32 at `in`, to `out`; addresses and strides in floats. bias 0: none. With a residual
// (the wgmma tier alone), out = y_scale * product + residual_scale * residual, maybe in place.
struct ew_cuda_product {
    const struct ew_cuda_matrix *matrix;
    uint64_t in, out, bias;
    uint32_t in_stride, out_stride, n_rows;
    uint64_t residual;
    uint32_t residual_stride;
    float y_scale, residual_scale;
};

// Bytes of the two 16-bit operands: activations of the widest product, and a part of the largest quantised matrix.
void ew_cuda_prefill_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program, uint64_t n_rows,
                           uint64_t *x_bytes, uint64_t *w_bytes);
bool ew_cuda_prefill_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix,
                           uint32_t n_rows);
int ew_cuda_prefill_product(struct ew_cuda_backend *backend, const struct ew_cuda_product *product,
                            struct ew_error *err) EW_MUST_CHECK;
// The buffer at `address` was written: what was narrowed from it is of no use any more.
void ew_cuda_prefill_wrote(struct ew_cuda_backend *backend, uint64_t address);
// Narrows rows to F16, BF16 or F8, or takes what was narrowed before.
int ew_cuda_prefill_narrow(struct ew_cuda_backend *backend, const struct ew_cuda_product *product,
                           enum ew_cuda_layout as, struct ew_error *err) EW_MUST_CHECK;
// Decodes rows of a quantised matrix to f16, into w16 from `row` on.
int ew_cuda_prefill_expand(struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix, uint32_t first,
                           uint32_t rows, uint32_t row, struct ew_error *err) EW_MUST_CHECK;

// The tier of sm_90a: maps are made once the workspace has its place.
uint64_t ew_cuda_wgmma_maps_bytes(const struct ew_program *program);
int ew_cuda_wgmma_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
bool ew_cuda_wgmma_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
// `rows` rows of the matrix from `first` on, of narrowed activations.
int ew_cuda_wgmma_multiply(struct ew_cuda_backend *backend, const struct ew_cuda_product *product, uint32_t first,
                           uint32_t rows, struct ew_error *err) EW_MUST_CHECK;
// out = act(gate) * up in 16 bits, into the other x16; the activation is in the job of the fused steps.
struct ew_cuda_gate {
    struct ew_cuda_product gate, up; // out: unused
    float linear, cubic;             // as ptx/wgmma.c has it
};
int ew_cuda_wgmma_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *gate, uint64_t out_of,
                       struct ew_error *err) EW_MUST_CHECK;
// Maps of a matrix and of its activations, which stand in x16 now.
uint64_t ew_cuda_wgmma_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
uint64_t ew_cuda_wgmma_x_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
// The same for products of its codes: of its planes, and of activations with boxes of 64 tokens.
uint64_t ew_cuda_wgmma_plane_maps(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
uint64_t ew_cuda_wgmma_x_part_map(const struct ew_cuda_backend *backend, const struct ew_cuda_matrix *matrix);
// Into how many parts a tile's columns go, so that few tiles fill the GPU, too; and the sum of what they leave in
// few_partial.
uint32_t ew_cuda_wgmma_splits(const struct ew_cuda_backend *backend, const struct ew_cuda_product *product,
                              uint32_t n_tiles, uint32_t rows);
int ew_cuda_wgmma_join(struct ew_cuda_backend *backend, const struct ew_cuda_product *product, uint32_t first,
                       uint32_t rows, uint32_t n_splits, struct ew_error *err) EW_MUST_CHECK;
// The same with activations in e4m3, of matrices whose operand they are.
struct ew_codes_job ew_cuda_f8_codes(const struct ew_cuda_backend *backend, uint32_t turn, uint32_t cols,
                                     uint32_t n_rows);
int ew_cuda_f8_product(struct ew_cuda_backend *backend, const struct ew_cuda_product *product,
                       struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_f8_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *gate, uint64_t out_of,
                    struct ew_error *err) EW_MUST_CHECK;
// Quantised matrices that are read as they are (cuda_wcoded.c), of activations that were narrowed in their order.
// Planes of a matrix: of codes, scales, minima and high bits, in bytes; width 0: none. None at all: no kernel takes it.
#define EW_CUDA_WCODED_PLANES 4
struct ew_cuda_plane {
    uint64_t address;
    uint32_t width, stride, box; // of a row
};
uint32_t ew_cuda_wcoded_planes(const struct ew_cuda_matrix *matrix, struct ew_cuda_plane *out);
int ew_cuda_wcoded_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
bool ew_cuda_wcoded_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_product *product);
bool ew_cuda_wcoded_knows(enum ew_cuda_layout layout);
// Up to three products of one input and layout; both of a gate with its activation, where 64 divides the rows.
int ew_cuda_wcoded_products(struct ew_cuda_backend *backend, const struct ew_cuda_product *products, uint32_t n,
                            struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_wcoded_gate(struct ew_cuda_backend *backend, const struct ew_cuda_gate *gate, uint64_t out_of,
                        struct ew_error *err) EW_MUST_CHECK;
// Fused steps with many rows: whether the tier of sm_90a does them, and doing them.
bool ew_cuda_many_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows);
int ew_cuda_many(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                 struct ew_error *err) EW_MUST_CHECK;

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
