#include "doctor/scan.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "doctor/scan_internal.h"
#include "format/mapfile.h"
#include "platform/topology.h"

#define SCAN_ARENA_MAX ((size_t)2 << 30)
#define REQUIREMENTS_BYTES_MAX ((size_t)1 << 20)

struct reading {
    struct ew_scan *scan;
    struct ew_gpu_target target;
    struct ew_arena *arenas;      // one a thread: nothing is shared while reading
    pthread_mutex_t lock;         // of the list below
    struct ew_scan_file *members; // libraries found inside wheels
    uint32_t n_members, members_cap;
    bool failed;
};

static void keep_member(void *ctx, const struct ew_scan_file *member)
{
    struct reading *r = ctx;
    struct ew_scan_file *grown;

    pthread_mutex_lock(&r->lock);
    if (r->n_members == r->members_cap) {
        grown = ew_realloc_array(r->members, (size_t)r->members_cap * 2 + 64, sizeof(*grown));
        if (grown) {
            r->members = grown;
            r->members_cap = r->members_cap * 2 + 64;
        }
    }
    if (r->n_members < r->members_cap)
        r->members[r->n_members++] = *member;
    else
        r->failed = true;
    pthread_mutex_unlock(&r->lock);
}

static void read_one(void *ctx, uint32_t task, uint32_t thread)
{
    struct reading *r = ctx;
    struct ew_scan_file *file = &r->scan->files[task];

    if (file->kind == EW_SCAN_WHEEL)
        ew__scan_read_wheel(file, &r->arenas[thread], r->target, keep_member, r);
    else if (file->kind == EW_SCAN_LIBRARY || file->kind == EW_SCAN_PACKAGE || file->kind == EW_SCAN_PLAN)
        ew__scan_read(file, &r->arenas[thread], r->target);
}

// ---- requirement lists ----

static struct ew_str word(struct ew_str line, const char *allowed)
{
    size_t len = 0;

    while (len < line.len && strchr(allowed, line.ptr[len]) && line.ptr[len])
        len++;
    return (struct ew_str){line.ptr, len};
}

#define NAME_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

struct ew_str ew__scan_keep(struct ew_scan *scan, struct ew_str text)
{
    char *copy = ew_arena_copy(&scan->arena, text.ptr, text.len);

    scan->failed |= !copy;
    return copy ? (struct ew_str){copy, text.len} : EW_STR("");
}

// The file name of a wheel that the line names by path or address, or empty.
static struct ew_str wheel_in(struct ew_str line)
{
    ptrdiff_t end = ew_str_find(line, EW_STR(".whl"), 0);

    if (end < 0)
        return EW_STR("");
    line.len = (size_t)end + strlen(".whl");
    for (size_t i = line.len; i > 0; i--)
        if (strchr("/ \"'@=", line.ptr[i - 1]))
            return (struct ew_str){line.ptr + i, line.len - i};
    return line;
}

// The version after the operator, "==1.2+cu126" or ">=2.8"; empty where there is none.
static struct ew_str version_after(struct ew_str line, const char *op)
{
    ptrdiff_t at = ew_str_find(line, ew_str_of(op), 0);
    struct ew_str version;

    if (at < 0)
        return EW_STR("");
    version = (struct ew_str){line.ptr + at + 2, line.len - (size_t)at - 2};
    while (version.len && version.ptr[0] == ' ')
        version.ptr++, version.len--;
    return word(version, NAME_CHARS "+!");
}

// "name[extra]==1.2+cu126 ; marker", "name @ https://.../x.whl", or a wheel's path.
static void add_requirement(struct ew_scan *scan, struct ew_str path, struct ew_str line)
{
    struct ew_str name = word(line, NAME_CHARS), wheel = wheel_in(line);
    struct ew_scan_file *file;
    ptrdiff_t local;

    if (!wheel.len && (name.len == 0 || name.ptr[0] == '-' || name.ptr[0] == '.'))
        return;
    file = ew__scan_add(scan, path, EW_SCAN_REQUIREMENTS);
    if (!file)
        return;
    if (wheel.len) {
        ew__scan_read_wheel_name(file, ew__scan_keep(scan, wheel));
        return;
    }
    file->package = ew__scan_keep(scan, name);
    file->version = ew__scan_keep(scan, version_after(line, "=="));
    if (ew_str_is(name, "torch"))
        file->requires_torch = file->version.len ? file->version : ew__scan_keep(scan, version_after(line, ">="));
    local = ew_str_find(file->version, EW_STR("+cu1"), 0);
    if (local >= 0 && file->version.len >= (size_t)local + 5 && file->version.ptr[local + 4] >= '0' &&
        file->version.ptr[local + 4] <= '9')
        file->package_cuda = 10 + (uint32_t)(file->version.ptr[local + 4] - '0');
}

