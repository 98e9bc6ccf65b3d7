#pragma once
// Scalar conversions between f32 and the small floating-point types, round to nearest even. Header-only: kernels of
// every ISA inline them.

#include <stdint.h>
#include <string.h>

static inline float ew_f32_of_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t ew_bits_of_f32(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return bits;
}

static inline float ew_f32_of_bf16(uint16_t h)
{
    return ew_f32_of_bits((uint32_t)h << 16);
}

static inline uint16_t ew_bf16_of_f32(float f)
{
    uint32_t bits = ew_bits_of_f32(f);

    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40); // stay a (quiet) NaN
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static inline float ew_f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1F, mantissa = h & 0x3FFu;

    if (exponent == 0x1F)
        return ew_f32_of_bits(sign | 0x7F800000u | mantissa << 13);
    if (exponent == 0) { // zero or subnormal: mantissa * 2^-24, exact in f32
        float magnitude = (float)mantissa * 0x1p-24f;

        return sign ? -magnitude : magnitude;
    }
    return ew_f32_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

static inline uint16_t ew_f16_of_f32(float f)
{
    uint32_t bits = ew_bits_of_f32(f), sign = bits >> 16 & 0x8000u, abs = bits & 0x7FFFFFFFu;

    if (abs > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u);
    if (abs >= 0x477FF000u) // rounds to 65536 or more
        return (uint16_t)(sign | 0x7C00u);
    if (abs < 0x38800000u) { // below 2^-14: let the FPU round to a multiple of 2^-24
        float shifted = ew_f32_of_bits(abs) + 0.5f;

        return (uint16_t)(sign | (ew_bits_of_f32(shifted) - 0x3F000000u));
    }
    return (uint16_t)(sign | (((abs + 0xFFFu + (abs >> 13 & 1)) >> 13) - 0x1C000u));
}

// OCP FP8 E4M3 (no infinities, NaN = 0x7F/0xFF, largest 448).
static inline float ew_f32_of_e4m3(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, low = b & 0x7Fu; // choices without branches, which vectorise
    uint32_t subnormal = ew_bits_of_f32((float)low * 0x1p-9f), normal = (low << 20) + (120u << 23);

    return ew_f32_of_bits(sign | (low == 0x7F ? 0x7FC00000u : low < 8 ? subnormal : normal));
}

// Saturates at 448; NaN stays NaN.
static inline uint8_t ew_e4m3_of_f32(float f)
{
    uint32_t bits = ew_bits_of_f32(f), sign = bits >> 24 & 0x80u, abs = bits & 0x7FFFFFFFu;

    if (abs > 0x7F800000u)
        return (uint8_t)(sign | 0x7F);
    if (abs >= 0x43E00000u) // 448 and above
        return (uint8_t)(sign | 0x7E);
    if (abs < 0x3C800000u) { // below 2^-6: multiples of 2^-9
        float shifted = ew_f32_of_bits(abs) + 0x1p14f;

        return (uint8_t)(sign | (ew_bits_of_f32(shifted) - 0x46800000u));
    }
    abs = (abs + 0x7FFFFu + (abs >> 20 & 1)) >> 20;
    abs -= 120u << 3;
    return (uint8_t)(sign | (abs > 0x7E ? 0x7E : abs));
}

// Power-of-two scale of the OCP microscaling formats: 2^(e - 127), 0xFF is NaN.
static inline float ew_f32_of_e8m0(uint8_t e)
{
    if (e == 0xFF)
        return ew_f32_of_bits(0x7FC00000u);
    return e ? ew_f32_of_bits((uint32_t)e << 23) : 0x1p-127f;
}
