// The request parser on its own: every row is read whole and cut after each of its bytes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "server/http.h"

#define H "Host: x\r\n"
#define POST_H "POST /p HTTP/1.1\r\n" H
#define CHUNKED POST_H "Transfer-Encoding: chunked\r\n"

static const struct ew_http_limits g_limits = {256, 512, 64};

struct outcome {
    int status; // 0: accepted
    bool is_whole;
    uint64_t length; // of the body
    char body[65];
    struct ew_http_head head;
};

// What the caller of the parser does, with pieces of this size.
static struct outcome read_in_pieces(struct ew_str text, size_t piece)
{
    struct ew_http_fault fault = {0};
    struct ew_http_chunks chunks = {0};
    struct outcome out = {0};
    size_t scanned = 0, end = 0;

    for (size_t len = 0; len < text.len && !end && !fault.status;) {
        len = EW_MIN(len + piece, text.len);
        end = ew_http_head_end((struct ew_str){text.ptr, len}, &scanned, &g_limits, &fault);
    }
    if (end == 0 || !ew_http_head_parse((struct ew_str){text.ptr, end}, &g_limits, &out.head, &fault)) {
        out.status = fault.status;
        return out;
    }
    out.length = out.head.content_length;
    out.is_whole = !out.head.chunked && text.len - end >= out.length;
    for (size_t at = end, used; out.head.chunked && at < text.len && !out.is_whole; at += used) {
        struct ew_str bytes = {text.ptr + at, EW_MIN(piece, text.len - at)}, data;

        if (!ew_http_chunks_read(&chunks, bytes, &g_limits, &used, &data, &out.is_whole, &fault)) {
            out.status = fault.status;
            return out;
        }
        if (data.len)
            memcpy(out.body + out.length, data.ptr, data.len);
        out.length += data.len;
    }
    return out;
}

