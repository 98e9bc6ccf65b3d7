#pragma once
// bench embed: how fast a model makes vectors, in this process: one text after the other, and many at once.

#include "engine/engine.h"

struct ew_vectors_options {
    uint32_t n_tokens; // of a text
    uint32_t batch;    // texts of one step, where there are many
    uint32_t n_texts;  // of each measurement
    bool (*interrupted)(void);
};

struct ew_vectors_speed {
    double ms_p50, ms_p95, ms_p99; // of a text alone
    double texts_per_s, tokens_per_s; // of many
    double load_s;
    const char *backend; // "cpu"
    char device[160];    // "cpu avx2, 2 threads"
    uint64_t weight_bytes, workspace_bytes;
};

int ew_bench_vectors(const struct ew_model *model, const struct ew_engine_config *config,
                     const struct ew_vectors_options *options, struct ew_vectors_speed *out,
                     struct ew_error *err) EW_MUST_CHECK;
