// Python's str methods about case, classes of characters and width.

#include "base/assert.h"
#include "text/jinja_builtin.h"
#include "text/jinja_strings.h"

// Appends all characters of s, the first in one case and the others in another.
static void append_cased(struct ew_buf *buf, struct ew_str s, enum ew_jj_case first, enum ew_jj_case others)
{
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (c == 0xFFFD)
            ew_buf_append(buf, s.ptr + at, len); // a bad byte stays what it is
        else
            ew_jj_append_cased(buf, c, at == 0 ? first : others);
    }
}

static struct ew_jj_value cased(struct ew_jj_run *run, struct ew_jj_value self, enum ew_jj_case first,
                                enum ew_jj_case others)
{
    size_t mark = ew_jj_build_begin(run);
    struct ew_jj_value made;

    append_cased(&run->scratch, ew_jj_str(self), first, others);
    ew_jj_step(run, self.string->len / 16);
    made = ew_jj_build_end(run, mark);
    made.is_markup = self.is_markup;
    return made;
}

struct ew_jj_value ew_jj_all_cased(struct ew_jj_run *run, struct ew_jj_value self, enum ew_jj_case to)
{
    return cased(run, self, to, to);
}

struct ew_jj_value ew_jj_capitalize(struct ew_jj_run *run, struct ew_jj_value self)
{
    return cased(run, self, EW_JJ_TITLE, EW_JJ_LOWER);
}

EW_JJ_BUILTIN(upper)
{
    return ew_jj_all_cased(run, self, EW_JJ_UPPER);
}

EW_JJ_BUILTIN(lower)
{
    return ew_jj_all_cased(run, self, EW_JJ_LOWER);
}

EW_JJ_BUILTIN(capitalize)
{
    return ew_jj_capitalize(run, self);
}

EW_JJ_BUILTIN(title)
{
    size_t mark = ew_jj_build_begin(run), len;
    struct ew_str s = ew_jj_str(self);
    bool in_word = false;
    uint32_t c;

    for (size_t at = 0; at < s.len && ew_jj_step(run, 1); at += len) {
        len = ew_jj_decode(s, at, &c);
        ew_jj_append_cased(&run->scratch, c, in_word ? EW_JJ_LOWER : EW_JJ_TITLE);
        in_word = ew_jj_is(EW_JJ_IS_UPPER, c) || ew_jj_is(EW_JJ_IS_LOWER, c);
    }
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(swapcase)
{
    size_t mark = ew_jj_build_begin(run), len;
    struct ew_str s = ew_jj_str(self);
    uint32_t c;

    for (size_t at = 0; at < s.len && ew_jj_step(run, 1); at += len) {
        len = ew_jj_decode(s, at, &c);
        ew_jj_append_cased(&run->scratch, c, ew_jj_is(EW_JJ_IS_UPPER, c) ? EW_JJ_LOWER : EW_JJ_UPPER);
    }
    return ew_jj_build_end(run, mark);
}

bool ew_jj_has_case(struct ew_str s, enum ew_jj_case which)
{
    bool is_upper = which == EW_JJ_UPPER, found = false;
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (ew_jj_is(is_upper ? EW_JJ_IS_LOWER : EW_JJ_IS_UPPER, c))
            return false;
        found = found || ew_jj_is(is_upper ? EW_JJ_IS_UPPER : EW_JJ_IS_LOWER, c);
    }
    return found;
}

EW_JJ_BUILTIN(str_isupper)
{
    return ew_jj_bool(ew_jj_has_case(ew_jj_str(self), EW_JJ_UPPER));
}

EW_JJ_BUILTIN(str_islower)
{
    return ew_jj_bool(ew_jj_has_case(ew_jj_str(self), EW_JJ_LOWER));
}

EW_JJ_BUILTIN(str_istitle)
{
    struct ew_str s = ew_jj_str(self);
    bool in_word = false, found = false;
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        bool is_upper, is_lower;

        len = ew_jj_decode(s, at, &c);
        is_upper = ew_jj_is(EW_JJ_IS_UPPER, c);
        is_lower = ew_jj_is(EW_JJ_IS_LOWER, c);
        if (in_word ? is_upper : is_lower)
            return ew_jj_bool(false);
        in_word = is_upper || is_lower;
        found = found || in_word;
    }
    return ew_jj_bool(found);
}

static struct ew_jj_value all_are(struct ew_jj_value self, enum ew_jj_class class, bool when_empty)
{
    struct ew_str s = ew_jj_str(self);
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (!ew_jj_is(class, c))
            return ew_jj_bool(false);
    }
    return ew_jj_bool(s.len > 0 || when_empty);
}

EW_JJ_BUILTIN(str_isalpha)
{
    return all_are(self, EW_JJ_IS_ALPHA, false);
}

EW_JJ_BUILTIN(str_isdigit)
{
    return all_are(self, EW_JJ_IS_DIGIT, false);
}

EW_JJ_BUILTIN(str_isdecimal)
{
    return all_are(self, EW_JJ_IS_DECIMAL, false);
}

EW_JJ_BUILTIN(str_isnumeric)
{
    return all_are(self, EW_JJ_IS_NUMERIC, false);
}

EW_JJ_BUILTIN(str_isalnum)
{
    return all_are(self, EW_JJ_IS_ALNUM, false);
}

EW_JJ_BUILTIN(str_isspace)
{
    return all_are(self, EW_JJ_IS_SPACE, false);
}

