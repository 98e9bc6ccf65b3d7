#include "text/pattern.h"

#include <ctype.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/buf.h"

#define SOURCE_MAX (64u << 10)      // the longest expression known has 2 KiB
#define TRANSLATION_MAX (8u << 20)  // a word boundary becomes some 500 bytes
#define MATCH_LIMIT 100000000u      // steps of one match: a run of 30 MB may be walked back a few times, not squared
#define HEAP_LIMIT_KIB (512u << 10) // of the interpreter
#define DEPTH_LIMIT 10000000u
#define JIT_STACK_FIRST (32u << 10)
#define JIT_STACK_MAX (8u << 20)

// Unicode's White_Space. PCRE2's own \s also has U+180E, which lost the property in Unicode 6.3.
#define SPACE "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}" \
    "\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define NOT_SPACE "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}" \
                  "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
// Oniguruma's word characters: Alphabetic (whose symbols are the circled letters), marks, decimal digits, connectors.
// Outside of brackets Latin-1's superscripts and fractions are words too.
#define WORD "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" \
    "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define LATIN1_WORD WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define HEX "0-9a-fA-F"

struct ew_pattern {
    pcre2_code *code;
};

struct escape {
    char letter;
    const char *outside, *inside; // inside NULL: has no meaning within brackets
};

#define IS_WORD "[" LATIN1_WORD "]"

static const struct escape g_escapes[] = {
    {'s', "[" SPACE "]", SPACE},
    {'S', "[^" SPACE "]", NOT_SPACE},
    {'w', IS_WORD, WORD},
    {'W', "[^" LATIN1_WORD "]", NULL},
    {'h', "[" HEX "]", HEX},
    {'H', "[^" HEX "]", NULL},
    {'b', "(?:(?<=" IS_WORD ")(?!" IS_WORD ")|(?<!" IS_WORD ")(?=" IS_WORD "))", "\\x{8}"},
    {'B', "(?:(?<=" IS_WORD ")(?=" IS_WORD ")|(?<!" IS_WORD ")(?!" IS_WORD "))", NULL},
};

// Translation of one expression: where it stands, and how many brackets are open.
struct translation {
    struct ew_str source;
    size_t at;
    unsigned brackets; // Oniguruma nests them, a union; PCRE2 does not
    bool name_scripts; // write \p{Han} as \p{sc:Han}
    struct ew_buf out;
};

static int unsupported(const struct translation *t, const char *what, struct ew_error *err)
{
    return ew_fail(err, EW_ERR_UNSUPPORTED,
                   "the regular expression \"" EW_STR_FMT "\" uses %s, which edgewise does not translate",
                   EW_STR_ARG(t->source), what);
}

// \uHHHH, the at standing behind the u.
static int translate_code_point(struct translation *t, struct ew_error *err)
{
    struct ew_str digits = {t->source.ptr + t->at, EW_MIN((size_t)4, t->source.len - t->at)};

    for (size_t i = 0; i < digits.len; i++)
        if (!isxdigit((unsigned char)digits.ptr[i]))
            digits.len = i;
    if (digits.len != 4)
        return unsupported(t, "\\u without four digits", err);
    ew_buf_printf(&t->out, "\\x{%.4s}", digits.ptr);
    t->at += 4;
    return EW_OK;
}

// \p{Name} with a name longer than a category's is a script. From PCRE2 10.40 on that alone would mean the script's
// extensions, with punctuation that others use too.
static bool translate_script(struct translation *t)
{
    struct ew_str rest = {t->source.ptr + t->at, t->source.len - t->at};
    ptrdiff_t end = ew_str_find(rest, EW_STR("}"), 0);
    bool inverted = rest.ptr[1] == 'P', caret;
    size_t name = 3;

    if (!t->name_scripts || !(ew_str_starts(rest, "\\p{") || ew_str_starts(rest, "\\P{")) || end < 0)
        return false;
    caret = rest.ptr[name] == '^';
    name += caret;
    if ((size_t)end < name + 3)
        return false;
    ew_buf_printf(&t->out, "\\%c{sc:", inverted != caret ? 'P' : 'p');
    ew_buf_append(&t->out, rest.ptr + name, (size_t)end + 1 - name);
    t->at += (size_t)end + 1;
    return true;
}

