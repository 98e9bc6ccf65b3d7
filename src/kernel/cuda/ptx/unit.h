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

// byte_permute takes the lower three bits of a nibble for the number of a byte, and gives that byte's sign eight times
// where the fourth is set. So codes are looked up in the half of the table that has those below 8, and as complements
// in the other one, which is in reverse order: of the two bytes one is what the code stands for, and the other one the
// sign of some byte of the wrong half. Halves are of one sign (or the one above is empty): the negative one gives -1
// for the other's codes, which stand for one less than is written here.
struct halves {
    u32x2 below, above;
    u32 minus; // -1, with which complements are made
};

// Of LAYOUT_IQ4 and those behind it; table_of has them as numbers. E2M1 has no -0 here (cuda_layout.c).
static const u32x4 HALVES[] = {
    {0xBFAD9881, 0xF6EADDCF, 0x36465A72, 0x020E1A27}, // IQ4
    {0x04030201, 0x0D090705, 0xFCFAF8F4, 0xFFFFFEFD}, // MX4
    {0x04030201, 0x0D090705, 0xFCFAF8F4, 0xFFFFFEFD}, // NV4
    {0x01FFF9F7, 0x00000907, 0x00000000, 0x00000000}, // IQ1
    {0x012C1A09, 0x01010101, 0xFFFFFFFF, 0xF8E7D5FF}, // IQ2
    {0x0F0B0703, 0x201B1713, 0xEEEAE6E1, 0xFEFAF6F2}, // IQ3_XXS
    {0x08060402, 0x100E0C0A, 0xF7F5F3F1, 0xFFFDFBF9}, // IQ3_S
    {0x01FFF9F7, 0x00000907, 0x00000000, 0x00000000}, // IQ1_16
    {0x012C1A09, 0x01010101, 0xFFFFFFFF, 0xF8E7D5FF}, // IQ2_16
    {0xFFFEFDFC, 0x03020100, 0x00000000, 0x00000000}, // U3_16
};

// Before a loop. Constants would be made anew in every turn, and what ptxas knows to be the same in all lanes it would
// hold in uniform registers and copy for each permutation: of what is added here (blocks have 512 threads) it does not
// know that it is nothing.
//
// minus: -1, or THE_MINUS, which is the same where there is a register for it: complements by multiplication leave
// permutations and shifts to the unit that does these.
#define THE_MINUS (0xFFFFFFFF + (THREAD >> 9))
INLINE struct halves halves_of(u32 layout, u32 minus)
{
    u32x4 v = HALVES[layout - LAYOUT_IQ4];

    UNROLL
    for (u32 i = 0; i < 4; i++)
        v[i] += THREAD >> 9;
    return (struct halves){v.xy, v.zw, minus};
}

// A sum of codes as a float's bits: it begins at 1.5 * 2^23, beside which the last bit counts ones, and needs no
// conversion.
#define SUM_BEGIN 0x4B400000
INLINE float float_of_sum(int sum) { return f32_of_bits((u32)sum) - 12582912.0f; }

// Of 16 columns, the lowest four bits first, added to `sum`.
INLINE int dot_table_codes(const struct halves *t, u32x2 codes, u32x4 x, int sum)
{
    UNROLL
    for (u32 i = 0; i < 2; i++) {
        u32 first = codes[i], second = first >> 16;

        sum = dp4a(byte_permute(t->below.x, t->below.y, first), x[2 * i], sum);
        sum = dp4a(byte_permute(t->above.x, t->above.y, first * t->minus + t->minus), x[2 * i], sum);
        sum = dp4a(byte_permute(t->below.x, t->below.y, second), x[2 * i + 1], sum);
        sum = dp4a(byte_permute(t->above.x, t->above.y, second * t->minus + t->minus), x[2 * i + 1], sum);
    }
    return sum;
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
