#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/attention_tmpl.c"

void ew_cpu_neon_init_attention(struct ew_cpu_ops *ops)
{
    init_attention(ops);
}
