#pragma once
// The CUDA backend's own state; the thread that uses the backend is the only one that touches it.

#include "base/alloc.h"
#include "base/pool.h"
#include "kernel/backend.h"
#include "kernel/cpu/cpu_plan.h" // slots to buffers, ops to steps: nothing in it is of the CPU but its name
#include "kernel/cuda/attend_job.h"
#include "kernel/cuda/chosen_job.h"
#include "kernel/cuda/cuda_device.h"
#include "kernel/cuda/cuda_layout.h"
#include "kernel/cuda/cuda_uncached.h"
#include "kernel/cuda/few_job.h"
#include "kernel/cuda/vector_job.h"

#define EW_CUDA_GROUPS_MAX 8        // as ew_backend_sizes
#define EW_CUDA_GRAPH_TOKENS_MAX 64 // decode steps of up to this many tokens are graphs
#define EW_CUDA_SPLITS_MAX 64       // of the keys of one token
#define EW_CUDA_HEAD_DIM_MAX 256
#define EW_CUDA_LATENT_MAX 512 // as in ptx/latent.c, as is the next
#define EW_CUDA_LATENT_REST_MAX 64
#define EW_CUDA_LATENT_HEADS 16 // of a block
#define EW_CUDA_ROUTE_GROUPS_MAX 32 // a lane each
#define EW_CUDA_CHOSEN_ARRIVED_BYTES (2 * sizeof(uint32_t))
#define EW_CUDA_PAIRS_MAX 65535     // tokens with each of their experts: a grid's height

struct ew_cuda_cache {
    uint64_t data, block_bytes, layer_bytes, head_bytes;
    uint64_t state_bytes; // of a layer; 0: blocks hold keys and values
    uint32_t n_blocks, block_tokens, n_layers, n_kv_heads, k_dim, v_dim;
    enum ew_kv_dtype kv;
};

#define EW_CUDA_FLIGHTS 2 // steps that may be under way

// What a step under way has of its own.
struct ew_cuda_flight {
    const struct ew_batch *batch;
    uint8_t *batch_host, *picks_host; // pinned: the `host` of the structs below
    void *done; // event: behind all that the step does
    // Of the step's graph, if it is one, and events around it; is_timed: they are recorded and not looked at yet.
    struct ew_cuda_graph *graph;
    enum ew_cuda_way way;
    void *began, *ended;
    bool is_timed;
};

// Steps of so many tokens that each end a sequence.
struct ew_cuda_graph {
    void *ways[EW_CUDA_WAY_COUNT];    // NULL: not recorded, or given up
    float ms[EW_CUDA_WAY_COUNT];      // of the shortest step
    uint32_t n_begun[EW_CUDA_WAY_COUNT], n_timed[EW_CUDA_WAY_COUNT]; // of the steps that are timed
    uint32_t n_started;               // of all ways
};

// The one copy that a step makes to the GPU. Each part lies at the same place on both sides.
struct ew_cuda_batch {
    uint8_t *host;       // pinned, of the newest step
    uint64_t device;
    uint64_t bytes;      // room
    uint64_t token, position, token_seq, token_index, token_scale, selected, seq_total, seq_first; // offsets
    uint64_t segment;    // u32: token types of encoders
    uint64_t table_at;   // u32 [n_groups, n_seqs_max]: where in `tables` a sequence's begins
    uint64_t tables;     // i32, of every group and sequence in turn
    uint64_t tables_max; // entries
};

// Frequencies of each sequence of a step, which change only when another kind of sequence comes to its place.
struct ew_cuda_rope {
    uint64_t frequency; // f64 [n_seqs_max, half], turns a position
    uint64_t scale;     // f32 [n_seqs_max]
    uint64_t table;     // f32 [n_tokens_max, n_dims]
    uint64_t *kinds;    // [n_seqs_max] what is there now: 0 nothing, 1 short, 2 long, else 3 + span of dynamic ones
};

