#include "text/jinja_lex.h"

#include <stdio.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "text/jinja_text.h"

#define TOKENS_MAX (1u << 20)
#define BRACKETS_MAX 256 // open at once

struct lexer {
    struct ew_arena *arena;
    struct ew_str src; // newlines normalised, the last one dropped
    size_t at;
    uint32_t line;
    struct ew_jj_tokens *out;
    char brackets[BRACKETS_MAX]; // the closing ones that are awaited
    uint32_t n_brackets;
    struct ew_error *err;
};

static int fail(struct lexer *lex, const char *what)
{
    return ew_fail(lex->err, EW_ERR_FORMAT, "line %u of the chat template: %s", lex->line, what);
}

static int fail_memory(struct lexer *lex)
{
    return ew_fail(lex->err, EW_ERR_LIMIT, "the chat template is too large");
}

static int grow(struct lexer *lex)
{
    struct ew_jj_tokens *out = lex->out;
    uint32_t cap = out->cap ? out->cap * 2 : 256;
    struct ew_jj_token *grown = cap <= TOKENS_MAX ? ew_arena_array(lex->arena, cap, sizeof(*grown)) : NULL;

    if (!grown)
        return fail_memory(lex);
    if (out->count)
        memcpy(grown, out->tokens, out->count * sizeof(*grown));
    out->tokens = grown;
    out->cap = cap;
    return EW_OK;
}

static int add(struct lexer *lex, enum ew_jj_token_kind kind, struct ew_str text)
{
    int code = lex->out->count == lex->out->cap ? grow(lex) : EW_OK;

    if (code == EW_OK)
        lex->out->tokens[lex->out->count++] = (struct ew_jj_token){kind, lex->line, text};
    return code;
}

static struct ew_str rest(const struct lexer *lex)
{
    return (struct ew_str){lex->src.ptr + lex->at, lex->src.len - lex->at};
}

static char peek(const struct lexer *lex, size_t ahead)
{
    return lex->src.len - lex->at > ahead ? lex->src.ptr[lex->at + ahead] : '\0';
}

static bool sees(const struct lexer *lex, const char *text)
{
    return ew_str_starts(rest(lex), text);
}

static void advance(struct lexer *lex, size_t n)
{
    for (size_t end = lex->at + n; lex->at < end; lex->at++)
        lex->line += lex->src.ptr[lex->at] == '\n';
}

static void skip_space(struct lexer *lex)
{
    advance(lex, ew_jj_space_prefix(rest(lex)));
}

// The end of a tag at the current place: "-X}" eats the white space after it, "X}" one newline where blocks are
// trimmed, "+X}" nothing (not for variables). Returns false, moving nothing, where there is no such end.
static bool skip_tag_end(struct lexer *lex, const char *end)
{
    bool is_variable = end[0] == '}';
    char sign = peek(lex, 0);
    size_t skip = sign == '-' || (sign == '+' && !is_variable) ? 1 : 0;

    if (peek(lex, skip) != end[0] || peek(lex, skip + 1) != end[1])
        return false;
    advance(lex, skip + 2);
    if (sign == '-')
        skip_space(lex);
    else if (skip == 0 && !is_variable && peek(lex, 0) == '\n')
        advance(lex, 1);
    return true;
}

// What of the text before a tag is printed: '-' strips all white space at its end, otherwise lstrip_blocks strips
// the tag's own indentation, unless the tag is a variable or has a '+'.
static struct ew_str trim_before_tag(struct ew_str text, char sign, bool is_variable, bool line_starting)
{
    size_t line_at = text.len;

    if (sign == '-')
        return (struct ew_str){text.ptr, ew_jj_without_space_suffix(text)};
    if (sign == '+' || is_variable)
        return text;
    while (line_at > 0 && text.ptr[line_at - 1] != '\n')
        line_at--;
    if (line_at == 0 && !line_starting)
        return text;
    if (ew_jj_space_prefix((struct ew_str){text.ptr + line_at, text.len - line_at}) == text.len - line_at)
        text.len = line_at;
    return text;
}

