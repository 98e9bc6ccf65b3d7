#include "platform/cpu.h"

#include <string.h>

#include "base/assert.h"

struct level {
    const char *name;
    uint32_t bit, below; // `below`: the levels that it implies, itself too
};

#define X86_TO(bit) (2 * (bit) - 1)
#define ARM_TO(bit) (2 * (bit) - EW_ISA_NEON)

// Rising, per architecture.
static const struct level g_levels[] = {
    {"sse2", EW_ISA_SSE2, X86_TO(EW_ISA_SSE2)},
    {"sse4.2", EW_ISA_SSE42, X86_TO(EW_ISA_SSE42)},
    {"avx2", EW_ISA_AVX2, X86_TO(EW_ISA_AVX2)},
    {"avx512", EW_ISA_AVX512, X86_TO(EW_ISA_AVX512)},
    {"avx512-vnni", EW_ISA_AVX512_VNNI, X86_TO(EW_ISA_AVX512_VNNI)},
    {"avx512-vbmi", EW_ISA_AVX512_VBMI, X86_TO(EW_ISA_AVX512_VBMI)},
    {"amx", EW_ISA_AMX, X86_TO(EW_ISA_AMX)},
    {"neon", EW_ISA_NEON, ARM_TO(EW_ISA_NEON)},
    {"dotprod", EW_ISA_DOTPROD, ARM_TO(EW_ISA_DOTPROD)},
    {"i8mm", EW_ISA_I8MM, ARM_TO(EW_ISA_I8MM)},
};

int ew_isa_cap(const char *name, uint32_t *mask, struct ew_error *err)
{
    *mask = name && strcmp(name, "reference") == 0 ? 0 : UINT32_MAX;
    if (!name || !*mask)
        return 0;
    for (size_t i = 0; i < EW_COUNT_OF(g_levels); i++) {
        if (strcmp(name, g_levels[i].name) == 0) {
            *mask = g_levels[i].below;
            return 0;
        }
    }
    return ew_remedy(err, ew_fail(err, EW_ERR_USAGE, "there is no instruction set '%.40s'", name),
                     "use reference, sse2, sse4.2, avx2, avx512, avx512-vnni, avx512-vbmi, amx, neon, dotprod or i8mm");
}

const char *ew_isa_name(enum ew_isa level)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_levels); i++)
        if (g_levels[i].bit == (uint32_t)level)
            return g_levels[i].name;
    return "reference";
}

const char *ew_isa_best(uint32_t mask)
{
    for (size_t i = EW_COUNT_OF(g_levels); i-- > 0;)
        if (mask & g_levels[i].bit)
            return g_levels[i].name;
    return "reference";
}
