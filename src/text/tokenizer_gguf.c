// The tokenizer of a GGUF file: the keys tokenizer.ggml.*, and what each kind of vocabulary implies where they are
// silent. Source: the GGUF specification and the conventions of its converters.

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

#define KEY(name) "tokenizer.ggml." name

enum token_type { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };

// What a vocabulary is where its keys do not say.
struct defaults {
    const char *model; // tokenizer.ggml.model
    enum ew_tokenizer_model kind;
    const char *algorithm;
    int32_t bos, eos, unk, pad, sep, mask;
    bool add_bos, add_eos, add_sep, space_prefix, collapse_spaces;
};

static const struct defaults g_defaults[] = {
    {"gpt2", EW_TOKENIZER_BPE, "bpe", -1, -1, -1, -1, -1, -1, false, false, false, false, false},
    {"gemma4", EW_TOKENIZER_BPE, "bpe", -1, -1, -1, -1, -1, -1, true, false, false, false, false},
    {"llama", EW_TOKENIZER_SPM, "sentencepiece-bpe", 1, 2, 0, -1, -1, -1, true, false, false, true, false},
    {"t5", EW_TOKENIZER_UNIGRAM, "unigram", -1, 1, 2, 0, -1, -1, false, true, false, false, false},
    {"bert", EW_TOKENIZER_WORDPIECE, "wordpiece", 101, -1, 100, 0, 102, 103, true, false, true, false, false},
};

struct loading {
    struct ew_tokenizer *tok;
    const struct ew_gguf *gguf;
    const struct defaults *defaults;
    unsigned pre_flags;
    const struct ew_gguf_value *types, *scores;
};

static int find_defaults(struct loading *load, struct ew_error *err)
{
    struct ew_str model = ew_gguf_str(load->gguf, KEY("model"), "");

    for (size_t i = 0; i < EW_COUNT_OF(g_defaults); i++)
        if (ew_str_is(model, g_defaults[i].model)) {
            load->defaults = &g_defaults[i];
            return EW_OK;
        }
    ew_fail(err, EW_ERR_UNSUPPORTED, "the vocabulary's kind \"" EW_STR_FMT "\" (%s) is unknown", EW_STR_ARG(model),
            KEY("model"));
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "Feed token ids with --ids");
}

static unsigned flags_of(int64_t type)
{
    switch (type) {
    case TYPE_NORMAL:
        return EW_VOCAB_MODEL;
    case TYPE_UNKNOWN:
    case TYPE_CONTROL:
        return EW_VOCAB_SPECIAL | EW_VOCAB_ADDED;
    case TYPE_USER_DEFINED:
        return EW_VOCAB_MODEL | EW_VOCAB_ADDED;
    case TYPE_UNUSED:
        return EW_VOCAB_MODEL | EW_VOCAB_UNUSED;
    case TYPE_BYTE:
        return EW_VOCAB_BYTE;
    default:
        return 0;
    }
}

// Texts that mean control in every model that has them; some converters wrote them as ordinary tokens, and a chat
// template cannot work then.
static bool is_control_text(struct ew_str text)
{
    static const char *const texts[] = {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<turn|>",
        "<|im_start|>",
        "<start_of_turn>",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<\xEF\xBD\x9C"
        "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
    };

    if (text.len < 5 || (text.ptr[0] != '<' && text.ptr[0] != '[' && text.ptr[0] != '_'))
        return false;
    for (size_t i = 0; i < EW_COUNT_OF(texts); i++)
        if (ew_str_is(text, texts[i]))
            return true;
    return false;
}

static int read_token(struct loading *load, uint32_t id, struct ew_str text, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    struct ew_added_token added = {.id = (int32_t)id};
    int64_t type = TYPE_NORMAL;
    unsigned flags;
    int code;

    if (load->types && !ew_gguf_array_int(load->types, id, &type))
        return ew_fail(err, EW_ERR_FORMAT, "%s has no entry for token %u", KEY("token_type"), id);
    if (type != TYPE_CONTROL && is_control_text(text))
        type = TYPE_CONTROL;
    flags = flags_of(type);
    code = ew_vocab_set(&tok->vocab, id, text, flags, err);
    if (code != EW_OK || !(flags & EW_VOCAB_ADDED))
        return code;
    added.special = flags & EW_VOCAB_SPECIAL;
    added.lstrip = load->pre_flags & EW_PRE_MASK_LSTRIP && (ew_str_is(text, "<mask>") || ew_str_is(text, "[MASK]"));
    return ew_added_put(&tok->added, text, added, err);
}

