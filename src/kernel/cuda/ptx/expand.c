// Operands of the large products in 16 bits: activations from f32, quantised weights to f16.

#include "kernel/cuda/narrow_job.h"
#include "kernel/cuda/ptx/block.h"
#include "kernel/cuda/ptx/codes.h"

// f16 cannot hold what some families' activations reach: they stop at its largest number.
INLINE u32 pack_f16(float low, float high)
{
    return f16x2_of(max_f32(min_f32(low, 65504), -65504), max_f32(min_f32(high, 65504), -65504));
}

// Four columns from `column` on, in f16, in the order of wgmma_coded.c.
INLINE void store_mixed(u16 *out, u32 column, f32x4 x)
{
    u32 *to = (u32 *)(out + mixed_place(column));

    to[0] = pack_f16(x.x, x.y);
    to[4] = pack_f16(x.z, x.w);
}

// Eight columns a thread; rows of `in` are 16-byte aligned, those of `out` follow each other. `order` as four_in_order
// has it.
INLINE void narrow(u32 is_bf16, u16 *out, const float *in, u32 in_stride, u32 cols, const u32 *order)
{
    u32 i = (BLOCK_X * N_THREADS + THREAD) * 8;
    f32x4 a, b;

    if (i >= cols)
        return;
    in += (u64)BLOCK_Y * in_stride;
    a = four_in_order(in, order, i);
    b = four_in_order(in, order, i + 4);
    *(u32x4 *)(out + (u64)BLOCK_Y * cols + i) =
        is_bf16 ? (u32x4){bf16x2_of(a.x, a.y), bf16x2_of(a.z, a.w), bf16x2_of(b.x, b.y), bf16x2_of(b.z, b.w)}
                : (u32x4){pack_f16(a.x, a.y), pack_f16(a.z, a.w), pack_f16(b.x, b.y), pack_f16(b.z, b.w)};
}

KERNEL narrow_f16(u16 *out, const float *in, u32 in_stride, u32 cols, const u32 *order)
{
    narrow(0, out, in, in_stride, cols, order);
}

KERNEL narrow_bf16(u16 *out, const float *in, u32 in_stride, u32 cols, const u32 *order)
{
    narrow(1, out, in, in_stride, cols, order);
}

KERNEL narrow_mixed(u16 *out, const float *in, u32 in_stride, u32 cols, const u32 *order)
{
    u32 i = (BLOCK_X * N_THREADS + THREAD) * 8;

    if (i >= cols)
        return;
    in += (u64)BLOCK_Y * in_stride;
    out += (u64)BLOCK_Y * cols;
    store_mixed(out, i, four_in_order(in, order, i));
    store_mixed(out, i + 4, four_in_order(in, order, i + 4));
}

INLINE f32x4 four_of(const float *v, const u32 *order, u32 i, float otherwise)
{
    return v ? four_in_order(v, order, i) : (f32x4){otherwise, otherwise, otherwise, otherwise};
}

// A norm's row is a block's; four columns a thread at a time.
struct normal {
    float mean, factor;
};

