#pragma once
// Stands under the kernels in place of src/kernel/cuda/ptx/machine.h where they run on the CPU: the same functions,
// with a fiber for each thread of a block. Warp-wide functions leave what a lane gives in a slot of its warp, wait for
// the other lanes, and read theirs.

#include <stdint.h>
#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

#include "base/half.h"

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef u32 u32x2 __attribute__((ext_vector_type(2)));
typedef u32 u32x4 __attribute__((ext_vector_type(4)));
typedef float f32x2 __attribute__((ext_vector_type(2)));
typedef float f32x4 __attribute__((ext_vector_type(4)));

#define KERNEL __attribute__((visibility("default"))) void
#define SHARED
#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL
#define ROLL

struct emu_slot {
    u32 words[24];
};

struct emu_warp {
    struct emu_slot slots[2][32]; // by turns: who is one call ahead does not overwrite what others still read
};

// The thread that runs, and where it is.
struct emu_thread {
    u32 thread, n_threads, block[3], n_blocks[3], n_cluster, calls;
    struct emu_warp *warp;
};
extern struct emu_thread *emu_now;
void emu_block_sync(void);
void emu_warp_sync(void);
void emu_others(void); // warps and blocks run on
void emu_cluster_sync(void);
void *emu_cluster_at(void *p, u32 rank); // of what lies at p in this block's dynamic shared memory

#define THREAD (emu_now->thread)
#define N_THREADS (emu_now->n_threads)
#define BLOCK_X (emu_now->block[0])
#define BLOCK_Y (emu_now->block[1])
#define BLOCK_Z (emu_now->block[2])
#define N_BLOCKS_X (emu_now->n_blocks[0])
#define N_BLOCKS_Y (emu_now->n_blocks[1])
#define N_BLOCKS_Z (emu_now->n_blocks[2])

// What a launch asks for beyond the kernel's own arrays.
extern SHARED u8 g_dynamic[] __attribute__((aligned(128)));

// ---- waiting ------------------------------------------------------------------------------------

INLINE void block_sync(void) { emu_block_sync(); }
INLINE void warp_sync(void) { emu_warp_sync(); }
INLINE void device_fence(void) {}

INLINE void next_may_start(void) {}
INLINE void previous_wait(void) {}

INLINE u32 atomic_add(u32 *p, u32 v)
{
    u32 old = *p;

    *p += v;
    return old;
}

INLINE u32 atomic_add_ordered(u32 *p, u32 v) { return atomic_add(p, v); }

INLINE void add_ordered(u32 *p, u32 v) { *p += v; }

INLINE void wait_until(const u32 *p, u32 least)
{
    while (*(const volatile u32 *)p < least)
        emu_others();
}

// Who arrives waits at once for nobody: all meet where they wait.
INLINE void cluster_arrive(void) {}
INLINE void cluster_wait(void) { emu_cluster_sync(); }
INLINE void cluster_expect(u64 *arrivals, u32 bytes) {}
INLINE void cluster_await(u64 *arrivals) { emu_cluster_sync(); }
INLINE void cluster_put_two(f32x2 *to, u32 rank, f32x2 v, u64 *arrivals)
{
    memcpy(emu_cluster_at(to, rank), &v, sizeof(v));
}
INLINE void cluster_put_four(float *to, u32 rank, f32x4 v, u64 *arrivals)
{
    memcpy(emu_cluster_at(to, rank), &v, sizeof(v));
}
INLINE void cluster_release(void) {}
INLINE void cluster_acquire(void) { emu_cluster_sync(); }
INLINE void cluster_store_four(float *to, u32 rank, f32x4 v) { memcpy(emu_cluster_at(to, rank), &v, sizeof(v)); }

INLINE u64 atomic_add_u64(u64 *p, u64 v)
{
    u64 old = *p;

    *p += v;
    return old;
}

INLINE u32 shared_add(u32 *p, u32 v) { return atomic_add(p, v); }
INLINE void shared_add_u64(u64 *p, u64 v) { *p += v; }

// ---- numbers ------------------------------------------------------------------------------------

// Where the CPU converts, it does so as half.h does, but for the bits of NaN.
#ifdef __F16C__

INLINE float f32_of_f16(u16 h) { return _cvtsh_ss(h); }
INLINE u16 f16_of_f32(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }

#else

INLINE float f32_of_f16(u16 h) { return ew_f32_of_f16(h); }
INLINE u16 f16_of_f32(float f) { return ew_f16_of_f32(f); }

#endif

INLINE u32 f16x2_of(float low, float high) { return f16_of_f32(low) | (u32)f16_of_f32(high) << 16; }
INLINE u32 bf16x2_of(float low, float high) { return ew_bf16_of_f32(low) | (u32)ew_bf16_of_f32(high) << 16; }

INLINE u32 byte_permute(u32 a, u32 b, u32 which)
{
    u64 bytes = a | (u64)b << 32;
    u32 r = 0;

    for (u32 i = 0; i < 4; i++) {
        i8 byte = (i8)(bytes >> (which >> 4 * i & 7) * 8);

        r |= (u32)(u8)(which >> 4 * i & 8 ? byte >> 7 : byte) << 8 * i;
    }
    return r;
}

