#include "doctor/elf_file.h"

#include <elf.h>
#include <string.h>

#define SEGMENTS_MAX 256
#define ENTRIES_MAX 4096 // dynamic entries, needed libraries, versions: far above what real files have

struct reader {
    const unsigned char *bytes;
    uint64_t size;
    Elf64_Phdr segments[SEGMENTS_MAX];
    uint32_t n_segments;
    const char *strings; // DT_STRTAB, NUL-checked through string()
    uint64_t strings_size;
};

static bool range_ok(const struct reader *r, uint64_t offset, uint64_t len)
{
    return offset <= r->size && len <= r->size - offset;
}

bool ew_elf_is(const unsigned char *bytes, uint64_t size)
{
    return size >= sizeof(Elf64_Ehdr) && memcmp(bytes, ELFMAG, SELFMAG) == 0 && bytes[EI_CLASS] == ELFCLASS64 &&
           bytes[EI_DATA] == ELFDATA2LSB;
}

const char *ew_elf_machine_name(uint16_t machine)
{
    switch (machine) {
    case EW_ELF_MACHINE_X86_64:
        return "x86_64";
    case EW_ELF_MACHINE_AARCH64:
        return "aarch64";
    case EW_ELF_MACHINE_CUDA:
        return "cuda";
    default:
        return "other";
    }
}

// Where a virtual address stands in the file; false where no segment holds len bytes of it.
static bool file_offset(const struct reader *r, uint64_t address, uint64_t len, uint64_t *offset)
{
    for (uint32_t i = 0; i < r->n_segments; i++) {
        const Elf64_Phdr *s = &r->segments[i];

        if (s->p_type != PT_LOAD || address < s->p_vaddr || address - s->p_vaddr > s->p_filesz ||
            len > s->p_filesz - (address - s->p_vaddr))
            continue;
        *offset = s->p_offset + (address - s->p_vaddr);
        return range_ok(r, *offset, len);
    }
    return false;
}

static struct ew_str string(const struct reader *r, uint64_t at)
{
    const char *text, *end;

    if (at >= r->strings_size)
        return EW_STR("");
    text = r->strings + at;
    end = memchr(text, '\0', r->strings_size - at);
    return end ? (struct ew_str){text, (size_t)(end - text)} : EW_STR("");
}

struct dynamic {
    uint64_t soname, rpath, runpath; // offsets into the string table, UINT64_MAX: absent
    uint64_t verneed, verneed_count, verdef, verdef_count, strtab, strsz;
    uint64_t needed[ENTRIES_MAX];
    uint32_t n_needed;
};

static void read_dynamic_entry(struct dynamic *d, const Elf64_Dyn *entry)
{
    switch (entry->d_tag) {
    case DT_NEEDED:
        if (d->n_needed < ENTRIES_MAX)
            d->needed[d->n_needed++] = entry->d_un.d_val;
        break;
    case DT_SONAME:
        d->soname = entry->d_un.d_val;
        break;
    case DT_RPATH:
        d->rpath = entry->d_un.d_val;
        break;
    case DT_RUNPATH:
        d->runpath = entry->d_un.d_val;
        break;
    case DT_STRTAB:
        d->strtab = entry->d_un.d_val;
        break;
    case DT_STRSZ:
        d->strsz = entry->d_un.d_val;
        break;
    case DT_VERNEED:
        d->verneed = entry->d_un.d_val;
        break;
    case DT_VERNEEDNUM:
        d->verneed_count = entry->d_un.d_val;
        break;
    case DT_VERDEF:
        d->verdef = entry->d_un.d_val;
        break;
    case DT_VERDEFNUM:
        d->verdef_count = entry->d_un.d_val;
        break;
    }
}

static void read_dynamic(const struct reader *r, const Elf64_Phdr *segment, struct dynamic *d)
{
    uint64_t count = segment->p_filesz / sizeof(Elf64_Dyn);

    *d = (struct dynamic){.soname = UINT64_MAX, .rpath = UINT64_MAX, .runpath = UINT64_MAX};
    for (uint64_t i = 0; i < count && i < ENTRIES_MAX; i++) {
        Elf64_Dyn entry;

        memcpy(&entry, r->bytes + segment->p_offset + i * sizeof(entry), sizeof(entry));
        if (entry.d_tag == DT_NULL)
            break;
        read_dynamic_entry(d, &entry);
    }
}

// Walks .gnu.version_r: a list of files, each with a list of versions.
static int read_needs(const struct reader *r, const struct dynamic *d, struct ew_elf *elf, struct ew_arena *arena,
                      struct ew_error *err)
{
    struct ew_elf_need *needs = ew_arena_array(arena, ENTRIES_MAX, sizeof(*needs));
    uint64_t address = d->verneed, offset;

