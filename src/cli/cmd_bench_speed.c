// bench speed: prefill and decode speed of the engine in this process.

#include "base/buf.h"
#include "bench/speed.h"
#include "cli/generate.h"
#include "cli/op_table.h"
#include "cli/print_json.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)

static const char *const g_kv_names[] = {
    [EW_KV_F32] = "f32", [EW_KV_F16] = "f16", [EW_KV_F8] = "fp8", [EW_KV_I8] = "int8"};

static void append_runs(struct ew_buf *json, const char *name, const double *runs, uint32_t n)
{
    ew_buf_printf(json, ", \"%s\": [", name);
    for (uint32_t i = 0; i < n; i++)
        ew_buf_printf(json, "%s%.6g", i ? ", " : "", runs[i]);
    ew_buf_append_char(json, ']');
}

static int print_json(const struct ew_model *model, const struct ew_engine_config *config,
                      const struct ew_speed_options *options, const struct ew_speed *speed, struct ew_error *err)
{
    struct ew_backend_speed limits = {speed->limit_gb_s * 1e9, speed->multiply_flops_s};
    struct ew_buf json;

    ew_buf_init(&json, JSON_BYTES_MAX);
    ew_bench_json_begin(&json, model, speed->backend, speed->device);
    ew_buf_printf(
        &json,
        ", \"threads\": %u, \"weight_bytes\": %llu, \"kv_dtype\": \"%s\", \"prompt_tokens\": %u, \"gen_tokens\": %u, "
        "\"depth\": %u, \"batch\": %u, \"prefill_tok_s\": %.6g, \"decode_tok_s\": %.6g, \"ttft_ms\": %.6g, ",
        speed->n_threads, (unsigned long long)speed->weight_bytes, g_kv_names[config->kv], options->n_prompt,
        options->n_gen, options->depth, options->batch, speed->prefill_tok_s, speed->decode_tok_s, speed->ttft_ms);
    ew_buf_printf(&json, "\"itl_ms\": {\"p50\": %.6g, \"p95\": %.6g, \"p99\": %.6g}, \"weight_gb_s\": %.6g, ",
                  speed->itl_ms_p50, speed->itl_ms_p95, speed->itl_ms_p99, speed->weight_gb_s);
    if (speed->limit_gb_s > 0)
        ew_buf_printf(&json, "\"limit_gb_s\": %.6g, \"limit_pct\": %.4g, ", speed->limit_gb_s, speed->limit_pct);
    else
        ew_buf_append_str(&json, EW_STR("\"limit_gb_s\": null, \"limit_pct\": null, "));
    ew_buf_printf(&json, "\"peak_memory_bytes\": %llu, \"load_s\": %.6g, \"joules_per_token\": ",
                  (unsigned long long)speed->peak_bytes, speed->load_s);
    if (speed->joules_source)
        ew_buf_printf(&json, "%.6g", speed->joules_per_token);
    else
        ew_buf_append_str(&json, EW_STR("null"));
    if (speed->power_held_share < 0)
        ew_buf_append_str(&json, EW_STR(", \"power_held_share\": null"));
    else
        ew_buf_printf(&json, ", \"power_held_share\": %.4g", speed->power_held_share);
    ew_buf_printf(&json, ", \"warmup_tokens\": %u", speed->n_warmup);
    append_runs(&json, "prefill_tok_s_runs", speed->prefill_runs, speed->n_runs);
    append_runs(&json, "decode_tok_s_runs", speed->decode_runs, speed->n_runs);
    if (options->profile) {
        ew_buf_append_str(&json, EW_STR(", \"ops\": "));
        ew_op_table_append_json(options->profile->ctx, &limits, &json);
    }
    ew_buf_append_str(&json, EW_STR("}\n"));
    return ew_print_json(&json, err);
}

