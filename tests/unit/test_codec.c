// The block codec: every type of the fixture bit for bit, and what encoders promise on ordinary and on wild
// input.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "format/dtype.h"
#include "format/gguf.h"
#include "format/safetensors.h"
#include "fixture.h"

#define COLS 1024 // whole super-blocks

static void names_and_numbers_lead_back(void **state)
{
    (void)state;
    for (int i = 0; i < EW_DTYPE_COUNT; i++) {
        const struct ew_dtype_info *info = ew_dtype_info((enum ew_dtype)i);

        assert_int_equal(ew_dtype_by_name(ew_str_of(info->name)), i);
        if (info->gguf_type >= 0)
            assert_int_equal(ew_dtype_by_gguf((uint32_t)info->gguf_type), i);
        if (info->safetensors)
            assert_int_equal(ew_dtype_by_safetensors(ew_str_of(info->safetensors)), i);
    }
    assert_int_equal(ew_dtype_by_name(EW_STR("q9_0")), -1);
    assert_int_equal(ew_dtype_by_gguf(4), -1); // withdrawn
    assert_int_equal(ew_dtype_by_gguf(UINT32_MAX), -1);
    assert_int_equal(ew_dtype_by_safetensors(EW_STR("U64")), -1);
}

static void row_bytes_refuse_what_does_not_divide_or_fit(void **state)
{
    (void)state;
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_F16, 3), 6);
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_Q4_K, 512), 288);
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_Q4_K, 511), 0);
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_Q8_0, 0), 0);
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_F64, UINT64_MAX / 4), 0);
    assert_int_equal(ew_dtype_row_bytes(EW_DTYPE_Q8_0, UINT64_MAX - 31), 0);
}

// ---- ground truth ----------------------------------------------------------------------------------------

struct truth {
    struct ew_gguf gguf;
    struct ew_safetensors ref;
};

static bool truth_open(struct truth *truth)
{
    char path[1024];
    struct ew_error err = {0};

    if (!fixture_find(path, sizeof(path), "gguf/tensors-all-types.gguf"))
        return false;
    if (ew_gguf_open(&truth->gguf, path, &err) != EW_OK)
        fail_msg("%s", err.message);
    if (!fixture_find(path, sizeof(path), "gguf/tensors-all-types.ref.safetensors"))
        fail_msg("the values of the fixture are absent");
    if (ew_safetensors_open(&truth->ref, path, &err) != EW_OK)
        fail_msg("%s", err.message);
    return true;
}

static void truth_close(struct truth *truth)
{
    ew_safetensors_close(&truth->ref);
    ew_gguf_close(&truth->gguf);
}

static const struct ew_tensor *truth_of(const struct truth *truth, const struct ew_tensor *tensor, const char *what)
{
    char name[128];
    const struct ew_tensor *found;

    snprintf(name, sizeof(name), "%.*s.%s", (int)tensor->name.len, tensor->name.ptr, what);
    found = ew_tensors_find(&truth->ref.tensors, ew_str_of(name));
    assert_non_null(found);
    return found;
}

static float *decode_all(const struct ew_tensor *tensor)
{
    size_t n = (size_t)(tensor->shape[0] * tensor->shape[1]);
    float *values = ew_alloc_array(n, sizeof(*values));

    assert_non_null(values);
    ew_dtype_info(tensor->dtype)->decode(tensor->data, values, n);
    return values;
}

static void every_type_decodes_to_the_reference_bits(void **state)
{
    struct truth truth;

    (void)state;
    if (!truth_open(&truth))
        skip();
    assert_int_equal(truth.gguf.tensors.count, 26);
    for (uint64_t t = 0; t < truth.gguf.tensors.count; t++) {
        const struct ew_tensor *tensor = &truth.gguf.tensors.list[t], *ref = truth_of(&truth, tensor, "values");
        float *values = decode_all(tensor);

        assert_int_equal(ref->bytes, tensor->shape[0] * tensor->shape[1] * sizeof(float));
        if (memcmp(values, ref->data, ref->bytes) != 0)
            fail_msg("%s differs from the reference", ew_dtype_name(tensor->dtype));
        ew_free(values);
    }
    truth_close(&truth);
}

static void repeated_rows_agree(void **state)
{
    static const uint64_t rows[] = {0, 1, 3, 5};
    struct truth truth;

    (void)state;
    if (!truth_open(&truth))
        skip();
    for (uint64_t t = 0; t < truth.gguf.tensors.count; t++) {
        const struct ew_tensor *tensor = &truth.gguf.tensors.list[t], *ref = truth_of(&truth, tensor, "rows");
        size_t cols = (size_t)tensor->shape[1];
        float *values = decode_all(tensor);

        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
            assert_memory_equal(values + rows[i] * cols, ref->data + i * cols * sizeof(float), cols * sizeof(float));
        ew_free(values);
    }
    truth_close(&truth);
}

