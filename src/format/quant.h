#pragma once
// The block codecs behind ew_dtype_info, shared by the files quant_*.c and dtype.c only.
//
// Source of all layouts: the GGUF specification and the type definitions of the ggml project (docs/gguf.md,
// ggml-common.h), which define them. Blocks are little-endian, packed and unaligned. Decoding accepts any
// bytes: a NaN scale gives NaN values, nothing more.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/half.h"

#define EW__BLOCK 32   // elements of the small blocks
#define EW__SUPER 256  // elements of the super-blocks

enum ew__block_bytes {
    EW__Q4_0_BYTES = 2 + 16,
    EW__Q4_1_BYTES = 4 + 16,
    EW__Q5_0_BYTES = 2 + 4 + 16,
    EW__Q5_1_BYTES = 4 + 4 + 16,
    EW__Q8_0_BYTES = 2 + 32,
    EW__Q2_K_BYTES = 16 + 64 + 4,
    EW__Q3_K_BYTES = 32 + 64 + 12 + 2,
    EW__Q4_K_BYTES = 4 + 12 + 128,
    EW__Q5_K_BYTES = 4 + 12 + 32 + 128,
    EW__Q6_K_BYTES = 128 + 64 + 16 + 2,
    EW__IQ4_NL_BYTES = 2 + 16,
    EW__IQ4_XS_BYTES = 2 + 2 + 4 + 128,
    EW__IQ2_XXS_BYTES = 2 + 64,
    EW__IQ2_XS_BYTES = 2 + 64 + 8,
    EW__IQ2_S_BYTES = 2 + 32 + 32 + 8 + 8,
    EW__IQ3_XXS_BYTES = 2 + 64 + 32,
    EW__IQ3_S_BYTES = 2 + 64 + 8 + 32 + 4,
    EW__IQ1_S_BYTES = 2 + 32 + 16,
    EW__IQ1_M_BYTES = 32 + 16 + 8,
    EW__TQ1_0_BYTES = 48 + 4 + 2,
    EW__TQ2_0_BYTES = 64 + 2,
    EW__MXFP4_BYTES = 1 + 16,
    EW__NVFP4_ELEMENTS = 64,
    EW__NVFP4_BYTES = 4 + 32,
    EW__NVFP4_S_BYTES = 4 + EW__NVFP4_BYTES,
    EW__FP8_ELEMENTS = 128,
    EW__FP8_BYTES = 4 + 128,
    EW__Q4_ZERO_ELEMENTS = 64,
    EW__Q4_ZERO_BYTES = 2 + 1 + 32,
};

static inline uint16_t ew__u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t ew__u32_at(const uint8_t *p)
{
    return ew__u16_at(p) | (uint32_t)ew__u16_at(p + 2) << 16;
}

static inline float ew__f16_at(const uint8_t *p)
{
    return ew_f32_of_f16(ew__u16_at(p));
}

static inline void ew__put_u16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

// Defines ew__decode_TYPE over decode_TYPE(block, out), the static function of one block.
#define EW__DEFINE_DECODE(type, elements, bytes)                                                  \
    void ew__decode_##type(const void *blocks, float *out, size_t n)                              \
    {                                                                                             \
        const uint8_t *block = blocks;                                                            \
                                                                                                  \
        EW_ASSERT(n % (elements) == 0);                                                           \
        for (size_t i = 0; i < n; i += (elements), block += (bytes))                              \
            decode_##type(block, out + i);                                                        \
    }

// Likewise ew__encode_TYPE over encode_TYPE(in, weight or NULL, block).
#define EW__DEFINE_ENCODE(type, elements, bytes)                                                  \
    void ew__encode_##type(const float *in, const float *weight, void *blocks, size_t n)          \
    {                                                                                             \
        uint8_t *block = blocks;                                                                  \
                                                                                                  \
        EW_ASSERT(n % (elements) == 0);                                                           \
        for (size_t i = 0; i < n; i += (elements), block += (bytes))                              \
            encode_##type(in + i, weight ? weight + i : NULL, block);                             \
    }

typedef void ew__decode_fn(const void *blocks, float *out, size_t n);
typedef void ew__encode_fn(const float *in, const float *weight, void *blocks, size_t n);

ew__decode_fn ew__decode_f32, ew__decode_f16, ew__decode_bf16, ew__decode_f64, ew__decode_f8_e4m3, ew__decode_f8_e5m2;
ew__decode_fn ew__decode_q4_0, ew__decode_q4_1, ew__decode_q5_0, ew__decode_q5_1, ew__decode_q8_0;
ew__decode_fn ew__decode_q2_k, ew__decode_q3_k, ew__decode_q4_k, ew__decode_q5_k, ew__decode_q6_k;
ew__decode_fn ew__decode_iq4_nl, ew__decode_iq4_xs, ew__decode_mxfp4, ew__decode_nvfp4;
ew__decode_fn ew__decode_tq1_0, ew__decode_tq2_0;
ew__decode_fn ew__decode_fp8, ew__decode_q4_zero, ew__decode_nvfp4_s;
ew__decode_fn ew__decode_iq2_xxs, ew__decode_iq2_xs, ew__decode_iq2_s, ew__decode_iq3_xxs, ew__decode_iq3_s;
ew__decode_fn ew__decode_iq1_s, ew__decode_iq1_m;

ew__encode_fn ew__encode_f32, ew__encode_f16, ew__encode_bf16, ew__encode_f8_e4m3;
ew__encode_fn ew__encode_q4_0, ew__encode_q4_1, ew__encode_q5_0, ew__encode_q5_1, ew__encode_q8_0;
ew__encode_fn ew__encode_q4_k, ew__encode_q5_k, ew__encode_q6_k;

// Scale and minimum of sub-block i of eight in the twelve bytes that q4_k and q5_k share: six bits each.
static inline void ew__unpack_scale_min(const uint8_t *scales, uint32_t i, uint8_t *scale, uint8_t *min)
{
    if (i < 4) {
        *scale = scales[i] & 0x3F;
        *min = scales[i + 4] & 0x3F;
    } else {
        *scale = (uint8_t)((scales[i + 4] & 0x0F) | (scales[i - 4] >> 2 & 0x30));
        *min = (uint8_t)(scales[i + 4] >> 4 | (scales[i] >> 2 & 0x30));
    }
}

// The lattices of the iq types (quant_grids.c). Two bits an element, eight elements an entry ...
extern const uint16_t ew__grid_iq2_xxs[256], ew__grid_iq2_xs[512], ew__grid_iq2_s[1024], ew__grid_iq1[2048];
// ... or four bits an element (0 to 7), four elements an entry. Element 0 is in the lowest bits.
extern const uint16_t ew__grid_iq3_xxs[256], ew__grid_iq3_s[512];
