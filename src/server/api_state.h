#pragma once
// What the files of the API share. I/O thread only.

#include "platform/energy.h"
#include "server/api.h"
#include "server/metrics.h"
#include "server/params.h"
#include "text/toolcall.h"

#define EW_API_BUCKETS 256 // of the map from engine requests to choices

struct ew_choice;
struct ew_completion;
struct ew_vector_task;
struct ew_vector_text;

struct ew_api {
    struct ew_api_config config;
    struct ew_service *service;
    int64_t created;      // seconds since 1970, of the start
    char fingerprint[24]; // changes with the program, the model and the backend
    struct ew_toolcall_format tool_format;
    int32_t shown[EW_SHOWN_MAX]; // special tokens that answers need: the marks of reasoning, then those of calls
    uint32_t n_shown, n_shown_plain; // plain: without those of calls
    uint32_t *mask_no_end;           // all tokens but those that end an answer, for min_tokens
    struct ew_metrics metrics;
    struct ew_completion *completions;
    uint32_t n_deferred; // of all completions
    struct ew_choice *buckets[EW_API_BUCKETS];
    struct ew_vector_task *vector_tasks; // of models that make vectors
    struct ew_vector_text *vector_buckets[EW_API_BUCKETS];
    struct ew_buf chunk; // what is being written
    struct ew_energy *energy; // NULL: this box cannot measure it
    double joules;            // as last shared out
};

// ---- prompt.c: from a body's messages to token ids ----

// The rendered prompt is appended to rendered, its ids to ids.
int ew_prompt_chat(const struct ew_api *api, const struct ew_params *params, struct ew_arena *arena,
                   struct ew_buf *rendered, struct ew_ids *ids, struct ew_fault *fault) EW_MUST_CHECK;
// One of the prompts of a completion: a string, or token ids.
int ew_prompt_text(const struct ew_api *api, const struct ew_json *prompt, struct ew_ids *ids,
                   struct ew_fault *fault) EW_MUST_CHECK;
// Token ids from an array of numbers, below the vocabulary's size.
int ew_prompt_ids(const struct ew_api *api, const char *param, const struct ew_json *array, struct ew_ids *ids,
                  struct ew_fault *fault) EW_MUST_CHECK;
// The request is for our model, or 404.
int ew_prompt_model(const struct ew_api *api, struct ew_str model, struct ew_fault *fault) EW_MUST_CHECK;

// ---- completion.c ----

// Frees what the engine had not finished; the service has been stopped.
void ew_api_forget_all(struct ew_api *api);
// Shares the energy used since the last call out among the requests that are being answered.
void ew_api_share_energy(struct ew_api *api);

// ---- submit.c ----

// Fair sharing is between whoever uses the same key and calls itself the same user.
uint64_t ew_api_client(const struct ew_exchange *x, struct ew_str user);

// ---- vectors.c ----

void ew_vectors_on_event(struct ew_api *api, const struct ew_service_event *event);
void ew_vectors_submit_more(struct ew_api *api); // what the queue had no room for
void ew_vectors_forget_all(struct ew_api *api);  // as ew_api_forget_all

// ---- handlers ----

void ew_api_chat(struct ew_api *api, struct ew_exchange *x);
void ew_api_completions(struct ew_api *api, struct ew_exchange *x);
void ew_api_embeddings(struct ew_api *api, struct ew_exchange *x);
void ew_api_classify(struct ew_api *api, struct ew_exchange *x);
void ew_api_rerank(struct ew_api *api, struct ew_exchange *x);
void ew_api_score(struct ew_api *api, struct ew_exchange *x);
void ew_api_models(struct ew_api *api, struct ew_exchange *x);
void ew_api_model(struct ew_api *api, struct ew_exchange *x);
void ew_api_tokenize(struct ew_api *api, struct ew_exchange *x);
void ew_api_detokenize(struct ew_api *api, struct ew_exchange *x);
void ew_api_health(struct ew_api *api, struct ew_exchange *x);
void ew_api_ready(struct ew_api *api, struct ew_exchange *x);
void ew_api_metrics(struct ew_api *api, struct ew_exchange *x);
