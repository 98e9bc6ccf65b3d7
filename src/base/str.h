#pragma once
// String views with a length: borrowed bytes, not NUL-terminated, any bytes allowed.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct ew_str {
    const char *ptr;
    size_t len;
};

#define EW_STR(literal) ((struct ew_str){(literal), sizeof(literal) - 1})
#define EW_STR_FMT "%.*s"
#define EW_STR_ARG(s) (int)((s).len > 200 ? 200 : (s).len), (s).ptr // cut: messages have bounded length

static inline struct ew_str ew_str_of(const char *text)
{
    return (struct ew_str){text, text ? strlen(text) : 0};
}

static inline bool ew_str_eq(struct ew_str a, struct ew_str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool ew_str_is(struct ew_str a, const char *text)
{
    return ew_str_eq(a, ew_str_of(text));
}

bool ew_str_starts(struct ew_str s, const char *prefix);
bool ew_str_ends(struct ew_str s, const char *suffix);
// Index of the first occurrence at or after `from`, or -1.
ptrdiff_t ew_str_find(struct ew_str s, struct ew_str what, size_t from);
int ew_str_compare(struct ew_str a, struct ew_str b); // bytewise, shorter first

// The whole view must be the number; false otherwise or on overflow. Decimal only.
bool ew_str_to_u64(struct ew_str s, uint64_t *out);
bool ew_str_to_i64(struct ew_str s, int64_t *out);
bool ew_str_to_double(struct ew_str s, double *out);
// "512", "64K", "1.5M", "110G", also KB/KiB etc., all powers of 1024 (as users of memory mean them).
bool ew_str_to_bytes(struct ew_str s, uint64_t *out);