static int read_tokens(struct loading *load, struct ew_error *err)
{
    const struct ew_gguf_value *tokens = ew_gguf_find(load->gguf, KEY("tokens"));
    uint64_t cursor = 0;
    struct ew_str text;
    int code;

    if (!tokens || tokens->type != EW_GGUF_ARRAY || tokens->element_type != EW_GGUF_STRING)
        return ew_fail(err, EW_ERR_FORMAT, "%s is not a list of strings", KEY("tokens"));
    load->types = ew_gguf_find(load->gguf, KEY("token_type"));
    load->scores = ew_gguf_find(load->gguf, KEY("scores"));
    code = ew_vocab_init(&load->tok->vocab, tokens->count, err);
    for (uint32_t id = 0; code == EW_OK && id < load->tok->vocab.count; id++) {
        if (!ew_gguf_array_next_str(tokens, &cursor, &text))
            return ew_fail(err, EW_ERR_FORMAT, "%s ends after %u of %llu tokens", KEY("tokens"), id,
                           (unsigned long long)tokens->count);
        code = read_token(load, id, text, err);
    }
    return code;
}

static int32_t read_id(const struct loading *load, const char *key, int32_t fallback)
{
    int64_t id = ew_gguf_int(load->gguf, key, fallback);

    return id >= 0 && id < load->tok->vocab.count ? (int32_t)id : EW_TOKEN_NONE;
}

static void read_special_ids(struct loading *load)
{
    struct ew_tokenizer_info *info = &load->tok->info;
    const struct defaults *d = load->defaults;

    info->cls = read_id(load, KEY("cls_token_id"), EW_TOKEN_NONE);
    info->bos = read_id(load, KEY("bos_token_id"), info->cls >= 0 ? info->cls : d->bos);
    info->eos = read_id(load, KEY("eos_token_id"), d->eos);
    info->unk = read_id(load, KEY("unknown_token_id"), d->unk);
    info->pad = read_id(load, KEY("padding_token_id"), d->pad);
    info->sep = read_id(load, KEY("seperator_token_id"), d->sep); // the format's own spelling
    if (info->sep < 0)
        info->sep = read_id(load, KEY("separator_token_id"), EW_TOKEN_NONE);
    info->mask = read_id(load, KEY("mask_token_id"), d->mask);
    if (info->cls < 0 && d->kind == EW_TOKENIZER_WORDPIECE)
        info->cls = info->bos;
}

static int need_id(int32_t id, const char *key, struct ew_error *err)
{
    return id >= 0 ? EW_OK
                   : ew_fail(err, EW_ERR_FORMAT,
                             "the vocabulary wants %s added to every text, but does not say which it is", key);
}

static int add_edges(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    struct ew_tokenizer_info *info = &tok->info;
    bool add_sep = ew_gguf_bool(load->gguf, KEY("add_sep_token"),
                                load->defaults->add_sep || load->pre_flags & EW_PRE_ADD_SEP);
    int code = EW_OK;

    info->add_bos = ew_gguf_bool(load->gguf, KEY("add_bos_token"),
                                 load->defaults->add_bos || load->pre_flags & EW_PRE_ADD_BOS);
    info->add_bos |= (load->pre_flags & EW_PRE_FORCE_BOS) != 0;
    info->add_eos = ew_gguf_bool(load->gguf, KEY("add_eos_token"), load->defaults->add_eos);
    if (info->add_bos)
        code = need_id(info->bos, KEY("bos_token_id"), err) == EW_OK ? ew_affix_add(&tok->prefix, info->bos, err)
                                                                     : EW_ERR_FORMAT;
    if (code == EW_OK && info->add_eos)
        code = need_id(info->eos, KEY("eos_token_id"), err) == EW_OK ? ew_affix_add(&tok->suffix, info->eos, err)
                                                                     : EW_ERR_FORMAT;
    if (code == EW_OK && add_sep && load->defaults->kind == EW_TOKENIZER_WORDPIECE)
        code = need_id(info->sep, KEY("seperator_token_id"), err) == EW_OK ? ew_affix_add(&tok->suffix, info->sep, err)
                                                                           : EW_ERR_FORMAT;
    return code;
}

