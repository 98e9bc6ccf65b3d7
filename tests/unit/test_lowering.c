// A transformer block with random weights through the CPU backend: the fast kernels against the reference, and the
// same bits however a sequence is cut into steps, whatever else is in them, and however many threads compute them.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "kernel/backend.h"

#define WIDTH 256
#define HEADS 4
#define KV_HEADS 2
#define DIM 64
#define FFN 512
#define VOCAB 300
#define TOKENS 45 // more than one tile of keys, more than two blocks
#define WINDOW 20

enum { X, H, Q, K, V, ATT, GATE, UP, LAST, LOGITS, N_SLOTS };
enum { EMBEDDING, W_Q, W_K, W_V, W_O, W_GATE, W_UP, W_DOWN, W_HEAD, NORM, N_WEIGHTS };

#define NONE EW_SLOT_NONE
#define OP(k, a, b, c, to, w, ...)                                                                                     \
    {                                                                                                                  \
        .kind = EW_OP_##k, .in = a, .in2 = b, .in3 = c, .out = to, .weight = w, .bias = EW_WEIGHT_NONE, __VA_ARGS__    \
    }
#define LINEAR(from, to, w) OP(LINEAR, from, NONE, NONE, to, w)

static struct ew_op g_ops[] = {
    OP(EMBED, NONE, NONE, NONE, X, EMBEDDING, .embed = {1}),
    OP(NORM, X, NONE, NONE, H, NORM, .norm = {.eps = 1e-5f}),
    LINEAR(H, Q, W_Q),
    LINEAR(H, K, W_K),
    LINEAR(H, V, W_V),
    OP(ROPE, Q, NONE, NONE, Q, EW_WEIGHT_NONE, .rope = {HEADS, DIM, 0}),
    OP(ROPE, K, NONE, NONE, K, EW_WEIGHT_NONE, .rope = {KV_HEADS, DIM, 0}),
    OP(ATTENTION, Q, K, V, ATT, EW_WEIGHT_NONE,
       .attention = {.n_heads = HEADS,
                     .n_kv_heads = KV_HEADS,
                     .head_dim = DIM,
                     .v_dim = DIM,
                     .scale = 0.125f,
                     .window = WINDOW,
                     .sinks = EW_WEIGHT_NONE}),
    LINEAR(ATT, H, W_O),
    OP(ADD, X, H, NONE, X, EW_WEIGHT_NONE, .add = {1}),
    OP(NORM, X, NONE, NONE, H, NORM, .norm = {.eps = 1e-5f}),
    LINEAR(H, GATE, W_GATE),
    LINEAR(H, UP, W_UP),
    OP(GLU, GATE, UP, NONE, GATE, EW_WEIGHT_NONE, .act = {.act = EW_ACT_SILU}),
    LINEAR(GATE, H, W_DOWN),
    OP(ADD, X, H, NONE, X, EW_WEIGHT_NONE, .add = {1}),
    OP(SELECT, X, NONE, NONE, LAST, EW_WEIGHT_NONE),
    OP(NORM, LAST, NONE, NONE, LAST, NORM, .norm = {.eps = 1e-5f}),
    LINEAR(LAST, LOGITS, W_HEAD),
};

static const uint32_t SHAPES[N_WEIGHTS][2] = {
    [EMBEDDING] = {VOCAB, WIDTH}, [W_Q] = {WIDTH, WIDTH},  [W_K] = {WIDTH / 2, WIDTH}, [W_V] = {WIDTH / 2, WIDTH},
    [W_O] = {WIDTH, WIDTH},       [W_GATE] = {FFN, WIDTH}, [W_UP] = {FFN, WIDTH},      [W_DOWN] = {WIDTH, FFN},
    [W_HEAD] = {VOCAB, WIDTH},    [NORM] = {1, WIDTH},
};

struct fixture {
    struct ew_weight weights[N_WEIGHTS];
    uint32_t widths[N_SLOTS];
    float frequencies[DIM / 2];
    struct ew_rope rope;
    struct ew_cache_group group;
    struct ew_program program;
    struct ew_arena arena;
};

static int read_rows(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                     struct ew_error *err)
{
    memcpy(dst, (const char *)source->ctx + row * source->arg[0], n_rows * source->arg[0]);
    return 0;
}

static void make_weight(struct fixture *f, uint32_t index, enum ew_dtype dtype)
{
    uint64_t rows = SHAPES[index][0], cols = SHAPES[index][1], row_bytes = ew_dtype_row_bytes(dtype, cols);
    float *values = ew_arena_array(&f->arena, rows * cols, sizeof(float));
    uint8_t *bytes = ew_arena_alloc(&f->arena, rows * row_bytes);
    struct ew_rng rng = ew_rng_at(1, index);

    assert_non_null(values);
    assert_non_null(bytes);
    for (uint64_t i = 0; i < rows * cols; i++)
        values[i] = index == NORM ? 1 + 0.1f * ew_rng_normal(&rng) : ew_rng_normal(&rng) / 16;
    ew_dtype_info(dtype)->encode(values, NULL, bytes, rows * cols);
    f->weights[index] = (struct ew_weight){
        .name = "random",
        .rows = rows,
        .cols = cols,
        .is_matrix = index != NORM,
        .source = {.dtype = dtype, .read = read_rows, .ctx = bytes, .arg = {row_bytes}}};
}

