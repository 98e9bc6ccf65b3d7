#include "platform/cuda_tier.h"

#include <stdio.h>

const struct ew_cuda_tier ew_cuda_tiers[] = {
    {"sm_90a", 90, true, 12000},
    {"sm_90", 90, false, 12010},
    {"sm_89", 89, false, 12040},
    {"sm_80", 80, false, 11040},
    {NULL, 0, false, 0},
};

static bool has_instructions(const struct ew_cuda_tier *tier, int architecture)
{
    return tier->is_alone ? architecture == tier->architecture : architecture >= tier->architecture;
}

bool ew_cuda_tier_runs(const struct ew_cuda_tier *tier, int architecture, int driver_version)
{
    return has_instructions(tier, architecture) && driver_version >= tier->driver_version_min;
}

void ew_cuda_tier_explain(int architecture, int driver_version, char *out, size_t size)
{
    const struct ew_cuda_tier *tier = ew_cuda_tiers, *missed;
    const char *name;

    while (tier->name && !ew_cuda_tier_runs(tier, architecture, driver_version))
        tier++;
    name = tier->name ? tier->name : "none";
    if (tier == ew_cuda_tiers) {
        snprintf(out, size, "%s: the newest there is", name);
        return;
    }
    missed = tier - 1;
    if (!has_instructions(missed, architecture))
        snprintf(out, size, "%s: the GPU is sm_%d, and %s needs %s%d", name, architecture, missed->name,
                 missed->is_alone ? "exactly sm_" : "sm_", missed->architecture);
    else
        snprintf(out, size, "%s: the driver serves CUDA %d.%d, and %s needs %d.%d", name, driver_version / 1000,
                 driver_version % 1000 / 10, missed->name, missed->driver_version_min / 1000,
                 missed->driver_version_min % 1000 / 10);
}
