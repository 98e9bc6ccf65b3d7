#include "model/field.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "base/assert.h"

// Names of enumerated values: "name" or "name=alias=alias", in the order of the enumeration.
static const char *const g_norms[] = {"rms", "layer", NULL};
static const char *const g_norm_places[] = {"pre", "post", "sandwich", "around", NULL};
static const char *const g_qk_norms[] = {"none", "head", "head_own", "row", "plain", NULL};
static const char *const g_acts[] = {
    "none", "silu=swish",         "gelu=gelu_python", "gelu_tanh=gelu_pytorch_tanh=gelu_new=gelu_fast",
    "relu", "relu2=relu_squared", "sigmoid",          "tanh",
    NULL};
static const char *const g_rope_kinds[] = {"halves", "pairs", NULL};
static const char *const g_route_scores[] = {"softmax=1", "sigmoid=2", "sparsemixer", NULL}; // the numbers are GGUF's
// In the order of ew_mixer, then what else a layer of a single part may be. A pattern has a letter a layer.
static const char *const g_mixers[] = {
    "full_attention=attention=*", "sliding_attention", "linear_attention=mamba=M", "mlp=-", "moe=E", NULL};
static const char *const g_state_rules[] = {"ssd", "delta", NULL};
static const char *const g_has_ffn[] = {"0", NULL};       // counts of each layer: without, the layer has a state ...
static const char *const g_has_attention[] = {"0", NULL}; // ... unless it attends
static const char *const g_has_rope[] = {"0", "1", NULL};

#define COMMON(member) offsetof(struct ew_shape, common.member)
#define SHAPE(member) offsetof(struct ew_shape, member)

