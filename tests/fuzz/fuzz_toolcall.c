// Byte 0: the form of calls; byte 1: the size of pieces; then an answer. Pieces change nothing where calls are given
// whole, and an answer without calls is its content.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "format/json.h"
#include "text/toolcall.h"

#define OUTPUT_BYTES_MAX ((size_t)64 << 20)

struct seen {
    struct ew_buf content, calls;
    size_t n_begun, n_ended;
};

static void on_content(void *ctx, struct ew_str text)
{
    struct seen *seen = ctx;

    EW_ASSERT(text.len && seen->n_begun == seen->n_ended);
    ew_buf_append_str(&seen->content, text);
}

static void on_begin(void *ctx, uint32_t index, struct ew_str name)
{
    struct seen *seen = ctx;

    EW_ASSERT(index == seen->n_begun && seen->n_begun == seen->n_ended && name.len);
    seen->n_begun++;
    ew_buf_append_json(&seen->calls, name);
}

static void on_arguments(void *ctx, uint32_t index, struct ew_str piece)
{
    struct seen *seen = ctx;

    EW_ASSERT(index + 1 == seen->n_begun && piece.len);
    ew_buf_append_str(&seen->calls, piece);
}

static void on_end(void *ctx, uint32_t index)
{
    struct seen *seen = ctx;

    EW_ASSERT(index == seen->n_ended);
    seen->n_ended++;
}

static void parse(enum ew_toolcall_kind kind, bool whole, size_t step, struct ew_str text, struct seen *seen)
{
    static const struct ew_str names[] = {EW_STR("f"), EW_STR("get_memory")};
    struct ew_toolcall_sink sink = {on_content, on_begin, on_arguments, on_end, seen};
    struct ew_toolcalls calls;

    *seen = (struct seen){0};
    ew_buf_init(&seen->content, OUTPUT_BYTES_MAX);
    ew_buf_init(&seen->calls, OUTPUT_BYTES_MAX);
    ew_toolcalls_init(&calls, kind, &sink);
    calls.whole = whole;
    calls.names = names;
    calls.n_names = EW_COUNT_OF(names);
    for (size_t at = 0; at < text.len; at += step)
        if (!ew_toolcalls_push(&calls, (struct ew_str){text.ptr + at, EW_MIN(step, text.len - at)}))
            EW_ASSERT(!"memory");
    EW_ASSERT(ew_toolcalls_end(&calls));
    EW_ASSERT(seen->n_begun == seen->n_ended && seen->n_begun == calls.n_calls);
    EW_ASSERT(seen->n_begun || ew_str_eq(ew_buf_str(&seen->content), text));
    ew_toolcalls_fini(&calls);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen one, pieces;
    struct ew_str text;

    if (size < 2 || size > 1 << 16 || !ew_utf8_valid((const char *)data + 2, size - 2))
        return 0;
    text = (struct ew_str){(const char *)data + 2, size - 2};
    parse(data[0] % 4, true, size, text, &one);
    parse(data[0] % 4, true, data[1] % 32 + 1u, text, &pieces);
    EW_ASSERT(ew_str_eq(ew_buf_str(&one.content), ew_buf_str(&pieces.content)));
    EW_ASSERT(ew_str_eq(ew_buf_str(&one.calls), ew_buf_str(&pieces.calls)));
    ew_buf_fini(&pieces.content);
    ew_buf_fini(&pieces.calls);
    parse(data[0] % 4, false, data[1] % 32 + 1u, text, &pieces);
    EW_ASSERT(pieces.n_begun >= one.n_begun);
    for (struct seen *seen = &one; seen; seen = seen == &one ? &pieces : NULL) {
        ew_buf_fini(&seen->content);
        ew_buf_fini(&seen->calls);
    }
    return 0;
}
