#include "kernel/backend.h"

#include <string.h>

#include "base/assert.h"
#include "base/log.h"

static const struct {
    const char *name;
    double tolerance; // rel of the logits against a full-precision reference
} ARITH[] = {
    [EW_ARITH_REFERENCE] = {"reference", 1e-3},
    [EW_ARITH_F16] = {"f16", 3e-3},
    [EW_ARITH_BF16] = {"bf16", 2e-2},
    [EW_ARITH_I8] = {"i8", 5e-2},
};

const char *ew_arith_name(enum ew_arith arith)
{
    EW_ASSERT(arith < EW_COUNT_OF(ARITH));
    return ARITH[arith].name;
}

double ew_arith_tolerance(enum ew_arith arith)
{
    EW_ASSERT(arith < EW_COUNT_OF(ARITH));
    return ARITH[arith].tolerance;
}

int ew_backend_create(const char *name, const struct ew_backend_config *config, struct ew_backend **out,
                      struct ew_error *err)
{
    *out = NULL;
    if (strcmp(name, "cpu") == 0)
        return ew_backend_cpu.create(config, out, err);
    if (strcmp(name, "cuda") == 0)
        return ew_backend_cuda.create(config, out, err);
    ew_fail(err, EW_ERR_UNSUPPORTED, "backend \"%s\" is not part of this build", name);
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "use --backend cpu");
}

static int create_named(const char *name, const struct ew_backend_config *config, const struct ew_program *program,
                        enum ew_kv_dtype kv, struct ew_backend **out, struct ew_error *err)
{
    int rc = ew_backend_create(name, config, out, err);

    if (rc == 0 && (*out)->ops->supports)
        rc = (*out)->ops->supports(*out, program, kv, err);
    if (rc) {
        ew_backend_destroy(*out);
        *out = NULL;
    }
    return rc;
}

int ew_backend_create_for(const char *name, const struct ew_backend_config *config, const struct ew_program *program,
                          enum ew_kv_dtype kv, struct ew_backend **out, struct ew_error *err)
{
    struct ew_error why;

    if (strcmp(name, "auto") != 0)
        return create_named(name, config, program, kv, out, err);
    if (config->cpu_max) // a limit on the CPU's instructions is meant for the CPU
        return create_named("cpu", config, program, kv, out, err);
    if (create_named("cuda", config, program, kv, out, &why) == 0)
        return 0;
    ew_log(EW_LOG_INFO, "the CPU computes, not a GPU: %s", why.message);
    return create_named("cpu", config, program, kv, out, err);
}
