#include "model/quantised.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/half.h"

#define BLOCK 32 // elements of the block types that weights are read as
#define FP4_GROUP 16
#define FP8_BLOCK 128
#define ZERO_BLOCK 64
#define NVFP4_BLOCK 64

static int fail_method(struct ew_str method, const char *what, struct ew_error *err)
{
    ew_fail(err, EW_ERR_UNSUPPORTED,
            "config.json describes a checkpoint quantised by \"" EW_STR_FMT "\"%s, which edgewise does not read",
            EW_STR_ARG(method), what);
    return ew_remedy(err, EW_ERR_UNSUPPORTED,
                     "Take the original checkpoint, or one quantised by a method that "
                     "docs/quantization.md lists");
}

// The weights' description of compressed-tensors: one for all of a checkpoint.
static int read_groups(const struct ew_json *config, struct ew_quantised *out, struct ew_error *err)
{
    const struct ew_json *groups = ew_json_get(config, "config_groups");
    const struct ew_json *weights = ew_json_get(ew_json_get(groups, "group_0"), "weights");
    int64_t size = ew_json_int(ew_json_get(weights, "group_size"), 0);

    if (ew_json_get(groups, "group_1"))
        return fail_method(EW_STR("compressed-tensors"), " with several groups of layers", err);
    out->bits = (uint32_t)ew_json_int(ew_json_get(weights, "num_bits"), 8);
    out->group = size > 0 && size <= INT32_MAX ? (uint32_t)size : 0;
    out->is_symmetric = ew_json_bool(ew_json_get(weights, "symmetric"), true);
    out->is_float = ew_str_is(ew_json_str(ew_json_get(weights, "type"), "int"), "float");
    return out->is_symmetric ? 0 : fail_method(EW_STR("compressed-tensors"), " with zero points", err);
}

static int read_packed(const struct ew_json *config, struct ew_quantised *out, struct ew_error *err)
{
    bool is_awq = out->method == EW_QUANTISED_AWQ;
    struct ew_str name = is_awq ? EW_STR("awq") : EW_STR("gptq"), version;
    int64_t bits = ew_json_int(ew_json_get(config, "bits"), 4);
    int64_t size = ew_json_int(ew_json_get(config, "group_size"), 128);

    version = ew_json_str(ew_json_get(config, is_awq ? "version" : "checkpoint_format"), is_awq ? "gemm" : "gptq");
    if ((bits != 4 && (bits != 8 || is_awq)) || size < -1 || size == 0 || size > INT32_MAX)
        return fail_method(name, " in this width or with groups of this size", err);
    if (is_awq ? !ew_str_is(version, "gemm") : !ew_str_is(version, "gptq") && !ew_str_is(version, "gptq_v2"))
        return fail_method(name, " in another packing", err);
    out->bits = (uint32_t)bits;
    out->group = size > 0 ? (uint32_t)size : 0;
    out->is_symmetric = !is_awq && ew_json_bool(ew_json_get(config, "sym"), false);
    out->zero_is_less_one = !is_awq && ew_str_is(version, "gptq");
    return 0;
}

int ew_quantised_read(const struct ew_json *config, struct ew_quantised *out, struct ew_error *err)
{
    static const struct {
        const char *name;
        enum ew_quantised_method method;
    } methods[] = {
        {"awq", EW_QUANTISED_AWQ},         {"gptq", EW_QUANTISED_GPTQ},
        {"fp8", EW_QUANTISED_SCALED},      {"compressed-tensors", EW_QUANTISED_SCALED},
        {"modelopt", EW_QUANTISED_SCALED}, {"mxfp4", EW_QUANTISED_MXFP4},
    };
    const struct ew_json *quant = ew_json_get(config, "quantization_config");
    struct ew_str method = ew_json_str(ew_json_get(quant, "quant_method"), "unknown");

    *out = (struct ew_quantised){.is_symmetric = true};
    if (!quant || quant->type != EW_JSON_T_OBJECT)
        return 0;
    for (size_t i = 0; i < EW_COUNT_OF(methods); i++)
        if (ew_str_is(method, methods[i].name))
            out->method = methods[i].method;
    if (out->method == EW_QUANTISED_NOT)
        return fail_method(method, "", err);
    if (out->method == EW_QUANTISED_AWQ || out->method == EW_QUANTISED_GPTQ)
        return read_packed(quant, out, err);
    out->is_float = true;
    if (ew_str_is(ew_json_str(ew_json_get(quant, "quant_algo"), ""), "NVFP4")) // modelopt's
        out->bits = 4;
    return ew_str_is(method, "compressed-tensors") ? read_groups(quant, out, err) : 0;
}

