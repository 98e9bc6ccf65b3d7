#include "text/tokenizer.h"

#include "base/utf8.h"
#include "text/bytelevel.h"
#include "text/illformed.h"
#include "text/tokenizer_impl.h"

#define ARENA_MAX (64u << 20)

const struct ew_tokenizer_info *ew_tokenizer_info(const struct ew_tokenizer *tok)
{
    return &tok->info;
}

void ew_ids_fini(struct ew_ids *ids)
{
    ew_free(ids->ids);
    *ids = (struct ew_ids){0};
}

int ew_ids_push(struct ew_ids *ids, int32_t id)
{
    if (ids->count == ids->cap) {
        size_t cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *grown = ew_realloc_array(ids->ids, cap, sizeof(*grown));

        if (!grown)
            return EW_ERR_MEMORY;
        ids->ids = grown;
        ids->cap = cap;
    }
    ids->ids[ids->count++] = id;
    return EW_OK;
}

int ew_ids_add(struct ew_ids *ids, int32_t id, struct ew_error *err)
{
    int code = ew_ids_push(ids, id);

    return code == EW_OK ? EW_OK : ew_fail_memory(err, ids->cap * 2 * sizeof(id), "token ids");
}

int ew_affix_add(struct ew_affix *affix, int32_t id, struct ew_error *err)
{
    if (affix->count == EW_AFFIX_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the tokenizer adds more than %d special tokens to a text",
                       EW_AFFIX_MAX);
    affix->ids[affix->count++] = id;
    return EW_OK;
}

static void free_model(struct ew_tokenizer *tok)
{
    switch (tok->model) {
    case EW_TOKENIZER_BPE:
        ew_bpe_fini(&tok->bpe);
        break;
    case EW_TOKENIZER_SPM:
        ew_spm_fini(&tok->spm);
        break;
    case EW_TOKENIZER_UNIGRAM:
        ew_unigram_fini(&tok->unigram);
        break;
    case EW_TOKENIZER_WORDPIECE:
        ew_wordpiece_fini(&tok->wordpiece);
        break;
    case EW_TOKENIZER_WORDLEVEL:
        break;
    }
}

void ew_tokenizer_free(struct ew_tokenizer *tok)
{
    if (!tok)
        return;
    free_model(tok);
    ew_pretok_fini(&tok->pretok);
    ew_normaliser_fini(&tok->normaliser);
    ew_added_fini(&tok->added_normalised);
    ew_added_fini(&tok->added);
    ew_vocab_fini(&tok->vocab);
    ew_imap_fini(&tok->form_of);
    ew_free(tok->forms);
    ew_arena_fini(&tok->arena);
    ew_free(tok);
}

static int create(struct ew_tokenizer **out, struct ew_error *err)
{
    struct ew_tokenizer *tok = ew_alloc(sizeof(*tok));
    int code;

    *out = tok;
    if (!tok)
        return ew_fail_memory(err, sizeof(*tok), "the tokenizer");
    ew_arena_init(&tok->arena, ARENA_MAX);
    tok->info = (struct ew_tokenizer_info){.pretokenizer = "custom",
                                           .bos = EW_TOKEN_NONE,
                                           .eos = EW_TOKEN_NONE,
                                           .unk = EW_TOKEN_NONE,
                                           .pad = EW_TOKEN_NONE,
                                           .sep = EW_TOKEN_NONE,
                                           .cls = EW_TOKEN_NONE,
                                           .mask = EW_TOKEN_NONE};
    code = ew_added_init(&tok->added, err);
    return code == EW_OK ? ew_added_init(&tok->added_normalised, err) : code;
}

static void add_pair_affix(struct ew_pair_template *pair, const struct ew_affix *affix, uint8_t segment)
{
    for (uint32_t i = 0; i < affix->count && pair->count < EW_PAIR_PIECES_MAX; i++)
        pair->pieces[pair->count++] = (struct ew_pair_piece){affix->ids[i], segment};
}

