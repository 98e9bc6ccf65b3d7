#pragma once
// bench load: a load test of any server that speaks the OpenAI API. One thread, one loop, as many connections as
// clients.
//
// Closed loop: each of `concurrency` clients sends its next request when it has the answer to the one before. Open
// loop: requests are due at a rate, whether or not the server keeps up, and their times count from when they were
// due.
//
// Times: TTFT from the beginning of a request (the connection, where one has to be made, is part of it) to the first
// text. ITL: the wait for each token after a request's first. Servers may send several tokens in one piece: the first
// of them waited for the piece, the others not at all, so that a request of n tokens gives n - 1 values whose sum is
// the time from its first piece to its last. The number of tokens is the server's `usage`, or the number of pieces
// where it sends none.

#include "base/error.h"
#include "bench/load_client.h"
#include "bench/load_samples.h"

#define EW_LOAD_CLIENTS_MAX 8192
#define EW_LOAD_STATUSES_MAX 16 // different ones that are counted each

struct ew_load_options {
    const char *url, *model, *api_key; // model NULL: the first that the server lists
    bool chat;                         // /v1/chat/completions, else /v1/completions
    uint32_t concurrency;              // closed loop
    double rate;                       // requests (conversations) a second; 0: closed loop
    bool constant;                     // they are due at equal distances; else Poisson
    uint64_t n_requests;               // 0: no limit but the duration
    double duration_s;                 // 0: no limit but the number; no request begins after it
    uint32_t n_warmup;
    uint32_t n_prompt, n_shared, n_turns, n_turn_tokens, n_gen;
    uint64_t seed;
    double temperature, timeout_s;
    bool stream, ignore_eos, verify;
    double slo_ttft_ms, slo_itl_ms, slo_e2e_ms; // 0: none
    bool (*interrupted)(void);
    bool progress; // draw on standard error
};

struct ew_load_failures {
    uint64_t count;
    char message[256]; // of the first
};

struct ew_load_report {
    char model[256];
    double tokens_per_word;
    bool exact_prompts; // the server's tokenizer was asked
    uint64_t n_ok, n_failed, n_stopped, n_good, n_short;
    struct ew_load_failures outcomes[EW_LOAD_N_OUTCOMES];
    struct {
        int status;
        uint64_t count;
    } statuses[EW_LOAD_STATUSES_MAX]; // of EW_LOAD_STATUS; those that find no place count as status 0
    double wall_s, cpu_s; // cpu: of this process, both threads of the kernel's time and ours
    uint64_t prompt_tokens, cached_tokens, output_tokens, n_connects;
    int64_t prompt_min, prompt_max; // -1 where the server does not say
    bool usage;                     // all answers said how many tokens they have
    uint32_t in_flight_max;
    struct ew_quantiles ttft_ms, ttft_first_ms, ttft_later_ms, itl_ms, tpot_ms, e2e_ms; // first and later turns
    uint64_t n_verified, n_same;
    char difference[512]; // of the first answer that is not the same
    bool interrupted;
};

// Fills the report also where requests failed or the user interrupted. Errors: no such server, wrong usage, no memory.
int ew_bench_load(const struct ew_load_options *options, struct ew_load_report *report,
                  struct ew_error *err) EW_MUST_CHECK;
