#pragma once
// A backend: something that can hold weights and caches and run programs. One call a step, never one an op.
//
//   create -> load(program) -> prepare(limits) -> step, step, ... -> destroy
//
// Everything is sized by prepare; step allocates nothing. One thread at a time uses a backend (the engine thread).

#include "kernel/ops.h"

enum ew_kernels { EW_KERNELS_AUTO, EW_KERNELS_REFERENCE };

// The arithmetic that a plan's matrix products use; decides tolerances (docs/numerics in ARCHITECTURE.md).
enum ew_arith { EW_ARITH_REFERENCE, EW_ARITH_F16, EW_ARITH_BF16, EW_ARITH_I8 };
const char *ew_arith_name(enum ew_arith arith);      // "reference", "f16", "bf16", "i8"
double ew_arith_tolerance(enum ew_arith arith);      // 1e-3, 3e-3, 2e-2, 5e-2 (rel of the logits)

struct ew_backend_config {
    uint32_t n_threads;        // 0: one per physical core allowed
    enum ew_kernels kernels;
    const char *cpu_max;       // ISA cap: "reference", "avx2", ..., NULL: none
    bool deterministic;
    const char *cache;         // directory for what a GPU's driver compiles; NULL: platform/cuda_cache.h finds one
};

struct ew_limits {
    uint32_t n_tokens_max;     // of one step
    uint32_t n_seqs_max;       // of one step
    uint32_t n_logits_max;     // rows of logits of one step
    uint32_t context_max;      // tokens of one sequence
    uint32_t block_tokens;     // tokens of a cache block
    const uint32_t *n_blocks;  // [n_groups] pool sizes
    enum ew_kv_dtype kv;
};

// Called after each op with its output rows (f32), in program order; it may change them (eval self compares each op on
// equal inputs that way). It disables fusion. Rows of pairs of a token and an expert come in the backend's own order.
typedef void (*ew_trace_fn)(void *ctx, const struct ew_program *program, uint32_t op, float *rows, uint32_t n_rows,
                            uint32_t width);

struct ew_backend;

struct ew_backend_sizes {
    uint64_t weight_bytes;     // as held by this backend
    uint64_t workspace_bytes;
    uint64_t block_bytes[8];   // of one block, each cache group
};

// What the device can do at most, measured.
struct ew_backend_speed {
    double read_bytes_s;     // of its memory
    double multiply_flops_s; // bf16 products on its tensor cores, those that every GPU since 8.0 has
};

// What the launches of one kind cost a step.
struct ew_profile_row {
    char ops[112];      // "norm attn_q attn_k attn_v"; "" for the whole step
    char kernels[112];  // "vector_i8"
    uint32_t n_launches;  // of such sequences of kernels
    double seconds;       // of all of them, each kind alone; of the whole step as it is
    double bytes, flops;  // that they have to move, and compute
};
typedef void (*ew_profile_fn)(void *ctx, const struct ew_profile_row *row);

// How many of a module's kernels were loaded, and the driver's seconds for them; threads may have shared these.
typedef void (*ew_module_fn)(void *ctx, const char *name, uint32_t n_kernels, uint32_t n_all, double seconds);
// 0, or the error that err names.
typedef int (*ew_ready_fn)(void *ctx, struct ew_error *err);

