#pragma once
// A model: its shape and weights, bound by canonical names from either file format, and the program that computes it.
//
// Opening reads headers only. A family is a YAML table (data/families) and, where its mathematics is new, one small
// hook.

#include "format/modelfile.h"
#include "kernel/backend.h"
#include "kernel/ops.h"

#define EW_LAYERS_MAX 1024
#define EW_PROMPTS_MAX 16

struct ew_model_shape {
    char arch[64]; // "llama", "qwen3": the family's name
    uint32_t n_layers, n_vocab, width, ffn_width, n_heads, n_kv_heads, head_dim, context_trained;
    bool tied_head, has_weights;
    // ... what the builder needs besides is in model/shape.h
};

// What makes one vector of a text, for models that write none: an encoder, or a decoder that was trained for it.
enum ew_pooling_kind { EW_POOLING_NONE, EW_POOLING_CLS, EW_POOLING_MEAN, EW_POOLING_LAST };

struct ew_prompt { // an instruction that goes before a text, by what the text is for
    struct ew_str name, text;
};

struct ew_pooling {
    enum ew_pooling_kind kind; // NONE: the model writes text
    bool is_score;     // the vector is a classifier's scores
    bool is_raw;       // ... of which one is given as it is; else its sigmoid
    bool is_yes_no;    // ... and there are two: how much speaks for "yes", and for "no"
    bool in_program;   // the program gives one row a text, which is pooled already
    bool normalise;    // to length 1
    uint32_t width;    // of the vector
    uint32_t n_tokens_usual; // that the model's makers cut texts to; 0: they do not say
    uint32_t n_prompts;
    struct ew_prompt prompts[EW_PROMPTS_MAX]; // as config_sentence_transformers.json has them
    struct ew_str prompt_default;             // name of the one that is used where none is asked for; may be empty
    // Jinja: the text that a pair becomes, from messages of the roles "query", "document" and maybe, before them,
    // "system" with an instruction. ptr is NULL where the vocabulary tells how a pair is written.
    struct ew_str pair_template;
};

struct ew_model_tokens { // from generation_config, then config, then the tokenizer's metadata
    int32_t bos;         // -1: none
    int32_t eos[16];
    uint32_t n_eos;
};

struct ew_sampling_defaults { // generation_config's, where the model has one; NAN or -1: not given
    float temperature, top_p, min_p, repetition_penalty;
    int32_t top_k;
    bool do_sample_given, do_sample;
};

struct ew_shape;

struct ew_model {
    char *path;               // or "synthetic:1.1b:q8_0"
    struct ew_modelfile file; // closed again by ew_model_close; absent for synthetic models
    bool is_synthetic;
    struct ew_model_shape shape;
    struct ew_shape *whole_shape; // all that the program was built from
    struct ew_model_tokens tokens;
    struct ew_sampling_defaults sampling;
    struct ew_pooling pooling;     // texts live as long as the file
    struct ew_program program;     // weights carry their sources
    struct ew_arena arena;         // program and names
    uint64_t n_params, file_bytes; // weight bytes as stored, each tensor once
    char dtype[32];                // the commonest matrix type: "q8_0", "bf16"
};

// model: a path, "demo" or "synthetic:SHAPE:TYPE". Unknown architectures, missing, surplus-shaped and ill-typed
// tensors are named.
int ew_model_open(const char *model, struct ew_model **out, struct ew_error *err) EW_MUST_CHECK;
void ew_model_close(struct ew_model *model);

// The one sizing function: what it costs to run `model` on `backend` within limits; plan and the engine both call it.
struct ew_model_need {
    uint64_t weight_bytes, workspace_bytes, cache_bytes, total_bytes;
    uint64_t kv_token_bytes; // of one token, all FULL and LATENT groups together
};
int ew_model_size(const struct ew_model *model, struct ew_backend *backend, const struct ew_limits *limits,
                  struct ew_model_need *out, struct ew_error *err) EW_MUST_CHECK;
