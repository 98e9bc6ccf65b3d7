// tokenizer.json and tokenizer_config.json: the vocabulary, the model, and the added tokens; the components that
// surround them are read by tokenizer_steps.c.

#include <math.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

struct loading {
    struct ew_tokenizer *tok;
    const struct ew_json *root, *model, *config; // config may be NULL
};

static enum ew_tokenizer_model kind_of(const struct ew_json *model, struct ew_str *type)
{
    static const struct {
        const char *type;
        enum ew_tokenizer_model kind;
    } kinds[] = {
        {"BPE", EW_TOKENIZER_BPE}, {"Unigram", EW_TOKENIZER_UNIGRAM}, {"WordPiece", EW_TOKENIZER_WORDPIECE},
        {"WordLevel", EW_TOKENIZER_WORDLEVEL},
    };

    // Files of before 2021 do not name the type.
    *type = ew_json_str(ew_json_get(model, "type"), ew_json_get(model, "merges")                     ? "BPE"
                                                    : ew_json_get(model, "unk_id")                   ? "Unigram"
                                                    : ew_json_get(model, "max_input_chars_per_word") ? "WordPiece"
                                                                                                     : "WordLevel");
    for (size_t i = 0; i < EW_COUNT_OF(kinds); i++)
        if (ew_str_is(*type, kinds[i].type))
            return kinds[i].kind;
    return EW_TOKENIZER_SPM; // has no form in tokenizer.json
}

static void widen(const struct ew_json *id, int64_t *count)
{
    *count = EW_MAX(*count, ew_json_int(id, -1) + 1);
}

// One more than the highest id anywhere.
static int64_t count_ids(const struct loading *load)
{
    const struct ew_json *vocab = ew_json_get(load->model, "vocab"), *added = ew_json_get(load->root, "added_tokens");
    const struct ew_json *decoder = ew_json_get(load->config, "added_tokens_decoder");
    int64_t count = vocab ? vocab->type == EW_JSON_T_ARRAY ? vocab->count : 0 : 0, id;

    for (const struct ew_json *node = vocab && vocab->type == EW_JSON_T_OBJECT ? vocab->child : NULL; node;
         node = node->next)
        widen(node, &count);
    for (const struct ew_json *node = added ? added->child : NULL; node; node = node->next)
        widen(ew_json_get(node, "id"), &count);
    for (const struct ew_json *node = decoder ? decoder->child : NULL; node; node = node->next)
        if (ew_str_to_i64(node->key, &id) && id < EW_VOCAB_COUNT_MAX)
            count = EW_MAX(count, id + 1);
    return count;
}

static int read_vocab(struct loading *load, struct ew_error *err)
{
    const struct ew_json *vocab = ew_json_get(load->model, "vocab");
    struct ew_vocab *to = &load->tok->vocab;
    bool scored = vocab && vocab->type == EW_JSON_T_ARRAY;
    int64_t count = count_ids(load), next = 0;
    int code = ew_vocab_init(to, count < 0 ? 0 : (uint64_t)count, err);

    for (const struct ew_json *node = vocab ? vocab->child : NULL; node && code == EW_OK; node = node->next) {
        int64_t id = scored ? next++ : ew_json_int(node, -1);
        struct ew_str text = scored ? ew_json_str(ew_json_at(node, 0), "") : node->key;

        if (id < 0)
            return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json's token \"" EW_STR_FMT "\" has no id", EW_STR_ARG(text));
        code = ew_vocab_set(to, (uint32_t)id, text, EW_VOCAB_MODEL, err);
    }
    return code;
}

// Remembers that a token is decoded as `form`.
static int put_form(struct ew_tokenizer *tok, int32_t id, struct ew_str form, struct ew_error *err)
{
    struct ew_str *forms = ew_realloc_array(tok->forms, (size_t)tok->form_count + 1, sizeof(*forms));

    if (!forms)
        return ew_fail_memory(err, form.len, "an added token");
    tok->forms = forms;
    forms[tok->form_count] = form;
    if (!tok->form_of.slots && ew_imap_init(&tok->form_of, 16) != EW_OK)
        return ew_fail_memory(err, form.len, "an added token");
    if (ew_imap_put(&tok->form_of, (uint64_t)id, tok->form_count++) != EW_OK)
        return ew_fail_memory(err, form.len, "an added token");
    return EW_OK;
}