static const struct {
    const char *text;
    int status;
    uint64_t length;
} g_rows[] = {
    {"GET / HTTP/1.1\r\n" H "\r\n"},
    {"GET / HTTP/1.0\r\n\r\n"},
    {"GET /a?b=c HTTP/1.1\r\nhOST:x\r\n\r\n"},
    {POST_H "\r\n"},
    {POST_H "Content-Length: 64\r\n\r\n", 0, 64},
    {POST_H "Content-Length: 65\r\n\r\n", 413},
    {POST_H "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400},
    {POST_H "Content-Length: 5, 6\r\n\r\n", 400},
    {POST_H "Content-Length: +5\r\n\r\n", 400},
    {POST_H "Content-Length: 5abc\r\n\r\n", 400},
    {POST_H "Content-Length: 0x5\r\n\r\n", 400},
    {POST_H "Content-Length: -5\r\n\r\n", 400},
    {POST_H "Content-Length:\r\n\r\n", 400},
    {POST_H "Content-Length: 18446744073709551621\r\n\r\n", 400},
    {CHUNKED "Content-Length: 5\r\n\r\n", 400},
    {POST_H "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {CHUNKED "Transfer-Encoding: chunked\r\n\r\n", 400},
    {POST_H "Transfer-Encoding: chunked, gzip\r\n\r\n", 400},
    {POST_H "Transfer-Encoding: chunked,\r\n\r\n", 400},
    {POST_H "Transfer-Encoding: gzip\r\n\r\n", 501},
    {POST_H "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
    {POST_H "Transfer-Encoding:\r\n\r\n", 501},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {CHUNKED "\r\n5;a=b\r\nhello\r\n0\r\nT: x\r\n\r\n", 0, 5},
    {CHUNKED "\r\n2\r\nhe\r\n003\r\nllo\r\n0\r\n\r\n", 0, 5},
    {CHUNKED "\r\n0\r\n\r\n"},
    {CHUNKED "\r\n\r\n", 400},
    {CHUNKED "\r\n5x\r\n", 400},
    {CHUNKED "\r\n-5\r\n", 400},
    {CHUNKED "\r\n0000000000000005\r\n", 400},
    {CHUNKED "\r\n3\r\nhello\r\n", 400},
    {CHUNKED "\r\n41\r\n", 413},
    {CHUNKED "\r\n20\r\n01234567890123456789012345678901\r\n21\r\n", 413},
    {CHUNKED "\r\n5\nhello\r\n", 400},
    {CHUNKED "\r\n0\r\n folded\r\n", 400},
    {"GET / HTTP/1.1\nHost: x\n\n", 400},
    {"GET / HTTP/1.1\r\n" H "A: b\nC: d\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H "A: b\rC: d\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H "A: b\x01\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H "A: b\r\n c\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n " H "\r\n", 400},
    {"GET / HTTP/1.1\r\n" H "A : b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H "A\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H ": b\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n" H H "\r\n", 400},
    {"GET / HTTP/1.2\r\n" H "\r\n", 505},
    {"GET / HTTP/2.0\r\n" H "\r\n", 505},
    {"GET / http/1.1\r\n" H "\r\n", 400},
    {"GET /\r\n" H "\r\n", 400},
    {"GET  / HTTP/1.1\r\n" H "\r\n", 400},
    {"GET x HTTP/1.1\r\n" H "\r\n", 400},
    {"GET /\xc3\xa4 HTTP/1.1\r\n" H "\r\n", 400},
    {"CONNECT a:1 HTTP/1.1\r\n" H "\r\n", 405},
    {"BREW / HTTP/1.1\r\n" H "\r\n", 501},
    {"\x1b[1m / HTTP/1.1\r\n" H "\r\n", 400},
    {POST_H "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", 0, 1},
    {POST_H "Expect: more\r\n\r\n", 417},
};

static void test_table(void **state)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_rows); i++) {
        struct ew_str text = ew_str_of(g_rows[i].text);

        for (size_t piece = 1; piece <= text.len; piece++) {
            struct outcome out = read_in_pieces(text, piece);

            if (out.status != g_rows[i].status || out.length != (out.status ? out.length : g_rows[i].length) ||
                (!out.status && out.head.path.len == 0))
                fail_msg("row %zu in pieces of %zu: status %d, length %llu", i, piece, out.status,
                         (unsigned long long)out.length);
        }
    }
}

static void test_views(void **state)
{
    struct outcome out = read_in_pieces(
        EW_STR("POST http://h/p/q?r=s?t HTTP/1.1\r\nHost: x\r\nX-Key: \t a b \r\nTransfer-Encoding: Chunked\r\n\r\n"
               "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), 1);

    assert_true(out.is_whole && out.head.chunked && out.head.keep_alive);
    assert_string_equal(out.body, "hello");
    assert_true(ew_str_is(out.head.method, "POST") && ew_str_is(out.head.path, "/p/q"));
    assert_true(ew_str_is(out.head.query, "r=s?t"));
    assert_true(ew_str_is(ew_http_header(out.head.headers, "x-key"), "a b"));
    assert_null(ew_http_header(out.head.headers, "x-ke").ptr);
}

static void test_connections(void **state)
{
    static const struct {
        const char *text;
        bool keep_alive;
    } rows[] = {
        {"GET / HTTP/1.1\r\n" H "\r\n", true},
        {"GET / HTTP/1.1\r\n" H "Connection: upgrade, Close\r\n\r\n", false},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true},
        {"GET / HTTP/1.1\r\n" H "Connection: close\r\nConnection: keep-alive\r\n\r\n", false},
    };

    for (size_t i = 0; i < EW_COUNT_OF(rows); i++)
        assert_int_equal(read_in_pieces(ew_str_of(rows[i].text), 1000).head.keep_alive, rows[i].keep_alive);
}

// A head of `bytes` bytes, of which its first line has `line`.
static int status_of_sizes(size_t line, size_t bytes)
{
    char text[2048];
    size_t scanned = 0;
    struct ew_http_fault fault = {0};

    memset(text, 'a', sizeof(text));
    memcpy(text, "GET /", 5);
    memcpy(text + line - 11, " HTTP/1.1\r\nA: ", 14);
    memcpy(text + bytes - 4, "\r\n\r\n", 4);
    ew_http_head_end((struct ew_str){text, bytes}, &scanned, &g_limits, &fault);
    return fault.status;
}

static void test_limits(void **state)
{
    assert_int_equal(status_of_sizes(g_limits.line_bytes, 400), 0);
    assert_int_equal(status_of_sizes(g_limits.line_bytes + 2, 400), 414);
    assert_int_equal(status_of_sizes(100, g_limits.head_bytes), 0);
    assert_int_equal(status_of_sizes(100, g_limits.head_bytes + 2), 431);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_connections),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
