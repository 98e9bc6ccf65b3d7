#pragma once
// What the kernels of ptx/state.c work on. Shared by both sides; addresses are the GPU's.

#include <stdint.h>

#define EW_STATE_KEY_DIM_MAX 256
#define EW_STATE_COLUMNS 32 // of a head's values, that a block takes
#define EW_STATE_THREADS 128

// Where the states of a layer lie, and whose they are.
struct ew_state_place {
    uint64_t data, block_bytes, layer_at; // the cache
    uint64_t table_at, tables;            // u32 [sequence], i32: a sequence's one block
    uint64_t seq_first;                   // u32 [sequences + 1] its rows
    uint64_t token_seq, token_index;      // u32 [token]; index: in its sequence
};

struct ew_conv_job {
    struct ew_state_place place;
    uint64_t in, out;      // f32 rows
    uint64_t weight, bias; // f32 [width][n_taps], f32 [width]; bias 0: none
    uint32_t in_stride, out_stride, width, n_taps, act;
    uint32_t advances; // every sequence has one token: the same kernel moves its past on
};

struct ew_scan_job {
    struct ew_state_place place;
    uint64_t in, step, gain, out;   // f32 rows; gain: of the delta rule
    uint64_t rate, bias, skip;      // f32 [head]; skip 0: none
    uint64_t state_first;           // float of the layer's state
    uint32_t in_stride, step_stride, gain_stride, out_stride;
    uint32_t n_heads, n_groups, k_dim, v_dim, q_first, k_first, v_first;
    uint32_t is_delta, is_tiled;
};
