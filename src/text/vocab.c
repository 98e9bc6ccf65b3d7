#include "text/vocab.h"

#include <stdio.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "text/tokenizer.h"

// FNV-1a from a random start: tokens are short, and a merge's two halves can be hashed one after the other.
static uint64_t hash_more(uint64_t hash, struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++)
        hash = (hash ^ (unsigned char)text.ptr[i]) * 0x100000001B3u;
    return hash;
}

static uint32_t hash_end(uint64_t hash)
{
    hash ^= hash >> 32;
    hash *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(hash >> 32);
}

int ew_vocab_init(struct ew_vocab *vocab, uint64_t count, struct ew_error *err)
{
    size_t n_slots = 16;

    *vocab = (struct ew_vocab){.count = (uint32_t)count};
    if (count == 0 || count > EW_VOCAB_COUNT_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "the vocabulary has %llu tokens, between 1 and %u are possible",
                       (unsigned long long)count, EW_VOCAB_COUNT_MAX);
    while (n_slots < count * 2)
        n_slots *= 2;
    if (getrandom(&vocab->seed, sizeof(vocab->seed), GRND_NONBLOCK) != sizeof(vocab->seed))
        vocab->seed = (uintptr_t)vocab; // early boot: the address is all there is
    vocab->slot_mask = (uint32_t)(n_slots - 1);
    vocab->texts = ew_alloc_array(count, sizeof(*vocab->texts));
    vocab->flags = ew_alloc(count);
    vocab->slots = ew_alloc_array(n_slots, sizeof(*vocab->slots));
    if (!vocab->texts || !vocab->flags || !vocab->slots) {
        ew_vocab_fini(vocab);
        return ew_fail_memory(err, n_slots * sizeof(*vocab->slots), "the vocabulary");
    }
    return EW_OK;
}

void ew_vocab_fini(struct ew_vocab *vocab)
{
    ew_free(vocab->texts);
    ew_free(vocab->flags);
    ew_free(vocab->slots);
    *vocab = (struct ew_vocab){0};
}

static bool is_joined(struct ew_str text, struct ew_str a, struct ew_str b)
{
    return text.len == a.len + b.len && (a.len == 0 || memcmp(text.ptr, a.ptr, a.len) == 0) &&
           (b.len == 0 || memcmp(text.ptr + a.len, b.ptr, b.len) == 0);
}

static struct ew_vocab_slot *find_slot(const struct ew_vocab *vocab, uint32_t hash, struct ew_str a, struct ew_str b)
{
    for (uint32_t i = hash & vocab->slot_mask;; i = (i + 1) & vocab->slot_mask) {
        struct ew_vocab_slot *slot = &vocab->slots[i];

        if (slot->id_plus_1 == 0 || (slot->hash == hash && is_joined(vocab->texts[slot->id_plus_1 - 1], a, b)))
            return slot;
    }
}

int ew_vocab_set(struct ew_vocab *vocab, uint32_t id, struct ew_str text, unsigned flags, struct ew_error *err)
{
    uint32_t hash = ew_vocab_hash(vocab, text, EW_STR(""));
    struct ew_vocab_slot *slot;

    if (text.len > EW_VOCAB_TEXT_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "token %u is %zu bytes long, at most %u are possible", id, text.len,
                       EW_VOCAB_TEXT_MAX);
    slot = find_slot(vocab, hash, text, EW_STR(""));
    if (slot->id_plus_1 == 0)
        *slot = (struct ew_vocab_slot){hash, id + 1};
    vocab->texts[id] = text;
    vocab->flags[id] = (uint8_t)(flags | EW_VOCAB_USED);
    vocab->text_len_max = EW_MAX(vocab->text_len_max, (uint32_t)text.len);
    return EW_OK;
}

uint32_t ew_vocab_hash(const struct ew_vocab *vocab, struct ew_str a, struct ew_str b)
{
    return hash_end(hash_more(hash_more(vocab->seed, a), b));
}

void ew_vocab_prefetch(const struct ew_vocab *vocab, uint32_t hash, enum ew_vocab_stage stage)
{
    const struct ew_vocab_slot *slot = &vocab->slots[hash & vocab->slot_mask];

    if (stage == EW_VOCAB_STAGE_SLOT)
        __builtin_prefetch(slot);
    else if (slot->id_plus_1 && stage == EW_VOCAB_STAGE_TEXT)
        __builtin_prefetch(&vocab->texts[slot->id_plus_1 - 1]);
    else if (slot->id_plus_1)
        __builtin_prefetch(vocab->texts[slot->id_plus_1 - 1].ptr);
}

int32_t ew_vocab_find_hashed(const struct ew_vocab *vocab, uint32_t hash, struct ew_str a, struct ew_str b)
{
    return (int32_t)find_slot(vocab, hash, a, b)->id_plus_1 - 1;
}

int32_t ew_vocab_find(const struct ew_vocab *vocab, struct ew_str text)
{
    if (text.len > vocab->text_len_max)
        return EW_TOKEN_NONE;
    return ew_vocab_find_hashed(vocab, ew_vocab_hash(vocab, text, EW_STR("")), text, EW_STR(""));
}

int32_t ew_vocab_find_model(const struct ew_vocab *vocab, struct ew_str text)
{
    int32_t id = ew_vocab_find(vocab, text);

    return id >= 0 && vocab->flags[id] & EW_VOCAB_MODEL ? id : EW_TOKEN_NONE;
}

bool ew_vocab_byte_ids(const struct ew_vocab *vocab, int32_t out[256])
{
    bool all = true;

    for (int byte = 0; byte < 256; byte++) {
        char text[8];

        snprintf(text, sizeof(text), "<0x%02X>", byte);
        out[byte] = ew_vocab_find(vocab, ew_str_of(text));
        all &= out[byte] != EW_TOKEN_NONE;
    }
    return all;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool ew_vocab_parse_byte(struct ew_str text, unsigned char *out)
{
    int high, low;

    if (text.len != 6 || memcmp(text.ptr, "<0x", 3) != 0 || text.ptr[5] != '>')
        return false;
    high = hex_digit(text.ptr[3]);
    low = hex_digit(text.ptr[4]);
    *out = (unsigned char)(high << 4 | low);
    return high >= 0 && low >= 0;
}
