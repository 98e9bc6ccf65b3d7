#pragma once
// The vector primitives of the *_tmpl.c files, on AVX-512 F, BW, CD, DQ and VL; products of bytes on VNNI where the
// file is compiled with it. VF is the number of 32-bit lanes.
//
// vf: floats; vi: 32-bit integers; vb: bytes, four of each of VF rows.

// clang-format off: one primitive a line reads as the table that it is
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VF 16
#ifdef __AVX512VNNI__
#define VEC_ISA "avx512-vnni"
#define VEC_BIAS 128 // of signed codes: vpdpbusd takes unsigned by signed bytes
#else
#define VEC_ISA "avx512"
#define VEC_BIAS 0
#endif
#define VEC_ACTIVATIONS 8 // rows of activations that a product keeps in registers

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vb;

#define VEC_INLINE static inline __attribute__((always_inline, unused))

VEC_INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
VEC_INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
VEC_INLINE vf vf_zero(void)
{
    return _mm512_setzero_ps();
}
VEC_INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
VEC_INLINE vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
} // a * b + c
VEC_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
} // c - a * b
// Where either is a NaN these give b.
VEC_INLINE vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
VEC_INLINE vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
VEC_INLINE vf vf_zero_where_less(vf v, vf a, vf b)
{
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), _mm512_setzero_ps());
} // a < b: 0
VEC_INLINE vf vf_where_less(vf a, vf b, vf yes, vf no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}
VEC_INLINE vf vf_abs(vf v)
{
    return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), v);
}
VEC_INLINE vf vf_neg(vf v)
{
    return _mm512_xor_ps(_mm512_set1_ps(-0.0f), v);
}
// a and b element by element, the first half of the pairs and the second.
VEC_INLINE vf vf_zip_low(vf a, vf b)
{
    return _mm512_permutex2var_ps(
        a, _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), b);
}
VEC_INLINE vf vf_zip_high(vf a, vf b)
{
    return _mm512_permutex2var_ps(
        a, _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8), b);
}
VEC_INLINE vf vf_of_vi(vi v)
{
    return _mm512_cvtepi32_ps(v);
}
VEC_INLINE vf vf_bits(vi v)
{
    return _mm512_castsi512_ps(v);
}
VEC_INLINE vi vi_bits(vf v)
{
    return _mm512_castps_si512(v);
}
VEC_INLINE vi vi_round(vf v)
{
    return _mm512_cvtps_epi32(v);
} // to nearest even

VEC_INLINE __m256 vf_sum_halves(vf v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

VEC_INLINE float vf_sum(vf v)
{
    __m256 half = vf_sum_halves(v);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));

    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

VEC_INLINE vi vi_zero(void)
{
    return _mm512_setzero_si512();
}
VEC_INLINE vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
VEC_INLINE vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
VEC_INLINE vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
VEC_INLINE vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
VEC_INLINE vi vi_or(vi a, vi b)
{
    return _mm512_or_si512(a, b);
}
VEC_INLINE vi vi_max(vi a, vi b)
{
    return _mm512_max_epi32(a, b);
}
VEC_INLINE vi vi_shl(vi v, int n)
{
    return _mm512_slli_epi32(v, (unsigned)n);
}
VEC_INLINE vi vi_shr(vi v, int n)
{
    return _mm512_srli_epi32(v, (unsigned)n);
}
VEC_INLINE vi vi_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
} // VF bytes
VEC_INLINE vi vi_i8(const uint8_t *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}
VEC_INLINE int32_t vi_largest(vi v)
{
    return _mm512_reduce_max_epi32(v);
}
VEC_INLINE int32_t vi_sum(vi v)
{
    return _mm512_reduce_add_epi32(v);
}
VEC_INLINE void vi_store_i8(int8_t *p, vi v) // VF numbers that fit
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v));
}

