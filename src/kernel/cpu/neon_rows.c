#include "kernel/cpu/vec_neon.h"

#include "base/half.h"
#include "kernel/cpu/rows_tmpl.c"

void ew_cpu_neon_init_rows(struct ew_cpu_ops *ops)
{
    init_rows(ops);
}
