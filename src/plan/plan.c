#include "plan/plan.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"

#define MIB (1024.0 * 1024.0)
// Shares of the physical limit that well-made engines reach: decode of dense models on Thor and Orin 0.85 to 0.90 of
// the bandwidth, prefill about 0.45 of the dense arithmetic (published benchmarks of several engines).
#define DECODE_SHARE 0.85
#define PREFILL_SHARE 0.45
// Activations of one step, logits and the driver's own memory: 3 % of the weights and at least this.
#define WORKSPACE_SHARE 0.03
#define WORKSPACE_MIB_MIN 64.0
#define DRIVER_MIB 500.0 // a CUDA context with loaded modules

static double kv_bytes(const struct ew_plan_request *r, double elements, double scales)
{
    return elements * r->kv_bits / 8 + (r->kv_scaled ? scales * 2 : 0);
}

static double session_bytes(const struct ew_plan_request *r, double context)
{
    return kv_bytes(r, r->model.kv_elements, r->model.kv_scales) * context +
           kv_bytes(r, r->model.kv_fixed_elements, r->model.kv_fixed_scales) + r->model.state_bytes;
}

static void plan_memory(const struct ew_plan_request *r, struct ew_plan *p)
{
    bool gpu = r->profile && ew_profile_number(r->profile, "compute_capability", 0) > 0;
    double left, fixed, per_token = kv_bytes(r, r->model.kv_elements, r->model.kv_scales);

    p->budget_mib = r->memory_mib - r->reserve_mib;
    p->weight_mib = r->model.weight_bytes / MIB;
    p->kv_token_bytes = per_token;
    p->session_mib = session_bytes(r, r->context) / MIB;
    p->cache_mib = p->session_mib * r->sessions;
    p->workspace_mib = EW_MAX(WORKSPACE_MIB_MIN, WORKSPACE_SHARE * p->weight_mib) + (gpu ? DRIVER_MIB : 0);
    if (r->sizes.known) {
        p->weight_mib = r->sizes.weight_bytes / MIB;
        p->cache_mib = r->sizes.cache_bytes / MIB;
        p->workspace_mib = r->sizes.workspace_bytes / MIB;
    }
    p->total_mib = p->weight_mib + p->cache_mib + p->workspace_mib;
    left = (p->budget_mib - p->weight_mib - p->workspace_mib) * (r->cache_fraction > 0 ? r->cache_fraction : 1);
    p->fits = p->total_mib <= p->budget_mib && p->cache_mib <= left;
    fixed = session_bytes(r, 0) / MIB;
    if (left <= 0)
        return;
    if (p->session_mib > 0)
        p->sessions_max = (uint32_t)EW_MIN(left / p->session_mib, 1e6);
    if (per_token > 0 && left / r->sessions > fixed)
        p->context_max = (uint32_t)EW_MIN((left / r->sessions - fixed) * MIB / per_token, 1e9);
}

static void plan_speed(const struct ew_plan_request *r, struct ew_plan *p)
{
    double bandwidth = r->bandwidth_gb_s * 1e9, full = session_bytes(r, r->context);

    if (bandwidth > 0) {
        p->decode_tok_s_max = bandwidth / r->model.read_bytes;
        p->decode_tok_s_expected = DECODE_SHARE * p->decode_tok_s_max;
        p->decode_full_tok_s_max = bandwidth / (r->model.read_bytes + full);
        p->batch_tok_s_max = r->sessions * bandwidth / (r->model.read_bytes + r->sessions * full);
    }
    if (r->flops > 0) {
        p->prefill_tok_s_max = r->flops / (2 * r->model.active_params);
        p->prefill_tok_s_expected = PREFILL_SHARE * p->prefill_tok_s_max;
        p->ttft_ms_min = 1e3 * r->prompt_tokens / p->prefill_tok_s_max;
        p->ttft_ms_expected = 1e3 * r->prompt_tokens / p->prefill_tok_s_expected;
    }
    if (r->disk_gb_s > 0)
        p->load_s_min = r->model.weight_bytes / 1e9 / r->disk_gb_s;
    if (r->profile && p->decode_tok_s_expected > 0)
        p->joules_per_token = ew_profile_number(r->profile, "power_w", 0) / p->decode_tok_s_expected;
}

void ew_plan_make(const struct ew_plan_request *request, struct ew_plan *plan)
{
    *plan = (struct ew_plan){0};
    EW_ASSERT(request->sessions > 0 && request->context > 0);
    plan_memory(request, plan);
    plan_speed(request, plan);
}

// ---- contexts ----

static const uint32_t g_contexts[] = {4096, 32768, 131072};

struct context_plan {
    double session_mib, decode_tok_s_max;
    uint32_t sessions_max;
};

