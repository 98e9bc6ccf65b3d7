// The table of element types and its lookups.

#include "format/dtype.h"

#include "base/assert.h"
#include "format/quant.h"

// Numbers of GGUF are those of enum ggml_type in the specification; the gaps are types that it has
// withdrawn or never stores.
static const struct ew_dtype_info g_infos[EW_DTYPE_COUNT] = {
    [EW_DTYPE_F32] = {"f32", "F32", 0, 1, 4, ew__decode_f32, ew__encode_f32},
    [EW_DTYPE_F16] = {"f16", "F16", 1, 1, 2, ew__decode_f16, ew__encode_f16},
    [EW_DTYPE_BF16] = {"bf16", "BF16", 30, 1, 2, ew__decode_bf16, ew__encode_bf16},
    [EW_DTYPE_F64] = {"f64", "F64", 28, 1, 8, ew__decode_f64, NULL},
    [EW_DTYPE_I8] = {"i8", "I8", 24, 1, 1, NULL, NULL},
    [EW_DTYPE_I16] = {"i16", "I16", 25, 1, 2, NULL, NULL},
    [EW_DTYPE_I32] = {"i32", "I32", 26, 1, 4, NULL, NULL},
    [EW_DTYPE_I64] = {"i64", "I64", 27, 1, 8, NULL, NULL},
    [EW_DTYPE_U8] = {"u8", "U8", -1, 1, 1, NULL, NULL},
    [EW_DTYPE_BOOL] = {"bool", "BOOL", -1, 1, 1, NULL, NULL},
    [EW_DTYPE_F8_E4M3] = {"f8_e4m3", "F8_E4M3", -1, 1, 1, ew__decode_f8_e4m3, ew__encode_f8_e4m3},
    [EW_DTYPE_F8_E5M2] = {"f8_e5m2", "F8_E5M2", -1, 1, 1, ew__decode_f8_e5m2, NULL},
    [EW_DTYPE_Q4_0] = {"q4_0", NULL, 2, EW__BLOCK, EW__Q4_0_BYTES, ew__decode_q4_0, ew__encode_q4_0},
    [EW_DTYPE_Q4_1] = {"q4_1", NULL, 3, EW__BLOCK, EW__Q4_1_BYTES, ew__decode_q4_1, ew__encode_q4_1},
    [EW_DTYPE_Q5_0] = {"q5_0", NULL, 6, EW__BLOCK, EW__Q5_0_BYTES, ew__decode_q5_0, ew__encode_q5_0},
    [EW_DTYPE_Q5_1] = {"q5_1", NULL, 7, EW__BLOCK, EW__Q5_1_BYTES, ew__decode_q5_1, ew__encode_q5_1},
    [EW_DTYPE_Q8_0] = {"q8_0", NULL, 8, EW__BLOCK, EW__Q8_0_BYTES, ew__decode_q8_0, ew__encode_q8_0},
    [EW_DTYPE_Q2_K] = {"q2_k", NULL, 10, EW__SUPER, EW__Q2_K_BYTES, ew__decode_q2_k, NULL},
    [EW_DTYPE_Q3_K] = {"q3_k", NULL, 11, EW__SUPER, EW__Q3_K_BYTES, ew__decode_q3_k, NULL},
    [EW_DTYPE_Q4_K] = {"q4_k", NULL, 12, EW__SUPER, EW__Q4_K_BYTES, ew__decode_q4_k, ew__encode_q4_k},
    [EW_DTYPE_Q5_K] = {"q5_k", NULL, 13, EW__SUPER, EW__Q5_K_BYTES, ew__decode_q5_k, ew__encode_q5_k},
    [EW_DTYPE_Q6_K] = {"q6_k", NULL, 14, EW__SUPER, EW__Q6_K_BYTES, ew__decode_q6_k, ew__encode_q6_k},
    [EW_DTYPE_IQ4_NL] = {"iq4_nl", NULL, 20, EW__BLOCK, EW__IQ4_NL_BYTES, ew__decode_iq4_nl, NULL},
    [EW_DTYPE_IQ4_XS] = {"iq4_xs", NULL, 23, EW__SUPER, EW__IQ4_XS_BYTES, ew__decode_iq4_xs, NULL},
    [EW_DTYPE_IQ2_XXS] = {"iq2_xxs", NULL, 16, EW__SUPER, EW__IQ2_XXS_BYTES, ew__decode_iq2_xxs, NULL},
    [EW_DTYPE_IQ2_XS] = {"iq2_xs", NULL, 17, EW__SUPER, EW__IQ2_XS_BYTES, ew__decode_iq2_xs, NULL},
    [EW_DTYPE_IQ2_S] = {"iq2_s", NULL, 22, EW__SUPER, EW__IQ2_S_BYTES, ew__decode_iq2_s, NULL},
    [EW_DTYPE_IQ3_XXS] = {"iq3_xxs", NULL, 18, EW__SUPER, EW__IQ3_XXS_BYTES, ew__decode_iq3_xxs, NULL},
    [EW_DTYPE_IQ3_S] = {"iq3_s", NULL, 21, EW__SUPER, EW__IQ3_S_BYTES, ew__decode_iq3_s, NULL},
    [EW_DTYPE_IQ1_S] = {"iq1_s", NULL, 19, EW__SUPER, EW__IQ1_S_BYTES, ew__decode_iq1_s, NULL},
    [EW_DTYPE_IQ1_M] = {"iq1_m", NULL, 29, EW__SUPER, EW__IQ1_M_BYTES, ew__decode_iq1_m, NULL},
    [EW_DTYPE_TQ1_0] = {"tq1_0", NULL, 34, EW__SUPER, EW__TQ1_0_BYTES, ew__decode_tq1_0, NULL},
    [EW_DTYPE_TQ2_0] = {"tq2_0", NULL, 35, EW__SUPER, EW__TQ2_0_BYTES, ew__decode_tq2_0, NULL},
    [EW_DTYPE_MXFP4] = {"mxfp4", NULL, 39, EW__BLOCK, EW__MXFP4_BYTES, ew__decode_mxfp4, NULL},
    [EW_DTYPE_NVFP4] = {"nvfp4", NULL, 40, EW__NVFP4_ELEMENTS, EW__NVFP4_BYTES, ew__decode_nvfp4, NULL},
    [EW_DTYPE_FP8] = {"fp8", NULL, -1, EW__FP8_ELEMENTS, EW__FP8_BYTES, ew__decode_fp8, NULL},
    [EW_DTYPE_Q4_ZERO] = {"q4_zero", NULL, -1, EW__Q4_ZERO_ELEMENTS, EW__Q4_ZERO_BYTES, ew__decode_q4_zero, NULL},
    [EW_DTYPE_NVFP4_S] = {"nvfp4_s", NULL, -1, EW__NVFP4_ELEMENTS, EW__NVFP4_S_BYTES, ew__decode_nvfp4_s, NULL},
};

