// A template, and behind a NUL its JSON inputs. Whatever comes, it ends within the limits and in an orderly way.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "format/json.h"
#include "text/jinja.h"

#define INPUTS_BYTES_MAX ((size_t)16 << 20)
#define OUTPUT_BYTES_MAX ((size_t)1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct ew_jinja_limits limits = {
        .steps_max = 200000, .output_max = OUTPUT_BYTES_MAX, .memory_max = (size_t)64 << 20};
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    struct ew_str source = {(const char *)data, end ? (size_t)(end - data) : size};
    struct ew_jinja_vars vars = {.bos_token = "<s>", .eos_token = "</s>", .now = "2025-07-14 09:30:00"};
    struct ew_jinja *tmpl;
    struct ew_arena arena;
    struct ew_error err = {0};
    struct ew_buf out;
    int code;

    if (ew_jinja_compile(source, &tmpl, &err) != EW_OK) {
        EW_ASSERT(err.message[0]);
        return 0;
    }
    ew_arena_init(&arena, INPUTS_BYTES_MAX);
    if (end && ew_json_parse(&arena, (struct ew_str){(const char *)end + 1, size - source.len - 1}, &vars.object,
                             NULL) != EW_OK)
        vars.object = NULL;
    ew_buf_init(&out, OUTPUT_BYTES_MAX);
    code = ew_jinja_render(tmpl, &vars, &limits, &out, &err);
    EW_ASSERT(code == EW_OK || (out.len == 0 && err.code == code));
    ew_buf_fini(&out);
    ew_arena_fini(&arena);
    ew_jinja_free(tmpl);
    return 0;
}
