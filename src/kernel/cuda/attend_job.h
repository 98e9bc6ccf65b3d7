#pragma once
// What the kernels of ptx/decode.c work on: attention of tokens that each end a sequence of their own, with what stands
// before it in the program (norms of heads, rotation, appending to the cache). Shared by both sides; addresses are the
// GPU's.

#include <stdint.h>

#define EW_ATTEND_THREADS 128
#define EW_ATTEND_HEADS 8   // query heads of one KV head that a block takes at most
#define EW_ATTEND_TILE 16   // keys of a warp at a time; divides the tokens of a cache block
#define EW_ATTEND_CLUSTER 8 // blocks of a cluster at most
#define EW_ATTEND_PAD 4     // floats behind a row of sums, so that heads' rows lie in different banks
#define EW_ATTEND_DEPTH 4   // tiles of a warp's ring at most
#define EW_ATTEND_NOTES_BYTES 2048

// A tile in shared memory, whose kernel has room for so many dimensions of a few bytes: rows of keys, rows of values,
// their scales where a dimension has one byte.
static inline uint32_t ew_attend_row_stride(uint32_t dim_bytes, uint32_t room)
{
    return (room * dim_bytes / 16 | 1) * 16;
}

static inline uint32_t ew_attend_tile_bytes(uint32_t dim_bytes, uint32_t room)
{
    return 2 * EW_ATTEND_TILE * (ew_attend_row_stride(dim_bytes, room) + (dim_bytes == 1 ? 2 : 0));
}

// Shared memory of a block beside the rings of its warps: notes, queries in f16, queries and the token's own key and
// value, what blocks of the cluster found.
static inline uint32_t ew_attend_fixed_bytes(uint32_t room, uint32_t per_run)
{
    return EW_ATTEND_NOTES_BYTES + EW_ATTEND_HEADS * ew_attend_row_stride(2, room) + (2 * per_run + 2) * room * 4;
}

struct ew_attend_job {
    uint64_t q, k, v, out;           // f32 rows; k 0: an earlier op has appended
    uint64_t q_norm, k_norm;         // f32 [k_dim] weights of RMS norms; 0: none
    uint64_t rope;                   // f32 [token][n_dims] cosines and sines; 0: none
    uint64_t data, block_bytes, layer_at, head_bytes; // the cache
    uint64_t index, table_at, tables; // u32 [token], u32 [sequence], i32: token t is of sequence t
    uint64_t token_scale, alibi, sinks; // f32; 0: none
    uint64_t partial;                // f32 [token][run][part][block of a cluster]: its share of the dimensions, and
                                     // maxima and sums of EW_ATTEND_HEADS heads
    uint64_t arrived;                // u32 [token][run][block of a cluster], zeros before and after
    uint32_t q_stride, k_stride, v_stride, out_stride;
    uint32_t block_tokens, kv, k_dim, v_dim;
    uint64_t block_inverse; // 2^32 / (block_tokens / EW_ATTEND_TILE), rounded up: exact up to 2^32 of their product
    uint32_t n_kv_heads, per_kv, per_run, runs; // query heads of a KV head, and of a block; blocks for a KV head's
    uint32_t n_dims, rope_first, rope_pairs;
    uint32_t window, chunk;
    uint32_t depth;                   // tiles of a warp's ring
    uint32_t tiles_near_log2;         // of a block's, up to which all keys stay in one cluster
    uint32_t cluster_log2;            // blocks of a cluster
    float q_eps, k_eps, q_offset, k_offset;
    float scale, cap;
};
