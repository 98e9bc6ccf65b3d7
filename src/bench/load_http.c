// HTTP replies. The rules are those of RFC 9112, sections 4 to 7, without what only old servers need: no line folding,
// no bare line feeds, no reply with two lengths.

#include "bench/load_http.h"

#include <strings.h>

#define CHUNK_DIGITS_MAX 15 // hexadecimal digits of a chunk's size: below 2^60

void ew_reply_init(struct ew_reply *reply)
{
    reply->state = EW_REPLY_STATUS;
    reply->status = 0;
    reply->keep_alive = reply->event_stream = false;
    reply->retry_after = 0;
    reply->chunked = reply->has_length = false;
    reply->left = 0;
    reply->n_head = reply->n_line = 0;
}

static int malformed(struct ew_error *err, const char *what)
{
    return ew_fail(err, EW_ERR_FORMAT, "the reply is not HTTP: %s", what);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// "HTTP/1.1 200 OK"; the reason may be absent, with or without the space before it.
static int read_status(struct ew_reply *reply, struct ew_str line, struct ew_error *err)
{
    if (line.len < 12 || memcmp(line.ptr, "HTTP/1.", 7) != 0 || !is_digit(line.ptr[7]) || line.ptr[8] != ' ' ||
        !is_digit(line.ptr[9]) || !is_digit(line.ptr[10]) || !is_digit(line.ptr[11]) ||
        (line.len > 12 && line.ptr[12] != ' '))
        return malformed(err, "its first line is no status line");
    reply->status = (line.ptr[9] - '0') * 100 + (line.ptr[10] - '0') * 10 + (line.ptr[11] - '0');
    if (reply->status < 100)
        return malformed(err, "its status is below 100");
    reply->keep_alive = line.ptr[7] != '0';
    reply->state = EW_REPLY_HEADERS;
    return EW_OK;
}

static bool is_name(struct ew_str name, const char *other)
{
    return name.len == strlen(other) && strncasecmp(name.ptr, other, name.len) == 0;
}

static bool is_name_char(unsigned char c)
{
    return c > ' ' && c < 0x7f && !strchr("\"(),/:;<=>?@[\\]{}", c);
}

static struct ew_str trim(struct ew_str text)
{
    for (; text.len && (text.ptr[0] == ' ' || text.ptr[0] == '\t'); text.ptr++)
        text.len--;
    while (text.len && (text.ptr[text.len - 1] == ' ' || text.ptr[text.len - 1] == '\t'))
        text.len--;
    return text;
}

// Whether a comma-separated list of words has this one.
static bool list_has(struct ew_str list, const char *word)
{
    while (list.len) {
        const char *comma = memchr(list.ptr, ',', list.len);
        size_t len = comma ? (size_t)(comma - list.ptr) : list.len;

        if (is_name(trim((struct ew_str){list.ptr, len}), word))
            return true;
        list.ptr += comma ? len + 1 : len;
        list.len -= comma ? len + 1 : len;
    }
    return false;
}

static int read_length(struct ew_reply *reply, struct ew_str value, struct ew_error *err)
{
    uint64_t length;

    for (size_t i = 0; i < value.len; i++)
        if (!is_digit(value.ptr[i]))
            return malformed(err, "Content-Length is no number");
    if (!ew_str_to_u64(value, &length))
        return malformed(err, "Content-Length is no number");
    if (reply->has_length)
        return malformed(err, "it has two Content-Lengths");
    reply->has_length = true;
    reply->left = length;
    return EW_OK;
}

static int read_header(struct ew_reply *reply, struct ew_str line, struct ew_error *err)
{
    const char *colon = memchr(line.ptr, ':', line.len);
    struct ew_str name, value;
    uint64_t seconds;

    if (!colon || colon == line.ptr)
        return malformed(err, "a header line has no name");
    name = (struct ew_str){line.ptr, (size_t)(colon - line.ptr)};
    value = trim((struct ew_str){colon + 1, line.len - name.len - 1});
    for (size_t i = 0; i < name.len; i++)
        if (!is_name_char((unsigned char)name.ptr[i]))
            return malformed(err, "a header name has a character that names cannot have");
    if (is_name(name, "content-length"))
        return read_length(reply, value, err);
    if (is_name(name, "transfer-encoding")) {
        if (reply->chunked || !is_name(value, "chunked"))
            return malformed(err, "Transfer-Encoding is something else than chunked");
        reply->chunked = true;
    } else if (is_name(name, "connection")) {
        reply->keep_alive = list_has(value, "keep-alive") || (reply->keep_alive && !list_has(value, "close"));
    } else if (is_name(name, "content-type")) {
        reply->event_stream = value.len >= 17 && strncasecmp(value.ptr, "text/event-stream", 17) == 0;
    } else if (is_name(name, "retry-after") && ew_str_to_u64(value, &seconds)) {
        reply->retry_after = seconds < 3600 ? (uint32_t)seconds : 3600;
    }
    return EW_OK;
}

static int end_headers(struct ew_reply *reply, struct ew_error *err)
{
    if (reply->chunked && reply->has_length)
        return malformed(err, "it has a Content-Length and a Transfer-Encoding");
    if (reply->status < 200) { // 100 Continue: the real one follows
        if (reply->status == 101)
            return malformed(err, "it switches the protocol, which nobody asked for");
        ew_reply_init(reply);
    } else if (reply->status == 204 || reply->status == 304) {
        reply->state = EW_REPLY_DONE;
    } else if (reply->chunked) {
        reply->state = EW_REPLY_CHUNK_SIZE;
    } else if (reply->has_length) {
        reply->state = reply->left ? EW_REPLY_BODY_LENGTH : EW_REPLY_DONE;
    } else {
        reply->state = EW_REPLY_BODY_CLOSE;
        reply->keep_alive = false;
    }
    return EW_OK;
}

// "1a2b", perhaps with extensions behind a semicolon, which mean nothing to us.
static int read_chunk_size(struct ew_reply *reply, struct ew_str line, struct ew_error *err)
{
    uint64_t size = 0;
    size_t n = 0;

    for (; n < line.len; n++) {
        char c = line.ptr[n], low = (char)(c | 0x20);

        if (is_digit(c))
            size = size * 16 + (uint64_t)(c - '0');
        else if (low >= 'a' && low <= 'f')
            size = size * 16 + (uint64_t)(low - 'a' + 10);
        else
            break;
        if (n >= CHUNK_DIGITS_MAX)
            return malformed(err, "a chunk is larger than any body");
    }
    if (n == 0 || (n < line.len && line.ptr[n] != ';' && line.ptr[n] != ' ' && line.ptr[n] != '\t'))
        return malformed(err, "a chunk has no size");
    reply->left = size;
    reply->state = size ? EW_REPLY_CHUNK_DATA : EW_REPLY_TRAILERS;
    return EW_OK;
}

static int read_line(struct ew_reply *reply, struct ew_str line, struct ew_error *err)
{
    switch (reply->state) {
    case EW_REPLY_STATUS:
        return read_status(reply, line, err);
    case EW_REPLY_HEADERS:
        return line.len ? read_header(reply, line, err) : end_headers(reply, err);
    case EW_REPLY_CHUNK_SIZE:
        return read_chunk_size(reply, line, err);
    case EW_REPLY_CHUNK_END:
        reply->state = EW_REPLY_CHUNK_SIZE;
        return line.len ? malformed(err, "a chunk is longer than its size") : EW_OK;
    default: // trailers: read past
        if (line.len == 0)
            reply->state = EW_REPLY_DONE;
        return EW_OK;
    }
}

// Takes bytes up to the end of the line, which is kept in reply->line until it is whole.
static ptrdiff_t take_line(struct ew_reply *reply, const char *bytes, size_t len, struct ew_error *err)
{
    const char *end = memchr(bytes, '\n', len);
    size_t n = end ? (size_t)(end - bytes) + 1 : len;
    bool head = reply->state == EW_REPLY_STATUS || reply->state == EW_REPLY_HEADERS ||
                reply->state == EW_REPLY_TRAILERS;
    struct ew_str line;
    int rc;

    if (n > EW_REPLY_LINE_MAX - reply->n_line || (head && n > EW_REPLY_HEAD_MAX - reply->n_head))
        return ew_fail(err, EW_ERR_LIMIT, "the reply has a longer %s than %u bytes",
                       n > EW_REPLY_LINE_MAX - reply->n_line ? "line" : "head",
                       n > EW_REPLY_LINE_MAX - reply->n_line ? EW_REPLY_LINE_MAX : EW_REPLY_HEAD_MAX);
    memcpy(reply->line + reply->n_line, bytes, n);
    reply->n_line += (uint32_t)n;
    if (head)
        reply->n_head += (uint32_t)n;
    if (!end)
        return (ptrdiff_t)n;
    line = (struct ew_str){reply->line, reply->n_line};
    if (line.len < 2 || line.ptr[line.len - 2] != '\r')
        return malformed(err, "a line ends without a carriage return");
    line.len -= 2;
    if (memchr(line.ptr, '\r', line.len) || memchr(line.ptr, '\0', line.len))
        return malformed(err, "a line has a control character");
    reply->n_line = 0;
    rc = read_line(reply, line, err);
    return rc < 0 ? rc : (ptrdiff_t)n;
}

ptrdiff_t ew_reply_feed(struct ew_reply *reply, const char *bytes, size_t len, struct ew_str *body,
                        struct ew_error *err)
{
    size_t at = 0;

    *body = (struct ew_str){0};
    while (at < len && reply->state != EW_REPLY_DONE) {
        bool closing = reply->state == EW_REPLY_BODY_CLOSE;
        ptrdiff_t n;

        if (closing || reply->state == EW_REPLY_BODY_LENGTH || reply->state == EW_REPLY_CHUNK_DATA) {
            size_t take = closing || reply->left > len - at ? len - at : (size_t)reply->left;

            *body = (struct ew_str){bytes + at, take};
            if (!closing && (reply->left -= take) == 0)
                reply->state = reply->chunked ? EW_REPLY_CHUNK_END : EW_REPLY_DONE;
            return (ptrdiff_t)(at + take);
        }
        n = take_line(reply, bytes + at, len - at, err);
        if (n < 0)
            return n;
        at += (size_t)n;
    }
    return (ptrdiff_t)at;
}

int ew_reply_eof(struct ew_reply *reply, struct ew_error *err)
{
    if (reply->state == EW_REPLY_BODY_CLOSE)
        reply->state = EW_REPLY_DONE;
    if (reply->state == EW_REPLY_DONE)
        return EW_OK;
    return ew_fail(err, EW_ERR_IO, "the server closed the connection %s",
                   reply->state == EW_REPLY_STATUS && reply->n_line == 0 ? "without a reply" : "within its reply");
}
