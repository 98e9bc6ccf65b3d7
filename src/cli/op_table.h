#pragma once
// The rows of --profile-ops and of bench kernels on a GPU, kept until the limits that they are compared with are known.

#include "base/buf.h"
#include "bench/profile_ops.h"

#define EW_OP_TABLE_ROWS_MAX 256

struct ew_op_table {
    struct ew_profile_row rows[EW_OP_TABLE_ROWS_MAX];
    bool is_prompt[EW_OP_TABLE_ROWS_MAX];
    uint32_t n_tokens[EW_OP_TABLE_ROWS_MAX];
    uint32_t n_rows;
    bool now_prompt; // of the rows that come
    uint32_t now_tokens;
};

// For struct ew_profile_options, whose ctx is the table.
void ew_op_table_begin(void *table, bool is_prompt, uint32_t n_tokens);
void ew_op_table_add(void *table, const struct ew_profile_row *row);

// Whole steps stay: they say what the other rows are of.
void ew_op_table_keep(struct ew_op_table *table, bool (*wanted)(void *ctx, const char *op, const char *kernels),
                      void *ctx);
void ew_op_table_print(const struct ew_op_table *table, const struct ew_backend_speed *limits);
void ew_op_table_append_json(const struct ew_op_table *table, const struct ew_backend_speed *limits,
                             struct ew_buf *json); // an array
