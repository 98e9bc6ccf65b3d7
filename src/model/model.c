#include "model/model.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "model/builder.h"
#include "model/family.h"
#include "model/pooling.h"
#include "model/synthetic.h"
#include "model/tokens.h"
#include "model/weights.h"

#define ARENA_BYTES_MAX ((size_t)256 << 20) // the largest program that passes the shape's limits takes a tenth

static void count_params(struct ew_model *model)
{
    for (uint32_t i = 0; i < model->program.n_weights; i++)
        model->n_params += model->program.weights[i].rows * model->program.weights[i].cols;
}

static void set_dtype(struct ew_model *model, enum ew_dtype dtype)
{
    snprintf(model->dtype, sizeof(model->dtype), "%s", ew_dtype_name(dtype));
}

static int open_synthetic(struct ew_model *model, struct ew_shape *shape, struct ew_error *err)
{
    struct ew_synthetic synthetic;
    struct ew_weight_finder finder = ew_synthetic_finder(&synthetic);
    int best = EW_DTYPE_F32, rc = ew_synthetic_parse(&synthetic, model->path, &model->arena, shape, err);

    if (rc)
        return rc;
    model->shape = shape->common;
    model->tokens.bos = -1;
    if (shape->head == EW_HEAD_HIDDEN)
        model->pooling = (struct ew_pooling){
            .kind = EW_POOLING_LAST, .normalise = true, .width = shape->common.width, .prompt_default = EW_STR("")};
    rc = ew_program_build(&model->program, shape, &finder, &model->arena, err);
    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        if (synthetic.type_bytes[i] > synthetic.type_bytes[best])
            best = i;
    set_dtype(model, (enum ew_dtype)best);
    model->file_bytes = synthetic.bytes;
    return rc;
}

static int bind_and_build(struct ew_model *model, const struct ew_shape *shape, const struct ew_family *family,
                          struct ew_error *err)
{
    enum ew_family_format format = model->file.kind == EW_MODELFILE_GGUF ? EW_FAMILY_GGUF : EW_FAMILY_HF;
    struct ew_binder binder;
    struct ew_weight_finder finder = ew_binder_finder(&binder);
    int rc = ew_binder_init(&binder, family, format, model->file.tensors, &model->arena, err);

    if (rc)
        return rc;
    if (format == EW_FAMILY_HF)
        rc = ew_quantised_read(model->file.config, &binder.quantised, err);
    if (!rc)
        rc = ew_program_build(&model->program, shape, &finder, &model->arena, err);
    if (!rc)
        ew_binder_log_unused(&binder);
    model->file_bytes = binder.used_bytes;
    set_dtype(model, ew_binder_main_type(&binder));
    ew_binder_fini(&binder);
    return rc;
}

// Without weights nothing will be computed: a name and the size of the vocabulary are enough, of any architecture.
static void describe_only(struct ew_model *model)
{
    const struct ew_modelfile *file = &model->file;
    const struct ew_gguf_value *tokens;
    struct ew_str arch;
    int64_t n_vocab;

    if (file->kind == EW_MODELFILE_HF) {
        arch = ew_json_str(ew_json_get(file->config, "model_type"), "");
        n_vocab = ew_json_int(ew_json_get(file->config, "vocab_size"), 0);
    } else {
        tokens = ew_gguf_find(&file->gguf, "tokenizer.ggml.tokens");
        arch = ew_gguf_str(&file->gguf, "general.architecture", "");
        n_vocab = tokens && tokens->count <= INT32_MAX ? (int64_t)tokens->count : 0;
    }
    snprintf(model->shape.arch, sizeof(model->shape.arch), EW_STR_FMT, EW_STR_ARG(arch));
    model->shape.n_vocab = n_vocab > 0 && n_vocab <= EW_VOCAB_MAX ? (uint32_t)n_vocab : 0;
}

// A GGUF file may hold a vocabulary alone; a directory without its weights is a mistake.
static int open_modelfile(struct ew_model *model, struct ew_error *err)
{
    int rc = ew_modelfile_open(&model->file, model->path, true, err);

    if (rc != EW_ERR_UNSUPPORTED || ew_modelfile_open(&model->file, model->path, false, NULL))
        return rc;
    if (model->file.kind == EW_MODELFILE_GGUF && model->file.tensors->count == 0)
        return 0;
    ew_modelfile_close(&model->file);
    return rc;
}

