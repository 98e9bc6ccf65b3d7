// From messages to the prompt: checked member by member, put into the form that templates expect, rendered,
// tokenized.

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "server/api_state.h"

struct builder {
    const struct ew_api *api;
    const struct ew_params *params;
    struct ew_arena *arena;
    struct ew_fault *fault;
    char param[80]; // where in the body we are: "messages[3]"
};

static int no_memory(struct builder *b)
{
    return ew_fault_set(b->fault, 413, "invalid_request_error", "body_too_large",
                        "the body needs more memory than is allowed for it");
}

// ---- a tree for the template --------------------------------------------------------------------------------------

struct open_node { // an object or array that is being made
    struct ew_json *node, *last;
};

static int open_node(struct builder *b, enum ew_json_type type, struct open_node *out)
{
    *out = (struct open_node){.node = ew_arena_alloc(b->arena, sizeof(*out->node))};
    if (!out->node)
        return no_memory(b);
    out->node->type = type;
    return 0;
}

static void append(struct open_node *parent, struct ew_json *child)
{
    child->next = NULL;
    parent->node->count++;
    if (parent->last)
        parent->last->next = child;
    else
        parent->node->child = child;
    parent->last = child;
}

// Appends a copy of the value under another key; what is below it is shared.
static int put(struct builder *b, struct open_node *object, const char *key, const struct ew_json *value)
{
    struct ew_json *copy = ew_arena_alloc(b->arena, sizeof(*copy));

    if (!copy)
        return no_memory(b);
    *copy = *value;
    copy->key = ew_str_of(key);
    append(object, copy);
    return 0;
}

static int put_string(struct builder *b, struct open_node *object, const char *key, struct ew_str text)
{
    const struct ew_json value = {.type = EW_JSON_T_STRING, .text = text};

    return put(b, object, key, &value);
}

// ---- messages -----------------------------------------------------------------------------------------------------

static int bad(struct builder *b, const char *member, const char *what)
{
    char param[96];

    snprintf(param, sizeof(param), "%s%s", b->param, member);
    return ew_fault_field(b->fault, param, "%s", what);
}

static int unsupported(struct builder *b, struct ew_str member, const char *why)
{
    char param[96];

    snprintf(param, sizeof(param), "%s." EW_STR_FMT, b->param, EW_STR_ARG(member));
    return ew_fault_unsupported(b->fault, param, why);
}

// Parts of text become one text.
static int join_parts(struct builder *b, const struct ew_json *parts, struct ew_str *out)
{
    size_t len = 0, at = 0;
    char *text;

    for (const struct ew_json *part = parts->child; part; part = part->next) {
        const struct ew_json *content = ew_json_get(part, "text");

        if (!ew_str_is(ew_json_str(ew_json_get(part, "type"), ""), "text"))
            return unsupported(b, EW_STR("content"), "only parts of type \"text\" can be read");
        if (!content || content->type != EW_JSON_T_STRING)
            return bad(b, ".content", "has a part without text");
        len += content->text.len;
    }
    text = ew_arena_alloc(b->arena, len + 1);
    if (!text)
        return no_memory(b);
    for (const struct ew_json *part = parts->child; part; part = part->next) {
        struct ew_str content = ew_json_str(ew_json_get(part, "text"), "");

        memcpy(text + at, content.ptr, content.len);
        at += content.len;
    }
    *out = (struct ew_str){text, len};
    return 0;
}

static int add_content(struct builder *b, const struct ew_json *message, struct open_node *out, bool may_be_absent)
{
    const struct ew_json *content = ew_json_get(message, "content");
    struct ew_str text = EW_STR("");

    if (ew_json_is_null(content)) {
        if (!may_be_absent)
            return bad(b, ".content", "is missing");
    } else if (content->type == EW_JSON_T_STRING) {
        text = content->text;
    } else if (content->type != EW_JSON_T_ARRAY) {
        return bad(b, ".content", "must be a string or an array of parts");
    } else if (join_parts(b, content, &text) < 0) {
        return -1;
    }
    return put_string(b, out, "content", text);
}

