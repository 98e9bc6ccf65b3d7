#pragma once
// Writes tar archives (POSIX ustar) of small regular files and directories. Source: POSIX.1-2017, pax, "ustar
// Interchange Format".

#include <stdio.h>

#include "base/error.h"
#include "base/str.h"

// path without a leading slash, at most 99 bytes. Write errors stay in the stream, for one check at the end.
int ew_tar_add(FILE *to, const char *path, struct ew_str content, struct ew_error *err) EW_MUST_CHECK;
int ew_tar_add_dir(FILE *to, const char *path, struct ew_error *err) EW_MUST_CHECK;
void ew_tar_finish(FILE *to); // two blocks of zeros
