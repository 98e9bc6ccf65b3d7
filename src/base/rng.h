#pragma once
// Random numbers keyed by (seed, position): the same key always gives the same numbers, in any order and on any
// backend. Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

#include <stddef.h>
#include <stdint.h>

struct ew_rng {
    uint64_t seed, position; // the key
    uint32_t counter;        // numbers drawn for this key, in fours
    uint32_t block[4];
    uint32_t left;           // words of block not yet given
};

struct ew_rng ew_rng_at(uint64_t seed, uint64_t position);
uint32_t ew_rng_u32(struct ew_rng *rng);
double ew_rng_unit(struct ew_rng *rng);   // [0, 1), 53 bits
float ew_rng_normal(struct ew_rng *rng);  // mean 0, deviation 1 (Box-Muller)
uint32_t ew_rng_below(struct ew_rng *rng, uint32_t n); // uniform in [0, n), n > 0
void ew_rng_fill(uint64_t seed, uint64_t position, void *bytes, size_t len); // raw random bytes