// The fixture's products are with x[i] = sin(0.1 (i + 1)), in fp64.
static void products_agree(void **state)
{
    struct truth truth;

    (void)state;
    if (!truth_open(&truth))
        skip();
    for (uint64_t t = 0; t < truth.gguf.tensors.count; t++) {
        const struct ew_tensor *tensor = &truth.gguf.tensors.list[t], *ref = truth_of(&truth, tensor, "matvec");
        float *values = decode_all(tensor);

        for (uint64_t row = 0; row < tensor->shape[0]; row++) {
            double sum = 0, expected;

            for (uint64_t i = 0; i < tensor->shape[1]; i++)
                sum += (double)values[row * tensor->shape[1] + i] * sin(0.1 * (double)(i + 1));
            memcpy(&expected, ref->data + row * sizeof(expected), sizeof(expected));
            if (!(fabs(sum - expected) < 1e-12 * (1 + fabs(expected))))
                fail_msg("%s row %d: %.17g, not %.17g", ew_dtype_name(tensor->dtype), (int)row, sum, expected);
        }
        ew_free(values);
    }
    truth_close(&truth);
}

// ---- encoding --------------------------------------------------------------------------------------------

// Encodes COLS values, decodes them into out.
static void round_trip(enum ew_dtype dtype, const float *in, const float *weight, float *out)
{
    const struct ew_dtype_info *info = ew_dtype_info(dtype);
    size_t bytes = (size_t)ew_dtype_row_bytes(dtype, COLS);
    void *blocks = ew_alloc(bytes);

    assert_non_null(blocks);
    info->encode(in, weight, blocks, COLS);
    info->decode(blocks, out, COLS);
    ew_free(blocks);
}

static double relative_rms(const float *out, const float *in)
{
    double off = 0, all = 0;

    for (int i = 0; i < COLS; i++) {
        off += ((double)out[i] - in[i]) * ((double)out[i] - in[i]);
        all += (double)in[i] * in[i];
    }
    return sqrt(off / all);
}

// Bounds for normally distributed values, a few percent above what was measured over half a million of them.
static const struct {
    enum ew_dtype dtype;
    double rms_max;
} bounds[] = {
    {EW_DTYPE_F32, 0},        {EW_DTYPE_F16, 3e-4},    {EW_DTYPE_BF16, 2.3e-3}, {EW_DTYPE_F8_E4M3, 0.035},
    {EW_DTYPE_Q8_0, 0.0058},  {EW_DTYPE_Q4_0, 0.085},  {EW_DTYPE_Q4_1, 0.073},  {EW_DTYPE_Q5_0, 0.042},
    {EW_DTYPE_Q5_1, 0.036},   {EW_DTYPE_Q4_K, 0.073},  {EW_DTYPE_Q5_K, 0.036},  {EW_DTYPE_Q6_K, 0.0178},
};

static void errors_stay_below_their_bounds(void **state)
{
    static const float magnitudes[] = {1, 1e-2f, 1e3f};
    float in[COLS], out[COLS];

    (void)state;
    for (size_t b = 0; b < sizeof(bounds) / sizeof(bounds[0]); b++)
        for (size_t m = 0; m < sizeof(magnitudes) / sizeof(magnitudes[0]); m++) {
            struct ew_rng rng = ew_rng_at(7, m);
            double rms, max = bounds[b].rms_max;

            if (bounds[b].dtype == EW_DTYPE_F8_E4M3 && magnitudes[m] != 1)
                continue; // no scale of its own
            for (int i = 0; i < COLS; i++)
                in[i] = magnitudes[m] * ew_rng_normal(&rng);
            round_trip(bounds[b].dtype, in, NULL, out);
            rms = relative_rms(out, in);
            if (!(rms <= max))
                fail_msg("%s at %g: %g, not %g", ew_dtype_name(bounds[b].dtype), (double)magnitudes[m], rms, max);
        }
}

static void every_encoder_has_a_bound(void **state)
{
    size_t encoders = 0;

    (void)state;
    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        encoders += ew_dtype_info((enum ew_dtype)i)->encode != NULL;
    assert_int_equal(encoders, sizeof(bounds) / sizeof(bounds[0]));
}

