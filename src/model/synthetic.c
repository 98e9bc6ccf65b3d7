#include "model/synthetic.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "base/half.h"
#include "base/rng.h"

static const struct {
    const char *name;
    uint32_t n_layers, width, ffn_width, n_heads, n_kv_heads, head_dim, n_vocab;
    uint32_t n_experts, n_active; // experts are ffn_width wide
    // Three of four layers have a state.
    uint32_t state_heads, state_groups, state_k_dim, state_v_dim;
    enum ew_state_rule state_rule;
    uint32_t kv_latent, shared_width;
} g_shapes[] = {
    {"8b", 32, 4096, 14336, 32, 8, 128, 128256},
    {"4b", 36, 2560, 9728, 32, 8, 128, 151936},
    {"1.1b", 22, 2048, 5632, 32, 4, 64, 32000},
    {"0.6b", 24, 896, 4864, 14, 2, 64, 151936},
    {"tiny", 2, 512, 1280, 8, 2, 64, 1000}, // tests of types: super-blocks divide its rows, kernels' runs do not
    {"30b-a3b", 48, 2048, 768, 32, 4, 128, 151936, 128, 8},
    {"16b-a2.4b", 27, 2048, 1408, 16, 16, 192, 102400, 64, 6, .kv_latent = 512, .shared_width = 2816},
    {"2b-latent", 24, 2048, 6144, 16, 16, 192, 102400, .kv_latent = 512},
    {"2b-delta", 24, 2048, 6144, 8, 2, 256, 151936, 0, 0, 16, 16, 128, 128, EW_STATE_DELTA},
    {"2b-ssd", 24, 2048, 6144, 8, 2, 256, 151936, 0, 0, 64, 8, 128, 64, EW_STATE_SSD},
};

#define EMBED_SUFFIX "-embed" // of a shape: it makes vectors instead of text
#define CONTEXT_TRAINED 131072 // no limit for any benchmark

// `matrix` is the type of most matrices, `better` of those that the usual mix keeps finer. Types that have scales of
// their own for runs of rows and columns: how long these are, 0 for all.
struct ew_synthetic_type {
    const char *name;
    enum ew_dtype matrix, better;
    uint32_t scale_rows, scale_cols;
    bool is_ordered; // groups are no runs of columns: GPTQ with activation order
};

#define PURE(name, dtype) {name, dtype, dtype, 0, 0, false}

static const struct ew_synthetic_type g_types[] = {
    PURE("f16", EW_DTYPE_F16),
    PURE("bf16", EW_DTYPE_BF16),
    PURE("q8_0", EW_DTYPE_Q8_0),
    PURE("q4_0", EW_DTYPE_Q4_0),
    PURE("q4_1", EW_DTYPE_Q4_1),
    PURE("q5_0", EW_DTYPE_Q5_0),
    PURE("q5_1", EW_DTYPE_Q5_1),
    PURE("q2_k", EW_DTYPE_Q2_K),
    PURE("q3_k", EW_DTYPE_Q3_K),
    PURE("q4_k", EW_DTYPE_Q4_K),
    {"q4_k_m", EW_DTYPE_Q4_K, EW_DTYPE_Q6_K, 0, 0, false},
    PURE("q5_k", EW_DTYPE_Q5_K),
    PURE("q6_k", EW_DTYPE_Q6_K),
    PURE("iq1_s", EW_DTYPE_IQ1_S),
    PURE("iq1_m", EW_DTYPE_IQ1_M),
    PURE("iq2_xxs", EW_DTYPE_IQ2_XXS),
    PURE("iq2_xs", EW_DTYPE_IQ2_XS),
    PURE("iq2_s", EW_DTYPE_IQ2_S),
    PURE("iq3_xxs", EW_DTYPE_IQ3_XXS),
    PURE("iq3_s", EW_DTYPE_IQ3_S),
    PURE("iq4_nl", EW_DTYPE_IQ4_NL),
    PURE("iq4_xs", EW_DTYPE_IQ4_XS),
    PURE("tq1_0", EW_DTYPE_TQ1_0),
    PURE("tq2_0", EW_DTYPE_TQ2_0),
    PURE("mxfp4", EW_DTYPE_MXFP4),
    // As checkpoints of hubs have them: scales of 128 x 128 elements, of rows, of the whole tensor.
    {"fp8", EW_DTYPE_FP8, EW_DTYPE_FP8, 128, 128, false},
    {"fp8_channel", EW_DTYPE_FP8, EW_DTYPE_FP8, 1, 0, false},
    {"fp8_tensor", EW_DTYPE_FP8, EW_DTYPE_FP8, 0, 0, false},
    PURE("nvfp4", EW_DTYPE_NVFP4_S),
    {"awq", EW_DTYPE_Q4_ZERO, EW_DTYPE_Q4_ZERO, 1, 128, false},
    {"gptq", EW_DTYPE_Q4_0, EW_DTYPE_Q4_0, 1, 128, false},
    {"gptq_act", EW_DTYPE_Q4_0, EW_DTYPE_Q4_0, 1, 128, true},
};

