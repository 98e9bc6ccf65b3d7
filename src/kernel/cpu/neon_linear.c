#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/linear_tmpl.c"

void ew_cpu_neon_init_linear(struct ew_cpu_ops *ops)
{
    init_linear(ops);
}
