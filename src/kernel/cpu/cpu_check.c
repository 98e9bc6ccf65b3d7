#include "kernel/cpu/cpu_check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/half.h"
#include "base/rng.h"
#include "kernel/cpu/cpu_time.h"
#include "platform/cpu.h"

#define N_MAX 4200  // elements of the longest row
#define B_MAX 35    // activations of the largest batch
#define ROWS_MAX 40 // of a checked matrix
#define OUT_STRIDE (ROWS_MAX + 3)
#define POOL_STARTS (1u << 16)

static const uint32_t SIZES[] = {1, 3, 7, 8, 16, 31, 32, 33, 64, 100, 257, 2048, 4099};
static const uint32_t BATCHES[] = {1, 2, 3, 8, 17, B_MAX};

struct checker {
    const struct ew_cpu_check_config *config;
    struct ew_cpu_ops ref, ops;
    struct ew_cpu_ops below; // of the level below: what is the same there was checked there
    uint64_t seed;
    bool failed;
    struct ew_cpu_check check;     // being filled
    float *a, *b, *c, *want, *got; // [B_MAX * N_MAX]
    float *pool;                   // [POOL_STARTS + B_MAX * N_MAX] what inputs are taken from
    uint8_t *bytes, *tiles;        // rows of a file, and packed
};

// ---- inputs and comparison ----------------------------------------------------------------------

// Mostly ordinary numbers; some zero, tiny, large, or of exactly the same size.
static void fill_pool(float *out, uint32_t n)
{
    struct ew_rng rng = ew_rng_at(20, 0);

    for (uint32_t i = 0; i < n; i++) {
        uint32_t kind = ew_rng_below(&rng, 16);
        float x = ew_rng_normal(&rng);

        out[i] = kind == 0 ? 0 : kind == 1 ? x * 1e-6f : kind == 2 ? x * 30 : kind == 3 ? copysignf(8, x) : x;
    }
}

// From anywhere in the pool: to draw each of them anew would take longer than all checks.
static void fill(struct checker *checker, float *out, uint32_t n)
{
    struct ew_rng rng = ew_rng_at(23, checker->seed++);

    EW_ASSERT(n <= B_MAX * N_MAX);
    memcpy(out, checker->pool + ew_rng_below(&rng, POOL_STARTS), n * sizeof(*out));
}

static void begin(struct checker *checker, const char *op, const char *variant)
{
    checker->check = (struct ew_cpu_check){.op = op, .isa = checker->ops.isa};
    snprintf(checker->check.variant, sizeof(checker->check.variant), "%s", variant);
}

// Notes one comparison; a NaN on one side only is out of any bound.
static void compare(struct checker *checker, float got, double want, double bound)
{
    double error = isnan(got) && isnan(want) ? 0 : fabs(got - want) / bound;

    if (!(error <= checker->check.error))
        checker->check.error = isnan(error) ? INFINITY : error;
}

static void end(struct checker *checker)
{
    checker->failed |= checker->check.error > 1;
    checker->config->report(checker->config->ctx, &checker->check);
}

static bool wants(const struct checker *checker, const char *op, const char *variant)
{
    char name[80];

    if (!checker->config->wanted)
        return true;
    snprintf(name, sizeof(name), "%s %s", op, variant);
    return checker->config->wanted(checker->config->ctx, name);
}

// Whether this level has its own form of a function.
#define IS_NEW(field) (checker->ops.field != checker->below.field)

// ---- rows ---------------------------------------------------------------------------------------

// Sums of n squares in f32 lanes are within n / 16 * 2^-24 of the exact one; elements then get a few roundings each.
static void check_norm(struct checker *checker, enum ew_norm_kind kind, const char *name)
{
    if (!IS_NEW(norm[kind]) || !wants(checker, "norm", name))
        return;
    begin(checker, "norm", name);
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s];
        double bound = 4e-6;

        fill(checker, checker->a, n), fill(checker, checker->b, n), fill(checker, checker->c, n);
        checker->ref.norm[kind](checker->want, checker->a, s % 3 ? checker->b : NULL, s % 2 ? checker->c : NULL, n,
                                1e-5f, 1);
        checker->ops.norm[kind](checker->got, checker->a, s % 3 ? checker->b : NULL, s % 2 ? checker->c : NULL, n,
                                1e-5f, 1);
        for (uint32_t i = 0; i < n; i++) // the bias may take away what the norm left, and a mean most of its elements
            compare(checker, checker->got[i], checker->want[i],
                    bound * (fabs(checker->want[i]) + (s % 2 ? fabs(checker->c[i]) : 0) +
                             (kind == EW_NORM_LAYER ? 1 + fabs(checker->b[i]) : 0) + 1e-6));
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_NORM, (int)kind, &checker->check);
    end(checker);
}

static const char *const ACTS[] = {
    [EW_ACT_NONE] = "none", [EW_ACT_SILU] = "silu",   [EW_ACT_GELU] = "gelu",       [EW_ACT_GELU_TANH] = "gelu_tanh",
    [EW_ACT_RELU] = "relu", [EW_ACT_RELU2] = "relu2", [EW_ACT_SIGMOID] = "sigmoid", [EW_ACT_TANH] = "tanh"};

