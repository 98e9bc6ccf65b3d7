#pragma once
// The measured checks of `doctor --selftest`: memory bandwidth, disk, GPU, kernels. They run nothing but edgewise's own
// code and write nothing; what they find are facts, over which rules judge.

#include "platform/facts.h"

struct ew_selftest {
    const char *disk_file; // NULL: the largest library of the system
};

// For struct ew_doctor_options: ctx is a struct ew_selftest. What cannot be measured here stays unknown.
int ew_selftest_measure(void *ctx, struct ew_facts *facts, struct ew_error *err) EW_MUST_CHECK;
