// From a shape to GGUF's hyperparameters, and the proof that they say the same.
#include "model/convert.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "model/field.h"
#include "model/rope.h"
#include "model/tokens.h"

#define KEY_BYTES 192
#define ROPE_TOLERANCE 1e-6 // of frequencies read back: GGUF holds divisors in f32

// ---- fields ----------------------------------------------------------------------------------------------

static void full_key(const struct ew_convert *convert, struct ew_str key, char *out)
{
    snprintf(out, KEY_BYTES, EW_STR_FMT EW_STR_FMT, (int)(key.len && key.ptr[0] == '.' ? convert->arch.len : 0),
             convert->arch.ptr, EW_STR_ARG(key));
}

static uint32_t count_first_dense(const struct ew_shape *shape)
{
    uint32_t n = 0;

    while (shape->n_experts && n < shape->common.n_layers && shape->layers[n].dense)
        n++;
    return n;
}

// Every how manieth layer has experts; 0 where that says less than the number of dense ones at the beginning.
static uint32_t find_expert_period(const struct ew_shape *shape)
{
    uint32_t period = count_first_dense(shape) + 1;

    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        if (!shape->n_experts || shape->layers[i].dense != ((i + 1) % period != 0))
            return 0;
    return period;
}

// Every how manieth layer is full, where the others have a window; 0: not so.
static uint32_t find_window_period(const struct ew_shape *shape)
{
    uint32_t period = 1;

    while (period <= shape->common.n_layers && shape->layers[period - 1].mixer == EW_MIXER_WINDOW)
        period++;
    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        if ((shape->layers[i].mixer == EW_MIXER_FULL) != ((i + 1) % period == 0))
            return 0;
    return period;
}

// Fields that were moved or forgotten when the shape was finished. Of latents there is one for all heads.
static bool derived_number(const struct ew_shape *shape, const char *name, double *out)
{
    const struct ew_rope_shape *rope = &shape->ropes[EW_MIXER_FULL];
    const struct {
        const char *name;
        double value;
    } derived[] = {
        {"rope_theta", rope->theta},
        {"rope_theta_window", shape->ropes[EW_MIXER_WINDOW].theta},
        {"rope_dims", rope->n_dims},
        {"window_period", find_window_period(shape)},
        {"moe_period", find_expert_period(shape)},
        {"moe_first_layer", count_first_dense(shape)},
        {"n_shared", shape->expert_width ? shape->shared_width / shape->expert_width : 0},
        {"n_kv_heads", shape->kv_latent ? 1 : shape->common.n_kv_heads},
    };

    for (size_t i = 0; i < EW_COUNT_OF(derived); i++)
        if (strcmp(name, derived[i].name) == 0) {
            *out = derived[i].value;
            return true;
        }
    return false;
}

// The number that GGUF has for an enumerated value; false where it has none.
static bool enum_number(const struct ew_field *field, int value, double *out)
{
    const char *alias = strchr(field->names[value], '=');
    uint64_t number;

    if (!alias || !ew_str_to_u64(ew_str_of(alias + 1), &number))
        return false;
    *out = (double)number;
    return true;
}

// The number that a field has, as files state it; false for other kinds.
static bool field_number(const struct ew_shape *shape, const struct ew_field *field, double *out)
{
    const void *member = (const char *)shape + field->offset;

    if (derived_number(shape, field->name, out))
        return true;
    if (field->kind == EW_FIELD_ENUM)
        return enum_number(field, *(const int *)member, out);
    if (field->kind == EW_FIELD_UINT)
        *out = *(const uint32_t *)member;
    else if (field->kind == EW_FIELD_FLOAT)
        *out = (double)*(const float *)member;
    else if (field->kind == EW_FIELD_DOUBLE)
        *out = *(const double *)member;
    else if (field->kind == EW_FIELD_RECIPROCAL)
        *out = 1 / (double)*(const float *)member;
    else if (field->kind == EW_FIELD_RSQRT)
        *out = 1 / ((double)*(const float *)member * (double)*(const float *)member);
    else
        return false;
    return true;
}

// What a layer counts where it has the part that the field tells of, and 0 where it has not.
static int write_layer_counts(const struct ew_convert *convert, const struct ew_field *field, const char *key,
                              struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_shape *shape = convert->shape;
    bool attends = strcmp(field->name, "layer_attention") == 0;
    enum ew_mixer mixer = attends ? EW_MIXER_FULL : EW_MIXER_NONE;
    int32_t counts[EW_LAYERS_MAX];

    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        counts[i] = shape->layers[i].mixer != mixer ? 0
                    : attends                       ? (int32_t)shape->common.n_kv_heads
                                                    : (int32_t)shape->common.ffn_width;
    return ew_gguf_write_i32s(w, key, counts, shape->common.n_layers, err);
}

