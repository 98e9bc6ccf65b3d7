#include "text/toolcall.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "format/json.h"
#include "text/chat.h"

#define HELD_BYTES_MAX ((size_t)64 << 20) // one piece and what was held before it
#define NAME_BYTES_MAX 256
#define PROBE_OUTPUT_MAX ((size_t)4 << 20)
#define PROBE_JSON_MAX ((size_t)1 << 20)

static const char *const g_marks[][4] = {
    [EW_TOOLCALL_NONE] = {NULL},
    [EW_TOOLCALL_HERMES] = {"<tool_call>", "</tool_call>", NULL},
    [EW_TOOLCALL_LLAMA] = {"<|python_tag|>", NULL},
    [EW_TOOLCALL_MISTRAL] = {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", NULL},
};

const char *const *ew_toolcall_marks(enum ew_toolcall_kind kind)
{
    return g_marks[kind];
}

void ew_toolcalls_init(struct ew_toolcalls *calls, enum ew_toolcall_kind kind, const struct ew_toolcall_sink *sink)
{
    *calls = (struct ew_toolcalls){.kind = kind, .sink = *sink, .at_start = kind == EW_TOOLCALL_LLAMA};
    ew_buf_init(&calls->held, HELD_BYTES_MAX);
}

void ew_toolcalls_fini(struct ew_toolcalls *calls)
{
    ew_buf_fini(&calls->held);
}

// ---- the text held back -------------------------------------------------------------------------------------------

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static struct ew_str held_from(const struct ew_toolcalls *calls, size_t from)
{
    return (struct ew_str){calls->held.ptr + from, calls->held.len - from};
}

static struct ew_str held_span(const struct ew_toolcalls *calls, const size_t span[2])
{
    return (struct ew_str){calls->held.ptr + span[0], span[1] - span[0]};
}

static void skip_space(struct ew_toolcalls *calls)
{
    while (calls->at < calls->held.len && is_space(calls->held.ptr[calls->at]))
        calls->at++;
}

// Whether text, the newest of the stream, could still become the marker.
static bool may_become(struct ew_str text, const char *marker)
{
    return text.len < strlen(marker) && memcmp(text.ptr, marker, text.len) == 0;
}

// Forgets what has left.
static void drop(struct ew_toolcalls *calls, size_t len)
{
    if (len == 0)
        return;
    calls->held.len -= len;
    memmove(calls->held.ptr, calls->held.ptr + len, calls->held.len);
    calls->at = calls->at > len ? calls->at - len : 0;
}

static void give_content(struct ew_toolcalls *calls, size_t len)
{
    if (len)
        calls->sink.content(calls->sink.ctx, (struct ew_str){calls->held.ptr, len});
    drop(calls, len);
}

// ---- a call -------------------------------------------------------------------------------------------------------

static void to_text(struct ew_toolcalls *calls)
{
    calls->state = EW_TOOLCALLS_TEXT;
    calls->at = 0;
}

static void end_call(struct ew_toolcalls *calls)
{
    calls->sink.end(calls->sink.ctx, calls->n_calls);
    calls->n_calls++;
    calls->is_begun = false;
}

// What was read since the marker is no call. The marker is content, and the rest is looked at again.
static void give_up(struct ew_toolcalls *calls)
{
    if (calls->is_begun)
        end_call(calls);
    else
        give_content(calls, calls->mark_end);
    calls->mark_end = 0;
    calls->at_start = calls->in_array = false;
    to_text(calls);
}

static void begin_object(struct ew_toolcalls *calls, bool is_bare)
{
    ew_jsonscan_init(&calls->scan);
    calls->state = EW_TOOLCALLS_OBJECT;
    calls->is_bare = is_bare;
    calls->is_begun = calls->has_arguments = false;
    calls->has_name = is_bare;
    calls->member = is_bare ? EW_TOOLCALLS_KEY_ARGUMENTS : EW_TOOLCALLS_KEY_OTHER;
    calls->arguments[0] = is_bare ? calls->at : SIZE_MAX;
}

// The text of a JSON string, in the arena. false where it is none that can be a name or arguments.
static bool decode(struct ew_arena *arena, struct ew_str json, struct ew_str *out)
{
    const struct ew_json *node;

    if (ew_json_parse(arena, json, &node, NULL) != EW_OK || node->type != EW_JSON_T_STRING)
        return false;
    *out = node->text;
    return ew_utf8_valid(out->ptr, out->len);
}

static bool is_known(const struct ew_toolcalls *calls, struct ew_str name)
{
    for (uint32_t i = 0; i < calls->n_names; i++)
        if (ew_str_eq(name, calls->names[i]))
            return true;
    return false;
}

// A call's name, which may have been checked before. The arena has room for it.
static bool name_of(const struct ew_toolcalls *calls, struct ew_arena *arena, struct ew_str *out)
{
    *out = held_span(calls, calls->name);
    if (!calls->is_bare && !decode(arena, *out, out))
        return false;
    if (out->len == 0 || out->len > NAME_BYTES_MAX)
        return false;
    return calls->is_marked || is_known(calls, *out);
}

static bool begin_call(struct ew_toolcalls *calls)
{
    struct ew_arena arena;
    struct ew_str name;
    bool works;

    ew_arena_init(&arena, HELD_BYTES_MAX);
    works = calls->n_calls < EW_TOOLCALL_COUNT_MAX && name_of(calls, &arena, &name);
    if (works)
        calls->sink.begin(calls->sink.ctx, calls->n_calls, name);
    calls->is_begun = works;
    ew_arena_fini(&arena);
    return works;
}

static void give_arguments(struct ew_toolcalls *calls, struct ew_str piece)
{
    if (piece.len)
        calls->sink.arguments(calls->sink.ctx, calls->n_calls, piece);
}

// Arguments may be an object as they should, its JSON as a string, or absent.
static bool give_whole_arguments(struct ew_toolcalls *calls)
{
    struct ew_str text = EW_STR("{}");
    struct ew_arena arena;
    bool works = true;

    ew_arena_init(&arena, HELD_BYTES_MAX);
    if (calls->has_arguments)
        text = held_span(calls, calls->arguments);
    if (text.ptr[0] == '"')
        works = decode(&arena, text, &text);
    works = works && begin_call(calls);
    if (works)
        give_arguments(calls, text);
    ew_arena_fini(&arena);
    return works;
}

static void finish_call(struct ew_toolcalls *calls)
{
    if (!calls->has_name || (!calls->is_begun && !give_whole_arguments(calls))) {
        give_up(calls);
        return;
    }
    end_call(calls);
    drop(calls, calls->at);
    calls->mark_end = 0;
    calls->state = EW_TOOLCALLS_BEHIND;
}

// ---- inside the object --------------------------------------------------------------------------------------------

// false: an unmarked object with a member that calls do not have is content, and need not be held any longer.
static bool note_key(struct ew_toolcalls *calls)
{
    struct ew_str key = held_span(calls, calls->key);

    calls->member = EW_TOOLCALLS_KEY_OTHER;
    if (ew_str_is(key, "\"name\""))
        calls->member = EW_TOOLCALLS_KEY_NAME;
    else if (ew_str_is(key, "\"arguments\"") || ew_str_is(key, "\"parameters\""))
        calls->member = EW_TOOLCALLS_KEY_ARGUMENTS;
    else
        return calls->is_marked || ew_str_is(key, "\"type\"") || ew_str_is(key, "\"id\"");
    return true;
}

// false: a value that no call has here, or a second one.
static bool note_value_begin(struct ew_toolcalls *calls, char c)
{
    switch (calls->member) {
    case EW_TOOLCALLS_KEY_NAME:
        calls->name[0] = calls->at;
        return c == '"' && !calls->has_name;
    case EW_TOOLCALLS_KEY_ARGUMENTS:
        if (calls->arguments[0] != SIZE_MAX)
            return false;
        calls->arguments[0] = calls->at;
        return c == '{' || c == '"';
    default:
        return true;
    }
}

static void note_value_end(struct ew_toolcalls *calls)
{
    if (calls->member == EW_TOOLCALLS_KEY_NAME) {
        calls->name[1] = calls->at + 1;
        calls->has_name = true;
    } else if (calls->member == EW_TOOLCALLS_KEY_ARGUMENTS) {
        calls->arguments[1] = calls->at + 1;
        calls->has_arguments = true;
    }
    calls->member = EW_TOOLCALLS_KEY_OTHER;
}

// Takes one byte of the object, and notes where its members are. Whether it may still be a call.
static bool feed(struct ew_toolcalls *calls, char c)
{
    enum ew_jsonscan_state before = calls->scan.state, now;
    bool at_top = calls->scan.depth == 1;

    ew_jsonscan_push(&calls->scan, c);
    now = calls->scan.state;
    if (calls->is_bare) {
        if (now == EW_JSONSCAN_DONE)
            note_value_end(calls);
        return now != EW_JSONSCAN_BROKEN;
    }
    if (at_top && now == EW_JSONSCAN_STRING && (before == EW_JSONSCAN_FIRST_KEY || before == EW_JSONSCAN_KEY))
        calls->key[0] = calls->at;
    if (at_top && before == EW_JSONSCAN_STRING && now == EW_JSONSCAN_COLON) {
        calls->key[1] = calls->at + 1;
        if (!note_key(calls))
            return false;
    }
    if (at_top && before == EW_JSONSCAN_VALUE && now != EW_JSONSCAN_VALUE && !note_value_begin(calls, c))
        return false;
    if (calls->scan.depth == 1 && now == EW_JSONSCAN_AFTER && (before != EW_JSONSCAN_AFTER || !at_top))
        note_value_end(calls);
    return now != EW_JSONSCAN_BROKEN;
}

// Arguments leave as they come, once it is known whose they are.
static bool stream_arguments(struct ew_toolcalls *calls)
{
    bool open = calls->arguments[0] != SIZE_MAX && !calls->has_arguments;

    if (!calls->is_begun) {
        if (calls->whole || !calls->has_name || !open || calls->held.ptr[calls->arguments[0]] != '{')
            return true;
        if (!begin_call(calls))
            return false;
    }
    if (open) {
        give_arguments(calls, (struct ew_str){calls->held.ptr + calls->arguments[0], calls->at - calls->arguments[0]});
        drop(calls, calls->at);
        calls->arguments[0] = 0;
    }
    return true;
}

// The rest of arguments that leave as they come, which end with the byte just read.
static void end_arguments(struct ew_toolcalls *calls)
{
    give_arguments(calls, held_span(calls, calls->arguments));
    drop(calls, calls->at);
    calls->arguments[0] = calls->arguments[1] = 0;
}

// An unmarked object whose name is no tool's is content, and need not be held any longer.
static bool has_strange_name(const struct ew_toolcalls *calls, bool had_name)
{
    struct ew_arena arena;
    struct ew_str name;
    bool is_strange;

    if (had_name || !calls->has_name || calls->is_marked)
        return false;
    ew_arena_init(&arena, HELD_BYTES_MAX);
    is_strange = !name_of(calls, &arena, &name);
    ew_arena_fini(&arena);
    return is_strange;
}

static bool in_object(struct ew_toolcalls *calls)
{
    while (calls->at < calls->held.len) {
        bool had_name = calls->has_name, had_arguments = calls->has_arguments;

        if (!feed(calls, calls->held.ptr[calls->at]) || has_strange_name(calls, had_name)) {
            give_up(calls);
            return true;
        }
        calls->at++;
        if (calls->is_begun && calls->has_arguments && !had_arguments)
            end_arguments(calls);
        if (calls->scan.state == EW_JSONSCAN_DONE) {
            finish_call(calls);
            return true;
        }
    }
    if (stream_arguments(calls) && calls->held.len <= EW_TOOLCALL_BYTES_MAX)
        return false;
    give_up(calls);
    return true;
}

// ---- outside ------------------------------------------------------------------------------------------------------

// A llama's call has no marker: it is an object at the start of the answer, or after another call. false: wait for
// more.
static bool at_start(struct ew_toolcalls *calls)
{
    calls->at = 0;
    skip_space(calls);
    while (calls->n_calls && calls->at < calls->held.len && calls->held.ptr[calls->at] == ';') {
        calls->at++;
        skip_space(calls);
    }
    if (calls->at == calls->held.len)
        return false;
    calls->at_start = false;
    if (calls->held.ptr[calls->at] == '{') {
        calls->mark_end = 0;
        calls->is_marked = false;
        begin_object(calls, false);
    }
    return true;
}

// What of the text is content for sure: not white space at its end, nor what may become the marker.
static size_t certain_len(struct ew_str text, const char *marker)
{
    size_t keep = text.len;

    for (size_t n = EW_MIN(text.len, strlen(marker) - 1); n > 0; n--)
        if (memcmp(text.ptr + text.len - n, marker, n) == 0) {
            keep -= n;
            break;
        }
    while (keep > 0 && is_space(text.ptr[keep - 1]))
        keep--;
    return keep;
}

static bool in_text(struct ew_toolcalls *calls)
{
    const char *marker = g_marks[calls->kind][0];
    struct ew_str text = ew_buf_str(&calls->held);
    ptrdiff_t found;
    size_t len;

    if (calls->at_start)
        return at_start(calls);
    found = text.len ? ew_str_find(text, ew_str_of(marker), 0) : -1;
    if (found < 0) {
        len = certain_len(text, marker);
        give_content(calls, text.len > EW_TOOLCALL_BYTES_MAX ? text.len : len);
        return false;
    }
    len = (size_t)found;
    while (len > 0 && is_space(text.ptr[len - 1]))
        len--;
    calls->at = (size_t)found + strlen(marker);
    give_content(calls, len);
    calls->mark_end = calls->at;
    calls->is_marked = true;
    calls->in_array = false;
    calls->state = EW_TOOLCALLS_MARKED;
    return true;
}

static bool is_name_char(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c && strchr("_-.:/", c));
}