// SplitMix64 (Steele, Lea and Flood, 2014): the k-th number of a stream is a function of k alone.
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

#define GOLDEN 0x9E3779B97F4A7C15u // SplitMix64's increment

static void random_bytes(uint64_t state, unsigned char *out, size_t n)
{
    uint64_t word;

    for (; n >= 8; n -= 8, out += 8) {
        word = mix(state += GOLDEN);
        memcpy(out, &word, 8);
    }
    if (n) {
        word = mix(state += GOLDEN);
        memcpy(out, &word, n);
    }
}

// 16-bit floats of random sign and mantissa, with exponents of four neighbouring octaves: magnitudes from 2^low to
// 2^(low + 4).
static void random_halves(uint64_t state, unsigned char *out, uint64_t n, uint32_t mantissa_bits, uint32_t exponent)
{
    uint64_t lanes = 0x0001000100010001u, keep = lanes * (0x8000u | ((1u << (mantissa_bits + 2)) - 1)),
             add = lanes * (exponent << mantissa_bits);

    for (uint64_t i = 0; i < n; i += 4) {
        uint64_t word = (mix(state += GOLDEN) & keep) + add;

        memcpy(out + 2 * i, &word, 2 * (size_t)EW_MIN(n - i, 4u));
    }
}

// How a block keeps its scales.
enum scale_form {
    SCALE_F16,
    SCALE_IQ1_M,   // the upper four bits of four words
    SCALE_E8M0,    // a byte
    SCALE_NVFP4,   // an f32 and four e4m3
    SCALE_FP8,     // an f32; the codes are floats themselves
    SCALE_Q4_ZERO, // an f16 and a zero point
};

// Where, and the deviation of its elements when every other byte is random and the scale is 1.
static const struct block_kind {
    enum ew_dtype dtype;
    enum scale_form form;
    uint32_t scale_at;
    double deviation;
    int32_t minimum_at;   // second scale, or -1
    double minimum_ratio; // of it to the first, so that the mean is 0
} g_blocks[] = {
    {EW_DTYPE_Q8_0, SCALE_F16, 0, 73.9, -1, 0},   // int8
    {EW_DTYPE_Q4_0, SCALE_F16, 0, 4.61, -1, 0},   // -8 .. 7
    {EW_DTYPE_Q4_1, SCALE_F16, 0, 4.61, 2, -7.5}, // the minimum is added
    {EW_DTYPE_Q5_0, SCALE_F16, 0, 9.23, -1, 0},   // -16 .. 15
    {EW_DTYPE_Q5_1, SCALE_F16, 0, 9.23, 2, -15.5},
    {EW_DTYPE_Q2_K, SCALE_F16, 80, 13.87, 82, 1.5},
    {EW_DTYPE_Q3_K, SCALE_F16, 108, 43.3, -1, 0},
    {EW_DTYPE_Q4_K, SCALE_F16, 0, 258, 2, 7.5}, // 6-bit scale * 4-bit value - 6-bit minimum
    {EW_DTYPE_Q5_K, SCALE_F16, 0, 527, 2, 15.5},
    {EW_DTYPE_Q6_K, SCALE_F16, 208, 1366, -1, 0}, // int8 scale * (-32 .. 31)
    {EW_DTYPE_IQ1_S, SCALE_F16, 0, 7.19, -1, 0},
    {EW_DTYPE_IQ1_M, SCALE_IQ1_M, 48, 7.19, -1, 0},
    {EW_DTYPE_IQ2_XXS, SCALE_F16, 0, 53.3, -1, 0},
    {EW_DTYPE_IQ2_XS, SCALE_F16, 0, 55.9, -1, 0},
    {EW_DTYPE_IQ2_S, SCALE_F16, 0, 56.4, -1, 0},
    {EW_DTYPE_IQ3_XXS, SCALE_F16, 0, 142, -1, 0},
    {EW_DTYPE_IQ3_S, SCALE_F16, 0, 140, -1, 0},
    {EW_DTYPE_IQ4_NL, SCALE_F16, 0, 67.4, -1, 0},
    {EW_DTYPE_IQ4_XS, SCALE_F16, 0, 1247, -1, 0},
    {EW_DTYPE_TQ1_0, SCALE_F16, 52, 0.817, -1, 0},
    {EW_DTYPE_TQ2_0, SCALE_F16, 64, 1.22, -1, 0},
    {EW_DTYPE_MXFP4, SCALE_E8M0, 0, 2.93, -1, 0},
    {EW_DTYPE_NVFP4_S, SCALE_NVFP4, 0, 4.29, -1, 0},
    {EW_DTYPE_FP8, SCALE_FP8, 0, 13.5, -1, 0},
    {EW_DTYPE_Q4_ZERO, SCALE_Q4_ZERO, 0, 4.64, -1, 0},
};

