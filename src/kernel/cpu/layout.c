#include "kernel/cpu/layout.h"

#include <string.h>

#include "base/assert.h"
#include "base/half.h"

#define X(NAME, name, code, scale, offset, unit)                                                                       \
    [EW_CPU_##NAME] = {#name, EW_CPU_CODE_##code, EW_CPU_SCALE_##scale, offset, unit},
static const struct ew_cpu_layout_info INFOS[EW_CPU_LAYOUT_COUNT] = {EW_CPU_CODED_LAYOUTS(X)};
#undef X

const struct ew_cpu_layout_info *ew_cpu_layout_info(enum ew_cpu_layout layout)
{
    return layout >= EW_CPU_I8 && layout < EW_CPU_LAYOUT_COUNT ? &INFOS[layout] : NULL;
}

const char *ew_cpu_layout_name(enum ew_cpu_layout layout)
{
    static const char *const row_names[] = {[EW_CPU_FILE] = "file",
                                            [EW_CPU_F32] = "f32",
                                            [EW_CPU_F16] = "f16",
                                            [EW_CPU_BF16] = "bf16",
                                            [EW_CPU_F16_TILES] = "f16_tiles",
                                            [EW_CPU_BF16_TILES] = "bf16_tiles",
                                            [EW_CPU_FP8] = "fp8"};

    return ew_cpu_layout_info(layout) ? INFOS[layout].name : row_names[layout];
}

uint32_t ew_cpu_code_bytes(enum ew_cpu_code code)
{
    static const uint16_t words[EW_CPU_CODE_COUNT] = {
        [EW_CPU_CODE_I8] = 8, [EW_CPU_CODE_U4] = 4, [EW_CPU_CODE_U5] = 5, [EW_CPU_CODE_U6] = 6};

    return (words[code] ? words[code] : 4) * 4u * EW_CPU_TILE_ROWS;
}

uint32_t ew_cpu_scale_bytes(enum ew_cpu_scale scale)
{
    static const uint16_t bytes[] = {
        // of a row
        [EW_CPU_SCALE_F16] = 2,      [EW_CPU_SCALE_MIN] = 4,      [EW_CPU_SCALE_K] = 4 + 8 + 4,
        [EW_CPU_SCALE_S16] = 2 + 16, [EW_CPU_SCALE_S32] = 2 + 8,  [EW_CPU_SCALE_E8M0] = 1,
        [EW_CPU_SCALE_E4M3] = 2,     [EW_CPU_SCALE_ZERO] = 2 + 1, [EW_CPU_SCALE_S16_MIN] = 4 + 16,
    };

    return (uint32_t)bytes[scale] * EW_CPU_TILE_ROWS;
}

uint32_t ew_cpu_scale_groups(enum ew_cpu_scale scale)
{
    static const uint8_t groups[] = {[EW_CPU_SCALE_K] = EW_CPU_SUPER,
                                     [EW_CPU_SCALE_S16] = EW_CPU_SUPER,
                                     [EW_CPU_SCALE_S32] = EW_CPU_SUPER,
                                     [EW_CPU_SCALE_ZERO] = 2,
                                     [EW_CPU_SCALE_S16_MIN] = EW_CPU_SUPER};

    return groups[scale] ? groups[scale] : 1;
}

uint32_t ew_cpu_scale_head(enum ew_cpu_scale scale)
{
    return scale == EW_CPU_SCALE_E4M3 ? EW_CPU_TILE_ROWS * sizeof(float) : 0;
}

enum ew_cpu_layout ew_cpu_layout_of(enum ew_dtype dtype, bool *exact)
{
    static const struct {
        uint8_t dtype, layout;
    } EXACT[] = {
        {EW_DTYPE_F32, EW_CPU_F32},         {EW_DTYPE_F16, EW_CPU_F16},         {EW_DTYPE_BF16, EW_CPU_BF16},
        {EW_DTYPE_FP8, EW_CPU_FP8},         {EW_DTYPE_Q8_0, EW_CPU_I8},         {EW_DTYPE_Q4_0, EW_CPU_U4},
        {EW_DTYPE_Q4_1, EW_CPU_U4_MIN},     {EW_DTYPE_Q4_ZERO, EW_CPU_U4_ZERO}, {EW_DTYPE_Q4_K, EW_CPU_U4_K},
        {EW_DTYPE_Q3_K, EW_CPU_U4_S16},     {EW_DTYPE_Q2_K, EW_CPU_U4_S16_MIN}, {EW_DTYPE_TQ1_0, EW_CPU_U4_S32},
        {EW_DTYPE_TQ2_0, EW_CPU_U4_S32},    {EW_DTYPE_Q5_0, EW_CPU_U5},         {EW_DTYPE_Q5_1, EW_CPU_U5_MIN},
        {EW_DTYPE_Q5_K, EW_CPU_U5_K},       {EW_DTYPE_Q6_K, EW_CPU_U6_K},       {EW_DTYPE_IQ4_NL, EW_CPU_IQ4},
        {EW_DTYPE_IQ4_XS, EW_CPU_IQ4_XS},   {EW_DTYPE_IQ1_S, EW_CPU_IQ1_S},     {EW_DTYPE_IQ1_M, EW_CPU_IQ1_M},
        {EW_DTYPE_IQ2_XXS, EW_CPU_IQ2_XXS}, {EW_DTYPE_IQ2_XS, EW_CPU_IQ2_S},    {EW_DTYPE_IQ2_S, EW_CPU_IQ2_S},
        {EW_DTYPE_IQ3_XXS, EW_CPU_IQ3_XXS}, {EW_DTYPE_IQ3_S, EW_CPU_IQ3_S},     {EW_DTYPE_MXFP4, EW_CPU_MXFP4},
        {EW_DTYPE_NVFP4, EW_CPU_NVFP4},     {EW_DTYPE_NVFP4_S, EW_CPU_NVFP4},
    };

    *exact = true;
    for (uint32_t i = 0; i < EW_COUNT_OF(EXACT); i++) {
        if (EXACT[i].dtype == dtype)
            return (enum ew_cpu_layout)EXACT[i].layout;
    }
    *exact = false;
    if (dtype == EW_DTYPE_F64)
        return EW_CPU_F32;
    return dtype == EW_DTYPE_F8_E4M3 || dtype == EW_DTYPE_F8_E5M2 ? EW_CPU_F16 : EW_CPU_I8;
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + 63) & ~(uint64_t)63;
}

