#pragma once
// A directory of its own for a group of tests, removed with all in it at the end.

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Group set-up and tear-down of cmocka: the state of every test is the directory's path.
static inline int scratch_make(void **state)
{
    const char *base = getenv("TMPDIR");
    char *path = malloc(4096);

    if (!path)
        return -1;
    snprintf(path, 4096, "%s/ew-test-XXXXXX", base ? base : "/tmp");
    *state = mkdtemp(path);
    return *state ? 0 : -1;
}

static inline int scratch_unlink(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

static inline int scratch_remove(void **state)
{
    int status = nftw(*state, scratch_unlink, 16, FTW_DEPTH | FTW_PHYS);

    free(*state);
    return status;
}

static inline void scratch_path(char *path, size_t size, const char *dir, const char *name)
{
    if (snprintf(path, size, "%s/%s", dir, name) >= (int)size)
        abort();
}

// How many entries begin with a name.
static inline int scratch_count(const char *dir, const char *start)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;
    int count = 0;

    while (stream && (entry = readdir(stream)))
        count += strncmp(entry->d_name, start, strlen(start)) == 0;
    if (stream)
        closedir(stream);
    return count;
}

static inline void scratch_write(const char *dir, const char *name, const void *bytes, size_t len)
{
    char path[4096];
    FILE *file;

    scratch_path(path, sizeof(path), dir, name);
    file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, len, file) != len || fclose(file) != 0)
        abort();
}