const struct ew_field ew_fields[] = {
    {"n_layers", EW_FIELD_UINT, COMMON(n_layers), 1, EW_LAYERS_MAX},
    {"n_vocab", EW_FIELD_UINT, COMMON(n_vocab), 1, EW_VOCAB_MAX},
    {"width", EW_FIELD_UINT, COMMON(width), 1, EW_WIDTH_MAX},
    {"ffn_width", EW_FIELD_UINT, COMMON(ffn_width), 1, EW_FFN_WIDTH_MAX},
    {"n_heads", EW_FIELD_UINT, COMMON(n_heads), 1, EW_HEADS_MAX},
    {"n_kv_heads", EW_FIELD_UINT, COMMON(n_kv_heads), 1, EW_HEADS_MAX},
    {"head_dim", EW_FIELD_UINT, COMMON(head_dim), 1, EW_HEAD_DIM_MAX},
    {"v_dim", EW_FIELD_UINT, SHAPE(v_dim), 1, EW_HEAD_DIM_MAX},
    {"kv_latent", EW_FIELD_UINT, SHAPE(kv_latent), 0, EW_HEAD_DIM_MAX},
    {"q_latent", EW_FIELD_UINT, SHAPE(q_latent), 0, EW_WIDTH_MAX},
    {"plain_dim", EW_FIELD_UINT, SHAPE(plain_dim), 0, EW_HEAD_DIM_MAX},
    {"context_trained", EW_FIELD_UINT, COMMON(context_trained), 1, EW_CONTEXT_MAX},
    {"tied_head", EW_FIELD_BOOL, COMMON(tied_head)},
    {"norm", EW_FIELD_ENUM, SHAPE(norm), .names = g_norms},
    {"norm_place", EW_FIELD_ENUM, SHAPE(norm_place), .names = g_norm_places},
    {"norm_bias", EW_FIELD_BOOL, SHAPE(norm_bias)},
    {"norm_eps", EW_FIELD_FLOAT, SHAPE(norm_eps), 0, 1},
    {"first_norm_none", EW_FIELD_BOOL, SHAPE(first_norm_none)},
    {"norm_weight_offset", EW_FIELD_FLOAT, SHAPE(norm_weight_offset), -10, 10},
    {"qk_norm", EW_FIELD_ENUM, SHAPE(qk_norm), .names = g_qk_norms},
    {"qk_norm_on", EW_FIELD_NOT, SHAPE(qk_norm_off)},
    {"bias_qkv", EW_FIELD_BOOL, SHAPE(bias_qkv)},
    {"bias_head", EW_FIELD_BOOL, SHAPE(bias_head)},
    {"bias_attn_output", EW_FIELD_BOOL, SHAPE(bias_attn_output)},
    {"multi_query", EW_FIELD_BOOL, SHAPE(multi_query)},
    {"multi_query_off", EW_FIELD_BOOL, SHAPE(multi_query_off)},
    {"clip_qkv", EW_FIELD_FLOAT, SHAPE(clip_qkv), 0, 1e9},
    {"alibi", EW_FIELD_BOOL, SHAPE(alibi)},
    {"alibi_scaled", EW_FIELD_UINT, SHAPE(alibi_scaled), 0, 2},
    {"alibi_bias_max", EW_FIELD_FLOAT, SHAPE(alibi_bias_max), 0, 64},
    {"attention_scale", EW_FIELD_FLOAT, SHAPE(attention_scale), 1e-6, 1e6},
    {"attention_scale_dim", EW_FIELD_RSQRT, SHAPE(attention_scale), 1e-3, 1e9},
    {"attention_softcap", EW_FIELD_FLOAT, SHAPE(attention_softcap), 0, 1e9},
    {"attention_sinks", EW_FIELD_BOOL, SHAPE(attention_sinks)},
    {"q_scale_beta", EW_FIELD_FLOAT, SHAPE(q_scale_beta), 0, 1e3},
    {"q_scale_floor", EW_FIELD_UINT, SHAPE(q_scale_floor), 1, EW_CONTEXT_MAX},
    {"q_scale_offset", EW_FIELD_UINT, SHAPE(q_scale_offset), 0, EW_CONTEXT_MAX},
    {"q_scale_on", EW_FIELD_NOT, SHAPE(q_scale_off)},
    {"q_scale_no_rope_only", EW_FIELD_BOOL, SHAPE(q_scale_no_rope_only)},
    {"chunk", EW_FIELD_UINT, SHAPE(chunk), 0, EW_CONTEXT_MAX},
    {"window", EW_FIELD_UINT, SHAPE(window), 0, EW_CONTEXT_MAX},
    {"window_on", EW_FIELD_NOT, SHAPE(window_off)},
    {"window_first_layer", EW_FIELD_UINT, SHAPE(window_first_layer), 0, EW_CONTEXT_MAX},
    {"window_period", EW_FIELD_UINT, SHAPE(window_period), 0, EW_LAYERS_MAX},
    {"window_full_first", EW_FIELD_BOOL, SHAPE(window_full_first)},
    {"no_rope_full", EW_FIELD_BOOL, SHAPE(no_rope_full)},
    {"no_rope_period", EW_FIELD_UINT, SHAPE(no_rope_period), 0, EW_LAYERS_MAX},
    {"rope_kind", EW_FIELD_ENUM, SHAPE(rope_kind), .names = g_rope_kinds},
    {"rope_theta", EW_FIELD_DOUBLE, SHAPE(rope_theta), 1.001, 1e15},
    {"rope_long_off", EW_FIELD_BOOL, SHAPE(rope_long_off)},
    {"rope_theta_ratio", EW_FIELD_DOUBLE, SHAPE(rope_theta_ratio), 1e-3, 1e9},
    {"rope_mscale_ratio", EW_FIELD_DOUBLE, SHAPE(rope_mscale_ratio), 1e-3, 1e3},
    {"rope_truncate", EW_FIELD_NOT, SHAPE(rope_truncate_off)},
    {"rope_theta_window", EW_FIELD_DOUBLE, SHAPE(rope_theta_window), 1.001, 1e15},
    {"rope_partial", EW_FIELD_DOUBLE, SHAPE(rope_partial), 1e-3, 1},
    {"rope_dims", EW_FIELD_UINT, SHAPE(rope_dims), 2, EW_HEAD_DIM_MAX},
    {"context_original", EW_FIELD_UINT, SHAPE(context_original), 2, EW_CONTEXT_MAX},
    {"rope_scaled_full_only", EW_FIELD_BOOL, SHAPE(rope_scaled_full_only)},
    {"n_experts", EW_FIELD_UINT, SHAPE(n_experts), 0, EW_EXPERTS_MAX},
    {"n_experts_active", EW_FIELD_UINT, SHAPE(n_experts_active), 0, EW_EXPERTS_ACTIVE_MAX},
    {"expert_width", EW_FIELD_UINT, SHAPE(expert_width), 0, EW_FFN_WIDTH_MAX},
    {"shared_width", EW_FIELD_UINT, SHAPE(shared_width), 0, EW_FFN_WIDTH_MAX},
    {"n_shared", EW_FIELD_UINT, SHAPE(n_shared), 0, 64},
    {"shared_gate", EW_FIELD_BOOL, SHAPE(shared_gate)},
    {"bias_experts", EW_FIELD_BOOL, SHAPE(bias_experts)},
    {"bias_route", EW_FIELD_BOOL, SHAPE(bias_route)},
    {"route_choice_bias", EW_FIELD_BOOL, SHAPE(route_choice_bias)},
    {"route_input", EW_FIELD_BOOL, SHAPE(route_input)},
    {"route_score", EW_FIELD_ENUM, SHAPE(route_score), .names = g_route_scores},
    {"route_normalise", EW_FIELD_BOOL, SHAPE(route_normalise)},
    {"route_scale", EW_FIELD_FLOAT, SHAPE(route_scale), 1e-6, 1e6},
    {"route_jitter", EW_FIELD_FLOAT, SHAPE(route_jitter), 0, 1},
    {"route_groups", EW_FIELD_UINT, SHAPE(route_groups), 0, EW_EXPERTS_MAX},
    {"route_groups_active", EW_FIELD_UINT, SHAPE(route_groups_active), 0, EW_EXPERTS_MAX},
    {"moe_first_layer", EW_FIELD_UINT, SHAPE(moe_first_layer), 0, EW_LAYERS_MAX},
    {"moe_period", EW_FIELD_UINT, SHAPE(moe_period), 0, EW_LAYERS_MAX},
    {"dense_layers", EW_FIELD_LAYER_SET, SHAPE(layers[0].dense)},
    {"glu_limit", EW_FIELD_FLOAT, SHAPE(glu_limit), 0, 1e9},
    {"glu_alpha", EW_FIELD_FLOAT, SHAPE(glu_alpha), 0, 1e9},
    {"ffn_ratio", EW_FIELD_UINT, SHAPE(ffn_ratio), 1, 64},
    {"ffn_gated", EW_FIELD_NOT, SHAPE(ffn_plain)},
    {"bias_ffn", EW_FIELD_BOOL, SHAPE(bias_ffn)},
    {"act", EW_FIELD_ENUM, SHAPE(act), .names = g_acts},
    {"parallel", EW_FIELD_BOOL, SHAPE(parallel)},
    {"parallel_own_norm", EW_FIELD_BOOL, SHAPE(parallel_own_norm)},
    {"embed_sqrt_width", EW_FIELD_BOOL, SHAPE(embed_sqrt_width)},
    {"embed_norm", EW_FIELD_BOOL, SHAPE(embed_norm)},
    {"position_learned", EW_FIELD_BOOL, SHAPE(position_learned)},
    {"position_after", EW_FIELD_UINT, SHAPE(position_after), 0, EW_VOCAB_MAX},
    {"n_segments", EW_FIELD_UINT, SHAPE(n_segments), 0, 256},
    {"encoder", EW_FIELD_BOOL, SHAPE(encoder)},
    {"classifier", EW_FIELD_BOOL, SHAPE(classifier)},
    {"class_direct", EW_FIELD_BOOL, SHAPE(class_direct)},
    {"class_norm", EW_FIELD_BOOL, SHAPE(class_norm)},
    {"class_act", EW_FIELD_ENUM, SHAPE(class_act), .names = g_acts},
    {"bias_class", EW_FIELD_BOOL, SHAPE(bias_class)},
    {"bias_labels", EW_FIELD_BOOL, SHAPE(bias_labels)},
    {"embed_scale", EW_FIELD_FLOAT, SHAPE(embed_scale), -1e6, 1e6},
    {"residual_scale", EW_FIELD_FLOAT, SHAPE(residual_scale), -1e6, 1e6},
    {"logit_scale", EW_FIELD_FLOAT, SHAPE(logit_scale), 1e-6, 1e6},
    {"logit_divisor", EW_FIELD_RECIPROCAL, SHAPE(logit_scale), 1e-6, 1e6},
    {"logit_softcap", EW_FIELD_FLOAT, SHAPE(logit_softcap), 0, 1e9},
    {"attention_gate", EW_FIELD_BOOL, SHAPE(attention_gate)},
    {"state_rule", EW_FIELD_ENUM, SHAPE(state_rule), .names = g_state_rules},
    {"state_heads", EW_FIELD_UINT, SHAPE(state_heads), 1, EW_HEADS_MAX},
    {"state_groups", EW_FIELD_UINT, SHAPE(state_groups), 1, EW_HEADS_MAX},
    {"state_k_dim", EW_FIELD_UINT, SHAPE(state_k_dim), 1, EW_HEAD_DIM_MAX},
    {"state_v_dim", EW_FIELD_UINT, SHAPE(state_v_dim), 1, EW_HEAD_DIM_MAX},
    {"state_inner", EW_FIELD_UINT, SHAPE(state_inner), 1, EW_WIDTH_MAX},
    {"state_taps", EW_FIELD_UINT, SHAPE(state_taps), 1, EW_CONV_TAPS_MAX},
    {"state_period", EW_FIELD_UINT, SHAPE(state_period), 1, EW_LAYERS_MAX},
    {"state_conv_bias", EW_FIELD_BOOL, SHAPE(state_conv_bias)},
    {"state_bias", EW_FIELD_BOOL, SHAPE(state_bias)},
    {"state_in_grouped", EW_FIELD_BOOL, SHAPE(state_in_grouped)},
    {"state_gates_grouped", EW_FIELD_BOOL, SHAPE(state_gates_grouped)},
    {"state_heads_tiled", EW_FIELD_BOOL, SHAPE(state_heads_tiled)},
    {"single_part", EW_FIELD_BOOL, SHAPE(single_part)},
    {"layer_ffn", EW_FIELD_LAYERS, SHAPE(layers[0].mixer), .names = g_has_ffn, .given_offset = SHAPE(layers_given)},
    {"layer_attention", EW_FIELD_LAYERS, SHAPE(layers[0].mixer), .names = g_has_attention,
     .given_offset = SHAPE(layers_given)},
    {"layer_types", EW_FIELD_LAYERS, SHAPE(layers[0].mixer), .names = g_mixers, .given_offset = SHAPE(layers_given)},
    {"layer_has_rope", EW_FIELD_LAYERS, SHAPE(layers[0].no_rope), .names = g_has_rope,
     .given_offset = SHAPE(no_rope_given)},
    {0},
};

