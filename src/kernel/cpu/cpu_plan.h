#pragma once
// A program lowered to stages. All units of one (rows, tiles or heads, shared out among the threads) are finished
// before the next begins.
//
// Everything that works on each row alone is gathered into chains, so that a layer is about nine stages. Slots
// live in buffers that are reused as soon as no later op reads them. The row stride of a buffer is its own, so that row
// i of whatever lives in it is always in the same place: a thread that is ahead in a chain never writes another one's
// rows.

#include "base/alloc.h"
#include "kernel/ops.h"

#define EW_CPU_NO_BUFFER UINT32_MAX

// What the rows of a buffer are.
enum ew_cpu_rows {
    EW_CPU_ROWS_TOKENS,
    EW_CPU_ROWS_LOGITS, // selected tokens
    EW_CPU_ROWS_PAIRS,  // tokens with each of their experts, by expert
    EW_CPU_ROWS_ONE,    // of a stage that one thread does
};

struct ew_cpu_buffer {
    uint32_t width; // row stride in floats
    enum ew_cpu_rows rows;
    bool is_exact; // holds one slot, stride == width: may be handed out
};

enum ew_cpu_step_kind {
    EW_CPU_STEP_OP,          // an op of the program
    EW_CPU_STEP_ROPE_TABLES, // cosines and sines of every table, once a step
    EW_CPU_STEP_QUANTISE,    // `in` to 8 bits
    EW_CPU_STEP_APPEND,      // keys and values of an ATTENTION op into its cache
    EW_CPU_STEP_SORT,        // what ROUTE chose, by expert
};

struct ew_cpu_step {
    enum ew_cpu_step_kind kind;
    uint32_t op;
    uint32_t in, in2, in3, out; // buffers
};

enum ew_cpu_stage_kind {
    EW_CPU_STAGE_CHAIN,
    EW_CPU_STAGE_LINEAR,
    EW_CPU_STAGE_HEADS,
    EW_CPU_STAGE_EXPERTS,
    EW_CPU_STAGE_ATTENTION,
    EW_CPU_STAGE_STATE, // CONV or SCAN
};

struct ew_cpu_stage {
    enum ew_cpu_stage_kind kind;
    enum ew_cpu_rows rows;
    uint32_t first, count; // its steps
};

struct ew_cpu_plan {
    const struct ew_program *program;
    struct ew_cpu_buffer *buffers;
    struct ew_cpu_step *steps;
    struct ew_cpu_stage *stages;  // fused
    struct ew_cpu_stage *singles; // one step each, for traces
    uint32_t n_buffers, n_steps, n_stages, n_singles;
    uint32_t result; // buffer of the program's logits
    uint32_t result_width;
    uint32_t n_experts, n_active; // of every ROUTE; 0: there is none
    uint32_t q8_cols_max;         // widest input of a product that wants other activations than f32, 0: none
    bool has_states;              // CONV or SCAN, for which sequences need blocks
    bool has_q8, has_bf16;        // which forms of activations the layouts of its weights want
    bool has_prompt;              // products of prompts are others
    bool prompt_has_q8, prompt_has_bf16; // which forms these want
};

struct ew_cpu_plan_need { // of a weight's products
    bool q8;               // activations in 8 bits or bf16
    const uint32_t *order; // these in another order; NULL: as they are
};

// needs: [n_weights]. Memory comes from the arena.
int ew_cpu_plan_build(struct ew_cpu_plan *plan, const struct ew_program *program, const struct ew_cpu_plan_need *needs,
                      struct ew_arena *arena, struct ew_error *err) EW_MUST_CHECK;
