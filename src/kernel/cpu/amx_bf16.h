#pragma once
// Products of activations rounded to bf16 with weights that are, or are unpacked to, tile registers of bf16; for the
// files that are compiled for AMX.
//
// The unit sums a group of 32 columns in an order of its own and adds that to the total in f32; rows of activations do
// not meet and groups come in order, so that the bits depend neither on how many rows there are nor on how they are cut
// into blocks.

#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/amx_tile.h"
#include "kernel/cpu/tile_tmpl.h"

#define AMX_ROWS 16
#define PART_BYTES 1024 // of a group of a tile, in bf16: a tile register
#define PARTS_MAX 16    // of a tile that are unpacked at once; two tiles are 32 kB
#define BLOCK_ROWS 256
#define BLOCK_GROUPS 80 // of activations: with as many rows 1.3 MB, in the 2 MB of second cache of every CPU with AMX

// How groups of a layout become tile registers.
struct source {
    // Groups [group, group + n_groups) of tile `index`; NULL: they lie as the unit takes them.
    void (*unpack)(const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group, uint32_t n_groups, uint8_t *to);
    uint32_t n_parts; // tile registers whose sum is a group
};

// A block of the product: rows [first, first + n) of activations and groups [group, group_end).
struct block {
    uint32_t first, n, group, group_end;
};

// What comes next of each of two tiles, asked for line by line while the unit works.
struct ahead {
    const uint8_t *from[2];
    uint32_t lines; // of each tile and group that is multiplied
};

// Tile registers: sums 0 ... 3 as [tile][activations], activations 4 and 5, weights 6 and 7.
#define MULTIPLY(w, data, sum, sum_of_more, n_x)                                                                       \
    do {                                                                                                               \
        _tile_loadd(w, data, 64);                                                                                      \
        _tile_dpbf16ps(sum, 4, w);                                                                                     \
        if ((n_x) == 2)                                                                                                \
            _tile_dpbf16ps(sum_of_more, 5, w);                                                                         \
    } while (0)

// n_w tiles by n_x times 16 activations (or what the registers are set to), constants where this is inlined.
VEC_INLINE void multiply(uint32_t n_w, uint32_t n_x, uint32_t n_parts, const uint8_t *const *w, const uint16_t *x,
                         uint64_t x_stride, uint32_t n_groups, float (*sums)[BLOCK_ROWS][EW_CPU_TILE_ROWS], uint32_t b,
                         struct ahead *ahead)
{
    _tile_loadd(0, sums[0][b], 64);
    if (n_x == 2)
        _tile_loadd(1, sums[0][b + AMX_ROWS], 64);
    if (n_w == 2)
        _tile_loadd(2, sums[1][b], 64);
    if (n_w == 2 && n_x == 2)
        _tile_loadd(3, sums[1][b + AMX_ROWS], 64);
    for (uint32_t group = 0; group < n_groups; group++, x += EW_CPU_GROUP) {
        for (uint32_t t = 0; t < n_w; t++) {
            for (uint32_t line = 0; line < ahead->lines; line++, ahead->from[t] += 64)
                __builtin_prefetch(ahead->from[t]);
        }
        _tile_loadd(4, x, 2 * x_stride);
        if (n_x == 2)
            _tile_loadd(5, x + AMX_ROWS * x_stride, 2 * x_stride);
        for (uint32_t part = 0; part < n_parts; part++) {
            uint64_t at = (uint64_t)(group * n_parts + part) * PART_BYTES;

            MULTIPLY(6, w[0] + at, 0, 1, n_x);
            if (n_w == 2)
                MULTIPLY(7, w[1] + at, 2, 3, n_x);
        }
    }
    _tile_stored(0, sums[0][b], 64);
    if (n_x == 2)
        _tile_stored(1, sums[0][b + AMX_ROWS], 64);
    if (n_w == 2)
        _tile_stored(2, sums[1][b], 64);
    if (n_w == 2 && n_x == 2)
        _tile_stored(3, sums[1][b + AMX_ROWS], 64);
}

static uint32_t groups_of(const struct ew_cpu_matrix *matrix)
{
    return (matrix->cols + EW_CPU_GROUP - 1) / EW_CPU_GROUP;
}

// After groups up to `group` of a pair of tiles come the next ones, or the first ones of the next pair.
static struct ahead what_follows(const struct ew_cpu_matrix *matrix, const struct block *block, uint32_t index,
                                 uint32_t group, uint32_t n_groups)
{
    uint64_t codes = ew_cpu_layout_wants_bf16(matrix->layout) ? matrix->tile_bytes : matrix->scale_at;
    uint64_t group_bytes = codes / groups_of(matrix), steps = (block->n + 2 * AMX_ROWS - 1) / (2 * AMX_ROWS) * n_groups;
    struct ahead ahead;

    if (group >= block->group_end)
        group = block->group, index += 2;
    for (uint32_t t = 0; t < 2; t++)
        ahead.from[t] = matrix->data + (index + t) * matrix->tile_bytes + group * group_bytes;
    ahead.lines = (uint32_t)((n_groups * group_bytes / 64 + steps - 1) / steps);
    return ahead;
}

