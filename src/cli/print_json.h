#pragma once
// What commands with --json have in common.

#include "base/buf.h"
#include "model/model.h"

// Prints a whole result and frees it; EW_ERR_MEMORY where it did not fit.
int ew_print_json(struct ew_buf *json, struct ew_error *err) EW_MUST_CHECK;
// {"model": ..., "backend": ..., "device": ... of a measurement in this process.
void ew_bench_json_begin(struct ew_buf *json, const struct ew_model *model, const char *backend, const char *device);
