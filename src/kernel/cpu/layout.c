#include "kernel/cpu/layout.h"

void ew_cpu_matrix_row(const struct ew_cpu_matrix *matrix, uint32_t row, float *out)
{
    ew_dtype_info(matrix->dtype)->decode(matrix->data + row * matrix->row_bytes, out, matrix->cols);
}
