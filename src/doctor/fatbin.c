#include "doctor/fatbin.h"

#include <stddef.h>
#include <string.h>

#include "doctor/elf_file.h"

#define CONTAINER_MAGIC 0xBA55ED50u
#define ELF_MAGIC 0x464C457Fu
#define CONTAINER_HEADER 16
#define ENTRY_HEADER_MIN 64
#define ENTRY_HEADER_MAX 4096
#define ENTRIES_MAX 4096 // images of one container
#define FLAG_ZSTD 0x8000u
#define FLAG_ARCH_SPECIFIC 0x100000u
#define FLAG_FAMILY 0x200000u
#define ZSTD_DRIVER_CUDA 1240 // drivers before CUDA 12.4 cannot read ZSTD-compressed images

struct container_header {
    uint32_t magic;
    uint16_t version, header_size;
    uint64_t size;
};

struct entry_header {
    uint16_t kind, version;
    uint32_t header_size;
    uint64_t size;
    uint32_t compressed_size, options_offset;
    uint16_t minor, major;
    uint32_t sm, name_offset, name_len;
    uint64_t flags, zero, uncompressed_size;
};
_Static_assert(sizeof(struct entry_header) == ENTRY_HEADER_MIN, "layout of a fatbin entry");

static uint32_t image_index(struct ew_gpu_code *code, struct ew_image image)
{
    uint32_t i;

    for (i = 0; i < code->n_images; i++) {
        const struct ew_image *known = &code->images[i];

        if (known->kind == image.kind && known->sm == image.sm && known->suffix == image.suffix &&
            known->zstd == image.zstd && known->ptx_isa == image.ptx_isa && known->is_bare == image.is_bare)
            return i;
    }
    if (i == EW_IMAGES_MAX) {
        code->incomplete = true;
        return i;
    }
    code->images[code->n_images++] = image;
    return i;
}

static void add_container(struct ew_gpu_code *code, uint64_t members)
{
    code->container_count++;
    for (uint32_t i = 0; i < code->n_containers; i++)
        if (code->containers[i].members == members) {
            code->containers[i].count++;
            return;
        }
    if (code->n_containers == EW_CONTAINERS_MAX) {
        code->incomplete = true;
        return;
    }
    code->containers[code->n_containers].members = members;
    code->containers[code->n_containers++].count = 1;
}

static void add_image(struct ew_gpu_code *code, struct ew_image image, uint64_t *members)
{
    uint32_t index = image_index(code, image);

    if (index == EW_IMAGES_MAX)
        return;
    code->images[index].count++;
    *members |= 1ull << index;
}

static bool known_kind(uint16_t kind)
{
    return kind == EW_IMAGE_PTX || kind == EW_IMAGE_CUBIN || kind == EW_IMAGE_LTO;
}

static struct ew_image image_of(const struct entry_header *entry)
{
    return (struct ew_image){
        .kind = (enum ew_image_kind)entry->kind,
        .sm = (uint16_t)entry->sm,
        .suffix = entry->flags & FLAG_ARCH_SPECIFIC ? 'a'
                  : entry->flags & FLAG_FAMILY      ? 'f'
                                                    : 0,
        .zstd = (entry->flags & FLAG_ZSTD) != 0,
        .ptx_isa = entry->kind == EW_IMAGE_PTX ? (uint16_t)(entry->major * 10 + entry->minor) : 0,
    };
}

// Cubins made by newer toolkits carry the toolkit's version in a note: desc {u16 2, u16 sm, u16 toolkit, u16 0}.
static void note_toolkit(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size)
{
    static const unsigned char note[] = {12,  0,   0,   0,   8,   0,   0,   0,   0xE8, 3,   0,   0,
                                         'N', 'V', 'I', 'D', 'I', 'A', ' ', 'C', 'o',  'r', 'p', 0};
    const unsigned char *at = memmem(bytes, size, note, sizeof(note));
    uint16_t toolkit;

    if (!at || size - (uint64_t)(at - bytes) < sizeof(note) + 8)
        return;
    memcpy(&toolkit, at + sizeof(note) + 4, 2);
    if (toolkit < 1000 && toolkit * 10 > code->toolkit)
        code->toolkit = (uint16_t)(toolkit * 10);
}

// A file compiled without a kernel, but linked with the runtime, carries a cubin without code (libcufftw does).
static bool is_empty_cubin(const struct entry_header *entry, const unsigned char *payload)
{
    static const char code_section[] = ".text.";

    return entry->kind == EW_IMAGE_CUBIN && entry->uncompressed_size == 0 &&
           !memmem(payload, entry->size, code_section, sizeof(code_section) - 1);
}

