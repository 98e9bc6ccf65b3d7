#pragma once
// The messages of a conversation, and their way through the chat template to token ids.

#include "base/buf.h"
#include "base/error.h"
#include "text/chat.h"
#include "text/tokenizer.h"

struct ew_message {
    const char *role; // "system", "user", "assistant"; not owned
    char *content;
    char *reasoning;  // or NULL
};

struct ew_conversation {
    struct ew_message *messages; // a system message comes first
    uint32_t count, cap;
};

void ew_conversation_fini(struct ew_conversation *conversation);
// Copies the texts; an empty reasoning is none. EW_ERR_MEMORY.
int ew_conversation_add(struct ew_conversation *conversation, const char *role, struct ew_str content,
                        struct ew_str reasoning, struct ew_error *err) EW_MUST_CHECK;
// Sets or, where text is empty, removes the system message.
int ew_conversation_set_system(struct ew_conversation *conversation, struct ew_str text,
                               struct ew_error *err) EW_MUST_CHECK;
void ew_conversation_drop_last(struct ew_conversation *conversation);
void ew_conversation_reset(struct ew_conversation *conversation); // keeps the system message
// Drops the oldest turn: what lies between the system message and the second message of the user. Returns how many
// messages these were; 0 where there is only the newest turn.
uint32_t ew_conversation_drop_oldest(struct ew_conversation *conversation);
// As a chat template takes it: {messages, add_generation_prompt}, in the arena.
int ew_conversation_json(const struct ew_conversation *conversation, struct ew_arena *arena, const struct ew_json **out,
                         struct ew_error *err) EW_MUST_CHECK;
// Renders the conversation with a generation prompt into `prompt`, and its ids into `ids`; both are emptied first.
int ew_conversation_tokens(const struct ew_conversation *conversation, const struct ew_chat_format *format,
                           const struct ew_tokenizer *tok, struct ew_buf *prompt, struct ew_ids *ids,
                           struct ew_error *err) EW_MUST_CHECK;