// math_tmpl.h: factors of x within 4e-7, as for large |x| the libm's own forms are not exact either.
static void check_act(struct checker *checker, enum ew_act act)
{
    if (!IS_NEW(act) || !wants(checker, "act", ACTS[act]))
        return;
    begin(checker, "act", ACTS[act]);
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s];

        fill(checker, checker->a, n);
        checker->ref.act(checker->want, checker->a, n, act);
        checker->ops.act(checker->got, checker->a, n, act);
        for (uint32_t i = 0; i < n; i++)
            compare(checker, checker->got[i], checker->want[i],
                    4e-7 * (1 + fabs(checker->want[i]) + fabs(checker->a[i])));
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_ACT, (int)act, &checker->check);
    end(checker);
}

static void check_glu(struct checker *checker, enum ew_act act, float limit, float alpha, const char *name)
{
    if (!IS_NEW(glu) || !wants(checker, "glu", name))
        return;
    begin(checker, "glu", name);
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s];

        fill(checker, checker->a, n), fill(checker, checker->b, n);
        checker->ref.glu(checker->want, checker->a, checker->b, n, act, limit, alpha);
        checker->ops.glu(checker->got, checker->a, checker->b, n, act, limit, alpha);
        for (uint32_t i = 0; i < n; i++)
            compare(checker, checker->got[i], checker->want[i],
                    6e-7 * (1 + fabs(checker->a[i])) * (1 + fabs(checker->b[i])));
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_GLU, (int)act, &checker->check);
    end(checker);
}

enum plain_row { ADD, SCALE, SOFTCAP };

static void run_plain(const struct ew_cpu_ops *ops, enum plain_row kind, float *out, const float *a, const float *b,
                      uint32_t n)
{
    switch (kind) {
    case ADD:
        ops->add(out, a, b, n, 0.7f);
        break;
    case SCALE:
        ops->scale(out, a, n, -1.3f);
        break;
    case SOFTCAP:
        ops->softcap(out, a, n, 5);
        break;
    }
}

static void check_plain(struct checker *checker, enum plain_row kind, const char *name)
{
    static const enum ew_cpu_time_row TIMES[] = {
        [ADD] = EW_CPU_TIME_ADD, [SCALE] = EW_CPU_TIME_SCALE, [SOFTCAP] = EW_CPU_TIME_SOFTCAP};
    static const double BOUNDS[] = {
        [ADD] = 1.3e-7, [SCALE] = 1e-7, [SOFTCAP] = 1.5e-6}; // of the larger operand; 3e-7 of the cap

    if (checker->ops.add == checker->below.add || !wants(checker, name, ""))
        return;
    begin(checker, name, "");
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s];

        fill(checker, checker->a, n), fill(checker, checker->b, n);
        run_plain(&checker->ref, kind, checker->want, checker->a, checker->b, n);
        run_plain(&checker->ops, kind, checker->got, checker->a, checker->b, n);
        for (uint32_t i = 0; i < n; i++)
            compare(checker, checker->got[i], checker->want[i],
                    BOUNDS[kind] *
                        (kind == SOFTCAP ? 1 : 1e-12 + fabs(checker->a[i]) + (kind == ADD ? fabs(checker->b[i]) : 0)));
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, TIMES[kind], 0, &checker->check);
    end(checker);
}

static void check_rope(struct checker *checker, enum ew_rope_kind kind, const char *name)
{
    static const uint32_t DIMS[][2] = {{2, 2},   {16, 16},   {20, 32}, {24, 24},
                                       {64, 64}, {128, 128}, {64, 96}}; // rotated, of a head

    if (!IS_NEW(rope) || !wants(checker, "rope", name))
        return;
    begin(checker, "rope", name);
    for (uint32_t s = 0; s < EW_COUNT_OF(DIMS); s++) {
        uint32_t n = DIMS[s][1] * 3;

        fill(checker, checker->a, n), fill(checker, checker->b, DIMS[s][0]);
        memcpy(checker->want, checker->a, n * sizeof(float));
        memcpy(checker->got, checker->a, n * sizeof(float));
        checker->ref.rope(checker->want, checker->b, DIMS[s][0], 3, DIMS[s][1], kind);
        checker->ops.rope(checker->got, checker->b, DIMS[s][0], 3, DIMS[s][1], kind);
        for (uint32_t i = 0; i < n; i++) // two products of up to 30 * 3 times as much, one rounding each
            compare(checker, checker->got[i], checker->want[i], 2e-7 * (1 + fabs(checker->want[i])) * 1000);
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_ROPE, (int)kind, &checker->check);
    end(checker);
}

// Ties may round either way, as the factor is a quotient: one step of the integer, and the sums with it.
static void check_quantise(struct checker *checker)
{
    if (!IS_NEW(quantise) || !wants(checker, "quantise", ""))
        return;
    begin(checker, "quantise", "");
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s], n_groups = (n + EW_CPU_GROUP - 1) / EW_CPU_GROUP;
        int8_t *q[2] = {(int8_t *)checker->want, (int8_t *)checker->got};
        float *scale[2] = {checker->b, checker->b + N_MAX};
        int16_t *sum[2] = {(int16_t *)checker->c, (int16_t *)(checker->c + N_MAX)};

        fill(checker, checker->a, n);
        checker->ref.quantise(checker->a, n, q[0], scale[0], sum[0]);
        checker->ops.quantise(checker->a, n, q[1], scale[1], sum[1]);
        for (uint32_t i = 0; i < n_groups * EW_CPU_GROUP; i++)
            compare(checker, q[1][i], q[0][i], 1);
        for (uint32_t i = 0; i < n_groups; i++)
            compare(checker, scale[1][i], scale[0][i], 1e-30 + 1e-7 * fabs(scale[0][i]));
        for (uint32_t i = 0; i < 2 * n_groups; i++) {
            int exact = 0;

            for (uint32_t k = 0; k < EW_CPU_GROUP / 2; k++)
                exact += q[1][i * (EW_CPU_GROUP / 2) + k];
            compare(checker, sum[1][i], exact, 0.5);
        }
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_QUANTISE, 0, &checker->check);
    end(checker);
}

