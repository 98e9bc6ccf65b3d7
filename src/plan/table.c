// Which sizes of models a device is good for. The classes are computed from what fits and how fast it can be expected
// to decode; people read about 8 tokens a second.

#include "base/assert.h"
#include "plan/plan.h"

#define EXCELLENT_TOK_S 25.0 // three times as fast as one reads
#define EXCELLENT_SHARE 0.6  // of the memory: room for longer contexts and more sessions
#define GOOD_TOK_S 8.0
#define GOOD_SHARE 0.85

enum fit { FIT_IMPOSSIBLE, FIT_TIGHT, FIT_GOOD, FIT_EXCELLENT };
static const char *const g_fit_names[] = {"impossible", "tight", "good", "excellent"};

// Shapes as the usual models of each size have them (config.json of Llama 3, Qwen 3, Mistral, gpt-oss).
static const struct {
    const char *name;
    struct ew_outline_figures figures;
} g_models[] = {
    {"1B", {1.24e9, 0, 16, 8, 64, 2048}},
    {"3B", {3.2e9, 0, 28, 8, 128, 3072}},
    {"4B", {4.0e9, 0, 36, 8, 128, 2560}},
    {"8B", {8.0e9, 0, 32, 8, 128, 4096}},
    {"14B", {14.8e9, 0, 40, 8, 128, 5120}},
    {"24B", {23.6e9, 0, 40, 8, 128, 5120}},
    {"32B", {32.8e9, 0, 64, 8, 128, 5120}},
    {"70B", {70.6e9, 0, 80, 8, 128, 8192}},
    {"405B", {405.9e9, 0, 126, 8, 128, 16384}},
    {"30B-A3B", {30.5e9, 3.3e9, 48, 4, 128, 2048}},
    {"120B-A5B", {116.8e9, 5.1e9, 36, 8, 64, 2880}},
    {"235B-A22B", {235.1e9, 22.2e9, 94, 4, 128, 4096}},
};
static const char *const g_types[] = {"bf16", "q8_0", "q4_k_m"};

struct cell {
    enum fit fit;
    double total_mib, decode_tok_s; // expected; 0: not known
};

static enum fit fit_of(const struct ew_plan *p)
{
    double share = p->total_mib / p->budget_mib;
    bool timed = p->decode_tok_s_expected > 0;

    if (!p->fits)
        return FIT_IMPOSSIBLE;
    if (share <= EXCELLENT_SHARE && (!timed || p->decode_tok_s_expected >= EXCELLENT_TOK_S))
        return FIT_EXCELLENT;
    return share <= GOOD_SHARE && (!timed || p->decode_tok_s_expected >= GOOD_TOK_S) ? FIT_GOOD : FIT_TIGHT;
}

static struct cell cell_of(const struct ew_plan_request *request, size_t model, size_t type)
{
    struct ew_plan_request r = *request;
    struct ew_plan plan;
    int code = ew_outline_of_figures(&r.model, &g_models[model].figures, ew_weight_type_find(g_types[type]), NULL);

    EW_ASSERT(code == EW_OK); // our own figures
    r.sizes.known = false;
    ew_plan_make(&r, &plan);
    return (struct cell){fit_of(&plan), plan.total_mib, plan.decode_tok_s_expected};
}

static void append_cell(struct ew_buf *out, struct cell cell)
{
    if (cell.fit == FIT_IMPOSSIBLE)
        ew_buf_printf(out, "  %-10s%5.0f GiB  ", g_fit_names[cell.fit], cell.total_mib / 1024);
    else if (cell.decode_tok_s > 0)
        ew_buf_printf(out, "  %-10s%5.0f tok/s", g_fit_names[cell.fit], cell.decode_tok_s);
    else
        ew_buf_printf(out, "  %-21s", g_fit_names[cell.fit]);
}

void ew_plan_table_text(const struct ew_plan_request *request, struct ew_buf *out)
{
    ew_buf_printf(out, "on " EW_STR_FMT ", %.0f MiB, %u session%s of %u\n\n%-10s",
                  EW_STR_ARG(request->profile->title), request->memory_mib - request->reserve_mib, request->sessions,
                  request->sessions == 1 ? "" : "s", request->context, "model");
    for (size_t t = 0; t < EW_COUNT_OF(g_types); t++)
        ew_buf_printf(out, t + 1 < EW_COUNT_OF(g_types) ? "  %-21s" : "  %s", g_types[t]);
    for (size_t m = 0; m < EW_COUNT_OF(g_models); m++) {
        ew_buf_printf(out, "\n%-10s", g_models[m].name);
        for (size_t t = 0; t < EW_COUNT_OF(g_types); t++)
            append_cell(out, cell_of(request, m, t));
    }
    ew_buf_printf(out,
                  "\n\nexcellent: %.0f tok/s or more and at most %.0f %% of the memory; good: %.0f tok/s, %.0f %%;\n"
                  "tight: it fits; impossible: it does not.%s\n",
                  EXCELLENT_TOK_S, 100 * EXCELLENT_SHARE, GOOD_TOK_S, 100 * GOOD_SHARE,
                  request->bandwidth_gb_s > 0 ? "" : "\nBy memory alone: speeds need --bandwidth or --measure.");
}

void ew_plan_table_json(const struct ew_plan_request *request, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("{\"profile\": "));
    ew_buf_append_json(out, request->profile->id);
    ew_buf_printf(out, ", \"context\": %u, \"sessions\": %u, \"models\": [", request->context, request->sessions);
    for (size_t m = 0; m < EW_COUNT_OF(g_models); m++)
        for (size_t t = 0; t < EW_COUNT_OF(g_types); t++) {
            struct cell cell = cell_of(request, m, t);

            ew_buf_printf(out, "%s\n  {\"model\": \"%s\", \"type\": \"%s\", \"class\": \"%s\", ", m + t ? "," : "",
                          g_models[m].name, g_types[t], g_fit_names[cell.fit]);
            ew_buf_printf(out, "\"total_mib\": %.6g, \"decode_tok_s\": %.6g}", cell.total_mib, cell.decode_tok_s);
        }
    ew_buf_append_str(out, EW_STR("]}\n"));
}