static struct context_plan plan_context(const struct ew_plan_request *r, const struct ew_plan *p, uint32_t context)
{
    double bytes = session_bytes(r, context), left = p->budget_mib - p->weight_mib - p->workspace_mib;
    struct context_plan c = {.session_mib = bytes / MIB};

    if (left > 0 && bytes > 0)
        c.sessions_max = (uint32_t)EW_MIN(left / c.session_mib, 1e6);
    if (r->bandwidth_gb_s > 0)
        c.decode_tok_s_max = r->bandwidth_gb_s * 1e9 / (r->model.read_bytes + bytes);
    return c;
}

// ---- verdicts ----

struct verdict {
    const char *what, *unit;
    double asked, bound; // the best that is possible
    bool at_most;        // asked is a ceiling (latencies) rather than a floor
};

#define VERDICTS_MAX 8

static uint32_t verdicts(const struct ew_plan_request *r, const struct ew_plan *p, struct verdict *out)
{
    const struct verdict all[] = {
        {"decode", "tok/s", r->targets.decode_tok_s, p->decode_tok_s_max, false},
        {"TTFT", "ms", r->targets.ttft_ms, p->ttft_ms_min, true},
        {"load", "s", r->load_target_s, p->load_s_min, true},
        {"embedding width", "", r->width_target, r->model.width, false},
    };
    uint32_t count = 0;

    for (size_t i = 0; i < EW_COUNT_OF(all); i++)
        if (all[i].asked > 0 && all[i].bound > 0)
            out[count++] = all[i];
    return count;
}

static bool possible(const struct verdict *v)
{
    return v->at_most ? v->asked >= v->bound : v->asked <= v->bound;
}

bool ew_plan_holds(const struct ew_plan_request *request, const struct ew_plan *plan)
{
    struct verdict list[VERDICTS_MAX];
    uint32_t count = verdicts(request, plan, list);
    bool holds = plan->fits;

    for (uint32_t i = 0; i < count; i++)
        holds &= possible(&list[i]);
    return holds;
}

// ---- reports ----

static void append_gib(struct ew_buf *out, const char *label, double mib)
{
    if (mib >= 1024)
        ew_buf_printf(out, "  %-22s%10.2f GiB\n", label, mib / 1024);
    else
        ew_buf_printf(out, "  %-22s%10.1f MiB\n", label, mib);
}

// The widest type that would fit, and what else would help.
static void append_advice(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    const struct ew_weight_type *now = ew_weight_type_find(r->model.type), *type;

    if (p->fits)
        return;
    for (type = ew_weight_types; type->name; type++) {
        struct ew_plan_request narrower = *r;
        struct ew_plan tried;

        if (!now || type->bits >= now->bits)
            continue;
        narrower.model.weight_bytes *= type->bits / now->bits;
        ew_plan_make(&narrower, &tried);
        if (tried.fits)
            break;
    }
    if (now && type->name)
        ew_buf_printf(out, "  -> weights in %s would fit (--quant %s)\n", type->name, type->name);
    if (p->context_max >= 512)
        ew_buf_printf(out, "  -> a context of %u fits %u session%s (--ctx)\n", p->context_max, r->sessions,
                      r->sessions == 1 ? "" : "s");
    if (p->sessions_max > 0 && p->sessions_max < r->sessions)
        ew_buf_printf(out, "  -> %u session%s fit at this context (--sessions)\n", p->sessions_max,
                      p->sessions_max == 1 ? "" : "s");
    if (r->kv_bits > 8 && p->cache_mib > p->weight_mib / 4)
        ew_buf_append_str(out, EW_STR("  -> caches of 8 bits take half as much (--kv fp8 or --kv int8)\n"));
    if (!type->name && p->context_max < 512)
        ew_buf_append_str(out, EW_STR("  -> no type of weights and no context makes it fit: take a smaller model\n"));
}

static void append_vector_speed(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    if (p->prefill_tok_s_max > 0)
        ew_buf_printf(out, "  texts of %-13u%10.1f a second at most, %.1f expected (%.0f tok/s)\n", r->prompt_tokens,
                      p->prefill_tok_s_max / r->prompt_tokens, p->prefill_tok_s_expected / r->prompt_tokens,
                      p->prefill_tok_s_expected);
    if (p->load_s_min > 0)
        ew_buf_printf(out, "  %-22s%10.1f s at least (%.1f GB/s from disk)\n", "load", p->load_s_min, r->disk_gb_s);
}

