#pragma once
// What /metrics shows, in the text format of Prometheus: counters and histograms kept here, and the engine's
// statistics. I/O thread only.

#include "base/buf.h"
#include "engine/service.h"

#define EW_HISTOGRAM_BOUNDS_MAX 20

struct ew_histogram {
    const double *bounds; // rising; the last bucket, +Inf, has none
    uint32_t n_bounds;
    uint64_t counts[EW_HISTOGRAM_BOUNDS_MAX + 1];
    double sum;
};

void ew_histogram_add(struct ew_histogram *histogram, double value, uint64_t times);

#define EW_METRICS_REPLIES_MAX 256

struct ew_metrics {
    struct ew_metrics_replies { // by route and status
        const char *route;      // static
        int status;
        uint64_t count;
    } replies[EW_METRICS_REPLIES_MAX];
    uint32_t n_replies;
    struct ew_histogram ttft, itl, e2e, queue;
    uint64_t prompt_tokens, answer_tokens, cached_tokens;
    uint64_t n_gone; // clients that left before their answer was whole
    uint32_t n_open; // requests being answered
};

void ew_metrics_init(struct ew_metrics *metrics);
// route: its path as the table of routes has it, or "other".
void ew_metrics_reply(struct ew_metrics *metrics, const char *route, int status);
void ew_metrics_write_energy(double joules, double watts, struct ew_buf *out); // where the box can measure it
void ew_metrics_write(const struct ew_metrics *metrics, const struct ew_service_stats *stats, struct ew_buf *out);
