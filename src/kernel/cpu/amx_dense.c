// Products with tiles of f16 and bf16 on AMX: activations rounded to bf16, weights exact.
//
// A tile of bf16 is what the matrix unit takes, where it lies. A number of f16 is the sum of two of bf16 (11 bits of
// significand are 8 and 3), so that f16 takes two products. The unit sums a group of 32 columns in an order of its own
// and adds that to the total in f32; rows of activations do not meet and groups come in order, so that the bits depend
// neither on how many rows there are nor on how they are cut into blocks. One row costs the unit less than the memory
// takes to bring the weights: there is no other kernel for few rows.

#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/amx_tile.h"
#include "kernel/cpu/tile_tmpl.h"

#define AMX_ROWS 16
#define PART_BYTES 1024 // of a group of a tile, in bf16: a tile register
#define GROUPS 8        // of two tiles that are unpacked at once: 32 kB
#define BLOCK_ROWS 256
#define BLOCK_BYTES (1u << 20) // of activations: half of the second cache of every CPU that has AMX
#define PREFETCH_BYTES 8192

_Static_assert(PART_BYTES == EW_CPU_HALF_BYTES, "a group of bf16 is used where it lies");

// Groups of one tile, each of n_parts tile registers.
struct operand {
    const uint8_t *data;
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
VEC_INLINE void multiply(uint32_t n_w, uint32_t n_x, uint32_t n_parts, const struct operand *w, const uint16_t *x,
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

            MULTIPLY(6, w[0].data + at, 0, 1, n_x);
            if (n_w == 2)
                MULTIPLY(7, w[1].data + at, 2, 3, n_x);
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

// Two columns of f16 as sums of two of bf16: the first eight bits of a significand, and the other three.
VEC_INLINE void split(const uint8_t *half, uint8_t *to)
{
    vi upper = vi_set1((int32_t)0xFFFF0000u);
    vf even = vf_load_f16(half), odd = vf_load_f16(half + 32);
    vi even_first = vi_and(vi_bits(even), upper), odd_first = vi_and(vi_bits(odd), upper);

    even = vf_sub(even, vf_bits(even_first)), odd = vf_sub(odd, vf_bits(odd_first));
    _mm512_store_si512(to, vi_or(odd_first, vi_shr(even_first, 16)));
    _mm512_store_si512(to + PART_BYTES, vi_or(vi_bits(odd), vi_shr(vi_bits(even), 16)));
}

VEC_INLINE void unpack(const uint8_t *tile, uint32_t n_groups, uint8_t *to)
{
    for (uint32_t group = 0; group < n_groups; group++, tile += EW_CPU_HALF_BYTES, to += 2 * PART_BYTES) {
        for (uint32_t at = 0; at < EW_CPU_HALF_BYTES; at += 64) {
            __builtin_prefetch(tile + at + PREFETCH_BYTES);
            split(tile + at, to + at);
        }
    }
}

// What is read in place is asked for ahead.
VEC_INLINE void prefetch(const uint8_t *tile, uint32_t n_groups)
{
    for (uint32_t at = 0; at < n_groups * EW_CPU_HALF_BYTES; at += 64)
        __builtin_prefetch(tile + at + PREFETCH_BYTES);
}

// Rows [first, first + n) of activations: whole registers of them, or n < AMX_ROWS, which the registers are set to.
VEC_INLINE void multiply_rows(bool is_f16, uint32_t n_w, const struct operand *w, const struct ew_cpu_q8 *x,
                              uint32_t first, uint32_t n, uint32_t group, uint32_t n_groups,
                              float (*sums)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    const uint16_t *rows = x->bf16 + (uint64_t)first * x->q_stride + (uint64_t)group * EW_CPU_GROUP;
    uint32_t b = 0, n_parts = is_f16 ? 2 : 1;

    for (; b + 2 * AMX_ROWS <= n; b += 2 * AMX_ROWS)
        multiply(n_w, 2, n_parts, w, rows + (uint64_t)b * x->q_stride, x->q_stride, n_groups, sums, b);
    if (b < n)
        multiply(n_w, 1, n_parts, w, rows + (uint64_t)b * x->q_stride, x->q_stride, n_groups, sums, b);
}

VEC_INLINE void multiply_tiles(bool is_f16, uint32_t n_w, const struct ew_cpu_linear *job, uint32_t index,
                               uint32_t first, uint32_t n)
{
    const struct ew_cpu_matrix *matrix = job->matrix;
    uint32_t n_all = (matrix->cols + EW_CPU_GROUP - 1) / EW_CPU_GROUP;
    _Alignas(64) float sums[2][BLOCK_ROWS][EW_CPU_TILE_ROWS];
    _Alignas(64) uint8_t parts[2][GROUPS * 2 * PART_BYTES];

    for (uint32_t t = 0; t < n_w; t++)
        memset(sums[t], 0, n * sizeof(sums[t][0]));
    for (uint32_t group = 0; group < n_all; group += GROUPS) {
        uint32_t n_groups = EW_MIN(n_all - group, GROUPS);
        struct operand w[2];

        for (uint32_t t = 0; t < n_w; t++) {
            const uint8_t *data = matrix->data + (index + t) * matrix->tile_bytes + (uint64_t)group * EW_CPU_HALF_BYTES;

            w[t].data = is_f16 ? parts[t] : data;
            if (is_f16)
                unpack(data, n_groups, parts[t]);
            else
                prefetch(data, n_groups);
        }
        amx_fence();
        multiply_rows(is_f16, n_w, w, job->q8, first, n, group, n_groups, sums);
        amx_fence();
    }
    for (uint32_t t = 0; t < n_w; t++) {
        for (uint32_t b = 0; b < n; b++)
            store_row(job, index + t, first + b, sums[t][b]);
    }
}

static void set_tiles(uint32_t n_rows)
{
    struct amx_tiles tiles = {0};

    for (unsigned i = 0; i < 6; i++)
        amx_set(&tiles, i, n_rows, 64);
    for (unsigned i = 6; i < 8; i++)
        amx_set(&tiles, i, AMX_ROWS, 64);
    amx_begin(&tiles);
}

VEC_INLINE void multiply_block(bool is_f16, const struct ew_cpu_linear *job, uint32_t index, uint32_t end,
                               uint32_t first, uint32_t n)
{
    for (; index + 2 <= end; index += 2)
        multiply_tiles(is_f16, 2, job, index, first, n);
    if (index < end)
        multiply_tiles(is_f16, 1, job, index, first, n);
}

VEC_INLINE void linear(bool is_f16, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t n_rows = job->n_rows / AMX_ROWS * AMX_ROWS, rest = job->n_rows - n_rows;
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / 2 / job->matrix->cols & ~(2 * AMX_ROWS - 1u), 2 * AMX_ROWS),
                            BLOCK_ROWS);

    if (n_rows)
        set_tiles(AMX_ROWS);
    for (uint32_t first = 0; first < n_rows; first += block)
        multiply_block(is_f16, job, index, end, first, EW_MIN(n_rows - first, block));
    if (rest) {
        set_tiles(rest);
        multiply_block(is_f16, job, index, end, n_rows, rest);
    }
    amx_end();
}

static void linear_f16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    linear(true, job, index, end);
}

static void linear_bf16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    linear(false, job, index, end);
}

// To nearest even, as the reference; numbers below f32's normal ones become zero.
static void round_bf16(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i += VF) {
        __mmask16 in = n - i >= VF ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1);

        _mm256_storeu_si256((__m256i *)(out + i), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, x + i)));
    }
    if ((n + VF - 1) / VF % 2) // the second half of the last group
        memset(out + (n + VF - 1) / VF * VF, 0, VF * sizeof(*out));
}

void ew_cpu_amx_init_dense(struct ew_cpu_ops *ops)
{
    ops->isa = "amx";
    ops->has_bf16_tiles = true;
    ops->round_bf16 = round_bf16;
    ops->linear[EW_CPU_F16_TILES] = linear_f16;
    ops->linear[EW_CPU_BF16_TILES] = linear_bf16;
}
