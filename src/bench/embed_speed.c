#include "bench/embed_speed.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"

struct run {
    const struct ew_vectors_options *options;
    struct ew_engine *engine;
    int32_t *ids; // [n_tokens]
    uint32_t n_vocab;
    struct ew_rng rng;
    double *seconds; // [n_texts]
};

static int submit(struct run *run, struct ew_error *err)
{
    struct ew_request request = {
        .ids = run->ids, .n_ids = run->options->n_tokens, .sampling = ew_sampling_default()};
    uint64_t id;

    for (uint32_t i = 0; i < run->options->n_tokens; i++)
        run->ids[i] = (int32_t)ew_rng_below(&run->rng, run->n_vocab);
    return ew_engine_submit(run->engine, &request, &id, err);
}

// Runs a step and takes its vectors; adds their number.
static int step(struct run *run, uint32_t *n_done, struct ew_error *err)
{
    struct ew_event event;
    bool idle;
    int rc = run->options->interrupted() ? ew_fail(err, EW_ERR_CANCELLED, "interrupted")
                                         : ew_engine_step(run->engine, &idle, err);

    while (rc == 0 && ew_engine_next_event(run->engine, &event)) {
        if (event.finish != EW_FINISH_STOP) {
            *err = event.error;
            rc = EW_ERR_UNSUPPORTED;
        }
        ++*n_done;
    }
    return rc;
}

// Texts with `at_once` of them in the queue.
static int run_texts(struct run *run, uint32_t n_texts, uint32_t at_once, struct ew_error *err)
{
    uint32_t n_begun = 0, n_done = 0;
    int rc = 0;

    while (rc == 0 && n_done < n_texts) {
        for (; rc == 0 && n_begun < n_texts && n_begun - n_done < at_once; n_begun++)
            rc = submit(run, err);
        if (rc == 0)
            rc = step(run, &n_done, err);
    }
    return rc;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static int run_alone(struct run *run, struct ew_vectors_speed *out, struct ew_error *err)
{
    uint32_t n = run->options->n_texts;

    for (uint32_t i = 0; i < n; i++) {
        double started_s = ew_clock_s();
        int rc = run_texts(run, 1, 1, err);

        if (rc < 0)
            return rc;
        run->seconds[i] = ew_clock_s() - started_s;
    }
    qsort(run->seconds, n, sizeof(*run->seconds), compare_doubles);
    out->ms_p50 = 1e3 * run->seconds[n / 2];
    out->ms_p95 = 1e3 * run->seconds[(uint64_t)n * 95 / 100];
    out->ms_p99 = 1e3 * run->seconds[(uint64_t)n * 99 / 100];
    return 0;
}

static int run_many(struct run *run, struct ew_vectors_speed *out, struct ew_error *err)
{
    uint32_t n = EW_MAX(run->options->n_texts, 2 * run->options->batch);
    double started_s = ew_clock_s();
    int rc = run_texts(run, n, 2 * run->options->batch, err);

    out->texts_per_s = n / (ew_clock_s() - started_s);
    out->tokens_per_s = out->texts_per_s * run->options->n_tokens;
    return rc;
}

static int measure(struct run *run, struct ew_vectors_speed *out, struct ew_error *err)
{
    const struct ew_vectors_options *options = run->options;
    struct ew_engine_stats stats;
    int rc;

    run->ids = ew_alloc_array(options->n_tokens, sizeof(*run->ids));
    run->seconds = ew_alloc_array(options->n_texts, sizeof(*run->seconds));
    if (!run->ids || !run->seconds)
        return ew_fail_memory(err, options->n_tokens * sizeof(*run->ids), "a text");
    ew_engine_stats(run->engine, &stats);
    out->load_s = stats.load_s;
    out->backend = stats.backend_name;
    snprintf(out->device, sizeof(out->device), "%s", stats.backend_text);
    out->weight_bytes = stats.need.weight_bytes;
    out->workspace_bytes = stats.need.workspace_bytes;
    rc = run_texts(run, 2, 1, err); // caches and clocks warm up
    if (rc == 0)
        rc = run_alone(run, out, err);
    if (rc == 0)
        rc = run_texts(run, options->batch, options->batch, err);
    return rc == 0 ? run_many(run, out, err) : rc;
}

int ew_bench_vectors(const struct ew_model *model, const struct ew_engine_config *config,
                     const struct ew_vectors_options *options, struct ew_vectors_speed *out, struct ew_error *err)
{
    struct ew_engine_config adapted = *config;
    struct run run = {.options = options, .n_vocab = model->shape.n_vocab, .rng = ew_rng_at(1, 0)};
    int rc;

    *out = (struct ew_vectors_speed){0};
    if (model->pooling.kind == EW_POOLING_NONE) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s writes text and makes no vectors", model->path);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "Use `bench speed` with it");
    }
    adapted.context_max = options->n_tokens;
    adapted.max_batch_size = options->batch;
    if (__builtin_mul_overflow(options->n_tokens, options->batch, &adapted.max_num_tokens))
        return ew_fail(err, EW_ERR_USAGE, "%u texts of %u tokens are too much for a step", options->batch,
                       options->n_tokens);
    rc = ew_engine_create(model, NULL, &adapted, &run.engine, err);
    if (rc == 0)
        rc = measure(&run, out, err);
    ew_engine_destroy(run.engine);
    ew_free(run.ids);
    ew_free(run.seconds);
    return rc;
}
