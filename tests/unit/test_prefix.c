// engine/prefix: what is found again, where that is refused, what goes first; with a backend that only records.
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
#include "engine/prefix.h"

#define BLOCK 4
#define CONTEXT 64
#define N_SEQS 3

#define STATE_GROUP 1 // where there is one
#define STATES_MAX 16

static uint32_t g_n_copied;
static uint64_t g_states[STATES_MAX]; // what blocks of states hold: a hash of all tokens so far

static int copy_block(struct ew_backend *backend, uint32_t group, int32_t from, int32_t to, struct ew_error *err)
{
    (void)backend, (void)err;
    g_n_copied += from != to;
    if (group == STATE_GROUP && from < STATES_MAX && to < STATES_MAX)
        g_states[to] = g_states[from];
    return 0;
}

static const struct ew_backend_ops g_ops = {.name = "fake", .copy_block = copy_block};
static struct ew_backend g_backend = {&g_ops};

struct fixture {
    struct ew_cache cache;
    struct ew_prefix *prefix;
    struct ew_sequence seqs[N_SEQS];
};

static struct fixture g_fixture;

static struct fixture *build(struct ew_cache_group *groups, uint32_t n_groups, const uint32_t *n_blocks)
{
    struct fixture *f = &g_fixture;
    struct ew_program program = {.n_groups = n_groups, .groups = groups};

    g_n_copied = 0;
    assert_int_equal(ew_cache_init(&f->cache, &program, n_blocks, BLOCK, NULL), 0);
    assert_int_equal(ew_prefix_create(&f->cache, CONTEXT, &f->prefix, NULL), 0);
    for (uint32_t i = 0; i < N_SEQS; i++)
        assert_int_equal(ew_sequence_init(&f->seqs[i], &f->cache, CONTEXT, NULL), 0);
    return f;
}

static struct fixture *build_full(uint32_t n_blocks)
{
    return build(&(struct ew_cache_group){.kind = EW_CACHE_FULL, .n_layers = 1}, 1, &n_blocks);
}

static struct fixture *build_mixed(uint32_t n_full, uint32_t n_window)
{
    struct ew_cache_group groups[] = {{.kind = EW_CACHE_FULL, .n_layers = 1},
                                      {.kind = EW_CACHE_WINDOW, .n_layers = 1, .window = 6}};

    return build(groups, 2, (uint32_t[]){n_full, n_window});
}

static struct fixture *build_states(uint32_t n_full, uint32_t n_states)
{
    struct ew_cache_group groups[] = {{.kind = EW_CACHE_FULL, .n_layers = 1},
                                      {.kind = EW_CACHE_STATE, .n_layers = 1, .state_bytes = 64}};

    assert_true(n_states <= STATES_MAX);
    return build(groups, 2, (uint32_t[]){n_full, n_states});
}

static void destroy(struct fixture *f)
{
    for (uint32_t i = 0; i < N_SEQS; i++)
        ew_sequence_fini(&f->seqs[i]);
    assert_int_equal(ew_cache_blocks_used(&f->cache), ew_cache_blocks_reusable(&f->cache));
    ew_prefix_destroy(f->prefix);
    assert_int_equal(ew_cache_blocks_used(&f->cache), 0);
    ew_cache_fini(&f->cache);
}

// Tokens base, base + 1, ... as a prompt; what of them was known.
static uint32_t begin(struct fixture *f, struct ew_sequence *seq, int32_t base, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        ew_sequence_push(seq, base + (int32_t)i);
    return ew_prefix_adopt(f->prefix, 0, seq, &g_backend);
}

static uint64_t hash_of(const int32_t *tokens, uint32_t n)
{
    uint64_t hash = 1;

    for (uint32_t i = 0; i < n; i++)
        hash = hash * 0x9E3779B97F4A7C15u + (uint64_t)tokens[i];
    return hash;
}

