#pragma once
// The vector primitives of the *_tmpl.c files, on plain NEON (every arm64); products of bytes on sdot where the file is
// compiled with it. See vec_avx2.h for the names.

// clang-format off: one primitive a line reads as the table that it is
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define VF 4
#ifdef __ARM_FEATURE_DOTPROD
#define VEC_ISA "dotprod"
#else
#define VEC_ISA "neon"
#endif
#define VEC_BIAS 0        // of signed codes
#define VEC_ACTIVATIONS 4 // rows of activations that a product keeps in registers

typedef float32x4_t vf;
typedef int32x4_t vi;
typedef int8x16_t vb;

#define VEC_INLINE static inline __attribute__((always_inline, unused))

VEC_INLINE vf vf_load(const float *p)
{
    return vld1q_f32(p);
}
VEC_INLINE void vf_store(float *p, vf v)
{
    vst1q_f32(p, v);
}
VEC_INLINE vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}
VEC_INLINE vf vf_zero(void)
{
    return vdupq_n_f32(0);
}
VEC_INLINE vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}
VEC_INLINE vf vf_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}
VEC_INLINE vf vf_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}
VEC_INLINE vf vf_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}
VEC_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
VEC_INLINE vf vf_fnma(vf a, vf b, vf c)
{
    return vfmsq_f32(c, a, b);
}
// A NaN in either stays.
VEC_INLINE vf vf_max(vf a, vf b)
{
    return vmaxq_f32(a, b);
}
VEC_INLINE vf vf_min(vf a, vf b)
{
    return vminq_f32(a, b);
}
VEC_INLINE vf vf_zero_where_less(vf v, vf a, vf b)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(a, b)));
}
VEC_INLINE vf vf_where_less(vf a, vf b, vf yes, vf no)
{
    return vbslq_f32(vcltq_f32(a, b), yes, no);
}
VEC_INLINE vf vf_abs(vf v)
{
    return vabsq_f32(v);
}
VEC_INLINE vf vf_neg(vf v)
{
    return vnegq_f32(v);
}
// a and b element by element, the first half of the pairs and the second.
VEC_INLINE vf vf_zip_low(vf a, vf b)
{
    return vzip1q_f32(a, b);
}
VEC_INLINE vf vf_zip_high(vf a, vf b)
{
    return vzip2q_f32(a, b);
}
VEC_INLINE vf vf_of_vi(vi v)
{
    return vcvtq_f32_s32(v);
}
VEC_INLINE vf vf_bits(vi v)
{
    return vreinterpretq_f32_s32(v);
}
VEC_INLINE vi vi_bits(vf v)
{
    return vreinterpretq_s32_f32(v);
}
VEC_INLINE vi vi_round(vf v)
{
    return vcvtnq_s32_f32(v);
}

VEC_INLINE float vf_sum(vf v)
{
    return vaddvq_f32(v);
}

VEC_INLINE vi vi_zero(void)
{
    return vdupq_n_s32(0);
}
VEC_INLINE vi vi_set1(int32_t x)
{
    return vdupq_n_s32(x);
}
VEC_INLINE vi vi_add(vi a, vi b)
{
    return vaddq_s32(a, b);
}
VEC_INLINE vi vi_sub(vi a, vi b)
{
    return vsubq_s32(a, b);
}
VEC_INLINE vi vi_and(vi a, vi b)
{
    return vandq_s32(a, b);
}
VEC_INLINE vi vi_or(vi a, vi b)
{
    return vorrq_s32(a, b);
}
VEC_INLINE vi vi_max(vi a, vi b)
{
    return vmaxq_s32(a, b);
}
VEC_INLINE vi vi_shl(vi v, int n)
{
    return vshlq_s32(v, vdupq_n_s32(n));
}
VEC_INLINE vi vi_shr(vi v, int n)
{
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-n)));
}

VEC_INLINE vi vi_u8(const uint8_t *p)
{
    uint32_t four;

    memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}

VEC_INLINE vi vi_i8(const uint8_t *p)
{
    uint32_t four;

    memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}

VEC_INLINE int32_t vi_largest(vi v)
{
    return vmaxvq_s32(v);
}
VEC_INLINE int32_t vi_sum(vi v)
{
    return vaddvq_s32(v);
}

