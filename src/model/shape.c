#include "model/shape.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "model/family.h"
#include "model/field.h"
#include "model/rope.h"

// Where a shape is read from: one of the two formats.
struct source {
    enum ew_family_format format;
    const struct ew_family *family;
    const struct ew_json *config;     // HF
    const struct ew_json *outer;      // HF: what config is the text_config of, or config itself
    const struct ew_yaml *root;       // HF: of the tensors' names
    const struct ew_gguf *gguf;       // GGUF
    const struct ew_tensors *tensors; // or NULL
};

void ew_shape_init(struct ew_shape *shape)
{
    memset(shape, 0, sizeof(*shape)); // padding too: shapes are compared bytewise
    shape->norm = EW_NORM_RMS;
    shape->norm_eps = 1e-6f;
    shape->act = EW_ACT_SILU;
    shape->rope_theta = 10000; // RoFormer's
    shape->rope_partial = 1;
    shape->rope_theta_ratio = shape->rope_mscale_ratio = 1;
    shape->alibi_bias_max = 8; // the paper's
    shape->embed_scale = shape->residual_scale = shape->logit_scale = shape->route_scale = 1;
    shape->moe_period = 1;
    shape->class_tokens[0] = shape->class_tokens[1] = -1;
}

static int apply_constants(struct ew_shape *shape, const struct ew_yaml *map, struct ew_error *err)
{
    for (const struct ew_yaml *item = map ? map->child : NULL; item; item = item->next) {
        struct ew_value value = ew_value_of_yaml(item);
        int rc = ew_field_set(shape, ew_field_find(item->key), &value, item->key.ptr, err);

        if (rc)
            return rc;
    }
    return 0;
}

static bool any_tensor(const struct source *source, const struct ew_yaml *names)
{
    if (names->type == EW_YAML_SCALAR)
        return ew_family_find_rooted(source->root, source->tensors, names->text) != NULL;
    for (const struct ew_yaml *item = names->child; item; item = item->next)
        if (ew_family_find_rooted(source->root, source->tensors, item->text))
            return true;
    return false;
}

// Sets the fields that the presence (or, with `wanted` false, the absence) of tensors decides.
static int apply_presence(struct ew_shape *shape, const struct ew_yaml *map, const struct source *source, bool wanted,
                          struct ew_error *err)
{
    int rc = 0;

    for (const struct ew_yaml *item = map && source->tensors ? map->child : NULL; item && !rc; item = item->next) {
        struct ew_value value = {.kind = EW_VALUE_BOOL, .boolean = any_tensor(source, item) == wanted};

        rc = ew_field_set(shape, ew_field_find(item->key), &value, item->key.ptr, err);
    }
    return rc;
}

// The family's constants, ancestors first.
static int apply_family(struct ew_shape *shape, const struct source *source, struct ew_error *err)
{
    const struct ew_family *chain[EW_FAMILY_CHAIN_MAX];
    size_t n = 0;
    int rc = 0;

    for (const struct ew_family *family = source->family; family; family = family->parent) {
        EW_ASSERT(n < EW_COUNT_OF(chain));
        chain[n++] = family;
    }
    while (n-- && !rc) {
        const struct ew_family_side *side = &chain[n]->sides[source->format];

        rc = apply_constants(shape, chain[n]->shape, err);
        if (!rc)
            rc = apply_constants(shape, side->shape, err);
        if (!rc)
            rc = apply_presence(shape, side->present, source, true, err);
        if (!rc)
            rc = apply_presence(shape, side->absent, source, false, err);
    }
    return rc;
}

// A GGUF key that begins with a dot stands under the architecture's name.
static struct ew_value read_key(const struct ew_shape *shape, const struct source *source, struct ew_str key,
                                char *where, size_t size)
{
    char full[192];

    if (source->format == EW_FAMILY_HF) {
        const struct ew_json *node = ew_json_path(source->config, key);

        snprintf(where, size, "config.json: " EW_STR_FMT, EW_STR_ARG(key));
        return ew_value_of_json(node ? node : ew_json_path(source->outer, key));
    }
    snprintf(full, sizeof(full), "%s" EW_STR_FMT, key.ptr[0] == '.' ? shape->common.arch : "", EW_STR_ARG(key));
    snprintf(where, size, "GGUF key %s", full);
    return ew_value_of_gguf(source->gguf, full);
}