static int translate_escape(struct translation *t, struct ew_error *err)
{
    char letter = t->at + 1 < t->source.len ? t->source.ptr[t->at + 1] : '\0';

    if ((letter == 'p' || letter == 'P') && translate_script(t))
        return EW_OK;
    t->at += 2;
    if (letter == 'u')
        return translate_code_point(t, err);
    for (size_t i = 0; i < EW_COUNT_OF(g_escapes); i++) {
        const char *text = t->brackets ? g_escapes[i].inside : g_escapes[i].outside;

        if (g_escapes[i].letter != letter)
            continue;
        if (!text)
            return unsupported(t, "a negated class within brackets", err);
        ew_buf_append_str(&t->out, ew_str_of(text));
        return EW_OK;
    }
    if (letter == 'C' || letter == 'Q' || letter == 'E' || letter == 'K' || letter == 'G' || letter == 'X' ||
        letter == 'R')
        return unsupported(t, "an escape of another dialect", err);
    ew_buf_append(&t->out, t->source.ptr + t->at - 2, EW_MIN((size_t)2, t->source.len - (t->at - 2)));
    return EW_OK;
}

// A '[': opens a class, or within one a nested class (merged into it) or a POSIX class (kept as it is).
static int translate_open(struct translation *t, struct ew_error *err)
{
    struct ew_str rest = {t->source.ptr + t->at, t->source.len - t->at};
    ptrdiff_t posix = ew_str_starts(rest, "[:") ? ew_str_find(rest, EW_STR(":]"), 2) : -1;

    if (t->brackets && posix > 0) {
        ew_buf_append(&t->out, rest.ptr, (size_t)posix + 2);
        t->at += (size_t)posix + 2;
        return EW_OK;
    }
    if (t->brackets++ == 0) {
        ew_buf_append_char(&t->out, '[');
        t->at++;
        if (t->at < t->source.len && t->source.ptr[t->at] == '^') {
            ew_buf_append_char(&t->out, '^');
            t->at++;
        }
        if (t->at < t->source.len && t->source.ptr[t->at] == ']') { // first in a class it stands for itself
            ew_buf_append_str(&t->out, EW_STR("\\]"));
            t->at++;
        }
        return EW_OK;
    }
    if (ew_str_starts(rest, "[^"))
        return unsupported(t, "a negated class within brackets", err);
    t->at++;
    return EW_OK;
}

static int translate(struct translation *t, struct ew_error *err)
{
    int code = EW_OK;

    while (t->at < t->source.len && code == EW_OK) {
        char c = t->source.ptr[t->at];

        if (c == '\\') {
            code = translate_escape(t, err);
        } else if (c == '[') {
            code = translate_open(t, err);
        } else if (c == '&' && t->brackets && t->at + 1 < t->source.len && t->source.ptr[t->at + 1] == '&') {
            code = unsupported(t, "an intersection of classes (&&)", err);
        } else {
            if (c != ']' || t->brackets <= 1)
                ew_buf_append_char(&t->out, c);
            if (c == ']' && t->brackets)
                t->brackets--;
            t->at++;
        }
    }
    return code;
}

static int compile(struct translation *t, pcre2_code **out, struct ew_error *err)
{
    unsigned options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int code, status;
    size_t at;
    unsigned char reason[160];

    ew_buf_reset(&t->out);
    t->at = t->brackets = 0;
    code = translate(t, err);
    if (code != EW_OK)
        return code;
    if (!ew_buf_ok(&t->out))
        return ew_fail_memory(err, t->out.len, "a regular expression");
    *out = pcre2_compile((PCRE2_SPTR)(t->out.len ? t->out.ptr : ""), t->out.len, options, &status, &at, NULL);
    if (*out)
        return EW_OK;
    pcre2_get_error_message(status, reason, sizeof(reason));
    return ew_fail(err, EW_ERR_UNSUPPORTED, "the regular expression \"" EW_STR_FMT "\" cannot be compiled: %s",
                   EW_STR_ARG(t->source), (char *)reason);
}

