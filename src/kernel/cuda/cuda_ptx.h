#pragma once
// The text of a module of kernels, as clang writes it: declarations, then one entry after the other, each from
// ".visible .entry NAME(" to its closing brace.

#include <stdbool.h>

#include "base/str.h"

// Cuts out the entries that `keep` does not want: the driver compiles what it is given, one module at a time however
// many threads ask. Returns how many are left; *n_all is how many there were.
unsigned ew_cuda_ptx_keep(char *text, bool (*keep)(void *ctx, struct ew_str name), void *ctx, unsigned *n_all);
// Whether the kernel waits for the one before it, so that it may be started early.
bool ew_cuda_ptx_waits(const char *text, const char *kernel);
