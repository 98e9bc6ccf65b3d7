#pragma once
// Gates of large products, computed where these end.

#include "kernel/cuda/ptx/gpu.h"

// SiLU and the tanh form of GELU are both x / (1 + exp(-x (a + b x^2))).
INLINE float gate_of(float gate, float up, float linear, float cubic)
{
    float y = exp2_approx(-1.44269504f * gate * (linear + cubic * gate * gate));

    return gate * reciprocal_approx(1 + y) * up;
}