enum ew_dtype ew_quantised_type(const struct ew_quantised *q, bool is_expert, enum ew_dtype fallback)
{
    if (q->method == EW_QUANTISED_NOT || (q->method == EW_QUANTISED_MXFP4 && !is_expert))
        return fallback;
    if (q->method == EW_QUANTISED_MXFP4)
        return EW_DTYPE_MXFP4;
    if (q->is_float)
        return q->bits == 4 ? EW_DTYPE_NVFP4_S : EW_DTYPE_FP8;
    return q->bits == 8 ? EW_DTYPE_Q8_0 : q->is_symmetric ? EW_DTYPE_Q4_0 : EW_DTYPE_Q4_ZERO;
}

const struct ew_quantised_names *ew_quantised_names(enum ew_quantised_method method)
{
    static const struct ew_quantised_names packed = {
        .codes = {".qweight"}, .scales = {".scales"}, .zeros = {".qzeros"}, .order = {".g_idx"}};
    static const struct ew_quantised_names scaled = {.codes = {".weight_packed", ".weight"},
                                                     .scales = {".weight_scale_inv", ".weight_scale"},
                                                     .zeros = {".weight_zero_point"},
                                                     .order = {".weight_g_idx"},
                                                     .multiplied = {".weight_scale_2"},
                                                     .divided = {".weight_global_scale"}};
    static const struct ew_quantised_names mxfp4 = {.codes = {"_blocks"}, .scales = {"_scales"}};

    return method == EW_QUANTISED_SCALED ? &scaled : method == EW_QUANTISED_MXFP4 ? &mxfp4 : &packed;
}

// ---- one weight ---------------------------------------------------------------------------------------------------

enum kind {
    KIND_AWQ,    // [cols, rows / 8] words, columns of rows in turns
    KIND_GPTQ,   // [cols * bits / 32, rows] words
    KIND_PACKED, // [rows, cols * bits / 32] words, offset by half the range
    KIND_INT8,   // [rows, cols]
    KIND_FP8,
    KIND_NVFP4, // [rows, cols / 2]
    KIND_MXFP4, // [n_parts, rows, cols / 32, 16]
};

struct weight {
    enum kind kind;
    enum ew_dtype scale_type;
    const unsigned char *codes, *scales, *zeros, *order;
    const uint32_t *columns; // where columns of the weight are in the tensors; NULL: in the same places
    const int16_t *codes_of_row; // where there are columns: of the row that is being read, as the tensors have them
    uint64_t cols, whole_rows, rows_per_part, first, step;
    uint32_t bits, group; // elements of a row under one scale
    uint64_t n_groups;    // of a row
    uint64_t scale_rows;  // rows under one scale, in blocks
    bool by_group;        // scales are [n_groups, rows], not [rows, n_groups]
    bool zero_is_less_one;
    float global;
};

static uint32_t word_at(const unsigned char *words, uint64_t index)
{
    uint32_t word;

    memcpy(&word, words + 4 * index, sizeof(word));
    return word;
}

// Where AWQ puts the columns 0 to 7 of a word.
static uint32_t awq_code(const unsigned char *words, uint64_t row, uint64_t words_per_row, uint64_t col)
{
    static const uint8_t places[8] = {0, 4, 1, 5, 2, 6, 3, 7};

    return word_at(words, row * words_per_row + col / 8) >> (4 * places[col % 8]) & 15;
}

