// A plan that holds, as a device profile that `serve --profile FILE` takes.

#include "base/assert.h"
#include "plan/plan.h"

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

// A scalar in double quotes; profiles' names and models' paths may hold anything.
static void append_quoted(struct ew_buf *out, struct ew_str text)
{
    ew_buf_append_char(out, '"');
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];

        if (c == '"' || c == '\\')
            ew_buf_append_char(out, '\\');
        ew_buf_append_char(out, c < ' ' || c == 0x7f ? '?' : (char)c);
    }
    ew_buf_append_char(out, '"');
}

static void append_device(const struct ew_plan_request *r, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("device:\n  name: "));
    append_quoted(out, r->profile->title);
    ew_buf_append_str(out, EW_STR("\n  match: {}\n"));
    if (r->bandwidth_gb_s > 0)
        ew_buf_printf(out, "  bandwidth_gb_s: {value: %.6g, source: \"the plan\"}\n", r->bandwidth_gb_s);
    ew_buf_printf(out, "  memory_usable_mib: {value: %.0f, source: \"the plan\"}\n", r->memory_mib);
}

static void append_serve(const struct ew_plan_request *r, struct ew_buf *out)
{
    const struct ew_serve_settings *serve = &r->profile->serve;
    uint32_t batch = EW_MAX(EW_MIN(r->sessions, serve->max_batch_size), 1u);

    ew_buf_printf(out, "\nserve:\n  kv_cache_dtype: %s\n  kv_cache_free_gpu_memory_fraction: %.2f\n", r->kv,
                  serve->kv_cache_free_gpu_memory_fraction);
    ew_buf_printf(out, "  enable_chunked_context: %s\n  max_num_tokens: %u\n  use_paged_kv_cache: %s\n",
                  truth(serve->enable_chunked_context), serve->max_num_tokens, truth(serve->use_paged_kv_cache));
    ew_buf_printf(out, "  tokens_per_block: %u\n  scheduler_policy: %s\n  enable_kv_cache_reuse: %s\n",
                  serve->tokens_per_block, serve->scheduler_policy, truth(serve->enable_kv_cache_reuse));
    ew_buf_printf(out, "  gpu_memory_utilization: %.2f\n  max_batch_size: %u\n  max_concurrent_sessions: %u\n",
                  serve->gpu_memory_utilization, batch, r->sessions);
    ew_buf_printf(out, "  context: %u\n", r->context);
}

void ew_plan_serving_profile(const struct ew_plan_request *r, const struct ew_plan *p, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("# Planned for "));
    append_quoted(out, ew_str_of(r->model.name));
    ew_buf_printf(out, ", weights in %s:\n# %.0f MiB weights, %.0f MiB caches, %.0f MiB work, of %.0f MiB.\n\n",
                  r->model.type, p->weight_mib, p->cache_mib, p->workspace_mib, p->budget_mib);
    append_device(r, out);
    append_serve(r, out);
    if (r->targets.ttft_ms > 0 || r->targets.decode_tok_s > 0)
        ew_buf_append_str(out, EW_STR("\ntargets:\n"));
    if (r->targets.ttft_ms > 0)
        ew_buf_printf(out, "  ttft_ms: %.6g\n", r->targets.ttft_ms);
    if (r->targets.decode_tok_s > 0)
        ew_buf_printf(out, "  decode_tok_s: %.6g\n", r->targets.decode_tok_s);
}
