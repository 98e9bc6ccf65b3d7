#include "text/pretok.h"

#include "base/assert.h"
#include "base/utf8.h"
#include "text/bytelevel.h"
#include "text/unicode.h"

#define TEXT_MAX (SIZE_MAX / 8) // of a rewritten text: whatever memory allows

void ew_pretok_fini(struct ew_pretok *pretok)
{
    for (uint32_t i = 0; i < pretok->count; i++)
        ew_pattern_free(pretok->steps[i].pattern);
    *pretok = (struct ew_pretok){0};
}

void ew_pretok_scratch_init(struct ew_pretok_scratch *scratch)
{
    *scratch = (struct ew_pretok_scratch){0};
    for (uint32_t i = 0; i < EW_PRETOK_STEPS_MAX; i++)
        ew_buf_init(&scratch->texts[i], TEXT_MAX);
}

void ew_pretok_scratch_fini(struct ew_pretok_scratch *scratch)
{
    ew_pattern_scratch_fini(&scratch->pattern);
    for (uint32_t i = 0; i < EW_PRETOK_STEPS_MAX; i++)
        ew_buf_fini(&scratch->texts[i]);
}

int ew_pretok_add(struct ew_pretok *pretok, struct ew_pretok_step step, struct ew_error *err)
{
    if (pretok->count == EW_PRETOK_STEPS_MAX) {
        ew_pattern_free(step.pattern);
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the pre-tokeniser has more than %d steps", EW_PRETOK_STEPS_MAX);
    }
    pretok->steps[pretok->count++] = step;
    return EW_OK;
}

struct run {
    const struct ew_pretok *pretok;
    struct ew_pretok_scratch *scratch;
    ew_pretok_emit_fn *emit;
    void *user;
    struct ew_error *err;
};

static int run_step(struct run *run, uint32_t index, struct ew_str piece, bool first);

// The search for a step's matches in one piece.
struct search {
    struct run *run;
    const struct ew_pretok_step *step;
    struct ew_str text;
    size_t from;               // where to go on
    bool matched;              // there was a match, which ended at `from`
    bool in_run;               // DIGITS: `from` is within the run digits_at..digits_end, which is known
    size_t digits_at, digits_end;
};

static size_t decode(struct ew_str text, size_t at, uint32_t *c)
{
    size_t len = ew_utf8_decode(text.ptr + at, text.len - at, c);

    EW_ASSERT(len > 0); // the tokeniser lets only well-formed text in
    return len;
}

static int find_pattern(struct search *s, bool *found, size_t *start, size_t *end)
{
    struct ew_pattern_scratch *scratch = &s->run->scratch->pattern;
    uint32_t c;
    int code;

    code = ew_pattern_find(s->step->pattern, scratch, s->text, s->from, found, start, end, s->run->err);
    if (code != EW_OK || !*found || *start != *end || *end != s->from || !s->matched)
        return code;
    // An empty match right behind the match before does not count.
    *found = s->from < s->text.len;
    if (!*found)
        return EW_OK;
    return ew_pattern_find(s->step->pattern, scratch, s->text, s->from + decode(s->text, s->from, &c), found, start,
                           end, s->run->err);
}

static bool find_literal(struct search *s, size_t *start, size_t *end)
{
    ptrdiff_t at = s->step->text.len ? ew_str_find(s->text, s->step->text, s->from) : -1;

    if (at < 0)
        return false;
    *start = (size_t)at;
    *end = *start + s->step->text.len;
    return true;
}

static bool find_class(struct search *s, size_t *start, size_t *end)
{
    uint32_t c;

    for (size_t at = s->from; at < s->text.len; at = *end) {
        *start = at;
        *end = at + decode(s->text, at, &c);
        if (s->step->in_class(c))
            return true;
    }
    return false;
}

static bool find_length(struct search *s, size_t *start, size_t *end)
{
    uint32_t c;

    *start = *end = s->from;
    for (uint32_t i = 0; i < s->step->length && *end < s->text.len; i++)
        *end += decode(s->text, *end, &c);
    return *end > *start;
}

static bool is_decimal(uint32_t c)
{
    return c < 0x80 ? c >= '0' && c <= '9' : ew_unicode_is_decimal(c);
}

static bool is_digit(const struct search *s, uint32_t c)
{
    return s->step->digits == EW_DIGITS_NUMERIC ? ew_unicode_is_numeric(c) : is_decimal(c);
}