// Templates want arguments as the object that their JSON stands for, or as text. What is no JSON stays text.
static int add_arguments(struct builder *b, const struct ew_json *given, struct open_node *out)
{
    const struct ew_json *parsed;

    if (!given)
        return bad(b, ".tool_calls", "has a function without arguments");
    if (given->type == EW_JSON_T_OBJECT && b->api->tool_format.arguments_as_text)
        return bad(b, ".tool_calls", "must have arguments as a string of JSON");
    if (given->type != EW_JSON_T_STRING && given->type != EW_JSON_T_OBJECT)
        return bad(b, ".tool_calls", "must have arguments as a string of JSON");
    if (given->type == EW_JSON_T_STRING && !b->api->tool_format.arguments_as_text &&
        ew_json_parse(b->arena, given->text.len ? given->text : EW_STR("{}"), &parsed, NULL) == 0 &&
        parsed->type == EW_JSON_T_OBJECT)
        given = parsed;
    return put(b, out, "arguments", given);
}

static int add_call(struct builder *b, const struct ew_json *call, struct open_node *calls)
{
    const struct ew_json *function = ew_json_get(call, "function"), *id = ew_json_get(call, "id");
    const struct ew_json *name = ew_json_get(function, "name");
    struct open_node out, inner;

    if (!ew_str_is(ew_json_str(ew_json_get(call, "type"), "function"), "function"))
        return unsupported(b, EW_STR("tool_calls"), "only calls of functions can be read");
    if (!name || name->type != EW_JSON_T_STRING || name->text.len == 0)
        return bad(b, ".tool_calls", "has a call without a function's name");
    if (open_node(b, EW_JSON_T_OBJECT, &out) < 0 || open_node(b, EW_JSON_T_OBJECT, &inner) < 0)
        return -1;
    if (id && id->type == EW_JSON_T_STRING && put(b, &out, "id", id) < 0)
        return -1;
    if (put_string(b, &out, "type", EW_STR("function")) < 0 || put(b, &inner, "name", name) < 0 ||
        add_arguments(b, ew_json_get(function, "arguments"), &inner) < 0 ||
        put(b, &out, "function", inner.node) < 0)
        return -1;
    append(calls, out.node);
    return 0;
}

static int add_calls(struct builder *b, const struct ew_json *given, struct open_node *out)
{
    struct open_node calls;

    if (given->type != EW_JSON_T_ARRAY)
        return bad(b, ".tool_calls", "must be an array");
    if (given->count > EW_TOOLCALL_COUNT_MAX)
        return bad(b, ".tool_calls", "has too many calls");
    if (open_node(b, EW_JSON_T_ARRAY, &calls) < 0)
        return -1;
    for (const struct ew_json *call = given->child; call; call = call->next)
        if (add_call(b, call, &calls) < 0)
            return -1;
    return put(b, out, "tool_calls", calls.node);
}

enum { USER = 1, SYSTEM = 2, ASSISTANT = 4, TOOL = 8, ANY = 15 };

static const struct {
    const char *name, *as; // as templates know it
    unsigned role;
} g_roles[] = {
    {"user", "user", USER},           {"system", "system", SYSTEM}, {"developer", "system", SYSTEM},
    {"assistant", "assistant", ASSISTANT}, {"tool", "tool", TOOL},
};

// Members of messages besides role, content and tool_calls. Those not copied are accepted where they are empty:
// clients send whole messages back as they got them.
static const struct {
    const char *name;
    unsigned roles;
    bool copied;
} g_members[] = {
    {"name", ANY, true},          {"tool_call_id", TOOL, true},      {"reasoning_content", ASSISTANT, true},
    {"refusal", ASSISTANT, false}, {"annotations", ASSISTANT, false}, {"audio", ASSISTANT, false},
    {"function_call", ASSISTANT, false},
};

static bool is_empty(const struct ew_json *value)
{
    return value->type == EW_JSON_T_NULL || (value->type == EW_JSON_T_ARRAY && value->count == 0);
}

