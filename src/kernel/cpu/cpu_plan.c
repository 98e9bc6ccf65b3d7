#include "kernel/cpu/cpu_plan.h"

#include <string.h>

#include "base/assert.h"

// A live range: from the op that defines a slot's value to the last one that reads it.
struct range {
    uint32_t slot, last, width, buffer;
    enum ew_cpu_rows rows;
};

struct lowering {
    struct ew_cpu_plan *plan;
    const struct ew_program *program;
    const struct ew_cpu_plan_need *needs;
    struct range *ranges;    // in order of definition
    uint32_t *current;       // [n_slots] range that a slot's value belongs to at this op
    uint32_t (*operands)[4]; // [n_ops] ranges of in, in2, in3, out
    bool *is_busy;           // [n_buffers]
    uint32_t n_ranges;
    uint32_t quantised;    // range whose 8-bit form is at hand
    const uint32_t *order; // in this order
};

#define NO_RANGE UINT32_MAX

static uint32_t read_slot(struct lowering *low, uint32_t op, uint32_t slot)
{
    if (slot == EW_SLOT_NONE)
        return NO_RANGE;
    EW_ASSERT(low->current[slot] != NO_RANGE); // read before it was written
    low->ranges[low->current[slot]].last = op;
    return low->current[slot];
}

static bool reads(const struct ew_op *op, uint32_t slot)
{
    return op->in == slot || op->in2 == slot || op->in3 == slot;
}

// What the rows of the op's output are.
static enum ew_cpu_rows rows_of(const struct lowering *low, const struct ew_op *op, uint32_t in)
{
    enum ew_cpu_rows of_input = in == NO_RANGE ? EW_CPU_ROWS_TOKENS : low->ranges[in].rows;

    EW_ASSERT(of_input == EW_CPU_ROWS_TOKENS ||
              (op->kind != EW_OP_SELECT && op->kind != EW_OP_ATTENTION && op->kind != EW_OP_CONV &&
               op->kind != EW_OP_SCAN && op->kind != EW_OP_ROPE && op->kind != EW_OP_POSITION &&
               op->kind != EW_OP_ROUTE && op->kind != EW_OP_DISPATCH));
    EW_ASSERT((of_input == EW_CPU_ROWS_PAIRS) || (op->kind != EW_OP_EXPERTS && op->kind != EW_OP_COMBINE));
    return op->kind == EW_OP_SELECT     ? EW_CPU_ROWS_LOGITS
           : op->kind == EW_OP_DISPATCH ? EW_CPU_ROWS_PAIRS
           : op->kind == EW_OP_COMBINE  ? EW_CPU_ROWS_TOKENS
                                        : of_input;
}

static uint32_t write_slot(struct lowering *low, uint32_t index, const struct ew_op *op, enum ew_cpu_rows rows)
{
    uint32_t slot = op->out;

    if (!reads(op, slot) || op->kind == EW_OP_SELECT) {
        low->current[slot] = low->n_ranges;
        low->ranges[low->n_ranges++] = (struct range){slot, index, low->program->slot_width[slot], EW_CPU_NO_BUFFER,
                                                      rows};
    }
    low->ranges[low->current[slot]].last = index;
    return low->current[slot];
}

static void find_ranges(struct lowering *low)
{
    const struct ew_program *program = low->program;

    memset(low->current, 0xFF, program->n_slots * sizeof(*low->current));
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];
        uint32_t *operand = low->operands[i];
        bool has_input = op->kind != EW_OP_EMBED;

        operand[0] = has_input ? read_slot(low, i, op->in) : NO_RANGE;
        operand[1] = has_input ? read_slot(low, i, op->in2) : NO_RANGE;
        operand[2] = has_input ? read_slot(low, i, op->in3) : NO_RANGE;
        for (int k = 1; k < 3; k++)
            EW_ASSERT(operand[k] == NO_RANGE || op->kind == EW_OP_COMBINE ||
                      low->ranges[operand[k]].rows == low->ranges[operand[0]].rows);
        operand[3] = write_slot(low, i, op, rows_of(low, op, operand[0]));
    }
    EW_ASSERT(low->current[program->logits] != NO_RANGE);
    low->ranges[low->current[program->logits]].last = program->n_ops;
}

