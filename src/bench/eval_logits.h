#pragma once
// eval logits: a model against reference logits and greedy continuations, by every way in which the engine may feed a
// prompt.

#include "engine/engine.h"

enum ew_eval_mode { EW_EVAL_WHOLE, EW_EVAL_CHUNK5, EW_EVAL_TOKEN, EW_EVAL_BATCH, EW_EVAL_ALL };

struct ew_eval_logits_options {
    const char *ref;  // a safetensors file
    bool logits_only; // no greedy continuations
    double tolerance; // of rel; 0: that of the arithmetic class that runs
    enum ew_eval_mode mode;
};

struct ew_eval_case {              // one sequence, fed in one way
    char name[32];                 // "0/chunk5"
    double max_abs, rel;           // of the logits of all positions
    bool has_greedy, greedy_equal; // equal to the end
    uint32_t near_ties;            // 1: it departs at a near-tie, which is no failure
    // Where rel was too large: choices of experts that differ where what they are made by is within the tolerance, and
    // rel with the reference's experts there, which is what counts then; greedy and near_ties are of that run.
    uint32_t route_ties;
    double rel_aligned;
    bool pass;
};

#define EW_EVAL_CASES_MAX 32

struct ew_eval_logits {
    bool pass;
    enum ew_arith arith;
    double tolerance, max_abs, rel; // worst of the cases
    uint32_t n_cases;
    struct ew_eval_case cases[EW_EVAL_CASES_MAX];
};

// Sizes of steps and batches come from the references; of the config the backend, the budget, the caches' type and
// block (default 16 tokens, so that the fixtures' sequences cross blocks) are used.
int ew_eval_logits(const struct ew_model *model, const struct ew_engine_config *config,
                   const struct ew_eval_logits_options *options, struct ew_eval_logits *out,
                   struct ew_error *err) EW_MUST_CHECK;