// ---- attention ----------------------------------------------------------------------------------

// Decoding is exact but for one product; encoding may differ where the libm and the CPU round ties of f16
// alike: not at all.
static void check_kv(struct checker *checker, enum ew_kv_dtype dtype, const char *name)
{
    static const uint32_t DIMS[] = {1, 16, 20, 64, 80, 128};
    uint32_t element = dtype == EW_KV_F32 ? 4 : dtype == EW_KV_F16 ? 2 : 1;

    if (!IS_NEW(kv_decode) || !wants(checker, "kv", name))
        return;
    begin(checker, "kv", name);
    for (uint32_t s = 0; s < EW_COUNT_OF(DIMS); s++) {
        uint32_t n = DIMS[s], n_tokens = 5, stride = (n + 15) & ~15u;
        uint16_t scales[2][5];

        fill(checker, checker->a, n * n_tokens);
        for (uint32_t t = 0; t < n_tokens; t++) {
            checker->ref.kv_encode(dtype, checker->a + t * n, n, (uint8_t *)checker->b + (uint64_t)t * n * element,
                                   &scales[0][t]);
            checker->ops.kv_encode(dtype, checker->a + t * n, n, (uint8_t *)checker->c + (uint64_t)t * n * element,
                                   &scales[1][t]);
        }
        checker->ref.kv_decode(dtype, checker->b, scales[0], n_tokens, n, checker->want, stride);
        checker->ops.kv_decode(dtype, checker->c, scales[1], n_tokens, n, checker->got, stride);
        for (uint32_t i = 0; i < n * n_tokens; i++)
            compare(checker, checker->got[i / n * stride + i % n], checker->want[i / n * stride + i % n],
                    1e-12 + 1.3e-7 * fabs(checker->want[i / n * stride + i % n]));
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_KV, (int)dtype, &checker->check);
    end(checker);
}

// Moves elements and computes nothing; then dim products in f32 lanes, with a bound of the sum of their magnitudes.
static void check_score_block(struct checker *checker, uint32_t dim, uint32_t n_q, uint32_t n_k)
{
    float *keys[2] = {checker->c, checker->c + (uint64_t)EW_CPU_KEYS * dim};

    fill(checker, checker->a, dim * n_q), fill(checker, checker->b, dim * EW_CPU_KEYS);
    checker->ref.transpose(checker->b, dim, keys[0]);
    checker->ops.transpose(checker->b, dim, keys[1]);
    for (uint32_t i = 0; i < EW_CPU_KEYS * dim; i++)
        compare(checker, keys[1][i], keys[0][i], 1e-30);
    checker->ref.scores(checker->want, checker->a, n_q, keys[0], dim);
    checker->ops.scores(checker->got, checker->a, n_q, keys[0], dim);
    for (uint32_t i = 0; i < n_q * EW_CPU_KEYS; i++) {
        const float *q = checker->a + (uint64_t)(i / EW_CPU_KEYS) * dim,
                    *k = checker->b + (uint64_t)(i % EW_CPU_KEYS) * dim;
        double size = 0;

        for (uint32_t d = 0; d < dim; d++)
            size += fabs((double)q[d] * k[d]);
        compare(checker, checker->got[i], checker->want[i], 2e-6 * size + 1e-12);
    }
    for (uint32_t i = 0; i < n_q; i++) {
        const float *row = checker->want + (uint64_t)i * EW_CPU_KEYS;

        compare(checker, checker->ops.largest(row, n_k, -1), checker->ref.largest(row, n_k, -1), 1e-30);
    }
    checker->check.n_cases++;
}

static void check_value_block(struct checker *checker, uint32_t dim, uint32_t n_q, uint32_t n_k)
{
    static const float factors[] = {0.5f, 1, 0, 0.25f, 1e-3f, 1, 0.5f, 0.25f, 1, 0, 2e-3f, 1, 0.5f};

    fill(checker, checker->a, EW_CPU_KEYS * n_q), fill(checker, checker->b, dim * n_k);
    fill(checker, checker->want, dim * n_q);
    memcpy(checker->got, checker->want, dim * n_q * sizeof(float));
    memcpy(checker->c, checker->want, dim * n_q * sizeof(float));
    checker->ref.values(checker->want, factors, checker->a, EW_CPU_KEYS, n_q, checker->b, n_k, dim);
    checker->ops.values(checker->got, factors, checker->a, EW_CPU_KEYS, n_q, checker->b, n_k, dim);
    for (uint32_t i = 0; i < dim * n_q; i++) {
        double size = fabs(checker->c[i]);

        for (uint32_t j = 0; j < n_k; j++)
            size += fabs((double)checker->a[i / dim * EW_CPU_KEYS + j] * checker->b[j * dim + i % dim]);
        compare(checker, checker->got[i], checker->want[i], 2e-6 * size + 1e-12);
    }
    checker->check.n_cases++;
}

