// settings: what each key of a device profile becomes in the engine's configuration.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "engine/settings.h"

static struct ew_profiles g_profiles;
static struct ew_model g_model = {.shape = {.context_trained = 131072}};

static int load(void **state)
{
    (void)state;
    return ew_profiles_load(&g_profiles, NULL);
}

static int unload(void **state)
{
    (void)state;
    ew_profiles_fini(&g_profiles);
    return 0;
}

static struct ew_profile profile_of(const char *id)
{
    const struct ew_profile *profile;

    assert_int_equal(ew_profiles_find(&g_profiles, id, &profile, NULL), 0);
    return *profile;
}

static void thor_serves_as_its_profile_says(void **state)
{
    struct ew_profile profile = profile_of("jetson-agx-thor");
    struct ew_engine_config config = {0};

    (void)state;
    assert_int_equal(ew_settings_apply(&profile, &g_model, false, &config, NULL), 0);
    assert_int_equal(config.kv, EW_KV_F8);
    assert_int_equal(config.policy, EW_POLICY_MAX_UTILIZATION);
    assert_int_equal(config.max_num_tokens, 8192);
    assert_int_equal(config.block_tokens, 64);
    assert_int_equal(config.max_batch_size, 16);
    assert_int_equal(config.max_sessions, 20);
    assert_int_equal(config.context_max, 20480);
    assert_true(config.reuse && !config.contiguous && !config.whole_prompts);
    assert_float_equal(config.memory_utilization, 0.90, 1e-9);
    assert_float_equal(config.cache_fraction, 0.85, 1e-9);
    assert_float_equal(config.itl_target_s, 1.0 / 60, 1e-9);
}

static void every_profile_makes_sense(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < g_profiles.count; i++) {
        struct ew_engine_config config = {0};
        struct ew_error err = {0};

        if (ew_settings_apply(&g_profiles.list[i], &g_model, false, &config, &err) < 0)
            fail_msg("%s", err.message);
        assert_in_range(config.max_batch_size, 1, config.max_sessions);
        assert_true(config.context_max > 0 && config.memory_utilization > 0 && config.cache_fraction > 0);
    }
}

static void the_command_line_wins(void **state)
{
    struct ew_profile profile = profile_of("rtx-pro-4000");
    struct ew_engine_config config = {.kv = EW_KV_I8, .context_max = 999, .max_batch_size = 30, .block_tokens = 8};
    struct ew_model model = {.shape = {.context_trained = 2048}};

    (void)state;
    assert_int_equal(ew_settings_apply(&profile, &model, true, &config, NULL), 0);
    assert_int_equal(config.kv, EW_KV_I8);
    assert_int_equal(config.context_max, 999);
    assert_int_equal(config.max_batch_size, 30);
    assert_int_equal(config.max_sessions, 30);
    assert_int_equal(config.block_tokens, 8);
    assert_int_equal(config.policy, EW_POLICY_GUARANTEED_NO_EVICT);

    config = (struct ew_engine_config){.max_sessions = 3};
    assert_int_equal(ew_settings_apply(&profile, &model, false, &config, NULL), 0);
    assert_int_equal(config.kv, EW_KV_F8);
    assert_int_equal(config.max_batch_size, 3);
    assert_int_equal(config.context_max, 2048); // what the model was trained with is less than the profile's 8192
}

static void switches_are_honoured(void **state)
{
    struct ew_profile profile = profile_of("generic");
    struct ew_engine_config config = {0};

    (void)state;
    profile.serve.enable_chunked_context = profile.serve.use_paged_kv_cache = false;
    profile.serve.enable_kv_cache_reuse = false;
    assert_int_equal(ew_settings_apply(&profile, &g_model, false, &config, NULL), 0);
    assert_true(!config.reuse && config.contiguous && config.whole_prompts);
}

static void nonsense_is_named(void **state)
{
    struct ew_profile good = profile_of("generic"), bad[6];
    static const char *const words[] = {"scheduler_policy", "kv_cache_dtype",      "gpu_memory_utilization",
                                        "fraction",         "max_num_tokens is 4", "max_concurrent_sessions is 2"};

    (void)state;
    for (uint32_t i = 0; i < 6; i++)
        bad[i] = good;
    snprintf(bad[0].serve.scheduler_policy, sizeof(bad[0].serve.scheduler_policy), "no_evict");
    snprintf(bad[1].serve.kv_cache_dtype, sizeof(bad[1].serve.kv_cache_dtype), "int4");
    bad[2].serve.gpu_memory_utilization = 1.5;
    bad[3].serve.kv_cache_free_gpu_memory_fraction = -1;
    bad[4].serve.max_num_tokens = 4;
    bad[5].serve.max_concurrent_sessions = 2;
    for (uint32_t i = 0; i < 6; i++) {
        struct ew_engine_config config = {0};
        struct ew_error err = {0};

        assert_int_equal(ew_settings_apply(&bad[i], &g_model, false, &config, &err), EW_ERR_USAGE);
        assert_non_null(strstr(err.message, words[i]));
        assert_non_null(strstr(err.message, "generic"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thor_serves_as_its_profile_says), cmocka_unit_test(every_profile_makes_sense),
        cmocka_unit_test(the_command_line_wins),           cmocka_unit_test(switches_are_honoured),
        cmocka_unit_test(nonsense_is_named),
    };

    return cmocka_run_group_tests_name("settings", tests, load, unload);
}