// What the rows in x16 are, within one step.
struct ew_cuda_narrow {
    uint64_t of; // the buffer's address; 0: nothing
    uint64_t order; // as the matrix has it
    uint32_t cols, n_rows;
    enum ew_cuda_layout as; // F16, BF16 or, with scales behind the codes, F8
    uint32_t turn;          // which x16
    bool is_mixed;          // in the order of ptx/wgmma_coded.c
};

// The order of pairs of the layer at hand; as `struct pairs` in ptx/experts.c. Addresses of arrays of u32.
struct ew_cuda_pairs {
    uint64_t first, expert, token, place, tiles;
};

// How tokens are chosen from the logits of a step. Offsets: the first shared_bytes lie on both sides.
struct ew_cuda_picks {
    uint8_t *host; // pinned, of the newest step
    uint64_t device, bytes, shared_bytes;
    uint64_t picks, adjusts, masks, tokens, states;
    uint32_t n_max, mask_words;
    bool has_random, has_adjusts, has_masks; // of the step
};

#define EW_CUDA_PICK_STATE_BYTES 10496

// Activations of products with several rows, in 16 bits and in these products' order: by turns what is read and what a
// gate leaves.
struct ew_cuda_staged {
    uint64_t at[2];
    uint64_t of; // the address that a gate's result would have had, if that lies there now; else 0
    uint32_t turn;
};

struct ew_cuda_work {
    uint64_t *buffers;  // [plan.n_buffers] addresses
    struct ew_cuda_rope *ropes;
    uint64_t q8_codes, q8_scales, q8_sums;
    // 16-bit operands of large products: activations (by turns: one is written from the other), a part of a decoded
    // matrix.
    uint64_t x16[2], w16, w16_bytes;
    struct ew_cuda_narrow narrow;
    uint64_t maps;      // of x16 and of each matrix (or w16), for the tensor copy engine; used where has_maps
    bool has_maps;
    uint64_t partial;   // of split attention
    struct ew_cuda_staged few_staged;
    uint64_t few_partial, few_partial_bytes, few_arrived; // of products with several rows
    uint64_t attend_partial, attend_arrived; // of decode attention
    uint64_t chosen_arrived; // of one token's experts
    uint64_t scores, routers; // of one layer's experts, and of all: see score_job.h
    struct ew_cuda_pairs pairs;
    struct ew_cuda_batch batch;
    struct ew_cuda_picks picks;
};

// Steps that are done at once: by one kernel where there is one row of activations, by few where there are many.
struct ew_cuda_fused {
    uint32_t count; // 0: no steps begin here
    enum ew_cuda_kernel kernel;
    enum ew_cuda_place place;
    struct {
        uint32_t n_stages, bytes; // pieces; shared memory of a block, with all else
    } rings[EW_CUDA_RING_COUNT];
    uint32_t beside_bytes; // of a block before or behind this one: of experts, or of a product with the shortest ring
    uint32_t n_shown;      // launches of a self-test
    uint32_t n_early;      // pieces of weights a warp asks for before activations are there, at most
    struct ew_vector_job job;
    uint64_t ordered_norm; // 0, or the job's norm_weight for one short row: in the order of columns
    // What many rows of activations need beyond the job, where the addresses are not enough.
    uint32_t x, normed, residual, out;                    // buffers
    uint32_t outs[EW_VECTOR_PARTS_MAX], weights[EW_VECTOR_PARTS_MAX];
    bool is_narrow; // a gate whose result only the next product reads
};

// The same for steps around an attention, where every token is the last of its own sequence.
struct ew_cuda_attend {
    uint32_t count;
    uint32_t n_shown; // launches of a self-test
    enum ew_cuda_kernel kernel;
    struct ew_attend_job job;
};

// Steps of a layer of experts that one kernel does at once where there is one token, or two where gates and sums have
// different layouts.
struct ew_cuda_chosen {
    uint32_t count; // 0: no steps begin here
    uint32_t n_kernels;
    enum ew_cuda_kernel kernels[2];
    uint32_t shared_bytes[2];
    struct ew_chosen_job jobs[2];
};

