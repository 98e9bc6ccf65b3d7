#pragma once
// What the ops of a step computed on one backend, kept to be compared with what another one computes.

#include "kernel/ops.h"

struct ew_record { // of one op
    uint32_t op, n_rows, width;
    size_t first; // of its values
};

struct ew_recording {
    struct ew_record *records;
    float *values;
    size_t n_records, n_values, records_max, values_max;
    bool overflowed;
};

// Floats that the ops of the program compute for one token, at most.
uint64_t ew_recording_floats(const struct ew_program *program);
// Room for n_steps steps with n_tokens in all.
int ew_recording_init(struct ew_recording *recording, const struct ew_program *program, uint32_t n_tokens,
                      uint32_t n_steps, struct ew_error *err) EW_MUST_CHECK;
void ew_recording_fini(struct ew_recording *recording);
void ew_recording_clear(struct ew_recording *recording);
// An ew_trace_fn, whose ctx is the recording.
void ew_recording_add(void *recording, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                      uint32_t width);

// Relative error in the norm; 0 for two zero vectors, infinite where only the reference is zero, NaN kept.
double ew_relative(const float *out, const float *ref, size_t n, double *max_abs);
