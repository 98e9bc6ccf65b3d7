#include "text/bpe.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "text/illformed.h"

#define MERGES_MAX (1u << 26)

static size_t hash_pair(uint64_t key)
{
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 32);
}

int ew_bpe_init(struct ew_bpe *bpe, const struct ew_vocab *vocab, uint64_t n_merges, struct ew_error *err)
{
    size_t n_slots = 16;

    *bpe = (struct ew_bpe){.vocab = vocab, .unk = EW_TOKEN_NONE};
    if (n_merges > MERGES_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "the vocabulary lists %llu merges, at most %u are possible",
                       (unsigned long long)n_merges, MERGES_MAX);
    while (n_slots < n_merges + n_merges / 2)
        n_slots *= 2;
    bpe->pair_mask = n_slots - 1;
    bpe->pairs = ew_alloc_array(n_slots, sizeof(*bpe->pairs));
    if (!bpe->pairs)
        return ew_fail_memory(err, n_slots * sizeof(*bpe->pairs), "the merges");
    for (size_t i = 0; i < n_slots; i++)
        bpe->pairs[i].rank = EW_BPE_FREE;
    return EW_OK;
}

void ew_bpe_fini(struct ew_bpe *bpe)
{
    ew_free(bpe->pairs);
    *bpe = (struct ew_bpe){0};
}

void ew_bpe_ready(struct ew_bpe *bpe, bool byte_fallback)
{
    for (uint32_t c = 0; c < EW_BPE_CHARS; c++) {
        char bytes[4];
        size_t len = ew_utf8_encode(c, bytes);

        bpe->chars[c] = ew_vocab_find(bpe->vocab, (struct ew_str){bytes, len});
    }
    bpe->byte_fallback = ew_vocab_byte_ids(bpe->vocab, bpe->bytes) && byte_fallback;
}

static struct ew_bpe_pair *find_pair(const struct ew_bpe *bpe, uint64_t key)
{
    for (size_t i = hash_pair(key) & bpe->pair_mask;; i = (i + 1) & bpe->pair_mask)
        if (bpe->pairs[i].rank == EW_BPE_FREE || bpe->pairs[i].key == key)
            return &bpe->pairs[i];
}

// A merge on its way into the table: the texts of its halves and of their join, and the tokens found for them.
struct merge {
    struct ew_str a, b, tail; // tail: b without the prefix, which vanishes in the join
    uint32_t hash[3];
    int32_t id[3];
};

static void find_tokens(const struct ew_vocab *vocab, struct merge *merges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        merges[i].hash[0] = ew_vocab_hash(vocab, merges[i].a, EW_STR(""));
        merges[i].hash[1] = ew_vocab_hash(vocab, merges[i].b, EW_STR(""));
        merges[i].hash[2] = ew_vocab_hash(vocab, merges[i].a, merges[i].tail);
    }
    for (int stage = EW_VOCAB_STAGE_SLOT; stage <= EW_VOCAB_STAGE_BYTES; stage++)
        for (size_t i = 0; i < count; i++)
            for (int k = 0; k < 3; k++)
                ew_vocab_prefetch(vocab, merges[i].hash[k], (enum ew_vocab_stage)stage);
    for (size_t i = 0; i < count; i++) {
        merges[i].id[0] = ew_vocab_find_hashed(vocab, merges[i].hash[0], merges[i].a, EW_STR(""));
        merges[i].id[1] = ew_vocab_find_hashed(vocab, merges[i].hash[1], merges[i].b, EW_STR(""));
        merges[i].id[2] = ew_vocab_find_hashed(vocab, merges[i].hash[2], merges[i].a, merges[i].tail);
    }
}

static uint64_t key_of(int32_t left, int32_t right)
{
    return (uint64_t)left << 32 | (uint32_t)right;
}

// Puts the merges of a batch into the table, the first with the rank bpe->n_merges.
static uint32_t insert(struct ew_bpe *bpe, const struct merge *merges, size_t count)
{
    uint32_t strangers = 0;

    for (size_t i = 0; i < count; i++)
        __builtin_prefetch(&bpe->pairs[hash_pair(key_of(merges[i].id[0], merges[i].id[1])) & bpe->pair_mask], 1);
    for (size_t i = 0; i < count; i++, bpe->n_merges++) {
        uint64_t key = key_of(merges[i].id[0], merges[i].id[1]);
        struct ew_bpe_pair *pair;

        if (merges[i].id[0] < 0 || merges[i].id[1] < 0 || merges[i].id[2] < 0 || merges[i].b.len < bpe->prefix.len) {
            strangers++;
            continue;
        }
        pair = find_pair(bpe, key);
        if (pair->rank == EW_BPE_FREE || !bpe->first_pair_wins)
            *pair = (struct ew_bpe_pair){key, bpe->n_merges, merges[i].id[2]};
    }
    return strangers;
}

uint32_t ew_bpe_add(struct ew_bpe *bpe, struct ew_bpe_batch *batch)
{
    struct merge merges[EW_BPE_BATCH];
    size_t count = batch->count;

    for (size_t i = 0; i < count; i++) {
        struct ew_str b = batch->halves[i][1];
        size_t cut = EW_MIN(bpe->prefix.len, b.len);

        merges[i].a = batch->halves[i][0];
        merges[i].b = b;
        merges[i].tail = (struct ew_str){b.ptr + cut, b.len - cut};
    }
    find_tokens(bpe->vocab, merges, count);
    batch->count = 0;
    return insert(bpe, merges, count);
}

