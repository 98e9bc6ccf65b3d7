#pragma once
// How long steps take, as measured, and what follows for steps that mix decoding sequences with prompts: how many of
// the prompts' tokens join, so that the others' next tokens do not come late. Engine thread only.

#include <stdint.h>

#include "engine/engine.h"

#define EW_PACE_SIZES 13 // steps of 16, 32, 64, ... 65536 tokens

struct ew_pace {
    struct ew_pace_size { // steps that have a prompt among their tokens: means of those from this size to the next
        double n_tokens, seconds;
        uint32_t count;
    } sizes[EW_PACE_SIZES];
    double decode_s[EW_BATCH_BUCKETS]; // of a step that only decodes, by its number of sequences; 0: not known yet
};

uint32_t ew_batch_bucket(uint32_t n_seqs);
// A step of so many decoding sequences and tokens of prompts took so long.
void ew_pace_note(struct ew_pace *pace, uint32_t n_decoding, uint32_t n_prompt, double seconds);
// Tokens of prompts that may join n_decoding sequences, at most n_max: those that make the step no longer than
// target_s (10 ms where that is less), or three and a half times as long as without them, or little longer than the
// shortest step that there is with a prompt, whichever is most.
uint32_t ew_pace_chunk(const struct ew_pace *pace, uint32_t n_decoding, double target_s, uint32_t n_max);
