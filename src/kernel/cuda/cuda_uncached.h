#pragma once
// Programs without caches: encoders, and decoders that only make vectors. The keys and values of a step's tokens go
// into the blocks of a cache that holds one layer, each layer's over those of the one before; so attention is that of
// all other programs, and nothing is kept between steps.

#include "base/alloc.h"
#include "kernel/backend.h"

static inline bool ew_cuda_is_uncached(const struct ew_program *program) { return program->n_groups == 0; }

// The same program with that cache as its only group, made in the arena. Matrices of f32 become f16, unless the kernels
// are the reference's: the fast ones take 16 bits. EW_ERR_UNSUPPORTED where layers differ in their keys and values.
int ew_cuda_uncached_adapt(const struct ew_program *program, bool reference, struct ew_arena *arena,
                           const struct ew_program **out, struct ew_error *err) EW_MUST_CHECK;
// Blocks for all texts of a step: each may leave its last one partly empty.
uint32_t ew_cuda_uncached_blocks(const struct ew_limits *limits);
