#pragma once
// What `run`, `chat` and the measuring commands share: options to configurations, and a model with everything that
// turns text into text.

#include "cli/cli.h"
#include "engine/engine.h"
#include "model/model.h"
#include "text/chat.h"
#include "text/tokenizer.h"

extern const struct ew_opt ew_opts_sampling[]; // --temp ... --stop

// The engine options (ew_opts_engine) and defaults where none are given.
struct ew_engine_config ew_engine_config_of(const struct ew_args *args);

#define EW_STOPS_MAX 16
#define EW_BIASES_MAX 64

// Sampling as asked on the command line, over generation_config's values, over our defaults. The strings live as long
// as args.
struct ew_sampling_args {
    struct ew_sampling sampling;
    struct ew_str stops[EW_STOPS_MAX];
    struct ew_logit_bias biases[EW_BIASES_MAX];
};
int ew_sampling_of(struct ew_sampling_args *out, const struct ew_args *args, const struct ew_model *model,
                   struct ew_error *err) EW_MUST_CHECK;

// --model's value, or EW_ERR_USAGE.
int ew_model_of(const struct ew_args *args, const char **out, struct ew_error *err) EW_MUST_CHECK;
// The model that it names; the caller closes it.
int ew_open_model(const struct ew_args *args, struct ew_model **out, struct ew_error *err) EW_MUST_CHECK;

// A model ready to generate. tok and chat may be NULL where the model has none; the reason is kept for who needs them.
struct ew_runtime {
    struct ew_model *model;
    struct ew_tokenizer *tok;
    struct ew_chat_format *chat;
    struct ew_engine *engine;
    struct ew_error tok_error, chat_error;
};
int ew_runtime_open(struct ew_runtime *runtime, const struct ew_args *args, struct ew_error *err) EW_MUST_CHECK;
void ew_runtime_close(struct ew_runtime *runtime);

// Lets the marks around the model's reasoning through where they are special tokens, so that the answer can be split.
void ew_request_show_reasoning(struct ew_request *request, const struct ew_runtime *runtime);

// Runs one request to its end, calling on_event for each of its events; on_event returns false to cancel. An interrupt
// (Ctrl-C) cancels too. The last event is the FINISHED one, copied to *last.
int ew_generate(struct ew_engine *engine, const struct ew_request *request,
                bool (*on_event)(void *ctx, const struct ew_event *event), void *ctx, struct ew_event *last,
                struct ew_error *err) EW_MUST_CHECK;

const char *ew_finish_name(enum ew_finish finish); // "stop", "length", "context", "cancelled", "error"
