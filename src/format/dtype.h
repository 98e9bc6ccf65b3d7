#pragma once
// Element types of tensors in files, and the plain reference codec of every block format: the oracle of all kernels.

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

enum ew_dtype {
    EW_DTYPE_F32, EW_DTYPE_F16, EW_DTYPE_BF16, EW_DTYPE_F64,
    EW_DTYPE_I8, EW_DTYPE_I16, EW_DTYPE_I32, EW_DTYPE_I64, EW_DTYPE_U8, EW_DTYPE_BOOL,
    EW_DTYPE_F8_E4M3, EW_DTYPE_F8_E5M2,
    EW_DTYPE_Q4_0, EW_DTYPE_Q4_1, EW_DTYPE_Q5_0, EW_DTYPE_Q5_1, EW_DTYPE_Q8_0,
    EW_DTYPE_Q2_K, EW_DTYPE_Q3_K, EW_DTYPE_Q4_K, EW_DTYPE_Q5_K, EW_DTYPE_Q6_K,
    EW_DTYPE_IQ4_NL, EW_DTYPE_IQ4_XS, EW_DTYPE_IQ2_XXS, EW_DTYPE_IQ2_XS, EW_DTYPE_IQ2_S,
    EW_DTYPE_IQ3_XXS, EW_DTYPE_IQ3_S, EW_DTYPE_IQ1_S, EW_DTYPE_IQ1_M,
    EW_DTYPE_TQ1_0, EW_DTYPE_TQ2_0, EW_DTYPE_MXFP4, EW_DTYPE_NVFP4,
    // In memory only: what checkpoints keep in several tensors, as blocks that a row can be made of (quant_scaled.c).
    EW_DTYPE_FP8,     // e4m3 with a scale for 128 columns, which may be that of the row or of the whole tensor
    EW_DTYPE_Q4_ZERO, // 4 bits with a scale and a zero point for 64 columns: AWQ, GPTQ
    EW_DTYPE_NVFP4_S, // nvfp4 and the scale of the whole tensor, the same in all blocks of a row
    EW_DTYPE_COUNT
};

struct ew_dtype_info {
    const char *name;          // as on our command line: "f16", "q4_k", ...
    const char *safetensors;   // as in a safetensors header, or NULL
    int gguf_type;             // ggml_type number, or -1
    uint32_t block_elements;   // elements of one block; 1 for plain types
    uint32_t block_bytes;
    // Decodes n elements (a multiple of block_elements) to f32. NULL for types that hold no weights.
    void (*decode)(const void *blocks, float *out, size_t n);
    // Encodes n f32 (a multiple of block_elements); NULL where quantize does not write the type. weight may be NULL or
    // an importance for each element.
    void (*encode)(const float *in, const float *weight, void *blocks, size_t n);
};

const struct ew_dtype_info *ew_dtype_info(enum ew_dtype dtype);
const char *ew_dtype_name(enum ew_dtype dtype);
int ew_dtype_by_name(struct ew_str name);        // an ew_dtype, or -1
int ew_dtype_by_gguf(uint32_t ggml_type);        // likewise
int ew_dtype_by_safetensors(struct ew_str name); // likewise
// Bytes of a row of n elements; 0 where the block size does not divide n or the product overflows.
uint64_t ew_dtype_row_bytes(enum ew_dtype dtype, uint64_t n);