static void print_text(const struct ew_model *model, const struct ew_engine_config *config,
                       const struct ew_speed_options *options, const struct ew_speed *speed)
{
    struct ew_backend_speed limits = {speed->limit_gb_s * 1e9, speed->multiply_flops_s};
    const double mib = 1 << 20;

    printf("%s on %s (%s), kv %s, batch %u, %u runs%s\n", model->path, speed->backend_text, speed->device,
           g_kv_names[config->kv], options->batch, speed->n_runs,
           speed->n_warmup ? " after a warm-up" : " without a warm-up");
    printf("  prefill  %10.1f tok/s   %u tokens, first token after %.1f ms\n", speed->prefill_tok_s, options->n_prompt,
           speed->ttft_ms);
    printf("  decode   %10.1f tok/s   %u tokens from a context of %u, a step %.2f ms (p95 %.2f, p99 %.2f)\n",
           speed->decode_tok_s, options->n_gen, options->depth, speed->itl_ms_p50, speed->itl_ms_p95,
           speed->itl_ms_p99);
    printf("  weights  %10.1f GB/s", speed->weight_gb_s);
    if (speed->limit_gb_s > 0)
        printf("    %.0f %% of the %.1f GB/s that this machine reads its memory with", speed->limit_pct,
               speed->limit_gb_s);
    printf("\n");
    printf("  memory   %10.0f MiB     at most, of which weights %.0f; loaded in %.2f s",
           (double)(speed->device_bytes ? speed->device_bytes : speed->peak_bytes) / mib,
           (double)speed->weight_bytes / mib, speed->load_s);
    if (speed->device_bytes)
        printf("; of the machine %.0f", (double)speed->peak_bytes / mib);
    printf("\n");
    if (speed->joules_source)
        printf("  energy   %10.3f J       a token decoded, by %s\n", speed->joules_per_token, speed->joules_source);
    if (speed->power_held_share >= 0.005)
        printf("  clocks   %10.0f %%       of the time of decoding held down by the GPU's power limit\n",
               100 * speed->power_held_share);
    if (options->profile)
        ew_op_table_print(options->profile->ctx, &limits);
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    struct ew_speed_options options = {
        .n_prompt = (uint32_t)ew_args_int(args, "prompt-tokens", 512),
        .n_gen = (uint32_t)ew_args_int(args, "gen-tokens", 128),
        .depth = (uint32_t)ew_args_int(args, "depth", 0),
        .batch = (uint32_t)ew_args_int(args, "batch", 1),
        .repeats = (uint32_t)ew_args_int(args, "repeats", 3),
        .no_warmup = ew_args_flag(args, "no-warmup"),
        .interrupted = ew_interrupted,
    };
    struct ew_op_table table = {0};
    struct ew_profile_options profile = {.begin = ew_op_table_begin, .row = ew_op_table_add, .ctx = &table};
    struct ew_speed speed;
    struct ew_model *model;
    int rc = ew_open_model(args, &model, err);

    if (rc < 0)
        return rc;
    if (ew_args_flag(args, "profile-ops"))
        options.profile = &profile;
    rc = ew_bench_speed(model, &config, &options, &speed, err);
    if (rc == 0 && ew_args_flag(args, "json"))
        rc = print_json(model, &config, &options, &speed, err);
    else if (rc == 0)
        print_text(model, &config, &options, &speed);
    ew_model_close(model);
    return rc;
}

static const struct ew_opt g_own[] = {
    {"prompt-tokens", 'p', EW_OPT_INT, "N", "tokens of the prompt; default 512", NULL, 1, 16777216},
    {"gen-tokens", 'n', EW_OPT_INT, "N", "tokens decoded; default 128", NULL, 1, 1000000},
    {"depth", 'd', EW_OPT_INT, "N", "context at which decoding starts; default 0", NULL, 0, 16777216},
    {"batch", 'b', EW_OPT_INT, "N", "sequences at once; default 1", NULL, 1, 1024},
    {"repeats", 'r', EW_OPT_INT, "N", "repeats, of which the median is given; default 3", NULL, 1,
     EW_SPEED_REPEATS_MAX},
    {"no-warmup", 0, EW_OPT_FLAG, NULL, "let the first repetition count; default one goes before that does not"},
    {"profile-ops", 0, EW_OPT_FLAG, NULL, "on a GPU: what each kind of launch costs, and how near it is to the limits"},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_bench_speed = {
    .name = "bench speed",
    .usage = "bench speed -m MODEL [-p N] [-n N] [-d N] [-b N] [-r N] [OPTIONS]",
    .summary = "Prefill and decode speed of a model here",
    .details = "The engine runs in this process on random token ids, so no vocabulary is needed; synthetic:SHAPE:TYPE "
               "makes random\n"
               "weights in memory. The limit is this machine's memory bandwidth, measured in the same run.",
    .options = g_options,
    .run = run,
};
