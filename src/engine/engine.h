#pragma once
// The engine: requests in, events out. It owns one backend, the caches of all sequences and the sampler state.
//
// Nothing here blocks but ew_engine_step, and one thread at a time calls in (the engine thread; run and chat call it
// directly). The layers below: engine/cache.h (block pools), engine/sequence.h (a sequence and its tables),
// engine/step.h (work to batch), engine/sampler.h.

#include "engine/sampler.h"
#include "model/model.h"
#include "text/tokenizer.h"

enum ew_policy {
    EW_POLICY_GUARANTEED_NO_EVICT, // admits only what can finish: blocks for the longest answer are set aside
    EW_POLICY_MAX_UTILIZATION,     // admits what fits now; when blocks run out, the youngest gives up its own
};

struct ew_engine_config { // 0 is the default of everything
    const char *backend;  // "auto", "cpu", "cuda"
    struct ew_backend_config device;
    // The budget is memory_budget, or total memory x memory_utilization, or what the machine has available; less
    // reserve. Caches take at most cache_fraction of what weights and workspace leave of it.
    uint64_t memory_budget, reserve; // bytes
    double memory_utilization, cache_fraction;
    enum ew_kv_dtype kv;
    uint32_t block_tokens;   // 16
    bool contiguous;         // one block for a whole context instead of paging
    uint32_t context_max;    // the model's, as far as the budget allows
    uint32_t max_num_tokens; // of a step, 512 or the backend's (also the prefill chunk unless `chunk` is smaller)
    uint32_t chunk;          // largest prompt chunk, max_num_tokens
    bool whole_prompts;      // a prompt is one step's; longer ones than a step takes are refused
    uint32_t max_batch_size; // sequences of one step, 8
    uint32_t max_sessions;   // requests that hold caches at once, max_batch_size; more than that take turns
    enum ew_policy policy;
    bool reuse;          // keeps computed prefixes in a tree
    double itl_target_s; // steps that mix prompts with decoding may take this long, at least; see engine/pace.h
    bool show_progress;
    bool self_test; // of the kernels of a device, before anything is answered: engine/prove.h
};

struct ew_engine;

// Sizes everything, refuses before loading what will not fit (with the figures), loads, prepares.
int ew_engine_create(const struct ew_model *model, const struct ew_tokenizer *tok_or_null,
                     const struct ew_engine_config *config, struct ew_engine **out, struct ew_error *err) EW_MUST_CHECK;
void ew_engine_destroy(struct ew_engine *engine);

enum ew_finish {
    EW_FINISH_STOP,
    EW_FINISH_LENGTH,
    EW_FINISH_CONTEXT,
    EW_FINISH_CANCELLED,
    EW_FINISH_DEADLINE,
    EW_FINISH_ERROR,
    EW_FINISH_COUNT
};

#define EW_BATCH_BUCKETS 10

struct ew_engine_stats {
    struct ew_model_need need;
    uint64_t budget_bytes;
    uint64_t driver_bytes; // held by the device's driver; they count against the budget
    uint32_t context_max, blocks_total, blocks_used;
    uint32_t blocks_cached; // of the used ones, held by no sequence: kept for reuse, given up when needed
    double load_s;
    uint32_t n_waiting, n_prefilling, n_decoding; // requests; the latter two are running
    uint32_t n_running_max;                       // requests at once, as configured
    uint32_t n_batch_last;                        // sequences of the last step
    uint64_t batch_steps[EW_BATCH_BUCKETS];       // steps by their number of sequences, see ew_batch_bucket_max
    uint64_t batch_sequences;                     // of all steps together
    uint64_t steps, prefill_tokens, decode_tokens, reused_tokens, recomputed_tokens;
    uint64_t n_finished[EW_FINISH_COUNT]; // requests that ended, by enum ew_finish
    uint64_t n_preempted;
    double prefill_s, decode_s;
    enum ew_arith arith;
    const char *backend_name, *backend_text; // "cpu"; "cpu avx2, 2 threads". Live as long as the engine
};
void ew_engine_stats(const struct ew_engine *engine, struct ew_engine_stats *out);
uint32_t ew_batch_bucket_max(uint32_t bucket); // 1, 2, 4, ... 256, UINT32_MAX

#define EW_SHOWN_MAX 8

struct ew_request {
    const int32_t *ids; // the whole prompt, copied; the engine reuses what the prefix tree has of it
    const uint8_t *segments; // [n_ids] token types for models that make vectors, copied too; NULL: all 0
    uint32_t n_ids;
    uint32_t n_max;              // new tokens at most; 0: until the context is full
    struct ew_sampling sampling; // copied, stop strings too
    uint32_t n_logprobs;         // alternatives reported with each token, 0: none; 1 gives the chosen one's
    bool ignore_eos;
    bool no_reuse; // computes the whole prompt, whatever is known of it
    int32_t shown[EW_SHOWN_MAX]; // special tokens whose text belongs to the answer, such as the marks around reasoning
    uint32_t n_shown;
    int32_t priority;  // higher ones go first
    uint64_t client;   // clients share fairly among requests of one priority; 0: all of those are one client
    double deadline_s; // seconds from submission after which it ends with EW_FINISH_DEADLINE; 0: none
    // Which tokens may come next, as struct ew_sampler_input's mask; called on the engine's thread with the answer so
    // far. The bits stay valid until the next call. NULL: all.
    const uint32_t *(*mask)(void *ctx, const int32_t *answer, uint32_t n_answer);
    void *mask_ctx;
    void *tag; // given back with its events
};

// EW_ERR_LIMIT: the prompt does not fit the context (the message has the numbers).
int ew_engine_submit(struct ew_engine *engine, const struct ew_request *request, uint64_t *id,
                     struct ew_error *err) EW_MUST_CHECK;
void ew_engine_cancel(struct ew_engine *engine, uint64_t id); // its FINISHED event follows

enum ew_event_kind { EW_EVENT_TOKEN, EW_EVENT_FINISHED };

struct ew_event {
    enum ew_event_kind kind;
    uint64_t request;
    void *tag;
    int32_t token;      // TOKEN
    struct ew_str text; // TOKEN: text that became whole with it (maybe none), stop strings held back; FINISHED: what
                        // had been held back and is part of the answer after all; both valid until the next step
    const struct ew_logprob *logprobs; // [n_logprobs], the chosen token first
    uint32_t n_logprobs;
    enum ew_finish finish; // FINISHED
    uint32_t n_prompt, n_reused, n_new, n_preempted;
    double queue_s, prefill_s, decode_s; // of this request: waiting, to the first token, from there on
    const float *vector; // FINISHED with STOP, of a model that makes vectors: [n_vector], valid until the next step
    uint32_t n_vector;
    struct ew_error error;      // FINISHED with ERROR
};

// Runs one step if there is work. *idle tells that there was none. Take all events before the next step: until then the
// engine only waits (and is not idle). A failure of the backend ends the requests of that step, and is returned too.
int ew_engine_step(struct ew_engine *engine, bool *idle, struct ew_error *err) EW_MUST_CHECK;
bool ew_engine_next_event(struct ew_engine *engine, struct ew_event *event);
