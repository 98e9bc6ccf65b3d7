#pragma once
// One step: the sequences that take part and how many of their next tokens, made into the backend's batch.
//
//   build -> submit -> wait -> logits
//
// The arrays are allocated once. build and submit are apart so that, with two of these, step n+1 can be built while
// step n runs. Engine thread only.

#include "engine/sequence.h"

enum ew_want { EW_WANT_NONE, EW_WANT_LAST, EW_WANT_ALL };

struct ew_work {
    struct ew_sequence *seq;
    uint32_t n_tokens;   // the next ones after its cached ones, proposals included; they stand in seq->tokens
    uint32_t n_proposed; // of these, the last ones are guesses: all of them and the token before want logits
    enum ew_want want;
    bool is_prompt;      // what the caller decides for these tokens, not how many they are
    bool follows;        // its one token is what the step before, which still runs, chooses in its row of that name
    uint32_t first_logit; // set by build: its rows of the logits are [first_logit, first_logit + n_logits)
    uint32_t n_logits;
};

struct ew_step {
    struct ew_backend *backend;
    const struct ew_program *program;
    struct ew_limits limits;
    struct ew_batch batch;
    int32_t *token;            // [n_tokens_max]
    int32_t *position;         // [n_position_dims, n_tokens_max]
    uint8_t *want_logits;      // [n_tokens_max]
    struct ew_batch_seq *seqs; // [n_seqs_max]
    uint8_t *segment;          // [n_tokens_max]
    const float *logits;       // of the last wait, [n_logits, width of the program's result]
};

int ew_step_init(struct ew_step *step, struct ew_backend *backend, const struct ew_program *program,
                 const struct ew_limits *limits, struct ew_error *err) EW_MUST_CHECK;
void ew_step_fini(struct ew_step *step);

// Takes the blocks that the work needs, and fills the batch. The limits must hold: the caller planned within them. On
// failure the sequences are as before, but for blocks taken ahead.
int ew_step_build(struct ew_step *step, struct ew_work *work, uint32_t n_work, struct ew_error *err) EW_MUST_CHECK;
// Starts it; its tokens count as cached from here on. Where submit or wait fails, the caches of its sequences are
// undefined.
int ew_step_submit(struct ew_step *step, const struct ew_work *work, uint32_t n_work,
                   struct ew_error *err) EW_MUST_CHECK;
int ew_step_wait(struct ew_step *step, struct ew_error *err) EW_MUST_CHECK;
// All three.
int ew_step_run(struct ew_step *step, struct ew_work *work, uint32_t n_work, struct ew_error *err) EW_MUST_CHECK;
// Row i of the work's logits, [n_vocab]; valid until the next submit.
const float *ew_step_logits(const struct ew_step *step, const struct ew_work *work, uint32_t i);

// ---- texts that are computed whole, without caches ----

enum ew_rows { EW_ROWS_FIRST, EW_ROWS_LAST, EW_ROWS_ALL };

struct ew_text {
    const int32_t *ids;      // [n_ids]
    const uint8_t *segments; // [n_ids] token types, or NULL: all 0
    uint32_t n_ids;
    uint32_t first_row, n_rows; // set by build
};

// Fills the batch; the limits must hold. Submit and wait are the backend's and ew_step_wait.
void ew_step_build_texts(struct ew_step *step, struct ew_text *texts, uint32_t n_texts, enum ew_rows rows);
int ew_step_run_texts(struct ew_step *step, struct ew_error *err) EW_MUST_CHECK; // submits and waits
const float *ew_step_rows(const struct ew_step *step, const struct ew_text *text); // its rows, as logits above
