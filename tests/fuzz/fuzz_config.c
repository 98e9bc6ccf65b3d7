// A configuration, from config.json or GGUF metadata, to the shape that everything else is built on.
// Whatever is accepted lies within the limits.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "model/builder.h"
#include "model/family.h"
#include "model/shape.h"
#include "model/tokens.h"

#define TREE_BYTES_MAX ((size_t)64 << 20)
#define VOCABULARY 1000
#define LAYERS_BUILT_MAX 40 // more are alike, but slow

static struct ew_families families;

static int find_anything(void *ctx, const struct ew_weight_want *want, struct ew_weight_source *out,
                         struct ew_error *err)
{
    (void)ctx;
    (void)err;
    *out = (struct ew_weight_source){.dtype = EW_DTYPE_F32, .arg = {want->cols}};
    return 0;
}

// Whatever was accepted can be built: the builder checks the program with asserts.
static void finish(struct ew_shape *shape, const struct ew_modelfile *file)
{
    struct ew_weight_finder finder = {.find = find_anything};
    struct ew_sampling_defaults sampling;
    struct ew_model_tokens tokens;
    struct ew_program program;
    struct ew_arena arena;
    struct ew_error err;

    EW_ASSERT(shape->common.n_layers >= 1 && shape->common.n_layers <= EW_LAYERS_MAX);
    shape->common.n_layers = EW_MIN(shape->common.n_layers, LAYERS_BUILT_MAX);
    ew_arena_init(&arena, TREE_BYTES_MAX);
    EW_ASSERT(ew_program_build(&program, shape, &finder, &arena, &err) == EW_OK);
    ew_arena_fini(&arena);
    ew_tokens_read(file, VOCABULARY, &tokens);
    ew_sampling_read(file, &sampling);
}

static void try_gguf(const uint8_t *data, size_t size, struct ew_shape *shape)
{
    struct ew_modelfile file = {.kind = EW_MODELFILE_GGUF, .tensors = &file.gguf.tensors};
    const struct ew_family *family;
    struct ew_error err;

    if (ew_gguf_parse(&file.gguf, data, size, &err) != EW_OK)
        return;
    if (ew_shape_from_gguf(shape, &families, &file.gguf, &family, &err) == EW_OK)
        finish(shape, &file);
    ew_gguf_close(&file.gguf);
}

static void try_json(const uint8_t *data, size_t size, struct ew_shape *shape)
{
    struct ew_modelfile file = {.kind = EW_MODELFILE_HF, .tensors = &file.safetensors.tensors};
    struct ew_str text = {(const char *)data, size};
    const struct ew_family *family;
    struct ew_error err;

    ew_arena_init(&file.arena, TREE_BYTES_MAX);
    if (ew_json_parse(&file.arena, text, &file.config, &err) == EW_OK &&
        ew_shape_from_config(shape, &families, file.config, NULL, &family, &err) == EW_OK) {
        file.generation_config = file.tokenizer_config = file.tokenizer = file.config;
        finish(shape, &file);
    }
    ew_arena_fini(&file.arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct ew_shape shape;
    struct ew_error err;

    if (!families.count)
        EW_ASSERT(ew_families_load(&families, &err) == EW_OK);
    ew_shape_init(&shape);
    if (size >= 4 && memcmp(data, "GGUF", 4) == 0)
        try_gguf(data, size, &shape);
    else
        try_json(data, size, &shape);
    return 0;
}
