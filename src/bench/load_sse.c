#include "bench/load_sse.h"

void ew_sse_init(struct ew_sse *sse)
{
    *sse = (struct ew_sse){.at_start = true};
    ew_buf_init(&sse->line, EW_SSE_EVENT_MAX);
    ew_buf_init(&sse->data, EW_SSE_EVENT_MAX);
}

void ew_sse_fini(struct ew_sse *sse)
{
    ew_buf_fini(&sse->line);
    ew_buf_fini(&sse->data);
}

void ew_sse_reset(struct ew_sse *sse)
{
    ew_buf_reset(&sse->line);
    ew_buf_reset(&sse->data);
    sse->after_cr = sse->has_data = sse->event_done = false;
    sse->at_start = true;
}

// "data: text" adds a line to the event's data; one space behind the colon does not count.
static void take_field(struct ew_sse *sse, struct ew_str line)
{
    if (!ew_str_starts(line, "data") || (line.len > 4 && line.ptr[4] != ':'))
        return;
    line.ptr += line.len > 4 ? 5 : 4;
    line.len -= line.len > 4 ? 5 : 4;
    if (line.len && line.ptr[0] == ' ') {
        line.ptr++;
        line.len--;
    }
    if (sse->has_data)
        ew_buf_append_char(&sse->data, '\n');
    ew_buf_append_str(&sse->data, line);
    sse->has_data = true;
}

// A whole line; true where it is the empty one that ends an event.
static bool end_line(struct ew_sse *sse)
{
    struct ew_str line = ew_buf_str(&sse->line);
    bool empty = line.len == 0;

    if (sse->at_start && ew_str_starts(line, "\xEF\xBB\xBF")) {
        line.ptr += 3;
        line.len -= 3;
    }
    sse->at_start = false;
    if (!empty)
        take_field(sse, line);
    if (ew_buf_ok(&sse->line))
        ew_buf_reset(&sse->line);
    return empty && sse->has_data;
}

static size_t line_length(const char *bytes, size_t len)
{
    size_t n = 0;

    while (n < len && bytes[n] != '\n' && bytes[n] != '\r')
        n++;
    return n;
}

ptrdiff_t ew_sse_feed(struct ew_sse *sse, const char *bytes, size_t len, bool *event, struct ew_str *data,
                      struct ew_error *err)
{
    size_t at = 0;

    *event = false;
    if (sse->event_done) {
        ew_buf_reset(&sse->data);
        sse->event_done = sse->has_data = false;
    }
    while (at < len && !*event) {
        size_t n;

        if (sse->after_cr && bytes[at] == '\n') {
            sse->after_cr = false;
            at++;
            continue;
        }
        sse->after_cr = false;
        n = line_length(bytes + at, len - at);
        ew_buf_append(&sse->line, bytes + at, n);
        at += n;
        if (at < len) {
            sse->after_cr = bytes[at++] == '\r';
            *event = end_line(sse);
        }
    }
    if (!ew_buf_ok(&sse->line) || !ew_buf_ok(&sse->data))
        return ew_fail(err, EW_ERR_LIMIT, "an event of the stream is longer than %zu bytes", EW_SSE_EVENT_MAX);
    if (*event) {
        sse->event_done = true;
        *data = ew_buf_str(&sse->data);
    }
    return (ptrdiff_t)at;
}
