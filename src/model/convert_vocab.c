// From tokenizer.json to tokenizer.ggml.*: byte-level BPE ("gpt2") and SentencePiece's BPE as tokenizer.json
// holds it ("llama").
#include "model/convert.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/log.h"
#include "model/tokens.h"

#define SIGNATURE_BYTES_MAX 8192

enum token_type { // of GGUF
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
};

struct vocab {
    const struct ew_convert *convert;
    const struct ew_json *json;  // tokenizer.json
    const struct ew_json *model; // its "model"
    struct ew_arena arena;
    uint32_t count;
    struct ew_str *texts; // [count]
    int32_t *types;       // [count]
    struct ew_gguf_writer *w;
    struct ew_error *err;
};

// ---- pre-tokenisers
// ------------------------------------------------------------------------------------------------------

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define TAIL " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CASED_LOWER "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define CASED_UPPER "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define CASED_TAIL " ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

// What tokenizer.json files describe step by step, GGUF has one name for. Steps are joined by newlines; <digits>
// is Digits with single digits, <gpt2> is ByteLevel with its own expression.
static const struct {
    const char *signature, *name;
} g_pre_names[] = {
    {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|" TAIL, "llama-bpe"},
    {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|" TAIL, "qwen2"},
    {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| "
                  "?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     "qwen35"},
    {CASED_LOWER CONTRACTIONS "?|" CASED_UPPER CONTRACTIONS "?|\\p{N}{1,3}|" CASED_TAIL, "gpt-4o"},
    {CASED_LOWER "|" CASED_UPPER "|\\p{N}|" CASED_TAIL, "tekken"},
    {"\\p{N}{1,3}\n[一-龥぀-ゟ゠-ヿ]+\n[!\"#$%&'()*+,\\-./"
     ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
     "?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     "deepseek-v3"},
    {"<gpt2>", "gpt-2"},
    {"<digits>\n<gpt2>", "smollm"},
};

static void sign_step(const struct ew_json *step, struct ew_buf *out)
{
    struct ew_str type = ew_json_str(ew_json_get(step, "type"), "");

    if (ew_str_is(type, "ByteLevel") && !ew_json_bool(ew_json_get(step, "use_regex"), true))
        return;
    if (out->len)
        ew_buf_append_char(out, '\n');
    if (ew_str_is(type, "ByteLevel"))
        ew_buf_append_str(out, EW_STR("<gpt2>"));
    else if (ew_str_is(type, "Digits") && ew_json_bool(ew_json_get(step, "individual_digits"), false))
        ew_buf_append_str(out, EW_STR("<digits>"));
    else if (ew_str_is(type, "Split"))
        ew_buf_append_str(out, ew_json_str(ew_json_get(ew_json_get(step, "pattern"), "Regex"), "<text>"));
    else
        ew_buf_printf(out, "<" EW_STR_FMT ">", EW_STR_ARG(type));
}

static void sign(const struct ew_json *pre_tokenizer, struct ew_buf *out)
{
    const struct ew_json *steps = ew_json_get(pre_tokenizer, "pretokenizers");

    if (ew_json_is_null(steps)) {
        sign_step(pre_tokenizer, out);
        return;
    }
    for (const struct ew_json *step = steps->child; step; step = step->next)
        sign_step(step, out);
}

static const char *recognise_pre(const struct ew_json *tokenizer)
{
    struct ew_buf signature;
    const char *name = NULL;

    ew_buf_init(&signature, SIGNATURE_BYTES_MAX);
    sign(ew_json_get(tokenizer, "pre_tokenizer"), &signature);
    for (size_t i = 0; i < EW_COUNT_OF(g_pre_names) && ew_buf_ok(&signature); i++)
        if (ew_str_is(ew_buf_str(&signature), g_pre_names[i].signature))
            name = g_pre_names[i].name;
    ew_buf_fini(&signature);
    return name;
}

// ---- tokens ----------------------------------------------------------------------------------------------

static int set_token(struct vocab *v, struct ew_str text, int64_t id, enum token_type type)
{
    if (id < 0 || id >= v->count)
        return ew_fail(v->err, EW_ERR_FORMAT,
                       "tokenizer.json gives \"" EW_STR_FMT "\" the id %lld, but the model has %u tokens",
                       EW_STR_ARG(text), (long long)id, v->count);
    v->texts[id] = text;
    v->types[id] = (int32_t)type;
    return EW_OK;
}

static bool is_byte_token(struct ew_str text)
{
    return text.len == 6 && memcmp(text.ptr, "<0x", 3) == 0 && text.ptr[5] == '>';
}

static int read_model_tokens(struct vocab *v, bool has_byte_tokens)
{
    const struct ew_json *tokens = ew_json_get(v->model, "vocab");
    struct ew_str unknown = ew_json_str(ew_json_get(v->model, "unk_token"), "");
    int code = EW_OK;

    if (!tokens || tokens->type != EW_JSON_T_OBJECT)
        return ew_fail(v->err, EW_ERR_FORMAT, "tokenizer.json has no object model.vocab");
    for (const struct ew_json *token = tokens->child; token && code == EW_OK; token = token->next) {
        enum token_type type = has_byte_tokens && is_byte_token(token->key) ? TOKEN_BYTE : TOKEN_NORMAL;

        if (unknown.len && ew_str_eq(token->key, unknown))
            type = TOKEN_UNKNOWN;
        code = set_token(v, token->key, ew_json_int(token, -1), type);
    }
    return code;
}

static int read_added_tokens(struct vocab *v)
{
    const struct ew_json *added = ew_json_get(v->json, "added_tokens");
    struct ew_str unknown = ew_json_str(ew_json_get(v->model, "unk_token"), "");
    int code = EW_OK;

    for (const struct ew_json *token = ew_json_is_null(added) ? NULL : added->child; token && code == EW_OK;
         token = token->next) {
        struct ew_str text = ew_json_str(ew_json_get(token, "content"), "");
        enum token_type type = ew_json_bool(ew_json_get(token, "special"), false) ? TOKEN_CONTROL : TOKEN_USER_DEFINED;

        if (unknown.len && ew_str_eq(text, unknown))
            type = TOKEN_UNKNOWN;
        code = set_token(v, text, ew_json_int(ew_json_get(token, "id"), -1), type);
    }
    return code;
}

// Embeddings are often padded to a round number of rows: ids without a token get names that no text has.
static int fill_holes(struct vocab *v)
{
    for (uint32_t id = 0; id < v->count; id++) {
        char name[32];
        int len = snprintf(name, sizeof(name), "[PAD%u]", id);

        if (v->texts[id].ptr)
            continue;
        v->texts[id] = (struct ew_str){ew_arena_copy(&v->arena, name, (size_t)len), (size_t)len};
        v->types[id] = TOKEN_UNUSED;
        if (!v->texts[id].ptr)
            return ew_fail_memory(v->err, (size_t)len, "a token");
    }
    return EW_OK;
}

static int read_tokens(struct vocab *v, bool has_byte_tokens)
{
    int code;

    v->count = v->convert->shape->common.n_vocab;
    v->texts = ew_arena_array(&v->arena, v->count, sizeof(*v->texts));
    v->types = ew_arena_array(&v->arena, v->count, sizeof(*v->types));
    if (!v->texts || !v->types)
        return ew_fail_memory(v->err, v->count * sizeof(*v->texts), "the vocabulary");
    code = read_model_tokens(v, has_byte_tokens);
    if (code == EW_OK)
        code = read_added_tokens(v);
    return code == EW_OK ? fill_holes(v) : code;
}

static int write_tokens(struct vocab *v, const char *algorithm)
{
    int code = ew_gguf_write_str(v->w, "tokenizer.ggml.model", ew_str_of(algorithm), v->err);

    if (code == EW_OK)
        code = ew_gguf_write_strs(v->w, "tokenizer.ggml.tokens", v->texts, v->count, v->err);
    return code == EW_OK ? ew_gguf_write_i32s(v->w, "tokenizer.ggml.token_type", v->types, v->count, v->err) : code;
}

// ---- merges ----------------------------------------------------------------------------------------------

// Left and right of a merge, which stands as "a b" or as ["a", "b"].
static bool split_merge(const struct ew_json *merge, struct ew_str *left, struct ew_str *right)
{
    struct ew_str text = ew_json_str(merge, "");
    ptrdiff_t space;

    if (merge->type == EW_JSON_T_ARRAY && merge->count == 2) {
        *left = ew_json_str(ew_json_at(merge, 0), "");
        *right = ew_json_str(ew_json_at(merge, 1), "");
        return left->len && right->len;
    }
    space = ew_str_find(text, EW_STR(" "), 1); // a token may begin with one
    if (space < 0)
        return false;
    *left = (struct ew_str){text.ptr, (size_t)space};
    *right = (struct ew_str){text.ptr + space + 1, text.len - (size_t)space - 1};
    return right->len > 0;
}

static struct ew_str join(struct vocab *v, struct ew_str left, const char *between, struct ew_str right)
{
    size_t gap = strlen(between), len = left.len + gap + right.len;
    char *text = ew_arena_alloc(&v->arena, len);

    if (!text)
        return (struct ew_str){0};
    memcpy(text, left.ptr, left.len);
    memcpy(text + left.len, between, gap);
    memcpy(text + left.len + gap, right.ptr, right.len);
    return (struct ew_str){text, len};
}

static int write_merges(struct vocab *v, const struct ew_json *merges)
{
    struct ew_str *texts = ew_arena_array(&v->arena, merges->count, sizeof(*texts));
    uint32_t n = 0;

    if (!texts)
        return ew_fail_memory(v->err, merges->count * sizeof(*texts), "the merges");
    for (const struct ew_json *merge = merges->child; merge; merge = merge->next) {
        struct ew_str left, right;

        if (!split_merge(merge, &left, &right))
            return ew_fail(v->err, EW_ERR_FORMAT, "merge %u of tokenizer.json is not two tokens", n);
        texts[n] = join(v, left, " ", right);
        if (!texts[n++].ptr)
            return ew_fail_memory(v->err, left.len + right.len, "a merge");
    }
    return ew_gguf_write_strs(v->w, "tokenizer.ggml.merges", texts, n, v->err);
}

// SentencePiece merges by the score of the result: the earlier the merge, the higher. Tokens that no merge makes
// come last.
static int write_scores(struct vocab *v, const struct ew_json *merges)
{
    float *scores = ew_arena_array(&v->arena, v->count, sizeof(*scores));
    struct ew_map by_text = {0};
    int code = scores ? ew_map_init(&by_text, v->count) : EW_ERR_MEMORY;
    float rank = 0;

    for (uint32_t id = 0; id < v->count && code == EW_OK; id++) {
        scores[id] = v->types[id] == TOKEN_NORMAL ? -(float)(merges->count + 1) : 0;
        code = ew_map_put(&by_text, v->texts[id], id, NULL);
    }
    for (const struct ew_json *merge = merges->child; merge && code == EW_OK; merge = merge->next, rank--) {
        struct ew_str left, right, whole = {0};
        uint32_t id;

        if (split_merge(merge, &left, &right))
            whole = join(v, left, "", right);
        if (whole.ptr && ew_map_get(&by_text, whole, &id) && scores[id] < rank)
            scores[id] = rank;
    }
    ew_map_fini(&by_text);
    if (code != EW_OK)
        return ew_fail_memory(v->err, v->count * sizeof(*scores), "the scores of the vocabulary");
    return ew_gguf_write_f32s(v->w, "tokenizer.ggml.scores", scores, v->count, v->err);
}

// ---- what is added around a text -------------------------------------------------------------------------

// The post-processor that adds special tokens, alone or in a sequence.
static const struct ew_json *find_template(const struct ew_json *tokenizer)
{
    const struct ew_json *post = ew_json_get(tokenizer, "post_processor"), *steps = ew_json_get(post, "processors");

    for (const struct ew_json *step = ew_json_is_null(steps) ? NULL : steps->child; step; step = step->next)
        if (ew_str_is(ew_json_str(ew_json_get(step, "type"), ""), "TemplateProcessing"))
            return step;
    return ew_str_is(ew_json_str(ew_json_get(post, "type"), ""), "TemplateProcessing") ? post : NULL;
}

static bool is_special(const struct ew_json *item)
{
    return item && !ew_json_is_null(ew_json_get(item, "SpecialToken"));
}

static int write_additions(struct vocab *v)
{
    const struct ew_json *around = ew_json_get(find_template(v->json), "single");
    bool adds = around && around->type == EW_JSON_T_ARRAY && around->count > 0;
    bool bos = adds && is_special(ew_json_at(around, 0));
    bool eos = adds && around->count > 1 && is_special(ew_json_at(around, around->count - 1));
    int code = ew_gguf_write_bool(v->w, "tokenizer.ggml.add_bos_token", bos, v->err);

    return code == EW_OK ? ew_gguf_write_bool(v->w, "tokenizer.ggml.add_eos_token", eos, v->err) : code;
}

// The id of a token that tokenizer_config.json names, or -1.
static int64_t configured_token(const struct vocab *v, const char *key)
{
    const struct ew_json *node = ew_json_get(v->convert->file.tokenizer_config, key);
    struct ew_str text = ew_json_str(node && node->type == EW_JSON_T_OBJECT ? ew_json_get(node, "content") : node, "");

    for (uint32_t id = 0; text.len && id < v->count; id++)
        if (v->types[id] != TOKEN_NORMAL && ew_str_eq(v->texts[id], text))
            return id;
    return -1;
}

static int write_id(struct vocab *v, const char *key, int64_t id)
{
    return id >= 0 && id < v->count ? ew_gguf_write_u32(v->w, key, (uint32_t)id, v->err) : EW_OK;
}

// GGUF has one place each for the end of the text, of a turn and of a message: a list of ends is spread over them.
static int write_special_ids(struct vocab *v)
{
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    struct ew_model_tokens tokens;
    int64_t pad = ew_json_int(ew_json_get(v->convert->file.config, "pad_token_id"), -1);
    int code;

    ew_tokens_read(&v->convert->file, v->count, &tokens);
    code = write_id(v, "tokenizer.ggml.bos_token_id", tokens.bos);
    for (uint32_t i = 0; i < tokens.n_eos && i < EW_COUNT_OF(ends) && code == EW_OK; i++)
        code = write_id(v, ends[i], tokens.eos[i]);
    if (tokens.n_eos > EW_COUNT_OF(ends))
        ew_log(EW_LOG_WARN, "of the model's %u end tokens GGUF holds the first three", tokens.n_eos);
    if (code == EW_OK)
        code = write_id(v, "tokenizer.ggml.padding_token_id", pad >= 0 ? pad : configured_token(v, "pad_token"));
    return code == EW_OK ? write_id(v, "tokenizer.ggml.unknown_token_id", configured_token(v, "unk_token")) : code;
}

// ---- both kinds ------------------------------------------------------------------------------------------

// Whether some part of a component, or of a sequence of them, is of this type.
static const struct ew_json *find_component(const struct ew_json *component, const char *list, const char *type)
{
    const struct ew_json *steps = ew_json_get(component, list);

    if (ew_str_is(ew_json_str(ew_json_get(component, "type"), ""), type))
        return component;
    for (const struct ew_json *step = ew_json_is_null(steps) ? NULL : steps->child; step; step = step->next)
        if (ew_str_is(ew_json_str(ew_json_get(step, "type"), ""), type))
            return step;
    return NULL;
}

static int write_bytelevel(struct vocab *v, const char *pre_name, const struct ew_json *merges)
{
    const struct ew_json *byte_level = find_component(ew_json_get(v->json, "pre_tokenizer"), "pretokenizers",
                                                      "ByteLevel");
    const char *pre = pre_name ? pre_name : recognise_pre(v->json);
    int code;

    if (!pre) {
        ew_fail(v->err, EW_ERR_UNSUPPORTED, "the pre-tokeniser of tokenizer.json has no known name in GGUF");
        return ew_remedy(v->err, EW_ERR_UNSUPPORTED,
                         "give the name with --pre if you know one that does the same (llama-bpe, qwen2, gpt-2, ...)");
    }
    code = read_tokens(v, false);
    if (code == EW_OK)
        code = write_tokens(v, "gpt2");
    if (code == EW_OK)
        code = ew_gguf_write_str(v->w, "tokenizer.ggml.pre", ew_str_of(pre), v->err);
    if (code == EW_OK && ew_json_bool(ew_json_get(byte_level, "add_prefix_space"), false))
        code = ew_gguf_write_bool(v->w, "tokenizer.ggml.add_space_prefix", true, v->err);
    return code == EW_OK ? write_merges(v, merges) : code;
}

// SentencePiece puts a space in front of a text, in tokenizer.json by a normaliser or by the pre-tokeniser.
static bool adds_space(const struct ew_json *tokenizer)
{
    const struct ew_json *metaspace = find_component(ew_json_get(tokenizer, "pre_tokenizer"), "pretokenizers",
                                                     "Metaspace");

    if (metaspace)
        return !ew_str_is(ew_json_str(ew_json_get(metaspace, "prepend_scheme"), "always"), "never");
    return find_component(ew_json_get(tokenizer, "normalizer"), "normalizers", "Prepend") != NULL;
}

static int write_sentencepiece(struct vocab *v, const struct ew_json *merges)
{
    int code = read_tokens(v, true);

    if (code == EW_OK)
        code = write_tokens(v, "llama");
    if (code == EW_OK)
        code = ew_gguf_write_str(v->w, "tokenizer.ggml.pre", EW_STR("default"), v->err);
    if (code == EW_OK)
        code = write_scores(v, merges);
    return code == EW_OK ? ew_gguf_write_bool(v->w, "tokenizer.ggml.add_space_prefix", adds_space(v->json), v->err)
                         : code;
}

static int write_algorithm(struct vocab *v, const char *pre_name)
{
    struct ew_str type = ew_json_str(ew_json_get(v->model, "type"), "BPE"); // old files leave BPE out
    const struct ew_json *merges = ew_json_get(v->model, "merges");

    if (!ew_str_is(type, "BPE") || !merges || merges->type != EW_JSON_T_ARRAY)
        return ew_fail(v->err, EW_ERR_UNSUPPORTED,
                       "tokenizer.json holds a " EW_STR_FMT " model; quantize can write BPE vocabularies only",
                       EW_STR_ARG(type));
    if (find_component(ew_json_get(v->json, "pre_tokenizer"), "pretokenizers", "ByteLevel"))
        return write_bytelevel(v, pre_name, merges);
    if (ew_json_bool(ew_json_get(v->model, "byte_fallback"), false))
        return write_sentencepiece(v, merges);
    return ew_fail(v->err, EW_ERR_UNSUPPORTED,
                   "tokenizer.json holds a BPE model that works neither on bytes nor with byte fallback");
}

static int write_templates(const struct vocab *v)
{
    static const struct ew_str tool_use[] = {{"tool_use", 8}};
    const struct ew_modelfile *file = &v->convert->file;
    int code = EW_OK;

    if (file->chat_template.ptr)
        code = ew_gguf_write_str(v->w, "tokenizer.chat_template", file->chat_template, v->err);
    if (code == EW_OK && file->chat_template_tools.ptr)
        code = ew_gguf_write_strs(v->w, "tokenizer.chat_templates", tool_use, 1, v->err);
    if (code == EW_OK && file->chat_template_tools.ptr)
        code = ew_gguf_write_str(v->w, "tokenizer.chat_template.tool_use", file->chat_template_tools, v->err);
    return code;
}

int ew_convert_write_vocab(const struct ew_convert *convert, const char *pre_name, struct ew_gguf_writer *w,
                           struct ew_error *err)
{
    struct vocab v = {.convert = convert, .json = convert->file.tokenizer, .w = w, .err = err};
    int code;

    v.model = ew_json_get(v.json, "model");
    if (!v.json) {
        ew_log(EW_LOG_WARN, "%s has no tokenizer.json: the GGUF file will have no vocabulary", convert->file.path);
        return write_templates(&v);
    }
    ew_arena_init(&v.arena, (size_t)1 << 30);
    code = write_algorithm(&v, pre_name);
    if (code == EW_OK)
        code = write_special_ids(&v);
    if (code == EW_OK)
        code = write_additions(&v);
    ew_arena_fini(&v.arena);
    return code == EW_OK ? write_templates(&v) : code;
}
