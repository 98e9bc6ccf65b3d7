// Products of a matrix with few rows of activations: one warp a row of the matrix, which is read once; rows of
// activations beyond those of one call are further blocks in y.

#include "kernel/cuda/ptx/dot.h"

#define WARPS 8 // of a block

KERNEL linear_f32(float *out, u32 out_stride, const float *x, u32 x_stride, const float *weight, const float *bias,
                  u32 rows, u32 cols, u32 n_tokens)
{
    u32 first = BLOCK_Y * TOKENS_MAX, row = BLOCK_X * WARPS + THREAD / 32;
    struct product p = {out + (u64)first * out_stride, bias, out_stride, rows, min_u32(n_tokens - first, TOKENS_MAX)};

    kernel_begin();
    if (row < rows)
        linear_f32_row(&p, row, x + (u64)first * x_stride, x_stride, weight + (u64)row * cols, cols);
}

#define DEFINE_HALF(name, N, is_bf16) \
    KERNEL name(float *out, u32 out_stride, const float *x, u32 x_stride, const u16 *weight, const float *bias, \
                u32 rows, u32 cols, u32 n_tokens) \
    { \
        u32 first = BLOCK_Y * N, row = BLOCK_X * WARPS + THREAD / 32; \
        struct product p = {out + (u64)first * out_stride, bias, out_stride, rows, min_u32(n_tokens - first, N)}; \
                                                                                                                       \
        kernel_begin(); \
        if (row < rows) \
            linear_half(N, is_bf16, &p, row, x + (u64)first * x_stride, x_stride, weight + (u64)row * cols, cols); \
    }

DEFINE_HALF(linear_f16_1, 1, 0)
DEFINE_HALF(linear_f16_8, 8, 0)
DEFINE_HALF(linear_bf16_1, 1, 1)
DEFINE_HALF(linear_bf16_8, 8, 1)

// ---- 8-bit activations --------------------------------------------------------------------------

#define Q8_ARGUMENTS \
    float *out, u32 out_stride, const i8 *x_codes, const float *x_scales, const float *x_sums, const u8 *weight, \
        const u16 *scales, const u16 *mins, const float *bias, u32 rows, u32 cols, u32 n_tokens

#define DEFINE_Q8(name, N, call) \
    KERNEL name(Q8_ARGUMENTS) \
    { \
        u32 first = BLOCK_Y * N, row = BLOCK_X * WARPS + THREAD / 32, n_groups = cols / 32; \
        struct product p = {out + (u64)first * out_stride, bias, out_stride, rows, min_u32(n_tokens - first, N)}; \
        struct q8 x = {x_codes + (u64)first * cols, x_scales + (u64)first * n_groups, x_sums + (u64)first * n_groups}; \
                                                                                                                       \
        kernel_begin(); \
        if (row < rows) \
            call; \
    }

#define I8(N) linear_i8(N, &p, row, &x, weight + (u64)row * cols, scales + (u64)row * n_groups, cols)
#define U4(N, has_min) \
    linear_u4(N, has_min, &p, row, &x, weight + (u64)row * (cols / 2), scales + (u64)row * n_groups, \
              mins + (u64)row * n_groups, cols)

DEFINE_Q8(linear_i8_1, 1, I8(1))
DEFINE_Q8(linear_i8_8, 8, I8(8))
DEFINE_Q8(linear_u4_1, 1, U4(1, 0))
DEFINE_Q8(linear_u4_8, 8, U4(8, 0))
DEFINE_Q8(linear_u4_min_1, 1, U4(1, 1))
DEFINE_Q8(linear_u4_min_8, 8, U4(8, 1))

// ---- layouts whose fast kernels stand elsewhere ---------------------------------------------------

KERNEL linear_any(float *out, u32 out_stride, const float *x, u32 x_stride, const u8 *codes, const u16 *scales,
                  const u16 *mins, u32 layout, const float *bias, u32 rows, u32 cols, u32 n_tokens)
{
    u32 first = BLOCK_Y * TOKENS_MAX, row = BLOCK_X * WARPS + THREAD / 32;
    struct product p = {out + (u64)first * out_stride, bias, out_stride, rows, min_u32(n_tokens - first, TOKENS_MAX)};
    struct weight w = {codes, scales, mins};

    kernel_begin();
    if (row < rows)
        linear_any_row(&p, layout, &w, row, row, x + (u64)first * x_stride, x_stride, cols);
}
