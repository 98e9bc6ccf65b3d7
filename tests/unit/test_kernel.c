// The CPU backend on a program small enough to be computed by hand.

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "kernel/backend.h"
#include "kernel/cpu/cpu_check.h"
#include "platform/cpu.h"

#include <math.h>

// ---- a model of one attention layer: width 2, vocabulary 3, one head, identity projections, tied head

static const float EMBEDDING[3][2] = {{1, 0}, {0, 1}, {1, 1}};
static const float IDENTITY[2][2] = {{1, 0}, {0, 1}};

static int read_rows(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                     struct ew_error *err)
{
    uint64_t row_bytes = source->arg[0];

    memcpy(dst, (const char *)source->ctx + row * row_bytes, n_rows * row_bytes);
    return 0;
}

#define MATRIX(table)                                                                                                  \
    {                                                                                                                  \
        .name = #table, .rows = sizeof(table) / sizeof(*(table)), .cols = 2, .is_matrix = true, .source = {            \
            .dtype = EW_DTYPE_F32,                                                                                     \
            .read = read_rows,                                                                                         \
            .ctx = (table),                                                                                            \
            .arg = {8}                                                                                                 \
        }                                                                                                              \
    }

enum { X, Q, K, V, ATT, LAST, LOGITS, N_SLOTS };

static struct ew_weight g_weights[] = {MATRIX(EMBEDDING), MATRIX(IDENTITY)};
static uint32_t g_widths[N_SLOTS] = {2, 2, 2, 2, 2, 2, 3};

#define NONE EW_SLOT_NONE
#define LINEAR(to, from, w)                                                                                            \
    {                                                                                                                  \
        .kind = EW_OP_LINEAR, .in = from, .in2 = NONE, .in3 = NONE, .out = to, .weight = w, .bias = EW_WEIGHT_NONE     \
    }

static struct ew_op g_ops[] = {
    {.kind = EW_OP_EMBED, .in = NONE, .in2 = NONE, .in3 = NONE, .out = X, .weight = 0, .embed = {1}},
    LINEAR(Q, X, 1),
    LINEAR(K, X, 1),
    LINEAR(V, X, 1),
    {.kind = EW_OP_ATTENTION,
     .in = Q,
     .in2 = K,
     .in3 = V,
     .out = ATT,
     .attention = {.n_heads = 1, .n_kv_heads = 1, .head_dim = 2, .v_dim = 2, .scale = 1, .sinks = EW_WEIGHT_NONE}},
    {.kind = EW_OP_ADD, .in = X, .in2 = ATT, .in3 = NONE, .out = X, .add = {1}},
    {.kind = EW_OP_SELECT, .in = X, .in2 = NONE, .in3 = NONE, .out = LAST},
    LINEAR(LOGITS, LAST, 0),
};

static struct ew_cache_group g_group = {.kind = EW_CACHE_FULL, .n_layers = 1, .n_kv_heads = 1, .k_dim = 2, .v_dim = 2};

static struct ew_program g_program = {
    .name = "by hand",
    .n_ops = 8,
    .n_slots = N_SLOTS,
    .n_weights = 2,
    .n_groups = 1,
    .ops = g_ops,
    .slot_width = g_widths,
    .weights = g_weights,
    .groups = &g_group,
    .logits = LOGITS,
    .n_vocab = 3,
    .width = 2,
    .n_position_dims = 1,
};

static struct ew_backend *prepared(enum ew_kernels kernels, enum ew_kv_dtype kv, uint32_t n_threads)
{
    struct ew_backend_config config = {.n_threads = n_threads, .kernels = kernels};
    uint32_t n_blocks = 4;
    struct ew_limits limits = {.n_tokens_max = 8,
                               .n_seqs_max = 2,
                               .n_logits_max = 8,
                               .context_max = 16,
                               .block_tokens = 2,
                               .n_blocks = &n_blocks,
                               .kv = kv};
    struct ew_backend *backend;

    ew_program_check(&g_program);
    assert_int_equal(ew_backend_create("cpu", &config, &backend, NULL), 0);
    assert_int_equal(backend->ops->load(backend, &g_program, NULL, NULL, NULL), 0);
    assert_int_equal(backend->ops->prepare(backend, &limits, NULL), 0);
    return backend;
}

