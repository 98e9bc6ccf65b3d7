#pragma once
// Server-sent events (the event stream of the HTML standard, section 9.2), as far as the APIs use them: the data of
// each event. Lines may end in CR, LF or both; comments and other fields are passed over.

#include <stdbool.h>

#include "base/buf.h"

#define EW_SSE_EVENT_MAX ((size_t)1 << 20) // bytes of one event's data, and of one line

struct ew_sse {
    struct ew_buf line, data;
    bool after_cr;   // a line feed that comes next belongs to the line before
    bool has_data;   // the event being read has a data field
    bool at_start;   // a byte order mark may come
    bool event_done; // `data` was given to the caller and is cleared next
};

void ew_sse_init(struct ew_sse *sse);
void ew_sse_fini(struct ew_sse *sse);
void ew_sse_reset(struct ew_sse *sse); // for the next stream, keeping its memory
// Takes bytes up to the end of the next event; *event tells that one ended, its data is valid until the next call.
// Returns how many bytes were taken, or EW_ERR_LIMIT.
ptrdiff_t ew_sse_feed(struct ew_sse *sse, const char *bytes, size_t len, bool *event, struct ew_str *data,
                      struct ew_error *err) EW_MUST_CHECK;
