// engine/sampler: the chain from logits to a token.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "engine/sampler.h"

#define N_DRAWS 20000

static struct ew_sampler g_sampler;

static int setup(void **state)
{
    (void)state;
    return ew_sampler_init(&g_sampler, 8, NULL);
}

static int teardown(void **state)
{
    (void)state;
    ew_sampler_fini(&g_sampler);
    return 0;
}

static const float g_logits[8] = {1.0f, -2.0f, 3.0f, 0.5f, 3.0f, 2.0f, -INFINITY, 0.0f};

static int32_t pick(const struct ew_sampling *sampling, const struct ew_sampler_input *input)
{
    struct ew_error err;
    int32_t token = -1;

    assert_int_equal(ew_sampler_pick(&g_sampler, sampling, input, &token, &err), 0);
    return token;
}

// Draws at positions 0, 1, ...: the history's length is the position, its ids do not matter without penalties.
static void count_draws(const struct ew_sampling *sampling, const uint32_t *mask, uint32_t counts[8])
{
    static int32_t history[N_DRAWS];

    for (uint32_t i = 0; i < 8; i++)
        counts[i] = 0;
    for (uint32_t i = 0; i < N_DRAWS; i++)
        counts[pick(sampling, &(struct ew_sampler_input){g_logits, mask, history, i, i})]++;
}