uint64_t ew_cpu_matrix_shape(struct ew_cpu_matrix *matrix)
{
    static const uint8_t element[] = {[EW_CPU_F32] = 4, [EW_CPU_F16] = 2, [EW_CPU_BF16] = 2};
    const struct ew_cpu_layout_info *info = ew_cpu_layout_info(matrix->layout);
    uint64_t n_groups = matrix->cols / EW_CPU_GROUP, bytes;

    if (ew_cpu_layout_wants_bf16(matrix->layout)) {
        matrix->scale_at = matrix->tile_bytes = (n_groups + (matrix->cols % EW_CPU_GROUP != 0)) * EW_CPU_HALF_BYTES;
        return __builtin_mul_overflow(matrix->tile_bytes, (uint64_t)ew_cpu_tiles(matrix->rows), &bytes) ? 0 : bytes;
    }
    if (matrix->layout == EW_CPU_FP8) {
        matrix->scale_at = (uint64_t)matrix->cols * EW_CPU_TILE_ROWS;
        matrix->tile_bytes = matrix->scale_at + matrix->cols / EW_CPU_FP8_SPAN * EW_CPU_TILE_ROWS * sizeof(float);
        return __builtin_mul_overflow(matrix->tile_bytes, (uint64_t)ew_cpu_tiles(matrix->rows), &bytes) ? 0 : bytes;
    }
    if (!info) {
        matrix->row_bytes = matrix->layout == EW_CPU_FILE ? ew_dtype_row_bytes(matrix->dtype, matrix->cols)
                                                          : (uint64_t)element[matrix->layout] * matrix->cols;
        return __builtin_mul_overflow(matrix->row_bytes, (uint64_t)matrix->rows, &bytes) ? 0 : bytes;
    }
    matrix->scale_at = n_groups * ew_cpu_code_bytes(info->code);
    matrix->tile_bytes = matrix->scale_at +
                         round_up(ew_cpu_scale_head(info->scale) +
                                  n_groups / ew_cpu_scale_groups(info->scale) * ew_cpu_scale_bytes(info->scale));
    return __builtin_mul_overflow(matrix->tile_bytes, (uint64_t)ew_cpu_tiles(matrix->rows), &bytes) ? 0 : bytes;
}

