#pragma once
// The control groups that this process is in. A limit may be set at any level from its own group up to the root, so a
// question about limits visits them all.

#include <stdbool.h>

// Called for each directory that exists, innermost first: `dir` is an absolute path below `root`, v2 tells the version.
typedef void (*ew_cgroup_fn)(void *ctx, const char *root, const char *dir, bool v2);

// `controller` is "cpu" or "memory". In a container /proc/self/cgroup may name a path that exists only outside; the
// levels that do exist are visited, which are the container's own.
void ew_cgroup_visit(const char *root, const char *controller, ew_cgroup_fn fn, void *ctx);
