#include "text/wordpiece.h"

#include "base/utf8.h"

static uint32_t node_of(const struct ew_trie *trie, struct ew_str mark)
{
    uint32_t node = EW_TRIE_ROOT;

    for (size_t i = 0; i < mark.len && node != EW_TRIE_NONE; i++)
        node = ew_trie_step(trie, node, (unsigned char)mark.ptr[i]);
    return node;
}

int ew_wordpiece_init(struct ew_wordpiece *wordpiece, const struct ew_vocab *vocab, struct ew_str first,
                      struct ew_str inner, struct ew_error *err)
{
    int code;

    *wordpiece = (struct ew_wordpiece){.unk = EW_TOKEN_NONE, .word_len_max = 100};
    code = ew_trie_init(&wordpiece->trie, err);
    for (uint32_t id = 0; id < vocab->count && code == EW_OK; id++) {
        struct ew_str text = vocab->texts[id];

        // A token that is not well-formed text can match no whole characters.
        if (vocab->flags[id] & EW_VOCAB_MODEL && ew_utf8_valid(text.ptr, text.len))
            code = ew_trie_put(&wordpiece->trie, text, (int32_t)id, err);
    }
    if (code != EW_OK)
        return code;
    wordpiece->first_node = node_of(&wordpiece->trie, first);
    wordpiece->inner_node = node_of(&wordpiece->trie, inner);
    return EW_OK;
}

void ew_wordpiece_fini(struct ew_wordpiece *wordpiece)
{
    ew_trie_fini(&wordpiece->trie);
    *wordpiece = (struct ew_wordpiece){0};
}

static size_t count_characters(struct ew_str word)
{
    size_t count = 0;

    for (size_t i = 0; i < word.len; i++)
        count += ((unsigned char)word.ptr[i] & 0xC0) != 0x80;
    return count;
}

// Appends the word's tokens; false where some part of it has none.
static bool cut(const struct ew_wordpiece *wordpiece, struct ew_str word, struct ew_ids *out, int *code,
                struct ew_error *err)
{
    for (size_t at = 0, len = 0; at < word.len && *code == EW_OK; at += len) {
        uint32_t node = at == 0 ? wordpiece->first_node : wordpiece->inner_node;
        int32_t id = node == EW_TRIE_NONE ? EW_TOKEN_NONE : ew_trie_longest(&wordpiece->trie, node, word, at, &len);

        if (id < 0)
            return false;
        *code = ew_ids_add(out, id, err);
    }
    return true;
}

int ew_wordpiece_encode(const struct ew_wordpiece *wordpiece, struct ew_str word, struct ew_ids *out,
                        struct ew_error *err)
{
    size_t before = out->count;
    int code = EW_OK;

    if (count_characters(word) <= wordpiece->word_len_max && cut(wordpiece, word, out, &code, err))
        return code;
    out->count = before;
    if (wordpiece->unk < 0)
        return ew_fail(err, EW_ERR_FORMAT,
                       "the text has the word \"" EW_STR_FMT "\", for which the vocabulary has no tokens, not "
                       "even an unknown one",
                       EW_STR_ARG(word));
    return ew_ids_add(out, wordpiece->unk, err);
}
