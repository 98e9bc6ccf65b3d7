#pragma once
// The norm that stands before a product, of one row of activations, by a block that does it on the way.

#include "kernel/cuda/ptx/block.h"
#include "kernel/cuda/vector_job.h"

struct normal {
    float mean, factor;
};

INLINE struct normal find_normal(u32 threads, const struct ew_vector_job *job, const f32x4 *x)
{
    struct normal n = {0, 1};
    float sum = 0;

    if (job->norm == EW_VECTOR_PLAIN)
        return n;
    if (job->norm == EW_VECTOR_LAYER) {
        for (u32 i = THREAD; i < job->cols / 4; i += threads)
            sum += x[i].x + x[i].y + x[i].z + x[i].w;
        n.mean = block_sum(threads, sum) / (float)job->cols;
        sum = 0;
    }
    for (u32 i = THREAD; i < job->cols / 4; i += threads) {
        f32x4 v = x[i] - n.mean;

        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    n.factor = rsqrt_f32(block_sum(threads, sum) / (float)job->cols + job->eps);
    return n;
}

// Columns 4 i to 4 i + 3 of the matrices, normalised; beyond the last one zeros.
INLINE f32x4 normal_at(const struct ew_vector_job *job, const f32x4 *x, const struct normal *n, u32 i)
{
    const u32 *order = (const u32 *)job->order;
    f32x4 v = {0, 0, 0, 0};

    if (i >= job->cols / 4)
        return v;
    v = four_in_order((const float *)x, order, i * 4);
    if (job->norm == EW_VECTOR_PLAIN)
        return v;
    v = (v - n->mean) * n->factor;
    if (job->norm_weight)
        v *= four_in_order((const float *)job->norm_weight, order, i * 4) + job->norm_offset;
    return job->norm_bias ? v + four_in_order((const float *)job->norm_bias, order, i * 4) : v;
}
