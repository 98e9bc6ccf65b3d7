#include "text/illformed.h"

#include "base/utf8.h"

static void append_bad(unsigned char byte, bool keep_bytes, struct ew_buf *out)
{
    char bytes[4];

    ew_buf_append(out, bytes, ew_utf8_encode(keep_bytes ? EW_ILLFORMED_FIRST - 0x80 + byte : 0xFFFD, bytes));
}

void ew_illformed_escape(struct ew_str text, bool keep_bytes, struct ew_buf *out)
{
    size_t good = 0; // start of the well-formed run that is not yet copied

    for (size_t at = 0; at < text.len;) {
        uint32_t c = 0;
        size_t step = ew_utf8_decode(text.ptr + at, text.len - at, &c);

        if (step > 0 && !(keep_bytes && ew_illformed_is(c))) {
            at += step;
            continue;
        }
        ew_buf_append(out, text.ptr + good, at - good);
        append_bad((unsigned char)text.ptr[at], keep_bytes, out);
        good = ++at;
    }
    ew_buf_append(out, text.ptr + good, text.len - good);
}