// Feeds tokens [from, from + n) of 0, 1, 2 to a sequence whose blocks lie out of order; the logits are those of the
// last.
static const float *feed(struct ew_backend *backend, uint32_t from, uint32_t n)
{
    static const int32_t tokens[] = {0, 1, 2}, positions[] = {0, 1, 2}, blocks[] = {3, 1};
    static const int32_t *const tables[] = {blocks};
    uint8_t want[3] = {0};
    struct ew_batch_seq seq = {.n_tokens = n, .n_past = from, .rope_span = 3, .blocks = tables};
    struct ew_batch batch = {.n_tokens = n,
                             .n_seqs = 1,
                             .n_logits = 1,
                             .token = tokens + from,
                             .position = positions + from,
                             .want_logits = want,
                             .seqs = &seq};
    const float *logits;

    want[n - 1] = 1;
    assert_int_equal(backend->ops->submit(backend, &batch, NULL), 0);
    assert_int_equal(backend->ops->wait(backend, &logits, NULL), 0);
    return logits;
}

static void assert_near(const float *logits, const double *expected, double tolerance)
{
    for (int i = 0; i < 3; i++)
        assert_true(fabs(logits[i] - expected[i]) <= tolerance);
}

// Token 1 scores 0 against itself's predecessor and 1 against itself; token 2 scores 1, 1 and 2.
static const double E = 2.718281828459045;

static void expect_second(double *out)
{
    out[0] = 1 / (1 + E), out[1] = 1 + E / (1 + E), out[2] = out[0] + out[1];
}

static void expect_third(double *out)
{
    double sum = E + E + E * E;

    out[0] = out[1] = 1 + (E + E * E) / sum, out[2] = out[0] + out[1];
}

static void test_by_hand(void **state)
{
    static const double TOLERANCE[] = {[EW_KV_F32] = 1e-6, [EW_KV_F16] = 1e-3, [EW_KV_F8] = 1e-3, [EW_KV_I8] = 5e-3};
    double second[3], third[3];

    expect_second(second);
    expect_third(third);
    for (int kv = EW_KV_F32; kv <= EW_KV_I8; kv++) {
        for (uint32_t i = 0; i < 4; i++) {
            struct ew_backend *backend = prepared(i & 1 ? EW_KERNELS_REFERENCE : EW_KERNELS_AUTO, (enum ew_kv_dtype)kv,
                                                  1 + (i & 2));

            assert_near(feed(backend, 0, 2), second, TOLERANCE[kv]);
            assert_near(feed(backend, 2, 1), third, TOLERANCE[kv]);
            assert_near(feed(backend, 0, 3), third, TOLERANCE[kv]);
            ew_backend_destroy(backend);
        }
    }
}

static void test_export_import(void **state)
{
    struct ew_backend *backend = prepared(EW_KERNELS_AUTO, EW_KV_F16, 1);
    float rows[8], expected[8] = {1, 0, 0, 1, 1, 0, 0, 1};
    double third[3];

    expect_third(third);
    feed(backend, 0, 3);
    assert_int_equal(backend->ops->export_block(backend, 0, 3, 2, rows, NULL), 0);
    assert_memory_equal(rows, expected, sizeof(rows));
    assert_int_equal(backend->ops->copy_block(backend, 0, 3, 0, NULL), 0);
    memset(expected, 0, sizeof(expected));
    assert_int_equal(backend->ops->import_block(backend, 0, 3, 2, expected, NULL), 0);
    assert_int_equal(backend->ops->export_block(backend, 0, 0, 2, rows, NULL), 0);
    assert_int_equal(backend->ops->import_block(backend, 0, 3, 2, rows, NULL), 0);
    assert_near(feed(backend, 2, 1), third, 1e-3);
    assert_int_equal(backend->ops->export_block(backend, 0, 4, 2, rows, NULL), EW_ERR_USAGE);
    ew_backend_destroy(backend);
}

static void double_embedding(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                             uint32_t width)
{
    (*(int *)ctx)++;
    for (uint32_t i = 0; i < n_rows * width && program->ops[op].kind == EW_OP_SELECT; i++)
        rows[i] *= 2;
}

