#include "text/jinja_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

#include "base/assert.h"
#include "base/utf8.h"

size_t ew_jj_decode(struct ew_str s, size_t at, uint32_t *out)
{
    const unsigned char *p = (const unsigned char *)s.ptr + at;
    size_t left = s.len - at, len;

    if (p[0] < 0x80) {
        *out = p[0];
        return 1;
    }
    len = ew_utf8_decode(s.ptr + at, left, out);
    if (len)
        return len;
    if (left >= 3 && p[0] == 0xED && p[1] >= 0xA0 && p[1] <= 0xBF && (p[2] & 0xC0) == 0x80) {
        *out = 0xD000u | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
        return 3;
    }
    *out = 0xFFFD;
    return 1;
}

size_t ew_jj_encode(uint32_t c, char *to)
{
    if (c < 0xD800 || c > 0xDFFF)
        return ew_utf8_encode(c, to);
    to[0] = (char)0xED;
    to[1] = (char)(0x80 | (c >> 6 & 0x3F));
    to[2] = (char)(0x80 | (c & 0x3F));
    return 3;
}

size_t ew_jj_char_count(struct ew_str s)
{
    size_t count = 0;
    uint32_t c;

    for (size_t at = 0; at < s.len; count++)
        at += ew_jj_decode(s, at, &c);
    return count;
}

size_t ew_jj_char_offset(struct ew_str s, size_t index)
{
    size_t at = 0;
    uint32_t c;

    for (; index > 0 && at < s.len; index--)
        at += ew_jj_decode(s, at, &c);
    return at;
}

bool ew_jj_is_space(uint32_t c)
{
    if (c < 0x80)
        return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
           c == 0x202F || c == 0x205F || c == 0x3000;
}

size_t ew_jj_space_prefix(struct ew_str s)
{
    size_t at = 0, len;
    uint32_t c;

    for (; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (!ew_jj_is_space(c))
            break;
    }
    return at;
}

size_t ew_jj_without_space_suffix(struct ew_str s)
{
    size_t end = s.len, at;
    uint32_t c;

    for (; end > 0; end = at) {
        at = end - 1;
        while (at > 0 && end - at < 4 && ((unsigned char)s.ptr[at] & 0xC0) == 0x80)
            at--;
        if (ew_jj_decode((struct ew_str){s.ptr, end}, at, &c) != end - at || !ew_jj_is_space(c))
            break;
    }
    return end;
}

size_t ew_jj_line_break(struct ew_str s, size_t at)
{
    uint32_t c;
    size_t len = ew_jj_decode(s, at, &c);

    if (c == '\r')
        return at + 1 < s.len && s.ptr[at + 1] == '\n' ? 2 : 1;
    if ((c >= 10 && c <= 12) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029)
        return len;
    return 0;
}

static bool is_printable(uint32_t c, utf8proc_category_t category)
{
    switch (category) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return c == ' ';
    default:
        return true;
    }
}

