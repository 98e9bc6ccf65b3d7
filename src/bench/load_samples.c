#include "bench/load_samples.h"

#include <math.h>
#include <stdlib.h>

#include "base/alloc.h"

void ew_samples_fini(struct ew_samples *samples)
{
    ew_free(samples->values);
    *samples = (struct ew_samples){0};
}

static void halve(struct ew_samples *samples)
{
    for (size_t i = 0; i < samples->count / 2; i++)
        samples->values[i] = samples->values[2 * i];
    samples->count /= 2;
    samples->stride *= 2;
}

static bool make_room(struct ew_samples *samples)
{
    size_t cap = samples->cap ? samples->cap * 2 : 1024;
    float *grown;

    if (samples->count < samples->cap)
        return true;
    if (samples->cap >= EW_SAMPLES_MAX) {
        halve(samples);
        return true;
    }
    grown = ew_realloc_array(samples->values, cap, sizeof(*grown));
    if (!grown)
        return false;
    samples->values = grown;
    samples->cap = cap;
    return true;
}

void ew_samples_add(struct ew_samples *samples, double value)
{
    if (samples->stride == 0)
        samples->stride = 1;
    samples->sum += value;
    samples->max = samples->n_seen == 0 || value > samples->max ? value : samples->max;
    samples->n_seen++;
    if (++samples->skipped < samples->stride)
        return;
    samples->skipped = 0;
    if (make_room(samples))
        samples->values[samples->count++] = (float)value;
    else
        samples->failed = true;
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

// Nearest rank: the smallest value that at least this share of all values do not exceed.
static double at(const struct ew_samples *samples, double n_zero, double share)
{
    double rank = ceil(share * ((double)samples->count + n_zero)) - n_zero;

    return rank < 1 ? 0 : (double)samples->values[(size_t)fmin(rank, (double)samples->count) - 1];
}

struct ew_quantiles ew_samples_quantiles(struct ew_samples *samples, uint64_t n_zero)
{
    double zeros = samples->stride ? (double)n_zero / samples->stride : 0;
    uint64_t n = samples->n_seen + n_zero;

    if (samples->count == 0)
        return (struct ew_quantiles){.count = n};
    qsort(samples->values, samples->count, sizeof(*samples->values), compare);
    return (struct ew_quantiles){
        .mean = samples->sum / (double)n,
        .p50 = at(samples, zeros, 0.50),
        .p90 = at(samples, zeros, 0.90),
        .p95 = at(samples, zeros, 0.95),
        .p99 = at(samples, zeros, 0.99),
        .max = samples->max,
        .count = n,
    };
}
