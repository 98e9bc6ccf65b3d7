#pragma once
// The tile registers of AMX: eight, of up to 16 rows of 64 bytes (Intel's Software Developer's Manual, volume 1,
// chapter 18). Only files that are compiled for AMX include this. The permission to use them is asked for by
// ew_cpu_isa().

#include <immintrin.h>
#include <stdint.h>

// What LDTILECFG reads.
struct amx_tiles {
    _Alignas(64) uint8_t palette;
    uint8_t start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

_Static_assert(sizeof(struct amx_tiles) == 64, "the layout of palette 1");

static inline void amx_set(struct amx_tiles *tiles, unsigned tile, unsigned rows, unsigned row_bytes)
{
    tiles->palette = 1;
    tiles->rows[tile] = (uint8_t)rows;
    tiles->row_bytes[tile] = (uint16_t)row_bytes;
}

// Every thread has tiles of its own. Between these two they are in use, which costs a context switch 8 kB more, so that
// a kernel begins and ends within one call.
static inline __attribute__((always_inline)) void amx_begin(const struct amx_tiles *tiles)
{
    _tile_loadconfig(tiles);
}

static inline __attribute__((always_inline)) void amx_end(void)
{
    _tile_release();
}

// Some compilers do not know that _tile_loadd reads memory: what was written for it must be there before.
static inline __attribute__((always_inline)) void amx_fence(void)
{
    __asm__ volatile("" ::: "memory");
}
