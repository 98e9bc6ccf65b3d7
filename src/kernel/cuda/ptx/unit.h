#pragma once
// Products of 16 bytes of codes, a unit, with one row of activations: for vector.c and chosen.c. A multiprocessor that
// reads its share of 4.2 TB/s gets 512 bytes in 29 cycles, in which it can issue 116 instructions, but only half as
// many of integers: so these are few.

#include "kernel/cuda/ptx/gpu.h"

INLINE int dot16(u32x4 a, u32x4 b, int sum)
{
    return dp4a(a.x, b.x, dp4a(a.y, b.y, dp4a(a.z, b.z, dp4a(a.w, b.w, sum))));
}

INLINE int dot16_unsigned(u32x4 a, u32x4 b, int sum)
{
    return dp4a_unsigned(a.x, b.x,
                         dp4a_unsigned(a.y, b.y, dp4a_unsigned(a.z, b.z, dp4a_unsigned(a.w, b.w, sum))));
}

// Four numbers of at most 127 / factor as codes, rounded to even: beside 1.5 * 2^23 a float's last bit counts ones, and
// its last byte is the code. Conversions would take four times as long as other instructions.
INLINE u32 four_codes(f32x4 v, float factor)
{
    v = v * factor + 12582912.0f;
    return byte_permute(byte_permute(bits_of_f32(v.x), bits_of_f32(v.y), 0x0040),
                        byte_permute(bits_of_f32(v.z), bits_of_f32(v.w), 0x0040), 0x5410);
}

// What sums of codes are multiples of: the functions below leave codes in the upper bits of bytes.
INLINE float sum_unit(u32 layout)
{
    return layout == LAYOUT_U4 || layout == LAYOUT_U4_MIN ? 1 / 16.0f : layout == LAYOUT_U6 ? 1 / 4.0f : 1;
}

// How much more codes are than what they stand for; where there are minima these multiply the sum of activations.
INLINE int code_offset(u32 layout) { return layout == LAYOUT_U4 ? 8 : layout == LAYOUT_U5 ? 16 : 1; }

// Of nibbles, 16 times the sum: high ones stay where they are.
INLINE int dot_nibbles(u32x4 w, u32x4 low, u32x4 high)
{
    return dot16(w & 0x0F0F0F0F, low, 0) * 16 + dot16_unsigned(w & 0xF0F0F0F0, high, 0);
}

// Codes of 5 bits; the bit above nibbles i of byte j is bit i of byte j of `high_bits`.
INLINE int dot_u5_codes(u32x4 w, u32 high_bits, u32x4 low, u32x4 high)
{
    int sum = 0;

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        sum = dp4a((w[i] & 0x0F0F0F0F) | (high_bits << (4 - i) & 0x10101010), low[i], sum);
        sum = dp4a((w[i] >> 4 & 0x0F0F0F0F) | (high_bits >> i & 0x10101010), high[i], sum);
    }
    return sum;
}

// Codes of 6 bits less 32, the upper ones of a byte: four times as much. Bits 4 and 5 of byte j of word i are bits
// 2 i and 2 i + 1 of byte j of one word for low nibbles, and of another for high ones. Sums of 16 columns each.
struct u6_sums {
    int low, high;
};

INLINE struct u6_sums dot_u6_codes(u32x4 w, u32x2 bits, u32x4 low, u32x4 high)
{
    struct u6_sums sums = {0, 0};

    bits ^= 0xAAAAAAAA; // less 32
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        sums.low = dp4a((w[i] << 2 & 0x3C3C3C3C) | (bits.x << (6 - 2 * i) & 0xC0C0C0C0), low[i], sums.low);
        sums.high = dp4a((w[i] >> 2 & 0x3C3C3C3C) | (bits.y << (6 - 2 * i) & 0xC0C0C0C0), high[i], sums.high);
    }
    return sums;
}

// ---- tables -------------------------------------------------------------------------------------

// What codes below 8 stand for, and the others' negatives. No byte has a sign where a table has codes of both halves:
// so byte_permute, which gives signs for nibbles from 8 on, gives zeros for the other half's.
struct halves {
    u32x2 below, above;
};

