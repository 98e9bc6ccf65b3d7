// kernel/cuda/cuda_layout: rows of every type as the GPU gets them mean what the type's codec says. They are read here
// by the header's own description alone.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/half.h"
#include "kernel/cuda/cuda_layout.h"
#include "model/synthetic.h"

#define COLS 512
#define ROWS 3

static const int8_t TABLES[EW_CUDA_LAYOUT_COUNT][16] = {
    [EW_CUDA_IQ4] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
    [EW_CUDA_MX4] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    [EW_CUDA_NV4] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
    [EW_CUDA_IQ1] = {-9, -7, -1, 1, 7, 9},
    [EW_CUDA_IQ1_16] = {-9, -7, -1, 1, 7, 9},
    [EW_CUDA_IQ2] = {8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43},
    [EW_CUDA_IQ2_16] = {8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43},
    [EW_CUDA_IQ3_XXS] = {2, 6, 10, 14, 18, 22, 26, 31, -2, -6, -10, -14, -18, -22, -26, -31},
    [EW_CUDA_IQ3_S] = {1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15},
    [EW_CUDA_U3_16] = {-4, -3, -2, -1, 0, 1, 2, 3},
};

// A row's planes, each with exactly the bytes that it says: a sanitizer sees what is written beyond.
struct row {
    enum ew_cuda_layout layout;
    uint8_t *codes, *scales, *mins;
};

// What an element is made of: value = scale * code - min.
struct parts {
    double scale, code, min;
};

static double f16_at(const uint8_t *plane, uint32_t i)
{
    uint16_t half;

    memcpy(&half, plane + 2 * i, sizeof(half));
    return ew_f32_of_f16(half);
}

static double f32_at(const uint8_t *plane, uint32_t i)
{
    float number;

    memcpy(&number, plane + 4 * i, sizeof(number));
    return number;
}

static uint32_t nibble_of(const struct row *row, uint32_t c)
{
    uint8_t byte = row->codes[c / 32 * 16 + c % 16];

    return c % 32 < 16 ? byte & 15 : byte >> 4;
}

static struct parts of_planes(const struct row *row, uint32_t c)
{
    const uint8_t *high = row->codes + COLS / 2;
    uint32_t group = c / 32, in = c % 32, at = in % 16 / 4 * 2, code;

    if (row->layout == EW_CUDA_U6) {
        code = nibble_of(row, c) | (high[group * 8 + in / 16 * 4 + in % 4] >> at & 3) << 4;
        return (struct parts){f16_at(row->scales, c / 16), (double)code - 32, 0};
    }
    code = nibble_of(row, c) | (high[group * 4 + in % 4] >> in / 4 & 1) << 4;
    if (row->layout == EW_CUDA_U5)
        return (struct parts){f16_at(row->scales, group), (double)code - 16, 0};
    return (struct parts){f16_at(row->scales, group), code, f16_at(row->mins, group)};
}

static struct parts of_table(const struct row *row, uint32_t c)
{
    uint32_t code = row->codes[c / 2] >> c % 2 * 4 & 15;
    double scale;

    switch (row->layout) {
    case EW_CUDA_MX4:
        scale = ew_f32_of_bf16((uint16_t)(row->scales[c / 32 * 2] | row->scales[c / 32 * 2 + 1] << 8));
        break;
    case EW_CUDA_NV4:
        scale = ew_f32_of_e4m3(row->scales[c / 16]) * f32_at(row->mins, 0);
        break;
    case EW_CUDA_IQ1_16:
    case EW_CUDA_IQ2_16:
    case EW_CUDA_U3_16:
        scale = f16_at(row->scales, c / 16);
        break;
    default:
        scale = f16_at(row->scales, c / 32);
    }
    return (struct parts){scale, TABLES[row->layout][code], 0};
}

static struct parts parts_of(const struct row *row, uint32_t c)
{
    uint16_t half;

    switch (row->layout) {
    case EW_CUDA_F16:
        return (struct parts){1, f16_at(row->codes, c), 0};
    case EW_CUDA_BF16:
        memcpy(&half, row->codes + 2 * c, sizeof(half));
        return (struct parts){1, ew_f32_of_bf16(half), 0};
    case EW_CUDA_I8:
        return (struct parts){f16_at(row->scales, c / 32), (int8_t)row->codes[c], 0};
    case EW_CUDA_F8:
        return (struct parts){f32_at(row->scales, c / 128), ew_f32_of_e4m3(row->codes[c]), 0};
    case EW_CUDA_U4:
        return (struct parts){f16_at(row->scales, c / 32), (double)nibble_of(row, c) - 8, 0};
    case EW_CUDA_U4_MIN:
        return (struct parts){f16_at(row->scales, c / 32), nibble_of(row, c), f16_at(row->mins, c / 32)};
    case EW_CUDA_U5:
    case EW_CUDA_U5_MIN:
    case EW_CUDA_U6:
        return of_planes(row, c);
    default:
        return of_table(row, c);
    }
}

static struct row pack(enum ew_cuda_layout layout, enum ew_dtype dtype, const uint8_t *bytes)
{
    struct row row = {layout, malloc(ew_cuda_code_bytes(layout, COLS)), malloc(ew_cuda_scale_bytes(layout, COLS) + 1),
                      malloc(ew_cuda_min_bytes(layout, COLS) + 1)};
    float *scratch = malloc(COLS * sizeof(*scratch));

