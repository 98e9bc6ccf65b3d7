#include "base/pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"

#define CACHE_LINE 64
// Pauses before a waiting thread sleeps. A pause takes 40 to 140 cycles on x86 and an isb about 40 on arm, so this is
// 20 to 100 us.
#define SPINS_MAX 2000
#define CHUNKS_PER_THREAD 8 // of ew_pool_run: few enough claims to be cheap, enough to even out unequal tasks

// A counter that threads wait on. Each has its own cache line, so that waiting on one does not slow another down.
struct signal {
    _Alignas(CACHE_LINE) _Atomic uint32_t value; // the futex word
    _Atomic uint32_t n_sleeping;
};

struct worker {
    struct ew_pool *pool;
    uint32_t index; // 1 ... n_threads - 1
    pthread_t thread;
};

struct ew_pool {
    struct signal start;   // raised by the caller: there is work, or the pool closes
    struct signal done;    // raised by the last worker to finish
    struct signal barrier; // raised by the last thread to arrive
    _Alignas(CACHE_LINE) _Atomic uint32_t n_working; // workers that have not finished the current function
    _Alignas(CACHE_LINE) _Atomic uint32_t n_arrived; // threads at the barrier
    // Written by the caller between functions, published by `start`.
    _Alignas(CACHE_LINE) ew_pool_all_fn fn;
    void *ctx;
    bool closing, busy;
    // Set at create.
    uint32_t n_threads, n_started, n_spins;
    struct worker *workers; // [n_threads - 1]
};

struct dynamic_run {
    ew_pool_task_fn fn;
    void *ctx;
    uint32_t n_tasks, chunk;
    _Alignas(CACHE_LINE) _Atomic uint64_t next; // 64 bits: the last claims of all threads run past n_tasks
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); // `yield` does nothing on most cores
#endif
}

static uint32_t signal_value(struct signal *signal)
{
    return atomic_load(&signal->value);
}

