// The configuration half of model/rope.h: reading and checking.
#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "base/assert.h"
#include "model/rope.h"

enum member_kind { MEMBER_NUMBER, MEMBER_UINT, MEMBER_BOOL };

// What a rope can be configured with. `key` stands in transformers' rope dictionaries, `gguf` after the
// architecture's name.
static const struct member {
    const char *key, *gguf;
    enum member_kind kind;
    size_t offset;
    double min, max;
} g_members[] = {
    {"rope_theta", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, theta), 1.001, 1e15},
    {"partial_rotary_factor", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, partial), 1e-3, 1},
    {"factor", ".rope.scaling.factor", MEMBER_NUMBER, offsetof(struct ew_rope_shape, factor), 1e-3, 1e6},
    {"short_mscale", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, short_mscale), 1e-3, 1e3},
    {"long_mscale", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, long_mscale), 1e-3, 1e3},
    {"attention_factor", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, attention_factor), 1e-3, 1e3},
    {NULL, ".rope.scaling.attn_factor", MEMBER_NUMBER, offsetof(struct ew_rope_shape, attention_multiplier), 1e-3, 1e3},
    {"beta_fast", ".rope.scaling.yarn_beta_fast", MEMBER_NUMBER, offsetof(struct ew_rope_shape, beta_fast), 1e-3, 1e6},
    {"beta_slow", ".rope.scaling.yarn_beta_slow", MEMBER_NUMBER, offsetof(struct ew_rope_shape, beta_slow), 1e-3, 1e6},
    {"mscale", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, mscale), 0, 1e3},
    {"mscale_all_dim", ".rope.scaling.yarn_log_multiplier", MEMBER_NUMBER,
     offsetof(struct ew_rope_shape, mscale_all_dim), 0, 1e3},
    {"low_freq_factor", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, low_freq_factor), 1e-6, 1e6},
    {"high_freq_factor", NULL, MEMBER_NUMBER, offsetof(struct ew_rope_shape, high_freq_factor), 1e-6, 1e6},
    {"original_max_position_embeddings", ".rope.scaling.original_context_length", MEMBER_UINT,
     offsetof(struct ew_rope_shape, context_original), 2, EW_CONTEXT_MAX},
    {"truncate", NULL, MEMBER_BOOL, offsetof(struct ew_rope_shape, truncate), 0, 0},
};

static const struct {
    const char *name;
    enum ew_rope_scaling scaling;
} g_scalings[] = {
    {"default", EW_ROPE_SCALING_NONE},      {"none", EW_ROPE_SCALING_NONE},   {"linear", EW_ROPE_SCALING_LINEAR},
    {"dynamic", EW_ROPE_SCALING_DYNAMIC},   {"yarn", EW_ROPE_SCALING_YARN},   {"llama3", EW_ROPE_SCALING_LLAMA3},
    {"mrope", EW_ROPE_SCALING_NONE}, // three positions a token, which are equal in text
    {"longrope", EW_ROPE_SCALING_LONGROPE}, {"su", EW_ROPE_SCALING_LONGROPE}, // "su": Phi-3's first checkpoints
};

static int read_scaling(struct ew_rope_shape *rope, struct ew_str name, const char *where, struct ew_error *err)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_scalings); i++)
        if (ew_str_is(name, g_scalings[i].name)) {
            rope->scaling = g_scalings[i].scaling;
            return 0;
        }
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "%s asks for the rope type \"" EW_STR_FMT "\", which edgewise does not know", where,
                   EW_STR_ARG(name));
}

static int read_number(const struct ew_value *value, const char *key, double min, double max, double *out,
                       struct ew_error *err)
{
    if (value->kind != EW_VALUE_INT && value->kind != EW_VALUE_NUMBER)
        return ew_fail(err, EW_ERR_FORMAT, "the rope parameter %s is %s where a number was expected", key,
                       ew_value_kind_name(value->kind));
    if (!(value->number >= min && value->number <= max))
        return ew_fail(err, EW_ERR_FORMAT, "the rope parameter %s is %g where %g to %g is possible", key, value->number,
                       min, max);
    *out = value->number;
    return 0;
}