static bool pair_rank(const void *model, const struct ew_merge *merge, uint32_t left, uint32_t right, uint32_t *rank,
                      int32_t *id)
{
    const struct ew_bpe_pair *pair = find_pair(model, key_of(merge->symbols[left].id, merge->symbols[right].id));

    *rank = pair->rank;
    *id = pair->id;
    return pair->rank != EW_BPE_FREE;
}

// One character of a word on its way to a symbol.
struct character {
    struct ew_str text; // with prefix and suffix
    uint32_t c;
    size_t at;
    char bytes[4 + 2 * EW_BPE_AFFIX_MAX];
};

static void add_affixes(const struct ew_bpe *bpe, struct character *ch, bool first, bool last)
{
    size_t len = 0;
    struct ew_str parts[3] = {first ? EW_STR("") : bpe->prefix, ch->text, last ? bpe->suffix : EW_STR("")};

    for (int i = 0; i < 3; i++) {
        if (parts[i].len)
            memcpy(ch->bytes + len, parts[i].ptr, parts[i].len);
        len += parts[i].len;
    }
    ch->text = (struct ew_str){ch->bytes, len};
}

static int32_t find_character(const struct ew_bpe *bpe, const struct character *ch)
{
    if (ch->c < EW_BPE_CHARS && bpe->prefix.len == 0 && bpe->suffix.len == 0)
        return bpe->chars[ch->c];
    return ew_vocab_find(bpe->vocab, ch->text);
}

static int push_bytes(const struct ew_bpe *bpe, struct ew_merge *merge, const struct character *ch, bool illformed,
                      struct ew_error *err)
{
    int code = EW_OK;

    if (illformed && ew_illformed_is(ch->c))
        return ew_merge_push(merge, bpe->bytes[ew_illformed_byte(ch->c)], ch->at, err);
    for (size_t i = 0; i < ch->text.len && code == EW_OK; i++)
        code = ew_merge_push(merge, bpe->bytes[(unsigned char)ch->text.ptr[i]], ch->at, err);
    return code;
}

// Turns a word into its first symbols. An unknown token waits in *unk until it is known whether the next one joins
// it; the order of events is that of the reference implementation, also where bytes overtake it.
static int push_character(const struct ew_bpe *bpe, struct ew_merge *merge, const struct character *ch, bool illformed,
                          bool *unk, struct ew_error *err)
{
    int32_t id = illformed && ew_illformed_is(ch->c) ? EW_TOKEN_NONE : find_character(bpe, ch);
    int code = EW_OK;

    if (id < 0 && bpe->byte_fallback)
        return push_bytes(bpe, merge, ch, illformed, err);
    if (id < 0 && bpe->unk < 0)
        return EW_OK;
    if (*unk && (id >= 0 || !bpe->fuse_unk))
        code = ew_merge_push(merge, bpe->unk, ch->at, err);
    *unk = id < 0;
    return code == EW_OK && id >= 0 ? ew_merge_push(merge, id, ch->at, err) : code;
}

static int push_word(const struct ew_bpe *bpe, struct ew_merge *merge, struct ew_str word, bool illformed,
                     struct ew_error *err)
{
    bool unk = false;
    int code = EW_OK;

    for (size_t at = 0, len; at < word.len && code == EW_OK; at += len) {
        struct character ch = {.at = at};

        len = ew_utf8_decode(word.ptr + at, word.len - at, &ch.c);
        EW_ASSERT(len > 0);
        ch.text = (struct ew_str){word.ptr + at, len};
        if (bpe->prefix.len || bpe->suffix.len)
            add_affixes(bpe, &ch, at == 0, at + len == word.len);
        code = push_character(bpe, merge, &ch, illformed, &unk, err);
    }
    return code == EW_OK && unk ? ew_merge_push(merge, bpe->unk, word.len, err) : code;
}

static bool is_newlines(struct ew_str word)
{
    for (size_t i = 0; i < word.len; i++)
        if (word.ptr[i] != '\n')
            return false;
    return true;
}

int ew_bpe_encode(const struct ew_bpe *bpe, struct ew_merge *scratch, struct ew_str word, bool illformed,
                  struct ew_ids *out, struct ew_error *err)
{
    int32_t whole = EW_TOKEN_NONE;
    int code;

    if (bpe->ignore_merges || (bpe->whole_newlines && is_newlines(word)))
        whole = ew_vocab_find_model(bpe->vocab, word);
    if (whole >= 0)
        return ew_ids_add(out, whole, err);
    ew_merge_reset(scratch, word);
    code = push_word(bpe, scratch, word, illformed, err);
    if (code == EW_OK)
        code = ew_merge_run(scratch, pair_rank, bpe, err);
    for (uint32_t i = 0; code == EW_OK && i < scratch->count; i = scratch->symbols[i].next)
        code = ew_ids_add(out, scratch->symbols[i].id, err);
    return code;
}
