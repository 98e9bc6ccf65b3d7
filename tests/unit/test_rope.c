// rope: frequencies and attention factors of well-known models. The expected numbers were computed in double precision
// from the definitions in transformers' modeling_rope_utils, run with numpy; Phi-3's factor is the one that its authors
// publish.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/rope.h"

struct point {
    uint32_t pair;
    double freq;
};

struct rope_case {
    const char *name;
    struct ew_rope_shape shape;
    struct point points[9]; // ended by freq 0
    double attention;
};

static const struct rope_case g_cases[] = {
    {"falcon's plain 80",
     {.n_dims = 80, .theta = 10000},
     {{0, 1}, {1, 0.794328235}, {20, 0.01}, {39, 0.000125892541}},
     1},
    {"linear",
     {.scaling = EW_ROPE_SCALING_LINEAR, .n_dims = 80, .theta = 10000, .factor = 4},
     {{0, 0.25}, {20, 0.0025}},
     1},
    {"llama 3.1",
     {.scaling = EW_ROPE_SCALING_LLAMA3,
      .n_dims = 128,
      .theta = 500000,
      .factor = 8,
      .low_freq_factor = 1,
      .high_freq_factor = 4,
      .context_original = 8192},
     {{0, 1},
      {1, 0.814617234},
      {10, 0.128687373},
      {20, 0.0165604401},
      {25, 0.00594073038},
      {30, 0.00137189357},
      {40, 3.4281022e-05},
      {63, 3.06892599e-07}},
     1},
    {"qwen 2.5 with yarn",
     {.scaling = EW_ROPE_SCALING_YARN,
      .n_dims = 128,
      .theta = 1e6,
      .factor = 4,
      .beta_fast = 32,
      .beta_slow = 1,
      .truncate = true,
      .context_original = 32768},
     {{0, 1},
      {1, 0.805842188},
      {10, 0.115478198},
      {20, 0.0133352143},
      {25, 0.00413173802},
      {30, 0.00106436098},
      {40, 4.44569853e-05},
      {63, 3.1023444e-07}},
     1.13862944},
    {"gpt-oss, whose ramp is not truncated",
     {.scaling = EW_ROPE_SCALING_YARN,
      .n_dims = 64,
      .theta = 150000,
      .factor = 32,
      .beta_fast = 32,
      .beta_slow = 1,
      .context_original = 4096},
     {{0, 1},
      {1, 0.689044306},
      {5, 0.155322989},
      {8, 0.0508132748},
      {10, 0.0193350011},
      {12, 0.00679495949},
      {17, 0.000129318701},
      {20, 1.81883367e-05}},
     1.34657359},
    {"deepseek v3, whose mscales cancel",
     {.scaling = EW_ROPE_SCALING_YARN,
      .n_dims = 64,
      .theta = 10000,
      .factor = 40,
      .beta_fast = 32,
      .beta_slow = 1,
      .mscale = 1,
      .mscale_all_dim = 1,
      .truncate = true,
      .context_original = 4096},
     {{0, 1},
      {5, 0.237137371},
      {10, 0.0562341325},
      {12, 0.0268793601},
      {15, 0.00833450895},
      {20, 0.000790569415},
      {23, 3.33380358e-05},
      {31, 3.33380358e-06}},
     1},
    {"the mscales of deepseek v2 if they differed",
     {.scaling = EW_ROPE_SCALING_YARN,
      .n_dims = 64,
      .theta = 10000,
      .factor = 40,
      .beta_fast = 32,
      .beta_slow = 1,
      .mscale = 0.707,
      .mscale_all_dim = 1,
      .context_original = 4096},
     {{0, 1}},
     0.921042355},
    {"phi 3 mini 128k",
     {.scaling = EW_ROPE_SCALING_LONGROPE,
      .n_dims = 96,
      .theta = 10000,
      .context_original = 4096,
      .context_trained = 131072},
     {{0, 1}},
     1.1902380714238083},
    {"a given attention factor",
     {.scaling = EW_ROPE_SCALING_YARN,
      .n_dims = 64,
      .theta = 10000,
      .factor = 40,
      .beta_fast = 32,
      .beta_slow = 1,
      .attention_factor = 1.25,
      .context_original = 4096},
     {{0, 1}},
     1.25},
};

static void known_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < EW_COUNT_OF(g_cases); i++) {
        const struct rope_case *c = &g_cases[i];
        struct ew_arena arena;
        struct ew_rope rope;
        struct ew_error err;

        ew_arena_init(&arena, 1 << 16);
        if (ew_rope_build(&arena, &c->shape, EW_ROPE_HALVES, &rope, &err))
            fail_msg("%s", err.message);
        for (size_t p = 0; p < EW_COUNT_OF(c->points) && c->points[p].freq > 0; p++)
            if (fabs((double)rope.freq_short[c->points[p].pair] / c->points[p].freq - 1) > 1e-6)
                fail_msg("%s: frequency %u is %.9g, not %.9g", c->name, c->points[p].pair,
                         (double)rope.freq_short[c->points[p].pair], c->points[p].freq);
        if (fabs(ew_rope_attention_factor(&c->shape) - c->attention) > 1e-8 * c->attention + 1e-8)
            fail_msg("%s: the attention factor is %.9g", c->name, ew_rope_attention_factor(&c->shape));
        assert_float_equal(rope.scale_short, c->attention, 1e-6);
        ew_arena_fini(&arena);
    }
}

static void longrope_divides_by_two_lists(void **state)
{
    struct ew_rope_shape shape = {
        .scaling = EW_ROPE_SCALING_LONGROPE,
        .n_dims = 4,
        .theta = 10000,
        .factor = 4,
        .context_original = 24,
        .n_short = 2,
        .n_long = 2,
        .short_factor = {1, 2},
        .long_factor = {4, 8},
    };
    struct ew_arena arena;
    struct ew_rope rope;
    struct ew_error err;

    (void)state;
    ew_arena_init(&arena, 1 << 16);
    assert_int_equal(ew_rope_build(&arena, &shape, EW_ROPE_PAIRS, &rope, &err), 0);
    assert_int_equal(rope.kind, EW_ROPE_PAIRS);
    assert_int_equal(rope.span_short_max, 24);
    assert_float_equal(rope.freq_short[1], 0.005, 1e-9);
    assert_float_equal(rope.freq_long[0], 0.25, 1e-9);
    assert_float_equal(rope.freq_long[1], 0.00125, 1e-9);
    assert_float_equal(rope.scale_long, 1.1984192, 1e-6); // sqrt(1 + ln 4 / ln 24)
    ew_arena_fini(&arena);
}

static void dynamic_leaves_the_base_to_the_backend(void **state)
{
    struct ew_rope_shape shape = {
        .scaling = EW_ROPE_SCALING_DYNAMIC,
        .n_dims = 16,
        .theta = 10000,
        .factor = 2,
        .context_trained = 24,
        .context_original = 24,
    };
    struct ew_arena arena;
    struct ew_rope rope;
    struct ew_error err;

    (void)state;
    ew_arena_init(&arena, 1 << 16);
    assert_int_equal(ew_rope_build(&arena, &shape, EW_ROPE_HALVES, &rope, &err), 0);
    assert_float_equal(rope.dynamic_base, 10000, 0);
    assert_float_equal(rope.dynamic_factor, 2, 0);
    assert_int_equal(rope.span_short_max, 24);
    assert_float_equal(rope.freq_short[4], 0.01, 1e-9);
    ew_arena_fini(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_models),
        cmocka_unit_test(longrope_divides_by_two_lists),
        cmocka_unit_test(dynamic_leaves_the_base_to_the_backend),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