static int code_in_file(const struct weight *w, uint64_t row, uint64_t col)
{
    uint32_t per_word = 32 / w->bits, shift = w->bits * (uint32_t)(col % per_word), mask = (1u << w->bits) - 1;

    switch (w->kind) {
    case KIND_AWQ:
        return (int)awq_code(w->codes, col, w->whole_rows / 8, row);
    case KIND_GPTQ:
        return (int)(word_at(w->codes, col / per_word * w->whole_rows + row) >> shift & mask);
    case KIND_PACKED:
        return (int)(word_at(w->codes, row * (w->cols / per_word) + col / per_word) >> shift & mask);
    case KIND_INT8:
        return (int8_t)w->codes[row * w->cols + col];
    default:
        return w->codes[row * w->cols + col];
    }
}

static int code_at(const struct weight *w, uint64_t row, uint64_t col)
{
    return w->columns ? w->codes_of_row[w->columns[col]] : code_in_file(w, row, col);
}

static uint64_t group_of(const struct weight *w, uint64_t col)
{
    return w->order ? word_at(w->order, col) : col / w->group;
}

static float number_at(enum ew_dtype type, const unsigned char *data, uint64_t index)
{
    const struct ew_dtype_info *info = ew_dtype_info(type);
    float value;

    info->decode(data + index * info->block_bytes, &value, 1);
    return value;
}

static float scale_at(const struct weight *w, uint64_t row, uint64_t group)
{
    uint64_t at = row / w->scale_rows;

    return number_at(w->scale_type, w->scales, w->by_group ? group * w->whole_rows + at : at * w->n_groups + group);
}

static int zero_at(const struct weight *w, uint64_t row, uint64_t group)
{
    uint32_t per_word = 32 / w->bits, mask = (1u << w->bits) - 1;

    if (w->kind == KIND_AWQ)
        return w->zeros ? (int)awq_code(w->zeros, group, w->whole_rows / 8, row) : 8;
    if (w->kind == KIND_PACKED)
        return 1 << (w->bits - 1);
    if (w->kind != KIND_GPTQ)
        return 0;
    return (int)(word_at(w->zeros, group * (w->whole_rows / per_word) + row / per_word) >>
                     (w->bits * (uint32_t)(row % per_word)) &
                 mask) +
           w->zero_is_less_one;
}

