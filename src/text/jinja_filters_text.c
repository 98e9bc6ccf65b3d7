// Filters that make text and numbers.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "text/jinja_builtin.h"
#include "text/jinja_strings.h"

#define INDENT_MAX 1000
#define PRECISION_MAX 300
#define NUMBER_CHARS_MAX 400 // of a text that is read as a number

// The filtered value as text; an empty one where the run has failed.
static struct ew_jj_value text_of(struct ew_jj_run *run, struct ew_jj_value v)
{
    static struct ew_jj_string empty = {"", 0, 0, NULL}; // never written: its characters are counted
    struct ew_jj_value text = ew_jj_to_string(run, v);

    return run->code == EW_OK ? text : (struct ew_jj_value){.type = EW_JJ_STRING, .string = &empty};
}

static struct ew_str str_of(struct ew_jj_run *run, struct ew_jj_value v)
{
    return ew_jj_str(text_of(run, v));
}

EW_JJ_BUILTIN(upper)
{
    return ew_jj_all_cased(run, text_of(run, self), EW_JJ_UPPER);
}

EW_JJ_BUILTIN(lower)
{
    return ew_jj_all_cased(run, text_of(run, self), EW_JJ_LOWER);
}

EW_JJ_BUILTIN(capitalize)
{
    return ew_jj_capitalize(run, text_of(run, self));
}