static void check_blocks(struct checker *checker, const char *name, enum ew_cpu_time_row timed,
                         void (*check)(struct checker *checker, uint32_t dim, uint32_t n_q, uint32_t n_k))
{
    if (!IS_NEW(scores) || !wants(checker, name, ""))
        return;
    begin(checker, name, "");
    for (uint32_t dim = EW_CPU_DIM; dim <= 256; dim += 3 * EW_CPU_DIM) {
        for (uint32_t n_k = 1; n_k <= EW_CPU_KEYS; n_k += n_k < 29 ? 4 : 3) {
            for (uint32_t n_q = 1; n_q <= 13; n_q += 3)
                check(checker, dim, n_q, n_k);
        }
    }
    ew_cpu_time_rows(checker->config, &checker->ops, timed, 0, &checker->check);
    end(checker);
}

static void check_exp_sum(struct checker *checker)
{
    if (!IS_NEW(exp_sum) || !wants(checker, "exp_sum", ""))
        return;
    begin(checker, "exp_sum", "");
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s];
        float sum[2];

        fill(checker, checker->want, n);
        checker->want[0] = -INFINITY;
        memcpy(checker->got, checker->want, n * sizeof(float));
        sum[0] = checker->ref.exp_sum(checker->want, n, 30);
        sum[1] = checker->ops.exp_sum(checker->got, n, 30);
        compare(checker, sum[1], sum[0], 1e-30 + 2e-6 * sum[0]);
        for (uint32_t i = 0; i < n; i++) // the difference to the maximum rounds, too
            compare(checker, checker->got[i], checker->want[i], 2e-38 + 5e-7 * checker->want[i]);
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_EXP, 0, &checker->check);
    end(checker);
}

static void check_attention(struct checker *checker, enum ew_kv_dtype kv, const char *name)
{
    static const uint32_t CONTEXTS[] = {512, 2048, 8192};

    if (!IS_NEW(scores) || !wants(checker, "attention", name))
        return;
    begin(checker, "attention", name);
    ew_cpu_check_attention(&checker->ref, &checker->ops, kv, &checker->check);
    end(checker);
    for (uint32_t i = 0; i < 2 * EW_COUNT_OF(CONTEXTS) && checker->config->pool && kv != EW_KV_F32; i++) {
        uint32_t context = CONTEXTS[i / 2], n_tokens = i % 2 ? 64 : 1;
        char variant[sizeof(checker->check.variant)];

        snprintf(variant, sizeof(variant), "%s %s %u", name, n_tokens > 1 ? "prompt" : "decode", context);
        begin(checker, "attention", variant);
        ew_cpu_time_attention(checker->config, &checker->ops, kv, context, n_tokens, &checker->check);
        end(checker);
    }
}

// ---- states -------------------------------------------------------------------------------------

static void check_conv(struct checker *checker)
{
    const float *rows[4];

    if (!IS_NEW(conv) || !wants(checker, "conv", ""))
        return;
    begin(checker, "conv", "");
    for (uint32_t s = 0; s < EW_COUNT_OF(SIZES); s++) {
        uint32_t n = SIZES[s], n_taps = 1 + s % EW_COUNT_OF(rows);

        fill(checker, checker->a, n_taps * N_MAX), fill(checker, checker->b, n_taps * N_MAX),
            fill(checker, checker->c, n);
        for (uint32_t tap = 0; tap < n_taps; tap++)
            rows[tap] = checker->a + tap * N_MAX;
        checker->ref.conv(checker->want, rows, checker->b, N_MAX, s % 3 ? checker->c : NULL, n_taps, n);
        checker->ops.conv(checker->got, rows, checker->b, N_MAX, s % 3 ? checker->c : NULL, n_taps, n);
        for (uint32_t i = 0; i < n; i++) { // a rounding or two of every term
            double size = fabs(checker->c[i]) + 1e-12;

            for (uint32_t tap = 0; tap < n_taps; tap++)
                size += fabs((double)rows[tap][i] * checker->b[tap * N_MAX + i]);
            compare(checker, checker->got[i], checker->want[i], 4e-7 * size);
        }
        checker->check.n_cases++;
    }
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_CONV, 0, &checker->check);
    end(checker);
}

#define SCAN_TOKENS 3u

// State, then outputs. Keys are about of length 1, and so are states and outputs: errors of sums of k_dim terms stay
// below 1e-5 of that.
static void scan_with(const struct ew_cpu_ops *ops, const struct ew_cpu_scan *job, float *data, const float *state)
{
    struct ew_cpu_scan own = *job;

    own.state = data;
    own.out = data + job->k_dim * job->v_dim;
    memcpy(data, state, (size_t)job->k_dim * job->v_dim * sizeof(*data));
    ops->scan(&own);
}

