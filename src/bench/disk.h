#pragma once
// How fast this machine reads a file from its disk: what loading a model can take at least.

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define EW_DISK_BYTES_MIN (8ull << 20) // shorter files say nothing about speed

// Reads the file (again and again, if it is short) past the page cache for about half a second, with several blocks
// under way at once, as the loader does. EW_ERR_UNSUPPORTED where its file system cannot read past the page cache.
int ew_disk_read(const char *path, double *gb_s, struct ew_error *err) EW_MUST_CHECK;

// A file to measure with where the user names none: the largest library of the system. False where all are short.
bool ew_disk_find_file(char *path, size_t size);
