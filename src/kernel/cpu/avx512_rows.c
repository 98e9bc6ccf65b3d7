#include "kernel/cpu/vec_avx512.h"

#include "base/half.h"
#include "kernel/cpu/rows_tmpl.c"

void ew_cpu_avx512_init_rows(struct ew_cpu_ops *ops)
{
    init_rows(ops);
}
