#include "model/pooling.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/data.h"
#include "model/value.h"

// ---- sentence-transformers ----------------------------------------------------------------------------------------

// The modules that can be computed, in the only order that can be: each has a rank, and ranks rise. Pooling, Dense and
// LogitScore have files of their own.
static const struct {
    const char *type;
    int rank;
} g_modules[] = {{".Transformer", 0}, {".Pooling", 1}, {".LogitScore", 1}, {".Dense", 2}, {".Normalize", 3}};

static int check_modules(const struct ew_json *modules, bool *has_pooling, bool *normalise, struct ew_error *err)
{
    int last = 0;

    *has_pooling = *normalise = false;
    for (const struct ew_json *module = modules->child; module; module = module->next) {
        struct ew_str type = ew_json_str(ew_json_get(module, "type"), "");
        size_t i = 0;

        while (i < EW_COUNT_OF(g_modules) && !ew_str_ends(type, g_modules[i].type))
            i++;
        if (i == EW_COUNT_OF(g_modules))
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "modules.json asks for the module \"" EW_STR_FMT "\", which edgewise cannot compute",
                           EW_STR_ARG(type));
        if (g_modules[i].rank < last || (g_modules[i].rank == 2 && last == 0))
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "modules.json has the module \"" EW_STR_FMT
                           "\" at a place where edgewise cannot compute it",
                           EW_STR_ARG(type));
        last = g_modules[i].rank;
        *has_pooling = *has_pooling || i == 1;
        *normalise = *normalise || last == 3;
    }
    return 0;
}

static const struct {
    const char *key, *mode; // a switch, or since version 5.4 the value of "pooling_mode"
    enum ew_pooling_kind kind;
} g_modes[] = {
    {"pooling_mode_cls_token", "cls", EW_POOLING_CLS},
    {"pooling_mode_mean_tokens", "mean", EW_POOLING_MEAN},
    {"pooling_mode_lasttoken", "lasttoken", EW_POOLING_LAST},
    {"pooling_mode_max_tokens", "max", EW_POOLING_NONE},
    {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", EW_POOLING_NONE},
    {"pooling_mode_weightedmean_tokens", "weightedmean", EW_POOLING_NONE},
};

static bool names_mode(const struct ew_json *config, const char *mode)
{
    const struct ew_json *node = ew_json_get(config, "pooling_mode");
    bool found = node && node->type == EW_JSON_T_STRING && ew_str_is(node->text, mode);

    for (node = node && node->type == EW_JSON_T_ARRAY ? node->child : NULL; node && !found; node = node->next)
        found = ew_str_is(ew_json_str(node, ""), mode);
    return found;
}

static int read_mode(const struct ew_json *config, enum ew_pooling_kind *kind, struct ew_error *err)
{
    *kind = EW_POOLING_NONE;
    for (size_t i = 0; i < EW_COUNT_OF(g_modes); i++) {
        if (!ew_json_bool(ew_json_get(config, g_modes[i].key), false) && !names_mode(config, g_modes[i].mode))
            continue;
        if (g_modes[i].kind == EW_POOLING_NONE || *kind != EW_POOLING_NONE)
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "the model pools with %s%s; edgewise can take the first token, the last one or the mean",
                           g_modes[i].key, *kind != EW_POOLING_NONE ? " among others" : "");
        *kind = g_modes[i].kind;
    }
    if (*kind == EW_POOLING_NONE)
        return ew_fail(err, EW_ERR_FORMAT, "the configuration of the model's Pooling module names no way of pooling");
    if (*kind == EW_POOLING_MEAN && !ew_json_bool(ew_json_get(config, "include_prompt"), true))
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the model's mean leaves its prompts out, which edgewise cannot do");
    return 0;
}

// PyTorch's names, by their ends.
static const struct {
    const char *name;
    enum ew_act act;
} g_acts[] = {
    {".Identity", EW_ACT_NONE}, {".Tanh", EW_ACT_TANH},       {".ReLU", EW_ACT_RELU},
    {".GELU", EW_ACT_GELU},     {".Sigmoid", EW_ACT_SIGMOID}, {".SiLU", EW_ACT_SILU},
};

