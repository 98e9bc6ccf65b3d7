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
