#include "bench/speed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"
#include "bench/bandwidth.h"
#include "engine/schedule.h"
#include "model/pooling.h"
#include "platform/cpu.h"
#include "platform/energy.h"
#include "platform/memory.h"
#include "platform/topology.h"

#define SEED 20261121
#define WARMUP_REPEATS_MAX 128 // a backend may try ways of its steps for as many as the shortest repetitions have
#define ITL_TARGET_S 3600.0 // nobody waits for tokens: prompts need not be cut up for the sake of those that decode

struct speed {
    struct ew_engine *engine;
    struct ew_energy *energy; // NULL: this box has no meter
    double decode_joules;     // over all repeats
    double decode_s, held_s;  // likewise; held_s: see ew_energy_held_s
    const struct ew_speed_options *options;
    struct ew_speed *out;
    uint32_t n_vocab;
    int32_t *ids;   // [max(n_prompt, depth) + 1] random; all sequences get the same but for the first
    double *itl_ms; // [repeats * n_gen]
    uint32_t n_itl;
};

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

// Of sorted values, the smallest that at least this share of them does not exceed.
static double quantile(const double *sorted, uint32_t n, double share)
{
    double rank = share * n;
    uint32_t index = (uint32_t)rank;

    if (n == 0)
        return 0;
    if ((double)index == rank && index > 0)
        index--;
    return sorted[EW_MIN(index, n - 1)];
}