static int apply_key(struct ew_shape *shape, const struct source *source, const struct ew_field *field,
                     struct ew_error *err)
{
    const struct ew_yaml *node = ew_family_key(source->family, source->format, field->name), *item;
    char where[256];

    if (!node)
        return 0;
    for (item = node->type == EW_YAML_LIST ? node->child : node; item;
         item = node->type == EW_YAML_LIST ? item->next : NULL) {
        struct ew_value value = read_key(shape, source, item->text, where, sizeof(where));

        if (value.kind != EW_VALUE_ABSENT)
            return ew_field_set(shape, field, &value, where, err);
    }
    return 0;
}

// Switches of the file whose other position no code here computes.
static int refuse_switches(const struct ew_shape *shape, const struct source *source, struct ew_error *err)
{
    for (const struct ew_family *family = source->family; family; family = family->parent) {
        const struct ew_yaml *map = family->sides[source->format].refuse;

        for (const struct ew_yaml *item = map ? map->child : NULL; item; item = item->next) {
            char where[256];
            struct ew_value value = read_key(shape, source, item->key, where, sizeof(where));

            if (value.kind == EW_VALUE_BOOL && value.boolean == ew_value_of_yaml(item).boolean)
                return ew_fail(err, EW_ERR_UNSUPPORTED, "%s is %s, which edgewise cannot compute for the family %s",
                               where, value.boolean ? "true" : "false", source->family->name);
        }
    }
    return 0;
}

static void derive_layers(struct ew_shape *shape)
{
    bool windows = shape->window > 0 && !shape->window_off;

    for (uint32_t i = 0; i < shape->common.n_layers; i++) {
        struct ew_layer_shape *layer = &shape->layers[i];

        if (!shape->layers_given) {
            bool full = i < shape->window_first_layer ||
                        (shape->window_period && (i + !shape->window_full_first) % shape->window_period == 0);

            layer->mixer = full ? EW_MIXER_FULL : EW_MIXER_WINDOW;
            if (shape->state_period)
                layer->mixer = (i + 1) % shape->state_period == 0 ? EW_MIXER_FULL : EW_MIXER_STATE;
        }
        if (!windows && layer->mixer == EW_MIXER_WINDOW)
            layer->mixer = EW_MIXER_FULL;
        layer->no_ffn = shape->single_part && layer->mixer != EW_MIXER_NONE;
        if (!shape->no_rope_given)
            layer->no_rope = shape->alibi || shape->position_learned ||
                             (shape->no_rope_period && (i + 1) % shape->no_rope_period == 0) ||
                             (shape->no_rope_full && layer->mixer == EW_MIXER_FULL);
    }
}

// Which layers have experts: `dense` was read where a file lists the exceptions. A configuration may speak of experts
// that no layer has.
static void derive_experts(struct ew_shape *shape)
{
    bool any = !shape->single_part;

    for (uint32_t i = 0; i < shape->common.n_layers && !any; i++)
        any = shape->layers[i].mixer == EW_MIXER_NONE && !shape->layers[i].dense;
    shape->n_experts = any ? shape->n_experts : 0;
    for (uint32_t i = 0; i < EW_LAYERS_MAX; i++) {
        bool inside = i < shape->common.n_layers;

        shape->layers[i].dense = inside && shape->n_experts > 0 &&
                                 (shape->layers[i].dense || i < shape->moe_first_layer ||
                                  (i + 1) % EW_MAX(1, shape->moe_period) != 0);
    }
}

static int read_shape(struct ew_shape *shape, const struct source *source, struct ew_error *err)
{
    const struct ew_family *hooked = source->family;
    int rc = apply_family(shape, source, err);

    if (!rc)
        rc = refuse_switches(shape, source, err);
    for (const struct ew_field *field = ew_fields; field->name && !rc; field++)
        rc = apply_key(shape, source, field, err);
    if (rc)
        return rc;
    derive_layers(shape);
    derive_experts(shape);
    while (hooked && !hooked->hook)
        hooked = hooked->parent;
    if (hooked)
        hooked->hook(shape);
    return 0;
}

static void set_arch(struct ew_shape *shape, struct ew_str name)
{
    snprintf(shape->common.arch, sizeof(shape->common.arch), EW_STR_FMT, EW_STR_ARG(name));
}

#define CLASSIFIER "ForSequenceClassification" // how classes of Hugging Face's end that have one

