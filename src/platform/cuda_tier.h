#pragma once
// The tiers of GPU kernels, modules for newer instructions that are chosen at run time and never required: which of
// them a GPU and its driver take.

#include <stdbool.h>
#include <stddef.h>

struct ew_cuda_tier {
    const char *name;       // "sm_90a"
    int architecture;       // major * 10 + minor, from which on ...
    bool is_alone;          // ... or the only one that has its instructions
    int driver_version_min; // as cuDriverGetVersion has it: the CUDA that came with its version of PTX
};

extern const struct ew_cuda_tier ew_cuda_tiers[]; // newest first, ended by name NULL; the last one is everybody's

bool ew_cuda_tier_runs(const struct ew_cuda_tier *tier, int architecture, int driver_version);
// The newest that runs and why no newer one does: "sm_90: the GPU is sm_120, and the instructions of sm_90a are sm_90's
// alone". "none: ..." where not even the base runs.
void ew_cuda_tier_explain(int architecture, int driver_version, char *out, size_t size);
