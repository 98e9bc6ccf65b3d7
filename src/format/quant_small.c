// Blocks of 32 elements with one scale (q4_0, q5_0, q8_0) or a scale and a minimum (q4_1, q5_1).
//
// Four-bit fields hold elements i (low) and i + 16 (high) in byte i; the fifth bits of all 32 are one
// little-endian u32.

#include "format/quant.h"

static void decode_q4_0(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((block[2 + i] & 0x0F) - 8);
        out[i + 16] = d * (float)((block[2 + i] >> 4) - 8);
    }
}

static void decode_q4_1(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block), min = ew__f16_at(block + 2);

    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(block[4 + i] & 0x0F) + min;
        out[i + 16] = d * (float)(block[4 + i] >> 4) + min;
    }
}

// Element i of 32 five-bit fields.
static int five_bits(uint32_t high, const uint8_t *low, int i)
{
    int four = i < 16 ? low[i] & 0x0F : low[i - 16] >> 4;

    return four | (int)(high >> i & 1) << 4;
}

static void decode_q5_0(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);
    uint32_t high = ew__u32_at(block + 2);

    for (int i = 0; i < EW__BLOCK; i++)
        out[i] = d * (float)(five_bits(high, block + 6, i) - 16);
}

static void decode_q5_1(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block), min = ew__f16_at(block + 2);
    uint32_t high = ew__u32_at(block + 4);

    for (int i = 0; i < EW__BLOCK; i++)
        out[i] = d * (float)five_bits(high, block + 8, i) + min;
}

static void decode_q8_0(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int i = 0; i < EW__BLOCK; i++)
        out[i] = d * (float)(int8_t)block[2 + i];
}

EW__DEFINE_DECODE(q4_0, EW__BLOCK, EW__Q4_0_BYTES)
EW__DEFINE_DECODE(q4_1, EW__BLOCK, EW__Q4_1_BYTES)
EW__DEFINE_DECODE(q5_0, EW__BLOCK, EW__Q5_0_BYTES)
EW__DEFINE_DECODE(q5_1, EW__BLOCK, EW__Q5_1_BYTES)
EW__DEFINE_DECODE(q8_0, EW__BLOCK, EW__Q8_0_BYTES)
