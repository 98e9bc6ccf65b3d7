#pragma once
// What the kernels of ptx/wgmma_coded.c work on: products of quantised matrices of one input with rows of activations
// in f16, or the two of a gate. Shared by both sides; addresses are the GPU's, strides in elements.

#include <stdint.h>

#define EW_WCODED_THREADS 384
#define EW_WCODED_ROWS 256  // of a tile; with a gate half of them are the gate's
#define EW_WCODED_BOX 128   // of them, of one copy
#define EW_WCODED_TOKENS 64 // of one copy
#define EW_WCODED_STEP 64   // columns at a time
#define EW_WCODED_SPAN 4    // steps whose scales come at once
#define EW_WCODED_STAGES 6
#define EW_WCODED_SLOTS 3 // of scales: what the stages hold spans at most so many
#define EW_WCODED_PARTS 4
#define EW_WCODED_COLS_MULTIPLE 256 // a span's scales are 16 bytes, and rows begin at multiples of that
#define EW_WCODED_MAP_BYTES 128

struct ew_wcoded_part {
    uint64_t maps;    // of codes, scales, minima and high bits, one after the other
    uint64_t factors; // 0, or f32 [rows]
    uint64_t bias;    // 0, or f32 [rows]
    uint64_t out;     // f32; of a gate f16, in the order of the next product
    uint32_t rows, out_stride;
};

struct ew_wcoded_job {
    uint64_t x_map;
    uint64_t residual; // 0, or f32: out = y_scale * product + residual_scale * residual; of one part
    uint64_t partial;  // f32 [n_splits, n_tokens, rows of all parts]; without factors, bias and residual
    struct ew_wcoded_part parts[EW_WCODED_PARTS]; // without rows: none
    uint32_t layout, cols, n_tokens, n_splits;
    uint32_t rows; // of all parts
    uint32_t residual_stride;
    float y_scale, residual_scale, gate_linear, gate_cubic;
};