// A state that a sequence goes on from must be that of its tokens, and nobody else may hold the block.
static void compute_state(const struct ew_sequence *seq, uint32_t n)
{
    int32_t block = seq->tables[STATE_GROUP][0];

    if (seq->n_cached > 0)
        assert_true(g_states[block] == hash_of(seq->tokens, seq->n_cached));
    assert_int_equal(seq->cache->pools[STATE_GROUP].n_refs[block], 1);
    g_states[block] = hash_of(seq->tokens, seq->n_cached + n);
}

// As a step does; false where there is no room.
static bool step(struct fixture *f, struct ew_sequence *seq, uint32_t n)
{
    ew_sequence_release_passed(seq);
    if (ew_sequence_extend(seq, &g_backend, n, NULL))
        return false;
    if (f->prefix->has_states)
        compute_state(seq, n);
    seq->n_cached += n;
    ew_prefix_keep(f->prefix, 0, seq, false);
    return true;
}

// The rest is computed, a few tokens at a time, and kept.
static void compute(struct fixture *f, struct ew_sequence *seq)
{
    while (seq->n_cached < seq->n_tokens)
        assert_true(step(f, seq, EW_MIN(3u, seq->n_tokens - seq->n_cached)));
}

static void end(struct fixture *f, struct ew_sequence *seq)
{
    ew_prefix_keep(f->prefix, 0, seq, true);
    ew_sequence_reset(seq);
}

static uint32_t run(struct fixture *f, int32_t base, uint32_t n)
{
    uint32_t known = begin(f, &f->seqs[0], base, n);

    compute(f, &f->seqs[0]);
    end(f, &f->seqs[0]);
    return known;
}

static void prefixes_are_shared_by_block_and_by_token(void **state)
{
    struct fixture *f = build_full(16);

    (void)state;
    assert_int_equal(run(f, 0, 10), 0);
    assert_int_equal(f->prefix->n_used, 3); // two whole blocks and a begun one
    assert_int_equal(begin(f, &f->seqs[0], 0, 20), 10);
    assert_int_equal(g_n_copied, 1);                  // the begun block: the tree's own stays as it is
    assert_int_equal(begin(f, &f->seqs[1], 0, 8), 7); // the last token is computed for its logits
    assert_int_equal(f->seqs[0].tables[0][0], f->seqs[1].tables[0][0]);
    assert_int_not_equal(f->seqs[0].tables[0][1], f->seqs[1].tables[0][1]);
    assert_int_equal(begin(f, &f->seqs[2], 3, 9), 0); // other tokens
    compute(f, &f->seqs[0]);
    compute(f, &f->seqs[1]);
    destroy(f);
}

static void running_sequences_share_what_they_have_computed(void **state)
{
    struct fixture *f = build_full(16);

    (void)state;
    begin(f, &f->seqs[0], 0, 12);
    begin(f, &f->seqs[1], 0, 12); // at the same time: both compute
    compute(f, &f->seqs[0]);
    assert_int_equal(begin(f, &f->seqs[2], 0, 13), 12);
    compute(f, &f->seqs[1]);
    assert_int_equal(ew_cache_blocks_used(&f->cache), 3); // of two that are equal the tree's remains
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(f->seqs[0].tables[0][i], f->seqs[1].tables[0][i]);
    destroy(f);
}

static void keys_keep_prefixes_apart(void **state)
{
    struct fixture *f = build_full(16);

    (void)state;
    run(f, 0, 10);
    for (int32_t i = 0; i < 10; i++)
        ew_sequence_push(&f->seqs[0], i);
    assert_int_equal(ew_prefix_adopt(f->prefix, 7, &f->seqs[0], &g_backend), 0);
    destroy(f);
}

static void the_least_recently_used_goes_first_from_its_end(void **state)
{
    struct fixture *f = build_full(8);

    (void)state;
    run(f, 0, 12);
    run(f, 100, 12); // six blocks are kept
    run(f, 0, 12);
    run(f, 200, 16); // takes the two free ones and two of the second prompt's three
    assert_int_equal(begin(f, &f->seqs[0], 0, 13), 12);
    ew_sequence_reset(&f->seqs[0]);
    assert_int_equal(begin(f, &f->seqs[0], 100, 13), 4);
    ew_sequence_reset(&f->seqs[0]);
    destroy(f);
}

