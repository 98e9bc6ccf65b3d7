// Types whose four-bit (or ternary) codes stand for values of a small table: iq4_nl, iq4_xs, mxfp4, nvfp4,
// tq1_0, tq2_0.

#include "format/quant.h"

static const int8_t g_values_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// E2M1 of the OCP microscaling formats (MX v1.0), doubled so that it is whole; the scales are halved in return.
static const int8_t g_values_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Expands bytes of two codes each: the low nibbles come first, then the high ones.
static void expand(const int8_t *values, const uint8_t *codes, int n_bytes, float d, float *out)
{
    for (int i = 0; i < n_bytes; i++) {
        out[i] = d * (float)values[codes[i] & 0x0F];
        out[n_bytes + i] = d * (float)values[codes[i] >> 4];
    }
}

static void decode_iq4_nl(const uint8_t *block, float *out)
{
    expand(g_values_iq4, block + 2, 16, ew__f16_at(block), out);
}

// iq4_xs: f16 scale, two high bits of the eight scales u16, low nibbles u8[4], codes u8[128]; scales are
// stored plus 32.
static void decode_iq4_xs(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);
    uint16_t high = ew__u16_at(block + 2);

    for (int sub = 0; sub < 8; sub++) {
        int scale = (block[4 + sub / 2] >> (sub % 2 * 4) & 0x0F) | (high >> (2 * sub) & 3) << 4;

        expand(g_values_iq4, block + 8 + 16 * sub, 16, d * (float)(scale - 32), out + 32 * sub);
    }
}

// Half of the power-of-two scale 2^(e - 127). Subnormal for the two smallest; 0xFF is a number here, as the
// format's reference has it.
static float half_e8m0(uint8_t e)
{
    return ew_f32_of_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static void decode_mxfp4(const uint8_t *block, float *out)
{
    expand(g_values_e2m1, block + 1, 16, half_e8m0(block[0]), out);
}

// Half of an unsigned E4M3 scale: bit 7 is ignored, 0x7F (NaN) counts as zero.
static float half_ue4m3(uint8_t e)
{
    if (e == 0x7F)
        return 0;
    if ((e & 0x7F) == 0x7F) // not NaN here: 0xFF reads as 480
        return 240;
    return 0.5f * ew_f32_of_e4m3(e & 0x7F);
}

// nvfp4: four scales, then 8 bytes of codes for each 16 elements.
static void decode_nvfp4(const uint8_t *block, float *out)
{
    for (int sub = 0; sub < 4; sub++)
        expand(g_values_e2m1, block + 4 + 8 * sub, 8, half_ue4m3(block[sub]), out + 16 * sub);
}

// Five ternary digits in a byte are a fixed-point fraction of 243: multiplying by 3^k brings digit k to the
// top.
static void expand_ternary(const uint8_t *codes, int n_bytes, int n_digits, float d, float *out)
{
    for (int digit = 0, power = 1; digit < n_digits; digit++, power *= 3)
        for (int i = 0; i < n_bytes; i++) {
            int q = (uint8_t)(codes[i] * power) * 3 >> 8;

            *out++ = d * (float)(q - 1);
        }
}

// tq1_0: 48 bytes of five digits (32 and 16 bytes interleaved apart), 4 bytes of four, f16 scale.
static void decode_tq1_0(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block + 52);

    expand_ternary(block, 32, 5, d, out);
    expand_ternary(block + 32, 16, 5, d, out + 160);
    expand_ternary(block + 48, 4, 4, d, out + 240);
}

static void decode_tq2_0(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block + 64);

    for (int e = 0; e < EW__SUPER; e++)
        out[e] = d * (float)((block[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3) - 1);
}

EW__DEFINE_DECODE(iq4_nl, EW__BLOCK, EW__IQ4_NL_BYTES)
EW__DEFINE_DECODE(iq4_xs, EW__SUPER, EW__IQ4_XS_BYTES)
EW__DEFINE_DECODE(mxfp4, EW__BLOCK, EW__MXFP4_BYTES)
EW__DEFINE_DECODE(nvfp4, EW__NVFP4_ELEMENTS, EW__NVFP4_BYTES)
EW__DEFINE_DECODE(tq1_0, EW__SUPER, EW__TQ1_0_BYTES)
EW__DEFINE_DECODE(tq2_0, EW__SUPER, EW__TQ2_0_BYTES)
