// Shared objects as the scanner reads them: whatever is accepted holds strings that lie within the file.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "doctor/elf_file.h"

#define ARENA_MAX ((size_t)4 << 20)

static void check(struct ew_str text, const uint8_t *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)text.ptr;

    EW_ASSERT(text.len == 0 || (at >= data && at + text.len < data + size && memchr(at, 0, text.len) == NULL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_arena arena;
    struct ew_elf elf;
    struct ew_error err;

    ew_arena_init(&arena, ARENA_MAX);
    if (ew_elf_parse(&elf, &arena, data, size, &err) == EW_OK) {
        check(elf.soname, data, size);
        check(elf.runpath, data, size);
        for (uint32_t i = 0; i < elf.n_needed; i++)
            check(elf.needed[i], data, size);
        for (uint32_t i = 0; i < elf.n_needs; i++)
            check(elf.needs[i].version, data, size);
        for (uint32_t i = 0; i < elf.n_defines; i++)
            check(elf.defines[i], data, size);
    }
    ew_arena_fini(&arena);
    return 0;
}
