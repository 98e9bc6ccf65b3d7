// Encoders of the 256-element super-blocks q4_k, q5_k and q6_k; the layouts stand in quant_super.c.
//
// In three steps: every sub-block finds its own scale (and minimum); those become small integers under one
// f16 scale; then the integers are moved by one up or down where that lowers the error, and the f16 scales
// are solved again for what was chosen.

#include "format/quant.h"
#include "format/quant_fit.h"

#include <math.h>

#define ROUNDS 2 // of the last step; twice as many lower the rms error by 0.2 %

// A super-block on its way: element e is scale * sub_scale[s] * q - min * sub_min[s].
struct super {
    int n_subs, sub_len;
    int lo, hi;                     // of the codes
    int scale_lo, scale_hi, min_hi; // of the sub-blocks' integers; min_hi 0: the type has no minima
    float x[EW__SUPER], w[EW__SUPER];
    float scale, min; // as f16 will have them
    int sub_scale[16], sub_min[16];
};

static struct ew__fit fit_of(const struct super *super, int sub_scale, int sub_min)
{
    return (struct ew__fit){super->scale * (float)sub_scale, -(super->min * (float)sub_min), super->lo, super->hi};
}

static float sub_error(const struct super *super, int sub, int sub_scale, int sub_min)
{
    struct ew__fit fit = fit_of(super, sub_scale, sub_min);

    return ew__fit_error(&fit, super->x + sub * super->sub_len, super->w + sub * super->sub_len, super->sub_len);
}

static float super_error(const struct super *super)
{
    float error = 0;

    for (int sub = 0; sub < super->n_subs; sub++)
        error += sub_error(super, sub, super->sub_scale[sub], super->sub_min[sub]);
    return error;
}

static int whole(float value, int lo, int hi)
{
    return !(value > (float)lo) ? lo : value >= (float)hi ? hi : (int)lrintf(value);
}

// Steps one and two.
static void start(struct super *super)
{
    float scales[16], mins[16], scale_most = 0, min_most = 0;

    for (int sub = 0; sub < super->n_subs; sub++) {
        struct ew__fit fit = {.lo = super->lo, .hi = super->hi};
        const float *x = super->x + sub * super->sub_len, *w = super->w + sub * super->sub_len;

        if (super->min_hi)
            ew__fit_scale_min(&fit, x, w, super->sub_len, true);
        else
            ew__fit_scale(&fit, x, w, super->sub_len);
        scales[sub] = fit.scale;
        mins[sub] = -fit.min;
        scale_most = fabsf(fit.scale) > fabsf(scale_most) ? fit.scale : scale_most;
        min_most = mins[sub] > min_most ? mins[sub] : min_most;
    }
    // Signed integers reach one further below zero: the largest magnitude goes there.
    super->scale = ew__fit_round(scale_most / (float)(super->scale_lo < 0 ? super->scale_lo : super->scale_hi));
    super->min = super->min_hi ? ew__fit_round(min_most / (float)super->min_hi) : 0;
    for (int sub = 0; sub < super->n_subs; sub++) {
        super->sub_scale[sub] =
            super->scale == 0 ? 0 : whole(scales[sub] / super->scale, super->scale_lo, super->scale_hi);
        super->sub_min[sub] = super->min == 0 ? 0 : whole(mins[sub] / super->min, 0, super->min_hi);
    }
}

// Moves the integers of one sub-block to the best of their neighbours.
static void improve_sub(struct super *super, int sub)
{
    int scale_at = super->sub_scale[sub], min_at = super->sub_min[sub];
    float best = sub_error(super, sub, scale_at, min_at);

    for (int ds = -1; ds <= 1; ds++)
        for (int dm = -1; dm <= 1; dm++) {
            int s = scale_at + ds, m = min_at + dm;
            float error;

            if (s < super->scale_lo || s > super->scale_hi || m < 0 || m > super->min_hi)
                continue;
            error = sub_error(super, sub, s, m);
            if (error < best) {
                best = error;
                super->sub_scale[sub] = s;
                super->sub_min[sub] = m;
            }
        }
}

// Solves the two f16 scales for the codes and integers as they stand: x = scale * a - min * b with a =
// sub_scale * q, b = sub_min.
static void improve_scales(struct super *super)
{
    struct super trial = *super;
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0, determinant;

    for (int sub = 0; sub < super->n_subs; sub++) {
        struct ew__fit fit = fit_of(super, super->sub_scale[sub], super->sub_min[sub]);
        uint8_t codes[EW__BLOCK];

        ew__fit_codes(&fit, super->x + sub * super->sub_len, super->sub_len, codes);
        for (int i = 0; i < super->sub_len; i++) {
            double a = (double)super->sub_scale[sub] * (codes[i] + super->lo), b = super->sub_min[sub];
            double x = super->x[sub * super->sub_len + i], w = super->w[sub * super->sub_len + i];

            aa += w * a * a;
            ab += w * a * b;
            bb += w * b * b;
            ax += w * a * x;
            bx += w * b * x;
        }
    }
    determinant = aa * bb - ab * ab;
    if (bb > 0 && determinant > 1e-6 * aa * bb) {
        trial.scale = ew__fit_round((float)((bb * ax - ab * bx) / determinant));
        trial.min = ew__fit_round((float)((ab * ax - aa * bx) / determinant));
    } else if (aa > 0) {
        trial.scale = ew__fit_round((float)((ax + ab * super->min) / aa));
    }
    if (trial.min >= 0 && super_error(&trial) < super_error(super))
        *super = trial;
}