struct ew_backend_ops {
    const char *name;
    bool runs_ahead; // a step may be started while one with picks is under way, and take its tokens: see ew_batch
    int (*create)(const struct ew_backend_config *config, struct ew_backend **out, struct ew_error *err);
    void (*destroy)(struct ew_backend *backend);
    // 0, or EW_ERR_UNSUPPORTED with what the program needs and the backend lacks. NULL: it runs everything.
    int (*supports)(const struct ew_backend *backend, const struct ew_program *program, enum ew_kv_dtype kv,
                    struct ew_error *err);
    // Memory of the device that is free now, and all it has; NULL: the backend's memory is the machine's.
    int (*free_bytes)(const struct ew_backend *backend, uint64_t *bytes, uint64_t *total_bytes, struct ew_error *err);
    // Memory of the device that its driver took for this process before anything was loaded. NULL: none.
    uint64_t (*held_bytes)(const struct ew_backend *backend);
    // Tokens of prompts that a step needs to be about as fast as it gets; NULL: 512.
    uint32_t (*step_tokens)(const struct ew_backend *backend);
    // Whether steps like the last one still go different ways, of which the fastest is to stay; NULL: never.
    bool (*is_trying)(const struct ew_backend *backend);
    // NULL: the machine's own limits are the backend's. Takes some tens of milliseconds.
    int (*measure)(struct ew_backend *backend, struct ew_backend_speed *out, struct ew_error *err);
    // What the kinds of launches of a step like this cost, the whole step first; NULL: not known here. Whatever the
    // step computes and leaves in its caches is of no use.
    int (*profile)(struct ew_backend *backend, const struct ew_batch *batch, ew_profile_fn fn, void *ctx,
                   struct ew_error *err);
    // Which kernels run here and why: "sm_90: ...", and each module of which kernels were loaded. NULL: there are no
    // such things.
    void (*modules)(const struct ew_backend *backend, ew_module_fn fn, void *ctx, char *tier, size_t tier_size);
    // What load and prepare would take, without doing them; exact, or an upper bound within 1 %.
    int (*sizes)(struct ew_backend *backend, const struct ew_program *program, const struct ew_limits *limits,
                 struct ew_backend_sizes *out, struct ew_error *err);
    // Imports every weight tile by tile; progress may be NULL and is called from one thread; returning false cancels.
    int (*load)(struct ew_backend *backend, const struct ew_program *program,
                bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx, struct ew_error *err);
    // Before load: what it is to call as soon as the backend's kernels are there, from a thread of its own while
    // weights are still read. load fails where that fails. NULL: kernels are always there.
    void (*when_ready)(struct ew_backend *backend, ew_ready_fn fn, void *ctx);
    int (*prepare)(struct ew_backend *backend, const struct ew_limits *limits, struct ew_error *err);
    void (*trace)(struct ew_backend *backend, ew_trace_fn fn, void *ctx); // NULL fn: off
    // The same without disabling fusion: shown is what is left where later ops read it, after the launch that wrote it.
    // Off with trace. NULL, as is the next: what trace shows is all there is.
    void (*trace_launches)(struct ew_backend *backend, ew_trace_fn fn, void *ctx);
    // Names of the kernels that were launched since it was called before, while something traces: "few_pack few_i8_1".
    // Valid until the next call.
    const char *(*launched)(struct ew_backend *backend);
    // Another one on the same device, that has the kernels which this one loaded; goes first. NULL: create makes one.
    int (*sibling)(struct ew_backend *backend, struct ew_backend **out, struct ew_error *err);
    // Starts a step, and waits for the oldest that was started. Between them the host may prepare the next batch; the
    // batch's arrays stay until wait.
    int (*submit)(struct ew_backend *backend, const struct ew_batch *batch, struct ew_error *err);
    // [n_logits, n_vocab], valid until the next submit; NULL where the batch had picks
    int (*wait)(struct ew_backend *backend, const float **logits, struct ew_error *err);
    // The tokens that the step waited for picked, valid until the next submit. EW_PICK_BY_HOST: the host has to choose;
    // the row that logits_row then gives, unless another step was started meanwhile, has its adjustments, and is valid
    // until the next call. Both NULL: no picks here.
    const int32_t *(*picked)(const struct ew_backend *backend);
    int (*logits_row)(struct ew_backend *backend, uint32_t row, const float **logits, struct ew_error *err);
    // Cache blocks: copy inside a group's pool (copy on write), and canonical export and import (f32 K then V:
    // [n_layers, n_tokens, heads, dim]; of a state
    // [n_layers, its elements], whatever n_tokens is).
    int (*copy_block)(struct ew_backend *backend, uint32_t group, int32_t from, int32_t to, struct ew_error *err);
    int (*export_block)(struct ew_backend *backend, uint32_t group, int32_t block, uint32_t n_tokens, float *out,
                        struct ew_error *err);
    int (*import_block)(struct ew_backend *backend, uint32_t group, int32_t block, uint32_t n_tokens, const float *in,
                        struct ew_error *err);
    // the widest-tolerance class that any matrix of the loaded program uses
    enum ew_arith (*arith)(const struct ew_backend *backend);
    const char *(*describe)(const struct ew_backend *backend); // "cpu avx2, 2 threads"
};

struct ew_backend {
    const struct ew_backend_ops *ops;
};

extern const struct ew_backend_ops ew_backend_cpu, ew_backend_cuda;
// "cpu" or "cuda": made, or EW_ERR_UNSUPPORTED or EW_ERR_DEVICE name what is missing.
int ew_backend_create(const char *name, const struct ew_backend_config *config, struct ew_backend **out,
                      struct ew_error *err) EW_MUST_CHECK;
// The same for one program and cache type, and "auto": CUDA where there is a GPU that can run it, else the CPU, with
// the reason in the log.
int ew_backend_create_for(const char *name, const struct ew_backend_config *config, const struct ew_program *program,
                          enum ew_kv_dtype kv, struct ew_backend **out, struct ew_error *err) EW_MUST_CHECK;
static inline void ew_backend_destroy(struct ew_backend *backend) { if (backend) backend->ops->destroy(backend); }
