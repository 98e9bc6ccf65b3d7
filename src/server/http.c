#include "server/http.h"

#include <strings.h>

#define METHOD_BYTES_MAX 32
#define CHUNK_LINE_BYTES_MAX 256 // a size with its extensions
#define TRAILER_BYTES_MAX 4096   // of all trailers together
#define CHUNK_DIGITS_MAX 15      // of a size: far above any limit, and no overflow

static bool refuse(struct ew_http_fault *fault, int status, const char *why)
{
    *fault = (struct ew_http_fault){status, why};
    return false;
}

// RFC 9110, 5.6.2.
static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (!is_token_char((unsigned char)text.ptr[i]))
            return false;
    return text.len > 0;
}

static bool equals_any_case(struct ew_str text, const char *lower)
{
    return text.len == strlen(lower) && strncasecmp(text.ptr, lower, text.len) == 0;
}

static struct ew_str trim(struct ew_str text)
{
    while (text.len && (text.ptr[0] == ' ' || text.ptr[0] == '\t')) {
        text.ptr++;
        text.len--;
    }
    while (text.len && (text.ptr[text.len - 1] == ' ' || text.ptr[text.len - 1] == '\t'))
        text.len--;
    return text;
}

// Cuts off everything up to the separator, which is dropped; the rest is empty where there is none.
static struct ew_str cut(struct ew_str *text, const char *separator)
{
    size_t len = strlen(separator);
    ptrdiff_t at = ew_str_find(*text, (struct ew_str){separator, len}, 0);
    struct ew_str first = {text->ptr, at < 0 ? text->len : (size_t)at};

    text->ptr += at < 0 ? text->len : (size_t)at + len;
    text->len -= at < 0 ? text->len : (size_t)at + len;
    return first;
}

// ---- the end of a head --------------------------------------------------------------------------------------------

// A byte that no head may hold at this place.
static bool is_wrong_byte(struct ew_str text, size_t at)
{
    char c = text.ptr[at], before = at ? text.ptr[at - 1] : '\0';

    return c == '\0' || (c == '\n' && before != '\r') || (before == '\r' && c != '\n');
}

size_t ew_http_head_end(struct ew_str text, size_t *scanned, const struct ew_http_limits *limits,
                        struct ew_http_fault *fault)
{
    bool in_first_line = *scanned == 0 || !memchr(text.ptr, '\n', *scanned);

    for (; *scanned < text.len; ++*scanned) {
        size_t at = *scanned;

        if (is_wrong_byte(text, at)) {
            refuse(fault, 400, "the head holds a bare line end, or a zero byte");
            return 0;
        }
        if (text.ptr[at] == '\n') {
            in_first_line = false;
            if (at >= 3 && memcmp(text.ptr + at - 3, "\r\n\r\n", 4) == 0)
                return ++*scanned;
        }
        if (in_first_line && at >= limits->line_bytes) {
            refuse(fault, 414, "the request line is too long");
            return 0;
        }
        if (at >= limits->head_bytes) {
            refuse(fault, 431, "the headers are too long");
            return 0;
        }
    }
    return 0;
}

// ---- the request line ---------------------------------------------------------------------------------------------

static bool parse_version(struct ew_str version, struct ew_http_head *out, struct ew_http_fault *fault)
{
    bool looks_right = version.len == 8 && memcmp(version.ptr, "HTTP/", 5) == 0 && version.ptr[6] == '.' &&
                       version.ptr[5] >= '0' && version.ptr[5] <= '9' && version.ptr[7] >= '0' && version.ptr[7] <= '9';

    if (!looks_right)
        return refuse(fault, 400, "the request line does not end with a version of HTTP");
    if (!ew_str_is(version, "HTTP/1.1") && !ew_str_is(version, "HTTP/1.0"))
        return refuse(fault, 505, "only HTTP 1.1 and 1.0 are spoken here");
    out->is_1_0 = version.ptr[7] == '0';
    return true;
}

