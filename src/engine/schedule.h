#pragma once
// Who runs: admission of waiting requests, the work of one step, preemption. The state that engine.c and schedule.c
// share.
//
// Order: higher priorities first; among waiting requests then the client that got least (engine/share.h), then the
// order of submission; among running ones the order of admission. At most max_sessions requests run, and of these
// max_batch_size take part in a step: where there are more, those that waited longest. A step takes a token of each
// decoding sequence, then prompt chunks.
//
// guaranteed_no_evict: a request is admitted once the blocks that it may ever come to hold are set aside for it.
// max_utilization: it is admitted when what it has to compute now fits. Where a step needs blocks that are not there,
// the last of the running requests gives its own up (they stay in the prefix tree as long as nobody needs them), and
// goes on from its tokens when there is room again. The first in order always gets what it needs, so all finish.

#include "engine/ahead.h"
#include "engine/core.h"
#include "engine/pace.h"
#include "engine/request.h"
#include "engine/share.h"

// What tells a backend how to choose tokens itself (delegate.c).
struct ew_delegation {
    // Of the newest step and of one that runs ahead, by turns.
    struct ew_pick *picks[2];          // [max_batch_size], by row of the logits; NULL: this backend does not choose
    struct ew_pick_adjust *adjusts[2]; // [EW_PICK_ADJUST_MAX]
    uint32_t turn;
};

struct ew_engine {
    struct ew_core core;
    const struct ew_tokenizer *tok;
    struct ew_sampler sampler;
    struct ew_delegation delegation;
    struct ew_job **seq_jobs; // [core.fit.n_resident] whose core.seqs[i] is; NULL: nobody's
    struct ew_job **running;  // [core.fit.n_resident] in order
    uint32_t n_running;
    struct ew_job *jobs, **jobs_end; // waiting, running and finished ones, in the order of submission
    uint64_t last_id, last_turn;
    struct ew_shares shares;
    struct ew_pace pace;
    // The newest step: the decoding sequences first.
    struct ew_work *work;      // [max_batch_size]
    struct ew_job **work_jobs; // [max_batch_size]
    struct ew_text *texts;       // [max_batch_size] the same, of models that make vectors
    uint32_t n_work, n_decoding;
    bool is_started;         // it ran ahead
    double waited_s;         // when the last step had ended
    struct ew_ahead ahead;
    uint32_t planned[EW_CACHE_GROUPS_MAX]; // blocks that the work takes
    struct ew_engine_stats stats;          // the counters
};

// ---- what a step is made of, for whoever wants to do something between its parts: engine/service.h -----------------

// Admits, plans and builds the next step. *idle: there is nothing to do. Events of the step before may still be taken
// after it.
int ew_engine_begin(struct ew_engine *engine, bool *idle, struct ew_error *err) EW_MUST_CHECK;
// Runs it and samples; only after a begin that was not idle, and when all events were taken.
int ew_engine_complete(struct ew_engine *engine, struct ew_error *err) EW_MUST_CHECK;
// Copies and checks a request. Reads only what does not change after creation: any thread.
int ew_engine_make_job(const struct ew_engine *engine, const struct ew_request *request, struct ew_job **out,
                       struct ew_error *err) EW_MUST_CHECK;
// Takes the job, whose id is set, into the queue.
void ew_engine_enqueue(struct ew_engine *engine, struct ew_job *job);
// Ends a request with this error; NULL: as cancelled. An unknown or finished id does nothing.
void ew_engine_abort(struct ew_engine *engine, uint64_t id, const struct ew_error *why);

// Ends a request, whatever became of it.
void ew_engine_finish(struct ew_engine *engine, struct ew_job *job, enum ew_finish why);
// Ends all requests of the step; returns why's code.
int ew_engine_fail_step(struct ew_engine *engine, const struct ew_error *why, struct ew_error *err);

// ---- scheduling ----------------------------------------------------------------------------------------------------

// Blocks of each group that a sequence of n_tokens may come to hold. false where a pool has less in all.
bool ew_schedule_reserve(const struct ew_engine *engine, uint32_t n_tokens, uint32_t reserve[EW_CACHE_GROUPS_MAX]);
// Starts waiting requests, and preempted ones again, as long as they fit.
void ew_schedule_admit(struct ew_engine *engine);
// Fills work.
void ew_schedule_plan(struct ew_engine *engine);
// The waiting request that goes first, or NULL.
struct ew_job *ew_schedule_next(const struct ew_engine *engine);
// Takes a running request off its sequence. keep: what it computed may be reused.
void ew_schedule_release(struct ew_engine *engine, struct ew_job *job, bool keep);

// ---- choosing tokens -----------------------------------------------------------------------------------------------

int ew_delegation_init(struct ew_delegation *delegation, const struct ew_core *core,
                       struct ew_error *err) EW_MUST_CHECK;
void ew_delegation_fini(struct ew_delegation *delegation);
// Puts into the built step how its rows are to be chosen from, where the backend does that.
void ew_delegate_step(struct ew_engine *engine);
// The same for a step that follows it before its tokens are known.
void ew_delegate_next(struct ew_engine *engine, struct ew_batch *batch, const struct ew_work *work,
                      struct ew_job *const *jobs, uint32_t n_work);
// The token of a work's row, the backend's or our own, and its log probabilities where they are asked for.
int ew_delegate_token(struct ew_engine *engine, const struct ew_work *work, struct ew_job *job, int32_t *token,
                      struct ew_error *err) EW_MUST_CHECK;
