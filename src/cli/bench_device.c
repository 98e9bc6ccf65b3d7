#include "cli/bench_device.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "cli/generate.h"
#include "cli/op_table.h"
#include "engine/prove.h"
#include "model/miniature.h"

#define JSON_BYTES_MAX ((size_t)4 << 20)
#define SEED 1
#define BATCH_MAX 40 // as many sequences as the self-test tries at once
#define PROMPT 512

// Together they use every kind of kernel: layouts, sizes of heads, types of caches, experts, latents, states.
static const struct model {
    const char *name;
    enum ew_kv_dtype kv;
    bool is_timed;
} MODELS[] = {
    {"synthetic:8b:f16", EW_KV_F16, false},       {"synthetic:8b:bf16", EW_KV_F8, false},
    {"synthetic:1.1b:bf16", EW_KV_F16, true},     {"synthetic:8b:q8_0", EW_KV_I8, false},
    {"synthetic:1.1b:q8_0", EW_KV_F16, true},     {"synthetic:0.6b:q8_0", EW_KV_F8, false},
    {"synthetic:8b:q4_0", EW_KV_F16, false},      {"synthetic:1.1b:q4_k", EW_KV_I8, true},
    {"synthetic:8b:awq", EW_KV_F16, false},       {"synthetic:1.1b:fp8", EW_KV_F8, true},
    {"synthetic:0.6b:f16", EW_KV_F32, false},     {"synthetic:30b-a3b:bf16", EW_KV_F16, false},
    {"synthetic:30b-a3b:q8_0", EW_KV_F16, false}, {"synthetic:30b-a3b:q4_0", EW_KV_F16, false},
    {"synthetic:30b-a3b:f16", EW_KV_F16, false},  {"synthetic:30b-a3b:q4_k", EW_KV_F16, false},
    {"synthetic:16b-a2.4b:q8_0", EW_KV_F16, false}, {"synthetic:2b-latent:bf16", EW_KV_F8, false},
    {"synthetic:2b-delta:bf16", EW_KV_F16, false}, {"synthetic:2b-ssd:q8_0", EW_KV_F16, false},
    {"synthetic:1.1b:q6_k", EW_KV_F16, false},    {"synthetic:1.1b:q5_k", EW_KV_F8, false},
    {"synthetic:1.1b:q5_0", EW_KV_I8, false},     {"synthetic:8b:mxfp4", EW_KV_F16, false},
    {"synthetic:8b:nvfp4", EW_KV_F8, false},      {"synthetic:1.1b:q3_k", EW_KV_F16, false},
    {"synthetic:30b-a3b:q4_k_m", EW_KV_F16, false}, {"synthetic:30b-a3b:nvfp4", EW_KV_F16, false},
};

struct bench {
    const struct ew_args *args;
    const regex_t *filter;
    const char *titled; // the model that the rows on standard output are of
    bool as_json, is_shown, is_timed;
    struct ew_backend_speed limits; // where something is timed
    struct ew_buf json;
    uint32_t n_checks, n_failed, n_modules, n_tables;
};

static void show_module(void *ctx, const char *name, uint32_t n_kernels, uint32_t n_all, double seconds)
{
    struct bench *bench = ctx;

    if (bench->as_json)
        ew_buf_printf(&bench->json, "%s{\"name\": \"%s\", \"kernels\": %u, \"of\": %u, \"seconds\": %.3g}",
                      bench->n_modules ? ", " : "", name, n_kernels, n_all, seconds);
    else
        printf("  %-24s %3u of %3u kernels, loaded in %.2f s\n", name, n_kernels, n_all, seconds);
    bench->n_modules++;
}

static int show_device(struct bench *bench, struct ew_backend *backend, struct ew_error *err)
{
    char tier[96];
    int rc = bench->is_timed ? backend->ops->measure(backend, &bench->limits, err) : 0;

    if (rc)
        return rc;
    bench->is_shown = true;
    if (bench->as_json)
        ew_buf_printf(&bench->json,
                      "{\"device\": \"%s\", \"read_gb_s\": %.5g, \"multiply_tflop_s\": %.5g, \"modules\": [",
                      backend->ops->describe(backend), bench->limits.read_bytes_s / 1e9,
                      bench->limits.multiply_flops_s / 1e12);
    else if (!bench->is_timed)
        printf("%s\n", backend->ops->describe(backend));
    else
        printf("%s: reads %.0f GB/s, multiplies bf16 with %.0f TFLOP/s where every GPU has it\n",
               backend->ops->describe(backend), bench->limits.read_bytes_s / 1e9,
               bench->limits.multiply_flops_s / 1e12);
    backend->ops->modules(backend, show_module, bench, tier, sizeof(tier));
    if (bench->as_json)
        ew_buf_printf(&bench->json, "], \"tier\": \"%s\", \"kernels\": [", tier);
    else
        printf("  tier %s\n", tier);
    return 0;
}

static bool wanted(void *ctx, const char *op, const char *kernels)
{
    const struct bench *bench = ctx;
    char name[256];

    snprintf(name, sizeof(name), "%s %s", op, kernels);
    return !bench->filter || regexec(bench->filter, name, 0, NULL, 0) == 0;
}