static float value_at(const struct weight *w, uint64_t row, uint64_t col)
{
    static const float e2m1[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    uint64_t group = group_of(w, col);
    float scale = scale_at(w, row, group);

    if (w->kind == KIND_FP8)
        return ew_f32_of_e4m3(w->codes[row * w->cols + col]) * scale;
    if (w->kind == KIND_NVFP4)
        return e2m1[w->codes[row * (w->cols / 2) + col / 2] >> (4 * (col % 2)) & 15] * (scale * w->global);
    return (float)(code_at(w, row, col) - zero_at(w, row, group)) * scale;
}

// The row of the tensor that stands for a row of the weight.
static uint64_t source_row(const struct weight *w, uint64_t row)
{
    return row / w->rows_per_part * w->whole_rows + w->first + row % w->rows_per_part * w->step;
}

// ---- reading as a block type --------------------------------------------------------------------------------------

static void put_half(unsigned char *out, float value)
{
    uint16_t half = ew_f16_of_f32(value);

    memcpy(out, &half, sizeof(half));
}

// Nibbles of GGUF's types: the first half of the block below, the second above.
static void put_q4(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    put_half(out, scale_at(w, row, group_of(w, col)));
    for (uint64_t i = 0; i < BLOCK / 2; i++)
        out[2 + i] = (unsigned char)(code_at(w, row, col + i) | code_at(w, row, col + i + BLOCK / 2) << 4);
}

// A code less its zero point has five bits, which q5_0 holds as they are; q4_1 would have to round the product of scale
// and zero point.
static void put_q5(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    uint64_t group = group_of(w, col);
    int offset = 16 - zero_at(w, row, group);
    uint32_t high = 0;

    put_half(out, scale_at(w, row, group));
    for (uint32_t i = 0; i < BLOCK / 2; i++) {
        uint32_t a = (uint32_t)(code_at(w, row, col + i) + offset);
        uint32_t b = (uint32_t)(code_at(w, row, col + i + BLOCK / 2) + offset);

        high |= (a >> 4 & 1) << i | (b >> 4 & 1) << (i + BLOCK / 2);
        out[6 + i] = (unsigned char)((a & 15) | (b & 15) << 4);
    }
    memcpy(out + 2, &high, sizeof(high));
}

static void put_q8(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    uint64_t group = group_of(w, col);
    int zero = zero_at(w, row, group);

    put_half(out, scale_at(w, row, group));
    for (uint64_t i = 0; i < BLOCK; i++)
        out[2 + i] = (unsigned char)(int8_t)(code_at(w, row, col + i) - zero);
}

// The file has the elements of a block in pairs, one a nibble.
static void put_mxfp4(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    uint64_t block = row * (w->cols / BLOCK) + col / BLOCK;
    const unsigned char *from = w->codes + block * (BLOCK / 2);

    out[0] = w->scales[block];
    for (uint32_t i = 0; i < BLOCK / 2; i++) {
        uint32_t low = from[i / 2] >> (4 * (i % 2)) & 15, high = from[BLOCK / 4 + i / 2] >> (4 * (i % 2)) & 15;

        out[1 + i] = (unsigned char)(low | high << 4);
    }
}

static void put_fp8(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    memcpy(out, &(float){scale_at(w, row, group_of(w, col))}, sizeof(float));
    memcpy(out + 4, w->codes + row * w->cols + col, FP8_BLOCK);
}

static void put_q4_zero(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    uint64_t group = group_of(w, col);

    put_half(out, scale_at(w, row, group));
    out[2] = (unsigned char)zero_at(w, row, group);
    for (uint64_t i = 0; i < ZERO_BLOCK / 2; i++) {
        uint64_t at = col + i / 16 * 32 + i % 16;

        out[3 + i] = (unsigned char)(code_at(w, row, at) | code_at(w, row, at + 16) << 4);
    }
}

// The file has pairs of neighbours in a byte, nvfp4 elements i and i + 8 of each 16.
static void put_nvfp4(const struct weight *w, uint64_t row, uint64_t col, unsigned char *out)
{
    const unsigned char *from = w->codes + row * (w->cols / 2) + col / 2;

    memcpy(out, &w->global, sizeof(w->global));
    for (uint64_t i = 0; i < NVFP4_BLOCK / FP4_GROUP; i++)
        out[4 + i] = w->scales[row * w->n_groups + col / FP4_GROUP + i];
    for (uint64_t i = 0; i < NVFP4_BLOCK / 2; i++) {
        uint64_t at = i / 8 * FP4_GROUP + i % 8; // element of the block
        uint32_t low = from[at / 2] >> (4 * (at % 2)) & 15, high = from[at / 2 + 4] >> (4 * (at % 2)) & 15;

        out[8 + i] = (unsigned char)(low | high << 4);
    }
}

static void put_block(const struct weight *w, enum ew_dtype type, uint64_t row, uint64_t col, unsigned char *out)
{
    if (type == EW_DTYPE_Q4_0)
        put_q4(w, row, col, out);
    else if (type == EW_DTYPE_Q5_0)
        put_q5(w, row, col, out);
    else if (type == EW_DTYPE_Q8_0)
        put_q8(w, row, col, out);
    else if (type == EW_DTYPE_MXFP4)
        put_mxfp4(w, row, col, out);
    else if (type == EW_DTYPE_FP8)
        put_fp8(w, row, col, out);
    else if (type == EW_DTYPE_Q4_ZERO)
        put_q4_zero(w, row, col, out);
    else if (type == EW_DTYPE_NVFP4_S)
        put_nvfp4(w, row, col, out);
    else if (type == EW_DTYPE_F16)
        put_half(out, value_at(w, row, col));
    else
        memcpy(out, &(float){value_at(w, row, col)}, sizeof(float));
}

static int read_rows(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                     struct ew_error *err)
{
    struct weight w = *(const struct weight *)source->ctx;
    const struct ew_dtype_info *info = ew_dtype_info(source->dtype);
    int16_t *codes = w.columns ? ew_alloc_array(w.cols, sizeof(*codes)) : NULL;
    unsigned char *out = dst;

    if (w.columns && !codes)
        return ew_fail_memory(err, w.cols * sizeof(*codes), "a row of a weight");
    w.codes_of_row = codes;
    for (uint64_t i = row; i < row + n_rows; i++) {
        for (uint64_t col = 0; w.columns && col < w.cols; col++)
            codes[col] = (int16_t)code_in_file(&w, source_row(&w, i), col);
        for (uint64_t col = 0; col < w.cols; col += info->block_elements, out += info->block_bytes)
            put_block(&w, source->dtype, source_row(&w, i), col, out);
    }
    ew_free(codes);
    return 0;
}

// ---- binding ------------------------------------------------------------------------------------------------------

static bool has_shape(const struct ew_tensor *tensor, enum ew_dtype dtype, uint64_t rows, uint64_t cols)
{
    return tensor && tensor->dtype == dtype && tensor->n_dims == 2 && tensor->shape[0] == rows &&
           tensor->shape[1] == cols;
}

static bool is_number(const struct ew_tensor *tensor)
{
    const struct ew_dtype_info *info = tensor ? ew_dtype_info(tensor->dtype) : NULL;

    return info && info->decode && info->block_elements == 1;
}

static uint64_t elements_of(const struct ew_tensor *tensor)
{
    uint64_t n = 1;

    for (uint32_t i = 0; i < tensor->n_dims; i++)
        n *= tensor->shape[i]; // the bytes of all were found not to overflow
    return n;
}

static bool divides(uint64_t a, uint64_t b)
{
    return b && a % b == 0;
}

// Scales and zero points of AWQ and GPTQ: [n_groups, rows] and [n_groups, rows * bits / 32].
static bool take_packed(const struct ew_quantised *q, const struct ew_quantised_parts *parts, struct weight *w)
{
    uint32_t per_word = 32 / q->bits;

    w->kind = q->method == EW_QUANTISED_AWQ ? KIND_AWQ : KIND_GPTQ;
    w->by_group = true;
    if (!divides(w->cols, w->group) || !divides(w->whole_rows, per_word) || !divides(w->cols, per_word))
        return false;
    if (!is_number(parts->scales) || !has_shape(parts->scales, parts->scales->dtype, w->n_groups, w->whole_rows))
        return false;
    if ((parts->zeros || w->kind == KIND_GPTQ) &&
        !has_shape(parts->zeros, EW_DTYPE_I32, w->n_groups, w->whole_rows / per_word))
        return false;
    return w->kind == KIND_AWQ ? has_shape(parts->codes, EW_DTYPE_I32, w->cols, w->whole_rows / per_word)
                               : has_shape(parts->codes, EW_DTYPE_I32, w->cols / per_word, w->whole_rows);
}

// Scales of a tensor (one), of rows, of groups within rows, or of blocks of rows and columns.
static bool take_scales(const struct ew_tensor *scales, struct weight *w)
{
    uint64_t n = elements_of(scales), per_row = scales->n_dims == 2 ? scales->shape[1] : 1;
    uint64_t n_rows = per_row ? n / per_row : 0;

    if (n == 0 || n_rows > w->whole_rows || per_row > w->cols)
        return false;
    w->n_groups = per_row;
    w->scale_rows = n_rows == w->whole_rows ? 1 : (w->whole_rows + n_rows - 1) / n_rows;
    w->group = (uint32_t)((w->cols + per_row - 1) / per_row);
    if (n_rows > 1 && w->scale_rows > 1) // blocks are square: the last of them may be cut off
        w->scale_rows = w->group = 128;
    if (per_row > 1 && n_rows < w->whole_rows)
        w->scale_rows = w->group = 128;
    return (w->whole_rows - 1) / w->scale_rows < n_rows && (w->cols - 1) / w->group < per_row;
}

static bool take_scaled(const struct ew_quantised *q, const struct ew_quantised_parts *parts, struct weight *w)
{
    const struct ew_tensor *codes = parts->codes;
    uint64_t per_word = 32 / EW_MAX(1, q->bits);

    if (!is_number(parts->scales) || parts->zeros || !take_scales(parts->scales, w))
        return false;
    if (codes->dtype == EW_DTYPE_I8)
        w->kind = KIND_INT8;
    else if (codes->dtype == EW_DTYPE_F8_E4M3)
        w->kind = KIND_FP8;
    else if (codes->dtype == EW_DTYPE_I32)
        w->kind = KIND_PACKED;
    else
        w->kind = KIND_NVFP4;
    if (w->kind == KIND_PACKED) {
        w->bits = q->bits;
        return (q->bits == 4 || q->bits == 8) && has_shape(codes, EW_DTYPE_I32, w->whole_rows, w->cols / per_word);
    }
    if (w->kind == KIND_NVFP4)
        return parts->global && elements_of(parts->global) == 1 && is_number(parts->global) && w->group == FP4_GROUP &&
               has_shape(codes, EW_DTYPE_U8, w->whole_rows, w->cols / 2);
    return has_shape(codes, codes->dtype, w->whole_rows, w->cols);
}

static bool take_mxfp4(const struct ew_quantised_parts *parts, uint32_t n_parts, struct weight *w)
{
    const struct ew_tensor *codes = parts->codes, *scales = parts->scales;

    w->kind = KIND_MXFP4;
    return codes->dtype == EW_DTYPE_U8 && codes->n_dims == 4 && codes->shape[0] == n_parts &&
           codes->shape[1] == w->whole_rows && codes->shape[2] == w->cols / BLOCK && codes->shape[3] == BLOCK / 2 &&
           divides(w->cols, BLOCK) && scales->dtype == EW_DTYPE_U8 && scales->n_dims == 3 &&
           scales->shape[0] == n_parts && scales->shape[1] == w->whole_rows && scales->shape[2] == w->cols / BLOCK;
}

// GPTQ's groups in the order of activations: checked, and left out where they lie in order after all.
static bool take_order(const struct ew_tensor *order, struct weight *w)
{
    bool in_order = true;

    if (!order)
        return true;
    if (order->dtype != EW_DTYPE_I32 || elements_of(order) != w->cols)
        return false;
    for (uint64_t col = 0; col < w->cols; col++) {
        uint32_t group = word_at(order->data, col);

        if (group >= w->n_groups)
            return false;
        in_order &= group == col / w->group;
    }
    w->order = in_order ? NULL : order->data;
    return true;
}

static enum ew_dtype type_of(const struct ew_quantised *q, const struct weight *w)
{
    bool whole_blocks = divides(w->group, BLOCK) && divides(w->cols, BLOCK);

    if (w->kind == KIND_MXFP4)
        return EW_DTYPE_MXFP4;
    if (w->order)
        return EW_DTYPE_F32;
    if (w->kind == KIND_FP8 && divides(w->cols, FP8_BLOCK) && (divides(w->group, FP8_BLOCK) || w->n_groups == 1))
        return EW_DTYPE_FP8;
    if (w->kind == KIND_NVFP4 && divides(w->cols, NVFP4_BLOCK) && w->scale_type == EW_DTYPE_F8_E4M3)
        return EW_DTYPE_NVFP4_S;
    if (!whole_blocks || w->kind == KIND_FP8 || w->kind == KIND_NVFP4)
        return EW_DTYPE_F16;
    if (w->kind == KIND_INT8)
        return EW_DTYPE_Q8_0;
    if (w->bits == 8)
        return q->is_symmetric ? EW_DTYPE_Q8_0 : EW_DTYPE_F16;
    if (q->is_symmetric)
        return EW_DTYPE_Q4_0;
    return divides(w->group, ZERO_BLOCK) && divides(w->cols, ZERO_BLOCK) ? EW_DTYPE_Q4_ZERO : EW_DTYPE_Q5_0;
}

// Columns of one group after the other, each group's in the order that they had. Groups that are not all of one size
// cannot become blocks. `filled` is zero.
static bool sort_columns(const struct weight *w, uint32_t *columns, uint32_t *filled)
{
    for (uint64_t col = 0; col < w->cols; col++) {
        uint32_t group = word_at(w->order, col);

        if (filled[group] == w->group)
            return false;
        columns[(uint64_t)group * w->group + filled[group]++] = (uint32_t)col;
    }
    return w->n_groups * w->group == w->cols;
}

// GPTQ with activation order, as a backend reads it that takes activations in that order, too.
static int bind_ordered(const struct ew_quantised *q, const struct weight *w, struct ew_arena *arena,
                        struct ew_weight_source *out, struct ew_error *err)
{
    uint32_t *columns = ew_arena_array(arena, w->n_groups * w->group, sizeof(*columns));
    uint32_t *filled = ew_arena_array(arena, w->n_groups, sizeof(*filled));
    struct ew_weight_source *ordered = ew_arena_alloc(arena, sizeof(*ordered));
    struct weight *sorted = ew_arena_alloc(arena, sizeof(*sorted));

    if (!columns || !filled || !ordered || !sorted)
        return ew_fail_memory(err, w->cols * sizeof(*columns), "the order of a weight's columns");
    if (!sort_columns(w, columns, filled))
        return 0;
    *sorted = *w;
    sorted->order = NULL;
    sorted->columns = columns;
    *ordered = (struct ew_weight_source){.dtype = type_of(q, sorted), .read = read_rows, .ctx = sorted};
    out->ordered = ordered;
    out->order = columns;
    return 0;
}

static bool take_parts(const struct ew_quantised *q, const struct ew_quantised_parts *parts, uint32_t n_parts,
                       struct weight *w)
{
    bool ok = q->method == EW_QUANTISED_MXFP4    ? take_mxfp4(parts, n_parts, w)
              : q->method == EW_QUANTISED_SCALED ? take_scaled(q, parts, w)
                                                 : take_packed(q, parts, w);

    return ok && take_order(parts->order, w);
}

int ew_quantised_bind(const struct ew_quantised *q, const struct ew_quantised_parts *parts,
                      const struct ew_quantised_want *want, struct ew_arena *arena, struct ew_weight_source *out,
                      struct ew_error *err)
{
    struct weight *w = ew_arena_alloc(arena, sizeof(*w));

    if (!w)
        return ew_fail_memory(err, sizeof(*w), "the place of a weight");
    *w = (struct weight){.codes = parts->codes->data,
                         .scales = parts->scales->data,
                         .zeros = parts->zeros ? parts->zeros->data : NULL,
                         .scale_type = parts->scales->dtype,
                         .cols = want->cols,
                         .whole_rows = want->whole_rows,
                         .rows_per_part = want->rows / want->n_parts,
                         .first = want->first,
                         .step = want->step,
                         .bits = EW_MAX(4, q->bits),
                         .group = q->group ? q->group : (uint32_t)EW_MIN(want->cols, UINT32_MAX),
                         .scale_rows = 1,
                         .zero_is_less_one = q->zero_is_less_one,
                         .global = 1};
    w->n_groups = (w->cols + w->group - 1) / w->group;
    if (!take_parts(q, parts, want->n_parts, w))
        return ew_fail(err, EW_ERR_FORMAT,
                       "the quantised tensors of %s do not fit each other, or not the [%llu, %llu] that the "
                       "configuration asks for",
                       want->name, (unsigned long long)want->whole_rows, (unsigned long long)want->cols);
    if (parts->global)
        w->global = number_at(parts->global->dtype, parts->global->data, 0);
    if (parts->divides)
        w->global = 1 / w->global;
    *out = (struct ew_weight_source){.dtype = type_of(q, w), .read = read_rows, .ctx = w};
    return w->order ? bind_ordered(q, w, arena, out, err) : 0;
}