static void test_trace(void **state)
{
    struct ew_backend *backend = prepared(EW_KERNELS_AUTO, EW_KV_F32, 2);
    double second[3];
    int n_calls = 0;

    expect_second(second);
    for (int i = 0; i < 3; i++)
        second[i] *= 2;
    backend->ops->trace(backend, double_embedding, &n_calls);
    assert_near(feed(backend, 0, 2), second, 1e-6);
    assert_int_equal(n_calls, 8);
    ew_backend_destroy(backend);
}

static void test_bad_batches(void **state)
{
    struct ew_backend *backend = prepared(EW_KERNELS_AUTO, EW_KV_F32, 1);
    static const int32_t token = 3, position = 0, blocks[] = {7};
    static const int32_t *const tables[] = {blocks};
    uint8_t want = 0;
    struct ew_batch_seq seq = {.n_tokens = 1, .no_cache = true, .blocks = tables};
    struct ew_batch batch = {
        .n_tokens = 1, .n_seqs = 1, .token = &token, .position = &position, .want_logits = &want, .seqs = &seq};

    assert_int_equal(backend->ops->submit(backend, &batch, NULL), EW_ERR_LIMIT); // no such token
    seq.no_cache = false;
    assert_int_equal(backend->ops->submit(backend, &batch, NULL), EW_ERR_USAGE); // no such block
    seq.n_past = 16;
    assert_int_equal(backend->ops->submit(backend, &batch, NULL), EW_ERR_LIMIT); // past the context
    batch.n_tokens = 9;
    assert_int_equal(backend->ops->submit(backend, &batch, NULL), EW_ERR_LIMIT);
    ew_backend_destroy(backend);
}

static void report(void *ctx, const struct ew_cpu_check *check)
{
    (*(uint32_t *)ctx)++;
    if (check->error > 1)
        print_error("%s %s (%s): %g times its bound\n", check->op, check->variant, check->isa, check->error);
}

static void test_variants(void **state)
{
    uint32_t n_checks = 0;
    struct ew_cpu_check_config config = {.isa_mask = ew_cpu_isa(), .report = report, .ctx = &n_checks};

    assert_int_equal(ew_cpu_check_run(&config, NULL), 0);
    print_message("%u kernels of %s and below agree with the reference\n", n_checks, ew_isa_best(config.isa_mask));
}

// ---- a row's bits do not depend on the rows beside it, nor on how many tiles are asked for at once

#define MANY_ROWS 600 // past any block of activations
#define TILED_ROWS 39 // three tiles, the last one not full

struct product {
    struct ew_cpu_matrix matrix;
    struct ew_cpu_q8 q8;
    const float *x;          // [MANY_ROWS, cols]
    float *alone, *together; // [MANY_ROWS, TILED_ROWS]
    uint8_t *data;
};

// Of each width, for all kernels: most of this test's time would be spent in making them.
static struct activations {
    uint32_t cols;
    float *x;
    struct ew_cpu_q8 q8;
} g_activations[4];

static void make_activations(struct activations *a, uint32_t cols)
{
    struct ew_cpu_ops reference;
    struct ew_cpu_q8 *q8 = &a->q8;

    a->cols = cols;
    a->x = ew_alloc_array((uint64_t)MANY_ROWS * cols, sizeof(*a->x));
    ew_cpu_ops_init_reference(&reference);
    q8->q_stride = (cols + 63) / 64 * 64;
    q8->group_stride = q8->q_stride / EW_CPU_GROUP;
    q8->q = ew_alloc_aligned(MANY_ROWS * q8->q_stride);
    q8->bf16 = ew_alloc_array(MANY_ROWS * q8->q_stride, sizeof(uint16_t));
    q8->scale = ew_alloc_array(MANY_ROWS * q8->group_stride, sizeof(float));
    q8->scaled_sum = ew_alloc_array(MANY_ROWS * q8->group_stride, sizeof(float));
    q8->sum = ew_alloc_array(2 * MANY_ROWS * q8->group_stride, sizeof(int16_t));
    for (uint32_t row = 0; row < MANY_ROWS; row++) {
        struct ew_rng rng = ew_rng_at(30, row);
        float *x = a->x + (uint64_t)row * cols;

        for (uint32_t i = 0; i < cols; i++)
            x[i] = ew_rng_normal(&rng);
        ew_cpu_quantise_row(&reference, x, cols, q8, row);
    }
}

