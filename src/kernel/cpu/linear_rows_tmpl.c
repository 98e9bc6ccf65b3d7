// Products with matrices of f32, f16 and bf16 in rows, activations in f32; included once for each instruction set.
//
// Each result is summed in VF lanes in the order of the columns, however many rows and activations are
// computed together.

#include "base/assert.h"
#include "kernel/cpu/cpu_ops.h"

VEC_INLINE vf load_weights(enum ew_cpu_layout layout, const uint8_t *row, uint32_t i)
{
    if (layout == EW_CPU_F32) {
        vf v;

        memcpy(&v, row + 4ull * i, sizeof(v)); // maps of files may be unaligned
        return v;
    }
    return layout == EW_CPU_F16 ? vf_load_f16(row + 2ull * i) : vf_load_bf16(row + 2ull * i);
}

// The last n < VF weights, with zeros after them.
VEC_INLINE vf load_last(enum ew_cpu_layout layout, const uint8_t *row, uint32_t i, uint32_t n)
{
    uint8_t last[VF * 4] = {0};
    uint32_t bytes = layout == EW_CPU_F32 ? 4 : 2;

    memcpy(last, row + (uint64_t)i * bytes, n * bytes);
    return load_weights(layout, last, 0);
}

VEC_INLINE vf load_last_x(const float *x, uint32_t n)
{
    float last[VF] = {0};

    memcpy(last, x, n * sizeof(*x));
    return vf_load(last);
}

// n_w rows of the matrix by n_x activations, constants where this is inlined.
VEC_INLINE void block(enum ew_cpu_layout layout, const struct ew_cpu_linear *job, uint32_t row, uint32_t n_w,
                      uint32_t b, uint32_t n_x)
{
    const uint8_t *w = job->matrix->data + row * job->matrix->row_bytes;
    const float *x = job->x + (uint64_t)b * job->x_stride;
    uint64_t row_bytes = job->matrix->row_bytes;
    uint32_t cols = job->matrix->cols, i = 0, left;
    vf acc[8][4];

    for (uint32_t r = 0; r < n_w; r++) {
        for (uint32_t k = 0; k < n_x; k++)
            acc[r][k] = vf_zero();
    }
    for (; i + VF <= cols; i += VF) {
        for (uint32_t r = 0; r < n_w; r++) {
            vf weights = load_weights(layout, w + r * row_bytes, i);

            for (uint32_t k = 0; k < n_x; k++)
                acc[r][k] = vf_fma(weights, vf_load(x + (uint64_t)k * job->x_stride + i), acc[r][k]);
        }
    }
    left = cols - i;
    for (uint32_t r = 0; r < n_w && left; r++) {
        for (uint32_t k = 0; k < n_x; k++)
            acc[r][k] = vf_fma(load_last(layout, w + r * row_bytes, i, left),
                               load_last_x(x + (uint64_t)k * job->x_stride + i, left), acc[r][k]);
    }
    for (uint32_t r = 0; r < n_w; r++) {
        for (uint32_t k = 0; k < n_x; k++)
            job->out[(uint64_t)(b + k) * job->out_stride + row + r] = vf_sum(acc[r][k]) +
                                                                      (job->bias ? job->bias[row + r] : 0);
    }
}

VEC_INLINE void some_rows(enum ew_cpu_layout layout, const struct ew_cpu_linear *job, uint32_t row, uint32_t end)
{
    uint32_t b = 0;

    for (; b + 4 <= job->n_rows; b += 4) {
        for (uint32_t r = row; r < end; r += 2) {
            if (r + 2 <= end)
                block(layout, job, r, 2, b, 4);
            else
                block(layout, job, r, 1, b, 4);
        }
    }
    for (; b < job->n_rows; b++) {
        uint32_t r = row;

        for (; r + 8 <= end; r += 8)
            block(layout, job, r, 8, b, 1);
        for (; r < end; r++)
            block(layout, job, r, 1, b, 1);
    }
}

#define DEFINE(name, layout)                                                                                           \
    static void linear_##name(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)                       \
    {                                                                                                                  \
        for (; tile < tile_end; tile++)                                                                                \
            some_rows(layout, job, tile *EW_CPU_TILE_ROWS, EW_MIN((tile + 1) * EW_CPU_TILE_ROWS, job->matrix->rows));  \
    }

DEFINE(f32, EW_CPU_F32)
DEFINE(f16, EW_CPU_F16)
DEFINE(bf16, EW_CPU_BF16)

static void init_linear_rows(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    ops->linear[EW_CPU_F32] = linear_f32;
    ops->linear[EW_CPU_F16] = linear_f16;
    ops->linear[EW_CPU_BF16] = linear_bf16;
}
