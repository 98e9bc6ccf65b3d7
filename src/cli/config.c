// From the options of the command line to the model and the engine's configuration.

#include <string.h>

#include "cli/generate.h"
#include "engine/settings.h"

// The options' table lets only known names through.
static enum ew_kv_dtype kv_of(const char *name)
{
    enum ew_kv_dtype kv = EW_KV_F16;

    return ew_kv_dtype_find(name, &kv, NULL) == 0 ? kv : EW_KV_F16;
}

struct ew_engine_config ew_engine_config_of(const struct ew_args *args)
{
    return (struct ew_engine_config){
        .backend = ew_args_str(args, "backend", "auto"),
        .device =
            {
                .n_threads = (uint32_t)ew_args_int(args, "threads", 0),
                .kernels = strcmp(ew_args_str(args, "kernels", "auto"), "reference") == 0 ? EW_KERNELS_REFERENCE
                                                                                          : EW_KERNELS_AUTO,
                .cpu_max = ew_args_str(args, "cpu-max", NULL),
                .deterministic = ew_args_flag(args, "deterministic"),
                .cache = ew_args_str(args, "cache", NULL),
            },
        .memory_budget = ew_args_bytes(args, "memory-budget", 0),
        .reserve = ew_args_bytes(args, "reserve", 0),
        .kv = kv_of(ew_args_str(args, "kv", "f16")),
        .block_tokens = (uint32_t)ew_args_int(args, "kv-block", 0),
        .context_max = (uint32_t)ew_args_int(args, "ctx", 0),
        .chunk = (uint32_t)ew_args_int(args, "chunk", 0),
        .reuse = true,
        .show_progress = true,
        .self_test = !ew_args_flag(args, "no-self-test"),
    };
}

int ew_model_of(const struct ew_args *args, const char **out, struct ew_error *err)
{
    *out = ew_args_str(args, "model", NULL);
    if (*out)
        return EW_OK;
    ew_fail(err, EW_ERR_USAGE, "no model is given");
    return ew_remedy(err, EW_ERR_USAGE, "Add -m FILE.gguf, -m DIRECTORY or -m demo");
}

int ew_open_model(const struct ew_args *args, struct ew_model **out, struct ew_error *err)
{
    const char *path;
    int rc = ew_model_of(args, &path, err);

    return rc ? rc : ew_model_open(path, out, err);
}
