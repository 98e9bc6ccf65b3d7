#pragma once
// From logits to a token. The chain, in this order: logit bias, token mask, penalties, temperature, top-k, top-p,
// min-p, draw. Draws are keyed by (seed, position of the new token), so a request gives the same text alone and in
// any batch.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/str.h"
#include "kernel/ops.h"

struct ew_logit_bias {
    int32_t token;
    float bias;
};

struct ew_sampling {
    float temperature;                         // 0: greedy (argmax, lowest id on a tie)
    int32_t top_k;                             // <= 0: off
    float top_p, min_p;                        // 1 and 0: off
    float repetition_penalty;                  // 1: off (Keskar et al. 2019); over prompt and answer
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

#define EW_LOGPROBS_MAX 64

// Values that make no sense (a negative temperature, a bias on a token that does not exist) are an EW_ERR_USAGE.
int ew_sampling_check(const struct ew_sampling *sampling, uint32_t n_vocab, struct ew_error *err) EW_MUST_CHECK;

// Scratch for one vocabulary; one thread at a time.
struct ew_sampler {
    uint32_t n_vocab;
    struct ew_candidate *candidates; // [n_vocab]
    struct ew_candidate *members;    // [n_vocab] those that a cut falls among
    float *logits;                   // [n_vocab] after bias, mask and penalties
    uint32_t *counts;                // [n_vocab], all zero between picks
};

int ew_sampler_init(struct ew_sampler *sampler, uint32_t n_vocab, struct ew_error *err) EW_MUST_CHECK;
void ew_sampler_fini(struct ew_sampler *sampler);

struct ew_sampler_input {
    const float *logits;    // [n_vocab], raw
    const uint32_t *mask;   // bit t % 32 of word t / 32 set: token t is allowed; NULL: all are
    const int32_t *history; // the sequence so far, prompt first; its ids are in the vocabulary
    uint32_t n_history, n_prompt;
};

// The next token; its position, which keys the draw, is n_history. Logits that are NaN or +inf, or a mask that leaves
// nothing, are an error. Allocates nothing.
int ew_sampler_pick(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                    const struct ew_sampler_input *input, int32_t *token, struct ew_error *err) EW_MUST_CHECK;
// The same by the backend: how it is to choose, from the input without its logits. What changes logits one by one goes
// to adjusts, of which there is room for n_max; with too many, the host has to choose.
struct ew_pick ew_sampler_delegate(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                                   const struct ew_sampler_input *input, struct ew_pick_adjust *adjusts,
                                   uint32_t n_max);
// Of a row that a backend adjusted and gave back: the rest of the chain.
int ew_sampler_pick_adjusted(struct ew_sampler *sampler, const struct ew_sampling *sampling,
                             const struct ew_sampler_input *input, int32_t *token, struct ew_error *err) EW_MUST_CHECK;
// out[0] is the chosen token's, the others are the best of the remaining tokens, best first. n at most
// EW_LOGPROBS_MAX and n_vocab. The logits are ones that ew_sampler_pick accepted.
void ew_sampler_logprobs(const float *logits, uint32_t n_vocab, int32_t chosen, struct ew_logprob *out, uint32_t n);
// ln(sum(exp(logits))), summed in double.
double ew_log_sum_exp(const float *logits, uint32_t n);