VEC_INLINE void vi_store_i8(int8_t *p, vi v)
{
    int16x4_t words = vqmovn_s32(v);
    uint64_t bytes = vget_lane_u64(vreinterpret_u64_s8(vqmovn_s16(vcombine_s16(words, words))), 0);

    memcpy(p, &bytes, 4);
}

VEC_INLINE vf vf_load_f16(const void *p)
{
    uint64_t four;

    memcpy(&four, p, 8);
    return vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(four)));
}

VEC_INLINE void vf_store_f16(void *p, vf v)
{
    uint64_t four = vget_lane_u64(vreinterpret_u64_f16(vcvt_f16_f32(v)), 0);

    memcpy(p, &four, 8);
}

VEC_INLINE vf vf_load_bf16(const void *p)
{
    uint64_t four;

    memcpy(&four, p, 8);
    return vreinterpretq_f32_u32(vshll_n_u16(vcreate_u16(four), 16));
}

// ---- products of bytes, four a lane -------------------------------------------------------------

VEC_INLINE vb vb_load(const uint8_t *p)
{
    return vreinterpretq_s8_u8(vld1q_u8(p));
}
VEC_INLINE void vb_store(uint8_t *p, vb v)
{
    vst1q_u8(p, vreinterpretq_u8_s8(v));
}
VEC_INLINE vb vb_broadcast(const int8_t *p)
{
    int32_t four;

    memcpy(&four, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
VEC_INLINE vb vb_of_vi(vi v) // the bytes of each lane
{
    return vreinterpretq_s8_s32(v);
}
VEC_INLINE vb vb_set1(int x)
{
    return vdupq_n_s8((int8_t)x);
}
VEC_INLINE vb vb_add(vb a, vb b)
{
    return vaddq_s8(a, b);
}
VEC_INLINE vb vb_or(vb a, vb b)
{
    return vorrq_s8(a, b);
}
VEC_INLINE vb vb_bits(vb v, int from, int count, int to)
{
    uint8x16_t moved = vshlq_u8(vreinterpretq_u8_s8(v), vdupq_n_s8((int8_t)(to - from)));

    return vreinterpretq_s8_u8(vandq_u8(moved, vdupq_n_u8((uint8_t)(((1u << count) - 1) << to))));
}
VEC_INLINE vb vb_table(const int8_t *values)
{
    return vld1q_s8(values);
}
VEC_INLINE vb vb_lookup(vb table, vb index)
{
    return vqtbl1q_s8(table, vreinterpretq_u8_s8(index));
}

VEC_INLINE vb vb_biased(vb v)
{
    return v;
}
VEC_INLINE vi vi_less_sums(int first, int second, const int16_t *sums)
{
    return vdupq_n_s32(-(first * sums[0] + second * sums[1]));
}

#ifdef __ARM_FEATURE_DOTPROD

// A running sum of products.
struct part {
    int32x4_t sum;
};

VEC_INLINE struct part part_from(vi start)
{
    return (struct part){start};
}
VEC_INLINE struct part part_widen(struct part part)
{
    return part;
}
VEC_INLINE struct part part_signed(struct part part, vb w, vb a)
{
    return (struct part){vdotq_s32(part.sum, w, a)};
}
VEC_INLINE vi part_total(struct part part)
{
    return part.sum;
}

#else

// Sums of two products a lane, of the first and of the last two rows; rows come together in part_total.
struct part {
    int32x4_t low, high;
};

VEC_INLINE struct part part_from(vi start)
{
    return (struct part){vzip1q_s32(start, vdupq_n_s32(0)), vzip2q_s32(start, vdupq_n_s32(0))};
}
VEC_INLINE struct part part_widen(struct part part)
{
    return part;
}

VEC_INLINE struct part part_signed(struct part part, vb w, vb a)
{
    part.low = vpadalq_s16(part.low, vmull_s8(vget_low_s8(w), vget_low_s8(a)));
    part.high = vpadalq_s16(part.high, vmull_high_s8(w, a));
    return part;
}

VEC_INLINE vi part_total(struct part part)
{
    return vpaddq_s32(part.low, part.high);
}

#endif

VEC_INLINE struct part part_unsigned(struct part part, vb w, vb a)
{
    return part_signed(part, w, a);
} // codes are below 64