    if (!needs)
        return ew_fail_memory(err, ENTRIES_MAX * sizeof(*needs), "symbol versions");
    elf->needs = needs;
    for (uint64_t i = 0; i < d->verneed_count && i < ENTRIES_MAX; i++) {
        Elf64_Verneed file;
        uint64_t at;

        if (!file_offset(r, address, sizeof(file), &offset))
            break;
        memcpy(&file, r->bytes + offset, sizeof(file));
        at = address + file.vn_aux;
        for (uint32_t k = 0; k < file.vn_cnt && elf->n_needs < ENTRIES_MAX; k++) {
            Elf64_Vernaux aux;

            if (!file_offset(r, at, sizeof(aux), &offset))
                break;
            memcpy(&aux, r->bytes + offset, sizeof(aux));
            needs[elf->n_needs++] = (struct ew_elf_need){string(r, file.vn_file), string(r, aux.vna_name),
                                                         (aux.vna_flags & VER_FLG_WEAK) != 0};
            if (!aux.vna_next)
                break;
            at += aux.vna_next;
        }
        if (!file.vn_next)
            break;
        address += file.vn_next;
    }
    return EW_OK;
}

static int read_defines(const struct reader *r, const struct dynamic *d, struct ew_elf *elf, struct ew_arena *arena,
                        struct ew_error *err)
{
    struct ew_str *defines = ew_arena_array(arena, ENTRIES_MAX, sizeof(*defines));
    uint64_t address = d->verdef, offset;

    if (!defines)
        return ew_fail_memory(err, ENTRIES_MAX * sizeof(*defines), "symbol versions");
    elf->defines = defines;
    for (uint64_t i = 0; i < d->verdef_count && i < ENTRIES_MAX; i++) {
        Elf64_Verdef def;
        Elf64_Verdaux aux;

        if (!file_offset(r, address, sizeof(def), &offset))
            break;
        memcpy(&def, r->bytes + offset, sizeof(def));
        if (def.vd_cnt > 0 && file_offset(r, address + def.vd_aux, sizeof(aux), &offset)) {
            memcpy(&aux, r->bytes + offset, sizeof(aux));
            defines[elf->n_defines++] = string(r, aux.vda_name);
        }
        if (!def.vd_next)
            break;
        address += def.vd_next;
    }
    return EW_OK;
}

static int read_dynamic_segment(struct reader *r, const Elf64_Phdr *segment, struct ew_elf *elf, struct ew_arena *arena,
                                struct ew_error *err)
{
    struct dynamic d;
    struct ew_str *needed;
    uint64_t offset;
    int code;

    read_dynamic(r, segment, &d);
    if (!file_offset(r, d.strtab, d.strsz, &offset))
        return ew_fail(err, EW_ERR_FORMAT, "its dynamic string table lies outside the file");
    r->strings = (const char *)r->bytes + offset;
    r->strings_size = d.strsz;
    needed = ew_arena_array(arena, d.n_needed, sizeof(*needed));
    if (!needed)
        return ew_fail_memory(err, d.n_needed * sizeof(*needed), "needed libraries");
    for (uint32_t i = 0; i < d.n_needed; i++)
        needed[i] = string(r, d.needed[i]);
    elf->is_dynamic = true;
    elf->needed = needed;
    elf->n_needed = d.n_needed;
    elf->soname = string(r, d.soname);
    elf->rpath = string(r, d.rpath);
    elf->runpath = string(r, d.runpath);
    code = d.verneed ? read_needs(r, &d, elf, arena, err) : EW_OK;
    if (code == EW_OK && d.verdef)
        code = read_defines(r, &d, elf, arena, err);
    return code;
}

static int read_segments(struct reader *r, const Elf64_Ehdr *header, struct ew_error *err)
{
    if (header->e_phnum > SEGMENTS_MAX || (header->e_phnum && header->e_phentsize != sizeof(Elf64_Phdr)) ||
        !range_ok(r, header->e_phoff, (uint64_t)header->e_phnum * sizeof(Elf64_Phdr)))
        return ew_fail(err, EW_ERR_FORMAT, "its program headers lie outside the file");
    r->n_segments = header->e_phnum;
    memcpy(r->segments, r->bytes + header->e_phoff, header->e_phnum * sizeof(Elf64_Phdr));
    for (uint32_t i = 0; i < r->n_segments; i++)
        if (!range_ok(r, r->segments[i].p_offset, r->segments[i].p_filesz))
            return ew_fail(err, EW_ERR_FORMAT, "a segment reaches past the end of the file: it is truncated");
    return EW_OK;
}

int ew_elf_parse(struct ew_elf *elf, struct ew_arena *arena, const unsigned char *bytes, uint64_t size,
                 struct ew_error *err)
{
    struct reader r = {.bytes = bytes, .size = size};
    Elf64_Ehdr header;
    int code;

    *elf = (struct ew_elf){.soname = EW_STR(""), .rpath = EW_STR(""), .runpath = EW_STR(""), .interpreter = EW_STR("")};
    if (!ew_elf_is(bytes, size))
        return ew_fail(err, EW_ERR_FORMAT, "not a 64-bit little-endian ELF file");
    memcpy(&header, bytes, sizeof(header));
    elf->machine = header.e_machine;
    elf->type = header.e_type;
    code = read_segments(&r, &header, err);
    for (uint32_t i = 0; i < r.n_segments && code == EW_OK; i++) {
        const Elf64_Phdr *s = &r.segments[i];

        if (s->p_type == PT_INTERP)
            elf->interpreter = (struct ew_str){(const char *)bytes + s->p_offset,
                                               strnlen((const char *)bytes + s->p_offset, s->p_filesz)};
        if (s->p_type == PT_DYNAMIC && !elf->is_dynamic)
            code = read_dynamic_segment(&r, s, elf, arena, err);
    }
    return code;
}
