#include "kernel/cpu/cpu_ops.h"
#include "platform/cpu.h"

void ew_cpu_ops_init(struct ew_cpu_ops *ops, uint32_t isa_mask)
{
    ew_cpu_ops_init_reference(ops);
    if (isa_mask & EW_ISA_NEON) {
        ew_cpu_neon_init_linear(ops);
        ew_cpu_neon_init_dense(ops);
        ew_cpu_neon_init_rows(ops);
        ew_cpu_neon_init_attention(ops);
    }
    if (isa_mask & EW_ISA_DOTPROD)
        ew_cpu_neon_dotprod_init_linear(ops);
    if (isa_mask & EW_ISA_I8MM)
        ew_cpu_neon_i8mm_init_linear(ops);
}
