// Plain element types: one value after the other.

#include "format/quant.h"

#include <string.h>

void ew__decode_f32(const void *blocks, float *out, size_t n)
{
    if (n > 0)
        memcpy(out, blocks, n * sizeof(*out));
}

void ew__decode_f16(const void *blocks, float *out, size_t n)
{
    const uint8_t *at = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = ew__f16_at(at + 2 * i);
}

void ew__decode_bf16(const void *blocks, float *out, size_t n)
{
    const uint8_t *at = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = ew_f32_of_bf16(ew__u16_at(at + 2 * i));
}

void ew__decode_f64(const void *blocks, float *out, size_t n)
{
    const uint8_t *at = blocks;

    for (size_t i = 0; i < n; i++) {
        double value;

        memcpy(&value, at + 8 * i, sizeof(value));
        out[i] = (float)value;
    }
}

void ew__decode_f8_e4m3(const void *blocks, float *out, size_t n)
{
    const uint8_t *at = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = ew_f32_of_e4m3(at[i]);
}

// E5M2 is the upper byte of an f16.
void ew__decode_f8_e5m2(const void *blocks, float *out, size_t n)
{
    const uint8_t *at = blocks;

    for (size_t i = 0; i < n; i++)
        out[i] = ew_f32_of_f16((uint16_t)(at[i] << 8));
}

void ew__encode_f32(const float *in, const float *weight, void *blocks, size_t n)
{
    (void)weight;
    if (n > 0)
        memcpy(blocks, in, n * sizeof(*in));
}

void ew__encode_f16(const float *in, const float *weight, void *blocks, size_t n)
{
    uint8_t *at = blocks;

    (void)weight;
    for (size_t i = 0; i < n; i++)
        ew__put_u16(at + 2 * i, ew_f16_of_f32(in[i]));
}

void ew__encode_bf16(const float *in, const float *weight, void *blocks, size_t n)
{
    uint8_t *at = blocks;

    (void)weight;
    for (size_t i = 0; i < n; i++)
        ew__put_u16(at + 2 * i, ew_bf16_of_f32(in[i]));
}

void ew__encode_f8_e4m3(const float *in, const float *weight, void *blocks, size_t n)
{
    uint8_t *at = blocks;

    (void)weight;
    for (size_t i = 0; i < n; i++)
        at[i] = ew_e4m3_of_f32(in[i]);
}