static void check_scan_size(struct checker *checker, uint32_t k_dim, uint32_t v_dim, bool is_delta)
{
    uint32_t n = k_dim * v_dim, n_all = n + SCAN_TOKENS * v_dim;
    float gates[2 * SCAN_TOKENS];
    struct ew_cpu_scan job = {.q = checker->a,
                              .k = checker->a + SCAN_TOKENS * k_dim,
                              .v = checker->b,
                              .decay = gates,
                              .gain = gates + SCAN_TOKENS,
                              .n_tokens = SCAN_TOKENS,
                              .k_dim = k_dim,
                              .v_dim = v_dim,
                              .v_stride = v_dim + 5,
                              .out_stride = v_dim,
                              .is_delta = is_delta,
                              .skip = is_delta ? 0 : 0.7f};

    fill(checker, checker->a, 2 * SCAN_TOKENS * k_dim), fill(checker, checker->b, SCAN_TOKENS * job.v_stride);
    fill(checker, checker->c, n), fill(checker, gates, 2 * SCAN_TOKENS);
    for (uint32_t i = 0; i < 2 * SCAN_TOKENS; i++)
        gates[i] = 1 / (1 + expf(-gates[i]));
    for (uint32_t i = 0; i < 2 * SCAN_TOKENS * k_dim; i++)
        checker->a[i] = tanhf(checker->a[i]) / sqrtf((float)k_dim);
    for (uint32_t i = 0; i < SCAN_TOKENS * job.v_stride; i++)
        checker->b[i] = tanhf(checker->b[i]);
    for (uint32_t i = 0; i < n; i++)
        checker->c[i] = tanhf(checker->c[i]);
    memset(checker->want, 0, n_all * sizeof(float)), memset(checker->got, 0, n_all * sizeof(float));
    scan_with(&checker->ref, &job, checker->want, checker->c);
    scan_with(&checker->ops, &job, checker->got, checker->c);
    for (uint32_t i = 0; i < n_all; i++)
        compare(checker, checker->got[i], checker->want[i], 1e-5 * (1 + fabs(checker->want[i])));
    checker->check.n_cases++;
}

static void check_scan(struct checker *checker, bool is_delta, const char *name)
{
    static const uint32_t DIMS[][2] = {{16, 16}, {128, 64}, {128, 80}, {128, 128}, {256, 64}, {7, 5}, {1, 1}, {3, 67}};

    if (!IS_NEW(scan) || !wants(checker, "scan", name))
        return;
    begin(checker, "scan", name);
    for (uint32_t i = 0; i < EW_COUNT_OF(DIMS); i++)
        check_scan_size(checker, DIMS[i][0], DIMS[i][1], is_delta);
    ew_cpu_time_rows(checker->config, &checker->ops, EW_CPU_TIME_SCAN, is_delta, &checker->check);
    end(checker);
}

// ---- products -----------------------------------------------------------------------------------

static const struct {
    enum ew_cpu_layout layout;
    enum ew_dtype dtype;
    int16_t f16_at[2]; // f16 fields of a block that must be ordinary numbers; -1: none
    bool has_f32;      // at the block's beginning, likewise
} FORMATS[] = {
    {EW_CPU_F32, EW_DTYPE_F32, {-1, -1}, false},         {EW_CPU_F16, EW_DTYPE_F16, {-1, -1}, false},
    {EW_CPU_BF16, EW_DTYPE_BF16, {-1, -1}, false},       {EW_CPU_FP8, EW_DTYPE_FP8, {-1, -1}, true},
    {EW_CPU_I8, EW_DTYPE_Q8_0, {0, -1}, false},          {EW_CPU_U4, EW_DTYPE_Q4_0, {0, -1}, false},
    {EW_CPU_U4_MIN, EW_DTYPE_Q4_1, {0, 2}, false},       {EW_CPU_U4_ZERO, EW_DTYPE_Q4_ZERO, {0, -1}, false},
    {EW_CPU_U4_K, EW_DTYPE_Q4_K, {0, 2}, false},         {EW_CPU_U4_S16, EW_DTYPE_Q3_K, {108, -1}, false},
    {EW_CPU_U4_S16_MIN, EW_DTYPE_Q2_K, {80, 82}, false}, {EW_CPU_U4_S32, EW_DTYPE_TQ1_0, {52, -1}, false},
    {EW_CPU_U4_S32, EW_DTYPE_TQ2_0, {64, -1}, false},    {EW_CPU_U5, EW_DTYPE_Q5_0, {0, -1}, false},
    {EW_CPU_U5_MIN, EW_DTYPE_Q5_1, {0, 2}, false},       {EW_CPU_U5_K, EW_DTYPE_Q5_K, {0, 2}, false},
    {EW_CPU_U6_K, EW_DTYPE_Q6_K, {208, -1}, false},      {EW_CPU_IQ4, EW_DTYPE_IQ4_NL, {0, -1}, false},
    {EW_CPU_IQ4_XS, EW_DTYPE_IQ4_XS, {0, -1}, false},    {EW_CPU_IQ1_S, EW_DTYPE_IQ1_S, {0, -1}, false},
    {EW_CPU_IQ1_M, EW_DTYPE_IQ1_M, {-1, -1}, false},     {EW_CPU_IQ2_XXS, EW_DTYPE_IQ2_XXS, {0, -1}, false},
    {EW_CPU_IQ2_S, EW_DTYPE_IQ2_XS, {0, -1}, false},     {EW_CPU_IQ2_S, EW_DTYPE_IQ2_S, {0, -1}, false},
    {EW_CPU_IQ3_XXS, EW_DTYPE_IQ3_XXS, {0, -1}, false},  {EW_CPU_IQ3_S, EW_DTYPE_IQ3_S, {0, -1}, false},
    {EW_CPU_MXFP4, EW_DTYPE_MXFP4, {-1, -1}, false},     {EW_CPU_NVFP4, EW_DTYPE_NVFP4, {-1, -1}, false},
    {EW_CPU_NVFP4, EW_DTYPE_NVFP4_S, {-1, -1}, true},    {EW_CPU_F16_TILES, EW_DTYPE_F16, {-1, -1}, false},
    {EW_CPU_BF16_TILES, EW_DTYPE_BF16, {-1, -1}, false},
};