INLINE struct normal find_normal(const struct ew_norm_job *norm, const float *in)
{
    float mean = 0, sum = 0;

    if (norm->is_layer) {
        for (u32 i = THREAD * 4; i < norm->cols; i += N_THREADS * 4) {
            f32x4 x = *(const f32x4 *)(in + i);

            sum += x.x + x.y + x.z + x.w;
        }
        mean = block_sum(N_THREADS, sum) / (float)norm->cols;
        sum = 0;
    }
    for (u32 i = THREAD * 4; i < norm->cols; i += N_THREADS * 4) {
        f32x4 x = *(const f32x4 *)(in + i) - mean;

        sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
    return (struct normal){mean, rsqrt_f32(block_sum(N_THREADS, sum) / (float)norm->cols + norm->eps)};
}

INLINE f32x4 normal_at(const struct ew_norm_job *norm, const struct normal *n, const float *in, const u32 *order,
                       u32 i)
{
    const float *weight = (const float *)norm->weight, *bias = (const float *)norm->bias;
    f32x4 w = four_of(weight, order, i, 1) + (weight ? norm->weight_offset : 0);
    f32x4 y = (four_in_order(in, order, i) - n->mean) * n->factor * w + four_of(bias, order, i, 0);

    if (norm->normed)
        *(f32x4 *)((float *)norm->normed + (u64)BLOCK_X * norm->normed_stride + i) = y;
    return y;
}

enum { NARROW_F16, NARROW_BF16, NARROW_MIXED };

INLINE void narrow_norm(u32 kind, u16 *out, const struct ew_norm_job *norm)
{
    const float *in = (const float *)norm->in + (u64)BLOCK_X * norm->in_stride;
    struct normal n = find_normal(norm, in);

    out += (u64)BLOCK_X * norm->cols;
    for (u32 i = THREAD * 4; i < norm->cols; i += N_THREADS * 4) {
        f32x4 y = normal_at(norm, &n, in, (const u32 *)norm->order, i);

        if (kind == NARROW_MIXED)
            store_mixed(out, i, y);
        else
            *(u32x2 *)(out + i) = kind == NARROW_BF16 ? (u32x2){bf16x2_of(y.x, y.y), bf16x2_of(y.z, y.w)}
                                                      : (u32x2){pack_f16(y.x, y.y), pack_f16(y.z, y.w)};
    }
}

KERNEL norm_f16(u16 *out, struct ew_norm_job norm) { narrow_norm(NARROW_F16, out, &norm); }
KERNEL norm_bf16(u16 *out, struct ew_norm_job norm) { narrow_norm(NARROW_BF16, out, &norm); }
KERNEL norm_mixed(u16 *out, struct ew_norm_job norm) { narrow_norm(NARROW_MIXED, out, &norm); }

// Columns `column` to `column` + 3 of a row; a warp has 128 in turn.
INLINE void store_codes(const struct ew_codes_job *to, u32 row, u32 column, f32x4 x)
{
    float most = max_f32(max_f32(abs_f32(x.x), abs_f32(x.y)), max_f32(abs_f32(x.z), abs_f32(x.w)));

    most = warp_max(most);
    ((u32 *)to->codes)[((u64)row * to->cols + column) / 4] = e4m3x4_of(x, e4m3_factor(most));
    if (THREAD % 32 == 0)
        ((float *)to->scales)[column / 128 * to->scale_stride + row] = e4m3_scale(most);
}

KERNEL narrow_f8(struct ew_codes_job to, const float *in, u32 in_stride)
{
    u32 column = (BLOCK_X * N_THREADS + THREAD) * 4;

    if (column < to.cols)
        store_codes(&to, BLOCK_Y, column, *(const f32x4 *)(in + (u64)BLOCK_Y * in_stride + column));
}

KERNEL norm_f8(struct ew_codes_job to, struct ew_norm_job norm)
{
    const float *in = (const float *)norm.in + (u64)BLOCK_X * norm.in_stride;
    struct normal n = find_normal(&norm, in);

    for (u32 i = THREAD * 4; i < norm.cols; i += N_THREADS * 4)
        store_codes(&to, BLOCK_X, i, normal_at(&norm, &n, in, 0, i));
}

// Eight of a group's 32 columns a thread, from bytes whose codes are they.
INLINE void expand(u32 layout, u16 *out, const struct weight *w, u64 n_groups)
{
    u64 group = (u64)BLOCK_X * (N_THREADS / 4) + THREAD / 4;
    u32 part = THREAD % 4, packed[4];
    float scale, min = 0;
    u32x2 codes;

    if (group >= n_groups)
        return;
    scale = f32_of_f16(w->scales[group]);
    if (layout == LAYOUT_U4_MIN)
        min = f32_of_f16(w->mins[group]);
    if (layout == LAYOUT_I8)
        codes = *(const u32x2 *)(w->codes + group * 32 + part * 8);
    else // columns 0 to 15 are low nibbles, the others high ones of the same bytes
        codes = *(const u32x2 *)(w->codes + group * 16 + part % 2 * 8) >> (part / 2 * 4);
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 pair = codes[i / 2] >> (i % 2 * 16);
        float low, high;

        if (layout == LAYOUT_I8) {
            low = (float)(i8)pair;
            high = (float)(i8)(pair >> 8);
        } else {
            low = (float)((i32)(pair & 15) - (layout == LAYOUT_U4 ? 8 : 0));
            high = (float)((i32)(pair >> 8 & 15) - (layout == LAYOUT_U4 ? 8 : 0));
        }
        packed[i] = f16x2_of(low * scale - min, high * scale - min);
    }
    *(u32x4 *)(out + group * 32 + part * 8) = (u32x4){packed[0], packed[1], packed[2], packed[3]};
}

