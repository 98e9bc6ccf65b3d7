#pragma once
// How the encoders choose scales: weighted least squares over a few candidate scales, on groups of 16 or 32
// elements.
//
// All functions work on values prepared by ew__fit_load, which are finite, so nothing here can overflow. n
// is a multiple of EW__FIT_LANES; sums run in that many lanes, in the same order on every machine, so that
// a file is the same bits wherever it is made.

#include <stdbool.h>
#include <stdint.h>

#define EW__FIT_LANES 8

// Integer codes q in [lo, hi] that stand for scale * q + min.
struct ew__fit {
    float scale, min;
    int lo, hi;
};

// Copies n values with NaN as 0 and magnitudes cut to the largest f16, which every scale must fit, and
// their importances (1 where `weight` is NULL; negative and non-finite ones count as 0).
void ew__fit_load(const float *in, const float *weight, int n, float *x, float *w);
// Chooses fit->scale for values without a minimum (fit->min = 0).
void ew__fit_scale(struct ew__fit *fit, const float *x, const float *w, int n);
// Chooses fit->scale and fit->min; with min_negative the minimum is at most 0.
void ew__fit_scale_min(struct ew__fit *fit, const float *x, const float *w, int n, bool min_negative);
// Weighted squared error of the values once encoded.
float ew__fit_error(const struct ew__fit *fit, const float *x, const float *w, int n);
// The codes themselves, less `lo`.
void ew__fit_codes(const struct ew__fit *fit, const float *x, int n, uint8_t *codes);

// The value as an f16 and back: the scale that decoders will see. Cut to the largest f16.
float ew__fit_round(float scale);