// Random codes, all values possible; scales of ordinary size and either sign.
static void fill_blocks(struct checker *checker, uint32_t format, uint32_t rows, uint32_t cols)
{
    const struct ew_dtype_info *info = ew_dtype_info(FORMATS[format].dtype);
    uint64_t row_bytes = ew_dtype_row_bytes(FORMATS[format].dtype, cols), bytes = rows * row_bytes;
    float scale_of_row = 0;
    struct ew_rng rng = ew_rng_at(21, checker->seed++);

    if (info->encode && info->block_elements == 1) {
        fill(checker, checker->a, rows * cols);
        info->encode(checker->a, NULL, checker->bytes, (size_t)rows * cols);
        return;
    }
    ew_rng_fill(22, checker->seed++, checker->bytes, bytes);
    for (uint64_t at = 0; at < bytes; at += info->block_bytes) {
        if (at % row_bytes == 0)
            scale_of_row = ew_rng_normal(&rng) * 0.01f;
        for (int i = 0; i < 2; i++) {
            uint16_t scale = ew_f16_of_f32(ew_rng_normal(&rng) * 0.01f);

            if (FORMATS[format].f16_at[i] >= 0)
                memcpy(checker->bytes + at + FORMATS[format].f16_at[i], &scale, 2);
        }
        if (FORMATS[format].has_f32)
            memcpy(checker->bytes + at, &(float){scale_of_row}, sizeof(float));
        if (FORMATS[format].dtype == EW_DTYPE_IQ1_M) // upper nibbles of four words: an f16 below 2
            checker->bytes[at + 55] = (uint8_t)((checker->bytes[at + 55] & 0x0F) | 0x30);
        if (FORMATS[format].dtype == EW_DTYPE_MXFP4)
            checker->bytes[at] = (uint8_t)(110 + ew_rng_below(&rng, 20));
    }
}

static struct ew_cpu_matrix pack(struct checker *checker, uint32_t format, uint32_t rows, uint32_t cols)
{
    struct ew_cpu_matrix matrix = {.layout = FORMATS[format].layout,
                                   .dtype = FORMATS[format].dtype,
                                   .rows = rows,
                                   .cols = cols,
                                   .data = checker->tiles};
    uint64_t row_bytes = ew_dtype_row_bytes(matrix.dtype, cols);

    ew_cpu_matrix_shape(&matrix);
    for (uint32_t tile = 0; tile < ew_cpu_tiles(rows); tile++) {
        uint32_t row = tile * EW_CPU_TILE_ROWS;

        ew_cpu_tile_pack(&matrix, tile, matrix.dtype, checker->bytes + row * row_bytes,
                         EW_MIN(rows - row, EW_CPU_TILE_ROWS), checker->tiles, checker->want);
    }
    return matrix;
}

// Packing loses nothing: rows read back as the codec of the file format gives them, to the rounding of a product or
// two.
static void check_rows(struct checker *checker, const struct ew_cpu_matrix *matrix)
{
    uint64_t row_bytes = ew_dtype_row_bytes(matrix->dtype, matrix->cols);

    for (uint32_t row = 0; row < matrix->rows; row++) {
        ew_cpu_matrix_row(matrix, row, checker->got);
        ew_dtype_info(matrix->dtype)->decode(checker->bytes + row * row_bytes, checker->want, matrix->cols);
        for (uint32_t i = 0; i < matrix->cols; i++)
            compare(checker, checker->got[i], checker->want[i], 1e-37 + 1.3e-7 * fabs(checker->want[i]));
    }
}

