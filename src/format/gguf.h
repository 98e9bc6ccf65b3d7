#pragma once
// GGUF v2 and v3, reading and writing. Source: the GGUF specification of the ggml project (docs/gguf.md).
//
// Reading maps the file; every count, offset, length and string is checked against its size before use, and the
// metadata is bounded (EW_GGUF_*_MAX). Views point into the mapping and live as long as the ew_gguf. Keys and
// tensor names are UTF-8 without control characters; other strings may hold any bytes.
//
// A model split over files (NAME-00001-of-00003.gguf, ...) is opened by any of them: metadata comes from the
// first, and the tensors of all of them stand in one list.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/map.h"
#include "format/dtype.h"
#include "format/mapfile.h"
#include "format/tensors.h"

#define EW_GGUF_VALUES_MAX 65536u  // real files have some 50 metadata values
#define EW_GGUF_TENSORS_MAX 65536u // and some 2,000 tensors
#define EW_GGUF_DIMS_MAX 4u
#define EW_GGUF_KEY_MAX 65535u     // the specification's 2^16-1
#define EW_GGUF_NAME_MAX 256u      // the specification says 64; files with longer names are about
#define EW_GGUF_ALIGNMENT_MAX (1u << 20)
#define EW_GGUF_SPLITS_MAX 1024u

enum ew_gguf_type {
    EW_GGUF_U8, EW_GGUF_I8, EW_GGUF_U16, EW_GGUF_I16, EW_GGUF_U32, EW_GGUF_I32, EW_GGUF_F32, EW_GGUF_BOOL,
    EW_GGUF_STRING, EW_GGUF_ARRAY, EW_GGUF_U64, EW_GGUF_I64, EW_GGUF_F64,
};

struct ew_gguf_value {
    struct ew_str key;
    enum ew_gguf_type type;      // for ARRAY: element_type and count
    enum ew_gguf_type element_type;
    uint64_t count;              // 1 for a scalar
    const unsigned char *data;   // first element in the file, unaligned; strings are u64 length + bytes
    uint64_t bytes;              // of all elements
};

struct ew_gguf {
    struct ew_mapfile file;
    uint32_t version;
    uint32_t alignment;
    uint64_t n_values;
    struct ew_gguf_value *values;
    struct ew_tensors tensors;   // all tensors, data pointing into the mapping; `file` is 0, or i for parts[i - 1]
    uint64_t data_offset;
    struct ew_gguf *parts;       // the further files of a split model
    uint32_t n_parts;
    struct ew_map by_key;
    struct ew_arena arena;
};

int ew_gguf_open(struct ew_gguf *gguf, const char *path, struct ew_error *err) EW_MUST_CHECK;
// The same over bytes in memory (fuzzing, tests); they must outlive gguf. A part of a split model is refused.
int ew_gguf_parse(struct ew_gguf *gguf, const unsigned char *bytes, uint64_t size, struct ew_error *err) EW_MUST_CHECK;
void ew_gguf_close(struct ew_gguf *gguf); // also of a zero-filled one, and harmless after a failed open

const struct ew_gguf_value *ew_gguf_find(const struct ew_gguf *gguf, const char *key); // NULL where absent
// Typed getters with a default for absent or wrong-typed keys. Any integer type (range-checked) converts, to a
// number also.
int64_t ew_gguf_int(const struct ew_gguf *gguf, const char *key, int64_t fallback);
double ew_gguf_number(const struct ew_gguf *gguf, const char *key, double fallback);
bool ew_gguf_bool(const struct ew_gguf *gguf, const char *key, bool fallback);
struct ew_str ew_gguf_str(const struct ew_gguf *gguf, const char *key, const char *fallback);
// Array access. Element i of a numeric array; false out of range or wrong type.
bool ew_gguf_array_int(const struct ew_gguf_value *array, uint64_t i, int64_t *out);
bool ew_gguf_array_number(const struct ew_gguf_value *array, uint64_t i, double *out);
// Strings have no index: walk them. *cursor starts at 0. false at the end.
bool ew_gguf_array_next_str(const struct ew_gguf_value *array, uint64_t *cursor, struct ew_str *out);

// Writing: metadata first, then all tensor declarations, then their data in the same order, streamed to a temporary
// file that is renamed at the end: a full disk or Ctrl-C (the caller abandons) leaves no half-written model behind.
// Version 3, alignment 32. A key or name that is written twice, or longer than readers accept, is an error.
struct ew_gguf_writer;
int ew_gguf_writer_create(const char *path, struct ew_gguf_writer **out, struct ew_error *err) EW_MUST_CHECK;
// copied from a file; general.alignment is left out
int ew_gguf_write_value(struct ew_gguf_writer *w, const struct ew_gguf_value *value,
                        struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_str(struct ew_gguf_writer *w, const char *key, struct ew_str text,
                      struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_u32(struct ew_gguf_writer *w, const char *key, uint32_t value, struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_f32(struct ew_gguf_writer *w, const char *key, float value, struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_bool(struct ew_gguf_writer *w, const char *key, bool value, struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_strs(struct ew_gguf_writer *w, const char *key, const struct ew_str *items, uint64_t n,
                       struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_i32s(struct ew_gguf_writer *w, const char *key, const int32_t *items, uint64_t n,
                       struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_write_f32s(struct ew_gguf_writer *w, const char *key, const float *items, uint64_t n,
                       struct ew_error *err) EW_MUST_CHECK;
// shape slowest first, as in ew_tensor
int ew_gguf_declare_tensor(struct ew_gguf_writer *w, struct ew_str name, enum ew_dtype dtype, uint32_t n_dims,
                           const uint64_t *shape, struct ew_error *err) EW_MUST_CHECK;
// of the current tensor; advances by itself
int ew_gguf_write_data(struct ew_gguf_writer *w, const void *bytes, uint64_t len, struct ew_error *err) EW_MUST_CHECK;
int ew_gguf_writer_finish(struct ew_gguf_writer *w, struct ew_error *err) EW_MUST_CHECK; // frees w, also on failure
void ew_gguf_writer_abandon(struct ew_gguf_writer *w);
