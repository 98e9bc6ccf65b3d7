#include "server/metrics.h"

#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "platform/memory.h"

// Seconds. Between tokens some tens of microseconds (tiny models) to seconds; until the first one up to minutes.
static const double g_ttft_bounds[] = {0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 2, 3.5, 5, 10, 20, 60};
static const double g_itl_bounds[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
                                      0.1,    0.15,  0.2,   0.5,   1,    2,     5};
static const double g_e2e_bounds[] = {0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600};

#define BOUNDS(list) .bounds = list, .n_bounds = EW_COUNT_OF(list)

void ew_metrics_init(struct ew_metrics *metrics)
{
    *metrics = (struct ew_metrics){
        .ttft = {BOUNDS(g_ttft_bounds)},
        .itl = {BOUNDS(g_itl_bounds)},
        .e2e = {BOUNDS(g_e2e_bounds)},
        .queue = {BOUNDS(g_ttft_bounds)},
    };
}

void ew_histogram_add(struct ew_histogram *histogram, double value, uint64_t times)
{
    uint32_t i = 0;

    while (i < histogram->n_bounds && value > histogram->bounds[i])
        i++;
    histogram->counts[i] += times;
    histogram->sum += value * (double)times;
}

void ew_metrics_reply(struct ew_metrics *metrics, const char *route, int status)
{
    uint32_t i = 0;

    while (i < metrics->n_replies &&
           (metrics->replies[i].status != status || strcmp(metrics->replies[i].route, route) != 0))
        i++;
    if (i == EW_METRICS_REPLIES_MAX) // routes and statuses are few; hostile requests cannot make more of them
        return;
    if (i == metrics->n_replies)
        metrics->replies[metrics->n_replies++] = (struct ew_metrics_replies){route, status, 0};
    metrics->replies[i].count++;
}

// ---- the text -----------------------------------------------------------------------------------------------------

static void write_head(struct ew_buf *out, const char *name, const char *type, const char *help)
{
    ew_buf_printf(out, "# HELP edgewise_%s %s\n# TYPE edgewise_%s %s\n", name, help, name, type);
}