static int open_file(struct ew_model *model, struct ew_shape *shape, struct ew_error *err)
{
    struct ew_families *families;
    const struct ew_family *family = NULL;
    int rc = open_modelfile(model, err);

    if (rc)
        return rc;
    if (model->file.tensors->count == 0) {
        describe_only(model);
        return 0;
    }
    families = ew_alloc(sizeof(*families));
    if (!families)
        return ew_fail_memory(err, sizeof(*families), "the table of families");
    rc = ew_families_load(families, err);
    if (!rc && model->file.kind == EW_MODELFILE_GGUF)
        rc = ew_shape_from_gguf(shape, families, &model->file.gguf, &family, err);
    else if (!rc)
        rc = ew_shape_from_config(shape, families, model->file.config, model->file.tensors, &family, err);
    if (!rc) {
        shape->common.has_weights = true;
        rc = ew_pooling_read(&model->file, shape, &model->pooling, err);
        model->shape = shape->common;
    }
    if (!rc) {
        rc = bind_and_build(model, shape, family, err);
    }
    ew_families_free(families);
    ew_free(families);
    return rc ? ew_fail_in(err, rc, "%s", model->path) : 0;
}

int ew_model_open(const char *name, struct ew_model **out, struct ew_error *err)
{
    struct ew_model *model = ew_alloc(sizeof(*model));
    struct ew_shape *shape = ew_alloc(sizeof(*shape));
    int rc = model && shape ? 0 : ew_fail_memory(err, sizeof(*shape), "a model");

    *out = NULL;
    if (rc)
        goto out_memory;
    ew_arena_init(&model->arena, ARENA_BYTES_MAX);
    model->whole_shape = shape;
    model->path = ew_strdup(name);
    if (!model->path) {
        rc = ew_fail_memory(err, strlen(name), "a model's name");
        goto out_model;
    }
    model->is_synthetic = strncmp(name, "synthetic:", strlen("synthetic:")) == 0;
    rc = model->is_synthetic ? open_synthetic(model, shape, err) : open_file(model, shape, err);
    if (rc)
        goto out_model;
    model->program.name = model->shape.arch;
    count_params(model);
    ew_sampling_none(&model->sampling);
    if (!model->is_synthetic) {
        ew_tokens_read(&model->file, model->shape.n_vocab, &model->tokens);
        ew_sampling_read(&model->file, &model->sampling);
    }
    *out = model;
    return 0;

out_model:
    ew_model_close(model);
    return rc;
out_memory:
    ew_free(model);
    ew_free(shape);
    return rc;
}

void ew_model_close(struct ew_model *model)
{
    if (!model)
        return;
    ew_modelfile_close(&model->file);
    ew_arena_fini(&model->arena);
    ew_free(model->whole_shape);
    ew_free(model->path);
    ew_free(model);
}

int ew_model_size(const struct ew_model *model, struct ew_backend *backend, const struct ew_limits *limits,
                  struct ew_model_need *out, struct ew_error *err)
{
    const struct ew_program *program = &model->program;
    struct ew_backend_sizes sizes = {0};
    int rc;

    *out = (struct ew_model_need){0};
    if (!program->n_ops)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "%s holds a vocabulary only, nothing that could be run", model->path);
    rc = backend->ops->sizes(backend, program, limits, &sizes, err);
    if (rc)
        return rc;
    EW_ASSERT(program->n_groups <= EW_COUNT_OF(sizes.block_bytes));
    out->weight_bytes = sizes.weight_bytes;
    out->workspace_bytes = sizes.workspace_bytes;
    for (uint32_t i = 0; i < program->n_groups; i++) {
        uint64_t bytes;

        if (__builtin_mul_overflow(sizes.block_bytes[i], limits->n_blocks[i], &bytes) ||
            __builtin_add_overflow(out->cache_bytes, bytes, &out->cache_bytes))
            return ew_fail(err, EW_ERR_LIMIT, "%u cache blocks of %llu bytes are more than any machine has",
                           limits->n_blocks[i], (unsigned long long)sizes.block_bytes[i]);
        if (program->groups[i].kind == EW_CACHE_FULL || program->groups[i].kind == EW_CACHE_LATENT)
            out->kv_token_bytes += sizes.block_bytes[i] / limits->block_tokens;
    }
    out->total_bytes = out->weight_bytes + out->workspace_bytes + out->cache_bytes;
    return 0;
}
