// What this GPU can do at most: reading its memory, and multiplying on its tensor cores.

#include "kernel/cuda/ptx/gpu.h"

// Four loads of 16 bytes a thread are under way at once; what they sum up to keeps them from being left out.
KERNEL read_all(const u8 *data, u64 bytes, u32 *sink)
{
    u64 step = (u64)N_BLOCKS_X * N_THREADS * 64, at = ((u64)BLOCK_X * N_THREADS + THREAD) * 16;
    u32 sum = 0;

    for (; at < bytes; at += step) {
        UNROLL
        for (u32 i = 0; i < 4; i++) {
            u64 here = at + i * (step / 4);
            u32x4 v = load_once(data + (here + 16 <= bytes ? here : 0));

            sum += v.x ^ v.y ^ v.z ^ v.w;
        }
    }
    if (sum == 0x9E3779B9u)
        *sink = sum;
}

// Eight independent sums a warp, so that none waits for another; 8 * 4096 multiplications and additions a round.
KERNEL multiply_tiles(float *sink, u32 rounds)
{
    u32 a[4] = {THREAD, THREAD + 1, THREAD + 2, THREAD + 3};
    float c[8][4] = {{0}}, sum = 0;

    for (u32 r = 0; r < rounds; r++) {
        UNROLL
        for (u32 i = 0; i < 8; i++)
            mma_bf16(c[i], a, i, THREAD);
    }
    UNROLL
    for (u32 i = 0; i < 8; i++)
        sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    if (sum == 1.2345f)
        *sink = sum;
}