static double median(const double *values, uint32_t n)
{
    double sorted[EW_SPEED_REPEATS_MAX];

    for (uint32_t i = 0; i < n; i++)
        sorted[i] = values[i];
    qsort(sorted, n, sizeof(*sorted), compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

// Each sequence of a batch has its own prompt, so that none shares another's caches; what a decode run computed up to
// its depth is the next one's.
static int submit(struct speed *s, uint32_t sequence, uint32_t n_ids, uint32_t n_max, bool no_reuse, uint64_t *id,
                  struct ew_error *err)
{
    struct ew_request request = {
        .ids = s->ids, .n_ids = n_ids, .n_max = n_max, .no_reuse = no_reuse, .ignore_eos = true};

    s->ids[0] = (int32_t)(sequence % s->n_vocab);
    request.sampling = ew_sampling_default();
    request.sampling.temperature = 0;
    return ew_engine_submit(s->engine, &request, id, err);
}

// Runs one step and counts its events.
static int step(struct speed *s, uint32_t *n_tokens, uint32_t *n_finished, struct ew_error *err)
{
    struct ew_event event;
    bool idle;
    int rc = ew_engine_step(s->engine, &idle, err);

    *n_tokens = *n_finished = 0;
    while (rc == 0 && ew_engine_next_event(s->engine, &event)) {
        *n_tokens += event.kind == EW_EVENT_TOKEN;
        *n_finished += event.kind == EW_EVENT_FINISHED;
        if (event.kind == EW_EVENT_FINISHED && event.finish == EW_FINISH_ERROR)
            rc = event.error.code;
        if (rc < 0 && err)
            *err = event.error;
    }
    if (rc == 0 && s->options->interrupted && s->options->interrupted())
        rc = ew_fail(err, EW_ERR_CANCELLED, "interrupted");
    return rc;
}

// One prompt a sequence, all submitted at once, up to the first token of each.
static int measure_prefill(struct speed *s, uint32_t run, struct ew_error *err)
{
    uint32_t n_first = 0, n_tokens, n_finished, batch = s->options->batch;
    double started_s, sum_ttft_s = 0;
    uint64_t id;
    int rc = 0;

    ew_ahead_drain(s->engine); // what the run before began ahead and nobody wants is not the prompts' time
    started_s = ew_clock_s();
    for (uint32_t b = 0; b < batch && rc == 0; b++)
        rc = submit(s, b, s->options->n_prompt, 1, true, &id, err);
    while (rc == 0 && n_first < batch) {
        rc = step(s, &n_tokens, &n_finished, err);
        n_first += n_tokens;
        sum_ttft_s += n_tokens * (ew_clock_s() - started_s);
    }
    s->out->prefill_runs[run] = batch * s->options->n_prompt / (ew_clock_s() - started_s);
    s->out->ttft_runs[run] = 1e3 * sum_ttft_s / batch;
    return rc;
}

// Steps until every sequence has its first token. Those that had theirs earlier go on, so the later steps are mixed
// ones, which are not measured.
static int reach_depth(struct speed *s, uint64_t *ids, struct ew_error *err)
{
    uint32_t n_tokens = 0, n_finished, batch = s->options->batch;
    int rc = 0;

    for (uint32_t b = 0; b < batch && rc == 0; b++)
        rc = submit(s, b, EW_MAX(s->options->depth, 1u), 0, false, &ids[b], err);
    while (rc == 0 && n_tokens < batch)
        rc = step(s, &n_tokens, &n_finished, err);
    return rc;
}

static int measure_decode(struct speed *s, uint32_t run, struct ew_error *err)
{
    uint32_t n_tokens, n_finished, n_drained = 0, batch = s->options->batch;
    uint64_t *ids = ew_alloc_array(batch, sizeof(*ids));
    struct ew_event event;
    double started_s, started_j, started_held_s, passed_s;
    int rc;

    if (!ids)
        return ew_fail_memory(err, batch * sizeof(*ids), "the benchmark");
    rc = reach_depth(s, ids, err);
    started_j = ew_energy_joules(s->energy);
    started_held_s = ew_energy_held_s(s->energy);
    started_s = ew_clock_s();
    for (uint32_t i = 0; i < s->options->n_gen && rc == 0; i++) {
        double before_s = ew_clock_s();

        rc = step(s, &n_tokens, &n_finished, err);
        s->itl_ms[s->n_itl++] = 1e3 * (ew_clock_s() - before_s);
    }
    passed_s = ew_clock_s() - started_s;
    s->out->decode_runs[run] = batch * s->options->n_gen / passed_s;
    s->decode_s += passed_s;
    s->held_s = started_held_s < 0 ? -1 : s->held_s + ew_energy_held_s(s->energy) - started_held_s;
    s->decode_joules += ew_energy_joules(s->energy) - started_j;
    for (uint32_t b = 0; b < batch; b++)
        ew_engine_cancel(s->engine, ids[b]);
    while (n_drained < batch && ew_engine_next_event(s->engine, &event))
        n_drained += event.kind == EW_EVENT_FINISHED;
    ew_free(ids);
    return rc;
}

// An embedding table that is not the head too is not streamed: a step reads a row of it.
// Of a stack, the share of experts that some row of the batch is expected to choose, if all are chosen alike.
static double share_of_experts(const struct ew_program *program, const struct ew_weight *weight, uint32_t batch)
{
    for (uint32_t i = 0; weight->n_experts && i < program->n_ops; i++)
        if (program->ops[i].kind == EW_OP_ROUTE)
            return 1 - pow(1 - (double)program->ops[i].route.n_active / weight->n_experts, batch);
    return 1;
}

static uint64_t streamed_bytes(const struct ew_program *program, uint64_t held_bytes, uint32_t batch)
{
    double all = 0, streamed = 0;

    for (uint32_t w = 0; w < program->n_weights; w++) {
        const struct ew_weight *weight = &program->weights[w];
        double bytes = (double)ew_dtype_row_bytes(weight->source.dtype, weight->cols) * (double)weight->rows;
        bool is_streamed = false;

        for (uint32_t i = 0; i < program->n_ops && !is_streamed; i++)
            is_streamed = (program->ops[i].weight == w || program->ops[i].bias == w) &&
                          program->ops[i].kind != EW_OP_EMBED && program->ops[i].kind != EW_OP_POSITION;
        all += bytes;
        streamed += is_streamed ? bytes * share_of_experts(program, weight, batch) : 0;
    }
    return all > 0 ? (uint64_t)((double)held_bytes * (streamed / all)) : 0;
}

static void describe(struct speed *s, const struct ew_model *model, const struct ew_engine_config *config)
{
    struct ew_speed *out = s->out;
    struct ew_engine_stats stats;
    struct ew_topology topology;

    ew_engine_stats(s->engine, &stats);
    ew_topology_read(NULL, &topology);
    snprintf(out->backend, sizeof(out->backend), "%s", stats.backend_name);
    snprintf(out->backend_text, sizeof(out->backend_text), "%s", stats.backend_text);
    ew_cpu_brand(out->device, sizeof(out->device));
    out->n_threads = config->device.n_threads ? config->device.n_threads : topology.n_usable;
    out->weight_bytes = stats.need.weight_bytes;
    out->device_bytes = stats.driver_bytes ? stats.need.total_bytes + stats.driver_bytes : 0;
    out->streamed_bytes = streamed_bytes(&model->program, stats.need.weight_bytes, s->options->batch);
    out->load_s = stats.load_s;
}

static void summarise(struct speed *s)
{
    struct ew_speed *out = s->out;

    qsort(s->itl_ms, s->n_itl, sizeof(*s->itl_ms), compare_doubles);
    out->itl_ms_p50 = quantile(s->itl_ms, s->n_itl, 0.50);
    out->itl_ms_p95 = quantile(s->itl_ms, s->n_itl, 0.95);
    out->itl_ms_p99 = quantile(s->itl_ms, s->n_itl, 0.99);
    out->prefill_tok_s = median(out->prefill_runs, out->n_runs);
    out->decode_tok_s = median(out->decode_runs, out->n_runs);
    out->ttft_ms = median(out->ttft_runs, out->n_runs);
    out->joules_per_token = s->decode_joules / ((double)out->n_runs * s->options->batch * s->options->n_gen);
    out->power_held_share = s->held_s < 0 || s->decode_s <= 0 ? -1 : EW_MIN(s->held_s / s->decode_s, 1.0);
    out->joules_source = ew_energy_source(s->energy);
    out->weight_gb_s = (double)out->streamed_bytes * out->decode_tok_s / s->options->batch / 1e9;
    out->limit_pct = out->limit_gb_s > 0 ? 100 * out->weight_gb_s / out->limit_gb_s : 0;
}

// A device has limits of its own; the host's are measured when the engine has made room. Where the model leaves no
// memory to measure with, its speed is told without them.
static int measure_device(struct speed *s, struct ew_error *err)
{
    struct ew_backend *backend = s->engine->core.backend;
    struct ew_backend_speed limits;
    int rc;

    if (!backend->ops->measure)
        return 0;
    rc = backend->ops->measure(backend, &limits, err);
    if (rc == EW_ERR_MEMORY)
        return 0;
    s->out->limit_gb_s = rc ? 0 : limits.read_bytes_s / 1e9;
    s->out->multiply_flops_s = rc ? 0 : limits.multiply_flops_s;
    return rc;
}

static int profile(struct speed *s, struct ew_error *err)
{
    struct ew_profile_options *profile = s->options->profile;

    if (!profile)
        return 0;
    profile->batch = s->options->batch;
    profile->depth = s->options->depth;
    profile->n_prompt = s->options->n_prompt;
    return ew_bench_profile(&s->engine->core, profile, err);
}

// Whether the backend still compares ways of running the steps that were measured last.
static bool is_trying(const struct speed *s)
{
    const struct ew_backend *backend = s->engine->core.backend;

    return backend->ops->is_trying && backend->ops->is_trying(backend);
}

// A repetition that does not count, and decoding again where one has fewer steps than the backend has ways to try. The
// first measured repetition writes over what these left.
static int warm_up(struct speed *s, struct ew_error *err)
{
    int rc = measure_prefill(s, 0, err);

    for (uint32_t i = 0; rc == 0 && i < WARMUP_REPEATS_MAX && (i == 0 || is_trying(s)); i++) {
        rc = measure_decode(s, 0, err);
        s->n_itl = 0;
        s->out->n_warmup += s->options->n_gen;
    }
    s->decode_joules = s->decode_s = s->held_s = 0;
    return rc;
}

static int measure(struct speed *s, struct ew_error *err)
{
    struct ew_engine_stats stats;
    int rc;

    ew_engine_stats(s->engine, &stats);
    rc = ew_energy_open(NULL, strcmp(stats.backend_name, "cuda") == 0, &s->energy, err);
    if (rc == 0 && !s->options->no_warmup)
        rc = warm_up(s, err);
    for (uint32_t run = 0; run < s->options->repeats && rc == 0; run++) {
        rc = measure_prefill(s, run, err);
        if (rc == 0)
            rc = measure_decode(s, run, err);
        s->out->n_runs += rc == 0;
    }
    if (rc == 0)
        rc = measure_device(s, err);
    if (rc == 0)
        rc = profile(s, err);
    s->out->peak_bytes = ew_memory_peak_bytes(); // before the bandwidth's own buffer counts
    return rc;
}

static int alloc(struct speed *s, struct ew_error *err)
{
    const struct ew_speed_options *options = s->options;
    uint32_t n_ids = EW_MAX(EW_MAX(options->n_prompt, options->depth), 1u);
    struct ew_rng rng = ew_rng_at(SEED, 0);

    s->ids = ew_alloc_array(n_ids, sizeof(*s->ids));
    s->itl_ms = ew_alloc_array((size_t)options->repeats * options->n_gen, sizeof(*s->itl_ms));
    if (!s->ids || !s->itl_ms)
        return ew_fail_memory(err, n_ids * sizeof(*s->ids), "the benchmark");
    for (uint32_t i = 0; i < n_ids; i++)
        s->ids[i] = (int32_t)ew_rng_below(&rng, s->n_vocab);
    return 0;
}

static struct ew_engine_config config_for(const struct ew_engine_config *config, const struct ew_speed_options *options)
{
    struct ew_engine_config c = *config;
    // While the last of the prompts is computed, the first of them already decodes: one token a step.
    uint64_t chunk = c.chunk ? c.chunk : 512, mixed_steps = options->batch * (options->depth / chunk + 1ull);
    uint64_t context = EW_MAX(options->n_prompt + 2ull, options->depth + options->n_gen + mixed_steps + 4);

    c.context_max = (uint32_t)EW_MIN(context, UINT32_MAX / 2);
    c.max_batch_size = c.max_sessions = options->batch;
    c.itl_target_s = ITL_TARGET_S;
    return c;
}

int ew_bench_speed(const struct ew_model *model, const struct ew_engine_config *config,
                   const struct ew_speed_options *options, struct ew_speed *out, struct ew_error *err)
{
    struct ew_engine_config adapted = config_for(config, options);
    struct speed s = {.options = options, .out = out, .n_vocab = model->program.n_vocab};
    int rc;

    EW_ASSERT(options->repeats > 0 && options->repeats <= EW_SPEED_REPEATS_MAX && options->batch > 0);
    *out = (struct ew_speed){0};
    rc = ew_pooling_needs_text(model, err);
    if (rc == 0)
        rc = ew_engine_create(model, NULL, &adapted, &s.engine, err);
    if (rc == 0)
        rc = alloc(&s, err);
    if (rc == 0)
        rc = measure(&s, err);
    if (rc == 0)
        describe(&s, model, &adapted);
    ew_engine_destroy(s.engine);                     // makes room for the bandwidth's buffer
    if (rc == 0 && strcmp(out->backend, "cpu") == 0) // the host's memory is no limit of a GPU
        rc = ew_bandwidth_read(out->n_threads, &out->limit_gb_s, err);
    if (rc == 0)
        summarise(&s);
    ew_energy_close(s.energy);
    ew_free(s.ids);
    ew_free(s.itl_ms);
    return rc;
}
