#include "kernel/cuda/cuda_device.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "kernel/cuda/cuda_kernel.h"
#include "platform/cuda_cache.h"

#define DRIVER_VERSION_MIN 11040 // CUDA 11.4: PTX 7.4
#define MAJOR_MIN 8

static const char *const MODULES[EW_CUDA_MODULE_COUNT] = {
    [EW_CUDA_ROWS] = "rows",
    [EW_CUDA_LINEAR] = "linear",
    [EW_CUDA_SOME] = "some",
    [EW_CUDA_PICK] = "pick",
    [EW_CUDA_MEASURE] = "measure",
    [EW_CUDA_EXPAND] = "expand",
    [EW_CUDA_GEMM] = "gemm",
    [EW_CUDA_ATTENTION] = "attention",
    [EW_CUDA_FLASH_F16] = "flash_f16",
    [EW_CUDA_FLASH_F8] = "flash_f8",
    [EW_CUDA_FLASH_I8] = "flash_i8",
    [EW_CUDA_WGMMA] = "wgmma",
    [EW_CUDA_WGMMA_CODED] = "wgmma_coded",
    [EW_CUDA_WGMMA_F8_MODULE] = "wgmma_f8",
    [EW_CUDA_GEMM_F8_MODULE] = "gemm_f8",
    [EW_CUDA_LATENT] = "latent",
    [EW_CUDA_VECTOR] = "vector",
    [EW_CUDA_DECODE] = "decode",
    [EW_CUDA_EXPERTS] = "experts",
    [EW_CUDA_CHOSEN] = "chosen",
    [EW_CUDA_FEW] = "few",
    [EW_CUDA_STATE] = "state",
};