static int read_merges(struct loading *load, const struct ew_gguf_value *merges, struct ew_error *err)
{
    struct ew_bpe_batch batch = {0};
    uint64_t cursor = 0;
    struct ew_str merge;

    for (uint64_t rank = 0; rank < merges->count; rank++) {
        ptrdiff_t space;

        if (!ew_gguf_array_next_str(merges, &cursor, &merge))
            return ew_fail(err, EW_ERR_FORMAT, "%s ends after %llu of %llu merges", KEY("merges"),
                           (unsigned long long)rank, (unsigned long long)merges->count);
        space = ew_str_find(merge, EW_STR(" "), 1); // the first half has at least one byte
        if (space < 0)
            return ew_fail(err, EW_ERR_FORMAT, "merge %llu, \"" EW_STR_FMT "\", is not two tokens",
                           (unsigned long long)rank, EW_STR_ARG(merge));
        batch.halves[batch.count][0] = (struct ew_str){merge.ptr, (size_t)space};
        batch.halves[batch.count][1] = (struct ew_str){merge.ptr + space + 1, merge.len - (size_t)space - 1};
        if (++batch.count == EW_BPE_BATCH)
            (void)ew_bpe_add(&load->tok->bpe, &batch);
    }
    (void)ew_bpe_add(&load->tok->bpe, &batch);
    return EW_OK;
}

// Kimi's files may carry no merges: as in tiktoken, a token's id is then its rank.
static int load_ranked(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    int code;

    tok->model = EW_TOKENIZER_SPM;
    code = ew_spm_init(&tok->spm, &tok->vocab, tok->info.unk, err);
    for (uint32_t id = 0; code == EW_OK && id < tok->vocab.count; id++)
        tok->spm.ranks[id] = id;
    return code;
}

static int load_bpe(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    const struct ew_gguf_value *merges = ew_gguf_find(load->gguf, KEY("merges"));
    bool metaspace = load->pre_flags & EW_PRE_METASPACE;
    struct ew_normaliser_step spaces = {
        .kind = EW_NORMALISER_REPLACE, .text = EW_STR(" "), .content = EW_STR(EW_METASPACE)};
    int code;

    tok->byte_level = !metaspace;
    tok->metaspace = metaspace;
    if (metaspace) {
        code = ew_normaliser_add(&tok->normaliser, spaces, err);
        if (code != EW_OK)
            return code;
    }
    if (!merges && ew_str_is(ew_gguf_str(load->gguf, KEY("pre"), ""), "kimi-k2"))
        return load_ranked(load, err);
    if (!merges || merges->type != EW_GGUF_ARRAY || merges->element_type != EW_GGUF_STRING)
        return ew_fail(err, EW_ERR_FORMAT, "%s is not a list of strings", KEY("merges"));
    code = ew_bpe_init(&tok->bpe, &tok->vocab, merges->count, err);
    if (code != EW_OK)
        return code;
    tok->bpe.unk = metaspace ? tok->info.unk : EW_TOKEN_NONE;
    tok->bpe.ignore_merges = load->pre_flags & EW_PRE_IGNORE_MERGES;
    tok->bpe.whole_newlines = load->pre_flags & EW_PRE_NEWLINES;
    tok->bpe.first_pair_wins = true;
    ew_bpe_ready(&tok->bpe, metaspace);
    tok->byte_fallback = tok->bpe.byte_fallback;
    return read_merges(load, merges, err);
}

static int add_sentencepiece(struct loading *load, struct ew_error *err)
{
    const struct ew_gguf_value *map = ew_gguf_find(load->gguf, KEY("precompiled_charsmap"));
    struct ew_normaliser_step step = {.kind = EW_NORMALISER_SENTENCEPIECE, .escape_spaces = true};
    bool prefix = ew_gguf_bool(load->gguf, KEY("add_space_prefix"), load->defaults->space_prefix);
    bool as_suffix = ew_gguf_bool(load->gguf, KEY("treat_whitespace_as_suffix"), false);
    int code;

    step.prefix_space = prefix && !as_suffix;
    step.suffix_space = prefix && as_suffix;
    step.collapse_spaces = ew_gguf_bool(load->gguf, KEY("remove_extra_whitespaces"), load->defaults->collapse_spaces);
    if (map && (map->type != EW_GGUF_ARRAY || (map->element_type != EW_GGUF_U8 && map->element_type != EW_GGUF_I8)))
        return ew_fail(err, EW_ERR_FORMAT, "%s is not a list of bytes", KEY("precompiled_charsmap"));
    if (map) {
        code = ew_charsmap_parse(&step.charsmap, (struct ew_str){(const char *)map->data, map->bytes}, err);
        if (code != EW_OK)
            return code;
    }
    load->tok->metaspace = true;
    return ew_normaliser_add(&load->tok->normaliser, step, err);
}

static int read_score(const struct loading *load, uint32_t id, double *score, struct ew_error *err)
{
    *score = 0;
    if (load->scores && !ew_gguf_array_number(load->scores, id, score))
        return ew_fail(err, EW_ERR_FORMAT, "%s has no entry for token %u", KEY("scores"), id);
    return EW_OK;
}