static int add_member(struct builder *b, const struct ew_json *member, unsigned role, struct open_node *out)
{
    if (ew_str_is(member->key, "role") || ew_str_is(member->key, "content") || is_empty(member))
        return 0;
    if (ew_str_is(member->key, "tool_calls") && role == ASSISTANT)
        return add_calls(b, member, out);
    for (size_t i = 0; i < EW_COUNT_OF(g_members); i++) {
        if (!ew_str_is(member->key, g_members[i].name) || !(g_members[i].roles & role) || !g_members[i].copied)
            continue;
        if (member->type != EW_JSON_T_STRING)
            return bad(b, "", "has a member that must be a string");
        return put(b, out, g_members[i].name, member);
    }
    return unsupported(b, member->key, NULL);
}

static int add_message(struct builder *b, const struct ew_json *message, struct open_node *messages)
{
    struct ew_str role = ew_json_str(ew_json_get(message, "role"), "");
    struct open_node out;
    size_t i = 0;

    if (message->type != EW_JSON_T_OBJECT)
        return bad(b, "", "must be an object");
    while (i < EW_COUNT_OF(g_roles) && !ew_str_is(role, g_roles[i].name))
        i++;
    if (i == EW_COUNT_OF(g_roles))
        return bad(b, ".role", "must be one of system, developer, user, assistant and tool");
    if (open_node(b, EW_JSON_T_OBJECT, &out) < 0 || put_string(b, &out, "role", ew_str_of(g_roles[i].as)) < 0 ||
        add_content(b, message, &out, g_roles[i].role == ASSISTANT) < 0)
        return -1;
    for (const struct ew_json *member = message->child; member; member = member->next)
        if (add_member(b, member, g_roles[i].role, &out) < 0)
            return -1;
    append(messages, out.node);
    return 0;
}

static int add_messages(struct builder *b, struct open_node *inputs)
{
    struct open_node messages;
    uint32_t i = 0;

    if (open_node(b, EW_JSON_T_ARRAY, &messages) < 0)
        return -1;
    for (const struct ew_json *message = b->params->messages->child; message; message = message->next, i++) {
        snprintf(b->param, sizeof(b->param), "messages[%u]", i);
        if (add_message(b, message, &messages) < 0)
            return -1;
    }
    return put(b, inputs, "messages", messages.node);
}

// ---- tools --------------------------------------------------------------------------------------------------------