// The sleeper announces itself before the kernel compares the word, the raiser changes the word before it looks for
// sleepers, all sequentially consistent: one of the two sees the other, so no wake-up is lost.
static void signal_raise(struct signal *signal)
{
    atomic_fetch_add(&signal->value, 1);
    if (atomic_load(&signal->n_sleeping))
        syscall(SYS_futex, &signal->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void signal_await(struct signal *signal, uint32_t seen, uint32_t n_spins)
{
    for (uint32_t i = 0; i < n_spins; i++) {
        if (atomic_load_explicit(&signal->value, memory_order_acquire) != seen)
            return;
        relax();
    }
    atomic_fetch_add(&signal->n_sleeping, 1);
    while (signal_value(signal) == seen)
        syscall(SYS_futex, &signal->value, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&signal->n_sleeping, 1);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct ew_pool *pool = worker->pool;
    uint32_t seen = 0; // `start` is raised for the first time after every worker was made

    for (;;) {
        signal_await(&pool->start, seen++, pool->n_spins);
        if (pool->closing)
            return NULL;
        pool->fn(pool->ctx, worker->index, pool->n_threads);
        if (atomic_fetch_sub(&pool->n_working, 1) == 1)
            signal_raise(&pool->done);
    }
}

// Spinning helps only where every thread has a CPU to itself.
static uint32_t spins_for(uint32_t n_threads)
{
    cpu_set_t allowed;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0 && (uint32_t)CPU_COUNT(&allowed) < n_threads)
        return 0;
    return SPINS_MAX;
}

static int start_worker(struct ew_pool *pool, const char *name, struct ew_error *err)
{
    struct worker *worker = &pool->workers[pool->n_started];
    char full[16]; // the kernel's limit on thread names
    int failed;

    *worker = (struct worker){.pool = pool, .index = pool->n_started + 1};
    failed = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (failed)
        return ew_remedy(err,
                         ew_fail(err, EW_ERR_MEMORY, "cannot start worker thread %u of %u (error %d)", worker->index,
                                 pool->n_threads - 1, failed),
                         "use fewer --threads, or raise the limit on processes");
    pool->n_started++;
    snprintf(full, sizeof(full), "%.10s-%u", name, worker->index);
    pthread_setname_np(worker->thread, full);
    return 0;
}

// Workers take no signals: SIGINT and its like reach the thread that waits for them.
static int start_workers(struct ew_pool *pool, const char *name, struct ew_error *err)
{
    sigset_t all, old;
    int status = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    while (status == 0 && pool->n_started + 1 < pool->n_threads)
        status = start_worker(pool, name, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return status;
}

int ew_pool_create(uint32_t n_threads, const char *name, struct ew_pool **out, struct ew_error *err)
{
    struct ew_pool *pool;
    int status;

    if (n_threads < 1 || n_threads > EW_POOL_THREADS_MAX)
        return ew_fail(err, EW_ERR_USAGE, "%u threads: a pool has 1 to %d", n_threads, EW_POOL_THREADS_MAX);
    pool = ew_alloc_aligned(sizeof(*pool));
    if (!pool)
        return ew_fail_memory(err, sizeof(*pool), "a thread pool");
    pool->n_threads = n_threads;
    pool->n_spins = spins_for(n_threads);
    pool->workers = ew_alloc_array(n_threads, sizeof(*pool->workers));
    status = pool->workers ? start_workers(pool, name, err) : ew_fail_memory(err, n_threads, "a thread pool");
    if (status) {
        ew_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return 0;
}

void ew_pool_destroy(struct ew_pool *pool)
{
    if (!pool)
        return;
    pool->closing = true;
    signal_raise(&pool->start);
    for (uint32_t i = 0; i < pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    ew_free(pool->workers);
    ew_free(pool);
}

uint32_t ew_pool_threads(const struct ew_pool *pool)
{
    return pool->n_threads;
}

void ew_pool_all(struct ew_pool *pool, ew_pool_all_fn fn, void *ctx)
{
    uint32_t seen = signal_value(&pool->done);

    EW_ASSERT(!pool->busy); // pools do not nest
    pool->busy = true;
    if (pool->n_threads > 1) {
        pool->fn = fn;
        pool->ctx = ctx;
        atomic_store(&pool->n_working, pool->n_threads - 1);
        signal_raise(&pool->start);
    }
    fn(ctx, 0, pool->n_threads);
    if (pool->n_threads > 1)
        signal_await(&pool->done, seen, pool->n_spins);
    pool->busy = false;
}

void ew_pool_barrier(struct ew_pool *pool)
{
    uint32_t seen = signal_value(&pool->barrier);

    if (atomic_fetch_add(&pool->n_arrived, 1) + 1 < pool->n_threads) {
        signal_await(&pool->barrier, seen, pool->n_spins);
        return;
    }
    atomic_store(&pool->n_arrived, 0);
    signal_raise(&pool->barrier);
}

static void run_claimed(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct dynamic_run *run = ctx;
    uint64_t from, to;

    (void)n_threads;
    for (;;) {
        from = atomic_fetch_add_explicit(&run->next, run->chunk, memory_order_relaxed);
        if (from >= run->n_tasks)
            return;
        to = EW_MIN(from + run->chunk, run->n_tasks);
        for (; from < to; from++)
            run->fn(run->ctx, (uint32_t)from, thread);
    }
}

void ew_pool_run(struct ew_pool *pool, ew_pool_task_fn fn, void *ctx, uint32_t n_tasks)
{
    struct dynamic_run run = {.fn = fn, .ctx = ctx, .n_tasks = n_tasks};

    run.chunk = EW_MAX(1, n_tasks / (CHUNKS_PER_THREAD * pool->n_threads));
    if (n_tasks > 1)
        ew_pool_all(pool, run_claimed, &run);
    else
        run_claimed(&run, 0, 1);
}
