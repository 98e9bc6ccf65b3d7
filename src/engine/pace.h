#pragma once
// How long steps take, as measured, and what follows for steps that mix decoding sequences with a prompt: how many of
// the prompt's tokens join, so that the others' next tokens do not come late. Engine thread only.

#include <stdint.h>

#include "engine/engine.h"

struct ew_pace {
    double prompt_token_s;             // 0: not known yet
    bool is_mixed;                     // ... and from steps of both kinds, the only ones that are paced
    double decode_s[EW_BATCH_BUCKETS]; // of a step that only decodes, by its number of sequences; 0: not known yet
};

uint32_t ew_batch_bucket(uint32_t n_seqs);
// A step of so many decoding sequences and tokens of prompts took so long.
void ew_pace_note(struct ew_pace *pace, uint32_t n_decoding, uint32_t n_prompt, double seconds);
// Tokens of prompts that may join n_decoding sequences, at most n_max: those that make the step no longer than
// target_s (10 ms where that is less), or three and a half times as long as without them, whichever is more.
uint32_t ew_pace_chunk(const struct ew_pace *pace, uint32_t n_decoding, double target_s, uint32_t n_max);
