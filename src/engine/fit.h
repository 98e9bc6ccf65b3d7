#pragma once
// What fits into the memory budget: the context and the number of cache blocks, decided before anything is loaded.

#include "engine/engine.h"

struct ew_fit {
    struct ew_limits limits; // limits.n_blocks points at n_blocks below
    uint32_t n_blocks[8];
    uint32_t n_resident; // sequences
    struct ew_model_need need;
    uint64_t host_bytes; // tables, token lists and the prefix tree of the engine itself
    uint64_t held_bytes; // by the device's driver
    uint64_t budget_bytes;
};

// Fills every 0 of the configuration with its default.
struct ew_engine_config ew_engine_config_complete(const struct ew_engine_config *config, const struct ew_model *model,
                                                  const struct ew_backend *backend);

// The config is complete. n_logits_max: rows of logits of one step. EW_ERR_MEMORY with the figures where not even one
// sequence fits; EW_ERR_USAGE where the context asked for is more than the model can have.
int ew_fit(const struct ew_model *model, struct ew_backend *backend, const struct ew_engine_config *config,
           uint32_t n_logits_max, struct ew_fit *fit, struct ew_error *err) EW_MUST_CHECK;
