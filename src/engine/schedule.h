#pragma once
// Who runs: admission of waiting requests, and the work of one step. The state that engine.c and schedule.c share.
//
// guaranteed_no_evict: a request is admitted, in the order of submission, once the blocks that it may ever come to
// hold are set aside for it. Idle sessions keep their caches only as long as nobody needs the blocks.

#include "engine/core.h"
#include "engine/request.h"

#define EW_SESSIONS_OPEN_MAX 4096

struct ew_resident {    // belongs to core.seqs[i]
    uint32_t session;   // whose caches these are; 0: nobody's
    struct ew_job *job; // NULL: idle
    uint64_t used_step; // for least recently used first out
};

struct ew_engine {
    struct ew_core core;
    const struct ew_tokenizer *tok;
    struct ew_sampler sampler;
    struct ew_resident *residents; // [core.fit.n_resident]
    struct ew_job *jobs;           // waiting, running and finished ones, in the order of submission
    uint32_t n_running;
    uint32_t *sessions; // [n_sessions] that are open
    uint32_t n_sessions, last_session;
    uint64_t last_id;
    struct ew_work *work;      // [max_batch_size] of the newest step
    struct ew_job **work_jobs; // [max_batch_size]
    uint32_t n_work;
    struct ew_engine_stats stats; // the counters
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

// Blocks of each group that a sequence of n_tokens may come to hold. false where a pool has less in all.
bool ew_schedule_reserve(const struct ew_engine *engine, uint32_t n_tokens, uint32_t reserve[EW_CACHE_GROUPS_MAX]);
// Starts waiting requests as long as they fit.
void ew_schedule_admit(struct ew_engine *engine);
// Fills work: one token for each decoding sequence, then prompt chunks, first come first served.
void ew_schedule_plan(struct ew_engine *engine);
// Takes a running request off its sequence. Where it has a session, the caches stay; keep false drops them.
void ew_schedule_release(struct ew_engine *engine, struct ew_job *job, bool keep);
