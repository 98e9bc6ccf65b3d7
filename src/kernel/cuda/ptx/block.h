#pragma once
// What all threads of a block compute together.

#include "kernel/cuda/ptx/gpu.h"

static SHARED float g_part[32]; // of the warps, of which no block has more

// The sum over a block of so many threads, whole warps, known to all of them; always in one order.
INLINE float block_sum(u32 threads, float v)
{
    float sum = 0;

    v = warp_sum(v);
    block_sync();
    if (THREAD % 32 == 0)
        g_part[THREAD / 32] = v;
    block_sync();
    for (u32 i = 0; i < threads / 32; i++)
        sum += g_part[i];
    return sum;
}

// The same once in a kernel, of a multiple of 128 threads.
INLINE float block_sum_once(u32 threads, float v)
{
    f32x4 sum = {0, 0, 0, 0};

    v = warp_sum(v);
    if (THREAD % 32 == 0)
        g_part[THREAD / 32] = v;
    block_sync();
    UNROLL
    for (u32 i = 0; i < threads / 32; i += 4)
        sum += (f32x4){g_part[i], g_part[i + 1], g_part[i + 2], g_part[i + 3]};
    return sum.x + sum.y + (sum.z + sum.w);
}
