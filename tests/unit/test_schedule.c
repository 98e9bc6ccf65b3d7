// schedule: who runs when, and what becomes of those who must wait, give way or fail; on a tiny model.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "engine/schedule.h"
#include "fixture.h"

#define ANSWER_MAX 128
#define N_VOCAB 320
#define CONTEXT 128

struct answer {
    int32_t ids[ANSWER_MAX];
    uint32_t n;
    uint32_t place; // finished as the place-th, from 1
    struct ew_event last;
};

static struct ew_model *open_model(const char *fixture)
{
    char path[512];
    struct ew_model *model = NULL;
    struct ew_error err = {0};

    if (!fixture_find(path, sizeof(path), fixture))
        skip();
    if (ew_model_open(path, &model, &err) < 0)
        fail_msg("%s", err.message);
    return model;
}

static struct ew_engine_config small_config(void)
{
    return (struct ew_engine_config){
        .backend = "cpu",
        .device = {.n_threads = 2, .kernels = EW_KERNELS_REFERENCE, .deterministic = true},
        .kv = EW_KV_F32,
        .context_max = CONTEXT,
        .max_num_tokens = 16,
        .chunk = 7,
        .max_batch_size = 4,
        .reuse = true,
    };
}

static struct ew_engine *create(const struct ew_model *model, const struct ew_engine_config *config)
{
    struct ew_engine *engine = NULL;
    struct ew_error err = {0};

    if (ew_engine_create(model, NULL, config, &engine, &err) < 0)
        fail_msg("%s", err.message);
    return engine;
}

static struct ew_engine_stats stats_of(const struct ew_engine *engine)
{
    struct ew_engine_stats stats;

    ew_engine_stats(engine, &stats);
    return stats;
}

// The same with only this share of the cache blocks that the sequences of a batch could fill.
static struct ew_engine *create_short(const struct ew_model *model, const struct ew_engine_config *config, double share)
{
    struct ew_engine_config smaller = *config;
    struct ew_engine *engine = create(model, config);
    struct ew_engine_stats stats = stats_of(engine);
    uint64_t fixed = stats.need.weight_bytes + stats.need.workspace_bytes + engine->core.fit.host_bytes;

    ew_engine_destroy(engine);
    smaller.memory_budget = fixed + (uint64_t)(share * (double)stats.need.cache_bytes);
    return create(model, &smaller);
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

static uint64_t submit(struct ew_engine *engine, const struct ew_request *request)
{
    struct ew_error err = {0};
    uint64_t id = 0;

    if (ew_engine_submit(engine, request, &id, &err) < 0)
        fail_msg("%s", err.message);
    return id;
}

// Takes what the last step brought; answers[i] is that of ids[i].
static void collect(struct ew_engine *engine, const uint64_t *ids, struct answer *answers, uint32_t n, uint32_t *place)
{
    struct ew_event event;

    while (ew_engine_next_event(engine, &event)) {
        uint32_t i = 0;

        while (i < n && ids[i] != event.request)
            i++;
        assert_true(i < n);
        if (event.kind == EW_EVENT_TOKEN) {
            answers[i].ids[answers[i].n++] = event.token;
        } else {
            answers[i].last = event;
            answers[i].place = ++*place;
        }
    }
}

static void run_all(struct ew_engine *engine, const uint64_t *ids, struct answer *answers, uint32_t n)
{
    uint32_t place = 0;
    bool idle = false;

    for (uint32_t i = 0; i < n; i++)
        answers[i] = (struct answer){0};
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        collect(engine, ids, answers, n, &place);
    }
    assert_int_equal(place, n);
}

static struct answer run_one(struct ew_engine *engine, const struct ew_request *request)
{
    struct answer answer;
    uint64_t id = submit(engine, request);

    run_all(engine, &id, &answer, 1);
    return answer;
}

static void assert_same(const struct answer *a, const struct answer *b)
{
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, a->n * sizeof(int32_t));
}