// Length of what stands between a name and its arguments; -1: it is something else, -2: more is needed to say.
static ptrdiff_t match_infix(struct ew_str text)
{
    static const char id_mark[] = "[CALL_ID]", arguments_mark[] = "[ARGS]";
    size_t at = 0;

    if (ew_str_starts(text, id_mark)) {
        at = strlen(id_mark);
        while (at < text.len && is_name_char(text.ptr[at]))
            at++;
    }
    text = (struct ew_str){text.ptr + at, text.len - at};
    if (ew_str_starts(text, arguments_mark))
        return (ptrdiff_t)(at + strlen(arguments_mark));
    if (may_become(text, arguments_mark) || (at == 0 && may_become(text, id_mark)))
        return -2;
    return text.ptr[0] == '{' ? (ptrdiff_t)at : -1;
}

// The form without an array: name, marker, arguments. false: wait for more.
static bool read_name(struct ew_toolcalls *calls)
{
    size_t end = calls->at;
    ptrdiff_t infix;

    while (end < calls->held.len && is_name_char(calls->held.ptr[end]))
        end++;
    infix = end == calls->at || end - calls->at > NAME_BYTES_MAX ? -1 : match_infix(held_from(calls, end));
    if (infix == -2 && calls->held.len - end <= NAME_BYTES_MAX)
        return false;
    if (infix < 0) {
        give_up(calls);
        return true;
    }
    calls->name[0] = calls->at;
    calls->name[1] = end;
    calls->at = end + (size_t)infix;
    skip_space(calls);
    if (calls->at == calls->held.len) {
        calls->at = calls->name[0]; // read again when there is more
        return false;
    }
    begin_object(calls, true);
    return true;
}

