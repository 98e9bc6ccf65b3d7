#pragma once
// The text of a module of kernels, as clang writes it: declarations, then one entry after the other, each from
// ".visible .entry NAME(" to its closing brace.

#include <stdbool.h>

#include "base/str.h"

// A kernel's entry in the text; empty where there is none.
struct ew_str ew_cuda_ptx_entry(const char *text, const char *kernel);
// The text without its other kernels, for the caller to free; NULL without memory.
char *ew_cuda_ptx_only(const char *text, const char *kernel);
// Whether a text of one kernel waits for the kernel before it, so that it may be started early.
bool ew_cuda_ptx_waits(const char *text);
// Whether it can be launched in clusters of blocks: it waits for those of its own.
bool ew_cuda_ptx_clusters(const char *text);
