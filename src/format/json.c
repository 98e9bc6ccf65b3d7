#include "format/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/utf8.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "plain_run counts bytes from the low end of a word");

enum state {
    AT_VALUE,       // of the document, or after a key and its colon
    AT_FIRST_ITEM,  // after '['
    AT_FIRST_KEY,   // after '{'
    AFTER_VALUE,
    FAILED,
};

void ew_json_reader_init(struct ew_json_reader *reader, struct ew_str input)
{
    *reader = (struct ew_json_reader){.input = input, .state = AT_VALUE};
    ew_buf_init(&reader->scratch, input.len); // no escape sequence is shorter than what it stands for
    if (ew_str_starts(input, "\xEF\xBB\xBF"))
        reader->at = 3;
}

void ew_json_reader_fini(struct ew_json_reader *reader)
{
    ew_buf_fini(&reader->scratch);
}

static int fail_at(struct ew_json_reader *r, size_t at, struct ew_error *err, int code, const char *what)
{
    size_t line = 1, column = 1;

    r->state = FAILED;
    for (size_t i = 0; i < at && err; i++) {
        unsigned char c = (unsigned char)r->input.ptr[i];

        if (c == '\n') {
            line++;
            column = 1;
        } else if ((c & 0xC0) != 0x80) {
            column++;
        }
    }
    return ew_fail(err, code, "line %zu column %zu: %s", line, column, what);
}

static int bad(struct ew_json_reader *r, size_t at, struct ew_error *err, const char *what)
{
    return fail_at(r, at, err, EW_ERR_FORMAT, what);
}

static int byte_at(const struct ew_json_reader *r, size_t at)
{
    return at < r->input.len ? (unsigned char)r->input.ptr[at] : -1;
}

// The first byte that is no white space, or -1 at the end of the input.
static int next_byte(struct ew_json_reader *r)
{
    for (; r->at < r->input.len; r->at++) {
        unsigned char c = (unsigned char)r->input.ptr[r->at];

        if (c > ' ' || (c != ' ' && c != '\n' && c != '\r' && c != '\t'))
            return c;
    }
    return -1;
}

static bool in_object(const struct ew_json_reader *r)
{
    return r->stack[(r->depth - 1) / 8] >> (r->depth - 1) % 8 & 1;
}

static int open_container(struct ew_json_reader *r, bool object, struct ew_error *err)
{
    uint8_t bit = (uint8_t)(1u << r->depth % 8);

    if (r->depth == EW_JSON_DEPTH_MAX)
        return fail_at(r, r->at, err, EW_ERR_LIMIT, "arrays and objects are nested too deep");
    if (object)
        r->stack[r->depth / 8] |= bit;
    else
        r->stack[r->depth / 8] &= (uint8_t)~bit;
    r->depth++;
    r->at++;
    r->state = object ? AT_FIRST_KEY : AT_FIRST_ITEM;
    return object ? EW_JSON_OBJECT_BEGIN : EW_JSON_ARRAY_BEGIN;
}

static int close_container(struct ew_json_reader *r)
{
    int event = in_object(r) ? EW_JSON_OBJECT_END : EW_JSON_ARRAY_END;

    r->start = r->at++;
    r->depth--;
    r->state = AFTER_VALUE;
    return event;
}

static int read_word(struct ew_json_reader *r, const char *word, int event, struct ew_error *err)
{
    size_t len = strlen(word);

    if (r->input.len - r->at < len || memcmp(r->input.ptr + r->at, word, len) != 0)
        return bad(r, r->at, err, "expected a value");
    r->at += len;
    r->text = (struct ew_str){r->input.ptr + r->start, len};
    r->state = AFTER_VALUE;
    return event;
}

static int read_special_number(struct ew_json_reader *r, const char *word, double value, struct ew_error *err)
{
    r->is_integer = false;
    r->number = value;
    return read_word(r, word, EW_JSON_NUMBER, err);
}

#define ONES 0x0101010101010101u // times a byte: that byte in all eight places
#define TOPS 0x8080808080808080u