// Vocabularies that do not say how a pair is written: BERT's have one separator between the texts and the type 1 for
// the second, RoBERTa's have two and no types.
static void add_usual_pair(struct ew_tokenizer *tok)
{
    static const struct ew_affix first = {1, {EW_PAIR_FIRST}}, second = {1, {EW_PAIR_SECOND}};
    uint8_t type = tok->model == EW_TOKENIZER_WORDPIECE;

    if (tok->pair.count || !tok->prefix.count || !tok->suffix.count)
        return;
    add_pair_affix(&tok->pair, &tok->prefix, 0);
    add_pair_affix(&tok->pair, &first, 0);
    add_pair_affix(&tok->pair, &tok->suffix, 0);
    if (!type)
        add_pair_affix(&tok->pair, &tok->suffix, 0);
    add_pair_affix(&tok->pair, &second, type);
    add_pair_affix(&tok->pair, &tok->suffix, type);
}

static int finish(struct ew_tokenizer **out, int code)
{
    if (code == EW_OK)
        add_usual_pair(*out);

    if (code != EW_OK) {
        ew_tokenizer_free(*out);
        *out = NULL;
    }
    return code;
}

static int no_tokenizer(const struct ew_modelfile *file, struct ew_error *err)
{
    ew_fail(err, EW_ERR_UNSUPPORTED, "%s has no tokenizer that edgewise can read", file->path);
    return ew_remedy(err, EW_ERR_UNSUPPORTED,
                     "Feed token ids with --ids, or put the model's tokenizer.json beside its config.json");
}

int ew_tokenizer_load(const struct ew_modelfile *file, struct ew_tokenizer **out, struct ew_error *err)
{
    int code;

    *out = NULL;
    if (file->kind == EW_MODELFILE_HF)
        return file->tokenizer ? ew_tokenizer_load_json(file->tokenizer, file->tokenizer_config, out, err)
                               : no_tokenizer(file, err);
    if (!ew_gguf_find(&file->gguf, "tokenizer.ggml.tokens"))
        return no_tokenizer(file, err);
    code = create(out, err);
    if (code == EW_OK)
        code = ew_tokenizer_load_gguf(*out, &file->gguf, err);
    return finish(out, code);
}

int ew_tokenizer_load_json(const struct ew_json *tokenizer, const struct ew_json *tokenizer_config,
                           struct ew_tokenizer **out, struct ew_error *err)
{
    int code = create(out, err);

    if (code == EW_OK)
        code = ew_tokenizer_read_json(*out, tokenizer, tokenizer_config, err);
    return finish(out, code);
}

// One call of ew_tokenize.
struct encoding {
    const struct ew_tokenizer *tok;
    struct ew_ids *out;
    bool parse_special, illformed;
    struct ew_buf text;
    struct ew_normaliser_scratch normaliser;
    struct ew_pretok_scratch pretok;
    struct ew_merge merge;
    struct ew_unigram_scratch unigram;
};

static int encode_wordlevel(const struct ew_tokenizer *tok, struct ew_str piece, struct ew_ids *out,
                            struct ew_error *err)
{
    int32_t id = ew_vocab_find_model(&tok->vocab, piece);

    if (id < 0)
        id = tok->info.unk;
    if (id < 0)
        return ew_fail(err, EW_ERR_FORMAT,
                       "the text has the word \"" EW_STR_FMT "\", and the vocabulary has neither it nor an "
                       "unknown token",
                       EW_STR_ARG(piece));
    return ew_ids_add(out, id, err);
}

static int encode_piece(void *user, struct ew_str piece, struct ew_error *err)
{
    struct encoding *e = user;

    switch (e->tok->model) {
    case EW_TOKENIZER_BPE:
        return ew_bpe_encode(&e->tok->bpe, &e->merge, piece, e->illformed, e->out, err);
    case EW_TOKENIZER_SPM:
        return ew_spm_encode(&e->tok->spm, &e->merge, piece, e->illformed, e->out, err);
    case EW_TOKENIZER_UNIGRAM:
        return ew_unigram_encode(&e->tok->unigram, &e->unigram, piece, e->illformed, e->out, err);
    case EW_TOKENIZER_WORDPIECE:
        return ew_wordpiece_encode(&e->tok->wordpiece, piece, e->out, err);
    default:
        return encode_wordlevel(e->tok, piece, e->out, err);
    }
}

// first: the text is the beginning of the input.
typedef int fragment_fn(struct encoding *e, struct ew_str text, bool first, struct ew_error *err);

