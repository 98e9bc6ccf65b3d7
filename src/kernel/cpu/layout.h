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

enum ew_cpu_layout {
    EW_CPU_FILE, // rows in the file's own encoding, decoded by the reference codec
    EW_CPU_F32,  // rows
    EW_CPU_F16,
    EW_CPU_BF16,
    EW_CPU_F16_TILES, // tiles from here on: f16 and bf16 for matrix units, pairs of columns, no scales
    EW_CPU_BF16_TILES,
    EW_CPU_I8,     // with 8-bit activations from here on: q8_0
    EW_CPU_U4,     // q4_0
    EW_CPU_U4_MIN, // q4_1
    EW_CPU_U4_K,   // q4_k
    EW_CPU_U5,     // q5_0
    EW_CPU_U5_MIN, // q5_1
    EW_CPU_U5_K,   // q5_k
    EW_CPU_U6_K,   // q6_k
    EW_CPU_IQ4,    // iq4_nl
    EW_CPU_IQ4_XS, // iq4_xs
    EW_CPU_MXFP4,  // mxfp4
    EW_CPU_NVFP4,  // nvfp4
    EW_CPU_LAYOUT_COUNT
};

enum ew_cpu_code { EW_CPU_CODE_I8, EW_CPU_CODE_U4, EW_CPU_CODE_U5, EW_CPU_CODE_U6, EW_CPU_CODE_IQ4, EW_CPU_CODE_E2M1 };

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
    EW_CPU_SCALE_E4M3, // half a group: u8 [16], half of the unsigned e4m3 (no NaN: 0x7F is 480)
};

struct ew_cpu_layout_info {
    const char *name;
    enum ew_cpu_code code;
    enum ew_cpu_scale scale;
    int offset; // of unsigned codes: the value is scale * (code - offset)
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
};

#define EW_CPU_HALF_BYTES (2 * EW_CPU_GROUP * EW_CPU_TILE_ROWS) // of a group of a tile of f16 or bf16

const struct ew_cpu_layout_info *ew_cpu_layout_info(enum ew_cpu_layout layout); // NULL without codes and scales
const char *ew_cpu_layout_name(enum ew_cpu_layout layout);
uint32_t ew_cpu_code_bytes(enum ew_cpu_code code);     // of a group of a tile
uint32_t ew_cpu_scale_bytes(enum ew_cpu_scale scale);  // of a group, or of a super-group
uint32_t ew_cpu_scale_groups(enum ew_cpu_scale scale); // that these serve: 1 or EW_CPU_SUPER
extern const int8_t ew_cpu_values_iq4[16], ew_cpu_values_e2m1[16];

// The layout that holds a file type exactly, or else the one that it is expanded to (*exact false).
enum ew_cpu_layout ew_cpu_layout_of(enum ew_dtype dtype, bool *exact);
// Fills row_bytes, or tile_bytes and scale_at, from layout, dtype and cols; returns the bytes of the whole
// matrix, 0 on overflow.
uint64_t ew_cpu_matrix_shape(struct ew_cpu_matrix *matrix);
// Writes tile `tile` from its rows as the file has them (fewer than 16 at the end: the others become zero).
void ew_cpu_tile_pack(const struct ew_cpu_matrix *matrix, uint32_t tile, enum ew_dtype dtype, const uint8_t *rows,
                      uint32_t n_rows, uint8_t *dst, float *scratch);
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
    return layout >= EW_CPU_I8 && layout < EW_CPU_LAYOUT_COUNT;
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