// requires-python = ">=3.12" stands for a requirement of its own.
static bool add_required_python(struct ew_scan *scan, struct ew_str path, struct ew_str line)
{
    static const char key[] = "requires-python";
    struct ew_scan_file *file;
    const char *quote;

    if (!ew_str_starts(line, key))
        return false;
    quote = memchr(line.ptr, '"', line.len);
    file = quote ? ew__scan_add(scan, path, EW_SCAN_REQUIREMENTS) : NULL;
    if (file) {
        file->package = EW_STR(key);
        file->requires_python = ew__scan_keep(scan,
                                              (struct ew_str){quote + 1, line.len - (size_t)(quote + 1 - line.ptr)});
    }
    return true;
}

// pyproject.toml: the quoted strings of its dependency arrays look like requirement lines.
static struct ew_str requirement_of(struct ew_str line, bool toml)
{
    while (line.len && (line.ptr[0] == ' ' || line.ptr[0] == '\t'))
        line.ptr++, line.len--;
    if (!toml)
        return line;
    if (!line.len || (line.ptr[0] != '"' && line.ptr[0] != '\''))
        return EW_STR("");
    return (struct ew_str){line.ptr + 1, line.len - 1};
}

static void read_requirements(struct ew_scan *scan, struct ew_str path)
{
    char name[4096], *text;
    size_t len, at = 0; // the text ends with a NUL

    snprintf(name, sizeof(name), "%.*s", (int)path.len, path.ptr);
    if (path.len >= sizeof(name) || ew_file_read(name, REQUIREMENTS_BYTES_MAX, &text, &len, NULL) != EW_OK)
        return;
    while (at < len) {
        size_t line_len = strcspn(text + at, "\n");
        struct ew_str line = {text + at, line_len};
        bool toml = ew_str_ends(path, ".toml");

        if (!toml || !add_required_python(scan, path, line))
            add_requirement(scan, path, requirement_of(line, toml));
        at += line_len + 1;
    }
    ew_free(text);
}

// ---- the three passes ----

// Files that name others; small, so that they are read at once.
static void read_list(struct ew_scan *scan, enum ew_scan_kind kind, struct ew_str path)
{
    if (kind == EW_SCAN_REQUIREMENTS)
        read_requirements(scan, path);
    else if (kind == EW_SCAN_RECIPE || kind == EW_SCAN_COMPOSE)
        ew__scan_read_recipe(scan, path, kind == EW_SCAN_COMPOSE);
}

static int read_all(struct ew_scan *scan, uint32_t n_threads, struct ew_error *err)
{
    const struct ew_facts *facts = &scan->doctor->facts;
    struct reading r = {
        .scan = scan,
        .lock = PTHREAD_MUTEX_INITIALIZER,
        .target = {(uint32_t)ew_facts_number(facts, "gpu_cc", 0), (uint32_t)ew_facts_number(facts, "drv_cuda", 0)}};
    struct ew_topology topology;
    struct ew_pool *pool;
    int code;

    ew_topology_read(NULL, &topology);
    n_threads = n_threads ? n_threads : topology.n_usable;
    code = ew_pool_create(n_threads, "scan", &pool, err);
    if (code != EW_OK)
        return code;
    scan->n_arenas = n_threads;
    scan->arenas = r.arenas = ew_alloc_array(n_threads, sizeof(*r.arenas));
    if (!r.arenas) {
        scan->n_arenas = 0;
        ew_pool_destroy(pool);
        return ew_fail_memory(err, n_threads * sizeof(*r.arenas), "a scan");
    }
    for (uint32_t i = 0; i < n_threads; i++)
        ew_arena_init(&r.arenas[i], SCAN_ARENA_MAX);
    ew_pool_run(pool, read_one, &r, scan->count);
    ew_pool_destroy(pool);
    for (uint32_t i = 0; i < r.n_members; i++) {
        struct ew_scan_file *file = ew__scan_add(scan, r.members[i].path, EW_SCAN_LIBRARY);

        if (file)
            *file = r.members[i];
    }
    ew_free(r.members);
    scan->failed |= r.failed;
    return EW_OK;
}