static bool is_known_method(struct ew_str method)
{
    static const char *const known[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (ew_str_is(method, known[i]))
            return true;
    return false;
}

static bool parse_target(struct ew_str target, struct ew_http_head *out, struct ew_http_fault *fault)
{
    for (size_t i = 0; i < target.len; i++)
        if ((unsigned char)target.ptr[i] <= ' ' || (unsigned char)target.ptr[i] >= 0x7f)
            return refuse(fault, 400, "the target of the request holds bytes that no URL may hold");
    if (target.len > 7 && strncasecmp(target.ptr, "http://", 7) == 0) { // as sent to proxies; the host does not matter
        const char *slash = memchr(target.ptr + 7, '/', target.len - 7);

        target = slash ? (struct ew_str){slash, target.len - (size_t)(slash - target.ptr)} : EW_STR("/");
    }
    if (target.len == 0 || (target.ptr[0] != '/' && !ew_str_is(target, "*")))
        return refuse(fault, 400, "the target of the request is no path");
    out->path = cut(&target, "?");
    out->query = target;
    return true;
}

static bool parse_request_line(struct ew_str line, struct ew_http_head *out, struct ew_http_fault *fault)
{
    struct ew_str method = cut(&line, " "), target;

    if (!is_token(method) || method.len > METHOD_BYTES_MAX)
        return refuse(fault, 400, "the request does not begin with a method");
    out->method = method;
    target = cut(&line, " ");
    if (!parse_version(line, out, fault))
        return false;
    if (ew_str_is(out->method, "CONNECT") || ew_str_is(out->method, "TRACE"))
        return refuse(fault, 405, "this method is not allowed");
    if (!is_known_method(out->method))
        return refuse(fault, 501, "this method is unknown");
    return parse_target(target, out, fault);
}

// ---- headers ------------------------------------------------------------------------------------------------------

// What the headers that decide about framing said.
struct framing {
    struct ew_http_head *head;
    uint32_t n_length, n_encoding, n_host;
};

static bool parse_length(struct framing *framing, struct ew_str value, struct ew_http_fault *fault)
{
    uint64_t length = 0;

    if (framing->n_length++)
        return refuse(fault, 400, "there are two Content-Length headers");
    if (value.len == 0)
        return refuse(fault, 400, "Content-Length is empty");
    for (size_t i = 0; i < value.len; i++) {
        unsigned digit = (unsigned char)value.ptr[i] - (unsigned)'0';

        if (digit > 9 || __builtin_mul_overflow(length, 10, &length) || __builtin_add_overflow(length, digit, &length))
            return refuse(fault, 400, "Content-Length is no number");
    }
    framing->head->content_length = length;
    return true;
}

static bool parse_encoding(struct framing *framing, struct ew_str value, struct ew_http_fault *fault)
{
    bool is_unknown = false;

    if (framing->n_encoding++)
        return refuse(fault, 400, "there are two Transfer-Encoding headers");
    if (value.len && value.ptr[value.len - 1] == ',')
        return refuse(fault, 400, "chunked is not the last transfer coding");
    do {
        struct ew_str coding = trim(cut(&value, ","));

        if (framing->head->chunked)
            return refuse(fault, 400, "chunked is not the last transfer coding");
        framing->head->chunked = equals_any_case(coding, "chunked");
        is_unknown |= !framing->head->chunked;
    } while (value.len);
    if (is_unknown)
        return refuse(fault, 501, "the only transfer coding that is understood is chunked");
    return true;
}

static void parse_connection(struct ew_http_head *head, struct ew_str value)
{
    while (value.len) {
        struct ew_str option = trim(cut(&value, ","));

        if (equals_any_case(option, "close"))
            head->keep_alive = false;
        else if (equals_any_case(option, "keep-alive") && head->is_1_0)
            head->keep_alive = true;
    }
}

static bool take_header(struct framing *framing, struct ew_str name, struct ew_str value, struct ew_http_fault *fault)
{
    if (equals_any_case(name, "content-length"))
        return parse_length(framing, value, fault);
    if (equals_any_case(name, "transfer-encoding"))
        return parse_encoding(framing, value, fault);
    if (equals_any_case(name, "host"))
        framing->n_host++;
    else if (equals_any_case(name, "connection"))
        parse_connection(framing->head, value);
    else if (equals_any_case(name, "expect")) {
        if (!equals_any_case(value, "100-continue"))
            return refuse(fault, 417, "the only expectation that is understood is 100-continue");
        framing->head->expects_continue = !framing->head->is_1_0;
    }
    return true;
}

static bool is_field_value(struct ew_str value)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char c = (unsigned char)value.ptr[i];

        if ((c < ' ' && c != '\t') || c == 0x7f)
            return false;
    }
    return true;
}