static void make(struct fixture *f, enum ew_dtype dtype)
{
    static const uint32_t widths[N_SLOTS] = {WIDTH, WIDTH, WIDTH, WIDTH / 2, WIDTH / 2, WIDTH, FFN, FFN, WIDTH, VOCAB};

    *f = (struct fixture){.rope = {.kind = EW_ROPE_HALVES, .n_dims = DIM, .scale_short = 1, .scale_long = 1},
                          .group = {.kind = EW_CACHE_WINDOW,
                                    .n_layers = 1,
                                    .window = WINDOW,
                                    .n_kv_heads = KV_HEADS,
                                    .k_dim = DIM,
                                    .v_dim = DIM}};
    ew_arena_init(&f->arena, SIZE_MAX);
    for (uint32_t i = 0; i < N_WEIGHTS; i++)
        make_weight(f, i, i == NORM ? EW_DTYPE_F32 : dtype);
    for (uint32_t i = 0; i < DIM / 2; i++)
        f->frequencies[i] = powf(10000, -2.0f * (float)i / DIM);
    memcpy(f->widths, widths, sizeof(widths));
    f->rope.freq_short = f->frequencies;
    f->program = (struct ew_program){.name = "block",
                                     .n_ops = EW_COUNT_OF(g_ops),
                                     .n_slots = N_SLOTS,
                                     .n_weights = N_WEIGHTS,
                                     .n_ropes = 1,
                                     .n_groups = 1,
                                     .ops = g_ops,
                                     .slot_width = f->widths,
                                     .weights = f->weights,
                                     .ropes = &f->rope,
                                     .groups = &f->group,
                                     .logits = LOGITS,
                                     .n_vocab = VOCAB,
                                     .width = WIDTH,
                                     .n_position_dims = 1};
    ew_program_check(&f->program);
}

static struct ew_backend *prepared(struct fixture *f, enum ew_kernels kernels, uint32_t n_threads)
{
    struct ew_backend_config config = {.n_threads = n_threads, .kernels = kernels};
    uint32_t n_blocks = 2 * (TOKENS / 16 + 1);
    struct ew_limits limits = {.n_tokens_max = 2 * TOKENS,
                               .n_seqs_max = 2,
                               .n_logits_max = 2 * TOKENS,
                               .context_max = TOKENS,
                               .block_tokens = 16,
                               .n_blocks = &n_blocks,
                               .kv = EW_KV_F16};
    struct ew_backend_sizes sizes;
    struct ew_backend *backend;

    assert_int_equal(ew_backend_create("cpu", &config, &backend, NULL), 0);
    assert_int_equal(backend->ops->sizes(backend, &f->program, &limits, &sizes, NULL), 0);
    assert_true(sizes.weight_bytes > 0 && sizes.workspace_bytes > 0 && sizes.block_bytes[0] > 0);
    assert_int_equal(backend->ops->load(backend, &f->program, NULL, NULL, NULL), 0);
    assert_int_equal(backend->ops->prepare(backend, &limits, NULL), 0);
    return backend;
}

// Feeds n tokens of each of n_seqs copies of one sequence and adds the logits of the first to out.
static void feed(struct ew_backend *backend, uint32_t past, uint32_t n, uint32_t n_seqs, bool with_logits, float *out)
{
    static const int32_t blocks[2][3] = {{4, 0, 3}, {1, 5, 2}};
    const int32_t *const tables[2][1] = {{blocks[0]}, {blocks[1]}};
    int32_t token[2 * TOKENS], position[2 * TOKENS];
    uint8_t want[2 * TOKENS];
    struct ew_batch_seq seqs[2];
    struct ew_batch batch = {.n_tokens = n * n_seqs,
                             .n_seqs = n_seqs,
                             .n_logits = with_logits ? n * n_seqs : 0,
                             .token = token,
                             .position = position,
                             .want_logits = want,
                             .seqs = seqs};
    uint64_t before;
    const float *logits;

    memset(want, with_logits, sizeof(want));
    for (uint32_t s = 0; s < n_seqs; s++) {
        seqs[s] = (struct ew_batch_seq){
            .first = s * n, .n_tokens = n, .n_past = past, .rope_span = TOKENS, .blocks = tables[s]};
        for (uint32_t i = 0; i < n; i++) {
            token[s * n + i] = (int32_t)((past + i + s) * 37 % VOCAB);
            position[s * n + i] = (int32_t)(past + i);
        }
    }
    before = ew_alloc_count();
    assert_int_equal(backend->ops->submit(backend, &batch, NULL), 0);
    assert_int_equal(backend->ops->wait(backend, &logits, NULL), 0);
    assert_int_equal(ew_alloc_count(), before); // nothing is allocated in a step
    if (with_logits)
        memcpy(out + (uint64_t)past * VOCAB, logits, (uint64_t)n * VOCAB * sizeof(float));
}