// With nothing to do, all blocks are free or the tree's alone.
static void assert_at_rest(const struct ew_engine *engine)
{
    struct ew_engine_stats stats = stats_of(engine);

    assert_int_equal(stats.n_waiting + stats.n_prefilling + stats.n_decoding, 0);
    assert_int_equal(stats.blocks_used, stats.blocks_cached);
    assert_int_equal(engine->n_running, 0);
    for (uint32_t i = 0; i < engine->shares.count; i++)
        assert_int_equal(engine->shares.list[i].n_jobs, 0);
}

// ---- too little memory for all -------------------------------------------------------------------------------------

enum { N_CROWD = 7 };

struct crowd {
    int32_t prompts[N_CROWD][40];
    struct ew_request requests[N_CROWD];
    struct answer alone[N_CROWD], together[N_CROWD];
    uint64_t ids[N_CROWD];
};

// Half of them draw at random: their draws depend on seed and position alone.
static void make_crowd(struct crowd *crowd, struct ew_engine *engine)
{
    for (uint32_t i = 0; i < N_CROWD; i++) {
        random_ids(i, crowd->prompts[i], 40);
        crowd->requests[i] = request_for(crowd->prompts[i], 10 + 5 * i, 80);
        crowd->requests[i].sampling.temperature = i % 2 ? 0.8f : 0;
        crowd->requests[i].sampling.seed = i;
        crowd->requests[i].no_reuse = true;
        crowd->alone[i] = run_one(engine, &crowd->requests[i]);
        assert_int_equal(crowd->alone[i].n, 80);
    }
}

static void run_crowd(struct crowd *crowd, struct ew_engine *engine)
{
    for (uint32_t i = 0; i < N_CROWD; i++)
        crowd->ids[i] = submit(engine, &crowd->requests[i]);
    run_all(engine, crowd->ids, crowd->together, N_CROWD);
    for (uint32_t i = 0; i < N_CROWD; i++) {
        assert_int_equal(crowd->together[i].last.finish, EW_FINISH_LENGTH);
        assert_same(&crowd->together[i], &crowd->alone[i]);
    }
    assert_at_rest(engine);
}