// The draws must fit the expected weights (which need not be normalised): Pearson's statistic with at most 7 degrees of
// freedom exceeds 24.3 once in a thousand times, and the seeds are fixed.
static void assert_fits(const uint32_t counts[8], const double weights[8])
{
    double sum = 0, statistic = 0;

    for (uint32_t i = 0; i < 8; i++)
        sum += weights[i];
    for (uint32_t i = 0; i < 8; i++) {
        double expected = N_DRAWS * weights[i] / sum;

        if (weights[i] == 0)
            assert_int_equal(counts[i], 0);
        else
            statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    assert_true(statistic < 24.3);
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();

    (void)state;
    sampling.temperature = 0;
    assert_int_equal(pick(&sampling, &(struct ew_sampler_input){.logits = g_logits}), 2);
}

static void draws_follow_the_softmax(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    uint32_t counts[8];
    double weights[8];

    (void)state;
    for (float temperature = 0.5f; temperature <= 2; temperature *= 2) {
        sampling.temperature = temperature;
        sampling.seed = 7;
        for (uint32_t i = 0; i < 8; i++)
            weights[i] = exp((double)g_logits[i] / (double)temperature);
        count_draws(&sampling, NULL, counts);
        assert_fits(counts, weights);
    }
}

static void top_k_keeps_k_with_ties_by_id(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    uint32_t counts[8];

    (void)state;
    sampling.top_k = 1;
    count_draws(&sampling, NULL, counts);
    assert_int_equal(counts[2], N_DRAWS);
    sampling.top_k = 3;
    count_draws(&sampling, NULL, counts);
    assert_fits(counts, (double[8]){0, 0, exp(3), 0, exp(3), exp(2), 0, 0});
    sampling.top_k = 100; // more than there are: off
    count_draws(&sampling, NULL, counts);
    assert_true(counts[1] > 0);
}

static void top_p_keeps_what_it_takes_to_reach_p(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    uint32_t counts[8];

    (void)state;
    sampling.top_p = 0.75f; // the two best have 0.76 of the mass
    count_draws(&sampling, NULL, counts);
    assert_fits(counts, (double[8]){[2] = 1, [4] = 1});
    sampling.top_p = 0.3f;
    count_draws(&sampling, NULL, counts);
    assert_int_equal(counts[2], N_DRAWS);
    sampling.top_p = 0;
    count_draws(&sampling, NULL, counts);
    assert_int_equal(counts[2], N_DRAWS);
    sampling.top_k = 2;
    sampling.top_p = 0.9f; // of what top-k left
    count_draws(&sampling, NULL, counts);
    assert_fits(counts, (double[8]){[2] = 1, [4] = 1});
}

static void min_p_is_relative_to_the_best(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    uint32_t counts[8];

    (void)state;
    sampling.min_p = 0.3f; // exp(-1) = 0.37 stays, exp(-2) = 0.14 goes
    count_draws(&sampling, NULL, counts);
    assert_fits(counts, (double[8]){[2] = exp(3), [4] = exp(3), [5] = exp(2)});
    sampling.min_p = 1;
    count_draws(&sampling, NULL, counts);
    assert_fits(counts, (double[8]){[2] = 1, [4] = 1});
}

static void mask_and_bias_decide_what_is_possible(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    struct ew_logit_bias bias[] = {{3, 2.5f}, {2, -100}};
    uint32_t counts[8], mask = 1u << 3 | 1u << 5 | 1u << 6;

    (void)state;
    count_draws(&sampling, &mask, counts);
    assert_fits(counts, (double[8]){[3] = exp(0.5), [5] = exp(2)});
    sampling.bias = bias;
    sampling.n_bias = 2;
    count_draws(&sampling, &mask, counts);
    assert_fits(counts, (double[8]){[3] = exp(3), [5] = exp(2)});
    sampling.temperature = 0;
    assert_int_equal(pick(&sampling, &(struct ew_sampler_input){.logits = g_logits}), 3);
}

static void penalties_count_what_they_should(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    int32_t history[] = {2, 4, 4, 5};
    struct ew_sampler_input input = {g_logits, NULL, history, 4, 2};

    (void)state;
    sampling.temperature = 0;
    sampling.repetition_penalty = 10; // 2, 4 and 5 fall to 0.3 and 0.2, so 0 with its 1.0 wins
    assert_int_equal(pick(&sampling, &input), 0);
    sampling = ew_sampling_default();
    sampling.temperature = 0;
    sampling.presence_penalty = 0.5f; // over the answer only: 4 and 5, not 2
    assert_int_equal(pick(&sampling, &input), 2);
    input.n_prompt = 0;
    sampling.presence_penalty = 0;
    sampling.frequency_penalty = 0.4f; // 2: 2.6, 4: 2.2 (twice), 5: 1.6
    assert_int_equal(pick(&sampling, &input), 2);
    history[0] = 4; // 4: 1.8
    assert_int_equal(pick(&sampling, &input), 2);
    history[0] = history[3] = 2; // both twice: the tie goes to the lower id again
    assert_int_equal(pick(&sampling, &input), 2);
    history[2] = 2; // 2: 1.8, 4: 2.6
    assert_int_equal(pick(&sampling, &input), 4);
}

static void a_draw_depends_on_seed_and_position_alone(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    int32_t history[64] = {0}, first[64];
    uint32_t n_different = 0;

    (void)state;
    sampling.seed = 42;
    for (uint32_t i = 0; i < 64; i++)
        first[i] = pick(&sampling, &(struct ew_sampler_input){g_logits, NULL, history, i, 0});
    for (uint32_t i = 64; i-- > 0;)
        assert_int_equal(pick(&sampling, &(struct ew_sampler_input){g_logits, NULL, history, i, i}), first[i]);
    sampling.seed = 43;
    for (uint32_t i = 0; i < 64; i++)
        n_different += pick(&sampling, &(struct ew_sampler_input){g_logits, NULL, history, i, 0}) != first[i];
    assert_true(n_different > 20);
}

static void unusable_logits_are_errors(void **state)
{
    struct ew_sampling sampling = ew_sampling_default();
    float logits[8] = {0};
    uint32_t mask = 0;
    int32_t token;

    (void)state;
    logits[5] = NAN;
    assert_int_equal(ew_sampler_pick(&g_sampler, &sampling, &(struct ew_sampler_input){logits}, &token, NULL),
                     EW_ERR_DEVICE);
    logits[5] = INFINITY;
    assert_int_equal(ew_sampler_pick(&g_sampler, &sampling, &(struct ew_sampler_input){logits}, &token, NULL),
                     EW_ERR_DEVICE);
    logits[5] = 0;
    assert_int_equal(ew_sampler_pick(&g_sampler, &sampling, &(struct ew_sampler_input){logits, &mask}, &token, NULL),
                     EW_ERR_LIMIT);
}

static void senseless_settings_are_refused(void **state)
{
    struct ew_logit_bias bias = {8, 1};
    struct ew_sampling sampling = ew_sampling_default();

    (void)state;
    assert_int_equal(ew_sampling_check(&sampling, 8, NULL), 0);
    sampling.bias = &bias;
    sampling.n_bias = 1;
    assert_int_equal(ew_sampling_check(&sampling, 8, NULL), EW_ERR_USAGE);
    assert_int_equal(ew_sampling_check(&sampling, 9, NULL), 0);
    bias.bias = NAN;
    assert_int_equal(ew_sampling_check(&sampling, 9, NULL), EW_ERR_USAGE);
    sampling.n_bias = 0;
    sampling.temperature = NAN;
    assert_int_equal(ew_sampling_check(&sampling, 8, NULL), EW_ERR_USAGE);
    sampling.temperature = -1;
    assert_int_equal(ew_sampling_check(&sampling, 8, NULL), EW_ERR_USAGE);
}

static void logprobs_are_of_the_raw_distribution(void **state)
{
    struct ew_logprob out[4];
    double sum = 0;

    (void)state;
    for (uint32_t i = 0; i < 8; i++)
        sum += exp((double)g_logits[i]);
    ew_sampler_logprobs(g_logits, 8, 5, out, 4);
    assert_int_equal(out[0].token, 5);
    assert_int_equal(out[1].token, 2);
    assert_int_equal(out[2].token, 4);
    assert_int_equal(out[3].token, 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_float_equal(out[i].logprob, (double)g_logits[out[i].token] - log(sum), 1e-5);
    ew_sampler_logprobs(g_logits, 8, 7, out, 1);
    assert_int_equal(out[0].token, 7);
}

static void a_large_vocabulary_needs_no_allocation(void **state)
{
    enum { N = 151936 };
    struct ew_sampling sampling = ew_sampling_default();
    float *logits = ew_alloc_array(N, sizeof(*logits));
    struct ew_rng rng = ew_rng_at(1, 1);
    struct ew_sampler sampler;
    uint64_t before;
    int32_t token;

    (void)state;
    assert_int_equal(ew_sampler_init(&sampler, N, NULL), 0);
    for (uint32_t i = 0; i < N; i++)
        logits[i] = 3 * ew_rng_normal(&rng);
    logits[777] = 30;
    before = ew_alloc_count();
    sampling.top_k = 40;
    sampling.top_p = 0.95f;
    sampling.min_p = 0.05f;
    for (uint32_t i = 0; i < 20; i++) {
        sampling.seed = i;
        assert_int_equal(ew_sampler_pick(&sampler, &sampling, &(struct ew_sampler_input){logits}, &token, NULL), 0);
        assert_int_equal(token, 777);
    }
    assert_int_equal(ew_alloc_count(), before);
    ew_sampler_fini(&sampler);
    ew_free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(top_k_keeps_k_with_ties_by_id),
        cmocka_unit_test(top_p_keeps_what_it_takes_to_reach_p),
        cmocka_unit_test(min_p_is_relative_to_the_best),
        cmocka_unit_test(mask_and_bias_decide_what_is_possible),
        cmocka_unit_test(penalties_count_what_they_should),
        cmocka_unit_test(a_draw_depends_on_seed_and_position_alone),
        cmocka_unit_test(unusable_logits_are_errors),
        cmocka_unit_test(senseless_settings_are_refused),
        cmocka_unit_test(logprobs_are_of_the_raw_distribution),
        cmocka_unit_test(a_large_vocabulary_needs_no_allocation),
    };

    return cmocka_run_group_tests_name("sampler", tests, setup, teardown);
}
