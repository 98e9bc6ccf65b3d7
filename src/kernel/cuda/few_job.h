#pragma once
// What the kernels of ptx/few.c work on: the products of vector_job.h with several rows of activations. Shared by both
// sides; addresses are the GPU's, strides in floats.

#include "kernel/cuda/vector_job.h"

#define EW_FEW_THREADS 256 // at most: a warp more takes as much more shared memory
#define EW_FEW_TOKENS_MAX 32
#define EW_FEW_COLS_MULTIPLE 256 // columns come in: rows of scales are in whole 16 bytes then
#define EW_FEW_SPLITS_MAX 8
#define EW_FEW_TILES 2     // of 16 matrix rows, that a warp takes at once
#define EW_FEW_STAGES 4    // of a warp's ring, of which three are under way
#define EW_FEW_CODE_BYTES (EW_FEW_TILES * 16 * 64)  // of a stage: 64 of each row
#define EW_FEW_SCALE_BYTES (EW_FEW_TILES * 16 * 16) // of 256 columns of each row
#define EW_FEW_BIT_BYTES (EW_FEW_TILES * 16 * 16)   // of a stage: one bit more of 128 columns of each row

// Of a warp's ring.
#define EW_FEW_RING_BYTES(planes, bits) \
    (EW_FEW_STAGES * (EW_FEW_CODE_BYTES + (bits) * EW_FEW_BIT_BYTES + (planes) * EW_FEW_SCALE_BYTES))
// Where a block's share of the sums of a pass meet: of each item (a unit and eight tokens) one or, of a gate, two
// tiles, from so many sources.
#define EW_FEW_BOX_BYTES(items, tiles, sources, cluster) \
    (((items) + (cluster) - 1) / (cluster) * (tiles) * (sources) * 512)

// By which the kernel divides.
#define EW_FEW_FACTOR(n) (65536 / (n) + 1)

// How 16-bit activations lie for the products of a layout: pieces of eight columns, [chunk of columns][token tile]
// [piece of a lane][lane], where a lane has `columns` neighbouring ones of a chunk, of token lane / 4 of the tile.
enum ew_few_form {
    EW_FEW_F16,
    EW_FEW_F16_EXCHANGED, // of each four columns the second and the third
    EW_FEW_BF16,
};

struct ew_few_job {
    struct ew_vector_job v;
    uint64_t staged;     // the activations, as they lie for these products
    uint64_t staged_out; // 0, or where the results go, as they lie for the products behind, instead of to `v`
    uint64_t partial;    // f32 [split][unit][token tile][tile][128]
    uint64_t arrived;    // u32 [group], zeros before and after
    // 0, or u32 [experts + 1]: the first row of activations, and of results, of each expert, whose matrices stand one
    // after the other. Block y is expert y's, if that has `least` rows or more and no more than the kernel takes. There
    // is no norm then, and the blocks bring the activations into their order themselves.
    uint64_t expert_rows;
    uint32_t x_stride, normed_stride, residual_stride, n_tokens;
    // Blocks x have some of the units (16 rows), blocks z some of the chunks of columns, as clusters or each for itself
    // (cluster: 1): the first `more` of them one more. Within a block, row_warps have other rows, and n_parts of these
    // other columns. Where sums of one pass over rows are joined while those of the next are made, there are two boxes,
    // of `box` times 16 bytes.
    uint32_t units, units_more, chunks, chunks_more, cluster, row_warps, n_parts, n_boxes, box;
    uint32_t cluster_factor, row_factor, part_factor; // EW_FEW_FACTOR of them
    uint32_t least;
    uint32_t columns, form, out_log, out_form; // of `staged` and `staged_out`; out_log: of columns to the base of two
    uint32_t out_strides[EW_VECTOR_PARTS_MAX];
};
