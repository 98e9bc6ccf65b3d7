#pragma once
// Quantised checkpoints as hubs publish them: AWQ and GPTQ in 4 (and GPTQ in 8) bits, fp8 with scales of tensors,
// channels or blocks, compressed-tensors' int8 and packed 4 bits, NVFP4 in two layouts, gpt-oss's MXFP4.
//
// Each weight is read as a block type that holds it: of GGUF's q4_0, q5_0 (4 bits with zero points, in groups that 64
// does not divide), q8_0, mxfp4; and q4_zero, fp8 and nvfp4_s, which are no file's. Codes stay what they are; scales of
// integers become f16. What no block type holds (groups that are no multiples of a block) is read as f16, rounded once;
// GPTQ with activation order, whose products would lose more by that, as f32, and for backends that can take
// activations in its order as it would be without (ew_weight_source.ordered).

#include "format/json.h"
#include "format/tensors.h"
#include "kernel/ops.h"

enum ew_quantised_method {
    EW_QUANTISED_NOT,
    EW_QUANTISED_AWQ,    // arXiv:2306.00978; the packing of AutoAWQ's "gemm" version
    EW_QUANTISED_GPTQ,   // arXiv:2210.17323; the packing of AutoGPTQ
    EW_QUANTISED_SCALED, // .weight or .weight_packed with .weight_scale beside it: fp8, compressed-tensors, modelopt
    EW_QUANTISED_MXFP4,  // _blocks and _scales (OCP Microscaling Formats, 1.0)
};

struct ew_quantised {
    enum ew_quantised_method method;
    uint32_t bits, group;        // group 0: one for a whole row
    bool is_symmetric, is_float; // float: codes are small floats
    bool zero_is_less_one;       // GPTQ's first format stores zero points less one
};

// From config.json; NOT where it says nothing. EW_ERR_UNSUPPORTED names methods and widths that are not read.
int ew_quantised_read(const struct ew_json *config, struct ew_quantised *out, struct ew_error *err) EW_MUST_CHECK;

// What most matrices of the layers are read as, as far as the configuration tells: for sizing. `fallback` where it says
// nothing about this one.
enum ew_dtype ew_quantised_type(const struct ew_quantised *quantised, bool is_expert, enum ew_dtype fallback);

// The tensors that make one weight; NULL where there is none.
struct ew_quantised_parts {
    const struct ew_tensor *codes, *scales, *zeros, *order, *global;
    bool divides; // by the global scale, instead of multiplying
};
// Suffixes of what parts are called; each ends with NULL.
struct ew_quantised_names {
    const char *codes[3], *scales[3], *zeros[2], *order[2], *multiplied[2], *divided[2];
};
const struct ew_quantised_names *ew_quantised_names(enum ew_quantised_method method);

// Rows [first, first + rows) of the weight, or every `step`-th one from there. A stack of n_parts experts has each
// expert's rows so chosen out of its whole_rows; n_parts is 1 otherwise.
struct ew_quantised_want {
    const char *name; // for messages
    uint64_t rows, cols, whole_rows, first, step;
    uint32_t n_parts;
};
int ew_quantised_bind(const struct ew_quantised *quantised, const struct ew_quantised_parts *parts,
                      const struct ew_quantised_want *want, struct ew_arena *arena, struct ew_weight_source *out,
                      struct ew_error *err) EW_MUST_CHECK;
