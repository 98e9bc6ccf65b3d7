// Products with tiles of f16 and bf16 on AMX: activations rounded to bf16, weights exact.
//
// A tile of bf16 is what the matrix unit takes, where it lies. A number of f16 is the sum of two of bf16 (11 bits of
// significand are 8 and 3), so that f16 takes two products. One row of bf16 costs the unit less than the memory takes
// to bring the weights; for f16 splitting takes longer than that, and few rows are left to vectors that do as the unit
// does.

#include "kernel/cpu/amx_bf16.h"

#define PREFETCH_BYTES 8192
#define FEW_ROWS 4 // from here on the unit is faster with f16
#define FLUSH_DENORMALS 0x8040 // of MXCSR: those of inputs and of results become zero

_Static_assert(PART_BYTES == EW_CPU_HALF_BYTES, "a group of bf16 is used where it lies");

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

static void unpack_f16(const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group, uint32_t n_groups,
                       uint8_t *to)
{
    const uint8_t *tile = matrix->data + index * matrix->tile_bytes + (uint64_t)group * EW_CPU_HALF_BYTES;

    for (; n_groups > 0; n_groups--, tile += EW_CPU_HALF_BYTES, to += 2 * PART_BYTES) {
        for (uint32_t at = 0; at < EW_CPU_HALF_BYTES; at += 64) {
            __builtin_prefetch(tile + at + PREFETCH_BYTES);
            split(tile + at, to + at);
        }
    }
}

// ---- few rows of f16 ----------------------------------------------------------------------------

// The manual's description of TDPBF16PS: even and odd columns of a group are summed apart, in order and with one
// rounding each, numbers below f32's normal ones are zero, and both sums together join the total. test_kernel compares
// the bits.
struct sums {
    vf even, odd;
};

VEC_INLINE struct sums zero_sums(void)
{
    return (struct sums){vf_zero(), vf_zero()};
}

VEC_INLINE vf add_sums(vf total, struct sums sums)
{
    return vf_add(total, vf_add(sums.even, sums.odd));
}

// Rows [b, b + n) of activations, a constant where this is inlined, and one tile.
VEC_INLINE void few_rows(const struct ew_cpu_linear *job, uint32_t index, uint32_t b, uint32_t n)
{
    const uint8_t *half = job->matrix->data + index * job->matrix->tile_bytes;
    const uint16_t *x = job->q8->bf16 + (uint64_t)b * job->q8->q_stride;
    vi upper = vi_set1((int32_t)0xFFFF0000u);
    vf total[2] = {vf_zero(), vf_zero()};
    float out[EW_CPU_TILE_ROWS];

    for (uint32_t group = 0; group < groups_of(job->matrix); group++, x += EW_CPU_GROUP) {
        struct sums first[2] = {zero_sums(), zero_sums()}, rest[2] = {zero_sums(), zero_sums()};

#pragma GCC unroll 16
        for (uint32_t pair = 0; pair < EW_CPU_GROUP / 2; pair++, half += 64) {
            vf even = vf_load_f16(half), odd = vf_load_f16(half + 32);
            vf even_first = vf_bits(vi_and(vi_bits(even), upper)), odd_first = vf_bits(vi_and(vi_bits(odd), upper));

            __builtin_prefetch(half + PREFETCH_BYTES);
            even = vf_sub(even, even_first), odd = vf_sub(odd, odd_first);
            for (uint32_t i = 0; i < n; i++) {
                vi both = vb_broadcast((const int8_t *)(x + (uint64_t)i * job->q8->q_stride + 2 * pair));
                vf x_even = vf_bits(vi_shl(both, 16)), x_odd = vf_bits(vi_and(both, upper));

                first[i].even = vf_fma(x_even, even_first, first[i].even);
                first[i].odd = vf_fma(x_odd, odd_first, first[i].odd);
                rest[i].even = vf_fma(x_even, even, rest[i].even);
                rest[i].odd = vf_fma(x_odd, odd, rest[i].odd);
            }
        }
        for (uint32_t i = 0; i < n; i++)
            total[i] = add_sums(add_sums(total[i], first[i]), rest[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        vf_store(out, total[i]);
        store_row(job, index, b + i, out);
    }
}

static void few_f16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t before = _mm_getcsr();

    _mm_setcsr(before | FLUSH_DENORMALS);
    for (; index < end; index++) {
        uint32_t b = 0;

        for (; b + 2 <= job->n_rows; b += 2)
            few_rows(job, index, b, 2);
        if (b < job->n_rows)
            few_rows(job, index, b, 1);
    }
    _mm_setcsr(before);
}

static void linear_f16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    static const struct source F16 = {unpack_f16, 2};

    if (job->n_rows < FEW_ROWS)
        few_f16(job, index, end);
    else
        bf16_linear(&F16, job, index, end);
}

static void linear_bf16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    static const struct source BF16 = {NULL, 1};

    bf16_linear(&BF16, job, index, end);
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