static const struct activations *activations_of(uint32_t cols)
{
    size_t i = 0;

    while (i < EW_COUNT_OF(g_activations) && g_activations[i].cols && g_activations[i].cols != cols)
        i++;
    assert_true(i < EW_COUNT_OF(g_activations));
    if (!g_activations[i].cols)
        make_activations(&g_activations[i], cols);
    return &g_activations[i];
}

static int free_activations(void **state)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_activations); i++) {
        struct activations *a = &g_activations[i];
        void *pieces[] = {a->q8.q, a->q8.bf16, a->q8.scale, a->q8.scaled_sum, a->q8.sum, a->x};

        for (size_t k = 0; k < EW_COUNT_OF(pieces); k++)
            ew_free(pieces[k]);
    }
    memset(g_activations, 0, sizeof(g_activations));
    return 0;
}

static void product_free(struct product *p)
{
    ew_free(p->alone);
    ew_free(p->together);
    ew_free(p->data);
}

// Small random bytes are ordinary numbers in every layout.
static void product_make(struct product *p, enum ew_cpu_layout layout, uint32_t cols)
{
    const struct activations *activations = activations_of(cols);
    uint64_t bytes;

    p->matrix = (struct ew_cpu_matrix){.layout = layout, .rows = TILED_ROWS, .cols = cols};
    bytes = ew_cpu_matrix_shape(&p->matrix);
    p->data = ew_alloc_aligned(bytes);
    p->alone = ew_alloc_array(MANY_ROWS * TILED_ROWS, sizeof(float));
    p->together = ew_alloc_array(MANY_ROWS * TILED_ROWS, sizeof(float));
    ew_rng_fill(31, layout, p->data, bytes);
    for (uint64_t i = 0; i < bytes; i++)
        p->data[i] &= 0x3F;
    p->matrix.data = p->data;
    p->x = activations->x;
    p->q8 = activations->q8;
}

static void compare_alone_and_together(ew_cpu_linear_fn linear, enum ew_cpu_layout layout, uint32_t cols)
{
    struct product p;
    struct ew_cpu_q8 one;
    struct ew_cpu_linear job;

    product_make(&p, layout, cols);
    one = p.q8;
    job = (struct ew_cpu_linear){.matrix = &p.matrix, .x = p.x, .q8 = &p.q8, .out = p.together, .n_rows = MANY_ROWS,
                                 .x_stride = cols, .out_stride = TILED_ROWS};
    linear(&job, 0, 3);
    job.q8 = &one;
    job.n_rows = 1;
    for (uint32_t row = 0; row < MANY_ROWS; row++) {
        uint64_t first = (uint64_t)row * p.q8.group_stride;

        job.x = p.x + (uint64_t)row * cols;
        one.q = p.q8.q + (uint64_t)row * p.q8.q_stride;
        one.bf16 = p.q8.bf16 + (uint64_t)row * p.q8.q_stride;
        one.scale = p.q8.scale + first, one.scaled_sum = p.q8.scaled_sum + first, one.sum = p.q8.sum + 2 * first;
        job.out = p.alone + (uint64_t)row * TILED_ROWS;
        for (uint32_t tile = 0; tile < 3; tile++)
            linear(&job, tile, tile + 1);
    }
    assert_memory_equal(p.alone, p.together, MANY_ROWS * TILED_ROWS * sizeof(float));
    product_free(&p);
}

static uint32_t compare_widths(ew_cpu_linear_fn linear, enum ew_cpu_layout layout, bool is_bf16)
{
    const struct ew_cpu_layout_info *info = ew_cpu_layout_info(layout);

    if (!linear)
        return 0;
    compare_alone_and_together(linear, layout, 256);
    compare_alone_and_together(linear, layout, 1280); // two slabs, the second not full
    if (info ? ew_cpu_scale_groups(info->scale) == 1 : layout != EW_CPU_FP8)
        compare_alone_and_together(linear, layout, 1120); // groups fill no batch of four
    if (is_bf16)
        compare_alone_and_together(linear, layout, 2816); // two blocks of columns
    return 1;
}