INLINE u32 low_bytes(u32 v) { return (v & 0xFF) | (v & 0xFF00) << 8 | 0x64006400; }
INLINE u32 high_bytes(u32 v) { return low_bytes(v >> 16); }

INLINE u32 fma_f16x2(u32 a, u32 b, u32 c)
{
    return f16x2_of(f32_of_f16((u16)a) * f32_of_f16((u16)b) + f32_of_f16((u16)c),
                    f32_of_f16((u16)(a >> 16)) * f32_of_f16((u16)(b >> 16)) + f32_of_f16((u16)(c >> 16)));
}

INLINE u32 mul_f16x2(u32 a, u32 b)
{
    return f16x2_of(f32_of_f16((u16)a) * f32_of_f16((u16)b), f32_of_f16((u16)(a >> 16)) * f32_of_f16((u16)(b >> 16)));
}

// The two e4m3 of the lower bytes in f16, exactly; NaN is not among them.
INLINE u32 f16x2_of_e4m3(u32 pair)
{
    u32 wide = byte_permute(pair, 0, 0x1404);

    return mul_f16x2((wide & 0x80008000) | (wide >> 1 & 0x3F803F80), 0x5C005C00); // 256: the exponents' biases
}

INLINE u32 add_f16x2(u32 a, u32 b)
{
    return f16x2_of(f32_of_f16((u16)a) + f32_of_f16((u16)b), f32_of_f16((u16)(a >> 16)) + f32_of_f16((u16)(b >> 16)));
}

typedef u8 emu_u8x4 __attribute__((ext_vector_type(4)));
typedef i8 emu_i8x4 __attribute__((ext_vector_type(4)));
typedef int emu_i32x4 __attribute__((ext_vector_type(4)));

INLINE emu_i32x4 emu_bytes(u32 v) { return __builtin_convertvector(__builtin_bit_cast(emu_i8x4, v), emu_i32x4); }
INLINE int emu_sum(emu_i32x4 v) { return v.x + v.y + v.z + v.w; }

INLINE int dp4a(u32 a, u32 b, int sum) { return sum + emu_sum(emu_bytes(a) * emu_bytes(b)); }

INLINE int dp4a_unsigned(u32 a, u32 b, int sum)
{
    return sum + emu_sum(__builtin_convertvector(__builtin_bit_cast(emu_u8x4, a), emu_i32x4) * emu_bytes(b));
}

INLINE float exp2_approx(float x) { return __builtin_exp2f(x); }
INLINE float reciprocal_approx(float x) { return 1 / x; }
INLINE float rsqrt_approx(float x) { return 1 / __builtin_sqrtf(x); }
INLINE float sqrt_f32(float x) { return __builtin_sqrtf(x); }

// ---- memory -------------------------------------------------------------------------------------

INLINE void prefetch(const void *p) {}
INLINE u32x4 load_once(const void *p) { return *(const u32x4 *)p; }

INLINE void copy_async(void *to, const void *from, u32 there)
{
    if (there)
        memcpy(to, from, 16);
    else
        memset(to, 0, 16);
}

INLINE u32 hidden_zero(u32 even) { return even & 1; }
INLINE void copy_once_async(void *to, const void *from, u32 there, u32 zero)
{
    copy_async((u8 *)to + zero, from, there);
}

INLINE void copy_8_async(void *to, const void *from, u32 there)
{
    if (there)
        memcpy(to, from, 8);
    else
        memset(to, 0, 8);
}

INLINE void copy_word_async(void *to, const void *from, u32 there)
{
    if (there)
        memcpy(to, from, 4);
    else
        memset(to, 0, 4);
}

INLINE void copy_commit(void) {}
#define copy_wait(pending) ((void)(pending))

// ---- warps --------------------------------------------------------------------------------------

INLINE struct emu_slot *emu_slots(void) { return emu_now->warp->slots[emu_now->calls & 1]; }

// This lane's slot, to be filled before emu_meet.
INLINE struct emu_slot *emu_give(void) { return &emu_slots()[THREAD % 32]; }

// The slots of all lanes, once every lane has filled its own.
INLINE const struct emu_slot *emu_meet(void)
{
    const struct emu_slot *slots = emu_slots();

    emu_now->calls++;
    emu_warp_sync();
    return slots;
}

INLINE u32 shuffle_from(u32 v, u32 lane)
{
    emu_give()->words[0] = v;
    return emu_meet()[lane % 32].words[0];
}

INLINE u32 shuffle_xor_u32(u32 v, u32 lanes) { return shuffle_from(v, (THREAD % 32) ^ lanes); }

INLINE u32 warp_max_u32(u32 v)
{
    const struct emu_slot *slots;

    emu_give()->words[0] = v;
    slots = emu_meet();
    for (u32 i = 0; i < 32; i++)
        v = slots[i].words[0] > v ? slots[i].words[0] : v;
    return v;
}

