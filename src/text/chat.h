#pragma once
// Conversations: messages to a prompt by the model's template, and the answer back into reasoning and content.

#include "base/buf.h"
#include "base/error.h"
#include "format/modelfile.h"
#include "text/jinja.h"
#include "text/tokenizer.h"

struct ew_chat_format; // the model's template, compiled, with what probing found out about it

// What executing the template on probe conversations showed.
struct ew_chat_caps {
    bool system_role, tools, typed_content, enable_thinking;
    const char *reasoning_open, *reasoning_close; // "<think>", "</think>"; NULL where the template has none
    const char *source;                           // "model", or the name of the built-in default used
};

// Where the model has no template: a named default if its tokens tell which (e.g. chatml, llama2, ...), else
// EW_ERR_UNSUPPORTED with the remedy --raw.
int ew_chat_format_load(const struct ew_modelfile *file, const struct ew_tokenizer *tok, struct ew_chat_format **out,
                        struct ew_error *err) EW_MUST_CHECK;
void ew_chat_format_free(struct ew_chat_format *format);
const struct ew_chat_caps *ew_chat_format_caps(const struct ew_chat_format *format);

// inputs: {messages, tools?, add_generation_prompt?, ...}; appends the rendered prompt.
int ew_chat_render(const struct ew_chat_format *format, const struct ew_json *inputs, struct ew_buf *out,
                   struct ew_error *err) EW_MUST_CHECK;
// The rendered prompt to ids: special tokens parsed, BOS added unless the template wrote it.
int ew_chat_tokenize(const struct ew_chat_format *format, const struct ew_tokenizer *tok, struct ew_str prompt,
                     struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;

// Splits a streamed answer. Feed text in pieces of any size; each call appends to the two buffers what is certain.
struct ew_reasoning {
    const char *open, *close;
    enum { EW_REASONING_START, EW_REASONING_INSIDE, EW_REASONING_CONTENT } state;
    struct ew_buf held; // a possible marker, not yet decided
};
// prompt_tail: the end of the rendered prompt, because some templates open the reasoning themselves.
void ew_reasoning_init(struct ew_reasoning *split, const struct ew_chat_caps *caps, struct ew_str prompt_tail);
void ew_reasoning_fini(struct ew_reasoning *split);
void ew_reasoning_push(struct ew_reasoning *split, struct ew_str piece, struct ew_buf *reasoning,
                       struct ew_buf *content);
void ew_reasoning_end(struct ew_reasoning *split, struct ew_buf *reasoning, struct ew_buf *content);
