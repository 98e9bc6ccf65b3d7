#pragma once
// How matrices lie in memory (docs/kernels.md).

#include <stdbool.h>
#include <stdint.h>

#include "kernel/ops.h"

#define EW_CPU_TILE_ROWS 16 // rows of a matrix that one kernel call works on
#define EW_CPU_GROUP 32     // elements of a row that share a scale

enum ew_cpu_layout {
    EW_CPU_FILE, // the file's own encoding, row by row, decoded by the reference codec
    EW_CPU_LAYOUT_COUNT
};

struct ew_cpu_matrix {
    enum ew_cpu_layout layout;
    enum ew_dtype dtype;     // FILE: of the rows
    uint32_t rows, cols;
    const uint8_t *data;     // maybe unaligned where it is mapped
    uint64_t row_bytes;      // FILE
    bool is_mapped;          // data belongs to the source
};

// Whether products with it take 8-bit activations.
static inline bool ew_cpu_layout_wants_q8(enum ew_cpu_layout layout)
{
    return layout > EW_CPU_FILE && layout < EW_CPU_LAYOUT_COUNT;
}

static inline uint32_t ew_cpu_tiles(uint32_t rows)
{
    return rows / EW_CPU_TILE_ROWS + (rows % EW_CPU_TILE_ROWS != 0);
}

void ew_cpu_matrix_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out); // decodes one row, exactly
