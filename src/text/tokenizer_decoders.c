// The decoders of tokenizer.json. They are defined on the list of all tokens; here each becomes a step that streams,
// and the few combinations that cannot stream are refused by name.

#include "base/assert.h"
#include "base/utf8.h"
#include "text/tokenizer_impl.h"

struct reading {
    struct ew_tokenizer *tok;
    bool fused; // behind a Fuse there is one token: the text
};

typedef int read_fn(struct reading *r, const struct ew_json *node, struct ew_error *err);

static int read_node(struct reading *r, const struct ew_json *node, struct ew_error *err);

static int add(struct reading *r, struct ew_decoder_step step, struct ew_error *err)
{
    return ew_decoder_add(&r->tok->decoder, step, err);
}

static int cannot_stream(const char *what, struct ew_error *err)
{
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "tokenizer.json's decoder has %s behind a Fuse, which needs the whole text at once", what);
}

static struct ew_str text_of(const struct ew_json *node, const char *key, const char *fallback)
{
    return ew_json_str(ew_json_get(node, key), fallback);
}

static bool is_one_character(struct ew_str text)
{
    uint32_t c;

    return text.len && ew_utf8_decode(text.ptr, text.len, &c) == text.len;
}

static int read_bytes(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    return r->fused ? cannot_stream("ByteLevel", err) : add(r, (struct ew_decoder_step){.kind = EW_DECODER_BYTES}, err);
}

static int read_byte_fallback(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    return r->fused ? cannot_stream("ByteFallback", err)
                    : add(r, (struct ew_decoder_step){.kind = EW_DECODER_BYTE_FALLBACK}, err);
}

static int read_fuse(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    r->fused = true;
    return EW_OK;
}

static int read_replace(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *pattern = ew_json_get(node, "pattern");
    struct ew_decoder_step step = {
        .kind = EW_DECODER_REPLACE, .text = text_of(pattern, "String", ""), .content = text_of(node, "content", "")};

    if (ew_json_get(pattern, "Regex"))
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "tokenizer.json's decoder replaces a regular expression, which edgewise does not do");
    if (r->fused && !is_one_character(step.text))
        return cannot_stream("a Replace of several characters", err);
    return add(r, step, err);
}

static int read_strip(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    int64_t start = ew_json_int(ew_json_get(node, "start"), 0), stop = ew_json_int(ew_json_get(node, "stop"), 0);
    struct ew_decoder_step step = {.kind = r->fused ? EW_DECODER_STRIP_START : EW_DECODER_STRIP,
                                   .text = text_of(node, "content", " ")};

    if (start < 0 || stop < 0 || start > UINT32_MAX || stop > UINT32_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "tokenizer.json's decoder strips %lld and %lld characters", (long long)start,
                       (long long)stop);
    if (r->fused && stop > 0)
        return cannot_stream("a Strip at the end", err);
    step.start = (uint32_t)start;
    step.stop = (uint32_t)stop;
    return add(r, step, err);
}

static int read_metaspace(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    struct ew_decoder_step step = {.kind = EW_DECODER_METASPACE, .text = text_of(node, "replacement", EW_METASPACE)};

    step.drop_first = !ew_str_is(text_of(node, "prepend_scheme", "always"), "never") &&
                      ew_json_bool(ew_json_get(node, "add_prefix_space"), true);
    return r->fused ? cannot_stream("Metaspace", err) : add(r, step, err);
}

static int read_wordpiece(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    struct ew_decoder_step step = {.kind = EW_DECODER_WORDPIECE, .text = text_of(node, "prefix", "##"),
                                   .cleanup = ew_json_bool(ew_json_get(node, "cleanup"), true)};

    return r->fused ? cannot_stream("WordPiece", err) : add(r, step, err);
}

static int read_bpe(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    struct ew_decoder_step step = {.kind = EW_DECODER_BPE, .text = text_of(node, "suffix", "</w>")};

    return r->fused ? cannot_stream("BPEDecoder", err) : add(r, step, err);
}

static int read_ctc(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    struct ew_decoder_step step = {.kind = EW_DECODER_CTC, .text = text_of(node, "pad_token", "<pad>"),
                                   .content = text_of(node, "word_delimiter_token", "|"),
                                   .cleanup = ew_json_bool(ew_json_get(node, "cleanup"), true)};

    return r->fused ? cannot_stream("CTC", err) : add(r, step, err);
}

static int read_sequence(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    const struct ew_json *list = ew_json_get(node, "decoders");
    int code = EW_OK;

    for (const struct ew_json *item = list ? list->child : NULL; item && code == EW_OK; item = item->next)
        code = read_node(r, item, err);
    return code;
}

static int read_node(struct reading *r, const struct ew_json *node, struct ew_error *err)
{
    static const struct {
        const char *type;
        read_fn *read;
    } known[] = {
        {"BPEDecoder", read_bpe},
        {"ByteFallback", read_byte_fallback},
        {"ByteLevel", read_bytes},
        {"CTC", read_ctc},
        {"Fuse", read_fuse},
        {"Metaspace", read_metaspace},
        {"Replace", read_replace},
        {"Sequence", read_sequence},
        {"Strip", read_strip},
        {"WordPiece", read_wordpiece},
    };
    struct ew_str type = text_of(node, "type", "");

    for (size_t i = 0; i < EW_COUNT_OF(known); i++)
        if (ew_str_is(type, known[i].type))
            return known[i].read(r, node, err);
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "tokenizer.json has the decoder \"" EW_STR_FMT "\", which edgewise does not know", EW_STR_ARG(type));
}

int ew_tokenizer_json_decoder(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err)
{
    struct reading r = {.tok = tok};

    if (ew_json_is_null(node))
        return add(&r, (struct ew_decoder_step){.kind = EW_DECODER_JOIN}, err);
    return read_node(&r, node, err);
}