const struct ew_field *ew_field_find(struct ew_str name)
{
    for (const struct ew_field *field = ew_fields; field->name; field++)
        if (ew_str_is(name, field->name))
            return field;
    return NULL;
}

static int fail_kind(const struct ew_value *value, const char *where, const char *expected, struct ew_error *err)
{
    return ew_fail(err, EW_ERR_FORMAT, "%s is %s where %s was expected", where, ew_value_kind_name(value->kind),
                   expected);
}

// A list of texts: as many as it has. Or GGUF's list with a number for each layer, some of which may be 0 for layers
// that lack what is counted: the number of all others.
static int set_uint_of_layers(uint32_t *out, const struct ew_field *field, const struct ew_value *list,
                              const char *where, struct ew_error *err)
{
    double number = 0;

    if (list->count > EW_LAYERS_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "%s has %llu entries where %d layers are possible", where,
                       (unsigned long long)list->count, EW_LAYERS_MAX);
    for (uint64_t i = 0; i < list->count; i++) {
        struct ew_value value = ew_value_at(list, i);

        if (value.kind == EW_VALUE_TEXT)
            value = (struct ew_value){.kind = EW_VALUE_INT, .number = (double)list->count};
        if (value.kind != EW_VALUE_INT)
            return fail_kind(&value, where, "a whole number", err);
        if (number != 0 && value.number != 0 && value.number != number)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "%s differs between layers, which edgewise cannot compute", where);
        number = value.number != 0 ? value.number : number;
    }
    if (number != 0 && !(number >= field->min && number <= field->max))
        return ew_fail(err, EW_ERR_FORMAT, "%s holds %.15g where %.0f to %.0f is possible", where, number, field->min,
                       field->max);
    *out = (uint32_t)number;
    return 0;
}

