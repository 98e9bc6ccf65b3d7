#pragma once
// eval self: the fast kernels against the reference kernels, on this model's own shapes.
//
// The reference runs first, and what each op computed is kept. Then the fast backend computes the same steps; after
// each op its rows are compared and replaced by the reference's, so that each op is judged on equal inputs and errors
// do not add up. Last, the fast backend runs once more as it would for users (fused, untouched), and its logits are
// compared. Some prompts make a model amplify every rounding, with random weights above all; so the reference also runs
// with disturbed embeddings, and where its own logits move by more than these did, as much more is allowed. One backend
// is loaded at a time.

#include "engine/engine.h"

#define EW_SELF_ROWS_MAX 128

struct ew_self_row { // ops of one kind and name, over all layers
    char name[64];   // "linear ffn_down", "attention"
    enum ew_op_kind kind;
    uint32_t n_compared;
    double rel, max_abs; // the worst, and of which layer (UINT16_MAX: outside layers)
    uint32_t layer;
    double tolerance;
};

struct ew_self {
    bool pass;
    enum ew_arith arith;
    char backend_text[128];
    uint32_t n_tokens;                   // of all steps
    double logits_rel, logits_tolerance; // of the row that comes nearest to what it is allowed
    double amplification;                // of that row, at least 1
    uint32_t n_rows;
    struct ew_self_row rows[EW_SELF_ROWS_MAX];
};

// Of the config, sizes are set here, and kernels: what is asked for is compared with EW_KERNELS_REFERENCE.
int ew_eval_self(const struct ew_model *model, const struct ew_engine_config *config, struct ew_self *out,
                 struct ew_error *err) EW_MUST_CHECK;
