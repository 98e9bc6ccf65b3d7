#include "kernel/cuda/cuda_ptx.h"

#include <stdio.h>
#include <string.h>

#define ENTRY ".visible .entry "

// Behind the brace that closes an entry; there are others in it, around operands and the text of inline assembly.
static char *end_of(char *entry)
{
    unsigned depth = 0;
    char *at = entry;

    for (at += strcspn(at, "{}"); *at; at += strcspn(at, "{}")) {
        depth += *at == '{' ? 1u : -1u;
        at++;
        if (depth == 0)
            break;
    }
    return at;
}

unsigned ew_cuda_ptx_keep(char *text, bool (*keep)(void *ctx, struct ew_str name), void *ctx, unsigned *n_all)
{
    char *from = text, *to = text, *entry;
    unsigned n = 0;

    *n_all = 0;
    while ((entry = strstr(from, ENTRY)) != NULL) {
        char *name = entry + strlen(ENTRY), *end = end_of(entry);
        bool is_kept = keep(ctx, (struct ew_str){name, strcspn(name, "(")});
        size_t len = (size_t)((is_kept ? end : entry) - from);

        memmove(to, from, len);
        to += len;
        from = end;
        n += is_kept;
        ++*n_all;
    }
    memmove(to, from, strlen(from) + 1);
    return n;
}

bool ew_cuda_ptx_waits(const char *text, const char *kernel)
{
    char entry[96];
    const char *at, *end, *wait;

    snprintf(entry, sizeof(entry), ENTRY "%s(", kernel);
    at = strstr(text, entry);
    end = at ? strstr(at + 1, ENTRY) : NULL;
    wait = at ? strstr(at, "griddepcontrol.wait") : NULL;
    return wait && (!end || wait < end);
}
