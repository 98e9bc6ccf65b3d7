#pragma once
// The step after the one that runs, started before it has ended: where every sequence of a step gets one token that the
// backend chooses, the next step takes these tokens where they are, and the host hears of them while it runs.
//
// Such a step is for the same sequences, so nobody can be admitted, paused or known to end with it. Its tokens count
// as cached only once it is the newest step (ew_ahead_promote): a sequence that ends meanwhile is left out of what
// comes of it, and its caches have no trace of the token too many. What the backend still writes there comes before
// all that is started later.

#include "engine/step.h"

struct ew_engine;
struct ew_job;
struct ew_core;

struct ew_ahead {
    struct ew_step step;
    struct ew_work *work;  // [max_batch_size]
    struct ew_job **jobs;  // [max_batch_size] NULL: it ended
    uint32_t n_work;
    bool is_possible;      // with this backend and program
    bool is_running;
};

int ew_ahead_init(struct ew_ahead *ahead, const struct ew_core *core, struct ew_error *err) EW_MUST_CHECK;
void ew_ahead_fini(struct ew_ahead *ahead);
// Once the newest step was started: starts the next, where it can be. A failure only means that it is not.
void ew_ahead_start(struct ew_engine *engine);
// Makes it the newest step. false: there is none, or nothing of it is wanted any more.
bool ew_ahead_promote(struct ew_engine *engine);
// Waits for one of which nothing is wanted; before another step is started.
void ew_ahead_drain(struct ew_engine *engine);
// The request has no part in it any more.
void ew_ahead_forget(struct ew_engine *engine, const struct ew_job *job);