EW_JJ_BUILTIN(str_isprintable)
{
    return all_are(self, EW_JJ_IS_PRINTABLE, true);
}

EW_JJ_BUILTIN(str_isascii)
{
    struct ew_str s = ew_jj_str(self);

    for (size_t i = 0; i < s.len; i++)
        if ((unsigned char)s.ptr[i] >= 0x80)
            return ew_jj_bool(false);
    return ew_jj_bool(true);
}

EW_JJ_BUILTIN(str_isidentifier)
{
    struct ew_str s = ew_jj_str(self);
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (!ew_jj_is(EW_JJ_IS_WORD, c) || (at == 0 && ew_jj_is(EW_JJ_IS_NUMERIC, c)))
            return ew_jj_bool(false);
    }
    return ew_jj_bool(s.len > 0);
}

// Width.

struct ew_jj_value ew_jj_pad(struct ew_jj_run *run, struct ew_jj_value self, int64_t width, struct ew_str fill,
                             enum ew_jj_align align)
{
    int64_t missing = width - (int64_t)ew_jj_string_chars(self), left = 0;
    size_t mark;

    if (run->code != EW_OK || missing <= 0)
        return self;
    if (ew_jj_char_count(fill) != 1)
        return ew_jj_fail(run, "The fill character must be exactly one character long");
    if (align == EW_JJ_RIGHT)
        left = missing;
    else if (align == EW_JJ_CENTER)
        left = missing / 2 + (missing & width & 1); // CPython's rounding of an odd rest
    mark = ew_jj_build_begin(run);
    for (int64_t i = 0; i <= missing && ew_buf_ok(&run->scratch) && ew_jj_step(run, 1); i++) {
        if (i == left)
            ew_buf_append_str(&run->scratch, ew_jj_str(self));
        if (i < missing)
            ew_buf_append_str(&run->scratch, fill);
    }
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(center)
{
    return ew_jj_pad(run, self, ew_jj_arg_int(run, v[0], 0), ew_jj_arg_str(run, v[1], " "), EW_JJ_CENTER);
}

EW_JJ_BUILTIN(ljust)
{
    return ew_jj_pad(run, self, ew_jj_arg_int(run, v[0], 0), ew_jj_arg_str(run, v[1], " "), EW_JJ_LEFT);
}

EW_JJ_BUILTIN(rjust)
{
    return ew_jj_pad(run, self, ew_jj_arg_int(run, v[0], 0), ew_jj_arg_str(run, v[1], " "), EW_JJ_RIGHT);
}

EW_JJ_BUILTIN(zfill)
{
    struct ew_str s = ew_jj_str(self);
    bool is_signed = s.len && (s.ptr[0] == '-' || s.ptr[0] == '+');
    int64_t width = ew_jj_arg_int(run, v[0], 0);
    struct ew_jj_value digits;

    if (!is_signed)
        return ew_jj_pad(run, self, width, EW_STR("0"), EW_JJ_RIGHT);
    digits = ew_jj_pad(run, ew_jj_string_sub(run, self, 1, s.len), width > 0 ? width - 1 : 0, EW_STR("0"), EW_JJ_RIGHT);
    return run->code == EW_OK ? ew_jj_concat(run, ew_jj_string_sub(run, self, 0, 1), digits) : EW_JJ_UNDEFINED_VALUE;
}

EW_JJ_BUILTIN(expandtabs)
{
    int64_t size = ew_jj_arg_int(run, v[0], 8), column = 0;
    size_t mark = ew_jj_build_begin(run), len;
    struct ew_str s = ew_jj_str(self);
    uint32_t c;

    for (size_t at = 0; at < s.len && ew_buf_ok(&run->scratch); at += len) {
        int64_t spaces = 0;

        len = ew_jj_decode(s, at, &c);
        if (c == '\t') {
            spaces = size > 0 ? size - column % size : 0;
            column += spaces;
            for (; spaces > 0 && ew_jj_step(run, 1); spaces--)
                ew_buf_append_char(&run->scratch, ' ');
            continue;
        }
        column = c == '\n' || c == '\r' ? 0 : column + 1;
        ew_buf_append(&run->scratch, s.ptr + at, len);
    }
    return ew_jj_build_end(run, mark);
}

const struct ew_jj_builtin ew_jj_str_methods_more[] = {
    {"upper", upper, "", 0},
    {"lower", lower, "", 0},
    {"casefold", lower, "", 0},
    {"capitalize", capitalize, "", 0},
    {"title", title, "", 0},
    {"swapcase", swapcase, "", 0},
    {"isupper", str_isupper, "", 0},
    {"islower", str_islower, "", 0},
    {"istitle", str_istitle, "", 0},
    {"isalpha", str_isalpha, "", 0},
    {"isdigit", str_isdigit, "", 0},
    {"isdecimal", str_isdecimal, "", 0},
    {"isnumeric", str_isnumeric, "", 0},
    {"isalnum", str_isalnum, "", 0},
    {"isspace", str_isspace, "", 0},
    {"isprintable", str_isprintable, "", 0},
    {"isascii", str_isascii, "", 0},
    {"isidentifier", str_isidentifier, "", 0},
    {"center", center, "width fillchar", 1},
    {"ljust", ljust, "width fillchar", 1},
    {"rjust", rjust, "width fillchar", 1},
    {"zfill", zfill, "width", 1},
    {"expandtabs", expandtabs, "tabsize", 0},
    {0},
};
