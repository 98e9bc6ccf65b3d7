#include "text/spm.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "text/illformed.h"

int ew_spm_init(struct ew_spm *spm, const struct ew_vocab *vocab, int32_t unk, struct ew_error *err)
{
    *spm = (struct ew_spm){.vocab = vocab, .unk = unk};
    spm->ranks = ew_alloc_array(vocab->count, sizeof(*spm->ranks));
    if (!spm->ranks)
        return ew_fail_memory(err, vocab->count * sizeof(*spm->ranks), "the scores of the vocabulary");
    spm->byte_fallback = ew_vocab_byte_ids(vocab, spm->bytes);
    return EW_OK;
}

void ew_spm_fini(struct ew_spm *spm)
{
    ew_free(spm->ranks);
    *spm = (struct ew_spm){0};
}

// IEEE 754 floats order like sign-magnitude integers; made unsigned and turned round, so that the best score is lowest.
void ew_spm_set_score(struct ew_spm *spm, uint32_t id, float score)
{
    uint32_t bits;

    score += 0.0f; // -0 equals 0
    memcpy(&bits, &score, sizeof(bits));
    spm->ranks[id] = ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

static bool join_rank(const void *model, const struct ew_merge *merge, uint32_t left, uint32_t right, uint32_t *rank,
                      int32_t *id)
{
    const struct ew_spm *spm = model;
    size_t at = merge->symbols[left].at;

    *id = ew_vocab_find_model(spm->vocab, (struct ew_str){merge->text + at, ew_merge_end(merge, right) - at});
    if (*id < 0)
        return false;
    *rank = spm->ranks[*id];
    return true;
}

// What has no token becomes bytes, or without byte tokens one unknown token, shared by neighbours.
static int emit_unknown(const struct ew_spm *spm, struct ew_str text, bool illformed, bool after_unknown,
                        struct ew_ids *out, struct ew_error *err)
{
    uint32_t c;
    int code = EW_OK;

    if (!spm->byte_fallback)
        return spm->unk >= 0 && !after_unknown ? ew_ids_add(out, spm->unk, err) : EW_OK;
    if (illformed && ew_utf8_decode(text.ptr, text.len, &c) && ew_illformed_is(c))
        return ew_ids_add(out, spm->bytes[ew_illformed_byte(c)], err);
    for (size_t i = 0; i < text.len && code == EW_OK; i++)
        code = ew_ids_add(out, spm->bytes[(unsigned char)text.ptr[i]], err);
    return code;
}

static int push_characters(const struct ew_spm *spm, struct ew_merge *merge, struct ew_str text, bool illformed,
                           struct ew_error *err)
{
    int code = EW_OK;

    for (size_t at = 0, len; at < text.len && code == EW_OK; at += len) {
        int32_t id = EW_TOKEN_NONE;
        uint32_t c;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        EW_ASSERT(len > 0);
        if (!illformed || !ew_illformed_is(c))
            id = ew_vocab_find_model(spm->vocab, (struct ew_str){text.ptr + at, len});
        code = ew_merge_push(merge, id, at, err);
    }
    return code;
}

int ew_spm_encode(const struct ew_spm *spm, struct ew_merge *scratch, struct ew_str text, bool illformed,
                  struct ew_ids *out, struct ew_error *err)
{
    bool unknown = false; // the symbol before
    int code;

    ew_merge_reset(scratch, text);
    code = push_characters(spm, scratch, text, illformed, err);
    if (code == EW_OK)
        code = ew_merge_run(scratch, join_rank, spm, err);
    for (uint32_t i = 0; code == EW_OK && i < scratch->count; i = scratch->symbols[i].next) {
        const struct ew_merge_symbol *symbol = &scratch->symbols[i];
        struct ew_str piece = {text.ptr + symbol->at, ew_merge_end(scratch, i) - symbol->at};

        if (symbol->id >= 0)
            code = ew_ids_add(out, symbol->id, err);
        else
            code = emit_unknown(spm, piece, illformed, unknown, out, err);
        unknown = symbol->id < 0;
    }
    return code;
}
