#include "platform/sysfile.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES_MAX 4096

static ptrdiff_t read_all(int fd, char *text, size_t size)
{
    size_t len = 0;
    ssize_t got;

    while (len + 1 < size) {
        got = read(fd, text + len, size - 1 - len);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        len += (size_t)got;
    }
    text[len] = 0;
    return (ptrdiff_t)len;
}

ptrdiff_t ew_sysfile_read(const char *root, const char *path, char *text, size_t size)
{
    char full[PATH_BYTES_MAX];
    int len = snprintf(full, sizeof(full), "%s%s", root ? root : "", path), fd;
    ptrdiff_t got;

    text[0] = 0;
    if (len < 0 || (size_t)len >= sizeof(full))
        return -1;
    fd = open(full, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    got = read_all(fd, text, size);
    close(fd);
    return got;
}

ptrdiff_t ew_sysfile_readf(const char *root, char *text, size_t size, const char *path_fmt, ...)
{
    char path[PATH_BYTES_MAX];
    va_list args;
    int len;

    va_start(args, path_fmt);
    len = vsnprintf(path, sizeof(path), path_fmt, args);
    va_end(args);
    text[0] = 0;
    if (len < 0 || (size_t)len >= sizeof(path))
        return -1;
    return ew_sysfile_read(root, path, text, size);
}

bool ew_sysfile_number(const char *text, uint64_t *value)
{
    char *end;

    while (*text == ' ' || *text == '\t')
        text++;
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return errno == 0;
}

bool ew_sysfile_field(const char *text, const char *key, uint64_t *value)
{
    size_t len = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, key, len) == 0 && (line[len] == ' ' || line[len] == ':' || line[len] == '\t'))
            return ew_sysfile_number(line + len + (line[len] == ':'), value);
    }
    return false;
}

static bool range_number(const char **cursor, uint32_t *value)
{
    uint64_t wide;

    if (!isdigit((unsigned char)**cursor) || !ew_sysfile_number(*cursor, &wide) || wide > UINT32_MAX)
        return false;
    *cursor += strspn(*cursor, "0123456789");
    *value = (uint32_t)wide;
    return true;
}

bool ew_sysfile_range(const char **cursor, uint32_t *first, uint32_t *last)
{
    if (**cursor == ',')
        ++*cursor;
    if (!range_number(cursor, first))
        return false;
    *last = *first;
    if (**cursor != '-')
        return true;
    ++*cursor;
    return range_number(cursor, last) && *last >= *first;
}