    ew_cuda_pack_row(layout, dtype, bytes, COLS, row.codes, row.scales, row.mins, scratch);
    free(scratch);
    return row;
}

static enum ew_cuda_layout check_type(enum ew_dtype dtype)
{
    struct ew_weight weight = {.name = "blk.0.w", .rows = ROWS, .cols = COLS, .is_matrix = true,
                               .source = ew_synthetic_matrix(dtype, COLS, 7)};
    struct ew_program program = {.weights = &weight, .n_weights = 1};
    uint64_t row_bytes = ew_dtype_row_bytes(dtype, COLS);
    uint8_t *bytes = malloc(row_bytes);
    bool exact;
    enum ew_cuda_layout layout = ew_cuda_layout_of(&program, 0, false, &exact);

    assert_int_equal(weight.source.dtype, dtype);
    for (uint64_t r = 0; r < ROWS; r++) {
        float wanted[COLS];
        float largest = 0;
        struct row row;

        assert_int_equal(weight.source.read(&weight.source, r, 1, bytes, NULL), 0);
        ew_dtype_info(dtype)->decode(bytes, wanted, COLS);
        row = pack(layout, dtype, bytes);
        for (uint32_t c = 0; c < COLS; c++) {
            struct parts p = parts_of(&row, c);
            double error = fabs(p.scale * p.code - p.min - (double)wanted[c]);

            for (uint32_t i = 0; c % 32 == 0 && i < 32; i++)
                largest = fmaxf(i ? largest : 0, fabsf(wanted[c + i]));
            // Of two levels of scales the product is rounded to f16; what is not exact, to 8 bits.
            if (error > 0x1p-10 * (fabs(p.scale * p.code) + fabs(p.min)) + 1e-9 + (exact ? 0 : largest / 250.0))
                fail_msg("%s as %s: column %u is %g, not %g", ew_dtype_name(dtype), ew_cuda_layout_name(layout), c,
                         p.scale * p.code - p.min, (double)wanted[c]);
        }
        free(row.codes);
        free(row.scales);
        free(row.mins);
    }
    free(bytes);
    return layout;
}

static void test_every_layout(void **state)
{
    static const enum ew_dtype TYPES[] = {
        EW_DTYPE_F16,    EW_DTYPE_BF16,    EW_DTYPE_Q8_0,    EW_DTYPE_Q4_0,   EW_DTYPE_Q4_1,   EW_DTYPE_Q5_0,
        EW_DTYPE_Q5_1,   EW_DTYPE_Q2_K,    EW_DTYPE_Q3_K,    EW_DTYPE_Q4_K,   EW_DTYPE_Q5_K,   EW_DTYPE_Q6_K,
        EW_DTYPE_IQ1_S,  EW_DTYPE_IQ1_M,   EW_DTYPE_IQ2_XXS, EW_DTYPE_IQ2_XS, EW_DTYPE_IQ2_S,  EW_DTYPE_IQ3_XXS,
        EW_DTYPE_IQ3_S,  EW_DTYPE_IQ4_NL,  EW_DTYPE_IQ4_XS,  EW_DTYPE_TQ1_0,  EW_DTYPE_TQ2_0,  EW_DTYPE_MXFP4,
        EW_DTYPE_FP8,    EW_DTYPE_NVFP4_S, EW_DTYPE_Q4_ZERO,
    };
    bool seen[EW_CUDA_LAYOUT_COUNT] = {[EW_CUDA_F32] = true}; // as it is

    for (size_t i = 0; i < sizeof(TYPES) / sizeof(*TYPES); i++)
        seen[check_type(TYPES[i])] = true;
    for (int i = 0; i < EW_CUDA_LAYOUT_COUNT; i++) {
        if (!seen[i])
            fail_msg("no type was packed as %s", ew_cuda_layout_name(i));
    }
}

// Columns in another order, where a weight has it and every op that uses it is a product.
static void test_order(void **state)
{
    struct ew_weight_source ordered = ew_synthetic_matrix(EW_DTYPE_Q4_0, COLS, 7);
    struct ew_weight weight = {.name = "blk.0.w", .rows = ROWS, .cols = COLS, .is_matrix = true,
                               .source = {.dtype = EW_DTYPE_F32, .ordered = &ordered}};
    struct ew_op op = {.kind = EW_OP_LINEAR};
    struct ew_program program = {.weights = &weight, .n_weights = 1, .ops = &op, .n_ops = 1};
    bool exact;

    assert_ptr_equal(ew_cuda_source_of(&program, 0, false), &ordered);
    assert_int_equal(ew_cuda_layout_of(&program, 0, false, &exact), EW_CUDA_U4);
    assert_true(exact);
    assert_ptr_equal(ew_cuda_source_of(&program, 0, true), &weight.source);
    assert_int_equal(ew_cuda_layout_of(&program, 0, true, &exact), EW_CUDA_F32);
    op.kind = EW_OP_EMBED;
    assert_ptr_equal(ew_cuda_source_of(&program, 0, false), &weight.source);
    op.kind = EW_OP_LINEAR;
    ordered.dtype = EW_DTYPE_Q6_K; // no kernel for one row would take its activations so
    assert_int_equal(ew_cuda_layout_of(&program, 0, false, &exact), EW_CUDA_F32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout),
        cmocka_unit_test(test_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