static int read_member(struct ew_rope_shape *rope, const struct member *member, const struct ew_value *value,
                       const char *key, struct ew_error *err)
{
    void *out = (char *)rope + member->offset;
    double number = 0;
    int rc;

    if (value->kind == EW_VALUE_ABSENT || value->kind == EW_VALUE_NULL)
        return 0;
    if (member->kind == MEMBER_BOOL) {
        if (value->kind != EW_VALUE_BOOL)
            return ew_fail(err, EW_ERR_FORMAT, "the rope parameter %s is %s where true or false was expected", key,
                           ew_value_kind_name(value->kind));
        *(bool *)out = value->boolean;
        return 0;
    }
    rc = read_number(value, key, member->min, member->max, &number, err);
    if (!rc && member->kind == MEMBER_UINT)
        *(uint32_t *)out = (uint32_t)number;
    else if (!rc)
        *(double *)out = number;
    return rc;
}

static int read_factors(double *out, uint32_t *count, const struct ew_value *list, const char *key,
                        struct ew_error *err)
{
    if (list->kind == EW_VALUE_ABSENT || list->kind == EW_VALUE_NULL)
        return 0;
    if (list->kind != EW_VALUE_LIST || list->count == 0 || list->count > EW_ROPE_PAIRS_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "the rope parameter %s must be a list of 1 to %d numbers", key,
                       EW_ROPE_PAIRS_MAX);
    for (uint64_t i = 0; i < list->count; i++) {
        struct ew_value value = ew_value_at(list, i);

        if ((value.kind != EW_VALUE_INT && value.kind != EW_VALUE_NUMBER) ||
            !(value.number >= 1e-6 && value.number <= 1e9))
            return ew_fail(err, EW_ERR_FORMAT,
                           "the rope parameter %s holds something else than a positive number at index %llu", key,
                           (unsigned long long)i);
        out[i] = value.number;
    }
    *count = (uint32_t)list->count;
    return 0;
}

// One dictionary of transformers' form.
static int read_dictionary(struct ew_rope_shape *rope, const struct ew_json *from, struct ew_error *err)
{
    const struct ew_json *type = ew_json_get(from, "rope_type");
    struct ew_value list;
    int rc = 0;

    if (ew_json_is_null(type))
        type = ew_json_get(from, "type");
    if (!ew_json_is_null(type))
        rc = read_scaling(rope, ew_json_str(type, ""), "config.json", err);
    for (size_t i = 0; i < EW_COUNT_OF(g_members) && !rc; i++) {
        struct ew_value value;

        if (!g_members[i].key)
            continue;
        value = ew_value_of_json(ew_json_get(from, g_members[i].key));
        rc = read_member(rope, &g_members[i], &value, g_members[i].key, err);
    }
    list = ew_value_of_json(ew_json_get(from, "short_factor"));
    if (!rc)
        rc = read_factors(rope->short_factor, &rope->n_short, &list, "short_factor", err);
    list = ew_value_of_json(ew_json_get(from, "long_factor"));
    if (!rc)
        rc = read_factors(rope->long_factor, &rope->n_long, &list, "long_factor", err);
    return rc;
}

static void set_defaults(struct ew_shape *shape)
{
    memset(shape->ropes, 0, sizeof(shape->ropes));
    for (int i = 0; i < 2; i++) {
        struct ew_rope_shape *rope = &shape->ropes[i];

        rope->theta = shape->rope_theta * shape->rope_theta_ratio;
        if (i == EW_MIXER_WINDOW && shape->rope_theta_window > 0)
            rope->theta = shape->rope_theta_window;
        rope->partial = shape->rope_partial;
        rope->context_trained = shape->common.context_trained;
        rope->truncate = !shape->rope_truncate_off;
        rope->beta_fast = 32; // YaRN's recommendation for Llama
        rope->beta_slow = 1;
        rope->low_freq_factor = 1; // Llama 3.1's
        rope->high_freq_factor = 4;
    }
}

