#include "kernel/cuda/cuda_ptx.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#define ENTRY ".visible .entry "

// Behind the brace that closes an entry; there are others in it, around operands and the text of inline assembly.
static const char *end_of(const char *entry)
{
    unsigned depth = 0;
    const char *at = entry;

    for (at += strcspn(at, "{}"); *at; at += strcspn(at, "{}")) {
        depth += *at == '{' ? 1u : -1u;
        at++;
        if (depth == 0)
            break;
    }
    return at;
}

struct ew_str ew_cuda_ptx_entry(const char *text, const char *kernel)
{
    char begin[96];
    const char *at;

    snprintf(begin, sizeof(begin), ENTRY "%s(", kernel);
    at = strstr(text, begin);
    return at ? (struct ew_str){at, (size_t)(end_of(at) - at)} : (struct ew_str){text, 0};
}

char *ew_cuda_ptx_only(const char *text, const char *kernel)
{
    struct ew_str kept = ew_cuda_ptx_entry(text, kernel);
    char *only = ew_alloc(strlen(text) + 1), *to = only;
    const char *from = text, *entry;

    while (only && (entry = strstr(from, ENTRY)) != NULL) {
        const char *end = end_of(entry);
        size_t len = (size_t)((entry == kept.ptr ? end : entry) - from);

        memcpy(to, from, len);
        to += len;
        from = end;
    }
    if (only)
        memcpy(to, from, strlen(from) + 1);
    return only;
}

bool ew_cuda_ptx_waits(const char *text)
{
    return strstr(text, "griddepcontrol.wait") != NULL;
}

bool ew_cuda_ptx_clusters(const char *text)
{
    return strstr(text, "barrier.cluster.wait") != NULL;
}