static void append_speed(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    if (p->decode_tok_s_max <= 0) {
        ew_buf_append_str(out,
                          EW_STR("speed: not known without the memory bandwidth (--bandwidth GB/s, or --profile)\n"));
        return;
    }
    ew_buf_append_str(out, EW_STR("speed\n"));
    if (r->model.makes_vectors) {
        append_vector_speed(r, p, out);
        return;
    }
    ew_buf_printf(out, "  %-22s%10.1f tok/s at most, %.1f expected (%.0f GB/s over %.2f GB a token)\n",
                  "decode, one session", p->decode_tok_s_max, p->decode_tok_s_expected, r->bandwidth_gb_s,
                  r->model.read_bytes / 1e9);
    ew_buf_printf(out, "  %-22s%10.1f tok/s at most\n", "... at full context", p->decode_full_tok_s_max);
    if (r->sessions > 1)
        ew_buf_printf(out, "  %-22s%10.1f tok/s at most, together\n", "decode, all sessions", p->batch_tok_s_max);
    if (p->prefill_tok_s_max > 0) {
        ew_buf_printf(out, "  %-22s%10.0f tok/s at most, %.0f expected\n", "prefill", p->prefill_tok_s_max,
                      p->prefill_tok_s_expected);
        ew_buf_printf(out, "  TTFT of %-14u%10.0f ms at least, %.0f expected\n", r->prompt_tokens, p->ttft_ms_min,
                      p->ttft_ms_expected);
    }
    if (p->load_s_min > 0)
        ew_buf_printf(out, "  %-22s%10.1f s at least (%.1f GB/s from disk)\n", "load", p->load_s_min, r->disk_gb_s);
    if (p->joules_per_token > 0)
        ew_buf_printf(out, "  %-22s%10.2f J a token at full power\n", "energy", p->joules_per_token);
}

// The bound and why it is one.
static void append_verdict(const struct ew_plan_request *r, const struct verdict *v, struct ew_buf *out)
{
    ew_buf_printf(out, "target %s %.4g%s%s: %s, %s %.*f", v->what, v->asked, v->unit[0] ? " " : "", v->unit,
                  possible(v) ? "possible" : "impossible", v->at_most ? "at least" : "at most",
                  v->bound >= 100 ? 0 : 1, v->bound);
    if (strcmp(v->what, "decode") == 0)
        ew_buf_printf(out, ": %.4g GB/s over %.4g GB that each token reads\n", r->bandwidth_gb_s,
                      r->model.read_bytes / 1e9);
    else if (strcmp(v->what, "load") == 0)
        ew_buf_printf(out, ": %.4g GB at %.4g GB/s; %.4g s would need %.3g GB/s\n", r->model.weight_bytes / 1e9,
                      r->disk_gb_s, v->asked, r->model.weight_bytes / 1e9 / v->asked);
    else if (strcmp(v->what, "TTFT") == 0)
        ew_buf_printf(out, ": %.3g Gflop at %.4g Tflop/s\n", 2e-9 * r->model.active_params * r->prompt_tokens,
                      r->flops / 1e12);
    else
        ew_buf_append_str(out, EW_STR(": the model's hidden states are no wider\n"));
}

// What the usual contexts cost, whatever context was asked for.
static void append_contexts(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    if (!r->model.kv_known || r->model.makes_vectors)
        return;
    ew_buf_append_str(out, EW_STR("\n  context     a session   sessions   decode at its end\n"));
    for (size_t i = 0; i < EW_COUNT_OF(g_contexts); i++) {
        struct context_plan c = plan_context(r, p, g_contexts[i]);

        ew_buf_printf(out, "  %7u  %8.0f MiB  %9u", g_contexts[i], c.session_mib, c.sessions_max);
        if (c.decode_tok_s_max > 0 && c.sessions_max > 0)
            ew_buf_printf(out, "   %11.1f tok/s", c.decode_tok_s_max);
        ew_buf_append_str(out, r->model.context_trained && g_contexts[i] > r->model.context_trained
                                   ? EW_STR("   longer than it was trained with\n")
                                   : EW_STR("\n"));
    }
}

