#include "text/normaliser.h"

#include <utf8proc.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "text/bytelevel.h"
#include "text/unicode.h"

#define TEXT_MAX (SIZE_MAX / 8)    // of a normalised text: whatever memory allows
#define GRAPHEME_LONG 6            // bytes from which on Precompiled looks at single characters only
#define METASPACE "\xE2\x96\x81"   // U+2581

void ew_normaliser_fini(struct ew_normaliser *normaliser)
{
    for (uint32_t i = 0; i < normaliser->count; i++)
        ew_pattern_free(normaliser->steps[i].pattern);
    *normaliser = (struct ew_normaliser){0};
}

void ew_normaliser_scratch_init(struct ew_normaliser_scratch *scratch)
{
    *scratch = (struct ew_normaliser_scratch){0};
    ew_buf_init(&scratch->texts[0], TEXT_MAX);
    ew_buf_init(&scratch->texts[1], TEXT_MAX);
}

void ew_normaliser_scratch_fini(struct ew_normaliser_scratch *scratch)
{
    ew_buf_fini(&scratch->texts[0]);
    ew_buf_fini(&scratch->texts[1]);
    ew_pattern_scratch_fini(&scratch->pattern);
    ew_free(scratch->characters);
}

int ew_normaliser_add(struct ew_normaliser *normaliser, struct ew_normaliser_step step, struct ew_error *err)
{
    if (normaliser->count == EW_NORMALISER_STEPS_MAX) {
        ew_pattern_free(step.pattern);
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the normaliser has more than %d steps", EW_NORMALISER_STEPS_MAX);
    }
    normaliser->steps[normaliser->count++] = step;
    return EW_OK;
}

int ew_normaliser_lowercase(uint32_t c, uint32_t out[3])
{
    return ew_unicode_lower(c, out);
}

int ew_normaliser_strip_accents(uint32_t c, uint32_t out[3])
{
    out[0] = c;
    return !ew_unicode_is_mark(c);
}

int ew_normaliser_strip_nonspacing(uint32_t c, uint32_t out[3])
{
    out[0] = c;
    return !ew_unicode_is_nonspacing(c);
}

// SentencePiece's "nmt" rules: ASCII controls go, everything space-like becomes a space.
int ew_normaliser_nmt(uint32_t c, uint32_t out[3])
{
    bool control = (c >= 1 && c <= 8) || c == 0xB || (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
    bool space = c == 9 || c == 0xA || c == 0xC || c == 0xD || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                 c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;

    out[0] = space ? ' ' : c;
    return !control;
}

// BERT's cleaning: controls go, white space becomes a space.
int ew_normaliser_clean(uint32_t c, uint32_t out[3])
{
    bool space = ew_unicode_is_space(c), blank = c == '\t' || c == '\n' || c == '\r';

    out[0] = space ? ' ' : c;
    return blank || !(c == 0 || c == 0xFFFD || ew_unicode_is_control(c));
}

int ew_normaliser_space_chinese(uint32_t c, uint32_t out[3])
{
    if (!ew_unicode_is_chinese(c)) {
        out[0] = c;
        return 1;
    }
    out[0] = out[2] = ' ';
    out[1] = c;
    return 3;
}

static size_t decode(struct ew_str text, size_t at, uint32_t *c)
{
    size_t len = ew_utf8_decode(text.ptr + at, text.len - at, c);

    EW_ASSERT(len > 0); // the tokeniser lets only well-formed text in
    return len;
}

static void map_characters(ew_normaliser_map_fn *map, struct ew_str text, struct ew_buf *out)
{
    uint32_t c, mapped[3];
    char bytes[4];

    ew_buf_reserve(out, text.len);
    for (size_t at = 0; at < text.len;) {
        at += decode(text, at, &c);
        for (int i = 0, count = map(c, mapped); i < count; i++)
            ew_buf_append(out, bytes, ew_utf8_encode(mapped[i], bytes));
    }
}

static void strip(const struct ew_normaliser_step *step, struct ew_str text, struct ew_buf *out)
{
    size_t start = text.len, end = 0; // of what is not space
    uint32_t c;

    for (size_t at = 0, len; at < text.len; at += len) {
        len = decode(text, at, &c);
        if (ew_unicode_is_space(c))
            continue;
        start = EW_MIN(start, at);
        end = at + len;
    }
    start = step->left ? start : 0;
    end = step->right ? end : text.len;
    if (end > start)
        ew_buf_append(out, text.ptr + start, end - start);
}

// The next occurrence of what is replaced, at or after `from`; an empty match only where nothing was matched just
// before.
static int find_replaced(const struct ew_normaliser_step *step, struct ew_pattern_scratch *scratch, struct ew_str text,
                         size_t from, bool *found, size_t *start, size_t *end, struct ew_error *err)
{
    ptrdiff_t at;

    if (step->pattern)
        return ew_pattern_find(step->pattern, scratch, text, from, found, start, end, err);
    at = step->text.len ? ew_str_find(text, step->text, from) : -1;
    *found = at >= 0;
    *start = *found ? (size_t)at : 0;
    *end = *start + step->text.len;
    return EW_OK;
}

static int replace(const struct ew_normaliser_step *step, struct ew_normaliser_scratch *scratch, struct ew_str text,
                   struct ew_buf *out, struct ew_error *err)
{
    size_t copied = 0, from = 0, start, end;
    bool found, matched = false;
    uint32_t c;

    for (;;) {
        int code = find_replaced(step, &scratch->pattern, text, from, &found, &start, &end, err);

        if (code != EW_OK)
            return code;
        if (found && start == end && matched && end == copied) { // an empty match right behind another
            if (from >= text.len)
                break;
            from += decode(text, from, &c);
            matched = false;
            continue;
        }
        if (!found)
            break;
        ew_buf_append(out, text.ptr + copied, start - copied);
        ew_buf_append_str(out, step->content);
        copied = from = end;
        matched = true;
    }
    ew_buf_append(out, text.ptr + copied, text.len - copied);
    return EW_OK;
}

static size_t grapheme_len(struct ew_str text)
{
    utf8proc_int32_t state = 0;
    uint32_t previous, c;
    size_t at = decode(text, 0, &previous), len;

    for (; at < text.len; at += len, previous = c) {
        len = decode(text, at, &c);
        if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)previous, (utf8proc_int32_t)c, &state))
            break;
    }
    return at;
}