static bool is_marked(struct ew_toolcalls *calls)
{
    char c;

    skip_space(calls);
    if (calls->at == calls->held.len)
        return false;
    c = calls->held.ptr[calls->at];
    if (calls->kind == EW_TOOLCALL_MISTRAL && !calls->in_array) {
        if (c != '[')
            return read_name(calls);
        calls->in_array = true;
        calls->at++;
        return true;
    }
    if (c == '{')
        begin_object(calls, false);
    else
        give_up(calls);
    return true;
}

// After a call: what ends it, or joins the next.
static bool is_behind(struct ew_toolcalls *calls)
{
    struct ew_str rest;
    size_t len = 0;

    if (calls->kind == EW_TOOLCALL_HERMES || calls->in_array) {
        const char *close = calls->in_array ? "]" : g_marks[EW_TOOLCALL_HERMES][1];

        skip_space(calls);
        rest = held_from(calls, calls->at);
        if (may_become(rest, close))
            return false;
        if (calls->in_array && rest.ptr[0] == ',') {
            drop(calls, calls->at + 1);
            calls->state = EW_TOOLCALLS_MARKED;
            return true;
        }
        if (ew_str_starts(rest, close))
            len = calls->at + strlen(close);
    }
    drop(calls, len);
    calls->in_array = false;
    calls->at_start = calls->kind == EW_TOOLCALL_LLAMA;
    to_text(calls);
    return true;
}

