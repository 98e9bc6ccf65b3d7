#pragma once
// What the dynamic linker would need to know of an ELF64 file, read from its program headers (sections may be
// stripped). Source: elf(5), the gABI, and the GNU symbol versioning sections. Nothing is executed, every offset is
// checked.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/str.h"

#define EW_ELF_MACHINE_X86_64 0x3E
#define EW_ELF_MACHINE_AARCH64 0xB7
#define EW_ELF_MACHINE_CUDA 190

struct ew_elf_need {       // one symbol version that a library must define
    struct ew_str file;    // "libc.so.6"
    struct ew_str version; // "GLIBC_2.34"
    bool weak;             // may be missing
};

struct ew_elf {
    uint16_t machine, type;
    bool is_dynamic;
    struct ew_str soname, rpath, runpath, interpreter; // views into the file
    const struct ew_str *needed;                       // [n_needed] DT_NEEDED
    uint32_t n_needed;
    const struct ew_elf_need *needs; // [n_needs]
    uint32_t n_needs;
    const struct ew_str *defines; // [n_defines] versions it defines itself
    uint32_t n_defines;
};

bool ew_elf_is(const unsigned char *bytes, uint64_t size); // 64-bit little-endian ELF
// Lists come from the arena; strings point into bytes.
int ew_elf_parse(struct ew_elf *elf, struct ew_arena *arena, const unsigned char *bytes, uint64_t size,
                 struct ew_error *err) EW_MUST_CHECK;
const char *ew_elf_machine_name(uint16_t machine); // "x86_64", "aarch64", "cuda", "other"
