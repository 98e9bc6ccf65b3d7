#pragma once
// Mixtures of experts. The rows of pairs (a token and one of its experts) stand in the order of experts, and among
// those of one in the order of tokens; which these are is known on the GPU alone.

#include "kernel/cuda/cuda_backend.h"

// Bytes of the order of pairs; `pairs` gets its addresses where the memory at `base` is meant.
uint64_t ew_cuda_pairs_place(const struct ew_cpu_plan *plan, uint64_t n_tokens_max, uint64_t base,
                             struct ew_cuda_pairs *pairs);
// Rows of 8-bit activations that products of experts want.
uint64_t ew_cuda_experts_q8_rows(const struct ew_cpu_plan *plan, uint64_t n_tokens_max);
// Whether the products of a step's pairs go to the tensor cores, which take activations as they are.
bool ew_cuda_experts_take_tiles(const struct ew_cuda_backend *backend, const struct ew_op *op, uint32_t n_tokens);
// ROUTE, DISPATCH, EXPERTS and COMBINE.
int ew_cuda_experts_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                       struct ew_error *err) EW_MUST_CHECK;
// What ROUTE chose, by expert.
int ew_cuda_experts_sort(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_tokens,
                         struct ew_error *err) EW_MUST_CHECK;

// cuda_grouped.c: products of experts with their rows, of up to EW_FEW_TOKENS_MAX tokens. After the workspace has its
// addresses; then whether a unit begins with a step, and that.
int ew_cuda_grouped_plan(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
bool ew_cuda_grouped_takes(const struct ew_cuda_backend *backend, uint32_t i, uint32_t n_tokens);
int ew_cuda_grouped(struct ew_cuda_backend *backend, const struct ew_cuda_grouped *grouped, uint32_t n_tokens,
                    struct ew_error *err) EW_MUST_CHECK;

// cuda_chosen.c: all of a layer's experts of one token. After the workspace has its addresses.
int ew_cuda_chosen_plan(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_chosen_launch(struct ew_cuda_backend *backend, struct ew_cuda_chosen *chosen,
                          struct ew_error *err) EW_MUST_CHECK;

// cuda_scored.c: products that make the scores of the experts behind them.
uint64_t ew_cuda_scored_router_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program);
// Once products and experts are planned and weights are there.
int ew_cuda_scored_plan(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
// Sums are zero between layers, but not where a product was done without its experts, or these alone.
int ew_cuda_scored_clear(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
// Around a trace: the sums become what the steps of the program would have left, and that becomes sums again.
int ew_cuda_scored_show(struct ew_cuda_backend *backend, const struct ew_cuda_scored *scored,
                        struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_scored_take(struct ew_cuda_backend *backend, const struct ew_cuda_scored *scored,
                        struct ew_error *err) EW_MUST_CHECK;
