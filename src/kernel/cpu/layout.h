#pragma once
// How matrices lie in memory (docs/kernels.md says why).
//
// Row layouts keep rows one after the other as the file has them. Tile layouts hold EW_CPU_TILE_ROWS rows
// together, so that a vector register takes the same four elements of several rows and nothing has to be
// summed across a register:
//
//   tile  = codes of every group, then scales of every group (each part 64-byte aligned)
//   codes = for each group of 32 columns, words of four bytes [word][row]:
//             8-bit codes: word w holds elements 4w ... 4w + 3                                   (8 words a row)
//             4-bit codes: low nibbles elements 4w ... 4w + 3, high nibbles 16 + 4w ... 19 + 4w  (4 words a row)
//             U5 adds one word a row: bit w of byte j is bit 4 of element 4w + j
//             U6 adds two: bits 2w, 2w + 1 of byte j of the first are bits 4, 5 of element 4w + j, of the second
//             those of 16 + 4w + j

#include <stdbool.h>
#include <stdint.h>

#include "kernel/ops.h"

#define EW_CPU_TILE_ROWS 16 // rows of a matrix that one kernel call works on; row layouts are walked in the same steps
#define EW_CPU_GROUP 32     // elements of a row that share a scale
#define EW_CPU_SUPER 8      // groups under one scale of the second level
#define EW_CPU_FP8_SPAN 128 // columns of FP8 under one scale

// What the codes of a group are. Those that stand for the values of a table (EW_CPU_TABLES) are nibbles.
enum ew_cpu_code {
    EW_CPU_CODE_I8,
    EW_CPU_CODE_U4,
    EW_CPU_CODE_U5,
    EW_CPU_CODE_U6,
    EW_CPU_CODE_IQ4, // tables from here on
    EW_CPU_CODE_E2M1,
    EW_CPU_CODE_IQ1,
    EW_CPU_CODE_IQ2,
    EW_CPU_CODE_IQ3_XXS,
    EW_CPU_CODE_IQ3_S,
    EW_CPU_CODE_COUNT
};

// What the nibbles of a code stand for. Where `offset` is not 0, kernels look up value + offset, which is no less than
// 0 and has few bits, instead of the value.
struct ew_cpu_table {
    int8_t values[16];
    int offset;
};

