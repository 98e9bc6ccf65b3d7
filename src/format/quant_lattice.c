// The iq types below four bits: groups of four or eight elements are indices into a lattice
// (quant_grids.c), with signs apart.

#include "format/quant.h"

static const float g_values_iq2[4] = {8, 25, 43, 0}; // of a lattice digit; 3 does not occur
static const float g_values_iq3_xxs[8] = {4, 12, 20, 28, 36, 44, 52, 62};
static const float g_values_iq3_s[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// Seven sign bits stand for eight: the number of negative elements is even.
static uint8_t even_signs(uint32_t seven)
{
    return (uint8_t)(seven | (uint32_t)(__builtin_popcount(seven) & 1) << 7);
}

static float sign_of(uint8_t signs, int i)
{
    return signs >> i & 1 ? -1.0f : 1.0f;
}

// Eight elements of an iq2 lattice point.
static void put_iq2(uint16_t point, uint8_t signs, float d, float *out)
{
    for (int i = 0; i < 8; i++)
        out[i] = d * g_values_iq2[point >> (2 * i) & 3] * sign_of(signs, i);
}

// Four elements of an iq3 lattice point; signs has theirs in its low bits.
static void put_iq3(const float *values, uint16_t point, uint8_t signs, float d, float *out)
{
    for (int i = 0; i < 4; i++)
        out[i] = d * values[point >> (4 * i) & 7] * sign_of(signs, i);
}

// iq2_xxs: f16 scale, then for each 32 elements four indices u8 and a u32 of four times seven signs and a
// four-bit scale.
static void decode_iq2_xxs(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int sub = 0; sub < 8; sub++) {
        const uint8_t *index = block + 2 + 8 * sub;
        uint32_t signs = ew__u32_at(index + 4);
        float scale = d * (0.5f + (float)(signs >> 28)) * 0.25f;

        for (int i = 0; i < 4; i++)
            put_iq2(ew__grid_iq2_xxs[index[i]], even_signs(signs >> (7 * i) & 0x7F), scale, out + 32 * sub + 8 * i);
    }
}

// iq2_xs: f16 scale, u16[32] of nine index and seven sign bits, four-bit scales for each 16 elements.
static void decode_iq2_xs(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int group = 0; group < 32; group++) {
        uint16_t code = ew__u16_at(block + 2 + 2 * group);
        int scale = block[66 + group / 4] >> (group / 2 % 2 * 4) & 0x0F;

        put_iq2(ew__grid_iq2_xs[code & 0x1FF], even_signs(code >> 9), d * (0.5f + (float)scale) * 0.25f,
                out + 8 * group);
    }
}

// iq2_s: f16 scale, low index bits u8[32], signs u8[32], high index bits u8[8], scales u8[8].
static void decode_iq2_s(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int group = 0; group < 32; group++) {
        int index = block[2 + group] | (block[66 + group / 4] >> (group % 4 * 2) & 3) << 8;
        int scale = block[74 + group / 4] >> (group / 2 % 2 * 4) & 0x0F;

        put_iq2(ew__grid_iq2_s[index], block[34 + group], d * (0.5f + (float)scale) * 0.25f, out + 8 * group);
    }
}

// iq3_xxs: f16 scale, indices u8[64], then for each 32 elements a u32 of signs and scale as in iq2_xxs.
static void decode_iq3_xxs(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int group = 0; group < 32; group++) {
        uint32_t packed = ew__u32_at(block + 66 + group / 4 * 4);
        uint8_t signs = even_signs(packed >> (group % 4 * 7) & 0x7F);
        float scale = d * (0.5f + (float)(packed >> 28)) * 0.5f;
        const uint8_t *index = block + 2 + 2 * group;

        put_iq3(g_values_iq3_xxs, ew__grid_iq3_xxs[index[0]], signs, scale, out + 8 * group);
        put_iq3(g_values_iq3_xxs, ew__grid_iq3_xxs[index[1]], signs >> 4, scale, out + 8 * group + 4);
    }
}

// iq3_s: f16 scale, low index bits u8[64], ninth bits u8[8], signs u8[32], four-bit scales for each 32
// elements.
static void decode_iq3_s(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int four = 0; four < 64; four++) {
        int index = block[2 + four] | (block[66 + four / 8] >> (four % 8) & 1) << 8;
        int scale = block[106 + four / 16] >> (four / 8 % 2 * 4) & 0x0F;

        put_iq3(g_values_iq3_s, ew__grid_iq3_s[index], block[74 + four / 2] >> (four % 2 * 4),
                d * (float)(1 + 2 * scale), out + 4 * four);
    }
}

// Eight elements in {-1, 0, 1}, shifted by an eighth up or down.
static void put_iq1(uint16_t point, bool down, float d, float *out)
{
    for (int i = 0; i < 8; i++)
        out[i] = d * ((float)((point >> (2 * i) & 3) - 1) + (down ? -0.125f : 0.125f));
}

// iq1_s: f16 scale, low index bits u8[32], then for each 32 elements a u16: four times three high bits,
// scale, shift.
static void decode_iq1_s(const uint8_t *block, float *out)
{
    float d = ew__f16_at(block);

    for (int group = 0; group < 32; group++) {
        uint16_t high = ew__u16_at(block + 34 + group / 4 * 2);
        int index = block[2 + group] | (high >> (group % 4 * 3) & 7) << 8;

        put_iq1(ew__grid_iq1[index], high >> 15, d * (float)(2 * (high >> 12 & 7) + 1), out + 8 * group);
    }
}

// iq1_m: low index bits u8[32], nibbles of three high bits and the shift u8[16], u16[4] of four scales each
// for 16 elements; the f16 scale is spread over the top nibbles of those four.
static void decode_iq1_m(const uint8_t *block, float *out)
{
    const uint8_t *scales = block + 48;
    uint16_t bits = (uint16_t)(scales[1] >> 4 | (scales[3] & 0xF0) | (scales[5] & 0xF0) << 4 | (scales[7] & 0xF0) << 8);
    float d = ew_f32_of_f16(bits);

    for (int group = 0; group < 32; group++) {
        int high = block[32 + group / 2] >> (group % 2 * 4) & 0x0F, sixteen = group / 2;
        int scale = ew__u16_at(scales + sixteen / 4 * 2) >> (sixteen % 4 * 3) & 7;

        put_iq1(ew__grid_iq1[block[group] | (high & 7) << 8], high & 8, d * (float)(2 * scale + 1), out + 8 * group);
    }
}

EW__DEFINE_DECODE(iq2_xxs, EW__SUPER, EW__IQ2_XXS_BYTES)
EW__DEFINE_DECODE(iq2_xs, EW__SUPER, EW__IQ2_XS_BYTES)
EW__DEFINE_DECODE(iq2_s, EW__SUPER, EW__IQ2_S_BYTES)
EW__DEFINE_DECODE(iq3_xxs, EW__SUPER, EW__IQ3_XXS_BYTES)
EW__DEFINE_DECODE(iq3_s, EW__SUPER, EW__IQ3_S_BYTES)
EW__DEFINE_DECODE(iq1_s, EW__SUPER, EW__IQ1_S_BYTES)
EW__DEFINE_DECODE(iq1_m, EW__SUPER, EW__IQ1_M_BYTES)