// Unlike str.title: a word begins behind white space, a hyphen or an opening bracket.
EW_JJ_BUILTIN(title)
{
    struct ew_str s = str_of(run, self);
    size_t mark = ew_jj_build_begin(run), len;
    bool in_word = false;
    uint32_t c;

    for (size_t at = 0; at < s.len && ew_jj_step(run, 1); at += len) {
        len = ew_jj_decode(s, at, &c);
        ew_jj_append_cased(&run->scratch, c, in_word ? EW_JJ_LOWER : EW_JJ_UPPER);
        in_word = !ew_jj_is_space(c) && !(c && c < 128 && strchr("-({[<", (int)c));
    }
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(trim)
{
    return ew_jj_strip(run, text_of(run, self), v[0], true, true);
}

EW_JJ_BUILTIN(replace)
{
    struct ew_str old = str_of(run, v[0]), new = str_of(run, v[1]);

    return ew_jj_replace(run, text_of(run, self), old, new, ew_jj_arg_int(run, v[2], -1));
}

EW_JJ_BUILTIN(center)
{
    return ew_jj_pad(run, text_of(run, self), ew_jj_arg_int(run, v[0], 80), EW_STR(" "), EW_JJ_CENTER);
}

EW_JJ_BUILTIN(string)
{
    return ew_jj_to_string(run, self);
}

EW_JJ_BUILTIN(safe)
{
    struct ew_jj_value text = text_of(run, self);

    text.is_markup = true;
    return text;
}

EW_JJ_BUILTIN(forceescape)
{
    struct ew_jj_value text = text_of(run, self), escaped;
    size_t mark = ew_jj_build_begin(run);

    ew_jj_append_html(&run->scratch, ew_jj_str(text));
    escaped = ew_jj_build_end(run, mark);
    escaped.is_markup = true;
    return escaped;
}

EW_JJ_BUILTIN(escape)
{
    return self.type == EW_JJ_STRING && self.is_markup ? self : forceescape(run, self, v, args);
}

static void append_spaces(struct ew_buf *buf, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        ew_buf_append_char(buf, ' ');
}

// What every line is indented by: a text, or a number of spaces.
static struct ew_str indentation(struct ew_jj_run *run, struct ew_jj_value v, int64_t fallback)
{
    size_t mark = ew_jj_build_begin(run);
    int64_t width;

    if (v.type == EW_JJ_STRING)
        return ew_jj_str(v);
    width = ew_jj_arg_int(run, v, fallback);
    if (width > INDENT_MAX)
        ew_jj_fail_limit(run, "an indentation is wider than is allowed");
    append_spaces(&run->scratch, EW_MIN(width, INDENT_MAX));
    return str_of(run, ew_jj_build_end(run, mark));
}

EW_JJ_BUILTIN(indent)
{
    struct ew_str by = indentation(run, v[0], 4);
    bool first = ew_jj_arg_bool(v[1], false), blank = ew_jj_arg_bool(v[2], false);
    struct ew_jj_value whole = ew_jj_concat(run, text_of(run, self), ew_jj_string_view(run, EW_STR("\n"))), lines;
    size_t mark;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    lines = ew_jj_splitlines(run, whole, false);
    mark = ew_jj_build_begin(run);
    for (uint32_t i = 0; run->code == EW_OK && i < lines.list->count; i++) {
        struct ew_str line = ew_jj_str(lines.list->items[i]);

        if (i)
            ew_buf_append_char(&run->scratch, '\n');
        if (i ? blank || line.len : first)
            ew_buf_append_str(&run->scratch, by);
        ew_buf_append_str(&run->scratch, line);
    }
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(truncate)
{
    int64_t length = ew_jj_arg_int(run, v[0], 255), leeway = ew_jj_arg_int(run, v[3], 5), own_length;
    struct ew_jj_value s = self, cut;
    struct ew_str end = ew_jj_arg_str(run, v[2], "...");
    int64_t keep = length - (int64_t)ew_jj_char_count(end);
    size_t bytes;

    if (run->code != EW_OK || keep < 0 || leeway < 0)
        return ew_jj_fail(run, "truncate needs a length that holds its end");
    if (!ew_jj_length(s, &own_length))
        return ew_jj_fail(run, "object of type '%s' has no len()", ew_jj_type_name(s));
    if (own_length - leeway <= length)
        return s;
    if (s.type != EW_JJ_STRING)
        return ew_jj_fail(run, "'%s' object cannot be truncated", ew_jj_type_name(s));
    bytes = ew_jj_char_offset(ew_jj_str(s), (size_t)keep);
    if (!ew_jj_arg_bool(v[1], false))
        for (size_t at = bytes; at-- > 0;)
            if (s.string->ptr[at] == ' ') {
                bytes = at;
                break;
            }
    cut = ew_jj_string_sub(run, s, 0, bytes);
    return run->code == EW_OK ? ew_jj_concat(run, cut, ew_jj_string_view(run, end)) : EW_JJ_UNDEFINED_VALUE;
}

EW_JJ_BUILTIN(wordcount)
{
    struct ew_str s = str_of(run, self);
    bool in_word = false;
    int64_t n = 0;
    size_t len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        bool is_word;

        len = ew_jj_decode(s, at, &c);
        is_word = ew_jj_is(EW_JJ_IS_WORD, c);
        n += is_word && !in_word;
        in_word = is_word;
    }
    return ew_jj_int(n);
}

// RFC 3986: what is not unreserved is written as bytes.
static void append_quoted(struct ew_buf *buf, struct ew_str s, bool is_query)
{
    for (size_t i = 0; i < s.len; i++) {
        char c = s.ptr[i];
        bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                        (c && strchr("_.-~", c));

        if (is_plain || (c == '/' && !is_query))
            ew_buf_append_char(buf, c);
        else if (c == ' ' && is_query)
            ew_buf_append_char(buf, '+');
        else
            ew_buf_printf(buf, "%%%02X", (unsigned char)c);
    }
}

static bool append_query(struct ew_jj_run *run, struct ew_jj_value pair, bool is_first)
{
    struct ew_jj_items items;
    struct ew_str name, value;

    if (!ew_jj_iterate(run, pair, &items))
        return false;
    if (items.count != 2) {
        ew_jj_fail(run, "urlencode needs pairs");
        return false;
    }
    name = str_of(run, items.items[0]);
    value = str_of(run, items.items[1]);
    if (!is_first)
        ew_buf_append_char(&run->scratch, '&');
    append_quoted(&run->scratch, name, true);
    ew_buf_append_char(&run->scratch, '=');
    append_quoted(&run->scratch, value, true);
    return run->code == EW_OK;
}

EW_JJ_BUILTIN(urlencode)
{
    bool is_pairs = self.type != EW_JJ_STRING && ew_jj_is_iterable(self);
    struct ew_jj_value text = is_pairs ? self : text_of(run, self);
    struct ew_jj_items items;
    size_t mark;

    if (self.type == EW_JJ_DICT)
        text = ew_jj_dict_items(run, self.dict, EW_JJ_VIEW);
    if (run->code != EW_OK || (is_pairs && !ew_jj_iterate(run, text, &items)))
        return EW_JJ_UNDEFINED_VALUE;
    mark = ew_jj_build_begin(run);
    if (!is_pairs)
        append_quoted(&run->scratch, ew_jj_str(text), false);
    for (uint32_t i = 0; is_pairs && i < items.count; i++)
        if (!append_query(run, items.items[i], i == 0))
            return EW_JJ_UNDEFINED_VALUE;
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(format)
{
    struct ew_jj_value values = ew_jj_list(run, EW_JJ_TUPLE, args->n_pos), dict = ew_jj_dict(run, EW_JJ_DICT);

    for (uint32_t i = 0; i < args->n_pos && run->code == EW_OK; i++)
        ew_jj_list_push(run, values.list, args->pos[i]);
    for (uint32_t i = 0; i < args->n_kw && run->code == EW_OK; i++)
        ew_jj_dict_set(run, dict.dict, ew_jj_string_view(run, args->kw[i].name), args->kw[i].value);
    if (args->n_pos && args->n_kw)
        return ew_jj_fail(run, "can't handle positional and keyword arguments at the same time");
    return ew_jj_format_percent(run, text_of(run, self), args->n_kw ? dict : values);
}

// JSON, as transformers defines it: json.dumps without Jinja's escaping for HTML.

static bool json_separators(struct ew_jj_run *run, struct ew_jj_value v, struct ew_jj_json_style *style)
{
    struct ew_jj_items items;

    style->item_separator = ew_str_of(style->indent ? "," : ", ");
    style->key_separator = EW_STR(": ");
    if (!ew_jj_given(v) || v.type == EW_JJ_NONE)
        return true;
    if (!ew_jj_iterate(run, v, &items))
        return false;
    if (items.count != 2) {
        ew_jj_fail(run, "tojson needs two separators");
        return false;
    }
    style->item_separator = ew_jj_arg_str(run, items.items[0], "");
    style->key_separator = ew_jj_arg_str(run, items.items[1], "");
    return run->code == EW_OK;
}

EW_JJ_BUILTIN(tojson)
{
    struct ew_jj_json_style style = {.ascii = ew_jj_arg_bool(v[0], false), .sort_keys = ew_jj_arg_bool(v[3], false)};
    size_t mark;

    if (ew_jj_given(v[1]) && v[1].type != EW_JJ_NONE) {
        struct ew_str by = indentation(run, v[1], 0);
        char *copy = ew_jj_alloc(run, by.len + 1, 1);

        if (!copy)
            return EW_JJ_UNDEFINED_VALUE;
        memcpy(copy, by.ptr, by.len);
        style.indent = copy;
    }
    if (run->code != EW_OK || !json_separators(run, v[2], &style))
        return EW_JJ_UNDEFINED_VALUE;
    mark = ew_jj_build_begin(run);
    ew_jj_append_json_of(run, &run->scratch, self, &style);
    return run->code == EW_OK ? ew_jj_build_end(run, mark) : EW_JJ_UNDEFINED_VALUE;
}

// Numbers.

static struct ew_str strip_space(struct ew_str s)
{
    size_t from = ew_jj_space_prefix(s);

    s = (struct ew_str){s.ptr + from, s.len - from};
    return (struct ew_str){s.ptr, ew_jj_without_space_suffix(s)};
}

// Copies the digits without their underscores, which may stand only between digits. False where they do not or it
// is too long.
static bool clean_number(struct ew_str s, char out[NUMBER_CHARS_MAX])
{
    size_t n = 0;

    s = strip_space(s);
    if (s.len == 0 || s.len >= NUMBER_CHARS_MAX)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] == '_' &&
            (i == 0 || i + 1 == s.len || s.ptr[i - 1] == '_' || !strchr("0123456789abcdefABCDEF", s.ptr[i + 1])))
            return false;
        if (s.ptr[i] == '\0')
            return false;
        if (s.ptr[i] != '_')
            out[n++] = s.ptr[i];
    }
    out[n] = '\0';
    return true;
}