#define DEFINE(name, layout) \
    KERNEL name(u16 *out, const u8 *codes, const u16 *scales, const u16 *mins, u64 n_groups) \
    { \
        struct weight w = {codes, scales, mins}; \
                                                                                                                       \
        expand(layout, out, &w, n_groups); \
    }

DEFINE(expand_i8, LAYOUT_I8)
DEFINE(expand_u4, LAYOUT_U4)
DEFINE(expand_u4_min, LAYOUT_U4_MIN)

// Layouts beyond these: eight columns a thread.
KERNEL expand_any(u16 *out, const u8 *codes, const u16 *scales, const u16 *mins, u32 layout, u32 rows, u32 cols)
{
    struct weight w = {codes, scales, mins};
    u32 column = (BLOCK_X * N_THREADS + THREAD) * 8;
    float v[8];

    if (column >= cols)
        return;
    for (u32 row = BLOCK_Y; row < rows; row += N_BLOCKS_Y) {
        eight_at(layout, &w, row, column, cols, v);
        *(u32x4 *)(out + (u64)row * cols + column) =
            (u32x4){pack_f16(v[0], v[1]), pack_f16(v[2], v[3]), pack_f16(v[4], v[5]), pack_f16(v[6], v[7])};
    }
}

#define JOINED_AT_ONCE 4

// Four rows a thread of one token's results of a matrix whose columns were shared out (wgmma.c): their sum, with bias
// and residual. rows is a multiple of 4.
KERNEL join_sums(float *out, u32 out_stride, const float *partial, u32 n_splits, u32 rows, u32 n_tokens,
                 const float *bias, const float *residual, u32 residual_stride, float y_scale, float residual_scale)
{
    u32 row = (BLOCK_X * N_THREADS + THREAD) * 4;
    const float *from = partial + (u64)BLOCK_Y * rows + row;
    f32x4 sum;

    if (row >= rows)
        return;
    sum = four_of(bias, 0, row, 0);
    for (u32 s = 0; s < n_splits; s += JOINED_AT_ONCE) {
        f32x4 part[JOINED_AT_ONCE];

        UNROLL
        for (u32 i = 0; i < JOINED_AT_ONCE; i++)
            part[i] = *(const f32x4 *)(from + (u64)min_u32(s + i, n_splits - 1) * n_tokens * rows);
        UNROLL
        for (u32 i = 0; i < JOINED_AT_ONCE; i++)
            sum += s + i < n_splits ? part[i] : (f32x4){0, 0, 0, 0};
    }
    if (residual)
        sum = y_scale * sum + residual_scale * *(const f32x4 *)(residual + (u64)BLOCK_Y * residual_stride + row);
    *(f32x4 *)(out + (u64)BLOCK_Y * out_stride + row) = sum;
}

// How the scales of a matrix in e4m3 are, a warp a row: flags[0] becomes 1 where those of a row differ, flags[1] where
// those of 128 rows and columns do.
KERNEL form_f8(u32 *flags, const float *scales, u32 rows, u32 cols)
{
    u32 row = BLOCK_X * (N_THREADS / 32) + THREAD / 32, stride = f8_scales(cols), of_row = 0, of_block = 0;
    const float *own = scales + (u64)row * stride, *block = scales + (u64)(row / 128 * 128) * stride;

    if (row >= rows)
        return;
    for (u32 i = THREAD % 32; i < cols / 128; i += 32) {
        of_row |= bits_of_f32(own[i]) != bits_of_f32(own[0]);
        of_block |= bits_of_f32(own[i]) != bits_of_f32(block[i]);
    }
    if (of_row)
        flags[0] = 1;
    if (of_block)
        flags[1] = 1;
}
