#pragma once
// How matrices lie in the GPU's memory: planes of rows, so that a warp reads neighbouring bytes. Codes of the quantised
// layouts stand apart from their scales, one f16 a group of 32 columns:
//
//   I8      codes i8 [rows, cols]                          value = scale * code
//   U4      codes [rows, cols / 2]: byte i of a group      value = scale * (code - 8)
//           holds columns i (low nibble) and i + 16
//   U4_MIN  as U4, and minima f16                          value = scale * code - minimum
//   F8      codes e4m3 [rows, cols], scales f32, one for   value = scale * code
//           128 columns, rows of them padded to 16 bytes;
//           the first of each row once more, in the place
//           of minima
//   tables  codes [rows, cols / 2]: byte i holds columns   value = scale * table[code], tables in ptx/gpu.h
//           2 i (low nibble) and 2 i + 1; scales f16; of
//           MX4 bf16; of NV4 two e4m3, for 16 columns
//           each, and a factor f32 of each row in the
//           place of minima
//   .._16   as before, a scale f16 for 16 columns
//   U5      rows of nibbles as U4, each followed by a      value = scale * (code - 16)
//           word a group: bit i of byte j is bit 4 of
//           column 4 i + j
//   U5_MIN  and minima f16                                 value = scale * code - minimum
//   U6      likewise two words a group, for 16 columns     value = scale * (code - 32)
//           each: bits 2 i, 2 i + 1 of byte j are bits 4,
//           5 of column 4 i + j; a scale for 16 columns
//
// What a file has in two levels is multiplied out and rounded to f16: scales of the K types and most of the I types,
// minima of q4_k, q5_k and q4_zero. That costs a relative 2^-11 at most, as rounding activations to f16 does.

#include "kernel/ops.h"

enum ew_cuda_layout { // as in ptx/gpu.h
    EW_CUDA_F32,
    EW_CUDA_F16,
    EW_CUDA_BF16,
    EW_CUDA_I8,
    EW_CUDA_U4,
    EW_CUDA_U4_MIN,
    EW_CUDA_F8,
    EW_CUDA_IQ4, // iq4_nl, iq4_xs
    EW_CUDA_MX4,
    EW_CUDA_NV4,
    EW_CUDA_IQ1, // iq1_s
    EW_CUDA_IQ2, // iq2_xxs
    EW_CUDA_IQ3_XXS,
    EW_CUDA_IQ3_S,
    EW_CUDA_IQ1_16, // iq1_m
    EW_CUDA_IQ2_16, // iq2_xs, iq2_s
    EW_CUDA_U3_16,  // q3_k
    EW_CUDA_U5,
    EW_CUDA_U5_MIN,
    EW_CUDA_U6,
    EW_CUDA_LAYOUT_COUNT
};

#define EW_CUDA_GROUP 32

// What the scales of F8 are, as far as that makes products with many rows simpler.
enum ew_cuda_f8_form {
    EW_CUDA_F8_ANY,
    EW_CUDA_F8_ROWS,   // one for each row
    EW_CUDA_F8_BLOCKS, // one for 128 rows and 128 columns
};

struct ew_cuda_matrix {
    enum ew_cuda_layout layout;
    enum ew_cuda_f8_form f8_form; // once products with e4m3 activations are possible
    uint32_t rows, cols;
    uint64_t codes, scales, mins; // addresses; 0 where unused
    uint64_t order;               // 0, or u32 [cols]: which element of the activations each column is
};

const char *ew_cuda_layout_name(enum ew_cuda_layout layout);
// What a weight is read from: its columns may have another order there, where all its products take activations so.
const struct ew_weight_source *ew_cuda_source_of(const struct ew_program *program, uint32_t weight, bool reference);
// The layout that it gets; *exact is false where its file type is expanded. `reference`: f32 always.
enum ew_cuda_layout ew_cuda_layout_of(const struct ew_program *program, uint32_t weight, bool reference, bool *exact);
// Bytes of one row in each plane.
uint64_t ew_cuda_code_bytes(enum ew_cuda_layout layout, uint64_t cols);
uint64_t ew_cuda_scale_bytes(enum ew_cuda_layout layout, uint64_t cols);
uint64_t ew_cuda_min_bytes(enum ew_cuda_layout layout, uint64_t cols);
// Whether rows lie in memory as they do in the file.
bool ew_cuda_pack_is_copy(enum ew_cuda_layout layout, enum ew_dtype dtype);
// Converts one row as the file has it. `scratch` holds cols floats.
void ew_cuda_pack_row(enum ew_cuda_layout layout, enum ew_dtype dtype, const uint8_t *row, uint64_t cols,
                      uint8_t *codes, uint8_t *scales, uint8_t *mins, float *scratch);

static inline bool ew_cuda_layout_is_quantised(enum ew_cuda_layout layout)
{
    return layout >= EW_CUDA_I8;
}

// Whether steps of their own make 8-bit activations for products with it.
static inline bool ew_cuda_layout_wants_q8(enum ew_cuda_layout layout)
{
    return layout >= EW_CUDA_I8 && layout <= EW_CUDA_U4_MIN;
}
