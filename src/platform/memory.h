#pragma once
// How much memory this machine has, and how much of it is for us: the smaller of what the kernel could give without
// swapping and of what the control groups of this process still allow.

#include <stdint.h>

#include "base/error.h"

struct ew_memory {
    uint64_t total_bytes;          // MemTotal
    uint64_t free_bytes;           // MemAvailable: free memory and caches that can be dropped
    uint64_t cgroup_limit_bytes;   // of the group that leaves the least; 0: no limit
    uint64_t cgroup_used_bytes;    // of that group, without file caches that can be dropped
    uint64_t available_bytes;      // for us
};

// `root` as in platform/sysfile.h.
int ew_memory_read(const char *root, struct ew_memory *out, struct ew_error *err) EW_MUST_CHECK;

uint64_t ew_memory_resident_bytes(void); // of this process now (VmRSS); 0 where unknown
uint64_t ew_memory_peak_bytes(void);     // of this process since its start (VmHWM); 0 where unknown