// Whether the target states the field as a list by layers, under another field's name.
static bool is_listed(const struct ew_family *target, const char *name)
{
    const char *list = strcmp(name, "ffn_width") == 0    ? "layer_ffn"
                       : strcmp(name, "n_kv_heads") == 0 ? "layer_attention"
                                                         : NULL;

    return list && ew_family_key(target, EW_FAMILY_GGUF, list);
}

static int write_field(const struct ew_convert *convert, const struct ew_family *target, const struct ew_field *field,
                       struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_yaml *node = ew_family_key(target, EW_FAMILY_GGUF, field->name);
    char key[KEY_BYTES];
    double value;
    bool is_whole;

    if (is_listed(target, field->name))
        return EW_OK;
    if (node && (strcmp(field->name, "layer_ffn") == 0 || strcmp(field->name, "layer_attention") == 0)) {
        full_key(convert, node->text, key);
        return write_layer_counts(convert, field, key, w, err);
    }
    if (!convert->shape->n_experts && ew_str_starts(ew_str_of(field->name), "route_"))
        return EW_OK; // a dense model has no routes to speak of
    if (node && (field->kind == EW_FIELD_BOOL || field->kind == EW_FIELD_NOT)) {
        full_key(convert, node->type == EW_YAML_LIST ? node->child->text : node->text, key);
        return ew_gguf_write_bool(
            w, key, *((const bool *)convert->shape + field->offset) != (field->kind == EW_FIELD_NOT), err);
    }
    is_whole = field->kind == EW_FIELD_UINT || field->kind == EW_FIELD_ENUM;
    if (!node || !field_number(convert->shape, field, &value) || (is_whole && value == 0))
        return EW_OK;
    full_key(convert, node->type == EW_YAML_LIST ? node->child->text : node->text, key);
    return is_whole ? ew_gguf_write_u32(w, key, (uint32_t)value, err) : ew_gguf_write_f32(w, key, (float)value, err);
}

// ---- rope ------------------------------------------------------------------------------------------------

static double factor_of(const struct ew_rope_shape *rope)
{
    return rope->factor > 0 ? rope->factor : (double)rope->context_trained / rope->context_original;
}

static int write_rope_number(const struct ew_convert *convert, const char *key, double value, struct ew_gguf_writer *w,
                             struct ew_error *err)
{
    char full[KEY_BYTES];

    full_key(convert, ew_str_of(key), full);
    return ew_gguf_write_f32(w, full, (float)value, err);
}

static int write_rope_type(const struct ew_convert *convert, const char *type, struct ew_gguf_writer *w,
                           struct ew_error *err)
{
    const struct ew_rope_shape *rope = &convert->shape->ropes[EW_MIXER_FULL];
    char key[KEY_BYTES];
    int code;

    full_key(convert, EW_STR(".rope.scaling.type"), key);
    code = ew_gguf_write_str(w, key, ew_str_of(type), err);
    full_key(convert, EW_STR(".rope.scaling.original_context_length"), key);
    if (code == EW_OK)
        code = ew_gguf_write_u32(w, key, rope->context_original, err);
    return code == EW_OK ? write_rope_number(convert, ".rope.scaling.factor", factor_of(rope), w, err) : code;
}

// What other readers ask of a model with latents besides: the shape of its cache.
static int write_latent(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_shape *shape = convert->shape;
    char key[KEY_BYTES];
    int code;

    if (!shape->kv_latent)
        return EW_OK;
    full_key(convert, EW_STR(".attention.key_length"), key);
    code = ew_gguf_write_u32(w, key, shape->kv_latent + shape->ropes[EW_MIXER_FULL].n_dims, err);
    full_key(convert, EW_STR(".attention.value_length"), key);
    return code == EW_OK ? ew_gguf_write_u32(w, key, shape->kv_latent, err) : code;
}

// What readers multiply yarn_log_multiplier with.
static double mscale_ratio(const struct ew_convert *convert)
{
    const struct ew_family *target = ew_family_of_architecture(convert->families, EW_FAMILY_GGUF, convert->arch);
    const struct ew_yaml *constant = ew_family_constant(target, EW_FAMILY_GGUF, "rope_mscale_ratio");
    double ratio = 1;

    return constant && ew_str_to_double(constant->text, &ratio) ? ratio : 1;
}

