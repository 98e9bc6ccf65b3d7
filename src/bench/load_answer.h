#pragma once
// What a reply of the OpenAI APIs says that a load test wants to know: the text, the counts, why it ended, or the
// error. The same fields serve whole answers and the chunks of a stream, of chat and of plain completions.

#include "base/alloc.h"
#include "base/error.h"
#include "base/str.h"

struct ew_load_answer {
    struct ew_str text[3]; // reasoning, content, arguments of tool calls; views into the arena, perhaps empty
    bool has_text;          // any of them is not empty
    bool finished;          // a finish_reason is given
    int64_t prompt_tokens, completion_tokens, cached_tokens; // of `usage`; -1 where it has none
    struct ew_str error;    // the message of an error object; NULL where there is none
};

// The arena is reset first: at most one answer of it is alive.
int ew_load_answer_parse(struct ew_arena *arena, struct ew_str json, struct ew_load_answer *out,
                         struct ew_error *err) EW_MUST_CHECK;
