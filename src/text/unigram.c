#include "text/unigram.h"

#include <math.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "text/illformed.h"

#define UNK_PENALTY 10.0 // below the worst token; SentencePiece's kUnkPenalty

int ew_unigram_init(struct ew_unigram *unigram, const struct ew_vocab *vocab, struct ew_error *err)
{
    *unigram = (struct ew_unigram){.vocab = vocab, .score_min = INFINITY, .unk = EW_TOKEN_NONE};
    unigram->scores = ew_alloc_array(vocab->count, sizeof(*unigram->scores));
    if (!unigram->scores)
        return ew_fail_memory(err, vocab->count * sizeof(*unigram->scores), "the scores of the vocabulary");
    return ew_trie_init(&unigram->trie, err);
}

void ew_unigram_fini(struct ew_unigram *unigram)
{
    ew_trie_fini(&unigram->trie);
    ew_free(unigram->scores);
    *unigram = (struct ew_unigram){0};
}

int ew_unigram_add(struct ew_unigram *unigram, uint32_t id, double score, struct ew_error *err)
{
    struct ew_str text = unigram->vocab->texts[id];

    if (isnan(score))
        return ew_fail(err, EW_ERR_FORMAT, "token %u has a score that is not a number", id);
    unigram->scores[id] = score;
    unigram->score_min = fmin(unigram->score_min, score);
    // A token that is not well-formed text can match no whole characters.
    return text.len && ew_utf8_valid(text.ptr, text.len) ? ew_trie_put(&unigram->trie, text, (int32_t)id, err) : EW_OK;
}

void ew_unigram_ready(struct ew_unigram *unigram, bool byte_fallback)
{
    unigram->byte_fallback = ew_vocab_byte_ids(unigram->vocab, unigram->bytes) && byte_fallback;
}

void ew_unigram_scratch_fini(struct ew_unigram_scratch *scratch)
{
    ew_free(scratch->nodes);
    *scratch = (struct ew_unigram_scratch){0};
}

static int reserve(struct ew_unigram_scratch *scratch, size_t len, struct ew_error *err)
{
    struct ew_unigram_node *nodes;

    if (len >= UINT32_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "a text of more than 4 GiB cannot be tokenised");
    if (scratch->cap < len + 1) {
        nodes = ew_realloc_array(scratch->nodes, len + 1, sizeof(*nodes));
        if (!nodes)
            return ew_fail_memory(err, (len + 1) * sizeof(*nodes), "the segmentation of a text");
        scratch->nodes = nodes;
        scratch->cap = len + 1;
    }
    for (size_t i = 0; i <= len; i++)
        scratch->nodes[i] = (struct ew_unigram_node){.id = EW_TOKEN_NONE};
    return EW_OK;
}

static void offer(struct ew_unigram_node *node, double score, size_t from, int32_t id)
{
    if (node->id == EW_TOKEN_NONE || score > node->score)
        *node = (struct ew_unigram_node){score, (uint32_t)from, id};
}

// Extends the best path to `at` by every token that begins there. Returns whether one of them is exactly one character.
static bool extend(const struct ew_unigram *unigram, struct ew_unigram_node *nodes, struct ew_str text, size_t at,
                   size_t char_len)
{
    uint32_t node = EW_TRIE_ROOT;
    bool single = false;

    for (size_t i = at; i < text.len; i++) {
        int32_t id;

        node = ew_trie_step(&unigram->trie, node, (unsigned char)text.ptr[i]);
        if (node == EW_TRIE_NONE)
            break;
        id = unigram->trie.values[node];
        if (id == EW_TOKEN_NONE)
            continue;
        offer(&nodes[i + 1], nodes[at].score + unigram->scores[id], at, id);
        single |= i + 1 - at == char_len;
    }
    return single;
}

static int search(const struct ew_unigram *unigram, struct ew_unigram_node *nodes, struct ew_str text,
                  struct ew_error *err)
{
    for (size_t at = 0, len; at < text.len; at += len) {
        uint32_t c;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        EW_ASSERT(len > 0);
        if (extend(unigram, nodes, text, at, len))
            continue;
        if (unigram->unk < 0)
            return ew_fail(err, EW_ERR_FORMAT,
                           "the text has the character U+%04X, for which the vocabulary has no token, not "
                           "even an unknown one",
                           c);
        // The penalty is taken off first, as in the reference: where two ways tie, the rounding of the sum decides.
        offer(&nodes[at + len], nodes[at].score + (unigram->score_min - UNK_PENALTY), at, unigram->unk);
    }
    return EW_OK;
}

static int emit_unknown(const struct ew_unigram *unigram, struct ew_str text, bool illformed, struct ew_ids *out,
                        struct ew_error *err)
{
    int code = EW_OK;

    if (!unigram->byte_fallback)
        return ew_ids_add(out, unigram->unk, err);
    for (size_t at = 0, len; at < text.len && code == EW_OK; at += len) {
        uint32_t c = 0;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        if (illformed && ew_illformed_is(c)) {
            code = ew_ids_add(out, unigram->bytes[ew_illformed_byte(c)], err);
            continue;
        }
        for (size_t i = 0; i < len && code == EW_OK; i++)
            code = ew_ids_add(out, unigram->bytes[(unsigned char)text.ptr[at + i]], err);
    }
    return code;
}

// Turns the links round: afterwards nodes[i].from, for a token's start i, is the token's end.
static void reverse(struct ew_unigram_node *nodes, size_t len)
{
    struct ew_unigram_node here = nodes[len];

    for (size_t end = len; end > 0;) {
        size_t start = here.from;
        struct ew_unigram_node before = nodes[start];

        nodes[start] = (struct ew_unigram_node){.from = (uint32_t)end, .id = here.id};
        here = before;
        end = start;
    }
}

int ew_unigram_encode(const struct ew_unigram *unigram, struct ew_unigram_scratch *scratch, struct ew_str text,
                      bool illformed, struct ew_ids *out, struct ew_error *err)
{
    int code = reserve(scratch, text.len, err);
    struct ew_unigram_node *nodes = scratch->nodes;

    if (code == EW_OK)
        code = search(unigram, nodes, text, err);
    if (code != EW_OK)
        return code;
    reverse(nodes, text.len);
    for (size_t at = 0, end; at < text.len && code == EW_OK; at = end) {
        int32_t id = nodes[at].id;

        end = nodes[at].from;
        if (id != unigram->unk) {
            code = ew_ids_add(out, id, err);
            continue;
        }
        while (end < text.len && nodes[end].id == unigram->unk) // neighbouring unknowns are one
            end = nodes[end].from;
        code = emit_unknown(unigram, (struct ew_str){text.ptr + at, end - at}, illformed, out, err);
    }
    return code;
}
