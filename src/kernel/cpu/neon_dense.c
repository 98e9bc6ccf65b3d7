#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/linear_rows_tmpl.c"

void ew_cpu_neon_init_dense(struct ew_cpu_ops *ops)
{
    init_linear_rows(ops);
}
