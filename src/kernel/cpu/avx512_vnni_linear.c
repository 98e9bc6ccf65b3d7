#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/linear_tmpl.c"

void ew_cpu_avx512_vnni_init_linear(struct ew_cpu_ops *ops)
{
    init_linear(ops);
}