static bool parse_float(struct ew_str s, double *out)
{
    char text[NUMBER_CHARS_MAX], *end;

    if (!clean_number(s, text) ||
        strpbrk(text, "xXpP(")) // strtod knows hexadecimal numbers and nan(...), Python's float does not
        return false;
    *out = strtod(text, &end);
    return *end == '\0';
}

enum parsed { PARSED_NO, PARSED_INT, PARSED_BIG };

static enum parsed parse_int(struct ew_str s, int64_t base, int64_t *out)
{
    char text[NUMBER_CHARS_MAX], *at = text;
    bool is_negative;
    uint64_t value = 0;

    if (!clean_number(s, text))
        return PARSED_NO;
    is_negative = *at == '-';
    at += *at == '-' || *at == '+';
    if (at[0] == '0' && at[1] &&
        ((base == 16 && (at[1] | 32) == 'x') || (base == 8 && (at[1] | 32) == 'o') ||
         (base == 2 && (at[1] | 32) == 'b')))
        at += 2;
    if (!*at)
        return PARSED_NO;
    for (; *at; at++) {
        int digit = *at >= '0' && *at <= '9'                 ? *at - '0'
                    : (*at | 32) >= 'a' && (*at | 32) <= 'z' ? (*at | 32) - 'a' + 10
                                                             : 99;

        if (digit >= base)
            return PARSED_NO;
        if (__builtin_mul_overflow(value, (uint64_t)base, &value) ||
            __builtin_add_overflow(value, (uint64_t)digit, &value) || value > INT64_MAX)
            return PARSED_BIG;
    }
    *out = is_negative ? -(int64_t)value : (int64_t)value;
    return PARSED_INT;
}

