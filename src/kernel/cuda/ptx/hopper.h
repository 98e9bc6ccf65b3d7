#pragma once
// Instructions of sm_90a (PTX ISA 8.0): products of a warpgroup, copies of tiles by the tensor copy engine, barriers in
// shared memory that count bytes. The emulator does not have them: it says that it is an older GPU.

#include "kernel/cuda/ptx/machine.h"

typedef u64 barrier;

INLINE u32 shared_address(SHARED const void *p) { return (u32)(u64)p; }

INLINE void barrier_init(SHARED barrier *b, u32 arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
}

// Makes the barriers known to the copy engine.
INLINE void barrier_init_done(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

INLINE void barrier_arrive(SHARED barrier *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

// Arrives, and lets the phase end only when so many bytes have come, too.
INLINE void barrier_expect(SHARED barrier *b, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
                 : "memory");
}

// Until the phase of this parity has ended; of a new barrier, the phase before the first one has parity 1.
INLINE void barrier_wait(SHARED barrier *b, u32 parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(shared_address(b)), "r"(parity)
                 : "memory");
}

// A tile of a matrix that `map` (a CUtensorMap in global memory) describes; column and row of its first element.
INLINE void copy_tile(SHARED void *to, const void *map, u32 column, u32 row, SHARED barrier *b)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];"
                 :
                 : "r"(shared_address(to)), "l"(map), "r"(shared_address(b)), "r"(column), "r"(row)
                 : "memory");
}

// Bytes as they lie, a multiple of 16.
INLINE void copy_bytes(SHARED void *to, u64 from, u32 bytes, SHARED barrier *b)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(b))
                 : "memory");
}

// A barrier of its own for the first n threads of the block; a constant.
#define threads_sync(n) asm volatile("bar.sync 1, %0;" ::"n"(n) : "memory")

// Registers of each thread of a warpgroup, where the kernel's bounds are known: constants, multiples of 8.
#define registers_grow(n) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n))
#define registers_shrink(n) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n))

// What describes a tile in shared memory to the tensor cores: rows of 128 bytes, 16-byte chunks exchanged by the
// 128-byte pattern, so that eight rows (1,024 bytes) repeat.
INLINE u64 tile_descriptor(SHARED const void *p)
{
    return (u64)(shared_address(p) & 0x3FFFF) >> 4 | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// Registers i to i + 63 of an assembly's operands: read and written ("+f"), or written alone ("=f").
#define EIGHT(how, c, i) \
    how(c[i]), how(c[i + 1]), how(c[i + 2]), how(c[i + 3]), how(c[i + 4]), how(c[i + 5]), how(c[i + 6]), how(c[i + 7])
#define SIXTY_FOUR(how, c, i) \
    EIGHT(how, c, i), EIGHT(how, c, i + 8), EIGHT(how, c, i + 16), EIGHT(how, c, i + 24), EIGHT(how, c, i + 32), \
        EIGHT(how, c, i + 40), EIGHT(how, c, i + 48), EIGHT(how, c, i + 56)
#define ACC64(c, i) SIXTY_FOUR("+f", c, i)
#define LIST64 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56," \
    "%57,%58,%59,%60,%61,%62,%63"
#define LIST128 \
    LIST64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
    "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113," \
    "%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// 64 columns of the tiles of `a` and `b`: four products of 16 columns (32 bytes: 2 in a descriptor), committed as one
// group. Without `add` the first one begins anew.
#define WARPGROUP_PRODUCTS(shape, type, list, a, b, add) \
    "{\n" \
    ".reg .pred p;\n" \
    ".reg .b64 x, y;\n" \
    "setp.ne.b32 p, " add ", 0;\n" \
    "wgmma.fence.sync.aligned;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, " a ", " b ", p, 1, 1, 0, 0;\n" \
    "add.s64 x, " a ", 2;\nadd.s64 y, " b ", 2;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, x, y, 1, 1, 1, 0, 0;\n" \
    "add.s64 x, " a ", 4;\nadd.s64 y, " b ", 4;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, x, y, 1, 1, 1, 0, 0;\n" \
    "add.s64 x, " a ", 6;\nadd.s64 y, " b ", 6;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" list "}, x, y, 1, 1, 1, 0, 0;\n" \
    "wgmma.commit_group.sync.aligned;\n" \
    "}"

INLINE void warpgroup_256(u32 is_bf16, float *c, u64 a, u64 b, u32 add)
{
    if (is_bf16)
        asm volatile(WARPGROUP_PRODUCTS("m64n256k16", "bf16", LIST128, "%128", "%129", "%130")
                     : ACC64(c, 0), ACC64(c, 64)
                     : "l"(a), "l"(b), "r"(add)
                     : "memory");
    else
        asm volatile(WARPGROUP_PRODUCTS("m64n256k16", "f16", LIST128, "%128", "%129", "%130")
                     : ACC64(c, 0), ACC64(c, 64)
                     : "l"(a), "l"(b), "r"(add)
                     : "memory");
}

INLINE void warpgroup_128(u32 is_bf16, float *c, u64 a, u64 b, u32 add)
{
    if (is_bf16)
        asm volatile(WARPGROUP_PRODUCTS("m64n128k16", "bf16", LIST64, "%64", "%65", "%66")
                     : ACC64(c, 0)
                     : "l"(a), "l"(b), "r"(add)
                     : "memory");
    else
        asm volatile(WARPGROUP_PRODUCTS("m64n128k16", "f16", LIST64, "%64", "%65", "%66")
                     : ACC64(c, 0)
                     : "l"(a), "l"(b), "r"(add)
                     : "memory");
}

#define OUT64(c, i) SIXTY_FOUR("=f", c, i)
#define PRODUCT_F8(a, b, add) \
    "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" LIST64 "}, " a ", " b ", " add ", 1, 1;\n"

// 128 columns of tiles in e4m3: four products of 32 columns (32 bytes), which begin anew.
INLINE void warpgroup_f8(float *c, u64 a, u64 b)
{
    asm volatile("{\n"
                 ".reg .b64 x, y;\n"
                 "wgmma.fence.sync.aligned;\n" PRODUCT_F8("%64", "%65", "0")
                 "add.s64 x, %64, 2;\nadd.s64 y, %65, 2;\n" PRODUCT_F8("x", "y", "1")
                 "add.s64 x, %64, 4;\nadd.s64 y, %65, 4;\n" PRODUCT_F8("x", "y", "1")
                 "add.s64 x, %64, 6;\nadd.s64 y, %65, 6;\n" PRODUCT_F8("x", "y", "1")
                 "wgmma.commit_group.sync.aligned;\n"
                 "}"
                 : OUT64(c, 0)
                 : "l"(a), "l"(b)
                 : "memory");
}

// Until none of this warpgroup's products is under way; nothing reads their 64 sums before.
INLINE void warpgroup_wait_sums(float *c)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" : ACC64(c, 0)::"memory");
}

