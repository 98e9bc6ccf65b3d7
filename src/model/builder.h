#pragma once
// From a shape to a program: one generic block, driven by the shape alone.

#include "model/shape.h"

// A weight that the program needs, in canonical terms. Where it may stand fused with others in the file, `whole`
// names that tensor and first_row says where its rows begin there.
struct ew_weight_want {
    const char *name; // "blk.3.attn_q", "blk.3.attn_q.bias"; lives as long as the program
    uint64_t rows,
        cols;           // a vector is [1, cols]; of a stack, rows of all experts, and its vectors are [n_experts, cols]
    uint32_t n_experts; // 0: no stack
    uint32_t n_heads;   // of a vector that has a part for each head, or a matrix that stacks one for each; 0 otherwise
    bool is_matrix;
    bool is_transposed; // of a stack of heads: each head's matrix is [cols, rows] in the whole
    const char *whole;  // "blk.3.attn_qkv", or NULL
    uint64_t first_row, whole_rows;
    // Where the whole is stored in groups (EW_FAMILY_GROUPED_QKV, and that of a stack of heads): n_groups times
    // group_rows of these rows, of which the first one stands at group_first of each group.
    uint32_t n_groups, group_rows, group_first;
};

// Finds the weight's bytes; fails where they are missing or of another shape or type.
struct ew_weight_finder {
    int (*find)(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out, struct ew_error *err);
    void *ctx;
};

// Builds into the arena. The shape must be finished.
int ew_program_build(struct ew_program *program, const struct ew_shape *shape, const struct ew_weight_finder *finder,
                     struct ew_arena *arena, struct ew_error *err) EW_MUST_CHECK;
