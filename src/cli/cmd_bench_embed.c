// bench embed: how fast vectors of texts are made in this process.

#include "base/buf.h"
#include "bench/embed_speed.h"
#include "cli/generate.h"
#include "cli/print_json.h"

#define JSON_BYTES_MAX ((size_t)1 << 20)

static int print_json(const struct ew_model *model, const struct ew_vectors_options *options,
                      const struct ew_vectors_speed *speed, struct ew_error *err)
{
    struct ew_buf json;

    ew_buf_init(&json, JSON_BYTES_MAX);
    ew_bench_json_begin(&json, model, speed->backend, speed->device);
    ew_buf_printf(&json,
                  ", \"text_tokens\": %u, \"texts\": %u, \"batch\": %u, \"latency_ms\": {\"p50\": %.6g, "
                  "\"p95\": %.6g, \"p99\": %.6g}, \"texts_s\": %.6g, \"tok_s\": %.6g, ",
                  options->n_tokens, options->n_texts, options->batch, speed->ms_p50, speed->ms_p95, speed->ms_p99,
                  speed->texts_per_s, speed->tokens_per_s);
    ew_buf_printf(&json, "\"weight_bytes\": %llu, \"workspace_bytes\": %llu, \"load_s\": %.6g}\n",
                  (unsigned long long)speed->weight_bytes, (unsigned long long)speed->workspace_bytes, speed->load_s);
    return ew_print_json(&json, err);
}

static void print_text(const struct ew_model *model, const struct ew_vectors_options *options,
                       const struct ew_vectors_speed *speed)
{
    const double mib = 1 << 20;

    printf("%s on %s, texts of %u tokens\n", model->path, speed->device, options->n_tokens);
    printf("  one      %10.2f ms      p50; p95 %.2f, p99 %.2f\n", speed->ms_p50, speed->ms_p95, speed->ms_p99);
    printf("  many     %10.1f /s      %.0f tok/s, %u texts a step\n", speed->texts_per_s, speed->tokens_per_s,
           options->batch);
    printf("  memory   %10.0f MiB     weights, and %.0f of workspace; loaded in %.2f s\n",
           (double)speed->weight_bytes / mib, (double)speed->workspace_bytes / mib, speed->load_s);
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(args);
    struct ew_vectors_options options = {
        .n_tokens = (uint32_t)ew_args_int(args, "prompt-tokens", 512),
        .batch = (uint32_t)ew_args_int(args, "batch", 16),
        .n_texts = (uint32_t)ew_args_int(args, "texts", 100),
        .interrupted = ew_interrupted,
    };
    struct ew_vectors_speed speed;
    struct ew_model *model;
    int rc = ew_open_model(args, &model, err);

    if (rc < 0)
        return rc;
    rc = ew_bench_vectors(model, &config, &options, &speed, err);
    if (rc == 0 && ew_args_flag(args, "json"))
        rc = print_json(model, &options, &speed, err);
    else if (rc == 0)
        print_text(model, &options, &speed);
    ew_model_close(model);
    return rc;
}

static const struct ew_opt g_own[] = {
    {"prompt-tokens", 'p', EW_OPT_INT, "N", "tokens of a text; default 512", NULL, 1, 65536},
    {"batch", 'b', EW_OPT_INT, "N", "texts of one step, where there are many; default 16", NULL, 1, 4096},
    {"texts", 'n', EW_OPT_INT, "N", "texts of each measurement; default 100", NULL, 1, 1000000},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {ew_opts_model, g_own, ew_opts_engine, ew_opts_common, NULL};

const struct ew_command ew_cmd_bench_embed = {
    .name = "bench embed",
    .usage = "bench embed -m MODEL [-p N] [-b N] [-n N] [OPTIONS]",
    .summary = "How fast a model makes vectors here",
    .details = "The engine runs in this process on random token ids, so no vocabulary is needed: one text after the\n"
               "other, then many at once. synthetic:SHAPE-embed:TYPE makes a decoder that takes the last token.",
    .options = g_options,
    .run = run,
};
