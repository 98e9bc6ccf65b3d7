#pragma once
// What a tokenizer is made of; shared by its loaders (tokenizer_gguf.c, tokenizer_json*.c) and by tokenizer.c.

#include "base/alloc.h"
#include "base/map.h"
#include "text/added.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normaliser.h"
#include "text/pretok.h"
#include "text/spm.h"
#include "text/tokenizer.h"
#include "text/unigram.h"
#include "text/vocab.h"
#include "text/wordpiece.h"

#define EW_AFFIX_MAX 16            // special tokens before or behind a text
#define EW_METASPACE "\xE2\x96\x81" // U+2581, SentencePiece's space

enum ew_tokenizer_model {
    EW_TOKENIZER_BPE,
    EW_TOKENIZER_SPM,
    EW_TOKENIZER_UNIGRAM,
    EW_TOKENIZER_WORDPIECE,
    EW_TOKENIZER_WORDLEVEL
};

struct ew_affix {
    uint32_t count;
    int32_t ids[EW_AFFIX_MAX];
};

// How a pair of texts is written.
#define EW_PAIR_PIECES_MAX 16
enum { EW_PAIR_FIRST = -1, EW_PAIR_SECOND = -2 }; // in place of an id: one of the texts

struct ew_pair_piece {
    int32_t id;
    uint8_t segment; // token type
};

struct ew_pair_template {
    uint32_t count; // 0: unknown
    struct ew_pair_piece pieces[EW_PAIR_PIECES_MAX];
};

struct ew_tokenizer {
    struct ew_tokenizer_info info;
    struct ew_arena arena;          // texts that the file does not have as such
    struct ew_vocab vocab;
    struct ew_added added;          // found in the text as it comes
    struct ew_added added_normalised; // found in the normalised text
    struct ew_normaliser normaliser;
    struct ew_pretok pretok;
    enum ew_tokenizer_model model;
    union {
        struct ew_bpe bpe;
        struct ew_spm spm;
        struct ew_unigram unigram;
        struct ew_wordpiece wordpiece;
    };
    bool byte_level, byte_fallback; // the vocabulary can express any byte
    bool bytes_normalised;          // the byte alphabet is the normaliser's work: added tokens are in it too
    bool metaspace;                 // tokens spell a space as U+2581
    struct ew_affix prefix, suffix; // of add_special
    struct ew_pair_template pair;
    struct ew_decoder decoder;
    // Added tokens that normalisation changes are decoded as they were found: Prepend's space, or the byte alphabet, is
    // for the decoder to undo.
    struct ew_imap form_of; // id to index in forms; empty where there are none
    struct ew_str *forms;
    uint32_t form_count;
};

int ew_tokenizer_load_gguf(struct ew_tokenizer *tok, const struct ew_gguf *gguf, struct ew_error *err) EW_MUST_CHECK;
int ew_tokenizer_read_json(struct ew_tokenizer *tok, const struct ew_json *root, const struct ew_json *config,
                           struct ew_error *err) EW_MUST_CHECK;
// BERT's normaliser and pre-tokeniser, which GGUF implies and tokenizer.json spells out.
int ew_tokenizer_add_bert(struct ew_tokenizer *tok, bool clean, bool chinese, bool strip_accents, bool lowercase,
                          struct ew_error *err) EW_MUST_CHECK;
int ew_tokenizer_add_bert_pretok(struct ew_tokenizer *tok, struct ew_error *err) EW_MUST_CHECK;
int ew_affix_add(struct ew_affix *affix, int32_t id, struct ew_error *err) EW_MUST_CHECK;

// Components of tokenizer.json (tokenizer_steps.c, tokenizer_decoders.c); a NULL or null node is no component.
int ew_tokenizer_json_normaliser(struct ew_tokenizer *tok, const struct ew_json *node,
                                 struct ew_error *err) EW_MUST_CHECK;
int ew_tokenizer_json_pretok(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err) EW_MUST_CHECK;
int ew_tokenizer_json_decoder(struct ew_tokenizer *tok, const struct ew_json *node, struct ew_error *err) EW_MUST_CHECK;
int ew_tokenizer_json_processor(struct ew_tokenizer *tok, const struct ew_json *node,
                                struct ew_error *err) EW_MUST_CHECK;
