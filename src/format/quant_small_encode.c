// Encoders of the 32-element blocks; the layouts stand in quant_small.c.

#include "format/quant.h"
#include "format/quant_fit.h"

#include <math.h>

// Fits a scale (and a minimum where the type has one), rounds them to the f16 that the block stores, and
// codes the values.
static struct ew__fit fit_block(const float *in, const float *weight, int lo, int hi, bool with_min, uint8_t *codes)
{
    struct ew__fit fit = {.lo = lo, .hi = hi};
    float x[EW__BLOCK], w[EW__BLOCK];

    ew__fit_load(in, weight, EW__BLOCK, x, w);
    if (with_min)
        ew__fit_scale_min(&fit, x, w, EW__BLOCK, false);
    else
        ew__fit_scale(&fit, x, w, EW__BLOCK);
    fit.scale = ew__fit_round(fit.scale);
    fit.min = ew__fit_round(fit.min);
    ew__fit_codes(&fit, x, EW__BLOCK, codes);
    return fit;
}

static void put_f16(uint8_t *at, float value)
{
    ew__put_u16(at, ew_f16_of_f32(value));
}

static void put_low_nibbles(uint8_t *at, const uint8_t *codes)
{
    for (int i = 0; i < 16; i++)
        at[i] = (uint8_t)((codes[i] & 0x0F) | codes[i + 16] << 4);
}

static void put_fifth_bits(uint8_t *at, const uint8_t *codes)
{
    for (int i = 0; i < 4; i++)
        at[i] = 0;
    for (int i = 0; i < EW__BLOCK; i++)
        at[i / 8] |= (uint8_t)((codes[i] >> 4 & 1) << (i % 8));
}

static void encode_q4_0(const float *in, const float *weight, uint8_t *block)
{
    uint8_t codes[EW__BLOCK];

    put_f16(block, fit_block(in, weight, -8, 7, false, codes).scale);
    put_low_nibbles(block + 2, codes);
}

static void encode_q4_1(const float *in, const float *weight, uint8_t *block)
{
    uint8_t codes[EW__BLOCK];
    struct ew__fit fit = fit_block(in, weight, 0, 15, true, codes);

    put_f16(block, fit.scale);
    put_f16(block + 2, fit.min);
    put_low_nibbles(block + 4, codes);
}

static void encode_q5_0(const float *in, const float *weight, uint8_t *block)
{
    uint8_t codes[EW__BLOCK];

    put_f16(block, fit_block(in, weight, -16, 15, false, codes).scale);
    put_fifth_bits(block + 2, codes);
    put_low_nibbles(block + 6, codes);
}

static void encode_q5_1(const float *in, const float *weight, uint8_t *block)
{
    uint8_t codes[EW__BLOCK];
    struct ew__fit fit = fit_block(in, weight, 0, 31, true, codes);

    put_f16(block, fit.scale);
    put_f16(block + 2, fit.min);
    put_fifth_bits(block + 4, codes);
    put_low_nibbles(block + 8, codes);
}

// With 255 codes a search gains nothing: the largest magnitude becomes 127, as every writer of the format
// does it, so that encoding what was decoded gives the same bits again.
static void encode_q8_0(const float *in, const float *weight, uint8_t *block)
{
    struct ew__fit fit = {.lo = -127, .hi = 127};
    float x[EW__BLOCK], w[EW__BLOCK], largest = 0;
    uint8_t codes[EW__BLOCK];

    ew__fit_load(in, weight, EW__BLOCK, x, w);
    for (int i = 0; i < EW__BLOCK; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    fit.scale = ew__fit_round(largest / 127);
    ew__fit_codes(&fit, x, EW__BLOCK, codes);
    put_f16(block, fit.scale);
    for (int i = 0; i < EW__BLOCK; i++)
        block[2 + i] = (uint8_t)(codes[i] - 127);
}

EW__DEFINE_ENCODE(q4_0, EW__BLOCK, EW__Q4_0_BYTES)
EW__DEFINE_ENCODE(q4_1, EW__BLOCK, EW__Q4_1_BYTES)
EW__DEFINE_ENCODE(q5_0, EW__BLOCK, EW__Q5_0_BYTES)
EW__DEFINE_ENCODE(q5_1, EW__BLOCK, EW__Q5_1_BYTES)
EW__DEFINE_ENCODE(q8_0, EW__BLOCK, EW__Q8_0_BYTES)
