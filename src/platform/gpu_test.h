#pragma once
// Whether the GPU really computes: memory there and back through a kernel that the driver compiles from PTX.

#include "platform/facts.h"

// In a child process with a time limit. Sets gpu_test_ok, with gpu_test_error where it failed, gpu_round_trip_ms (a
// few bytes copied there, one kernel, and back) and gpu_copy_gbs (host to device); sets nothing where there is no
// driver or no GPU.
void ew_gpu_test(struct ew_facts *facts);
