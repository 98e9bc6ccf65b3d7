// Rows as files have them into tiles. The encodings are those of the GGUF specification and of the type
// definitions of the ggml project; format/quant_*.c decodes the same ones and is what the tests compare with.

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/half.h"
#include "kernel/cpu/layout.h"

static uint16_t u16_at(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32_at(const uint8_t *p)
{
    return u16_at(p) | (uint32_t)u16_at(p + 2) << 16;
}

// ---- unpacking: one function a family of types --------------------------------------------------

static void unpack_q8_0(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 34ull * group;
    out->scale = u16_at(row);
    memcpy(out->codes, row + 2, 32);
}

static void unpack_high_bits(uint32_t bits, struct ew_cpu_group *out)
{
    for (uint32_t i = 0; i < 32; i++)
        out->high[i] = bits >> i & 1;
}

static void unpack_q4_0(const uint8_t *row, uint32_t group, struct ew_cpu_group *out) // iq4_nl too
{
    row += 18ull * group;
    out->scale = u16_at(row);
    memcpy(out->codes, row + 2, 16);
}

static void unpack_q4_1(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 20ull * group;
    out->scale = u16_at(row);
    out->min = u16_at(row + 2);
    memcpy(out->codes, row + 4, 16);
}

static void unpack_q5_0(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 22ull * group;
    out->scale = u16_at(row);
    unpack_high_bits(u32_at(row + 2), out);
    memcpy(out->codes, row + 6, 16);
}

static void unpack_q5_1(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 24ull * group;
    out->scale = u16_at(row);
    out->min = u16_at(row + 2);
    unpack_high_bits(u32_at(row + 4), out);
    memcpy(out->codes, row + 8, 16);
}

// 32 nibbles in the low or high halves of neighbouring bytes, to elements i and i + 16 of byte i.
static void pair_nibbles(const uint8_t *bytes, uint32_t shift, uint8_t *codes)
{
    for (uint32_t i = 0; i < 16; i++)
        codes[i] = (uint8_t)((bytes[i] >> shift & 15) | (bytes[i + 16] >> shift & 15) << 4);
}

static void unpack_k_scales(const uint8_t *block, uint32_t sub, struct ew_cpu_group *out)
{
    const uint8_t *scales = block + 4;

    out->scale = u16_at(block);
    out->min = u16_at(block + 2);
    if (sub < 4) {
        out->small[0] = scales[sub] & 63;
        out->small_min = scales[sub + 4] & 63;
    } else {
        out->small[0] = (uint8_t)((scales[sub + 4] & 15) | (scales[sub - 4] >> 6) << 4);
        out->small_min = (uint8_t)(scales[sub + 4] >> 4 | (scales[sub] >> 6) << 4);
    }
}

static void unpack_q4_k(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t sub = group % 8;

    row += 144ull * (group / 8);
    unpack_k_scales(row, sub, out);
    pair_nibbles(row + 16 + sub / 2 * 32, sub % 2 * 4, out->codes);
}

static void unpack_q5_k(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t sub = group % 8;

    row += 176ull * (group / 8);
    unpack_k_scales(row, sub, out);
    pair_nibbles(row + 48 + sub / 2 * 32, sub % 2 * 4, out->codes);
    for (uint32_t i = 0; i < 32; i++)
        out->high[i] = row[16 + i] >> sub & 1;
}

static void unpack_q6_k(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t half = group % 8 / 4, quarter = group % 4;

    row += 210ull * (group / 8);
    out->scale = u16_at(row + 208);
    memcpy(out->small, row + 192 + group % 8 * 2, 2);
    pair_nibbles(row + half * 64 + quarter % 2 * 32, quarter / 2 * 4, out->codes);
    for (uint32_t i = 0; i < 32; i++)
        out->high[i] = row[128 + half * 32 + i] >> (quarter * 2) & 3;
}

static void unpack_iq4_xs(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t sub = group % 8;

    row += 136ull * (group / 8);
    out->scale = u16_at(row);
    out->small[0] = (uint8_t)(((row[4 + sub / 2] >> (sub % 2 * 4) & 15) | (u16_at(row + 2) >> (2 * sub) & 3) << 4) -
                              32);
    memcpy(out->codes, row + 8 + 16 * sub, 16);
}

static void unpack_mxfp4(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 17ull * group;
    out->small[0] = row[0];
    memcpy(out->codes, row + 1, 16);
}

// Two of the four sub-blocks of 16. A scale of 0x7F (NaN) counts as zero, bit 7 is ignored.
static void unpack_nvfp4(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    const uint64_t low = 0x0F0F0F0F0F0F0F0Fu;
    uint64_t subs[2], pairs[2];

    row += 36ull * (group / 2);
    out->factor = 1;
    for (uint32_t half = 0; half < 2; half++) {
        uint8_t scale = row[group % 2 * 2 + half];

        out->small[half] = scale == 0x7F ? 0 : scale & 0x7F;
    }
    memcpy(subs, row + 4 + group % 2 * 16, sizeof(subs)); // byte i of a sub-block holds its elements i and i + 8
    pairs[0] = (subs[0] & low) | (subs[1] & low) << 4;
    pairs[1] = (subs[0] >> 4 & low) | (subs[1] & ~low);
    memcpy(out->codes, pairs, sizeof(pairs));
}

static void unpack_nvfp4_s(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 40ull * (group / 2);
    unpack_nvfp4(row + 4, group % 2, out);
    memcpy(&out->factor, row, sizeof(out->factor));
}

static void unpack_q4_zero(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 35ull * (group / 2);
    out->scale = u16_at(row);
    out->small[0] = row[2];
    memcpy(out->codes, row + 3 + group % 2 * 16, 16);
}

// Rounded to 8 bits: the step is that by which the four bits of the largest numbers fill the upper ones of seven, so
// that whatever is no smaller than an eighth of the largest is exact, and the rest off by half a step, 1/128 of it at
// most.
static void unpack_fp8(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    const uint8_t *codes;
    int exponent = 1;
    float scale;

    row += (4ull + EW_CPU_FP8_SPAN) * (group * EW_CPU_GROUP / EW_CPU_FP8_SPAN);
    codes = row + 4 + group * EW_CPU_GROUP % EW_CPU_FP8_SPAN;
    memcpy(&scale, row, sizeof(scale));
    for (uint32_t i = 0; i < EW_CPU_GROUP; i++)
        exponent = (codes[i] & 0x7F) == 0x7F ? exponent : EW_MAX(exponent, codes[i] >> 3 & 15);
    for (uint32_t i = 0; i < EW_CPU_GROUP; i++) {
        bool is_nan = (codes[i] & 0x7F) == 0x7F; // counts as zero

        out->codes[i] = (uint8_t)(is_nan ? 0 : lrintf(ldexpf(ew_f32_of_e4m3(codes[i]), 13 - exponent)));
    }
    out->scale = ew_f16_of_f32(ldexpf(scale, exponent - 13));
}

// Two bits each of 32 elements, which four groups share a byte for, and maybe a third.
static void pair_crumbs(const uint8_t *bytes, uint32_t group, const uint8_t *high, struct ew_cpu_group *out)
{
    uint8_t codes[32];

    for (uint32_t i = 0; i < 32; i++) {
        codes[i] = bytes[group / 4 * 32 + i] >> (group % 4 * 2) & 3;
        if (high && high[i] >> group & 1)
            codes[i] |= 4;
    }
    for (uint32_t i = 0; i < 16; i++)
        out->codes[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
}

static void unpack_q2_k(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 84ull * (group / 8);
    group %= 8;
    out->scale = u16_at(row + 80);
    out->min = u16_at(row + 82);
    memcpy(out->small, row + 2 * group, 2);
    pair_crumbs(row + 16, group, NULL, out);
}

static void unpack_q3_k(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 110ull * (group / 8);
    group %= 8;
    out->scale = u16_at(row + 108);
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t i = 2 * group + half;
        int low = row[96 + i % 8] >> (i / 8 * 4) & 15, high = row[104 + i % 4] >> (i / 4 * 2) & 3;

        out->small[half] = (uint8_t)((low | high << 4) - 32);
    }
    pair_crumbs(row + 32, group, row, out);
}

static void unpack_tq2_0(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    row += 66ull * (group / 8);
    out->scale = u16_at(row + 64);
    out->small[0] = 1;
    pair_crumbs(row, group % 8, NULL, out);
}

// ---- scales of types whose codes are read off what the reference codec decodes -----------------

static void put_odd(struct ew_cpu_group *out, uint32_t first, uint32_t second)
{
    out->small[0] = (uint8_t)(2 * first + 1);
    out->small[1] = (uint8_t)(2 * second + 1);
}

static void scales_tq1_0(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    out->scale = u16_at(row + 54ull * (group / 8) + 52);
    put_odd(out, 0, 0);
}

static void scales_iq1_s(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t scale = row[50ull * (group / 8) + 35 + group % 8 * 2] >> 4 & 7;

    out->scale = u16_at(row + 50ull * (group / 8));
    put_odd(out, scale, scale);
}

static void scales_iq1_m(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    const uint8_t *scales = row + 56ull * (group / 8) + 48;
    uint32_t both = u16_at(scales + group % 8 / 2 * 2) >> (group % 2 * 6);

    out->scale = (uint16_t)(scales[1] >> 4 | (scales[3] & 0xF0) | (scales[5] & 0xF0) << 4 | (scales[7] & 0xF0) << 8);
    put_odd(out, both & 7, both >> 3 & 7);
}

static void scales_iq2_xxs(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t scale = row[66ull * (group / 8) + 2 + group % 8 * 8 + 7] >> 4;

    out->scale = u16_at(row + 66ull * (group / 8));
    put_odd(out, scale, scale);
}

static void scales_iq2_xs(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint8_t both = row[74ull * (group / 8) + 66 + group % 8];

    out->scale = u16_at(row + 74ull * (group / 8));
    put_odd(out, both & 15, both >> 4);
}

static void scales_iq2_s(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint8_t both = row[82ull * (group / 8) + 74 + group % 8];

    out->scale = u16_at(row + 82ull * (group / 8));
    put_odd(out, both & 15, both >> 4);
}

static void scales_iq3_xxs(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t scale = row[98ull * (group / 8) + 66 + group % 8 * 4 + 3] >> 4;

    out->scale = u16_at(row + 98ull * (group / 8));
    put_odd(out, scale, scale);
}

static void scales_iq3_s(const uint8_t *row, uint32_t group, struct ew_cpu_group *out)
{
    uint32_t scale = row[110ull * (group / 8) + 106 + group % 8 / 2] >> (group % 2 * 4) & 15;

    out->scale = u16_at(row + 110ull * (group / 8));
    put_odd(out, scale, scale);
}

static const struct packer {
    void (*unpack)(const uint8_t *row, uint32_t group, struct ew_cpu_group *out);
    bool without_codes; // these come from the decoded row
} PACKERS[EW_DTYPE_COUNT] = {
    [EW_DTYPE_Q8_0] = {unpack_q8_0, false},       [EW_DTYPE_Q4_0] = {unpack_q4_0, false},
    [EW_DTYPE_IQ4_NL] = {unpack_q4_0, false},     [EW_DTYPE_Q4_1] = {unpack_q4_1, false},
    [EW_DTYPE_Q5_0] = {unpack_q5_0, false},       [EW_DTYPE_Q5_1] = {unpack_q5_1, false},
    [EW_DTYPE_Q2_K] = {unpack_q2_k, false},       [EW_DTYPE_Q3_K] = {unpack_q3_k, false},
    [EW_DTYPE_Q4_K] = {unpack_q4_k, false},       [EW_DTYPE_Q5_K] = {unpack_q5_k, false},
    [EW_DTYPE_Q6_K] = {unpack_q6_k, false},       [EW_DTYPE_IQ4_XS] = {unpack_iq4_xs, false},
    [EW_DTYPE_MXFP4] = {unpack_mxfp4, false},     [EW_DTYPE_NVFP4] = {unpack_nvfp4, false},
    [EW_DTYPE_NVFP4_S] = {unpack_nvfp4_s, false}, [EW_DTYPE_FP8] = {unpack_fp8, false},
    [EW_DTYPE_Q4_ZERO] = {unpack_q4_zero, false}, [EW_DTYPE_TQ2_0] = {unpack_tq2_0, false},
    [EW_DTYPE_TQ1_0] = {scales_tq1_0, true},      [EW_DTYPE_IQ1_S] = {scales_iq1_s, true},
    [EW_DTYPE_IQ1_M] = {scales_iq1_m, true},      [EW_DTYPE_IQ2_XXS] = {scales_iq2_xxs, true},
    [EW_DTYPE_IQ2_XS] = {scales_iq2_xs, true},    [EW_DTYPE_IQ2_S] = {scales_iq2_s, true},
    [EW_DTYPE_IQ3_XXS] = {scales_iq3_xxs, true},  [EW_DTYPE_IQ3_S] = {scales_iq3_s, true},
};

// The code of each whole number from -128.
static void fill_inverse(const struct ew_cpu_layout_info *info, uint8_t *code_of)
{
    const int8_t *values = EW_CPU_TABLES[info->code].values;

    memset(code_of, 0, 256);
    for (uint32_t code = 16; code-- > 0;) {
        int value = info->code >= EW_CPU_CODE_IQ4 ? values[code] : (int)code - info->offset;

        code_of[value + 128] = (uint8_t)code;
    }
}

// The nearest whole number, to even, of one below 2^22, and no more than 127: 1.5 * 2^23 brings it to the lowest bits.
// Loops with it take several at a time, since no comparison is of floats, where a NaN could be.
static inline int32_t rounded(float x)
{
    uint32_t bits;
    int32_t n;

    x += 0x1.8p23f;
    memcpy(&bits, &x, sizeof(bits));
    n = (int32_t)(bits - 0x4B400000u);
    n = n < 127 ? n : 127;
    return n > -127 ? n : -127;
}

// Nibbles of 32 decoded elements, which are whole multiples of unit * scale * small. Where that is no number, neither
// are they, and codes do not matter.
static void find_codes(const struct ew_cpu_layout_info *info, const uint8_t *code_of, const float *in,
                       struct ew_cpu_group *out)
{
    int32_t at[32];

    for (uint32_t half = 0; half < 2; half++) {
        float inverse = 1 / (info->unit * ew_f32_of_f16(out->scale) * (float)(int8_t)out->small[half]);

        for (uint32_t i = 0; i < 16; i++)
            at[16 * half + i] = rounded(in[16 * half + i] * inverse) + 128;
    }
    for (uint32_t i = 0; i < 16; i++)
        out->codes[i] = (uint8_t)(code_of[at[i]] | code_of[at[i + 16]] << 4);
}

bool ew_cpu_group_wants_decoded(enum ew_dtype dtype)
{
    return PACKERS[dtype].without_codes;
}

void ew_cpu_group_unpack(enum ew_dtype dtype, const uint8_t *row, uint32_t group, const float *decoded,
                         struct ew_cpu_group *out)
{
    bool exact;
    const struct ew_cpu_layout_info *info = ew_cpu_layout_info(ew_cpu_layout_of(dtype, &exact));
    uint8_t code_of[256];

    EW_ASSERT(PACKERS[dtype].unpack && exact);
    PACKERS[dtype].unpack(row, group, out);
    if (!PACKERS[dtype].without_codes)
        return;
    fill_inverse(info, code_of);
    find_codes(info, code_of, decoded + (uint64_t)group * EW_CPU_GROUP, out);
}

void ew_cpu_group_round(const float *in, struct ew_cpu_group *out)
{
    const int32_t infinity = 0x7F800000;
    float numbers[32], max, inverse;
    int32_t most = 0;

    for (uint32_t i = 0; i < 32; i++) {
        int32_t bits, size;

        memcpy(&bits, &in[i], sizeof(bits));
        size = bits & 0x7FFFFFFF;
        bits = size < infinity ? bits : 0;
        size = size > infinity ? 0 : size; // a NaN counts as zero
        most = size > most ? size : most;
        memcpy(&numbers[i], &bits, sizeof(bits));
    }
    memcpy(&max, &most, sizeof(max));
    out->scale = ew_f16_of_f32(max / 127);
    inverse = ew_f32_of_f16(out->scale) > 0 && most < infinity ? 1 / ew_f32_of_f16(out->scale) : 0;
    for (uint32_t i = 0; i < 32; i++)
        out->codes[i] = (uint8_t)rounded(numbers[i] * inverse);
}

// ---- packing ------------------------------------------------------------------------------------

static void put_codes(enum ew_cpu_code code, const struct ew_cpu_group *in, uint32_t row, uint8_t *group)
{
    uint32_t n_words = code == EW_CPU_CODE_I8 ? 8 : 4;
    uint8_t *high = group + 256 + row * 4;

    for (uint32_t word = 0; word < n_words; word++)
        memcpy(group + word * 64 + row * 4, in->codes + word * 4, 4);
    if (code != EW_CPU_CODE_U5 && code != EW_CPU_CODE_U6)
        return;
    for (uint32_t e = 0; e < 32; e++) {
        if (code == EW_CPU_CODE_U5)
            high[e % 4] |= (uint8_t)(in->high[e] << (e / 4));
        else
            high[e / 16 * 64 + e % 4] |= (uint8_t)(in->high[e] << (e % 16 / 4 * 2));
    }
}

static void put_scales(enum ew_cpu_scale kind, const struct ew_cpu_group *in, uint32_t row, uint32_t sub,
                       uint8_t *record)
{
    switch (kind) {
    case EW_CPU_SCALE_MIN:
        memcpy(record + 32 + 2 * row, &in->min, 2);
        memcpy(record + 2 * row, &in->scale, 2);
        break;
    case EW_CPU_SCALE_F16:
        memcpy(record + 2 * row, &in->scale, 2);
        break;
    case EW_CPU_SCALE_K:
        memcpy(record + 2 * row, &in->scale, 2);
        memcpy(record + 32 + 2 * row, &in->min, 2);
        record[64 + sub * 16 + row] = (uint8_t)((in->small[0] & 15) | (in->small_min & 15) << 4);
        record[192 + sub % 4 * 16 + row] |= (uint8_t)((in->small[0] >> 4 | in->small_min >> 4 << 2) << (sub / 4 * 4));
        break;
    case EW_CPU_SCALE_S16:
        memcpy(record + 2 * row, &in->scale, 2);
        record[32 + 2 * sub * 16 + row] = in->small[0];
        record[32 + (2 * sub + 1) * 16 + row] = in->small[1];
        break;
    case EW_CPU_SCALE_S32:
        memcpy(record + 2 * row, &in->scale, 2);
        record[32 + sub * 16 + row] = in->small[0];
        break;
    case EW_CPU_SCALE_E8M0:
        record[row] = in->small[0];
        break;
    case EW_CPU_SCALE_E4M3:
        record[row] = in->small[0];
        record[16 + row] = in->small[1];
        break;
    case EW_CPU_SCALE_ZERO:
        memcpy(record + 2 * row, &in->scale, 2);
        record[32 + row] = in->small[0];
        break;
    case EW_CPU_SCALE_S16_MIN:
        memcpy(record + 2 * row, &in->scale, 2);
        memcpy(record + 32 + 2 * row, &in->min, 2);
        record[64 + 2 * sub * 16 + row] = in->small[0];
        record[64 + (2 * sub + 1) * 16 + row] = in->small[1];
        break;
    }
}

// A row of a row layout that the file has in another type.
static void convert_row(const struct ew_cpu_matrix *matrix, const float *in, uint8_t *dst)
{
    uint16_t half;

    if (matrix->layout == EW_CPU_F32) {
        memcpy(dst, in, matrix->row_bytes);
        return;
    }
    EW_ASSERT(matrix->layout == EW_CPU_F16);
    for (uint32_t i = 0; i < matrix->cols; i++) {
        half = ew_f16_of_f32(in[i]);
        memcpy(dst + 2ull * i, &half, 2);
    }
}

static void pack_tile_row(const struct ew_cpu_matrix *matrix, enum ew_dtype dtype, const uint8_t *src, uint32_t row,
                          uint8_t *dst, float *scratch)
{
    const struct ew_cpu_layout_info *info = ew_cpu_layout_info(matrix->layout);
    const struct packer *packer = &PACKERS[dtype];
    uint32_t code_bytes = ew_cpu_code_bytes(info->code), scale_bytes = ew_cpu_scale_bytes(info->scale),
             span = ew_cpu_scale_groups(info->scale), head = ew_cpu_scale_head(info->scale);
    uint8_t *scales = dst + matrix->scale_at, code_of[256];

    if (!packer->unpack || packer->without_codes)
        ew_dtype_info(dtype)->decode(src, scratch, matrix->cols);
    if (packer->without_codes)
        fill_inverse(info, code_of);
    for (uint32_t g = 0; g < matrix->cols / EW_CPU_GROUP; g++) {
        struct ew_cpu_group group;

        if (packer->unpack)
            packer->unpack(src, g, &group);
        else
            ew_cpu_group_round(scratch + (uint64_t)g * EW_CPU_GROUP, &group);
        if (packer->without_codes)
            find_codes(info, code_of, scratch + (uint64_t)g * EW_CPU_GROUP, &group);
        put_codes(info->code, &group, row, dst + (uint64_t)g * code_bytes);
        put_scales(info->scale, &group, row, g % EW_CPU_SUPER, scales + head + (uint64_t)(g / span) * scale_bytes);
        if (head)
            memcpy(scales + 4 * row, &group.factor, sizeof(group.factor));
    }
}

// How many powers of two codes can be moved up before the largest of them leaves the type; NaN counts as zero, as in
// the type.
static uint32_t fp8_room(const uint8_t *codes)
{
    uint32_t largest = 0;

    for (uint32_t i = 0; i < EW_CPU_FP8_SPAN; i++) {
        uint32_t code = codes[i] & 0x7F;

        largest = code == 0x7F ? largest : EW_MAX(largest, code);
    }
    if (largest < 8) // subnormal, or nothing at all
        return largest ? 14 + (largest < 4) + (largest < 2) + 1 : 0;
    return 15 - largest / 8 - (largest % 8 == 7); // 15 with 7 is NaN
}

// The code that stands for 2^up times as much.
static uint8_t fp8_moved(uint8_t code, uint32_t up)
{
    uint32_t exponent = code >> 3 & 15, fraction = code & 7;

    if ((code & 0x7F) == 0x7F)
        return 0;
    if (exponent)
        return (uint8_t)(code + 8 * up);
    for (; exponent == 0 && up > 0; up--) {
        fraction *= 2;
        exponent = fraction / 8;
        fraction %= 8;
    }
    return (uint8_t)((code & 0x80) | (exponent ? exponent + up : 0) << 3 | fraction);
}

// Codes of a span go up as far as they can, and its scale as far down: exactly the same numbers, but none is small
// beside what the type holds because of its scale alone, which kernels that round to a part of that count on.
static void pack_fp8_row(const struct ew_cpu_matrix *matrix, const uint8_t *src, uint32_t row, uint8_t *tile)
{
    for (uint32_t span = 0; span < matrix->cols / EW_CPU_FP8_SPAN; span++, src += 4 + EW_CPU_FP8_SPAN) {
        uint8_t *codes = tile + (uint64_t)span * EW_CPU_FP8_SPAN * EW_CPU_TILE_ROWS;
        uint32_t up = fp8_room(src + 4);
        float scale, less;

        memcpy(&scale, src, sizeof(scale));
        less = ldexpf(scale, -(int)up);
        if (!isnormal(less))
            less = scale, up = 0;
        memcpy(tile + matrix->scale_at + 4ull * (span * EW_CPU_TILE_ROWS + row), &less, sizeof(less));
        for (uint32_t i = 0; i < EW_CPU_FP8_SPAN; i++)
            codes[ew_cpu_fp8_at(i, row)] = fp8_moved(src[4 + i], up);
    }
}

static void pack_half_row(const struct ew_cpu_matrix *matrix, enum ew_dtype dtype, const uint8_t *src, uint32_t row,
                          uint8_t *tile, float *scratch)
{
    bool is_f16 = matrix->layout == EW_CPU_F16_TILES, is_same = dtype == (is_f16 ? EW_DTYPE_F16 : EW_DTYPE_BF16);

    if (!is_same)
        ew_dtype_info(dtype)->decode(src, scratch, matrix->cols);
    for (uint32_t i = 0; i < matrix->cols; i++) {
        uint16_t half;

        if (is_same)
            memcpy(&half, src + 2ull * i, 2);
        else
            half = is_f16 ? ew_f16_of_f32(scratch[i]) : ew_bf16_of_f32(scratch[i]);
        memcpy(tile + ew_cpu_half_at(matrix->layout, row, i), &half, 2);
    }
}

void ew_cpu_tile_pack(const struct ew_cpu_matrix *matrix, uint32_t tile, enum ew_dtype dtype, const uint8_t *rows,
                      uint32_t n_rows, uint8_t *dst, float *scratch)
{
    uint64_t src_bytes = ew_dtype_row_bytes(dtype, matrix->cols);

    if (ew_cpu_layout_is_tiled(matrix->layout)) {
        dst += tile * matrix->tile_bytes;
        memset(dst, 0, matrix->tile_bytes);
    } else {
        dst += tile * EW_CPU_TILE_ROWS * matrix->row_bytes;
    }
    for (uint32_t row = 0; row < n_rows; row++, rows += src_bytes) {
        if (ew_cpu_layout_wants_bf16(matrix->layout)) {
            pack_half_row(matrix, dtype, rows, row, dst, scratch);
        } else if (matrix->layout == EW_CPU_FP8) {
            pack_fp8_row(matrix, rows, row, dst);
        } else if (ew_cpu_layout_is_tiled(matrix->layout)) {
            pack_tile_row(matrix, dtype, rows, row, dst, scratch);
        } else if (src_bytes == matrix->row_bytes &&
                   (dtype == EW_DTYPE_F32 || dtype == EW_DTYPE_F16 || dtype == EW_DTYPE_BF16)) {
            memcpy(dst + row * matrix->row_bytes, rows, src_bytes);
        } else {
            ew_dtype_info(dtype)->decode(rows, scratch, matrix->cols);
            convert_row(matrix, scratch, dst + row * matrix->row_bytes);
        }
    }
}
