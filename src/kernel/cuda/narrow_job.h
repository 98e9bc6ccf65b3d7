#pragma once
// What the kernels of ptx/expand.c that leave the activations of large products work on. Shared by both sides;
// addresses are the GPU's, strides in elements.

#include <stdint.h>

// A norm of whole rows (EW_OP_NORM).
struct ew_norm_job {
    uint64_t in, weight, bias; // f32; 0: none
    uint64_t normed;           // 0, or where the result goes in f32, too, as its columns are in `in`
    uint64_t order;            // u32 [cols] (cuda_layout.h); 0: none
    uint32_t in_stride, normed_stride, cols;
    float eps, weight_offset;
    uint32_t is_layer;
};

// Activations in e4m3 (f8_job.h). cols is a multiple of 128.
struct ew_codes_job {
    uint64_t codes;  // [rows, cols]
    uint64_t scales; // f32 [cols / 128, scale_stride]
    uint32_t cols, scale_stride;
};
