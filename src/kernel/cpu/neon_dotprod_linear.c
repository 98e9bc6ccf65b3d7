#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/linear_tmpl.c"

void ew_cpu_neon_dotprod_linear(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)
{
    LINEAR[job->matrix->layout](job, tile, tile_end);
}

void ew_cpu_neon_dotprod_init_linear(struct ew_cpu_ops *ops)
{
    init_linear(ops);
}