// Cuts the added tokens out of a text and gives what is between them to `next`.
static int split_added(struct encoding *e, const struct ew_added *added, struct ew_str text, bool first,
                       fragment_fn *next, struct ew_error *err)
{
    struct ew_added_match match = {0};
    bool found = true;
    int code = EW_OK;

    for (size_t at = 0; found && code == EW_OK; at = match.end) {
        found = added->count > 0 && ew_added_find(added, text, at, e->parse_special, &match);
        if (!found)
            match.start = match.end = text.len;
        if (match.start > at)
            code = next(e, (struct ew_str){text.ptr + at, match.start - at}, first && at == 0, err);
        if (found && code == EW_OK)
            code = ew_ids_add(e->out, match.id, err);
    }
    return code;
}

static int encode_normalised(struct encoding *e, struct ew_str text, bool first, struct ew_error *err)
{
    return ew_pretok_run(&e->tok->pretok, &e->pretok, text, first, encode_piece, e, err);
}

static int encode_fragment(struct encoding *e, struct ew_str text, bool first, struct ew_error *err)
{
    int code = ew_normaliser_run(&e->tok->normaliser, &e->normaliser, text, &text, err);

    return code == EW_OK ? split_added(e, &e->tok->added_normalised, text, first, encode_normalised, err) : code;
}

static int encode(struct encoding *e, struct ew_str text, struct ew_error *err)
{
    bool keep_bytes = e->tok->byte_level || e->tok->byte_fallback;

    if (!ew_utf8_valid(text.ptr, text.len)) {
        ew_illformed_escape(text, keep_bytes, &e->text);
        if (!ew_buf_ok(&e->text))
            return ew_fail_memory(err, text.len * 3, "the text to tokenise");
        text = ew_buf_str(&e->text);
        e->illformed = e->pretok.illformed = e->normaliser.illformed = keep_bytes;
    }
    return split_added(e, &e->tok->added, text, true, encode_fragment, err);
}

static int add_affix(const struct ew_affix *affix, struct ew_ids *out, struct ew_error *err)
{
    int code = EW_OK;

    for (uint32_t i = 0; i < affix->count && code == EW_OK; i++)
        code = ew_ids_add(out, affix->ids[i], err);
    return code;
}

int ew_tokenize(const struct ew_tokenizer *tok, struct ew_str text, bool add_special, bool parse_special,
                struct ew_ids *out, struct ew_error *err)
{
    struct encoding e = {.tok = tok, .out = out, .parse_special = parse_special};
    int code = add_special ? add_affix(&tok->prefix, out, err) : EW_OK;

    if (code == EW_OK && text.len) {
        ew_buf_init(&e.text, SIZE_MAX / 8);
        ew_normaliser_scratch_init(&e.normaliser);
        ew_pretok_scratch_init(&e.pretok);
        code = encode(&e, text, err);
        ew_buf_fini(&e.text);
        ew_normaliser_scratch_fini(&e.normaliser);
        ew_pretok_scratch_fini(&e.pretok);
        ew_merge_fini(&e.merge);
        ew_unigram_scratch_fini(&e.unigram);
    }
    return code == EW_OK && add_special ? add_affix(&tok->suffix, out, err) : code;
}

static bool has_token(const struct ew_tokenizer *tok, int32_t id)
{
    return id >= 0 && (uint32_t)id < tok->vocab.count && tok->vocab.flags[id] & EW_VOCAB_USED;
}

bool ew_token_is_special(const struct ew_tokenizer *tok, int32_t id)
{
    return has_token(tok, id) && tok->vocab.flags[id] & EW_VOCAB_SPECIAL;
}

static void decode_token(struct ew_detok *detok, int32_t id, struct ew_buf *out)
{
    const struct ew_tokenizer *tok = detok->tok;
    struct ew_str text;
    uint32_t form;
    bool literal;

    if (!has_token(tok, id) || (detok->skip_special && tok->vocab.flags[id] & EW_VOCAB_SPECIAL))
        return;
    text = tok->vocab.texts[id];
    literal = tok->vocab.flags[id] & EW_VOCAB_ADDED && !tok->bytes_normalised;
    if (ew_imap_get(&tok->form_of, (uint64_t)id, &form))
        text = tok->forms[form];
    ew_decoder_run(&tok->decoder, detok, id, text, literal, out);
}

int ew_detokenize(const struct ew_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, struct ew_buf *out,
                  struct ew_error *err)
{
    struct ew_detok detok;

