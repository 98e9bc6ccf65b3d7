// engine: requests, reuse, batches and memory, on a tiny model with the reference kernels.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "engine/schedule.h"
#include "fixture.h"

#define ANSWER_MAX 128
#define N_VOCAB 320

struct answer {
    int32_t ids[ANSWER_MAX];
    uint32_t n;
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
        .device = {.n_threads = 2, .kernels = EW_KERNELS_REFERENCE},
        .kv = EW_KV_F32,
        .context_max = 128,
        .max_num_tokens = 16,
        .chunk = 7,
        .max_batch_size = 4,
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

// Runs until all are finished; answers[i] is that of ids[i].
static void run_all(struct ew_engine *engine, const uint64_t *ids, struct answer *answers, uint32_t n)
{
    struct ew_event event;
    bool idle = false;

    for (uint32_t i = 0; i < n; i++)
        answers[i].n = 0;
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        while (ew_engine_next_event(engine, &event)) {
            struct answer *answer = answers;

            for (uint32_t i = 0; i < n; i++)
                answer = ids[i] == event.request ? &answers[i] : answer;
            if (event.kind == EW_EVENT_TOKEN)
                answer->ids[answer->n++] = event.token;
            else
                answer->last = event;
        }
    }
}

static struct answer run_one(struct ew_engine *engine, const struct ew_request *request)
{
    struct answer answer = {.n = 0};
    uint64_t id = submit(engine, request);

    run_all(engine, &id, &answer, 1);
    return answer;
}

static uint32_t blocks_used(const struct ew_engine *engine)
{
    struct ew_engine_stats stats;

    ew_engine_stats(engine, &stats);
    return stats.blocks_used;
}

