// Super-blocks of 256 elements, decoding: q2_k to q6_k. Sub-blocks of 16 or 32 have small integer scales
// (and minima) under one f16 scale (and minimum) of the whole.

#include "format/quant.h"

// q2_k: scales u8[16] (low nibble scale, high nibble minimum), quants u8[64], f16 scale, f16 minimum.
static void decode_q2_k(const uint8_t *block, float *out)
{
    const uint8_t *scales = block, *quants = block + 16;
    float d = ew__f16_at(block + 80), min = ew__f16_at(block + 82);

    for (int run = 0; run < EW__SUPER / 16; run++) { // each half of 128 takes 32 bytes, two bits a quarter
        const uint8_t *q = quants + run / 8 * 32 + run % 2 * 16;
        float scale = d * (float)(scales[run] & 0x0F), minimum = min * (float)(scales[run] >> 4);

        for (int i = 0; i < 16; i++)
            out[run * 16 + i] = scale * (float)(q[i] >> (run % 8 / 2 * 2) & 3) - minimum;
    }
}

// The six-bit scale of q3_k, stored plus 32: four low bits in bytes 0 to 7, two high bits in bytes 8 to 11.
static int scale_q3_k(const uint8_t *packed, int i)
{
    int low = packed[i % 8] >> (i / 8 * 4) & 0x0F, high = packed[8 + i % 4] >> (i / 4 * 2) & 3;

    return (low | high << 4) - 32;
}

// q3_k: third bits u8[32] (set: no offset), quants u8[64], scales u8[12], f16 scale.
static void decode_q3_k(const uint8_t *block, float *out)
{
    const uint8_t *high = block, *quants = block + 32, *scales = block + 96;
    float d = ew__f16_at(block + 108);

    for (int e = 0; e < EW__SUPER; e++) {
        int q = quants[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3;

        if (!(high[e % 32] >> (e / 32) & 1))
            q -= 4;
        out[e] = d * (float)scale_q3_k(scales, e / 16) * (float)q;
    }
}

// q4_k: f16 scale, f16 minimum, scales u8[12], quants u8[128]: 32 bytes hold two sub-blocks.
static void decode_q4_k(const uint8_t *block, float *out)
{
    const uint8_t *quants = block + 16;
    float d = ew__f16_at(block), min = ew__f16_at(block + 2);

    for (uint32_t sub = 0; sub < 8; sub++) {
        uint8_t scale, minimum;

        ew__unpack_scale_min(block + 4, sub, &scale, &minimum);
        for (uint32_t i = 0; i < 32; i++) {
            int q = quants[sub / 2 * 32 + i] >> (sub % 2 * 4) & 0x0F;

            *out++ = d * (float)scale * (float)q - min * (float)minimum;
        }
    }
}

// q5_k: as q4_k, with fifth bits u8[32] before the quants; bit `sub` of byte i belongs to element i of that
// sub-block.
static void decode_q5_k(const uint8_t *block, float *out)
{
    const uint8_t *high = block + 16, *quants = block + 48;
    float d = ew__f16_at(block), min = ew__f16_at(block + 2);

    for (uint32_t sub = 0; sub < 8; sub++) {
        uint8_t scale, minimum;

        ew__unpack_scale_min(block + 4, sub, &scale, &minimum);
        for (uint32_t i = 0; i < 32; i++) {
            int q = (quants[sub / 2 * 32 + i] >> (sub % 2 * 4) & 0x0F) | (high[i] >> sub & 1) << 4;

            *out++ = d * (float)scale * (float)q - min * (float)minimum;
        }
    }
}

// q6_k: low nibbles u8[128], two high bits u8[64], scales i8[16], f16 scale; quants are stored plus 32.
static void decode_q6_k(const uint8_t *block, float *out)
{
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    float d = ew__f16_at(block + 208);

    for (int e = 0; e < EW__SUPER; e++) {
        int half = e / 128, in_half = e % 128;
        int q = (low[half * 64 + in_half % 64] >> (in_half / 64 * 4) & 0x0F) |
                (high[half * 32 + in_half % 32] >> (in_half / 32 * 2) & 3) << 4;

        out[e] = d * (float)(int8_t)scales[e / 16] * (float)(q - 32);
    }
}

EW__DEFINE_DECODE(q2_k, EW__SUPER, EW__Q2_K_BYTES)
EW__DEFINE_DECODE(q3_k, EW__SUPER, EW__Q3_K_BYTES)
EW__DEFINE_DECODE(q4_k, EW__SUPER, EW__Q4_K_BYTES)
EW__DEFINE_DECODE(q5_k, EW__SUPER, EW__Q5_K_BYTES)
EW__DEFINE_DECODE(q6_k, EW__SUPER, EW__Q6_K_BYTES)
