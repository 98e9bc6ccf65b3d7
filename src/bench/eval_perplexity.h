#pragma once
// eval perplexity: how well a model predicts a text, by a protocol that is printed with the result.
//
// The text is one sequence of tokens without special tokens. Windows of `window` tokens start every `stride` tokens;
// the model sees each from its own first token, at position 0. Each token is scored once, in the first window that
// holds it and a token before it; so the first token of the text is not scored, nor, where stride = window, the first
// of any window.

#include "engine/engine.h"

struct ew_perplexity_options {
    uint32_t window, stride;   // 0: 1024, and half the window
    bool (*interrupted)(void); // NULL, or polled between steps
};

struct ew_perplexity {
    uint64_t n_tokens, n_scored, n_bytes;
    uint32_t n_windows, window, stride;
    double nll_per_token, ppl, bits_per_byte;
    double seconds;
    enum ew_arith arith;
};

// n_bytes of the text that ids are the tokens of. Of the config, sizes of steps and context are set here.
int ew_eval_perplexity(const struct ew_model *model, const struct ew_engine_config *config, const int32_t *ids,
                       uint64_t n_ids, uint64_t n_bytes, const struct ew_perplexity_options *options,
                       struct ew_perplexity *out, struct ew_error *err) EW_MUST_CHECK;
