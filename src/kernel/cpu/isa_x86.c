#include "kernel/cpu/cpu_ops.h"
#include "platform/cpu.h"

void ew_cpu_ops_init(struct ew_cpu_ops *ops, uint32_t isa_mask)
{
    ew_cpu_ops_init_reference(ops);
    if (isa_mask & EW_ISA_AVX2) {
        ew_cpu_avx2_init_linear(ops);
        ew_cpu_avx2_init_dense(ops);
        ew_cpu_avx2_init_rows(ops);
        ew_cpu_avx2_init_attention(ops);
    }
    if (isa_mask & EW_ISA_AVX512) {
        ew_cpu_avx512_init_linear(ops);
        ew_cpu_avx512_init_dense(ops);
        ew_cpu_avx512_init_rows(ops);
        ew_cpu_avx512_init_attention(ops);
    }
    if (isa_mask & EW_ISA_AVX512_VNNI)
        ew_cpu_avx512_vnni_init_linear(ops);
    if (isa_mask & EW_ISA_AVX512_VBMI)
        ew_cpu_avx512_vbmi_init_linear(ops);
    if (isa_mask & EW_ISA_AMX) {
        ew_cpu_amx_init_linear(ops);
        ew_cpu_amx_init_dense(ops);
        ew_cpu_amx_init_prompt(ops);
    }
}
