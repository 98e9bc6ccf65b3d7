#include "base/str.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#define NUMBER_LEN_MAX 63 // longest number text that is looked at; longer ones are refused

bool ew_str_starts(struct ew_str s, const char *prefix)
{
    size_t len = strlen(prefix);

    return s.len >= len && memcmp(s.ptr, prefix, len) == 0;
}

bool ew_str_ends(struct ew_str s, const char *suffix)
{
    size_t len = strlen(suffix);

    return s.len >= len && memcmp(s.ptr + s.len - len, suffix, len) == 0;
}

ptrdiff_t ew_str_find(struct ew_str s, struct ew_str what, size_t from)
{
    const char *hit;

    if (from > s.len)
        return -1;
    if (what.len == 0)
        return (ptrdiff_t)from;
    hit = memmem(s.ptr + from, s.len - from, what.ptr, what.len);
    return hit ? hit - s.ptr : -1;
}

int ew_str_compare(struct ew_str a, struct ew_str b)
{
    size_t shared = a.len < b.len ? a.len : b.len;
    int order = shared ? memcmp(a.ptr, b.ptr, shared) : 0;

    return order ? order : (a.len > b.len) - (a.len < b.len);
}

bool ew_str_to_u64(struct ew_str s, uint64_t *out)
{
    uint64_t value = 0;

    if (s.len == 0)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.ptr[i] < '0' || s.ptr[i] > '9')
            return false;
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(s.ptr[i] - '0'), &value))
            return false;
    }
    *out = value;
    return true;
}

bool ew_str_to_i64(struct ew_str s, int64_t *out)
{
    bool minus = s.len > 0 && s.ptr[0] == '-';
    uint64_t magnitude;

    if (!ew_str_to_u64(minus ? (struct ew_str){s.ptr + 1, s.len - 1} : s, &magnitude))
        return false;
    if (magnitude > (uint64_t)INT64_MAX + (minus ? 1 : 0))
        return false;
    *out = minus ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return true;
}

bool ew_str_to_double(struct ew_str s, double *out)
{
    char text[NUMBER_LEN_MAX + 1], *end;

    if (s.len == 0 || s.len > NUMBER_LEN_MAX || strchr(" \t\r\n", s.ptr[0]))
        return false;
    memcpy(text, s.ptr, s.len);
    text[s.len] = '\0';
    errno = 0;
    *out = strtod(text, &end);
    return end == text + s.len && !(errno == ERANGE && isinf(*out));
}

bool ew_str_to_bytes(struct ew_str s, uint64_t *out)
{
    static const char units[] = "KMGT";
    double value, scale = 1;
    size_t digits = 0;

    while (digits < s.len && strchr("0123456789.", s.ptr[digits]))
        digits++;
    if (digits < s.len) {
        struct ew_str unit = {s.ptr + digits, s.len - digits};
        char first = unit.ptr[0] & ~0x20;
        const char *at = first ? strchr(units, first) : NULL;

        if (at)
            scale = ldexp(1, 10 * (int)(at - units + 1));
        else if (first != 'B' || unit.len != 1)
            return false;
        if (at && unit.len > 1 && !ew_str_is((struct ew_str){unit.ptr + 1, unit.len - 1}, "B") &&
            !ew_str_is((struct ew_str){unit.ptr + 1, unit.len - 1}, "iB"))
            return false;
    }
    if (!ew_str_to_double((struct ew_str){s.ptr, digits}, &value) || value < 0 || value * scale >= 0x1p63)
        return false;
    *out = (uint64_t)(value * scale);
    return true;
}