static int load_spm(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    double score;
    int code = ew_spm_init(&tok->spm, &tok->vocab, tok->info.unk, err);

    for (uint32_t id = 0; code == EW_OK && id < tok->vocab.count; id++) {
        code = read_score(load, id, &score, err);
        ew_spm_set_score(&tok->spm, id, (float)score);
    }
    tok->byte_fallback = tok->spm.byte_fallback;
    return code == EW_OK ? add_sentencepiece(load, err) : code;
}

static int load_unigram(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    double score;
    int code = ew_unigram_init(&tok->unigram, &tok->vocab, err);

    for (uint32_t id = 0; code == EW_OK && id < tok->vocab.count; id++) {
        unsigned flags = tok->vocab.flags[id];

        code = read_score(load, id, &score, err);
        if (code == EW_OK && flags & EW_VOCAB_MODEL)
            code = ew_unigram_add(&tok->unigram, id, flags & EW_VOCAB_ADDED ? 0 : score, err);
    }
    if (code != EW_OK)
        return code;
    tok->unigram.unk = tok->info.unk;
    ew_unigram_ready(&tok->unigram, true);
    tok->byte_fallback = tok->unigram.byte_fallback;
    return add_sentencepiece(load, err);
}

static int load_wordpiece(struct loading *load, struct ew_error *err)
{
    struct ew_tokenizer *tok = load->tok;
    bool lowercase = ew_gguf_bool(load->gguf, KEY("normalizer.lowercase"), true);
    bool strip_accents = ew_gguf_bool(load->gguf, KEY("normalizer.strip_accents"), lowercase);
    int code = ew_wordpiece_init(&tok->wordpiece, &tok->vocab, EW_STR(EW_METASPACE), EW_STR(""), err);

    tok->wordpiece.unk = tok->info.unk;
    tok->metaspace = true;
    if (code == EW_OK)
        code = ew_tokenizer_add_bert(tok, true, true, strip_accents, lowercase, err);
    return code == EW_OK ? ew_tokenizer_add_bert_pretok(tok, err) : code;
}

static int load_model(struct loading *load, struct ew_error *err)
{
    load->tok->model = load->defaults->kind;
    switch (load->defaults->kind) {
    case EW_TOKENIZER_BPE:
        return load_bpe(load, err);
    case EW_TOKENIZER_SPM:
        return load_spm(load, err);
    case EW_TOKENIZER_UNIGRAM:
        return load_unigram(load, err);
    default:
        return load_wordpiece(load, err);
    }
}

static int add_decoder(struct ew_tokenizer *tok, struct ew_error *err)
{
    const struct ew_normaliser_step *normaliser = tok->normaliser.count ? &tok->normaliser.steps[0] : NULL;
    bool prefixed = tok->model == EW_TOKENIZER_WORDPIECE || (normaliser && normaliser->prefix_space);
    struct ew_decoder_step spaces = {.kind = EW_DECODER_REPLACE, .text = EW_STR(EW_METASPACE), .content = EW_STR(" ")};
    struct ew_decoder_step bytes = {.kind = EW_DECODER_BYTE_FALLBACK};
    struct ew_decoder_step start = {.kind = EW_DECODER_STRIP_START, .text = EW_STR(" "), .start = 1};
    int code;

    if (tok->byte_level)
        return ew_decoder_add(&tok->decoder, (struct ew_decoder_step){.kind = EW_DECODER_BYTES}, err);
    code = ew_decoder_add(&tok->decoder, spaces, err);
    if (code == EW_OK && tok->byte_fallback)
        code = ew_decoder_add(&tok->decoder, bytes, err);
    return code == EW_OK && prefixed ? ew_decoder_add(&tok->decoder, start, err) : code;
}

int ew_tokenizer_load_gguf(struct ew_tokenizer *tok, const struct ew_gguf *gguf, struct ew_error *err)
{
    struct loading load = {.tok = tok, .gguf = gguf};
    int code = find_defaults(&load, err);

    if (code == EW_OK && load.defaults->kind == EW_TOKENIZER_BPE) {
        struct ew_str pre = ew_gguf_str(gguf, KEY("pre"), "default");

        code = ew_pretok_by_name(ew_str_is(ew_gguf_str(gguf, KEY("model"), ""), "gemma4") ? EW_STR("gemma4") : pre,
                                 &tok->pretok, &load.pre_flags, err);
    }
    if (code == EW_OK)
        code = read_tokens(&load, err);
    if (code != EW_OK)
        return code;
    read_special_ids(&load);
    tok->info.n_vocab = tok->vocab.count;
    tok->info.algorithm = load.defaults->algorithm;
    if (tok->pretok.name)
        tok->info.pretokenizer = tok->pretok.name;
    code = add_edges(&load, err);
    if (code == EW_OK)
        code = load_model(&load, err);
    return code == EW_OK ? add_decoder(tok, err) : code;
}