// Returns the container's whole length, or 0 where the bytes at the magic are no container.
static uint64_t scan_container(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size)
{
    struct container_header header;
    struct entry_header entry;
    uint64_t members = 0, at = CONTAINER_HEADER, end;
    bool empty = true;

    if (size < CONTAINER_HEADER + ENTRY_HEADER_MIN)
        return 0;
    memcpy(&header, bytes, sizeof(header));
    if (header.version != 1 || header.header_size != CONTAINER_HEADER || header.size < ENTRY_HEADER_MIN ||
        header.size > size - CONTAINER_HEADER)
        return 0;
    end = CONTAINER_HEADER + header.size;
    for (uint32_t n = 0; n < ENTRIES_MAX && end - at >= ENTRY_HEADER_MIN; n++) {
        memcpy(&entry, bytes + at, sizeof(entry));
        if (entry.version != 0x0101 || entry.header_size < ENTRY_HEADER_MIN || entry.header_size > ENTRY_HEADER_MAX ||
            entry.header_size > end - at || entry.size > end - at - entry.header_size)
            return n ? at : 0; // what came before it was good
        if (known_kind(entry.kind) && entry.sm < 1000)
            add_image(code, image_of(&entry), &members);
        else if (n == 0)
            return 0;
        empty &= is_empty_cubin(&entry, bytes + at + entry.header_size);
        if (entry.kind == EW_IMAGE_CUBIN && entry.uncompressed_size == 0)
            note_toolkit(code, bytes + at + entry.header_size, entry.size);
        at += entry.header_size + entry.size;
    }
    add_container(code, members);
    code->empty_count += empty;
    return end;
}

// A cubin that stands by itself. The SM is in e_flags: bits 8..15 since ABI version 8, bits 0..7 before.
static bool scan_cubin(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size)
{
    uint64_t members = 0;
    uint16_t machine;
    uint32_t flags;
    bool new_abi;

    if (!ew_elf_is(bytes, size))
        return false;
    memcpy(&machine, bytes + 18, 2);
    memcpy(&flags, bytes + 48, 4);
    if (machine != EW_ELF_MACHINE_CUDA)
        return false;
    new_abi = bytes[8] >= 8;
    add_image(code,
              (struct ew_image){.kind = EW_IMAGE_CUBIN,
                                .sm = (uint16_t)((new_abi ? flags >> 8 : flags) & 0xFF),
                                .suffix = !new_abi && flags & 0x800 ? 'a' : 0,
                                .is_bare = true},
              &members);
    add_container(code, members);
    return true;
}

static uint32_t digits(const unsigned char *bytes, uint64_t size, uint64_t *at)
{
    uint32_t value = 0;

    while (*at < size && bytes[*at] >= '0' && bytes[*at] <= '9' && value < 10000)
        value = value * 10 + (uint32_t)(bytes[(*at)++] - '0');
    return value;
}

// PTX as text: a .version line, then soon a .target line.
static void scan_ptx_text(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size)
{
    static const char version[] = ".version ", target[] = ".target sm_";
    const unsigned char *at = bytes, *end = bytes + size, *hit;

    while ((hit = memmem(at, (size_t)(end - at), version, sizeof(version) - 1))) {
        uint64_t window = (uint64_t)(end - hit) < 4096 ? (uint64_t)(end - hit) : 4096, pos = sizeof(version) - 1,
                 members = 0;
        const unsigned char *sm = memmem(hit, window, target, sizeof(target) - 1);
        uint32_t major = digits(hit, window, &pos), minor;

        at = hit + sizeof(version) - 1;
        if (!sm || pos >= window || hit[pos] != '.')
            continue;
        pos++;
        minor = digits(hit, window, &pos);
        pos = (uint64_t)(sm - hit) + sizeof(target) - 1;
        add_image(code,
                  (struct ew_image){.kind = EW_IMAGE_PTX,
                                    .sm = (uint16_t)digits(hit, window, &pos),
                                    .suffix = pos < window && (hit[pos] == 'a' || hit[pos] == 'f') ? (char)hit[pos] : 0,
                                    .ptx_isa = (uint16_t)(major * 10 + minor),
                                    .is_bare = true},
                  &members);
        add_container(code, members);
    }
}

void ew_gpu_code_scan(struct ew_gpu_code *code, const unsigned char *bytes, uint64_t size)
{
    uint64_t gap = 0; // where the bytes outside containers began: only there is PTX text searched

    *code = (struct ew_gpu_code){0};
    // Containers and cubins are 8-aligned in practice; 4 costs little and misses less.
    for (uint64_t at = 0; at + 4 <= size; at += 4) {
        uint64_t step = 0;
        uint32_t word;

        memcpy(&word, bytes + at, 4);
        if (word == CONTAINER_MAGIC)
            step = scan_container(code, bytes + at, size - at);
        else if (word == ELF_MAGIC && scan_cubin(code, bytes + at, size - at) && at == 0)
            note_toolkit(code, bytes, size); // the whole file is one cubin
        if (step > 4) {
            scan_ptx_text(code, bytes + gap, at - gap);
            at += (step & ~3ull) - 4;
            gap = at + 4;
        }
    }
    if (gap < size)
        scan_ptx_text(code, bytes + gap, size - gap);
}