static double largest_magnitude(const float *x, uint32_t n)
{
    float largest = 0;

    for (uint32_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    return (double)largest;
}

// Sums of up to n / 32 group results in f32, each within half an ulp of what the sum holds: 4e-6 of all
// magnitudes is far above it for 4096 columns, and far below any error of meaning. Minima may cancel, hence
// the largest weight of the row for each. Products of FP8 in 8 bits round weights, by 1/65,536 of the largest at most.
static void compare_product(struct checker *checker, const struct ew_cpu_matrix *matrix, const float *bias,
                            uint32_t n_rows)
{
    double share = matrix->layout == EW_CPU_FP8 ? 2e-5 : 4e-6, sizes[B_MAX] = {0};
    float *row = checker->c;

    for (uint32_t b = 0; b < n_rows; b++) {
        for (uint32_t i = 0; i < matrix->cols; i++)
            sizes[b] += fabs(checker->b[(uint64_t)b * matrix->cols + i]);
    }
    for (uint32_t r = 0; r < matrix->rows; r++) {
        double largest;

        ew_cpu_matrix_row(matrix, r, row);
        largest = 1e-30 + largest_magnitude(row, matrix->cols);
        for (uint32_t b = 0; b < n_rows; b++) {
            double size = sizes[b] + (bias ? fabs(bias[r]) / largest : 0);

            compare(checker, checker->got[b * OUT_STRIDE + r], checker->want[b * OUT_STRIDE + r],
                    1e-30 + share * size * largest);
        }
    }
}

// Activations in all forms that products take, in memory past any checked matrix.
static struct ew_cpu_q8 activations(struct checker *checker, uint32_t n_rows, uint32_t cols)
{
    uint32_t stride = (cols + 63) & ~63u;
    int8_t *q = (int8_t *)(checker->tiles + (8u << 20));
    struct ew_cpu_q8 q8 = {q,
                           (float *)(q + B_MAX * stride),
                           (float *)(q + 2 * B_MAX * stride),
                           (int16_t *)(q + 3 * B_MAX * stride),
                           (uint16_t *)(q + 4 * B_MAX * stride),
                           stride,
                           stride / EW_CPU_GROUP};

    fill(checker, checker->b, n_rows * cols);
    for (uint32_t b = 0; b < n_rows; b++)
        ew_cpu_quantise_row(&checker->ref, checker->b + (uint64_t)b * cols, cols, &q8, b);
    return q8;
}

static void check_product(struct checker *checker, const struct ew_cpu_matrix *matrix, uint32_t n_rows)
{
    struct ew_cpu_q8 q8 = activations(checker, n_rows, matrix->cols);
    struct ew_cpu_linear job = {.matrix = matrix,
                                .x = checker->b,
                                .q8 = &q8,
                                .bias = n_rows % 2 ? checker->a : NULL,
                                .out = checker->want,
                                .n_rows = n_rows,
                                .x_stride = matrix->cols,
                                .out_stride = OUT_STRIDE,
                                .scratch = checker->c};

    fill(checker, checker->a, matrix->rows);
    checker->ref.linear[matrix->layout](&job, 0, ew_cpu_tiles(matrix->rows));
    job.out = checker->got;
    checker->ops.linear[matrix->layout](&job, 0, ew_cpu_tiles(matrix->rows));
    compare_product(checker, matrix, job.bias, n_rows);
    checker->check.n_cases++;
}

static void check_linear(struct checker *checker, uint32_t format)
{
    static const uint32_t ROWS[] = {1, 16, 23, ROWS_MAX}, COLS[] = {1, 32, 5, 64, 100, 96, 768, 256, 512, 1536};
    const struct ew_dtype_info *info = ew_dtype_info(FORMATS[format].dtype);
    enum ew_cpu_layout layout = FORMATS[format].layout;

    if (!IS_NEW(linear[layout]) || !wants(checker, "linear", ew_cpu_layout_name(layout)))
        return;
    begin(checker, "linear", ew_cpu_layout_name(layout));
    for (uint32_t c = 0; c < EW_COUNT_OF(COLS); c++) {
        for (uint32_t r = 0; r < EW_COUNT_OF(ROWS) && COLS[c] % info->block_elements == 0; r++) {
            struct ew_cpu_matrix matrix;

            fill_blocks(checker, format, ROWS[r], COLS[c]);
            matrix = pack(checker, format, ROWS[r], COLS[c]);
            check_rows(checker, &matrix);
            for (uint32_t b = 0; b < EW_COUNT_OF(BATCHES); b++)
                check_product(checker, &matrix, BATCHES[b]);
        }
    }
    ew_cpu_time_linear(checker->config, checker->ops.linear[layout], layout, 1, &checker->check);
    end(checker);
    if (!checker->config->pool)
        return;
    begin(checker, "linear x64", ew_cpu_layout_name(layout));
    ew_cpu_time_linear(checker->config, checker->ops.linear[layout], layout, 64, &checker->check);
    end(checker);
}

// Weights and activations rounded to bf16, each within 2^-8 of itself; or activations in 8 bits, weights within 1/128
// of the largest of a group. Sums as above. Minima may cancel what rounds.
static void compare_prompt(struct checker *checker, const struct ew_cpu_linear *job)
{
    const struct ew_cpu_matrix *matrix = job->matrix;
    const struct ew_cpu_q8 *q8 = job->q8;
    bool bf16 = checker->ops.prompt_takes_bf16;
    float *row = checker->c;

    for (uint32_t r = 0; r < matrix->rows; r++) {
        double largest;

        ew_cpu_matrix_row(matrix, r, row);
        largest = largest_magnitude(row, matrix->cols);
        for (uint32_t b = 0; b < job->n_rows; b++) {
            double sum = job->bias ? job->bias[r] : 0, size = fabs(sum) * 1e-6;

            for (uint32_t i = 0; i < matrix->cols; i++) {
                uint64_t at = (uint64_t)b * q8->q_stride + i, group = (uint64_t)b * q8->group_stride + i / EW_CPU_GROUP;
                double x = bf16 ? ew_f32_of_bf16(q8->bf16[at]) : (double)q8->q[at] * (double)q8->scale[group];

                sum += x * row[i];
                size += fabs(x) * (bf16 ? fabs(row[i]) * 0x1p-8 + largest * 2e-5 : largest / 127);
            }
            compare(checker, checker->got[b * OUT_STRIDE + r], sum, 1e-30 + size);
        }
    }
}

static void check_prompt(struct checker *checker, uint32_t format)
{
    static const uint32_t ROWS[] = {16, 23, ROWS_MAX}, COLS[] = {256, 768, 2816};
    enum ew_cpu_layout layout = FORMATS[format].layout;

    if (!IS_NEW(linear_prompt[layout]) || !wants(checker, "prompt", ew_cpu_layout_name(layout)))
        return;
    begin(checker, "prompt", ew_cpu_layout_name(layout));
    for (uint32_t c = 0; c < EW_COUNT_OF(COLS); c++) {
        for (uint32_t r = 0; r < EW_COUNT_OF(ROWS); r++) {
            struct ew_cpu_matrix matrix;

            fill_blocks(checker, format, ROWS[r], COLS[c]);
            matrix = pack(checker, format, ROWS[r], COLS[c]);
            for (uint32_t b = 0; b < EW_COUNT_OF(BATCHES); b++) {
                struct ew_cpu_q8 q8 = activations(checker, BATCHES[b], COLS[c]);
                struct ew_cpu_linear job = {.matrix = &matrix,
                                            .q8 = &q8,
                                            .bias = BATCHES[b] % 2 ? checker->a : NULL,
                                            .out = checker->got,
                                            .n_rows = BATCHES[b],
                                            .out_stride = OUT_STRIDE};

                fill(checker, checker->a, ROWS[r]);
                checker->ops.linear_prompt[layout](&job, 0, ew_cpu_tiles(ROWS[r]));
                compare_prompt(checker, &job);
                checker->check.n_cases++;
            }
        }
    }
    ew_cpu_time_linear(checker->config, checker->ops.linear_prompt[layout], layout, 256, &checker->check);
    end(checker);
}

// ---- all ----------------------------------------------------------------------------------------

static void check_level(struct checker *checker)
{
    static const char *const KV[] = {[EW_KV_F32] = "f32", [EW_KV_F16] = "f16", [EW_KV_F8] = "f8", [EW_KV_I8] = "i8"};

    check_norm(checker, EW_NORM_RMS, "rms");
    check_norm(checker, EW_NORM_LAYER, "layer");
    for (int act = EW_ACT_SILU; act <= EW_ACT_TANH; act++)
        check_act(checker, (enum ew_act)act);
    check_glu(checker, EW_ACT_SILU, 0, 0, "silu");
    check_glu(checker, EW_ACT_GELU_TANH, 0, 0, "gelu_tanh");
    check_glu(checker, EW_ACT_SILU, 7, 1.702f, "limited");
    check_plain(checker, ADD, "add");
    check_plain(checker, SCALE, "scale");
    check_plain(checker, SOFTCAP, "softcap");
    check_rope(checker, EW_ROPE_HALVES, "halves");
    check_rope(checker, EW_ROPE_PAIRS, "pairs");
    check_quantise(checker);
    for (int kv = EW_KV_F32; kv <= EW_KV_I8; kv++)
        check_kv(checker, (enum ew_kv_dtype)kv, KV[kv]);
    check_blocks(checker, "scores", EW_CPU_TIME_SCORES, check_score_block);
    check_exp_sum(checker);
    check_blocks(checker, "values", EW_CPU_TIME_VALUES, check_value_block);
    for (int kv = EW_KV_F32; kv <= EW_KV_I8; kv++)
        check_attention(checker, (enum ew_kv_dtype)kv, KV[kv]);
    check_conv(checker);
    check_scan(checker, false, "ssd");
    check_scan(checker, true, "delta");
    for (uint32_t i = 0; i < EW_COUNT_OF(FORMATS); i++) {
        check_linear(checker, i);
        check_prompt(checker, i);
    }
}

static bool allocate(struct checker *checker)
{
    float **rows[] = {&checker->a, &checker->b, &checker->c, &checker->want, &checker->got};
    bool ok = true;

    for (uint32_t i = 0; i < EW_COUNT_OF(rows); i++) {
        *rows[i] = ew_alloc_aligned((uint64_t)B_MAX * N_MAX * sizeof(float));
        ok = ok && *rows[i];
    }
    checker->pool = ew_alloc_array(POOL_STARTS + B_MAX * N_MAX, sizeof(*checker->pool));
    if (checker->pool)
        fill_pool(checker->pool, POOL_STARTS + B_MAX * N_MAX);
    checker->bytes = ew_alloc_aligned(8u << 20);
    checker->tiles = ew_alloc_aligned(16u << 20);
    return ok && checker->pool && checker->bytes && checker->tiles;
}

static void release(struct checker *checker)
{
    float *rows[] = {checker->a, checker->b, checker->c, checker->want, checker->got};

    for (uint32_t i = 0; i < EW_COUNT_OF(rows); i++)
        ew_free(rows[i]);
    ew_free(checker->pool);
    ew_free(checker->bytes);
    ew_free(checker->tiles);
}

int ew_cpu_check_run(const struct ew_cpu_check_config *config, struct ew_error *err)
{
    struct checker checker = {.config = config};
    uint32_t mask = 0;

    if (!allocate(&checker)) {
        release(&checker);
        return ew_fail_memory(err, 16u << 20, "the inputs of the kernel checks");
    }
    ew_cpu_ops_init_reference(&checker.ref);
    ew_cpu_ops_init_reference(&checker.ops);
    for (uint32_t level = 1; level && level <= config->isa_mask; level <<= 1) {
        mask |= level & config->isa_mask;
        checker.below = checker.ops;
        ew_cpu_ops_init(&checker.ops, mask);
        check_level(&checker);
    }
    release(&checker);
    return checker.failed ? ew_fail(err, EW_ERR_MISMATCH, "kernels differ from the reference by more than their bounds")
                          : 0;
}
