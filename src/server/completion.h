#pragma once
// One request for text while it is answered: its choices, each an engine request, and what has been said so far. I/O
// thread only.
//
// A completion lives until the engine has finished all its requests, also when its client has left long before.

#include "server/api_state.h"
#include "text/reasoning.h"

#define EW_ANSWER_BYTES_MAX ((size_t)256 << 20) // of a whole reply

struct ew_choice {
    struct ew_choice *next_in_bucket;
    struct ew_completion *completion;
    uint64_t request; // the engine's id
    uint32_t index;
    bool is_open; // the engine has not finished it
    bool is_deferred;
    bool is_cut;  // ended by us: the answer is whole
    enum ew_finish finish;
    uint32_t n_prompt, n_cached, n_new;
    double newest_s; // when the newest token was chosen
    struct ew_reasoning split;
    struct ew_toolcalls calls;
    // What has been said: all of it for a whole reply, else what has not been written yet.
    struct ew_buf content, reasoning, pieces; // pieces: of the text, before calls are taken out
    struct ew_buf tool_calls;                 // the inside of the array
    struct ew_buf arguments;                  // of the newest call, not yet in tool_calls
    bool call_is_open;
    struct ew_buf logprobs[4]; // insides of arrays: chat uses the first, completions tokens, logprobs, tops, offsets
    size_t text_offset;        // completions: bytes of the tokens so far
    bool role_written;
};

struct ew_completion {
    struct ew_completion *next, **link; // of all
    struct ew_api *api;
    struct ew_exchange *x; // NULL: the reply is over, or its client has left
    enum ew_params_route route;
    struct ew_arena arena; // the body and what leads into it
    struct ew_params params;
    char id[40];
    int64_t created;
    double started_s;
    double joules; // its share of the box's, where that can be measured
    bool has_first, is_streaming; // is_streaming: the head of the reply has been written
    uint32_t n_choices, n_open, n_min_tokens;
    uint32_t n_deferred;        // choices not yet submitted: the first of their prompt is still computing it
    struct ew_request *prompts; // [n_choices / params.n] in the arena, ids too
    struct ew_choice choices[];
};

// ---- completion.c ----

// NULL: no memory. The caller fills arena, params and n_choices.
struct ew_completion *ew_completion_new(struct ew_api *api, struct ew_exchange *x, enum ew_params_route route,
                                        uint32_t n_choices);
void ew_completion_free(struct ew_completion *completion);
// prompt_tail: the rendered prompt, or its end.
void ew_choice_init(struct ew_choice *choice, struct ew_completion *completion, uint32_t index,
                    struct ew_str prompt_tail);
void ew_choice_remember(struct ew_choice *choice); // it has been submitted
// Ends the reply with a fault, as an event where a stream has begun, and stops the work. The completion stays.
void ew_completion_fail(struct ew_completion *completion, const struct ew_fault *fault);
void ew_completion_finish(struct ew_completion *completion); // writes what is left, and frees it
void ew_completion_gone(void *completion);                   // its client has left

// ---- submit.c ----

// Submits choices whose prompt has been computed meanwhile.
void ew_submit_deferred(struct ew_api *api);

// ---- reply.c: what is written ----

// The prompts are counted once, not once a choice.
struct ew_usage {
    uint64_t n_prompt, n_cached, n_new;
};
struct ew_usage ew_reply_usage(const struct ew_completion *completion);

// All append to out.
void ew_reply_whole(const struct ew_completion *completion, struct ew_buf *out);
// A chunk with what the choice has to say since the last one; nothing where there is none. NULL as finish: none.
void ew_reply_chunk(struct ew_choice *choice, const char *finish, struct ew_buf *out);
void ew_reply_usage_chunk(const struct ew_completion *completion, struct ew_buf *out);
const char *ew_reply_finish(const struct ew_choice *choice);
// Adds what a token event says about log probabilities to the choice.
void ew_reply_note_logprobs(struct ew_choice *choice, const struct ew_service_event *event);
// Adds the newest call's arguments, as far as they came.
void ew_reply_note_call(struct ew_choice *choice, uint32_t index, struct ew_str name);
void ew_reply_note_arguments(struct ew_choice *choice, uint32_t index);