static const struct {
    enum ew_cuda_module module;
    const char *name;
} KERNELS[EW_CUDA_KERNEL_COUNT] = {
    [EW_CUDA_EMBED] = {EW_CUDA_ROWS, "embed"},
    [EW_CUDA_POSITION] = {EW_CUDA_ROWS, "add_position"},
    [EW_CUDA_NORM] = {EW_CUDA_ROWS, "norm"},
    [EW_CUDA_ROPE_TABLE] = {EW_CUDA_ROWS, "rope_table"},
    [EW_CUDA_ROPE] = {EW_CUDA_ROWS, "rope"},
    [EW_CUDA_ACT] = {EW_CUDA_ROWS, "act"},
    [EW_CUDA_GLU] = {EW_CUDA_ROWS, "glu"},
    [EW_CUDA_ADD] = {EW_CUDA_ROWS, "add"},
    [EW_CUDA_SCALE] = {EW_CUDA_ROWS, "scale"},
    [EW_CUDA_SOFTCAP] = {EW_CUDA_ROWS, "softcap"},
    [EW_CUDA_GATHER] = {EW_CUDA_ROWS, "gather"},
    [EW_CUDA_GATHER_MEAN] = {EW_CUDA_ROWS, "gather_mean"},
    [EW_CUDA_QUANTISE] = {EW_CUDA_ROWS, "quantise"},
    [EW_CUDA_LINEAR_F32] = {EW_CUDA_LINEAR, "linear_f32"},
    [EW_CUDA_LINEAR_F16_1] = {EW_CUDA_LINEAR, "linear_f16_1"},
    [EW_CUDA_LINEAR_F16_8] = {EW_CUDA_LINEAR, "linear_f16_8"},
    [EW_CUDA_LINEAR_BF16_1] = {EW_CUDA_LINEAR, "linear_bf16_1"},
    [EW_CUDA_LINEAR_BF16_8] = {EW_CUDA_LINEAR, "linear_bf16_8"},
    [EW_CUDA_LINEAR_I8_1] = {EW_CUDA_LINEAR, "linear_i8_1"},
    [EW_CUDA_LINEAR_I8_8] = {EW_CUDA_LINEAR, "linear_i8_8"},
    [EW_CUDA_LINEAR_U4_1] = {EW_CUDA_LINEAR, "linear_u4_1"},
    [EW_CUDA_LINEAR_U4_8] = {EW_CUDA_LINEAR, "linear_u4_8"},
    [EW_CUDA_LINEAR_U4_MIN_1] = {EW_CUDA_LINEAR, "linear_u4_min_1"},
    [EW_CUDA_LINEAR_U4_MIN_8] = {EW_CUDA_LINEAR, "linear_u4_min_8"},
    [EW_CUDA_LINEAR_ANY] = {EW_CUDA_LINEAR, "linear_any"},
    [EW_CUDA_SOME_F16_16] = {EW_CUDA_SOME, "some_f16_16"},
    [EW_CUDA_SOME_F16_24] = {EW_CUDA_SOME, "some_f16_24"},
    [EW_CUDA_SOME_F16_32] = {EW_CUDA_SOME, "some_f16_32"},
    [EW_CUDA_SOME_F16_64] = {EW_CUDA_SOME, "some_f16_64"},
    [EW_CUDA_SOME_BF16_16] = {EW_CUDA_SOME, "some_bf16_16"},
    [EW_CUDA_SOME_BF16_24] = {EW_CUDA_SOME, "some_bf16_24"},
    [EW_CUDA_SOME_BF16_32] = {EW_CUDA_SOME, "some_bf16_32"},
    [EW_CUDA_SOME_BF16_64] = {EW_CUDA_SOME, "some_bf16_64"},
    [EW_CUDA_SOME_I8_16] = {EW_CUDA_SOME, "some_i8_16"},
    [EW_CUDA_SOME_I8_24] = {EW_CUDA_SOME, "some_i8_24"},
    [EW_CUDA_SOME_I8_32] = {EW_CUDA_SOME, "some_i8_32"},
    [EW_CUDA_SOME_I8_64] = {EW_CUDA_SOME, "some_i8_64"},
    [EW_CUDA_SOME_U4_16] = {EW_CUDA_SOME, "some_u4_16"},
    [EW_CUDA_SOME_U4_24] = {EW_CUDA_SOME, "some_u4_24"},
    [EW_CUDA_SOME_U4_32] = {EW_CUDA_SOME, "some_u4_32"},
    [EW_CUDA_SOME_U4_64] = {EW_CUDA_SOME, "some_u4_64"},
    [EW_CUDA_SOME_U4_MIN_16] = {EW_CUDA_SOME, "some_u4_min_16"},
    [EW_CUDA_SOME_U4_MIN_24] = {EW_CUDA_SOME, "some_u4_min_24"},
    [EW_CUDA_SOME_U4_MIN_64] = {EW_CUDA_SOME, "some_u4_min_64"},
    [EW_CUDA_SOME_F8_16] = {EW_CUDA_SOME, "some_f8_16"},
    [EW_CUDA_SOME_F8_24] = {EW_CUDA_SOME, "some_f8_24"},
    [EW_CUDA_SOME_F8_32] = {EW_CUDA_SOME, "some_f8_32"},
    [EW_CUDA_SOME_F8_64] = {EW_CUDA_SOME, "some_f8_64"},
    [EW_CUDA_NARROW_F16] = {EW_CUDA_EXPAND, "narrow_f16"},
    [EW_CUDA_NARROW_BF16] = {EW_CUDA_EXPAND, "narrow_bf16"},
    [EW_CUDA_NARROW_F8] = {EW_CUDA_EXPAND, "narrow_f8"},
    [EW_CUDA_NORM_F16] = {EW_CUDA_EXPAND, "norm_f16"},
    [EW_CUDA_NORM_BF16] = {EW_CUDA_EXPAND, "norm_bf16"},
    [EW_CUDA_NORM_F8] = {EW_CUDA_EXPAND, "norm_f8"},
    [EW_CUDA_FORM_F8] = {EW_CUDA_EXPAND, "form_f8"},
    [EW_CUDA_EXPAND_I8] = {EW_CUDA_EXPAND, "expand_i8"},
    [EW_CUDA_EXPAND_U4] = {EW_CUDA_EXPAND, "expand_u4"},
    [EW_CUDA_EXPAND_U4_MIN] = {EW_CUDA_EXPAND, "expand_u4_min"},
    [EW_CUDA_EXPAND_ANY] = {EW_CUDA_EXPAND, "expand_any"},
    [EW_CUDA_JOIN_SUMS] = {EW_CUDA_EXPAND, "join_sums"},
    [EW_CUDA_GEMM_F16] = {EW_CUDA_GEMM, "gemm_f16"},
    [EW_CUDA_GEMM_BF16] = {EW_CUDA_GEMM, "gemm_bf16"},
    [EW_CUDA_PICK_COLUMNS] = {EW_CUDA_STATE, "pick_columns"},
    [EW_CUDA_CONV] = {EW_CUDA_STATE, "conv"},
    [EW_CUDA_CONV_ADVANCE] = {EW_CUDA_STATE, "conv_advance"},
    [EW_CUDA_SCAN_64] = {EW_CUDA_STATE, "scan_64"},
    [EW_CUDA_SCAN_128] = {EW_CUDA_STATE, "scan_128"},
    [EW_CUDA_SCAN_256] = {EW_CUDA_STATE, "scan_256"},
    [EW_CUDA_READ_ALL] = {EW_CUDA_MEASURE, "read_all"},
    [EW_CUDA_MULTIPLY_TILES] = {EW_CUDA_MEASURE, "multiply_tiles"},
    [EW_CUDA_PICK_ADJUST] = {EW_CUDA_PICK, "pick_adjust"},
    [EW_CUDA_PICK_MAX] = {EW_CUDA_PICK, "pick_max"},
    [EW_CUDA_PICK_WEIGH] = {EW_CUDA_PICK, "pick_weigh"},
    [EW_CUDA_PICK_GATHER] = {EW_CUDA_PICK, "pick_gather"},
    [EW_CUDA_PICK_DRAW] = {EW_CUDA_PICK, "pick_draw"},
    [EW_CUDA_APPEND] = {EW_CUDA_ATTENTION, "append"},
    [EW_CUDA_ATTENTION_1] = {EW_CUDA_ATTENTION, "attention_1"},
    [EW_CUDA_ATTENTION_4] = {EW_CUDA_ATTENTION, "attention_4"},
    [EW_CUDA_ATTENTION_8] = {EW_CUDA_ATTENTION, "attention_8"},
    [EW_CUDA_ATTENTION_JOIN] = {EW_CUDA_ATTENTION, "attention_join"},
    [EW_CUDA_FLASH_F16_64] = {EW_CUDA_FLASH_F16, "flash_f16_64"},
    [EW_CUDA_FLASH_F16_96] = {EW_CUDA_FLASH_F16, "flash_f16_96"},
    [EW_CUDA_FLASH_F16_128] = {EW_CUDA_FLASH_F16, "flash_f16_128"},
    [EW_CUDA_FLASH_F16_256] = {EW_CUDA_FLASH_F16, "flash_f16_256"},
    [EW_CUDA_FLASH_F8_64] = {EW_CUDA_FLASH_F8, "flash_f8_64"},
    [EW_CUDA_FLASH_F8_96] = {EW_CUDA_FLASH_F8, "flash_f8_96"},
    [EW_CUDA_FLASH_F8_128] = {EW_CUDA_FLASH_F8, "flash_f8_128"},
    [EW_CUDA_FLASH_F8_256] = {EW_CUDA_FLASH_F8, "flash_f8_256"},
    [EW_CUDA_FLASH_I8_64] = {EW_CUDA_FLASH_I8, "flash_i8_64"},
    [EW_CUDA_FLASH_I8_96] = {EW_CUDA_FLASH_I8, "flash_i8_96"},
    [EW_CUDA_FLASH_I8_128] = {EW_CUDA_FLASH_I8, "flash_i8_128"},
    [EW_CUDA_FLASH_I8_256] = {EW_CUDA_FLASH_I8, "flash_i8_256"},
    [EW_CUDA_WGMMA_F16_256] = {EW_CUDA_WGMMA, "wgmma_f16_256"},
    [EW_CUDA_WGMMA_F16_128] = {EW_CUDA_WGMMA, "wgmma_f16_128"},
    [EW_CUDA_WGMMA_BF16_256] = {EW_CUDA_WGMMA, "wgmma_bf16_256"},
    [EW_CUDA_WGMMA_BF16_128] = {EW_CUDA_WGMMA, "wgmma_bf16_128"},
    [EW_CUDA_WGMMA_F16_GATED] = {EW_CUDA_WGMMA, "wgmma_f16_gated"},
    [EW_CUDA_WGMMA_BF16_GATED] = {EW_CUDA_WGMMA, "wgmma_bf16_gated"},
    [EW_CUDA_GEMM_F8] = {EW_CUDA_GEMM_F8_MODULE, "gemm_f8"},
    [EW_CUDA_WGMMA_F8] = {EW_CUDA_WGMMA_F8_MODULE, "wgmma_f8"},
    [EW_CUDA_WGMMA_F8_GATED] = {EW_CUDA_WGMMA_F8_MODULE, "wgmma_f8_gated"},
    [EW_CUDA_WGMMA_I8_64] = {EW_CUDA_WGMMA_CODED, "wgmma_i8_64"},
    [EW_CUDA_WGMMA_I8_128] = {EW_CUDA_WGMMA_CODED, "wgmma_i8_128"},
    [EW_CUDA_WGMMA_I8_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_i8_64_gated"},
    [EW_CUDA_WGMMA_I8_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_i8_128_gated"},
    [EW_CUDA_WGMMA_U4_64] = {EW_CUDA_WGMMA_CODED, "wgmma_u4_64"},
    [EW_CUDA_WGMMA_U4_128] = {EW_CUDA_WGMMA_CODED, "wgmma_u4_128"},
    [EW_CUDA_WGMMA_U4_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u4_64_gated"},
    [EW_CUDA_WGMMA_U4_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u4_128_gated"},
    [EW_CUDA_WGMMA_TABLE_64] = {EW_CUDA_WGMMA_CODED, "wgmma_table_64"},
    [EW_CUDA_WGMMA_TABLE_128] = {EW_CUDA_WGMMA_CODED, "wgmma_table_128"},
    [EW_CUDA_WGMMA_TABLE_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_table_64_gated"},
    [EW_CUDA_WGMMA_TABLE_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_table_128_gated"},
    [EW_CUDA_WGMMA_TABLE_16_64] = {EW_CUDA_WGMMA_CODED, "wgmma_table_16_64"},
    [EW_CUDA_WGMMA_TABLE_16_128] = {EW_CUDA_WGMMA_CODED, "wgmma_table_16_128"},
    [EW_CUDA_WGMMA_TABLE_16_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_table_16_64_gated"},
    [EW_CUDA_WGMMA_TABLE_16_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_table_16_128_gated"},
    [EW_CUDA_WGMMA_U5_64] = {EW_CUDA_WGMMA_CODED, "wgmma_u5_64"},
    [EW_CUDA_WGMMA_U5_128] = {EW_CUDA_WGMMA_CODED, "wgmma_u5_128"},
    [EW_CUDA_WGMMA_U5_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u5_64_gated"},
    [EW_CUDA_WGMMA_U5_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u5_128_gated"},
    [EW_CUDA_WGMMA_U6_64] = {EW_CUDA_WGMMA_CODED, "wgmma_u6_64"},
    [EW_CUDA_WGMMA_U6_128] = {EW_CUDA_WGMMA_CODED, "wgmma_u6_128"},
    [EW_CUDA_WGMMA_U6_64_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u6_64_gated"},
    [EW_CUDA_WGMMA_U6_128_GATED] = {EW_CUDA_WGMMA_CODED, "wgmma_u6_128_gated"},
    [EW_CUDA_WCODED_JOIN] = {EW_CUDA_WGMMA_CODED, "wcoded_join"},
    [EW_CUDA_NARROW_MIXED] = {EW_CUDA_EXPAND, "narrow_mixed"},
    [EW_CUDA_NORM_MIXED] = {EW_CUDA_EXPAND, "norm_mixed"},
    [EW_CUDA_HEADS] = {EW_CUDA_LATENT, "heads"},
    [EW_CUDA_ATTENTION_LATENT] = {EW_CUDA_LATENT, "attention_latent"},
    [EW_CUDA_ATTENTION_LATENT_16] = {EW_CUDA_LATENT, "attention_latent_16"},
    [EW_CUDA_VECTOR_U4] = {EW_CUDA_VECTOR, "vector_u4"},
    [EW_CUDA_VECTOR_I8] = {EW_CUDA_VECTOR, "vector_i8"},
    [EW_CUDA_VECTOR_F8] = {EW_CUDA_VECTOR, "vector_f8"},
    [EW_CUDA_VECTOR_TABLE] = {EW_CUDA_VECTOR, "vector_table"},
    [EW_CUDA_VECTOR_TABLE_16] = {EW_CUDA_VECTOR, "vector_table_16"},
    [EW_CUDA_VECTOR_U5] = {EW_CUDA_VECTOR, "vector_u5"},
    [EW_CUDA_VECTOR_U6] = {EW_CUDA_VECTOR, "vector_u6"},
    [EW_CUDA_VECTOR_HALF] = {EW_CUDA_VECTOR, "vector_half"},
    [EW_CUDA_VECTOR_U4_SCORED] = {EW_CUDA_VECTOR, "vector_u4_scored"},
    [EW_CUDA_VECTOR_I8_SCORED] = {EW_CUDA_VECTOR, "vector_i8_scored"},
    [EW_CUDA_VECTOR_TABLE_SCORED] = {EW_CUDA_VECTOR, "vector_table_scored"},
    [EW_CUDA_VECTOR_TABLE_16_SCORED] = {EW_CUDA_VECTOR, "vector_table_16_scored"},
    [EW_CUDA_VECTOR_U5_SCORED] = {EW_CUDA_VECTOR, "vector_u5_scored"},
    [EW_CUDA_VECTOR_U6_SCORED] = {EW_CUDA_VECTOR, "vector_u6_scored"},
    [EW_CUDA_VECTOR_F8_SCORED] = {EW_CUDA_VECTOR, "vector_f8_scored"},
    [EW_CUDA_VECTOR_HALF_SCORED] = {EW_CUDA_VECTOR, "vector_half_scored"},
    [EW_CUDA_DECODE_F16_64] = {EW_CUDA_DECODE, "decode_f16_64"},
    [EW_CUDA_DECODE_F16_96] = {EW_CUDA_DECODE, "decode_f16_96"},
    [EW_CUDA_DECODE_F16_128] = {EW_CUDA_DECODE, "decode_f16_128"},
    [EW_CUDA_DECODE_F16_256] = {EW_CUDA_DECODE, "decode_f16_256"},
    [EW_CUDA_DECODE_F8_64] = {EW_CUDA_DECODE, "decode_f8_64"},
    [EW_CUDA_DECODE_F8_96] = {EW_CUDA_DECODE, "decode_f8_96"},
    [EW_CUDA_DECODE_F8_128] = {EW_CUDA_DECODE, "decode_f8_128"},
    [EW_CUDA_DECODE_F8_256] = {EW_CUDA_DECODE, "decode_f8_256"},
    [EW_CUDA_DECODE_I8_64] = {EW_CUDA_DECODE, "decode_i8_64"},
    [EW_CUDA_DECODE_I8_96] = {EW_CUDA_DECODE, "decode_i8_96"},
    [EW_CUDA_DECODE_I8_128] = {EW_CUDA_DECODE, "decode_i8_128"},
    [EW_CUDA_DECODE_I8_256] = {EW_CUDA_DECODE, "decode_i8_256"},
    [EW_CUDA_ROUTE] = {EW_CUDA_EXPERTS, "route"},
    [EW_CUDA_SORT_PAIRS] = {EW_CUDA_EXPERTS, "sort_pairs"},
    [EW_CUDA_COMBINE] = {EW_CUDA_EXPERTS, "combine"},
    [EW_CUDA_EXPERTS_F32] = {EW_CUDA_EXPERTS, "experts_f32"},
    [EW_CUDA_EXPERTS_F16] = {EW_CUDA_EXPERTS, "experts_f16"},
    [EW_CUDA_EXPERTS_BF16] = {EW_CUDA_EXPERTS, "experts_bf16"},
    [EW_CUDA_EXPERTS_I8] = {EW_CUDA_EXPERTS, "experts_i8"},
    [EW_CUDA_EXPERTS_U4] = {EW_CUDA_EXPERTS, "experts_u4"},
    [EW_CUDA_EXPERTS_U4_MIN] = {EW_CUDA_EXPERTS, "experts_u4_min"},
    [EW_CUDA_EXPERTS_ANY] = {EW_CUDA_EXPERTS, "experts_any"},
    [EW_CUDA_EXPERTS_F16_32] = {EW_CUDA_EXPERTS, "experts_f16_32"},
    [EW_CUDA_EXPERTS_BF16_32] = {EW_CUDA_EXPERTS, "experts_bf16_32"},
    [EW_CUDA_EXPERTS_I8_32] = {EW_CUDA_EXPERTS, "experts_i8_32"},
    [EW_CUDA_EXPERTS_U4_32] = {EW_CUDA_EXPERTS, "experts_u4_32"},
    [EW_CUDA_EXPERTS_U4_MIN_32] = {EW_CUDA_EXPERTS, "experts_u4_min_32"},
    [EW_CUDA_EXPERTS_ANY_32] = {EW_CUDA_EXPERTS, "experts_any_32"},
    [EW_CUDA_CHOSEN_F16] = {EW_CUDA_CHOSEN, "chosen_f16"},
    [EW_CUDA_CHOSEN_BF16] = {EW_CUDA_CHOSEN, "chosen_bf16"},
    [EW_CUDA_CHOSEN_I8] = {EW_CUDA_CHOSEN, "chosen_i8"},
    [EW_CUDA_CHOSEN_U4] = {EW_CUDA_CHOSEN, "chosen_u4"},
    [EW_CUDA_CHOSEN_U4_MIN] = {EW_CUDA_CHOSEN, "chosen_u4_min"},
    [EW_CUDA_CHOSEN_F8] = {EW_CUDA_CHOSEN, "chosen_f8"},
    [EW_CUDA_CHOSEN_TABLE] = {EW_CUDA_CHOSEN, "chosen_table"},
    [EW_CUDA_CHOSEN_NV4] = {EW_CUDA_CHOSEN, "chosen_nv4"},
    [EW_CUDA_CHOSEN_TABLE_16] = {EW_CUDA_CHOSEN, "chosen_table_16"},
    [EW_CUDA_CHOSEN_U5] = {EW_CUDA_CHOSEN, "chosen_u5"},
    [EW_CUDA_CHOSEN_U5_MIN] = {EW_CUDA_CHOSEN, "chosen_u5_min"},
    [EW_CUDA_CHOSEN_U6] = {EW_CUDA_CHOSEN, "chosen_u6"},
    [EW_CUDA_SHOW_SCORES] = {EW_CUDA_CHOSEN, "show_scores"},
    [EW_CUDA_TAKE_SCORES] = {EW_CUDA_CHOSEN, "take_scores"},
    [EW_CUDA_LAY_ROUTER] = {EW_CUDA_CHOSEN, "lay_router"},
    [EW_CUDA_FEW_STAGE] = {EW_CUDA_FEW, "few_stage"},
    [EW_CUDA_FEW_F16_1] = {EW_CUDA_FEW, "few_f16_1"},
    [EW_CUDA_FEW_F16_2] = {EW_CUDA_FEW, "few_f16_2"},
    [EW_CUDA_FEW_F16_3] = {EW_CUDA_FEW, "few_f16_3"},
    [EW_CUDA_FEW_F16_4] = {EW_CUDA_FEW, "few_f16_4"},
    [EW_CUDA_FEW_BF16_1] = {EW_CUDA_FEW, "few_bf16_1"},
    [EW_CUDA_FEW_BF16_2] = {EW_CUDA_FEW, "few_bf16_2"},
    [EW_CUDA_FEW_BF16_3] = {EW_CUDA_FEW, "few_bf16_3"},
    [EW_CUDA_FEW_BF16_4] = {EW_CUDA_FEW, "few_bf16_4"},
    [EW_CUDA_FEW_I8_1] = {EW_CUDA_FEW, "few_i8_1"},
    [EW_CUDA_FEW_I8_2] = {EW_CUDA_FEW, "few_i8_2"},
    [EW_CUDA_FEW_I8_3] = {EW_CUDA_FEW, "few_i8_3"},
    [EW_CUDA_FEW_I8_4] = {EW_CUDA_FEW, "few_i8_4"},
    [EW_CUDA_FEW_U4_1] = {EW_CUDA_FEW, "few_u4_1"},
    [EW_CUDA_FEW_U4_2] = {EW_CUDA_FEW, "few_u4_2"},
    [EW_CUDA_FEW_U4_3] = {EW_CUDA_FEW, "few_u4_3"},
    [EW_CUDA_FEW_U4_4] = {EW_CUDA_FEW, "few_u4_4"},
    [EW_CUDA_FEW_F8_1] = {EW_CUDA_FEW, "few_f8_1"},
    [EW_CUDA_FEW_F8_2] = {EW_CUDA_FEW, "few_f8_2"},
    [EW_CUDA_FEW_F8_3] = {EW_CUDA_FEW, "few_f8_3"},
    [EW_CUDA_FEW_F8_4] = {EW_CUDA_FEW, "few_f8_4"},
    [EW_CUDA_FEW_TABLE_1] = {EW_CUDA_FEW, "few_table_1"},
    [EW_CUDA_FEW_TABLE_2] = {EW_CUDA_FEW, "few_table_2"},
    [EW_CUDA_FEW_TABLE_3] = {EW_CUDA_FEW, "few_table_3"},
    [EW_CUDA_FEW_TABLE_4] = {EW_CUDA_FEW, "few_table_4"},
    [EW_CUDA_FEW_TABLE_16_1] = {EW_CUDA_FEW, "few_table_16_1"},
    [EW_CUDA_FEW_TABLE_16_2] = {EW_CUDA_FEW, "few_table_16_2"},
    [EW_CUDA_FEW_TABLE_16_3] = {EW_CUDA_FEW, "few_table_16_3"},
    [EW_CUDA_FEW_TABLE_16_4] = {EW_CUDA_FEW, "few_table_16_4"},
    [EW_CUDA_FEW_U5_1] = {EW_CUDA_FEW, "few_u5_1"},
    [EW_CUDA_FEW_U5_2] = {EW_CUDA_FEW, "few_u5_2"},
    [EW_CUDA_FEW_U5_3] = {EW_CUDA_FEW, "few_u5_3"},
    [EW_CUDA_FEW_U5_4] = {EW_CUDA_FEW, "few_u5_4"},
    [EW_CUDA_FEW_U6_1] = {EW_CUDA_FEW, "few_u6_1"},
    [EW_CUDA_FEW_U6_2] = {EW_CUDA_FEW, "few_u6_2"},
    [EW_CUDA_FEW_U6_3] = {EW_CUDA_FEW, "few_u6_3"},
    [EW_CUDA_FEW_U6_4] = {EW_CUDA_FEW, "few_u6_4"},
};

int ew_cuda_enter(const struct ew_cuda_device *device, struct ew_error *err)
{
    return ew_cuda_check(device, device->driver.cuCtxSetCurrent(device->context), "using the GPU", err);
}

static int read_facts(struct ew_cuda_device *device, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &device->driver;
    int is_integrated = 0, maps_memory = 0, has_clusters = 0;
    const struct {
        enum ew_cuda_attribute attribute;
        int *value;
    } facts[] = {
        {EW_CUDA_ATTR_CC_MAJOR, &device->major},
        {EW_CUDA_ATTR_CC_MINOR, &device->minor},
        {EW_CUDA_ATTR_MULTIPROCESSORS, &device->n_multiprocessors},
        {EW_CUDA_ATTR_SHARED_BYTES_MAX, &device->shared_bytes_max},
        {EW_CUDA_ATTR_INTEGRATED, &is_integrated},
        {EW_CUDA_ATTR_VIRTUAL_MEMORY, &maps_memory},
    };
    int rc = ew_cuda_check(device, driver->cuDeviceGetName(device->name, sizeof(device->name), device->device),
                           "reading the GPU's name", err);

    for (size_t i = 0; i < EW_COUNT_OF(facts) && rc == 0; i++)
        rc = ew_cuda_check(device,
                           driver->cuDeviceGetAttribute(facts[i].value, facts[i].attribute, device->device),
                           "reading what the GPU can do", err);
    device->name[sizeof(device->name) - 1] = 0;
    device->is_integrated = is_integrated;
    if (rc == 0 && driver->cuLaunchKernelEx) // both came with CUDA 11.8
        rc = ew_cuda_check(device,
                           driver->cuDeviceGetAttribute(&has_clusters, EW_CUDA_ATTR_CLUSTER_LAUNCH, device->device),
                           "asking the GPU about clusters", err);
    device->has_clusters = has_clusters;
    if (maps_memory)
        ew_cuda_arena_probe(device);
    return rc;
}

static int check_facts(const struct ew_cuda_device *device, struct ew_error *err)
{
    if (device->driver_version < DRIVER_VERSION_MIN) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "the NVIDIA driver serves CUDA %d.%d, and 11.4 is the oldest that will do",
                device->driver_version / 1000, device->driver_version % 1000 / 10);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "Install a newer driver, or use --backend cpu");
    }
    if (device->major < MAJOR_MIN) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s has compute capability %d.%d, and 8.0 is the oldest that will do",
                device->name, device->major, device->minor);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "Use --backend cpu");
    }
    return 0;
}

static int find_device(struct ew_cuda_device *device, struct ew_error *err)
{
    const struct ew_cuda_driver *driver = &device->driver;
    int n_devices = 0, rc = ew_cuda_check(device, driver->cuInit(0), "starting the NVIDIA driver", err);

    if (rc == 0)
        rc = ew_cuda_check(device, driver->cuDriverGetVersion(&device->driver_version), "reading its version", err);
    if (rc == 0)
        rc = ew_cuda_check(device, driver->cuDeviceGetCount(&n_devices), "counting the GPUs", err);
    if (rc == 0 && n_devices == 0)
        return ew_fail(err, EW_ERR_DEVICE, "the NVIDIA driver sees no GPU");
    if (rc == 0)
        rc = ew_cuda_check(device, driver->cuDeviceGet(&device->device, 0), "taking the first GPU", err);
    if (rc == 0)
        rc = read_facts(device, err);
    return rc ? rc : check_facts(device, err);
}

// Kernels that cannot be kept cost time and nothing else, unless somebody said where.
static int keep_kernels(const char *asked, struct ew_error *err)
{
    struct ew_cuda_cache cache;
    int rc = ew_cuda_cache_find(asked, &cache, err);

    if (rc == 0)
        rc = ew_cuda_cache_use(&cache, err);
    if (rc && cache.kind == EW_CUDA_CACHE_ASKED)
        return rc;
    if (rc)
        ew_log(EW_LOG_WARN, "every start compiles the kernels anew: %s", err ? err->message : "no reason is known");
    else if (cache.kind == EW_CUDA_CACHE_NONE)
        ew_log(EW_LOG_WARN, "every start compiles the kernels anew: %s. Give --cache a directory", cache.why);
    else if (cache.kind == EW_CUDA_CACHE_LEFT)
        ew_log(EW_LOG_INFO, "compiled kernels: %s tells the driver what to do with them", cache.why);
    else
        ew_log(EW_LOG_INFO, "compiled kernels are kept in %s", cache.path);
    return 0;
}

int ew_cuda_device_open(struct ew_cuda_device *device, const char *cache, struct ew_error *err)
{
    int rc = ew_cuda_driver_open(&device->driver, err);

    if (rc == 0)
        rc = ew_cuda_driver_can_compute(&device->driver, err);
    if (rc == 0)
        rc = keep_kernels(cache, err);
    if (rc == 0)
        rc = find_device(device, err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuDevicePrimaryCtxRetain(&device->context, device->device),
                           "making the GPU's context", err);
    if (rc == 0)
        rc = ew_cuda_enter(device, err);
    if (rc == 0)
        rc = ew_cuda_check(device, device->driver.cuStreamCreate(&device->stream, EW_CUDA_STREAM_NON_BLOCKING),
                           "making a stream", err);
    return rc;
}

void ew_cuda_device_share(const struct ew_cuda_device *device, struct ew_cuda_device *out)
{
    *out = *device;
    out->owner = device;
    out->launches = NULL;
}

const char *ew_cuda_kernel_name(enum ew_cuda_kernel kernel)
{
    return KERNELS[kernel].name;
}

void ew_cuda_device_close(struct ew_cuda_device *device)
{
    const struct ew_cuda_driver *driver = &device->driver;

    if (!driver->library)
        return;
    // What a broken context answers here changes nothing: everything goes with it.
    if (device->context)
        (void)driver->cuCtxSetCurrent(device->context);
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT; i++) {
        bool is_own = !device->owner || device->owner->handles[i] != device->handles[i];

        if (device->handles[i] && is_own)
            ew_cuda_kernel_unload(device, device->handles[i]);
    }
    if (device->owner)
        return;
    if (device->stream)
        (void)driver->cuStreamDestroy_v2(device->stream);
    if (device->context)
        (void)driver->cuDevicePrimaryCtxRelease_v2(device->device);
    ew_cuda_driver_close(&device->driver);
}

static int set_attribute(const struct ew_cuda_device *device, int kernel, int attribute, int value,
                         struct ew_error *err)
{
    return ew_cuda_check(device, device->driver.cuFuncSetAttribute(device->functions[kernel], attribute, value),
                         KERNELS[kernel].name, err);
}

bool ew_cuda_kernel_is_missing(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel)
{
    return !device->unwanted[kernel] && !device->functions[kernel];
}

int ew_cuda_kernel_set_up(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_error *err)
{
    int rc = 0;

    if (device->shared_bytes[kernel])
        rc = set_attribute(device, kernel, EW_CUDA_FUNC_MAX_DYNAMIC_SHARED_BYTES, (int)device->shared_bytes[kernel],
                           err);
    if (rc == 0 && device->is_shared && device->waits_itself[kernel])
        rc = set_attribute(device, kernel, EW_CUDA_FUNC_SHARED_CARVEOUT, 100, err);
    return rc;
}

// What nobody foresaw. A device is handed about as const: nothing of it changes but what it has loaded.
static int load_late(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_error *err)
{
    struct ew_cuda_device *whole = (struct ew_cuda_device *)device;
    int rc;

    whole->unwanted[kernel] = false;
    rc = ew_cuda_device_load_module(whole, KERNELS[kernel].module, err);
    if (rc || device->functions[kernel])
        return rc;
    return ew_fail(err, EW_ERR_UNSUPPORTED, "this GPU has no kernel %s", KERNELS[kernel].name);
}

int ew_cuda_share_multiprocessors(struct ew_cuda_device *device, struct ew_error *err)
{
    int rc = 0;

    device->is_shared = true;
    for (int i = 0; i < EW_CUDA_KERNEL_COUNT && rc == 0; i++) {
        if (device->functions[i] && device->waits_itself[i])
            rc = set_attribute(device, i, EW_CUDA_FUNC_SHARED_CARVEOUT, 100, err);
    }
    return rc;
}

int ew_cuda_free_bytes(const struct ew_cuda_device *device, uint64_t *free_bytes, uint64_t *total_bytes,
                       struct ew_error *err)
{
    size_t free_now = 0, total = 0;
    int rc = ew_cuda_check(device, device->driver.cuMemGetInfo_v2(&free_now, &total), "asking for free memory", err);

    *free_bytes = free_now;
    *total_bytes = total;
    return rc;
}

static bool starts_early(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel)
{
    enum ew_cuda_module module = KERNELS[kernel].module;
    bool is_product = module == EW_CUDA_VECTOR || module == EW_CUDA_FEW || module == EW_CUDA_CHOSEN;

    return device->waits_itself[kernel] &&
           (device->way < EW_CUDA_WAY_PRODUCTS_LATE || (device->way == EW_CUDA_WAY_PRODUCTS_LATE && !is_product));
}

int ew_cuda_kernel_need(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_error *err)
{
    return device->functions[kernel] ? 0 : load_late(device, kernel, err);
}

// What plain launches cannot say; at most two things.
static uint32_t list_attributes(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, uint32_t cluster,
                                struct ew_cuda_launch_attribute *list)
{
    uint32_t n = 0;

    if (starts_early(device, kernel))
        list[n++] = (struct ew_cuda_launch_attribute){.id = EW_CUDA_LAUNCH_PROGRAMMATIC, .value.allowed = 1};
    if (cluster > 1)
        list[n++] = (struct ew_cuda_launch_attribute){.id = EW_CUDA_LAUNCH_CLUSTER, .value.dims = {1, 1, cluster}};
    return n;
}

int ew_cuda_launch(const struct ew_cuda_device *device, enum ew_cuda_kernel kernel, struct ew_cuda_grid grid,
                   void **arguments, struct ew_error *err)
{
    struct ew_cuda_launches *launches = device->launches;
    struct ew_cuda_launch_attribute attributes[2];
    struct ew_cuda_launch_config config = {.grid = {grid.x, grid.y, grid.z}, .block = {grid.threads, 1, 1},
                                           .shared_bytes = grid.shared_bytes, .stream = device->stream,
                                           .attributes = attributes};
    int rc = ew_cuda_kernel_need(device, kernel, err), status;

    if (rc)
        return rc;
    if (launches && launches->n < EW_CUDA_LAUNCHES_MAX)
        launches->kernels[launches->n++] = kernel;
    config.n_attributes = list_attributes(device, kernel, grid.cluster, attributes);
    if (config.n_attributes)
        status = device->driver.cuLaunchKernelEx(&config, device->functions[kernel], arguments, NULL);
    else
        status = device->driver.cuLaunchKernel(device->functions[kernel], grid.x, grid.y, grid.z, grid.threads, 1, 1,
                                               grid.shared_bytes, device->stream, arguments, NULL);
    return status ? ew_cuda_check(device, status, KERNELS[kernel].name, err) : 0;
}

int ew_cuda_allow_shared(struct ew_cuda_device *device, enum ew_cuda_kernel kernel, uint32_t bytes,
                         struct ew_error *err)
{
    device->shared_bytes[kernel] = bytes;
    if (!device->functions[kernel])
        return 0;
    return set_attribute(device, kernel, EW_CUDA_FUNC_MAX_DYNAMIC_SHARED_BYTES, (int)bytes, err);
}

enum ew_cuda_module ew_cuda_kernel_module(enum ew_cuda_kernel kernel)
{
    return KERNELS[kernel].module;
}

const char *ew_cuda_module_name(enum ew_cuda_module module)
{
    return MODULES[module];
}
