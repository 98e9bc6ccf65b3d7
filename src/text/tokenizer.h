#pragma once
// Text to token ids and back, for every vocabulary that GGUF and tokenizer.json files carry. Immutable after loading,
// so any thread may use one; encode and decode keep their state in the caller's buffers.

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "format/modelfile.h"

struct ew_tokenizer;

#define EW_TOKEN_NONE (-1)

struct ew_tokenizer_info {
    const char *algorithm;   // "bpe", "sentencepiece-bpe", "unigram", "wordpiece", "wordlevel"
    const char *pretokenizer; // name or "custom"
    uint32_t n_vocab;        // ids are below; some may have no token
    int32_t bos, eos, unk, pad, sep, cls, mask; // EW_TOKEN_NONE where there is none
    bool add_bos, add_eos;   // what add_special does for this vocabulary (post-processors may say more)
};

// EW_ERR_UNSUPPORTED names the pre-tokeniser or component that is unknown. A model without a tokenizer gives
// EW_ERR_UNSUPPORTED too, with a remedy that points at --ids. The tokens' texts stay in the file: free the tokenizer
// first, close the file after it.
int ew_tokenizer_load(const struct ew_modelfile *file, struct ew_tokenizer **out, struct ew_error *err) EW_MUST_CHECK;
// From tokenizer.json alone (tests, fuzzing); the trees must outlive the tokenizer. tokenizer_config may be NULL.
int ew_tokenizer_load_json(const struct ew_json *tokenizer, const struct ew_json *tokenizer_config,
                           struct ew_tokenizer **out, struct ew_error *err) EW_MUST_CHECK;
void ew_tokenizer_free(struct ew_tokenizer *tok); // NULL is fine
const struct ew_tokenizer_info *ew_tokenizer_info(const struct ew_tokenizer *tok);

struct ew_ids {
    int32_t *ids;
    size_t count, cap;
};
void ew_ids_fini(struct ew_ids *ids);
int ew_ids_push(struct ew_ids *ids, int32_t id) EW_MUST_CHECK; // EW_ERR_MEMORY
int ew_ids_add(struct ew_ids *ids, int32_t id, struct ew_error *err) EW_MUST_CHECK; // the same, with a message

// Appends the ids of text. add_special: the model's own BOS/EOS/CLS. parse_special: special tokens written in the
// text become their ids (chat templates need it; untrusted user text must not). Without it the spelling of a special
// token is text like any other; only the unknown token, and what a vocabulary's own merges build, can still be
// special. Added tokens that are not special are always found, as the reference implementations do. Any bytes are
// accepted: vocabularies that can express bytes (byte-level, byte fallback) give ill-formed UTF-8 back exactly, the
// others see U+FFFD for each bad byte.
int ew_tokenize(const struct ew_tokenizer *tok, struct ew_str text, bool add_special, bool parse_special,
                struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;

// Appends the bytes of the ids, ill-formed UTF-8 included. skip_special leaves out special tokens. Ids without a
// token (a model's vocabulary may be padded) give nothing.
int ew_detokenize(const struct ew_tokenizer *tok, const int32_t *ids, size_t n, bool skip_special, struct ew_buf *out,
                  struct ew_error *err) EW_MUST_CHECK;

// Token by token: gives only whole characters. Taken together equal to ew_detokenize of all ids, where that is
// well-formed; each longest part of it that cannot become a character is U+FFFD (Unicode's "substitution of maximal
// subparts").
struct ew_detok {
    const struct ew_tokenizer *tok;
    bool skip_special, started; // started: a first token's leading space has been dealt with
    bool start_done, space_due; // private to the decoder's steps, as are the next two
    uint32_t n_stripped;
    int32_t last;
    char pending[16];           // bytes that do not yet make a character
    uint32_t n_pending;
};
void ew_detok_init(struct ew_detok *detok, const struct ew_tokenizer *tok, bool skip_special);
int ew_detok_push(struct ew_detok *detok, int32_t id, struct ew_buf *out,
                  struct ew_error *err) EW_MUST_CHECK;             // appends what became whole
void ew_detok_flush(struct ew_detok *detok, struct ew_buf *out);   // what is left, bad bytes as U+FFFD

// The raw bytes of one token in the middle of a text (control tokens give their text). false for an id without a token.
bool ew_token_bytes(const struct ew_tokenizer *tok, int32_t id, struct ew_buf *out);
bool ew_token_is_special(const struct ew_tokenizer *tok, int32_t id);
// The token with exactly this text (" the", "<|im_end|>"; not the spelling of the vocabulary), or EW_TOKEN_NONE.
int32_t ew_token_find(const struct ew_tokenizer *tok, struct ew_str text);
