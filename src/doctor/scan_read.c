// The second pass: what one file holds. Runs on several threads; touches nothing but its own file and arena.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "doctor/scan_internal.h"
#include "doctor/zip.h"
#include "format/mapfile.h"

#define METADATA_BYTES_MAX ((uint64_t)4 << 20)
#define MEMBER_BYTES_MAX ((uint64_t)4 << 30) // the largest library in a published wheel is about 1.5 GB
#define ELF_ARENA_MAX ((size_t)4 << 20)

static struct ew_str keep(struct ew_arena *arena, struct ew_str text)
{
    char *copy = text.len ? ew_arena_copy(arena, text.ptr, text.len) : NULL;

    return copy ? (struct ew_str){copy, text.len} : EW_STR("");
}

static void set_error(struct ew_scan_file *file, struct ew_arena *arena, const struct ew_error *err)
{
    file->unreadable = true;
    file->error = keep(arena, ew_str_of(err->message));
}

// ---- ELF ----

// Versions such as "GLIBC_2.34" by their numbers; the prefix is equal in both.
static bool is_newer(struct ew_str a, struct ew_str b)
{
    size_t i = 0, j = 0;

    while (i < a.len && j < b.len) {
        uint64_t x = 0, y = 0;

        if (a.ptr[i] < '0' || a.ptr[i] > '9' || b.ptr[j] < '0' || b.ptr[j] > '9') {
            if (a.ptr[i++] != b.ptr[j++])
                return false;
            continue;
        }
        while (i < a.len && a.ptr[i] >= '0' && a.ptr[i] <= '9' && x < UINT32_MAX)
            x = x * 10 + (uint64_t)(a.ptr[i++] - '0');
        while (j < b.len && b.ptr[j] >= '0' && b.ptr[j] <= '9' && y < UINT32_MAX)
            y = y * 10 + (uint64_t)(b.ptr[j++] - '0');
        if (x != y)
            return x > y;
    }
    return a.len - i > b.len - j;
}

static void read_versions(struct ew_scan_file *file, const struct ew_elf *elf, struct ew_arena *arena)
{
    const struct {
        const char *prefix;
        struct ew_str *out;
    } families[] = {{"GLIBC_2", &file->glibc},
                    {"GLIBCXX_", &file->glibcxx},
                    {"CXXABI_1", &file->cxxabi},
                    {"libcudart.so.", &file->cuda_versions}};

    for (uint32_t i = 0; i < elf->n_needs; i++)
        for (size_t k = 0; k < EW_COUNT_OF(families); k++)
            if (!elf->needs[i].weak && ew_str_starts(elf->needs[i].version, families[k].prefix) &&
                (!families[k].out->len || is_newer(elf->needs[i].version, *families[k].out)))
                *families[k].out = elf->needs[i].version;
    for (size_t k = 0; k < EW_COUNT_OF(families); k++)
        *families[k].out = keep(arena, *families[k].out);
}

static void read_elf(struct ew_scan_file *file, struct ew_arena *arena, const unsigned char *bytes, uint64_t size)
{
    struct ew_arena temporary;
    struct ew_error err;
    struct ew_elf elf;

    ew_arena_init(&temporary, ELF_ARENA_MAX);
    file->is_elf = true;
    if (ew_elf_parse(&elf, &temporary, bytes, size, &err) != EW_OK)
        set_error(file, arena, &err);
    file->machine = elf.machine;
    file->soname = keep(arena, elf.soname);
    file->runpath = keep(arena, elf.runpath.len ? elf.runpath : elf.rpath);
    file->n_needed = EW_MIN(elf.n_needed, EW_SCAN_NEEDS_MAX);
    file->needed = ew_arena_array(arena, file->n_needed, sizeof(*file->needed));
    if (!file->needed)
        file->n_needed = 0;
    for (uint32_t i = 0; i < file->n_needed; i++) {
        file->needed[i] = keep(arena, elf.needed[i]);
        file->musl |= ew_str_starts(elf.needed[i], "libc.musl") || ew_str_starts(elf.needed[i], "ld-musl");
    }
    read_versions(file, &elf, arena);
    ew_arena_fini(&temporary);
}