static void what_is_held_is_never_given_up(void **state)
{
    struct fixture *f = build_full(4);

    (void)state;
    begin(f, &f->seqs[0], 0, 12);
    compute(f, &f->seqs[0]);
    assert_int_equal(ew_cache_available(&f->cache, 0), 1);
    begin(f, &f->seqs[1], 100, 8);
    assert_int_equal(ew_sequence_extend(&f->seqs[1], &g_backend, 8, NULL), EW_ERR_MEMORY);
    end(f, &f->seqs[0]);
    assert_int_equal(ew_sequence_extend(&f->seqs[1], &g_backend, 8, NULL), 0);
    destroy(f);
}

// Where no block is left for a copy, the sequence starts at the block's beginning.
static void a_begun_block_needs_room_for_its_copy(void **state)
{
    struct fixture *f = build_full(3);

    (void)state;
    run(f, 0, 6);
    begin(f, &f->seqs[1], 100, 4);
    compute(f, &f->seqs[1]);
    assert_int_equal(begin(f, &f->seqs[0], 0, 8), 4);
    assert_int_equal(f->seqs[0].n_cached, 4);
    assert_int_equal(g_n_copied, 0);
    compute(f, &f->seqs[0]);
    destroy(f);
}

static void windows_refuse_what_they_no_longer_have(void **state)
{
    struct fixture *f = build_mixed(16, 7);

    (void)state;
    run(f, 0, 40); // the window's pool kept only its last blocks
    assert_int_equal(begin(f, &f->seqs[0], 0, 60), 40);
    assert_true(f->seqs[0].first[1] > 0);
    assert_int_equal(f->seqs[0].tables[1][0], EW_BLOCK_NONE);
    for (uint32_t t = 35; t < 40; t++) // everything that token 40 sees
        assert_true(f->seqs[0].tables[1][t / BLOCK] >= 0);
    ew_sequence_reset(&f->seqs[0]);
    assert_int_equal(begin(f, &f->seqs[0], 0, 9), 0); // the full group has them, the window does not
    ew_sequence_reset(&f->seqs[0]);
    destroy(f);
}

// As the scheduler does, in chunks of up to n tokens.
static void compute_chunks(struct fixture *f, struct ew_sequence *seq, uint32_t n)
{
    while (seq->n_cached < seq->n_tokens)
        assert_true(step(f, seq, ew_prefix_chunk(f->prefix, seq, EW_MIN(n, seq->n_tokens - seq->n_cached))));
}

static void states_are_taken_up_only_where_they_were_kept(void **state)
{
    struct fixture *f = build_states(24, N_SEQS + 3);
    struct ew_sequence *a = &f->seqs[0], *b = &f->seqs[1];

    (void)state;
    assert_int_equal(begin(f, a, 0, 31), 0);
    compute_chunks(f, a, 64); // ends at 24 first: the last edge with a block and a token behind it
    assert_int_equal(begin(f, b, 0, 30), 24);
    compute_chunks(f, b, 64);
    ew_sequence_reset(b);
    assert_int_equal(begin(f, b, 0, 20), 0); // keys are there, a state is not
    ew_sequence_reset(b);
    for (int32_t token = 31; token < 38; token++) { // an answer
        ew_sequence_push(a, token);
        compute(f, a);
    }
    end(f, a);
    g_n_copied = 0;
    assert_int_equal(begin(f, a, 0, 50), 38); // the next turn, from the end of the answer
    assert_int_equal(g_n_copied, 2);          // of keys and of the state: the tree's own stay
    assert_int_equal(begin(f, b, 0, 37), 24); // the same prompt with another answer
    compute_chunks(f, b, 64);
    compute_chunks(f, a, 64);
    end(f, a);
    assert_int_equal(run(f, 0, 45), 38); // twelve tokens more were not worth another state
    destroy(f);
}

