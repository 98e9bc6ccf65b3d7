#include "base/utf8.h"

#include <string.h>

static size_t expected_len(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        return 2;
    if (lead >= 0xE0 && lead <= 0xEF)
        return 3;
    return lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
}

// The second byte's range excludes overlong forms, surrogates and values past U+10FFFF (RFC 3629, section 4).
static bool second_ok(unsigned char lead, unsigned char second)
{
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;

    return second >= low && second <= high;
}

size_t ew_utf8_decode(const char *bytes, size_t len, uint32_t *out)
{
    static const unsigned char lead_mask[5] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    const unsigned char *at = (const unsigned char *)bytes;
    size_t need = len ? expected_len(at[0]) : 0;
    uint32_t c;

    if (need == 0 || need > len || (need > 1 && !second_ok(at[0], at[1])))
        return 0;
    c = at[0] & lead_mask[need];
    for (size_t i = 1; i < need; i++) {
        if ((at[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (at[i] & 0x3F);
    }
    *out = c;
    return need;
}

size_t ew_utf8_encode(uint32_t c, char out[4])
{
    if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF))
        c = 0xFFFD;
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool ew_utf8_valid(const char *bytes, size_t len)
{
    uint32_t c;

    for (size_t at = 0, step; at < len; at += step) {
        step = ew_utf8_decode(bytes + at, len - at, &c);
        if (step == 0)
            return false;
    }
    return true;
}

size_t ew_utf8_complete_prefix(const char *bytes, size_t len)
{
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char lead = (unsigned char)bytes[len - back];
        size_t need = expected_len(lead);

        if ((lead & 0xC0) == 0x80)
            continue;
        if (need <= back)
            return len;
        for (size_t i = 1; i < back; i++) // a lead followed by bytes that cannot complete it is not waiting for more
            if (i == 1 && !second_ok(lead, (unsigned char)bytes[len - back + 1]))
                return len;
        return len - back;
    }
    return len;
}