static int set_uint(uint32_t *out, const struct ew_field *field, const struct ew_value *value, const char *where,
                    struct ew_error *err)
{
    double number = value->number;

    if (value->kind == EW_VALUE_NULL) {
        *out = 0;
        return 0;
    }
    if (value->kind == EW_VALUE_LIST)
        return set_uint_of_layers(out, field, value, where, err);
    if (value->kind != EW_VALUE_INT && (value->kind != EW_VALUE_NUMBER || number != floor(number)))
        return fail_kind(value, where, "a whole number", err);
    if (!(number >= field->min && number <= field->max))
        return ew_fail(err, EW_ERR_FORMAT, "%s is %.15g where %.0f to %.0f is possible", where, number, field->min,
                       field->max);
    *out = (uint32_t)number;
    return 0;
}

static int read_number(double *out, const struct ew_field *field, const struct ew_value *value, const char *where,
                       struct ew_error *err)
{
    if (value->kind != EW_VALUE_INT && value->kind != EW_VALUE_NUMBER)
        return fail_kind(value, where, "a number", err);
    if (!(value->number >= field->min && value->number <= field->max))
        return ew_fail(err, EW_ERR_FORMAT, "%s is %g where %g to %g is possible", where, value->number, field->min,
                       field->max);
    *out = value->number;
    return 0;
}

