#include "text/reasoning.h"

#include "base/assert.h"
#include "text/chat.h"

#define HELD_BYTES_MAX ((size_t)64 << 20) // one piece and what was held before it

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static struct ew_str skip_space(struct ew_str s)
{
    while (s.len > 0 && is_space(s.ptr[0]))
        s = (struct ew_str){s.ptr + 1, s.len - 1};
    return s;
}

static struct ew_str drop_space_after(struct ew_str s)
{
    while (s.len > 0 && is_space(s.ptr[s.len - 1]))
        s.len--;
    return s;
}

// Whether text, the newest of the stream, could still become the marker.
static bool may_become(struct ew_str text, const char *marker)
{
    return text.len < strlen(marker) && memcmp(text.ptr, marker, text.len) == 0;
}

void ew_reasoning_init(struct ew_reasoning *split, const struct ew_chat_caps *caps, struct ew_str prompt_tail)
{
    *split = (struct ew_reasoning){.open = caps->reasoning_open, .close = caps->reasoning_close};
    ew_buf_init(&split->held, HELD_BYTES_MAX);
    prompt_tail = drop_space_after(prompt_tail);
    if (!split->open || ew_str_ends(prompt_tail, split->close))
        split->state = EW_REASONING_CONTENT;
    else if (ew_str_ends(prompt_tail, split->open))
        split->state = EW_REASONING_OPENED;
}

void ew_reasoning_fini(struct ew_reasoning *split)
{
    ew_buf_fini(&split->held);
}

// What of the text behind the open marker belongs to the reasoning for sure: not white space at the end, which is
// dropped before the close marker, and not what may become that marker.
static size_t certain_len(struct ew_str text, const char *close)
{
    size_t keep = text.len;

    for (size_t n = EW_MIN(text.len, strlen(close) - 1); n > 0; n--)
        if (memcmp(text.ptr + text.len - n, close, n) == 0) {
            keep -= n;
            break;
        }
    return drop_space_after((struct ew_str){text.ptr, keep}).len;
}

// The beginning of an answer: perhaps white space, then the open marker or something else; or the beginning of the
// reasoning. Returns the text that is left; the state stays where nothing can be said yet.
static struct ew_str at_start(struct ew_reasoning *split, struct ew_str text, bool is_end)
{
    size_t len = strlen(split->open);
    struct ew_str bare = skip_space(text);

    while (bare.len >= len && memcmp(bare.ptr, split->open, len) == 0) {
        split->state = EW_REASONING_OPENED;
        text = bare = skip_space((struct ew_str){bare.ptr + len, bare.len - len});
    }
    if (!is_end && (bare.len == 0 || may_become(bare, split->open)))
        return text;
    if (split->state == EW_REASONING_START) {
        split->state = EW_REASONING_CONTENT;
        return text;
    }
    split->state = EW_REASONING_INSIDE;
    return bare;
}

static struct ew_str inside(struct ew_reasoning *split, struct ew_str text, bool is_end, struct ew_buf *reasoning)
{
    ptrdiff_t close = ew_str_find(text, ew_str_of(split->close), 0);
    size_t len;

    if (close < 0) {
        len = is_end ? drop_space_after(text).len : certain_len(text, split->close);
        ew_buf_append(reasoning, text.ptr, len);
        return (struct ew_str){text.ptr + len, is_end ? 0 : text.len - len};
    }
    ew_buf_append_str(reasoning, drop_space_after((struct ew_str){text.ptr, (size_t)close}));
    len = (size_t)close + strlen(split->close);
    split->state = EW_REASONING_CLOSED;
    return (struct ew_str){text.ptr + len, text.len - len};
}

static void advance(struct ew_reasoning *split, bool is_end, struct ew_buf *reasoning, struct ew_buf *content)
{
    struct ew_str text = ew_buf_str(&split->held);

    if (split->state == EW_REASONING_START || split->state == EW_REASONING_OPENED)
        text = at_start(split, text, is_end);
    if (split->state == EW_REASONING_INSIDE)
        text = inside(split, text, is_end, reasoning);
    if (split->state == EW_REASONING_CLOSED) {
        text = skip_space(text);
        if (text.len > 0)
            split->state = EW_REASONING_CONTENT;
    }
    if (split->state == EW_REASONING_CONTENT) {
        ew_buf_append_str(content, text);
        text.len = 0;
    }
    if (text.len)
        memmove(split->held.ptr, text.ptr, text.len);
    split->held.len = text.len;
}

void ew_reasoning_push(struct ew_reasoning *split, struct ew_str piece, struct ew_buf *reasoning,
                       struct ew_buf *content)
{
    if (split->state == EW_REASONING_CONTENT) {
        ew_buf_append_str(content, piece);
        return;
    }
    ew_buf_append_str(&split->held, piece);
    if (!ew_buf_ok(&split->held)) // memory is short: the caller's buffers show it
        content->failed = true;
    else if (split->held.len)
        advance(split, false, reasoning, content);
}

void ew_reasoning_end(struct ew_reasoning *split, struct ew_buf *reasoning, struct ew_buf *content)
{
    if (split->held.len)
        advance(split, true, reasoning, content);
}
