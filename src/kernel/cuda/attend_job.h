#pragma once
// What the kernels of ptx/decode.c work on: attention of tokens that each end a sequence of their own, with what stands
// before it in the program (norms of heads, rotation, appending to the cache). Shared by both sides; addresses are the
// GPU's.

#include <stdint.h>

#define EW_ATTEND_THREADS 128
#define EW_ATTEND_HEADS 8   // query heads of one KV head that a block takes at most
#define EW_ATTEND_TILE 16   // keys of a warp at a time; divides the tokens of a cache block

struct ew_attend_job {
    uint64_t q, k, v, out;           // f32 rows; k 0: an earlier op has appended
    uint64_t q_norm, k_norm;         // f32 [k_dim] weights of RMS norms; 0: none
    uint64_t rope;                   // f32 [token][n_dims] cosines and sines; 0: none
    uint64_t data, block_bytes, layer_at, head_bytes; // the cache
    uint64_t index, table_at, tables; // u32 [token], u32 [sequence], i32: token t is of sequence t
    uint64_t token_scale, alibi, sinks; // f32; 0: none
    uint64_t partial;                // f32 [token][run][split][EW_ATTEND_HEADS * (v_dim + 2)]
    uint64_t arrived;                // u32 [token][run], zeros before and after
    uint32_t q_stride, k_stride, v_stride, out_stride;
    uint32_t block_tokens, kv, k_dim, v_dim;
    uint32_t n_heads, n_kv_heads, per_run, runs; // per_run: query heads of a block; runs: of a KV head
    uint32_t n_dims, rope_first, rope_pairs;
    uint32_t window, chunk, rounds_k; // rounds_k: 1: the type of the cache rounds keys
    float q_eps, k_eps, q_offset, k_offset;
    float scale, cap;
};
