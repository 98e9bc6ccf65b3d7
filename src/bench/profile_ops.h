#pragma once
// --profile-ops: what the kinds of launches of a step cost, beside the limits that the same run measures.

#include "engine/core.h"

struct ew_profile_options {
    uint32_t batch, depth; // a step in which so many sequences decode behind so many tokens; depth 0: behind one
    uint32_t n_prompt;     // and one with so many tokens of a prompt, as far as a step takes them
    void (*begin)(void *ctx, bool is_prompt, uint32_t n_tokens); // of each of the two
    ew_profile_fn row;
    void *ctx;
};

// Uses the core's sequences, which must be idle, and leaves them empty. EW_ERR_UNSUPPORTED where the backend does not
// know what its launches cost.
int ew_bench_profile(struct ew_core *core, const struct ew_profile_options *options,
                     struct ew_error *err) EW_MUST_CHECK;