// What the family lists, and classifiers over its language models.
static bool computes(const struct ew_family *family, struct ew_str arch)
{
    char text[96];

    if (ew_family_has_architecture(family, EW_FAMILY_HF, arch))
        return true;
    if (!ew_str_ends(arch, CLASSIFIER))
        return false;
    snprintf(text, sizeof(text), "%.*sForCausalLM", (int)(arch.len - strlen(CLASSIFIER)), arch.ptr);
    return ew_family_has_architecture(family, EW_FAMILY_HF, ew_str_of(text));
}

// The family of config.json, by model_type and else by architectures; the architecture must be one that the family
// computes.
static int find_hf_family(const struct ew_families *families, const struct ew_json *config,
                          const struct ew_family **out, struct ew_error *err)
{
    struct ew_str type = ew_json_str(ew_json_get(config, "model_type"), "");
    struct ew_str arch = ew_json_str(ew_json_at(ew_json_get(config, "architectures"), 0), "");

    *out = type.len ? ew_family_of_model_type(families, type) : ew_family_of_architecture(families, EW_FAMILY_HF, arch);
    if (!type.len && !arch.len)
        return ew_fail(err, EW_ERR_FORMAT,
                       "config.json has neither a model_type nor architectures: it describes no model");
    if (!*out)
        ew_fail(err, EW_ERR_UNSUPPORTED,
                "config.json describes a model of type \"" EW_STR_FMT "\" (" EW_STR_FMT
                "), which edgewise cannot compute",
                EW_STR_ARG(type), EW_STR_ARG(arch));
    else if (arch.len && !computes(*out, arch))
        ew_fail(err, EW_ERR_UNSUPPORTED,
                "config.json describes a " EW_STR_FMT ", but of the family %s edgewise computes language models only",
                EW_STR_ARG(arch), (*out)->name);
    else
        return 0;
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "See docs/families.md for what is supported, and how to add a family");
}

// How many labels a classifier has, its matrix knows best.
static void find_labels(struct ew_shape *shape, const struct source *source)
{
    const struct ew_tensor *tensor = NULL;
    char name[192];

    for (uint32_t i = 0; shape->classifier && source->tensors && !tensor &&
                         ew_family_tensor(source->family, source->format, "cls.output", 0, i, name, sizeof(name) - 8);
         i++) {
        memcpy(name + strlen(name), ".weight", sizeof(".weight"));
        tensor = ew_family_find_rooted(source->root, source->tensors, ew_str_of(name));
    }
    if (tensor && tensor->n_dims == 2 && tensor->shape[0] <= EW_WIDTH_MAX)
        shape->n_labels = (uint32_t)tensor->shape[0];
}

// What calls itself a classifier has one.
static int check_classifier(const struct ew_shape *shape, const struct source *source, struct ew_error *err)
{
    struct ew_str arch = ew_json_str(ew_json_at(ew_json_get(source->outer, "architectures"), 0), "");
    char name[192] = "";

    if (shape->classifier || !source->tensors || !ew_str_ends(arch, CLASSIFIER))
        return 0;
    (void)ew_family_tensor(source->family, EW_FAMILY_HF, "cls.output", 0, 0, name, sizeof(name));
    return ew_fail(err, EW_ERR_FORMAT, "config.json describes a " EW_STR_FMT ", whose tensor %s.weight is missing",
                   EW_STR_ARG(arch), name);
}

const struct ew_json *ew_config_of_text(const struct ew_json *config)
{
    static const char *const names[] = {"thinker_config", "text_config"};

    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        const struct ew_json *inner = ew_json_get(config, names[i]);

        if (inner && inner->type == EW_JSON_T_OBJECT)
            config = inner;
    }
    return config;
}

int ew_shape_from_config(struct ew_shape *shape, const struct ew_families *families, const struct ew_json *config,
                         const struct ew_tensors *tensors, const struct ew_family **family, struct ew_error *err)
{
    struct source source = {.format = EW_FAMILY_HF, .outer = config, .tensors = tensors};
    int rc;

    ew_shape_init(shape);
    if (!config || config->type != EW_JSON_T_OBJECT)
        return ew_fail(err, EW_ERR_FORMAT, "config.json is not an object");
    rc = find_hf_family(families, config, &source.family, err);
    if (rc)
        return rc;
    *family = source.family;
    source.config = ew_config_of_text(config);
    source.root = tensors ? ew_family_root(source.family, EW_FAMILY_HF, tensors) : NULL;
    set_arch(shape, ew_str_of(source.family->name));
    rc = read_shape(shape, &source, err);
    if (!rc)
        rc = ew_rope_from_config(shape, source.config, err);
    find_labels(shape, &source);
    if (!rc)
        rc = check_classifier(shape, &source, err);
    return rc ? rc : ew_shape_finish(shape, err);
}

