#pragma once
// Device profiles (data/profiles/*.yaml): what a device is, with the source of each figure; how to serve on it; what
// people expect of it.

#include "base/alloc.h"
#include "base/error.h"
#include "format/yaml_tree.h"
#include "platform/facts.h"

struct ew_serve_settings {
    char kv_cache_dtype[8]; // "f32", "f16", "fp8", "int8"
    double kv_cache_free_gpu_memory_fraction, gpu_memory_utilization;
    bool enable_chunked_context, use_paged_kv_cache, enable_kv_cache_reuse;
    uint32_t max_num_tokens, tokens_per_block, max_batch_size, max_concurrent_sessions, context;
    char scheduler_policy[24]; // "guaranteed_no_evict", "max_utilization"
};

struct ew_targets { // 0: none given
    double ttft_ms, decode_tok_s, latency_ms_p99;
};

struct ew_profile {
    struct ew_str id;             // "jetson-agx-thor"
    struct ew_str title;          // "Jetson AGX Thor (T5000)"
    const struct ew_yaml *device; // figures: {value, source}
    const struct ew_yaml *match;
    const struct ew_yaml *software; // facts of the system that the device is delivered with; NULL: none given
    struct ew_serve_settings serve;
    struct ew_targets targets;
    struct ew_str text; // the file
};

struct ew_profiles {
    struct ew_arena arena;
    struct ew_profile *list;
    uint32_t count;
};

int ew_profiles_load(struct ew_profiles *profiles, struct ew_error *err) EW_MUST_CHECK;
void ew_profiles_fini(struct ew_profiles *profiles);
// By name, or read from a file where the name ends in .yaml; EW_ERR_USAGE lists the names there are.
int ew_profiles_find(struct ew_profiles *profiles, const char *id, const struct ew_profile **out,
                     struct ew_error *err) EW_MUST_CHECK;
// The one whose `match` holds for these facts; "generic" where none does.
const struct ew_profile *ew_profiles_match(const struct ew_profiles *profiles, const struct ew_facts *facts);

// A figure of the device; fallback where it has none.
double ew_profile_number(const struct ew_profile *profile, const char *figure, double fallback);
struct ew_str ew_profile_text(const struct ew_profile *profile, const char *figure, const char *fallback);

// What the profile knows as facts, for judging files for a device that is not here: its software, compute capability,
// memory; `libraries` lists what its dynamic linker finds, names of the C library's own left out.
void ew_profile_facts(const struct ew_profile *profile, struct ew_facts *facts);
