// Python's two ways to format: "%5.2f" % x and "{:>5}".format(x). What templates do not use (thousands separators,
// nested specifications) is refused by name.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/jinja_builtin.h"
#include "text/jinja_text.h"

#define WIDTH_MAX 10000
#define PRECISION_MAX 300

struct spec {
    char fill[4];
    size_t fill_len;
    char align;     // '<', '>', '^', '=' or 0: the type's own
    char sign;      // '+', ' ' or 0
    bool alternate; // #
    int64_t width, precision; // precision -1: none
    char type;      // 0: none
};

// Appends text padded to the width. sign_len: leading bytes that stay before zeros.
static void append_padded(struct ew_buf *buf, const struct spec *spec, struct ew_str text, size_t sign_len,
                          char own_align)
{
    int64_t missing = spec->width - (int64_t)ew_jj_char_count(text), left;
    char align = spec->align ? spec->align : own_align;

    if (missing < 0)
        missing = 0;
    left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
    if (align == '=')
        ew_buf_append(buf, text.ptr, sign_len);
    for (int64_t i = 0; i < left; i++)
        ew_buf_append(buf, spec->fill, spec->fill_len);
    if (align == '=')
        text = (struct ew_str){text.ptr + sign_len, text.len - sign_len};
    ew_buf_append_str(buf, text);
    for (int64_t i = left; i < missing; i++)
        ew_buf_append(buf, spec->fill, spec->fill_len);
}

static void append_number(struct ew_buf *buf, const struct spec *spec, bool is_negative, const char *prefix,
                          struct ew_str digits)
{
    char text[700];
    int sign_len = snprintf(text, sizeof(text), "%s%s",
                            is_negative         ? "-"
                            : spec->sign == '+' ? "+"
                            : spec->sign        ? " "
                                                : "",
                            prefix);
    int zeros = spec->precision > (int64_t)digits.len ? (int)(spec->precision - (int64_t)digits.len) : 0;
    int len = snprintf(text + sign_len, sizeof(text) - (size_t)sign_len, "%0*d%.*s", zeros, 0, (int)digits.len,
                       digits.ptr);

    if (zeros == 0) // "%00d" still prints one
        len = snprintf(text + sign_len, sizeof(text) - (size_t)sign_len, "%.*s", (int)digits.len, digits.ptr);
    append_padded(buf, spec, (struct ew_str){text, (size_t)(sign_len + len)}, (size_t)sign_len, '>');
}

static void to_base(uint64_t value, uint32_t base, bool upper, char *out)
{
    char reversed[72];
    size_t n = 0;

    do
        reversed[n++] = (upper ? "0123456789ABCDEF" : "0123456789abcdef")[value % base];
    while (value /= base);
    for (size_t i = 0; i < n; i++)
        out[i] = reversed[n - 1 - i];
    out[n] = '\0';
}

static void append_integer(struct ew_buf *buf, const struct spec *spec, int64_t value)
{
    static const struct {
        char type;
        uint32_t base;
        const char *prefix;
    } bases[] = {{'x', 16, "0x"}, {'X', 16, "0X"}, {'o', 8, "0o"}, {'b', 2, "0b"}};
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    const char *prefix = "";
    uint32_t base = 10;
    char digits[72];

    for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++)
        if (spec->type == bases[i].type) {
            base = bases[i].base;
            prefix = spec->alternate ? bases[i].prefix : "";
        }
    to_base(magnitude, base, spec->type == 'X', digits);
    append_number(buf, spec, value < 0, prefix, ew_str_of(digits));
}