static int read_dense_act(const struct ew_json *config, enum ew_act *act, struct ew_error *err)
{
    struct ew_str name = ew_json_str(ew_json_get(config, "activation_function"), "torch.nn.modules.activation.Tanh");

    for (size_t i = 0; i < EW_COUNT_OF(g_acts); i++)
        if (ew_str_ends(name, g_acts[i].name)) {
            *act = g_acts[i].act;
            return 0;
        }
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "a Dense module has the activation \"" EW_STR_FMT "\", which edgewise does not know",
                   EW_STR_ARG(name));
}

static int read_dense(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_error *err)
{
    int64_t width = shape->common.width;

    for (uint32_t i = 0; i < file->n_dense; i++) {
        const struct ew_json *config = file->dense[i];
        struct ew_dense_shape *dense = &shape->dense[i];
        int64_t in = ew_json_int(ew_json_get(config, "in_features"), 0);
        int64_t out = ew_json_int(ew_json_get(config, "out_features"), 0);
        struct ew_str input = ew_json_str(ew_json_get(config, "module_input_name"), "sentence_embedding");
        int rc = read_dense_act(config, &dense->act, err);

        if (rc)
            return rc;
        if (in != width || out < 1 || out > EW_WIDTH_MAX)
            return ew_fail(err, EW_ERR_FORMAT, "Dense module %u leads from %lld to %lld where %lld come in", i + 1,
                           (long long)in, (long long)out, (long long)width);
        if (!ew_str_is(input, "sentence_embedding"))
            return ew_fail(err, EW_ERR_UNSUPPORTED,
                           "Dense module %u works on \"" EW_STR_FMT "\"; edgewise has vectors of whole texts only",
                           i + 1, EW_STR_ARG(input));
        dense->bias = ew_json_bool(ew_json_get(config, "bias"), true);
        dense->width = (uint32_t)(width = out);
    }
    shape->n_dense = file->n_dense;
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

static int read_modules(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling,
                        struct ew_error *err)
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
        rc = read_dense(file, shape, err);
    if (!rc)
        read_prompts(file->sentence_config, pooling);
    n_tokens = ew_json_int(ew_json_get(file->sentence_limits, "max_seq_length"), 0);
    if (n_tokens > 0 && n_tokens <= EW_CONTEXT_MAX)
        pooling->n_tokens_usual = (uint32_t)n_tokens;
    return rc;
}

// ---- GGUF ---------------------------------------------------------------------------------------------------------

// Matrices behind the pooled state, as EmbeddingGemma has them: without biases and activations.
static void read_gguf_dense(const struct ew_gguf *gguf, struct ew_shape *shape)
{
    for (uint32_t i = 0; i < EW_DENSE_MAX; i++) {
        const struct ew_tensor *tensor;
        char name[32];

        snprintf(name, sizeof(name), "dense_%u.weight", i + 2);
        tensor = ew_tensors_find(&gguf->tensors, ew_str_of(name));
        if (!tensor || tensor->n_dims != 2 || tensor->shape[0] > EW_WIDTH_MAX)
            return;
        shape->dense[shape->n_dense++] = (struct ew_dense_shape){.width = (uint32_t)tensor->shape[0]};
    }
}

// The numbers that the key ARCH.pooling_type may have; GGUF models are normalised by whoever uses them.
static int read_gguf(const struct ew_gguf *gguf, struct ew_shape *shape, struct ew_pooling *pooling,
                     struct ew_error *err)
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
    if (pooling->kind != EW_POOLING_NONE)
        read_gguf_dense(gguf, shape);
    return 0;
}

// ---- scores -------------------------------------------------------------------------------------------------------

// The id of a word in tokenizer.json's vocabulary, or -1.
static int32_t word_id(const struct ew_modelfile *file, struct ew_str word, uint32_t n_vocab)
{
    const struct ew_json *vocab = ew_json_path(file->tokenizer, EW_STR("model.vocab"));

    for (const struct ew_json *item = vocab && vocab->type == EW_JSON_T_OBJECT ? vocab->child : NULL; item;
         item = item->next)
        if (ew_str_eq(item->key, word))
            return item->type == EW_JSON_T_INT && item->integer >= 0 && item->integer < n_vocab
                       ? (int32_t)item->integer
                       : -1;
    return -1;
}

