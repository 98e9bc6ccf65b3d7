#pragma once
// Small text files of /proc and /sys, of this machine or of a captured tree.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

// `root` is put before every path; NULL or "" is this machine. Reads at most size - 1 bytes and adds a NUL.
// Returns the number of bytes, or -1 where the file cannot be read.
ptrdiff_t ew_sysfile_read(const char *root, const char *path, char *text, size_t size);
// As ew_sysfile_read, with a formatted path.
ptrdiff_t ew_sysfile_readf(const char *root, char *text, size_t size, const char *path_fmt, ...) EW_PRINTF(4, 5);

// The number after a key at the start of a line ("MemTotal:   123 kB", "inactive_file 123"); false where there is none.
bool ew_sysfile_field(const char *text, const char *key, uint64_t *value);
// A number at the start of the text; false for anything else ("max").
bool ew_sysfile_number(const char *text, uint64_t *value);

// Walks a list such as "0-3,8,10-11": start with *cursor at the text; false at its end or at something malformed.
bool ew_sysfile_range(const char **cursor, uint32_t *first, uint32_t *last);