// ---- one row out of a tile ----------------------------------------------------------------------

// Code of element e of a group, as the number that the scale multiplies, before the offset.
static int code_at(enum ew_cpu_code code, const uint8_t *group, uint32_t row, uint32_t e)
{
    uint32_t half = e / 16, word = e % 16 / 4, byte = e % 4, at = row * 4 + byte;
    uint32_t nibble = group[word * 64 + at] >> (4 * half) & 15;

    switch (code) {
    case EW_CPU_CODE_I8:
        return (int8_t)group[e / 4 * 64 + at];
    case EW_CPU_CODE_U4:
        return (int)nibble;
    case EW_CPU_CODE_U5:
        return (int)(nibble | (group[256 + at] >> (e / 4) & 1u) << 4);
    case EW_CPU_CODE_U6:
        return (int)(nibble | (group[256 + 64 * half + at] >> (2 * word) & 3u) << 4);
    default:
        return EW_CPU_TABLES[code].values[nibble];
    }
}

static float f16_at(const uint8_t *table, uint32_t row)
{
    uint16_t half;

    memcpy(&half, table + 2 * row, 2);
    return ew_f32_of_f16(half);
}

// Half of 2^(e - 127); 0 below the normal numbers, as the kernels have it.
static float half_e8m0(uint8_t e)
{
    return e < 2 ? 0 : ew_f32_of_bits((uint32_t)(e - 1) << 23);
}

static float half_e4m3(uint8_t e)
{
    return 128 * ew_f32_of_f16((uint16_t)(e << 7)); // the f16 of the same bits is 2^8 times smaller
}

static void k_scale_at(const uint8_t *record, uint32_t group, uint32_t row, float *scale, float *min)
{
    uint8_t low = record[64 + group * 16 + row],
            high = (uint8_t)(record[192 + group % 4 * 16 + row] >> (group / 4 * 4));

    *scale = f16_at(record, row) * (float)((low & 15) | (high & 3) << 4);
    *min = -f16_at(record + 32, row) * (float)(low >> 4 | (high >> 2 & 3) << 4);
}

static float f32_at(const uint8_t *p)
{
    float value;

    memcpy(&value, p, sizeof(value));
    return value;
}

