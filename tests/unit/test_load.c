// The parts of bench load that need no server. Reading of replies is in tests/fuzz too, against itself in other cuts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "base/buf.h"
#include "bench/load_client.h"
#include "bench/load_samples.h"
#include "bench/load_words.h"

static struct ew_str read_reply(struct ew_reply *reply, const char *text, int *rc, struct ew_buf *body)
{
    struct ew_error err;
    size_t len = strlen(text), at = 0;

    ew_reply_init(reply);
    ew_buf_reset(body);
    *rc = 0;
    while (at < len && *rc == 0 && reply->state != EW_REPLY_DONE) {
        struct ew_str part;
        ptrdiff_t n = ew_reply_feed(reply, text + at, len - at, &part, &err);

        *rc = n < 0 ? (int)n : 0;
        at += n < 0 ? 0 : (size_t)n;
        if (n >= 0)
            ew_buf_append_str(body, part);
    }
    if (*rc == 0)
        *rc = ew_reply_eof(reply, &err);
    return (struct ew_str){text + at, len - at};
}

static void test_replies(void **state)
{
    static const struct {
        const char *text, *body;
        int rc, status;
        bool keep_alive;
    } cases[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "hi", 0, 200, true},
        {"HTTP/1.1 200\r\nContent-Length: 0\r\nConnection: foo , Close\r\n\r\n", "", 0, 200, false},
        {"HTTP/1.0 200 OK\r\n\r\nto the end", "to the end", 0, 200, false},
        {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", "x", 0, 200, true},
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", 0, 204, true},
        {"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nt: 1\r\n\r\n",
         "abc0123456789", 0, 200, true},
        {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", "hi", EW_ERR_IO, 200, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "hi", EW_ERR_IO, 200, true},
        {"", "", EW_ERR_IO, 0, false},
        {"HTTP/2 200\r\n\r\n", "", EW_ERR_FORMAT, 0, false},
        {"HTTP/1.1 2x0 OK\r\n\r\n", "", EW_ERR_FORMAT, 0, false},
        {"HTTP/1.1 200 OK\n\n", "", EW_ERR_FORMAT, 0, false},
        {"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nname : x\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\n folded\r\n\r\n", "", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n", "h", EW_ERR_FORMAT, 200, true},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000000\r\n", "", EW_ERR_FORMAT, 200, true},
    };
    struct ew_buf body;

    ew_buf_init(&body, 4096);
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct ew_reply reply;
        int rc;

        read_reply(&reply, cases[i].text, &rc, &body);
        if (rc != cases[i].rc || reply.status != cases[i].status)
            print_message("case %zu: %s\n", i, cases[i].text);
        assert_int_equal(rc, cases[i].rc);
        assert_int_equal(reply.status, cases[i].status);
        assert_true(ew_str_eq(ew_buf_str(&body), ew_str_of(cases[i].body)));
        if (rc == 0)
            assert_int_equal(reply.keep_alive, cases[i].keep_alive);
    }
    ew_buf_fini(&body);
}

static void test_reply_ends(void **state)
{
    struct ew_reply reply;
    struct ew_buf body;
    struct ew_str rest;
    int rc;

    ew_buf_init(&body, 4096);
    rest = read_reply(&reply, "HTTP/1.1 429 Busy\r\nRetry-After: 7\r\nContent-Length: 1\r\n\r\nxHTTP", &rc, &body);
    assert_int_equal(rc, 0);
    assert_int_equal(reply.retry_after, 7);
    assert_true(ew_str_is(rest, "HTTP"));
    ew_buf_fini(&body);
}

static void test_reply_bounds(void **state)
{
    static const char head[] = "HTTP/1.1 200 OK\r\n",
                      line[] = "x-padding: 0123456789012345678901234567890123456789\r\n";
    struct ew_reply reply;
    struct ew_error err;
    struct ew_str body;
    ptrdiff_t n;
    size_t total = 0;

    ew_reply_init(&reply);
    n = ew_reply_feed(&reply, head, sizeof(head) - 1, &body, &err);
    assert_int_equal(n, sizeof(head) - 1);
    while ((n = ew_reply_feed(&reply, line, sizeof(line) - 1, &body, &err)) > 0)
        assert_true((total += (size_t)n) <= EW_REPLY_HEAD_MAX);
    assert_int_equal(n, EW_ERR_LIMIT);
    ew_reply_init(&reply);
    for (total = 0; (n = ew_reply_feed(&reply, "HHHHHHHHHHHHHHHH", 16, &body, &err)) > 0; total += 16)
        assert_true(total <= EW_REPLY_LINE_MAX);
    assert_int_equal(n, EW_ERR_LIMIT);
}

static void test_events(void **state)
{
    static const char stream[] = "\xEF\xBB\xBF"
                                 "data: a\n\ndata:b\r\ndata:  c\r\n\r\n: nothing\r\revent: x\r\r"
                                 "id: 1\ndata\n\ndatabase: no\n\ndata: unfinished";
    static const char *const want[] = {"a", "b\n c", ""};
    struct ew_sse sse;
    struct ew_error err;
    size_t at = 0, n_events = 0;

    ew_sse_init(&sse);
    while (at < sizeof(stream) - 1) {
        struct ew_str data;
        bool event;
        ptrdiff_t n = ew_sse_feed(&sse, stream + at, sizeof(stream) - 1 - at, &event, &data, &err);

        assert_true(n > 0);
        at += (size_t)n;
        if (!event)
            continue;
        assert_true(n_events < 3);
        assert_true(ew_str_eq(data, ew_str_of(want[n_events++])));
    }
    assert_int_equal(n_events, 3);
    ew_sse_fini(&sse);
}