// Goes on as far as the text allows. Every round leaves its state or takes bytes.
static void advance(struct ew_toolcalls *calls)
{
    static bool (*const steps[])(struct ew_toolcalls *) = {
        [EW_TOOLCALLS_TEXT] = in_text,
        [EW_TOOLCALLS_MARKED] = is_marked,
        [EW_TOOLCALLS_OBJECT] = in_object,
        [EW_TOOLCALLS_BEHIND] = is_behind,
    };

    while (steps[calls->state](calls))
        ;
}

bool ew_toolcalls_push(struct ew_toolcalls *calls, struct ew_str piece)
{
    if (piece.len == 0)
        return true;
    if (calls->kind == EW_TOOLCALL_NONE) {
        calls->sink.content(calls->sink.ctx, piece);
        return true;
    }
    ew_buf_append_str(&calls->held, piece);
    if (!ew_buf_ok(&calls->held))
        return false;
    advance(calls);
    return true;
}

static bool is_blank(struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (!is_space(text.ptr[i]))
            return false;
    return true;
}

bool ew_toolcalls_end(struct ew_toolcalls *calls)
{
    // What was marked but is no call may hold another marker with a whole call behind it.
    while (calls->held.len && calls->state != EW_TOOLCALLS_TEXT && calls->state != EW_TOOLCALLS_BEHIND) {
        give_up(calls);
        advance(calls);
    }
    if (calls->is_begun)
        end_call(calls);
    calls->at_start = false;
    if (calls->n_calls == 0 || !is_blank(ew_buf_str(&calls->held)))
        give_content(calls, calls->held.len);
    calls->held.len = 0;
    to_text(calls);
    return ew_buf_ok(&calls->held);
}

