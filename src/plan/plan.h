#pragma once
// What fits on a device and how fast it can possibly be, before a byte is loaded.
//
// The bounds are physical: a token cannot be made faster than the memory delivers what it has to read, nor a prompt
// read faster than the arithmetic allows. Expectations take the shares that good engines reach (docs/plan.md).

#include "base/buf.h"
#include "format/profile.h"
#include "plan/outline.h"

struct ew_plan_request {
    struct ew_outline model;
    const struct ew_profile *profile;
    bool on_this_machine;  // memory from the machine's facts rather than from the profile
    double memory_mib;     // there is, for everybody; 0: not known
    double bandwidth_gb_s; // 0: not known
    double flops; // dense multiply-adds x 2 a second in the type that the weights are computed in; 0: not known
    double disk_gb_s;
    double reserve_mib; // for others
    double cache_fraction; // of what weights and workspace leave, as `serve` will take it; 0: all
    uint32_t context, sessions;
    char kv[8];                // type of the caches
    double kv_bits;            // of an element
    bool kv_scaled;            // 8-bit types carry one f16 scale a token and head
    uint32_t prompt_tokens;    // of which TTFT is told
    struct ew_targets targets; // to be judged; 0: none
    double load_target_s;
    uint32_t width_target;         // of embeddings, as somebody claims; 0: nobody does
    struct ew_outline_sizes sizes; // where the engine can tell them, otherwise estimated
};

struct ew_plan {
    double budget_mib; // what the model and its caches may use
    double weight_mib, kv_token_bytes, session_mib, cache_mib, workspace_mib, total_mib;
    bool fits;
    uint32_t context_max;                           // for the asked sessions, 0: none fits
    uint32_t sessions_max;                          // at the asked context
    double decode_tok_s_max, decode_tok_s_expected; // one session, empty context
    double decode_full_tok_s_max;                   // one session at the end of its context
    double batch_tok_s_max;                         // all sessions together
    double prefill_tok_s_max, prefill_tok_s_expected;
    double ttft_ms_min, ttft_ms_expected; // for prompt_tokens
    double load_s_min;
    double joules_per_token; // at the device's power; 0: not known
};

void ew_plan_make(const struct ew_plan_request *request, struct ew_plan *plan);
void ew_plan_text(const struct ew_plan_request *request, const struct ew_plan *plan, struct ew_buf *out);
void ew_plan_json(const struct ew_plan_request *request, const struct ew_plan *plan, struct ew_buf *out);
// The settings with which the plan holds, as a device profile in YAML for `serve --profile FILE`.
void ew_plan_serving_profile(const struct ew_plan_request *request, const struct ew_plan *plan, struct ew_buf *out);

// Common sizes of models on the request's device, each in a few types of weights, in four classes; the request's own
// model is not looked at.
void ew_plan_table_text(const struct ew_plan_request *request, struct ew_buf *out);
void ew_plan_table_json(const struct ew_plan_request *request, struct ew_buf *out);

// False when something does not fit or a target is out of reach.
bool ew_plan_holds(const struct ew_plan_request *request, const struct ew_plan *plan);
