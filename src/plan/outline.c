#include "plan/outline.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/builder.h"
#include "model/family.h"
#include "model/model.h"
#include "model/quantised.h"

#define ARENA_BYTES_MAX ((size_t)256 << 20)

const struct ew_weight_type ew_weight_types[] = {
    {"f32", 32},      {"bf16", 16},  {"f16", 16},      {"q8_0", 8.5}, {"fp8", 8},    {"int8", 8},
    {"q6_k", 6.5625}, {"q5_k", 5.5}, {"q4_k_m", 4.85}, {"q4_k", 4.5}, {"q4_0", 4.5}, {"nvfp4", 4.5},
    {"mxfp4", 4.25},  {"awq", 4.25}, {"int4", 4},      {0},
};

const struct ew_weight_type *ew_weight_type_find(const char *name)
{
    for (const struct ew_weight_type *type = ew_weight_types; type->name; type++)
        if (strcmp(type->name, name) == 0)
            return type;
    return NULL;
}

static bool is_embedding_only(const struct ew_program *program, uint32_t weight)
{
    bool embeds = false, multiplies = false;

    for (uint32_t i = 0; i < program->n_ops; i++) {
        embeds |= program->ops[i].kind == EW_OP_EMBED && program->ops[i].weight == weight;
        multiplies |= program->ops[i].kind == EW_OP_LINEAR && program->ops[i].weight == weight;
    }
    return embeds && !multiplies;
}

// Of a weight, what one token makes use of.
static double share_of_token(const struct ew_program *program, uint32_t weight)
{
    uint32_t n_experts = program->weights[weight].n_experts;

    if (is_embedding_only(program, weight))
        return 1 / (double)program->weights[weight].rows;
    for (uint32_t i = 0; n_experts && i < program->n_ops; i++)
        if (program->ops[i].kind == EW_OP_ROUTE)
            return (double)program->ops[i].route.n_active / n_experts;
    return 1;
}

// The same tensor may be bound twice, as a tied head is.
static bool is_repeated(const struct ew_program *program, uint32_t index)
{
    for (uint32_t i = 0; i < index; i++)
        if (strcmp(program->weights[i].name, program->weights[index].name) == 0)
            return true;
    return false;
}

static void add_weights(struct ew_outline *outline, const struct ew_program *program, const struct ew_weight_type *type)
{
    for (uint32_t i = 0; i < program->n_weights; i++) {
        const struct ew_weight *weight = &program->weights[i];
        double elements = (double)weight->rows * (double)weight->cols;
        const struct ew_weight_source *source = weight->source.ordered ? weight->source.ordered : &weight->source;
        double bytes = type && weight->is_matrix
                           ? elements * type->bits / 8
                           : (double)ew_dtype_row_bytes(source->dtype, weight->cols) * (double)weight->rows;

        if (is_repeated(program, i))
            continue;
        outline->params += elements;
        outline->weight_bytes += bytes;
        outline->read_bytes += bytes * share_of_token(program, i);
        outline->active_params += elements * (weight->n_experts ? share_of_token(program, i) : 1);
    }
}

static void add_caches(struct ew_outline *outline, const struct ew_program *program)
{
    for (uint32_t i = 0; i < program->n_groups; i++) {
        const struct ew_cache_group *group = &program->groups[i];
        double heads = (double)group->n_layers * group->n_kv_heads;
        double elements = heads * (group->k_dim + group->v_dim), scales = heads * 2;

        if (group->kind == EW_CACHE_STATE) {
            outline->state_bytes += (double)group->n_layers * (double)group->state_bytes;
        } else if (group->kind == EW_CACHE_WINDOW) {
            outline->kv_fixed_elements += elements * group->window;
            outline->kv_fixed_scales += scales * group->window;
        } else {
            outline->kv_elements += elements;
            outline->kv_scales += scales;
        }
    }
    outline->kv_known = true;
    outline->makes_vectors = program->n_groups == 0;
}

static void describe(struct ew_outline *outline, const char *name, const struct ew_program *program,
                     const struct ew_weight_type *type, const char *file_type, uint32_t context)
{
    *outline = (struct ew_outline){.context_trained = context, .width = program->width};
    snprintf(outline->name, sizeof(outline->name), "%s", name);
    snprintf(outline->type, sizeof(outline->type), "%s", type ? type->name : file_type);
    add_weights(outline, program, type);
    add_caches(outline, program);
}

// What a config.json says of the weights' types.
struct declared {
    enum ew_dtype dtype;
    struct ew_quantised quantised;
};

// Any weight exists, with the type that the checkpoint is said to have: only sizes are asked for.
static int find_nothing(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out,
                        struct ew_error *err)
{
    const struct declared *declared = ctx;
    bool in_layer = want->is_matrix && strncmp(want->name, "blk.", 4) == 0;