static const struct block_kind *block_kind(enum ew_dtype dtype)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_blocks); i++)
        if (g_blocks[i].dtype == dtype)
            return &g_blocks[i];
    return NULL;
}

static void put_f16(unsigned char *at, double value)
{
    uint16_t half = ew_f16_of_f32((float)value);

    memcpy(at, &half, sizeof(half));
}

static void put_f32(unsigned char *at, double value)
{
    float number = (float)value;

    memcpy(at, &number, sizeof(number));
}

static void put_iq1_m(unsigned char *at, double value)
{
    uint32_t half = ew_f16_of_f32((float)value);

    for (uint32_t i = 0; i < 4; i++)
        at[2 * i + 1] = (unsigned char)((at[2 * i + 1] & 0x0F) | (half >> (4 * i) & 15) << 4);
}

// Sign and mantissa stay random; the exponent is one of four neighbouring ones.
static void put_fp8(unsigned char *at, double value)
{
    put_f32(at, value);
    for (uint32_t i = 0; i < 128; i++)
        at[4 + i] = (unsigned char)((at[4 + i] & 0x9F) + 0x40);
}

static void put_nvfp4(unsigned char *at, double value)
{
    put_f32(at, value);
    for (uint32_t i = 0; i < 4; i++) // from 1 to 1.875
        at[4 + i] = (unsigned char)((at[4 + i] & 7) | 0x38);
}

static void put_q4_zero(unsigned char *at, double value)
{
    put_f16(at, value);
    at[2] = (unsigned char)(7 + (at[2] & 1));
}

static void put_scale(const struct block_kind *kind, unsigned char *block, double scale)
{
    unsigned char *at = block + kind->scale_at;

    switch (kind->form) {
    case SCALE_F16:
        put_f16(at, scale);
        if (kind->minimum_at >= 0)
            put_f16(block + kind->minimum_at, scale * kind->minimum_ratio);
        break;
    case SCALE_IQ1_M:
        put_iq1_m(at, scale);
        break;
    case SCALE_E8M0:
        at[0] = (unsigned char)(127 + (int)floor(log2(scale)));
        break;
    case SCALE_NVFP4:
        put_nvfp4(at, scale);
        break;
    case SCALE_FP8:
        put_fp8(at, scale);
        break;
    case SCALE_Q4_ZERO:
        put_q4_zero(at, scale);
        break;
    }
}

// From 3/4 to 5/4, where a type has scales for runs of its own, and the same within one of them.
static double vary(const struct ew_synthetic_type *type, uint64_t seed, uint64_t row, uint64_t col)
{
    uint64_t run;

    if (!type->scale_rows)
        return 1;
    run = row / type->scale_rows * 0x10000 + (type->scale_cols ? col / type->scale_cols : 0);
    return 0.75 + (double)(mix(seed + run * GOLDEN) >> 11) * 0x1p-54;
}

