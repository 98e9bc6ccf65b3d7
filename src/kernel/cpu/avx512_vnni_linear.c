#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/linear_tmpl.c"

void ew_cpu_avx512_vnni_linear(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)
{
    LINEAR[job->matrix->layout](job, tile, tile_end);
}

// ---- prompts of FP8 -----------------------------------------------------------------------------

// 32 columns without the scales of the file; returns the power of two under each row's largest magnitude, and never 0,
// so that zeros stay zeros.
VEC_INLINE vf load_fp8(const uint8_t *codes, vf *w)
{
    vf largest = vf_set1(1e-20f);

    for (uint32_t column = 0; column < EW_CPU_GROUP; column += FP8_COLUMNS)
        vf_load_e4m3(codes + column * EW_CPU_TILE_ROWS, w + column);
    for (uint32_t i = 0; i < EW_CPU_GROUP; i++)
        largest = vf_max(largest, vf_abs(w[i]));
    return vf_bits(vi_and(vi_bits(largest), vi_set1(0x7F800000)));
}

// Groups of FP8 rounded to 8 bits with a scale each, for prompts: their products are three times as fast. Steps are
// those of layout_pack.c.
VEC_INLINE void unpack_fp8(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    const vi byte = vi_set1(255);

    for (uint32_t i = 0; i < n; i++) {
        const float *scales = (const float *)tile->scales +
                              (uint64_t)(first + i) / (EW_CPU_FP8_SPAN / EW_CPU_GROUP) * EW_CPU_TILE_ROWS;
        vf w[EW_CPU_GROUP], power = load_fp8(tile->codes + (uint64_t)(first + i) * code_bytes(form), w);
        vf inverse = vf_div(vf_set1(64), power);

        vf_store(slab->scales[i][0], vf_mul(vf_mul(power, vf_set1(FP8_UNIT / 64)), vf_load(scales)));
        for (uint32_t word = 0; word < 8; word++) {
            vi packed = vi_zero();

            for (uint32_t k = 0; k < 4; k++)
                packed = vi_or(packed, vi_shl(vi_and(vi_round(vf_mul(w[4 * word + k], inverse)), byte), (int)(8 * k)));
            vb_store(slab->codes[i][word], vb_biased(vb_of_vi(packed)));
        }
    }
}

void ew_cpu_avx512_vnni_prompt_fp8(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)
{
    many_tiles((struct form){EW_CPU_CODE_I8, EW_CPU_SCALE_F16, 0, 1, false}, job, tile, tile_end, unpack_fp8);
}

void ew_cpu_avx512_vnni_init_linear(struct ew_cpu_ops *ops)
{
    init_linear(ops);
}