// What tokenizer.json calls Precompiled: short grapheme clusters are mapped whole, by the shortest key that begins
// them, the rest character by character. This differs from SentencePiece's own rule; models are used with it, so it
// is kept.
static void apply_charsmap(const struct ew_charsmap *map, struct ew_str text, struct ew_buf *out)
{
    struct ew_str found;
    uint32_t c;

    for (size_t at = 0, end; at < text.len; at = end) {
        struct ew_str grapheme = {text.ptr + at, grapheme_len((struct ew_str){text.ptr + at, text.len - at})};

        end = at + grapheme.len;
        if (grapheme.len < GRAPHEME_LONG && ew_charsmap_find(map, grapheme, true, &found)) {
            ew_buf_append_str(out, found);
            continue;
        }
        for (size_t i = at, len; i < end; i += len) {
            len = decode(text, i, &c);
            ew_buf_append_str(out, ew_charsmap_find(map, (struct ew_str){text.ptr + i, len}, true, &found)
                                       ? found : (struct ew_str){text.ptr + i, len});
        }
    }
}

// SentencePiece's treatment of spaces, fed with pieces of mapped text.
struct spacing {
    const struct ew_normaliser_step *step;
    struct ew_str space;
    struct ew_buf *out;
    bool in_word, began;
};

static void feed_byte(struct spacing *s, char byte)
{
    if (byte == ' ') {
        s->in_word = false;
        if (!s->step->collapse_spaces)
            ew_buf_append_str(s->out, s->space);
        return;
    }
    if (!s->in_word && ((s->step->prefix_space && !s->began) || (s->step->collapse_spaces && s->began)))
        ew_buf_append_str(s->out, s->space);
    s->in_word = s->began = true;
    ew_buf_append_char(s->out, byte);
}

// Where spaces collapse, the text also loses those at its end, and with them a space symbol that was written out.
static void drop_trailing_spaces(const struct spacing *s, size_t from)
{
    struct ew_buf *out = s->out;

    while (out->len - from >= s->space.len &&
           memcmp(out->ptr + out->len - s->space.len, s->space.ptr, s->space.len) == 0) {
        out->len -= s->space.len;
        out->ptr[out->len] = 0;
    }
}

static void sentencepiece(const struct ew_normaliser_step *step, struct ew_str text, struct ew_buf *out)
{
    struct spacing s = {step, step->escape_spaces ? EW_STR(METASPACE) : EW_STR(" "), out, false, false};
    struct ew_str piece;
    size_t from = out->len;
    uint32_t c;

    if (step->prefix_space && !step->collapse_spaces && text.len) { // before the text's own spaces
        ew_buf_append_str(out, s.space);
        s.began = true;
    }
    for (size_t at = 0, len; at < text.len; at += len) {
        len = ew_charsmap_find(&step->charsmap, (struct ew_str){text.ptr + at, text.len - at}, false, &piece);
        if (len == 0) {
            len = decode(text, at, &c);
            piece = (struct ew_str){text.ptr + at, len};
        }
        for (size_t i = 0; i < piece.len; i++)
            feed_byte(&s, piece.ptr[i]);
    }
    if (step->collapse_spaces)
        drop_trailing_spaces(&s, from);
    if (step->suffix_space && s.began)
        ew_buf_append_str(out, s.space);
}

static int apply(const struct ew_normaliser_step *step, struct ew_normaliser_scratch *scratch, struct ew_str text,
                 struct ew_buf *out, struct ew_error *err)
{
    switch (step->kind) {
    case EW_NORMALISER_FORM:
        return ew_normform(step->form, scratch, text, out, err);
    case EW_NORMALISER_MAP:
        map_characters(step->map, text, out);
        break;
    case EW_NORMALISER_STRIP:
        strip(step, text, out);
        break;
    case EW_NORMALISER_REPLACE:
        return replace(step, scratch, text, out, err);
    case EW_NORMALISER_PREPEND:
        if (text.len)
            ew_buf_append_str(out, step->content);
        ew_buf_append_str(out, text);
        break;
    case EW_NORMALISER_CHARSMAP:
        apply_charsmap(&step->charsmap, text, out);
        break;
    case EW_NORMALISER_SENTENCEPIECE:
        sentencepiece(step, text, out);
        break;
    case EW_NORMALISER_BYTES:
        ew_bytelevel_encode(text, scratch->illformed, out);
        break;
    }
    return EW_OK;
}

int ew_normaliser_run(const struct ew_normaliser *normaliser, struct ew_normaliser_scratch *scratch, struct ew_str text,
                      struct ew_str *out, struct ew_error *err)
{
    for (uint32_t i = 0; i < normaliser->count; i++) {
        struct ew_buf *buf = &scratch->texts[i % 2];
        int code;

        ew_buf_reset(buf);
        code = apply(&normaliser->steps[i], scratch, text, buf, err);
        if (code != EW_OK)
            return code;
        if (!ew_buf_ok(buf))
            return ew_fail_memory(err, buf->len, "the text to normalise");
        text = buf->len ? ew_buf_str(buf) : EW_STR("");
    }
    *out = text;
    return EW_OK;
}