// YaRN's factor on cos and sin follows from the scaling; GGUF has what stands on top of that.
static int write_yarn(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_rope_shape *rope = &convert->shape->ropes[EW_MIXER_FULL];
    bool in_scores = convert->shape->kv_latent && rope->mscale_all_dim > 0;
    double own = factor_of(rope) > 1 && !in_scores ? 0.1 * log(factor_of(rope)) + 1 : 1;
    int code = write_rope_type(convert, "yarn", w, err);

    if (code == EW_OK)
        code = write_rope_number(convert, ".rope.scaling.attn_factor", ew_rope_attention_factor(rope) / own, w, err);
    if (code == EW_OK && in_scores)
        code = write_rope_number(convert, ".rope.scaling.yarn_log_multiplier",
                                 rope->mscale_all_dim / mscale_ratio(convert), w, err);
    if (code == EW_OK)
        code = write_rope_number(convert, ".rope.scaling.yarn_beta_fast", rope->beta_fast, w, err);
    return code == EW_OK ? write_rope_number(convert, ".rope.scaling.yarn_beta_slow", rope->beta_slow, w, err) : code;
}

static int write_rope(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_rope_shape *rope = &convert->shape->ropes[EW_MIXER_FULL];
    int code;

    switch (rope->scaling) {
    case EW_ROPE_SCALING_NONE:
    case EW_ROPE_SCALING_LLAMA3: // wholly in rope_freqs
        return EW_OK;
    case EW_ROPE_SCALING_LINEAR:
        return write_rope_type(convert, "linear", w, err);
    case EW_ROPE_SCALING_YARN:
        return write_yarn(convert, w, err);
    case EW_ROPE_SCALING_LONGROPE:
        code = write_rope_type(convert, "longrope", w, err);
        return code == EW_OK
                   ? write_rope_number(convert, ".rope.scaling.attn_factor", ew_rope_attention_factor(rope), w, err)
                   : code;
    case EW_ROPE_SCALING_DYNAMIC:
        break;
    }
    return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF cannot express the dynamic rope scaling of this model");
}

static int add_divisors(struct ew_convert *convert, const char *name, const double *divisors, uint32_t count,
                        struct ew_error *err)
{
    struct ew_convert_tensor *tensor = &convert->tensors[convert->n_tensors];
    float *values = ew_arena_array(&convert->arena, count, sizeof(*values));

    if (!values)
        return ew_fail_memory(err, count * sizeof(*values), "rotary divisors");
    for (uint32_t i = 0; i < count; i++)
        values[i] = (float)divisors[i];
    *tensor = (struct ew_convert_tensor){.name = ew_str_of(name),
                                         .n_dims = 1,
                                         .shape = {count, 1, 1, 1, 1},
                                         .rows = count,
                                         .cols = 1,
                                         .dtype = EW_DTYPE_F32,
                                         .values = values};
    convert->n_tensors++;
    return EW_OK;
}

int ew_convert_add_rope(struct ew_convert *convert, struct ew_error *err)
{
    const struct ew_rope_shape *rope = &convert->shape->ropes[EW_MIXER_FULL];
    struct ew_rope built;
    double divisors[EW_ROPE_PAIRS_MAX];
    int code;

    if (rope->n_long) {
        code = add_divisors(convert, "rope_factors_long.weight", rope->long_factor, rope->n_long, err);
        return code == EW_OK
                   ? add_divisors(convert, "rope_factors_short.weight", rope->short_factor, rope->n_short, err)
                   : code;
    }
    if (rope->scaling != EW_ROPE_SCALING_LLAMA3)
        return EW_OK;
    code = ew_rope_build(&convert->arena, rope, EW_ROPE_HALVES, &built, err);
    for (uint32_t i = 0; i < rope->n_dims / 2 && code == EW_OK; i++)
        divisors[i] = pow(rope->theta, -2.0 * i / rope->n_dims) / (double)built.freq_short[i];
    return code == EW_OK ? add_divisors(convert, "rope_freqs.weight", divisors, rope->n_dims / 2, err) : code;
}

// ---- all of it -------------------------------------------------------------------------------------------

// The last component of the input's path, or of the one that the checkpoint names as its own.
static struct ew_str model_name(const struct ew_convert *convert)
{
    struct ew_str name = ew_json_str(ew_json_get(convert->file.config, "_name_or_path"), "");
    size_t at;

    if (!name.len)
        name = ew_str_of(convert->file.path);
    while (name.len > 1 && name.ptr[name.len - 1] == '/')
        name.len--;
    for (at = name.len; at > 0 && name.ptr[at - 1] != '/'; at--)
        ;
    return (struct ew_str){name.ptr + at, name.len - at};
}

