#pragma once
// The tokens of a vocabulary: id to text and text to id. Texts are borrowed, usually from the mapped file. Immutable
// once filled.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

// Four times the largest vocabulary known, so that a wrong id cannot ask for gigabytes.
#define EW_VOCAB_COUNT_MAX (1u << 22)
#define EW_VOCAB_TEXT_MAX (1u << 16) // bytes of one token

enum ew_vocab_flag {
    EW_VOCAB_MODEL = 1,   // the tokenisation model may produce it from plain text
    EW_VOCAB_SPECIAL = 2, // control and unknown tokens: parsed only on request, left out on request
    EW_VOCAB_ADDED = 4,   // its text is literal, not in the model's alphabet
    EW_VOCAB_BYTE = 8,    // stands for one byte, written <0xNN>
    EW_VOCAB_USED = 16,   // the id has a token at all
    EW_VOCAB_UNUSED = 32, // kept for ids that were trained away
};

struct ew_vocab_slot {
    uint32_t hash;
    uint32_t id_plus_1; // 0: free
};

struct ew_vocab {
    uint32_t count;   // ids are 0..count-1; not all of them need a token
    struct ew_str *texts;
    uint8_t *flags;
    struct ew_vocab_slot *slots;
    uint32_t slot_mask;
    uint64_t seed;    // of the hash, so that a hostile vocabulary cannot be made to collide
    uint32_t text_len_max;
};

int ew_vocab_init(struct ew_vocab *vocab, uint64_t count, struct ew_error *err) EW_MUST_CHECK;
void ew_vocab_fini(struct ew_vocab *vocab);
// Of two ids with one text the first is found. The id must be below count.
int ew_vocab_set(struct ew_vocab *vocab, uint32_t id, struct ew_str text, unsigned flags,
                 struct ew_error *err) EW_MUST_CHECK;
int32_t ew_vocab_find(const struct ew_vocab *vocab, struct ew_str text); // EW_TOKEN_NONE where absent
// Lookups of many texts, each a followed by b: hash all, call prefetch for all once a stage, then find. A large
// vocabulary is read from memory at random, and this lets the reads overlap.
enum ew_vocab_stage { EW_VOCAB_STAGE_SLOT, EW_VOCAB_STAGE_TEXT, EW_VOCAB_STAGE_BYTES };
uint32_t ew_vocab_hash(const struct ew_vocab *vocab, struct ew_str a, struct ew_str b);
void ew_vocab_prefetch(const struct ew_vocab *vocab, uint32_t hash, enum ew_vocab_stage stage);
int32_t ew_vocab_find_hashed(const struct ew_vocab *vocab, uint32_t hash, struct ew_str a, struct ew_str b);
// As ew_vocab_find, but only what the model may produce: plain text must never become a control token.
int32_t ew_vocab_find_model(const struct ew_vocab *vocab, struct ew_str text);
// The tokens <0x00> to <0xFF>. True where all 256 exist.
bool ew_vocab_byte_ids(const struct ew_vocab *vocab, int32_t out[256]);
bool ew_vocab_parse_byte(struct ew_str text, unsigned char *out); // "<0x0A>" to 10