// Values of ggml's types, and E2M1 of the OCP microscaling formats, doubled to be whole. Those of iq1 are
// 8 * (-1, 0, 1) less and more 1, those of iq3_xxs half of the lattice's, and signs the upper bit of their codes.
static const struct ew_cpu_table EW_CPU_TABLES[EW_CPU_CODE_COUNT] = {
    [EW_CPU_CODE_IQ4] = {{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}, 0},
    [EW_CPU_CODE_E2M1] = {{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 12},
    [EW_CPU_CODE_IQ1] = {{-9, -7, -1, 1, 7, 9}, 9},
    [EW_CPU_CODE_IQ2] = {{8, 25, 43, 0, 0, 0, 0, 0, -8, -25, -43}, 0},
    [EW_CPU_CODE_IQ3_XXS] = {{2, 6, 10, 14, 18, 22, 26, 31, -2, -6, -10, -14, -18, -22, -26, -31}, 0},
    [EW_CPU_CODE_IQ3_S] = {{1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15}, 15},
};

// Scales of a tile, each entry for all 16 rows.
enum ew_cpu_scale {
    EW_CPU_SCALE_F16, // a group: f16 [16]
    EW_CPU_SCALE_MIN, // a group: f16 scale [16], f16 minimum [16]
    // A super-group: f16 scale [16], f16 minimum [16], then their 6-bit factors: low nibbles u8 [8][16]
    // (scale | minimum << 4), high pairs u8 [4][16] (groups 0 ... 3: scale | minimum << 2; 4 ... 7: the same, << 4).
    EW_CPU_SCALE_K,
    EW_CPU_SCALE_S16,  // a super-group: f16 [16], i8 [16 half groups][16]
    EW_CPU_SCALE_S32,  // a super-group: f16 [16], i8 [8 groups][16]
    EW_CPU_SCALE_E8M0, // a group: u8 [16], half of 2^(e - 127); 0 and 1 (below f32's normal numbers) count as zero
    // Half a group: u8 [16], half of the unsigned e4m3 (no NaN: 0x7F is 480). Before all of them stands what each row's
    // are multiplied with: f32 [16].
    EW_CPU_SCALE_E4M3,
    EW_CPU_SCALE_ZERO, // two groups: f16 [16], zero point u8 [16]
    // A super-group: f16 scale [16], f16 minimum [16], then their 4-bit factors: u8 [16 half groups][16]
    // (scale | minimum << 4).
    EW_CPU_SCALE_S16_MIN,
};

// Layouts with codes and scales: name, code, scale, what is taken from codes, what scales are multiplied with. The
// value is unit * scale * (code - offset) + minimum.
#define EW_CPU_CODED_LAYOUTS(X)                                                                                        \
    X(I8, i8, I8, F16, 0, 1)                     /* q8_0 */                                                            \
    X(U4, u4, U4, F16, 8, 1)                     /* q4_0 */                                                            \
    X(U4_MIN, u4_min, U4, MIN, 0, 1)             /* q4_1 */                                                            \
    X(U4_ZERO, u4_zero, U4, ZERO, 0, 1)          /* q4_zero: AWQ, GPTQ */                                              \
    X(U4_K, u4_k, U4, K, 0, 1)                   /* q4_k */                                                            \
    X(U4_S16, u4_s16, U4, S16, 4, 1)             /* q3_k */                                                            \
    X(U4_S16_MIN, u4_s16_min, U4, S16_MIN, 0, 1) /* q2_k */                                                            \
    X(U4_S32, u4_s32, U4, S32, 1, 1)             /* tq1_0, tq2_0 */                                                    \
    X(U5, u5, U5, F16, 16, 1)                    /* q5_0 */                                                            \
    X(U5_MIN, u5_min, U5, MIN, 0, 1)             /* q5_1 */                                                            \
    X(U5_K, u5_k, U5, K, 0, 1)                   /* q5_k */                                                            \
    X(U6_K, u6_k, U6, S16, 32, 1)                /* q6_k */                                                            \
    X(IQ4, iq4, IQ4, F16, 0, 1)                  /* iq4_nl */                                                          \
    X(IQ4_XS, iq4_xs, IQ4, S32, 0, 1)            /* iq4_xs */                                                          \
    X(IQ1_S, iq1_s, IQ1, S32, 0, 0.125f)         /* iq1_s */                                                           \
    X(IQ1_M, iq1_m, IQ1, S16, 0, 0.125f)         /* iq1_m */                                                           \
    X(IQ2_XXS, iq2_xxs, IQ2, S32, 0, 0.125f)     /* iq2_xxs */                                                         \
    X(IQ2_S, iq2_s, IQ2, S16, 0, 0.125f)         /* iq2_xs, iq2_s */                                                   \
    X(IQ3_XXS, iq3_xxs, IQ3_XXS, S32, 0, 0.5f)   /* iq3_xxs */                                                         \
    X(IQ3_S, iq3_s, IQ3_S, S32, 0, 1)            /* iq3_s */                                                           \
    X(MXFP4, mxfp4, E2M1, E8M0, 0, 1)            /* mxfp4 */                                                           \
    X(NVFP4, nvfp4, E2M1, E4M3, 0, 1)            /* nvfp4, nvfp4_s */

enum ew_cpu_layout {
    EW_CPU_FILE, // rows in the file's own encoding, decoded by the reference codec
    EW_CPU_F32,  // rows
    EW_CPU_F16,
    EW_CPU_BF16,
    EW_CPU_F16_TILES, // tiles from here on: f16 and bf16 for matrix units, pairs of columns, no scales
    EW_CPU_BF16_TILES,
    // With 8-bit activations from here on.
    EW_CPU_FP8, // e4m3 [pair of columns][row][2], then for each 128 columns f32 [row]; where ew_cpu_ops.has_fp8
#define X(NAME, name, code, scale, offset, unit) EW_CPU_##NAME,
    EW_CPU_CODED_LAYOUTS(X)
#undef X
    EW_CPU_LAYOUT_COUNT
};

// Where a tile of FP8 has its code: the two columns of a pair lie in the two bytes of a word.
static inline uint64_t ew_cpu_fp8_at(uint32_t column, uint32_t row)
{
    return (uint64_t)(column / 2) * 2 * EW_CPU_TILE_ROWS + 2 * row + column % 2;
}

struct ew_cpu_layout_info {
    const char *name;
    enum ew_cpu_code code;
    enum ew_cpu_scale scale;
    int offset;
    float unit;
};

struct ew_cpu_matrix {
    enum ew_cpu_layout layout;
    enum ew_dtype dtype; // FILE: of the rows
    uint32_t rows, cols;
    const uint8_t *data;           // maybe unaligned where it is mapped
    uint64_t row_bytes;            // row layouts
    uint64_t tile_bytes, scale_at; // tile layouts: of one tile, and where its scales begin
    uint64_t expert_bytes;         // from one matrix of a stack to the next
    bool is_mapped;                // data belongs to the source
    const uint32_t *order;         // [cols] element of the activations that each column stands for; NULL: the same
};

#define EW_CPU_HALF_BYTES (2 * EW_CPU_GROUP * EW_CPU_TILE_ROWS) // of a group of a tile of f16 or bf16

const struct ew_cpu_layout_info *ew_cpu_layout_info(enum ew_cpu_layout layout); // NULL without codes and scales
const char *ew_cpu_layout_name(enum ew_cpu_layout layout);
uint32_t ew_cpu_code_bytes(enum ew_cpu_code code);     // of a group of a tile
uint32_t ew_cpu_scale_bytes(enum ew_cpu_scale scale);  // of a group, or of a super-group
uint32_t ew_cpu_scale_groups(enum ew_cpu_scale scale); // that these serve: 1, 2 or EW_CPU_SUPER
uint32_t ew_cpu_scale_head(enum ew_cpu_scale scale);   // bytes before the scales of a tile

// The layout that holds a file type exactly, or else the one that it is expanded to (*exact false).
enum ew_cpu_layout ew_cpu_layout_of(enum ew_dtype dtype, bool *exact);
// Fills row_bytes, or tile_bytes and scale_at, from layout, dtype and cols; returns the bytes of the whole
// matrix, 0 on overflow.
uint64_t ew_cpu_matrix_shape(struct ew_cpu_matrix *matrix);
// Writes tile `tile` from its rows as the file has them (fewer than 16 at the end: the others become zero).
void ew_cpu_tile_pack(const struct ew_cpu_matrix *matrix, uint32_t tile, enum ew_dtype dtype, const uint8_t *rows,
                      uint32_t n_rows, uint8_t *dst, float *scratch);
// One group of a row as a file has it, unpacked; what its type does not have is not set.
struct ew_cpu_group {
    uint8_t codes[32];           // 8-bit codes; or 16 bytes of nibbles, elements i and i + 16
    uint8_t high[32];            // bits 4 and 5 of each element
    uint16_t scale, min;         // f16
    uint8_t small[2], small_min; // scales under a super-group's, maybe with minima; E8M0; E4M3; zero point
    float factor;                // of the whole row
};

// Of the types with codes, all of which have a layout (ew_cpu_layout_of). `decoded`: the row's elements, for those
// types that want them.
void ew_cpu_group_unpack(enum ew_dtype dtype, const uint8_t *row, uint32_t group, const float *decoded,
                         struct ew_cpu_group *out);
bool ew_cpu_group_wants_decoded(enum ew_dtype dtype);
// 32 numbers rounded to 8-bit codes and their scale.
void ew_cpu_group_round(const float *in, struct ew_cpu_group *out);
// Decodes one row exactly.
void ew_cpu_matrix_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out);