// Finds the next run of digits at or after `from` and counts it.
static bool find_run(struct search *s, size_t *count)
{
    uint32_t c;
    size_t at = s->from, len;

    for (; at < s->text.len; at += len) {
        len = decode(s->text, at, &c);
        if (is_digit(s, c))
            break;
    }
    s->digits_at = at;
    for (*count = 0; at < s->text.len; at += len, ++*count) {
        len = decode(s->text, at, &c);
        if (!is_digit(s, c))
            break;
    }
    s->digits_end = at;
    return *count > 0;
}

static size_t skip_characters(struct ew_str text, size_t at, size_t count)
{
    uint32_t c;

    while (count-- > 0)
        at += decode(text, at, &c);
    return at;
}

// Oniguruma's \b: a joiner is no word character there, Latin-1's superscripts and fractions are.
static bool ends_word(const struct search *s)
{
    uint32_t c;

    if (s->digits_end == s->text.len)
        return true;
    decode(s->text, s->digits_end, &c);
    if (c == 0x200C || c == 0x200D)
        return true;
    return !ew_unicode_is_word(c) && !(c < 0x100 && ew_unicode_is_numeric(c));
}

// Groups as matches. Within a run, `from` always stands in front of a whole number of groups.
static bool find_groups(struct search *s, size_t *start, size_t *end)
{
    size_t count = 0;

    for (; !s->in_run || s->from == s->digits_end; s->from = s->digits_end) {
        s->in_run = false;
        if (!find_run(s, &count))
            return false;
        s->in_run = s->step->digits != EW_DIGITS_WORD || ends_word(s);
        if (!s->in_run)
            continue;
        *start = s->digits_at;
        *end = skip_characters(s->text, *start, count % 3 ? count % 3 : 3);
        return true;
    }
    *start = s->from;
    *end = skip_characters(s->text, *start, 3);
    return true;
}

// The places in front of groups, as empty matches.
static bool find_group_starts(struct search *s, size_t *start, size_t *end)
{
    size_t count = 0;

    if (s->in_run)
        s->from = skip_characters(s->text, s->from, 3);
    if (!s->in_run || s->from == s->digits_end) {
        do {
            if (!find_run(s, &count))
                return false;
            s->from = s->digits_end;
        } while (count < 3);
        s->in_run = true;
        s->from = skip_characters(s->text, s->digits_at, count % 3);
    }
    *start = *end = s->from;
    return true;
}

static int find(struct search *s, bool *found, size_t *start, size_t *end)
{
    switch (s->step->kind) {
    case EW_PRETOK_PATTERN:
        return find_pattern(s, found, start, end);
    case EW_PRETOK_LITERAL:
        *found = find_literal(s, start, end);
        break;
    case EW_PRETOK_CLASS:
        *found = find_class(s, start, end);
        break;
    case EW_PRETOK_LENGTH:
        *found = find_length(s, start, end);
        break;
    default:
        EW_ASSERT(s->step->kind == EW_PRETOK_DIGITS);
        *found = s->step->digits == EW_DIGITS_LOOK ? find_group_starts(s, start, end) : find_groups(s, start, end);
    }
    return EW_OK;
}

// The pieces of one cut on their way to the next step: the newest waits until it is known what joins it.
struct cutting {
    struct run *run;
    uint32_t index;
    struct ew_str text;
    bool first;
    bool waiting, waiting_match; // waiting_match: of the newest element, joined or not
    size_t start, end;
};

static int pass_on(struct cutting *cut)
{
    struct ew_str piece = {cut->text.ptr + cut->start, cut->end - cut->start};

    if (!cut->waiting || piece.len == 0)
        return EW_OK;
    return run_step(cut->run, cut->index + 1, piece, cut->first && cut->start == 0);
}

// Whether an element becomes one piece with the one that waits.
static bool joins(const struct cutting *cut, enum ew_split split, bool is_match)
{
    if (!cut->waiting)
        return false;
    if (split == EW_SPLIT_CONTIGUOUS)
        return is_match == cut->waiting_match;
    if (split == EW_SPLIT_MERGED_PREVIOUS)
        return is_match && !cut->waiting_match;
    return split == EW_SPLIT_MERGED_NEXT && !is_match && cut->waiting_match;
}

