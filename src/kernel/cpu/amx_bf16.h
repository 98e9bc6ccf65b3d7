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
#define BLOCK_BYTES (3u << 19) // of activations: three quarters of the second cache of every CPU that has AMX

// How groups of a layout become tile registers.
struct source {
    // Groups [group, group + n_groups) of tile `index`; NULL: they lie as the unit takes them.
    void (*unpack)(const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group, uint32_t n_groups, uint8_t *to);
    uint32_t n_parts; // tile registers whose sum is a group
    uint32_t prefetch_bytes; // what is read in place is asked for so far ahead
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
                         uint64_t x_stride, uint32_t n_groups, float (*sums)[BLOCK_ROWS][EW_CPU_TILE_ROWS], uint32_t b)
{
    _tile_loadd(0, sums[0][b], 64);
    if (n_x == 2)
        _tile_loadd(1, sums[0][b + AMX_ROWS], 64);
    if (n_w == 2)
        _tile_loadd(2, sums[1][b], 64);
    if (n_w == 2 && n_x == 2)
        _tile_loadd(3, sums[1][b + AMX_ROWS], 64);
    for (uint32_t group = 0; group < n_groups; group++, x += EW_CPU_GROUP) {
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

// Rows [first, first + n) of activations: whole registers of them, or n < AMX_ROWS, which the registers are set to.
VEC_INLINE void multiply_rows(uint32_t n_w, uint32_t n_parts, const uint8_t *const *w, const struct ew_cpu_q8 *x,
                              uint32_t first, uint32_t n, uint32_t group, uint32_t n_groups,
                              float (*sums)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    const uint16_t *rows = x->bf16 + (uint64_t)first * x->q_stride + (uint64_t)group * EW_CPU_GROUP;
    uint32_t b = 0;

    for (; b + 2 * AMX_ROWS <= n; b += 2 * AMX_ROWS)
        multiply(n_w, 2, n_parts, w, rows + (uint64_t)b * x->q_stride, x->q_stride, n_groups, sums, b);
    if (b < n)
        multiply(n_w, 1, n_parts, w, rows + (uint64_t)b * x->q_stride, x->q_stride, n_groups, sums, b);
}

VEC_INLINE void multiply_tiles(const struct source *source, uint32_t n_w, const struct ew_cpu_linear *job,
                               uint32_t index, uint32_t first, uint32_t n)
{
    const struct ew_cpu_matrix *matrix = job->matrix;
    uint32_t n_all = (matrix->cols + EW_CPU_GROUP - 1) / EW_CPU_GROUP, at_once = PARTS_MAX / source->n_parts;
    _Alignas(64) float sums[2][BLOCK_ROWS][EW_CPU_TILE_ROWS];
    _Alignas(64) uint8_t parts[2][PARTS_MAX * PART_BYTES];

    for (uint32_t t = 0; t < n_w; t++)
        memset(sums[t], 0, n * sizeof(sums[t][0]));
    for (uint32_t group = 0; group < n_all; group += at_once) {
        uint32_t n_groups = EW_MIN(n_all - group, at_once);
        const uint8_t *w[2] = {parts[0], parts[1]};

        for (uint32_t t = 0; t < n_w; t++) {
            if (source->unpack) {
                source->unpack(matrix, index + t, group, n_groups, parts[t]);
                continue;
            }
            w[t] = matrix->data + (index + t) * matrix->tile_bytes + (uint64_t)group * PART_BYTES;
            for (uint32_t at = 0; at < n_groups * PART_BYTES; at += 64)
                __builtin_prefetch(w[t] + at + source->prefetch_bytes);
        }
        amx_fence();
        multiply_rows(n_w, source->n_parts, w, job->q8, first, n, group, n_groups, sums);
        amx_fence();
    }
    for (uint32_t t = 0; t < n_w; t++) {
        for (uint32_t b = 0; b < n; b++)
            store_row(job, index + t, first + b, sums[t][b]);
    }
}

static void multiply_block(const struct source *source, const struct ew_cpu_linear *job, uint32_t index, uint32_t end,
                           uint32_t first, uint32_t n)
{
    for (; index + 2 <= end; index += 2)
        multiply_tiles(source, 2, job, index, first, n);
    if (index < end)
        multiply_tiles(source, 1, job, index, first, n);
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

// Rows of one block: as many as fit, in blocks of equal size.
static uint32_t rows_at_once(uint32_t n_rows, uint32_t cols)
{
    uint32_t most = EW_MIN(EW_MAX(BLOCK_BYTES / 2 / cols & ~(2 * AMX_ROWS - 1u), 2 * AMX_ROWS), BLOCK_ROWS);
    uint32_t n_blocks = (n_rows + most - 1) / most, each = (n_rows + n_blocks - 1) / n_blocks;

    return (each + 2 * AMX_ROWS - 1) & ~(2 * AMX_ROWS - 1u);
}

static void bf16_linear(const struct source *source, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t n_rows = job->n_rows / AMX_ROWS * AMX_ROWS, rest = job->n_rows - n_rows;

    if (n_rows) {
        uint32_t block = rows_at_once(n_rows, job->matrix->cols);

        set_bf16_tiles(AMX_ROWS);
        for (uint32_t first = 0; first < n_rows; first += block)
            multiply_block(source, job, index, end, first, EW_MIN(n_rows - first, block));
    }
    if (rest) {
        set_bf16_tiles(rest);
        multiply_block(source, job, index, end, n_rows, rest);
    }
    amx_end();
}