static inline bool ew_cpu_layout_is_tiled(enum ew_cpu_layout layout)
{
    return layout >= EW_CPU_F16_TILES && layout < EW_CPU_LAYOUT_COUNT;
}

// Whether products with it take activations rounded to bf16.
static inline bool ew_cpu_layout_wants_bf16(enum ew_cpu_layout layout)
{
    return layout == EW_CPU_F16_TILES || layout == EW_CPU_BF16_TILES;
}

// Whether products with it take 8-bit activations.
static inline bool ew_cpu_layout_wants_q8(enum ew_cpu_layout layout)
{
    return layout >= EW_CPU_FP8 && layout < EW_CPU_LAYOUT_COUNT;
}

// Where a tile of f16 or bf16 has an element. A matrix unit takes pairs of bf16 beside each other as they lie; f16 is
// unpacked, for which all rows of a column lie together.
static inline uint64_t ew_cpu_half_at(enum ew_cpu_layout layout, uint32_t row, uint32_t column)
{
    uint64_t pair = (uint64_t)(column / 2) * (4 * EW_CPU_TILE_ROWS);

    return layout == EW_CPU_F16_TILES ? pair + column % 2 * (2 * EW_CPU_TILE_ROWS) + 2 * row
                                      : pair + 4 * row + 2 * (column % 2);
}

static inline uint32_t ew_cpu_tiles(uint32_t rows)
{
    return rows / EW_CPU_TILE_ROWS + (rows % EW_CPU_TILE_ROWS != 0);
}
