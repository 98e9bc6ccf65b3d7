#include "model/pooling.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"

// ---- sentence-transformers ----------------------------------------------------------------------------------------

// The modules that can be computed; Pooling is read from its own file.
static int check_modules(const struct ew_json *modules, bool *has_pooling, bool *normalise, struct ew_error *err)
{
    *has_pooling = *normalise = false;
    for (const struct ew_json *module = modules->child; module; module = module->next) {
        struct ew_str type = ew_json_str(ew_json_get(module, "type"), "");

        if (ew_str_ends(type, ".Pooling"))
            *has_pooling = true;
        else if (ew_str_ends(type, ".Normalize"))
            *normalise = true;
        else if (!ew_str_ends(type, ".Transformer"))
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "modules.json asks for the module \"" EW_STR_FMT "\", which edgewise cannot compute",
                           EW_STR_ARG(type));
    }
    return 0;
}

static const struct {
    const char *key;
    enum ew_pooling_kind kind;
} g_modes[] = {
    {"pooling_mode_cls_token", EW_POOLING_CLS},
    {"pooling_mode_mean_tokens", EW_POOLING_MEAN},
    {"pooling_mode_lasttoken", EW_POOLING_LAST},
    {"pooling_mode_max_tokens", EW_POOLING_NONE},
    {"pooling_mode_mean_sqrt_len_tokens", EW_POOLING_NONE},
    {"pooling_mode_weightedmean_tokens", EW_POOLING_NONE},
};

static int read_mode(const struct ew_json *config, enum ew_pooling_kind *kind, struct ew_error *err)
{
    *kind = EW_POOLING_NONE;
    for (size_t i = 0; i < EW_COUNT_OF(g_modes); i++) {
        if (!ew_json_bool(ew_json_get(config, g_modes[i].key), false))
            continue;
        if (g_modes[i].kind == EW_POOLING_NONE || *kind != EW_POOLING_NONE)
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "the model pools with %s%s; edgewise can take the first token, the last one or the mean",
                           g_modes[i].key, *kind != EW_POOLING_NONE ? " among others" : "");
        *kind = g_modes[i].kind;
    }
    if (*kind == EW_POOLING_NONE)
        return ew_fail(err, EW_ERR_FORMAT, "the configuration of the model's Pooling module names no way of pooling");
    return 0;
}

static void read_prompts(const struct ew_json *config, struct ew_pooling *pooling)
{
    const struct ew_json *prompts = ew_json_get(config, "prompts");

    for (const struct ew_json *item = prompts && prompts->type == EW_JSON_T_OBJECT ? prompts->child : NULL;
         item && pooling->n_prompts < EW_PROMPTS_MAX; item = item->next)
        if (item->type == EW_JSON_T_STRING)
            pooling->prompts[pooling->n_prompts++] = (struct ew_prompt){item->key, item->text};
    pooling->prompt_default = ew_json_str(ew_json_get(config, "default_prompt_name"), "");
}

static int read_modules(const struct ew_modelfile *file, struct ew_pooling *pooling, struct ew_error *err)
{
    bool has_pooling;
    int64_t n_tokens;
    int rc = check_modules(file->modules, &has_pooling, &pooling->normalise, err);

    if (rc || !has_pooling)
        return rc;
    if (!file->pooling)
        return ew_fail(err, EW_ERR_FORMAT, "modules.json asks for a Pooling module whose config.json is missing");
    rc = read_mode(file->pooling, &pooling->kind, err);
    if (!rc)
        read_prompts(file->sentence_config, pooling);
    n_tokens = ew_json_int(ew_json_get(file->sentence_limits, "max_seq_length"), 0);
    if (n_tokens > 0 && n_tokens <= EW_CONTEXT_MAX)
        pooling->n_tokens_usual = (uint32_t)n_tokens;
    return rc;
}

// ---- GGUF ---------------------------------------------------------------------------------------------------------