static void append_double(struct ew_buf *buf, const struct spec *spec, double number)
{
    char format[8] = "%.*f%s", digits[PRECISION_MAX + 330];
    bool is_percent = spec->type == '%';
    struct spec bare = *spec;

    bare.precision = -1;
    format[3] = is_percent || !spec->type ? 'f' : spec->type;
    if (is_percent)
        number *= 100;
    if (!spec->type && spec->precision < 0)
        ew_jj_format_double(fabs(number), digits);
    else
        snprintf(digits, sizeof(digits), format, spec->precision < 0 ? 6 : (int)spec->precision, fabs(number),
                 is_percent ? "%" : "");
    append_number(buf, &bare, signbit(number) && !isnan(number), "", ew_str_of(digits));
}

static void append_text(struct ew_buf *buf, const struct spec *spec, struct ew_str text, char own_align)
{
    if (spec->precision >= 0)
        text.len = ew_jj_char_offset(text, (size_t)spec->precision);
    append_padded(buf, spec, text, 0, own_align);
}

// d, x, o, ... of a value; Python truncates floats for %d but refuses them for {:d}.
static void format_integer(struct ew_jj_run *run, const struct spec *spec, struct ew_jj_value v, bool truncates)
{
    int64_t integer;

    if (v.type == EW_JJ_FLOAT && truncates && fabs(v.number) < 9e18)
        integer = (int64_t)v.number;
    else if (!ew_jj_is_integer(v, &integer)) {
        ew_jj_fail(run, "%%%c format: an integer is required, not %s", spec->type, ew_jj_type_name(v));
        return;
    }
    append_integer(&run->scratch, spec, integer);
}

static void format_double(struct ew_jj_run *run, const struct spec *spec, struct ew_jj_value v)
{
    double number;

    if (!ew_jj_is_number(v, &number)) {
        ew_jj_fail(run, "a number is needed for the format %c, not %s", spec->type, ew_jj_type_name(v));
        return;
    }
    append_double(&run->scratch, spec, number);
}

static void format_text(struct ew_jj_run *run, const struct spec *spec, struct ew_jj_value v, bool is_repr,
                        char own_align)
{
    struct ew_jj_value text = v;

    if (is_repr) {
        size_t mark = ew_jj_build_begin(run);

        ew_jj_append_repr_of(run, &run->scratch, v);
        text = ew_jj_build_end(run, mark);
    } else {
        text = ew_jj_to_string(run, v);
    }
    if (run->code == EW_OK)
        append_text(&run->scratch, spec, ew_jj_str(text), own_align);
}

static bool read_count(struct ew_jj_run *run, struct ew_str s, size_t *at, int64_t max, int64_t *out)
{
    for (*out = 0; *at < s.len && s.ptr[*at] >= '0' && s.ptr[*at] <= '9'; (*at)++) {
        *out = *out * 10 + (s.ptr[*at] - '0');
        if (*out > max) {
            ew_jj_fail_limit(run, "a format asks for more width than is allowed");
            return false;
        }
    }
    return true;
}

// The percent operator.

struct percent {
    struct ew_str format;
    size_t at;
    struct ew_jj_value values;
    uint32_t used;
};

static struct ew_jj_value next_value(struct ew_jj_run *run, struct percent *state)
{
    bool is_tuple = state->values.type == EW_JJ_TUPLE;

    if (state->used >= (is_tuple ? state->values.list->count : 1))
        return ew_jj_fail(run, "not enough arguments for format string");
    state->used++;
    return is_tuple ? state->values.list->items[state->used - 1] : state->values;
}

static struct ew_jj_value keyed_value(struct ew_jj_run *run, struct percent *state)
{
    struct ew_str s = state->format;
    const struct ew_jj_value *found;
    ptrdiff_t end = ew_str_find(s, EW_STR(")"), state->at);
    struct ew_jj_value key;

    if (end < 0 || state->values.type != EW_JJ_DICT)
        return ew_jj_fail(run, "format requires a mapping");
    key = ew_jj_string_view(run, (struct ew_str){s.ptr + state->at + 1, (size_t)end - state->at - 1});
    state->at = (size_t)end + 1;
    state->used = 1;
    found = run->code == EW_OK ? ew_jj_dict_find(run, state->values.dict, key) : NULL;
    return found ? *found : ew_jj_fail(run, "a format names a key that is not there");
}