static void fit_super(struct super *super, const float *in, const float *weight)
{
    ew__fit_load(in, weight, EW__SUPER, super->x, super->w);
    start(super);
    for (int round = 0; round < ROUNDS; round++) {
        for (int sub = 0; sub < super->n_subs; sub++)
            improve_sub(super, sub);
        improve_scales(super);
    }
}

static void super_codes(const struct super *super, uint8_t *codes)
{
    for (int sub = 0; sub < super->n_subs; sub++) {
        struct ew__fit fit = fit_of(super, super->sub_scale[sub], super->sub_min[sub]);

        ew__fit_codes(&fit, super->x + sub * super->sub_len, super->sub_len, codes + sub * super->sub_len);
    }
}

// The head that q4_k and q5_k share; ew__unpack_scale_min reads the twelve bytes.
static void put_head(uint8_t *block, const struct super *super)
{
    uint8_t *packed = block + 4;

    ew__put_u16(block, ew_f16_of_f32(super->scale));
    ew__put_u16(block + 2, ew_f16_of_f32(super->min));
    for (int i = 0; i < 4; i++) {
        packed[i] = (uint8_t)(super->sub_scale[i] | (super->sub_scale[i + 4] & 0x30) << 2);
        packed[i + 4] = (uint8_t)(super->sub_min[i] | (super->sub_min[i + 4] & 0x30) << 2);
        packed[i + 8] = (uint8_t)((super->sub_scale[i + 4] & 0x0F) | (super->sub_min[i + 4] & 0x0F) << 4);
    }
}

// Sub-blocks 2p and 2p + 1 share 32 bytes.
static void put_nibble_pairs(uint8_t *at, const uint8_t *codes)
{
    for (int pair = 0; pair < 4; pair++)
        for (int i = 0; i < 32; i++)
            *at++ = (uint8_t)((codes[pair * 64 + i] & 0x0F) | codes[pair * 64 + 32 + i] << 4);
}

static void encode_q4_k(const float *in, const float *weight, uint8_t *block)
{
    struct super super = {.n_subs = 8, .sub_len = 32, .hi = 15, .scale_hi = 63, .min_hi = 63};
    uint8_t codes[EW__SUPER];

    fit_super(&super, in, weight);
    super_codes(&super, codes);
    put_head(block, &super);
    put_nibble_pairs(block + 16, codes);
}

static void encode_q5_k(const float *in, const float *weight, uint8_t *block)
{
    struct super super = {.n_subs = 8, .sub_len = 32, .hi = 31, .scale_hi = 63, .min_hi = 63};
    uint8_t codes[EW__SUPER];

    fit_super(&super, in, weight);
    super_codes(&super, codes);
    put_head(block, &super);
    for (int i = 0; i < 32; i++) {
        block[16 + i] = 0;
        for (int sub = 0; sub < 8; sub++)
            block[16 + i] |= (uint8_t)((codes[sub * 32 + i] >> 4) << sub);
    }
    put_nibble_pairs(block + 48, codes);
}

static void encode_q6_k(const float *in, const float *weight, uint8_t *block)
{
    struct super super = {.n_subs = 16, .sub_len = 16, .lo = -32, .hi = 31, .scale_lo = -128, .scale_hi = 127};
    uint8_t codes[EW__SUPER];

    fit_super(&super, in, weight);
    super_codes(&super, codes);
    for (int half = 0; half < 2; half++) {
        const uint8_t *c = codes + 128 * half;

        for (int i = 0; i < 64; i++)
            block[half * 64 + i] = (uint8_t)((c[i] & 0x0F) | c[i + 64] << 4);
        for (int i = 0; i < 32; i++)
            block[128 + half * 32 + i] =
                (uint8_t)(c[i] >> 4 | (c[i + 32] >> 4) << 2 | (c[i + 64] >> 4) << 4 | (c[i + 96] >> 4) << 6);
    }
    for (int sub = 0; sub < 16; sub++)
        block[192 + sub] = (uint8_t)(int8_t)super.sub_scale[sub];
    ew__put_u16(block + 208, ew_f16_of_f32(super.scale));
}

EW__DEFINE_ENCODE(q4_k, EW__SUPER, EW__Q4_K_BYTES)
EW__DEFINE_ENCODE(q5_k, EW__SUPER, EW__Q5_K_BYTES)
EW__DEFINE_ENCODE(q6_k, EW__SUPER, EW__Q6_K_BYTES)
