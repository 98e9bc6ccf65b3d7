#include "kernel/cuda/cuda_layout.h"

#include <string.h>

#include "base/assert.h"
#include "base/half.h"

#define SUPER 256      // columns of a q4_k block
#define Q4_K_BYTES 144 // f16 scale, f16 minimum, 12 bytes of 6-bit factors, 128 of codes
#define FP8_COLS 128   // of an fp8 block: f32 scale, codes

static const struct {
    const char *name;
    uint32_t code_bytes, scale_bytes, min_bytes; // of a group
} LAYOUTS[EW_CUDA_LAYOUT_COUNT] = {
    [EW_CUDA_F32] = {"f32", 128, 0, 0},
    [EW_CUDA_F16] = {"f16", 64, 0, 0},
    [EW_CUDA_BF16] = {"bf16", 64, 0, 0},
    [EW_CUDA_I8] = {"i8", 32, 2, 0},
    [EW_CUDA_U4] = {"u4", 16, 2, 0},
    [EW_CUDA_U4_MIN] = {"u4_min", 16, 2, 2},
    [EW_CUDA_F8] = {"f8", 32, 0, 0}, // scales: see below
};

const char *ew_cuda_layout_name(enum ew_cuda_layout layout)
{
    EW_ASSERT(layout < EW_CUDA_LAYOUT_COUNT);
    return LAYOUTS[layout].name;
}

static enum ew_cuda_layout layout_of(enum ew_dtype dtype, bool *exact)
{
    switch (dtype) {
    case EW_DTYPE_F16:
        return EW_CUDA_F16;
    case EW_DTYPE_BF16:
        return EW_CUDA_BF16;
    case EW_DTYPE_Q8_0:
        return EW_CUDA_I8;
    case EW_DTYPE_Q4_0:
        return EW_CUDA_U4;
    case EW_DTYPE_Q4_1:
    case EW_DTYPE_Q4_K:
    case EW_DTYPE_Q4_ZERO:
        return EW_CUDA_U4_MIN;
    case EW_DTYPE_FP8:
        return EW_CUDA_F8;
    default:
        *exact = false;
        return EW_CUDA_F16;
    }
}

enum ew_cuda_layout ew_cuda_layout_of(const struct ew_weight *weight, bool reference, bool *exact)
{
    enum ew_cuda_layout layout;

    *exact = true;
    if (reference || !weight->is_matrix || weight->source.dtype == EW_DTYPE_F32 ||
        weight->cols % 8) // the fast kernels read 16 bytes at a time
        return EW_CUDA_F32;
    layout = layout_of(weight->source.dtype, exact);
    if (ew_weight_parts(weight) > 1 && layout > EW_CUDA_U4_MIN) { // kernels for stacks know no other
        *exact = false;
        return EW_CUDA_F16;
    }
    return layout;
}

uint64_t ew_cuda_code_bytes(enum ew_cuda_layout layout, uint64_t cols)
{
    return cols * LAYOUTS[layout].code_bytes / EW_CUDA_GROUP;
}

uint64_t ew_cuda_scale_bytes(enum ew_cuda_layout layout, uint64_t cols)
{
    if (layout == EW_CUDA_F8)
        return (cols + 4 * FP8_COLS - 1) / (4 * FP8_COLS) * 16;
    return cols / EW_CUDA_GROUP * LAYOUTS[layout].scale_bytes;
}

uint64_t ew_cuda_min_bytes(enum ew_cuda_layout layout, uint64_t cols)
{
    return cols / EW_CUDA_GROUP * LAYOUTS[layout].min_bytes;
}

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static void put_f16(uint8_t *p, float x)
{
    uint16_t h = ew_f16_of_f32(x);

    memcpy(p, &h, 2);
}

// Blocks of a scale, maybe a minimum, and codes in our own order: q8_0, q4_0, q4_1 (whose minimum is added).
static void pack_small(const uint8_t *row, uint64_t cols, uint32_t code_bytes, uint8_t *codes, uint8_t *scales,
                       uint8_t *mins)
{
    for (uint64_t i = 0; i < cols / EW_CUDA_GROUP; i++) {
        memcpy(scales + 2 * i, row, 2);
        row += 2;
        if (mins) {
            put_f16(mins + 2 * i, -ew_f32_of_f16(u16_at(row)));
            row += 2;
        }
        memcpy(codes + i * code_bytes, row, code_bytes);
        row += code_bytes;
    }
}

// Factor and minimum factor of group i of a q4_k block (GGUF: get_scale_min_k4).
static void factors(const uint8_t *packed, uint32_t i, uint32_t *scale, uint32_t *min)
{
    if (i < 4) {
        *scale = packed[i] & 0x3F;
        *min = packed[i + 4] & 0x3F;
    } else {
        *scale = (packed[i + 4] & 0x0Fu) | (packed[i - 4] >> 2 & 0x30u);
        *min = packed[i + 4] >> 4 | (packed[i] >> 2 & 0x30u);
    }
}

