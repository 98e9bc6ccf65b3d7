#pragma once
// What a kernel of ptx/vector.c works on: products of up to four matrices with one row of activations, with what stands
// before and behind them in the program. Shared by both sides; addresses are the GPU's.

#include "kernel/cuda/score_job.h"

#include <stdint.h>

#define EW_VECTOR_PARTS_MAX 4
#define EW_VECTOR_COLS_MULTIPLE 128 // columns come in: rows of scales are in whole 8 bytes then
#define EW_VECTOR_THREADS 512
#define EW_VECTOR_COLS_SHORT (8 * EW_VECTOR_THREADS) // of rows of which a thread takes eight columns at most
#define EW_VECTOR_STATIC_BYTES 128 // of the kernel's own shared arrays, with room to spare

// How weights go through shared memory: what a warp takes at a time.
#define EW_VECTOR_COLS_U4 2048  // columns
#define EW_VECTOR_COLS_I8 1024
#define EW_VECTOR_COLS_F8 1024
#define EW_VECTOR_COLS_TABLE 2048
#define EW_VECTOR_COLS_U5 2048
#define EW_VECTOR_COLS_U6 1024
#define EW_VECTOR_COLS_HALF 512 // of f16 and bf16
// Such pieces in a warp's ring, of which all but one are under way: so few that two blocks fit a multiprocessor, up to
// so many that a block has it for itself.
#define EW_VECTOR_STAGES_MIN 4
#define EW_VECTOR_STAGES_MAX 8
#define EW_VECTOR_BYTES_U4 (1024 + 256) // codes, scales, minima
#define EW_VECTOR_BYTES_I8 (1024 + 64)  // codes, scales
#define EW_VECTOR_BYTES_F8 (1024 + 64)
#define EW_VECTOR_BYTES_TABLE (1024 + 128)
#define EW_VECTOR_BYTES_TABLE_16 (1024 + 256)
#define EW_VECTOR_BYTES_U5 (1024 + 256 + 128 + 128) // nibbles, high bits, scales, minima
#define EW_VECTOR_BYTES_U6 (512 + 256 + 128)
#define EW_VECTOR_BYTES_HALF 1024

struct ew_vector_part {
    uint64_t codes, scales, mins, bias, out; // bias 0: none
    uint64_t rows;                           // 0: there is no such part
};

enum ew_vector_norm { EW_VECTOR_PLAIN, EW_VECTOR_RMS, EW_VECTOR_LAYER };

struct ew_vector_job {
    // f32 [cols]; 0: ones, zeros. Where is_short says so, vector.c wants norm_weight in the order of columns.
    uint64_t x, norm_weight, norm_bias;
    uint64_t normed;                    // 0, or f32 [cols]: where steps behind want what was normalised
    uint64_t order;                     // 0, or u32 [cols]: which element of x each column is; normed is 0 then
    uint64_t residual;                  // 0, or f32 [rows]: out = y_scale * product + residual_scale * residual
    struct ew_vector_part parts[EW_VECTOR_PARTS_MAX];
    uint32_t rows, cols;                // of the output: of all parts, or of each of the two of a GLU
    uint32_t norm, is_glu;
    float eps, norm_offset, y_scale, residual_scale;
    uint32_t act;
    float limit, alpha;
    uint32_t layout;                    // enum ew_cuda_layout, of all parts
    uint32_t n_stages;                  // EW_VECTOR_STAGES_MIN to _MAX
    uint32_t n_early;                   // pieces asked for before activations are there, less than n_stages
    struct ew_score_job score;          // of one part that is no GLU's, for the kernels that make scores
};
