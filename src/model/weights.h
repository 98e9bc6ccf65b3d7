#pragma once
// The weights of a file, found by canonical name: which tensor, which rows of it, of the right shape and type.

#include "model/builder.h"
#include "model/family.h"
#include "model/quantised.h"

struct ew_binder {
    const struct ew_family *family;
    enum ew_family_format format;
    const struct ew_tensors *tensors;
    const struct ew_yaml *root;          // of the names in this file, or NULL
    uint32_t storage;                    // of the family in this format
    struct ew_quantised quantised;       // how the file's matrices are; set after init
    struct ew_arena *arena;              // of what the sources need; lives as long as the program
    bool *used;                          // [tensors->count]
    uint64_t used_bytes;                 // as stored, each tensor once
    uint64_t type_bytes[EW_DTYPE_COUNT]; // of matrices
};

int ew_binder_init(struct ew_binder *binder, const struct ew_family *family, enum ew_family_format format,
                   const struct ew_tensors *tensors, struct ew_arena *arena, struct ew_error *err) EW_MUST_CHECK;
void ew_binder_fini(struct ew_binder *binder);
struct ew_weight_finder ew_binder_finder(struct ew_binder *binder);
// Says at debug level which tensors nothing asked for.
void ew_binder_log_unused(const struct ew_binder *binder);
enum ew_dtype ew_binder_main_type(const struct ew_binder *binder); // that most bytes of matrices have