static void show_row(struct bench *bench, const struct model *model, const struct ew_proof_row *row)
{
    bool pass = row->error <= row->allowed;
    double share = row->error / row->allowed;

    if (!wanted(bench, row->op, row->kernels))
        return;
    if (!bench->as_json && bench->titled != model->name)
        printf("%s\n", model->name);
    bench->titled = model->name;
    if (bench->as_json)
        ew_buf_printf(&bench->json,
                      "%s\n  {\"model\": \"%s\", \"kernels\": \"%s\", \"op\": \"%s\", \"pass\": %s, \"cases\": %u, "
                      "\"error_of_bound\": %.4g}",
                      bench->n_checks ? "," : "", model->name, row->kernels, row->op, pass ? "true" : "false",
                      row->n_cases, share <= 1e30 ? share : 1e30);
    else
        printf("%s %4u cases, error %4.2f of bound  %-24s %s\n", pass ? "ok  " : "FAIL", row->n_cases, share, row->op,
               row->kernels);
    bench->n_checks++;
    bench->n_failed += !pass;
}

// On a backend that has loaded the small model itself: nothing of the real size is ever in memory.
static int check_model(struct bench *bench, const struct model *model, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(bench->args);
    struct ew_proof *proof = ew_alloc(sizeof(*proof));
    struct ew_model *whole = NULL, *small = NULL;
    struct ew_backend *backend = NULL;
    bool is_wrong = false;
    int rc = proof ? ew_model_open(model->name, &whole, err) : ew_fail_memory(err, sizeof(*proof), "a self-test");

    config.kv = model->kv;
    config.max_batch_size = BATCH_MAX;
    config.max_num_tokens = PROMPT;
    if (rc == 0)
        rc = ew_model_miniature(whole, SEED, &small, err);
    if (rc == 0)
        rc = ew_backend_create_for("cuda", &config.device, &small->program, config.kv, &backend, err);
    if (rc == 0)
        rc = backend->ops->load(backend, &small->program, NULL, NULL, err);
    if (rc == 0 && !bench->is_shown)
        rc = show_device(bench, backend, err);
    if (rc == 0)
        rc = ew_prove(backend, small, &config, SEED, proof, err);
    for (uint32_t i = 0; proof && i < proof->n_rows; i++) {
        is_wrong = is_wrong || proof->rows[i].error > proof->rows[i].allowed;
        show_row(bench, model, &proof->rows[i]);
    }
    ew_backend_destroy(backend);
    ew_model_close(small);
    ew_model_close(whole);
    ew_free(proof);
    return rc == EW_ERR_MISMATCH && is_wrong ? 0 : rc; // the rows say it, as far as they are wanted
}

static int time_model(struct bench *bench, const struct model *model, struct ew_error *err)
{
    struct ew_engine_config config = ew_engine_config_of(bench->args);
    struct ew_op_table *table = ew_alloc(sizeof(*table));
    struct ew_profile_options options = {.batch = 1, .depth = PROMPT, .n_prompt = PROMPT, .begin = ew_op_table_begin,
                                         .row = ew_op_table_add, .ctx = table};
    struct ew_model *opened = NULL;
    struct ew_core core = {0};
    int rc = table ? ew_model_open(model->name, &opened, err) : ew_fail_memory(err, sizeof(*table), "the figures");

    config.backend = "cuda";
    config.kv = model->kv;
    config.self_test = config.show_progress = config.reuse = false;
    config.context_max = PROMPT + 2;
    config.max_batch_size = 8;
    if (rc == 0)
        rc = ew_core_init(&core, opened, &config, 0, err);
    if (rc == 0)
        rc = ew_bench_profile(&core, &options, err);
    if (rc == 0)
        ew_op_table_keep(table, wanted, bench);
    if (rc == 0 && bench->as_json) {
        ew_buf_printf(&bench->json, "%s{\"model\": \"%s\", \"ops\": ", bench->n_tables++ ? ", " : "", model->name);
        ew_op_table_append_json(table, &bench->limits, &bench->json);
        ew_buf_append_char(&bench->json, '}');
    } else if (rc == 0) {
        printf("%s, behind %d tokens\n", model->name, PROMPT);
        ew_op_table_print(table, &bench->limits);
    }
    if (core.backend)
        ew_core_fini(&core);
    ew_model_close(opened);
    ew_free(table);
    return rc;
}

static int finish(struct bench *bench, struct ew_error *err)
{
    ew_buf_printf(&bench->json, "],\n \"checks\": %u, \"failed\": %u}\n", bench->n_checks, bench->n_failed);
    if (!bench->as_json)
        printf("%u checks, %u failed\n", bench->n_checks, bench->n_failed);
    else if (ew_buf_ok(&bench->json))
        fwrite(bench->json.ptr, 1, bench->json.len, stdout);
    else
        return ew_fail_memory(err, bench->json.len, "the result");
    if (bench->n_failed)
        return ew_fail(err, EW_ERR_MISMATCH, "%u of %u sequences of kernels are wrong", bench->n_failed,
                       bench->n_checks);
    return 0;
}

int ew_bench_device(const struct ew_args *args, const regex_t *filter, struct ew_error *err)
{
    struct bench bench = {.args = args,
                          .filter = filter,
                          .as_json = ew_args_flag(args, "json"),
                          .is_timed = !ew_args_flag(args, "check")};
    struct model own = {ew_args_str(args, "model", NULL), EW_KV_F16, true};
    const struct model *models = own.name ? &own : MODELS;
    size_t n = own.name ? 1 : EW_COUNT_OF(MODELS);
    int rc = 0;

    ew_buf_init(&bench.json, JSON_BYTES_MAX);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = ew_interrupted() ? ew_fail(err, EW_ERR_CANCELLED, "interrupted") : check_model(&bench, &models[i], err);
    ew_buf_append_str(&bench.json, EW_STR("], \"speeds\": ["));
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (ew_interrupted())
            rc = ew_fail(err, EW_ERR_CANCELLED, "interrupted");
        else if (models[i].is_timed && bench.is_timed)
            rc = time_model(&bench, &models[i], err);
    }
    if (rc == 0)
        rc = finish(&bench, err);
    ew_buf_fini(&bench.json);
    return rc;
}