// Puts a token that is searched for in normalised text, in its own normalised form.
static int put_normalised(struct ew_tokenizer *tok, struct ew_str text, struct ew_added_token token,
                          struct ew_error *err)
{
    struct ew_normaliser_scratch scratch;
    struct ew_str normal = {0};
    int code;

    ew_normaliser_scratch_init(&scratch);
    code = ew_normaliser_run(&tok->normaliser, &scratch, text, &normal, err);
    if (code == EW_OK) {
        normal.ptr = ew_arena_copy(&tok->arena, normal.ptr, normal.len);
        if (!normal.ptr)
            code = ew_fail_memory(err, normal.len, "an added token");
    }
    ew_normaliser_scratch_fini(&scratch);
    if (code == EW_OK && !ew_str_eq(normal, text))
        code = put_form(tok, token.id, normal, err);
    return code == EW_OK ? ew_added_put(&tok->added_normalised, normal, token, err) : code;
}

// Makes a token findable in texts.
static int put_added(struct loading *load, struct ew_str text, struct ew_added_token token, bool normalised,
                     struct ew_error *err)
{
    if (normalised && ew_utf8_valid(text.ptr, text.len))
        return put_normalised(load->tok, text, token, err);
    return ew_added_put(&load->tok->added, text, token, err);
}

// Marks the token `id` as added; special ones are no longer the model's, so that no plain text can become one.
static void mark_added(struct ew_vocab *vocab, int32_t id, bool special)
{
    vocab->flags[id] |= EW_VOCAB_ADDED;
    if (special)
        vocab->flags[id] = (uint8_t)((vocab->flags[id] | EW_VOCAB_SPECIAL) & ~EW_VOCAB_MODEL);
}

static int place_added(struct loading *load, int32_t id, const struct ew_json *node, uint8_t *placed,
                       struct ew_error *err)
{
    bool special = ew_json_bool(ew_json_get(node, "special"), false);
    struct ew_added_token token = {
        .id = id, .special = special,
        .single_word = ew_json_bool(ew_json_get(node, "single_word"), false),
        .lstrip = ew_json_bool(ew_json_get(node, "lstrip"), false),
        .rstrip = ew_json_bool(ew_json_get(node, "rstrip"), false),
    };

    if (placed[id])
        return EW_OK;
    placed[id] = 1;
    mark_added(&load->tok->vocab, id, special);
    return put_added(load, ew_json_str(ew_json_get(node, "content"), ""), token,
                     ew_json_bool(ew_json_get(node, "normalized"), !special), err);
}

// The id of an added token: that of the same text in the model, or the one given, if it is free.
static int id_of_added(struct ew_vocab *vocab, int64_t given, struct ew_str text, int32_t *id, struct ew_error *err)
{
    *id = ew_vocab_find(vocab, text);
    if (*id >= 0)
        return EW_OK;
    if (given < 0 || given >= vocab->count || vocab->flags[given] & EW_VOCAB_USED)
        return ew_fail(err, EW_ERR_FORMAT, "the added token \"" EW_STR_FMT "\" has the id %lld, which is no free one",
                       EW_STR_ARG(text), (long long)given);
    *id = (int32_t)given;
    return ew_vocab_set(vocab, (uint32_t)given, text, EW_VOCAB_ADDED, err);
}

static int take_config_added(struct loading *load, uint8_t *placed, struct ew_error *err)
{
    const struct ew_json *decoder = ew_json_get(load->config, "added_tokens_decoder");
    int code = EW_OK;

    for (const struct ew_json *node = decoder ? decoder->child : NULL; node && code == EW_OK; node = node->next) {
        struct ew_str text = ew_json_str(ew_json_get(node, "content"), "");
        int64_t given;
        int32_t id;

        // tokenizer.json is the authority: entries that contradict it are stale.
        if (text.len == 0 || !ew_str_to_i64(node->key, &given) ||
            id_of_added(&load->tok->vocab, given, text, &id, NULL) != EW_OK)
            continue;
        code = place_added(load, id, node, placed, err);
    }
    return code;
}

