#include "base/buf.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"

void ew_buf_init(struct ew_buf *buf, size_t max)
{
    *buf = (struct ew_buf){.max = max};
}

void ew_buf_fini(struct ew_buf *buf)
{
    ew_free(buf->ptr);
    *buf = (struct ew_buf){.max = buf->max};
}

void ew_buf_reset(struct ew_buf *buf)
{
    buf->len = 0;
    buf->failed = buf->no_memory = false;
    if (buf->ptr)
        buf->ptr[0] = '\0';
}

bool ew_buf_reserve(struct ew_buf *buf, size_t more)
{
    size_t need, cap;
    char *grown;

    if (buf->failed)
        return false;
    if (more > buf->max - buf->len) {
        buf->failed = true;
        return false;
    }
    need = buf->len + more;
    if (need < buf->cap)
        return true;
    cap = EW_MAX(need + 1, EW_MIN(buf->cap * 2, buf->max) + 1);
    cap = EW_MAX(cap, 64);
    grown = ew_realloc_array(buf->ptr, cap, 1);
    if (!grown) {
        buf->failed = buf->no_memory = true;
        return false;
    }
    buf->ptr = grown;
    buf->cap = cap;
    return true;
}

void ew_buf_append(struct ew_buf *buf, const void *bytes, size_t len)
{
    if (!ew_buf_reserve(buf, len))
        return;
    if (len)
        memcpy(buf->ptr + buf->len, bytes, len);
    buf->len += len;
    buf->ptr[buf->len] = '\0';
}

void ew_buf_append_str(struct ew_buf *buf, struct ew_str text)
{
    ew_buf_append(buf, text.ptr, text.len);
}

void ew_buf_append_char(struct ew_buf *buf, char c)
{
    ew_buf_append(buf, &c, 1);
}

void ew_buf_printf(struct ew_buf *buf, const char *fmt, ...)
{
    va_list args, again;
    int len;

    va_start(args, fmt);
    va_copy(again, args);
    len = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    EW_ASSERT(len >= 0);
    if (ew_buf_reserve(buf, (size_t)len)) {
        vsnprintf(buf->ptr + buf->len, (size_t)len + 1, fmt, again);
        buf->len += (size_t)len;
    }
    va_end(again);
}

static void append_json_char(struct ew_buf *buf, uint32_t c, const char *bytes, size_t len)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *at = c && c < 128 ? strchr(escaped, (int)c) : NULL;

    if (at)
        ew_buf_printf(buf, "\\%c", letter[at - escaped]);
    else if (c < 0x20 || c == 0x7f)
        ew_buf_printf(buf, "\\u%04x", c);
    else
        ew_buf_append(buf, bytes, len);
}

void ew_buf_append_json(struct ew_buf *buf, struct ew_str text)
{
    size_t at = 0;

    ew_buf_append_char(buf, '"');
    while (at < text.len) {
        uint32_t c;
        size_t len = ew_utf8_decode(text.ptr + at, text.len - at, &c);

        if (len == 0) {
            ew_buf_append(buf, "\xEF\xBF\xBD", 3);
            len = 1;
        } else {
            append_json_char(buf, c, text.ptr + at, len);
        }
        at += len;
    }
    ew_buf_append_char(buf, '"');
}

char *ew_buf_take(struct ew_buf *buf)
{
    char *taken;

    if (!buf->ptr)
        ew_buf_append(buf, "", 0);
    taken = buf->ptr;
    buf->ptr = NULL;
    ew_buf_fini(buf);
    return taken;
}
