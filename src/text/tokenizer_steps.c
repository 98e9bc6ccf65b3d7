// The components of tokenizer.json: normalisers, pre-tokenisers, decoders and post-processors, each a table of the
// types that are known. Source: the serialised forms of Hugging Face's tokenizers library.

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"
#include "text/unicode.h"

// Rust's \w+|[^\w\s]+, whose \w has no fractions or superscripts.
#define RUST_WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" \
    "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}\\x{200c}\\x{200d}"

typedef int read_fn(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err);

struct component {
    const char *type;
    read_fn *read;
};

static int read_component(struct ew_tokenizer *tok, const struct ew_json *node, const char *what,
                          const struct component *known, struct ew_error *err)
{
    struct ew_str type = ew_json_str(ew_json_get(node, "type"), "");

    if (ew_json_is_null(node))
        return EW_OK;
    for (; known->type; known++)
        if (ew_str_is(type, known->type))
            return known->read(tok, node, err);
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "tokenizer.json has the %s \"" EW_STR_FMT "\", which edgewise does not know", what,
                   EW_STR_ARG(type));
}

static int read_list(struct ew_tokenizer *tok, const struct ew_json *list, read_fn *read, struct ew_error *err)
{
    int code = EW_OK;

    for (const struct ew_json *node = list ? list->child : NULL; node && code == EW_OK; node = node->next)
        code = read(tok, node, err);
    return code;
}

// A text that goes into the text being tokenised, which must stay well-formed.
static int read_text(const struct ew_json *node, const char *key, const char *fallback, struct ew_str *out,
                     struct ew_error *err)
{
    *out = ew_json_str(ew_json_get(node, key), fallback);
    if (!ew_utf8_valid(out->ptr, out->len))
        return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json has a \"%s\" that is not Unicode text", key);
    return EW_OK;
}

static bool read_flag(const struct ew_json *node, const char *key, bool fallback)
{
    return ew_json_bool(ew_json_get(node, key), fallback);
}

static int read_nothing(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return EW_OK;
}

// Normalisers.

static int add_map(struct ew_tokenizer *tok, ew_normaliser_map_fn *map, struct ew_error *err)
{
    return ew_normaliser_add(&tok->normaliser, (struct ew_normaliser_step){.kind = EW_NORMALISER_MAP, .map = map}, err);
}

static int add_form(struct ew_tokenizer *tok, enum ew_unicode_form form, struct ew_error *err)
{
    return ew_normaliser_add(&tok->normaliser, (struct ew_normaliser_step){.kind = EW_NORMALISER_FORM, .form = form},
                             err);
}

int ew_tokenizer_add_bert(struct ew_tokenizer *tok, bool clean, bool chinese, bool strip_accents, bool lowercase,
                          struct ew_error *err)
{
    int code = clean ? add_map(tok, ew_normaliser_clean, err) : EW_OK;

    if (code == EW_OK && chinese)
        code = add_map(tok, ew_normaliser_space_chinese, err);
    if (code == EW_OK && strip_accents)
        code = add_form(tok, EW_FORM_NFD, err);
    if (code == EW_OK && strip_accents)
        code = add_map(tok, ew_normaliser_strip_nonspacing, err);
    return code == EW_OK && lowercase ? add_map(tok, ew_normaliser_lowercase, err) : code;
}

static int read_bert_normaliser(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    bool lowercase = read_flag(node, "lowercase", true);

    return ew_tokenizer_add_bert(tok, read_flag(node, "clean_text", true),
                                 read_flag(node, "handle_chinese_chars", true),
                                 read_flag(node, "strip_accents", lowercase), lowercase, err);
}

static int read_nfc(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_form(tok, EW_FORM_NFC, err);
}

static int read_nfd(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_form(tok, EW_FORM_NFD, err);
}

static int read_nfkc(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_form(tok, EW_FORM_NFKC, err);
}

static int read_nfkd(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_form(tok, EW_FORM_NFKD, err);
}

static int read_lowercase(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_map(tok, ew_normaliser_lowercase, err);
}

static int read_strip_accents(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_map(tok, ew_normaliser_strip_accents, err);
}

static int read_nmt(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_map(tok, ew_normaliser_nmt, err);
}

static int read_strip(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    struct ew_normaliser_step step = {.kind = EW_NORMALISER_STRIP, .left = read_flag(node, "strip_left", true),
                                      .right = read_flag(node, "strip_right", true)};

    return ew_normaliser_add(&tok->normaliser, step, err);
}

