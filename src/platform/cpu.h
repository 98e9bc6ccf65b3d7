#pragma once
// Which instruction sets may be used here: what the CPU has and the operating system keeps the registers of.
//
// A level is a bundle that kernels are written for, and implies the levels below it. This folder is compiled without
// ISA flags: code that asks what the CPU can do must run on one that cannot.

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum ew_isa {
    EW_ISA_SSE2 = 1 << 0,        // every x86-64
    EW_ISA_SSE42 = 1 << 1,       // x86-64-v2: SSE3, SSSE3, SSE4.1, SSE4.2, POPCNT
    EW_ISA_AVX2 = 1 << 2,        // AVX2, FMA, F16C, BMI1, BMI2
    EW_ISA_AVX512 = 1 << 3,      // AVX-512 F, BW, CD, DQ, VL
    EW_ISA_AVX512_VNNI = 1 << 4, // and VNNI
    EW_ISA_AVX512_VBMI = 1 << 5, // and VBMI
    EW_ISA_AMX = 1 << 6,         // AMX TILE, INT8, BF16, AVX512_BF16, and the kernel's permission to use tiles
    EW_ISA_NEON = 1 << 8,        // every arm64
    EW_ISA_DOTPROD = 1 << 9,     // sdot, udot
    EW_ISA_I8MM = 1 << 10,       // smmla, ummla, usdot
};

// A mask of ew_isa. Asks the kernel for the AMX tiles where it grants them on request, for this process.
uint32_t ew_cpu_isa(void);

// The mask that a cap such as "avx2" leaves: that level and all below. "reference" leaves none, NULL all.
// EW_ERR_USAGE names the levels there are. A level of another architecture is allowed and leaves what it leaves.
int ew_isa_cap(const char *name, uint32_t *mask, struct ew_error *err) EW_MUST_CHECK;
const char *ew_isa_name(enum ew_isa level);
const char *ew_isa_best(uint32_t mask); // the name of the highest level in it; "reference" for none

// The marketing name of the CPU ("AMD EPYC 9B45"), or the architecture's where nothing tells. Always NUL-terminated.
void ew_cpu_brand(char *out, size_t size);
