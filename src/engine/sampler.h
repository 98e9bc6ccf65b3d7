#pragma once
// From logits to a token. The chain, in this order: logit bias, token mask, penalties, temperature, top-k, top-p, min-p, draw.
// Draws are keyed by (seed, position of the new token), so a request gives the same text alone and in any batch.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"

struct ew_logit_bias {
    int32_t token;
    float bias;
};

struct ew_sampling {
    float temperature;         // 0: greedy (argmax, lowest id on a tie)
    int32_t top_k;             // <= 0: off
    float top_p, min_p;        // 1 and 0: off
    float repetition_penalty;  // 1: off (Keskar et al. 2019); over prompt and answer
    float presence_penalty, frequency_penalty; // 0: off (OpenAI's definition); over the answer
    uint64_t seed;
    const struct ew_str *stop; // strings that end the answer and are not part of it
    uint32_t n_stop;
    const struct ew_logit_bias *bias;
    uint32_t n_bias;
};

struct ew_sampling ew_sampling_default(void); // temperature 1, everything else off, seed 0

struct ew_logprob {
    int32_t token;
    float logprob; // natural log of the softmax of the raw logits
};
