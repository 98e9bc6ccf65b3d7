#pragma once
// A set of named tensors as they stand in files: the view that GGUF and safetensors share.

#include <stdint.h>

#include "base/map.h"
#include "base/str.h"
#include "format/dtype.h"

#define EW_TENSOR_DIMS_MAX 4

struct ew_tensor {
    struct ew_str name;
    enum ew_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[EW_TENSOR_DIMS_MAX]; // slowest first, as in PyTorch: a linear weight is [rows, cols]; unused ones are 1
    const unsigned char *data;          // contiguous, block-encoded along the last dimension; maybe unaligned
    uint64_t bytes;                     // checked against shape, dtype and file size
    uint32_t file;                      // index of the shard it is in
};

struct ew_tensors {
    struct ew_tensor *list;
    uint64_t count;
    uint64_t bytes;     // sum over the list
    struct ew_map by_name;
};

const struct ew_tensor *ew_tensors_find(const struct ew_tensors *set, struct ew_str name); // NULL where absent
