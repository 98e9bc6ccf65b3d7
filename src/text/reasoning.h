#pragma once
// Splits a streamed answer into the model's reasoning and what it says. Feed text in pieces of any size: markers may
// span pieces, and each call appends to the two buffers what is certain.

#include <stdbool.h>

#include "base/buf.h"

struct ew_chat_caps;

struct ew_reasoning {
    const char *open, *close; // NULL: everything is content
    // START: only white space was seen. OPENED: the reasoning has begun, and white space and a repeated marker are
    // passed over. CLOSED: the reasoning has ended, and the white space before the answer is passed over.
    enum {
        EW_REASONING_START,
        EW_REASONING_OPENED,
        EW_REASONING_INSIDE,
        EW_REASONING_CLOSED,
        EW_REASONING_CONTENT
    } state;
    struct ew_buf held; // what is not yet decided: white space, the beginning of a marker
};

// prompt_tail: the end of the rendered prompt (or all of it), because some templates open the reasoning themselves,
// and others open and close it at once to have none.
void ew_reasoning_init(struct ew_reasoning *split, const struct ew_chat_caps *caps, struct ew_str prompt_tail);
void ew_reasoning_fini(struct ew_reasoning *split);
void ew_reasoning_push(struct ew_reasoning *split, struct ew_str piece, struct ew_buf *reasoning,
                       struct ew_buf *content);
void ew_reasoning_end(struct ew_reasoning *split, struct ew_buf *reasoning, struct ew_buf *content);