static int read_logit_score(const struct ew_json *config, struct ew_shape *shape, struct ew_error *err)
{
    static const char *const keys[] = {"true_token_id", "false_token_id"};

    for (size_t i = 0; i < EW_COUNT_OF(keys); i++) {
        const struct ew_json *node = ew_json_get(config, keys[i]);

        if (i == 1 && ew_json_is_null(node))
            return 0;
        if (ew_json_int(node, -1) < 0 || ew_json_int(node, -1) >= shape->common.n_vocab)
            return ew_fail(err, EW_ERR_FORMAT, "the LogitScore module's %s is no token of the model", keys[i]);
        shape->class_tokens[i] = (int32_t)ew_json_int(node, -1);
    }
    return 0;
}

// Which words of a language model score: as sentence-transformers' LogitScore has it, as vLLM's classifier_from_token
// (first what speaks against, then what speaks for), or, of a Qwen 3 that is called a ranker, its "yes" and "no".
static int read_words(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_error *err)
{
    const struct ew_json *words = ew_json_get(file->config, "classifier_from_token");
    struct ew_str no = EW_STR("no"), yes = EW_STR("yes");
    bool is_qwen3 = ew_str_starts(ew_str_of(shape->common.arch), "qwen3");

    if (file->kind != EW_MODELFILE_HF || shape->encoder || shape->classifier)
        return 0;
    if (file->logit_score)
        return read_logit_score(file->logit_score, shape, err);
    if (words && words->type == EW_JSON_T_ARRAY && words->count == 2) {
        no = ew_json_str(ew_json_at(words, 0), "");
        yes = ew_json_str(ew_json_at(words, 1), "");
    } else if (!file->is_ranker || !is_qwen3 || !file->tokenizer) {
        return 0;
    }
    shape->class_tokens[0] = word_id(file, yes, shape->common.n_vocab);
    shape->class_tokens[1] = word_id(file, no, shape->common.n_vocab);
    if (shape->class_tokens[0] < 0 || shape->class_tokens[1] < 0)
        return ew_fail(err, EW_ERR_FORMAT,
                       "the model scores by the words \"" EW_STR_FMT "\" and \"" EW_STR_FMT
                       "\", which its vocabulary has not",
                       EW_STR_ARG(yes), EW_STR_ARG(no));
    return 0;
}

// Cross-encoders of sentence-transformers may say that their scores are to stay as they are.
static bool are_raw(const struct ew_modelfile *file)
{
    const struct ew_json *const sources[] = {
        ew_json_path(file->config, EW_STR("sentence_transformers.activation_fn")),
        ew_json_get(file->config, "sbert_ce_default_activation_function"),
        ew_json_get(file->sentence_config, "activation_fn"),
    };

    for (size_t i = 0; i < EW_COUNT_OF(sources); i++)
        if (ew_str_ends(ew_json_str(sources[i], ""), ".Identity"))
            return true;
    return false;
}

// GGUF files name the labels; llama.cpp's conversion of a Qwen 3 reranker has these.
static bool are_yes_no(const struct ew_model_shape *shape, const struct ew_gguf *gguf, uint32_t n_labels)
{
    struct ew_str label = EW_STR("");
    const struct ew_gguf_value *labels;
    uint64_t cursor = 0;
    char key[128];

    snprintf(key, sizeof(key), "%s.classifier.output_labels", shape->arch);
    labels = ew_gguf_find(gguf, key);
    return n_labels == 2 && labels && ew_gguf_array_next_str(labels, &cursor, &label) && ew_str_is(label, "yes");
}

// A language model's own text for a pair: a template that knows of queries and documents, or that of the Qwen 3
// rerankers, which their published files lack.
static struct ew_str pair_template_of(const struct ew_modelfile *file, const struct ew_shape *shape)
{
    struct ew_str own = file->chat_template;

    if (file->kind == EW_MODELFILE_GGUF)
        own = ew_gguf_str(&file->gguf, "tokenizer.chat_template.rerank", NULL);
    if (own.ptr && ew_str_find(own, EW_STR("document"), 0) >= 0 && ew_str_find(own, EW_STR("query"), 0) >= 0)
        return own;
    if (ew_str_starts(ew_str_of(shape->common.arch), "qwen3"))
        return ew_data_find("prompts/qwen3-reranker.jinja")->text;
    return (struct ew_str){0};
}

