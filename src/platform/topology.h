#pragma once
// Which cores of this machine are for us, and their caches.

#include <stdint.h>

struct ew_topology {
    uint32_t n_logical;   // logical CPUs that the affinity mask allows (captured trees: that are online)
    uint32_t n_physical;  // cores among them; SMT siblings count once
    double quota_cpus;    // CPUs' worth of time that the control groups allow; 0: no limit
    // what to start threads for: n_physical, or the quota rounded up where that is less; at least 1
    uint32_t n_usable;
    uint64_t l1d_bytes;   // of one core; 0 where unknown, also below
    uint64_t l2_bytes;
    uint64_t l3_bytes;    // of one instance: cores may share it, and there may be several
};

// `root` as in platform/sysfile.h. Never fails: what cannot be read counts as one core, or as unknown.
void ew_topology_read(const char *root, struct ew_topology *out);