    ew_detok_init(&detok, tok, skip_special);
    for (size_t i = 0; i < n && ew_buf_ok(out); i++)
        decode_token(&detok, ids[i], out);
    return ew_buf_ok(out) ? EW_OK
                          : ew_fail(err, EW_ERR_LIMIT, "the text of %zu tokens is longer than %zu bytes", n, out->max);
}

bool ew_token_bytes(const struct ew_tokenizer *tok, int32_t id, struct ew_buf *out)
{
    struct ew_detok detok;

    ew_detok_init(&detok, tok, false);
    detok.started = detok.start_done = true;
    decode_token(&detok, id, out);
    return has_token(tok, id) && ew_buf_ok(out);
}

// Appends text as the vocabulary spells it.
static void spell(const struct ew_tokenizer *tok, struct ew_str text, struct ew_buf *out)
{
    if (tok->byte_level) {
        ew_bytelevel_encode(text, false, out);
        return;
    }
    for (size_t i = 0; i < text.len; i++)
        ew_buf_append_str(out, text.ptr[i] == ' ' ? EW_STR(EW_METASPACE) : (struct ew_str){text.ptr + i, 1});
}

int32_t ew_token_find(const struct ew_tokenizer *tok, struct ew_str text)
{
    int32_t id = ew_vocab_find(&tok->vocab, text);
    struct ew_buf spelled;

    if (id >= 0 && (tok->vocab.flags[id] & EW_VOCAB_ADDED || !(tok->byte_level || tok->metaspace)))
        return id;
    if (text.len > tok->vocab.text_len_max)
        return EW_TOKEN_NONE;
    ew_buf_init(&spelled, text.len * 3 + 1);
    spell(tok, text, &spelled);
    id = ew_buf_ok(&spelled) ? ew_vocab_find(&tok->vocab, ew_buf_str(&spelled)) : EW_TOKEN_NONE;
    ew_buf_fini(&spelled);
    return id >= 0 && !(tok->vocab.flags[id] & EW_VOCAB_ADDED) ? id : EW_TOKEN_NONE;
}

void ew_detok_init(struct ew_detok *detok, const struct ew_tokenizer *tok, bool skip_special)
{
    *detok = (struct ew_detok){.tok = tok, .skip_special = skip_special, .last = EW_TOKEN_NONE};
}

// Length of the longest part at the start of bad bytes that might have become a character, at least 1.
static size_t maximal_subpart(struct ew_str text)
{
    size_t len = 1;

    while (len < text.len && len < 3 && ew_utf8_complete_prefix(text.ptr, len) == 0 &&
           ew_utf8_complete_prefix(text.ptr, len + 1) == 0)
        len++;
    return len;
}

// Appends text with its ill-formed parts replaced.
static void append_lossy(struct ew_str text, struct ew_buf *out)
{
    for (size_t at = 0, len; at < text.len; at += len) {
        uint32_t c;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        if (len) {
            ew_buf_append(out, text.ptr + at, len);
        } else {
            len = maximal_subpart((struct ew_str){text.ptr + at, text.len - at});
            ew_buf_append_str(out, EW_STR("\xEF\xBF\xBD"));
        }
    }
}

int ew_detok_push(struct ew_detok *detok, int32_t id, struct ew_buf *out, struct ew_error *err)
{
    size_t start = out->len, end, whole;

    ew_buf_append(out, detok->pending, detok->n_pending);
    decode_token(detok, id, out);
    // Replaced bytes take up to three times the room; with it reserved, the text below stays where it is.
    if (!ew_buf_reserve(out, (out->len - start) * 3))
        return ew_fail(err, EW_ERR_LIMIT, "the decoded text is longer than %zu bytes", out->max);
    end = out->len;
    whole = start + ew_utf8_complete_prefix(out->ptr + start, end - start);
    detok->n_pending = (uint32_t)(end - whole);
    memcpy(detok->pending, out->ptr + whole, end - whole);
    out->len = whole;
    if (ew_utf8_valid(out->ptr + start, whole - start))
        return EW_OK;
    append_lossy((struct ew_str){out->ptr + start, whole - start}, out);
    memmove(out->ptr + start, out->ptr + whole, out->len - whole);
    out->len -= whole - start;
    return EW_OK;
}

void ew_detok_flush(struct ew_detok *detok, struct ew_buf *out)
{
    append_lossy((struct ew_str){detok->pending, detok->n_pending}, out);
    detok->n_pending = 0;
}