static void write_histogram(struct ew_buf *out, const char *name, const char *help, const struct ew_histogram *h)
{
    uint64_t total = 0;

    write_head(out, name, "histogram", help);
    for (uint32_t i = 0; i < h->n_bounds; i++) {
        total += h->counts[i];
        ew_buf_printf(out, "edgewise_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, h->bounds[i], total);
    }
    total += h->counts[h->n_bounds];
    ew_buf_printf(out, "edgewise_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, total);
    ew_buf_printf(out, "edgewise_%s_sum %.9g\nedgewise_%s_count %" PRIu64 "\n", name, h->sum, name, total);
}

static void write_batch_sizes(struct ew_buf *out, const struct ew_engine_stats *engine)
{
    uint64_t total = 0;

    write_head(out, "batch_size", "histogram", "Sequences in a step.");
    for (uint32_t i = 0; i < EW_BATCH_BUCKETS; i++) {
        total += engine->batch_steps[i];
        if (i + 1 < EW_BATCH_BUCKETS)
            ew_buf_printf(out, "edgewise_batch_size_bucket{le=\"%u\"} %" PRIu64 "\n", ew_batch_bucket_max(i), total);
    }
    ew_buf_printf(out, "edgewise_batch_size_bucket{le=\"+Inf\"} %" PRIu64 "\n", total);
    ew_buf_printf(out, "edgewise_batch_size_sum %" PRIu64 "\nedgewise_batch_size_count %" PRIu64 "\n",
                  engine->batch_sequences, total);
}

static void write_replies(struct ew_buf *out, const struct ew_metrics *metrics)
{
    write_head(out, "requests_total", "counter", "Replies by route and status.");
    for (uint32_t i = 0; i < metrics->n_replies; i++)
        ew_buf_printf(out, "edgewise_requests_total{route=\"%s\",status=\"%d\"} %" PRIu64 "\n",
                      metrics->replies[i].route, metrics->replies[i].status, metrics->replies[i].count);
}

static void write_finishes(struct ew_buf *out, const struct ew_engine_stats *engine)
{
    static const char *const names[EW_FINISH_COUNT] = {
        [EW_FINISH_STOP] = "stop",           [EW_FINISH_LENGTH] = "length",     [EW_FINISH_CONTEXT] = "context",
        [EW_FINISH_CANCELLED] = "cancelled", [EW_FINISH_DEADLINE] = "deadline", [EW_FINISH_ERROR] = "error",
    };

    write_head(out, "answers_total", "counter", "Answers that ended, by why.");
    for (uint32_t i = 0; i < EW_FINISH_COUNT; i++)
        ew_buf_printf(out, "edgewise_answers_total{finish=\"%s\"} %" PRIu64 "\n", names[i], engine->n_finished[i]);
}

struct scalar {
    const char *name, *type, *help;
    double value;
};

static void write_scalars(struct ew_buf *out, const struct scalar *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        write_head(out, list[i].name, list[i].type, list[i].help);
        ew_buf_printf(out, "edgewise_%s %.15g\n", list[i].name, list[i].value);
    }
}

static void write_counters(struct ew_buf *out, const struct ew_metrics *m, const struct ew_service_stats *s)
{
    const struct ew_engine_stats *e = &s->engine;
    const struct scalar list[] = {
        {"prompt_tokens_total", "counter", "Tokens of the prompts of ended answers.", (double)m->prompt_tokens},
        {"prompt_tokens_cached_total", "counter", "Of these, taken from caches.", (double)m->cached_tokens},
        {"answer_tokens_total", "counter", "Tokens of answers.", (double)m->answer_tokens},
        {"clients_gone_total", "counter", "Clients that left before their answer was whole.", (double)m->n_gone},
        {"submitted_total", "counter", "Requests that the engine took.", (double)s->n_submitted},
        {"refused_total", "counter", "Requests refused because the queue was full.", (double)s->n_refused},
        {"steps_total", "counter", "Steps of the engine.", (double)e->steps},
        {"prefill_tokens_total", "counter", "Tokens of prompts that were computed.", (double)e->prefill_tokens},
        {"decode_tokens_total", "counter", "Tokens that were decoded.", (double)e->decode_tokens},
        {"reused_tokens_total", "counter", "Tokens of prompts that caches had already.", (double)e->reused_tokens},
        {"recomputed_tokens_total", "counter", "Tokens computed again after a preemption.",
         (double)e->recomputed_tokens},
        {"preemptions_total", "counter", "Requests that gave up their caches for others.", (double)e->n_preempted},
        {"prefill_seconds_total", "counter", "Time spent on prompts.", e->prefill_s},
        {"decode_seconds_total", "counter", "Time spent on decoding.", e->decode_s},
    };

    write_scalars(out, list, EW_COUNT_OF(list));
}

static void write_gauges(struct ew_buf *out, const struct ew_metrics *m, const struct ew_service_stats *s)
{
    const struct ew_engine_stats *e = &s->engine;
    double now_s = ew_clock_s();
    const struct scalar list[] = {
        {"requests_open", "gauge", "Requests of clients that are being answered.", m->n_open},
        {"queue_length", "gauge", "Requests that wait for the engine.", s->n_queued},
        {"queue_max", "gauge", "Requests that may wait.", s->queue_max},
        {"running_prefill", "gauge", "Requests whose prompt is being computed.", e->n_prefilling},
        {"running_decode", "gauge", "Requests that are decoding.", e->n_decoding},
        {"running_max", "gauge", "Requests that may run at once.", e->n_running_max},
        {"batch_size_last", "gauge", "Sequences in the last step.", e->n_batch_last},
        {"kv_blocks", "gauge", "Cache blocks in all.", e->blocks_total},
        {"kv_blocks_used", "gauge", "Cache blocks that running requests hold.", e->blocks_used - e->blocks_cached},
        {"kv_blocks_reusable", "gauge", "Cache blocks kept for reuse, given up when needed.", e->blocks_cached},
        {"kv_blocks_free", "gauge", "Cache blocks that hold nothing.", e->blocks_total - e->blocks_used},
        {"context_max_tokens", "gauge", "Longest prompt and answer together.", e->context_max},
        {"memory_budget_bytes", "gauge", "The budget that was set before loading.", (double)e->budget_bytes},
        {"memory_weights_bytes", "gauge", "Weights.", (double)e->need.weight_bytes},
        {"memory_workspace_bytes", "gauge", "Workspace of a step.", (double)e->need.workspace_bytes},
        {"memory_caches_bytes", "gauge", "Caches.", (double)e->need.cache_bytes},
        {"process_resident_bytes", "gauge", "Memory of the process that is resident.",
         (double)ew_memory_resident_bytes()},
        {"step_running_seconds", "gauge", "How long the present step has been running.",
         s->busy ? now_s - s->busy_since_s : 0},
        {"last_step_age_seconds", "gauge", "Time since the last step ended.", now_s - s->last_step_s},
    };

    write_scalars(out, list, EW_COUNT_OF(list));
}

void ew_metrics_write(const struct ew_metrics *metrics, const struct ew_service_stats *stats, struct ew_buf *out)
{
    write_replies(out, metrics);
    write_finishes(out, &stats->engine);
    write_histogram(out, "ttft_seconds", "From a request to the first token of its answer.", &metrics->ttft);
    write_histogram(out, "itl_seconds", "Between two tokens of an answer.", &metrics->itl);
    write_histogram(out, "e2e_seconds", "From a request to the end of its answer.", &metrics->e2e);
    write_histogram(out, "queue_seconds", "From a request to the begin of work on it.", &metrics->queue);
    write_batch_sizes(out, &stats->engine);
    write_counters(out, metrics, stats);
    write_gauges(out, metrics, stats);
}

void ew_metrics_write_energy(double joules, double watts, struct ew_buf *out)
{
    const struct scalar list[] = {
        {"energy_joules_total", "counter", "Energy that the box has used since the start.", joules},
        {"power_watts", "gauge", "What the box draws.", watts},
    };

    write_scalars(out, list, EW_COUNT_OF(list));
}
