#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/linear_fp8_tmpl.c"
#include "kernel/cpu/linear_rows_tmpl.c"

void ew_cpu_neon_init_dense(struct ew_cpu_ops *ops)
{
    init_linear_rows(ops);
    ops->linear[EW_CPU_FP8] = linear_fp8;
}
