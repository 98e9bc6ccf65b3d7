#pragma once
// Scores of a layer's experts for one token. The product that leaves the layer's input in f32 (ptx/vector.c) multiplies
// its own rows with the router's columns, too, and adds the results to one sum for each expert; the experts' kernel
// (ptx/chosen.c) does the norm, which is a factor of all scores. So there is no kernel for scores between the two. Sums
// are integers: they do not depend on the order in which blocks add. Each block has its columns of the router in one
// piece: gathered from the matrix they cost more than they save. Shared by both sides; addresses are the GPU's.

#include <stdint.h>

// Sums count in 2^-32. What a block adds is at most 2^22, so that 512 blocks cannot overflow them; a residual's error
// of 512 * 2^-32 is one of 1e-5 in the scores where its root mean square is 0.01.
#define EW_SCORE_ONE 4294967296.0f
#define EW_SCORE_MOST 4194304.0f
// Additions to one sector of the second cache wait for each other: those of four experts are in one, 512 bytes from the
// next four's.
#define EW_SCORE_AT(expert) ((expert) / 4 * 64 + (expert) % 4)
#define EW_SCORE_BYTES(n_experts) (((uint64_t)(n_experts) + 3) / 4 * 512)

// Rows of a block, filled up to whole quads.
#define EW_SCORE_STRIDE(rows, n_blocks) (((rows) / (n_blocks) + 4) / 4 * 4)

struct ew_score_job {
    uint64_t sums;   // i64 at EW_SCORE_AT of each expert, zeros before
    uint64_t router; // f32 [n_blocks, n_experts, stride]: each block's columns by the norm's weights, then zeros
    uint32_t n_experts, stride;
};

// How the router's matrix comes to lie so: once, before the first step.
struct ew_router_job {
    uint64_t codes, scales, mins; // [n_experts, rows] of `layout`, of enum ew_cuda_layout
    uint64_t norm_weight, out;    // f32
    uint32_t layout, n_experts, rows, stride;
    float norm_offset;
};