// Of LAYOUT_IQ4 and those behind it; table_of has them as numbers. IQ4 has the numbers below first: here they are all
// negated.
static const u32x4 HALVES[] = {
    {0x4153687F, 0x0A162331, 0x26190D01, 0x71594535}, // IQ4
    {0x03020100, 0x0C080604, 0x03020100, 0x0C080604}, // MX4
    {0x03020100, 0x0C080604, 0x03020100, 0x0C080604}, // NV4
    {0x01FFF9F7, 0x00000907, 0x00000000, 0x00000000}, // IQ1
    {0x002B1908, 0x00000000, 0x002B1908, 0x00000000}, // IQ2
    {0x0E0A0602, 0x1F1A1612, 0x0E0A0602, 0x1F1A1612}, // IQ3_XXS
    {0x07050301, 0x0F0D0B09, 0x07050301, 0x0F0D0B09}, // IQ3_S
    {0x01FFF9F7, 0x00000907, 0x00000000, 0x00000000}, // IQ1_16
    {0x002B1908, 0x00000000, 0x002B1908, 0x00000000}, // IQ2_16
    {0xFFFEFDFC, 0x03020100, 0x00000000, 0x00000000}, // U3_16
};

// Before a loop. Constants would be made anew in every turn, and what ptxas knows to be the same in all lanes it would
// hold in uniform registers and copy for each permutation: of what is added here (blocks have 512 threads) it does not
// know that it is nothing.
INLINE struct halves halves_of(u32 layout)
{
    u32x4 v = HALVES[layout - LAYOUT_IQ4];

    UNROLL
    for (u32 i = 0; i < 4; i++)
        v[i] += THREAD >> 9;
    return (struct halves){v.xy, v.zw};
}

INLINE float with_sign(u32 layout, float sum) { return layout == LAYOUT_IQ4 ? -sum : sum; }

// Of 16 columns, the lowest four bits first.
INLINE int dot_table_codes(const struct halves *t, u32x2 codes, u32x4 x)
{
    int below = 0, above = 0;

    UNROLL
    for (u32 i = 0; i < 2; i++) {
        u32 w = codes[i], v = w ^ 0x88888888;

        below = dp4a(byte_permute(t->below.x, t->below.y, w), x[2 * i], below);
        above = dp4a(byte_permute(t->above.x, t->above.y, v), x[2 * i], above);
        below = dp4a(byte_permute(t->below.x, t->below.y, w >> 16), x[2 * i + 1], below);
        above = dp4a(byte_permute(t->above.x, t->above.y, v >> 16), x[2 * i + 1], above);
    }
    return below - above;
}

// ---- e4m3, by the tensor cores, whose sums are f32 ------------------------------------------------

// A lane's codes and activations are of the same columns: in the tile of weights (16 rows) they are its row lane / 4,
// in that of activations (8 columns) its column lane / 4. So the diagonal of the product has the sums of eight runs of
// columns, and the rest of it is of no use. Two units share a tile of weights: the second has the rows from 8 on.
INLINE u32 has_diagonal(void) { return THREAD % 32 / 8 == THREAD % 4; }
INLINE float on_diagonal(float even, float odd) { return THREAD / 4 % 2 ? odd : even; }

// Words i of the codes with those of activations.
INLINE void multiply_e4m3(float *c, u32x4 first, u32x4 second, u32x4 low, u32x4 high, u32 i)
{
    u32 a[4] = {f16x2_of_e4m3(first[i]), f16x2_of_e4m3(second[i]), f16x2_of_e4m3(first[i] >> 16),
                f16x2_of_e4m3(second[i] >> 16)};

    mma_f16(c, a, i < 2 ? low[2 * i] : high[2 * i - 4], i < 2 ? low[2 * i + 1] : high[2 * i - 3]);
}

// The sums of both units with the same activations, where has_diagonal says so.
INLINE f32x2 dot_e4m3(u32x4 first, u32x4 second, u32x4 low, u32x4 high)
{
    float c[4] = {0};

    UNROLL
    for (u32 i = 0; i < 4; i++)
        multiply_e4m3(c, first, second, low, high, i);
    return (f32x2){on_diagonal(c[0], c[1]), on_diagonal(c[2], c[3])};
}

// The same with activations of their own: the first two of each are the first unit's.
INLINE f32x2 dot_e4m3_apart(u32x4 first, u32x4 second, const u32x4 *low, const u32x4 *high)
{
    float c[2][4] = {{0}};

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        multiply_e4m3(c[0], first, second, low[0], high[0], i);
        multiply_e4m3(c[1], first, second, low[1], high[1], i);
    }
    return (f32x2){on_diagonal(c[0][0], c[0][1]), on_diagonal(c[1][2], c[1][3])};
}
