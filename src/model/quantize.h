#pragma once
// Converting and quantising a model to a GGUF file, row block by row block: memory stays small, whatever the
// model's size.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"
#include "format/dtype.h"
#include "format/tensors.h"

// What became of one tensor.
struct ew_quantize_tensor {
    struct ew_str name;
    uint32_t n_dims;
    const uint64_t *shape; // slowest first
    enum ew_dtype from, to;
    bool fell_back;        // `to` is not what was asked for: blocks of that do not divide the rows
    uint64_t bytes;        // as written
    double rms_error;      // root mean square of the error, relative to that of the values; 0 where bytes were copied
    double max_error;      // largest absolute error
    uint64_t n_not_finite; // values that are NaN or infinite
};

struct ew_quantize_options {
    const char *in, *out; // model directory or GGUF file; GGUF file
    const char *type;     // one of ew_quantize_types
    const char *pre_name; // GGUF's name of the pre-tokeniser; NULL: recognised
    bool overwrite;
    uint32_t n_threads;
    bool (*interrupted)(void);                                             // polled between blocks; NULL: never
    void (*on_tensor)(void *ctx, const struct ew_quantize_tensor *tensor); // in file order; NULL: nobody cares
    void *ctx;
};

struct ew_quantize_summary {
    uint64_t n_tensors, n_fell_back, n_not_finite;
    uint64_t bytes_in, bytes_out; // of tensors
};

extern const char ew_quantize_types[]; // "q8_0|q4_0|..."

// On failure, or when interrupted (EW_ERR_CANCELLED), nothing is left behind and an older `out` stays as it was.
int ew_quantize(const struct ew_quantize_options *options, struct ew_quantize_summary *summary,
                struct ew_error *err) EW_MUST_CHECK;
