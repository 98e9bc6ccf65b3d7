#include "cli/serving.h"

#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cli/generate.h"
#include "engine/settings.h"

// Without a profile: enough for a crowd at an edge box; caches are cut to what the memory allows.
#define BATCH_DEFAULT 32
#define MODELS_MAX 16

const struct ew_opt ew_opts_serving[] = {
    {"model", 'm', EW_OPT_STRINGS, "M[=ALIAS]", "GGUF file, Hugging Face directory or demo; clients call it ALIAS"},
    {"tokenizer", 0, EW_OPT_STRING, "M", "vocabulary and template of another model, or a GGUF of nothing else"},
    {"profile", 0, EW_OPT_STRING, "NAME", "settings of a device of `edgewise profiles`; options given here win"},
    {"batch", 'b', EW_OPT_INT, "N", "sequences of one step; default the profile's, or 32", NULL, 1, 4096},
    {"sessions", 0, EW_OPT_INT, "N", "requests that run at once; default the profile's, or --batch", NULL, 1, 65536},
    {"max-num-tokens", 0, EW_OPT_INT, "N", "tokens of one step; default the profile's, or as --chunk", NULL, 1, 65536},
    {"queue", 0, EW_OPT_INT, "N", "requests that may wait besides; beyond them 429; default 64", NULL, 1, 1000000},
    {"policy", 0, EW_OPT_CHOICE, "NAME", "who is admitted; default the profile's, or guaranteed_no_evict",
     "guaranteed_no_evict|max_utilization"},
    {"no-reuse", 0, EW_OPT_FLAG, NULL, "keep no computed prefixes"},
    {"request-timeout", 0, EW_OPT_FLOAT, "S", "seconds that an answer may take; default 0, no limit", NULL, 0, 1e6},
    {"stall-timeout", 0, EW_OPT_FLOAT, "S", "seconds after which a step counts as stuck; default 30", NULL, 0.1, 1e6},
    EW_OPT_END,
};

// "M=ALIAS", where M itself is no file of that name. The alias of a plain M is its last part without ".gguf".
static int split_model(struct ew_serving *serving, const char *given, struct ew_error *err)
{
    const char *equals = access(given, F_OK) == 0 ? NULL : strrchr(given, '=');
    struct ew_str path = {given, equals ? (size_t)(equals - given) : strlen(given)}, id;

    while (path.len > 1 && path.ptr[path.len - 1] == '/')
        path.len--;
    id = equals ? ew_str_of(equals + 1) : path;
    for (size_t i = 0; !equals && i < path.len; i++)
        if (path.ptr[i] == '/')
            id = (struct ew_str){path.ptr + i + 1, path.len - i - 1};
    if (!equals && ew_str_ends(id, ".gguf"))
        id.len -= strlen(".gguf");
    if (path.len == 0 || id.len == 0)
        return ew_fail(err, EW_ERR_USAGE, "--model needs MODEL or MODEL=ALIAS, not \"%s\"", given);
    serving->model_path = ew_alloc(path.len + 1);
    serving->model_id = ew_alloc(id.len + 1);
    if (!serving->model_path || !serving->model_id)
        return ew_fail_memory(err, path.len + id.len, "a model's name");
    memcpy(serving->model_path, path.ptr, path.len);
    memcpy(serving->model_id, id.ptr, id.len);
    return 0;
}

static int find_model(struct ew_serving *serving, const struct ew_args *args, struct ew_error *err)
{
    const char *given[MODELS_MAX];
    uint32_t count = ew_args_strings(args, "model", given, MODELS_MAX);

    if (count == 0) {
        ew_fail(err, EW_ERR_USAGE, "no model is given");
        return ew_remedy(err, EW_ERR_USAGE, "Add -m FILE.gguf, -m DIRECTORY or -m demo");
    }
    if (count > 1) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%u models are given and one process serves one", count);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "Start one `edgewise serve` for each, on ports of their own");
    }
    return split_model(serving, given[0], err);
}

