#include "engine/answer.h"

#include "base/assert.h"
#include "base/utf8.h"

#define HELD_BYTES_MAX ((size_t)1 << 20) // of one token's text and what was held before it
#define HELD_BYTES_USUAL 4096

static int check_stop(const struct ew_str *stop, struct ew_error *err)
{
    if (stop->len == 0)
        return ew_fail(err, EW_ERR_USAGE, "a stop string is empty");
    if (stop->len > HELD_BYTES_MAX / 4)
        return ew_fail(err, EW_ERR_USAGE, "a stop string has %zu bytes and at most %zu are allowed", stop->len,
                       HELD_BYTES_MAX / 4);
    // A stop string that began inside a character would cut the text there.
    if (!ew_utf8_valid(stop->ptr, stop->len))
        return ew_fail(err, EW_ERR_USAGE, "a stop string is not valid UTF-8");
    return 0;
}

int ew_answer_init(struct ew_answer *answer, const struct ew_tokenizer *tok_or_null, const struct ew_str *stop,
                   uint32_t n_stop, struct ew_error *err)
{
    size_t longest = 0;

    *answer = (struct ew_answer){.tok = tok_or_null, .stop = stop, .n_stop = n_stop};
    ew_buf_init(&answer->held, HELD_BYTES_MAX);
    ew_buf_init(&answer->given, HELD_BYTES_MAX);
    if (n_stop && !tok_or_null)
        return ew_fail(err, EW_ERR_USAGE, "stop strings are given and the model has no tokenizer");
    for (uint32_t i = 0; i < n_stop; i++) {
        int rc = check_stop(&stop[i], err);

        if (rc < 0)
            return rc;
        longest = EW_MAX(longest, stop[i].len);
    }
    if (!tok_or_null)
        return 0;
    ew_detok_init(&answer->detok, tok_or_null, true);
    if (!ew_buf_reserve(&answer->held, longest + HELD_BYTES_USUAL) ||
        !ew_buf_reserve(&answer->given, longest + HELD_BYTES_USUAL))
        return ew_fail_memory(err, 2 * (longest + HELD_BYTES_USUAL), "an answer's text");
    return 0;
}

void ew_answer_fini(struct ew_answer *answer)
{
    ew_buf_fini(&answer->held);
    ew_buf_fini(&answer->given);
}

// Where the earliest stop string begins, or -1.
static ptrdiff_t find_stop(const struct ew_answer *answer)
{
    ptrdiff_t earliest = -1;

    for (uint32_t i = 0; i < answer->n_stop; i++) {
        ptrdiff_t at = ew_str_find(ew_buf_str(&answer->held), answer->stop[i], 0);

        if (at >= 0 && (earliest < 0 || at < earliest))
            earliest = at;
    }
    return earliest;
}

// Length of the longest end of text that begins a stop string.
static size_t begun_stop(const struct ew_answer *answer)
{
    struct ew_str held = ew_buf_str(&answer->held);
    size_t longest = 0;

    for (uint32_t i = 0; i < answer->n_stop; i++)
        for (size_t len = EW_MIN(answer->stop[i].len - 1, held.len); len > longest; len--)
            if (memcmp(held.ptr + held.len - len, answer->stop[i].ptr, len) == 0)
                longest = len;
    return longest;
}

static void give(struct ew_answer *answer, size_t len)
{
    ew_buf_append(&answer->given, answer->held.ptr, len);
    answer->held.len -= len;
    memmove(answer->held.ptr, answer->held.ptr + len, answer->held.len);
}

static bool is_shown(const struct ew_answer *answer, int32_t token)
{
    for (uint32_t i = 0; i < answer->n_shown; i++)
        if (answer->shown[i] == token)
            return true;
    return false;
}

int ew_answer_push(struct ew_answer *answer, int32_t token, bool *stopped, struct ew_error *err)
{
    ptrdiff_t at;
    int rc;

    *stopped = false;
    ew_buf_reset(&answer->given);
    // Padding of the vocabulary has no text, but a model may choose it.
    if (!answer->tok || (uint32_t)token >= ew_tokenizer_info(answer->tok)->n_vocab)
        return 0;
    answer->detok.skip_special = !is_shown(answer, token);
    rc = ew_detok_push(&answer->detok, token, &answer->held, err);
    if (rc < 0)
        return rc;
    if (answer->held.len == 0)
        return 0;
    at = find_stop(answer);
    *stopped = answer->is_over = at >= 0;
    give(answer, at >= 0 ? (size_t)at : answer->held.len - begun_stop(answer));
    if (!ew_buf_ok(&answer->held) || !ew_buf_ok(&answer->given))
        return ew_fail(err, EW_ERR_MEMORY, "the text of token %d is too long", token);
    return 0;
}

struct ew_str ew_answer_end(struct ew_answer *answer)
{
    if (answer->is_over)
        return (struct ew_str){0};
    if (answer->tok)
        ew_detok_flush(&answer->detok, &answer->held);
    return ew_buf_str(&answer->held);
}
