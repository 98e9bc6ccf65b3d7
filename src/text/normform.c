// Unicode normalisation forms. utf8proc has the tables; the loops are ours, because its own ordering of combining
// marks takes quadratic time on long runs of them, which is input.

#include <utf8proc.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "text/normaliser.h"

#define EXPANSION_MAX 32     // of one character; the longest, U+FDFA, becomes 18
#define RUN_SHORT 32         // combining marks that are sorted by insertion
#define JAMO_BEFORE_TRAILING 0x11A7
#define FIRST_COMPOSING 0xCC // lead byte of U+0300: text of lower bytes is in NFC

static int combining_class(int32_t c)
{
    return c < 0x300 ? 0 : utf8proc_get_property(c)->combining_class;
}

// Stable, by class; the run is short.
static void sort_by_insertion(int32_t *run, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        int32_t c = run[i];
        size_t at = i;

        for (; at > 0 && combining_class(run[at - 1]) > combining_class(c); at--)
            run[at] = run[at - 1];
        run[at] = c;
    }
}

// Stable, by class, counting: linear however long the run is.
static int sort_by_counting(int32_t *run, size_t count, struct ew_error *err)
{
    size_t starts[257] = {0};
    int32_t *sorted = ew_alloc_array(count, sizeof(*sorted));

    if (!sorted)
        return ew_fail_memory(err, count * sizeof(*sorted), "a long run of combining marks");
    for (size_t i = 0; i < count; i++)
        starts[combining_class(run[i]) + 1]++;
    for (int class = 0; class < 256; class++)
        starts[class + 1] += starts[class];
    for (size_t i = 0; i < count; i++)
        sorted[starts[combining_class(run[i])]++] = run[i];
    memcpy(run, sorted, count * sizeof(*sorted));
    ew_free(sorted);
    return EW_OK;
}

static int order_marks(int32_t *chars, size_t count, struct ew_error *err)
{
    int code = EW_OK;

    for (size_t at = 0, end; at < count && code == EW_OK; at = end) {
        end = at + 1;
        if (combining_class(chars[at]) == 0)
            continue;
        while (end < count && combining_class(chars[end]) != 0)
            end++;
        if (end - at <= RUN_SHORT)
            sort_by_insertion(chars + at, end - at);
        else
            code = sort_by_counting(chars + at, end - at, err);
    }
    return code;
}

static int reserve(struct ew_normaliser_scratch *scratch, size_t count, struct ew_error *err)
{
    size_t cap = EW_MAX(scratch->character_cap + scratch->character_cap / 2, count);
    int32_t *chars;

    if (count <= scratch->character_cap)
        return EW_OK;
    chars = ew_realloc_array(scratch->characters, cap, sizeof(*chars));
    if (!chars)
        return ew_fail_memory(err, cap * sizeof(*chars), "the text to normalise");
    scratch->characters = chars;
    scratch->character_cap = cap;
    return EW_OK;
}

static int decompose(bool compat, struct ew_normaliser_scratch *scratch, struct ew_str text, size_t *count,
                     struct ew_error *err)
{
    utf8proc_option_t options = UTF8PROC_DECOMPOSE | UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0);
    int boundclass = 0;

    *count = 0;
    for (size_t at = 0, len; at < text.len; at += len) {
        utf8proc_ssize_t more;
        uint32_t c;
        int code = reserve(scratch, *count + EXPANSION_MAX, err);

        if (code != EW_OK)
            return code;
        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        EW_ASSERT(len > 0);
        more = utf8proc_decompose_char((utf8proc_int32_t)c, scratch->characters + *count, EXPANSION_MAX, options,
                                       &boundclass);
        EW_ASSERT(more >= 0 && more <= EXPANSION_MAX);
        *count += (size_t)more;
    }
    return EW_OK;
}

static bool is_normal(enum ew_unicode_form form, struct ew_str text)
{
    unsigned char limit = form == EW_FORM_NFC ? FIRST_COMPOSING : 0x80;

    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] >= limit)
            return false;
    return true;
}

// utf8proc (2.8) takes U+11A7 for a trailing consonant, of index 0, and drops it after a Hangul syllable. It is a
// starter and part of no composition, so the text is composed in pieces that begin with it.
static size_t compose(int32_t *chars, size_t count)
{
    size_t kept = 0;

    for (size_t at = 0, end; at < count; at = end) {
        for (end = at + 1; end < count && chars[end] != JAMO_BEFORE_TRAILING; end++)
            ;
        memmove(chars + kept, chars + at, (end - at) * sizeof(*chars));
        kept += (size_t)utf8proc_normalize_utf32(chars + kept, (utf8proc_ssize_t)(end - at),
                                                 UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    }
    return kept;
}

int ew_normform(enum ew_unicode_form form, struct ew_normaliser_scratch *scratch, struct ew_str text,
                struct ew_buf *out, struct ew_error *err)
{
    bool compat = form == EW_FORM_NFKC || form == EW_FORM_NFKD;
    size_t count;
    int code;

    if (is_normal(form, text)) {
        ew_buf_append_str(out, text);
        return EW_OK;
    }
    code = decompose(compat, scratch, text, &count, err);
    if (code == EW_OK)
        code = order_marks(scratch->characters, count, err);
    if (code != EW_OK)
        return code;
    if (form == EW_FORM_NFC || form == EW_FORM_NFKC)
        count = compose(scratch->characters, count);
    for (size_t i = 0; i < count; i++) {
        char bytes[4];

        ew_buf_append(out, bytes, ew_utf8_encode((uint32_t)scratch->characters[i], bytes));
    }
    return EW_OK;
}