// A fused product whose result is normalised and scored for the experts that come next: where there is one token the
// product makes the scores, too, and the experts' kernel does the norm.
struct ew_cuda_scored {
    uint32_t count; // 0: none begins here
    enum ew_cuda_kernel kernel;
    uint32_t chosen; // step
    uint32_t shared_bytes; // beyond the product's own
    uint64_t normed, logits; // where the steps would have left them
    struct ew_score_job job;
};

// Products of experts with a few rows each, from a step on, with the activation behind two gates.
struct ew_cuda_grouped {
    uint32_t count; // 0: none begins here
    uint32_t n_experts;
    struct ew_few_job job;
};

struct ew_cuda_backend {
    struct ew_backend base;
    struct ew_backend_config config;
    ew_ready_fn when_ready; // NULL: nobody waits for the kernels
    void *ready_ctx;
    struct ew_cuda_device device;
    char text[160]; // describe()
    uint64_t held_bytes; // by the driver, before anything was loaded

    enum ew_kv_dtype kv_sized; // by the last sizes(): very likely what prepare will be told

    // set by load
    const struct ew_program *program; // of one without caches our own form
    bool is_uncached;
    struct ew_arena arena;
    struct ew_cuda_matrix *matrices; // [n_weights]
    uint64_t *vectors;               // [n_weights] f32
    uint64_t *alibi;                 // [n_ops] f32, 0: none
    struct ew_cuda_arena weights;

    // set by prepare
    struct ew_limits limits;
    struct ew_arena plan_arena;
    struct ew_cpu_plan plan;
    struct ew_cuda_fused *fused;   // [plan.n_steps]
    struct ew_cuda_attend *attends; // [plan.n_steps]
    struct ew_cuda_chosen *chosen;  // [plan.n_steps], NULL: there are no experts
    uint32_t fitting_places, longest_places; // a bit each, where such rings are longer than the shortest, than fitting
    struct ew_cuda_scored *scored;  // [plan.n_steps], NULL: there are no experts
    struct ew_cuda_grouped *grouped; // [plan.n_steps], NULL: there are no experts
    struct ew_cuda_arena memory; // workspace and caches
    struct ew_cuda_work work;
    struct ew_cuda_cache caches[EW_CUDA_GROUPS_MAX];
    float *logits;               // pinned, [n_logits_max, n_vocab]
    uint32_t few_shown;                           // launches of a self-test
    uint32_t few_clusters[EW_FEW_SPLITS_MAX + 1]; // by their size, how many have a multiprocessor for each block
    struct ew_cuda_graph graphs[2 * (EW_CUDA_GRAPH_TOKENS_MAX + 1)]; // by number of tokens; then of long contexts
    bool is_prepared;

    struct ew_cuda_flight flights[EW_CUDA_FLIGHTS];
    uint32_t n_submitted, n_waited; // steps so far; they take flights by turns

    // NULL: off. Where there is one, nothing is a graph, and nothing is fused unless launches are what it wants to see.
    ew_trace_fn trace;
    bool traces_launches;
    void *trace_ctx;
    float *trace_rows;
    struct ew_cuda_launches launches;
    char launched[512];
    const bool *only; // [plan.n_steps] units that are launched, by their first step; NULL: all
};

// Steps of the plan that are done at once, and how. n_rows: of their activations, where they are fused.
struct ew_cuda_unit {
    enum ew_cuda_unit_kind {
        EW_CUDA_UNIT_STEP,
        EW_CUDA_UNIT_CHOSEN,
        EW_CUDA_UNIT_SCORED,
        EW_CUDA_UNIT_ONE,
        EW_CUDA_UNIT_FEW,
        EW_CUDA_UNIT_ATTEND,
        EW_CUDA_UNIT_MANY,
        EW_CUDA_UNIT_GROUPED,
    } kind;
    uint32_t first, count, n_rows;
};

