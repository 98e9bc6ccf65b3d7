#pragma once
// exp and what is made of it, on the primitives of vec_*.h. Errors are of the largest found over all f32
// inputs (test_kernel).

#include "kernel/cpu/cpu_ops.h"

// Relative error below 2e-7; 0 below -87.33 (where f32 has no normal numbers left), at most 2^127 or so above
// 88; NaN stays. exp(x) = 2^n * exp(r), |r| <= ln(2) / 2, with r^2 times a polynomial fitted to (exp(r) - 1 -
// r) / r^2 for least relative error (3e-9).
VEC_INLINE vf vf_exp(vf x)
{
    vf clamped = vf_max(vf_set1(-87.4f), vf_min(vf_set1(88.0f), x)), n, r, p;
    vi whole = vi_round(vf_mul(clamped, vf_set1(1.44269504f)));

    n = vf_of_vi(whole);
    r = vf_fnma(n, vf_set1(0x1.62e4p-1f), clamped); // ln(2) in two parts; n times the first is exact
    r = vf_fnma(n, vf_set1(0x1.7f7d1cp-20f), r);
    p = vf_fma(vf_set1(0.00138145988f), r, vf_set1(0.00836871658f));
    p = vf_fma(p, r, vf_set1(0.041668389f));
    p = vf_fma(p, r, vf_set1(0.166665211f));
    p = vf_fma(p, r, vf_set1(0.49999994f));
    p = vf_fma(vf_mul(p, r), r, vf_add(r, vf_set1(1)));
    p = vf_mul(p, vf_bits(vi_shl(vi_add(whole, vi_set1(127)), 23)));
    return vf_zero_where_less(p, x, vf_set1(-87.33654f));
}

VEC_INLINE vf vf_sigmoid(vf x)
{
    return vf_div(vf_set1(1), vf_add(vf_set1(1), vf_exp(vf_neg(x))));
}

// Absolute error below 2e-7.
VEC_INLINE vf vf_tanh(vf x)
{
    return vf_sub(vf_set1(1), vf_div(vf_set1(2), vf_add(vf_exp(vf_add(x, x)), vf_set1(1))));
}

// x/2 * erfc(-x / sqrt(2)), with formula 7.1.26 of Abramowitz and Stegun: absolute error of the factor below 2e-7.
VEC_INLINE vf vf_gelu(vf x)
{
    vf z = vf_mul(vf_abs(x), vf_set1(0.70710678f)), t = vf_div(vf_set1(1), vf_fma(vf_set1(0.3275911f), z, vf_set1(1))),
       p, tail;

    p = vf_fma(vf_set1(1.061405429f), t, vf_set1(-1.453152027f));
    p = vf_fma(p, t, vf_set1(1.421413741f));
    p = vf_fma(p, t, vf_set1(-0.284496736f));
    p = vf_fma(p, t, vf_set1(0.254829592f));
    tail = vf_mul(vf_set1(0.5f),
                  vf_mul(vf_mul(p, t), vf_exp(vf_neg(vf_mul(z, z))))); // share of the normal distribution past |x|
    return vf_mul(x, vf_where_less(x, vf_zero(), tail, vf_sub(vf_set1(1), tail)));
}

VEC_INLINE vf vf_act(enum ew_act act, vf x)
{
    vf cube;

    switch (act) {
    case EW_ACT_SILU:
        return vf_div(x, vf_add(vf_set1(1), vf_exp(vf_neg(x))));
    case EW_ACT_GELU:
        return vf_gelu(x);
    case EW_ACT_GELU_TANH: // (1 + tanh(y)) / 2 is sigmoid(2y)
        cube = vf_mul(vf_mul(x, x), x);
        return vf_mul(x, vf_sigmoid(vf_mul(vf_set1(1.59576912f), vf_fma(vf_set1(0.044715f), cube, x))));
    case EW_ACT_RELU:
        return vf_max(vf_zero(), x);
    case EW_ACT_RELU2:
        return vf_mul(vf_max(vf_zero(), x), vf_max(vf_zero(), x));
    case EW_ACT_SIGMOID:
        return vf_sigmoid(x);
    case EW_ACT_TANH:
        return vf_tanh(x);
    case EW_ACT_NONE:
        break;
    }
    return x;
}