static int add_data(struct lexer *lex, struct ew_str text)
{
    return text.len ? add(lex, EW_JJ_TOK_DATA, text) : EW_OK;
}

static int lex_comment(struct lexer *lex)
{
    for (; lex->at < lex->src.len; advance(lex, 1))
        if (skip_tag_end(lex, "#}"))
            return EW_OK;
    return fail(lex, "a comment is not closed");
}

// Skips "raw" and the end of its tag. False, with nothing skipped, where the tag is another one.
static bool skip_raw_begin(struct lexer *lex)
{
    struct lexer saved = *lex;

    skip_space(lex);
    if (sees(lex, "raw")) {
        advance(lex, 3);
        skip_space(lex);
        if (sees(lex, "%}")) {
            advance(lex, 2);
            return true;
        }
        if (sees(lex, "-%}")) {
            advance(lex, 3);
            skip_space(lex);
            return true;
        }
    }
    lex->at = saved.at;
    lex->line = saved.line;
    return false;
}

static bool skip_raw_end(struct lexer *lex, char *sign)
{
    struct lexer saved = *lex;

    advance(lex, 2);
    *sign = peek(lex, 0) == '-' || peek(lex, 0) == '+' ? peek(lex, 0) : '\0';
    advance(lex, *sign ? 1 : 0);
    skip_space(lex);
    if (sees(lex, "endraw")) {
        advance(lex, 6);
        skip_space(lex);
        if (skip_tag_end(lex, "%}"))
            return true;
    }
    lex->at = saved.at;
    lex->line = saved.line;
    return false;
}

static int lex_raw(struct lexer *lex)
{
    size_t begin = lex->at;
    bool line_starting = lex->src.ptr[begin - 1] == '\n';

    for (; lex->at < lex->src.len; advance(lex, 1)) {
        struct ew_str text = {lex->src.ptr + begin, lex->at - begin};
        char sign;

        if (sees(lex, "{%") && skip_raw_end(lex, &sign))
            return add_data(lex, trim_before_tag(text, sign, false, line_starting));
    }
    return fail(lex, "a raw block is not closed");
}

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : NULL;

    return at ? (int)(at - digits) : -1;
}

// Reads n hexadecimal digits behind text[*at], which is moved past them.
static bool read_hex(struct ew_str text, size_t *at, uint32_t n, uint32_t *out)
{
    *out = 0;
    for (uint32_t i = 0; i < n; i++, (*at)++) {
        int digit = *at < text.len ? hex_digit(text.ptr[*at]) : -1;

        if (digit < 0)
            return false;
        *out = *out << 4 | (uint32_t)digit;
    }
    return *out <= 0x10FFFF;
}

static uint32_t read_octal(struct ew_str text, size_t *at)
{
    uint32_t value = 0;

    for (uint32_t i = 0; i < 3 && *at < text.len && text.ptr[*at] >= '0' && text.ptr[*at] <= '7'; i++, (*at)++)
        value = value << 3 | (uint32_t)(text.ptr[*at] - '0');
    return value;
}

// Resolves the escape behind a backslash, as Python's unicode-escape does; unknown ones stay as they are written.
static bool unescape(struct ew_str text, size_t *at, char *to, size_t *n)
{
    static const char letters[] = "ntrbfva\\'\"", meanings[] = "\n\t\r\b\f\v\a\\'\"";
    char c = text.ptr[*at];
    const char *letter = c ? strchr(letters, c) : NULL;
    uint32_t scalar;

    if (letter || c == '\n') {
        (*at)++;
        if (letter)
            to[(*n)++] = meanings[letter - letters];
        return true;
    }
    if (c == 'x' || c == 'u' || c == 'U') {
        (*at)++;
        if (!read_hex(text, at, c == 'x' ? 2 : c == 'u' ? 4 : 8, &scalar))
            return false;
    } else if (c >= '0' && c <= '7') {
        scalar = read_octal(text, at);
    } else {
        to[(*n)++] = '\\';
        return c != 'N'; // character names would need a table of them all
    }
    *n += ew_jj_encode(scalar, to + *n);
    return true;
}

