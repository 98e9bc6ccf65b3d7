#pragma once
// The vector primitives of the *_tmpl.c files, on AVX2 with FMA and F16C. VF is the number of 32-bit lanes.
//
// vf: floats; vi: 32-bit integers; vb: bytes, four of each of VF rows.

// clang-format off: one primitive a line reads as the table that it is
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VF 8
#define VEC_ISA "avx2"
#define VEC_BIAS 0        // of signed codes
#define VEC_ACTIVATIONS 4 // rows of activations that a product keeps in registers

typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vb;

#define VEC_INLINE static inline __attribute__((always_inline, unused))

VEC_INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
VEC_INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}
VEC_INLINE vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}
VEC_INLINE vf vf_zero(void)
{
    return _mm256_setzero_ps();
}
VEC_INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
VEC_INLINE vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
} // a * b + c
VEC_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
} // c - a * b
// Where either is a NaN these give b.
VEC_INLINE vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
VEC_INLINE vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
VEC_INLINE vf vf_zero_where_less(vf v, vf a, vf b)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), v);
} // a < b: 0
VEC_INLINE vf vf_where_less(vf a, vf b, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
VEC_INLINE vf vf_abs(vf v)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
}
VEC_INLINE vf vf_neg(vf v)
{
    return _mm256_xor_ps(_mm256_set1_ps(-0.0f), v);
}
// a and b element by element, the first half of the pairs and the second.
VEC_INLINE vf vf_zip_low(vf a, vf b)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
VEC_INLINE vf vf_zip_high(vf a, vf b)
{
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
VEC_INLINE vf vf_of_vi(vi v)
{
    return _mm256_cvtepi32_ps(v);
}
VEC_INLINE vf vf_bits(vi v)
{
    return _mm256_castsi256_ps(v);
}
VEC_INLINE vi vi_bits(vf v)
{
    return _mm256_castps_si256(v);
}
VEC_INLINE vi vi_round(vf v)
{
    return _mm256_cvtps_epi32(v);
} // to nearest even

VEC_INLINE float vf_sum(vf v)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

VEC_INLINE vi vi_zero(void)
{
    return _mm256_setzero_si256();
}
VEC_INLINE vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}
VEC_INLINE vi vi_add(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
VEC_INLINE vi vi_sub(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}
VEC_INLINE vi vi_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
VEC_INLINE vi vi_or(vi a, vi b)
{
    return _mm256_or_si256(a, b);
}
VEC_INLINE vi vi_max(vi a, vi b)
{
    return _mm256_max_epi32(a, b);
}
VEC_INLINE vi vi_shl(vi v, int n)
{
    return _mm256_slli_epi32(v, n);
}
VEC_INLINE vi vi_shr(vi v, int n)
{
    return _mm256_srli_epi32(v, n);
}
VEC_INLINE vi vi_u8(const uint8_t *p)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
} // VF bytes
VEC_INLINE vi vi_i8(const uint8_t *p)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
}

VEC_INLINE int32_t vi_largest(vi v)
{
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));

    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}

VEC_INLINE int32_t vi_sum(vi v)
{
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));

    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}

VEC_INLINE void vi_store_i8(int8_t *p, vi v) // VF numbers that fit
{
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));

    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

// VF f16 or bf16 numbers, at any address.
VEC_INLINE vf vf_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(p));
}
VEC_INLINE void vf_store_f16(void *p, vf v)
{
    _mm_storeu_si128(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
VEC_INLINE vf vf_load_bf16(const void *p)
{
    return vf_bits(vi_shl(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

// ---- products of bytes, four a lane -------------------------------------------------------------

VEC_INLINE vb vb_load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
VEC_INLINE void vb_store(uint8_t *p, vb v)
{
    _mm256_storeu_si256((__m256i *)p, v);
}
VEC_INLINE vb vb_broadcast(const int8_t *p) // four bytes to every lane
{
    int32_t four;

    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
VEC_INLINE vb vb_of_vi(vi v) // the bytes of each lane
{
    return v;
}
VEC_INLINE vb vb_set1(int x)
{
    return _mm256_set1_epi8((char)x);
}
VEC_INLINE vb vb_add(vb a, vb b)
{
    return _mm256_add_epi8(a, b);
}
VEC_INLINE vb vb_or(vb a, vb b)
{
    return _mm256_or_si256(a, b);
}
// Bits [from, from + count) of each byte, moved to bit `to`. The masks keep out what 16-bit shifts carry over.
VEC_INLINE vb vb_bits(vb v, int from, int count, int to)
{
    v = from > to ? _mm256_srli_epi16(v, from - to) : _mm256_slli_epi16(v, to - from);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(((1 << count) - 1) << to)));
}
VEC_INLINE vb vb_table(const int8_t *values)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values));
}
VEC_INLINE vb vb_lookup(vb table, vb index)
{
    return _mm256_shuffle_epi8(table, index);
} // index < 16
VEC_INLINE vb vb_biased(vb v) // signed codes as part_signed takes them
{
    return v;
}

// -(first * sums[0] + second * sums[1]) in every lane.
VEC_INLINE vi vi_less_sums(int first, int second, const int16_t *sums)
{
    int32_t pair;

    memcpy(&pair, sums, 4);
    return _mm256_madd_epi16(
        _mm256_set1_epi32((int32_t)((uint32_t)(uint16_t)-first | (uint32_t)(uint16_t)-second << 16)),
        _mm256_set1_epi32(pair));
}

// A running sum of products. maddubs adds pairs of unsigned by signed bytes in 16 bits: two products of |w|
// <= 128 and |a| <= 127 fit, and codes of few bits fit several times before they must be widened.
struct part {
    __m256i sum;   // 32 bits
    __m256i small; // 16 bits, not yet in sum
};

VEC_INLINE struct part part_from(vi start)
{
    return (struct part){start, _mm256_setzero_si256()};
}

VEC_INLINE struct part part_widen(struct part part)
{
    part.sum = _mm256_add_epi32(part.sum, _mm256_madd_epi16(part.small, _mm256_set1_epi16(1)));
    part.small = _mm256_setzero_si256();
    return part;
}

// Signed codes from -128.
VEC_INLINE struct part part_signed(struct part part, vb w, vb a)
{
    __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));

    part.sum = _mm256_add_epi32(part.sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    return part;
}

// Unsigned codes of at most 6 bits: 8 words of 4 bits, 4 words of 5 or 2 words of 6 fit before part_widen.
VEC_INLINE struct part part_unsigned(struct part part, vb w, vb a)
{
    part.small = _mm256_add_epi16(part.small, _mm256_maddubs_epi16(w, a));
    return part;
}

VEC_INLINE vi part_total(struct part part)
{
    return part_widen(part).sum;
}
