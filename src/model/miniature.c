#include "model/miniature.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "model/builder.h"
#include "model/synthetic.h"

#define WIDTH 512       // several times what any kernel takes at a time in its inner loop ...
#define RESIDUE 256     // ... and what remains of the real width by the widest of their steps
#define VOCAB 1024
#define CONTEXT 512     // rows of learned positions
#define KV_HEADS 2
#define LATENT_HEADS 16 // that a block of attention over latents takes
#define WINDOW 40       // shorter than the longest of the self-test's prompts

struct kept {
    const struct ew_model *model;
    uint32_t layers[EW_MINIATURE_LAYERS_MAX]; // of the model, in rising order
    uint32_t n_layers;
    float norm_offset;
    uint64_t seed;
    struct ew_arena *arena; // of the model in small
};

static uint32_t shrink(uint32_t n, uint32_t to)
{
    return n > to + RESIDUE ? to + n % RESIDUE : n;
}

// ---- layers -------------------------------------------------------------------------------------

// The weight of the layer after *at, by the program's order; NULL: there is none.
static const struct ew_weight *next_weight(const struct ew_program *program, uint32_t layer, uint32_t *at)
{
    char prefix[32];
    size_t length = (size_t)snprintf(prefix, sizeof(prefix), "blk.%u.", layer);

    for (; *at < program->n_weights; (*at)++) {
        if (strncmp(program->weights[*at].name, prefix, length) == 0)
            return &program->weights[(*at)++];
    }
    return NULL;
}

static bool is_alike(const struct ew_model *model, uint32_t a, uint32_t b)
{
    const struct ew_layer_shape *x = &model->whole_shape->layers[a], *y = &model->whole_shape->layers[b];
    const struct ew_weight *of_a, *of_b;
    uint32_t at_a = 0, at_b = 0;

    if (x->mixer != y->mixer || x->no_rope != y->no_rope || x->dense != y->dense || x->no_ffn != y->no_ffn ||
        x->ffn_width != y->ffn_width)
        return false;
    do {
        of_a = next_weight(&model->program, a, &at_a);
        of_b = next_weight(&model->program, b, &at_b);
        if (!of_a != !of_b || (of_a && of_a->source.dtype != of_b->source.dtype))
            return false;
    } while (of_a);
    return true;
}

static void keep_layers(struct kept *kept)
{
    for (uint32_t i = 0; i < kept->model->whole_shape->common.n_layers; i++) {
        bool is_new = kept->n_layers < EW_MINIATURE_LAYERS_MAX;

        for (uint32_t k = 0; k < kept->n_layers && is_new; k++)
            is_new = !is_alike(kept->model, kept->layers[k], i);
        if (is_new)
            kept->layers[kept->n_layers++] = i;
    }
}

// ---- shape --------------------------------------------------------------------------------------

static void shrink_heads(struct ew_shape *shape)
{
    struct ew_model_shape *c = &shape->common;
    uint32_t per_kv = c->n_heads / c->n_kv_heads;

    if (shape->kv_latent) {
        if (c->n_heads > 2 * LATENT_HEADS)
            c->n_heads = c->n_kv_heads = LATENT_HEADS + c->n_heads % LATENT_HEADS;
        return;
    }
    c->n_kv_heads = EW_MIN(c->n_kv_heads, KV_HEADS);
    c->n_heads = per_kv * c->n_kv_heads;
}

static void shrink_experts(struct ew_shape *shape)
{
    uint32_t groups = EW_MAX(shape->route_groups, 1u), least = 2 * shape->n_experts_active, each;

    if (!shape->n_experts)
        return;
    each = EW_MIN(EW_MAX((least + groups - 1) / groups, 2u), shape->n_experts / groups);
    if (groups > 1) // enough in the groups that count
        each = EW_MAX(each, (shape->n_experts_active + shape->route_groups_active - 1) / shape->route_groups_active);
    shape->n_experts = each * groups;
    shape->expert_width = shrink(shape->expert_width, WIDTH / 2);
    shape->shared_width = shrink(shape->shared_width, WIDTH / 2);
}