// The free buffer that wastes least: the narrowest that is wide enough, or else the widest, which then grows.
static uint32_t take_buffer(struct lowering *low, const struct range *range, bool is_exact)
{
    struct ew_cpu_plan *plan = low->plan;
    uint32_t best = EW_CPU_NO_BUFFER;

    for (uint32_t i = 0; i < plan->n_buffers && !is_exact; i++) {
        const struct ew_cpu_buffer *buffer = &plan->buffers[i];

        if (low->is_busy[i] || buffer->is_exact || buffer->rows != range->rows)
            continue;
        if (best == EW_CPU_NO_BUFFER || (buffer->width >= range->width ? plan->buffers[best].width < range->width ||
                                                                             buffer->width < plan->buffers[best].width
                                                                       : buffer->width > plan->buffers[best].width))
            best = i;
    }
    if (best == EW_CPU_NO_BUFFER) {
        best = plan->n_buffers++;
        plan->buffers[best] = (struct ew_cpu_buffer){.rows = range->rows, .is_exact = is_exact};
    }
    if (plan->buffers[best].width < range->width) // rows stay 64-byte aligned
        plan->buffers[best].width = is_exact ? range->width : (range->width + 15) & ~15u;
    low->is_busy[best] = true;
    return best;
}

// Gives a buffer to every range in the order of the ops. What an op reads for the last time is free only after it, as
// it may write while other rows still read.
static void assign_buffers(struct lowering *low)
{
    uint32_t result = low->current[low->program->logits];

    for (uint32_t i = 0; i < low->program->n_ops; i++) {
        struct range *out = &low->ranges[low->operands[i][3]];

        if (out->buffer == EW_CPU_NO_BUFFER)
            out->buffer = take_buffer(low, out, out == &low->ranges[result]);
        for (int k = 0; k < 4; k++) {
            struct range *range = low->operands[i][k] == NO_RANGE ? NULL : &low->ranges[low->operands[i][k]];

            if (range && range->last == i)
                low->is_busy[range->buffer] = false;
        }
    }
    low->plan->result = low->ranges[result].buffer;
    low->plan->result_width = low->ranges[result].width;
}

static uint32_t buffer_of(const struct lowering *low, uint32_t range)
{
    return range == NO_RANGE ? EW_CPU_NO_BUFFER : low->ranges[range].buffer;
}

static struct ew_cpu_step *add_step(struct lowering *low, enum ew_cpu_step_kind kind, uint32_t op)
{
    struct ew_cpu_step *step = &low->plan->steps[low->plan->n_steps++];
    const uint32_t *operand = low->operands[op];

    *step = (struct ew_cpu_step){kind,
                                 op,
                                 buffer_of(low, operand[0]),
                                 buffer_of(low, operand[1]),
                                 buffer_of(low, operand[2]),
                                 buffer_of(low, operand[3])};
    return step;
}

// q, k and v, or gate and up, were quantised with one input in mind and have one order, each its own copy of it.
static bool is_same_order(const uint32_t *a, const uint32_t *b, uint64_t cols)
{
    return a == b || (a && b && memcmp(a, b, cols * sizeof(*a)) == 0);
}

static void add_linear(struct lowering *low, uint32_t index)
{
    const struct ew_op *op = &low->program->ops[index];
    const struct ew_cpu_plan_need *need = &low->needs[op->weight];

    if (need->q8 && (low->quantised != low->operands[index][0] ||
                     !is_same_order(low->order, need->order, low->program->weights[op->weight].cols))) {
        add_step(low, EW_CPU_STEP_QUANTISE, index);
        low->quantised = low->operands[index][0];
        low->order = need->order;
    }
    if (need->q8)
        low->plan->q8_cols_max = EW_MAX(low->plan->q8_cols_max, low->program->slot_width[op->in]);
    add_step(low, EW_CPU_STEP_OP, index);
}

static void add_sort(struct lowering *low, uint32_t index)
{
    const struct ew_op *op = &low->program->ops[index];

    add_step(low, EW_CPU_STEP_SORT, index);
    // One number of pairs serves all buffers and stages.
    EW_ASSERT(!low->plan->n_active ||
              (low->plan->n_active == op->route.n_active && low->plan->n_experts == op->route.n_experts));
    low->plan->n_experts = op->route.n_experts;
    low->plan->n_active = op->route.n_active;
}

static void add_steps(struct lowering *low)
{
    const struct ew_program *program = low->program;

    low->quantised = NO_RANGE;
    if (program->n_ropes)
        add_step(low, EW_CPU_STEP_ROPE_TABLES, 0);
    for (uint32_t i = 0; i < program->n_ops; i++) {
        const struct ew_op *op = &program->ops[i];

        if (op->kind == EW_OP_ATTENTION && op->in2 != EW_SLOT_NONE)
            add_step(low, EW_CPU_STEP_APPEND, i);
        if (op->kind == EW_OP_LINEAR || op->kind == EW_OP_EXPERTS)
            add_linear(low, i);
        else
            add_step(low, EW_CPU_STEP_OP, i);
        if (op->kind == EW_OP_ROUTE)
            add_sort(low, i);
        low->plan->has_states = low->plan->has_states || op->kind == EW_OP_CONV || op->kind == EW_OP_SCAN;
        if (low->operands[i][3] == low->quantised) // changed in place
            low->quantised = NO_RANGE;
    }
}

