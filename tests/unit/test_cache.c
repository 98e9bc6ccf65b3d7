// engine/cache, engine/sequence, engine/step: who holds which block, and what a batch says, against a backend that
// only records.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/step.h"

#define BLOCK 4

static int32_t g_copied_from, g_copied_to;
static uint32_t g_n_copied;

static int copy_block(struct ew_backend *backend, uint32_t group, int32_t from, int32_t to, struct ew_error *err)
{
    (void)backend, (void)group, (void)err;
    g_copied_from = from;
    g_copied_to = to;
    g_n_copied++;
    return 0;
}

static int submit(struct ew_backend *backend, const struct ew_batch *batch, struct ew_error *err)
{
    (void)backend, (void)batch, (void)err;
    return 0;
}

static int wait_step(struct ew_backend *backend, const float **logits, struct ew_error *err)
{
    static const float rows[64];

    (void)backend, (void)err;
    *logits = rows;
    return 0;
}

static const struct ew_backend_ops g_ops = {
    .name = "fake", .submit = submit, .wait = wait_step, .copy_block = copy_block};
static struct ew_backend g_backend = {&g_ops};

static struct ew_cache_group g_groups[] = {
    {.kind = EW_CACHE_FULL, .n_layers = 2},
    {.kind = EW_CACHE_WINDOW, .n_layers = 2, .window = 6},
};
static const struct ew_program g_program = {.n_groups = 2, .groups = g_groups, .n_vocab = 4, .n_position_dims = 1};

struct fixture {
    struct ew_cache cache;
    struct ew_sequence a, b;
    struct ew_step step;
};

static int setup(void **state)
{
    static struct fixture f;
    struct ew_limits limits = {
        .n_tokens_max = 8, .n_seqs_max = 2, .n_logits_max = 8, .context_max = 40, .block_tokens = BLOCK};

    g_n_copied = 0;
    *state = &f;
    return ew_cache_init(&f.cache, &g_program, (uint32_t[]){20, 12}, BLOCK, NULL) ||
           ew_sequence_init(&f.a, &f.cache, 40, NULL) || ew_sequence_init(&f.b, &f.cache, 40, NULL) ||
           ew_step_init(&f.step, &g_backend, &g_program, &limits, NULL);
}

// Whatever a test did, all blocks come home.
static int teardown(void **state)
{
    struct fixture *f = *state;

    ew_sequence_fini(&f->a);
    ew_sequence_fini(&f->b);
    assert_int_equal(ew_cache_blocks_used(&f->cache), 0);
    ew_step_fini(&f->step);
    ew_cache_fini(&f->cache);
    return 0;
}

static void feed(struct fixture *f, struct ew_sequence *seq, uint32_t n)
{
    for (; n > 0;) {
        struct ew_work work = {.seq = seq, .n_tokens = EW_MIN(n, 5u), .want = EW_WANT_LAST};

        for (uint32_t i = 0; i < work.n_tokens; i++)
            ew_sequence_push(seq, (int32_t)(seq->n_tokens % 4));
        assert_int_equal(ew_step_run(&f->step, &work, 1, NULL), 0);
        n -= work.n_tokens;
    }
}

static uint32_t used(const struct fixture *f, uint32_t g)
{
    return f->cache.pools[g].n_blocks - f->cache.pools[g].n_free;
}

static void blocks_are_taken_as_tokens_come(void **state)
{
    struct fixture *f = *state;

    feed(f, &f->a, 4);
    assert_int_equal(used(f, 0), 1);
    feed(f, &f->a, 1);
    assert_int_equal(used(f, 0), 2);
    assert_int_equal(f->a.tables[0][2], EW_BLOCK_NONE);
    feed(f, &f->a, 35);
    assert_int_equal(used(f, 0), 10);
}

static void windows_give_back_what_has_passed(void **state)
{
    struct fixture *f = *state;
    uint32_t bound = ew_cache_blocks_needed(&g_groups[1], 40, 5, BLOCK);

    for (uint32_t n = 0; n < 40; n++) {
        feed(f, &f->a, 1);
        assert_true(used(f, 1) <= bound);
        for (uint32_t t = n + 1 > 6 ? n + 1 - 6 : 0; t <= n; t++) // everything the newest token sees is there
            assert_true(f->a.tables[1][t / BLOCK] >= 0);
    }
    assert_int_equal(used(f, 0), 10);
    assert_true(used(f, 1) < 5);
    assert_int_equal(f->a.tables[1][0], EW_BLOCK_NONE);
}

static void truncation_keeps_only_what_can_be_continued(void **state)
{
    struct fixture *f = *state;

    feed(f, &f->a, 30);
    assert_int_equal(ew_sequence_truncate(&f->a, 27), 27); // within the block that is kept besides the window
    assert_int_equal(used(f, 0), 7);
    assert_int_equal(f->a.n_tokens, 27);
    assert_int_equal(ew_sequence_truncate(&f->a, 10), 0); // the window has moved on
    assert_int_equal(ew_cache_blocks_used(&f->cache), 0);
    feed(f, &f->a, 7);
    assert_int_equal(ew_sequence_truncate(&f->a, 3), 3); // nothing was given back yet
}

static void an_empty_pool_is_an_error(void **state)
{
    struct fixture *f = *state;
    struct ew_error err;
    int rc = 0;

    while (ew_cache_take(&f->cache, 0) >= 0)
        continue;
    ew_sequence_push(&f->a, 1);
    rc = ew_sequence_extend(&f->a, &g_backend, 1, &err);
    assert_int_equal(rc, EW_ERR_MEMORY);
    for (int32_t b = 0; b < 20; b++)
        ew_cache_unref(&f->cache, 0, b);
}

