#include "platform/cuda_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/str.h"

#define FREE_BYTES_MIN ((unsigned long long)16 << 20) // a model's kernels take 3 to 5 MB

// ---- places -------------------------------------------------------------------------------------

// The nearest folder above path that exists, in which it would be made.
static void parent_of(const char *path, char *out, size_t size)
{
    struct stat found;

    snprintf(out, size, "%s", path);
    while (stat(out, &found) != 0 && (errno == ENOENT || errno == ENOTDIR)) {
        char *slash = strrchr(out, '/');

        if (!slash)
            break;
        slash[slash == out] = '\0';
        if (slash == out)
            break;
    }
}

// Kernels that others put there would run on the GPU, with our data. A place that was asked for may belong to somebody
// else (a volume of a container), but not to everybody.
static bool is_safe(const char *path, bool is_asked, char *why, size_t size)
{
    struct stat s;
    bool is_strange = !is_asked && lstat(path, &s) == 0 && S_ISLNK(s.st_mode) && s.st_uid && s.st_uid != geteuid();

    if (!is_strange && stat(path, &s) != 0)
        return errno == ENOENT || errno == ENOTDIR; // it will be ours, or cannot be
    if (is_strange)
        snprintf(why, size, "%.300s is another user's link", path);
    else if (!S_ISDIR(s.st_mode))
        snprintf(why, size, "%.300s is no directory", path);
    else if (s.st_mode & S_IWOTH)
        snprintf(why, size, "everybody may write into %.300s", path);
    else if (!is_asked && s.st_uid != geteuid())
        snprintf(why, size, "%.300s belongs to another user", path);
    else if (!is_asked && s.st_mode & S_IWGRP)
        snprintf(why, size, "a group may write into %.300s", path);
    else
        return true;
    return false;
}

static bool has_room(const char *path, char *why, size_t size)
{
    struct statvfs fs;

    if (statvfs(path, &fs) != 0 || (unsigned long long)fs.f_bavail * fs.f_frsize >= FREE_BYTES_MIN)
        return true;
    snprintf(why, size, "the file system of %.300s is full", path);
    return false;
}

static bool will_do(const char *path, bool is_asked, char *why, size_t size)
{
    char parent[sizeof(((struct ew_cuda_cache *)0)->path)];

    parent_of(path, parent, sizeof(parent));
    if (!is_safe(path, is_asked, why, size))
        return false;
    if (faccessat(AT_FDCWD, parent, W_OK | X_OK, AT_EACCESS) != 0) {
        snprintf(why, size, "%.300s cannot be written: %s", parent, strerror(errno));
        return false;
    }
    return has_room(parent, why, size);
}

static bool try_usual(struct ew_cuda_cache *out, const char *base, const char *below)
{
    int len = base && base[0] == '/' ? snprintf(out->path, sizeof(out->path), "%s%s", base, below) : -1;
    char why[sizeof(out->why)];

    if (len < 0 || (size_t)len >= sizeof(out->path))
        return false;
    if (will_do(out->path, false, why, sizeof(why)))
        return true;
    if (!out->why[0]) // what the first place lacks is what the user can mend
        snprintf(out->why, sizeof(out->why), "%s", why);
    return false;
}

static bool find_usual(struct ew_cuda_cache *out)
{
    char below[40];

    snprintf(below, sizeof(below), "/edgewise-%lu", (unsigned long)geteuid());
    return try_usual(out, getenv("XDG_CACHE_HOME"), "/edgewise") ||
           try_usual(out, getenv("HOME"), "/.cache/edgewise") ||
           try_usual(out, getenv("CACHE_DIRECTORY"), "") || // systemd.exec(5)
           try_usual(out, "/var/tmp", below) || try_usual(out, "/tmp", below) || try_usual(out, "/dev/shm", below);
}

static int find_asked(const char *asked, struct ew_cuda_cache *out, struct ew_error *err)
{
    int len = snprintf(out->path, sizeof(out->path), "%s", asked);

    out->kind = EW_CUDA_CACHE_ASKED;
    if (len > 0 && (size_t)len < sizeof(out->path) && asked[0] == '/' &&
        will_do(out->path, true, out->why, sizeof(out->why)))
        return 0;
    if (asked[0] != '/')
        snprintf(out->why, sizeof(out->why), "it does not begin with /");
    ew_fail(err, EW_ERR_IO, "compiled kernels cannot be kept in \"%s\": %s", asked, out->why);
    return ew_remedy(err, EW_ERR_IO, "Give --cache or EDGEWISE_CACHE a directory that this user alone can write");
}

int ew_cuda_cache_find(const char *asked, struct ew_cuda_cache *out, struct ew_error *err)
{
    static const char *const drivers_own[] = {"CUDA_CACHE_PATH", "CUDA_CACHE_DISABLE"};

    *out = (struct ew_cuda_cache){0};
    if (asked)
        return find_asked(asked, out, err);
    asked = getenv("EDGEWISE_CACHE");
    if (asked && asked[0])
        return find_asked(asked, out, err);
    for (size_t i = 0; i < EW_COUNT_OF(drivers_own); i++) {
        if (!getenv(drivers_own[i]))
            continue;
        out->kind = EW_CUDA_CACHE_LEFT;
        snprintf(out->why, sizeof(out->why), "%s=%.300s", drivers_own[i], getenv(drivers_own[i]));
        return 0;
    }
    out->kind = find_usual(out) ? EW_CUDA_CACHE_USUAL : EW_CUDA_CACHE_NONE;
    return 0;
}

// ---- use ----------------------------------------------------------------------------------------

static int make_folders(const char *path, struct ew_error *err)
{
    char part[sizeof(((struct ew_cuda_cache *)0)->path)];
    size_t len = strlen(path);

    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        snprintf(part, sizeof(part), "%.*s", (int)i, path);
        if (mkdir(part, S_IRWXU) != 0 && errno != EEXIST)
            return ew_fail_errno(err, EW_ERR_IO, "cannot make %s", part);
    }
    return 0;
}

// Left alone where it is so already: other threads may read the environment by then.
static int set_variable(const char *name, const char *value, struct ew_error *err)
{
    const char *now = getenv(name);

    if ((now && strcmp(now, value) == 0) || setenv(name, value, 1) == 0)
        return 0;
    return ew_fail_errno(err, EW_ERR_MEMORY, "cannot set %s", name);
}

int ew_cuda_cache_use(const struct ew_cuda_cache *cache, struct ew_error *err)
{
    bool is_asked = cache->kind == EW_CUDA_CACHE_ASKED;
    char why[sizeof(cache->why)];
    int rc;

    if (!is_asked && cache->kind != EW_CUDA_CACHE_USUAL)
        return 0;
    rc = make_folders(cache->path, err);
    if (rc)
        return rc;
    if (!is_safe(cache->path, is_asked, why, sizeof(why))) // somebody may have been quicker
        return ew_fail(err, EW_ERR_IO, "compiled kernels cannot be kept in \"%s\": %s", cache->path, why);
    rc = set_variable("CUDA_CACHE_PATH", cache->path, err);
    return rc || !is_asked ? rc : set_variable("CUDA_CACHE_DISABLE", "0", err);
}
