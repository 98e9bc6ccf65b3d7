#include "model/rope.h"

#include <math.h>

// Rotations that dimension d of n makes over `context` positions, solved for d (YaRN, equation 17).
static double correction_dim(const struct ew_rope_shape *shape, double rotations)
{
    return shape->n_dims * log(shape->context_original / (rotations * 2 * M_PI)) / (2 * log(shape->theta));
}

static double scale_factor(const struct ew_rope_shape *shape)
{
    return shape->factor > 0 ? shape->factor : (double)shape->context_trained / shape->context_original;
}

// YaRN, "NTK by parts": fast dimensions keep their frequency, slow ones are interpolated, a linear ramp lies between.
static void yarn(const struct ew_rope_shape *shape, double *freq)
{
    double low = correction_dim(shape, shape->beta_fast), high = correction_dim(shape, shape->beta_slow),
           factor = scale_factor(shape);

    if (shape->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, shape->n_dims - 1.0);
    if (low == high)
        high += 0.001; // transformers' guard against a ramp without width
    for (uint32_t i = 0; i < shape->n_dims / 2; i++) {
        double ramp = fmin(fmax((i - low) / (high - low), 0), 1);

        freq[i] = freq[i] / factor * ramp + freq[i] * (1 - ramp);
    }
}

// Llama 3.1: long waves are stretched by `factor`, short ones stay, those between are blended.
static void llama3(const struct ew_rope_shape *shape, double *freq)
{
    double context = shape->context_original, low = shape->low_freq_factor, high = shape->high_freq_factor,
           factor = scale_factor(shape);

    for (uint32_t i = 0; i < shape->n_dims / 2; i++) {
        double wave = 2 * M_PI / freq[i], smooth = (context / wave - low) / (high - low);

        if (wave > context / low)
            freq[i] /= factor;
        else if (wave >= context / high)
            freq[i] = (1 - smooth) * freq[i] / factor + smooth * freq[i];
    }
}

static double mscale(double factor, double by)
{
    return factor <= 1 ? 1 : 0.1 * by * log(factor) + 1;
}

float ew_rope_latent_factor(const struct ew_rope_shape *shape)
{
    double factor = 1;

    if (shape->scaling == EW_ROPE_SCALING_YARN && shape->mscale_all_dim > 0)
        factor = mscale(scale_factor(shape), shape->mscale_all_dim);
    return (float)(factor * factor);
}

double ew_rope_attention_factor(const struct ew_rope_shape *shape)
{
    double factor = scale_factor(shape), result = 1;

    if (shape->attention_factor > 0)
        return shape->attention_factor;
    if (shape->scaling == EW_ROPE_SCALING_YARN && shape->mscale > 0 && shape->mscale_all_dim > 0)
        result = mscale(factor, shape->mscale) / mscale(factor, shape->mscale_all_dim);
    else if (shape->scaling == EW_ROPE_SCALING_YARN)
        result = mscale(factor, 1);
    else if (shape->scaling == EW_ROPE_SCALING_LONGROPE && factor > 1)
        result = sqrt(1 + log(factor) / log(shape->context_original));
    return shape->attention_multiplier > 0 ? result * shape->attention_multiplier : result;
}

// divisors: [n_dims / 2] or NULL.
static const float *frequencies(struct ew_arena *arena, const struct ew_rope_shape *shape, const double *divisors)
{
    uint32_t n = shape->n_dims / 2;
    double freq[EW_ROPE_PAIRS_MAX];
    float *out = ew_arena_array(arena, n, sizeof(*out));

    if (!out)
        return NULL;
    for (uint32_t i = 0; i < n; i++)
        freq[i] = pow(shape->theta, -2.0 * i / shape->n_dims);
    if (shape->scaling == EW_ROPE_SCALING_YARN)
        yarn(shape, freq);
    else if (shape->scaling == EW_ROPE_SCALING_LLAMA3)
        llama3(shape, freq);
    for (uint32_t i = 0; i < n; i++) {
        if (shape->scaling == EW_ROPE_SCALING_LINEAR)
            freq[i] /= scale_factor(shape);
        out[i] = (float)(divisors ? freq[i] / divisors[i] : freq[i]);
    }
    return out;
}

int ew_rope_build(struct ew_arena *arena, const struct ew_rope_shape *shape, enum ew_rope_kind kind,
                  struct ew_rope *out, struct ew_error *err)
{
    float scale = (float)ew_rope_attention_factor(shape);

    *out = (struct ew_rope){.kind = kind, .n_dims = shape->n_dims, .scale_short = scale, .scale_long = scale};
    if (shape->short_mscale > 0)
        out->scale_short = (float)shape->short_mscale;
    if (shape->long_mscale > 0)
        out->scale_long = (float)shape->long_mscale;
    out->freq_short = frequencies(arena, shape, shape->n_short ? shape->short_factor : NULL);
    if (!out->freq_short)
        return ew_fail_memory(err, shape->n_dims * sizeof(float), "rotary frequencies");
    if (shape->n_long) {
        out->freq_long = frequencies(arena, shape, shape->long_factor);
        if (!out->freq_long)
            return ew_fail_memory(err, shape->n_dims * sizeof(float), "rotary frequencies");
        out->span_short_max = shape->context_original;
    }
    if (shape->scaling == EW_ROPE_SCALING_DYNAMIC) {
        out->dynamic_base = (float)shape->theta;
        out->dynamic_factor = (float)scale_factor(shape);
        out->span_short_max = shape->context_trained;
    }
    return 0;
}
