#pragma once
// bench kernels on a GPU: each sequence of kernels against plain C on models in small, and what the launches of real
// sizes cost beside the limits measured in the same run.

#include "cli/cli.h"
#include "engine/engine.h"

int ew_bench_device(const struct ew_args *args, struct ew_error *err) EW_MUST_CHECK;