static int write_sampling(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    struct ew_sampling_defaults sampling;
    bool greedy;
    int code = EW_OK;

    ew_sampling_none(&sampling);
    ew_sampling_read(&convert->file, &sampling);
    greedy = sampling.do_sample_given && !sampling.do_sample;
    if (greedy || isfinite(sampling.temperature))
        code = ew_gguf_write_f32(w, "general.sampling.temp", greedy ? 0 : sampling.temperature, err);
    if (code == EW_OK && isfinite(sampling.top_p))
        code = ew_gguf_write_f32(w, "general.sampling.top_p", sampling.top_p, err);
    if (code == EW_OK && isfinite(sampling.min_p))
        code = ew_gguf_write_f32(w, "general.sampling.min_p", sampling.min_p, err);
    if (code == EW_OK && isfinite(sampling.repetition_penalty))
        code = ew_gguf_write_f32(w, "general.sampling.penalty_repeat", sampling.repetition_penalty, err);
    if (code == EW_OK && sampling.top_k >= 0)
        code = ew_gguf_write_u32(w, "general.sampling.top_k", (uint32_t)sampling.top_k, err);
    return code;
}

static int check_pooling(const struct ew_shape *shape, struct ew_error *err)
{
    if (shape->class_tokens[0] >= 0)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF cannot express that words of this model's vocabulary score");
    for (uint32_t i = 0; i < shape->n_dense; i++)
        if (shape->dense[i].bias || shape->dense[i].act != EW_ACT_NONE)
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "GGUF cannot express the bias or activation of this model's Dense modules");
    return EW_OK;
}

// How a model that makes vectors pools, and which way its tokens look; prompts have no place in GGUF.
static int write_pooling(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    static const uint32_t numbers[] = {
        [EW_POOLING_NONE] = 0, [EW_POOLING_MEAN] = 1, [EW_POOLING_CLS] = 2, [EW_POOLING_LAST] = 3};
    const struct ew_pooling *pooling = &convert->pooling;
    char key[KEY_BYTES];
    int code;

    if (pooling->kind == EW_POOLING_NONE)
        return EW_OK;
    code = check_pooling(convert->shape, err);
    if (code != EW_OK)
        return code;
    full_key(convert, EW_STR(".pooling_type"), key);
    code = ew_gguf_write_u32(w, key, pooling->is_score ? 4 : numbers[pooling->kind], err);
    full_key(convert, EW_STR(".attention.causal"), key);
    return code == EW_OK ? ew_gguf_write_bool(w, key, !convert->shape->encoder, err) : code;
}

int ew_convert_write_shape(const struct ew_convert *convert, struct ew_gguf_writer *w, struct ew_error *err)
{
    const struct ew_family *target = ew_family_of_architecture(convert->families, EW_FAMILY_GGUF, convert->arch);
    int code = ew_gguf_write_str(w, "general.architecture", convert->arch, err);

    EW_ASSERT(target);
    if (code == EW_OK)
        code = ew_gguf_write_str(w, "general.type", EW_STR("model"), err);
    if (code == EW_OK)
        code = ew_gguf_write_str(w, "general.name", model_name(convert), err);
    if (code == EW_OK)
        code = write_sampling(convert, w, err);
    for (const struct ew_field *field = ew_fields; field->name && code == EW_OK; field++)
        code = write_field(convert, target, field, w, err);
    if (code == EW_OK)
        code = write_pooling(convert, w, err);
    if (code == EW_OK)
        code = write_latent(convert, w, err);
    return code == EW_OK ? write_rope(convert, w, err) : code;
}

// ---- reading back ----------------------------------------------------------------------------------------

static bool near(double a, double b)
{
    return fabs(a - b) <= ROPE_TOLERANCE * fmax(fabs(a), fabs(b));
}

static bool same_frequencies(const float *a, const float *b, uint32_t n)
{
    if (!a || !b)
        return a == b;
    for (uint32_t i = 0; i < n; i++)
        if (!near((double)a[i], (double)b[i]))
            return false;
    return true;
}