static bool read_percent_spec(struct ew_jj_run *run, struct percent *state, struct spec *spec)
{
    struct ew_str s = state->format;
    const char *flags = "-+ #0";

    *spec = (struct spec){.fill = " ", .fill_len = 1, .precision = -1};
    for (; state->at < s.len && s.ptr[state->at] && strchr(flags, s.ptr[state->at]); state->at++)
        switch (s.ptr[state->at]) {
        case '-': spec->align = '<'; break;
        case '#': spec->alternate = true; break;
        case '0': spec->fill[0] = '0'; break;
        default: spec->sign = s.ptr[state->at] == '+' || spec->sign == '+' ? '+' : ' '; break;
        }
    if (spec->align == '<')
        spec->fill[0] = ' ';
    if (!read_count(run, s, &state->at, WIDTH_MAX, &spec->width))
        return false;
    if (state->at < s.len && s.ptr[state->at] == '.') {
        state->at++;
        if (!read_count(run, s, &state->at, PRECISION_MAX, &spec->precision))
            return false;
    }
    while (state->at < s.len && s.ptr[state->at] && strchr("hlL", s.ptr[state->at]))
        state->at++;
    if (state->at >= s.len) {
        ew_jj_fail(run, "incomplete format");
        return false;
    }
    spec->type = s.ptr[state->at++];
    return true;
}

static void format_char(struct ew_jj_run *run, const struct spec *spec, struct ew_jj_value v)
{
    int64_t c;
    char bytes[4];

    if (v.type == EW_JJ_STRING && ew_jj_string_chars(v) == 1)
        append_text(&run->scratch, spec, ew_jj_str(v), '>');
    else if (ew_jj_is_integer(v, &c) && c >= 0 && c <= 0x10FFFF)
        append_text(&run->scratch, spec, (struct ew_str){bytes, ew_jj_encode((uint32_t)c, bytes)}, '>');
    else
        ew_jj_fail(run, "%%c requires int or char");
}

static void format_one_percent(struct ew_jj_run *run, struct percent *state)
{
    struct ew_jj_value v = {.type = EW_JJ_MISSING};
    struct spec spec;

    if (state->at < state->format.len && state->format.ptr[state->at] == '(')
        v = keyed_value(run, state);
    if (!read_percent_spec(run, state, &spec) || run->code != EW_OK)
        return;
    if (spec.type == '%') {
        ew_buf_append_char(&run->scratch, '%');
        return;
    }
    if (v.type == EW_JJ_MISSING)
        v = next_value(run, state);
    if (run->code != EW_OK)
        return;
    if (spec.fill[0] == '0' && !spec.align && !strchr("sra", spec.type))
        spec.align = '=';
    if (strchr("diuxXo", spec.type))
        format_integer(run, &spec, v, strchr("diu", spec.type) != NULL);
    else if (strchr("eEfFgG", spec.type))
        format_double(run, &spec, v);
    else if (spec.type == 's' || spec.type == 'r') {
        spec.fill[0] = ' ';
        format_text(run, &spec, v, spec.type == 'r', '>');
    } else if (spec.type == 'c')
        format_char(run, &spec, v);
    else
        ew_jj_fail(run, "unsupported format character '%c'", spec.type);
}

struct ew_jj_value ew_jj_format_percent(struct ew_jj_run *run, struct ew_jj_value format, struct ew_jj_value values)
{
    struct percent state = {.format = ew_jj_str(format), .values = values};
    size_t mark = ew_jj_build_begin(run);
    bool is_single; // Python lets what could be a mapping, lists and the undefined too, stay unused

