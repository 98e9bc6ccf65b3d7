#include "text/added.h"

#include "base/alloc.h"
#include "base/utf8.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

int ew_added_init(struct ew_added *added, struct ew_error *err)
{
    *added = (struct ew_added){0};
    return ew_trie_init(&added->trie, err);
}

void ew_added_fini(struct ew_added *added)
{
    ew_trie_fini(&added->trie);
    ew_free(added->tokens);
    *added = (struct ew_added){0};
}

int ew_added_put(struct ew_added *added, struct ew_str text, struct ew_added_token token, struct ew_error *err)
{
    struct ew_added_token *tokens;

    if (text.len == 0 || !ew_utf8_valid(text.ptr, text.len))
        return EW_OK;
    if (text.len > EW_ADDED_LEN_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "the added token %d is %zu bytes long, more than %d", token.id, text.len,
                       EW_ADDED_LEN_MAX);
    if (added->count == added->cap) {
        added->cap = added->cap ? added->cap * 2 : 64;
        tokens = ew_realloc_array(added->tokens, added->cap, sizeof(*tokens));
        if (!tokens)
            return ew_fail_memory(err, added->cap * sizeof(*tokens), "the added tokens");
        added->tokens = tokens;
    }
    added->tokens[added->count] = token;
    added->first[(unsigned char)text.ptr[0]] = 1;
    return ew_trie_put(&added->trie, text, (int32_t)added->count++, err);
}

// The character that ends at `at`.
static uint32_t character_before(struct ew_str text, size_t at, size_t *start)
{
    uint32_t c = 0;

    for (*start = at - 1; *start > 0 && ((unsigned char)text.ptr[*start] & 0xC0) == 0x80; --*start)
        ;
    ew_utf8_decode(text.ptr + *start, at - *start, &c);
    return c;
}

static bool is_single_word(struct ew_str text, size_t start, size_t end)
{
    uint32_t c;
    size_t at;

    if (start > 0 && ew_unicode_is_word(character_before(text, start, &at)))
        return false;
    return end == text.len || !ew_utf8_decode(text.ptr + end, text.len - end, &c) || !ew_unicode_is_word(c);
}

static void take_spaces(const struct ew_added_token *token, struct ew_str text, size_t from,
                        struct ew_added_match *match)
{
    size_t before, len;
    uint32_t c;

    while (token->lstrip && match->start > from && ew_unicode_is_space(character_before(text, match->start, &before)))
        match->start = before;
    while (token->rstrip && (len = ew_utf8_decode(text.ptr + match->end, text.len - match->end, &c)) &&
           ew_unicode_is_space(c))
        match->end += len;
}

bool ew_added_find(const struct ew_added *added, struct ew_str text, size_t from, bool parse_special,
                   struct ew_added_match *match)
{
    size_t len;

    for (size_t at = from; at < text.len;) {
        const struct ew_added_token *token;
        int32_t index = EW_TOKEN_NONE;

        if (added->first[(unsigned char)text.ptr[at]])
            index = ew_trie_longest(&added->trie, EW_TRIE_ROOT, text, at, &len);
        if (index < 0) {
            at++;
            continue;
        }
        token = &added->tokens[index];
        if ((!token->special || parse_special) && (!token->single_word || is_single_word(text, at, at + len))) {
            *match = (struct ew_added_match){at, at + len, token->id};
            take_spaces(token, text, from, match);
            return true;
        }
        at +=
            len; // as the reference implementation: what lies within a match that does not count is not searched again
    }
    return false;
}
