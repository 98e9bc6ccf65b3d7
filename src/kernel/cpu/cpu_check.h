#pragma once
// Every kernel of every instruction set against the plain C reference, on inputs that favour extremes and odd
// sizes, within the bound that stands beside each check (cpu_check.c), and timed. `bench kernels` and the
// unit tests run it.

#include "base/pool.h"
#include "kernel/cpu/cpu_ops.h"

struct ew_cpu_check {
    const char *op, *isa;
    char variant[48]; // "u4_k", "silu", ...
    uint32_t n_cases;
    double error;        // largest, as a share of its bound: at most 1 is right
    double seconds;      // of one run of what is timed; 0: not timed
    double bytes, flops; // that it reads from memory, and computes; 0: the figure says nothing
    double cache_bytes;  // of rows in the first cache: read and written
};

struct ew_cpu_check_config {
    uint32_t isa_mask;                           // levels to check
    bool (*wanted)(void *ctx, const char *name); // "linear u4_k"; NULL: all
    void (*report)(void *ctx, const struct ew_cpu_check *check);
    void *ctx;
    struct ew_pool *pool;  // NULL: nothing is timed
    uint64_t stream_bytes; // weights of a timed product: far more than the caches hold
};

// Returns EW_ERR_MISMATCH where any kernel was out of its bound; all are reported.
int ew_cpu_check_run(const struct ew_cpu_check_config *config, struct ew_error *err) EW_MUST_CHECK;

// Additions and multiplications of f32 a second that all threads together reach with the widest instructions
// of the mask.
int ew_cpu_measure_flops(struct ew_pool *pool, uint32_t isa_mask, double *flops_s, struct ew_error *err) EW_MUST_CHECK;
