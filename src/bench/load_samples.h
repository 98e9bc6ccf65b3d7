#pragma once
// A growing list of measured values and its percentiles. Its memory is bounded: a list that is full forgets every
// second value and from then on keeps only one in two, in four, ...

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EW_SAMPLES_MAX ((size_t)8 << 20)

struct ew_samples {
    float *values;
    size_t count, cap;
    uint32_t stride, skipped; // one value in `stride` is kept
    double sum, max;          // of all values
    uint64_t n_seen;
    bool failed;              // memory ran out: what was added later is missing
};

struct ew_quantiles {
    double mean, p50, p90, p95, p99, max;
    uint64_t count;
};

void ew_samples_fini(struct ew_samples *samples);
void ew_samples_add(struct ew_samples *samples, double value);
// Sorts the list. n_zero further values of 0 count as well. All fields are 0 where there is nothing.
struct ew_quantiles ew_samples_quantiles(struct ew_samples *samples, uint64_t n_zero);
