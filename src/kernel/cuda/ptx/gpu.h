#pragma once
// What freestanding C for the GPU lacks: the few functions of mathematics that the kernels need (relative 1e-6 or
// absolute 2e-7, whichever is larger), and the layouts of weights.

#include "kernel/cuda/ptx/machine.h"

// How a kernel begins that has nothing to do before what it reads is there.
INLINE void kernel_begin(void)
{
    next_may_start();
    previous_wait();
}

#define NEG_INFINITY (-__builtin_inff())

INLINE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
INLINE u32 mul_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
INLINE u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
INLINE float min_f32(float a, float b) { return a < b ? a : b; }
INLINE float max_f32(float a, float b) { return a > b ? a : b; }
INLINE float abs_f32(float x) { return __builtin_fabsf(x); }

INLINE float f32_of_bits(u32 bits)
{
    union { u32 i; float f; } x = {bits};

    return x.f;
}

INLINE u32 bits_of_f32(float f)
{
    union { float f; u32 i; } x = {f};

    return x.i;
}

INLINE float low_f16(u32 v) { return f32_of_f16((u16)v); }
INLINE float high_f16(u32 v) { return f32_of_f16((u16)(v >> 16)); }
INLINE float low_bf16(u32 v) { return f32_of_bits(v << 16); }
INLINE float high_bf16(u32 v) { return f32_of_bits(v & 0xFFFF0000u); }

INLINE float shuffle_xor(float v, u32 lanes)
{
    return f32_of_bits(shuffle_xor_u32(bits_of_f32(v), lanes));
}

INLINE float warp_sum(float v)
{
    UNROLL
    for (u32 o = 16; o; o >>= 1)
        v += shuffle_xor(v, o);
    return v;
}

INLINE float warp_max(float v)
{
    UNROLL
    for (u32 o = 16; o; o >>= 1)
        v = max_f32(v, shuffle_xor(v, o));
    return v;
}

// The product with log2(e) in two parts, so that large arguments keep their fraction.
INLINE float exp_f32(float x)
{
    float n = x * 1.44269504f, low = __builtin_fmaf(x, 1.44269504f, -n) + x * 1.92596299e-8f;

    if (x == NEG_INFINITY)
        return 0;
    return exp2_approx(n) * (1 + low * 0.69314718f);
}

INLINE float tanh_f32(float x)
{
    float a = abs_f32(x), x2 = x * x, e;

    if (a < 0.3f) // series: the difference below would lose digits
        return x * (1 + x2 * (-0.333333333f + x2 * (0.133333333f + x2 * (-0.0539682540f +
               x2 * (0.0218694885f + x2 * -0.00886323552f)))));
    e = a > 15 ? 0 : exp_f32(-2 * a);
    e = (1 - e) / (1 + e);
    return x < 0 ? -e : e;
}

// Abramowitz and Stegun, 7.1.26; its absolute error is 1.5e-7.
INLINE float erf_f32(float x)
{
    float a = abs_f32(x), t = 1 / (1 + 0.3275911f * a), r;

    r = 1 - t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)))) *
        exp_f32(-a * a);
    return x < 0 ? -r : r;
}

INLINE float rsqrt_f32(float x) { return 1 / sqrt_f32(x); }

// Four columns of a row, for a matrix whose columns have another order: `order` says which of the row's each is. NULL:
// they are as in the row.
INLINE f32x4 four_in_order(const float *row, const u32 *order, u32 column)
{
    u32x4 at;

    if (!order)
        return *(const f32x4 *)(row + column);
    at = *(const u32x4 *)(order + column);
    return (f32x4){row[at.x], row[at.y], row[at.z], row[at.w]};
}

// ---- weights --------------------------------------------------------------------------------------

// The layouts of kernel/cuda/cuda_layout.h, in the same order.
enum {
    LAYOUT_F32, LAYOUT_F16, LAYOUT_BF16, LAYOUT_I8, LAYOUT_U4, LAYOUT_U4_MIN, LAYOUT_F8,
    LAYOUT_IQ4, LAYOUT_MX4, LAYOUT_NV4, LAYOUT_IQ1, LAYOUT_IQ2, LAYOUT_IQ3_XXS, LAYOUT_IQ3_S, // tables
    LAYOUT_IQ1_16, LAYOUT_IQ2_16, LAYOUT_U3_16, // tables, with scales for 16 columns
    LAYOUT_U5, LAYOUT_U5_MIN, LAYOUT_U6,
};

struct weight {
    const u8 *codes;
    const u16 *scales, *mins; // a group of 32 columns; what others have, cuda_layout.h says
};

