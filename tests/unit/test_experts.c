// The choice of experts against worked examples, and the order of pairs against its definition.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>

#include "base/rng.h"
#include "kernel/cpu/cpu_experts.h"

#define SEED 41

static struct ew_op route_op(uint32_t n_experts, uint32_t n_active, enum ew_route_score score)
{
    struct ew_op op = {.kind = EW_OP_ROUTE};

    op.route.n_experts = n_experts;
    op.route.n_active = n_active;
    op.route.score = score;
    op.route.scale = 1;
    return op;
}

static void expect(const float *out, const float *experts, const float *weights, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert_true(out[i] == experts[i]);
        assert_true(fabsf(out[n + i] - weights[i]) < 1e-6f);
    }
}

static void softmax_of_all(void **state)
{
    struct ew_op op = route_op(4, 2, EW_ROUTE_SOFTMAX);
    const float logits[] = {0, logf(3), logf(4), logf(2)}; // shares 1, 3, 4, 2 of 10
    float out[4], scratch[4];

    (void)state;
    ew_cpu_route(&op, logits, NULL, out, scratch);
    expect(out, (float[]){2, 1}, (float[]){0.4f, 0.3f}, 2);
    op.route.normalise = true;
    op.route.scale = 7;
    ew_cpu_route(&op, logits, NULL, out, scratch);
    expect(out, (float[]){2, 1}, (float[]){4, 3}, 2);
}

static void bias_enters_the_choice_alone(void **state)
{
    struct ew_op op = route_op(4, 1, EW_ROUTE_SIGMOID);
    const float logits[] = {2, 1, 0, -1}, bias[] = {0, 0, 1, 0};
    float out[2], scratch[4];

    (void)state;
    ew_cpu_route(&op, logits, bias, out, scratch);
    expect(out, (float[]){2}, (float[]){0.5f}, 1);
}

static void groups_are_ruled_out(void **state)
{
    struct ew_op op = route_op(6, 2, EW_ROUTE_SIGMOID);
    const float logits[] = {5, -9, 3, 2.9f, 2.8f, 2.7f}, none[6] = {0};
    float out[4], scratch[6];

    (void)state;
    op.route.n_groups = 3;
    op.route.n_groups_active = 1;
    ew_cpu_route(&op, logits, NULL, out, scratch); // the group of the best expert
    assert_true(out[0] == 0 && out[1] == 1);
    ew_cpu_route(&op, logits, none, out, scratch); // the group of the best two
    assert_true(out[0] == 2 && out[1] == 3);
}

// Section 2 of arXiv:2310.00811 as PhiMoE uses it: only experts within 2 * jitter of the best share with it.
static void sparsemixer_counts_near_ones(void **state)
{
    struct ew_op op = route_op(3, 2, EW_ROUTE_SPARSEMIXER);
    const float logits[] = {10, 9.9f, 1};
    float out[4], scratch[3], near = 1 / (1 + expf(-0.1f));

    (void)state;
    op.route.jitter = 0.01f;
    ew_cpu_route(&op, logits, NULL, out, scratch);
    expect(out, (float[]){0, 1}, (float[]){near, 1}, 2);
}

static void equal_and_wild_scores_choose_in_bounds(void **state)
{
    struct ew_op op = route_op(3, 2, EW_ROUTE_SOFTMAX);
    const float equal[] = {1, 1, 1}, wild[] = {NAN, -INFINITY, INFINITY};
    float out[4], scratch[3];

    (void)state;
    ew_cpu_route(&op, equal, NULL, out, scratch);
    expect(out, (float[]){0, 1}, (float[]){1 / 3.f, 1 / 3.f}, 2);
    ew_cpu_route(&op, wild, NULL, out, scratch);
    for (int i = 0; i < 2; i++)
        assert_true(out[i] >= 0 && out[i] < 3);
}

static void pairs_stand_by_expert(void **state)
{
    enum { N_TOKENS = 50, N_EXPERTS = 9, N_ACTIVE = 3 };
    struct ew_op op = route_op(N_EXPERTS, N_ACTIVE, EW_ROUTE_SOFTMAX);
    uint32_t token[N_TOKENS * N_ACTIVE], place[N_TOKENS * N_ACTIVE], first[N_EXPERTS + 1], used[N_EXPERTS];
    struct ew_cpu_pairs pairs = {0, token, place, first, used};
    struct ew_rng rng = ew_rng_at(SEED, 0);
    float routes[N_TOKENS][2 * N_ACTIVE];

    (void)state;
    for (uint32_t t = 0; t < N_TOKENS; t++) {
        float logits[N_EXPERTS], scratch[N_EXPERTS];

        for (uint32_t e = 0; e < N_EXPERTS; e++) // expert 4 is never chosen
            logits[e] = e == 4 ? -100 : (float)ew_rng_unit(&rng);
        ew_cpu_route(&op, logits, NULL, routes[t], scratch);
    }
    ew_cpu_pairs_sort(&pairs, &op, routes[0], 2 * N_ACTIVE, N_TOKENS);
    assert_int_equal(pairs.n_used, N_EXPERTS - 1);
    assert_int_equal(first[N_EXPERTS], N_TOKENS * N_ACTIVE);
    assert_int_equal(first[4], first[5]);
    for (uint32_t i = 0; i < N_TOKENS * N_ACTIVE; i++) {
        uint32_t expert = (uint32_t)routes[i / N_ACTIVE][i % N_ACTIVE];

        assert_int_equal(token[place[i]], i / N_ACTIVE);
        assert_in_range(place[i], first[expert], first[expert + 1] - 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(softmax_of_all),
        cmocka_unit_test(bias_enters_the_choice_alone),
        cmocka_unit_test(groups_are_ruled_out),
        cmocka_unit_test(sparsemixer_counts_near_ones),
        cmocka_unit_test(equal_and_wild_scores_choose_in_bounds),
        cmocka_unit_test(pairs_stand_by_expert),
    };

    printf("seed %d\n", SEED);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
