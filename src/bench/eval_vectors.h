#pragma once
// eval logits of a model that makes vectors: final hidden states of all tokens and the pooled vectors, each text alone
// and all in one step.

#include "bench/eval_logits.h"
#include "bench/refs.h"
#include "engine/core.h"

int ew_eval_vectors(struct ew_core *core, const struct ew_refs *refs, const struct ew_eval_logits_options *options,
                    struct ew_eval_logits *out, struct ew_error *err) EW_MUST_CHECK;