INLINE u32 is_table(u32 layout) { return layout >= LAYOUT_IQ4 && layout <= LAYOUT_U3_16; }
// Whether scales are for 16 columns.
INLINE u32 is_halved(u32 layout) { return (layout >= LAYOUT_IQ1_16 && layout <= LAYOUT_U3_16) || layout == LAYOUT_U6; }
// The e4m3 of bytes 1 and 3 with their bits where f16 has its own: 2^8 times too small.
INLINE u32 e4m3_as_f16(u32 codes) { return (codes & 0x80008000) | (codes >> 1 & 0x3F803F80); }
#define E4M3_UNIT 256.0f
// Two f16, 2^8 times too small and at most 1.75, rounded to e4m3 (to even): in bytes 0 and 2.
INLINE u32 e4m3_of_f16(u32 pair)
{
    pair += 0x003F003F + (pair >> 7 & 0x00010001);
    return (pair >> 7 & 0x007F007F) | (pair >> 8 & 0x00800080);
}

// Four numbers, multiplied first by what brings the greatest of their group to 1.75.
INLINE u32 e4m3x4_of(f32x4 x, float factor)
{
    x *= factor;
    return byte_permute(e4m3_of_f16(f16x2_of(x.x, x.y)), e4m3_of_f16(f16x2_of(x.z, x.w)), 0x6420);
}

// That factor, and the scale of the codes, which reach 448.
INLINE float e4m3_factor(float most) { return most > 1e-30f ? 1.75f / most : 0; }
INLINE float e4m3_scale(float most) { return most * (1 / 448.0f); }

// Of one row of F8 in f32, a number for 128 columns; in whole 16 bytes.
INLINE u32 f8_scales(u32 cols) { return (cols + 511) / 512 * 4; }

// Bytes of codes in a row.
INLINE u32 code_bytes(u32 layout, u32 cols)
{
    if (layout <= LAYOUT_BF16)
        return layout == LAYOUT_F32 ? cols * 4 : cols * 2;
    if (layout == LAYOUT_I8 || layout == LAYOUT_F8)
        return cols;
    return layout == LAYOUT_U6 ? cols / 4 * 3 : layout >= LAYOUT_U5 ? cols / 8 * 5 : cols / 2;
}

// Scales in a row, counted in 16 bits.
INLINE u32 scale_words(u32 layout, u32 cols)
{
    return layout == LAYOUT_F8 ? f8_scales(cols) * 2 : is_halved(layout) ? cols / 16 : cols / 32;
}

// What the 16 codes of a table stand for, four bytes each.
INLINE u32x4 table_of(u32 layout)
{
    switch (layout) {
    case LAYOUT_IQ4: // -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
        return (u32x4){0xBFAD9881, 0xF6EADDCF, 0x26190D01, 0x71594535};
    case LAYOUT_MX4: // e2m1, doubled: 0 1 2 3 4 6 8 12, then less than zero
    case LAYOUT_NV4:
        return (u32x4){0x03020100, 0x0C080604, 0xFDFEFF00, 0xF4F8FAFC};
    case LAYOUT_IQ1: // -9 -7 -1 1 7 9
    case LAYOUT_IQ1_16:
        return (u32x4){0x01FFF9F7, 0x00000907, 0, 0};
    case LAYOUT_IQ2: // 8 25 43, and from code 8 on less than zero
    case LAYOUT_IQ2_16:
        return (u32x4){0x002B1908, 0, 0x00D5E7F8, 0};
    case LAYOUT_IQ3_XXS: // 2 6 10 14 18 22 26 31, likewise
        return (u32x4){0x0E0A0602, 0x1F1A1612, 0xF2F6FAFE, 0xE1E6EAEE};
    case LAYOUT_IQ3_S: // 1 3 5 7 9 11 13 15, likewise
        return (u32x4){0x07050301, 0x0F0D0B09, 0xF9FBFDFF, 0xF1F3F5F7};
    default: // -4 to 3
        return (u32x4){0xFFFEFDFC, 0x03020100, 0, 0};
    }
}

// What eight codes stand for, the lowest four bits first: the tables' halves are looked up by three bits each, and the
// fourth chooses.
INLINE u32x2 look_up(u32x4 table, u32 codes)
{
    u32 at = codes & 0x77777777, pick = 0x32103210 | (codes >> 1 & 0x44444444);
    u32 first = byte_permute(byte_permute(table.x, table.y, at & 0xFFFF), byte_permute(table.z, table.w, at & 0xFFFF),
                             pick & 0xFFFF);
    u32 second = byte_permute(byte_permute(table.x, table.y, at >> 16), byte_permute(table.z, table.w, at >> 16),
                              pick >> 16);

    return (u32x2){first, second};
}

