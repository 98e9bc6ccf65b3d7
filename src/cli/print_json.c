#include "cli/print_json.h"

#include <stdio.h>

int ew_print_json(struct ew_buf *json, struct ew_error *err)
{
    int rc = 0;

    if (ew_buf_ok(json))
        fwrite(json->ptr, 1, json->len, stdout);
    else
        rc = ew_fail_memory(err, json->len, "the result");
    ew_buf_fini(json);
    return rc;
}

void ew_bench_json_begin(struct ew_buf *json, const struct ew_model *model, const char *backend, const char *device)
{
    ew_buf_append_str(json, EW_STR("{\"model\": "));
    ew_buf_append_json(json, ew_str_of(model->path));
    ew_buf_append_str(json, EW_STR(", \"backend\": "));
    ew_buf_append_json(json, ew_str_of(backend));
    ew_buf_append_str(json, EW_STR(", \"device\": "));
    ew_buf_append_json(json, ew_str_of(device));
}
