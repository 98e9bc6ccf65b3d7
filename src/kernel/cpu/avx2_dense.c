#include "kernel/cpu/vec_avx2.h"

#include "kernel/cpu/linear_rows_tmpl.c"

void ew_cpu_avx2_init_dense(struct ew_cpu_ops *ops)
{
    init_linear_rows(ops);
}