uint32_t ew_ptx_isa_cuda(uint32_t isa)
{
    uint32_t major = isa / 10, minor = isa % 10;

    // PTX 7.n came with CUDA 11.n, 8.n with 12.n (8.6 is 12.7, as 12.6 kept 8.5), 9.n with 13.n.
    if (major < 7)
        return 1000;
    return (major + 4) * 100 + (major == 8 && minor >= 6 ? minor + 1 : minor) * 10;
}

static bool suffix_allows(const struct ew_image *image, uint32_t cc)
{
    if (image->suffix == 'a')
        return cc == image->sm;
    if (image->suffix == 'f')
        return cc / 10 == image->sm / 10u && cc >= image->sm;
    return true;
}

static bool cubin_fits(const struct ew_image *image, struct ew_gpu_target target)
{
    bool codec_ok = !image->zstd || target.drv_cuda == 0 || target.drv_cuda >= ZSTD_DRIVER_CUDA;

    return codec_ok && target.cc / 10 == image->sm / 10u && target.cc >= image->sm && suffix_allows(image, target.cc);
}

static bool ptx_fits(const struct ew_image *image, struct ew_gpu_target target)
{
    bool driver_ok = target.drv_cuda == 0 || ew_ptx_isa_cuda(image->ptx_isa) <= target.drv_cuda;

    return driver_ok && image->sm <= target.cc && suffix_allows(image, target.cc);
}

static bool is_tegra_unguaranteed(const struct ew_image *image, struct ew_gpu_target target)
{
    return target.cc == 87 && (image->sm == 80 || image->sm == 86);
}

struct offer {
    bool sass, guaranteed, jit, lto, other;
};

static struct offer offer_of(const struct ew_gpu_code *code, uint64_t members, struct ew_gpu_target target)
{
    struct offer offer = {0};

    for (uint32_t i = 0; i < code->n_images; i++) {
        const struct ew_image *image = &code->images[i];

        if (!(members >> i & 1))
            continue;
        if (image->kind == EW_IMAGE_CUBIN && cubin_fits(image, target)) {
            offer.sass = true;
            offer.guaranteed |= !is_tegra_unguaranteed(image, target);
        }
        offer.jit |= image->kind == EW_IMAGE_PTX && ptx_fits(image, target);
        offer.lto |= image->kind == EW_IMAGE_LTO;
        offer.other |= image->kind != EW_IMAGE_LTO;
    }
    return offer;
}

static void judge_image(struct ew_gpu_verdict *verdict, const struct ew_image *image, struct ew_gpu_target target)
{
    bool same_major = image->sm / 10u == target.cc / 10;

    verdict->zstd |= image->zstd;
    if (image->kind == EW_IMAGE_CUBIN && !suffix_allows(image, target.cc)) {
        verdict->blocked_a |= image->suffix == 'a' && same_major;
        verdict->blocked_f |= image->suffix == 'f' && target.cc >= 100; // "Blackwell" is three families: 10, 11, 12
    }
    if (image->kind == EW_IMAGE_PTX && image->sm <= target.cc && suffix_allows(image, target.cc)) {
        uint32_t cuda = ew_ptx_isa_cuda(image->ptx_isa);

        if (verdict->ptx_cuda == 0 || cuda < verdict->ptx_cuda)
            verdict->ptx_cuda = cuda;
    }
}

struct ew_gpu_verdict ew_gpu_code_judge(const struct ew_gpu_code *code, struct ew_gpu_target target)
{
    struct ew_gpu_verdict verdict = {.total = code->container_count};
    bool guaranteed = false, lto = false, other = false;

    for (uint32_t i = 0; i < code->n_containers; i++) {
        struct offer offer = offer_of(code, code->containers[i].members, target);

        verdict.sass += offer.sass ? code->containers[i].count : 0;
        verdict.jit += !offer.sass && offer.jit ? code->containers[i].count : 0;
        guaranteed |= offer.guaranteed;
        lto |= offer.lto;
        other |= offer.other;
    }
    for (uint32_t i = 0; i < code->n_images; i++)
        judge_image(&verdict, &code->images[i], target);
    verdict.only_tegra_unguaranteed = verdict.sass > 0 && !guaranteed;
    verdict.lto_only = lto && !other;
    return verdict;
}
