#pragma once
// Activations, for kernels that compute them on the way.

#include "kernel/cuda/ptx/gpu.h"

// Values of enum ew_act.
enum { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_RELU, ACT_RELU2, ACT_SIGMOID, ACT_TANH };

INLINE float act_one(float x, u32 act)
{
    switch (act) {
    case ACT_SILU:
        return x / (1 + exp_f32(-x));
    case ACT_GELU:
        return 0.5f * x * (1 + erf_f32(x * 0.70710678f));
    case ACT_GELU_TANH:
        return 0.5f * x * (1 + tanh_f32(0.79788456f * (x + 0.044715f * x * x * x)));
    case ACT_RELU:
        return x > 0 ? x : 0;
    case ACT_RELU2:
        return x > 0 ? x * x : 0;
    case ACT_SIGMOID:
        return 1 / (1 + exp_f32(-x));
    case ACT_TANH:
        return tanh_f32(x);
    default:
        return x;
    }
}

// EW_OP_GLU of one element (kernel/ops.h).
INLINE float glu_one(float gate, float up, u32 act, float limit, float alpha)
{
    if (limit > 0) {
        gate = min_f32(gate, limit);
        up = max_f32(min_f32(up, limit), -limit);
    }
    return alpha > 0 ? gate / (1 + exp_f32(-alpha * gate)) * (up + 1) : act_one(gate, act) * up;
}
