#pragma once
// What freestanding C for the GPU lacks: names for the hardware's registers and instructions, and the few functions of
// mathematics that the kernels need. Accuracy of the latter: relative 1e-6 or absolute 2e-7, whichever is larger.

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef u32 u32x2 __attribute__((ext_vector_type(2)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef float f32x4 __attribute__((ext_vector_type(4)));

#define KERNEL __attribute__((nvptx_kernel)) void
#define SHARED __attribute__((address_space(3)))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")

#define THREAD __nvvm_read_ptx_sreg_tid_x()
#define N_THREADS __nvvm_read_ptx_sreg_ntid_x()
#define BLOCK_X __nvvm_read_ptx_sreg_ctaid_x()
#define BLOCK_Y __nvvm_read_ptx_sreg_ctaid_y()
#define BLOCK_Z __nvvm_read_ptx_sreg_ctaid_z()
#define N_BLOCKS_Z __nvvm_read_ptx_sreg_nctaid_z()
#define N_BLOCKS_X __nvvm_read_ptx_sreg_nctaid_x()

#define NEG_INFINITY (-__builtin_inff())

INLINE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
INLINE u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }
INLINE float min_f32(float a, float b) { return a < b ? a : b; }
INLINE float max_f32(float a, float b) { return a > b ? a : b; }
INLINE float abs_f32(float x) { return __builtin_fabsf(x); }

INLINE float f32_of_bits(u32 bits)
{
    union { u32 i; float f; } x = {bits};

    return x.f;
}

INLINE u32 bits_of_f32(float f)
{
    union { float f; u32 i; } x = {f};

    return x.i;
}

INLINE float f32_of_f16(u16 h)
{
    float f;

    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

INLINE u16 f16_of_f32(float f)
{
    u16 h;

    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two halves in one register, `low` in the lower bits.
INLINE u32 f16x2_of(float low, float high)
{
    u32 r;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

INLINE u32 bf16x2_of(float low, float high)
{
    u32 r;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

INLINE float low_f16(u32 v) { return f32_of_f16((u16)v); }
INLINE float high_f16(u32 v) { return f32_of_f16((u16)(v >> 16)); }
INLINE float low_bf16(u32 v) { return f32_of_bits(v << 16); }
INLINE float high_bf16(u32 v) { return f32_of_bits(v & 0xFFFF0000u); }

INLINE int dp4a(u32 a, u32 b, int sum)
{
    int r;

    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

// Weights are read once a step: they must not push anything else out of the first cache.
INLINE u32x4 load_once(const void *p)
{
    u32x4 r;

    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

INLINE float shuffle_xor(float v, u32 lane)
{
    float w;

    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(w) : "f"(v), "r"(lane));
    return w;
}

INLINE float warp_sum(float v)
{
    UNROLL
    for (u32 o = 16; o; o >>= 1)
        v += shuffle_xor(v, o);
    return v;
}

INLINE float warp_max(float v)
{
    UNROLL
    for (u32 o = 16; o; o >>= 1)
        v = max_f32(v, shuffle_xor(v, o));
    return v;
}

INLINE float exp2_approx(float x)
{
    float r;

    asm("ex2.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// The product with log2(e) in two parts, so that large arguments keep their fraction.
INLINE float exp_f32(float x)
{
    float n = x * 1.44269504f, low = __builtin_fmaf(x, 1.44269504f, -n) + x * 1.92596299e-8f;

    if (x == NEG_INFINITY)
        return 0;
    return exp2_approx(n) * (1 + low * 0.69314718f);
}

INLINE float tanh_f32(float x)
{
    float a = abs_f32(x), x2 = x * x, e;

    if (a < 0.3f) // series: the difference below would lose digits
        return x * (1 + x2 * (-0.333333333f + x2 * (0.133333333f + x2 * (-0.0539682540f +
               x2 * (0.0218694885f + x2 * -0.00886323552f)))));
    e = a > 15 ? 0 : exp_f32(-2 * a);
    e = (1 - e) / (1 + e);
    return x < 0 ? -e : e;
}

// Abramowitz and Stegun, 7.1.26; its absolute error is 1.5e-7.
INLINE float erf_f32(float x)
{
    float a = abs_f32(x), t = 1 / (1 + 0.3275911f * a), r;

    r = 1 - t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)))) *
        exp_f32(-a * a);
    return x < 0 ? -r : r;
}

INLINE float rsqrt_f32(float x)
{
    float r;

    asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(x));
    return 1 / r;
}

// ---- weights --------------------------------------------------------------------------------------

// The layouts of kernel/cuda/cuda_layout.h, in the same order.
enum { LAYOUT_F32, LAYOUT_F16, LAYOUT_BF16, LAYOUT_I8, LAYOUT_U4, LAYOUT_U4_MIN };

struct weight {
    const u8 *codes;
    const u16 *scales, *mins; // a group of 32 columns
};

// One element; for rows that are looked up.
INLINE float weight_at(u32 layout, const struct weight *w, u64 row, u32 column, u32 cols)
{
    u64 at = row * cols + column, group = at / 32;
    u32 code;

    switch (layout) {
    case LAYOUT_F32:
        return ((const float *)w->codes)[at];
    case LAYOUT_F16:
        return f32_of_f16(((const u16 *)w->codes)[at]);
    case LAYOUT_BF16:
        return f32_of_bits((u32)((const u16 *)w->codes)[at] << 16);
    case LAYOUT_I8:
        return (float)(i8)w->codes[at] * f32_of_f16(w->scales[group]);
    default:
        code = w->codes[group * 16 + column % 16];
        code = column % 32 < 16 ? code & 15 : code >> 4;
        if (layout == LAYOUT_U4)
            return (float)((i32)code - 8) * f32_of_f16(w->scales[group]);
        return (float)code * f32_of_f16(w->scales[group]) - f32_of_f16(w->mins[group]);
    }
}
