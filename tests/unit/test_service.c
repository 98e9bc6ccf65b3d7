// service: the engine's thread, the queue in front of it and the events behind it, on a tiny model.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/rng.h"
#include "engine/service.h"
#include "fixture.h"

#define ANSWER_MAX 256
#define N_VOCAB 320
#define PATIENCE_S 60.0

struct answer {
    int32_t ids[ANSWER_MAX];
    uint32_t n;
    struct ew_service_event last;
};

static atomic_uint n_wakes;

static void on_wake(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&n_wakes, 1);
}

static struct ew_model *open_model(void)
{
    struct ew_model *model = NULL;
    struct ew_error err = {0};
    char path[512];

    if (!fixture_find(path, sizeof(path), "models/llama_default"))
        skip();
    if (ew_model_open(path, &model, &err) < 0)
        fail_msg("%s", err.message);
    return model;
}

static struct ew_service_config small_config(void)
{
    return (struct ew_service_config){
        .engine =
            {
                .backend = "cpu",
                .device = {.n_threads = 2, .kernels = EW_KERNELS_REFERENCE},
                .kv = EW_KV_F32,
                .context_max = 128,
                .max_num_tokens = 16,
                .chunk = 7,
                .max_batch_size = 4,
            },
        .queue_max = 8,
        .wake = on_wake,
    };
}

static struct ew_service *start(const struct ew_model *model, const struct ew_service_config *config)
{
    struct ew_service *service = NULL;
    struct ew_error err = {0};

    if (ew_service_start(model, NULL, config, &service, &err) < 0)
        fail_msg("%s", err.message);
    return service;
}

static void random_ids(uint64_t seed, int32_t *ids, uint32_t n)
{
    struct ew_rng rng = ew_rng_at(seed, 0);

    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)ew_rng_below(&rng, N_VOCAB);
}

static struct ew_request request_for(const int32_t *ids, uint32_t n_ids, uint32_t n_max)
{
    struct ew_request request = {.ids = ids, .n_ids = n_ids, .n_max = n_max, .ignore_eos = true};

    request.sampling = ew_sampling_default();
    request.sampling.temperature = 0;
    return request;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

// Fetches until n requests have finished. answers[i] is that of ids[i].
static void collect(struct ew_service *service, const uint64_t *ids, struct answer *answers, uint32_t n)
{
    double end_s = ew_clock_s() + PATIENCE_S;
    struct ew_service_event event;
    uint32_t n_finished = 0;

    while (n_finished < n) {
        struct answer *answer = NULL;

        assert_true(ew_clock_s() < end_s);
        if (!ew_service_next_event(service, &event)) {
            nap();
            continue;
        }
        for (uint32_t i = 0; i < n; i++)
            answer = ids[i] == event.request ? &answers[i] : answer;
        assert_non_null(answer);
        assert_true(answer->n + event.n_tokens <= ANSWER_MAX);
        for (uint32_t i = 0; i < event.n_tokens; i++)
            answer->ids[answer->n++] = event.tokens[i];
        n_finished += event.kind == EW_EVENT_FINISHED;
        if (event.kind == EW_EVENT_FINISHED)
            answer->last = event;
    }
}

static struct answer run_one(struct ew_service *service, const struct ew_request *request)
{
    struct answer answer = {.n = 0};
    uint64_t id;

    assert_int_equal(ew_service_submit(service, request, &id, NULL), 0);
    collect(service, &id, &answer, 1);
    return answer;
}

static void requests_of_a_crowd_are_answered_as_alone(void **state)
{
    enum { N = 8 };
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct answer alone[N], together[N] = {0};
    struct ew_request requests[N];
    struct ew_service_stats stats;
    int32_t prompts[N][40];
    uint64_t ids[N];

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        random_ids(i, prompts[i], 40);
        requests[i] = request_for(prompts[i], 1 + 5 * i, 10 + i);
        alone[i] = run_one(service, &requests[i]);
        assert_int_equal(alone[i].n, 10 + i);
        assert_int_equal(alone[i].last.finish, EW_FINISH_LENGTH);
        assert_int_equal(alone[i].last.n_prompt, 1 + 5 * i);
    }
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(ew_service_submit(service, &requests[i], &ids[i], NULL), 0);
    collect(service, ids, together, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(together[i].n, alone[i].n);
        assert_memory_equal(together[i].ids, alone[i].ids, alone[i].n * sizeof(int32_t));
    }
    assert_true(atomic_load(&n_wakes) > 0);
    ew_service_stats(service, &stats);
    assert_int_equal(stats.n_submitted, 2 * N);
    assert_int_equal(stats.n_queued, 0);
    assert_int_equal(stats.engine.n_finished[EW_FINISH_LENGTH], 2 * N);
    ew_service_stop(service);
    ew_model_close(model);
}

