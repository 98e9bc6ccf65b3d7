#pragma once
// The self-test of a backend: a model in small (model/miniature.h) is computed by the backend, with the kernels that it
// loaded for the model and all that it fuses, and by plain C on the CPU. What each launch leaves is compared and then
// replaced by what the reference has, so that every kernel works on equal inputs and a wrong one is found by its name.

#include "engine/engine.h"

#define EW_PROOF_ROWS_MAX 256

struct ew_proof_row { // of the kernels that are launched together for some ops
    char kernels[120]; // "few_pack few_i8_1"
    char op[48];       // the last one that they do: "linear ffn_down"
    uint32_t n_cases;
    uint32_t n_tokens; // of the step with the worst case ...
    double error;      // ... its relative error in the norm, or the share of tokens that were chosen wrongly ...
    double allowed;    // ... and what is right
};

struct ew_proof {
    struct ew_proof_row rows[EW_PROOF_ROWS_MAX]; // in the order in which they were first met
    uint32_t n_rows;
    double seconds;
};

// Rows with an error over what is allowed make it an EW_ERR_MISMATCH, which names the first of them. The backend has
// loaded the model and is not prepared yet; with the configuration's limits, steps of every size that it will see are
// tried. EW_ERR_UNSUPPORTED where the backend cannot show what it computes.
int ew_prove(struct ew_backend *backend, const struct ew_model *model, const struct ew_engine_config *config,
             uint64_t seed, struct ew_proof *out, struct ew_error *err) EW_MUST_CHECK;
// The same for who wants nothing but to be sure. Near-ties among experts or tokens come with the numbers drawn, so a
// failure counts where others fail, too. 0 also where a backend cannot be tested or memory for it is short: that is
// logged.
int ew_prove_or_refuse(struct ew_backend *backend, const struct ew_model *model,
                       const struct ew_engine_config *config, struct ew_error *err) EW_MUST_CHECK;
