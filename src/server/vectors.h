#pragma once
// One request for vectors or scores while it is answered: its texts, each an engine request, and what came of them.
// I/O thread only.
//
// Texts are submitted as the queue takes them, so that a long list needs no long queue. A task lives until the engine
// has finished all its texts, also when its client has left before.

#include "server/api_state.h"
#include "text/inputs.h"

#define EW_VECTOR_TEXTS_MAX 2048 // of one request, as OpenAI has it

enum ew_vector_route { EW_VECTORS_EMBED, EW_VECTORS_RERANK, EW_VECTORS_SCORE, EW_VECTORS_CLASSIFY };

struct ew_vector_text {
    struct ew_vector_text *next_in_bucket;
    struct ew_vector_task *task;
    uint64_t request; // the engine's id
    bool is_open;     // the engine has not finished it
    const int32_t *ids;
    const uint8_t *segments; // or NULL
    uint32_t n_ids;
    float *vector; // [pooling.width]; all of these lie in the task's arena
};

struct ew_vector_task {
    struct ew_vector_task *next, **link; // of all
    struct ew_api *api;
    struct ew_exchange *x; // NULL: the reply is over, or its client has left
    enum ew_vector_route route;
    struct ew_arena arena;
    double started_s;
    uint64_t client;
    uint32_t dimensions; // of the vectors in the reply
    bool base64, return_documents;
    uint32_t n_texts, n_sent, n_open;
    struct ew_vector_text *texts; // pairs where the model scores them; else first the n_firsts texts, then the others
    uint32_t n_pairs, n_firsts, n_top;
    const struct ew_json *documents; // of RERANK
};

// ---- vectors_read.c ----

// Fills the task from the body of the request.
int ew_vectors_read(struct ew_vector_task *task, struct ew_fault *fault) EW_MUST_CHECK;

// ---- vectors_reply.c ----

void ew_vectors_reply(const struct ew_vector_task *task, struct ew_buf *out);
uint64_t ew_vectors_tokens(const struct ew_vector_task *task);