static int take_element(struct cutting *cut, const struct ew_pretok_step *step, size_t start, size_t end, bool is_match)
{
    int code;

    is_match ^= step->invert;
    if (joins(cut, step->split, is_match)) {
        cut->end = end;
        cut->waiting_match = is_match;
        return EW_OK;
    }
    code = pass_on(cut);
    cut->waiting = !(is_match && step->split == EW_SPLIT_REMOVED);
    cut->waiting_match = is_match;
    cut->start = start;
    cut->end = end;
    return code;
}

static int cut_piece(struct run *run, uint32_t index, struct ew_str text, bool first)
{
    const struct ew_pretok_step *step = &run->pretok->steps[index];
    struct cutting cut = {run, index, text, first, .waiting = false};
    struct search search = {.run = run, .step = step, .text = text};
    bool found = true;
    int code = EW_OK;

    for (size_t at = 0, start = 0, end = 0; code == EW_OK && found; at = end) {
        code = find(&search, &found, &start, &end);
        if (code != EW_OK)
            return code;
        if (!found)
            start = end = text.len;
        search.from = EW_MAX(search.from, end);
        search.matched = found;
        if (start > at)
            code = take_element(&cut, step, at, start, false);
        if (code == EW_OK && found)
            code = take_element(&cut, step, start, end, true);
    }
    return code == EW_OK ? pass_on(&cut) : code;
}

static int pass_rewritten(struct run *run, uint32_t index, bool first)
{
    const struct ew_buf *text = &run->scratch->texts[index];

    if (!ew_buf_ok(text))
        return ew_fail_memory(run->err, text->len, "the text to tokenise");
    return run_step(run, index + 1, ew_buf_str(text), first);
}

static int prefix_space(struct run *run, uint32_t index, struct ew_str piece, bool first)
{
    struct ew_buf *out = &run->scratch->texts[index];

    if (piece.ptr[0] == ' ')
        return run_step(run, index + 1, piece, first);
    ew_buf_reset(out);
    ew_buf_append_char(out, ' ');
    ew_buf_append_str(out, piece);
    return pass_rewritten(run, index, first);
}

static bool starts_with(struct ew_str text, struct ew_str prefix)
{
    return text.len >= prefix.len && memcmp(text.ptr, prefix.ptr, prefix.len) == 0;
}

static int metaspace(struct run *run, uint32_t index, struct ew_str piece, bool first)
{
    const struct ew_pretok_step *step = &run->pretok->steps[index];
    struct ew_buf *out = &run->scratch->texts[index];
    bool wanted = step->prepend == EW_PREPEND_ALWAYS || (step->prepend == EW_PREPEND_FIRST && first);

    ew_buf_reset(out);
    if (wanted && piece.ptr[0] != ' ' && !starts_with(piece, step->text))
        ew_buf_append_str(out, step->text);
    for (size_t at = 0, end; at < piece.len; at = end) {
        const char *space = memchr(piece.ptr + at, ' ', piece.len - at);

        end = space ? (size_t)(space - piece.ptr) : piece.len;
        ew_buf_append(out, piece.ptr + at, end - at);
        if (space) {
            ew_buf_append_str(out, step->text);
            end++;
        }
    }
    return pass_rewritten(run, index, first);
}

static int run_step(struct run *run, uint32_t index, struct ew_str piece, bool first)
{
    struct ew_buf *out;

    if (index == run->pretok->count)
        return run->emit(run->user, piece, run->err);
    switch (run->pretok->steps[index].kind) {
    case EW_PRETOK_PREFIX_SPACE:
        return prefix_space(run, index, piece, first);
    case EW_PRETOK_METASPACE:
        return metaspace(run, index, piece, first);
    case EW_PRETOK_BYTES:
        out = &run->scratch->texts[index];
        ew_buf_reset(out);
        ew_bytelevel_encode(piece, run->scratch->illformed, out);
        return pass_rewritten(run, index, first);
    default:
        return cut_piece(run, index, piece, first);
    }
}

int ew_pretok_run(const struct ew_pretok *pretok, struct ew_pretok_scratch *scratch, struct ew_str text, bool first,
                  ew_pretok_emit_fn *emit, void *user, struct ew_error *err)
{
    struct run run = {pretok, scratch, emit, user, err};

    return text.len ? run_step(&run, 0, text, first) : EW_OK;
}
