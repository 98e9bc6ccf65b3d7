#include "text/bytelevel.h"

#include "base/utf8.h"
#include "text/illformed.h"

static void append_byte(unsigned char byte, struct ew_buf *out)
{
    char bytes[4];

    ew_buf_append(out, bytes, ew_utf8_encode(ew_bytelevel_char(byte), bytes));
}

void ew_bytelevel_encode(struct ew_str text, bool illformed, struct ew_buf *out)
{
    ew_buf_reserve(out, text.len * 2);
    for (size_t i = 0; i < text.len; i++) {
        uint32_t c;

        // U+10FF80 and up begin with 0xF4.
        if (illformed && (unsigned char)text.ptr[i] == 0xF4 && ew_utf8_decode(text.ptr + i, text.len - i, &c) &&
            ew_illformed_is(c)) {
            append_byte(ew_illformed_byte(c), out);
            i += 3;
        } else {
            append_byte((unsigned char)text.ptr[i], out);
        }
    }
}

bool ew_bytelevel_decode(struct ew_str text, struct ew_buf *out)
{
    size_t before = out->len;

    for (size_t at = 0, len; at < text.len; at += len) {
        uint32_t c;
        int byte = -1;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        if (len)
            byte = ew_bytelevel_byte(c);
        if (byte < 0) {
            out->len = before;
            return false;
        }
        ew_buf_append_char(out, (char)byte);
    }
    return true;
}