static bool is_letter(utf8proc_category_t category)
{
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

// Superscripts and circled digits have a digit value, but are no decimals (Unicode's Numeric_Type=Digit, the common
// ones).
static bool is_digit(uint32_t c, utf8proc_category_t category)
{
    return category == UTF8PROC_CATEGORY_ND || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
           (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}

static bool is_numeric(utf8proc_category_t category)
{
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool ew_jj_is(enum ew_jj_class class, uint32_t c)
{
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)c);

    switch (class) {
    case EW_JJ_IS_ALPHA: return is_letter(category);
    case EW_JJ_IS_DIGIT: return is_digit(c, category);
    case EW_JJ_IS_DECIMAL: return category == UTF8PROC_CATEGORY_ND;
    case EW_JJ_IS_NUMERIC: return is_numeric(category);
    case EW_JJ_IS_ALNUM: return is_letter(category) || is_numeric(category);
    case EW_JJ_IS_SPACE: return ew_jj_is_space(c);
    case EW_JJ_IS_PRINTABLE: return is_printable(c, category);
    case EW_JJ_IS_UPPER: return category == UTF8PROC_CATEGORY_LU;
    case EW_JJ_IS_LOWER: return category == UTF8PROC_CATEGORY_LL;
    case EW_JJ_IS_WORD: return c == '_' || is_letter(category) || is_numeric(category);
    }
    return false;
}

// Characters whose upper or title case is longer than one character (Unicode SpecialCasing.txt, Latin and Armenian).
static const struct {
    uint32_t c;
    const char *upper, *title;
} g_special[] = {
    {0xDF, "SS", "Ss"},     {0x149, "ʼN", "ʼN"},  {0x1F0, "J̌", "J̌"},    {0x587, "ԵՒ", "Եւ"},
    {0xFB00, "FF", "Ff"},   {0xFB01, "FI", "Fi"}, {0xFB02, "FL", "Fl"}, {0xFB03, "FFI", "Ffi"},
    {0xFB04, "FFL", "Ffl"}, {0xFB05, "ST", "St"}, {0xFB06, "ST", "St"},
};

void ew_jj_append_cased(struct ew_buf *buf, uint32_t c, enum ew_jj_case to)
{
    char bytes[4];

    for (size_t i = 0; to != EW_JJ_LOWER && c >= 0xDF && i < EW_COUNT_OF(g_special); i++)
        if (g_special[i].c == c) {
            ew_buf_append_str(buf, ew_str_of(to == EW_JJ_UPPER ? g_special[i].upper : g_special[i].title));
            return;
        }
    if (to == EW_JJ_LOWER && c == 0x130) { // İ
        ew_buf_append(buf, "i\xCC\x87", 3);
        return;
    }
    if (to == EW_JJ_UPPER)
        c = (uint32_t)utf8proc_toupper((utf8proc_int32_t)c);
    else
        c = (uint32_t)(to == EW_JJ_LOWER ? utf8proc_tolower((utf8proc_int32_t)c)
                                         : utf8proc_totitle((utf8proc_int32_t)c));
    ew_buf_append(buf, bytes, ew_jj_encode(c, bytes));
}

// The shortest digits that read back as the same number, in %e form.
static void shortest(double number, char *text, size_t size)
{
    for (int digits = 0; digits < 17; digits++) {
        snprintf(text, size, "%.*e", digits, number);
        if (strtod(text, NULL) == number)
            return;
    }
}

void ew_jj_format_double(double number, char out[EW_JJ_DOUBLE_CHARS])
{
    char text[32], digits[24];
    const char *sign = signbit(number) ? "-" : "";
    int exponent, n = 0;

    if (!isfinite(number)) {
        snprintf(out, EW_JJ_DOUBLE_CHARS, "%s", isnan(number) ? "nan" : number < 0 ? "-inf" : "inf");
        return;
    }
    shortest(fabs(number), text, sizeof(text));
    exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    for (const char *at = text; *at != 'e'; at++)
        if (*at != '.')
            digits[n++] = *at;
    digits[n] = '\0';
    if (exponent < -4 || exponent >= 16)
        snprintf(out, EW_JJ_DOUBLE_CHARS, "%s%c%s%se%+03d", sign, digits[0], n > 1 ? "." : "", digits + 1, exponent);
    else if (exponent < 0)
        snprintf(out, EW_JJ_DOUBLE_CHARS, "%s0.%.*s%s", sign, -exponent - 1, "0000", digits);
    else if (n <= exponent + 1)
        snprintf(out, EW_JJ_DOUBLE_CHARS, "%s%s%.*s.0", sign, digits, exponent + 1 - n, "0000000000000000");
    else
        snprintf(out, EW_JJ_DOUBLE_CHARS, "%s%.*s.%s", sign, exponent + 1, digits, digits + exponent + 1);
}

static void append_escaped(struct ew_buf *buf, uint32_t c)
{
    if (c < 0x100)
        ew_buf_printf(buf, "\\x%02x", c);
    else
        ew_buf_printf(buf, c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
}

void ew_jj_append_repr(struct ew_buf *buf, struct ew_str s)
{
    static const char controls[] = "\n\r\t", letters[] = "nrt";
    bool has_single = s.len && memchr(s.ptr, '\'', s.len), has_double = s.len && memchr(s.ptr, '"', s.len);
    char quote = has_single && !has_double ? '"' : '\'';
    size_t len;
    uint32_t c;

    ew_buf_append_char(buf, quote);
    for (size_t at = 0; at < s.len; at += len) {
        const char *control;

        len = ew_jj_decode(s, at, &c);
        control = c && c < 128 ? strchr(controls, (int)c) : NULL;
        if (control || c == '\\' || c == (uint32_t)quote) {
            ew_buf_append_char(buf, '\\');
            ew_buf_append_char(buf, control ? letters[control - controls] : (char)c);
        } else if (c < 0x80 ? c < 0x20 || c == 0x7F : !ew_jj_is(EW_JJ_IS_PRINTABLE, c)) {
            append_escaped(buf, c);
        } else {
            ew_buf_append(buf, s.ptr + at, len);
        }
    }
    ew_buf_append_char(buf, quote);
}

static void append_json_escape(struct ew_buf *buf, uint32_t c)
{
    static const char controls[] = "\"\\\n\r\t\b\f", letters[] = "\"\\nrtbf";
    const char *control = c && c < 128 ? strchr(controls, (int)c) : NULL;

    if (control) {
        ew_buf_append_char(buf, '\\');
        ew_buf_append_char(buf, letters[control - controls]);
    } else if (c >= 0x10000) {
        ew_buf_printf(buf, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
        ew_buf_printf(buf, "\\u%04x", c);
    }
}

void ew_jj_append_json(struct ew_buf *buf, struct ew_str s, bool ascii)
{
    size_t plain = 0, len; // what needs no escape is copied in runs
    uint32_t c;

    ew_buf_append_char(buf, '"');
    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (c >= 0x20 && c != '"' && c != '\\' && (!ascii || c < 0x7F))
            continue;
        ew_buf_append(buf, s.ptr + plain, at - plain);
        append_json_escape(buf, c);
        plain = at + len;
    }
    ew_buf_append(buf, s.ptr + plain, s.len - plain);
    ew_buf_append_char(buf, '"');
}
