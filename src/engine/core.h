#pragma once
// A model loaded and ready to step: backend, caches, sequences. What the engine schedules on, and what the
// evaluations, which need every row of logits, use by themselves. Engine thread only.

#include "engine/fit.h"
#include "engine/prefix.h"
#include "engine/step.h"

struct ew_core {
    const struct ew_model *model;
    struct ew_engine_config config; // complete
    struct ew_backend *backend;
    struct ew_fit fit;
    struct ew_cache cache;
    struct ew_prefix *prefix; // NULL: no reuse
    struct ew_sequence *seqs; // [fit.n_resident]
    struct ew_step step;
    double load_s;
};

// n_logits_max 0: one row a sequence, or what pooling takes. The model must outlive it.
int ew_core_init(struct ew_core *core, const struct ew_model *model, const struct ew_engine_config *config,
                 uint32_t n_logits_max, struct ew_error *err) EW_MUST_CHECK;
// The same on a backend that was made before, which it takes.
int ew_core_init_on(struct ew_core *core, const struct ew_model *model, const struct ew_engine_config *config,
                    struct ew_backend *backend, uint32_t n_logits_max, struct ew_error *err) EW_MUST_CHECK;
void ew_core_fini(struct ew_core *core);
