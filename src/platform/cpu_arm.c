// arm64: the kernel reports what it supports through the auxiliary vector (Documentation/arch/arm64/elf_hwcaps.rst).
#include "platform/cpu.h"

#include <asm/hwcap.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>

#include "platform/sysfile.h"

uint32_t ew_cpu_isa(void)
{
    uint32_t mask = EW_ISA_NEON;

    if (!(getauxval(AT_HWCAP) & HWCAP_ASIMDDP))
        return mask;
    mask |= EW_ISA_DOTPROD;
    return getauxval(AT_HWCAP2) & HWCAP2_I8MM ? mask | EW_ISA_I8MM : mask;
}

// Boards name themselves in the device tree; servers have only the part number, which is no name.
void ew_cpu_brand(char *out, size_t size)
{
    char model[64];

    if (ew_sysfile_read(NULL, "/proc/device-tree/model", model, sizeof(model)) > 0)
        snprintf(out, size, "%s", model);
    else
        snprintf(out, size, "arm64");
}