// ministral3 and llama 4 hide their query scaling among the rope parameters.
static int read_q_scale(struct ew_shape *shape, const struct ew_json *from, struct ew_error *err)
{
    struct ew_value value = ew_value_of_json(ew_json_get(from, "llama_4_scaling_beta"));
    double beta = 0;
    int rc = 0;

    if (value.kind != EW_VALUE_ABSENT && value.kind != EW_VALUE_NULL)
        rc = read_number(&value, "llama_4_scaling_beta", 0, 1e3, &beta, err);
    if (!rc && beta > 0)
        shape->q_scale_beta = (float)beta;
    return rc;
}

int ew_rope_from_config(struct ew_shape *shape, const struct ew_json *config, struct ew_error *err)
{
    const struct ew_json *from = ew_json_get(config, "rope_scaling"), *full, *window;
    int rc;

    if (!from || from->type != EW_JSON_T_OBJECT)
        from = ew_json_get(config, "rope_parameters");
    full = ew_json_get(from, "full_attention");
    window = ew_json_get(from, "sliding_attention");
    set_defaults(shape);
    if (ew_json_is_null(full) && ew_json_is_null(window)) {
        full = from;
        window = shape->rope_scaled_full_only ? NULL : from;
    }
    rc = read_dictionary(&shape->ropes[EW_MIXER_FULL], full, err);
    if (!rc)
        rc = read_dictionary(&shape->ropes[EW_MIXER_WINDOW], window, err);
    if (!rc)
        rc = read_q_scale(shape, full, err);
    return rc;
}

static int read_factor_tensor(double *out, uint32_t *count, const struct ew_gguf *gguf, const char *name,
                              struct ew_error *err)
{
    const struct ew_tensor *tensor = ew_tensors_find(&gguf->tensors, ew_str_of(name));

    if (!tensor)
        return 0;
    if (tensor->dtype != EW_DTYPE_F32 || tensor->n_dims != 1 || tensor->shape[0] == 0 ||
        tensor->shape[0] > EW_ROPE_PAIRS_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "tensor %s must hold 1 to %d f32 values", name, EW_ROPE_PAIRS_MAX);
    for (uint64_t i = 0; i < tensor->shape[0]; i++) {
        float value;

        memcpy(&value, tensor->data + i * sizeof(value), sizeof(value));
        if (!(value >= 1e-6f && value <= 1e9f))
            return ew_fail(err, EW_ERR_FORMAT, "tensor %s holds %g at index %llu where a positive number was expected",
                           name, (double)value, (unsigned long long)i);
        out[i] = (double)value;
    }
    *count = (uint32_t)tensor->shape[0];
    return 0;
}

static void gguf_key(char *out, size_t size, const struct ew_shape *shape, const char *key)
{
    snprintf(out, size, "%s%s", shape->common.arch, key);
}

static int read_gguf_members(struct ew_shape *shape, struct ew_rope_shape *rope, const struct ew_gguf *gguf,
                             struct ew_error *err)
{
    int rc = 0;

    for (size_t i = 0; i < EW_COUNT_OF(g_members) && !rc; i++) {
        struct ew_value value;
        char key[160];

        if (!g_members[i].gguf)
            continue;
        gguf_key(key, sizeof(key), shape, g_members[i].gguf);
        value = ew_value_of_gguf(gguf, key);
        if (value.kind == EW_VALUE_INT || value.kind == EW_VALUE_NUMBER) // converters write 0 for what is not in use
            rc = value.number == 0 ? 0 : read_member(rope, &g_members[i], &value, key, err);
        else
            rc = read_member(rope, &g_members[i], &value, key, err);
    }
    return rc;
}

// Files made from Llama 3.1 carry its scaling as divisors in rope_freqs; Phi-3's longrope stands in two tensors.
static int read_gguf_factors(struct ew_rope_shape *rope, const struct ew_gguf *gguf, struct ew_error *err)
{
    int rc = read_factor_tensor(rope->short_factor, &rope->n_short, gguf, "rope_freqs.weight", err);

    if (!rc)
        rc = read_factor_tensor(rope->short_factor, &rope->n_short, gguf, "rope_factors_short.weight", err);
    if (!rc)
        rc = read_factor_tensor(rope->long_factor, &rope->n_long, gguf, "rope_factors_long.weight", err);
    if (rope->n_long)
        rope->scaling = EW_ROPE_SCALING_LONGROPE;
    return rc;
}

