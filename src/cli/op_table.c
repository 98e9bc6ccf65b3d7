#include "cli/op_table.h"

#include <stdio.h>

void ew_op_table_begin(void *ctx, bool is_prompt, uint32_t n_tokens)
{
    struct ew_op_table *table = ctx;

    table->now_prompt = is_prompt;
    table->now_tokens = n_tokens;
}

void ew_op_table_add(void *ctx, const struct ew_profile_row *row)
{
    struct ew_op_table *table = ctx;

    if (table->n_rows == EW_OP_TABLE_ROWS_MAX)
        return;
    table->rows[table->n_rows] = *row;
    table->is_prompt[table->n_rows] = table->now_prompt;
    table->n_tokens[table->n_rows++] = table->now_tokens;
}

void ew_op_table_keep(struct ew_op_table *table, bool (*wanted)(void *ctx, const char *op, const char *kernels),
                      void *ctx)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < table->n_rows; i++) {
        if (*table->rows[i].ops && !wanted(ctx, table->rows[i].ops, table->rows[i].kernels))
            continue;
        table->rows[n] = table->rows[i];
        table->is_prompt[n] = table->is_prompt[i];
        table->n_tokens[n++] = table->n_tokens[i];
    }
    table->n_rows = n;
}

static void print_row(const struct ew_profile_row *row, const struct ew_backend_speed *limits)
{
    double gb_s = row->bytes / row->seconds / 1e9, tflop_s = row->flops / row->seconds / 1e12;

    printf("  %9.1f us %5u x %8.2f us %8.0f GB/s %3.0f %%", row->seconds * 1e6, row->n_launches,
           row->seconds / row->n_launches * 1e6, gb_s, 100e9 * gb_s / limits->read_bytes_s);
    if (tflop_s >= 0.05)
        printf(" %7.1f TFLOP/s %3.0f %%", tflop_s, 100e12 * tflop_s / limits->multiply_flops_s);
    else
        printf(" %21s", "");
    printf("  %s%s%s%s\n", *row->ops ? row->ops : "all as in a step", *row->kernels ? " (" : "", row->kernels,
           *row->kernels ? ")" : "");
}

void ew_op_table_print(const struct ew_op_table *table, const struct ew_backend_speed *limits)
{
    for (uint32_t i = 0; i < table->n_rows; i++) {
        if (!*table->rows[i].ops)
            printf(" a step with %s %u tokens:\n", table->is_prompt[i] ? "a prompt of" : "decoding of",
                   table->n_tokens[i]);
        print_row(&table->rows[i], limits);
    }
}

void ew_op_table_append_json(const struct ew_op_table *table, const struct ew_backend_speed *limits,
                             struct ew_buf *json)
{
    ew_buf_append_char(json, '[');
    for (uint32_t i = 0; i < table->n_rows; i++) {
        const struct ew_profile_row *row = &table->rows[i];

        ew_buf_printf(json,
                      "%s\n  {\"step\": \"%s\", \"tokens\": %u, \"ops\": \"%s\", \"kernels\": \"%s\", "
                      "\"launches\": %u, \"us\": %.6g, \"bytes\": %.6g, \"flops\": %.6g, ",
                      i ? "," : "", table->is_prompt[i] ? "prompt" : "decode", table->n_tokens[i], row->ops,
                      row->kernels, row->n_launches, row->seconds * 1e6, row->bytes, row->flops);
        ew_buf_printf(json, "\"gb_s\": %.5g, \"limit_pct\": %.4g, \"tflop_s\": %.5g, \"peak_pct\": %.4g}",
                      row->bytes / row->seconds / 1e9, 100 * row->bytes / row->seconds / limits->read_bytes_s,
                      row->flops / row->seconds / 1e12, 100 * row->flops / row->seconds / limits->multiply_flops_s);
    }
    ew_buf_append_char(json, ']');
}