static int take_added(struct loading *load, const struct ew_json *added, uint8_t *placed, struct ew_error *err)
{
    struct ew_vocab *vocab = &load->tok->vocab;
    int32_t id;
    int code = EW_OK;

    for (const struct ew_json *node = added; node && code == EW_OK; node = node->next) {
        struct ew_str text = ew_json_str(ew_json_get(node, "content"), "");

        if (text.len)
            code = id_of_added(vocab, ew_json_int(ew_json_get(node, "id"), -1), text, &id, err);
    }
    if (code == EW_OK)
        code = take_config_added(load, placed, err); // its flags win, as in transformers
    for (const struct ew_json *node = added; node && code == EW_OK; node = node->next) {
        id = ew_vocab_find(vocab, ew_json_str(ew_json_get(node, "content"), ""));
        if (id >= 0 && ew_json_str(ew_json_get(node, "content"), "").len)
            code = place_added(load, id, node, placed, err);
    }
    return code;
}

// bos_token and its like: a text, or an object with the flags of an added token.
static int read_named_token(struct loading *load, const char *key, int32_t *out, uint8_t *placed, struct ew_error *err)
{
    const struct ew_json *node = ew_json_get(load->config, key);
    struct ew_str text = ew_json_str(node, ew_json_str(ew_json_get(node, "content"), "").ptr);
    int32_t id = text.len ? ew_vocab_find(&load->tok->vocab, text) : EW_TOKEN_NONE;

    if (id < 0)
        return EW_OK;
    *out = id;
    mark_added(&load->tok->vocab, id, true);
    if (placed[id])
        return EW_OK;
    placed[id] = 1;
    return put_added(load, text, (struct ew_added_token){.id = id, .special = true}, false, err);
}

static int read_named_tokens(struct loading *load, uint8_t *placed, struct ew_error *err)
{
    struct ew_tokenizer_info *info = &load->tok->info;
    const struct {
        const char *key;
        int32_t *id;
    } named[] = {
        {"bos_token", &info->bos}, {"eos_token", &info->eos}, {"unk_token", &info->unk}, {"pad_token", &info->pad},
        {"sep_token", &info->sep}, {"cls_token", &info->cls}, {"mask_token", &info->mask},
    };
    int code = EW_OK;

    for (size_t i = 0; i < EW_COUNT_OF(named) && code == EW_OK; i++)
        code = read_named_token(load, named[i].key, named[i].id, placed, err);
    return code;
}

static int read_added(struct loading *load, struct ew_error *err)
{
    const struct ew_json *added = ew_json_get(load->root, "added_tokens");
    uint8_t *placed = ew_alloc(load->tok->vocab.count);
    int code;

    if (!placed)
        return ew_fail_memory(err, load->tok->vocab.count, "the added tokens");
    code = take_added(load, added ? added->child : NULL, placed, err);
    if (code == EW_OK)
        code = read_named_tokens(load, placed, err);
    ew_free(placed);
    return code;
}

static int split_merge(const struct ew_json *node, struct ew_str *a, struct ew_str *b)
{
    struct ew_str text = ew_json_str(node, "");
    ptrdiff_t space;

    if (node->type == EW_JSON_T_ARRAY) {
        *a = ew_json_str(ew_json_at(node, 0), "");
        *b = ew_json_str(ew_json_at(node, 1), "");
        return node->count == 2 ? EW_OK : EW_ERR_FORMAT;
    }
    space = ew_str_find(text, EW_STR(" "), 0);
    if (space < 0)
        return EW_ERR_FORMAT;
    *a = (struct ew_str){text.ptr, (size_t)space};
    *b = (struct ew_str){text.ptr + space + 1, text.len - (size_t)space - 1};
    return EW_OK;
}

static int read_merges(struct ew_bpe *bpe, const struct ew_json *merges, struct ew_error *err)
{
    struct ew_bpe_batch batch = {0};
    bool all_known = true;

    for (const struct ew_json *node = merges ? merges->child : NULL; node; node = node->next) {
        if (ew_str_starts(ew_json_str(node, ""), "#version"))
            continue;
        if (split_merge(node, &batch.halves[batch.count][0], &batch.halves[batch.count][1]) != EW_OK)
            return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json has a merge that is not two tokens");
        if (++batch.count == EW_BPE_BATCH)
            all_known &= ew_bpe_add(bpe, &batch) == 0;
    }
    all_known &= ew_bpe_add(bpe, &batch) == 0;
    return all_known ? EW_OK : ew_fail(err, EW_ERR_FORMAT, "tokenizer.json has merges of or into what is no token");
}