// Both scales of a group of 32 columns of a table, from the 16 or 32 bits that it has.
INLINE f32x2 table_scales(u32 layout, u32 bits)
{
    if (layout == LAYOUT_MX4)
        return (f32x2){low_bf16(bits), low_bf16(bits)};
    if (layout == LAYOUT_NV4)
        bits = f16x2_of_e4m3(bits);
    return (f32x2){low_f16(bits), is_halved(layout) || layout == LAYOUT_NV4 ? high_f16(bits) : low_f16(bits)};
}

// ---- any layout, eight columns at a time ----------------------------------------------------------

INLINE void eight_of_table(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols, float *v)
{
    u32 group = column / 32, is_second = column % 32 / 16;
    u32x2 codes = look_up(table_of(layout), *(const u32 *)(w->codes + row * (cols / 2) + column / 2));
    const u16 *at = w->scales + row * scale_words(layout, cols) + (group << is_halved(layout));
    f32x2 scales = table_scales(layout, is_halved(layout) ? *(const u32 *)at : *at);
    float scale = is_second ? scales.y : scales.x;

    if (layout == LAYOUT_NV4)
        scale *= ((const float *)w->mins)[row];
    UNROLL
    for (u32 i = 0; i < 8; i++)
        v[i] = (float)(i8)(codes[i / 4] >> i % 4 * 8) * scale;
}

// Nibbles of U4's order, and above them one or two bits.
INLINE void eight_of_planes(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols, float *v)
{
    u32 group = column / 32, part = column % 32 / 8, bits = layout == LAYOUT_U6 ? 2 : 1;
    const u8 *codes = w->codes + row * code_bytes(layout, cols);
    const u32 *low = (const u32 *)(codes + group * 16 + part % 2 * 8);
    const u32 *high = (const u32 *)(codes + cols / 2 + group * 4 * bits) + (bits == 2 ? part / 2 : 0);
    const u16 *scales = w->scales + row * scale_words(layout, cols);
    float scale = f32_of_f16(scales[bits == 2 ? column / 16 : group]);
    float min = layout == LAYOUT_U5_MIN ? f32_of_f16(w->mins[row * (cols / 32) + group])
                                        : scale * (bits == 2 ? 32 : 16);

    UNROLL
    for (u32 i = 0; i < 8; i++) {
        u32 word = bits == 2 ? part % 2 * 2 + i / 4 : part * 2 + i / 4; // of high bits, `bits` of each byte
        u32 code = (low[i / 4] >> (i % 4 * 8 + part / 2 * 4) & 15) |
                   (*high >> (i % 4 * 8 + word * bits) & ((1u << bits) - 1)) << 4;

        v[i] = (float)code * scale - min;
    }
}

// Of layouts beyond U4_MIN; 8 divides the column.
INLINE void eight_at(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols, float *v)
{
    u32x2 codes;
    float scale;

    if (is_table(layout)) {
        eight_of_table(layout, w, row, column, cols, v);
        return;
    }
    if (layout >= LAYOUT_U5) {
        eight_of_planes(layout, w, row, column, cols, v);
        return;
    }
    codes = *(const u32x2 *)(w->codes + row * cols + column);
    scale = ((const float *)w->scales)[row * f8_scales(cols) + column / 128];
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 pair = f16x2_of_e4m3(codes[i / 2] >> i % 2 * 16);

        v[2 * i] = low_f16(pair) * scale;
        v[2 * i + 1] = high_f16(pair) * scale;
    }
}

INLINE float one_of_eight(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols)
{
    float v[8], one = 0;

    eight_at(layout, w, row, column & ~7u, cols, v);
    UNROLL
    for (u32 i = 0; i < 8; i++)
        one = column % 8 == i ? v[i] : one;
    return one;
}

// One element; for rows that are looked up.
INLINE float weight_at(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols)
{
    u64 at = row * cols + column, group = at / 32;
    u32 code;

    if (layout > LAYOUT_U4_MIN)
        return one_of_eight(layout, w, row, column, cols);
    switch (layout) {
    case LAYOUT_F32:
        return ((const float *)w->codes)[at];
    case LAYOUT_F16:
        return f32_of_f16(((const u16 *)w->codes)[at]);
    case LAYOUT_BF16:
        return f32_of_bits((u32)((const u16 *)w->codes)[at] << 16);
    case LAYOUT_I8:
        return (float)(i8)w->codes[at] * f32_of_f16(w->scales[group]);
    default:
        code = w->codes[group * 16 + column % 16];
        code = column % 32 < 16 ? code & 15 : code >> 4;
        if (layout == LAYOUT_U4)
            return (float)((i32)code - 8) * f32_of_f16(w->scales[group]);
        return (float)code * f32_of_f16(w->scales[group]) - f32_of_f16(w->mins[group]);
    }
}
