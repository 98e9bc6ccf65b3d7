#pragma once
// The machine under the kernels: registers and instructions of PTX as small functions. Nothing else in the kernels
// knows PTX: the emulator of tests/mock has a header of this name, too, and runs them on the CPU.
//
// Functions whose names begin with `warp_`, `shuffle_`, `ldmatrix` and `mma` are for all 32 lanes of a warp together.

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

#define KERNEL __attribute__((nvptx_kernel)) void
#define SHARED __attribute__((address_space(3)))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("unroll")
#define ROLL _Pragma("nounroll")

#define THREAD __nvvm_read_ptx_sreg_tid_x()
#define N_THREADS __nvvm_read_ptx_sreg_ntid_x()
#define BLOCK_X __nvvm_read_ptx_sreg_ctaid_x()
#define BLOCK_Y __nvvm_read_ptx_sreg_ctaid_y()
#define BLOCK_Z __nvvm_read_ptx_sreg_ctaid_z()
#define N_BLOCKS_X ((u32)__nvvm_read_ptx_sreg_nctaid_x())
#define N_BLOCKS_Y ((u32)__nvvm_read_ptx_sreg_nctaid_y())
#define N_BLOCKS_Z ((u32)__nvvm_read_ptx_sreg_nctaid_z())

// What a launch asks for beyond the kernel's own arrays.
extern SHARED u8 g_dynamic[] __attribute__((aligned(128)));

// ---- waiting ------------------------------------------------------------------------------------

INLINE void block_sync(void) { __syncthreads(); }
INLINE void warp_sync(void) { asm volatile("bar.warp.sync -1;" ::: "memory"); }
// What this thread wrote is there for all blocks before what it writes next.
INLINE void device_fence(void) { asm volatile("membar.gl;" ::: "memory"); }