static void a_batch_answers_as_each_request_alone(void **state)
{
    enum { N = 7 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct answer alone[N], together[N];
    struct ew_request requests[N];
    int32_t prompts[N][40];
    uint64_t ids[N];

    (void)state;
    for (uint32_t i = 0; i < N; i++) {
        random_ids(i, prompts[i], 40);
        requests[i] = request_for(prompts[i], 1 + 6 * i, 10 + i);
        requests[i].sampling.temperature = i % 2 ? 0.8f : 0;
        requests[i].sampling.seed = i;
        requests[i].sampling.top_k = 50;
        alone[i] = run_one(engine, &requests[i]);
        assert_int_equal(alone[i].n, 10 + i);
        assert_int_equal(alone[i].last.finish, EW_FINISH_LENGTH);
    }
    for (uint32_t i = 0; i < N; i++)
        ids[i] = submit(engine, &requests[i]);
    run_all(engine, ids, together, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(together[i].n, alone[i].n);
        assert_memory_equal(together[i].ids, alone[i].ids, alone[i].n * sizeof(int32_t));
    }
    assert_int_equal(blocks_used(engine), 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// state: the fixture, for caches of keys and values and for those of latents.
static void turns_compute_only_what_is_new(void **state)
{
    struct ew_model *model = open_model(*state);
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_engine_stats before, after;
    struct ew_request request;
    struct answer first, second, fresh;
    int32_t ids[64];

    config.reuse = true;
    engine = create(model, &config);
    random_ids(1, ids, 64);
    request = request_for(ids, 20, 8);
    first = run_one(engine, &request);
    assert_int_equal(first.last.n_reused, 0);

    memcpy(ids + 20, first.ids, 8 * sizeof(*ids));
    request.n_ids = 33;
    ew_engine_stats(engine, &before);
    second = run_one(engine, &request);
    ew_engine_stats(engine, &after);
    assert_int_equal(second.last.n_reused, 27); // the answer's last token was never fed
    assert_int_equal(after.prefill_tokens - before.prefill_tokens, 6);
    assert_int_equal(after.reused_tokens, 27);
    request.no_reuse = true;
    fresh = run_one(engine, &request);
    assert_int_equal(fresh.last.n_reused, 0);
    assert_memory_equal(second.ids, fresh.ids, 8 * sizeof(*ids));
    request.no_reuse = false;

    ids[10] = (ids[10] + 1) % N_VOCAB;
    second = run_one(engine, &request);
    assert_int_equal(second.last.n_reused, 10); // up to where the prompts differ
    second = run_one(engine, &request);
    assert_int_equal(second.last.n_reused, 32); // the same prompt: all but the token whose logits are needed
    ew_engine_stats(engine, &after);
    assert_true(after.blocks_used > 0);
    assert_int_equal(after.blocks_used, after.blocks_cached);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// ---- conversations of models with states ---------------------------------------------------------------------------

struct turn {
    struct answer answer;
    float logprobs[ANSWER_MAX];
};

static void run_turn(struct ew_engine *engine, const struct ew_request *request, struct turn *turn)
{
    struct ew_event event;
    bool idle = false;

    turn->answer.n = 0;
    submit(engine, request);
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        while (ew_engine_next_event(engine, &event)) {
            if (event.kind != EW_EVENT_TOKEN) {
                turn->answer.last = event;
                continue;
            }
            turn->logprobs[turn->answer.n] = event.logprobs[0].logprob;
            turn->answer.ids[turn->answer.n++] = event.token;
        }
    }
}

// Runs it with what was kept, and anew; bit for bit the same. Returns how much was reused.
static uint32_t run_both_ways(struct ew_engine *engine, struct ew_request *request, struct turn *turn)
{
    struct turn fresh;

    request->n_logprobs = 1;
    request->no_reuse = false;
    run_turn(engine, request, turn);
    request->no_reuse = true;
    run_turn(engine, request, &fresh);
    assert_int_equal(fresh.answer.last.n_reused, 0);
    assert_int_equal(turn->answer.n, fresh.answer.n);
    assert_memory_equal(turn->answer.ids, fresh.answer.ids, fresh.answer.n * sizeof(int32_t));
    assert_memory_equal(turn->logprobs, fresh.logprobs, fresh.answer.n * sizeof(float));
    return turn->answer.last.n_reused;
}

// state: the fixture.
static void turns_go_on_from_states(void **state)
{
    struct ew_model *model = open_model(*state);
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request request;
    struct turn turn;
    int32_t ids[128];

    config.reuse = true;
    config.block_tokens = 4;
    config.chunk = config.max_num_tokens = 64;
    engine = create(model, &config);
    random_ids(1, ids, 128);
    request = request_for(ids, 30, 8);
    assert_int_equal(run_both_ways(engine, &request, &turn), 0);
    memcpy(ids + 30, turn.answer.ids, 8 * sizeof(*ids));

    request.n_ids = 60; // the whole answer, whose last token was never fed, and a second question
    assert_int_equal(run_both_ways(engine, &request, &turn), 37);
    ids[40] = (ids[40] + 1) % N_VOCAB; // another question
    assert_int_equal(run_both_ways(engine, &request, &turn), 37);
    ids[28] = (ids[28] + 1) % N_VOCAB; // another end of the first question: from the edge before it
    assert_int_equal(run_both_ways(engine, &request, &turn), 24);
    ids[3] = (ids[3] + 1) % N_VOCAB; // nothing is left of it
    assert_int_equal(run_both_ways(engine, &request, &turn), 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// Room for two prompts: the one that was used longest ago is forgotten.
static void prefixes_make_room(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_request requests[3];
    struct ew_engine *engine;
    int32_t ids[3][60];

    (void)state;
    config.reuse = true;
    config.max_batch_size = 1;
    engine = create(model, &config); // 8 blocks of 16 tokens
    for (uint32_t i = 0; i < 3; i++) {
        random_ids(20 + i, ids[i], 60);
        requests[i] = request_for(ids[i], 48, 4);
        assert_int_equal(run_one(engine, &requests[i]).last.n_reused, 0);
    }
    assert_int_equal(run_one(engine, &requests[2]).last.n_reused, 47);
    assert_int_equal(run_one(engine, &requests[1]).last.n_reused, 47);
    assert_true(run_one(engine, &requests[0]).last.n_reused < 16); // its first block at most
    assert_int_equal(run_one(engine, &requests[1]).last.n_reused, 47);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void cancelling_takes_effect_at_once(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request request;
    struct ew_event event;
    uint64_t running, waiting;
    int32_t ids[20];
    bool idle;

    (void)state;
    config.max_batch_size = 1;
    engine = create(model, &config);
    random_ids(3, ids, 20);
    request = request_for(ids, 20, 0);
    running = submit(engine, &request);
    waiting = submit(engine, &request);
    assert_int_equal(ew_engine_step(engine, &idle, NULL), 0); // in the middle of its prompt
    assert_true(blocks_used(engine) > 0);
    ew_engine_cancel(engine, waiting);
    ew_engine_cancel(engine, running);
    ew_engine_cancel(engine, 12345);
    assert_int_equal(blocks_used(engine), 0);
    for (uint32_t i = 0; i < 2; i++) {
        assert_true(ew_engine_next_event(engine, &event));
        assert_int_equal(event.kind, EW_EVENT_FINISHED);
        assert_int_equal(event.finish, EW_FINISH_CANCELLED);
        assert_int_equal(event.request, i == 0 ? running : waiting);
    }
    assert_false(ew_engine_next_event(engine, &event));
    assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
    assert_true(idle);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void a_step_waits_until_events_are_taken(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_engine_stats stats;
    struct ew_request request;
    struct ew_event event;
    int32_t id = 5;
    bool idle;

    (void)state;
    request = request_for(&id, 1, 3);
    submit(engine, &request);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        assert_false(idle);
    }
    ew_engine_stats(engine, &stats);
    assert_int_equal(stats.steps, 1);
    assert_true(ew_engine_next_event(engine, &event));
    assert_false(ew_engine_next_event(engine, &event));
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void the_context_ends_an_answer_or_refuses_a_prompt(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request request;
    struct answer answer;
    struct ew_error err;
    int32_t ids[64];
    uint64_t id;

    (void)state;
    config.context_max = 32;
    engine = create(model, &config);
    random_ids(4, ids, 64);
    request = request_for(ids, 29, 0);
    answer = run_one(engine, &request);
    assert_int_equal(answer.n, 3);
    assert_int_equal(answer.last.finish, EW_FINISH_CONTEXT);
    request = request_for(ids, 29, 3);
    assert_int_equal(run_one(engine, &request).last.finish, EW_FINISH_LENGTH);
    request = request_for(ids, 31, 10);
    answer = run_one(engine, &request);
    assert_int_equal(answer.n, 1);
    assert_int_equal(answer.last.finish, EW_FINISH_CONTEXT);
    request = request_for(ids, 32, 1);
    assert_int_equal(ew_engine_submit(engine, &request, &id, &err), EW_ERR_LIMIT);
    assert_non_null(strstr(err.message, "32 tokens"));
    request = request_for(ids, 0, 1);
    assert_int_equal(ew_engine_submit(engine, &request, &id, &err), EW_ERR_USAGE);
    ids[3] = N_VOCAB;
    request = request_for(ids, 8, 1);
    assert_int_equal(ew_engine_submit(engine, &request, &id, &err), EW_ERR_USAGE);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void end_of_sequence_ends_an_answer(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_logit_bias bias = {.bias = 1000};
    struct ew_request request;
    struct answer answer;
    int32_t ids[5];

    (void)state;
    random_ids(5, ids, 5);
    assert_true(model->tokens.n_eos > 0);
    bias.token = model->tokens.eos[0];
    request = request_for(ids, 5, 4);
    request.sampling.bias = &bias;
    request.sampling.n_bias = 1;
    answer = run_one(engine, &request);
    assert_int_equal(answer.n, 4); // request_for ignores it
    request.ignore_eos = false;
    answer = run_one(engine, &request);
    assert_int_equal(answer.n, 0);
    assert_int_equal(answer.last.finish, EW_FINISH_STOP);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void budgets_are_kept_or_refused_before_loading(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine_stats full, small;
    struct ew_engine *engine = create(model, &config);
    struct ew_error err = {0};
    uint64_t context_bytes;

    (void)state;
    ew_engine_stats(engine, &full);
    ew_engine_destroy(engine);
    context_bytes = full.need.cache_bytes / config.max_batch_size;

    config.memory_budget = full.need.total_bytes - context_bytes; // for the whole context, but not of all sequences
    engine = create(model, &config);
    ew_engine_stats(engine, &small);
    assert_int_equal(small.context_max, 128);
    assert_true(small.blocks_total < full.blocks_total);
    assert_true(small.need.total_bytes <= config.memory_budget);
    ew_engine_destroy(engine);

    config.memory_budget = full.need.weight_bytes / 2;
    assert_int_equal(ew_engine_create(model, NULL, &config, &engine, &err), EW_ERR_MEMORY);
    assert_non_null(strstr(err.message, "weights"));
    assert_non_null(strstr(err.message, "budget"));
    assert_true(err.remedy[0] != '\0');
    config.memory_budget = 1 << 20;
    config.reserve = 1 << 20;
    assert_int_equal(ew_engine_create(model, NULL, &config, &engine, &err), EW_ERR_MEMORY);
    ew_model_close(model);
}

static void a_context_that_was_not_asked_for_shrinks_to_the_budget(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine_stats full, small;
    struct ew_engine *engine;
    struct ew_request request;
    int32_t id = 1;

    (void)state;
    model->shape.context_trained = 4096;
    config.context_max = 0;
    engine = create(model, &config);
    ew_engine_stats(engine, &full);
    assert_int_equal(full.context_max, 4096);
    ew_engine_destroy(engine);

    config.memory_budget = full.need.total_bytes - full.need.cache_bytes +
                           full.need.cache_bytes / config.max_batch_size / 3;
    engine = create(model, &config);
    ew_engine_stats(engine, &small);
    assert_in_range(small.context_max, 1000, 2000);
    assert_true(small.need.total_bytes <= config.memory_budget);
    request = request_for(&id, 1, 5);
    assert_int_equal(run_one(engine, &request).n, 5);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// Half the blocks that four whole contexts would need: the requests take turns, none fails, none is evicted.
static void what_is_admitted_can_finish(void **state)
{
    enum { N = 6 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct answer answers[N];
    struct ew_engine_stats stats;
    struct ew_request request;
    int32_t ids[30];
    uint64_t taken[N];

    (void)state;
    ew_engine_stats(engine, &stats);
    ew_engine_destroy(engine);
    config.memory_budget = stats.need.total_bytes - stats.need.cache_bytes / 2;
    engine = create(model, &config);
    random_ids(6, ids, 30);
    request = request_for(ids, 30, 0);
    for (uint32_t i = 0; i < N; i++)
        taken[i] = submit(engine, &request);
    run_all(engine, taken, answers, N);
    for (uint32_t i = 0; i < N; i++) {
        assert_int_equal(answers[i].last.finish, EW_FINISH_CONTEXT);
        assert_int_equal(answers[i].n, 98);
        assert_memory_equal(answers[i].ids, answers[0].ids, 98 * sizeof(int32_t));
    }
    assert_int_equal(blocks_used(engine), 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void windows_keep_only_their_blocks(void **state)
{
    struct ew_model *model = open_model("models/mistral_swa"); // all layers see 16 tokens
    struct ew_engine_config config = small_config();
    struct ew_engine *engine;
    struct ew_request request;
    struct ew_event event;
    bool idle = false, finished = false;
    uint32_t most = 0;
    int32_t ids[60];

    (void)state;
    config.block_tokens = 4;
    engine = create(model, &config);
    random_ids(7, ids, 60);
    request = request_for(ids, 60, 60);
    submit(engine, &request);
    while (!finished) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        most = EW_MAX(most, blocks_used(engine));
        while (ew_engine_next_event(engine, &event))
            finished = event.kind == EW_EVENT_FINISHED;
    }
    assert_int_equal(event.n_new, 60);
    assert_true(most <= (16 + 7) / 4 + 3); // of 30 that 120 tokens would need
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void decoding_allocates_nothing(void **state)
{
    enum { N = 4 };
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_request request;
    struct ew_event event;
    uint64_t before = 0;
    int32_t ids[10];
    bool idle;

    (void)state;
    random_ids(8, ids, 10);
    request = request_for(ids, 10, 0);
    request.n_logprobs = 5;
    request.sampling.temperature = 1;
    request.sampling.top_k = 40;
    request.sampling.top_p = 0.9f;
    request.sampling.repetition_penalty = 1.1f;
    request.sampling.presence_penalty = 0.5f;
    for (uint32_t i = 0; i < N; i++)
        submit(engine, &request);
    for (uint32_t i = 0; i < 60; i++) {
        if (i == 10)
            before = ew_alloc_count();
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        while (ew_engine_next_event(engine, &event))
            assert_int_equal(event.kind, EW_EVENT_TOKEN);
    }
    assert_int_equal(ew_alloc_count(), before);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

static void logprobs_come_with_tokens(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct ew_request request;
    struct ew_event event;
    int32_t ids[3] = {1, 2, 3};
    bool idle = false;
    uint32_t n_tokens = 0;

    (void)state;
    request = request_for(ids, 3, 5);
    request.n_logprobs = 3;
    submit(engine, &request);
    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        while (ew_engine_next_event(engine, &event)) {
            if (event.kind != EW_EVENT_TOKEN)
                continue;
            n_tokens++;
            assert_int_equal(event.n_logprobs, 3);
            assert_int_equal(event.logprobs[0].token, event.token);
            assert_true(event.logprobs[0].logprob <= 0); // greedy: the best comes first
            assert_true(event.logprobs[0].logprob >= event.logprobs[1].logprob);
            assert_true(event.logprobs[1].logprob >= event.logprobs[2].logprob);
        }
    }
    assert_int_equal(n_tokens, 5);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// Makes the first sequence's logits of each step NaN, as a broken kernel or broken weights would.
static void spoil_first_row(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                            uint32_t width)
{
    (void)ctx;
    if (program->ops[op].out == program->logits && width == program->n_vocab && n_rows == 2)
        rows[17] = NAN;
}

static void one_failure_leaves_the_others_alone(void **state)
{
    struct ew_model *model = open_model("models/llama_default");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    struct answer answers[2], alone;
    struct ew_request request;
    int32_t ids[3] = {1, 2, 3};
    uint64_t taken[2];

    (void)state;
    request = request_for(ids, 3, 6);
    alone = run_one(engine, &request);
    engine->core.backend->ops->trace(engine->core.backend, spoil_first_row, NULL);
    taken[0] = submit(engine, &request);
    taken[1] = submit(engine, &request);
    run_all(engine, taken, answers, 2);
    assert_int_equal(answers[0].last.finish, EW_FINISH_ERROR);
    assert_int_equal(answers[0].last.error.code, EW_ERR_DEVICE);
    assert_int_equal(answers[1].last.finish, EW_FINISH_LENGTH);
    assert_memory_equal(answers[1].ids, alone.ids, 6 * sizeof(int32_t));
    assert_int_equal(blocks_used(engine), 0);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

// Events of n texts, in the order of ids; vectors are copied, [n, width].
static void run_texts(struct ew_engine *engine, const uint64_t *ids, struct ew_event *events, float *vectors,
                      uint32_t n)
{
    struct ew_event event;
    bool idle = false;

    while (!idle) {
        assert_int_equal(ew_engine_step(engine, &idle, NULL), 0);
        while (ew_engine_next_event(engine, &event)) {
            for (uint32_t i = 0; i < n; i++) {
                if (ids[i] != event.request)
                    continue;
                events[i] = event;
                if (event.vector)
                    memcpy(vectors + (size_t)i * event.n_vector, event.vector, event.n_vector * sizeof(float));
            }
        }
    }
}

#define TEXTS 5
#define WIDTH 64

static void texts_become_vectors_alone_as_in_a_step(void **state)
{
    static const char *const fixtures[] = {"models/bert_minilm_mean", "models/modernbert_cls",
                                           "models/qwen3_embedding_last"};

    (void)state;
    for (size_t f = 0; f < EW_COUNT_OF(fixtures); f++) {
        struct ew_model *model = open_model(fixtures[f]);
        struct ew_engine_config config = small_config();
        struct ew_engine *engine;
        int32_t ids[TEXTS][60];
        uint64_t taken[TEXTS];
        struct ew_event events[TEXTS];
        float together[TEXTS * WIDTH], alone[WIDTH];
        struct ew_request request;

        config.max_num_tokens = 128;
        engine = create(model, &config);
        for (uint32_t i = 0; i < TEXTS; i++) {
            random_ids(i + 1, ids[i], 60);
            request = request_for(ids[i], 12 * (i + 1), 0);
            taken[i] = submit(engine, &request);
        }
        run_texts(engine, taken, events, together, TEXTS);
        assert_true(engine->stats.steps < TEXTS); // 12 + 24 + 36 + 48 tokens fit into one
        for (uint32_t i = 0; i < TEXTS; i++) {
            assert_int_equal(events[i].finish, EW_FINISH_STOP);
            assert_int_equal(events[i].n_vector, WIDTH);
            request = request_for(ids[i], 12 * (i + 1), 0);
            taken[0] = submit(engine, &request);
            run_texts(engine, taken, events, alone, 1);
            assert_memory_equal(alone, together + i * WIDTH, sizeof(alone));
        }
        ew_engine_destroy(engine);
        ew_model_close(model);
    }
}

static void texts_are_refused_cancelled_and_late(void **state)
{
    struct ew_model *model = open_model("models/bert_minilm_mean");
    struct ew_engine_config config = small_config();
    struct ew_engine *engine = create(model, &config);
    int32_t ids[200];
    uint64_t taken[3];
    struct ew_event events[3];
    float vectors[3 * WIDTH];
    struct ew_request request;
    struct ew_error err = {0};

    (void)state;
    random_ids(1, ids, 200);
    request = request_for(ids, 129, 0);
    assert_int_equal(ew_engine_submit(engine, &request, &taken[0], &err), EW_ERR_LIMIT);
    assert_non_null(strstr(err.message, "129 tokens and the model takes 128"));
    request = request_for(ids, 100, 0);
    taken[0] = submit(engine, &request);
    taken[1] = submit(engine, &request);
    request.deadline_s = 1e-9;
    taken[2] = submit(engine, &request);
    ew_engine_cancel(engine, taken[1]);
    run_texts(engine, taken, events, vectors, 3);
    assert_int_equal(events[0].finish, EW_FINISH_STOP);
    assert_int_equal(events[1].finish, EW_FINISH_CANCELLED);
    assert_int_equal(events[2].finish, EW_FINISH_DEADLINE);
    assert_null(events[1].vector);
    ew_engine_destroy(engine);
    ew_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_become_vectors_alone_as_in_a_step),
        cmocka_unit_test(texts_are_refused_cancelled_and_late),
        cmocka_unit_test(a_batch_answers_as_each_request_alone),
        cmocka_unit_test_prestate(turns_compute_only_what_is_new, (void *)(uintptr_t)"models/llama_default"),
        cmocka_unit_test_prestate(turns_compute_only_what_is_new, (void *)(uintptr_t)"models/deepseek_v3"),
        cmocka_unit_test_prestate(turns_go_on_from_states, (void *)(uintptr_t)"models/qwen3_next"),
        cmocka_unit_test_prestate(turns_go_on_from_states, (void *)(uintptr_t)"models/qwen3_5_text"),
        cmocka_unit_test_prestate(turns_go_on_from_states, (void *)(uintptr_t)"models/nemotron_h"),
        cmocka_unit_test_prestate(turns_go_on_from_states, (void *)(uintptr_t)"models/nemotron_h_moe"),
        cmocka_unit_test(prefixes_make_room),
        cmocka_unit_test(cancelling_takes_effect_at_once),
        cmocka_unit_test(a_step_waits_until_events_are_taken),
        cmocka_unit_test(the_context_ends_an_answer_or_refuses_a_prompt),
        cmocka_unit_test(end_of_sequence_ends_an_answer),
        cmocka_unit_test(budgets_are_kept_or_refused_before_loading),
        cmocka_unit_test(a_context_that_was_not_asked_for_shrinks_to_the_budget),
        cmocka_unit_test(what_is_admitted_can_finish),
        cmocka_unit_test(windows_keep_only_their_blocks),
        cmocka_unit_test(decoding_allocates_nothing),
        cmocka_unit_test(logprobs_come_with_tokens),
        cmocka_unit_test(one_failure_leaves_the_others_alone),
    };

    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
