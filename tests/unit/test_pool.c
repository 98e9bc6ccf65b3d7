// base/pool: every task once, every thread once, barriers, and wake-ups from sleep.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/pool.h"

#define TASKS_MAX 5000
#define THREADS_MAX 9

struct tally {
    uint32_t n_threads;
    bool bad_thread;
    uint8_t hits[TASKS_MAX]; // plain bytes: a task that ran twice at once is a data race, which TSan would tell
};

static void hit(void *ctx, uint32_t task, uint32_t thread)
{
    struct tally *tally = ctx;

    tally->hits[task]++;
    if (thread >= tally->n_threads)
        tally->bad_thread = true;
}

static void check_tasks(struct ew_pool *pool, uint32_t n_tasks)
{
    static struct tally tally;

    memset(&tally, 0, sizeof(tally));
    tally.n_threads = ew_pool_threads(pool);
    ew_pool_run(pool, hit, &tally, n_tasks);
    assert_false(tally.bad_thread);
    for (uint32_t i = 0; i < TASKS_MAX; i++)
        assert_int_equal(tally.hits[i], i < n_tasks);
}

static void every_task_runs_once(void **state)
{
    static const uint32_t counts[] = {0, 1, 2, 3, 7, 64, 1000, TASKS_MAX};

    (void)state;
    for (uint32_t n_threads = 1; n_threads <= THREADS_MAX; n_threads += 2) {
        struct ew_pool *pool;

        assert_int_equal(ew_pool_create(n_threads, "test", &pool, NULL), 0);
        for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
            check_tasks(pool, counts[i]);
        ew_pool_destroy(pool);
    }
}

// Each round every thread writes its cell, meets the others, and reads its neighbour's.
#define ROUNDS 200
struct ring {
    struct ew_pool *pool;
    uint32_t cells[THREADS_MAX];
    _Atomic uint32_t n_wrong, n_calls;
};

static void pass_around(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct ring *ring = ctx;

    atomic_fetch_add(&ring->n_calls, 1);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        ring->cells[thread] = round;
        ew_pool_barrier(ring->pool);
        if (ring->cells[(thread + 1) % n_threads] != round)
            atomic_fetch_add(&ring->n_wrong, 1);
        ew_pool_barrier(ring->pool);
    }
}

static void barriers_order_what_threads_write(void **state)
{
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= THREADS_MAX; n_threads += 4) {
        struct ring ring = {0};

        assert_int_equal(ew_pool_create(n_threads, "test", &ring.pool, NULL), 0);
        ew_pool_all(ring.pool, pass_around, &ring);
        assert_int_equal(ring.n_calls, n_threads);
        assert_int_equal(ring.n_wrong, 0);
        ew_pool_destroy(ring.pool);
    }
}

static void many_short_forks_lose_no_wake_up(void **state)
{
    struct ew_pool *pool;

    (void)state;
    assert_int_equal(ew_pool_create(2, "test", &pool, NULL), 0);
    for (uint32_t i = 0; i < 2000; i++) {
        struct tally tally = {.n_threads = 2};

        ew_pool_run(pool, hit, &tally, 2);
        assert_int_equal(tally.hits[0] + tally.hits[1], 2);
    }
    for (uint32_t i = 0; i < 5; i++) {
        usleep(3000); // far past the spin: the worker sleeps
        check_tasks(pool, 10);
    }
    ew_pool_destroy(pool);
}

static void name_of_thread(void *ctx, uint32_t thread, uint32_t n_threads)
{
    char (*names)[16] = ctx;
    FILE *file = fopen("/proc/thread-self/comm", "r");

    (void)n_threads;
    if (file && fgets(names[thread], 16, file))
        names[thread][strcspn(names[thread], "\n")] = 0;
    if (file)
        fclose(file);
}

static void threads_have_names(void **state)
{
    char names[3][16] = {""};
    struct ew_pool *pool;

    (void)state;
    assert_int_equal(ew_pool_create(3, "kernel", &pool, NULL), 0);
    ew_pool_all(pool, name_of_thread, names);
    ew_pool_destroy(pool);
    if (!names[1][0])
        skip(); // no /proc
    assert_string_equal(names[1], "kernel-1");
    assert_string_equal(names[2], "kernel-2");
}

static void creation_fails_in_order(void **state)
{
    struct ew_pool *pool;
    struct ew_error err = {0};

    (void)state;
    assert_int_equal(ew_pool_create(0, "test", &pool, &err), EW_ERR_USAGE);
    assert_int_equal(ew_pool_create(EW_POOL_THREADS_MAX + 1, "test", &pool, &err), EW_ERR_USAGE);
    for (uint64_t n = 1; n <= 2; n++) {
        ew_alloc_fail_at(n);
        assert_int_equal(ew_pool_create(2, "test", &pool, &err), EW_ERR_MEMORY);
    }
    ew_alloc_fail_at(0);
    ew_pool_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(barriers_order_what_threads_write),
        cmocka_unit_test(many_short_forks_lose_no_wake_up),
        cmocka_unit_test(threads_have_names),
        cmocka_unit_test(creation_fails_in_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
