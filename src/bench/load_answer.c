#include "bench/load_answer.h"

#include "format/json.h"

// A count that is no count is none: negative numbers, and what no model can have generated.
static int64_t count_of(const struct ew_json *object, const char *key)
{
    int64_t count = ew_json_int(ew_json_get(object, key), -1);

    return count < 0 || count > INT32_MAX ? -1 : count;
}

static struct ew_str text_of(const struct ew_json *node)
{
    return node && node->type == EW_JSON_T_STRING ? node->text : (struct ew_str){0};
}

static struct ew_str error_of(const struct ew_json *root)
{
    const struct ew_json *error = ew_json_get(root, "error");
    const struct ew_json *message = error && error->type == EW_JSON_T_OBJECT ? ew_json_get(error, "message") : error;

    if (ew_json_is_null(error))
        return (struct ew_str){0};
    return text_of(message).len ? text_of(message) : EW_STR("an error without a message");
}

static void read_choice(const struct ew_json *choice, struct ew_load_answer *out)
{
    const struct ew_json *delta = ew_json_get(choice, "delta"), *calls, *function;

    if (!delta)
        delta = ew_json_get(choice, "message");
    calls = ew_json_get(delta, "tool_calls");
    function = ew_json_get(ew_json_at(calls, 0), "function");
    out->text[0] = text_of(ew_json_get(delta, "reasoning_content"));
    out->text[1] = text_of(delta ? ew_json_get(delta, "content") : ew_json_get(choice, "text"));
    out->text[2] = text_of(ew_json_get(function, "arguments"));
    out->has_text = out->text[0].len || out->text[1].len || out->text[2].len ||
                    text_of(ew_json_get(function, "name")).len;
    out->finished = !ew_json_is_null(ew_json_get(choice, "finish_reason"));
}

int ew_load_answer_parse(struct ew_arena *arena, struct ew_str json, struct ew_load_answer *out, struct ew_error *err)
{
    const struct ew_json *root, *usage;
    int rc;

    *out = (struct ew_load_answer){.prompt_tokens = -1, .completion_tokens = -1, .cached_tokens = -1};
    ew_arena_reset(arena);
    rc = ew_json_parse(arena, json, &root, err);
    if (rc < 0)
        return ew_fail_in(err, rc, "the answer is no JSON");
    out->error = error_of(root);
    usage = ew_json_get(root, "usage");
    out->prompt_tokens = count_of(usage, "prompt_tokens");
    out->completion_tokens = count_of(usage, "completion_tokens");
    out->cached_tokens = count_of(ew_json_get(usage, "prompt_tokens_details"), "cached_tokens");
    read_choice(ew_json_at(ew_json_get(root, "choices"), 0), out);
    return EW_OK;
}
