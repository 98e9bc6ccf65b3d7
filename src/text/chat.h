#pragma once
// Conversations: messages to a prompt by the model's template, and the answer back into reasoning and content.

#include "base/buf.h"
#include "base/error.h"
#include "format/modelfile.h"
#include "text/jinja.h"
#include "text/reasoning.h"
#include "text/tokenizer.h"

struct ew_chat_format; // the model's template, compiled, with what probing found out about it; immutable

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
// The same from the template's text alone; tools_source is for conversations with tools, ptr NULL where there is
// none. bos and eos may be NULL.
int ew_chat_format_compile(struct ew_str source, struct ew_str tools_source, const char *bos, const char *eos,
                           struct ew_chat_format **out, struct ew_error *err) EW_MUST_CHECK;
void ew_chat_format_free(struct ew_chat_format *format);
const struct ew_chat_caps *ew_chat_format_caps(const struct ew_chat_format *format);

// inputs: {messages, tools?, add_generation_prompt?, ...}; appends the rendered prompt. As transformers does it,
// tools and documents that are absent are none and not undefined.
int ew_chat_render(const struct ew_chat_format *format, const struct ew_json *inputs, struct ew_buf *out,
                   struct ew_error *err) EW_MUST_CHECK;
// Exactly the variables given; those of vars that are NULL (bos_token, eos_token) are the model's.
int ew_chat_render_vars(const struct ew_chat_format *format, const struct ew_jinja_vars *vars, struct ew_buf *out,
                        struct ew_error *err) EW_MUST_CHECK;
// The rendered prompt to ids: special tokens parsed, BOS added unless the template wrote it.
int ew_chat_tokenize(const struct ew_chat_format *format, const struct ew_tokenizer *tok, struct ew_str prompt,
                     struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;