// Ropes compare by what they compute: scalings that are written as divisors come back as such.
static int compare_ropes(const struct ew_rope_shape *a, const struct ew_rope_shape *b, bool *same, struct ew_error *err)
{
    struct ew_arena arena;
    struct ew_rope ra, rb;
    int code;

    ew_arena_init(&arena, (size_t)1 << 20);
    code = ew_rope_build(&arena, a, EW_ROPE_HALVES, &ra, err);
    if (code == EW_OK)
        code = ew_rope_build(&arena, b, EW_ROPE_HALVES, &rb, err);
    if (code == EW_OK)
        *same = ra.n_dims == rb.n_dims && ra.span_short_max == rb.span_short_max &&
                near((double)ra.scale_short, (double)rb.scale_short) &&
                near((double)ra.scale_long, (double)rb.scale_long) &&
                same_frequencies(ra.freq_short, rb.freq_short, ra.n_dims / 2) &&
                same_frequencies(ra.freq_long, rb.freq_long, ra.n_dims / 2);
    ew_arena_fini(&arena);
    return code;
}

static bool uses(const struct ew_shape *shape, enum ew_mixer mixer)
{
    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        if (shape->layers[i].mixer == mixer && !shape->layers[i].no_rope)
            return true;
    return false;
}

static bool is_of_layers(const char *field)
{
    return strcmp(field, "moe_period") == 0 || strcmp(field, "moe_first_layer") == 0 ||
           strcmp(field, "window_period") == 0;
}

static bool same_field(const struct ew_shape *a, const struct ew_shape *b, const struct ew_field *field)
{
    const char *in_a = (const char *)a + field->offset, *in_b = (const char *)b + field->offset;
    double x, y;

    if (field->kind == EW_FIELD_LAYERS || field->kind == EW_FIELD_LAYER_SET || is_of_layers(field->name))
        return true; // compared layer by layer
    if (strcmp(field->name, "rope_kind") == 0)
        return true; // what the permutation of q and k is for
    if (field->kind == EW_FIELD_BOOL || field->kind == EW_FIELD_NOT)
        return *(const bool *)in_a == *(const bool *)in_b;
    if (field->kind == EW_FIELD_ENUM)
        return memcmp(in_a, in_b, sizeof(int)) == 0;
    return field_number(a, field, &x) && field_number(b, field, &y) && near(x, y);
}

// Norms whose weights GGUF stores whole, and heads of states that it has in another order, were changed accordingly.
static bool is_adjusted(const struct ew_field *field)
{
    return strcmp(field->name, "norm_weight_offset") == 0 || strcmp(field->name, "state_heads_tiled") == 0;
}

static int compare_layers(const struct ew_shape *was, const struct ew_shape *is, struct ew_error *err)
{
    for (uint32_t i = 0; i < was->common.n_layers; i++) {
        const struct ew_layer_shape *a = &was->layers[i], *b = &is->layers[i];

        if (a->mixer != b->mixer || a->no_rope != b->no_rope || a->ffn_width != b->ffn_width || a->dense != b->dense)
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "GGUF cannot express which layers of this model have a window, positions or experts (layer "
                           "%u)",
                           i);
    }
    return EW_OK;
}

static int compare_shapes(const struct ew_shape *was, const struct ew_shape *is, struct ew_error *err)
{
    for (const struct ew_field *field = ew_fields; field->name; field++)
        if (!is_adjusted(field) && !same_field(was, is, field))
            return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF cannot express the %s of this model: read back, it differs",
                           field->name);
    for (int mixer = 0; mixer < 2; mixer++) {
        bool same = true;
        int code = EW_OK;

        if (uses(was, (enum ew_mixer)mixer))
            code = compare_ropes(&was->ropes[mixer], &is->ropes[mixer], &same, err);
        if (code != EW_OK)
            return code;
        if (!same)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF cannot express the rotary embedding of this model");
    }
    return compare_layers(was, is, err);
}

int ew_convert_check(const struct ew_convert *convert, const char *path, struct ew_error *err)
{
    const struct ew_family *family;
    struct ew_gguf gguf = {0};
    struct ew_model *model;
    struct ew_shape *shape;
    int code;

    if (convert->file.kind != EW_MODELFILE_HF)
        return EW_OK;
    shape = ew_alloc(sizeof(*shape));
    if (!shape)
        return ew_fail_memory(err, sizeof(*shape), "a shape");
    code = ew_gguf_open(&gguf, path, err);
    if (code == EW_OK)
        code = ew_shape_from_gguf(shape, convert->families, &gguf, &family, err);
    if (code == EW_OK)
        code = compare_shapes(convert->shape, shape, err);
    ew_gguf_close(&gguf);
    ew_free(shape);
    if (code == EW_OK)
        code = ew_model_open(path, &model, err); // finds and measures every tensor
    if (code == EW_OK)
        ew_model_close(model);
    return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s", convert->file.path);
}
