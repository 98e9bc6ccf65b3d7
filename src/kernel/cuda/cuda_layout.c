#include "kernel/cuda/cuda_layout.h"

#include <string.h>

#include "base/assert.h"
#include "base/half.h"
#include "kernel/cpu/layout.h"

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
    [EW_CUDA_IQ4] = {"iq4", 16, 2, 0},
    [EW_CUDA_MX4] = {"mx4", 16, 2, 0},
    [EW_CUDA_NV4] = {"nv4", 16, 2, 0}, // and a factor of each row
    [EW_CUDA_IQ1] = {"iq1", 16, 2, 0},
    [EW_CUDA_IQ2] = {"iq2", 16, 2, 0},
    [EW_CUDA_IQ3_XXS] = {"iq3_xxs", 16, 2, 0},
    [EW_CUDA_IQ3_S] = {"iq3_s", 16, 2, 0},
    [EW_CUDA_IQ1_16] = {"iq1_16", 16, 4, 0},
    [EW_CUDA_IQ2_16] = {"iq2_16", 16, 4, 0},
    [EW_CUDA_U3_16] = {"u3_16", 16, 4, 0},
    [EW_CUDA_U5] = {"u5", 20, 2, 0},
    [EW_CUDA_U5_MIN] = {"u5_min", 20, 2, 2},
    [EW_CUDA_U6] = {"u6", 24, 4, 0},
};

const char *ew_cuda_layout_name(enum ew_cuda_layout layout)
{
    EW_ASSERT(layout < EW_CUDA_LAYOUT_COUNT);
    return LAYOUTS[layout].name;
}

static enum ew_cuda_layout layout_of(enum ew_dtype dtype, bool *exact)
{
    static const struct {
        uint8_t dtype, layout;
    } EXACT[] = {
        {EW_DTYPE_F16, EW_CUDA_F16},         {EW_DTYPE_BF16, EW_CUDA_BF16},      {EW_DTYPE_Q8_0, EW_CUDA_I8},
        {EW_DTYPE_Q4_0, EW_CUDA_U4},         {EW_DTYPE_Q4_1, EW_CUDA_U4_MIN},    {EW_DTYPE_Q4_K, EW_CUDA_U4_MIN},
        {EW_DTYPE_Q4_ZERO, EW_CUDA_U4_MIN},  {EW_DTYPE_TQ1_0, EW_CUDA_U4},       {EW_DTYPE_TQ2_0, EW_CUDA_U4},
        {EW_DTYPE_FP8, EW_CUDA_F8},          {EW_DTYPE_IQ4_NL, EW_CUDA_IQ4},     {EW_DTYPE_IQ4_XS, EW_CUDA_IQ4},
        {EW_DTYPE_MXFP4, EW_CUDA_MX4},       {EW_DTYPE_NVFP4, EW_CUDA_NV4},      {EW_DTYPE_NVFP4_S, EW_CUDA_NV4},
        {EW_DTYPE_IQ1_S, EW_CUDA_IQ1},       {EW_DTYPE_IQ1_M, EW_CUDA_IQ1_16},   {EW_DTYPE_IQ2_XXS, EW_CUDA_IQ2},
        {EW_DTYPE_IQ2_XS, EW_CUDA_IQ2_16},   {EW_DTYPE_IQ2_S, EW_CUDA_IQ2_16},   {EW_DTYPE_IQ3_XXS, EW_CUDA_IQ3_XXS},
        {EW_DTYPE_IQ3_S, EW_CUDA_IQ3_S},     {EW_DTYPE_Q3_K, EW_CUDA_U3_16},     {EW_DTYPE_Q5_0, EW_CUDA_U5},
        {EW_DTYPE_Q5_1, EW_CUDA_U5_MIN},     {EW_DTYPE_Q5_K, EW_CUDA_U5_MIN},    {EW_DTYPE_Q6_K, EW_CUDA_U6},
    };

    for (uint32_t i = 0; i < EW_COUNT_OF(EXACT); i++) {
        if (EXACT[i].dtype == dtype)
            return (enum ew_cuda_layout)EXACT[i].layout;
    }
    *exact = false;
    return dtype == EW_DTYPE_Q2_K ? EW_CUDA_I8 : EW_CUDA_F16;
}

const struct ew_weight_source *ew_cuda_source_of(const struct ew_program *program, uint32_t weight, bool reference)
{
    const struct ew_weight *w = &program->weights[weight];
    bool exact = true;

    if (!w->source.ordered || reference || !w->is_matrix || ew_weight_parts(w) > 1 || w->cols % EW_CUDA_GROUP ||
        !ew_cuda_layout_wants_q8(layout_of(w->source.ordered->dtype, &exact)))
        return &w->source;
    for (uint32_t i = 0; i < program->n_ops; i++) {
        if (program->ops[i].weight == weight && program->ops[i].kind != EW_OP_LINEAR)
            return &w->source;
    }
    return w->source.ordered;
}

