// The first pass: which files under the given paths are worth reading.

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "doctor/scan_internal.h"

#define DEPTH_MAX 64 // of folders; link loops cannot arise, links are not followed into folders
#define FILES_MAX 4000000

static bool contains(struct ew_str text, const char *part)
{
    return ew_str_find(text, ew_str_of(part), 0) >= 0;
}

struct ew_str ew__scan_base_name(struct ew_str path)
{
    const char *slash = memrchr(path.ptr, '/', path.len);

    return slash ? (struct ew_str){slash + 1, path.len - (size_t)(slash + 1 - path.ptr)} : path;
}

// By name alone, so that a tree of a hundred thousand files costs no opens. False: not worth reading.
static bool kind_of(struct ew_str path, struct ew_str name, bool executable, enum ew_scan_kind *kind)
{
    if (ew_str_ends(name, ".whl"))
        *kind = EW_SCAN_WHEEL;
    else if (ew_str_is(name, "METADATA") && contains(path, ".dist-info/"))
        *kind = EW_SCAN_PACKAGE;
    else if (ew_str_is(name, "pyproject.toml") || (ew_str_starts(name, "requirements") && ew_str_ends(name, ".txt")))
        *kind = EW_SCAN_REQUIREMENTS;
    else if (ew_str_starts(name, "Dockerfile") || ew_str_ends(name, ".Dockerfile") || ew_str_is(name, "Containerfile"))
        *kind = EW_SCAN_RECIPE;
    else if ((ew_str_starts(name, "docker-compose") || ew_str_starts(name, "compose")) &&
             (ew_str_ends(name, ".yml") || ew_str_ends(name, ".yaml")))
        *kind = EW_SCAN_COMPOSE;
    else if (ew_str_ends(name, ".plan") || ew_str_ends(name, ".engine") || ew_str_ends(name, ".trt"))
        *kind = EW_SCAN_PLAN;
    else if (ew_str_ends(name, ".so") || contains(name, ".so.") || ew_str_ends(name, ".cubin") ||
             ew_str_ends(name, ".fatbin") || ew_str_ends(name, ".ptx") || (executable && !contains(name, ".")))
        *kind = EW_SCAN_LIBRARY;
    else
        return false;
    return true;
}

struct ew_scan_file *ew__scan_add(struct ew_scan *scan, struct ew_str path, enum ew_scan_kind kind)
{
    struct ew_scan_file *grown, *file;
    char *copy = ew_arena_copy(&scan->arena, path.ptr, path.len);

    if (scan->count == scan->cap) {
        grown = scan->count < FILES_MAX ? ew_realloc_array(scan->files, (size_t)scan->cap * 2 + 256, sizeof(*grown))
                                        : NULL;
        if (grown) {
            scan->files = grown;
            scan->cap = scan->cap * 2 + 256;
        }
    }
    if (!copy || scan->count == scan->cap) {
        scan->failed = true;
        return NULL;
    }
    file = &scan->files[scan->count++];
    *file = (struct ew_scan_file){.path = {copy, path.len}, .kind = kind};
    return file;
}

static void walk(struct ew_scan *scan, struct ew_buf *path, uint32_t depth);

static void add_found(struct ew_scan *scan, struct ew_str path, enum ew_scan_kind kind, bool link)
{
    struct ew_scan_file *file = ew__scan_add(scan, path, kind);
    char target[4096];
    ssize_t len = file && link ? readlink(path.ptr, target, sizeof(target)) : 0;

    if (len > 0)
        file->alias = !memchr(target, '/', (size_t)len);
}

static void visit(struct ew_scan *scan, struct ew_buf *path, const char *name, uint32_t depth)
{
    size_t before = path->len;
    enum ew_scan_kind kind;
    struct stat info;

    ew_buf_append_char(path, '/');
    ew_buf_append_str(path, ew_str_of(name));
    if (!ew_buf_ok(path)) {
        ew_buf_reset(path); // a path longer than the system allows: skip what lies there
    } else if (lstat(path->ptr, &info) == 0) {
        if (S_ISDIR(info.st_mode) && depth < DEPTH_MAX)
            walk(scan, path, depth + 1);
        else if ((S_ISREG(info.st_mode) || S_ISLNK(info.st_mode)) &&
                 kind_of(ew_buf_str(path), ew_str_of(name), S_ISREG(info.st_mode) && info.st_mode & 0111, &kind))
            add_found(scan, ew_buf_str(path), kind, S_ISLNK(info.st_mode));
    }
    path->len = before;
    path->ptr[before] = '\0';
}

static void walk(struct ew_scan *scan, struct ew_buf *path, uint32_t depth)
{
    DIR *dir = opendir(path->ptr);
    struct dirent *entry;

    while (dir && !scan->failed && (entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            visit(scan, path, entry->d_name, depth);
    if (dir)
        closedir(dir);
}

// A file named by the user is read whatever its name says.
static void add_named(struct ew_scan *scan, struct ew_str path)
{
    struct ew_str name = ew__scan_base_name(path);
    enum ew_scan_kind kind;

    if (!kind_of(path, name, true, &kind))
        kind = ew_str_ends(name, ".txt") ? EW_SCAN_REQUIREMENTS : EW_SCAN_LIBRARY;
    ew__scan_add(scan, path, kind);
}

int ew__scan_walk(struct ew_scan *scan, const char *path, struct ew_error *err)
{
    struct stat info;
    struct ew_buf buf;

    if (stat(path, &info) != 0)
        return ew_fail_errno(err, EW_ERR_IO, "cannot look at %s", path);
    if (!S_ISDIR(info.st_mode)) {
        add_named(scan, ew_str_of(path));
        return EW_OK;
    }
    if (ew__is_root_fs(path))
        ew__scan_add_root_fs(scan, path);
    ew_buf_init(&buf, 4095);
    ew_buf_append_str(&buf, ew_str_of(path));
    while (buf.len > 1 && buf.ptr[buf.len - 1] == '/')
        buf.ptr[--buf.len] = '\0';
    walk(scan, &buf, 0);
    ew_buf_fini(&buf);
    return EW_OK;
}
