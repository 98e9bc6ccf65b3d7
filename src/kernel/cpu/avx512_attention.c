#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/attention_tmpl.c"

void ew_cpu_avx512_init_attention(struct ew_cpu_ops *ops)
{
    init_attention(ops);
}
