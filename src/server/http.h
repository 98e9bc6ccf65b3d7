#pragma once
// HTTP/1.1 requests (RFC 9112), read strictly: whatever two readers could understand differently is refused, so that
// no proxy in front can be made to see other requests than we do. Nothing is allocated; all views lead into the
// caller's bytes. What must be accepted or refused stands in tests/py/test_server_http.py as a table.

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"

struct ew_http_limits {
    uint32_t line_bytes; // of the request line
    uint32_t head_bytes; // of the request line and all headers
    uint64_t body_bytes;
};

#define EW_HTTP_HEADERS_MAX 100

// Why a request is refused: a status of HTTP, 0 while there is nothing to complain about.
struct ew_http_fault {
    int status;
    const char *why; // static
};

// Looks for the end of a head in text that grows. *scanned remembers how far it got; 0 at first. Returns the length of
// the head with its empty line, or 0: not yet, or a fault, which is seen as soon as the offending byte is there.
size_t ew_http_head_end(struct ew_str text, size_t *scanned, const struct ew_http_limits *limits,
                        struct ew_http_fault *fault);

struct ew_http_head {
    struct ew_str method, path, query; // query without its question mark
    struct ew_str headers;             // all header lines with their ends
    uint64_t content_length;           // 0 where chunked, or not given
    bool chunked, keep_alive, expects_continue, is_1_0;
};

// text: what head_end found. False: refused.
bool ew_http_head_parse(struct ew_str text, const struct ew_http_limits *limits, struct ew_http_head *out,
                        struct ew_http_fault *fault);
// The value of the first header of this name (any case); ptr NULL: there is none.
struct ew_str ew_http_header(struct ew_str headers, const char *name);

// A chunked body as it arrives; zero it first.
struct ew_http_chunks {
    int state;
    uint64_t left;       // bytes of this chunk
    uint64_t total;      // of all chunks so far
    uint32_t line_bytes; // of a size line, or of all trailers
    uint32_t digits;
    uint32_t in_line; // bytes of this trailer
};

// Reads some of bytes. *used tells how many; *data is the part of them that is body, maybe empty. Call again with the
// rest until everything is used or it is done. False: refused.
bool ew_http_chunks_read(struct ew_http_chunks *chunks, struct ew_str bytes, const struct ew_http_limits *limits,
                         size_t *used, struct ew_str *data, bool *done, struct ew_http_fault *fault);

const char *ew_http_reason(int status); // "Not Found"
