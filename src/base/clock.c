#include "base/clock.h"

#include <time.h>

uint64_t ew_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

double ew_clock_s(void)
{
    return (double)ew_clock_ns() * 1e-9;
}
