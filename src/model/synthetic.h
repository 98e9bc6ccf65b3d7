#pragma once
// Models without a file, for benchmarks and tests: the shapes of well-known models with reproducible random
// weights, which are made row by row where a backend asks for them. Scales keep activations finite.

#include "model/builder.h"

struct ew_synthetic {
    const struct ew_synthetic_type *type;
    uint32_t n_layers;
    uint64_t seed;  // of the next weight
    uint64_t bytes; // of all weights so far, as stored
    uint64_t type_bytes[EW_DTYPE_COUNT];
    struct ew_arena *arena; // for the orders of columns, which live as long as the program
};

// "synthetic:1.1b:q8_0": the shape, and what its weights are made from.
int ew_synthetic_parse(struct ew_synthetic *synthetic, const char *model, struct ew_arena *arena,
                       struct ew_shape *shape, struct ew_error *err) EW_MUST_CHECK;
struct ew_weight_finder ew_synthetic_finder(struct ew_synthetic *synthetic);

// Rows of `cols` elements whose sums have a deviation near 1. Of types that cannot be made like this, f16.
struct ew_weight_source ew_synthetic_matrix(enum ew_dtype dtype, uint64_t cols, uint64_t seed);
// Makes it one whose columns are read better in another order (ew_weight_source.ordered), which all matrices of as many
// columns have, as those of one input do in checkpoints.
int ew_synthetic_reorder(struct ew_arena *arena, uint64_t cols, struct ew_weight_source *out,
                         struct ew_error *err) EW_MUST_CHECK;
// A vector, or rows of them: mean, and deviation around it.
struct ew_weight_source ew_synthetic_vector(uint64_t cols, float mean, float deviation, uint64_t seed);