static void test_rows_alone_and_together(void **state)
{
    static const char *const caps[] = {"avx2", "avx512", "avx512-vnni", "avx512-vbmi", "amx",
                                       "neon", "dotprod", "i8mm"};
    uint32_t before = 0, n = 0;

    for (size_t i = 0; i < EW_COUNT_OF(caps); i++) {
        struct ew_cpu_ops ops;
        uint32_t mask;
        int first;

        assert_int_equal(ew_isa_cap(caps[i], &mask, NULL), 0);
        mask &= ew_cpu_isa();
        if (mask == before || mask == 0)
            continue;
        before = mask;
        ew_cpu_ops_init(&ops, mask);
        first = ops.has_bf16_tiles ? EW_CPU_F16_TILES : EW_CPU_FP8;
        for (int layout = first; layout < EW_CPU_LAYOUT_COUNT; layout++) {
            if (layout == EW_CPU_FP8 && !ops.has_fp8)
                continue;
            n += compare_widths(ops.linear[layout], (enum ew_cpu_layout)layout, layout < EW_CPU_I8);
            n += compare_widths(ops.linear_prompt[layout], (enum ew_cpu_layout)layout, true);
        }
    }
    print_message("%u kernels give the same bits for a row alone and among %d\n", n, MANY_ROWS);
}

// ---- FP8 as 8-bit integers

#define SPANS 8

static float largest_of_group(const float *x)
{
    float largest = 0;

    for (uint32_t i = 0; i < EW_CPU_GROUP; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    return largest;
}

// Where FP8 is held as I8, and scales are normal numbers of f16, what is no smaller than an eighth of its group's
// largest stays (but for the rounding of the scale to f16), and nothing else is off by more than 1/128 of it.
static void test_fp8_as_i8(void **state)
{
    enum { COLS = SPANS * EW_CPU_FP8_SPAN };
    uint8_t row[SPANS * (4 + EW_CPU_FP8_SPAN)];
    float want[COLS], got[COLS], scratch[COLS];
    struct ew_cpu_matrix matrix = {.layout = EW_CPU_I8, .rows = 1, .cols = COLS};
    uint64_t bytes = ew_cpu_matrix_shape(&matrix);
    uint8_t *tile = ew_alloc(bytes);

    (void)state;
    assert_non_null(tile);
    ew_rng_fill(33, 0, row, sizeof(row));
    for (uint32_t i = 0; i < SPANS; i++) {
        uint8_t *span = row + i * (4 + EW_CPU_FP8_SPAN);

        memcpy(span, &(float){1 + 0.3f * (float)i}, 4);
        for (uint32_t k = 0; k < EW_CPU_FP8_SPAN && i > 0; k++) // spans that end earlier, the last with nothing
            span[4 + k] = i + 1 == SPANS ? 0 : (uint8_t)(span[4 + k] & (0x87 | 0x78 >> i));
    }
    matrix.data = tile;
    ew_cpu_tile_pack(&matrix, 0, EW_DTYPE_FP8, row, 1, tile, scratch);
    ew_cpu_matrix_row(&matrix, 0, got);
    ew_dtype_info(EW_DTYPE_FP8)->decode(row, want, COLS);
    for (uint32_t i = 0; i < COLS; i++) {
        float largest = largest_of_group(want + i / EW_CPU_GROUP * EW_CPU_GROUP);
        bool is_kept = fabsf(want[i]) >= largest / 8;

        assert_float_equal(got[i], want[i], is_kept ? fabsf(want[i]) * 0x1.01p-11f : largest / 127);
    }
    ew_free(tile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),  cmocka_unit_test(test_export_import),
        cmocka_unit_test(test_trace),    cmocka_unit_test(test_bad_batches),
        cmocka_unit_test(test_variants), cmocka_unit_test_teardown(test_rows_alone_and_together, free_activations),
        cmocka_unit_test(test_fp8_as_i8),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
