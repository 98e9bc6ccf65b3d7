#pragma once
// bench speed: prefill and decode speed of the engine in this process, against the limit of this machine's memory.

#include "bench/profile_ops.h"
#include "engine/engine.h"

#define EW_SPEED_REPEATS_MAX 100

struct ew_speed_options {
    uint32_t n_prompt, n_gen, depth, batch, repeats;
    bool no_warmup; // the first repetition counts, whatever the backend still tries in it
    bool (*interrupted)(void); // NULL, or polled between steps
    struct ew_profile_options *profile; // NULL, or --profile-ops: the sizes are set here
};

struct ew_speed {
    char backend[32], backend_text[128], device[128];
    uint32_t n_threads;
    uint64_t weight_bytes, peak_bytes; // the latter of the process
    uint64_t device_bytes;             // where weights are elsewhere: what is held there, as far as it is known
    uint64_t streamed_bytes; // of the weights, what a decode step has to read
    double load_s;
    double prefill_tok_s, decode_tok_s, ttft_ms; // medians over the repeats
    double itl_ms_p50, itl_ms_p95, itl_ms_p99;   // over all measured steps
    double weight_gb_s, limit_gb_s, limit_pct;
    double multiply_flops_s; // of the device, where it has limits of its own
    double joules_per_token;   // of decoding, of the whole batch's tokens; 0: this box does not tell
    double power_held_share;   // of decoding's time, with clocks held down by a GPU's power limit; < 0: not known
    const char *joules_source; // what measured them; NULL: nothing does
    uint32_t n_warmup; // tokens that each sequence decoded before what counts; 0: nothing went before
    uint32_t n_runs;
    double prefill_runs[EW_SPEED_REPEATS_MAX], decode_runs[EW_SPEED_REPEATS_MAX], ttft_runs[EW_SPEED_REPEATS_MAX];
};

// Of the config, context and batch are set here. Needs no vocabulary: the prompts are random ids.
int ew_bench_speed(const struct ew_model *model, const struct ew_engine_config *config,
                   const struct ew_speed_options *options, struct ew_speed *out, struct ew_error *err) EW_MUST_CHECK;
