#pragma once
// safetensors: one file, or the shards that an index names. Source: the safetensors format description (8-byte
// length, JSON header, data). Offsets must lie in the file, match dtype and shape, and not overlap. Tensors of
// types that edgewise does not know are listed as refused. "__metadata__" is passed over.

#include "base/alloc.h"
#include "base/error.h"
#include "format/mapfile.h"
#include "format/tensors.h"

struct ew_safetensors {
    struct ew_mapfile *files;
    uint32_t n_files;
    struct ew_tensors tensors;
    struct ew_arena arena;
};

#define EW_SAFETENSORS_HEADER_MAX 100000000u // bytes; the reference implementation's bound
#define EW_SAFETENSORS_FILES_MAX 4096u

// one file
int ew_safetensors_open(struct ew_safetensors *st, const char *path, struct ew_error *err) EW_MUST_CHECK;
// model.safetensors, or what model.safetensors.index.json names, or the only *.safetensors
int ew_safetensors_open_dir(struct ew_safetensors *st, const char *dir, struct ew_error *err) EW_MUST_CHECK;
// Adds a further file to an open one: its tensors are called by `prefix` and their own names. A failure leaves
// something that can only be closed.
int ew_safetensors_add(struct ew_safetensors *st, const char *path, const char *prefix,
                       struct ew_error *err) EW_MUST_CHECK;
// in memory
int ew_safetensors_parse(struct ew_safetensors *st, const unsigned char *bytes, uint64_t size,
                         struct ew_error *err) EW_MUST_CHECK;
void ew_safetensors_close(struct ew_safetensors *st);
