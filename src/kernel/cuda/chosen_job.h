#pragma once
// What the two kernels of ptx/chosen.c work on: the experts that one token chose, from the scores to the sum of their
// results. Shared by both sides; addresses are the GPU's.

#include "kernel/cuda/score_job.h"

#include <stdint.h>

#define EW_CHOSEN_THREADS 512
#define EW_CHOSEN_STATIC_BYTES 128 // of the kernels' own shared arrays
#define EW_CHOSEN_STAGES 6     // of a warp's ring, of which all but one are under way
#define EW_CHOSEN_STAGES_FEW 3 // where there is no room for those
#define EW_CHOSEN_CODE_BYTES 512 // of a warp's units of weights
#define EW_CHOSEN_WORD_BYTES 128 // of the words beside them

enum { EW_CHOSEN_GATES = 1, EW_CHOSEN_SUMS = 2 };

struct ew_chosen_matrix {
    uint64_t codes, scales, mins, bias; // of all experts, one after the other; bias 0: none
    uint64_t layout;                    // enum ew_cuda_layout
};

struct ew_chosen_job {
    uint64_t logits, choice_bias;  // f32 [n_experts]; choice_bias 0: none
    uint64_t x;                    // f32 [cols]
    // 0, or what the kernel before has added up (score_job.h). Then x becomes an RMS norm by f32 [cols], which goes to
    // `normed`, too, if that is not 0; of scores, which are ready for the next layer behind this kernel, and f32
    // [n_experts], 0: none, the logits are made.
    uint64_t scores, norm_weight, normed, logits_bias;
    uint64_t hidden;               // f32 [n_active, hidden_stride]: the first kernel writes it for the second
    uint64_t arrived;              // u32 [2], zeros before and after: blocks that wait for the others
    uint64_t out, residual;        // f32 [cols]; residual 0: none. out = y_scale * sum + residual_scale * residual
    struct ew_chosen_matrix gate, up, down;
    uint32_t does;                 // EW_CHOSEN_GATES, EW_CHOSEN_SUMS or both
    uint32_t cols, hidden_cols, hidden_stride, n_stages;
    uint32_t hidden_inverse;       // 2^32 / hidden_cols, rounded up
    // Rows of each block, of gates and of sums, and how many blocks have one more.
    uint32_t gates_each, gates_more, sums_each, sums_more;
    uint32_t n_experts, n_active, score, n_groups, n_groups_active, normalise, is_plain;
    float jitter, scale, y_scale, residual_scale;
    uint32_t act, no_gate;         // no_gate: `up` alone, through the activation; it stands in `gate`, too
    float limit, alpha, eps, norm_offset;
};
