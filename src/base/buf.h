#pragma once
// The one growable byte buffer. A maximum is mandatory: an append past it (or past memory) fails and marks the buffer,
// so that a sequence of appends can be checked once, at the end, with ew_buf_ok.

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/str.h"

struct ew_buf {
    char *ptr; // always NUL-terminated once something was appended
    size_t len, cap, max;
    bool failed, no_memory; // no_memory: it was not the maximum
};

void ew_buf_init(struct ew_buf *buf, size_t max);
void ew_buf_fini(struct ew_buf *buf);
void ew_buf_reset(struct ew_buf *buf);           // keeps the memory, clears both
bool ew_buf_reserve(struct ew_buf *buf, size_t more);
void ew_buf_append(struct ew_buf *buf, const void *bytes, size_t len);
void ew_buf_append_str(struct ew_buf *buf, struct ew_str text);
void ew_buf_append_char(struct ew_buf *buf, char c);
void ew_buf_printf(struct ew_buf *buf, const char *fmt, ...) EW_PRINTF(2, 3);
// as a JSON string with quotes; bad UTF-8 becomes U+FFFD
void ew_buf_append_json(struct ew_buf *buf, struct ew_str text);
static inline bool ew_buf_ok(const struct ew_buf *buf) { return !buf->failed; }
static inline struct ew_str ew_buf_str(const struct ew_buf *buf) { return (struct ew_str){buf->ptr, buf->len}; }
char *ew_buf_take(struct ew_buf *buf);           // the caller frees with ew_free; the buffer is empty again
