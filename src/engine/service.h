#pragma once
// The engine behind its own thread: requests in from any thread, events out to one.
//
// One mutex guards the two bounded queues where the threads meet; it is held for copies of a few hundred bytes, never
// during a step. Text, ids and log probabilities of one request that its consumer has not fetched yet are merged, so
// that a slow consumer costs what its answers are long and holds up nobody. Once a request runs, nothing is
// allocated for it as long as events are fetched.

#include "engine/engine.h"

struct ew_service;

struct ew_service_config {
    struct ew_engine_config engine;
    uint32_t queue_max;      // requests taken besides those that can run at once, 0: 64; beyond: EW_ERR_BUSY
    void (*wake)(void *ctx); // called on the engine thread when events wait; must not block nor call back
    void *wake_ctx;
};

// Loads the model on the calling thread and starts the engine's. Model and tokenizer must outlive the service.
int ew_service_start(const struct ew_model *model, const struct ew_tokenizer *tok_or_null,
                     const struct ew_service_config *config, struct ew_service **out,
                     struct ew_error *err) EW_MUST_CHECK;
// Cancels what runs, joins the thread, frees everything; events not yet fetched are lost. NULL is allowed. No other
// call may be under way.
void ew_service_stop(struct ew_service *service);

// Copies the request; any thread, never waits for a step. EW_ERR_BUSY: the queue is full. EW_ERR_LIMIT: it does not fit
// the context. EW_ERR_USAGE: it makes no sense.
int ew_service_submit(struct ew_service *service, const struct ew_request *request, uint64_t *id,
                      struct ew_error *err) EW_MUST_CHECK;
// Any thread. Takes effect within one step; FINISHED with CANCELLED follows. An unknown or finished id does nothing.
void ew_service_cancel(struct ew_service *service, uint64_t id);

struct ew_service_event {
    enum ew_event_kind kind;
    uint64_t request;
    // TOKEN: everything since the request's event before. FINISHED: n_tokens is 0, and text is what had been held back
    // and is part of the answer after all.
    struct ew_str text;
    const int32_t *tokens; // [n_tokens]
    uint32_t n_tokens;
    const struct ew_logprob *logprobs; // [n_tokens, n_logprobs], the chosen token first in each row
    uint32_t n_logprobs;
    double time_s; // ew_clock_s when the newest token was chosen, or the request ended
    uint32_t n_prompt, n_reused, n_new, n_preempted;
    // FINISHED
    enum ew_finish finish;
    const float *vector; // [n_vector] with EW_FINISH_STOP of a model that makes vectors
    uint32_t n_vector;
    double queue_s, prefill_s, decode_s; // waiting, from admission to the first token, from there to the end
    struct ew_error error;               // with EW_FINISH_ERROR
};

// The consumer's thread only. Text, tokens and logprobs stay valid until its next call. false: there are no events.
bool ew_service_next_event(struct ew_service *service, struct ew_service_event *event);

struct ew_service_stats {
    struct ew_engine_stats engine;
    uint32_t queue_max, n_queued; // waiting to be admitted, those not yet seen by the engine included
    uint64_t n_submitted, n_refused;
    bool busy;            // a step is running, since busy_since_s
    double busy_since_s;  // ew_clock_s
    double last_step_s;   // when the last one ended; the service's start where there was none
    struct ew_error failure; // of the device in the last step; code 0: that went well
};

// A consistent snapshot, as of the last step's end; any thread.
void ew_service_stats(struct ew_service *service, struct ew_service_stats *out);
uint32_t ew_service_context_max(const struct ew_service *service); // constant after the start; any thread