// arg: seed, cols; ctx: the type.
static int read_matrix(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                       struct ew_error *err)
{
    uint64_t cols = source->arg[1], row_bytes = ew_dtype_row_bytes(source->dtype, cols);
    const struct block_kind *kind = block_kind(source->dtype);
    const struct ew_dtype_info *info = ew_dtype_info(source->dtype);
    double deviation = 1 / sqrt((double)cols);
    unsigned char *out = dst;

    (void)err;
    for (uint64_t r = row; r < row + n_rows; r++, out += row_bytes) {
        uint64_t state = mix(source->arg[0] + r * GOLDEN);

        if (!kind) { // the four octaves reach a little above the deviation
            bool bf16 = source->dtype == EW_DTYPE_BF16;

            random_halves(state, out, cols, bf16 ? 7 : 10,
                          (uint32_t)((bf16 ? 127 : 15) + (int)floor(log2(deviation)) - 3));
            continue;
        }
        random_bytes(state, out, row_bytes);
        for (uint64_t col = 0; col < cols; col += info->block_elements)
            put_scale(kind, out + col / info->block_elements * info->block_bytes,
                      deviation / kind->deviation * vary(source->ctx, source->arg[0], r, col));
    }
    return 0;
}

// The rows of an ordered source as f32, in the order of the input.
static int read_unordered(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                          struct ew_error *err)
{
    const struct ew_weight_source *ordered = source->ordered;
    uint64_t cols = source->arg[1], row_bytes = ew_dtype_row_bytes(ordered->dtype, cols);
    unsigned char *blocks = ew_alloc(row_bytes);
    float *values = ew_alloc_array(cols, sizeof(*values)), *out = dst;
    int rc = 0;

    if (!blocks || !values)
        rc = ew_fail_memory(err, row_bytes + cols * sizeof(*values), "a row of a weight");
    for (uint64_t r = row; r < row + n_rows && rc == 0; r++, out += cols) {
        rc = read_matrix(ordered, r, 1, blocks, err);
        ew_dtype_info(ordered->dtype)->decode(blocks, values, cols);
        for (uint64_t i = 0; i < cols; i++)
            out[source->order[i]] = values[i];
    }
    ew_free(blocks);
    ew_free(values);
    return rc;
}

int ew_synthetic_reorder(struct ew_arena *arena, uint64_t cols, struct ew_weight_source *out, struct ew_error *err)
{
    struct ew_weight_source *ordered = ew_arena_alloc(arena, sizeof(*ordered));
    uint32_t *order = ew_arena_array(arena, cols, sizeof(*order));

    if (!ordered || !order)
        return ew_fail_memory(err, cols * sizeof(*order), "the order of a weight's columns");
    for (uint64_t i = 0; i < cols; i++) { // Fisher and Yates, from inside out
        uint64_t at = mix(cols + i * GOLDEN) % (i + 1);

        order[i] = order[at];
        order[at] = (uint32_t)i;
    }
    *ordered = *out;
    out->dtype = EW_DTYPE_F32;
    out->read = read_unordered;
    out->ordered = ordered;
    out->order = order;
    return 0;
}

// Vectors are norms' weights and the like: ones. States decay, at rates of -1.
static int read_ones(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                     struct ew_error *err)
{
    (void)row;
    (void)err;
    for (uint64_t i = 0; i < n_rows * source->arg[1]; i++)
        ((float *)dst)[i] = source->arg[2] ? -1 : 1;
    return 0;
}