INLINE u32 atomic_add(u32 *p, u32 v)
{
    u32 old;

    asm volatile("atom.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

// The same. What the block's threads wrote before their last barrier is there for whoever adds later, and behind their
// next one they read what those wrote who added before.
INLINE u32 atomic_add_ordered(u32 *p, u32 v)
{
    u32 old;

    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

// The same without an answer.
INLINE void add_ordered(u32 *p, u32 v)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Until others have added so much to what lies there; behind the block's next barrier its threads read what those wrote
// before they added.
INLINE void wait_until(const u32 *p, u32 least)
{
    u32 v;

    do
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    while (v < least);
}

// Programmatic dependent launch (PTX ISA, griddepcontrol), where the tier has it: the next kernel of the stream may
// take its place before this one has ended. It waits before it reads what others wrote, and before it writes.
INLINE void next_may_start(void)
{
#if EW_SM >= 90
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

INLINE void previous_wait(void)
{
#if EW_SM >= 90
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

INLINE u64 atomic_add_u64(u64 *p, u64 v)
{
    u64 old;

    asm volatile("atom.global.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(p), "l"(v) : "memory");
    return old;
}

INLINE u32 shared_add(SHARED u32 *p, u32 v)
{
    u32 old;

    asm volatile("atom.shared.add.u32 %0, [%1], %2;" : "=r"(old) : "r"((u32)(u64)p), "r"(v) : "memory");
    return old;
}

INLINE void shared_add_u64(SHARED u64 *p, u64 v)
{
    asm volatile("red.shared.add.u64 [%0], %1;" ::"r"((u32)(u64)p), "l"(v) : "memory");
}

// Thread block clusters, where the tier has them: blocks that run at the same time and reach each other's shared
// memory. Only the last three functions are for launches without clusters, too, whose blocks are one each.
#if EW_SM >= 90
// Every thread arrives, and waits until those of all blocks have. Nothing that was written is there for others by that.
INLINE void cluster_arrive(void) { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
INLINE void cluster_wait(void) { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// One thread, before it arrives: so many bytes will be put into this block's memory.
INLINE void cluster_expect(SHARED u64 *arrivals, u32 bytes)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; "
                 "fence.mbarrier_init.release.cluster; "
                 "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"((u32)(u64)arrivals),
                 "r"(bytes)
                 : "memory");
}

// All threads: until they have been, by all blocks.
INLINE void cluster_await(SHARED u64 *arrivals)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n"
                 "@!done bra again;\n"
                 "}" ::"r"((u32)(u64)arrivals)
                 : "memory");
}

// To where block `rank` of the cluster has what `to` is here; counted by its `arrivals`.
INLINE void cluster_put_two(SHARED f32x2 *to, u32 rank, f32x2 v, SHARED u64 *arrivals)
{
    asm volatile("{ .reg .b32 at, count; "
                 "mapa.shared::cluster.u32 at, %0, %1; "
                 "mapa.shared::cluster.u32 count, %4, %1; "
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [at], {%2, %3}, [count]; }"
                 :
                 : "r"((u32)(u64)to), "r"(rank), "f"(v.x), "f"(v.y), "r"((u32)(u64)arrivals)
                 : "memory");
}

INLINE void cluster_put_four(SHARED float *to, u32 rank, f32x4 v, SHARED u64 *arrivals)
{
    asm volatile("{ .reg .b32 at, count; "
                 "mapa.shared::cluster.u32 at, %0, %1; "
                 "mapa.shared::cluster.u32 count, %6, %1; "
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [at], {%2, %3, %4, %5}, [count]; "
                 "}"
                 :
                 : "r"((u32)(u64)to), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"((u32)(u64)arrivals)
                 : "memory");
}

// Arrives with all that this thread wrote; and waits for what others had written when they did.
INLINE void cluster_release(void) { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
INLINE void cluster_acquire(void) { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// To where block `rank` of the cluster has what `to` is here.
INLINE void cluster_store_four(SHARED float *to, u32 rank, f32x4 v)
{
    asm volatile("{ .reg .b32 at; mapa.shared::cluster.u32 at, %0, %1; "
                 "st.shared::cluster.v4.f32 [at], {%2, %3, %4, %5}; }" ::"r"((u32)(u64)to),
                 "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}
#else
INLINE void cluster_arrive(void) {}
INLINE void cluster_wait(void) {}
INLINE void cluster_expect(SHARED u64 *arrivals, u32 bytes) {}
INLINE void cluster_await(SHARED u64 *arrivals) {}
INLINE void cluster_put_two(SHARED f32x2 *to, u32 rank, f32x2 v, SHARED u64 *arrivals) {}
INLINE void cluster_put_four(SHARED float *to, u32 rank, f32x4 v, SHARED u64 *arrivals) {}
INLINE void cluster_release(void) {}
INLINE void cluster_acquire(void) { block_sync(); }
INLINE void cluster_store_four(SHARED float *to, u32 rank, f32x4 v) { *(SHARED f32x4 *)to = v; }
#endif

// ---- numbers ------------------------------------------------------------------------------------

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

// Two numbers in one register, `low` in the lower bits.
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

// Byte i of the result is the one that nibble i of `which` names: 0 to 3 of a, 4 to 7 of b; from 8 on, eight times that
// byte's sign. Only 16 bits of `which` matter.
INLINE u32 byte_permute(u32 a, u32 b, u32 which)
{
    u32 r;

    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(which));
    return r;
}

// Of two pairs of f16.
INLINE u32 mul_f16x2(u32 a, u32 b)
{
    u32 r;

    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// The two e4m3 of the lower bytes in f16, exactly; NaN is not among them.
INLINE u32 f16x2_of_e4m3(u32 pair)
{
#if EW_SM >= 90
    u32 r;

    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((u16)pair));
    return r;
#else
    u32 wide = byte_permute(pair, 0, 0x1404);

    return mul_f16x2((wide & 0x80008000) | (wide >> 1 & 0x3F803F80), 0x5C005C00); // 256: the exponents' biases
#endif
}

// 1024 more than each of the two lower bytes, in f16; and than the upper ones.
INLINE u32 low_bytes(u32 v)
{
    u32 r;

    asm("prmt.b32 %0, %1, %2, 0x4140;" : "=r"(r) : "r"(v), "r"(0x64646464));
    return r;
}

INLINE u32 high_bytes(u32 v)
{
    u32 r;

    asm("prmt.b32 %0, %1, %2, 0x4342;" : "=r"(r) : "r"(v), "r"(0x64646464));
    return r;
}

INLINE u32 fma_f16x2(u32 a, u32 b, u32 c)
{
    u32 r;

    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

INLINE u32 add_f16x2(u32 a, u32 b)
{
    u32 r;

    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

INLINE int dp4a(u32 a, u32 b, int sum)
{
    int r;

    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

// The bytes of a are not signed.
INLINE int dp4a_unsigned(u32 a, u32 b, int sum)
{
    int r;

    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

INLINE float exp2_approx(float x)
{
    float r;

    asm("ex2.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

INLINE float reciprocal_approx(float x)
{
    float r;

    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

INLINE float rsqrt_approx(float x)
{
    float r;

    asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

INLINE float sqrt_f32(float x)
{
    float r;

    asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// ---- memory -------------------------------------------------------------------------------------

// Weights are read once a step: they must not push anything else out of the first cache.
INLINE u32x4 load_once(const void *p)
{
    u32x4 r;

    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(p));
    return r;
}

// Into the second cache, where the line is not there yet.
INLINE void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes from global to shared memory without a register; there after copy_wait of its group and a barrier. Without
// `there`, zeros.
INLINE void copy_async(SHARED void *to, const void *from, u32 there)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"((u32)(u64)to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}

// 0, of a number that is even, as ptxas cannot know.
INLINE u32 hidden_zero(u32 even) { return even & 1; }

// The same of weights, which a step reads once: they are the first to leave the second cache. `zero` is hidden_zero's:
// of such a copy whose address ends with an addend in a uniform register ptxas 13.0 makes an illegal instruction.
INLINE void copy_once_async(SHARED void *to, const void *from, u32 there, u32 zero)
{
#if EW_SM >= 90
    u64 policy;

    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;"
                 :
                 : "r"((u32)(u64)to ^ zero), "l"(from), "r"(there ? 16 : 0), "l"(policy)
                 : "memory");
#else
    copy_async(to, from, there);
#endif
}

// The same of 8 bytes, of 4.
INLINE void copy_8_async(SHARED void *to, const void *from, u32 there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :
                 : "r"((u32)(u64)to), "l"(from), "r"(there ? 8 : 0)
                 : "memory");
}

INLINE void copy_word_async(SHARED void *to, const void *from, u32 there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"((u32)(u64)to), "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}

INLINE void copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of this thread's groups are under way; a constant.
#define copy_wait(pending) asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory")

// ---- warps --------------------------------------------------------------------------------------

INLINE u32 shuffle_xor_u32(u32 v, u32 lanes)
{
    u32 w;

    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=r"(w) : "r"(v), "r"(lanes));
    return w;
}

INLINE u32 shuffle_from(u32 v, u32 lane)
{
    u32 w;

    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 31, -1;" : "=r"(w) : "r"(v), "r"(lane));
    return w;
}

// The greatest and the least of all lanes'.
INLINE u32 warp_max_u32(u32 v)
{
    u32 r;

    asm volatile("redux.sync.max.u32 %0, %1, -1;" : "=r"(r) : "r"(v));
    return r;
}

INLINE u32 warp_min_u32(u32 v)
{
    u32 r;

    asm volatile("redux.sync.min.u32 %0, %1, -1;" : "=r"(r) : "r"(v));
    return r;
}

// A bit for each lane.
INLINE u32 warp_ballot(u32 is)
{
    u32 r;

    asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; vote.sync.ballot.b32 %0, p, -1; }" : "=r"(r) : "r"(is));
    return r;
}

// Four 8 x 8 matrices of 16-bit elements: lane i names row i % 8 of matrix i / 8 (16 bytes); a lane gets, of each
// matrix, elements 2 (lane % 4) and the next of row lane / 4.
INLINE void ldmatrix4(u32 *r, SHARED const u16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)(u64)p));
}

// The same of the matrices' transposes.
INLINE void ldmatrix4_trans(u32 *r, SHARED const u16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((u32)(u64)p));
}

// c[16 x 8] += a[16 x 16] b[16 x 8]; fragments as the PTX ISA has them for m16n8k16.
INLINE void mma_f16(float *c, const u32 *a, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

INLINE void mma_bf16(float *c, const u32 *a, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of e4m3 (sm_89): m16n8k32.
INLINE void mma_e4m3(float *c, const u32 *a, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
