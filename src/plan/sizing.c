// Sizes as the engine decides them: plan asks the same functions, so that both say the same.

#include "engine/fit.h"
#include "engine/settings.h"
#include "model/model.h"
#include "plan/outline.h"
#include "platform/memory.h"

// Far more than any machine has: whether it fits is judged by plan itself.
#define BUDGET_BYTES (1ull << 50)

static int configure(const struct ew_model *model, const struct ew_outline_load *load, struct ew_engine_config *config,
                     struct ew_error *err)
{
    int rc;

    *config = (struct ew_engine_config){.context_max = load->context, .max_sessions = load->sessions};
    rc = ew_kv_dtype_find(load->kv, &config->kv, err);
    if (rc == 0)
        rc = ew_settings_apply(load->profile, model, true, config, err);
    config->backend = "cpu";
    config->memory_budget = BUDGET_BYTES;
    return rc;
}

int ew_outline_size(const char *model_path, const struct ew_outline_load *load, struct ew_outline_sizes *out,
                    struct ew_error *err)
{
    struct ew_engine_config config;
    struct ew_backend *backend = NULL;
    struct ew_model *model;
    struct ew_fit fit;
    int rc = ew_model_open(model_path, &model, err);

    *out = (struct ew_outline_sizes){0};
    if (rc < 0)
        return rc;
    if (model->program.n_weights == 0)
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "%s has no weights", model_path);
    if (rc == 0)
        rc = configure(model, load, &config, err);
    if (rc == 0)
        rc = ew_backend_create(config.backend, &config.device, &backend, err);
    if (rc == 0) {
        config = ew_engine_config_complete(&config, model, backend);
        rc = ew_fit(model, backend, &config, 0, &fit, err);
    }
    if (rc == 0)
        *out = (struct ew_outline_sizes){
            .known = true,
            .weight_bytes = (double)fit.need.weight_bytes,
            .cache_bytes = (double)fit.need.cache_bytes,
            .workspace_bytes =
                (double)(fit.need.workspace_bytes + fit.host_bytes) + (double)ew_memory_resident_bytes(),
        };
    ew_backend_destroy(backend);
    ew_model_close(model);
    return rc;
}