static void batches_are_ragged(void **state)
{
    struct fixture *f = *state;
    const struct ew_batch *batch = &f->step.batch;
    struct ew_work work[2] = {{.seq = &f->a, .n_tokens = 1, .want = EW_WANT_LAST}, {.seq = &f->b, .n_tokens = 5}};

    feed(f, &f->a, 5);
    ew_sequence_push(&f->a, 3);
    ew_sequence_append(&f->b, (int32_t[]){0, 1, 2, 3, 2, 1}, 6);
    f->b.rope_span = 99;
    assert_int_equal(ew_step_build(&f->step, work, 2, NULL), 0);
    assert_int_equal(batch->n_tokens, 6);
    assert_int_equal(batch->n_seqs, 2);
    assert_int_equal(batch->n_logits, 1);
    assert_memory_equal(batch->token, ((int32_t[]){3, 0, 1, 2, 3, 2}), 24);
    assert_memory_equal(batch->position, ((int32_t[]){5, 0, 1, 2, 3, 4}), 24);
    assert_memory_equal(batch->want_logits, ((uint8_t[]){1, 0, 0, 0, 0, 0}), 6);
    assert_int_equal(batch->seqs[1].first, 1);
    assert_int_equal(batch->seqs[0].n_past, 5);
    assert_int_equal(batch->seqs[1].rope_span, 99);
    assert_int_equal(ew_step_submit(&f->step, work, 2, NULL), 0);
    assert_int_equal(ew_step_wait(&f->step, NULL), 0);
    assert_int_equal(f->b.n_cached, 5);
    assert_int_equal(work[0].n_logits, 1);
}

static void proposals_and_their_predecessor_want_logits(void **state)
{
    struct fixture *f = *state;
    struct ew_work work[2] = {{.seq = &f->a, .n_tokens = 4, .n_proposed = 2, .want = EW_WANT_LAST},
                              {.seq = &f->b, .n_tokens = 2, .want = EW_WANT_ALL}};

    ew_sequence_append(&f->a, (int32_t[]){0, 1, 2, 3}, 4);
    ew_sequence_append(&f->b, (int32_t[]){0, 1}, 2);
    assert_int_equal(ew_step_build(&f->step, work, 2, NULL), 0);
    assert_memory_equal(f->step.batch.want_logits, ((uint8_t[]){0, 1, 1, 1, 1, 1}), 6);
    assert_int_equal(f->step.batch.seqs[0].n_proposed, 2);
    assert_int_equal(work[1].first_logit, 3);
    assert_int_equal(ew_step_submit(&f->step, work, 2, NULL), 0);
}

static void state_groups_hold_one_block(void **state)
{
    struct ew_cache_group group = {.kind = EW_CACHE_STATE, .n_layers = 1, .state_bytes = 64};
    struct ew_program program = {.n_groups = 1, .groups = &group, .n_vocab = 4, .n_position_dims = 1};
    struct ew_sequence seq;
    struct ew_cache cache;

    (void)state;
    assert_int_equal(ew_cache_init(&cache, &program, (uint32_t[]){2}, BLOCK, NULL), 0);
    assert_int_equal(ew_sequence_init(&seq, &cache, 40, NULL), 0);
    assert_int_equal(ew_cache_blocks_needed(&group, 40, 8, BLOCK), 1);
    ew_sequence_append(&seq, (int32_t[]){0, 1, 2, 3, 0, 1}, 6);
    assert_int_equal(ew_sequence_extend(&seq, &g_backend, 6, NULL), 0);
    seq.n_cached = 6;
    assert_int_equal(ew_cache_blocks_used(&cache), 1);
    assert_int_equal(ew_sequence_truncate(&seq, 6), 6);
    assert_int_equal(ew_sequence_truncate(&seq, 5), 0); // a state cannot go back
    assert_int_equal(ew_cache_blocks_used(&cache), 0);
    ew_sequence_fini(&seq);
    ew_cache_fini(&cache);
}

static void failed_allocations_leave_nothing_behind(void **state)
{
    struct ew_cache cache;
    struct ew_sequence seq;

    (void)state;
    for (uint64_t n = 1; n <= 8; n++) {
        ew_alloc_fail_at(n);
        assert_int_equal(ew_cache_init(&cache, &g_program, (uint32_t[]){2, 2}, BLOCK, NULL), EW_ERR_MEMORY);
    }
    assert_int_equal(ew_cache_init(&cache, &g_program, (uint32_t[]){2, 2}, BLOCK, NULL), 0);
    for (uint64_t n = 1; n <= 3; n++) {
        ew_alloc_fail_at(n);
        assert_int_equal(ew_sequence_init(&seq, &cache, 8, NULL), EW_ERR_MEMORY);
    }
    ew_cache_fini(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(blocks_are_taken_as_tokens_come, setup, teardown),
        cmocka_unit_test_setup_teardown(windows_give_back_what_has_passed, setup, teardown),
        cmocka_unit_test_setup_teardown(truncation_keeps_only_what_can_be_continued, setup, teardown),
        cmocka_unit_test_setup_teardown(an_empty_pool_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(batches_are_ragged, setup, teardown),
        cmocka_unit_test_setup_teardown(proposals_and_their_predecessor_want_logits, setup, teardown),
        cmocka_unit_test(state_groups_hold_one_block),
        cmocka_unit_test(failed_allocations_leave_nothing_behind),
    };

    return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