// The top bit of every byte of x below n (at most 128) is set in the result. Bytes above a hit may be marked
// wrongly, so only the lowest mark counts.
static inline uint64_t bytes_below(uint64_t x, uint64_t n)
{
    return (x - ONES * n) & ~x & TOPS;
}

// Offset of the first byte at or after `at` that is a quote, a backslash, a control character or not ASCII; len
// if none is.
static size_t plain_run(const char *text, size_t at, size_t len)
{
    for (; len - at >= 8; at += 8) {
        uint64_t word, hits;

        memcpy(&word, text + at, 8);
        hits = bytes_below(word ^ ONES * '"', 1) | bytes_below(word ^ ONES * '\\', 1) | bytes_below(word, 0x20) |
               (word & TOPS);
        if (hits)
            return at + (size_t)__builtin_ctzll(hits) / 8;
    }
    for (; at < len; at++) {
        unsigned char c = (unsigned char)text[at];

        if (c < 0x20 || c >= 0x80 || c == '"' || c == '\\')
            break;
    }
    return at;
}

// Moves *at to the quote or backslash that ends the plain part of a string.
static int pass_plain(struct ew_json_reader *r, size_t *at, struct ew_error *err)
{
    for (;;) {
        size_t i = plain_run(r->input.ptr, *at, r->input.len), char_len;
        int c = byte_at(r, i);
        uint32_t ignored;

        *at = i;
        if (c == '"' || c == '\\')
            return EW_OK;
        if (c < 0)
            return bad(r, r->start, err, "the string that begins here has no end");
        if (c < 0x20)
            return bad(r, i, err, "a control character stands in a string without an escape");
        char_len = ew_utf8_decode(r->input.ptr + i, r->input.len - i, &ignored);
        if (char_len == 0)
            return bad(r, i, err, "the bytes are not UTF-8");
        *at = i + char_len;
    }
}

static int hex_digit(int c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The code unit of "\uXXXX" at `at`, or -1.
static int32_t code_unit(const struct ew_json_reader *r, size_t at)
{
    int32_t unit = 0;

    if (byte_at(r, at) != '\\' || byte_at(r, at + 1) != 'u')
        return -1;
    for (size_t i = 2; i < 6; i++) {
        int digit = hex_digit(byte_at(r, at + i));

        if (digit < 0)
            return -1;
        unit = unit << 4 | digit;
    }
    return unit;
}

static void append_code_point(struct ew_buf *buf, uint32_t c)
{
    char bytes[4];
    size_t len;

    if (c >= 0xD800 && c <= 0xDFFF) { // the general form of three bytes, which ew_utf8_encode refuses for surrogates
        bytes[0] = (char)0xED;
        bytes[1] = (char)(0x80 | (c >> 6 & 0x3F));
        bytes[2] = (char)(0x80 | (c & 0x3F));
        len = 3;
    } else {
        len = ew_utf8_encode(c, bytes);
    }
    ew_buf_append(buf, bytes, len);
}

static int append_unicode_escape(struct ew_json_reader *r, size_t *at, struct ew_error *err)
{
    int32_t unit = code_unit(r, *at), low;
    uint32_t c = (uint32_t)unit;

    if (unit < 0)
        return bad(r, *at, err, "\\u is not followed by four hexadecimal digits");
    *at += 6;
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        low = code_unit(r, *at);
        if (low >= 0xDC00 && low <= 0xDFFF) {
            c = 0x10000u + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(low - 0xDC00);
            *at += 6;
        }
    }
    append_code_point(&r->scratch, c);
    return EW_OK;
}

static int append_escape(struct ew_json_reader *r, size_t *at, struct ew_error *err)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    int letter = byte_at(r, *at + 1);
    const char *hit = letter > 0 ? strchr(letters, letter) : NULL;

    if (letter == 'u')
        return append_unicode_escape(r, at, err);
    if (!hit)
        return bad(r, *at, err, "the escape sequence is unknown");
    ew_buf_append_char(&r->scratch, meanings[hit - letters]);
    *at += 2;
    return EW_OK;
}

