#pragma once
// Calls of tools in a streamed answer. Feed text in pieces of any size, whole characters each; what is certain leaves
// through the sink: content, and calls as their name and then their arguments in pieces. Text that may yet begin a
// call is held back.
//
// What turns out to be no call, or one whose JSON is broken, is content as it stands; only white space next to calls
// is lost.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "format/jsonscan.h"

struct ew_chat_format;

enum ew_toolcall_kind {
    EW_TOOLCALL_NONE,
    EW_TOOLCALL_HERMES,  // <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen, the bundled model
    EW_TOOLCALL_LLAMA,   // {"name": ..., "parameters": {...}}, perhaps behind <|python_tag|>, several with ; between
    EW_TOOLCALL_MISTRAL, // [TOOL_CALLS][{...}, ...], or [TOOL_CALLS]name[ARGS]{...}
};

struct ew_toolcall_format {
    enum ew_toolcall_kind kind;
    bool arguments_as_text; // the template wants a message's arguments as JSON text, not as an object
};

// By rendering a conversation with a call. NONE: the template writes calls in no way known here.
struct ew_toolcall_format ew_toolcall_detect(const struct ew_chat_format *chat);
// The texts that mark calls, where they may be special tokens; ended by NULL.
const char *const *ew_toolcall_marks(enum ew_toolcall_kind kind);

struct ew_toolcall_sink {
    void (*content)(void *ctx, struct ew_str text);
    void (*begin)(void *ctx, uint32_t index, struct ew_str name); // calls are numbered from 0
    void (*arguments)(void *ctx, uint32_t index, struct ew_str piece);
    void (*end)(void *ctx, uint32_t index);
    void *ctx;
};

#define EW_TOOLCALL_BYTES_MAX ((size_t)1 << 20) // of a call that is held back
#define EW_TOOLCALL_COUNT_MAX 128

struct ew_toolcalls {
    enum ew_toolcall_kind kind;
    // Calls leave only when they are complete, so that a broken one is content wholly. Without it a call's arguments
    // leave as they come; where they break, the call stands as far as it went, and the rest is content.
    bool whole;
    // Of the tools there are: LLAMA takes an unmarked object for a call only if it names one.
    const struct ew_str *names;
    uint32_t n_names;
    struct ew_toolcall_sink sink;
    uint32_t n_calls;
    // Private.
    enum { EW_TOOLCALLS_TEXT, EW_TOOLCALLS_MARKED, EW_TOOLCALLS_OBJECT, EW_TOOLCALLS_BEHIND } state;
    struct ew_buf held;    // from the first byte that has not left
    size_t at;             // read so far
    size_t mark_end;       // of held, where the marker ends: what of it is content where the call is broken
    bool at_start;         // LLAMA: an unmarked object may begin here
    bool in_array, is_bare; // MISTRAL: inside [...]; the object is the arguments alone
    bool is_marked, is_begun, has_name, has_arguments;
    struct ew_jsonscan scan;
    size_t key[2], name[2], arguments[2]; // [begin, end) in held; names and texts with their quotes
    enum { EW_TOOLCALLS_KEY_OTHER, EW_TOOLCALLS_KEY_NAME, EW_TOOLCALLS_KEY_ARGUMENTS } member;
};

// names are borrowed. Kind NONE passes everything through.
void ew_toolcalls_init(struct ew_toolcalls *calls, enum ew_toolcall_kind kind, const struct ew_toolcall_sink *sink);
void ew_toolcalls_fini(struct ew_toolcalls *calls);
// false: memory is short.
bool ew_toolcalls_push(struct ew_toolcalls *calls, struct ew_str piece) EW_MUST_CHECK;
// The answer has ended: an unfinished call is content.
bool ew_toolcalls_end(struct ew_toolcalls *calls) EW_MUST_CHECK;
