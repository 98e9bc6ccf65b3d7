#pragma once
// A fork-join pool of worker threads for kernels: the caller and n - 1 workers run one function, then all meet again.
//
// One thread at a time may call ew_pool_all or ew_pool_run, and never from inside a pool function. Workers that wait
// spin for some tens of microseconds, because the next fork of a decode step usually comes sooner than a futex could
// wake them, and sleep after that, so that an idle pool costs nothing and two programs on one machine do not starve
// each other.

#include <stdint.h>

#include "base/error.h"

#define EW_POOL_THREADS_MAX 512

struct ew_pool;

// n_threads includes the caller: 1 makes no threads at all. `name` (up to 10 bytes) shows in ps as "name-1".
int ew_pool_create(uint32_t n_threads, const char *name, struct ew_pool **out, struct ew_error *err) EW_MUST_CHECK;
void ew_pool_destroy(struct ew_pool *pool); // NULL is allowed
uint32_t ew_pool_threads(const struct ew_pool *pool);

// Static form: every thread calls fn once; thread 0 is the caller. Returns when all have.
typedef void (*ew_pool_all_fn)(void *ctx, uint32_t thread, uint32_t n_threads);
void ew_pool_all(struct ew_pool *pool, ew_pool_all_fn fn, void *ctx);
// Inside a static function only: returns once every thread of the pool has arrived. What was written before it is seen
// after it.
void ew_pool_barrier(struct ew_pool *pool);

// Dynamic form: fn is called once for each task in [0, n_tasks), by whichever thread is free; `thread` says which, for
// scratch memory.
typedef void (*ew_pool_task_fn)(void *ctx, uint32_t task, uint32_t thread);
void ew_pool_run(struct ew_pool *pool, ew_pool_task_fn fn, void *ctx, uint32_t n_tasks);