// Files without the key: the embedding knows best, then the tokenizer.
static void find_gguf_vocab(struct ew_shape *shape, const struct ew_gguf *gguf)
{
    const struct ew_tensor *embed = ew_tensors_find(&gguf->tensors, EW_STR("token_embd.weight"));
    const struct ew_gguf_value *tokens = ew_gguf_find(gguf, "tokenizer.ggml.tokens");

    if (embed && embed->n_dims == 2 && embed->shape[0] <= EW_VOCAB_MAX)
        shape->common.n_vocab = (uint32_t)embed->shape[0];
    else if (!shape->common.n_vocab && tokens && tokens->type == EW_GGUF_ARRAY && tokens->count <= EW_VOCAB_MAX)
        shape->common.n_vocab = (uint32_t)tokens->count;
}

int ew_shape_from_gguf(struct ew_shape *shape, const struct ew_families *families, const struct ew_gguf *gguf,
                       const struct ew_family **family, struct ew_error *err)
{
    struct source source = {.format = EW_FAMILY_GGUF, .gguf = gguf, .tensors = &gguf->tensors};
    struct ew_str arch = ew_gguf_str(gguf, "general.architecture", "");
    int rc;

    ew_shape_init(shape);
    source.family = ew_family_of_architecture(families, EW_FAMILY_GGUF, arch);
    if (!arch.len)
        return ew_fail(err, EW_ERR_FORMAT,
                       "the GGUF key general.architecture, which says what the model is, is missing");
    if (!source.family) {
        ew_fail(err, EW_ERR_UNSUPPORTED,
                "the GGUF file holds a model of architecture \"" EW_STR_FMT "\", which edgewise cannot compute",
                EW_STR_ARG(arch));
        return ew_remedy(err, EW_ERR_UNSUPPORTED,
                         "See docs/families.md for what is supported, and how to add a family");
    }
    *family = source.family;
    set_arch(shape, arch); // its keys stand under this name
    rc = read_shape(shape, &source, err);
    if (!rc)
        rc = ew_rope_from_gguf(shape, gguf, err);
    find_gguf_vocab(shape, gguf);
    find_labels(shape, &source);
    set_arch(shape, ew_str_of(source.family->name));
    return rc ? rc : ew_shape_finish(shape, err);
}

static int check_given(const struct ew_model_shape *c, struct ew_error *err)
{
    const struct {
        const char *what;
        uint32_t value;
    } needed[] = {
        {"layers", c->n_layers},
        {"the vocabulary's entries", c->n_vocab},
        {"the residual stream's width", c->width},
        {"the feed-forward's width", c->ffn_width},
        {"attention heads", c->n_heads},
        {"trained context tokens", c->context_trained},
    };

    for (size_t i = 0; i < EW_COUNT_OF(needed); i++)
        if (!needed[i].value)
            return ew_fail(err, EW_ERR_FORMAT, "the model's configuration does not give the number of %s",
                           needed[i].what);
    return 0;
}

static int check_heads(const struct ew_shape *shape, struct ew_error *err)
{
    const struct ew_model_shape *c = &shape->common;

    if (!c->head_dim)
        return ew_fail(err, EW_ERR_FORMAT, "a width of %u cannot be shared by %u heads, and no head size is given",
                       c->width, c->n_heads);
    if (c->n_heads % c->n_kv_heads)
        return ew_fail(err, EW_ERR_FORMAT, "%u attention heads cannot share %u key/value heads evenly", c->n_heads,
                       c->n_kv_heads);
    if ((uint64_t)c->n_heads * EW_MAX(c->head_dim, shape->v_dim) > EW_WIDTH_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "%u heads of %u elements are more than the %u that a model may have in all",
                       c->n_heads, c->head_dim, EW_WIDTH_MAX);
    return 0;
}