static void test_answers(void **state)
{
    struct ew_load_answer answer;
    struct ew_arena arena;
    struct ew_error err;

    ew_arena_init(&arena, 1 << 20);
    assert_int_equal(ew_load_answer_parse(&arena,
                                          EW_STR("{\"choices\":[{\"text\":\"x\",\"finish_reason\":\"stop\"}],"
                                                 "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":-1}}"),
                                          &answer, &err),
                     0);
    assert_true(answer.has_text && answer.finished && ew_str_is(answer.text[1], "x"));
    assert_int_equal(answer.prompt_tokens, 5);
    assert_int_equal(answer.completion_tokens, -1);
    assert_int_equal(ew_load_answer_parse(&arena, EW_STR("{\"error\":{\"message\":\"no\"}}"), &answer, &err), 0);
    assert_true(ew_str_is(answer.error, "no"));
    assert_int_equal(ew_load_answer_parse(&arena, EW_STR("{\"error\":null,\"choices\":[{\"delta\":{\"content\":5}}]}"),
                                          &answer, &err),
                     0);
    assert_true(!answer.error.ptr && !answer.has_text);
    assert_int_equal(ew_load_answer_parse(&arena, EW_STR("[1,"), &answer, &err), EW_ERR_FORMAT);
    ew_arena_fini(&arena);
}

static void test_quantiles(void **state)
{
    struct ew_samples samples = {0};
    struct ew_quantiles q = ew_samples_quantiles(&samples, 0);

    assert_int_equal(q.count, 0);
    for (int i = 100; i >= 1; i--)
        ew_samples_add(&samples, i);
    q = ew_samples_quantiles(&samples, 0);
    assert_true(q.p50 == 50 && q.p90 == 90 && q.p95 == 95 && q.p99 == 99 && q.max == 100 && q.mean == 50.5);
    q = ew_samples_quantiles(&samples, 100); // as many tokens again that came with others
    assert_true(q.p50 == 0 && q.p90 == 80 && q.p99 == 98 && q.max == 100 && q.mean == 25.25 && q.count == 200);
    ew_samples_fini(&samples);
}

static void test_many_samples(void **state)
{
    struct ew_samples samples = {0};
    struct ew_quantiles q;
    const size_t n = EW_SAMPLES_MAX + EW_SAMPLES_MAX / 2;

    for (size_t i = 0; i < n; i++)
        ew_samples_add(&samples, (double)i);
    assert_true(samples.count <= EW_SAMPLES_MAX && !samples.failed);
    q = ew_samples_quantiles(&samples, 0);
    assert_int_equal(q.count, n);
    assert_true(q.p90 > 0.899 * (double)n && q.p90 < 0.901 * (double)n && q.max == (double)(n - 1));
    ew_samples_fini(&samples);
}

static void test_words(void **state)
{
    struct ew_load_words words;
    struct ew_buf a, b;
    size_t spaces = 0;

    ew_load_words_init(&words);
    ew_buf_init(&a, 1 << 16);
    ew_buf_init(&b, 1 << 16);
    ew_load_words_append(&words, 7, 1, 240, true, &a);
    ew_load_words_append(&words, 7, 1, 240, true, &b);
    assert_true(ew_str_eq(ew_buf_str(&a), ew_buf_str(&b)));
    for (size_t i = 0; i < a.len; i++)
        spaces += a.ptr[i] == ' ';
    assert_int_equal(spaces, 239);
    ew_buf_reset(&b);
    ew_load_words_append(&words, 7, 2, 240, true, &b);
    assert_false(ew_str_eq(ew_buf_str(&a), ew_buf_str(&b)));
    words.tokens_per_word = 1.5;
    assert_int_equal(ew_load_words_for(&words, 150), 100);
    assert_int_equal(ew_load_words_for(&words, 0), 1);
    ew_buf_fini(&a);
    ew_buf_fini(&b);
}

static void test_targets(void **state)
{
    struct ew_load_target target;
    struct ew_error err;

    assert_int_equal(ew_load_target_parse("http://127.0.0.1:81/api/v1/", &target, &err), 0);
    assert_string_equal(target.prefix, "/api");
    assert_string_equal(target.host, "127.0.0.1:81");
    assert_int_equal(((struct sockaddr_in *)&target.address)->sin_port, htons(81));
    assert_int_equal(ew_load_target_parse("[::1]:8080", &target, &err), 0);
    assert_int_equal(target.address.ss_family, AF_INET6);
    assert_int_equal(ew_load_target_parse("127.0.0.1", &target, &err), 0);
    assert_int_equal(((struct sockaddr_in *)&target.address)->sin_port, htons(80));
    assert_int_equal(ew_load_target_parse("https://127.0.0.1", &target, &err), EW_ERR_USAGE);
    assert_int_equal(ew_load_target_parse("http://", &target, &err), EW_ERR_USAGE);
    assert_int_equal(ew_load_target_parse("http://[::1", &target, &err), EW_ERR_USAGE);
    assert_int_equal(ew_load_target_parse("http://a b", &target, &err), EW_ERR_USAGE);
    assert_int_equal(ew_load_target_parse("http://user@127.0.0.1", &target, &err), EW_ERR_USAGE);
    assert_int_equal(ew_load_target_parse("http://127.0.0.1:80x", &target, &err), EW_ERR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replies),      cmocka_unit_test(test_reply_ends), cmocka_unit_test(test_reply_bounds),
        cmocka_unit_test(test_events),       cmocka_unit_test(test_answers),    cmocka_unit_test(test_quantiles),
        cmocka_unit_test(test_many_samples), cmocka_unit_test(test_words),      cmocka_unit_test(test_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