// The numbers that the key ARCH.pooling_type may have; GGUF models are normalised by whoever uses them.
static int read_gguf(const struct ew_gguf *gguf, struct ew_pooling *pooling, struct ew_error *err)
{
    static const enum ew_pooling_kind kinds[] = {EW_POOLING_NONE, EW_POOLING_MEAN, EW_POOLING_CLS, EW_POOLING_LAST,
                                                 EW_POOLING_NONE};
    struct ew_str name = ew_gguf_str(gguf, "general.architecture", "");
    int64_t number;
    char key[128];

    snprintf(key, sizeof(key), EW_STR_FMT ".pooling_type", EW_STR_ARG(name));
    number = ew_gguf_int(gguf, key, 0);
    if (number < 0 || number >= (int64_t)EW_COUNT_OF(kinds))
        return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF key %s names a way of pooling that edgewise does not know", key);
    pooling->kind = kinds[number];
    pooling->normalise = pooling->kind != EW_POOLING_NONE;
    return 0;
}

// ---- all ----------------------------------------------------------------------------------------------------------

int ew_pooling_read(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling,
                    struct ew_error *err)
{
    int rc = 0;

    *pooling = (struct ew_pooling){.prompt_default = EW_STR("")};
    if (shape->head == EW_HEAD_SCORES) {
        *pooling = (struct ew_pooling){
            .kind = EW_POOLING_CLS, .is_score = true, .width = shape->n_labels, .prompt_default = EW_STR("")};
        return 0;
    }
    if (file->kind == EW_MODELFILE_GGUF)
        rc = read_gguf(&file->gguf, pooling, err);
    else if (file->modules)
        rc = read_modules(file, pooling, err);
    if (rc)
        return rc;
    if (shape->encoder && pooling->kind == EW_POOLING_NONE) { // a bare encoder: as sentence-transformers takes them
        pooling->kind = EW_POOLING_MEAN;
        pooling->normalise = true;
    }
    if (pooling->kind == EW_POOLING_NONE)
        return 0;
    pooling->width = shape->common.width;
    shape->head = EW_HEAD_HIDDEN;
    shape->uncached = true;
    return 0;
}

bool ew_pooling_prompt(const struct ew_pooling *pooling, struct ew_str name, struct ew_str *text)
{
    struct ew_str wanted = name.len ? name : pooling->prompt_default;

    *text = EW_STR("");
    for (uint32_t i = 0; i < pooling->n_prompts; i++)
        if (ew_str_eq(pooling->prompts[i].name, wanted)) {
            *text = pooling->prompts[i].text;
            return true;
        }
    return name.len == 0;
}

int ew_pooling_needs_text(const struct ew_model *model, struct ew_error *err)
{
    if (model->pooling.kind == EW_POOLING_NONE)
        return 0;
    ew_fail(err, EW_ERR_UNSUPPORTED, "%s makes %s and writes no text", model->path,
            model->pooling.is_score ? "scores of pairs of texts" : "vectors of texts");
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "Use `embed` or `serve` with it, or give a model that writes text");
}

// ---- vectors ------------------------------------------------------------------------------------------------------

static void normalise(float *vector, uint32_t n)
{
    double sum = 0;
    float factor;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)vector[i] * (double)vector[i];
    factor = (float)(1 / fmax(sqrt(sum), 1e-12)); // as PyTorch's normalize bounds it
    for (uint32_t i = 0; i < n; i++)
        vector[i] *= factor;
}

void ew_pool_rows(const struct ew_pooling *pooling, const float *rows, uint32_t n_rows, float *out)
{
    uint32_t n = pooling->width;

    EW_ASSERT(n_rows > 0);
    memcpy(out, rows, n * sizeof(*out));
    for (uint32_t r = 1; r < n_rows; r++)
        for (uint32_t i = 0; i < n; i++)
            out[i] += rows[(size_t)r * n + i];
    for (uint32_t i = 0; i < n && n_rows > 1; i++)
        out[i] /= (float)n_rows;
    if (pooling->normalise)
        normalise(out, n);
}

void ew_pool_cut(const struct ew_pooling *pooling, float *vector, uint32_t n)
{
    if (n < pooling->width && pooling->normalise)
        normalise(vector, n);
}
