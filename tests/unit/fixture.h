#pragma once
// Where tests find ground truth: tests/fixtures of the repository first, then the shared collection
// ($EW_SHARED, or shared/ beside the source tree). A test whose fixture is absent skips itself and says so.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// Fills path with the place of a fixture ("gguf/llama-f16.gguf"); false, with a note on standard error,
// where there is none.
static inline bool fixture_find(char *path, size_t size, const char *name)
{
    const char *root = getenv("EW_SOURCE_ROOT"), *shared = getenv("EW_SHARED");

    root = root ? root : ".";
    snprintf(path, size, "%s/tests/fixtures/%s", root, name);
    if (access(path, R_OK) == 0)
        return true;
    if (shared)
        snprintf(path, size, "%s/fixtures/%s", shared, name);
    else
        snprintf(path, size, "%s/../shared/fixtures/%s", root, name);
    if (access(path, R_OK) == 0)
        return true;
    fprintf(stderr, "skipped: the fixture %s is absent\n", name);
    return false;
}