// Keys and values that are made from latents: every head has its own, whatever a file calls their number.
static int finish_latent(struct ew_shape *shape, struct ew_error *err)
{
    struct ew_model_shape *c = &shape->common;

    if (!shape->kv_latent)
        return 0;
    if (shape->plain_dim && shape->rope_dims)
        c->head_dim = shape->plain_dim + shape->rope_dims;
    if (!shape->rope_dims || shape->rope_dims >= c->head_dim || !shape->v_dim)
        return ew_fail(err, EW_ERR_FORMAT,
                       "heads of %u elements, %u of them rotated, and values of %u cannot be made "
                       "from latents",
                       c->head_dim, shape->rope_dims, shape->v_dim);
    if (shape->kv_latent + shape->rope_dims > EW_HEAD_DIM_MAX ||
        (uint64_t)c->n_heads * (shape->kv_latent + shape->rope_dims) > EW_WIDTH_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "latents of %u elements for %u heads are too large", shape->kv_latent,
                       c->n_heads);
    c->n_kv_heads = c->n_heads;
    return 0;
}

static int finish_experts(struct ew_shape *shape, struct ew_error *err)
{
    uint32_t n = shape->n_experts, groups = shape->route_groups;

    if (!n) { // whatever the family says of experts does not matter: equal models have equal shapes
        shape->route_normalise = shape->route_choice_bias = false;
        shape->route_scale = 1;
        shape->n_experts_active = shape->expert_width = shape->shared_width = shape->n_shared = 0;
        shape->route_groups = shape->route_groups_active = 0;
        return 0;
    }
    if (!shape->expert_width)
        shape->expert_width = shape->common.ffn_width;
    if (!shape->shared_width && shape->n_shared)
        shape->shared_width = (uint32_t)EW_MIN((uint64_t)shape->n_shared * shape->expert_width, EW_FFN_WIDTH_MAX);
    if (!shape->n_experts_active || shape->n_experts_active > n)
        return ew_fail(err, EW_ERR_FORMAT, "%u of %u experts would serve a token", shape->n_experts_active, n);
    if (shape->route_input && shape->n_experts_active != 1)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "%u experts a token, each with an input scaled for it, which edgewise "
                       "cannot compute",
                       shape->n_experts_active);
    if (groups > 1 && (n % groups || !shape->route_groups_active || shape->route_groups_active > groups ||
                       shape->route_groups_active * (n / groups) < shape->n_experts_active))
        return ew_fail(err, EW_ERR_FORMAT, "%u experts in %u groups, of which %u count, cannot give %u to a token", n,
                       groups, shape->route_groups_active, shape->n_experts_active);
    return 0;
}

static bool has_mixer(const struct ew_shape *shape, enum ew_mixer mixer)
{
    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        if (shape->layers[i].mixer == mixer)
            return true;
    return false;
}

static int finish_states(struct ew_shape *shape, struct ew_error *err)
{
    bool has_states = has_mixer(shape, EW_MIXER_STATE),
         sequential = !shape->parallel && !shape->encoder && shape->norm_place != EW_NORM_PLACE_AROUND;

    if (!sequential && (has_states || has_mixer(shape, EW_MIXER_NONE)))
        return ew_fail(err, EW_ERR_UNSUPPORTED, "layers without attention are computed in sequential decoders only");
    if (!has_states)
        return 0;
    if (!shape->state_heads || !shape->state_groups || !shape->state_k_dim || !shape->state_taps ||
        (!shape->state_v_dim && !shape->state_inner))
        return ew_fail(err, EW_ERR_FORMAT, "the model's configuration does not give the sizes of its layers' states");
    if (!shape->state_v_dim && shape->state_inner % shape->state_heads == 0)
        shape->state_v_dim = shape->state_inner / shape->state_heads;
    if (shape->state_heads % shape->state_groups || !shape->state_v_dim || shape->state_v_dim > EW_HEAD_DIM_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "%u heads of a state cannot share %u elements and %u groups evenly",
                       shape->state_heads, shape->state_inner, shape->state_groups);
    if ((uint64_t)shape->state_heads * EW_MAX(shape->state_k_dim, shape->state_v_dim) > EW_WIDTH_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "%u heads of a state are more than the %u elements that a model may have",
                       shape->state_heads, EW_WIDTH_MAX);
    shape->state_inner = shape->state_heads * shape->state_v_dim;
    return 0;
}