// Which layers the usual mixes keep finer: the first and last eighth, and every third between (llama.cpp's choice
// for q4_k_m).
static bool is_better_layer(uint32_t layer, uint32_t n_layers)
{
    uint32_t eighth = n_layers / 8;

    return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

static enum ew_dtype matrix_type(const struct ew_synthetic *synthetic, const struct ew_weight_want *want)
{
    enum ew_dtype dtype = synthetic->type->matrix;
    unsigned layer;
    char part[32];

    if (want->n_heads) // products of heads take no blocks
        return dtype == EW_DTYPE_BF16 ? EW_DTYPE_BF16 : EW_DTYPE_F16;
    if (strcmp(want->name, "output") == 0)
        dtype = synthetic->type->better;
    else if (sscanf(want->name, "blk.%u.%31s", &layer, part) == 2 &&
             (strcmp(part, "attn_v") == 0 || strcmp(part, "ffn_down") == 0 || strcmp(part, "ffn_down_exps") == 0) &&
             is_better_layer(layer, synthetic->n_layers))
        dtype = synthetic->type->better;
    if (want->cols % ew_dtype_info(dtype)->block_elements) // rows that a type does not divide fall back, as in quantize
        dtype = dtype == EW_DTYPE_Q4_K ? EW_DTYPE_Q5_0 : EW_DTYPE_Q8_0;
    return dtype;
}

// arg: seed, cols, mean and deviation in millionths.
static int read_vector(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst,
                       struct ew_error *err)
{
    float mean = 1e-6f * (float)(int64_t)source->arg[2], deviation = 1e-6f * (float)source->arg[3], *out = dst;

    (void)err;
    for (uint64_t r = row; r < row + n_rows; r++) {
        struct ew_rng rng = ew_rng_at(source->arg[0], r);

        for (uint64_t i = 0; i < source->arg[1]; i++)
            *out++ = mean + deviation * ew_rng_normal(&rng);
    }
    return 0;
}

struct ew_weight_source ew_synthetic_vector(uint64_t cols, float mean, float deviation, uint64_t seed)
{
    return (struct ew_weight_source){.dtype = EW_DTYPE_F32, .read = read_vector,
                                     .arg = {mix(seed), cols, (uint64_t)(int64_t)lrintf(1e6f * mean),
                                             (uint64_t)lrintf(1e6f * deviation)}};
}

struct ew_weight_source ew_synthetic_matrix(enum ew_dtype dtype, uint64_t cols, uint64_t seed)
{
    const struct ew_synthetic_type *type = &g_types[0];

    if (dtype == EW_DTYPE_F32)
        return ew_synthetic_vector(cols, 0, 1 / sqrtf((float)cols), seed);
    for (size_t i = 0; i < EW_COUNT_OF(g_types) && type->matrix != dtype && ew_dtype_row_bytes(dtype, cols); i++)
        type = g_types[i].matrix == dtype ? &g_types[i] : type;
    return (struct ew_weight_source){
        .dtype = type->matrix, .read = read_matrix, .ctx = type, .arg = {mix(seed), cols}};
}

static int find_weight(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out, struct ew_error *err)
{
    struct ew_synthetic *synthetic = ctx;
    uint64_t row_bytes;

    *out = (struct ew_weight_source){.dtype = EW_DTYPE_F32, .read = read_ones, .arg = {0, want->cols}};
    out->arg[2] = ew_str_ends(ew_str_of(want->name), ".ssm_a");
    if (want->is_matrix) {
        out->dtype = matrix_type(synthetic, want);
        out->read = read_matrix;
        out->ctx = synthetic->type;
        out->arg[0] = mix(++synthetic->seed);
    }
    row_bytes = ew_dtype_row_bytes(out->dtype, want->cols); // as stored, ordered
    if (!row_bytes)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "rows of %llu elements of %s cannot be made in %s",
                       (unsigned long long)want->cols, want->name, ew_dtype_name(out->dtype));
    synthetic->bytes += want->rows * row_bytes;
    if (!want->is_matrix)
        return 0;
    synthetic->type_bytes[out->dtype] += want->rows * row_bytes;
    return synthetic->type->is_ordered && ew_str_starts(ew_str_of(want->name), "blk.")
               ? ew_synthetic_reorder(synthetic->arena, want->cols, out, err)
               : 0;
}

struct ew_weight_finder ew_synthetic_finder(struct ew_synthetic *synthetic)
{
    return (struct ew_weight_finder){.find = find_weight, .ctx = synthetic};
}

static int set_type(struct ew_synthetic *synthetic, const char *name, struct ew_error *err)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_types); i++)
        if (strcmp(name, g_types[i].name) == 0) {
            synthetic->type = &g_types[i];
            return 0;
        }
    ew_fail(err, EW_ERR_UNSUPPORTED, "synthetic weights of type \"%.32s\" cannot be made", name);
    return ew_remedy(err, EW_ERR_UNSUPPORTED,
                     "use a type of GGUF (q8_0, q4_0, q4_k, q4_k_m, ...), bf16, fp8, fp8_channel, fp8_tensor, nvfp4, "
                     "awq, gptq or gptq_act");
}

