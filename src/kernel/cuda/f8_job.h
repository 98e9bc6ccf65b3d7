#pragma once
// What products with many rows of activations in e4m3 work on (ptx/wgmma_f8.c, ptx/gemm_f8.c). Activations have a scale
// for a token and 128 columns, matrices one for each row or one for each 128 x 128. Shared by both sides; addresses are
// the GPU's, strides in elements.

#include <stdint.h>

#define EW_F8_GROUP 128        // columns that share a scale, and rows of a block of the matrix that do
#define EW_F8_TOKENS 128       // of a tile
#define EW_F8_ROWS 256         // of a tile of wgmma_f8; with a gate, half of them are those of `up`
#define EW_F8_STAGES 4
#define EW_F8_THREADS 384
#define EW_F8_STAGE_BYTES ((EW_F8_TOKENS + EW_F8_ROWS) * EW_F8_GROUP)

#define EW_F8_MMA_ROWS 128     // of a tile of gemm_f8
#define EW_F8_MMA_STAGES 3
#define EW_F8_MMA_THREADS 256
#define EW_F8_MMA_STAGE_BYTES ((EW_F8_TOKENS + EW_F8_MMA_ROWS) * EW_F8_GROUP + EW_F8_TOKENS * 4)

// Of a matrix [rows, cols]; of `up` where there is a gate.
struct ew_f8_operand {
    uint64_t map;        // for the tensor copy engine: boxes of 128 columns and 128 rows
    uint64_t codes;      // e4m3 [rows, cols]
    uint64_t blocks;     // f32 [rows, cols / 128 rounded up to fours]; 0: there are scales of rows
    uint64_t row_scales; // f32 [rows]; 0: there are blocks
    uint64_t bias;       // f32 [rows]; 0: none
};

struct ew_f8_job {
    struct ew_f8_operand w, up;
    uint64_t x_map, x;   // e4m3 [n_tokens, cols]
    uint64_t x_scales;   // f32 [cols / 128, scale_stride]
    uint64_t out;        // f32 [n_tokens, out_stride]; gated: e4m3 [n_tokens, rows]
    uint64_t out_scales; // gated: f32 [rows / 128, scale_stride]
    uint64_t residual;   // 0, or out = y_scale * (product + bias) + residual_scale * residual
    float y_scale, residual_scale;
    float gate_linear, gate_cubic; // as in ptx/gate.h
    uint32_t out_stride, residual_stride, scale_stride, rows, cols, n_tokens;
    uint32_t once;     // 1 (ptx/wgmma_f8.c)
    uint32_t n_splits; // of a tile's columns; the n-th result is n_tokens * out_stride on
};
