#pragma once
// The CPU backend's own state. The engine thread enters; inside a step the pool's threads read everything
// here and write only rows, tiles and heads that are theirs.

#include <stdatomic.h>

#include "base/alloc.h"
#include "base/pool.h"
#include "kernel/cpu/cpu_cache.h"
#include "kernel/cpu/cpu_experts.h"
#include "kernel/cpu/cpu_ops.h"
#include "kernel/cpu/cpu_plan.h"

#define EW_CPU_GROUPS_MAX 8   // as ew_backend_sizes
#define EW_CPU_QUERY_TOKENS 32 // of one work item of attention, at most

// Memory from mmap: zero, page aligned, taken from the machine only when touched, in huge pages where it grants them.
struct ew_cpu_region {
    uint8_t *data;
    uint64_t bytes;
};
int ew_cpu_region_map(struct ew_cpu_region *region, uint64_t bytes, const char *what,
                      struct ew_error *err) EW_MUST_CHECK;
void ew_cpu_region_unmap(struct ew_cpu_region *region);

// Hands out 64-byte aligned pieces of a region. With base NULL it only counts, so that sizing and carving are one code.
struct ew_cpu_carver {
    uint8_t *base;
    uint64_t used;
};
static inline void *ew_cpu_carve(struct ew_cpu_carver *carver, uint64_t bytes)
{
    uint8_t *piece = carver->base ? carver->base + carver->used : NULL;

    carver->used += (bytes + 63) & ~(uint64_t)63;
    return piece;
}

// Where the tokens of a step belong.
struct ew_cpu_token {
    uint32_t seq;
    uint32_t index; // in its sequence: n_past and the tokens before it in this step
};

// Up to EW_CPU_QUERY_TOKENS neighbouring tokens of one sequence.
struct ew_cpu_query {
    uint32_t first, n_tokens;
};

// Neighbouring rows of tokens whose products are of one kind.
struct ew_cpu_span {
    uint32_t first, n_rows;
    bool is_prompt; // plan.has_prompt, too
};

// How far a stage is. Its work is units of rows, tiles or heads.
struct ew_cpu_progress {
    _Alignas(64) _Atomic uint32_t next; // first unit that no thread has taken
    _Atomic uint32_t done;              // units that are finished
};

// What prepare carves for the steps.
struct ew_cpu_workspace {
    struct ew_cpu_region region;
    float **buffers;   // [plan.n_buffers]
    float **rope_rows; // [n_ropes], each [n_tokens_max, n_dims]: cosines, then sines
    struct ew_cpu_q8 q8;
    float **scratch;                  // [n_threads]
    struct ew_cpu_token *tokens;      // [n_tokens_max]
    uint32_t *selected;               // [n_logits_max] token of each logits row
    struct ew_cpu_query *queries;     // [n_tokens_max]
    struct ew_cpu_span *spans;        // [n_seqs_max]
    struct ew_cpu_pairs pairs;        // of the layer that is being computed
    struct ew_cpu_progress *progress; // [n_stages]
};

struct ew_cpu_backend {
    struct ew_backend base;
    struct ew_backend_config config;
    struct ew_pool *pool;
    uint32_t n_threads;
    struct ew_cpu_ops ops;
    char text[96]; // describe()

    // set by load
    const struct ew_program *program;
    struct ew_cpu_matrix *matrices; // [n_weights]; vectors have layout COUNT
    float **vectors;                // [n_weights]
    struct ew_cpu_region weights;
    struct ew_arena arena; // tables of matrices and vectors
    uint64_t weight_bytes;
    enum ew_arith arith;

    // set by prepare
    struct ew_limits limits;
    struct ew_cpu_plan plan;
    struct ew_arena plan_arena;
    struct ew_cpu_workspace work;
    struct ew_cpu_cache caches[EW_CPU_GROUPS_MAX];
    struct ew_cpu_region cache_region;
    uint64_t scratch_floats;
    bool is_prepared;

    // of the step
    const struct ew_batch *batch;
    uint32_t n_queries, n_spans;
    ew_trace_fn trace;
    void *trace_ctx;
    struct ew_cpu_region trace_rows;
};

// cpu_weights.c
struct ew_cpu_weight_plan {    // how one weight will be held
    enum ew_cpu_layout layout; // COUNT: a vector of f32
    uint64_t bytes;            // that the backend holds
    bool is_mapped;            // used where the source has it
    bool is_exact;             // false: expanded from a type without kernels
    bool is_ordered;           // from source.ordered
};
int ew_cpu_weights_plan(const struct ew_cpu_backend *backend, const struct ew_program *program,
                        struct ew_cpu_weight_plan *plans, uint64_t *bytes, struct ew_error *err) EW_MUST_CHECK;
int ew_cpu_weights_load(struct ew_cpu_backend *backend, const struct ew_program *program,
                        bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                        struct ew_error *err) EW_MUST_CHECK;
void ew_cpu_weights_unload(struct ew_cpu_backend *backend);

// cpu_step.c: one whole step on all threads; the batch was checked.
void ew_cpu_step_run(struct ew_cpu_backend *backend);

// cpu_attention.c
uint64_t ew_cpu_attention_scratch(const struct ew_program *program, const struct ew_limits *limits); // floats a thread
uint32_t ew_cpu_attention_items(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step);
void ew_cpu_attention_run(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t from,
                          uint32_t to, float *scratch);

// cpu_state.c: CONV and SCAN. A unit is a part of the channels, or a head, of one sequence and walks its tokens in
// order: nobody else touches its part of the state.
uint64_t ew_cpu_state_scratch(const struct ew_program *program); // floats a thread
uint32_t ew_cpu_state_items(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step);
void ew_cpu_state_run(const struct ew_cpu_backend *backend, const struct ew_cpu_step *step, uint32_t from, uint32_t to,
                      float *scratch);
