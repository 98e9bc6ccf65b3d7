#include "kernel/cpu/vec_avx2.h"

#include "base/half.h"
#include "kernel/cpu/rows_tmpl.c"

void ew_cpu_avx2_init_rows(struct ew_cpu_ops *ops)
{
    init_rows(ops);
}
