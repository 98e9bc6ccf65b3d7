// Products with tiles of f16 and bf16 on AMX: activations rounded to bf16, weights exact.
//
// A tile of bf16 is what the matrix unit takes, where it lies. A number of f16 is the sum of two of bf16 (11 bits of
// significand are 8 and 3), so that f16 takes two products. One row costs the unit less than the memory takes to bring
// the weights: there is no other kernel for few rows.

#include "kernel/cpu/amx_bf16.h"

#define PREFETCH_BYTES 8192

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

static void linear_f16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    static const struct source F16 = {unpack_f16, 2, 0};

    bf16_linear(&F16, job, index, end);
}

static void linear_bf16(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    static const struct source BF16 = {NULL, 1, PREFETCH_BYTES};

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
