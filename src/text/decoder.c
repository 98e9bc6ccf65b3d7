#include "text/decoder.h"

#include "base/assert.h"
#include "text/bytelevel.h"
#include "text/vocab.h"

int ew_decoder_add(struct ew_decoder *decoder, struct ew_decoder_step step, struct ew_error *err)
{
    if (decoder->count == EW_DECODER_STEPS_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the decoder has more than %d steps", EW_DECODER_STEPS_MAX);
    decoder->steps[decoder->count++] = step;
    return EW_OK;
}

// A token's text is the tail of `out`, from `at` on. Steps write the new text behind it and then move it down.
struct token {
    const struct ew_decoder_step *step;
    struct ew_detok *state;
    struct ew_buf *out;
    size_t at;
    bool literal, first;
};

static struct ew_str tail(const struct token *t, size_t at)
{
    return (struct ew_str){t->out->ptr + at, t->out->len - at};
}

static void cut(struct ew_buf *out, size_t start, size_t end)
{
    memmove(out->ptr + start, out->ptr + end, out->len - end);
    out->len -= end - start;
}

static void replace_all(struct token *t, struct ew_str what, struct ew_str content)
{
    size_t end = t->out->len, from = t->at;

    if (what.len == 0 || t->out->len == t->at)
        return;
    // The old text may move as the new one grows behind it, so it is found again each time.
    for (ptrdiff_t found; from < end; from += (size_t)found + what.len) {
        found = ew_str_find((struct ew_str){t->out->ptr + from, end - from}, what, 0);
        if (found < 0)
            break;
        if (!ew_buf_reserve(t->out, (size_t)found + content.len))
            return;
        ew_buf_append(t->out, t->out->ptr + from, (size_t)found);
        ew_buf_append_str(t->out, content);
    }
    if (!ew_buf_reserve(t->out, end - from))
        return;
    ew_buf_append(t->out, t->out->ptr + from, end - from);
    cut(t->out, t->at, end);
}

static void from_bytes(struct token *t)
{
    struct ew_str text = tail(t, t->at);
    size_t end = t->out->len;

    if (t->literal || text.len == 0 || !ew_buf_reserve(t->out, text.len))
        return;
    if (ew_bytelevel_decode(tail(t, t->at), t->out))
        cut(t->out, t->at, end);
}

static void byte_fallback(struct token *t)
{
    unsigned char byte;

    if (t->literal || !ew_vocab_parse_byte(tail(t, t->at), &byte))
        return;
    t->out->len = t->at;
    ew_buf_append_char(t->out, (char)byte);
}

static bool starts_with(struct ew_str text, struct ew_str prefix)
{
    return prefix.len && text.len >= prefix.len && memcmp(text.ptr, prefix.ptr, prefix.len) == 0;
}

static void strip_ends(struct token *t)
{
    struct ew_str what = t->step->text;

    for (uint32_t i = 0; i < t->step->start && starts_with(tail(t, t->at), what); i++)
        cut(t->out, t->at, t->at + what.len);
    for (uint32_t i = 0; i < t->step->stop && t->out->len - t->at >= what.len; i++) {
        if (!starts_with(tail(t, t->out->len - what.len), what))
            break;
        t->out->len -= what.len;
    }
}

static void strip_start(struct token *t)
{
    struct ew_detok *state = t->state;

    while (!state->start_done && state->n_stripped < t->step->start && starts_with(tail(t, t->at), t->step->text)) {
        cut(t->out, t->at, t->at + t->step->text.len);
        state->n_stripped++;
    }
    state->start_done |= t->out->len > t->at;
}

static void insert_space(struct token *t)
{
    ew_buf_append_char(t->out, ' ');
    if (!ew_buf_ok(t->out))
        return;
    memmove(t->out->ptr + t->at + 1, t->out->ptr + t->at, t->out->len - t->at - 1);
    t->out->ptr[t->at] = ' ';
}

static void clean_up(struct token *t)
{
    static const char *const rules[][2] = {
        // transformers' clean_up_tokenization, in its order
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},    {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };

    for (size_t i = 0; i < EW_COUNT_OF(rules); i++)
        replace_all(t, ew_str_of(rules[i][0]), ew_str_of(rules[i][1]));
}

static void wordpiece(struct token *t)
{
    if (!t->first && starts_with(tail(t, t->at), t->step->text))
        cut(t->out, t->at, t->at + t->step->text.len);
    else if (!t->first)
        insert_space(t);
    if (t->step->cleanup)
        clean_up(t);
}

// The space that a suffix stands for comes before the next token: the last one has none.
static void bpe_suffix(struct token *t)
{
    struct ew_str suffix = t->step->text, text = tail(t, t->at);
    bool ends = suffix.len && text.len >= suffix.len && starts_with(tail(t, t->out->len - suffix.len), suffix);

    if (ends)
        t->out->len -= suffix.len;
    replace_all(t, suffix, EW_STR(" "));
    if (t->state->space_due)
        insert_space(t);
    t->state->space_due = ends;
}

static void ctc(struct token *t, int32_t id)
{
    bool repeated = !t->first && t->state->last == id;

    t->state->last = id;
    if (repeated)
        t->out->len = t->at;
    replace_all(t, t->step->text, EW_STR(""));
    if (!t->step->cleanup)
        return;
    clean_up(t);
    replace_all(t, t->step->content, EW_STR(" "));
}

static void apply(struct token *t, int32_t id)
{
    switch (t->step->kind) {
    case EW_DECODER_BYTES:
        from_bytes(t);
        break;
    case EW_DECODER_BYTE_FALLBACK:
        byte_fallback(t);
        break;
    case EW_DECODER_REPLACE:
        replace_all(t, t->step->text, t->step->content);
        break;
    case EW_DECODER_METASPACE:
        replace_all(t, t->step->text, t->first && t->step->drop_first ? EW_STR("") : EW_STR(" "));
        break;
    case EW_DECODER_STRIP:
        strip_ends(t);
        break;
    case EW_DECODER_STRIP_START:
        strip_start(t);
        break;
    case EW_DECODER_WORDPIECE:
        wordpiece(t);
        break;
    case EW_DECODER_BPE:
        bpe_suffix(t);
        break;
    case EW_DECODER_CTC:
        ctc(t, id);
        break;
    case EW_DECODER_JOIN:
        if (!t->first)
            insert_space(t);
        break;
    }
}

void ew_decoder_run(const struct ew_decoder *decoder, struct ew_detok *state, int32_t id, struct ew_str token,
                    bool literal, struct ew_buf *out)
{
    struct token t = {.state = state, .out = out, .at = out->len, .literal = literal, .first = !state->started};

    ew_buf_append_str(out, token);
    for (uint32_t i = 0; i < decoder->count && ew_buf_ok(out); i++) {
        t.step = &decoder->steps[i];
        apply(&t, id);
    }
    state->started = true;
}
