#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void ew_assert_failed(const char *file, int line, const char *what)
{
    fprintf(stderr, "edgewise: internal error at %s:%d: %s is false. Please report this.\n", file, line, what);
    abort();
}
