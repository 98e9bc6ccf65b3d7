#include "cli/conversation.h"

#include <string.h>

#include "base/alloc.h"

#define MESSAGES_JSON_MAX ((size_t)1 << 30)
#define MESSAGES_MEMORY_MAX ((size_t)4 << 30)

static void free_message(struct ew_message *message)
{
    ew_free(message->content);
    ew_free(message->reasoning);
}

void ew_conversation_fini(struct ew_conversation *conversation)
{
    for (uint32_t i = 0; i < conversation->count; i++)
        free_message(&conversation->messages[i]);
    ew_free(conversation->messages);
    *conversation = (struct ew_conversation){0};
}

static char *copy_text(struct ew_str text)
{
    char *copy = ew_alloc(text.len + 1);

    if (copy && text.len)
        memcpy(copy, text.ptr, text.len);
    return copy;
}

static bool grow(struct ew_conversation *conversation)
{
    uint32_t cap = conversation->cap ? conversation->cap * 2 : 16;
    struct ew_message *grown;

    if (conversation->count < conversation->cap)
        return true;
    grown = ew_realloc_array(conversation->messages, cap, sizeof(*grown));
    if (!grown)
        return false;
    conversation->messages = grown;
    conversation->cap = cap;
    return true;
}

static int insert(struct ew_conversation *conversation, uint32_t at, struct ew_message message, bool is_whole,
                  struct ew_error *err)
{
    if (!is_whole || !grow(conversation)) {
        free_message(&message);
        return ew_fail_memory(err, sizeof(message), "a message");
    }
    memmove(conversation->messages + at + 1, conversation->messages + at, (conversation->count - at) * sizeof(message));
    conversation->messages[at] = message;
    conversation->count++;
    return EW_OK;
}

int ew_conversation_add(struct ew_conversation *conversation, const char *role, struct ew_str content,
                        struct ew_str reasoning, struct ew_error *err)
{
    struct ew_message message = {role, copy_text(content), reasoning.len ? copy_text(reasoning) : NULL};

    return insert(conversation, conversation->count, message, message.content && (message.reasoning || !reasoning.len),
                  err);
}

static uint32_t first_turn(const struct ew_conversation *conversation)
{
    return conversation->count && strcmp(conversation->messages[0].role, "system") == 0 ? 1 : 0;
}

static void drop(struct ew_conversation *conversation, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        free_message(&conversation->messages[i]);
    if (from < to)
        memmove(conversation->messages + from, conversation->messages + to,
                (conversation->count - to) * sizeof(*conversation->messages));
    conversation->count -= to - from;
}

int ew_conversation_set_system(struct ew_conversation *conversation, struct ew_str text, struct ew_error *err)
{
    struct ew_message message = {.role = "system"};

    drop(conversation, 0, first_turn(conversation));
    if (text.len == 0)
        return EW_OK;
    message.content = copy_text(text);
    return insert(conversation, 0, message, message.content != NULL, err);
}

void ew_conversation_drop_last(struct ew_conversation *conversation)
{
    if (conversation->count)
        drop(conversation, conversation->count - 1, conversation->count);
}

void ew_conversation_reset(struct ew_conversation *conversation)
{
    drop(conversation, first_turn(conversation), conversation->count);
}

uint32_t ew_conversation_drop_oldest(struct ew_conversation *conversation)
{
    uint32_t from = first_turn(conversation), to = from + 1;

    while (to < conversation->count && strcmp(conversation->messages[to].role, "user") != 0)
        to++;
    if (to >= conversation->count)
        return 0;
    drop(conversation, from, to);
    return to - from;
}

static void append_message(struct ew_buf *json, const struct ew_message *message)
{
    ew_buf_printf(json, "{\"role\": \"%s\", \"content\": ", message->role);
    ew_buf_append_json(json, ew_str_of(message->content));
    if (message->reasoning) {
        ew_buf_append_str(json, EW_STR(", \"reasoning_content\": "));
        ew_buf_append_json(json, ew_str_of(message->reasoning));
    }
    ew_buf_append_char(json, '}');
}

int ew_conversation_json(const struct ew_conversation *conversation, struct ew_arena *arena, const struct ew_json **out,
                   struct ew_error *err)
{
    struct ew_buf json;
    int code;

    ew_buf_init(&json, MESSAGES_JSON_MAX);
    ew_buf_append_str(&json, EW_STR("{\"messages\": ["));
    for (uint32_t i = 0; i < conversation->count; i++) {
        ew_buf_append(&json, ", ", i ? 2 : 0);
        append_message(&json, &conversation->messages[i]);
    }
    ew_buf_append_str(&json, EW_STR("], \"add_generation_prompt\": true}"));
    code = ew_buf_ok(&json) ? ew_json_parse(arena, ew_buf_str(&json), out, err)
                            : ew_fail_memory(err, json.len, "the conversation");
    ew_buf_fini(&json);
    return code;
}

int ew_conversation_tokens(const struct ew_conversation *conversation, const struct ew_chat_format *format,
                           const struct ew_tokenizer *tok, struct ew_buf *prompt, struct ew_ids *ids,
                           struct ew_error *err)
{
    const struct ew_json *inputs;
    struct ew_arena arena;
    int code;

    ew_buf_reset(prompt);
    ids->count = 0;
    ew_arena_init(&arena, MESSAGES_MEMORY_MAX);
    code = ew_conversation_json(conversation, &arena, &inputs, err);
    if (code == EW_OK)
        code = ew_chat_render(format, inputs, prompt, err);
    if (code == EW_OK)
        code = ew_chat_tokenize(format, tok, ew_buf_str(prompt), ids, err);
    ew_arena_fini(&arena);
    return code;
}