static void shrink_shape(struct ew_shape *shape, const struct kept *kept)
{
    struct ew_model_shape *c = &shape->common;

    for (uint32_t i = 0; i < kept->n_layers; i++) {
        shape->layers[i] = kept->model->whole_shape->layers[kept->layers[i]];
        shape->layers[i].ffn_width = shrink(shape->layers[i].ffn_width, WIDTH);
    }
    memset(shape->layers + kept->n_layers, 0, (EW_LAYERS_MAX - kept->n_layers) * sizeof(*shape->layers));
    c->n_layers = kept->n_layers;
    c->n_vocab = shrink(c->n_vocab, VOCAB);
    c->width = shrink(c->width, WIDTH);
    c->ffn_width = shrink(c->ffn_width, WIDTH);
    c->context_trained = EW_MIN(c->context_trained, CONTEXT);
    shape->q_latent = shrink(shape->q_latent, WIDTH);
    shape->window = EW_MIN(shape->window, WINDOW);
    shape->chunk = EW_MIN(shape->chunk, WINDOW);
    shrink_heads(shape);
    shrink_experts(shape);
}

// ---- weights ------------------------------------------------------------------------------------

static const struct ew_weight_source *source_of(const struct kept *kept, const char *name)
{
    const struct ew_program *program = &kept->model->program;
    char original[128];
    unsigned layer;
    int rest = 0;

    snprintf(original, sizeof(original), "%s", name);
    if (sscanf(name, "blk.%u.%n", &layer, &rest) == 1 && rest)
        snprintf(original, sizeof(original), "blk.%u.%s", kept->layers[layer], name + rest);
    for (uint32_t i = 0; i < program->n_weights; i++) {
        if (strcmp(program->weights[i].name, original) == 0)
            return &program->weights[i].source;
    }
    return NULL; // a name that the model has not, because what it is for depends on a size
}

static int make_matrix(const struct kept *kept, const struct ew_weight_want *want, struct ew_weight_source *out,
                       struct ew_error *err)
{
    const struct ew_weight_source *source = source_of(kept, want->name);
    enum ew_dtype dtype = !source ? EW_DTYPE_F16 : source->ordered ? source->ordered->dtype : source->dtype;

    *out = ew_synthetic_matrix(dtype, want->cols, kept->seed);
    return source && source->ordered ? ew_synthetic_reorder(kept->arena, want->cols, out, err) : 0;
}

static int find_weight(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out, struct ew_error *err)
{
    struct kept *kept = ctx;
    struct ew_str name = ew_str_of(want->name);
    bool is_norm = ew_str_ends(name, "_norm");

    kept->seed++;
    if (want->is_matrix)
        return make_matrix(kept, want, out, err);
    if (ew_str_ends(name, ".ssm_a")) // decay
        *out = ew_synthetic_vector(want->cols, -1, 0.1F, kept->seed);
    else
        *out = ew_synthetic_vector(want->cols, is_norm ? 1 - kept->norm_offset : 0, 0.2F, kept->seed);
    return 0;
}

int ew_model_miniature(const struct ew_model *model, uint64_t seed, struct ew_model **out, struct ew_error *err)
{
    struct kept kept = {.model = model, .norm_offset = model->whole_shape->norm_weight_offset, .seed = seed << 20};
    struct ew_weight_finder finder = {.find = find_weight, .ctx = &kept};
    struct ew_model *mini = ew_alloc(sizeof(*mini));
    int rc;

    *out = NULL;
    if (!mini)
        return ew_fail_memory(err, sizeof(*mini), "a model in small");
    ew_arena_init(&mini->arena, SIZE_MAX);
    kept.arena = &mini->arena;
    mini->whole_shape = ew_alloc(sizeof(*mini->whole_shape));
    mini->path = ew_strdup("a model in small");
    rc = mini->path && mini->whole_shape ? 0 : ew_fail_memory(err, sizeof(*mini->whole_shape), "a model in small");
    if (rc == 0) {
        keep_layers(&kept);
        *mini->whole_shape = *model->whole_shape;
        shrink_shape(mini->whole_shape, &kept);
        mini->is_synthetic = true;
        mini->shape = mini->whole_shape->common;
        mini->tokens.bos = -1;
        mini->pooling.kind = model->pooling.kind;
        mini->pooling.width = mini->shape.width;
        rc = ew_program_build(&mini->program, mini->whole_shape, &finder, &mini->arena, err);
    }
    if (rc) {
        ew_model_close(mini);
        return rc;
    }
    mini->program.name = mini->shape.arch;
    *out = mini;
    return 0;
}