static void read_scores(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling)
{
    bool is_hf = file->kind == EW_MODELFILE_HF, is_modern = strcmp(shape->common.arch, "modernbert") == 0;
    struct ew_str way = ew_json_str(ew_json_get(file->config, "classifier_pooling"), "cls");

    *pooling = (struct ew_pooling){.kind = shape->encoder ? EW_POOLING_CLS : EW_POOLING_LAST,
                                   .is_score = true,
                                   .width = shape->n_labels,
                                   .prompt_default = EW_STR("")};
    // GGUF files of ModernBERT do not say which; those that are about take the mean.
    if (is_hf ? is_modern && ew_str_is(way, "mean") : shape->encoder && shape->class_norm)
        pooling->kind = EW_POOLING_MEAN;
    shape->select_mean = pooling->kind == EW_POOLING_MEAN;
    pooling->in_program = true;
    pooling->is_raw = is_hf && are_raw(file);
    pooling->is_yes_no = !is_hf && are_yes_no(&shape->common, &file->gguf, shape->n_labels);
    if (!shape->encoder)
        pooling->pair_template = pair_template_of(file, shape);
    if (is_hf)
        read_prompts(file->sentence_config, pooling);
}

bool ew_pooling_scores(const struct ew_pooling *pooling)
{
    return pooling->is_score && (pooling->width == 1 || pooling->is_yes_no);
}

double ew_pooling_score(const struct ew_pooling *pooling, const float *vector)
{
    double score = (double)vector[0] - (pooling->is_yes_no ? (double)vector[1] : 0);

    return pooling->is_raw ? score : 1 / (1 + exp(-score));
}

void ew_pooling_shares(const struct ew_pooling *pooling, const float *vector, double *out)
{
    double most = (double)vector[0], sum = 0;

    if (pooling->width == 1) {
        out[0] = 1 / (1 + exp(-(double)vector[0]));
        return;
    }
    for (uint32_t i = 1; i < pooling->width; i++) // not fmax: GCC 12 for arm64 stops with an internal error at it
        most = (double)vector[i] > most ? (double)vector[i] : most;
    for (uint32_t i = 0; i < pooling->width; i++)
        sum += out[i] = exp((double)vector[i] - most);
    for (uint32_t i = 0; i < pooling->width; i++)
        out[i] /= sum;
}

struct ew_str ew_pooling_label(const struct ew_model *model, uint32_t i)
{
    const struct ew_json *names = ew_json_get(model->file.config, "id2label");
    struct ew_str label = EW_STR("");
    uint64_t cursor = 0;
    char key[128];

    snprintf(key, sizeof(key), "%u", i);
    if (model->file.kind == EW_MODELFILE_HF)
        return ew_json_str(ew_json_get(names, key), "");
    snprintf(key, sizeof(key), "%s.classifier.output_labels", model->shape.arch);
    for (const struct ew_gguf_value *list = ew_gguf_find(&model->file.gguf, key); list; i--)
        if (!ew_gguf_array_next_str(list, &cursor, &label) || i == 0)
            break;
    return label;
}

// ---- all ----------------------------------------------------------------------------------------------------------

static int read_kind(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling,
                     struct ew_error *err)
{
    int rc = 0;

    if (file->kind == EW_MODELFILE_GGUF)
        rc = read_gguf(&file->gguf, shape, pooling, err);
    else if (file->modules)
        rc = read_modules(file, shape, pooling, err);
    if (!rc && shape->encoder && pooling->kind == EW_POOLING_NONE) { // bare: as sentence-transformers takes them
        pooling->kind = EW_POOLING_MEAN;
        pooling->normalise = true;
    }
    return rc;
}

int ew_pooling_read(const struct ew_modelfile *file, struct ew_shape *shape, struct ew_pooling *pooling,
                    struct ew_error *err)
{
    int rc = read_words(file, shape, err);

    *pooling = (struct ew_pooling){.prompt_default = EW_STR("")};
    if (!rc && shape->class_tokens[0] >= 0) {
        shape->head = EW_HEAD_SCORES;
        shape->uncached = true;
        shape->n_labels = 1;
    }
    if (!rc && shape->head == EW_HEAD_SCORES)
        read_scores(file, shape, pooling);
    else if (!rc)
        rc = read_kind(file, shape, pooling, err);
    if (rc || pooling->kind == EW_POOLING_NONE || pooling->is_score)
        return rc;
    shape->head = EW_HEAD_HIDDEN;
    shape->uncached = true;
    pooling->width = shape->n_dense ? shape->dense[shape->n_dense - 1].width : shape->common.width;
    pooling->in_program = shape->n_dense > 0;
    shape->select_mean = pooling->in_program && pooling->kind == EW_POOLING_MEAN;
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