// Registers i to i + 31 likewise.
#define ACC32(c, i) EIGHT("+f", c, i), EIGHT("+f", c, i + 8), EIGHT("+f", c, i + 16), EIGHT("+f", c, i + 24)
#define LIST32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31"
#define IN16(a) \
    "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(a[8]), "r"(a[9]), \
        "r"(a[10]), "r"(a[11]), "r"(a[12]), "r"(a[13]), "r"(a[14]), "r"(a[15])
#define PRODUCT_CODES(shape, list, a, b, add) \
    "wgmma.mma_async.sync.aligned." shape ".f32.f16.f16 {" list "}, {" a "}, " b ", " add ", 1, 1, 0;\n"
#define PRODUCTS_CODES(shape, list, a0, a1, a2, a3, b, add) \
    "{\n" \
    ".reg .pred p;\n" \
    ".reg .b64 y;\n" \
    "setp.ne.b32 p, " add ", 0;\n" \
    "wgmma.fence.sync.aligned;\n" PRODUCT_CODES(shape, list, a0, b, "p") \
    "add.s64 y, " b ", 2;\n" PRODUCT_CODES(shape, list, a1, "y", "1") \
    "add.s64 y, " b ", 4;\n" PRODUCT_CODES(shape, list, a2, "y", "1") \
    "add.s64 y, " b ", 6;\n" PRODUCT_CODES(shape, list, a3, "y", "1") \
    "wgmma.commit_group.sync.aligned;\n" \
    "}"

// 64 columns: four products whose left operands, 64 rows of f16, are in registers (four each), of 128 or 64 rows of a
// tile. Without `add` the first one begins anew.
INLINE void warpgroup_codes_128(float *c, const u32 *a, u64 b, u32 add)
{
    asm volatile(PRODUCTS_CODES("m64n128k16", LIST64, "%64,%65,%66,%67", "%68,%69,%70,%71", "%72,%73,%74,%75",
                                "%76,%77,%78,%79", "%80", "%81")
                 : ACC64(c, 0)
                 : IN16(a), "l"(b), "r"(add)
                 : "memory");
}

INLINE void warpgroup_codes_64(float *c, const u32 *a, u64 b, u32 add)
{
    asm volatile(PRODUCTS_CODES("m64n64k16", LIST32, "%32,%33,%34,%35", "%36,%37,%38,%39", "%40,%41,%42,%43",
                                "%44,%45,%46,%47", "%48", "%49")
                 : ACC32(c, 0)
                 : IN16(a), "l"(b), "r"(add)
                 : "memory");
}

INLINE void warpgroup_wait_sums_32(float *c)
{
    asm volatile("wgmma.wait_group.sync.aligned 0;" : ACC32(c, 0)::"memory");
}

// Until at most `pending` groups of this warpgroup are under way; a constant.
#define warpgroup_wait(pending) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory")
