#include "platform/packages.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "platform/sysfile.h"

#define STATUS_BYTES_MAX ((size_t)32 << 20) // a full desktop has about 4 MB

void ew_packages_read(const char *root, struct ew_packages *out)
{
    out->status = ew_alloc(STATUS_BYTES_MAX);
    if (out->status && ew_sysfile_read(root, "/var/lib/dpkg/status", out->status, STATUS_BYTES_MAX) <= 0)
        ew_packages_free(out);
}

void ew_packages_free(struct ew_packages *packages)
{
    ew_free(packages->status);
    packages->status = NULL;
}

// The value of a field inside one paragraph.
static struct ew_str field(const char *paragraph, const char *end, const char *name)
{
    const char *at = strstr(paragraph, name);

    if (!at || (end && at >= end))
        return EW_STR("");
    at += strlen(name);
    return (struct ew_str){at, strcspn(at, "\n")};
}

struct ew_str ew_package_version(const struct ew_packages *packages, const char *name)
{
    char head[128];
    const char *at = packages->status;

    snprintf(head, sizeof(head), "Package: %s\n", name);
    while (at && (at = strstr(at, head))) {
        const char *end = strstr(at, "\n\n");

        if ((at == packages->status || at[-1] == '\n') && ew_str_ends(field(at, end, "\nStatus: "), " installed"))
            return field(at, end, "\nVersion: ");
        at += strlen(head);
    }
    return EW_STR("");
}

struct ew_str ew_package_upstream(struct ew_str version)
{
    const char *colon = memchr(version.ptr, ':', version.len);

    if (colon)
        version = (struct ew_str){colon + 1, version.len - (size_t)(colon + 1 - version.ptr)};
    for (size_t i = 0; i < version.len; i++)
        if (strchr("-+~", version.ptr[i]))
            version.len = i;
    return version;
}