static int read_replace(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *pattern = ew_json_get(node, "pattern"), *regex = ew_json_get(pattern, "Regex");
    struct ew_normaliser_step step = {.kind = EW_NORMALISER_REPLACE,
                                      .text = ew_json_str(ew_json_get(pattern, "String"), "")};
    int code = read_text(node, "content", "", &step.content, err);

    if (code == EW_OK && regex)
        code = ew_pattern_compile(ew_json_str(regex, ""), &step.pattern, err);
    return code == EW_OK ? ew_normaliser_add(&tok->normaliser, step, err) : code;
}

static int read_prepend(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    struct ew_normaliser_step step = {.kind = EW_NORMALISER_PREPEND};
    int code = read_text(node, "prepend", "", &step.content, err);

    return code == EW_OK ? ew_normaliser_add(&tok->normaliser, step, err) : code;
}

static int read_byte_normaliser(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return ew_normaliser_add(&tok->normaliser, (struct ew_normaliser_step){.kind = EW_NORMALISER_BYTES}, err);
}

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Decodes RFC 4648 base64 into the arena.
static int read_base64(struct ew_arena *arena, struct ew_str text, struct ew_str *out, struct ew_error *err)
{
    unsigned char *bytes = ew_arena_alloc(arena, text.len / 4 * 3 + 3);
    uint32_t bits = 0, n_bits = 0;
    size_t count = 0;

    if (!bytes)
        return ew_fail_memory(err, text.len, "the precompiled normalisation map");
    for (size_t i = 0; i < text.len && text.ptr[i] != '='; i++) {
        int digit = base64_digit(text.ptr[i]);

        if (digit < 0)
            return ew_fail(err, EW_ERR_FORMAT, "the precompiled normalisation map is not base64");
        bits = bits << 6 | (uint32_t)digit;
        n_bits += 6;
        if (n_bits >= 8)
            bytes[count++] = (unsigned char)(bits >> (n_bits -= 8));
    }
    *out = (struct ew_str){(const char *)bytes, count};
    return EW_OK;
}

static int read_precompiled(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    struct ew_normaliser_step step = {.kind = EW_NORMALISER_CHARSMAP};
    struct ew_str blob;
    int code = read_base64(&tok->arena, ew_json_str(ew_json_get(node, "precompiled_charsmap"), ""), &blob, err);

    if (code == EW_OK)
        code = ew_charsmap_parse(&step.charsmap, blob, err);
    return code == EW_OK && step.charsmap.unit_count ? ew_normaliser_add(&tok->normaliser, step, err) : code;
}

static int read_normaliser_sequence(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return read_list(tok, ew_json_get(node, "normalizers"), ew_tokenizer_json_normaliser, err);
}

int ew_tokenizer_json_normaliser(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    static const struct component known[] = {
        {"BertNormalizer", read_bert_normaliser},
        {"ByteLevel", read_byte_normaliser},
        {"Lowercase", read_lowercase},
        {"NFC", read_nfc},
        {"NFD", read_nfd},
        {"NFKC", read_nfkc},
        {"NFKD", read_nfkd},
        {"Nmt", read_nmt},
        {"Precompiled", read_precompiled},
        {"Prepend", read_prepend},
        {"Replace", read_replace},
        {"Sequence", read_normaliser_sequence},
        {"Strip", read_strip},
        {"StripAccents", read_strip_accents},
        {NULL, NULL},
    };

    return read_component(tok, node, "normalizer", known, err);
}

// Pre-tokenisers.

static int add_class(struct ew_tokenizer *tok, bool (*in_class)(uint32_t c), enum ew_split split, struct ew_error *err)
{
    return ew_pretok_add(&tok->pretok,
                         (struct ew_pretok_step){.kind = EW_PRETOK_CLASS, .split = split, .in_class = in_class}, err);
}

static int add_literal(struct ew_tokenizer *tok, struct ew_str text, enum ew_split split, bool invert,
                       struct ew_error *err)
{
    struct ew_pretok_step step = {.kind = EW_PRETOK_LITERAL, .split = split, .invert = invert, .text = text};

    return ew_pretok_add(&tok->pretok, step, err);
}

static int read_behaviour(const struct ew_json *node, enum ew_split *out, struct ew_error *err)
{
    static const char *const names[] = {
        [EW_SPLIT_ISOLATED] = "Isolated", [EW_SPLIT_REMOVED] = "Removed", [EW_SPLIT_CONTIGUOUS] = "Contiguous",
        [EW_SPLIT_MERGED_PREVIOUS] = "MergedWithPrevious", [EW_SPLIT_MERGED_NEXT] = "MergedWithNext",
    };
    struct ew_str name = ew_json_str(ew_json_get(node, "behavior"), "Isolated");

    for (size_t i = 0; i < EW_COUNT_OF(names); i++)
        if (ew_str_is(name, names[i])) {
            *out = (enum ew_split)i;
            return EW_OK;
        }
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "tokenizer.json splits with the behavior \"" EW_STR_FMT "\", which edgewise does not know",
                   EW_STR_ARG(name));
}

