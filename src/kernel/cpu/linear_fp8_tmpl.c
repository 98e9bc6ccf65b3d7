// Products with FP8 tiles, activations in f32; included once for each instruction set.
//
// A byte of e4m3 becomes an f16 that is 2^8 times smaller by a shift, and that an f32 by one instruction, exactly.
// vf_load_e4m3 takes FP8_COLUMNS columns; they are summed in FP8_CHAINS sums, which then are added and scaled, for each
// 128 columns: the same operations in the same order however many activations there are.

#include "base/assert.h"
#include "kernel/cpu/tile_tmpl.h"

#define FP8_AHEAD 4096          // bytes of codes that are asked for before they are needed
#define FP8_MANY (4 * FP8_ROWS) // activations for which unpacking first pays
#define FP8_BLOCK_ROWS 256

struct fp8_span {
    const uint8_t *codes;
    const float *slab;   // [EW_CPU_FP8_SPAN][EW_CPU_TILE_ROWS], or
    const float *scales; // [EW_CPU_TILE_ROWS]
};

// FP8_COLUMNS columns.
VEC_INLINE void fp8_columns(bool is_slab, const struct fp8_span *span, uint32_t column, vf (*w)[VECTORS])
{
    for (uint32_t c = 0; c < FP8_COLUMNS; c++) {
        for (uint32_t v = 0; v < VECTORS && is_slab; v++)
            w[c][v] = vf_load(span->slab + (uint64_t)(column + c) * EW_CPU_TILE_ROWS + v * VF);
    }
    if (!is_slab)
        vf_load_e4m3(span->codes + (uint64_t)column * EW_CPU_TILE_ROWS, w[0]);
}

// Adds a span to the totals of n activations; is_slab and n are constants where this is inlined.
VEC_INLINE void fp8_add_span(bool is_slab, const struct fp8_span *span, const float *x, uint32_t x_stride, uint32_t n,
                             vf (*total)[FP8_ROWS])
{
    vf part[FP8_CHAINS][VECTORS][FP8_ROWS];

    for (uint32_t c = 0; c < FP8_CHAINS; c++) {
        for (uint32_t v = 0; v < VECTORS; v++) {
            for (uint32_t b = 0; b < n; b++)
                part[c][v][b] = vf_zero();
        }
    }
#pragma GCC unroll 2
    for (uint32_t column = 0; column < EW_CPU_FP8_SPAN; column += FP8_COLUMNS) {
        vf w[FP8_COLUMNS][VECTORS];

        if (!is_slab && column % 4 == 0)
            __builtin_prefetch(span->codes + (uint64_t)column * EW_CPU_TILE_ROWS + FP8_AHEAD);
        fp8_columns(is_slab, span, column, w);
#pragma GCC unroll 4
        for (uint32_t c = 0; c < FP8_COLUMNS; c++) {
            for (uint32_t b = 0; b < n; b++) {
                vf broadcast = vf_set1(x[(uint64_t)b * x_stride + column + c]);

                for (uint32_t v = 0; v < VECTORS; v++)
                    part[c % FP8_CHAINS][v][b] = vf_fma(w[c][v], broadcast, part[c % FP8_CHAINS][v][b]);
            }
        }
    }
    for (uint32_t v = 0; v < VECTORS; v++) {
        vf scale = vf_mul(vf_load(span->scales + v * VF), vf_set1(FP8_UNIT));

        for (uint32_t b = 0; b < n; b++) {
            for (uint32_t c = FP8_CHAINS / 2; c > 0; c /= 2) {
                for (uint32_t i = 0; i < c; i++)
                    part[i][v][b] = vf_add(part[i][v][b], part[i + c][v][b]);
            }
            total[v][b] = vf_fma(part[0][v][b], scale, total[v][b]);
        }
    }
}