static int set_number(void *out, const struct ew_field *field, const struct ew_value *value, const char *where,
                      struct ew_error *err)
{
    double number = 0;
    int rc;

    if (value->kind == EW_VALUE_NULL)
        return 0;
    rc = read_number(&number, field, value, where, err);
    if (field->kind == EW_FIELD_RECIPROCAL)
        number = 1 / number;
    else if (field->kind == EW_FIELD_RSQRT)
        number = 1 / sqrt(number);
    if (!rc && field->kind == EW_FIELD_DOUBLE)
        *(double *)out = number;
    else if (!rc)
        *(float *)out = (float)number;
    return rc;
}

static int set_bool(bool *out, bool inverted, const struct ew_value *value, const char *where, struct ew_error *err)
{
    if (value->kind != EW_VALUE_BOOL && value->kind != EW_VALUE_NULL)
        return fail_kind(value, where, "true or false", err);
    *out = (value->kind == EW_VALUE_BOOL && value->boolean) != inverted;
    return 0;
}

// Whether `text` is one of the names in "name=alias=alias".
static bool is_alias(const char *names, struct ew_str text)
{
    while (*names) {
        size_t len = strcspn(names, "=");

        if (ew_str_eq((struct ew_str){names, len}, text))
            return true;
        names += len + (names[len] == '=');
    }
    return false;
}

static int set_enum(int *out, const struct ew_field *field, const struct ew_value *value, const char *where,
                    struct ew_error *err)
{
    struct ew_str text = value->text;
    char digits[24];

    if (value->kind == EW_VALUE_NULL)
        return 0;
    if (value->kind == EW_VALUE_INT) {
        snprintf(digits, sizeof(digits), "%lld", (long long)value->integer);
        text = ew_str_of(digits);
    } else if (value->kind != EW_VALUE_TEXT) {
        return fail_kind(value, where, "a text", err);
    }
    for (int i = 0; field->names[i]; i++)
        if (is_alias(field->names[i], text)) {
            *out = i;
            return 0;
        }
    return ew_fail(err, EW_ERR_UNSUPPORTED, "%s is \"" EW_STR_FMT "\", which edgewise does not know", where,
                   EW_STR_ARG(text));
}