int ew_tokenizer_add_bert_pretok(struct ew_tokenizer *tok, struct ew_error *err)
{
    int code = add_class(tok, ew_unicode_is_space, EW_SPLIT_REMOVED, err);

    return code == EW_OK ? add_class(tok, ew_unicode_is_punctuation, EW_SPLIT_ISOLATED, err) : code;
}

static int read_bert_pretok(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return ew_tokenizer_add_bert_pretok(tok, err);
}

static int read_byte_level(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    int code = EW_OK;

    if (read_flag(node, "add_prefix_space", true))
        code = ew_pretok_add(&tok->pretok, (struct ew_pretok_step){.kind = EW_PRETOK_PREFIX_SPACE}, err);
    if (code == EW_OK && read_flag(node, "use_regex", true))
        code = ew_pretok_add_gpt2(&tok->pretok, err);
    return code == EW_OK ? ew_pretok_add(&tok->pretok, (struct ew_pretok_step){.kind = EW_PRETOK_BYTES}, err) : code;
}

static int read_split(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *pattern = ew_json_get(node, "pattern"), *regex = ew_json_get(pattern, "Regex");
    bool invert = read_flag(node, "invert", false);
    enum ew_split split;
    int code = read_behaviour(node, &split, err);

    if (code != EW_OK)
        return code;
    if (regex)
        return ew_pretok_add_pattern(&tok->pretok, ew_json_str(regex, ""), split, invert, err);
    return add_literal(tok, ew_json_str(ew_json_get(pattern, "String"), ""), split, invert, err);
}

static int read_whitespace(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return ew_pretok_add_pattern(&tok->pretok, EW_STR("[" RUST_WORD "]+|[^" RUST_WORD "\\s]+"), EW_SPLIT_REMOVED, true,
                                 err);
}

static int read_whitespace_split(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_class(tok, ew_unicode_is_space, EW_SPLIT_REMOVED, err);
}

static int read_punctuation(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    enum ew_split split;
    int code = read_behaviour(node, &split, err);

    return code == EW_OK ? add_class(tok, ew_unicode_is_punctuation, split, err) : code;
}

static int read_digits(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    bool individual = read_flag(node, "individual_digits", false);

    return add_class(tok, ew_unicode_is_numeric, individual ? EW_SPLIT_ISOLATED : EW_SPLIT_CONTIGUOUS, err);
}

static int read_delimiter(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return add_literal(tok, ew_json_str(ew_json_get(node, "delimiter"), ""), EW_SPLIT_REMOVED, false, err);
}