INLINE u32 warp_min_u32(u32 v) { return ~warp_max_u32(~v); }

INLINE u32 warp_ballot(u32 is)
{
    const struct emu_slot *slots;
    u32 r = 0;

    emu_give()->words[0] = is;
    slots = emu_meet();
    for (u32 i = 0; i < 32; i++)
        r |= (u32)(slots[i].words[0] != 0) << i;
    return r;
}

INLINE void ldmatrix4(u32 *r, const u16 *p)
{
    const struct emu_slot *slots;
    u32 lane = THREAD % 32;

    memcpy(emu_give()->words, p, 16);
    slots = emu_meet();
    for (u32 i = 0; i < 4; i++)
        r[i] = slots[i * 8 + lane / 4].words[lane % 4];
}

INLINE void ldmatrix4_trans(u32 *r, const u16 *p)
{
    const struct emu_slot *slots;
    u32 lane = THREAD % 32, column = lane / 4, row = lane % 4 * 2;

    memcpy(emu_give()->words, p, 16);
    slots = emu_meet();
    for (u32 i = 0; i < 4; i++) {
        u32 low = slots[i * 8 + row].words[column / 2] >> column % 2 * 16;
        u32 high = slots[i * 8 + row + 1].words[column / 2] >> column % 2 * 16;

        r[i] = (low & 0xFFFF) | high << 16;
    }
}

// Elements of a lane's registers: of a, rows lane / 4 and lane / 4 + 8 by turns, then the same for the upper half of k;
// of b, column lane / 4.
INLINE u32 emu_half(u32 word, u32 i, u32 is_bf16)
{
    u16 h = (u16)(word >> 16 * i);

    return ew_bits_of_f32(is_bf16 ? ew_f32_of_bf16(h) : f32_of_f16(h));
}

// Slots hold numbers: words 0 to 3 the lane's of a's upper row, 4 to 7 those of the lower one, 8 to 11 those of b, all
// in the same order.
INLINE void emu_give_halves(const u32 *a, u32 b0, u32 b1, u32 is_bf16)
{
    u32 words[6] = {a[0], a[2], a[1], a[3], b0, b1};
    struct emu_slot *slot = emu_give();

    for (u32 i = 0; i < 12; i++)
        slot->words[i] = emu_half(words[i / 2], i % 2, is_bf16);
}

INLINE f32x4 emu_four(const struct emu_slot *slot, u32 first)
{
    f32x4 v;

    memcpy(&v, slot->words + first, sizeof(v));
    return v;
}

INLINE void emu_mma_half(float *c, const u32 *a, u32 b0, u32 b1, u32 is_bf16)
{
    u32 lane = THREAD % 32;
    const struct emu_slot *slots, *rows, *columns;
    f32x4 sums[4] = {0};

    emu_give_halves(a, b0, b1, is_bf16);
    slots = emu_meet();
    rows = slots + lane / 4 * 4;
    columns = slots + lane % 4 * 8;
    for (u32 j = 0; j < 4; j++) { // four of sixteen columns of a
        for (u32 i = 0; i < 4; i++)
            sums[i] += emu_four(rows + j, i / 2 * 4) * emu_four(columns + i % 2 * 4 + j, 8);
    }
    for (u32 i = 0; i < 4; i++)
        c[i] += (sums[i].x + sums[i].y) + (sums[i].z + sums[i].w);
}

INLINE void mma_f16(float *c, const u32 *a, u32 b0, u32 b1) { emu_mma_half(c, a, b0, b1, 0); }
INLINE void mma_bf16(float *c, const u32 *a, u32 b0, u32 b1) { emu_mma_half(c, a, b0, b1, 1); }

// Likewise eight numbers of each row, words 0 to 7 and 8 to 15, and eight of b's column.
INLINE void mma_e4m3(float *c, const u32 *a, u32 b0, u32 b1)
{
    u32 lane = THREAD % 32, words[6] = {a[0], a[2], a[1], a[3], b0, b1};
    const struct emu_slot *slots, *rows, *columns;
    struct emu_slot *slot = emu_give();
    f32x4 sums[4] = {0};

    for (u32 i = 0; i < 24; i++)
        slot->words[i] = ew_bits_of_f32(ew_f32_of_e4m3((u8)(words[i / 4] >> i % 4 * 8)));
    slots = emu_meet();
    rows = slots + lane / 4 * 4;
    columns = slots + lane % 4 * 8;
    for (u32 j = 0; j < 8; j++) { // four of 32 columns of a
        for (u32 i = 0; i < 4; i++)
            sums[i] += emu_four(rows + j / 2, i / 2 * 8 + j % 2 * 4) *
                       emu_four(columns + i % 2 * 4 + j / 2, 16 + j % 2 * 4);
    }
    for (u32 i = 0; i < 4; i++)
        c[i] += (sums[i].x + sums[i].y) + (sums[i].z + sums[i].w);
}