    while (state.at < state.format.len && ew_jj_step(run, 1)) {
        ptrdiff_t found = ew_str_find(state.format, EW_STR("%"), state.at);
        size_t end = found < 0 ? state.format.len : (size_t)found;

        ew_buf_append(&run->scratch, state.format.ptr + state.at, end - state.at);
        state.at = end + 1;
        if (found >= 0)
            format_one_percent(run, &state);
    }
    is_single = values.type != EW_JJ_TUPLE && values.type != EW_JJ_DICT && values.type != EW_JJ_LIST &&
                values.type != EW_JJ_VIEW && values.type != EW_JJ_UNDEFINED;
    if (run->code == EW_OK && state.used < (is_single ? 1 : values.type == EW_JJ_TUPLE ? values.list->count : 0))
        return ew_jj_fail(run, "not all arguments converted during string formatting");
    return run->code == EW_OK ? ew_jj_build_end(run, mark) : EW_JJ_UNDEFINED_VALUE;
}

// str.format.

struct braces {
    const struct ew_jj_args *args;
    uint32_t next; // argument of the next empty field
};

static struct ew_jj_value find_field(struct ew_jj_run *run, struct braces *state, struct ew_str name)
{
    uint64_t index;

    if (name.len == 0 || ew_str_to_u64(name, &index)) {
        index = name.len ? index : state->next++;
        return index < state->args->n_pos ? state->args->pos[index]
                                          : ew_jj_fail(run, "a format needs more arguments than it is given");
    }
    for (uint32_t i = 0; i < state->args->n_kw; i++)
        if (ew_str_eq(state->args->kw[i].name, name))
            return state->args->kw[i].value;
    return ew_jj_fail(run, "a format names the argument '" EW_STR_FMT "', which is not given", EW_STR_ARG(name));
}

// "name.attribute[key]" to its value.
static struct ew_jj_value resolve_field(struct ew_jj_run *run, struct braces *state, struct ew_str field)
{
    size_t at = 0, end;
    struct ew_jj_value v;

    while (at < field.len && field.ptr[at] != '.' && field.ptr[at] != '[')
        at++;
    v = find_field(run, state, (struct ew_str){field.ptr, at});
    for (; at < field.len && run->code == EW_OK; at = end) {
        bool is_item = field.ptr[at] == '[';
        struct ew_str name;
        uint64_t index;

        for (end = at + 1;
             end < field.len && (is_item ? field.ptr[end] != ']' : field.ptr[end] != '.' && field.ptr[end] != '[');
             end++)
            ;
        name = (struct ew_str){field.ptr + at + 1, end - at - 1};
        end += is_item;
        if (is_item && ew_str_to_u64(name, &index) && index < INT64_MAX)
            v = ew_jj_get_item(run, v, ew_jj_int((int64_t)index));
        else if (is_item)
            v = ew_jj_get_item(run, v, ew_jj_string_copy(run, name));
        else
            v = ew_jj_get_attr(run, v, ew_jj_string_copy(run, name));
    }
    return v;
}

static bool is_align(char c)
{
    return c == '<' || c == '>' || c == '^' || c == '=';
}

static bool read_brace_spec(struct ew_jj_run *run, struct ew_str s, struct spec *spec)
{
    size_t at = 0, len;
    uint32_t c;

    *spec = (struct spec){.fill = " ", .fill_len = 1, .precision = -1};
    len = s.len ? ew_jj_decode(s, 0, &c) : 0;
    if (len && len < s.len && is_align(s.ptr[len])) {
        memcpy(spec->fill, s.ptr, len);
        spec->fill_len = len;
        spec->align = s.ptr[len];
        at = len + 1;
    } else if (len && is_align(s.ptr[0])) {
        spec->align = s.ptr[0];
        at = 1;
    }
    if (at < s.len && (s.ptr[at] == '+' || s.ptr[at] == '-' || s.ptr[at] == ' '))
        spec->sign = s.ptr[at] == '-' ? 0 : s.ptr[at], at++;
    if (at < s.len && s.ptr[at] == '#')
        spec->alternate = true, at++;
    if (at < s.len && s.ptr[at] == '0') {
        if (!spec->align) {
            spec->align = '=';
            spec->fill[0] = '0';
            spec->fill_len = 1;
        }
        at++;
    }
    if (!read_count(run, s, &at, WIDTH_MAX, &spec->width))
        return false;
    if (at < s.len && s.ptr[at] == '.' && (at++, !read_count(run, s, &at, PRECISION_MAX, &spec->precision)))
        return false;
    if (at < s.len)
        spec->type = s.ptr[at++];
    if (at < s.len || (spec->type && !strchr("sdxXobeEfFgG%", spec->type))) {
        ew_jj_fail(run, "the format specification '" EW_STR_FMT "' is not supported", EW_STR_ARG(s));
        return false;
    }
    return true;
}