void ew_plan_text(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    struct verdict list[VERDICTS_MAX];
    uint32_t count = verdicts(r, p, list);

    ew_buf_printf(out, "%s, %.4g B parameters, weights in %s\non " EW_STR_FMT "\n\nmemory\n", r->model.name,
                  r->model.params / 1e9, r->model.type, EW_STR_ARG(r->profile->title));
    append_gib(out, "weights", p->weight_mib);
    if (r->model.makes_vectors) {
        ew_buf_printf(out, "  %-22s%10s     texts of up to %u tokens become %s\n", "caches", "none", r->context,
                      r->model.makes_scores ? "scores" : "vectors");
    } else if (r->model.kv_known) {
        append_gib(out, "caches", p->cache_mib);
        ew_buf_printf(out, "  %-22s%10.1f KiB a token, %u session%s of %u\n", "", p->kv_token_bytes / 1024, r->sessions,
                      r->sessions == 1 ? "" : "s", r->context);
    } else {
        ew_buf_append_str(out,
                          EW_STR("  caches                not known without --layers, --kv-heads and --head-dim\n"));
    }
    append_gib(out, "workspace and driver", p->workspace_mib);
    append_gib(out, "together", p->total_mib);
    append_gib(out, "there is", p->budget_mib);
    if (r->cache_fraction > 0 && r->cache_fraction < 1)
        ew_buf_printf(out, "  %-22s%10.0f %% of what weights and workspace leave\n", "of which caches take",
                      100 * r->cache_fraction);
    ew_buf_printf(out, "%s", p->fits ? "fits" : "does not fit");
    if (p->fits && r->model.kv_known && !r->model.makes_vectors)
        ew_buf_printf(out, "; up to %u session%s of %u, or a context of %u", p->sessions_max,
                      p->sessions_max == 1 ? "" : "s", r->context, p->context_max);
    ew_buf_append_char(out, '\n');
    append_advice(r, p, out);
    append_contexts(r, p, out);
    ew_buf_append_char(out, '\n');
    append_speed(r, p, out);
    for (uint32_t i = 0; i < count; i++)
        append_verdict(r, &list[i], out);
}

void ew_plan_json(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    const struct {
        const char *key;
        double value;
    } numbers[] = {
        {"params", r->model.params},
        {"active_params", r->model.active_params},
        {"weight_bytes", r->model.weight_bytes},
        {"read_bytes_per_token", r->model.read_bytes},
        {"kv_bytes_per_token", p->kv_token_bytes},
        {"session_mib", p->session_mib},
        {"cache_mib", p->cache_mib},
        {"workspace_mib", p->workspace_mib},
        {"total_mib", p->total_mib},
        {"budget_mib", p->budget_mib},
        {"context", r->context},
        {"sessions", r->sessions},
        {"context_max", p->context_max},
        {"sessions_max", p->sessions_max},
        {"bandwidth_gb_s", r->bandwidth_gb_s},
        {"decode_tok_s_max", p->decode_tok_s_max},
        {"decode_tok_s_expected", p->decode_tok_s_expected},
        {"decode_full_context_tok_s_max", p->decode_full_tok_s_max},
        {"batch_tok_s_max", p->batch_tok_s_max},
        {"prefill_tok_s_max", p->prefill_tok_s_max},
        {"prefill_tok_s_expected", p->prefill_tok_s_expected},
        {"ttft_ms_min", p->ttft_ms_min},
        {"ttft_ms_expected", p->ttft_ms_expected},
        {"load_s_min", p->load_s_min},
        {"joules_per_token", p->joules_per_token},
    };
    struct verdict list[VERDICTS_MAX];
    uint32_t count = verdicts(r, p, list);

    ew_buf_append_str(out, EW_STR("{\"model\": "));
    ew_buf_append_json(out, ew_str_of(r->model.name));
    ew_buf_append_str(out, EW_STR(", \"type\": "));
    ew_buf_append_json(out, ew_str_of(r->model.type));
    ew_buf_append_str(out, EW_STR(", \"profile\": "));
    ew_buf_append_json(out, r->profile->id);
    ew_buf_printf(out, ", \"fits\": %s, \"holds\": %s", p->fits ? "true" : "false",
                  ew_plan_holds(r, p) ? "true" : "false");
    for (size_t i = 0; i < EW_COUNT_OF(numbers); i++)
        ew_buf_printf(out, ", \"%s\": %.10g", numbers[i].key, numbers[i].value);
    ew_buf_append_str(out, EW_STR(", \"targets\": ["));
    for (uint32_t i = 0; i < count; i++)
        ew_buf_printf(out, "%s{\"what\": \"%s\", \"asked\": %.10g, \"bound\": %.10g, \"possible\": %s}", i ? ", " : "",
                      list[i].what, list[i].asked, list[i].bound, possible(&list[i]) ? "true" : "false");
    ew_buf_append_str(out, EW_STR("], \"contexts\": ["));
    for (size_t i = 0; i < EW_COUNT_OF(g_contexts) && r->model.kv_known; i++) {
        struct context_plan c = plan_context(r, p, g_contexts[i]);

        ew_buf_printf(out, "%s{\"context\": %u, \"session_mib\": %.10g, \"sessions_max\": %u, ", i ? ", " : "",
                      g_contexts[i], c.session_mib, c.sessions_max);
        ew_buf_printf(out, "\"decode_tok_s_max\": %.6g}", c.decode_tok_s_max);
    }
    ew_buf_append_str(out, EW_STR("]}\n"));
}