// ---- which form a template writes ---------------------------------------------------------------------------------

#define PROBE(arguments)                                                                                               \
    "{\"messages\": [{\"role\": \"user\", \"content\": \"probe-user\"}, {\"role\": \"assistant\", \"content\": \"\","  \
    " \"tool_calls\": [{\"id\": \"abcdef123\", \"type\": \"function\", \"function\": {\"name\": \"probe_tool\","       \
    " \"arguments\": " arguments "}}]}, {\"role\": \"tool\", \"tool_call_id\": \"abcdef123\","                         \
    " \"name\": \"probe_tool\", \"content\": \"probe-result\"}],"                                                      \
    " \"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"probe_tool\", \"description\": \"d\","           \
    " \"parameters\": {\"type\": \"object\", \"properties\": {\"x\": {\"type\": \"string\", \"description\": \"d\"}}," \
    " \"required\": [\"x\"]}}}], \"add_generation_prompt\": true}"

struct probe_calls {
    uint32_t n_right;
    bool is_right;
    struct ew_buf arguments;
};

static void probe_content(void *ctx, struct ew_str text)
{
    (void)ctx, (void)text;
}

static void probe_begin(void *ctx, uint32_t index, struct ew_str name)
{
    struct probe_calls *probe = ctx;

    probe->is_right = ew_str_is(name, "probe_tool");
    ew_buf_reset(&probe->arguments);
}