static void feed_in_chunks(struct ew_backend *backend, uint32_t chunk, uint32_t n_seqs, float *out)
{
    for (uint32_t past = 0; past < TOKENS; past += chunk)
        feed(backend, past, EW_MIN(chunk, TOKENS - past), n_seqs, true, out);
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double square = 0, size = 0;

    for (uint32_t i = 0; i < n; i++) {
        square += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(square / size);
}

static float g_want[TOKENS * VOCAB], g_got[TOKENS * VOCAB];

static void test_against_reference(void **state)
{
    static const struct {
        enum ew_dtype dtype;
        enum ew_arith arith, with_amx;
    } CASES[] = {
        {EW_DTYPE_F32, EW_ARITH_REFERENCE, EW_ARITH_REFERENCE}, {EW_DTYPE_F16, EW_ARITH_REFERENCE, EW_ARITH_BF16},
        {EW_DTYPE_BF16, EW_ARITH_REFERENCE, EW_ARITH_BF16},     {EW_DTYPE_F8_E4M3, EW_ARITH_REFERENCE, EW_ARITH_BF16},
        {EW_DTYPE_Q8_0, EW_ARITH_I8, EW_ARITH_I8},              {EW_DTYPE_Q4_0, EW_ARITH_I8, EW_ARITH_I8},
        {EW_DTYPE_Q4_K, EW_ARITH_I8, EW_ARITH_I8},              {EW_DTYPE_Q6_K, EW_ARITH_I8, EW_ARITH_I8},
    };
    static const double TOLERANCES[] = {[EW_ARITH_REFERENCE] = 1e-4, [EW_ARITH_BF16] = 5e-3, [EW_ARITH_I8] = 5e-2};

    for (uint32_t i = 0; i < EW_COUNT_OF(CASES); i++) {
        struct ew_backend *reference, *fast;
        enum ew_arith arith;
        struct fixture f;

        if (!ew_dtype_info(CASES[i].dtype)->encode)
            continue;
        make(&f, CASES[i].dtype);
        reference = prepared(&f, EW_KERNELS_REFERENCE, 2);
        fast = prepared(&f, EW_KERNELS_AUTO, 2);
        feed_in_chunks(reference, TOKENS, 1, g_want);
        feed_in_chunks(fast, TOKENS, 1, g_got);
        arith = fast->ops->arith(fast);
        assert_true(arith == CASES[i].arith || arith == CASES[i].with_amx);
        assert_true(distance(g_got, g_want, TOKENS * VOCAB) < TOLERANCES[arith]);
        assert_int_equal(reference->ops->arith(reference), EW_ARITH_REFERENCE);
        ew_backend_destroy(reference);
        ew_backend_destroy(fast);
        ew_arena_fini(&f.arena);
    }
}

static void check_same_bits(struct fixture *f, enum ew_kernels kernels)
{
    static const struct {
        uint32_t chunk, n_seqs, n_threads;
    } WAYS[] = {{5, 1, 1}, {1, 1, 2}, {16, 2, 1}, {TOKENS, 2, 3}};
    struct ew_backend *backend = prepared(f, kernels, 1);

    feed_in_chunks(backend, TOKENS, 1, g_want);
    ew_backend_destroy(backend);
    for (uint32_t i = 0; i < EW_COUNT_OF(WAYS); i++) {
        backend = prepared(f, kernels, WAYS[i].n_threads);
        feed_in_chunks(backend, WAYS[i].chunk, WAYS[i].n_seqs, g_got);
        assert_memory_equal(g_got, g_want, sizeof(g_got));
        ew_backend_destroy(backend);
    }
}

static void test_same_bits(void **state)
{
    static const enum ew_dtype dtypes[] = {EW_DTYPE_F32, EW_DTYPE_Q8_0};
    struct fixture f;

    for (uint32_t i = 0; i < EW_COUNT_OF(dtypes); i++) {
        if (!ew_dtype_info(dtypes[i])->encode)
            continue;
        make(&f, dtypes[i]);
        check_same_bits(&f, EW_KERNELS_AUTO);
        check_same_bits(&f, EW_KERNELS_REFERENCE);
        ew_arena_fini(&f.arena);
    }
}

// Steps without logits leave the caches as others do.
static void test_no_logits(void **state)
{
    struct ew_backend *backend;
    struct fixture f;

    make(&f, EW_DTYPE_F32);
    backend = prepared(&f, EW_KERNELS_AUTO, 2);
    feed_in_chunks(backend, TOKENS, 1, g_want);
    feed(backend, 0, TOKENS - 1, 1, false, NULL);
    feed(backend, TOKENS - 1, 1, 1, true, g_got);
    assert_memory_equal(g_got + (TOKENS - 1) * VOCAB, g_want + (TOKENS - 1) * VOCAB, VOCAB * sizeof(float));
    ew_backend_destroy(backend);
    ew_arena_fini(&f.arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_reference),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_no_logits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
