#pragma once
// A model as GGUF would hold it: names, shapes and contents of the tensors, and the metadata, from a Hugging
// Face directory or from another GGUF file. Nothing is computed before it is asked for; tensor data stays in the
// mapped input.
//
// From a Hugging Face directory the family tables give the names both ways, and the shape gives the metadata.
// What GGUF cannot say about a model is found by reading the result back (ew_convert_check), not by a list of
// what is known to work.

#include "base/alloc.h"
#include "format/gguf.h"
#include "format/modelfile.h"
#include "model/family.h"
#include "model/shape.h"

struct ew_convert_tensor {
    struct ew_str name; // GGUF's
    uint32_t n_dims;
    uint64_t shape[EW_TENSOR_DIMS_MAX]; // slowest first
    uint64_t rows, cols;                // a vector is a column, so that both can be permuted by rows
    enum ew_dtype dtype;                // of the source
    uint32_t n_parts;                   // equal tensors of the input that make this one, one after the other
    const struct ew_tensor **parts;
    const float *values; // n_parts 0: not in the input, made from its configuration
    // The first rope_rows of each head_rows rows change from halves to pairs; 0: none.
    uint32_t head_rows, rope_rows;
    // n_groups > 1: the source has the rows of queries, key and value group by group; GGUF has all queries first.
    uint32_t n_groups, group_rows[3];
    // part_rows > 0: elements lie otherwise in the source. Distances, in elements, from part to part, from one of a
    // part's part_rows rows to the next, and within a row; the first one's place.
    uint64_t part_rows, part_stride, row_stride, col_stride, first;
    // tile_size > 0: from tile_first on, rows (or elements of each row) belong to tile_heads heads of a state, of that
    // size, which the source has group by group; GGUF has the first head of every group, then the second, ...
    uint32_t tile_size, tile_first, tile_heads, tile_groups;
    bool tile_columns;
    float added; // to every value
    bool is_log; // the source has ln(-value)
};

struct ew_convert {
    struct ew_modelfile file;
    struct ew_arena arena;
    struct ew_families *families; // Hugging Face only, as are the next two
    const struct ew_family *family;
    const struct ew_yaml *root; // of the input's names, see ew_family_root
    struct ew_shape *shape;
    struct ew_pooling pooling; // Hugging Face only
    struct ew_str arch; // GGUF's architecture
    uint32_t n_tensors;
    struct ew_convert_tensor *tensors;
};

int ew_convert_open(struct ew_convert *convert, const char *model, struct ew_error *err) EW_MUST_CHECK;
void ew_convert_close(struct ew_convert *convert);

// All metadata but general.file_type and general.quantization_version. pre_name overrides the name of the
// pre-tokeniser; NULL: it is recognised.
int ew_convert_write_metadata(const struct ew_convert *convert, const char *pre_name, struct ew_gguf_writer *w,
                              struct ew_error *err) EW_MUST_CHECK;
// n_rows rows, decoded; any thread.
void ew_convert_read(const struct ew_convert_tensor *tensor, uint64_t row, uint64_t n_rows, float *out);
// The N of "blk.N.attn_q.weight"; false for tensors outside layers.
bool ew_convert_layer(struct ew_str name, uint32_t *layer);
// Whether the rows are the input's bytes as they stand.
bool ew_convert_is_verbatim(const struct ew_convert_tensor *tensor);
// Whether the finished file describes the model that came in: EW_ERR_UNSUPPORTED names what GGUF could not carry.
int ew_convert_check(const struct ew_convert *convert, const char *path, struct ew_error *err) EW_MUST_CHECK;

// The parts of ew_convert_write_metadata that only Hugging Face models need (convert_shape.c, convert_vocab.c).
int ew_convert_write_shape(const struct ew_convert *convert, struct ew_gguf_writer *w,
                           struct ew_error *err) EW_MUST_CHECK;
int ew_convert_write_vocab(const struct ew_convert *convert, const char *pre_name, struct ew_gguf_writer *w,
                           struct ew_error *err) EW_MUST_CHECK;
// Divisors of the rotary frequencies, which GGUF holds as tensors. Adds at most two to convert->tensors.
int ew_convert_add_rope(struct ew_convert *convert, struct ew_error *err) EW_MUST_CHECK;