// 64 columns of a q4_k block, low halves of its bytes first, in our own order: eight bytes at a time, since loading
// waits for this.
static void pack_nibbles(const uint8_t *nibbles, uint8_t *codes)
{
    const uint64_t low = 0x0F0F0F0F0F0F0F0Fu;
    uint64_t n[4];

    memcpy(n, nibbles, sizeof(n));
    for (int i = 0; i < 2; i++) {
        uint64_t first = (n[i] & low) | (n[i + 2] & low) << 4, second = (n[i] >> 4 & low) | (n[i + 2] & ~low);

        memcpy(codes + 8 * i, &first, 8);
        memcpy(codes + 16 + 8 * i, &second, 8);
    }
}

static void pack_q4_k(const uint8_t *row, uint64_t cols, uint8_t *codes, uint8_t *scales, uint8_t *mins)
{
    for (uint64_t at = 0; at < cols; at += SUPER, row += Q4_K_BYTES) {
        float scale = ew_f32_of_f16(u16_at(row)), min = ew_f32_of_f16(u16_at(row + 2));

        for (uint32_t g = 0; g < SUPER / EW_CUDA_GROUP; g++) {
            uint64_t group = at / EW_CUDA_GROUP + g;
            uint32_t factor, min_factor;

            factors(row + 4, g, &factor, &min_factor);
            put_f16(scales + 2 * group, scale * (float)factor);
            put_f16(mins + 2 * group, min * (float)min_factor);
        }
        for (uint32_t i = 0; i < SUPER / 2; i += 32)
            pack_nibbles(row + 16 + i, codes + at / 2 + i);
    }
}

// A NaN counts as zero, as in the reference codec.
static void pack_fp8(const uint8_t *row, uint64_t cols, uint8_t *codes, uint8_t *scales)
{
    memset(scales, 0, ew_cuda_scale_bytes(EW_CUDA_F8, cols));
    for (uint64_t at = 0; at < cols; at += FP8_COLS, row += 4 + FP8_COLS, scales += 4) {
        memcpy(scales, row, 4);
        for (uint32_t i = 0; i < FP8_COLS; i++)
            codes[at + i] = (row[4 + i] & 0x7F) == 0x7F ? 0 : row[4 + i];
    }
}

// Blocks of two groups: f16 scale, zero point, nibbles in our own order.
static void pack_q4_zero(const uint8_t *row, uint64_t cols, uint8_t *codes, uint8_t *scales, uint8_t *mins)
{
    for (uint64_t i = 0; i < cols / EW_CUDA_GROUP; i += 2, row += 3 + 32) {
        for (uint64_t g = i; g < i + 2; g++) {
            memcpy(scales + 2 * g, row, 2);
            put_f16(mins + 2 * g, ew_f32_of_f16(u16_at(row)) * (float)row[2]);
        }
        memcpy(codes + i * 16, row + 3, 32);
    }
}

static void pack_plain(enum ew_cuda_layout layout, enum ew_dtype dtype, const uint8_t *row, uint64_t cols,
                       uint8_t *codes, float *scratch)
{
    uint16_t *half = (uint16_t *)codes;

    ew_dtype_info(dtype)->decode(row, layout == EW_CUDA_F32 ? (float *)codes : scratch, cols);
    for (uint64_t i = 0; i < cols && layout != EW_CUDA_F32; i++)
        half[i] = layout == EW_CUDA_F16 ? ew_f16_of_f32(scratch[i]) : ew_bf16_of_f32(scratch[i]);
}

bool ew_cuda_pack_is_copy(enum ew_cuda_layout layout, enum ew_dtype dtype)
{
    return (layout == EW_CUDA_F16 && dtype == EW_DTYPE_F16) || (layout == EW_CUDA_BF16 && dtype == EW_DTYPE_BF16);
}

void ew_cuda_pack_row(enum ew_cuda_layout layout, enum ew_dtype dtype, const uint8_t *row, uint64_t cols,
                      uint8_t *codes, uint8_t *scales, uint8_t *mins, float *scratch)
{
    if (layout == EW_CUDA_F8)
        pack_fp8(row, cols, codes, scales);
    else if (layout == EW_CUDA_I8)
        pack_small(row, cols, 32, codes, scales, NULL);
    else if (layout == EW_CUDA_U4)
        pack_small(row, cols, 16, codes, scales, NULL);
    else if (dtype == EW_DTYPE_Q4_K && layout == EW_CUDA_U4_MIN)
        pack_q4_k(row, cols, codes, scales, mins);
    else if (dtype == EW_DTYPE_Q4_ZERO && layout == EW_CUDA_U4_MIN)
        pack_q4_zero(row, cols, codes, scales, mins);
    else if (layout == EW_CUDA_U4_MIN)
        pack_small(row, cols, 16, codes, scales, mins);
    else if (ew_cuda_pack_is_copy(layout, dtype))
        memcpy(codes, row, cols * 2);
    else
        pack_plain(layout, dtype, row, cols, codes, scratch);
}