static int load_profile(struct ew_serving *serving, const struct ew_args *args, struct ew_error *err)
{
    const char *name = ew_args_str(args, "profile", NULL);
    int rc = name ? ew_profiles_load(&serving->profiles, err) : 0;

    if (name && rc == 0)
        rc = ew_profiles_find(&serving->profiles, name, &serving->profile, err);
    return rc;
}

static int configure(struct ew_serving *serving, const struct ew_args *args, struct ew_error *err)
{
    struct ew_engine_config *engine = &serving->config.service.engine;
    const char *policy = ew_args_str(args, "policy", NULL);
    int rc = 0;

    *engine = ew_engine_config_of(args);
    engine->max_batch_size = (uint32_t)ew_args_int(args, "batch", 0);
    engine->max_sessions = (uint32_t)ew_args_int(args, "sessions", 0);
    engine->max_num_tokens = (uint32_t)ew_args_int(args, "max-num-tokens", 0);
    engine->reuse = true;
    if (serving->profile)
        rc = ew_settings_apply(serving->profile, serving->model, ew_args_has(args, "kv"), engine, err);
    if (rc < 0)
        return rc;
    if (!engine->max_batch_size)
        engine->max_batch_size = engine->max_sessions ? EW_MIN(engine->max_sessions, BATCH_DEFAULT) : BATCH_DEFAULT;
    if (!engine->max_sessions)
        engine->max_sessions = engine->max_batch_size;
    if (engine->max_sessions < engine->max_batch_size)
        return ew_fail(err, EW_ERR_USAGE, "--sessions is %u and must be at least --batch, which is %u",
                       engine->max_sessions, engine->max_batch_size);
    if (policy)
        engine->policy = strcmp(policy, "max_utilization") == 0 ? EW_POLICY_MAX_UTILIZATION
                                                                : EW_POLICY_GUARANTEED_NO_EVICT;
    if (ew_args_flag(args, "no-reuse"))
        engine->reuse = false;
    serving->config.service.queue_max = (uint32_t)ew_args_int(args, "queue", 0);
    serving->config.deadline_s = ew_args_float(args, "request-timeout", 0);
    serving->config.stall_s = ew_args_float(args, "stall-timeout", 0);
    return 0;
}

// What models that write text, or score pairs, put their input into.
static int load_format(struct ew_serving *serving, const struct ew_modelfile *file, struct ew_error *err)
{
    const struct ew_pooling *pooling = &serving->model->pooling;

    if (pooling->kind == EW_POOLING_NONE)
        return ew_chat_format_load(file, serving->tok, &serving->chat, err);
    if (pooling->pair_template.ptr)
        return ew_pair_format_compile(pooling->pair_template, serving->tok, &serving->pairs, err);
    return 0;
}

// The file that has the vocabulary; NULL: none has.
static int find_vocabulary(struct ew_serving *serving, const char *given, const struct ew_modelfile **file,
                           struct ew_error *err)
{
    *file = serving->model->is_synthetic ? NULL : &serving->model->file;
    if (!given)
        return 0;
    *file = &serving->tok_file;
    return ew_modelfile_open(&serving->tok_file, given, false, err);
}

static int check_vocabulary(const struct ew_serving *serving, const char *given, struct ew_error *err)
{
    uint32_t n_model = serving->model->program.n_vocab, n_given = ew_tokenizer_info(serving->tok)->n_vocab;

    if (!given || n_given <= n_model)
        return 0;
    return ew_fail(err, EW_ERR_USAGE, "the vocabulary of %s has %u tokens and the model %s knows %u", given, n_given,
                   serving->model_path, n_model);
}