static bool is_name(struct ew_str name)
{
    for (size_t i = 0; i < name.len; i++)
        if (!name.ptr[i] || !strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.", name.ptr[i]))
            return false;
    return name.len > 0 && name.len <= 128;
}

static int check_tool(struct builder *b, const struct ew_json *tool)
{
    const struct ew_json *function = ew_json_get(tool, "function"), *parameters = ew_json_get(function, "parameters");

    if (!ew_str_is(ew_json_str(ew_json_get(tool, "type"), ""), "function") || !function ||
        function->type != EW_JSON_T_OBJECT)
        return bad(b, "", "must be {\"type\": \"function\", \"function\": {...}}");
    if (!is_name(ew_json_str(ew_json_get(function, "name"), "")))
        return bad(b, ".function.name", "must have 1 to 128 letters, digits, underscores, dots or dashes");
    if (!ew_json_is_null(parameters) && parameters->type != EW_JSON_T_OBJECT)
        return bad(b, ".function.parameters", "must be a JSON schema, an object");
    if (ew_json_bool(ew_json_get(function, "strict"), false))
        return unsupported(b, EW_STR("function.strict"), "constrained decoding is not there yet");
    return 0;
}

static int add_tools(struct builder *b, struct open_node *inputs)
{
    const struct ew_json *tools = b->params->no_tools ? NULL : b->params->tools;
    uint32_t i = 0;

    for (const struct ew_json *tool = b->params->tools ? b->params->tools->child : NULL; tool; tool = tool->next, i++) {
        snprintf(b->param, sizeof(b->param), "tools[%u]", i);
        if (check_tool(b, tool) < 0)
            return -1;
    }
    if (!tools)
        return 0;
    if (!ew_chat_format_caps(b->api->config.chat)->tools)
        return ew_fault_unsupported(b->fault, "tools", "the model's chat template knows no tools");
    if (b->api->tool_format.kind == EW_TOOLCALL_NONE)
        return ew_fault_unsupported(b->fault, "tools", "the model writes calls in a form that cannot be read yet");
    return put(b, inputs, "tools", tools);
}

// ---- the prompt ---------------------------------------------------------------------------------------------------

static int add_variables(struct builder *b, struct open_node *inputs)
{
    const struct ew_json yes = {.type = EW_JSON_T_BOOL, .boolean = true};
    const struct ew_json *vars = b->params->template_vars;

    if (put(b, inputs, "add_generation_prompt", &yes) < 0)
        return -1;
    for (const struct ew_json *var = vars ? vars->child : NULL; var; var = var->next)
        if (put(b, inputs, var->key.ptr, var) < 0)
            return -1;
    return 0;
}

int ew_prompt_chat(const struct ew_api *api, const struct ew_params *params, struct ew_arena *arena,
                   struct ew_buf *rendered, struct ew_ids *ids, struct ew_fault *fault)
{
    struct builder b = {api, params, arena, fault, ""};
    struct ew_error err = {0};
    struct open_node inputs;

    if (!api->config.chat)
        return ew_fault_set(fault, 400, "invalid_request_error", "no_chat_template",
                            "the model has no chat template; use /v1/completions");
    if (open_node(&b, EW_JSON_T_OBJECT, &inputs) < 0 || add_messages(&b, &inputs) < 0 || add_tools(&b, &inputs) < 0 ||
        add_variables(&b, &inputs) < 0)
        return -1;
    if (ew_chat_render(api->config.chat, inputs.node, rendered, &err) < 0)
        return ew_fault_of(fault, &err);
    if (!ew_buf_ok(rendered))
        return no_memory(&b);
    if (ew_chat_tokenize(api->config.chat, api->config.tok, ew_buf_str(rendered), ids, &err) < 0)
        return ew_fault_of(fault, &err);
    return 0;
}

int ew_prompt_ids(const struct ew_api *api, const char *param, const struct ew_json *array, struct ew_ids *ids,
                  struct ew_fault *fault)
{
    int64_t n_vocab = api->config.model->shape.n_vocab;
    uint32_t i = 0;

    for (const struct ew_json *item = array->child; item; item = item->next, i++) {
        int64_t id = item->type == EW_JSON_T_INT ? item->integer : -1;

        if (id < 0 || id >= n_vocab)
            return ew_fault_field(fault, param, "has an item %u that is no token id below %lld", i,
                                  (long long)n_vocab);
        if (ew_ids_push(ids, (int32_t)id) < 0)
            return ew_fault_set(fault, 503, "server_error", "out_of_memory", "no memory is left for the token ids");
    }
    return 0;
}

int ew_prompt_text(const struct ew_api *api, const struct ew_json *prompt, struct ew_ids *ids, struct ew_fault *fault)
{
    struct ew_error err = {0};

    if (prompt->type == EW_JSON_T_ARRAY)
        return ew_prompt_ids(api, "prompt", prompt, ids, fault);
    if (prompt->type != EW_JSON_T_STRING)
        return ew_fault_field(fault, "prompt", "must be a string, an array of strings, token ids or an array of these");
    if (!api->config.tok)
        return ew_fault_field(fault, "prompt", "must be token ids, because the model has no tokenizer");
    if (ew_tokenize(api->config.tok, prompt->text, true, true, ids, &err) < 0)
        return ew_fault_of(fault, &err);
    return 0;
}

int ew_prompt_model(const struct ew_api *api, struct ew_str model, struct ew_fault *fault)
{
    if (!model.ptr || ew_str_is(model, api->config.model_id))
        return 0;
    ew_fault_set(fault, 404, "invalid_request_error", "model_not_found",
                 "the model \"" EW_STR_FMT "\" is not served here; \"%s\" is", EW_STR_ARG(model),
                 api->config.model_id);
    snprintf(fault->param, sizeof(fault->param), "model");
    return -1;
}