// ---- GPU code ----

static int by_number(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double *distinct_sms(const struct ew_gpu_code *code, struct ew_arena *arena, char suffix, uint32_t *count)
{
    double *list = ew_arena_array(arena, EW_IMAGES_MAX, sizeof(*list));

    *count = 0;
    for (uint32_t i = 0; list && i < code->n_images; i++) {
        bool known = false;

        if (code->images[i].kind != EW_IMAGE_CUBIN || (suffix && code->images[i].suffix != suffix))
            continue;
        for (uint32_t k = 0; k < *count; k++)
            known |= list[k] == code->images[i].sm;
        if (!known)
            list[(*count)++] = code->images[i].sm;
    }
    if (list)
        qsort(list, *count, sizeof(*list), by_number);
    return list;
}

// PTX that stands as text in a library is a template of what compiles it (cuDNN's graphs, NVRTC, edgewise itself),
// which chooses for the GPU: nothing is said about it.
static bool only_text(const struct ew_gpu_code *code)
{
    for (uint32_t i = 0; i < code->n_images; i++)
        if (code->images[i].kind != EW_IMAGE_PTX || !code->images[i].is_bare)
            return false;
    return true;
}

static void read_gpu_code(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                          const unsigned char *bytes, uint64_t size)
{
    struct ew_gpu_code *code = ew_alloc(sizeof(*code));

    if (!code)
        return;
    ew_gpu_code_scan(code, bytes, size);
    file->has_gpu_code = code->container_count > code->empty_count && !(file->is_elf && only_text(code));
    if (file->has_gpu_code) {
        file->verdict = ew_gpu_code_judge(code, target);
        file->sms = distinct_sms(code, arena, 0, &file->n_sms);
        file->a_sms = distinct_sms(code, arena, 'a', &file->n_a_sms);
        file->f_sms = distinct_sms(code, arena, 'f', &file->n_f_sms);
        file->toolkit = code->toolkit;
    }
    file->images = code->n_images ? ew_arena_array(arena, code->n_images, sizeof(*file->images)) : NULL;
    file->n_images = file->images ? code->n_images : 0;
    for (uint32_t i = 0; i < file->n_images; i++)
        file->images[i] = code->images[i];
    ew_free(code);
}

// ptxas says its release in a string: "Cuda compilation tools, release 12.8, V12.8.93".
static void read_ptxas(struct ew_scan_file *file, const unsigned char *bytes, uint64_t size)
{
    static const char mark[] = "Cuda compilation tools, release ";
    const unsigned char *at = memmem(bytes, size, mark, sizeof(mark) - 1);
    char text[16];
    unsigned major, minor;

    if (!at || size - (uint64_t)(at - bytes) < sizeof(mark) + sizeof(text))
        return;
    snprintf(text, sizeof(text), "%.8s", (const char *)at + sizeof(mark) - 1);
    if (sscanf(text, "%2u.%1u", &major, &minor) == 2)
        file->ptxas_cuda = major * 100 + minor * 10;
}

void ew__scan_read_bytes(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                         const unsigned char *bytes, uint64_t size)
{
    if (ew_elf_is(bytes, size))
        read_elf(file, arena, bytes, size);
    if (ew_str_is(ew__scan_base_name(file->path), "ptxas"))
        read_ptxas(file, bytes, size);
    if (!file->alias)
        read_gpu_code(file, arena, target, bytes, size);
}

// ---- packages ----

static struct ew_str header_field(struct ew_str text, const char *name)
{
    size_t len = strlen(name), at = 0;

    while (at < text.len) {
        const char *line = text.ptr + at, *end = memchr(line, '\n', text.len - at);
        size_t line_len = end ? (size_t)(end - line) : text.len - at;

        if (line_len == 0 || line[0] == '\r')
            break; // the description follows the blank line
        if (line_len > len + 2 && strncasecmp(line, name, len) == 0 && line[len] == ':') {
            struct ew_str value = {line + len + 1, line_len - len - 1};

            while (value.len && (value.ptr[0] == ' ' || value.ptr[0] == '\t'))
                value.ptr++, value.len--;
            while (value.len && (value.ptr[value.len - 1] == '\r' || value.ptr[value.len - 1] == ' '))
                value.len--;
            return value;
        }
        at += line_len + 1;
    }
    return EW_STR("");
}

// The CUDA major that a package says it is for: its version's "+cu130", or a requirement on nvidia-*-cu12.
static uint32_t package_cuda(struct ew_str version, struct ew_str metadata)
{
    ptrdiff_t at = ew_str_find(version, EW_STR("+cu"), 0);
    static const struct {
        const char *text;
        uint32_t major;
    } needs[] = {{"nvidia-cuda-runtime-cu11", 11}, {"nvidia-cuda-runtime-cu12", 12}, {"nvidia-cublas-cu12", 12},
                 {"nvidia-cuda-runtime (", 13},    {"nvidia-cuda-runtime=", 13},     {"nvidia-cublas=", 13}};

    if (at >= 0 && (size_t)at + 5 <= version.len)
        return (uint32_t)strtoul((char[]){version.ptr[at + 3], version.ptr[at + 4], '\0'}, NULL, 10);
    for (size_t i = 0; i < EW_COUNT_OF(needs); i++)
        if (ew_str_find(metadata, ew_str_of(needs[i].text), 0) >= 0)
            return needs[i].major;
    return 0;
}

// "Requires-Dist: torch>=2.8" or "torch (==2.8.0)", unless only an extra asks for it.
static struct ew_str required_torch(struct ew_str metadata)
{
    static const char key[] = "\nRequires-Dist: torch";
    ptrdiff_t at = -1;

    while ((at = ew_str_find(metadata, EW_STR(key), (size_t)(at + 1))) >= 0) {
        const char *line = metadata.ptr + at + sizeof(key) - 1, *end;
        size_t left = metadata.len - (size_t)(line - metadata.ptr);
        struct ew_str rest;
        ptrdiff_t op;

        end = memchr(line, '\n', left);
        rest = (struct ew_str){line, end ? (size_t)(end - line) : left};
        if (!rest.len || !strchr(" (<>=~!", rest.ptr[0]) || ew_str_find(rest, EW_STR("extra"), 0) >= 0)
            continue;
        op = ew_str_find(rest, EW_STR(">="), 0);
        op = op >= 0 ? op : ew_str_find(rest, EW_STR("=="), 0);
        if (op < 0)
            continue;
        rest = (struct ew_str){rest.ptr + op + 2, rest.len - (size_t)op - 2};
        while (rest.len && rest.ptr[0] == ' ')
            rest.ptr++, rest.len--;
        for (size_t i = 0; i < rest.len; i++)
            if ((rest.ptr[i] < '0' || rest.ptr[i] > '9') && rest.ptr[i] != '.')
                rest.len = i;
        return rest;
    }
    return EW_STR("");
}

void ew__scan_read_metadata(struct ew_scan_file *file, struct ew_arena *arena, struct ew_str text)
{
    file->package = keep(arena, header_field(text, "Name"));
    file->version = keep(arena, header_field(text, "Version"));
    file->requires_python = keep(arena, header_field(text, "Requires-Python"));
    file->package_cuda = package_cuda(file->version, text);
    file->requires_torch = keep(arena, required_torch(text));
}

// "PYTHON-ABI-PLATFORM", from the right; what is left of it is returned.
static struct ew_str read_tags(struct ew_scan_file *file, struct ew_str text)
{
    struct ew_str *const parts[] = {&file->platform_tag, &file->abi_tag, &file->python_tag};

    for (size_t i = 0; i < EW_COUNT_OF(parts); i++) {
        const char *dash = memrchr(text.ptr, '-', text.len);

        if (!dash && i == 2) // the tag stands alone, as in a WHEEL file
            *parts[i] = text;
        if (!dash)
            break;
        *parts[i] = (struct ew_str){dash + 1, text.len - (size_t)(dash + 1 - text.ptr)};
        text.len = (size_t)(dash - text.ptr);
    }
    file->pure = ew_str_is(file->platform_tag, "any");
    return text;
}

// NAME-VERSION[-BUILD]-PYTHON-ABI-PLATFORM.whl (PEP 427). Name and version serve where the archive is not at hand.
void ew__scan_read_wheel_name(struct ew_scan_file *file, struct ew_str name)
{
    struct ew_str rest;
    const char *dash;

    name.len -= EW_MIN(name.len, strlen(".whl"));
    rest = read_tags(file, name);
    dash = memchr(rest.ptr, '-', rest.len);
    if (file->package.len || !dash)
        return;
    file->package = (struct ew_str){rest.ptr, (size_t)(dash - rest.ptr)};
    rest = (struct ew_str){dash + 1, rest.len - file->package.len - 1};
    dash = memchr(rest.ptr, '-', rest.len);
    file->version = (struct ew_str){rest.ptr, dash ? (size_t)(dash - rest.ptr) : rest.len};
    file->package_cuda = package_cuda(file->version, EW_STR(""));
}

// An installed package's WHEEL file stands beside its METADATA.
static void read_installed_tags(struct ew_scan_file *file, struct ew_arena *arena)
{
    char path[4096], *text;
    struct ew_str tag;
    size_t len;

    if (file->path.len >= sizeof(path) || !ew_str_ends(file->path, "/METADATA"))
        return;
    snprintf(path, sizeof(path), "%.*s/WHEEL", (int)(file->path.len - strlen("/METADATA")), file->path.ptr);
    if (ew_file_read(path, METADATA_BYTES_MAX, &text, &len, NULL) != EW_OK)
        return;
    tag = keep(arena, header_field((struct ew_str){text, len}, "Tag"));
    ew_free(text);
    if (tag.len)
        read_tags(file, tag);
}

static void read_installed(struct ew_scan_file *file, struct ew_arena *arena, struct ew_str metadata)
{
    ew__scan_read_metadata(file, arena, metadata);
    read_installed_tags(file, arena);
}

struct wheel_reader {
    struct ew_scan_file *file;
    struct ew_arena *arena;
    struct ew_gpu_target target;
    void (*on_member)(void *ctx, const struct ew_scan_file *member);
    void *ctx;
};

// What a wheel has GPU code for is what its libraries have together.
static void add_sms(struct ew_scan_file *wheel, struct ew_arena *arena, const struct ew_scan_file *member)
{
    if (!wheel->sms && member->n_sms)
        wheel->sms = ew_arena_array(arena, EW_IMAGES_MAX, sizeof(*wheel->sms));
    for (uint32_t i = 0; wheel->sms && i < member->n_sms; i++) {
        bool known = wheel->n_sms == EW_IMAGES_MAX;

        for (uint32_t k = 0; k < wheel->n_sms; k++)
            known |= wheel->sms[k] == member->sms[i];
        if (!known)
            wheel->sms[wheel->n_sms++] = member->sms[i];
    }
    if (wheel->n_sms)
        qsort(wheel->sms, wheel->n_sms, sizeof(*wheel->sms), by_number);
}

static void read_wheel_member(struct wheel_reader *r, const struct ew_zip *zip, const struct ew_zip_member *member)
{
    bool library = ew_str_ends(member->name, ".so") || ew_str_find(member->name, EW_STR(".so."), 0) >= 0;
    bool metadata = ew_str_ends(member->name, ".dist-info/METADATA");
    struct ew_scan_file inner = {.kind = EW_SCAN_LIBRARY};
    unsigned char *bytes;
    struct ew_error err;
    struct ew_buf path;
    uint64_t len;

    if (!library && !metadata)
        return;
    if (ew_zip_read(zip, member, library ? MEMBER_BYTES_MAX : METADATA_BYTES_MAX, &bytes, &len, &err) != EW_OK) {
        set_error(r->file, r->arena, &err);
        return;
    }
    if (metadata) {
        ew__scan_read_metadata(r->file, r->arena, (struct ew_str){(char *)bytes, len});
    } else {
        ew_buf_init(&path, 8192);
        ew_buf_append_str(&path, r->file->path);
        ew_buf_append_str(&path, EW_STR("!/"));
        ew_buf_append_str(&path, member->name);
        inner.path = keep(r->arena, ew_buf_str(&path));
        ew_buf_fini(&path);
        ew__scan_read_bytes(&inner, r->arena, r->target, bytes, len);
        add_sms(r->file, r->arena, &inner);
        r->on_member(r->ctx, &inner);
    }
    ew_free(bytes);
}

void ew__scan_read_wheel(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                         void (*on_member)(void *ctx, const struct ew_scan_file *member), void *ctx)
{
    struct wheel_reader reader = {file, arena, target, on_member, ctx};
    struct ew_zip_member member;
    struct ew_mapfile mapped;
    char path[4096];
    struct ew_error err;
    uint64_t cursor = 0;
    struct ew_zip zip;
    int code;

    snprintf(path, sizeof(path), "%.*s", (int)EW_MIN(file->path.len, sizeof(path) - 1), file->path.ptr);
    ew__scan_read_wheel_name(file, ew__scan_base_name(file->path));
    if (ew_mapfile_open(&mapped, path, &err) != EW_OK) {
        set_error(file, arena, &err);
        return;
    }
    code = ew_zip_open(&zip, mapped.data, mapped.size, &err);
    while (code >= 0 && (code = ew_zip_next(&zip, &cursor, &member, &err)) > 0)
        read_wheel_member(&reader, &zip, &member);
    if (code < 0)
        set_error(file, arena, &err);
    ew_mapfile_close(&mapped);
}

// ---- TensorRT plans ----

// "ptrt" or "ftrt", maybe after a JSON prefix; bytes 24, 25, 26 are TensorRT's version (NVIDIA in TensorRT issue 3073).
static void read_plan(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target,
                      const unsigned char *bytes, uint64_t size)
{
    char version[32];
    uint64_t at = 0;

    if (size > 5 && bytes[3] == 0 && bytes[4] == '{')
        at = 4 + (uint64_t)(bytes[0] | bytes[1] << 8 | bytes[2] << 16);
    if (at > size || size - at < 27 || (memcmp(bytes + at, "ptrt", 4) != 0 && memcmp(bytes + at, "ftrt", 4) != 0)) {
        file->unreadable = true;
        file->error = EW_STR("not a serialized TensorRT engine");
        return;
    }
    snprintf(version, sizeof(version), "%u.%u.%u", bytes[at + 24], bytes[at + 25], bytes[at + 26]);
    file->plan_version = keep(arena, ew_str_of(version));
    read_gpu_code(file, arena, target, bytes, size);
}

void ew__scan_read(struct ew_scan_file *file, struct ew_arena *arena, struct ew_gpu_target target)
{
    struct ew_mapfile mapped;
    struct ew_error err;
    char path[4096];

    snprintf(path, sizeof(path), "%.*s", (int)EW_MIN(file->path.len, sizeof(path) - 1), file->path.ptr);
    if (ew_mapfile_open(&mapped, path, &err) != EW_OK) {
        set_error(file, arena, &err);
        return;
    }
    if (file->kind == EW_SCAN_LIBRARY)
        ew__scan_read_bytes(file, arena, target, mapped.data, mapped.size);
    else if (file->kind == EW_SCAN_PACKAGE)
        read_installed(file, arena,
                       (struct ew_str){(const char *)mapped.data, EW_MIN(mapped.size, METADATA_BYTES_MAX)});
    else if (file->kind == EW_SCAN_PLAN)
        read_plan(file, arena, target, mapped.data, mapped.size);
    ew_mapfile_close(&mapped);
}