static int load_bpe(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    const struct ew_json *merges = ew_json_get(load->model, "merges");
    struct ew_str unk = ew_json_str(ew_json_get(load->model, "unk_token"), "");
    int code = ew_bpe_init(&tok->bpe, &tok->vocab, merges ? merges->count : 0, err);

    if (code != EW_OK)
        return code;
    tok->info.algorithm = "bpe";
    tok->bpe.unk = unk.len ? ew_vocab_find(&tok->vocab, unk) : EW_TOKEN_NONE;
    tok->bpe.fuse_unk = ew_json_bool(ew_json_get(load->model, "fuse_unk"), false);
    tok->bpe.ignore_merges = ew_json_bool(ew_json_get(load->model, "ignore_merges"), false);
    tok->bpe.prefix = ew_json_str(ew_json_get(load->model, "continuing_subword_prefix"), "");
    tok->bpe.suffix = ew_json_str(ew_json_get(load->model, "end_of_word_suffix"), "");
    if (tok->bpe.prefix.len > EW_BPE_AFFIX_MAX || tok->bpe.suffix.len > EW_BPE_AFFIX_MAX)
        return ew_fail(err, EW_ERR_LIMIT,
                       "tokenizer.json's continuing_subword_prefix or end_of_word_suffix is longer than %d bytes",
                       EW_BPE_AFFIX_MAX);
    ew_bpe_ready(&tok->bpe, ew_json_bool(ew_json_get(load->model, "byte_fallback"), false));
    tok->byte_fallback = tok->bpe.byte_fallback;
    return read_merges(&tok->bpe, merges, err);
}

static int add_unigram_token(struct ew_tokenizer *tok, uint32_t id, double score, bool byte_fallback,
                             struct ew_error *err)
{
    unsigned char byte;

    // Byte tokens are reached through fallback only, and special ones not at all; their scores still count for the
    // least.
    if (tok->vocab.flags[id] & EW_VOCAB_MODEL && !(byte_fallback && ew_vocab_parse_byte(tok->vocab.texts[id], &byte)))
        return ew_unigram_add(&tok->unigram, id, score, err);
    tok->unigram.score_min = fmin(tok->unigram.score_min, score);
    return EW_OK;
}

static int load_unigram(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    const struct ew_json *vocab = ew_json_get(load->model, "vocab");
    bool byte_fallback = ew_json_bool(ew_json_get(load->model, "byte_fallback"), false);
    int64_t unk = ew_json_int(ew_json_get(load->model, "unk_id"), -1);
    uint32_t id = 0;
    int code = ew_unigram_init(&tok->unigram, &tok->vocab, err);

    for (const struct ew_json *node = vocab ? vocab->child : NULL; node && code == EW_OK; node = node->next, id++)
        code = add_unigram_token(tok, id, ew_json_number(ew_json_at(node, 1), 0), byte_fallback, err);
    if (code != EW_OK)
        return code;
    tok->info.algorithm = "unigram";
    tok->unigram.unk = unk >= 0 && unk < tok->vocab.count ? (int32_t)unk : EW_TOKEN_NONE;
    ew_unigram_ready(&tok->unigram, byte_fallback);
    tok->byte_fallback = tok->unigram.byte_fallback;
    return EW_OK;
}

static int load_wordpiece(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    struct ew_str inner = ew_json_str(ew_json_get(load->model, "continuing_subword_prefix"), "##");
    int64_t longest = ew_json_int(ew_json_get(load->model, "max_input_chars_per_word"), 100);
    int code = ew_wordpiece_init(&tok->wordpiece, &tok->vocab, EW_STR(""), inner, err);

    tok->info.algorithm = "wordpiece";
    tok->wordpiece.word_len_max = longest < 0 || longest > UINT32_MAX ? UINT32_MAX : (uint32_t)longest;
    tok->wordpiece.unk = ew_vocab_find(&tok->vocab, ew_json_str(ew_json_get(load->model, "unk_token"), "[UNK]"));
    return code;
}