static int read_fixed_length(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    int64_t length = ew_json_int(ew_json_get(node, "length"), 5);

    if (length < 1 || length > UINT32_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json cuts pieces of %lld characters", (long long)length);
    return ew_pretok_add(&tok->pretok, (struct ew_pretok_step){.kind = EW_PRETOK_LENGTH, .length = (uint32_t)length},
                         err);
}

static enum ew_prepend read_prepend_scheme(const struct ew_json *node)
{
    struct ew_str scheme = ew_json_str(ew_json_get(node, "prepend_scheme"), "always");

    if (ew_str_is(scheme, "never") || !read_flag(node, "add_prefix_space", true))
        return EW_PREPEND_NEVER;
    return ew_str_is(scheme, "first") ? EW_PREPEND_FIRST : EW_PREPEND_ALWAYS;
}

static int read_metaspace(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    struct ew_pretok_step step = {.kind = EW_PRETOK_METASPACE, .prepend = read_prepend_scheme(node)};
    int code = read_text(node, "replacement", EW_METASPACE, &step.text, err);

    tok->metaspace = true;
    if (code == EW_OK)
        code = ew_pretok_add(&tok->pretok, step, err);
    return code == EW_OK && read_flag(node, "split", true)
               ? add_literal(tok, step.text, EW_SPLIT_MERGED_NEXT, false, err)
               : code;
}

static int read_pretok_sequence(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return read_list(tok, ew_json_get(node, "pretokenizers"), ew_tokenizer_json_pretok, err);
}

int ew_tokenizer_json_pretok(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    static const struct component known[] = {
        {"BertPreTokenizer", read_bert_pretok},
        {"ByteLevel", read_byte_level},
        {"CharDelimiterSplit", read_delimiter},
        {"Digits", read_digits},
        {"FixedLength", read_fixed_length},
        {"Metaspace", read_metaspace},
        {"Punctuation", read_punctuation},
        {"Sequence", read_pretok_sequence},
        {"Split", read_split},
        {"Whitespace", read_whitespace},
        {"WhitespaceSplit", read_whitespace_split},
        {NULL, NULL},
    };

    return read_component(tok, node, "pre-tokenizer", known, err);
}

// Post-processors: what add_special puts before and behind a text.

static int add_edge(struct ew_tokenizer *tok, struct ew_affix *affix, const struct ew_json *id, struct ew_error *err)
{
    int64_t value = ew_json_int(id, -1);

    if (value < 0 || value >= tok->vocab.count)
        return ew_fail(err, EW_ERR_FORMAT,
                       "tokenizer.json's post-processor adds the token %lld, which the vocabulary does not have",
                       (long long)value);
    return ew_affix_add(affix, (int32_t)value, err);
}

// The ids of a special token of the template: a list, or NULL.
static const struct ew_json *template_ids(const struct ew_json *node, const struct ew_json *special)
{
    const struct ew_json *tokens = ew_json_get(node, "special_tokens");

    for (const struct ew_json *t = tokens ? tokens->child : NULL; t && special; t = t->next)
        if (ew_str_eq(t->key, ew_json_str(ew_json_get(special, "id"), "")))
            return ew_json_get(t, "ids");
    return NULL;
}

static int read_single_template(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *single = ew_json_get(node, "single");
    struct ew_affix *affix = &tok->prefix;
    int code = EW_OK;

    for (const struct ew_json *piece = single ? single->child : NULL; piece && code == EW_OK; piece = piece->next) {
        const struct ew_json *sequence = ew_json_get(piece, "Sequence");
        const struct ew_json *ids = template_ids(node, ew_json_get(piece, "SpecialToken"));

        if (sequence && affix == &tok->suffix)
            return ew_fail(err, EW_ERR_UNSUPPORTED, "tokenizer.json's template for one text holds it twice");
        if (sequence)
            affix = &tok->suffix;
        for (const struct ew_json *id = ids ? ids->child : NULL; id && code == EW_OK; id = id->next)
            code = add_edge(tok, affix, id, err);
    }
    return code;
}

static int add_pair_id(struct ew_tokenizer *tok, int64_t id, int64_t segment, struct ew_error *err)
{
    if (id >= tok->vocab.count || segment < 0 || segment > 255 || tok->pair.count == EW_PAIR_PIECES_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json's template for a pair of texts makes no sense");
    tok->pair.pieces[tok->pair.count++] = (struct ew_pair_piece){(int32_t)id, (uint8_t)segment};
    return EW_OK;
}

static int read_pair_template(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *pair = ew_json_get(node, "pair");
    int code = EW_OK;

    tok->pair.count = 0;
    for (const struct ew_json *piece = pair ? pair->child : NULL; piece && code == EW_OK; piece = piece->next) {
        const struct ew_json *sequence = ew_json_get(piece, "Sequence"), *special = ew_json_get(piece, "SpecialToken");
        const struct ew_json *ids = template_ids(node, special);
        int64_t segment = ew_json_int(ew_json_get(sequence ? sequence : special, "type_id"), 0);

        if (sequence)
            code = add_pair_id(tok, ew_str_is(ew_json_str(ew_json_get(sequence, "id"), "A"), "A") ? EW_PAIR_FIRST
                                                                                                   : EW_PAIR_SECOND,
                               segment, err);
        for (const struct ew_json *id = ids ? ids->child : NULL; id && code == EW_OK; id = id->next)
            code = add_pair_id(tok, EW_MAX(ew_json_int(id, 0), 0), segment, err);
    }
    return code;
}

static int read_template(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    int code = read_single_template(tok, node, err);

    return code == EW_OK ? read_pair_template(tok, node, err) : code;
}

static int read_bert_processor(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    int code = add_edge(tok, &tok->prefix, ew_json_at(ew_json_get(node, "cls"), 1), err);

    return code == EW_OK ? add_edge(tok, &tok->suffix, ew_json_at(ew_json_get(node, "sep"), 1), err) : code;
}

static int read_processor_sequence(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    return read_list(tok, ew_json_get(node, "processors"), ew_tokenizer_json_processor, err);
}

int ew_tokenizer_json_processor(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    static const struct component known[] = {
        {"BertProcessing", read_bert_processor},
        {"ByteLevel", read_nothing}, // trims offsets only
        {"RobertaProcessing", read_bert_processor},
        {"Sequence", read_processor_sequence},
        {"TemplateProcessing", read_template},
        {NULL, NULL},
    };

    return read_component(tok, node, "post-processor", known, err);
}
