// CPUID, as in Intel's Software Developer's Manual, volume 1, sections 13 and 14, and volume 2, CPUID.
#include "platform/cpu.h"

#include <cpuid.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define XCR0_AVX 0x6u        // XMM and YMM state
#define XCR0_AVX512 0xE6u    // and opmask, ZMM0-15 upper halves, ZMM16-31
#define XCR0_AMX 0x60000u    // tile configuration and tile data

#define ARCH_REQ_XCOMP_PERM 0x1023 // asm/prctl.h of Linux 5.16 and up; older headers lack it
#define XFEATURE_XTILEDATA 18

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r = {0};

    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx))
        return (struct cpuid){0};
    return r;
}

static bool has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

// Which register states the operating system saves and restores.
static uint64_t read_xcr0(void)
{
    uint32_t eax, edx;

    if (!has(cpuid(1, 0).ecx, bit_OSXSAVE))
        return 0;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (uint64_t)edx << 32 | eax;
}

static bool has_sse42(void)
{
    return has(cpuid(1, 0).ecx, bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT);
}

static bool has_avx2(uint64_t xcr0)
{
    return (xcr0 & XCR0_AVX) == XCR0_AVX && has(cpuid(1, 0).ecx, bit_AVX | bit_FMA | bit_F16C) &&
           has(cpuid(7, 0).ebx, bit_AVX2 | bit_BMI | bit_BMI2);
}

static bool has_avx512(uint64_t xcr0)
{
    return (xcr0 & XCR0_AVX512) == XCR0_AVX512 &&
           has(cpuid(7, 0).ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
}

// Every CPU with AMX has AVX512_BF16 (leaf 7, 1), which its kernels use, too.
// Linux hands out the 8 kB of tile data only to processes that ask.
static bool has_amx(uint64_t xcr0)
{
    const uint32_t amx = 1u << 22 | 1u << 24 | 1u << 25; // BF16, TILE, INT8; older cpuid.h lacks the names

    return (xcr0 & XCR0_AMX) == XCR0_AMX && has(cpuid(7, 0).edx, amx) && has(cpuid(7, 1).eax, 1u << 5) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

uint32_t ew_cpu_isa(void)
{
    uint64_t xcr0 = read_xcr0();
    uint32_t mask = EW_ISA_SSE2;

    if (!has_sse42())
        return mask;
    mask |= EW_ISA_SSE42;
    if (!has_avx2(xcr0))
        return mask;
    mask |= EW_ISA_AVX2;
    if (!has_avx512(xcr0))
        return mask;
    mask |= EW_ISA_AVX512;
    if (!has(cpuid(7, 0).ecx, bit_AVX512VNNI))
        return mask;
    mask |= EW_ISA_AVX512_VNNI;
    if (!has(cpuid(7, 0).ecx, bit_AVX512VBMI))
        return mask;
    mask |= EW_ISA_AVX512_VBMI;
    return has_amx(xcr0) ? mask | EW_ISA_AMX : mask;
}

void ew_cpu_brand(char *out, size_t size)
{
    char text[49] = "";
    const char *start = text;

    if (__get_cpuid_max(0x80000000u, NULL) >= 0x80000004u) {
        for (uint32_t i = 0; i < 3; i++) {
            struct cpuid part = cpuid(0x80000002u + i, 0);

            memcpy(text + 16 * i, &part, 16);
        }
    }
    start += strspn(start, " ");
    snprintf(out, size, "%s", *start ? start : "x86-64");
}
