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

// ---- weights --------------------------------------------------------------------------------------

// The layouts of kernel/cuda/cuda_layout.h, in the same order.
enum { LAYOUT_F32, LAYOUT_F16, LAYOUT_BF16, LAYOUT_I8, LAYOUT_U4, LAYOUT_U4_MIN, LAYOUT_F8 };

struct weight {
    const u8 *codes;
    const u16 *scales, *mins; // a group of 32 columns; of F8 others
};

// Of one row of F8 in f32, a number for 128 columns; in whole 16 bytes.
INLINE u32 f8_scales(u32 cols) { return (cols + 511) / 512 * 4; }

// One element; for rows that are looked up.
INLINE float weight_at(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols)
{
    u64 at = row * cols + column, group = at / 32;
    u32 code;

    switch (layout) {
    case LAYOUT_F32:
        return ((const float *)w->codes)[at];
    case LAYOUT_F16:
        return f32_of_f16(((const u16 *)w->codes)[at]);
    case LAYOUT_BF16:
        return f32_of_bits((u32)((const u16 *)w->codes)[at] << 16);
    case LAYOUT_I8:
        return (float)(i8)w->codes[at] * f32_of_f16(w->scales[group]);
    case LAYOUT_F8:
        return low_f16(f16x2_of_e4m3(w->codes[at])) * ((const float *)w->scales)[row * f8_scales(cols) + column / 128];
    default:
        code = w->codes[group * 16 + column % 16];
        code = column % 32 < 16 ? code & 15 : code >> 4;
        if (layout == LAYOUT_U4)
            return (float)((i32)code - 8) * f32_of_f16(w->scales[group]);
        return (float)code * f32_of_f16(w->scales[group]) - f32_of_f16(w->mins[group]);
    }
}

// Eight columns of a row from `column` on, which 8 divides; of layouts beyond U4_MIN.
INLINE void eight_at(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols, float *v)
{
    u32x2 codes = *(const u32x2 *)(w->codes + row * cols + column);
    float scale = ((const float *)w->scales)[row * f8_scales(cols) + column / 128];

    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 pair = f16x2_of_e4m3(codes[i / 2] >> i % 2 * 16);

        v[2 * i] = low_f16(pair) * scale;
        v[2 * i + 1] = high_f16(pair) * scale;
    }
}
