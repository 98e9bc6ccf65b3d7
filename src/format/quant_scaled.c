// Blocks that no file has as such: checkpoints keep codes, scales and zero points in tensors of their own.

#include <string.h>

#include "format/quant.h"

static float f32_at(const uint8_t *p)
{
    float value;

    memcpy(&value, p, sizeof(value));
    return value;
}

// fp8: f32 scale, 128 e4m3. A NaN counts as zero, since the kernels have no cheap way to carry it.
static void decode_fp8(const uint8_t *block, float *out)
{
    float scale = f32_at(block);

    for (int i = 0; i < EW__FP8_ELEMENTS; i++) {
        uint8_t code = block[4 + i];

        out[i] = (code & 0x7F) == 0x7F ? 0 : ew_f32_of_e4m3(code) * scale;
    }
}

// q4_zero: f16 scale, zero point u8, then nibbles of two groups of 32 as q4_0 has them.
static void decode_q4_zero(const uint8_t *block, float *out)
{
    float scale = ew__f16_at(block);
    int zero = block[2];

    for (int i = 0; i < EW__Q4_ZERO_ELEMENTS; i++) {
        int code = block[3 + i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15;

        out[i] = scale * (float)(code - zero);
    }
}

// nvfp4_s: f32 scale, then a block of nvfp4.
static void decode_nvfp4_s(const uint8_t *block, float *out)
{
    float scale = f32_at(block);

    ew__decode_nvfp4(block + 4, out, EW__NVFP4_ELEMENTS);
    for (int i = 0; i < EW__NVFP4_ELEMENTS; i++)
        out[i] *= scale;
}

EW__DEFINE_DECODE(fp8, EW__FP8_ELEMENTS, EW__FP8_BYTES)
EW__DEFINE_DECODE(q4_zero, EW__Q4_ZERO_ELEMENTS, EW__Q4_ZERO_BYTES)
EW__DEFINE_DECODE(nvfp4_s, EW__NVFP4_ELEMENTS, EW__NVFP4_S_BYTES)
