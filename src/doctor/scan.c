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
    else if (file->kind != EW_SCAN_REQUIREMENTS)
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

// "name[extra]==1.2+cu126 ; marker": name, and the version where one is pinned.
static void add_requirement(struct ew_scan *scan, struct ew_str path, struct ew_str line)
{
    struct ew_str name = word(line, NAME_CHARS), version = EW_STR("");
    ptrdiff_t pin = ew_str_find(line, EW_STR("=="), 0), local;
    struct ew_scan_file *file;

    if (name.len == 0 || name.ptr[0] == '-' || name.ptr[0] == '.')
        return;
    if (pin >= 0) {
        version = (struct ew_str){line.ptr + pin + 2, line.len - (size_t)pin - 2};
        while (version.len && version.ptr[0] == ' ')
            version.ptr++, version.len--;
        version = word(version, NAME_CHARS "+!");
    }
    file = ew__scan_add(scan, path, EW_SCAN_REQUIREMENTS);
    if (!file)
        return;
    file->package = (struct ew_str){ew_arena_copy(&scan->arena, name.ptr, name.len), name.len};
    file->version = (struct ew_str){ew_arena_copy(&scan->arena, version.ptr, version.len), version.len};
    scan->failed |= !file->package.ptr || !file->version.ptr;
    local = ew_str_find(version, EW_STR("+cu1"), 0);
    if (local >= 0 && version.len >= (size_t)local + 5 && version.ptr[local + 4] >= '0' &&
        version.ptr[local + 4] <= '9')
        file->package_cuda = 10 + (uint32_t)(version.ptr[local + 4] - '0');
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
    size_t len, at = 0;

    snprintf(name, sizeof(name), "%.*s", (int)path.len, path.ptr);
    if (path.len >= sizeof(name) || ew_file_read(name, REQUIREMENTS_BYTES_MAX, &text, &len, NULL) != EW_OK)
        return;
    while (at < len) {
        size_t line_len = strcspn(text + at, "\n");

        add_requirement(scan, path, requirement_of((struct ew_str){text + at, line_len}, ew_str_ends(path, ".toml")));
        at += line_len + 1;
    }
    ew_free(text);
}

// ---- the three passes ----

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
        if (scan->files[i].kind == EW_SCAN_REQUIREMENTS)
            read_requirements(scan, scan->files[i].path);
    if (code == EW_OK)
        code = read_all(scan, n_threads, err);
    if (code == EW_OK)
        ew__scan_judge(scan, findings);
    if (code == EW_OK && (scan->failed || findings->failed))
        code = ew_fail_memory(err, scan->arena.used, "a scan");
    return code;
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