static void a_full_queue_refuses(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service;
    struct ew_service_stats stats;
    struct ew_request request;
    struct ew_error err = {0};
    uint64_t id, ids[64];
    struct answer answers[64] = {0};
    int32_t prompt[40];
    uint32_t n = 0, n_refused = 0;

    (void)state;
    config.queue_max = 3;
    config.engine.max_batch_size = 1;
    service = start(model, &config);
    random_ids(1, prompt, 40);
    request = request_for(prompt, 40, 80);
    while (n_refused == 0 && n < 64) {
        int rc = ew_service_submit(service, &request, &id, &err);

        assert_true(rc == 0 || rc == EW_ERR_BUSY);
        if (rc == 0)
            ids[n++] = id;
        n_refused += rc != 0;
    }
    assert_int_equal(n_refused, 1);
    assert_in_range(n, 4, 8); // one runs and three wait; some may be over already
    assert_true(err.remedy[0] != '\0');
    ew_service_stats(service, &stats);
    assert_int_equal(stats.n_refused, 1);
    collect(service, ids, answers, n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(answers[i].n, 80);
    ew_service_stop(service);
    ew_model_close(model);
}

static void what_makes_no_sense_is_refused_at_once(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct ew_request request;
    int32_t prompt[200] = {0};
    uint64_t id;

    (void)state;
    assert_int_equal(ew_service_context_max(service), 128);
    request = request_for(prompt, 128, 1);
    assert_int_equal(ew_service_submit(service, &request, &id, NULL), EW_ERR_LIMIT);
    request = request_for(prompt, 0, 1);
    assert_int_equal(ew_service_submit(service, &request, &id, NULL), EW_ERR_USAGE);
    prompt[2] = N_VOCAB;
    request = request_for(prompt, 3, 1);
    assert_int_equal(ew_service_submit(service, &request, &id, NULL), EW_ERR_USAGE);
    ew_service_stop(service);
    ew_model_close(model);
}

static void cancelling_ends_running_and_waiting_requests(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service;
    struct ew_service_stats stats;
    struct ew_request request;
    struct answer answers[2] = {0};
    int32_t prompt[100];
    uint64_t ids[2];

    (void)state;
    config.engine.max_batch_size = 1;
    service = start(model, &config);
    random_ids(2, prompt, 100);
    request = request_for(prompt, 100, 0);
    assert_int_equal(ew_service_submit(service, &request, &ids[0], NULL), 0);
    assert_int_equal(ew_service_submit(service, &request, &ids[1], NULL), 0);
    ew_service_cancel(service, ids[1]);
    ew_service_cancel(service, ids[0]);
    ew_service_cancel(service, 999);
    collect(service, ids, answers, 2);
    assert_int_equal(answers[0].last.finish, EW_FINISH_CANCELLED);
    assert_int_equal(answers[1].last.finish, EW_FINISH_CANCELLED);
    assert_true(answers[0].n < 28);
    assert_int_equal(answers[1].n, 0);
    ew_service_cancel(service, ids[0]); // gone
    ew_service_stats(service, &stats);
    assert_int_equal(stats.engine.n_finished[EW_FINISH_CANCELLED], 2);
    assert_int_equal(stats.engine.n_prefilling + stats.engine.n_decoding, 0);
    ew_service_stop(service);
    ew_model_close(model);
}

// Nothing is fetched until all is over: the events of one request become two, its tokens and its end.
static void a_slow_consumer_gets_everything_merged(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct ew_service_event event;
    struct ew_service_stats stats;
    struct ew_request request;
    struct answer alone;
    double end_s = ew_clock_s() + PATIENCE_S;
    int32_t prompt[10];
    uint64_t id;

    (void)state;
    random_ids(3, prompt, 10);
    request = request_for(prompt, 10, 100);
    request.n_logprobs = 2;
    alone = run_one(service, &request);
    assert_int_equal(ew_service_submit(service, &request, &id, NULL), 0);
    do {
        nap();
        ew_service_stats(service, &stats);
        assert_true(ew_clock_s() < end_s);
    } while (stats.engine.n_finished[EW_FINISH_LENGTH] < 2);
    assert_true(ew_service_next_event(service, &event));
    assert_int_equal(event.kind, EW_EVENT_TOKEN);
    assert_int_equal(event.n_tokens, 100);
    assert_int_equal(event.n_logprobs, 2);
    assert_memory_equal(event.tokens, alone.ids, 100 * sizeof(int32_t));
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(event.logprobs[2 * i].token, event.tokens[i]);
    assert_true(ew_service_next_event(service, &event));
    assert_int_equal(event.kind, EW_EVENT_FINISHED);
    assert_int_equal(event.n_tokens, 0);
    assert_false(ew_service_next_event(service, &event));
    ew_service_stop(service);
    ew_model_close(model);
}

static void stopping_with_work_under_way_leaks_nothing(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct ew_service_event event;
    struct ew_request request;
    int32_t prompt[50];
    uint64_t id;

    (void)state;
    random_ids(4, prompt, 50);
    request = request_for(prompt, 50, 0);
    for (uint32_t i = 0; i < 6; i++)
        assert_int_equal(ew_service_submit(service, &request, &id, NULL), 0);
    while (!ew_service_next_event(service, &event))
        nap();
    ew_service_stop(service);
    ew_service_stop(NULL);
    ew_model_close(model);
}

static void no_memory_for_a_request_is_its_own_error(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct answer answer = {.n = 0};
    struct ew_request request;
    int32_t prompt[10];
    uint64_t id, n = 0;
    int rc;

    (void)state;
    random_ids(6, prompt, 10);
    request = request_for(prompt, 10, 5);
    request.n_logprobs = 1;
    do {
        ew_alloc_fail_at(++n);
        rc = ew_service_submit(service, &request, &id, NULL);
        assert_true(rc == 0 || rc == EW_ERR_MEMORY);
    } while (rc != 0);
    ew_alloc_fail_at(0);
    assert_true(n > 5);
    collect(service, &id, &answer, 1);
    assert_int_equal(answer.n, 5);
    ew_service_stop(service);
    ew_model_close(model);
}

// Nobody fetches, and the memory for what waits cannot grow: the request ends with an error, what came before is there.
static void no_memory_for_an_answer_ends_it(void **state)
{
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    double end_s = ew_clock_s() + PATIENCE_S;
    struct answer alone, answer = {.n = 0};
    struct ew_service_stats stats;
    struct ew_request request;
    int32_t prompt[10];
    uint64_t id;

    (void)state;
    random_ids(7, prompt, 10);
    request = request_for(prompt, 10, 110);
    alone = run_one(service, &request);
    assert_int_equal(ew_service_submit(service, &request, &id, NULL), 0);
    ew_alloc_fail_at(1);
    do {
        nap();
        ew_service_stats(service, &stats);
        assert_true(ew_clock_s() < end_s);
    } while (stats.engine.n_finished[EW_FINISH_ERROR] == 0);
    ew_alloc_fail_at(0);
    collect(service, &id, &answer, 1);
    assert_int_equal(answer.last.finish, EW_FINISH_ERROR);
    assert_int_equal(answer.last.error.code, EW_ERR_MEMORY);
    assert_in_range(answer.n, 1, 109);
    assert_memory_equal(answer.ids, alone.ids, answer.n * sizeof(int32_t));
    assert_int_equal(run_one(service, &request).n, 110);
    ew_service_stop(service);
    ew_model_close(model);
}

// From each request's first tokens to the end of all, on both sides of the queue.
static void decoding_allocates_nothing(void **state)
{
    enum { N = 4 };
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service;
    struct ew_service_event event;
    struct ew_request request;
    double end_s = ew_clock_s() + PATIENCE_S;
    uint32_t n_tokens = 0, n_finished = 0;
    uint64_t before = 0, id;
    int32_t prompt[10];

    (void)state;
    config.engine.reuse = true;
    service = start(model, &config);
    random_ids(5, prompt, 10);
    request = request_for(prompt, 10, 60);
    request.n_logprobs = 3;
    request.sampling.temperature = 1;
    request.sampling.top_p = 0.9f;
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(ew_service_submit(service, &request, &id, NULL), 0);
    while (n_finished < N) {
        assert_true(ew_clock_s() < end_s);
        if (!ew_service_next_event(service, &event)) {
            nap();
            continue;
        }
        n_tokens += event.n_tokens;
        n_finished += event.kind == EW_EVENT_FINISHED;
        if (before == 0 && n_tokens >= N)
            before = ew_alloc_count();
    }
    assert_int_equal(n_tokens, 60 * N);
    assert_int_equal(ew_alloc_count(), before);
    ew_service_stop(service);
    ew_model_close(model);
}

// ---- many threads at once ------------------------------------------------------------------------------------------

struct submitter {
    struct ew_service *service;
    uint64_t seed;
    atomic_uint *n_taken;
    pthread_t thread;
};

static void *submit_some(void *arg)
{
    struct submitter *submitter = arg;
    struct ew_rng rng = ew_rng_at(submitter->seed, 7);
    int32_t prompt[60];

    for (uint32_t i = 0; i < 20; i++) {
        struct ew_request request;
        struct ew_service_stats stats;
        uint64_t id;

        random_ids(submitter->seed * 100 + i, prompt, 60);
        request = request_for(prompt, 1 + ew_rng_below(&rng, 59), 1 + ew_rng_below(&rng, 30));
        if (ew_service_submit(submitter->service, &request, &id, NULL) == 0) {
            atomic_fetch_add(submitter->n_taken, 1);
            if (ew_rng_below(&rng, 3) == 0)
                ew_service_cancel(submitter->service, id);
        }
        ew_service_stats(submitter->service, &stats);
        nap();
    }
    return NULL;
}

static void threads_submit_and_cancel_at_once(void **state)
{
    enum { N = 3 };
    struct ew_model *model = open_model();
    struct ew_service_config config = small_config();
    struct ew_service *service = start(model, &config);
    struct submitter submitters[N];
    struct ew_service_event event;
    double end_s = ew_clock_s() + PATIENCE_S;
    uint32_t n_finished = 0, n_joined = 0;
    atomic_uint n_taken = 0;

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        submitters[i] = (struct submitter){.service = service, .seed = i + 1, .n_taken = &n_taken};
        assert_int_equal(pthread_create(&submitters[i].thread, NULL, submit_some, &submitters[i]), 0);
    }
    while (n_joined < N || n_finished < atomic_load(&n_taken)) {
        assert_true(ew_clock_s() < end_s);
        while (ew_service_next_event(service, &event))
            n_finished += event.kind == EW_EVENT_FINISHED;
        if (n_joined < N && pthread_tryjoin_np(submitters[n_joined].thread, NULL) == 0)
            n_joined++;
        nap();
    }
    assert_int_equal(n_finished, atomic_load(&n_taken));
    ew_service_stop(service);
    ew_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_of_a_crowd_are_answered_as_alone),
        cmocka_unit_test(a_full_queue_refuses),
        cmocka_unit_test(what_makes_no_sense_is_refused_at_once),
        cmocka_unit_test(cancelling_ends_running_and_waiting_requests),
        cmocka_unit_test(a_slow_consumer_gets_everything_merged),
        cmocka_unit_test(stopping_with_work_under_way_leaks_nothing),
        cmocka_unit_test(no_memory_for_a_request_is_its_own_error),
        cmocka_unit_test(no_memory_for_an_answer_ends_it),
        cmocka_unit_test(decoding_allocates_nothing),
        cmocka_unit_test(threads_submit_and_cancel_at_once),
    };

    return cmocka_run_group_tests_name("service", tests, NULL, NULL);
}
