#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void fill(struct ew_error *err, int code, const char *fmt, va_list args)
{
    err->code = code;
    err->remedy[0] = '\0';
    vsnprintf(err->message, sizeof(err->message), fmt, args);
}

int ew_fail(struct ew_error *err, int code, const char *fmt, ...)
{
    va_list args;

    if (err) {
        va_start(args, fmt);
        fill(err, code, fmt, args);
        va_end(args);
    }
    return code;
}

int ew_fail_errno(struct ew_error *err, int code, const char *fmt, ...)
{
    int saved = errno;
    va_list args;
    size_t len;

    if (err) {
        va_start(args, fmt);
        fill(err, code, fmt, args);
        va_end(args);
        len = strlen(err->message);
        snprintf(err->message + len, sizeof(err->message) - len, ": %s", strerror(saved));
    }
    return code;
}

int ew_remedy(struct ew_error *err, int code, const char *fmt, ...)
{
    va_list args;

    if (!err)
        return code;
    va_start(args, fmt);
    vsnprintf(err->remedy, sizeof(err->remedy), fmt, args);
    va_end(args);
    return err->code;
}

int ew_fail_in(struct ew_error *err, int code, const char *fmt, ...)
{
    char rest[sizeof(err->message)];
    va_list args;
    size_t len;

    if (!err)
        return code;
    memcpy(rest, err->message, sizeof(rest));
    va_start(args, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, args);
    va_end(args);
    len = strlen(err->message);
    snprintf(err->message + len, sizeof(err->message) - len, ": %s", rest);
    return code;
}

int ew_fail_memory(struct ew_error *err, size_t bytes, const char *what)
{
    ew_fail(err, EW_ERR_MEMORY, "cannot allocate %zu bytes for %s", bytes, what);
    return ew_remedy(err, EW_ERR_MEMORY, "free memory, or lower --ctx or --memory-budget");
}
