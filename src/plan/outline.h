#pragma once
// The outline of a model: the few numbers that decide what fits and how fast it can be, from headers alone.

#include <stdbool.h>

#include "base/error.h"
#include "base/str.h"
#include "format/profile.h"

// A type of weights as people name it, with its bits for each weight, scales included.
struct ew_weight_type {
    const char *name;
    double bits;
};
const struct ew_weight_type *ew_weight_type_find(const char *name); // NULL: not known
extern const struct ew_weight_type ew_weight_types[];               // ended by a NULL name, from wide to narrow

// Where a model is only talked about ("--params 70B"). 0: not given.
struct ew_outline_figures {
    double params, active_params; // active: read for each token (mixtures of experts)
    uint32_t layers, kv_heads, head_dim, width;
};

struct ew_outline {
    char name[256];
    char type[32]; // of the weights
    double params, active_params;
    double weight_bytes;      // all of them
    double read_bytes;        // that one token at batch 1 has to read
    double kv_elements;       // of one token, K and V of all layers that keep every token
    double kv_scales;         // f16 scales of one token where the cache is 8 bits wide
    double kv_fixed_elements; // of one session, in windows that do not grow with the context
    double kv_fixed_scales;
    double state_bytes;       // of one session, whatever its length and the type of the caches
    uint32_t context_trained; // 0: unknown
    uint32_t width;           // of the residual stream, and so of an embedding; 0: unknown
    bool kv_known;
    bool makes_vectors; // of whole texts, without caches ...
    bool makes_scores;  // ... and they are a classifier's or a reranker's
};

// What the engine would hold for a model, by the function that decides it there.
struct ew_outline_sizes {
    bool known;
    double weight_bytes, cache_bytes, workspace_bytes; // workspace: also tables of the engine, and the program itself
};
struct ew_outline_load {
    const struct ew_profile *profile; // whose serving settings count
    const char *kv;
    uint32_t context, sessions;
};
// On the CPU of this machine. EW_ERR_UNSUPPORTED where only a config.json is there.
int ew_outline_size(const char *model, const struct ew_outline_load *load, struct ew_outline_sizes *out,
                    struct ew_error *err) EW_MUST_CHECK;

// model: as for --model, also a directory that holds nothing but a config.json. type NULL: as the file has it.
int ew_outline_of_model(struct ew_outline *outline, const char *model, const struct ew_weight_type *type,
                        struct ew_error *err) EW_MUST_CHECK;
int ew_outline_of_figures(struct ew_outline *outline, const struct ew_outline_figures *figures,
                          const struct ew_weight_type *type, struct ew_error *err) EW_MUST_CHECK;