static void format_value(struct ew_jj_run *run, struct ew_jj_value v, struct ew_str text_spec, char conversion)
{
    struct spec spec;
    bool is_number = (v.type == EW_JJ_INT || v.type == EW_JJ_FLOAT || v.type == EW_JJ_BOOL) && !conversion;

    if (run->code != EW_OK || !read_brace_spec(run, text_spec, &spec))
        return;
    if (is_number && spec.type && strchr("dxXob", spec.type))
        format_integer(run, &spec, v, false);
    else if (is_number && (spec.type ? spec.type != 's' : v.type == EW_JJ_FLOAT && text_spec.len))
        format_double(run, &spec, v);
    else if (is_number && v.type == EW_JJ_INT && !spec.type)
        append_integer(&run->scratch, &spec, v.integer);
    else if (is_number && spec.type == 's')
        ew_jj_fail(run, "Unknown format code 's' for a number");
    else if (spec.type && spec.type != 's')
        ew_jj_fail(run, "Unknown format code '%c' for object of type '%s'", spec.type, ew_jj_type_name(v));
    else
        format_text(run, &spec, v, conversion == 'r', v.type == EW_JJ_BOOL || v.type == EW_JJ_FLOAT ? '>' : '<');
}

static void format_field(struct ew_jj_run *run, struct braces *state, struct ew_str field)
{
    ptrdiff_t colon = ew_str_find(field, EW_STR(":"), 0);
    struct ew_str spec = {"", 0}, name = field;
    char conversion = 0;

    if (colon >= 0) {
        spec = (struct ew_str){field.ptr + colon + 1, field.len - (size_t)colon - 1};
        name.len = (size_t)colon;
    }
    if (name.len >= 2 && name.ptr[name.len - 2] == '!') {
        conversion = name.ptr[name.len - 1];
        name.len -= 2;
    }
    if (conversion && conversion != 'r' && conversion != 's')
        ew_jj_fail(run, "the conversion !%c is not supported", conversion);
    format_value(run, resolve_field(run, state, name), spec, conversion);
}

struct ew_jj_value ew_jj_format_braces(struct ew_jj_run *run, struct ew_jj_value format, const struct ew_jj_args *args)
{
    struct ew_str s = ew_jj_str(format);
    struct braces state = {.args = args};
    size_t mark = ew_jj_build_begin(run);

    for (size_t at = 0; at < s.len && ew_jj_step(run, 1);) {
        char c = s.ptr[at];
        ptrdiff_t end;

        if (c != '{' && c != '}') {
            ew_buf_append_char(&run->scratch, c);
            at++;
        } else if (at + 1 < s.len && s.ptr[at + 1] == c) {
            ew_buf_append_char(&run->scratch, c);
            at += 2;
        } else {
            end = c == '{' ? ew_str_find(s, EW_STR("}"), at) : -1;
            if (end < 0)
                return ew_jj_fail(run, "a format has a brace without its partner");
            format_field(run, &state, (struct ew_str){s.ptr + at + 1, (size_t)end - at - 1});
            at = (size_t)end + 1;
        }
    }
    return run->code == EW_OK ? ew_jj_build_end(run, mark) : EW_JJ_UNDEFINED_VALUE;
}
