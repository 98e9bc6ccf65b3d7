#pragma once
// Paged caches: a block holds, for each layer and KV head, the keys of its tokens, their values, and (8-bit types) one
// f16 scale of each row of keys, then of values; as the CPU backend has them.

#include "kernel/cuda/ptx/gpu.h"

// Values of enum ew_kv_dtype.
enum { KV_F32, KV_F16, KV_F8, KV_I8 };

struct cache {
    u8 *data;
    u64 block_bytes, layer_at, head_bytes; // layer_at: of the op's layer in a block
    u32 block_tokens, kv, k_dim, v_dim;
};

struct tile { // of one block, layer and KV head
    u8 *k, *v;
    u16 *k_scale, *v_scale;
};

INLINE u32 kv_bytes(u32 kv) { return kv == KV_F32 ? 4 : kv == KV_F16 ? 2 : 1; }
INLINE u32 kv_has_scales(u32 kv) { return kv >= KV_F8; }

INLINE struct tile cache_tile(const struct cache *cache, i32 block, u32 head)
{
    u8 *base = cache->data + (u64)block * cache->block_bytes + cache->layer_at + head * cache->head_bytes;
    u32 k_bytes = cache->block_tokens * cache->k_dim * kv_bytes(cache->kv);
    u32 v_bytes = cache->block_tokens * cache->v_dim * kv_bytes(cache->kv);
    u16 *scales = (u16 *)(base + ((k_bytes + v_bytes + 1) & ~1u));

    return (struct tile){base, base + k_bytes, scales, scales + cache->block_tokens};
}

// e4m3 has f16's form with 8 less in the exponent's bias and 7 bits less of fraction: the product is exact.
INLINE float f32_of_e4m3(u32 b)
{
    float magnitude = f32_of_bits((b & 0x7F) << 20) * 0x1p120f;

    return f32_of_bits(bits_of_f32(magnitude) | (b & 0x80) << 24);
}

// Saturates at 448.
INLINE u32 e4m3_of_f32(float f)
{
    u32 bits = bits_of_f32(f), sign = bits >> 24 & 0x80, abs = bits & 0x7FFFFFFF;

    if (abs >= 0x43E00000) // 448 and above
        return sign | 0x7E;
    if (abs < 0x3C800000) // below 2^-6: multiples of 2^-9
        return sign | (bits_of_f32(f32_of_bits(abs) + 0x1p14f) - 0x46800000);
    abs = (abs + 0x7FFFF + (abs >> 20 & 1)) >> 20;
    return sign | min_u32(abs - (120u << 3), 0x7E);
}

// Element i of a row, without its scale.
INLINE float kv_element(u32 kv, const u8 *row, u32 i)
{
    switch (kv) {
    case KV_F32:
        return ((const float *)row)[i];
    case KV_F16:
        return f32_of_f16(((const u16 *)row)[i]);
    case KV_F8:
        return f32_of_e4m3(row[i]);
    default:
        return (float)(i8)row[i];
    }
}

// A row by a warp.
INLINE void kv_put_row(u32 kv, u8 *row, u16 *scale, const float *x, u32 dim)
{
    u32 lane = THREAD % 32;
    float max = 0, step, inverse;

    if (kv_has_scales(kv)) {
        for (u32 i = lane; i < dim; i += 32)
            max = max_f32(max, abs_f32(x[i]));
        max = warp_max(max);
        *scale = f16_of_f32(max / (kv == KV_F8 ? 448 : 127));
    }
    step = kv_has_scales(kv) ? f32_of_f16(f16_of_f32(max / (kv == KV_F8 ? 448 : 127))) : 1;
    // All zero, too small for f16, or not finite: the scale carries it.
    inverse = step > 0 && step < -NEG_INFINITY ? 1 / step : 0;
    for (u32 i = lane; i < dim; i += 32) {
        if (kv == KV_F32)
            ((float *)row)[i] = x[i];
        else if (kv == KV_F16)
            ((u16 *)row)[i] = f16_of_f32(x[i]);
        else if (kv == KV_F8)
            row[i] = inverse > 0 ? (u8)e4m3_of_f32(x[i] * inverse) : 0;
        else
            row[i] = inverse > 0 ? (u8)(i32)max_f32(min_f32(__builtin_rintf(x[i] * inverse), 127), -127) : 0;
    }
}