    (void)err;
    *out = (struct ew_weight_source){.dtype = declared->dtype};
    if (in_layer && want->n_heads && declared->quantised.method != EW_QUANTISED_NOT)
        out->dtype = EW_DTYPE_F16; // as the binder reads them
    else if (in_layer)
        out->dtype = ew_quantised_type(&declared->quantised, want->n_experts > 0, declared->dtype);
    return EW_OK;
}

static enum ew_dtype config_dtype(const struct ew_json *config)
{
    struct ew_str name = ew_json_str(ew_json_get(config, "dtype"), "");

    if (name.len == 0)
        name = ew_json_str(ew_json_get(config, "torch_dtype"), "bfloat16");
    return ew_str_is(name, "float32") ? EW_DTYPE_F32 : ew_str_is(name, "float16") ? EW_DTYPE_F16 : EW_DTYPE_BF16;
}

static int build_from_config(struct ew_program *program, struct ew_shape *shape, struct ew_arena *arena,
                             const struct ew_json *config, enum ew_dtype *dtype, struct ew_error *err)
{
    struct declared declared = {.dtype = *dtype};
    struct ew_weight_finder finder = {find_nothing, &declared};
    struct ew_families *families = ew_alloc(sizeof(*families));
    const struct ew_family *family;
    int code;

    if (!families)
        return ew_fail_memory(err, sizeof(*families), "the table of families");
    code = ew_families_load(families, err);
    if (code == EW_OK)
        code = ew_shape_from_config(shape, families, config, NULL, &family, err);
    if (code == EW_OK)
        code = ew_quantised_read(config, &declared.quantised, err);
    if (code == EW_OK)
        code = ew_program_build(program, shape, &finder, arena, err);
    *dtype = ew_quantised_type(&declared.quantised, shape->n_experts > 0, *dtype);
    ew_families_free(families);
    ew_free(families);
    return code;
}

static int outline_of_config(struct ew_outline *outline, const char *model, const struct ew_weight_type *type,
                             struct ew_error *err)
{
    struct ew_shape *shape = ew_alloc(sizeof(*shape));
    struct ew_program program = {0};
    struct ew_modelfile file;
    struct ew_arena arena;
    enum ew_dtype dtype = EW_DTYPE_BF16;
    int code;

    if (!shape)
        return ew_fail_memory(err, sizeof(*shape), "a model");
    ew_arena_init(&arena, ARENA_BYTES_MAX);
    code = ew_modelfile_open(&file, model, false, err);
    if (code != EW_OK)
        goto out;
    if (file.kind == EW_MODELFILE_HF) {
        dtype = config_dtype(file.config);
        code = build_from_config(&program, shape, &arena, file.config, &dtype, err);
    } else {
        code = ew_fail(err, EW_ERR_UNSUPPORTED, "%s holds a vocabulary and no weights", model);
    }
    if (code == EW_OK) {
        describe(outline, model, &program, type, ew_dtype_name(dtype), shape->common.context_trained);
        outline->makes_scores = shape->head == EW_HEAD_SCORES;
    }
    ew_modelfile_close(&file);
out:
    ew_arena_fini(&arena);
    ew_free(shape);
    return code;
}

int ew_outline_of_model(struct ew_outline *outline, const char *model, const struct ew_weight_type *type,
                        struct ew_error *err)
{
    struct ew_model *opened;
    struct ew_error first;
    int code = ew_model_open(model, &opened, &first);

    if (code == EW_OK && opened->program.n_weights) {
        describe(outline, model, &opened->program, type, opened->dtype, opened->shape.context_trained);
        outline->makes_scores = opened->pooling.is_score;
        ew_model_close(opened);
        return EW_OK;
    }
    if (code == EW_OK)
        ew_model_close(opened);
    if (outline_of_config(outline, model, type, err) == EW_OK)
        return EW_OK;
    if (err && code != EW_OK)
        *err = first; // what opening said is nearer to the truth than what the second try said
    return code != EW_OK ? code : EW_ERR_UNSUPPORTED;
}

int ew_outline_of_figures(struct ew_outline *outline, const struct ew_outline_figures *figures,
                          const struct ew_weight_type *type, struct ew_error *err)
{
    double heads = (double)figures->layers * figures->kv_heads;

    *outline = (struct ew_outline){.params = figures->params, .width = figures->width};
    outline->active_params = figures->active_params > 0 ? figures->active_params : figures->params;
    if (outline->params <= 0 || outline->active_params > outline->params)
        return ew_fail(err, EW_ERR_USAGE, "the active parameters must be some of the parameters");
    snprintf(outline->name, sizeof(outline->name), "%.4g B parameters", figures->params / 1e9);
    snprintf(outline->type, sizeof(outline->type), "%s", type->name);
    outline->weight_bytes = outline->params * type->bits / 8;
    outline->read_bytes = outline->active_params * type->bits / 8;
    outline->kv_known = figures->layers && figures->kv_heads && figures->head_dim;
    outline->kv_elements = heads * 2 * figures->head_dim;
    outline->kv_scales = heads * 2;
    return EW_OK;
}