// A model without a tokenizer can be asked with token ids, and one without a template with plain prompts.
static int load_text(struct ew_serving *serving, const char *given, struct ew_error *err)
{
    const struct ew_modelfile *file;
    struct ew_error why = {0};
    int rc = find_vocabulary(serving, given, &file, err);

    if (rc < 0 || !file)
        return rc;
    rc = ew_tokenizer_load(file, &serving->tok, &why);
    if (rc < 0)
        serving->tok = NULL;
    else
        rc = load_format(serving, file, &why);
    if (rc == EW_ERR_UNSUPPORTED && (serving->tok || !given)) {
        ew_log_error(&why);
        rc = 0;
    }
    if (rc < 0 && err)
        *err = why;
    return rc < 0 || !serving->tok ? rc : check_vocabulary(serving, given, err);
}

int ew_serving_open(struct ew_serving *serving, const struct ew_args *args, struct ew_error *err)
{
    int rc;

    *serving = (struct ew_serving){0};
    rc = find_model(serving, args, err);
    if (rc == 0)
        rc = load_profile(serving, args, err);
    if (rc == 0)
        rc = ew_model_open(serving->model_path, &serving->model, err);
    if (rc == 0 && !serving->model->shape.has_weights)
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "%s holds a vocabulary and no weights", serving->model_path);
    if (rc == 0)
        rc = configure(serving, args, err);
    if (rc == 0)
        rc = load_text(serving, ew_args_str(args, "tokenizer", NULL), err);
    if (rc < 0) {
        ew_serving_close(serving);
        return rc;
    }
    serving->config.model_id = serving->model_id;
    serving->config.model = serving->model;
    serving->config.tok = serving->tok;
    serving->config.chat = serving->chat;
    serving->config.pairs = serving->pairs;
    return 0;
}

void ew_serving_close(struct ew_serving *serving)
{
    ew_chat_format_free(serving->chat);
    ew_pair_format_free(serving->pairs);
    ew_tokenizer_free(serving->tok);
    ew_modelfile_close(&serving->tok_file);
    ew_model_close(serving->model);
    if (serving->profiles.list)
        ew_profiles_fini(&serving->profiles);
    ew_free(serving->model_path);
    ew_free(serving->model_id);
    *serving = (struct ew_serving){0};
}

static double megabytes(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

void ew_serving_report(const struct ew_serving *serving, const struct ew_api *api, FILE *to)
{
    static const char *const kv_names[] = {
        [EW_KV_F32] = "f32", [EW_KV_F16] = "f16", [EW_KV_F8] = "fp8", [EW_KV_I8] = "int8"};
    const struct ew_engine_config *engine = &serving->config.service.engine;
    struct ew_service_stats stats;

    ew_api_stats(api, &stats);
    fprintf(to, "edgewise: %s (%s) on %s, loaded in %.2f s\n", serving->model_id, serving->model_path,
            stats.engine.backend_text, stats.engine.load_s);
    fprintf(to, "edgewise: budget %.0f MB: weights %.1f MB, workspace %.1f MB, caches %.1f MB (%s, %u blocks)",
            megabytes(stats.engine.budget_bytes), megabytes(stats.engine.need.weight_bytes),
            megabytes(stats.engine.need.workspace_bytes), megabytes(stats.engine.need.cache_bytes),
            kv_names[engine->kv], stats.engine.blocks_total);
    if (stats.engine.driver_bytes)
        fprintf(to, ", the driver %.1f MB", megabytes(stats.engine.driver_bytes));
    fprintf(to, "\n");
    fprintf(to, "edgewise: context %u tokens, %u requests at once in steps of %u, %u may wait, %s, reuse %s",
            stats.engine.context_max, stats.engine.n_running_max, engine->max_batch_size, stats.queue_max,
            engine->policy == EW_POLICY_MAX_UTILIZATION ? "max_utilization" : "guaranteed_no_evict",
            engine->reuse ? "on" : "off");
    if (serving->profile)
        fprintf(to, ", profile " EW_STR_FMT, EW_STR_ARG(serving->profile->id));
    fprintf(to, "\n");
}
