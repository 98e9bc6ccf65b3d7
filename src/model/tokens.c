#include "model/tokens.h"

#include <math.h>

#include "base/assert.h"
#include "model/value.h"

static void add_eos(struct ew_model_tokens *tokens, const struct ew_value *value, uint32_t n_vocab)
{
    if (value->kind != EW_VALUE_INT || value->integer < 0 || value->integer >= n_vocab ||
        tokens->n_eos == EW_COUNT_OF(tokens->eos))
        return;
    for (uint32_t i = 0; i < tokens->n_eos; i++)
        if (tokens->eos[i] == value->integer)
            return;
    tokens->eos[tokens->n_eos++] = (int32_t)value->integer;
}

static void set_bos(struct ew_model_tokens *tokens, const struct ew_value *value, uint32_t n_vocab)
{
    if (tokens->bos < 0 && value->kind == EW_VALUE_INT && value->integer >= 0 && value->integer < n_vocab)
        tokens->bos = (int32_t)value->integer;
}

// One id, or a list of them; an earlier source that gave any stands.
static void read_eos(struct ew_model_tokens *tokens, const struct ew_json *node, uint32_t n_vocab)
{
    struct ew_value value = ew_value_of_json(node);

    if (tokens->n_eos)
        return;
    if (value.kind != EW_VALUE_LIST) {
        add_eos(tokens, &value, n_vocab);
        return;
    }
    for (const struct ew_json *item = node->child; item; item = item->next) {
        struct ew_value element = ew_value_of_json(item);

        add_eos(tokens, &element, n_vocab);
    }
}

// tokenizer_config names a token by its text, or as an object with it; tokenizer.json has its id.
static struct ew_value added_token(const struct ew_modelfile *file, const char *key)
{
    const struct ew_json *node = ew_json_get(file->tokenizer_config, key);
    const struct ew_json *added = ew_json_get(file->tokenizer, "added_tokens");
    struct ew_str text = ew_json_str(node && node->type == EW_JSON_T_OBJECT ? ew_json_get(node, "content") : node, "");

    for (const struct ew_json *token = added && added->type == EW_JSON_T_ARRAY && text.len ? added->child : NULL; token;
         token = token->next)
        if (ew_str_eq(ew_json_str(ew_json_get(token, "content"), ""), text))
            return ew_value_of_json(ew_json_get(token, "id"));
    return (struct ew_value){0};
}

static void read_hf(const struct ew_modelfile *file, uint32_t n_vocab, struct ew_model_tokens *tokens)
{
    const struct ew_json *const sources[] = {file->generation_config, file->config};
    struct ew_value value;

    for (size_t i = 0; i < EW_COUNT_OF(sources); i++) {
        value = ew_value_of_json(ew_json_get(sources[i], "bos_token_id"));
        set_bos(tokens, &value, n_vocab);
        read_eos(tokens, ew_json_get(sources[i], "eos_token_id"), n_vocab);
    }
    value = added_token(file, "bos_token");
    set_bos(tokens, &value, n_vocab);
    value = added_token(file, "eos_token");
    if (!tokens->n_eos)
        add_eos(tokens, &value, n_vocab);
}

static void read_gguf(const struct ew_gguf *gguf, uint32_t n_vocab, struct ew_model_tokens *tokens)
{
    // Besides the end of the text, the end of a turn and of a message end an answer.
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    struct ew_value value = ew_value_of_gguf(gguf, "tokenizer.ggml.bos_token_id");

    set_bos(tokens, &value, n_vocab);
    for (size_t i = 0; i < EW_COUNT_OF(ends); i++) {
        value = ew_value_of_gguf(gguf, ends[i]);
        add_eos(tokens, &value, n_vocab);
    }
}

void ew_tokens_read(const struct ew_modelfile *file, uint32_t n_vocab, struct ew_model_tokens *tokens)
{
    *tokens = (struct ew_model_tokens){.bos = -1};
    if (file->kind == EW_MODELFILE_HF)
        read_hf(file, n_vocab, tokens);
    else
        read_gguf(&file->gguf, n_vocab, tokens);
}

void ew_sampling_none(struct ew_sampling_defaults *sampling)
{
    *sampling = (struct ew_sampling_defaults){
        .temperature = NAN, .top_p = NAN, .min_p = NAN, .repetition_penalty = NAN, .top_k = -1};
}

// A number that generation_config or GGUF's general.sampling.* gives within its range, else the fallback.
static double sampling_number(const struct ew_modelfile *file, const char *hf, const char *gguf, double min, double max,
                              double fallback)
{
    struct ew_value value = file->kind == EW_MODELFILE_HF ? ew_value_of_json(ew_json_get(file->generation_config, hf))
                                                          : ew_value_of_gguf(&file->gguf, gguf);

    if ((value.kind != EW_VALUE_INT && value.kind != EW_VALUE_NUMBER) || !(value.number >= min && value.number <= max))
        return fallback;
    return value.number;
}

void ew_sampling_read(const struct ew_modelfile *file, struct ew_sampling_defaults *sampling)
{
    const struct ew_json *do_sample = file->kind == EW_MODELFILE_HF ? ew_json_get(file->generation_config, "do_sample")
                                                                    : NULL;

    sampling->temperature = (float)sampling_number(file, "temperature", "general.sampling.temp", 0, 100, NAN);
    sampling->top_p = (float)sampling_number(file, "top_p", "general.sampling.top_p", 0, 1, NAN);
    sampling->min_p = (float)sampling_number(file, "min_p", "general.sampling.min_p", 0, 1, NAN);
    sampling->repetition_penalty = (float)sampling_number(file, "repetition_penalty", "general.sampling.penalty_repeat",
                                                          0.01, 100, NAN);
    sampling->top_k = (int32_t)sampling_number(file, "top_k", "general.sampling.top_k", 0, 1e9, -1);
    sampling->do_sample_given = do_sample && do_sample->type == EW_JSON_T_BOOL;
    sampling->do_sample = ew_json_bool(do_sample, false);
}