static void states_are_given_up_before_their_tokens(void **state)
{
    struct fixture *f = build_states(24, N_SEQS + 1);

    (void)state;
    run(f, 0, 10);
    run(f, 100, 10);
    run(f, 200, 10);
    run(f, 300, 10);
    assert_int_equal(begin(f, &f->seqs[0], 0, 12), 10); // its copy takes the place of the oldest state, 100's
    assert_int_equal(begin(f, &f->seqs[1], 200, 12), 10);
    assert_int_equal(begin(f, &f->seqs[2], 100, 12), 0);
    assert_int_equal(f->cache.pools[0].n_reusable, 4 * 3 - 2 * 2); // all keys are still there
    compute(f, &f->seqs[2]);
    compute(f, &f->seqs[1]);
    compute(f, &f->seqs[0]);
    destroy(f);
}

static void groups_without_tokens_are_not_reused(void **state)
{
    struct ew_cache_group groups[] = {{.kind = EW_CACHE_WINDOW, .n_layers = 1, .window = 6},
                                      {.kind = EW_CACHE_STATE, .n_layers = 1, .state_bytes = 64}};
    struct ew_program program = {.n_groups = 2, .groups = groups};
    struct ew_prefix *prefix = (struct ew_prefix *)&program;
    struct ew_cache cache;

    (void)state;
    assert_int_equal(ew_cache_init(&cache, &program, (uint32_t[]){4, 4}, BLOCK, NULL), 0);
    assert_int_equal(ew_prefix_create(&cache, CONTEXT, &prefix, NULL), 0);
    assert_null(prefix);
    ew_cache_fini(&cache);
}

static void failed_allocations_leave_nothing_behind(void **state)
{
    struct ew_cache_group group = {.kind = EW_CACHE_FULL, .n_layers = 1};
    struct ew_program program = {.n_groups = 1, .groups = &group};
    struct ew_prefix *prefix;
    struct ew_cache cache;

    (void)state;
    assert_int_equal(ew_cache_init(&cache, &program, (uint32_t[]){4}, BLOCK, NULL), 0);
    for (uint64_t n = 1; n <= 6; n++) {
        ew_alloc_fail_at(n);
        assert_int_equal(ew_prefix_create(&cache, CONTEXT, &prefix, NULL), EW_ERR_MEMORY);
        assert_null(cache.prefix);
    }
    ew_alloc_fail_at(0);
    ew_cache_fini(&cache);
}

// ---- at random -----------------------------------------------------------------------------------------------------

// Every block is free, or held as often as sequences and tree say.
static void check_accounts(const struct fixture *f)
{
    for (uint32_t g = 0; g < f->cache.n_groups; g++) {
        const struct ew_cache_pool *pool = &f->cache.pools[g];
        uint32_t n_free = 0, n_reusable = 0;

        for (int32_t b = 0; b < (int32_t)pool->n_blocks; b++) {
            uint32_t n_held = pool->node[b] != EW_NODE_NONE, n_by_tree = n_held;

            for (uint32_t s = 0; s < N_SEQS; s++)
                for (uint32_t i = f->seqs[s].first[g]; i < f->seqs[s].n_blocks[g]; i++)
                    n_held += f->seqs[s].tables[g][i] == b;
            assert_int_equal(pool->n_refs[b], n_held);
            n_free += n_held == 0;
            n_reusable += n_held == 1 && n_by_tree;
            if (n_by_tree)
                assert_int_equal(f->prefix->blocks[pool->node[b] * f->cache.n_groups + g], b);
        }
        assert_int_equal(pool->n_free, n_free);
        assert_int_equal(pool->n_reusable, n_reusable);
    }
}