static inline bool ew_cuda_shows_ops(const struct ew_cuda_backend *backend)
{
    return backend->trace && !backend->traces_launches;
}

// cuda_compile.c
struct ew_cuda_compile;
int ew_cuda_compile_begin(struct ew_cuda_backend *backend, struct ew_cuda_compile **out,
                          struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_compile_end(struct ew_cuda_compile *compile, struct ew_error *err) EW_MUST_CHECK; // also after a failure

// cuda_weights.c
uint64_t ew_cuda_weights_bytes(const struct ew_program *program, bool reference);
int ew_cuda_weights_load(struct ew_cuda_backend *backend, bool (*progress)(void *ctx, uint64_t done, uint64_t total),
                         void *ctx, struct ew_error *err) EW_MUST_CHECK;

// cuda_batch.c
// Offsets and room of the step's copy.
void ew_cuda_batch_shape(struct ew_cuda_batch *batch, const struct ew_program *program, const struct ew_limits *limits);
int ew_cuda_batch_check(const struct ew_cuda_backend *backend, const struct ew_batch *batch,
                        struct ew_error *err) EW_MUST_CHECK;
// Starts the copy, after the rotary frequencies of sequences of another kind than before.
int ew_cuda_batch_send(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_error *err)
    EW_MUST_CHECK;

// cuda_graphs.c
// Starts a decode step on a flight that is free, recording it first where it is the first of its kind.
int ew_cuda_graph_start(struct ew_cuda_backend *backend, const struct ew_batch *batch, struct ew_cuda_flight *flight,
                        struct ew_error *err) EW_MUST_CHECK;
// How steps like this one are started, as far as is known.
enum ew_cuda_way ew_cuda_graph_way(const struct ew_cuda_backend *backend, const struct ew_batch *batch);
// Whether steps like the decode step that was started last are still started in different ways.
bool ew_cuda_graph_is_trying(const struct ew_cuda_backend *backend);
void ew_cuda_graphs_fini(struct ew_cuda_backend *backend); // when nothing is under way

// cuda_trace.c
void ew_cuda_trace_set(struct ew_cuda_backend *backend, ew_trace_fn fn, void *ctx); // once prepared
int ew_cuda_trace_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, uint32_t n_rows,
                     struct ew_error *err) EW_MUST_CHECK;
const char *ew_cuda_trace_launched(struct ew_cuda_backend *backend);

// cuda_few.c
uint64_t ew_cuda_few_staged_bytes(const struct ew_program *program, uint32_t n_tokens_max);
uint64_t ew_cuda_few_partial_bytes(const struct ew_cuda_backend *backend, const struct ew_program *program,
                                   uint32_t n_tokens_max);
uint64_t ew_cuda_few_arrived_bytes(const struct ew_cuda_backend *backend);
// Of products of experts: the kernel for 8 n_tiles rows of each, what its blocks ask for, and in the job how
// activations lie; false: there is none, or no room.
bool ew_cuda_few_group(const struct ew_cuda_backend *backend, uint32_t n_tiles, uint32_t n_groups,
                       struct ew_few_job *job, enum ew_cuda_kernel *kernel, uint32_t *shared_bytes);
int ew_cuda_few_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK; // once kernels are loaded
// Whether fused steps may be done for so many rows of activations at once, and that.
bool ew_cuda_few_takes(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows);
// Whether what they leave lies in few_staged and nowhere else; and that they were done, or would have been.
bool ew_cuda_few_stages(const struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows);
void ew_cuda_few_wrote(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows);
int ew_cuda_few(struct ew_cuda_backend *backend, const struct ew_cuda_fused *fused, uint32_t n_rows,
                struct ew_error *err) EW_MUST_CHECK;

