// pace: how many tokens of prompts join decoding sequences, on devices of several kinds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "engine/pace.h"

// Seconds of a step of so many tokens, some of them prompts'.
struct device {
    double fixed_s, token_s, decode_s;
    double (*step_s)(const struct device *device, uint32_t n_tokens); // instead
};

static double step_s(const struct device *device, uint32_t n_tokens)
{
    return device->step_s ? device->step_s(device, n_tokens) : device->fixed_s + n_tokens * device->token_s;
}

struct course {
    uint32_t last;
    double total_s, longest_s;
    uint64_t n_tokens;
};

// Steps that each take as much of an endless prompt as they may.
static struct course run(struct ew_pace *pace, const struct device *device, uint32_t n_decoding, double target_s,
                         uint32_t n_max, uint32_t n_steps)
{
    struct course course = {0};

    for (uint32_t i = 0; i < n_steps; i++) {
        uint32_t n = ew_pace_chunk(pace, n_decoding, target_s, n_max);
        double seconds = step_s(device, n + n_decoding);

        ew_pace_note(pace, n_decoding, 0, device->decode_s);
        ew_pace_note(pace, n_decoding, n, seconds);
        course.last = n;
        course.n_tokens += n;
        course.total_s += seconds;
        course.longest_s = seconds > course.longest_s ? seconds : course.longest_s;
    }
    return course;
}

// A step that only decodes takes 10 ms here, and a prompt's token 0.1 ms.
static void prompts_join_as_far_as_time_allows(void **state)
{
    struct ew_pace pace = {0};

    (void)state;
    assert_int_equal(ew_pace_chunk(&pace, 4, 0, 512), 48); // nothing is known
    for (uint32_t i = 0; i < 50; i++) {
        ew_pace_note(&pace, 4, 0, 0.010);
        ew_pace_note(&pace, 4, 252, 0.035);
    }
    assert_in_range(ew_pace_chunk(&pace, 4, 0, 240), 240, 240);
    assert_in_range(ew_pace_chunk(&pace, 4, 0.025, 512), 252, 512); // 3.5 times as long as decoding alone
    assert_int_equal(ew_pace_chunk(&pace, 4, 10, 512), 508);
    assert_int_equal(ew_pace_chunk(&pace, 4, 10, 5), 5);
    assert_in_range(ew_pace_chunk(&pace, 5, 0, 512), 240, 512); // a number not seen yet counts as the nearest
    ew_pace_note(&pace, 4, 0, 5.0);                             // the machine slept
    assert_in_range(ew_pace_chunk(&pace, 4, 0, 512), 240, 512);
}

// One that multiplies at a steady rate, however few the tokens: a CPU.
static void steps_keep_their_time_where_it_goes_by_tokens(void **state)
{
    const struct device cpu = {.fixed_s = 0.002, .token_s = 0.001, .decode_s = 0.020};
    struct ew_pace pace = {0};
    struct course course;

    (void)state;
    ew_pace_note(&pace, 0, 512, step_s(&cpu, 512)); // the first prompt came when nobody decoded
    course = run(&pace, &cpu, 8, 0.010, 512, 100);
    assert_in_range(course.last, 48, 64); // 70 ms
    assert_true(course.longest_s < 0.140);
}

// One whose steps take 16 ms more as soon as there is a prompt: quantised matrices are expanded for it.
static void chunks_grow_out_of_fixed_costs(void **state)
{
    const struct device gpu = {.fixed_s = 0.016, .token_s = 25e-6, .decode_s = 0.006};
    struct ew_pace pace = {0};
    struct course course;

    (void)state;
    run(&pace, &gpu, 8, 0.010, 16, 100); // short prompts
    course = run(&pace, &gpu, 8, 0.010, 8192, 100);
    assert_in_range(course.last, 120, 248); // 21 ms
    assert_true((double)course.n_tokens > 100 * 100);
    assert_true(course.longest_s < 0.040);
    pace = (struct ew_pace){0};
    course = run(&pace, &gpu, 1, 0.001, 8192, 100); // where each of them takes longer than it may
    assert_true(course.last >= 112);
}

static double slow_small(const struct device *device, uint32_t n_tokens)
{
    return n_tokens <= 64 ? 0.027 : device->fixed_s + n_tokens * device->token_s;
}

// One with a bad kernel for small steps.
static void larger_steps_may_be_shorter(void **state)
{
    const struct device gpu = {.fixed_s = 0.013, .token_s = 25e-6, .decode_s = 0.006, .step_s = slow_small};
    struct ew_pace pace = {0};
    struct course course;

    (void)state;
    run(&pace, &gpu, 4, 0.010, 16, 20);
    ew_pace_note(&pace, 0, 512, 0.026);
    course = run(&pace, &gpu, 4, 0.010, 8192, 200);
    assert_true(course.last > 240 && course.longest_s < 0.040);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_join_as_far_as_time_allows),
        cmocka_unit_test(steps_keep_their_time_where_it_goes_by_tokens),
        cmocka_unit_test(chunks_grow_out_of_fixed_costs),
        cmocka_unit_test(larger_steps_may_be_shorter),
    };

    return cmocka_run_group_tests_name("pace", tests, NULL, NULL);
}