static int lex_string(struct lexer *lex)
{
    char quote = peek(lex, 0);
    struct ew_str text = {lex->src.ptr + lex->at + 1, 0};
    size_t n = 0;
    char *to;

    for (size_t at = lex->at + 1;; at++) {
        if (at >= lex->src.len)
            return fail(lex, "a string is not closed");
        if (lex->src.ptr[at] == quote)
            break;
        if (lex->src.ptr[at] == '\\')
            at++;
        text.len = at + 1 - (lex->at + 1);
    }
    to = ew_arena_alloc(lex->arena, text.len + 8); // what an escape stands for is never longer than it
    if (!to)
        return fail_memory(lex);
    for (size_t at = 0; at < text.len;) {
        if (text.ptr[at] != '\\')
            to[n++] = text.ptr[at++];
        else if (at++, !unescape(text, &at, to, &n))
            return fail(lex, "a string has an escape that is cut short or not supported");
    }
    if (add(lex, EW_JJ_TOK_STRING, (struct ew_str){to, n}) != EW_OK)
        return EW_ERR_LIMIT;
    advance(lex, text.len + 2);
    return EW_OK;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// Digits with single underscores between them, from `ahead` on.
static size_t digits_len(const struct lexer *lex, size_t ahead)
{
    size_t at = ahead;

    while (is_digit(peek(lex, at)) || (at > ahead && peek(lex, at) == '_' && is_digit(peek(lex, at + 1))))
        at++;
    return at - ahead;
}

static size_t exponent_len(const struct lexer *lex, size_t ahead)
{
    size_t at = ahead, digits;

    if (peek(lex, at) != 'e' && peek(lex, at) != 'E')
        return 0;
    at++;
    at += peek(lex, at) == '+' || peek(lex, at) == '-';
    digits = digits_len(lex, at);
    return digits ? at + digits - ahead : 0;
}

static int add_number(struct lexer *lex, enum ew_jj_token_kind kind, size_t len)
{
    char *to = ew_arena_alloc(lex->arena, len + 1);
    size_t n = 0, zeros = 0;
    int code;

    if (!to)
        return fail_memory(lex);
    for (size_t i = 0; i < len; i++)
        if (peek(lex, i) != '_')
            to[n++] = peek(lex, i);
    while (kind == EW_JJ_TOK_INTEGER && zeros + 1 < n && to[zeros] == '0')
        zeros++;
    code = add(lex, kind, (struct ew_str){to + zeros, n - zeros});
    advance(lex, len);
    return code;
}

static int bits_of_base(char letter)
{
    switch (letter | 32) {
    case 'x': return 4;
    case 'o': return 3;
    case 'b': return 1;
    default: return 0;
    }
}

// 0x, 0o and 0b numbers become decimal text; past 64 bits they are refused.
static int lex_based_integer(struct lexer *lex, int bits)
{
    uint64_t value = 0;
    size_t len = 2;
    char *to = ew_arena_alloc(lex->arena, 24);
    int code, digit;

    for (;; len++) {
        size_t skip = peek(lex, len) == '_' ? 1 : 0;

        digit = hex_digit(peek(lex, len + skip));
        if (digit < 0 || digit >= 1 << bits)
            break;
        len += skip;
        if (value >> (63 - bits))
            return fail(lex, "a number is past 64 bits");
        value = value << bits | (uint64_t)digit;
    }
    if (len == 2 || !to)
        return fail(lex, "a number is malformed");
    code = add(lex, EW_JJ_TOK_INTEGER,
               (struct ew_str){to, (size_t)snprintf(to, 24, "%llu", (unsigned long long)value)});
    advance(lex, len);
    return code;
}

static int lex_number(struct lexer *lex)
{
    size_t whole = digits_len(lex, 0), fraction = 0, exponent;
    bool after_dot = lex->at > 0 && lex->src.ptr[lex->at - 1] == '.';

    if (peek(lex, 0) == '0' && bits_of_base(peek(lex, 1)) && hex_digit(peek(lex, 2)) >= 0)
        return lex_based_integer(lex, bits_of_base(peek(lex, 1)));
    if (peek(lex, whole) == '.' && digits_len(lex, whole + 1))
        fraction = 1 + digits_len(lex, whole + 1);
    exponent = exponent_len(lex, whole + fraction);
    if ((fraction || exponent) && !after_dot)
        return add_number(lex, EW_JJ_TOK_FLOAT, whole + fraction + exponent);
    return add_number(lex, EW_JJ_TOK_INTEGER, whole);
}

static const struct {
    char text[3];
    enum ew_jj_token_kind kind;
} g_operators[] = { // longer ones first
    {"**", EW_JJ_TOK_POW},     {"//", EW_JJ_TOK_FLOORDIV}, {"==", EW_JJ_TOK_EQ},      {"!=", EW_JJ_TOK_NE},
    {">=", EW_JJ_TOK_GE},      {"<=", EW_JJ_TOK_LE},       {"+", EW_JJ_TOK_ADD},      {"-", EW_JJ_TOK_SUB},
    {"*", EW_JJ_TOK_MUL},      {"/", EW_JJ_TOK_DIV},       {"%", EW_JJ_TOK_MOD},      {"~", EW_JJ_TOK_TILDE},
    {"[", EW_JJ_TOK_LBRACKET}, {"]", EW_JJ_TOK_RBRACKET},  {"(", EW_JJ_TOK_LPAREN},   {")", EW_JJ_TOK_RPAREN},
    {"{", EW_JJ_TOK_LBRACE},   {"}", EW_JJ_TOK_RBRACE},    {">", EW_JJ_TOK_GT},       {"<", EW_JJ_TOK_LT},
    {"=", EW_JJ_TOK_ASSIGN},   {".", EW_JJ_TOK_DOT},       {":", EW_JJ_TOK_COLON},    {"|", EW_JJ_TOK_PIPE},
    {",", EW_JJ_TOK_COMMA},    {";", EW_JJ_TOK_SEMICOLON},
};

// Inside brackets "}}" and "%}" are operators, not the end of the tag, so open ones are counted.
static int balance(struct lexer *lex, char c)
{
    static const char opening[] = "{([", closing[] = "})]";
    const char *at = strchr(opening, c);

    if (at) {
        if (lex->n_brackets == BRACKETS_MAX)
            return fail(lex, "brackets are nested too deeply");
        lex->brackets[lex->n_brackets++] = closing[at - opening];
    } else if (strchr(closing, c)) {
        if (lex->n_brackets == 0 || lex->brackets[--lex->n_brackets] != c)
            return fail(lex, "a closing bracket has no partner");
    }
    return EW_OK;
}

static int lex_operator(struct lexer *lex)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_operators); i++) {
        int code;

        if (!sees(lex, g_operators[i].text))
            continue;
        code = balance(lex, g_operators[i].text[0]);
        if (code == EW_OK)
            code = add(lex, g_operators[i].kind, (struct ew_str){g_operators[i].text, strlen(g_operators[i].text)});
        advance(lex, strlen(g_operators[i].text));
        return code;
    }
    return fail(lex, "a tag has a character that means nothing there");
}

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) || (unsigned char)c >= 0x80;
}