int ew_scan_run(struct ew_scan *scan, const struct ew_doctor *doctor, const char *const *paths, uint32_t n_paths,
                uint32_t n_threads, struct ew_findings *findings, struct ew_error *err)
{
    int code = EW_OK;
    uint32_t walked;

    *scan = (struct ew_scan){.doctor = doctor};
    ew_arena_init(&scan->arena, SCAN_ARENA_MAX);
    for (uint32_t i = 0; i < n_paths && code == EW_OK; i++)
        code = ew__scan_walk(scan, paths[i], err);
    walked = scan->count;
    for (uint32_t i = 0; i < walked && code == EW_OK; i++)
        read_list(scan, scan->files[i].kind, scan->files[i].path);
    if (code == EW_OK)
        code = read_all(scan, n_threads, err);
    if (code == EW_OK)
        ew__scan_judge(scan, findings);
    if (code == EW_OK && (scan->failed || findings->failed))
        code = ew_fail_memory(err, scan->arena.used, "a scan");
    return code;
}

static void append_member(struct ew_buf *out, const char *key, struct ew_str value)
{
    ew_buf_printf(out, "\"%s\": ", key);
    ew_buf_append_json(out, value);
    ew_buf_append_str(out, EW_STR(", "));
}

static void append_image(struct ew_buf *out, const struct ew_image *image, bool first)
{
    static const char *const kinds[] = {[EW_IMAGE_PTX] = "ptx", [EW_IMAGE_CUBIN] = "cubin", [EW_IMAGE_LTO] = "lto"};

    ew_buf_printf(out, "%s{\"kind\": \"%s\", \"sm\": \"%u%.1s\", ", first ? "" : ", ", kinds[image->kind], image->sm,
                  &image->suffix);
    if (image->kind == EW_IMAGE_PTX)
        ew_buf_printf(out, "\"isa\": \"%u.%u\", ", image->ptx_isa / 10, image->ptx_isa % 10);
    ew_buf_printf(out, "\"zstd\": %s, \"bare\": %s, \"count\": %u}", image->zstd ? "true" : "false",
                  image->is_bare ? "true" : "false", image->count);
}

static void append_library(struct ew_buf *out, const struct ew_scan_file *file)
{
    ew_buf_append_char(out, '{');
    append_member(out, "path", file->path);
    append_member(out, "machine", ew_str_of(ew_elf_machine_name(file->machine)));
    append_member(out, "soname", file->soname);
    append_member(out, "glibc", file->glibc);
    append_member(out, "glibcxx", file->glibcxx);
    ew_buf_append_str(out, EW_STR("\"needed\": ["));
    for (uint32_t i = 0; i < file->n_needed; i++) {
        ew_buf_append_str(out, i ? EW_STR(", ") : EW_STR(""));
        ew_buf_append_json(out, file->needed[i]);
    }
    ew_buf_append_str(out, EW_STR("], \"sms\": ["));
    for (uint32_t i = 0; i < file->n_sms; i++)
        ew_buf_printf(out, "%s%.0f", i ? ", " : "", file->sms[i]);
    ew_buf_append_str(out, EW_STR("], \"images\": ["));
    for (uint32_t i = 0; i < file->n_images; i++)
        append_image(out, &file->images[i], i == 0);
    ew_buf_printf(out, "], \"containers\": %u, \"native\": %u, \"jit\": %u}\n", file->verdict.total, file->verdict.sass,
                  file->verdict.jit);
}

void ew_scan_inventory(const struct ew_scan *scan, struct ew_buf *out)
{
    for (uint32_t i = 0; i < scan->count; i++) {
        const struct ew_scan_file *file = &scan->files[i];

        if (file->kind == EW_SCAN_LIBRARY && !file->alias && !file->unreadable && (file->is_elf || file->has_gpu_code))
            append_library(out, file);
    }
}

void ew_scan_fini(struct ew_scan *scan)
{
    for (uint32_t i = 0; i < scan->n_arenas; i++)
        ew_arena_fini(&scan->arenas[i]);
    ew_free(scan->arenas);
    ew_free(scan->files);
    ew_arena_fini(&scan->arena);
    *scan = (struct ew_scan){0};
}
