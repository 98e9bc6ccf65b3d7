#pragma once
// The reader of HTTP/1.x replies: strict, bounded, no allocation. It is fed bytes as they arrive and gives the body
// back as views into them, whether its end is told by chunks, by a length or by the end of the connection (RFC 9112).

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

#define EW_REPLY_LINE_MAX 8192         // a status line, a header line, a chunk's size line
#define EW_REPLY_HEAD_MAX (64u << 10)  // all header and trailer lines of one reply

enum ew_reply_state {
    EW_REPLY_STATUS,
    EW_REPLY_HEADERS,
    EW_REPLY_BODY_LENGTH,
    EW_REPLY_BODY_CLOSE,
    EW_REPLY_CHUNK_SIZE,
    EW_REPLY_CHUNK_DATA,
    EW_REPLY_CHUNK_END,
    EW_REPLY_TRAILERS,
    EW_REPLY_DONE,
};

struct ew_reply {
    enum ew_reply_state state;
    int status;           // once the headers are read: behind EW_REPLY_HEADERS
    bool keep_alive;      // the connection can be used again when the reply is done
    bool event_stream;    // Content-Type: text/event-stream
    uint32_t retry_after; // seconds, 0 where the server gave none
    // Private.
    bool chunked, has_length;
    uint64_t left; // bytes of the body or of the chunk that are still to come
    uint32_t n_head, n_line;
    char line[EW_REPLY_LINE_MAX];
};

void ew_reply_init(struct ew_reply *reply);
// Takes bytes, stops at the end of the reply, and gives the first stretch of body in them, which may be empty. Returns
// how many bytes were taken, at least 1 where len > 0 and the reply is not done, or a negative ew_code.
ptrdiff_t ew_reply_feed(struct ew_reply *reply, const char *bytes, size_t len, struct ew_str *body,
                        struct ew_error *err) EW_MUST_CHECK;
// The connection ended. Completes a body that only this can end; EW_ERR_IO where the reply was not whole.
int ew_reply_eof(struct ew_reply *reply, struct ew_error *err) EW_MUST_CHECK;