static bool parse_header(struct framing *framing, struct ew_str line, struct ew_http_fault *fault)
{
    struct ew_str name, value = line;

    if (line.ptr[0] == ' ' || line.ptr[0] == '\t')
        return refuse(fault, 400, "a header begins with a space");
    if (!memchr(line.ptr, ':', line.len))
        return refuse(fault, 400, "a header has no colon");
    name = cut(&value, ":");
    if (!is_token(name))
        return refuse(fault, 400, "a header has no proper name");
    value = trim(value);
    if (!is_field_value(value))
        return refuse(fault, 400, "a header holds control characters");
    return take_header(framing, name, value, fault);
}

static bool check_framing(const struct framing *framing, const struct ew_http_limits *limits,
                          struct ew_http_fault *fault)
{
    const struct ew_http_head *head = framing->head;

    if (framing->n_length && framing->n_encoding)
        return refuse(fault, 400, "the request has both Content-Length and Transfer-Encoding");
    if (framing->n_encoding && head->is_1_0)
        return refuse(fault, 400, "HTTP 1.0 has no Transfer-Encoding");
    if (framing->n_host > 1 || (framing->n_host == 0 && !head->is_1_0))
        return refuse(fault, 400, "the request must have one Host header");
    if (head->content_length > limits->body_bytes)
        return refuse(fault, 413, "the body is too large");
    return true;
}

bool ew_http_head_parse(struct ew_str text, const struct ew_http_limits *limits, struct ew_http_head *out,
                        struct ew_http_fault *fault)
{
    struct framing framing = {.head = out};
    struct ew_str rest = {text.ptr, text.len - 2}; // without the empty line
    uint32_t n_headers = 0;

    *out = (struct ew_http_head){0};
    if (!parse_request_line(cut(&rest, "\r\n"), out, fault))
        return false;
    out->keep_alive = !out->is_1_0;
    out->headers = rest;
    while (rest.len) {
        if (++n_headers > EW_HTTP_HEADERS_MAX)
            return refuse(fault, 431, "there are too many headers");
        if (!parse_header(&framing, cut(&rest, "\r\n"), fault))
            return false;
    }
    return check_framing(&framing, limits, fault);
}

struct ew_str ew_http_header(struct ew_str headers, const char *name)
{
    while (headers.len) {
        struct ew_str value = cut(&headers, "\r\n"), this = cut(&value, ":");

        if (equals_any_case(this, name))
            return trim(value);
    }
    return (struct ew_str){0};
}

// ---- chunks -------------------------------------------------------------------------------------------------------

enum chunk_state {
    CHUNK_SIZE,      // hexadecimal digits
    CHUNK_EXTENSION, // up to the end of the line
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_TRAILER, // lines, of which the empty one ends the body
    CHUNK_TRAILER_LF,
};

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool size_is_known(struct ew_http_chunks *chunks, const struct ew_http_limits *limits,
                          struct ew_http_fault *fault)
{
    if (chunks->left > limits->body_bytes || chunks->total > limits->body_bytes - chunks->left)
        return refuse(fault, 413, "the body is too large");
    chunks->total += chunks->left;
    chunks->state = chunks->left ? CHUNK_DATA : CHUNK_TRAILER;
    chunks->digits = chunks->line_bytes = chunks->in_line = 0;
    return true;
}