// The rest of a string from its first backslash on; *at ends at the closing quote.
static int read_escaped(struct ew_json_reader *r, size_t *at, struct ew_error *err)
{
    size_t run = r->start + 1;
    int code;

    ew_buf_reset(&r->scratch);
    for (;;) {
        ew_buf_append(&r->scratch, r->input.ptr + run, *at - run);
        if (r->input.ptr[*at] == '"')
            break;
        code = append_escape(r, at, err);
        if (code != EW_OK)
            return code;
        run = *at;
        code = pass_plain(r, at, err);
        if (code != EW_OK)
            return code;
    }
    if (!ew_buf_ok(&r->scratch))
        return fail_at(r, r->start, err, EW_ERR_MEMORY, "there is not enough memory for the string");
    r->text = ew_buf_str(&r->scratch);
    return EW_OK;
}

static int read_string(struct ew_json_reader *r, int event, struct ew_error *err)
{
    size_t at = r->start + 1;
    int code = pass_plain(r, &at, err);

    if (code != EW_OK)
        return code;
    if (r->input.ptr[at] == '"')
        r->text = (struct ew_str){r->input.ptr + r->start + 1, at - r->start - 1};
    else if ((code = read_escaped(r, &at, err)) != EW_OK)
        return code;
    r->at = at + 1;
    r->state = AFTER_VALUE;
    return event;
}

static size_t pass_digits(const struct ew_json_reader *r, size_t at)
{
    while (at < r->input.len && (unsigned char)(r->input.ptr[at] - '0') <= 9)
        at++;
    return at;
}

// Exact for at most 15 digits and powers of ten up to 22, which are doubles themselves: one correctly rounded
// operation (Clinger, "How to read floating point numbers accurately", 1990). Unigram vocabularies hold 250,000
// such scores.
static bool short_decimal(struct ew_str text, double *out)
{
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    bool minus = text.ptr[0] == '-';
    size_t i = minus, digits = 0, fraction = 0;
    uint64_t mantissa = 0;

    for (bool point = false; i < text.len; i++) {
        if (text.ptr[i] == '.') {
            point = true;
            continue;
        }
        if (text.ptr[i] < '0' || ++digits > 15)
            return false;
        if (text.ptr[i] > '9') // an exponent
            return false;
        mantissa = mantissa * 10 + (uint64_t)(text.ptr[i] - '0');
        fraction += point;
    }
    *out = (double)mantissa / powers[fraction];
    if (minus)
        *out = -*out;
    return true;
}

// Any length: like Python, past the largest double it is an infinity.
static int long_decimal(struct ew_json_reader *r, struct ew_error *err)
{
    ew_buf_reset(&r->scratch);
    ew_buf_append_str(&r->scratch, r->text);
    if (!ew_buf_ok(&r->scratch))
        return fail_at(r, r->start, err, EW_ERR_MEMORY, "there is not enough memory for the number");
    r->number = strtod(r->scratch.ptr, NULL);
    return EW_OK;
}

// Finds the end of the number at r->start; *whole tells that it has neither fraction nor exponent.
static int pass_number(struct ew_json_reader *r, size_t *end, bool *whole, struct ew_error *err)
{
    size_t first = r->start + (r->input.ptr[r->start] == '-'), at = pass_digits(r, first), digits;

    if (at == first)
        return bad(r, r->start, err, "a minus sign is not followed by a number");
    if (r->input.ptr[first] == '0' && at > first + 1)
        return bad(r, r->start, err, "a number begins with a superfluous zero");
    *whole = true;
    if (byte_at(r, at) == '.') {
        *whole = false;
        digits = at + 1;
        at = pass_digits(r, digits);
        if (at == digits)
            return bad(r, at, err, "the point of a number is not followed by a digit");
    }
    if (byte_at(r, at) == 'e' || byte_at(r, at) == 'E') {
        *whole = false;
        digits = at + 1 + (byte_at(r, at + 1) == '+' || byte_at(r, at + 1) == '-');
        at = pass_digits(r, digits);
        if (at == digits)
            return bad(r, at, err, "the exponent of a number has no digits");
    }
    *end = at;
    return EW_OK;
}