// The contents of a block are what was computed into it: here the tree's tokens, which must be the sequence's.
static void check_contents(const struct fixture *f, const struct ew_sequence *seq)
{
    for (uint32_t g = 0; g < f->cache.n_groups; g++)
        for (uint32_t i = seq->first[g]; i < seq->n_kept && f->cache.pools[g].group.kind != EW_CACHE_STATE; i++) {
            uint32_t node = f->cache.pools[g].node[seq->tables[g][i]];

            assert_int_not_equal(node, EW_NODE_NONE);
            assert_memory_equal(f->prefix->tokens + node * BLOCK, seq->tokens + i * BLOCK, BLOCK * sizeof(int32_t));
        }
}

static void one_random_thing(struct fixture *f, struct ew_rng *rng)
{
    struct ew_sequence *seq = &f->seqs[ew_rng_below(rng, N_SEQS)];
    uint32_t n = 1 + ew_rng_below(rng, 24), want;

    if (seq->n_tokens == 0) { // few different tokens, so that prefixes meet
        for (uint32_t i = 0; i < n; i++)
            ew_sequence_push(seq, (int32_t)(i / 6 * 2 + ew_rng_below(rng, 8) / 7));
        ew_prefix_adopt(f->prefix, 0, seq, &g_backend);
        return;
    }
    if (seq->n_cached == seq->n_tokens && ew_rng_below(rng, 3) && seq->n_tokens < 40)
        ew_sequence_push(seq, (int32_t)ew_rng_below(rng, 2));
    want = 1 + ew_rng_below(rng, 5);
    want = EW_MIN(want, seq->n_tokens - seq->n_cached);
    if (want && ew_rng_below(rng, 2))
        want = ew_prefix_chunk(f->prefix, seq, want);
    if (want && step(f, seq, want))
        return;
    if (ew_rng_below(rng, 2)) {
        end(f, seq);
    } else if (ew_rng_below(rng, 4) == 0) {
        ew_sequence_reset(seq); // as a failed step does
    }
}

static void storm(struct fixture *f, uint64_t seed)
{
    struct ew_rng rng = ew_rng_at(seed, 0);

    for (uint32_t i = 0; i < 4000; i++) {
        one_random_thing(f, &rng);
        check_accounts(f);
        for (uint32_t s = 0; s < N_SEQS; s++)
            check_contents(f, &f->seqs[s]);
    }
    destroy(f);
}

static void accounts_hold_whatever_happens(void **state)
{
    struct ew_cache_group windows[] = {{.kind = EW_CACHE_WINDOW, .n_layers = 1, .window = 6},
                                       {.kind = EW_CACHE_WINDOW, .n_layers = 1, .window = 11}};
    uint64_t seed = getenv("EW_SEED") ? strtoull(getenv("EW_SEED"), NULL, 10) : 1;

    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout); // a failed assert loses what is buffered
    storm(build_full(24), seed);
    storm(build_mixed(24, 16), seed + 1);
    storm(build(windows, 2, (uint32_t[]){14, 18}), seed + 2);
    storm(build_states(24, N_SEQS + 1), seed + 3);
    storm(build_states(20, 9), seed + 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefixes_are_shared_by_block_and_by_token),
        cmocka_unit_test(running_sequences_share_what_they_have_computed),
        cmocka_unit_test(keys_keep_prefixes_apart),
        cmocka_unit_test(the_least_recently_used_goes_first_from_its_end),
        cmocka_unit_test(what_is_held_is_never_given_up),
        cmocka_unit_test(a_begun_block_needs_room_for_its_copy),
        cmocka_unit_test(windows_refuse_what_they_no_longer_have),
        cmocka_unit_test(states_are_taken_up_only_where_they_were_kept),
        cmocka_unit_test(states_are_given_up_before_their_tokens),
        cmocka_unit_test(groups_without_tokens_are_not_reused),
        cmocka_unit_test(failed_allocations_leave_nothing_behind),
        cmocka_unit_test(accounts_hold_whatever_happens),
    };

    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