static int lex_name(struct lexer *lex)
{
    size_t len = 0;
    int code;

    while (is_name_char(peek(lex, len)))
        len++;
    code = add(lex, EW_JJ_TOK_NAME, (struct ew_str){lex->src.ptr + lex->at, len});
    advance(lex, len);
    return code;
}

static int lex_in_tag(struct lexer *lex)
{
    char c = peek(lex, 0);

    if (c == '\'' || c == '"')
        return lex_string(lex);
    if (is_digit(c))
        return lex_number(lex);
    return is_name_char(c) ? lex_name(lex) : lex_operator(lex);
}

static int lex_tag(struct lexer *lex, bool is_variable)
{
    int code = add(lex, is_variable ? EW_JJ_TOK_VARIABLE_BEGIN : EW_JJ_TOK_BLOCK_BEGIN, (struct ew_str){0});

    lex->n_brackets = 0;
    while (code == EW_OK) {
        uint32_t line;

        skip_space(lex);
        if (lex->at >= lex->src.len)
            return fail(lex, "a tag is not closed");
        line = lex->line;
        if (lex->n_brackets == 0 && skip_tag_end(lex, is_variable ? "}}" : "%}")) {
            code = add(lex, is_variable ? EW_JJ_TOK_VARIABLE_END : EW_JJ_TOK_BLOCK_END, (struct ew_str){0});
            if (code == EW_OK)
                lex->out->tokens[lex->out->count - 1].line = line;
            return code;
        }
        code = lex_in_tag(lex);
    }
    return code;
}

