#pragma once
// Which keys a query sees.

#include "kernel/cuda/ptx/gpu.h"

struct mask {
    u32 window, chunk, bidirectional;
};

// Of `total` keys, those from *begin to *end - 1; neither falls as the query's index grows.
INLINE void visible(const struct mask *mask, u32 index, u32 total, u32 *begin, u32 *end)
{
    *begin = 0;
    *end = index + 1;
    if (mask->bidirectional) {
        *end = mask->window ? min_u32(total, index + mask->window / 2 + 1) : total;
        *begin = mask->window && index > mask->window / 2 ? index - mask->window / 2 : 0;
        return;
    }
    if (mask->window && index >= mask->window)
        *begin = index + 1 - mask->window;
    if (mask->chunk)
        *begin = max_u32(*begin, index / mask->chunk * mask->chunk);
}