static struct ew_jj_value fallback_number(struct ew_jj_value v, struct ew_jj_value otherwise)
{
    return ew_jj_given(v) ? v : otherwise;
}

static struct ew_jj_value float_to_int(struct ew_jj_run *run, double number, struct ew_jj_value otherwise)
{
    if (!isfinite(number))
        return otherwise;
    if (fabs(number) >= 9223372036854775808.0)
        return ew_jj_fail_limit(run, "a number is past 64 bits");
    return ew_jj_int((int64_t)number);
}

EW_JJ_BUILTIN(to_int)
{
    struct ew_jj_value otherwise = fallback_number(v[0], ew_jj_int(0));
    int64_t base = ew_jj_arg_int(run, v[1], 10), integer = 0;
    double number;

    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, self);
    if (self.type == EW_JJ_BIG)
        return self;
    if (base < 2 || base > 36)
        return otherwise;
    if (self.type != EW_JJ_STRING)
        return ew_jj_is_integer(self, &integer) ? ew_jj_int(integer)
               : self.type == EW_JJ_FLOAT       ? float_to_int(run, self.number, otherwise)
                                                : otherwise;
    switch (parse_int(ew_jj_str(self), base, &integer)) {
    case PARSED_INT: return ew_jj_int(integer);
    case PARSED_BIG: return ew_jj_fail_limit(run, "a number is past 64 bits");
    default: return parse_float(ew_jj_str(self), &number) ? float_to_int(run, number, otherwise) : otherwise;
    }
}

EW_JJ_BUILTIN(to_float)
{
    struct ew_jj_value otherwise = fallback_number(v[0], ew_jj_float(0));
    double number;

    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, self);
    if (self.type == EW_JJ_STRING)
        return parse_float(ew_jj_str(self), &number) ? ew_jj_float(number) : otherwise;
    return ew_jj_is_number(self, &number) ? ew_jj_float(number) : otherwise;
}

