#include "kernel/backend.h"

#include <string.h>

#include "base/assert.h"

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
    if (strcmp(name, "cpu") == 0 || strcmp(name, "auto") == 0)
        return ew_backend_cpu.create(config, out, err);
    ew_fail(err, EW_ERR_UNSUPPORTED, "backend \"%s\" is not part of this build", name);
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "use --backend cpu");
}
