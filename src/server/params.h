#pragma once
// The body of a request, read and checked field by field against one table. A field that edgewise knows and cannot
// honour is refused by name, an unknown one is refused too: what a client asks for is never ignored, except for notes
// to itself (metadata, user and the like; the table says which).

#include "base/alloc.h"
#include "engine/engine.h"
#include "format/json.h"
#include "server/fault.h"

enum ew_params_route { EW_PARAMS_CHAT = 1, EW_PARAMS_TEXT = 2, EW_PARAMS_BOTH = 3 };

#define EW_PARAMS_CHOICES_MAX 32 // n, and n times the prompts of one request
#define EW_PARAMS_STOPS_MAX 16
#define EW_PARAMS_BIASES_MAX 300 // as OpenAI has it
#define EW_PARAMS_LOGPROBS_MAX 20
#define EW_PARAMS_DEPTH_MAX 64     // of a body
#define EW_PARAMS_ARENA_MAX ((size_t)128 << 20)

// Pointers lead into the arena that the body was parsed into.
struct ew_params {
    struct ew_str model, user; // ptr NULL: not given
    const struct ew_json *messages, *prompt, *tools, *template_vars;
    bool stream, include_usage, echo, ignore_eos, no_tools, one_call;
    bool logprobs;
    int64_t seed, max_tokens, max_completion_tokens, top_k;       // INT64_MIN: not given
    double temperature, top_p, min_p, repetition_penalty;         // NAN: not given
    int64_t n, min_tokens, priority, top_logprobs;
    double presence_penalty, frequency_penalty;
    const struct ew_str *stop; // [n_stop]
    uint32_t n_stop;
    const struct ew_logit_bias *bias; // [n_bias]
    uint32_t n_bias;
};

// Parses a body strictly: JSON as RFC 8259 has it, valid Unicode, an object, no deeper than EW_PARAMS_DEPTH_MAX.
int ew_params_parse(struct ew_arena *arena, struct ew_str body, const struct ew_json **out,
                    struct ew_fault *fault) EW_MUST_CHECK;
int ew_params_read(struct ew_params *params, enum ew_params_route route, const struct ew_json *body,
                   struct ew_arena *arena, struct ew_fault *fault) EW_MUST_CHECK;
// The engine's request as far as it follows from the parameters and the model's defaults: limits, sampling, logprobs.
// The seed is random unless given.
void ew_params_request(const struct ew_params *params, const struct ew_model *model, struct ew_request *request);