// DeepSeek's proportions: 64 elements of a head rotate, and values have the 128 that the others are.
static void set_latents(struct ew_shape *shape, size_t i)
{
    shape->kv_latent = g_shapes[i].kv_latent;
    if (!shape->kv_latent)
        return;
    shape->rope_kind = EW_ROPE_PAIRS;
    shape->rope_dims = 64;
    shape->v_dim = 128;
}

static void set_states(struct ew_shape *shape, size_t i)
{
    shape->state_rule = g_shapes[i].state_rule;
    shape->state_heads = g_shapes[i].state_heads;
    shape->state_groups = g_shapes[i].state_groups;
    shape->state_k_dim = g_shapes[i].state_k_dim;
    shape->state_v_dim = g_shapes[i].state_v_dim;
    shape->state_taps = 4; // every published model's
    for (uint32_t layer = 0; layer < shape->common.n_layers && shape->state_heads; layer++)
        shape->layers[layer].mixer = layer % 4 == 3 ? EW_MIXER_FULL : EW_MIXER_STATE;
}

static int set_shape(struct ew_shape *shape, struct ew_str name, struct ew_error *err)
{
    struct ew_model_shape *c = &shape->common;

    ew_shape_init(shape);
    if (ew_str_ends(name, EMBED_SUFFIX)) {
        name.len -= strlen(EMBED_SUFFIX);
        shape->head = EW_HEAD_HIDDEN;
        shape->uncached = true;
    }
    for (size_t i = 0; i < EW_COUNT_OF(g_shapes); i++) {
        if (!ew_str_is(name, g_shapes[i].name))
            continue;
        *c = (struct ew_model_shape){
            .arch = "llama",
            .n_layers = g_shapes[i].n_layers,
            .n_vocab = g_shapes[i].n_vocab,
            .width = g_shapes[i].width,
            .ffn_width = g_shapes[i].ffn_width,
            .n_heads = g_shapes[i].n_heads,
            .n_kv_heads = g_shapes[i].n_kv_heads,
            .head_dim = g_shapes[i].head_dim,
            .context_trained = CONTEXT_TRAINED,
            .has_weights = true,
        };
        for (int kind = 0; kind < 2; kind++)
            shape->ropes[kind] = (struct ew_rope_shape){
                .theta = 500000, .partial = 1, .context_trained = CONTEXT_TRAINED};
        shape->n_experts = g_shapes[i].n_experts;
        shape->n_experts_active = g_shapes[i].n_active;
        shape->route_normalise = true;
        shape->shared_width = g_shapes[i].shared_width;
        set_latents(shape, i);
        set_states(shape, i);
        return ew_shape_finish(shape, err);
    }
    ew_fail(err, EW_ERR_UNSUPPORTED, "there is no synthetic shape \"" EW_STR_FMT "\"", EW_STR_ARG(name));
    return ew_remedy(err, EW_ERR_UNSUPPORTED,
                     "use one of 8b, 4b, 1.1b, 0.6b, tiny, 30b-a3b, 16b-a2.4b, 2b-latent, 2b-delta, 2b-ssd");
}

int ew_synthetic_parse(struct ew_synthetic *synthetic, const char *model, struct ew_arena *arena,
                       struct ew_shape *shape, struct ew_error *err)
{
    const char *name = model + strlen("synthetic:"), *colon = strchr(name, ':');
    int rc;

    *synthetic = (struct ew_synthetic){.arena = arena};
    if (!colon) {
        ew_fail(err, EW_ERR_USAGE, "\"%.64s\" does not name a shape and a type", model);
        return ew_remedy(err, EW_ERR_USAGE, "write synthetic:SHAPE:TYPE, for example synthetic:1.1b:q8_0");
    }
    rc = set_shape(shape, (struct ew_str){name, (size_t)(colon - name)}, err);
    if (!rc)
        rc = set_type(synthetic, colon + 1, err);
    synthetic->n_layers = shape->common.n_layers;
    return rc;
}
