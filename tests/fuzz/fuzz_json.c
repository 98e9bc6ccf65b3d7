// The event reader and the tree must agree on what is JSON.
#include <stddef.h>
#include <stdint.h>

#include "base/assert.h"
#include "format/json.h"

#define TREE_BYTES_MAX ((size_t)64 << 20)

static int read_events(struct ew_str input)
{
    struct ew_json_reader reader;
    struct ew_error err;
    int event;

    ew_json_reader_init(&reader, input);
    while ((event = ew_json_next(&reader, &err)) > 0)
        EW_ASSERT(reader.start <= reader.at && reader.at <= input.len && reader.depth <= EW_JSON_DEPTH_MAX);
    EW_ASSERT(ew_json_next(&reader, NULL) == (event == EW_JSON_END ? EW_JSON_END : EW_ERR_FORMAT));
    ew_json_reader_fini(&reader);
    return event;
}

static int skip_all(struct ew_str input)
{
    struct ew_json_reader reader;
    struct ew_error err;
    int code;

    ew_json_reader_init(&reader, input);
    code = ew_json_skip(&reader, &err);
    if (code == EW_OK)
        code = ew_json_next(&reader, &err);
    ew_json_reader_fini(&reader);
    return code;
}

// Touches all text, and looks each small object's members up. Recursion is as deep as the reader allows.
static void walk(const struct ew_json *node)
{
    uint32_t count = 0;

    EW_ASSERT(!node->text.ptr || node->text.ptr[node->text.len] == '\0');
    EW_ASSERT(!node->key.ptr || node->key.ptr[node->key.len] == '\0');
    (void)ew_json_int(node, 0);
    for (const struct ew_json *child = node->child; child; child = child->next, count++) {
        walk(child);
        if (node->type == EW_JSON_T_OBJECT && node->count < 64 && strlen(child->key.ptr) == child->key.len)
            EW_ASSERT(ew_json_get(node, child->key.ptr) == child);
    }
    EW_ASSERT(count == node->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ew_str input = {(const char *)data, size};
    const struct ew_json *root;
    struct ew_arena arena;
    struct ew_error err;
    int code;

    ew_arena_init(&arena, TREE_BYTES_MAX);
    code = ew_json_parse(&arena, input, &root, &err);
    EW_ASSERT(code == read_events(input) && code == skip_all(input));
    if (code == EW_OK)
        walk(root);
    ew_arena_fini(&arena);
    return 0;
}
