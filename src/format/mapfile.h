#pragma once
// A file in memory, read-only: mapped, with its size. Reading a mapping of a file that someone truncates raises
// SIGBUS; we accept that (weights are read through pread where a second copy is made anyway).

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

struct ew_mapfile {
    const unsigned char *data; // never NULL once open, also for an empty file
    uint64_t size;
    int fd;
    char *path;
};

// Regular files only.
int ew_mapfile_open(struct ew_mapfile *file, const char *path, struct ew_error *err) EW_MUST_CHECK;
void ew_mapfile_close(struct ew_mapfile *file); // also of a zero-filled or never opened one
// Tells the kernel that a range will be read soon, or was read and will not be needed again.
void ew_mapfile_will_need(const struct ew_mapfile *file, uint64_t offset, uint64_t len);
void ew_mapfile_dont_need(const struct ew_mapfile *file, uint64_t offset, uint64_t len);
// The same for an address inside a mapping of ew_mapfile_open; never for other memory, whose contents it would lose.
void ew_mapfile_dont_need_at(const void *data, uint64_t len);
// Whole small file (or pipe) as NUL-terminated bytes; the caller frees with ew_free. Fails past max.
int ew_file_read(const char *path, size_t max, char **out, size_t *len, struct ew_error *err) EW_MUST_CHECK;
// Names what often lies in place of a model's file, given its first bytes: nothing, a Git LFS pointer, a web
// page, a PyTorch checkpoint. EW_OK otherwise.
int ew_file_check(const char *path, const void *bytes, size_t len, struct ew_error *err) EW_MUST_CHECK;