static bool read_size(struct ew_http_chunks *chunks, char c, struct ew_http_fault *fault)
{
    int digit = hex_digit(c);

    if (digit >= 0 && chunks->digits < CHUNK_DIGITS_MAX) {
        chunks->left = chunks->left * 16 + (uint64_t)digit;
        chunks->digits++;
        return true;
    }
    if (chunks->digits == 0 || digit >= 0)
        return refuse(fault, 400, "a chunk has no proper size");
    if (c != '\r' && c != ';' && c != ' ' && c != '\t')
        return refuse(fault, 400, "a chunk has no proper size");
    chunks->state = c == '\r' ? CHUNK_SIZE_LF : CHUNK_EXTENSION;
    return true;
}

static bool read_extension(struct ew_http_chunks *chunks, char c, struct ew_http_fault *fault)
{
    if (++chunks->line_bytes > CHUNK_LINE_BYTES_MAX)
        return refuse(fault, 400, "the extensions of a chunk are too long");
    if (c == '\r')
        chunks->state = CHUNK_SIZE_LF;
    else if (((unsigned char)c < ' ' && c != '\t') || c == 0x7f)
        return refuse(fault, 400, "the extensions of a chunk hold control characters");
    return true;
}

// Trailers are read over; nobody here wants one.
static bool read_trailer(struct ew_http_chunks *chunks, char c, struct ew_http_fault *fault)
{
    if (++chunks->line_bytes > TRAILER_BYTES_MAX)
        return refuse(fault, 431, "the trailers are too long");
    if (c == '\r') {
        chunks->state = CHUNK_TRAILER_LF;
        return true;
    }
    if (((unsigned char)c < ' ' && c != '\t') || c == 0x7f ||
        (chunks->in_line == 0 && !is_token_char((unsigned char)c)))
        return refuse(fault, 400, "a trailer is no header");
    chunks->in_line++;
    return true;
}

static bool read_control(struct ew_http_chunks *chunks, char c, const struct ew_http_limits *limits, bool *done,
                         struct ew_http_fault *fault)
{
    bool is_lf_state = chunks->state == CHUNK_SIZE_LF || chunks->state == CHUNK_DATA_LF ||
                       chunks->state == CHUNK_TRAILER_LF;

    if ((is_lf_state && c != '\n') || (chunks->state == CHUNK_DATA_CR && c != '\r'))
        return refuse(fault, 400, "a chunk does not end where its size says");
    switch ((enum chunk_state)chunks->state) {
    case CHUNK_SIZE:
        return read_size(chunks, c, fault);
    case CHUNK_EXTENSION:
        return read_extension(chunks, c, fault);
    case CHUNK_SIZE_LF:
        return size_is_known(chunks, limits, fault);
    case CHUNK_DATA_CR:
        chunks->state = CHUNK_DATA_LF;
        return true;
    case CHUNK_DATA_LF:
        chunks->state = CHUNK_SIZE;
        return true;
    case CHUNK_TRAILER:
        return read_trailer(chunks, c, fault);
    case CHUNK_TRAILER_LF:
        *done = chunks->in_line == 0;
        chunks->in_line = 0;
        chunks->state = CHUNK_TRAILER;
        return true;
    case CHUNK_DATA:
        break;
    }
    return true;
}

bool ew_http_chunks_read(struct ew_http_chunks *chunks, struct ew_str bytes, const struct ew_http_limits *limits,
                         size_t *used, struct ew_str *data, bool *done, struct ew_http_fault *fault)
{
    size_t at = 0;

    *done = false;
    *data = (struct ew_str){0};
    while (at < bytes.len && chunks->state != CHUNK_DATA && !*done)
        if (!read_control(chunks, bytes.ptr[at++], limits, done, fault))
            return false;
    if (chunks->state == CHUNK_DATA) {
        size_t n = chunks->left < bytes.len - at ? (size_t)chunks->left : bytes.len - at;

        *data = (struct ew_str){bytes.ptr + at, n};
        at += n;
        chunks->left -= n;
        if (chunks->left == 0)
            chunks->state = CHUNK_DATA_CR;
    }
    *used = at;
    return true;
}

const char *ew_http_reason(int status)
{
    static const struct {
        int status;
        const char *reason;
    } reasons[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };

    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return status < 400 ? "OK" : status < 500 ? "Client Error" : "Server Error";
}