// VF f16 or bf16 numbers, at any address.
VEC_INLINE vf vf_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}
VEC_INLINE void vf_store_f16(void *p, vf v)
{
    _mm256_storeu_si256(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
VEC_INLINE vf vf_load_bf16(const void *p)
{
    return vf_bits(vi_shl(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

// FP8_COLUMNS columns of 16 numbers of e4m3, times FP8_UNIT: the bits moved to where those of an f16 are.
#define FP8_UNIT 256.0f
#define FP8_COLUMNS 4
VEC_INLINE void vf_load_e4m3(const uint8_t *p, vf *out)
{
    __m512i codes = _mm512_loadu_si512(p), keep = _mm512_set1_epi16((short)0xBF80);
    __m512i even = _mm512_and_si512(_mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 1), keep);
    __m512i odd = _mm512_and_si512(_mm512_srai_epi16(codes, 1), keep);

    out[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(even));
    out[1] = _mm512_cvtph_ps(_mm512_castsi512_si256(odd));
    out[2] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(even, 1));
    out[3] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(odd, 1));
}

// ---- products of bytes, four a lane -------------------------------------------------------------

VEC_INLINE vb vb_load(const uint8_t *p)
{
    return _mm512_loadu_si512(p);
}
VEC_INLINE void vb_store(uint8_t *p, vb v)
{
    _mm512_storeu_si512(p, v);
}
VEC_INLINE vb vb_broadcast(const int8_t *p) // four bytes to every lane
{
    int32_t four;

    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
VEC_INLINE vb vb_of_vi(vi v) // the bytes of each lane
{
    return v;
}
VEC_INLINE vb vb_set1(int x)
{
    return _mm512_set1_epi8((char)x);
}
VEC_INLINE vb vb_add(vb a, vb b)
{
    return _mm512_add_epi8(a, b);
}
VEC_INLINE vb vb_or(vb a, vb b)
{
    return _mm512_or_si512(a, b);
}
// Bits [from, from + count) of each byte, moved to bit `to`. The masks keep out what 16-bit shifts carry over.
VEC_INLINE vb vb_bits(vb v, int from, int count, int to)
{
    if (from != to)
        v = from > to ? _mm512_srli_epi16(v, (unsigned)(from - to)) : _mm512_slli_epi16(v, (unsigned)(to - from));
    return _mm512_and_si512(v, _mm512_set1_epi8((char)(((1 << count) - 1) << to)));
}
VEC_INLINE vb vb_table(const int8_t *values)
{
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)values));
}
VEC_INLINE vb vb_lookup(vb table, vb index)
{
    return _mm512_shuffle_epi8(table, index);
} // index < 16
VEC_INLINE vb vb_biased(vb v) // signed codes as part_signed takes them
{
    return VEC_BIAS ? _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)) : v;
}

// -(first * sums[0] + second * sums[1]) in every lane.
VEC_INLINE vi vi_less_sums(int first, int second, const int16_t *sums)
{
    vi factors = _mm512_set1_epi32((int32_t)((uint32_t)(uint16_t)-first | (uint32_t)(uint16_t)-second << 16));
    int32_t pair;

    memcpy(&pair, sums, 4);
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(_mm512_setzero_si512(), factors, _mm512_set1_epi32(pair));
#else
    return _mm512_madd_epi16(factors, _mm512_set1_epi32(pair));
#endif
}

#ifdef __AVX512VNNI__

// A running sum of products.
struct part {
    __m512i sum;
};

VEC_INLINE struct part part_from(vi start)
{
    return (struct part){start};
}
VEC_INLINE struct part part_widen(struct part part)
{
    return part;
}
VEC_INLINE struct part part_unsigned(struct part part, vb w, vb a)
{
    return (struct part){_mm512_dpbusd_epi32(part.sum, w, a)};
}
VEC_INLINE struct part part_signed(struct part part, vb w, vb a) // biased codes
{
    return part_unsigned(part, w, a);
}
VEC_INLINE vi part_total(struct part part)
{
    return part.sum;
}

#else

// A running sum of products, as vec_avx2.h has it.
struct part {
    __m512i sum;   // 32 bits
    __m512i small; // 16 bits, not yet in sum
};

VEC_INLINE struct part part_from(vi start)
{
    return (struct part){start, _mm512_setzero_si512()};
}

VEC_INLINE struct part part_widen(struct part part)
{
    part.sum = _mm512_add_epi32(part.sum, _mm512_madd_epi16(part.small, _mm512_set1_epi16(1)));
    part.small = _mm512_setzero_si512();
    return part;
}

// Signed codes from -128.
VEC_INLINE struct part part_signed(struct part part, vb w, vb a)
{
    vb moved = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a); // with the sign of w
    __m512i products = _mm512_maddubs_epi16(_mm512_abs_epi8(w), moved);

    part.sum = _mm512_add_epi32(part.sum, _mm512_madd_epi16(products, _mm512_set1_epi16(1)));
    return part;
}

// Unsigned codes of at most 6 bits: 8 words of 4 bits, 4 words of 5 or 2 words of 6 fit before part_widen.
VEC_INLINE struct part part_unsigned(struct part part, vb w, vb a)
{
    part.small = _mm512_add_epi16(part.small, _mm512_maddubs_epi16(w, a));
    return part;
}

VEC_INLINE vi part_total(struct part part)
{
    return part_widen(part).sum;
}

#endif