// The text up to the next tag, then the tag.
static int lex_text_and_tag(struct lexer *lex)
{
    size_t begin = lex->at, tag = begin;
    bool line_starting = begin == 0 || lex->src.ptr[begin - 1] == '\n';
    struct ew_str src = lex->src;
    char sign, type;
    int code;

    while (tag < src.len &&
           !(src.ptr[tag] == '{' && tag + 1 < src.len && strchr("{%#", src.ptr[tag + 1]) && src.ptr[tag + 1]))
        tag++;
    if (tag >= src.len) {
        code = add_data(lex, (struct ew_str){src.ptr + begin, src.len - begin});
        advance(lex, src.len - begin);
        return code;
    }
    type = src.ptr[tag + 1];
    sign = tag + 2 < src.len && (src.ptr[tag + 2] == '-' || src.ptr[tag + 2] == '+') ? src.ptr[tag + 2] : '\0';
    code = add_data(lex,
                    trim_before_tag((struct ew_str){src.ptr + begin, tag - begin}, sign, type == '{', line_starting));
    if (code != EW_OK)
        return code;
    advance(lex, tag - begin + (sign ? 3 : 2));
    if (type == '#')
        return lex_comment(lex);
    return type == '%' && skip_raw_begin(lex) ? lex_raw(lex) : lex_tag(lex, type == '{');
}

// Newlines become \n, and one at the very end is dropped (Jinja's keep_trailing_newline is off).
static bool normalise(struct lexer *lex, struct ew_str source)
{
    char *to = ew_arena_alloc(lex->arena, source.len + 1);
    size_t n = 0;

    if (!to)
        return false;
    for (size_t i = 0; i < source.len; i++) {
        if (source.ptr[i] == '\r' && i + 1 < source.len && source.ptr[i + 1] == '\n')
            continue;
        to[n++] = source.ptr[i] == '\r' ? '\n' : source.ptr[i];
    }
    if (n > 0 && to[n - 1] == '\n')
        n--;
    lex->src = (struct ew_str){to, n};
    return true;
}

int ew_jj_lex(struct ew_arena *arena, struct ew_str source, struct ew_jj_tokens *out, struct ew_error *err)
{
    struct lexer lex = {.arena = arena, .line = 1, .out = out, .err = err};
    int code = EW_OK;

    *out = (struct ew_jj_tokens){0};
    if (!normalise(&lex, source))
        return fail_memory(&lex);
    while (code == EW_OK && lex.at < lex.src.len)
        code = lex_text_and_tag(&lex);
    return code == EW_OK ? add(&lex, EW_JJ_TOK_EOF, (struct ew_str){0}) : code;
}