EW_JJ_BUILTIN(to_abs)
{
    int64_t integer;

    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, self);
    if (self.type == EW_JJ_FLOAT)
        return ew_jj_float(fabs(self.number));
    if (!ew_jj_is_integer(self, &integer))
        return ew_jj_fail(run, "bad operand type for abs(): '%s'", ew_jj_type_name(self));
    return integer < 0 ? ew_jj_negate(run, ew_jj_int(integer)) : ew_jj_int(integer);
}

// Half to even of the exact binary value, as Python's round and printf both do.
static double round_common(double number, int64_t precision)
{
    char text[PRECISION_MAX + 330];
    double scale;

    if (!isfinite(number) || precision > PRECISION_MAX)
        return number;
    if (precision >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)precision, number);
        return strtod(text, NULL);
    }
    scale = pow(10, (double)-precision);
    return isfinite(scale) ? rint(number / scale) * scale : copysign(0, number);
}

static struct ew_jj_value round_integer(int64_t integer, int64_t precision)
{
    int64_t scale = 1, down, rest;

    if (precision >= 0)
        return ew_jj_int(integer);
    for (; precision < 0; precision++)
        if (__builtin_mul_overflow(scale, 10, &scale))
            return ew_jj_int(0);
    rest = integer % scale;
    down = integer - rest;
    if (llabs(rest) > scale / 2 || (llabs(rest) == scale / 2 && (down / scale) % 2))
        down += rest < 0 ? -scale : scale;
    return ew_jj_int(down);
}

EW_JJ_BUILTIN(to_round)
{
    int64_t precision = ew_jj_arg_int(run, v[0], 0), integer;
    struct ew_str method = ew_jj_arg_str(run, v[1], "common");
    double number, scale;

    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, self);
    if (!ew_jj_is_number(self, &number) || self.type == EW_JJ_BIG)
        return ew_jj_fail(run, "type %s cannot be rounded", ew_jj_type_name(self));
    if (ew_str_is(method, "common"))
        return ew_jj_is_integer(self, &integer) ? round_integer(integer, precision)
                                                : ew_jj_float(round_common(number, precision));
    if (!ew_str_is(method, "ceil") && !ew_str_is(method, "floor"))
        return ew_jj_fail(run, "method must be common, ceil or floor");
    scale = pow(10, (double)precision);
    return ew_jj_float((ew_str_is(method, "ceil") ? ceil(number * scale) : floor(number * scale)) / scale);
}

EW_JJ_BUILTIN(to_default)
{
    struct ew_jj_value otherwise = ew_jj_given(v[0]) ? v[0] : ew_jj_string_view(run, EW_STR(""));

    return self.type == EW_JJ_UNDEFINED || (ew_jj_arg_bool(v[1], false) && !ew_jj_truth(self)) ? otherwise : self;
}

const struct ew_jj_builtin ew_jj_text_filters[] = {
    {"trim", trim, "chars", 0},
    {"tojson", tojson, "ensure_ascii indent separators sort_keys", 0},
    {"default", to_default, "default_value boolean", 0},
    {"d", to_default, "default_value boolean", 0},
    {"string", string, "", 0},
    {"upper", upper, "", 0},
    {"lower", lower, "", 0},
    {"capitalize", capitalize, "", 0},
    {"title", title, "", 0},
    {"replace", replace, "old new count", 2},
    {"indent", indent, "width first blank", 0},
    {"center", center, "width", 0},
    {"truncate", truncate, "length killwords end leeway", 0},
    {"wordcount", wordcount, "", 0},
    {"format", format, NULL, 0},
    {"urlencode", urlencode, "", 0},
    {"safe", safe, "", 0},
    {"e", escape, "", 0},
    {"escape", escape, "", 0},
    {"forceescape", forceescape, "", 0},
    {"int", to_int, "default base", 0},
    {"float", to_float, "default", 0},
    {"abs", to_abs, "", 0},
    {"round", to_round, "precision method", 0},
    {0},
};