int ew_pattern_compile(struct ew_str source, struct ew_pattern **out, struct ew_error *err)
{
    struct translation t = {.source = source, .name_scripts = true};
    struct ew_pattern *pattern;
    int code;

    *out = NULL;
    if (source.len > SOURCE_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "a regular expression has %zu bytes, more than %u", source.len, SOURCE_MAX);
    pattern = ew_alloc(sizeof(*pattern));
    if (!pattern)
        return ew_fail_memory(err, sizeof(*pattern), "a regular expression");
    ew_buf_init(&t.out, TRANSLATION_MAX);
    code = compile(&t, &pattern->code, err);
    if (code != EW_OK) { // a name may be a property after all, and an older PCRE2 knows no sc:
        t.name_scripts = false;
        code = compile(&t, &pattern->code, err);
    }
    ew_buf_fini(&t.out);
    if (code != EW_OK) {
        ew_free(pattern);
        return code;
    }
    // Fails under some emulators and where memory must not be both writable and executable; matching then interprets.
    (void)pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
    *out = pattern;
    return EW_OK;
}

void ew_pattern_free(struct ew_pattern *pattern)
{
    if (!pattern)
        return;
    pcre2_code_free(pattern->code);
    ew_free(pattern);
}

void ew_pattern_scratch_fini(struct ew_pattern_scratch *scratch)
{
    pcre2_match_data_free(scratch->match_data);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->jit_stack);
    *scratch = (struct ew_pattern_scratch){0};
}

static int prepare(struct ew_pattern_scratch *scratch, struct ew_error *err)
{
    if (scratch->match_data)
        return EW_OK;
    scratch->context = pcre2_match_context_create(NULL);
    scratch->jit_stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX,
                                                NULL);      // NULL without JIT: not used then
    scratch->match_data = pcre2_match_data_create(1, NULL); // only the whole match is of interest
    if (!scratch->context || !scratch->match_data) {
        ew_pattern_scratch_fini(scratch);
        return ew_fail_memory(err, 0, "matching a regular expression");
    }
    pcre2_set_match_limit(scratch->context, MATCH_LIMIT);
    pcre2_set_depth_limit(scratch->context, DEPTH_LIMIT);
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    if (scratch->jit_stack)
        pcre2_jit_stack_assign(scratch->context, NULL, scratch->jit_stack);
    return EW_OK;
}

int ew_pattern_find(const struct ew_pattern *pattern, struct ew_pattern_scratch *scratch, struct ew_str text,
                    size_t from, bool *found, size_t *start, size_t *end, struct ew_error *err)
{
    int code = prepare(scratch, err), status;
    const PCRE2_SIZE *span;
    unsigned char reason[160];

    if (code != EW_OK)
        return code;
    status = pcre2_match(pattern->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK, scratch->match_data,
                         scratch->context);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) // the interpreter keeps its stack on the heap
        status = pcre2_match(pattern->code, (PCRE2_SPTR)text.ptr, text.len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                             scratch->match_data, scratch->context);
    *found = status >= 0;
    if (status < 0 && status != PCRE2_ERROR_NOMATCH) {
        pcre2_get_error_message(status, reason, sizeof(reason));
        return ew_fail(err, EW_ERR_LIMIT, "a pre-tokeniser's regular expression gave up on this text: %s",
                       (char *)reason);
    }
    if (*found) {
        span = pcre2_get_ovector_pointer(scratch->match_data);
        *start = span[0];
        *end = span[1];
    }
    return EW_OK;
}