static int read_number(struct ew_json_reader *r, struct ew_error *err)
{
    bool whole = false;
    size_t end = r->start;
    int code;

    if (byte_at(r, r->at) == '-' && byte_at(r, r->at + 1) == 'I')
        return read_special_number(r, "-Infinity", -INFINITY, err);
    code = pass_number(r, &end, &whole, err);
    if (code != EW_OK)
        return code;
    r->text = (struct ew_str){r->input.ptr + r->start, end - r->start};
    r->is_integer = whole && ew_str_to_i64(r->text, &r->integer);
    if (r->is_integer)
        r->number = (double)r->integer;
    else if (!short_decimal(r->text, &r->number) && (code = long_decimal(r, err)) != EW_OK)
        return code;
    r->at = end;
    r->state = AFTER_VALUE;
    return EW_JSON_NUMBER;
}

static int read_value(struct ew_json_reader *r, struct ew_error *err)
{
    int c = next_byte(r);

    r->start = r->at;
    switch (c) {
    case '{': return open_container(r, true, err);
    case '[': return open_container(r, false, err);
    case '"': return read_string(r, EW_JSON_STRING, err);
    case 't': return read_word(r, "true", EW_JSON_TRUE, err);
    case 'f': return read_word(r, "false", EW_JSON_FALSE, err);
    case 'n': return read_word(r, "null", EW_JSON_NULL, err);
    case 'N': return read_special_number(r, "NaN", NAN, err);
    case 'I': return read_special_number(r, "Infinity", INFINITY, err);
    case -1: return bad(r, r->at, err, "the document ends where a value should stand");
    default:
        if (c == '-' || (c >= '0' && c <= '9'))
            return read_number(r, err);
        return bad(r, r->at, err, "expected a value");
    }
}

static int read_key(struct ew_json_reader *r, struct ew_error *err)
{
    int code;

    if (next_byte(r) != '"')
        return bad(r, r->at, err, "expected a key in double quotes");
    r->start = r->at;
    code = read_string(r, EW_JSON_KEY, err);
    if (code < 0)
        return code;
    if (next_byte(r) != ':')
        return bad(r, r->at, err, "expected ':' after a key");
    r->at++;
    r->state = AT_VALUE;
    return code;
}

static int read_after_value(struct ew_json_reader *r, struct ew_error *err)
{
    int c = next_byte(r);
    bool object;

    if (r->depth == 0) {
        r->start = r->at;
        return c < 0 ? EW_JSON_END : bad(r, r->at, err, "more text follows the end of the document");
    }
    object = in_object(r);
    if (c == (object ? '}' : ']'))
        return close_container(r);
    if (c != ',')
        return bad(r, r->at, err,
                   object ? "expected ',' or '}' after a member" : "expected ',' or ']' after an element");
    r->at++;
    return object ? read_key(r, err) : read_value(r, err);
}

int ew_json_next(struct ew_json_reader *r, struct ew_error *err)
{
    switch (r->state) {
    case AT_VALUE: return read_value(r, err);
    case AT_FIRST_ITEM: return next_byte(r) == ']' ? close_container(r) : read_value(r, err);
    case AT_FIRST_KEY: return next_byte(r) == '}' ? close_container(r) : read_key(r, err);
    case AFTER_VALUE: return read_after_value(r, err);
    default: return ew_fail(err, EW_ERR_FORMAT, "the document was found to be malformed before");
    }
}

int ew_json_leave(struct ew_json_reader *r, struct ew_error *err)
{
    uint32_t outside;

    EW_ASSERT(r->depth > 0);
    for (outside = r->depth - 1; r->depth > outside;) {
        int event = ew_json_next(r, err);

        if (event < 0)
            return event;
    }
    return EW_OK;
}

int ew_json_skip(struct ew_json_reader *r, struct ew_error *err)
{
    int event = ew_json_next(r, err);

    switch (event) {
    case EW_JSON_OBJECT_BEGIN:
    case EW_JSON_ARRAY_BEGIN:
        return ew_json_leave(r, err);
    case EW_JSON_END:
    case EW_JSON_OBJECT_END:
    case EW_JSON_ARRAY_END:
        return bad(r, r->start, err, "expected a value");
    default:
        return event < 0 ? event : EW_OK;
    }
}