// YaRN's configuration may leave the context at what the model was trained with before.
static void stretch_context(struct ew_shape *shape)
{
    const struct ew_rope_shape *rope = &shape->ropes[EW_MIXER_FULL];
    double stretched = rope->factor * rope->context_original;

    if (rope->scaling == EW_ROPE_SCALING_YARN && stretched > shape->common.context_trained &&
        stretched <= EW_CONTEXT_MAX)
        shape->common.context_trained = (uint32_t)stretched;
}

// Clears what only served to derive the rest, so that equal models have equal shapes.
static void forget_reading(struct ew_shape *shape)
{
    shape->layers_given = shape->no_rope_given = shape->window_off = shape->qk_norm_off = shape->q_scale_off = false;
    shape->window_first_layer = shape->window_period = shape->no_rope_period = shape->position_after = 0;
    shape->window_full_first = false;
    shape->state_period = 0;
    shape->rope_dims = shape->context_original = shape->ffn_ratio = 0;
    shape->multi_query = shape->multi_query_off = false;
    shape->moe_first_layer = shape->moe_period = shape->n_shared = 0;
    shape->rope_theta_window = shape->rope_theta_ratio = shape->rope_mscale_ratio = 0;
    shape->plain_dim = 0;
    shape->rope_theta = shape->rope_partial = 0;
    shape->rope_scaled_full_only = shape->rope_long_off = shape->rope_truncate_off = false;
}

static int finish_encoder(struct ew_shape *shape, struct ew_error *err)
{
    struct ew_model_shape *c = &shape->common;

    if (shape->position_learned && shape->position_after)
        shape->position_first = shape->position_after + 1;
    if (shape->position_first >= c->context_trained)
        return ew_fail(err, EW_ERR_FORMAT, "%u learned positions leave none behind the %u that padding takes",
                       c->context_trained, shape->position_first);
    c->context_trained -= shape->position_first;
    if (!shape->classifier) // what files say of one that they do not have
        shape->class_direct = shape->class_norm = shape->bias_class = shape->bias_labels = false;
    if (!shape->encoder && !shape->classifier)
        return 0;
    shape->head = shape->classifier ? EW_HEAD_SCORES : EW_HEAD_HIDDEN;
    shape->uncached = true;
    if (shape->classifier && !shape->n_labels)
        return ew_fail(err, EW_ERR_FORMAT, "the classifier's matrix does not say how many labels it has");
    return 0;
}

int ew_shape_finish(struct ew_shape *shape, struct ew_error *err)
{
    struct ew_model_shape *c = &shape->common;
    int rc;

    if (!c->ffn_width && shape->ffn_ratio && c->width <= EW_FFN_WIDTH_MAX / shape->ffn_ratio)
        c->ffn_width = shape->ffn_ratio * c->width;
    rc = check_given(c, err);
    if (rc)
        return rc;
    rc = finish_latent(shape, err);
    if (rc)
        return rc;
    if (shape->multi_query && !shape->multi_query_off)
        c->n_kv_heads = 1;
    else if (!c->n_kv_heads)
        c->n_kv_heads = c->n_heads;
    if (!c->head_dim && c->width % c->n_heads == 0)
        c->head_dim = c->width / c->n_heads;
    if (!shape->v_dim)
        shape->v_dim = c->head_dim;
    rc = check_heads(shape, err);
    if (!rc)
        rc = finish_encoder(shape, err);
    if (!rc)
        rc = finish_experts(shape, err);
    if (!rc)
        rc = finish_states(shape, err);
    if (rc)
        return rc;
    if (!(shape->attention_scale > 0))
        shape->attention_scale = (float)(1 / sqrt(c->head_dim));
    if (shape->embed_sqrt_width)
        shape->embed_scale = sqrtf((float)c->width);
    if (!shape->alibi)
        shape->alibi_scaled = 0;
    if (shape->q_scale_off)
        shape->q_scale_beta = 0;
    if (shape->window_off)
        shape->window = 0;
    if (shape->qk_norm_off)
        shape->qk_norm = EW_QK_NORM_NONE;
    rc = ew_rope_finish(shape, err);
    if (!rc && shape->kv_latent)
        shape->attention_scale *= ew_rope_latent_factor(&shape->ropes[EW_MIXER_FULL]);
    stretch_context(shape);
    forget_reading(shape);
    return rc;
}