const struct ew_dtype_info *ew_dtype_info(enum ew_dtype dtype)
{
    EW_ASSERT((unsigned)dtype < EW_DTYPE_COUNT);
    return &g_infos[dtype];
}

const char *ew_dtype_name(enum ew_dtype dtype)
{
    return ew_dtype_info(dtype)->name;
}

int ew_dtype_by_name(struct ew_str name)
{
    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        if (ew_str_is(name, g_infos[i].name))
            return i;
    return -1;
}

int ew_dtype_by_gguf(uint32_t ggml_type)
{
    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        if (g_infos[i].gguf_type >= 0 && (uint32_t)g_infos[i].gguf_type == ggml_type)
            return i;
    return -1;
}

int ew_dtype_by_safetensors(struct ew_str name)
{
    for (int i = 0; i < EW_DTYPE_COUNT; i++)
        if (g_infos[i].safetensors && ew_str_is(name, g_infos[i].safetensors))
            return i;
    return -1;
}

uint64_t ew_dtype_row_bytes(enum ew_dtype dtype, uint64_t n)
{
    const struct ew_dtype_info *info = ew_dtype_info(dtype);
    uint64_t bytes;

    if (n % info->block_elements != 0 || __builtin_mul_overflow(n / info->block_elements, info->block_bytes, &bytes))
        return 0;
    return bytes;
}
