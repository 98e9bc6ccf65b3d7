#pragma once
// A request inside the engine: its copy of what was asked, its progress, and the events that wait to be taken.

#include "engine/answer.h"
#include "engine/engine.h"
#include "engine/sequence.h"

struct ew_job {
    struct ew_job *next;       // in the order of submission
    struct ew_request request; // its pointers lead into the arena
    struct ew_arena arena;
    uint64_t id;
    struct ew_sequence *seq;               // NULL: waiting, or finished
    bool is_alone;                         // its next token is chosen before any other step is started
    bool is_paused;                        // preempted: its sequence holds tokens but no blocks
    uint64_t turn;                         // order of admission
    uint64_t stepped;                      // the last step that it took part in
    uint32_t share;                        // of struct ew_shares
    uint64_t root;                         // key of the prefix tree
    uint32_t n_tokens_max;                 // prompt and answer
    uint32_t reserve[EW_CACHE_GROUPS_MAX]; // blocks that it may come to hold
    uint32_t n_reused, n_new, n_preempted;
    double submitted_s, started_s, first_s, ended_s; // then admission, first token, end; 0: not yet
    struct ew_answer answer;
    struct ew_logprob *logprobs; // [request.n_logprobs]
    float *vector;               // [pooling.width] of models that make vectors, else NULL
    // Events not yet taken.
    int32_t token;
    bool has_token, is_finished, is_taken;
    bool is_planned; // a text that is in the step being built or run
    enum ew_finish finish;
    struct ew_str rest; // of the text, released by the end
    struct ew_error error;
};

// Copies the request. Checks it against the vocabulary; whether it can run is the engine's to say.
int ew_job_create(const struct ew_request *request, const struct ew_model *model,
                  const struct ew_tokenizer *tok_or_null, struct ew_job **out, struct ew_error *err) EW_MUST_CHECK;
void ew_job_destroy(struct ew_job *job);