VEC_INLINE void fp8_few(const struct ew_cpu_linear *job, uint32_t index, uint32_t b, uint32_t n)
{
    struct tile tile = tile_at(job->matrix, index);
    const float *x = job->x + (uint64_t)b * job->x_stride;
    float sums[EW_CPU_TILE_ROWS];
    vf total[VECTORS][FP8_ROWS];

    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            total[v][i] = vf_zero();
    }
    for (uint32_t s = 0; s < job->matrix->cols / EW_CPU_FP8_SPAN; s++) {
        struct fp8_span span = {.codes = tile.codes + (uint64_t)s * EW_CPU_FP8_SPAN * EW_CPU_TILE_ROWS,
                                .scales = (const float *)tile.scales + (uint64_t)s * EW_CPU_TILE_ROWS};

        fp8_add_span(false, &span, x + (uint64_t)s * EW_CPU_FP8_SPAN, job->x_stride, n, total);
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t v = 0; v < VECTORS; v++)
            vf_store(sums + v * VF, total[v][i]);
        store_row(job, index, b + i, sums);
    }
}

// Adds a span that was unpacked to the sums of n activations.
VEC_INLINE void fp8_slab(const struct fp8_span *span, const float *x, uint32_t x_stride, uint32_t n,
                         float (*sums)[EW_CPU_TILE_ROWS])
{
    vf total[VECTORS][FP8_ROWS];

    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            total[v][i] = vf_load(sums[i] + v * VF);
    }
    fp8_add_span(true, span, x, x_stride, n, total);
    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            vf_store(sums[i] + v * VF, total[v][i]);
    }
}

// Activations [first, first + n).
static void fp8_many(const struct ew_cpu_linear *job, uint32_t index, uint32_t first, uint32_t n)
{
    struct tile tile = tile_at(job->matrix, index);
    _Alignas(64) float sums[FP8_BLOCK_ROWS][EW_CPU_TILE_ROWS], slab[EW_CPU_FP8_SPAN][EW_CPU_TILE_ROWS];
    struct fp8_span span = {.slab = slab[0]};

    memset(sums, 0, n * sizeof(*sums));
    for (uint32_t s = 0; s < job->matrix->cols / EW_CPU_FP8_SPAN; s++) {
        const uint8_t *codes = tile.codes + (uint64_t)s * EW_CPU_FP8_SPAN * EW_CPU_TILE_ROWS;
        const float *x = job->x + (uint64_t)first * job->x_stride + (uint64_t)s * EW_CPU_FP8_SPAN;
        uint32_t b = 0;

        span.scales = (const float *)tile.scales + (uint64_t)s * EW_CPU_TILE_ROWS;
        for (uint32_t i = 0; i < EW_CPU_FP8_SPAN; i += FP8_COLUMNS)
            fp8_unpack(codes + i * EW_CPU_TILE_ROWS, slab + i);
        for (; b + FP8_ROWS <= n; b += FP8_ROWS)
            fp8_slab(&span, x + (uint64_t)b * job->x_stride, job->x_stride, FP8_ROWS, sums + b);
        for (; b < n; b++)
            fp8_slab(&span, x + (uint64_t)b * job->x_stride, job->x_stride, 1, sums + b);
    }
    for (uint32_t b = 0; b < n; b++)
        store_row(job, index, first + b, sums[b]);
}

static void linear_fp8(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    for (uint32_t first = 0; job->n_rows >= FP8_MANY && first < job->n_rows; first += FP8_BLOCK_ROWS) {
        for (uint32_t i = index; i < end; i++)
            fp8_many(job, i, first, EW_MIN(job->n_rows - first, FP8_BLOCK_ROWS));
    }
    for (; job->n_rows < FP8_MANY && index < end; index++) {
        uint32_t b = 0;

        for (; b + FP8_ROWS <= job->n_rows; b += FP8_ROWS)
            fp8_few(job, index, b, FP8_ROWS);
        for (; FP8_ROWS > 2 && b + 2 <= job->n_rows; b += 2)
            fp8_few(job, index, b, 2);
        if (b < job->n_rows)
            fp8_few(job, index, b, 1);
    }
}
