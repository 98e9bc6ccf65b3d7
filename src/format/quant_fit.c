// See quant_fit.h.

#include "format/quant_fit.h"

#include <math.h>

#include "base/half.h"

#define F16_MAX 65504.0f
#define TINY 1e-12f // spans below this have scales that are zero in f16, whatever the type

// Scales tried around the one that maps the largest magnitude onto the last code, and by how many codes they differ.
// Half the step lowers the rms error by under 0.2 %.
#define CANDIDATES 19
#define CANDIDATE_STEP 0.2f

static float cut(float value)
{
    if (!(value == value)) // NaN
        return 0;
    return value > F16_MAX ? F16_MAX : value < -F16_MAX ? -F16_MAX : value;
}

void ew__fit_load(const float *in, const float *weight, int n, float *x, float *w)
{
    for (int i = 0; i < n; i++) {
        x[i] = cut(in[i]);
        w[i] = weight ? cut(weight[i]) : 1;
        if (w[i] < 0)
            w[i] = 0;
    }
}

float ew__fit_round(float scale)
{
    return ew_f32_of_f16(ew_f16_of_f32(cut(scale)));
}

// Nearest integer in [lo, hi], ties to even, in a form that compilers turn into vector code: adding 1.5 *
// 2^23 leaves no room for a fraction. The operand may be NaN where a scale was: the comparison makes that
// lo.
static inline float nearest(float value, float lo, float hi)
{
    value = value > lo ? value : lo;
    value = value < hi ? value : hi;
    return (value + 12582912.0f) - 12582912.0f;
}

static float inverse(float scale)
{
    return fabsf(scale) < 1e-30f ? 0 : 1 / scale;
}

static float lane_sum(const float *lanes)
{
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

// Sums over a group that the normal equations need, with q from the given scale and minimum.
struct sums {
    float w, wx, wq, wxq, wqq;
};

static struct sums sums_of(const float *x, const float *w, int n, float inverse_scale, float min, float lo, float hi)
{
    float sw[EW__FIT_LANES] = {0}, sx[EW__FIT_LANES] = {0}, sq[EW__FIT_LANES] = {0};
    float sxq[EW__FIT_LANES] = {0}, sqq[EW__FIT_LANES] = {0};

    for (int i = 0; i < n; i += EW__FIT_LANES)
        for (int j = 0; j < EW__FIT_LANES; j++) {
            float q = nearest((x[i + j] - min) * inverse_scale, lo, hi), wq = w[i + j] * q;

            sw[j] += w[i + j];
            sx[j] += w[i + j] * x[i + j];
            sq[j] += wq;
            sxq[j] += wq * x[i + j];
            sqq[j] += wq * q;
        }
    return (struct sums){lane_sum(sw), lane_sum(sx), lane_sum(sq), lane_sum(sxq), lane_sum(sqq)};
}

// Signed element of the largest magnitude.
static float extreme_of(const float *x, int n)
{
    float extreme = 0;

    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    return extreme;
}

// For a given q the best scale is wxq / wqq and lowers the error by wxq^2 / wqq: the candidate that lowers
// it most wins.
void ew__fit_scale(struct ew__fit *fit, const float *x, const float *w, int n)
{
    float extreme = extreme_of(x, n), best = 0;

    fit->min = 0;
    fit->scale = 0;
    if (fabsf(extreme) < TINY)
        return;
    fit->scale = extreme / (float)fit->lo; // kept where all weights are zero
    for (int i = 0; i < CANDIDATES; i++) {
        float codes = (float)fit->lo + CANDIDATE_STEP * (float)(i - CANDIDATES / 2);
        struct sums s = sums_of(x, w, n, codes / extreme, 0, (float)fit->lo, (float)fit->hi);

        if (s.wqq > 0 && s.wxq * s.wxq > best * s.wqq) {
            best = s.wxq * s.wxq / s.wqq;
            fit->scale = s.wxq / s.wqq;
        }
    }
}

// The best scale and minimum for the q behind the sums. False where they are not determined.
static bool solve(const struct sums *s, bool min_negative, float *scale, float *min)
{
    float determinant = s->w * s->wqq - s->wq * s->wq;

    if (!(determinant > 0))
        return false;
    *scale = (s->w * s->wxq - s->wx * s->wq) / determinant;
    *min = (s->wqq * s->wx - s->wq * s->wxq) / determinant;
    if (min_negative && *min > 0) {
        *min = 0;
        *scale = s->wxq / s->wqq;
    }
    return *scale > 0;
}

void ew__fit_scale_min(struct ew__fit *fit, const float *x, const float *w, int n, bool min_negative)
{
    struct ew__fit candidate = *fit;
    float low = x[0], high = x[0], best;

    for (int i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (min_negative && low > 0)
        low = 0;
    fit->min = low;
    fit->scale = high - low < TINY ? 0 : (high - low) / (float)fit->hi;
    if (fit->scale == 0)
        return;
    best = ew__fit_error(fit, x, w, n);
    for (int i = 0; i < CANDIDATES; i++) {
        float codes = (float)fit->hi + CANDIDATE_STEP * (float)(i - CANDIDATES / 2);
        struct sums s = sums_of(x, w, n, codes / (high - low), low, 0, (float)fit->hi);
        float error;

        if (!solve(&s, min_negative, &candidate.scale, &candidate.min))
            continue;
        error = ew__fit_error(&candidate, x, w, n);
        if (error < best) {
            best = error;
            *fit = candidate;
        }
    }
}

float ew__fit_error(const struct ew__fit *fit, const float *x, const float *w, int n)
{
    float lanes[EW__FIT_LANES] = {0}, inverse_scale = inverse(fit->scale), lo = (float)fit->lo, hi = (float)fit->hi;

    for (int i = 0; i < n; i += EW__FIT_LANES)
        for (int j = 0; j < EW__FIT_LANES; j++) {
            float q = nearest((x[i + j] - fit->min) * inverse_scale, lo, hi);
            float off = x[i + j] - fit->min - fit->scale * q;

            lanes[j] += w[i + j] * off * off;
        }
    return lane_sum(lanes);
}

void ew__fit_codes(const struct ew__fit *fit, const float *x, int n, uint8_t *codes)
{
    float inverse_scale = inverse(fit->scale), lo = (float)fit->lo, hi = (float)fit->hi;

    for (int i = 0; i < n; i++)
        codes[i] = (uint8_t)((int)nearest((x[i] - fit->min) * inverse_scale, lo, hi) - fit->lo);
}