static int load_model(struct loading *load, int32_t *unk, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    int code;

    switch (tok->model) {
    case EW_TOKENIZER_BPE:
        code = load_bpe(load, err);
        *unk = tok->bpe.unk;
        return code;
    case EW_TOKENIZER_UNIGRAM:
        code = load_unigram(load, err);
        *unk = tok->unigram.unk;
        return code;
    case EW_TOKENIZER_WORDPIECE:
        code = load_wordpiece(load, err);
        *unk = tok->wordpiece.unk;
        return code;
    default:
        tok->info.algorithm = "wordlevel";
        *unk = ew_vocab_find(&tok->vocab, ew_json_str(ew_json_get(load->model, "unk_token"), "<unk>"));
        return EW_OK;
    }
}

static bool has_id(const struct ew_affix *affix, int32_t id)
{
    for (uint32_t i = 0; i < affix->count; i++)
        if (affix->ids[i] == id)
            return true;
    return false;
}

static void drop_id(struct ew_affix *affix, int32_t id)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < affix->count; i++)
        if (affix->ids[i] != id)
            affix->ids[kept++] = affix->ids[i];
    affix->count = kept;
}

// transformers rebuilds the post-processor of these classes from add_bos_token and add_eos_token.
static bool rebuilds_processor(const struct ew_json *config)
{
    static const char *const classes[] = {"Llama", "Gemma", "Cohere"};
    struct ew_str name = ew_json_str(ew_json_get(config, "tokenizer_class"), "");

    for (size_t i = 0; i < EW_COUNT_OF(classes); i++)
        if (ew_str_find(name, ew_str_of(classes[i]), 0) >= 0)
            return true;
    return false;
}

static int apply_edge(struct loading *load, const char *key, struct ew_affix *affix, int32_t id, bool *adds,
                      struct ew_error *err)
{
    const struct ew_json *wanted = ew_json_get(load->config, key);
    int code = EW_OK;

    if (id >= 0 && ew_json_bool(wanted, false) && !has_id(affix, id))
        code = ew_affix_add(affix, id, err);
    else if (id >= 0 && !ew_json_bool(wanted, true) && rebuilds_processor(load->config))
        drop_id(affix, id);
    *adds = id >= 0 && has_id(affix, id);
    return code;
}

static int read_edges(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    int code = ew_tokenizer_json_processor(tok, ew_json_get(load->root, "post_processor"), err);

    if (code == EW_OK)
        code = apply_edge(load, "add_bos_token", &tok->prefix, tok->info.bos, &tok->info.add_bos, err);
    return code == EW_OK ? apply_edge(load, "add_eos_token", &tok->suffix, tok->info.eos, &tok->info.add_eos, err)
                         : code;
}

// Whether some step turns text into the byte alphabet.
static void note_byte_level(struct ew_tokenizer *tok)
{
    for (uint32_t i = 0; i < tok->normaliser.count; i++)
        tok->bytes_normalised |= tok->normaliser.steps[i].kind == EW_NORMALISER_BYTES;
    tok->byte_level = tok->bytes_normalised;
    for (uint32_t i = 0; i < tok->pretok.count; i++)
        tok->byte_level |= tok->pretok.steps[i].kind == EW_PRETOK_BYTES;
}

int ew_tokenizer_read_json(struct ew_tokenizer *tok, const struct ew_json *root, const struct ew_json *config,
                           struct ew_error *err)
{
    struct loading load = {tok, root, ew_json_get(root, "model"), config};
    struct ew_str type;
    int32_t unk;
    int code;

    tok->model = kind_of(load.model, &type);
    if (tok->model == EW_TOKENIZER_SPM)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "tokenizer.json has a model \"" EW_STR_FMT "\", which edgewise does not know", EW_STR_ARG(type));
    if ((code = read_vocab(&load, err)) != EW_OK ||
        (code = ew_tokenizer_json_normaliser(tok, ew_json_get(root, "normalizer"), err)) != EW_OK ||
        (code = ew_tokenizer_json_pretok(tok, ew_json_get(root, "pre_tokenizer"), err)) != EW_OK ||
        (code = ew_tokenizer_json_decoder(tok, ew_json_get(root, "decoder"), err)) != EW_OK ||
        (code = read_added(&load, err)) != EW_OK || (code = load_model(&load, &unk, err)) != EW_OK)
        return code;
    if (unk >= 0)
        tok->info.unk = unk; // what the model really gives, whatever the configuration names
    note_byte_level(tok);
    tok->info.n_vocab = tok->vocab.count;
    return read_edges(&load, err);
}
