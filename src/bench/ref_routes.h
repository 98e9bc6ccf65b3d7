#pragma once
// The experts that the reference kernels choose for each token of the references. A choice is no continuous function:
// where two experts are nearly tied, rounding takes the other one, and the logits of that token and of those behind it
// are of another model's. Comparisons of arithmetic give such tokens the reference's experts, and count them.

#include "bench/refs.h"
#include "engine/core.h"

struct ew_routes {
    const struct ew_refs *refs;
    const struct ew_program *program;
    uint32_t n_routes, n_active, n_experts; // ROUTEs of the program; the most of any of them
    float *chosen[EW_REFS_MAX]; // [n_tokens, n_routes, 2 * n_active] as EW_OP_ROUTE wrote them
    float *logits[EW_REFS_MAX]; // [n_tokens, n_routes, n_experts] what it chose by
    double tolerance;           // of the logits, relative to their norm in the sequence, where a choice differs
    // of the sequence since it was started: choices that differ where the logits do not, and where they do
    uint32_t n_ties[EW_REFS_MAX], n_wrong[EW_REFS_MAX];

    // of the step that runs
    bool is_recording;
    uint32_t n_rows;
    uint32_t *row_seq, *row_token; // [n_rows_max]
    float *now;                    // [n_rows_max, n_experts] logits of the route at hand
};

bool ew_routes_has(const struct ew_program *program);
// Runs the references' tokens, continuations included, by the reference kernels.
int ew_routes_record(struct ew_routes *routes, const struct ew_model *model, const struct ew_engine_config *config,
                     const struct ew_refs *refs, struct ew_error *err) EW_MUST_CHECK;
void ew_routes_fini(struct ew_routes *routes); // also of one that could not be recorded
// Which tokens the next step has; before it runs. owner: of each work the sequence.
void ew_routes_step(struct ew_routes *routes, const struct ew_work *work, const uint32_t *owner, uint32_t n_work);
// An ew_trace_fn: replaces other choices by the recorded ones.
void ew_routes_trace(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                     uint32_t width);