// Scale and minimum of half group `half` of a row; `scales` are those of the tile.
static void scale_at(enum ew_cpu_scale kind, const uint8_t *scales, uint32_t row, uint32_t group, uint32_t half,
                     float *scale, float *min)
{
    const uint8_t *record = scales + ew_cpu_scale_head(kind) +
                            (uint64_t)(group / ew_cpu_scale_groups(kind)) * ew_cpu_scale_bytes(kind);
    uint8_t factors;

    *scale = *min = 0;
    group %= EW_CPU_SUPER;
    switch (kind) {
    case EW_CPU_SCALE_F16:
        *scale = f16_at(record, row);
        break;
    case EW_CPU_SCALE_MIN:
        *scale = f16_at(record, row), *min = f16_at(record + 32, row);
        break;
    case EW_CPU_SCALE_K:
        k_scale_at(record, group, row, scale, min);
        break;
    case EW_CPU_SCALE_S16:
        *scale = f16_at(record, row) * (int8_t)record[32 + (2 * group + half) * 16 + row];
        break;
    case EW_CPU_SCALE_S32:
        *scale = f16_at(record, row) * (int8_t)record[32 + group * 16 + row];
        break;
    case EW_CPU_SCALE_E8M0:
        *scale = half_e8m0(record[row]);
        break;
    case EW_CPU_SCALE_E4M3:
        *scale = half_e4m3(record[16 * half + row]) * f32_at(scales + 4 * row);
        break;
    case EW_CPU_SCALE_ZERO:
        *scale = f16_at(record, row), *min = -*scale * (float)record[32 + row];
        break;
    case EW_CPU_SCALE_S16_MIN:
        factors = record[64 + (2 * group + half) * 16 + row];
        *scale = f16_at(record, row) * (float)(factors & 15);
        *min = -f16_at(record + 32, row) * (float)(factors >> 4);
        break;
    }
}

static void half_tile_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out)
{
    const uint8_t *tile = matrix->data + row / EW_CPU_TILE_ROWS * matrix->tile_bytes;

    for (uint32_t i = 0; i < matrix->cols; i++) {
        uint16_t half;

        memcpy(&half, tile + ew_cpu_half_at(matrix->layout, row % EW_CPU_TILE_ROWS, i), 2);
        out[i] = matrix->layout == EW_CPU_F16_TILES ? ew_f32_of_f16(half) : ew_f32_of_bf16(half);
    }
}

static void tile_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out)
{
    const struct ew_cpu_layout_info *info = &INFOS[matrix->layout];
    const uint8_t *tile = matrix->data + row / EW_CPU_TILE_ROWS * matrix->tile_bytes;

    row %= EW_CPU_TILE_ROWS;
    for (uint32_t i = 0; i < matrix->cols / (EW_CPU_GROUP / 2); i++) {
        const uint8_t *group = tile + (uint64_t)(i / 2) * ew_cpu_code_bytes(info->code);
        float scale, min;

        scale_at(info->scale, tile + matrix->scale_at, row, i / 2, i % 2, &scale, &min);
        for (uint32_t e = 0; e < 16; e++)
            *out++ = info->unit * scale * (float)(code_at(info->code, group, row, i % 2 * 16 + e) - info->offset) + min;
    }
}

static void fp8_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out)
{
    const uint8_t *tile = matrix->data + row / EW_CPU_TILE_ROWS * matrix->tile_bytes;
    const uint8_t *scales = tile + matrix->scale_at;

    row %= EW_CPU_TILE_ROWS;
    for (uint32_t i = 0; i < matrix->cols; i++)
        out[i] = ew_f32_of_e4m3(tile[ew_cpu_fp8_at(i, row)]) *
                 f32_at(scales + 4ull * (i / EW_CPU_FP8_SPAN * EW_CPU_TILE_ROWS + row));
}

void ew_cpu_matrix_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out)
{
    static const enum ew_dtype dtypes[] = {
        [EW_CPU_F32] = EW_DTYPE_F32, [EW_CPU_F16] = EW_DTYPE_F16, [EW_CPU_BF16] = EW_DTYPE_BF16};
    enum ew_dtype dtype;

    if (ew_cpu_layout_wants_bf16(matrix->layout)) {
        half_tile_row(matrix, row, out);
        return;
    }
    if (matrix->layout == EW_CPU_FP8) {
        fp8_row(matrix, row, out);
        return;
    }
    if (ew_cpu_layout_is_tiled(matrix->layout)) {
        tile_row(matrix, row, out);
        return;
    }
    dtype = matrix->layout == EW_CPU_FILE ? matrix->dtype : dtypes[matrix->layout];
    ew_dtype_info(dtype)->decode(matrix->data + row * matrix->row_bytes, out, matrix->cols);
}
