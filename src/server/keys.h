#pragma once
// The keys that clients may use: a file with one on each line, empty lines and those that begin with # left out.

#include "base/error.h"
#include "base/str.h"

#define EW_KEYS_MAX 4096
#define EW_KEY_BYTES_MAX 512

struct ew_keys {
    char *text; // owned; the keys, each NUL-terminated
    uint32_t count;
    const char **list; // owned
};

// On failure *keys is as it was. A file without a key is an error: it would shut everybody out.
int ew_keys_read(struct ew_keys *keys, const char *path, struct ew_error *err) EW_MUST_CHECK;
void ew_keys_free(struct ew_keys *keys);
// Whether the value of an Authorization header holds one of them. The time it takes does not tell how much of a key was
// right.
bool ew_keys_allow(const struct ew_keys *keys, struct ew_str authorization);