enum ew_cuda_layout ew_cuda_layout_of(const struct ew_program *program, uint32_t index, bool reference, bool *exact)
{
    const struct ew_weight *weight = &program->weights[index];
    enum ew_dtype dtype = ew_cuda_source_of(program, index, reference)->dtype;

    *exact = true;
    if (reference || !weight->is_matrix || dtype == EW_DTYPE_F32 ||
        weight->cols % 8) // the fast kernels read 16 bytes at a time
        return EW_CUDA_F32;
    return layout_of(dtype, exact);
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
    if (layout == EW_CUDA_NV4 || layout == EW_CUDA_F8)
        return sizeof(float);
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
static void pack_fp8(const uint8_t *row, uint64_t cols, uint8_t *codes, uint8_t *scales, uint8_t *row_scale)
{
    memcpy(row_scale, row, 4);
    memset(scales, 0, ew_cuda_scale_bytes(EW_CUDA_F8, cols));
    for (uint64_t at = 0; at < cols; at += FP8_COLS, row += 4 + FP8_COLS, scales += 4) {
        memcpy(scales, row, 4);
        for (uint32_t i = 0; i < FP8_COLS; i++)
            codes[at + i] = (row[4 + i] & 0x7F) == 0x7F ? 0 : row[4 + i];
    }
}

// ---- groups -------------------------------------------------------------------------------------

// What the scale of half a group is as a number.
static float scale_of(const struct ew_cpu_layout_info *info, const struct ew_cpu_group *g, uint32_t half)
{
    float scale = info->unit * ew_f32_of_f16(g->scale);

    switch (info->scale) {
    case EW_CPU_SCALE_K:
        return scale * (float)g->small[0];
    case EW_CPU_SCALE_S16:
        return scale * (float)(int8_t)g->small[half];
    case EW_CPU_SCALE_S32:
        return scale * (float)(int8_t)g->small[0];
    default:
        return scale;
    }
}

// What is taken from the product of scale and code.
static float min_of(const struct ew_cpu_layout_info *info, const struct ew_cpu_group *g)
{
    if (info->scale == EW_CPU_SCALE_K)
        return ew_f32_of_f16(g->min) * (float)g->small_min;
    return info->scale == EW_CPU_SCALE_ZERO ? ew_f32_of_f16(g->scale) * (float)g->small[0] : -ew_f32_of_f16(g->min);
}

// Half of 2^(e - 127) in bf16.
static uint16_t bf16_of_half_e8m0(uint8_t e)
{
    return (uint16_t)(e < 2 ? 0x20u << e : (e - 1u) << 7);
}

// The place of NaN has another number in some file, which e4m3 has not: 448 stands for 480.
static uint8_t e4m3_of(uint8_t e)
{
    return e == 0x7F ? 0x7E : e;
}

static void put_u16(uint8_t *p, uint16_t value)
{
    memcpy(p, &value, sizeof(value));
}

static void put_scales(enum ew_cuda_layout layout, const struct ew_cpu_layout_info *info,
                       const struct ew_cpu_group *g, uint8_t *scales)
{
    if (layout == EW_CUDA_MX4) {
        put_u16(scales, bf16_of_half_e8m0(g->small[0]));
    } else if (layout == EW_CUDA_NV4) {
        scales[0] = e4m3_of(g->small[0]);
        scales[1] = e4m3_of(g->small[1]);
    } else {
        for (uint32_t half = 0; half < LAYOUTS[layout].scale_bytes / 2; half++)
            put_f16(scales + 2 * half, scale_of(info, g, half));
    }
}

// Nibbles of E2M1 with 0 for -0, which kernels with tables in halves cannot look up (ptx/unit.h).
static uint64_t without_minus_zero(uint64_t codes)
{
    const uint64_t signs = 0x8888888888888888u;
    uint64_t sizes = codes & ~signs, has_size = (sizes + (~signs)) & signs;

    return sizes | (codes & has_size);
}

// Elements 2 i and 2 i + 1 in a byte: eight of them at a time, since loading waits for this.
static void put_neighbours(const struct ew_cpu_group *g, bool is_e2m1, uint8_t *codes)
{
    uint64_t pairs[2];

    memcpy(pairs, g->codes, sizeof(pairs));
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t n = (is_e2m1 ? without_minus_zero(pairs[i % 2]) : pairs[i % 2]) >> (i / 2 * 4) & 0x0F0F0F0F0F0F0F0Fu;
        uint32_t four;

        n = (n | n >> 4) & 0x00FF00FF00FF00FFu;
        n = (n | n >> 8) & 0x0000FFFF0000FFFFu;
        four = (uint32_t)(n | n >> 16);
        memcpy(codes + i * 4, &four, sizeof(four));
    }
}

