#pragma once
// How long kernels take, for cpu_check.c: on all threads, the best of some repeats. Does nothing where
// config->pool is NULL.

#include "kernel/cpu/cpu_check.h"

enum ew_cpu_time_row {
    EW_CPU_TIME_NORM,
    EW_CPU_TIME_ACT,
    EW_CPU_TIME_GLU,
    EW_CPU_TIME_QUANTISE,
    EW_CPU_TIME_EXP,
    EW_CPU_TIME_CONV,
    EW_CPU_TIME_SCAN, // a token through a state of 64 by 64
    EW_CPU_TIME_ADD,
    EW_CPU_TIME_SCALE,
    EW_CPU_TIME_SOFTCAP,
    EW_CPU_TIME_ROPE,
    EW_CPU_TIME_KV,
    EW_CPU_TIME_SCORES,
    EW_CPU_TIME_VALUES,
};

void ew_cpu_time_rows(const struct ew_cpu_check_config *config, const struct ew_cpu_ops *ops, enum ew_cpu_time_row row,
                      int which, struct ew_cpu_check *out);
// cpu_check_attention.c: the last n_tokens of a sequence of `context` tokens, in a layer of the usual 8 B.
void ew_cpu_time_attention(const struct ew_cpu_check_config *config, const struct ew_cpu_ops *ops, enum ew_kv_dtype kv,
                           uint32_t context, uint32_t n_tokens, struct ew_cpu_check *out);
// Adds the largest error of some small shapes, and how many, to the check.
void ew_cpu_check_attention(const struct ew_cpu_ops *ref, const struct ew_cpu_ops *ops, enum ew_kv_dtype kv,
                            struct ew_cpu_check *out);
// A product with weights that come from memory each time, with n_rows activations.
void ew_cpu_time_linear(const struct ew_cpu_check_config *config, ew_cpu_linear_fn linear, enum ew_cpu_layout layout,
                        uint32_t n_rows, struct ew_cpu_check *out);