static void importance_moves_the_error_elsewhere(void **state)
{
    static const enum ew_dtype types[] = {EW_DTYPE_Q4_0, EW_DTYPE_Q4_K, EW_DTYPE_Q6_K};
    struct ew_rng rng = ew_rng_at(11, 0);
    float in[COLS], weight[COLS], plain[COLS], weighted[COLS];

    (void)state;
    for (int i = 0; i < COLS; i++) {
        in[i] = ew_rng_normal(&rng);
        weight[i] = i % 4 == 0 ? 50 : 1;
    }
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        double off_plain = 0, off_weighted = 0;

        round_trip(types[t], in, NULL, plain);
        round_trip(types[t], in, weight, weighted);
        for (int i = 0; i < COLS; i += 4) {
            off_plain += pow((double)plain[i] - in[i], 2);
            off_weighted += pow((double)weighted[i] - in[i], 2);
        }
        assert_true(off_weighted < 0.9 * off_plain);
    }
}

static void q8_0_gives_the_same_bits_again(void **state)
{
    struct ew_rng rng = ew_rng_at(3, 0);
    float in[COLS], once[COLS], twice[COLS];

    (void)state;
    for (int i = 0; i < COLS; i++)
        in[i] = ew_rng_normal(&rng);
    round_trip(EW_DTYPE_Q8_0, in, NULL, once);
    round_trip(EW_DTYPE_Q8_0, once, NULL, twice);
    assert_memory_equal(once, twice, sizeof(once));
}

// Fills with one kind of trouble; kind 0 is all zeros.
static void fill_wild(float *in, int kind)
{
    struct ew_rng rng = ew_rng_at(5, (uint64_t)kind);

    for (int i = 0; i < COLS; i++) {
        float x = ew_rng_normal(&rng);

        switch (kind) {
        case 0: in[i] = i % 2 ? -0.0f : 0; break;
        case 1: in[i] = x * 1e-40f; break;                      // subnormal
        case 2: in[i] = x * 1e30f; break;                       // far past f16
        case 3: in[i] = i % 7 ? x : NAN; break;
        case 4: in[i] = i % 5 ? x : i % 2 ? INFINITY : -INFINITY; break;
        case 5: in[i] = 3.5f; break;                            // constant
        case 6: in[i] = i % COLS == 17 ? 1e4f : x * 1e-3f; break; // one outlier
        case 7: in[i] = x * 1e-7f; break;                       // scales near the smallest f16
        default: ew_rng_fill(5, (uint64_t)i, &in[i], sizeof(in[i])); break; // any bits at all
        }
    }
}

static void wild_values_become_finite_blocks(void **state)
{
    float in[COLS], out[COLS];

    (void)state;
    for (size_t b = 0; b < sizeof(bounds) / sizeof(bounds[0]); b++) {
        if (ew_dtype_info(bounds[b].dtype)->block_elements == 1)
            continue; // plain types keep NaN and infinities
        for (int kind = 0; kind < 9; kind++) {
            fill_wild(in, kind);
            round_trip(bounds[b].dtype, in, NULL, out);
            for (int i = 0; i < COLS; i++)
                if (!isfinite(out[i]) || (kind == 0 && out[i] != 0))
                    fail_msg("%s, kind %d: element %d is %g", ew_dtype_name(bounds[b].dtype), kind, i, (double)out[i]);
        }
    }
}

static void constants_are_nearly_exact(void **state)
{
    float in[COLS], out[COLS];

    (void)state;
    fill_wild(in, 5);
    for (size_t b = 0; b < sizeof(bounds) / sizeof(bounds[0]); b++) {
        round_trip(bounds[b].dtype, in, NULL, out);
        if (!(relative_rms(out, in) < 2e-2))
            fail_msg("%s: %g", ew_dtype_name(bounds[b].dtype), relative_rms(out, in));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_numbers_lead_back),
        cmocka_unit_test(row_bytes_refuse_what_does_not_divide_or_fit),
        cmocka_unit_test(every_type_decodes_to_the_reference_bits),
        cmocka_unit_test(repeated_rows_agree),
        cmocka_unit_test(products_agree),
        cmocka_unit_test(errors_stay_below_their_bounds),
        cmocka_unit_test(every_encoder_has_a_bound),
        cmocka_unit_test(importance_moves_the_error_elsewhere),
        cmocka_unit_test(q8_0_gives_the_same_bits_again),
        cmocka_unit_test(wild_values_become_finite_blocks),
        cmocka_unit_test(constants_are_nearly_exact),
    };

    return cmocka_run_group_tests_name("codec", tests, NULL, NULL);
}