// One layer's mixer (a text), a count that tells it, or whether it has positions (0, 1, true or false).
static int set_layer(struct ew_layer_shape *layer, const struct ew_field *field, const struct ew_value *value,
                     const char *where, struct ew_error *err)
{
    if (field->names == g_mixers) {
        int mixer = 0, rc = set_enum(&mixer, field, value, where, err);

        layer->mixer = (enum ew_mixer)EW_MIN(mixer, (int)EW_MIXER_NONE);
        if (mixer >= EW_MIXER_NONE)
            layer->dense = mixer == EW_MIXER_NONE; // which the next one is not
        return rc;
    }
    if (field->names != g_has_rope) {
        if (value->kind != EW_VALUE_INT)
            return fail_kind(value, where, "a whole number", err);
        if (field->names == g_has_ffn)
            layer->mixer = value->integer ? EW_MIXER_NONE : EW_MIXER_STATE;
        else if (value->integer)
            layer->mixer = EW_MIXER_FULL;
        return 0;
    }
    if (value->kind == EW_VALUE_INT || value->kind == EW_VALUE_BOOL) {
        layer->no_rope = value->kind == EW_VALUE_INT ? value->integer == 0 : !value->boolean;
        return 0;
    }
    return fail_kind(value, where, "0 or 1", err);
}

static int set_layers(struct ew_shape *shape, const struct ew_field *field, const struct ew_value *value,
                      const char *where, struct ew_error *err)
{
    bool is_text = value->kind == EW_VALUE_TEXT && field->names == g_mixers;
    uint32_t n_layers = shape->common.n_layers;
    uint64_t count;
    int rc = 0;

    if (value->kind == EW_VALUE_NULL)
        return 0;
    if (value->kind != EW_VALUE_LIST && !is_text)
        return fail_kind(value, where, "a list with an entry for each layer", err);
    count = is_text ? value->text.len : value->count;
    if (count < n_layers)
        return ew_fail(err, EW_ERR_FORMAT, "%s has %llu entries for %u layers", where, (unsigned long long)count,
                       n_layers);
    for (uint32_t i = 0; i < n_layers && !rc; i++) {
        struct ew_value element = {.kind = EW_VALUE_TEXT};

        if (is_text)
            element.text = (struct ew_str){value->text.ptr + i, 1};
        else
            element = ew_value_at(value, i);

        rc = set_layer(&shape->layers[i], field, &element, where, err);
    }
    *(bool *)((char *)shape + field->given_offset) = true;
    return rc;
}

static int set_layer_set(struct ew_shape *shape, const struct ew_field *field, const struct ew_value *value,
                         const char *where, struct ew_error *err)
{
    if (value->kind == EW_VALUE_NULL)
        return 0;
    if (value->kind != EW_VALUE_LIST)
        return fail_kind(value, where, "a list of layers", err);
    for (uint64_t i = 0; i < value->count; i++) {
        struct ew_value element = ew_value_at(value, i);

        if (element.kind != EW_VALUE_INT || element.integer < 0 || element.integer >= EW_LAYERS_MAX)
            return ew_fail(err, EW_ERR_FORMAT, "%s holds something else than the number of a layer at index %llu",
                           where, (unsigned long long)i);
        *(bool *)((char *)shape + field->offset + (size_t)element.integer * sizeof(shape->layers[0])) = true;
    }
    return 0;
}

int ew_field_set(struct ew_shape *shape, const struct ew_field *field, const struct ew_value *value, const char *where,
                 struct ew_error *err)
{
    void *member = (char *)shape + field->offset;

    if (value->kind == EW_VALUE_ABSENT)
        return 0;
    switch (field->kind) {
    case EW_FIELD_UINT:
        return set_uint(member, field, value, where, err);
    case EW_FIELD_FLOAT:
    case EW_FIELD_DOUBLE:
    case EW_FIELD_RECIPROCAL:
    case EW_FIELD_RSQRT:
        return set_number(member, field, value, where, err);
    case EW_FIELD_BOOL:
    case EW_FIELD_NOT:
        return set_bool(member, field->kind == EW_FIELD_NOT, value, where, err);
    case EW_FIELD_ENUM:
        return set_enum(member, field, value, where, err);
    case EW_FIELD_LAYER_SET:
        return set_layer_set(shape, field, value, where, err);
    case EW_FIELD_LAYERS:
        return set_layers(shape, field, value, where, err);
    }
    EW_ASSERT(false);
    return 0;
}
