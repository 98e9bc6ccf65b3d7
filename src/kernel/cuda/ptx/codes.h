#pragma once
// Codes of quantised layouts to pairs of f16, as operands of the tensor cores.

#include "kernel/cuda/ptx/gpu.h"

// Of its class: all tables have one of two.
#define TABLE LAYOUT_IQ4
#define TABLE_16 LAYOUT_IQ1_16

INLINE u32 has_min(u32 layout) { return layout == LAYOUT_U4_MIN || layout == LAYOUT_U5_MIN; }

INLINE u32 twice(u32 v) { return (v & 0xFFFF) * 0x10001u; }

// Scales of both halves of a group of 32 columns of a table, in f16. NV4's rows have another factor.
INLINE u32 f16_scales_of_table(u32 layout, u32 bits)
{
    if (layout == LAYOUT_NV4)
        return f16x2_of_e4m3(bits);
    // Larger ones would not leave room for codes.
    return twice(layout == LAYOUT_MX4 ? f16_of_f32(min_f32(low_bf16(bits), 4096)) : bits);
}

// Codes to f16: 1024 + n has n as its last bits, and the difference is exact. `offset` is -1024 less what codes have
// too much, twice.
INLINE u32x2 scaled(u32 low, u32 high, u32 offset, u32 scale)
{
    return (u32x2){mul_f16x2(add_f16x2(low, offset), scale), mul_f16x2(add_f16x2(high, offset), scale)};
}

// Where column `column` of 64 lies for the products of wgmma_coded.c, whose lanes have 8 neighbours of each 16 at hand
// where an operand wants 2 neighbours of each 8: of lane q, four columns go to places 2 q, 2 q + 1, 2 q + 8, 2 q + 9.
INLINE u32 mixed_place(u32 column)
{
    u32 quad = column / 32 % 2 * 2 + column / 8 % 2, product = column / 4 % 2 * 2 + column / 16 % 2;

    return column / 64 * 64 + product * 16 + quad * 2 + column % 2 + column % 4 / 2 * 8;
}

// Four codes of a table whose numbers are 128 more.
INLINE u32 look_up_four(u32x4 table, u32 codes)
{
    u32 at = codes & 0x7777, pick = 0x3210 | (codes >> 1 & 0x4444);

    return byte_permute(byte_permute(table.x, table.y, at), byte_permute(table.z, table.w, at), pick);
}
