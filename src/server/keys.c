#include "server/keys.h"

#include <strings.h>

#include "base/alloc.h"
#include "format/mapfile.h"

#define FILE_BYTES_MAX ((size_t)EW_KEYS_MAX * (EW_KEY_BYTES_MAX + 2))

static int add_line(struct ew_keys *keys, char *line, const char *path, uint32_t number, struct ew_error *err)
{
    size_t len = strlen(line);

    while (len && (line[len - 1] == ' ' || line[len - 1] == '\t' || line[len - 1] == '\r'))
        line[--len] = '\0';
    while (*line == ' ' || *line == '\t') {
        line++;
        len--;
    }
    if (len == 0 || *line == '#')
        return 0;
    if (len > EW_KEY_BYTES_MAX || keys->count == EW_KEYS_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "line %u of %s: a file holds at most %d keys of at most %d bytes", number,
                       path, EW_KEYS_MAX, EW_KEY_BYTES_MAX);
    for (const char *c = line; *c; c++)
        if (*c <= ' ' || *c > '~')
            return ew_fail(err, EW_ERR_FORMAT, "line %u of %s is no key: keys have no spaces and only ASCII characters",
                           number, path);
    keys->list[keys->count++] = line;
    return 0;
}

static int split(struct ew_keys *keys, const char *path, struct ew_error *err)
{
    char *line = keys->text;
    int rc = 0;

    for (uint32_t number = 1; line && rc == 0; number++) {
        char *end = strchr(line, '\n');

        if (end)
            *end = '\0';
        rc = add_line(keys, line, path, number, err);
        line = end ? end + 1 : NULL;
    }
    if (rc == 0 && keys->count == 0)
        rc = ew_fail(err, EW_ERR_FORMAT, "%s holds no key", path);
    return rc;
}

int ew_keys_read(struct ew_keys *keys, const char *path, struct ew_error *err)
{
    struct ew_keys fresh = {0};
    size_t len;
    int rc = ew_file_read(path, FILE_BYTES_MAX, &fresh.text, &len, err);

    if (rc)
        return rc;
    fresh.list = ew_alloc_array(EW_KEYS_MAX, sizeof(*fresh.list));
    if (!fresh.list)
        rc = ew_fail_memory(err, EW_KEYS_MAX * sizeof(*fresh.list), "the keys");
    else if (memchr(fresh.text, '\0', len))
        rc = ew_fail(err, EW_ERR_FORMAT, "%s holds a zero byte", path);
    else
        rc = split(&fresh, path, err);
    if (rc) {
        ew_keys_free(&fresh);
        return rc;
    }
    ew_keys_free(keys);
    *keys = fresh;
    return 0;
}

void ew_keys_free(struct ew_keys *keys)
{
    ew_free(keys->text);
    ew_free(keys->list);
    *keys = (struct ew_keys){0};
}

// Every byte of the given key is looked at, whatever the others were.
static bool equals(struct ew_str given, const char *key)
{
    size_t len = strlen(key);
    unsigned char difference = given.len != len;

    for (size_t i = 0; i < given.len; i++)
        difference |= (unsigned char)(given.ptr[i] ^ (i < len ? key[i] : 0));
    return difference == 0;
}

bool ew_keys_allow(const struct ew_keys *keys, struct ew_str authorization)
{
    bool allowed = false;

    if (authorization.len <= 7 || strncasecmp(authorization.ptr, "Bearer ", 7) != 0)
        return false;
    authorization.ptr += 7;
    authorization.len -= 7;
    for (uint32_t i = 0; i < keys->count; i++)
        allowed |= equals(authorization, keys->list[i]);
    return allowed;
}
