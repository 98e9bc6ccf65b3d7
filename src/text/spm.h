#pragma once
// SentencePiece's byte pair encoding: any two neighbours merge whose join is a token, the best score first. What stays
// without a token becomes bytes.

#include "base/error.h"
#include "base/str.h"
#include "text/merge.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

struct ew_spm {
    const struct ew_vocab *vocab;
    uint32_t *ranks;    // [vocab->count], from the scores: low is merged first
    int32_t bytes[256];
    bool byte_fallback; // bytes[] is complete
    int32_t unk;
};

int ew_spm_init(struct ew_spm *spm, const struct ew_vocab *vocab, int32_t unk, struct ew_error *err) EW_MUST_CHECK;
void ew_spm_fini(struct ew_spm *spm);
void ew_spm_set_score(struct ew_spm *spm, uint32_t id, float score);
int ew_spm_encode(const struct ew_spm *spm, struct ew_merge *scratch, struct ew_str text, bool illformed,
                  struct ew_ids *out, struct ew_error *err) EW_MUST_CHECK;