static void probe_arguments(void *ctx, uint32_t index, struct ew_str piece)
{
    struct probe_calls *probe = ctx;

    ew_buf_append_str(&probe->arguments, piece);
}

static void probe_end(void *ctx, uint32_t index)
{
    struct probe_calls *probe = ctx;
    struct ew_str text = ew_buf_str(&probe->arguments);

    if (probe->is_right && text.len && text.ptr[0] == '{' && ew_str_find(text, EW_STR("\"probe-value\""), 0) > 0)
        probe->n_right++;
}

// Whether the parser finds the conversation's call in what the template made of it.
static bool finds_call(enum ew_toolcall_kind kind, struct ew_str prompt)
{
    static const struct ew_str name = EW_STR("probe_tool");
    struct probe_calls probe = {0};
    struct ew_toolcall_sink sink = {probe_content, probe_begin, probe_arguments, probe_end, &probe};
    struct ew_toolcalls calls;
    ptrdiff_t at = 0;
    bool works = true;

    ew_buf_init(&probe.arguments, PROBE_JSON_MAX);
    ew_toolcalls_init(&calls, kind, &sink);
    calls.whole = true;
    calls.names = &name;
    calls.n_names = 1;
    if (kind == EW_TOOLCALL_LLAMA) // it must be at an answer's start, and there is no telling where that is
        at = ew_str_find(prompt, EW_STR("{\"name\": \"probe_tool\", \"parameters\": {"), 0);
    if (at >= 0)
        works = ew_toolcalls_push(&calls, (struct ew_str){prompt.ptr + at, prompt.len - (size_t)at}) &&
                ew_toolcalls_end(&calls);
    ew_toolcalls_fini(&calls);
    ew_buf_fini(&probe.arguments);
    return works && probe.n_right > 0;
}

static enum ew_toolcall_kind detect_with(const struct ew_chat_format *chat, const char *conversation)
{
    enum ew_toolcall_kind kind = EW_TOOLCALL_NONE;
    const struct ew_json *inputs;
    struct ew_arena arena;
    struct ew_buf out;

    ew_arena_init(&arena, PROBE_JSON_MAX);
    ew_buf_init(&out, PROBE_OUTPUT_MAX);
    if (ew_json_parse(&arena, ew_str_of(conversation), &inputs, NULL) == EW_OK &&
        ew_chat_render(chat, inputs, &out, NULL) == EW_OK && out.len)
        for (kind = EW_TOOLCALL_MISTRAL; kind != EW_TOOLCALL_NONE; kind--)
            if (finds_call(kind, ew_buf_str(&out)))
                break;
    ew_buf_fini(&out);
    ew_arena_fini(&arena);
    return kind;
}

struct ew_toolcall_format ew_toolcall_detect(const struct ew_chat_format *chat)
{
    struct ew_toolcall_format format = {.kind = detect_with(chat, PROBE("{\"x\": \"probe-value\"}"))};

    if (format.kind == EW_TOOLCALL_NONE) {
        format.kind = detect_with(chat, PROBE("\"{\\\"x\\\": \\\"probe-value\\\"}\""));
        format.arguments_as_text = format.kind != EW_TOOLCALL_NONE;
    }
    return format;
}