int ew_rope_from_gguf(struct ew_shape *shape, const struct ew_gguf *gguf, struct ew_error *err)
{
    struct ew_rope_shape *rope = &shape->ropes[EW_MIXER_FULL];
    char key[160];
    struct ew_str type;
    int rc;

    set_defaults(shape);
    gguf_key(key, sizeof(key), shape, ".rope.scaling.type");
    type = ew_gguf_str(gguf, key, "none");
    rc = read_scaling(rope, type, key, err);
    if (!rc)
        rc = read_gguf_members(shape, rope, gguf, err);
    if (!rc)
        rc = read_gguf_factors(rope, gguf, err);
    rope->mscale_all_dim *= shape->rope_mscale_ratio;
    if (rope->mscale_all_dim > 0) // what yarn_log_multiplier stands for; with latents it is in the scores alone
        rope->mscale = shape->kv_latent ? rope->mscale_all_dim : 1;
    if (rope->scaling == EW_ROPE_SCALING_LONGROPE && rope->attention_multiplier > 0)
        rope->attention_factor = rope->attention_multiplier; // there it is the whole factor
    if (!shape->rope_scaled_full_only)
        shape->ropes[EW_MIXER_WINDOW] = *rope;
    return rc;
}

static int check(const struct ew_rope_shape *rope, uint32_t head_dim, struct ew_error *err)
{
    uint32_t n = rope->n_dims / 2;

    if (rope->n_dims < 2 || rope->n_dims % 2 || rope->n_dims > head_dim || n > EW_ROPE_PAIRS_MAX)
        return ew_fail(err, EW_ERR_FORMAT,
                       "%u of %u elements of a head would be rotated, but it must be an even number up to that",
                       rope->n_dims, head_dim);
    if (rope->scaling != EW_ROPE_SCALING_NONE && rope->context_original < 2)
        return ew_fail(err, EW_ERR_FORMAT,
                       "the rope scaling starts from a context of %u tokens, too few to mean anything",
                       rope->context_original);
    if ((rope->n_short && rope->n_short != n) || (rope->n_long && rope->n_long != n))
        return ew_fail(err, EW_ERR_FORMAT, "the rope has %u short and %u long factors where %u of each are needed",
                       rope->n_short, rope->n_long, n);
    if (rope->scaling == EW_ROPE_SCALING_LONGROPE && (!rope->n_short || !rope->n_long))
        return ew_fail(err, EW_ERR_FORMAT, "the longrope scaling lacks its %s factors",
                       rope->n_short ? "long" : "short");
    if (rope->scaling == EW_ROPE_SCALING_LLAMA3 && rope->low_freq_factor >= rope->high_freq_factor)
        return ew_fail(err, EW_ERR_FORMAT, "the rope's low_freq_factor %g is not below its high_freq_factor %g",
                       rope->low_freq_factor, rope->high_freq_factor);
    if (rope->scaling == EW_ROPE_SCALING_DYNAMIC && rope->n_dims < 4)
        return ew_fail(err, EW_ERR_FORMAT, "the dynamic rope scaling needs at least 4 rotated elements, not %u",
                       rope->n_dims);
    return 0;
}

int ew_rope_finish(struct ew_shape *shape, struct ew_error *err)
{
    int rc = 0;

    for (int i = 0; i < 2 && !rc; i++) {
        struct ew_rope_shape *rope = &shape->ropes[i];

        if (rope->scaling == EW_ROPE_SCALING_YARN && rope->n_long)
            rope->scaling = EW_ROPE_SCALING_LONGROPE; // Phi-3's checkpoints once called it so
        if (shape->rope_long_off) {
            memcpy(rope->long_factor, rope->short_factor, sizeof(rope->long_factor));
            rope->n_long = rope->n_short;
            rope->long_mscale = rope->short_mscale;
        }
        if (shape->context_original)
            rope->context_original = shape->context_original; // as transformers does, the model's own beats the rope's
        if (!rope->context_original)
            rope->context_original = shape->common.context_trained;
        rope->n_dims = shape->rope_dims ? shape->rope_dims : (uint32_t)(shape->common.head_dim * rope->partial);
        rc = check(rope, shape->common.head_dim, err);
    }
    return rc;
}
