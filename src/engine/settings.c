#include "engine/settings.h"

#include <string.h>

#include "base/assert.h"

#define BLOCK_TOKENS_MAX 4096

int ew_kv_dtype_find(const char *name, enum ew_kv_dtype *out, struct ew_error *err)
{
    static const char *const names[] = {
        [EW_KV_F32] = "f32", [EW_KV_F16] = "f16", [EW_KV_F8] = "fp8", [EW_KV_I8] = "int8"};

    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        if (strcmp(names[i], name) != 0)
            continue;
        *out = (enum ew_kv_dtype)i;
        return 0;
    }
    return ew_fail(err, EW_ERR_USAGE, "kv_cache_dtype is \"%s\" and must be f32, f16, fp8 or int8", name);
}

static int find_policy(const char *name, enum ew_policy *out, struct ew_error *err)
{
    if (strcmp(name, "max_utilization") == 0)
        *out = EW_POLICY_MAX_UTILIZATION;
    else if (strcmp(name, "guaranteed_no_evict") == 0 || name[0] == '\0')
        *out = EW_POLICY_GUARANTEED_NO_EVICT;
    else
        return ew_fail(err, EW_ERR_USAGE,
                       "scheduler_policy is \"%s\" and must be guaranteed_no_evict or max_utilization", name);
    return 0;
}

static int check_share(const char *name, double value, struct ew_error *err)
{
    if (value >= 0 && value <= 1) // false for NaN; 0: not given
        return 0;
    return ew_fail(err, EW_ERR_USAGE, "%s is %g and must be from 0 to 1", name, value);
}

static int check(const struct ew_serve_settings *serve, const struct ew_engine_config *config, struct ew_error *err)
{
    int rc = check_share("gpu_memory_utilization", serve->gpu_memory_utilization, err);

    if (rc == 0)
        rc = check_share("kv_cache_free_gpu_memory_fraction", serve->kv_cache_free_gpu_memory_fraction, err);
    if (rc == 0 && config->block_tokens > BLOCK_TOKENS_MAX)
        rc = ew_fail(err, EW_ERR_USAGE, "tokens_per_block is %u and may be %d at most; use_paged_kv_cache: false does "
                     "without blocks", config->block_tokens, BLOCK_TOKENS_MAX);
    if (rc == 0 && config->max_num_tokens && config->max_num_tokens < config->max_batch_size)
        rc = ew_fail(err, EW_ERR_USAGE, "max_num_tokens is %u and must be at least max_batch_size, which is %u",
                     config->max_num_tokens, config->max_batch_size);
    if (rc == 0 && config->max_sessions && config->max_sessions < config->max_batch_size)
        rc = ew_fail(err, EW_ERR_USAGE,
                     "max_concurrent_sessions is %u and must be at least max_batch_size, which is %u",
                     config->max_sessions, config->max_batch_size);
    return rc;
}

static uint32_t either(uint32_t given, uint32_t fallback)
{
    return given ? given : fallback;
}

static int apply(const struct ew_profile *profile, const struct ew_model *model, bool kv_is_given,
                 struct ew_engine_config *config, struct ew_error *err)
{
    const struct ew_serve_settings *serve = &profile->serve;
    uint32_t trained = model->shape.context_trained;
    int rc = find_policy(serve->scheduler_policy, &config->policy, err);

    if (rc == 0 && !kv_is_given && serve->kv_cache_dtype[0])
        rc = ew_kv_dtype_find(serve->kv_cache_dtype, &config->kv, err);
    if (rc < 0)
        return rc;
    // A batch that was asked for may be larger than the profile's sessions, and the other way round.
    if (config->max_batch_size && !config->max_sessions)
        config->max_sessions = EW_MAX(config->max_batch_size, serve->max_concurrent_sessions);
    if (config->max_sessions && !config->max_batch_size)
        config->max_batch_size = EW_MIN(config->max_sessions, either(serve->max_batch_size, config->max_sessions));
    config->max_batch_size = either(config->max_batch_size, serve->max_batch_size);
    config->max_sessions = either(config->max_sessions, serve->max_concurrent_sessions);
    config->max_num_tokens = either(config->max_num_tokens, serve->max_num_tokens);
    config->block_tokens = either(config->block_tokens, serve->tokens_per_block);
    config->context_max = either(config->context_max, trained ? EW_MIN(serve->context, trained) : serve->context);
    config->reuse = serve->enable_kv_cache_reuse;
    config->whole_prompts = !serve->enable_chunked_context;
    config->contiguous = !serve->use_paged_kv_cache;
    config->memory_utilization = serve->gpu_memory_utilization;
    config->cache_fraction = serve->kv_cache_free_gpu_memory_fraction;
    if (profile->targets.decode_tok_s > 0)
        config->itl_target_s = 1 / profile->targets.decode_tok_s;
    return check(serve, config, err);
}

int ew_settings_apply(const struct ew_profile *profile, const struct ew_model *model, bool kv_is_given,
                      struct ew_engine_config *config, struct ew_error *err)
{
    int rc = apply(profile, model, kv_is_given, config, err);

    if (rc < 0)
        ew_fail_in(err, rc, "the profile " EW_STR_FMT, EW_STR_ARG(profile->id));
    return rc;
}