// cuda_attend.c
uint64_t ew_cuda_attend_partial_bytes(const struct ew_program *program, int n_multiprocessors);
uint64_t ew_cuda_attend_arrived_bytes(const struct ew_program *program);
// After the workspace and the caches have their addresses.
int ew_cuda_attend_find(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
// Whether some sequence's context is long: its attention is shared out otherwise.
bool ew_cuda_attend_is_far(const struct ew_batch *batch);
int ew_cuda_attend(struct ew_cuda_backend *backend, struct ew_cuda_attend *attend, const struct ew_batch *batch,
                   struct ew_error *err) EW_MUST_CHECK;

// cuda_fuse.c
// Whether a step from `first` on multiplies the 8-bit activations that are there now.
bool ew_cuda_reads_codes(const struct ew_cuda_backend *backend, uint32_t first);
// Whether a step from `first` on wants what is in the buffer now.
bool ew_cuda_is_read(const struct ew_cuda_backend *backend, uint32_t first, uint32_t buffer);
// After the workspace has its addresses.
int ew_cuda_fuse(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
void ew_cuda_fuse_place(struct ew_cuda_backend *backend); // once attentions are known, too

// cuda_f8.c
// Finds the matrices whose products with many rows take activations in e4m3, where there are kernels for them. Once
// weights are loaded and the workspace has its place; the maps of the tensor copy engine are made behind it.
int ew_cuda_f8_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
// What activations of so many rows become for products with a matrix: F16, BF16 or F8.
enum ew_cuda_layout ew_cuda_operand_of(const struct ew_cuda_matrix *matrix, uint32_t n_rows);

// cuda_latent.c
// Loads what attention over latents needs, where there is any; once limits are known.
int ew_cuda_latent_init(struct ew_cuda_backend *backend, struct ew_error *err) EW_MUST_CHECK;
// *shared_bytes: that a block asks for.
enum ew_cuda_kernel ew_cuda_latent_kernel(const struct ew_cuda_backend *backend, const struct ew_op *op,
                                          uint32_t *shared_bytes);

// cuda_measure.c
int ew_cuda_measure(struct ew_cuda_device *device, struct ew_backend_speed *out, struct ew_error *err) EW_MUST_CHECK;

// cuda_pick.c
void ew_cuda_pick_shape(struct ew_cuda_picks *picks, const struct ew_program *program, const struct ew_limits *limits);
// Before the step, and after it.
int ew_cuda_pick_send(struct ew_cuda_backend *backend, const struct ew_batch *batch,
                      struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_pick_launch(struct ew_cuda_backend *backend, const struct ew_batch *batch,
                        struct ew_error *err) EW_MUST_CHECK;

// cuda_state.c: PICK, CONV and SCAN.
int ew_cuda_state_check(const struct ew_op *op, struct ew_error *err) EW_MUST_CHECK;
int ew_cuda_state_op(struct ew_cuda_backend *backend, const struct ew_cpu_step *step, const struct ew_batch *batch,
                     uint32_t n_rows, struct ew_error *err) EW_MUST_CHECK;

// cuda_step.c
uint64_t ew_cuda_attention_partial_bytes(const struct ew_program *program, uint32_t n_tokens_max,
                                         int n_multiprocessors);
int ew_cuda_step_launch(struct ew_cuda_backend *backend, const struct ew_batch *batch,
                        struct ew_error *err) EW_MUST_CHECK;
// The unit that begins with this step of the plan, and the rows that a step computes.
struct ew_cuda_unit ew_cuda_step_unit(const struct ew_cuda_backend *backend, const struct ew_batch *batch, uint32_t i);
uint32_t ew_cuda_step_rows(const struct ew_cuda_backend *backend, const struct ew_batch *batch, uint32_t buffer);

// cuda_profile.c
int ew_cuda_profile(struct ew_cuda_backend *backend, const struct ew_batch *batch, ew_profile_fn fn, void *ctx,
                    struct ew_error *err) EW_MUST_CHECK;