static void put_high_bits(const struct ew_cpu_group *g, uint32_t n_bits, uint8_t *high)
{
    memset(high, 0, 4 * n_bits);
    for (uint32_t e = 0; e < EW_CUDA_GROUP; e++) {
        uint32_t word = n_bits == 2 ? e / 16 : 0, at = n_bits == 2 ? e % 16 / 4 : e / 4;

        high[word * 4 + e % 4] |= (uint8_t)(g->high[e] << (at * n_bits));
    }
}

static void put_codes(enum ew_cuda_layout layout, const struct ew_cpu_layout_info *info, const struct ew_cpu_group *g,
                      uint64_t group, uint64_t cols, uint8_t *codes)
{
    uint32_t n_bits = layout == EW_CUDA_U6 ? 2 : layout >= EW_CUDA_U5 ? 1 : 0;

    if (layout == EW_CUDA_I8) {
        memcpy(codes + group * 32, g->codes, 32);
        return;
    }
    codes += group * 16;
    if (layout >= EW_CUDA_IQ4 && layout < EW_CUDA_U5) {
        put_neighbours(g, info->code == EW_CPU_CODE_E2M1, codes);
        return;
    }
    memcpy(codes, g->codes, 16);
    for (uint32_t i = 0; i < 16 && layout == EW_CUDA_U4; i++) // our offset is 8
        codes[i] = (uint8_t)(codes[i] + (8 - info->offset) * 0x11);
    if (n_bits)
        put_high_bits(g, n_bits, codes - group * 16 + cols / 2 + group * 4 * n_bits);
}

static void pack_groups(enum ew_cuda_layout layout, enum ew_dtype dtype, const uint8_t *row, uint64_t cols,
                        uint8_t *codes, uint8_t *scales, uint8_t *mins, float *scratch)
{
    bool exact;
    const struct ew_cpu_layout_info *info = ew_cpu_layout_info(ew_cpu_layout_of(dtype, &exact));
    struct ew_cpu_group g = {0};
    float factor;

    if (ew_cpu_group_wants_decoded(dtype))
        ew_dtype_info(dtype)->decode(row, scratch, cols);
    for (uint64_t i = 0; i < cols / EW_CUDA_GROUP; i++) {
        ew_cpu_group_unpack(dtype, row, (uint32_t)i, scratch, &g);
        put_codes(layout, info, &g, i, cols, codes);
        put_scales(layout, info, &g, scales + i * LAYOUTS[layout].scale_bytes);
        if (LAYOUTS[layout].min_bytes)
            put_f16(mins + 2 * i, min_of(info, &g));
    }
    factor = g.factor / 2; // its table is doubled
    if (layout == EW_CUDA_NV4)
        memcpy(mins, &factor, sizeof(factor));
}

// Types that have no layout of their own, in 8 bits.
static void pack_rounded(enum ew_dtype dtype, const uint8_t *row, uint64_t cols, uint8_t *codes, uint8_t *scales,
                         float *scratch)
{
    struct ew_cpu_group g;

    ew_dtype_info(dtype)->decode(row, scratch, cols);
    for (uint64_t i = 0; i < cols / EW_CUDA_GROUP; i++) {
        ew_cpu_group_round(scratch + i * EW_CUDA_GROUP, &g);
        memcpy(codes + i * EW_CUDA_GROUP, g.codes, EW_CUDA_GROUP);
        put_u16(scales + 2 * i, g.scale);
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
        pack_fp8(row, cols, codes, scales, mins);
    else if (dtype == EW_DTYPE_Q4_K && layout == EW_CUDA_U4_MIN)
        pack_q4_k(row, cols, codes, scales, mins);
    else if ((dtype == EW_DTYPE_Q8_0 || dtype == EW_DTYPE_Q4_0 || dtype == EW_DTYPE_Q4_1) && layout >= EW_CUDA_I8)
        pack_small(row, cols, layout == EW_CUDA_I8 ? 32 : 16, codes, scales, dtype == EW_DTYPE_Q4_1 ? mins : NULL);
    else if (dtype == EW_DTYPE_Q2_K && layout == EW_CUDA_I8)
        pack_rounded(dtype, row, cols, codes, scales, scratch);
    else if (ew_cuda_layout_is_quantised(layout))
        pack_groups(layout, dtype, row, cols, codes, scales, mins, scratch);
    else if (ew_cuda_pack_is_copy(layout, dtype))
        memcpy(codes, row, cols * 2);
    else
        pack_plain(layout, dtype, row, cols, codes, scratch);
}