static void preempted_requests_finish_with_the_same_text_in(const char *fixture, bool reuse)
{
    struct ew_model *model = open_model(fixture);
    struct ew_engine_config config = small_config();
    struct crowd crowd;
    struct ew_engine *engine;
    uint64_t n_preempted = 0;

    config.policy = EW_POLICY_MAX_UTILIZATION;
    config.max_sessions = 6;
    config.block_tokens = 4;
    config.reuse = reuse;
    engine = create_short(model, &config, 0.35);
    make_crowd(&crowd, engine);
    assert_int_equal(stats_of(engine).n_preempted, 0);
    run_crowd(&crowd, engine);
    for (uint32_t i = 0; i < N_CROWD; i++)
        n_preempted += crowd.together[i].last.n_preempted;
    assert_true(n_preempted > 0);
    assert_int_equal(stats_of(engine).n_preempted, n_preempted);
    assert_true(stats_of(engine).recomputed_tokens > 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void preempted_requests_finish_with_the_same_text(void **state)
{
    (void)state;
    preempted_requests_finish_with_the_same_text_in("models/llama_default", true);
    preempted_requests_finish_with_the_same_text_in("models/llama_default", false);
}

static void windows_are_preempted_too(void **state)
{
    (void)state;
    preempted_requests_finish_with_the_same_text_in("models/gemma2", true); // full and window groups
}

static void states_are_preempted_too(void **state)
{
    (void)state;
    preempted_requests_finish_with_the_same_text_in("models/qwen3_next", true);
    preempted_requests_finish_with_the_same_text_in("models/qwen3_5_text", false);
}

static void no_evict_never_preempts(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct crowd crowd;

    (void)state;
    config.max_sessions = 6;
    config.block_tokens = 4;
    engine = create_short(model, &config, 0.35);
    make_crowd(&crowd, engine);
    run_crowd(&crowd, engine);
    assert_int_equal(stats_of(engine).n_preempted, 0);
    assert_int_equal(stats_of(engine).recomputed_tokens, 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// ---- turns, priorities, clients, deadlines -------------------------------------------------------------------------

static void more_requests_than_slots_take_turns(void **state)
{
    enum { N = 5 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request requests[N];
    struct answer alone[N], together[N] = {0};
    int32_t ids[N][12];
    uint64_t taken[N];
    uint32_t place = 0;
    bool idle = false;

    (void)state;
    config.max_batch_size = 2;
    config.max_sessions = N;
    engine = create(model, &config);
    for (uint32_t i = 0; i < N; i++) {
        random_ids(i, ids[i], 12);
        requests[i] = request_for(ids[i], 12, 40);
        alone[i] = run_one(engine, &requests[i]);
    }
    for (uint32_t i = 0; i < N; i++)
        taken[i] = submit(engine, &requests[i]);
    for (uint32_t step = 0; step < 60; step++) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        assert_true(stats_of(engine).n_batch_last <= 2);
        collect(engine, taken, together, N, &place);
    }
    for (uint32_t i = 0; i < N; i++)
        assert_in_range(together[i].n, 15, 30); // none runs ahead, none is left behind
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        collect(engine, taken, together, N, &place);
    }
    for (uint32_t i = 0; i < N; i++)
        assert_same(&together[i], &alone[i]);
    assert_at_rest(engine);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void higher_priorities_go_first(void **state)
{
    enum { N = 4 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct answer answers[N];
    int32_t ids[8];
    uint64_t taken[N];
    static const int32_t priorities[N] = {0, -1, 0, 5};
    static const uint32_t places[N] = {2, 4, 3, 1};

    (void)state;
    config.max_batch_size = 1;
    engine = create(model, &config);
    random_ids(1, ids, 8);
    for (uint32_t i = 0; i < N; i++) {
        struct ew_request request = request_for(ids, 8, 5);

        request.priority = priorities[i];
        taken[i] = submit(engine, &request);
    }
    run_all(engine, taken, answers, N);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(answers[i].place, places[i]);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// Memory for one: whoever matters more takes it from who came before, and both answer as alone.
static void a_higher_priority_takes_blocks_away(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request low, high;
    struct answer alone[2], together[2] = {0};
    int32_t ids[2][40];
    uint64_t taken[2];
    uint32_t place = 0;
    bool idle = false;

    (void)state;
    config.policy = EW_POLICY_MAX_UTILIZATION;
    config.max_batch_size = 2;
    engine = create_short(model, &config, 0.5);
    random_ids(1, ids[0], 40);
    random_ids(2, ids[1], 40);
    low = request_for(ids[0], 40, 70);
    high = request_for(ids[1], 40, 70);
    high.priority = 1;
    alone[0] = run_one(engine, &low);
    alone[1] = run_one(engine, &high);
    taken[0] = submit(engine, &low);
    taken[1] = 0;
    for (uint32_t i = 0; i < 40; i++) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        collect(engine, taken, together, 1, &place);
    }
    taken[1] = submit(engine, &high);
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        collect(engine, taken, together, 2, &place);
    }
    assert_int_equal(together[1].place, 1);
    assert_true(together[0].last.n_preempted > 0);
    assert_int_equal(together[1].last.n_preempted, 0);
    assert_same(&together[0], &alone[0]);
    assert_same(&together[1], &alone[1]);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// One client fills the queue, another comes later: they alternate from then on.
static void clients_share_fairly(void **state)
{
    enum { N = 8 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct answer answers[N];
    int32_t ids[8];
    uint64_t taken[N];

    (void)state;
    config.max_batch_size = 1;
    config.reuse = false;
    engine = create(model, &config);
    random_ids(1, ids, 8);
    for (uint32_t i = 0; i < N; i++) {
        struct ew_request request = request_for(ids, 8, 5);

        request.client = i < 6 ? 11 : 22;
        taken[i] = submit(engine, &request);
    }
    run_all(engine, taken, answers, N);
    assert_int_equal(answers[0].place, 1);
    assert_int_equal(answers[6].place, 2);
    assert_int_equal(answers[1].place, 3);
    assert_int_equal(answers[7].place, 4);
    assert_int_equal(answers[5].place, 8);
    assert_at_rest(engine);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void many_clients_do_not_run_out_of_entries(void **state)
{
    struct ew_shares shares = {0};

    (void)state;
    for (uint64_t c = 1; c <= 2 * EW_SHARES_MAX; c++)
        assert_int_equal(ew_shares_enter(&shares, c), c < EW_SHARES_MAX ? c : 0);
    ew_shares_leave(&shares, 7);
    assert_int_equal(ew_shares_enter(&shares, 99999), 7);
    shares.list[3].served = 50;
    assert_int_equal(ew_shares_enter(&shares, 3), 3);
    assert_float_equal(shares.list[3].served, 50, 0);
}

static void deadlines_end_requests(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct answer answers[3];
    struct ew_request request;
    int32_t ids[8];
    uint64_t taken[3];

    (void)state;
    config.max_batch_size = 1;
    engine = create(model, &config);
    random_ids(1, ids, 8);
    request = request_for(ids, 8, 20);
    taken[0] = submit(engine, &request);
    request.deadline_s = 1e-9;
    taken[1] = submit(engine, &request);
    request.deadline_s = 3600;
    taken[2] = submit(engine, &request);
    run_all(engine, taken, answers, 3);
    assert_int_equal(answers[0].last.finish, EW_FINISH_LENGTH);
    assert_int_equal(answers[1].last.finish, EW_FINISH_DEADLINE);
    assert_int_equal(answers[1].n, 0);
    assert_int_equal(answers[2].last.finish, EW_FINISH_LENGTH);
    assert_at_rest(engine);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// ---- settings ------------------------------------------------------------------------------------------------------

static void whole_prompts_are_not_cut(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request request;
    struct answer answer;
    int32_t ids[40];
    uint64_t id, steps;

    (void)state;
    config.whole_prompts = true;
    config.max_num_tokens = 33;
    engine = create(model, &config);
    random_ids(1, ids, 40);
    request = request_for(ids, 30, 5);
    answer = run_one(engine, &request);
    assert_int_equal(answer.n, 5);
    steps = stats_of(engine).steps;
    assert_int_equal(steps, 5);
    request = request_for(ids, 31, 5); // a step also has to hold three other sequences' tokens
    assert_int_equal(ew_engine_submit(engine, &request, &id, NULL), EW_ERR_LIMIT);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void one_block_a_sequence_answers_as_paging_does(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *paged = create(model, &config), *contiguous;
    struct crowd crowd;

    (void)state;
    config.contiguous = true;
    contiguous = create(model, &config);
    assert_int_equal(stats_of(contiguous).blocks_total, config.max_batch_size);
    make_crowd(&crowd, paged);
    run_crowd(&crowd, contiguous);
    ew_engine_destroy(paged);
    ew_engine_destroy(contiguous);
    ew_model_close(model);
}

static void caches_take_their_share_of_the_memory(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_engine_stats stats = stats_of(engine);
    uint64_t fixed = stats.need.weight_bytes + stats.need.workspace_bytes;

    (void)state;
    ew_engine_destroy(engine);
    config.memory_budget = fixed + 2 * (stats.need.cache_bytes + (256 << 10));
    config.cache_fraction = 0.5;
    engine = create(model, &config);
    assert_int_equal(stats_of(engine).need.cache_bytes, stats.need.cache_bytes);
    ew_engine_destroy(engine);
    config.cache_fraction = 0.25;
    engine = create(model, &config);
    assert_true(stats_of(engine).need.cache_bytes <= (config.memory_budget - fixed) / 4);
    assert_true(stats_of(engine).need.cache_bytes > stats.need.cache_bytes / 3);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// ---- failures ------------------------------------------------------------------------------------------------------

static struct ew_backend_ops g_failing;
static int (*g_submit)(struct ew_backend *backend, const struct ew_batch *batch, struct ew_error *err);
static uint32_t g_fail_in;

static int failing_submit(struct ew_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    if (g_fail_in && --g_fail_in == 0)
        return ew_fail(err, EW_ERR_DEVICE, "the device is gone");
    return g_submit(backend, batch, err);
}

static void make_failing(struct ew_engine *engine)
{
    struct ew_backend *backend = engine->core.backend;

    g_failing = *backend->ops;
    g_submit = backend->ops->submit;
    g_failing.submit = failing_submit;
    backend->ops = &g_failing;
}

static void a_failed_step_ends_its_requests_and_no_others(void **state)
{
    enum { N = 5 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request requests[N];
    struct answer alone[N], answers[N] = {0};
    struct ew_error err = {0};
    int32_t ids[N][20];
    uint64_t taken[N];
    uint32_t place = 0;
    bool idle = false;

    (void)state;
    config.max_batch_size = 2;
    engine = create(model, &config);
    make_failing(engine);
    for (uint32_t i = 0; i < N; i++) {
        random_ids(i, ids[i], 20);
        requests[i] = request_for(ids[i], 20, 30);
        alone[i] = run_one(engine, &requests[i]);
    }
    for (uint32_t i = 0; i < N; i++)
        taken[i] = submit(engine, &requests[i]);
    g_fail_in = 10;
    while (!idle) {
        int rc = ew_engine_step(engine, &idle, &err);

        assert_true(rc == 0 || rc == EW_ERR_DEVICE);
        collect(engine, taken, answers, N, &place);
    }
    assert_string_equal(err.message, "the device is gone");
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(answers[i].last.finish, EW_FINISH_ERROR);
        assert_int_equal(answers[i].last.error.code, EW_ERR_DEVICE);
        assert_memory_equal(answers[i].ids, alone[i].ids, answers[i].n * sizeof(int32_t)); // what came before is right
    }
    for (uint32_t i = 2; i < N; i++)
        assert_same(&answers[i], &alone[i]);
    assert_int_equal(stats_of(engine).n_finished[EW_FINISH_ERROR], 2);
    assert_at_rest(engine);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void no_memory_for_a_request_is_its_own_error(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_request request;
    struct answer answer;
    int32_t ids[20];
    uint64_t id, n = 0;
    int rc;

    (void)state;
    random_ids(1, ids, 20);
    request = request_for(ids, 20, 5);
    do {
        ew_alloc_fail_at(++n);
        rc = ew_engine_submit(engine, &request, &id, NULL);
        assert_true(rc == 0 || rc == EW_ERR_MEMORY);
    } while (rc == EW_ERR_MEMORY);
    ew_alloc_fail_at(0);
    assert_true(n > 1);
    run_all(engine, &id, &answer, 1);
    assert_int_equal(answer.n, 5);
    assert_at_rest(engine);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void no_memory_for_the_engine_leaves_nothing_behind(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = NULL;
    int rc = EW_ERR_MEMORY;

    (void)state;
    for (uint64_t n = 1; rc < 0; n += 1 + n / 8) {
        struct ew_error err = {0};

        ew_alloc_fail_at(n);
        rc = ew_engine_create(model, NULL, &config, &engine, &err);
        assert_true(rc == 0 || (rc == EW_ERR_MEMORY && err.message[0]));
    }
    ew_alloc_fail_at(0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// ---- at random -----------------------------------------------------------------------------------------------------

struct storm {
    struct ew_engine *engine;
    struct ew_rng rng;
    uint32_t n_open;
    uint64_t open[32];
};

static void submit_something(struct storm *storm)
{
    int32_t ids[100];
    struct ew_request request;
    uint32_t n = 1 + ew_rng_below(&storm->rng, 90);

    for (uint32_t i = 0; i < n; i++) // prefixes meet
        ids[i] = (int32_t)(i + 100 * (i > 8) * ew_rng_below(&storm->rng, 2) * (i % 16 == 0));
    request = request_for(ids, n, 1 + ew_rng_below(&storm->rng, 60));
    request.sampling.temperature = (float)ew_rng_below(&storm->rng, 2);
    request.sampling.seed = ew_rng_u32(&storm->rng);
    request.priority = (int32_t)ew_rng_below(&storm->rng, 3) - 1;
    request.client = ew_rng_below(&storm->rng, 4);
    request.no_reuse = ew_rng_below(&storm->rng, 5) == 0;
    request.deadline_s = ew_rng_below(&storm->rng, 20) == 0 ? 1e-4 : 0;
    storm->open[storm->n_open++] = submit(storm->engine, &request);
}

static void close_finished(struct storm *storm)
{
    struct ew_event event;

    while (ew_engine_next_event(storm->engine, &event)) {
        for (uint32_t i = 0; i < storm->n_open && event.kind == EW_EVENT_FINISHED; i++)
            if (storm->open[i] == event.request)
                storm->open[i] = storm->open[--storm->n_open];
    }
}

// Blocks are held by running sequences or kept by the tree, and never more than there are.
static void check_books(const struct ew_engine *engine)
{
    const struct ew_cache *cache = &engine->core.cache;

    for (uint32_t g = 0; g < cache->n_groups; g++) {
        const struct ew_cache_pool *pool = &cache->pools[g];
        uint32_t n_free = 0, n_held = 0;
        uint64_t refs = 0, tables = 0;

        for (uint32_t b = 0; b < pool->n_blocks; b++) {
            n_free += pool->n_refs[b] == 0;
            n_held += pool->node[b] != EW_NODE_NONE;
            refs += pool->n_refs[b];
        }
        for (uint32_t s = 0; s < engine->core.fit.n_resident; s++)
            tables += engine->core.seqs[s].n_blocks[g] - engine->core.seqs[s].first[g];
        assert_int_equal(n_free, pool->n_free);
        assert_int_equal(refs, tables + n_held);
    }
}

static void rage(struct ew_engine *engine, uint64_t seed)
{
    struct storm storm = {.engine = engine, .rng = ew_rng_at(seed, 0)};
    bool idle = false;

    for (uint32_t i = 0; i < 600; i++) {
        if (storm.n_open < 30 && ew_rng_below(&storm.rng, 3) == 0)
            submit_something(&storm);
        if (storm.n_open && ew_rng_below(&storm.rng, 12) == 0)
            ew_engine_cancel(engine, storm.open[ew_rng_below(&storm.rng, storm.n_open)]);
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        close_finished(&storm);
        check_books(engine);
    }
    for (idle = false; !idle;) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        close_finished(&storm);
    }
    assert_int_equal(storm.n_open, 0);
    assert_at_rest(engine);
}

static void the_books_balance_whatever_happens(void **state)
{
    static const char *const fixtures[] = {"models/llama_default", "models/gemma2", "models/mistral_swa",
                                           "models/llama_default", "models/nemotron_h_moe"};
    uint64_t seed = getenv("EW_SEED") ? strtoull(getenv("EW_SEED"), NULL, 10) : 1;

    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout); // a failed assert loses what is buffered
    for (uint32_t i = 0; i < 2 * EW_COUNT_OF(fixtures); i++) {
        struct ew_model *model = open_model(fixtures[i / 2]);
        struct ew_engine_config config = small_config();
        struct ew_engine *engine;

        config.device.kernels = EW_KERNELS_AUTO; // nobody asks what the answers are
        config.device.n_threads = 1;
        config.policy = i % 2 ? EW_POLICY_MAX_UTILIZATION : EW_POLICY_GUARANTEED_NO_EVICT;
        config.block_tokens = 4;
        config.max_batch_size = 3;
        config.max_sessions = 5;
        config.contiguous = i / 2 == 3;
        engine = create_short(model, &config, i / 2 == 2 ? 1 : 0.65); // windows have what they need, or do not start
        rage(engine, seed + i);
        ew_engine_destroy(engine);
        ew_model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(preempted_requests_finish_with_the_same_text),
        cmocka_unit_test(windows_are_preempted_too),
        cmocka_unit_test(states_are_preempted_too),
        cmocka_unit_test(no_evict_never_preempts),
        cmocka_unit_test(more_requests_than_slots_take_turns),
        cmocka_unit_test(higher_priorities_go_first),
        cmocka_unit_test(a_higher_priority_takes_blocks_away),
        cmocka_unit_test(clients_share_fairly),
        cmocka_unit_test(many_clients_do_not_run_out_of_entries),
        cmocka_unit_test(deadlines_end_requests),
        cmocka_unit_test(whole_prompts_are_not_cut),
        cmocka_unit_test(one_block_a_sequence_answers_as_paging_does),
        cmocka_unit_test(caches_take_their_share_of_the_memory),
        cmocka_unit_test(a_failed_step_ends_its_requests_and_no_others),
        cmocka_unit_test(no_memory_for_a_request_is_its_own_error),
        cmocka_unit_test(no_memory_for_the_engine_leaves_nothing_behind),
        cmocka_unit_test(the_books_balance_whatever_happens),
    };

    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
