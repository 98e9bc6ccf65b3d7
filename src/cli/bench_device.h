#pragma once
// bench kernels on a GPU: each sequence of kernels against plain C on models in small, and what the launches of real
// sizes cost beside the limits measured in the same run.

#include <regex.h>

#include "cli/cli.h"
#include "engine/engine.h"

// filter: only what "op kernels" matches is shown and judged; NULL: all.
int ew_bench_device(const struct ew_args *args, const regex_t *filter, struct ew_error *err) EW_MUST_CHECK;