// All rows of the block by groups [group, group + n_groups) of tiles from `index` on.
VEC_INLINE void multiply_rows(uint32_t n_w, uint32_t n_parts, const uint8_t *const *w, const struct ew_cpu_linear *job,
                              uint32_t index, const struct block *block, uint32_t group, uint32_t n_groups,
                              float (*sums)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    const struct ew_cpu_q8 *q8 = job->q8;
    const uint16_t *x = q8->bf16 + (uint64_t)block->first * q8->q_stride + (uint64_t)group * EW_CPU_GROUP;
    struct ahead ahead = what_follows(job->matrix, block, index, group + n_groups, n_groups);

    for (uint32_t b = 0; b < block->n; b += 2 * AMX_ROWS, x += 2 * AMX_ROWS * q8->q_stride) {
        for (uint32_t t = 0; t < n_w && group + n_groups == block->group_end; t++)
            prefetch_out(job, index + t, block->first + b, EW_MIN(block->n - b, 2 * AMX_ROWS));
        if (b + 2 * AMX_ROWS <= block->n)
            multiply(n_w, 2, n_parts, w, x, q8->q_stride, n_groups, sums, b, &ahead);
        else // one register, which is set to as many rows as there are
            multiply(n_w, 1, n_parts, w, x, q8->q_stride, n_groups, sums, b, &ahead);
    }
}

// The sums so far, where a block begins in the middle of the rows.
static void load_sums(const struct ew_cpu_linear *job, uint32_t index, const struct block *block,
                      float (*sums)[EW_CPU_TILE_ROWS])
{
    uint32_t row = index * EW_CPU_TILE_ROWS, n = EW_MIN(job->matrix->rows - row, EW_CPU_TILE_ROWS);

    memset(sums, 0, block->n * sizeof(*sums));
    for (uint32_t b = 0; b < block->n && block->group > 0; b++)
        memcpy(sums[b], job->out + (uint64_t)(block->first + b) * job->out_stride + row, n * sizeof(*sums[b]));
}

VEC_INLINE void multiply_tiles(const struct source *source, uint32_t n_w, const struct ew_cpu_linear *job,
                               uint32_t index, const struct block *block)
{
    const struct ew_cpu_matrix *matrix = job->matrix;
    uint32_t at_once = PARTS_MAX / source->n_parts;
    _Alignas(64) float sums[2][BLOCK_ROWS][EW_CPU_TILE_ROWS];
    _Alignas(64) uint8_t parts[2][PARTS_MAX * PART_BYTES];

    for (uint32_t t = 0; t < n_w; t++)
        load_sums(job, index + t, block, sums[t]);
    for (uint32_t group = block->group; group < block->group_end; group += at_once) {
        uint32_t n_groups = EW_MIN(block->group_end - group, at_once);
        const uint8_t *w[2] = {parts[0], parts[1]};

        for (uint32_t t = 0; t < n_w; t++) {
            if (source->unpack)
                source->unpack(matrix, index + t, group, n_groups, parts[t]);
            else
                w[t] = matrix->data + (index + t) * matrix->tile_bytes + (uint64_t)group * PART_BYTES;
        }
        amx_fence();
        multiply_rows(n_w, source->n_parts, w, job, index, block, group, n_groups, sums);
        amx_fence();
    }
    for (uint32_t t = 0; t < n_w; t++) {
        for (uint32_t b = 0; b < block->n; b++)
            store_row(job, index + t, block->first + b, sums[t][b]);
    }
}

static void multiply_block(const struct source *source, const struct ew_cpu_linear *job, uint32_t index, uint32_t end,
                           const struct block *block)
{
    struct ew_cpu_linear part = *job;

    if (block->group_end < groups_of(job->matrix)) // the last block adds it
        part.bias = NULL;
    for (; index + 2 <= end; index += 2)
        multiply_tiles(source, 2, &part, index, block);
    if (index < end)
        multiply_tiles(source, 1, &part, index, block);
}

static void set_bf16_tiles(uint32_t n_rows)
{
    struct amx_tiles tiles = {0};

    for (unsigned i = 0; i < 6; i++)
        amx_set(&tiles, i, n_rows, 64);
    for (unsigned i = 6; i < 8; i++)
        amx_set(&tiles, i, AMX_ROWS, 64);
    amx_begin(&tiles);
}

// Parts of n, as many as limits of `most` ask for, of about equal size and multiples of `unit`.
static uint32_t even_part(uint32_t n, uint32_t most, uint32_t unit)
{
    uint32_t n_parts = (n + most - 1) / most, each = (n + n_parts - 1) / n_parts;

    return (each + unit - 1) / unit * unit;
}

// Rows [first, end), blocks of which stay in the second cache while all tiles go over them.
static void multiply_all(const struct source *source, const struct ew_cpu_linear *job, uint32_t index, uint32_t end,
                         uint32_t first, uint32_t rows_end)
{
    uint32_t n_groups = groups_of(job->matrix), groups = even_part(n_groups, BLOCK_GROUPS, PARTS_MAX);
    uint32_t rows = even_part(rows_end - first, BLOCK_ROWS, 2 * AMX_ROWS);

    for (; first < rows_end; first += rows) {
        for (uint32_t group = 0; group < n_groups; group += groups) {
            struct block block = {first, EW_MIN(rows_end - first, rows), group, EW_MIN(group + groups, n_groups)};

            multiply_block(source, job, index, end, &block);
        }
    }
}

static void bf16_linear(const struct source *source, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t n_rows = job->n_rows / AMX_ROWS * AMX_ROWS;

    if (n_rows) {
        set_bf16_tiles(AMX_ROWS);
        multiply_all(source, job, index, end, 0, n_rows);
    }
    if (n_rows < job->n_rows) {
        set_bf16_tiles(job->n_rows - n_rows);
        multiply_all(source, job, index, end, n_rows, job->n_rows);
    }
    amx_end();
}
