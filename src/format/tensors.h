#pragma once
// A set of named tensors as they stand in files: the view that GGUF and safetensors share.

#include <stdint.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/map.h"
#include "base/str.h"
#include "format/dtype.h"

#define EW_TENSOR_DIMS_MAX 5       // a Conv3d weight, the largest that models have
#define EW_TENSOR_NAME_MAX 512     // bytes; the longest names of real checkpoints have some 100
#define EW_TENSORS_MAX (1u << 20)  // the largest mixtures of experts have some 150,000 in their hub form

struct ew_tensor {
    struct ew_str name;
    enum ew_dtype dtype;
    uint32_t n_dims;                    // 0 for a scalar
    // slowest first, as in PyTorch: a linear weight is [rows, cols]; unused ones are 1
    uint64_t shape[EW_TENSOR_DIMS_MAX];
    const unsigned char *data;          // contiguous, block-encoded along the last dimension; maybe unaligned
    uint64_t bytes;                     // checked against shape, dtype and file size
    uint32_t file;                      // index of the shard it is in
};

// A tensor that the file holds and edgewise cannot: an error only for those who ask for it.
struct ew_tensor_refused {
    struct ew_str name;
    const char *why; // "has the unknown type F6_E2M3"
};

struct ew_tensors {
    struct ew_tensor *list;
    uint64_t count;
    uint64_t bytes;     // sum over the list
    struct ew_map by_name; // use ew_tensors_find: it knows the refused ones too
    struct ew_tensor_refused *refused;
    uint64_t n_refused;
};

const struct ew_tensor *ew_tensors_find(const struct ew_tensors *set, struct ew_str name); // NULL where absent
// The same, and where it is absent an error that says whether it is missing or was refused, and why.
int ew_tensors_need(const struct ew_tensors *set, struct ew_str name, const struct ew_tensor **out,
                    struct ew_error *err) EW_MUST_CHECK;

// For the readers of file formats.
//
// Fails for bytes that no tensor or metadata key is called by: none, too many, not UTF-8, control characters.
// Messages may quote names that passed.
int ew_tensor_name_check(struct ew_str name, size_t max, struct ew_error *err) EW_MUST_CHECK;
// Bytes of all elements. false on overflow, and where the block size does not divide the last dimension.
bool ew_tensor_size(enum ew_dtype dtype, uint32_t n_dims, const uint64_t *shape, uint64_t *bytes);
// Fills by_name and bytes from the lists. Fails where a name is repeated or two tensors overlap.
int ew_tensors_index(struct ew_tensors *set, struct ew_error *err) EW_MUST_CHECK;
void ew_tensors_fini(struct ew_tensors *set); // the index only: the lists belong to whoever made them
