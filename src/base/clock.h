#pragma once
// Monotonic time.

#include <stdint.h>

uint64_t ew_clock_ns(void);
double ew_clock_s(void);
