// The reader of a server's replies. How the bytes are cut into reads must not change what is read.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "bench/load_answer.h"
#include "bench/load_http.h"
#include "bench/load_sse.h"

#define OUT_MAX ((size_t)8 << 20)
#define ARENA_MAX ((size_t)64 << 20)

struct reading {
    struct ew_reply reply;
    struct ew_sse sse;
    struct ew_buf seen; // body and events, in order
    struct ew_arena arena;
};

static int read_events(struct reading *reading, struct ew_str body)
{
    while (body.len) {
        struct ew_load_answer answer;
        struct ew_str data;
        bool event;
        ptrdiff_t n = ew_sse_feed(&reading->sse, body.ptr, body.len, &event, &data, NULL);

        if (n < 0)
            return (int)n;
        EW_ASSERT(n > 0 && (size_t)n <= body.len);
        body.ptr += n;
        body.len -= (size_t)n;
        if (!event)
            continue;
        ew_buf_printf(&reading->seen, "[%zu]", data.len);
        ew_buf_append_str(&reading->seen, data);
        if (ew_load_answer_parse(&reading->arena, data, &answer, NULL) == EW_OK)
            for (uint32_t i = 0; i < 3; i++)
                ew_buf_append_str(&reading->seen, answer.text[i]);
    }
    return EW_OK;
}

static int feed(struct reading *reading, const char *bytes, size_t len)
{
    while (len && reading->reply.state != EW_REPLY_DONE) {
        struct ew_str body;
        ptrdiff_t n = ew_reply_feed(&reading->reply, bytes, len, &body, NULL);

        if (n < 0)
            return (int)n;
        EW_ASSERT(n > 0 && (size_t)n <= len && body.len <= (size_t)n);
        bytes += n;
        len -= (size_t)n;
        if (read_events(reading, body) < 0)
            return EW_ERR_LIMIT;
    }
    return EW_OK;
}

static int read_all(struct reading *reading, const char *bytes, size_t len, size_t step)
{
    int rc = EW_OK;

    ew_reply_init(&reading->reply);
    ew_sse_init(&reading->sse);
    ew_buf_init(&reading->seen, OUT_MAX);
    ew_arena_init(&reading->arena, ARENA_MAX);
    for (size_t at = 0; at < len && rc == EW_OK; at += step)
        rc = feed(reading, bytes + at, len - at < step ? len - at : step);
    return rc == EW_OK ? ew_reply_eof(&reading->reply, NULL) : rc;
}

static void end(struct reading *reading)
{
    ew_sse_fini(&reading->sse);
    ew_buf_fini(&reading->seen);
    ew_arena_fini(&reading->arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct reading whole, cut; // large; filled anew each time
    size_t step = size ? data[0] % 7 + 1 : 1;
    int rc = read_all(&whole, (const char *)data + (size > 0), size - (size > 0), size + 1);
    int rc_cut = read_all(&cut, (const char *)data + (size > 0), size - (size > 0), step);

    EW_ASSERT(rc == rc_cut);
    if (rc == EW_OK && ew_buf_ok(&whole.seen)) {
        EW_ASSERT(whole.reply.status == cut.reply.status && whole.reply.keep_alive == cut.reply.keep_alive);
        EW_ASSERT(whole.seen.len == cut.seen.len);
        EW_ASSERT(whole.seen.len == 0 || memcmp(whole.seen.ptr, cut.seen.ptr, whole.seen.len) == 0);
    }
    end(&whole);
    end(&cut);
    return 0;
}