static enum ew_cpu_stage_kind stage_kind(const struct ew_program *program, const struct ew_cpu_step *step)
{
    enum ew_op_kind kind = program->ops[step->op].kind;

    if (step->kind != EW_CPU_STEP_OP)
        return EW_CPU_STAGE_CHAIN;
    return kind == EW_OP_LINEAR                       ? EW_CPU_STAGE_LINEAR
           : kind == EW_OP_HEADS                      ? EW_CPU_STAGE_HEADS
           : kind == EW_OP_EXPERTS                    ? EW_CPU_STAGE_EXPERTS
           : kind == EW_OP_ATTENTION                  ? EW_CPU_STAGE_ATTENTION
           : kind == EW_OP_CONV || kind == EW_OP_SCAN ? EW_CPU_STAGE_STATE
                                                      : EW_CPU_STAGE_CHAIN;
}

// Which rows a step walks: those of its output, but for steps that only read.
static enum ew_cpu_rows step_rows(const struct ew_cpu_plan *plan, const struct ew_cpu_step *step)
{
    if (step->kind == EW_CPU_STEP_ROPE_TABLES)
        return EW_CPU_ROWS_TOKENS;
    if (step->kind == EW_CPU_STEP_SORT)
        return EW_CPU_ROWS_ONE;
    return plan->buffers[step->kind == EW_CPU_STEP_OP ? step->out : step->in].rows;
}

static bool may_join(const struct ew_cpu_plan *plan, const struct ew_cpu_stage *stage, enum ew_cpu_stage_kind kind,
                     const struct ew_cpu_step *step)
{
    const struct ew_cpu_step *first = &plan->steps[stage->first];

    if (stage->kind != kind || stage->rows != step_rows(plan, step))
        return false;
    if (kind == EW_CPU_STAGE_LINEAR || kind == EW_CPU_STAGE_EXPERTS) // products of one input
        return first->in == step->in;
    return kind == EW_CPU_STAGE_CHAIN;
}

static uint32_t group_stages(const struct ew_cpu_plan *plan, struct ew_cpu_stage *stages, bool fused)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < plan->n_steps; i++) {
        const struct ew_cpu_step *step = &plan->steps[i];
        enum ew_cpu_stage_kind kind = stage_kind(plan->program, step);

        if (fused && n && may_join(plan, &stages[n - 1], kind, step))
            stages[n - 1].count++;
        else
            stages[n++] = (struct ew_cpu_stage){kind, step_rows(plan, step), i, 1};
    }
    return n;
}

static bool allocate(struct lowering *low, struct ew_arena *arena)
{
    uint32_t n_ops = low->program->n_ops, n_steps = 2 * n_ops + 1; // at most one more step an op, and the rope tables
    struct ew_cpu_plan *plan = low->plan;

    plan->buffers = ew_arena_array(arena, n_ops, sizeof(*plan->buffers));
    plan->steps = ew_arena_array(arena, n_steps, sizeof(*plan->steps));
    plan->stages = ew_arena_array(arena, n_steps, sizeof(*plan->stages));
    plan->singles = ew_arena_array(arena, n_steps, sizeof(*plan->singles));
    low->ranges = ew_arena_array(arena, n_ops, sizeof(*low->ranges));
    low->operands = ew_arena_array(arena, n_ops, sizeof(*low->operands));
    low->is_busy = ew_arena_array(arena, n_ops, sizeof(*low->is_busy));
    low->current = ew_arena_array(arena, low->program->n_slots, sizeof(*low->current));
    return plan->buffers && plan->steps && plan->stages && plan->singles && low->ranges && low->operands &&
           low->is_busy && low->current;
}

int ew_cpu_plan_build(struct ew_cpu_plan *plan, const struct ew_program *program, const struct ew_cpu_plan_need *needs,
                      struct ew_arena *arena, struct ew_error *err)
{
    struct lowering low = {.plan = plan, .program = program, .needs = needs};

    *plan = (struct ew_cpu_plan){.program = program};
    if (!allocate(&low, arena))
        return ew_fail_memory(err, (size_t)program->n_ops * 256, "the lowered program");
    find_ranges(&low);
    assign_buffers(&low);
    add_steps(&low);
    plan->n_stages = group_stages(plan, plan->stages, true);
    plan->n_singles = group_stages(plan, plan->singles, false);
    return 0;
}
