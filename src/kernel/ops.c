#include "kernel/ops.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"

const char *ew_op_name(enum ew_op_kind kind)
{
    static const char *const names[EW_OP_COUNT] = {
        [EW_OP_EMBED] = "embed",
        [EW_OP_POSITION] = "position",
        [EW_OP_NORM] = "norm",
        [EW_OP_LINEAR] = "linear",
        [EW_OP_HEADS] = "heads",
        [EW_OP_ROPE] = "rope",
        [EW_OP_ATTENTION] = "attention",
        [EW_OP_ACT] = "act",
        [EW_OP_GLU] = "glu",
        [EW_OP_ADD] = "add",
        [EW_OP_SCALE] = "scale",
        [EW_OP_SOFTCAP] = "softcap",
        [EW_OP_SCALE_BY] = "scale_by",
        [EW_OP_PICK] = "pick",
        [EW_OP_CONV] = "conv",
        [EW_OP_SCAN] = "scan",
        [EW_OP_ROUTE] = "route",
        [EW_OP_DISPATCH] = "dispatch",
        [EW_OP_EXPERTS] = "experts",
        [EW_OP_COMBINE] = "combine",
        [EW_OP_SELECT] = "select",
        [EW_OP_ALL_REDUCE] = "all_reduce",
    };

    return kind < EW_OP_COUNT ? names[kind] : "unknown";
}

void ew_op_label(const struct ew_program *program, const struct ew_op *op, char *out, size_t size)
{
    const char *weight = op->weight != EW_WEIGHT_NONE ? program->weights[op->weight].name : "", *dot;

    if (strncmp(weight, "blk.", 4) == 0 && (dot = strchr(weight + 4, '.')))
        weight = dot + 1;
    snprintf(out, size, "%s%s%s", ew_op_name(op->kind), *weight ? " " : "", weight);
}

const char *ew_cache_kind_name(enum ew_cache_kind kind)
{
    static const char *const names[] = {
        [EW_CACHE_FULL] = "full",   [EW_CACHE_WINDOW] = "window", [EW_CACHE_LATENT] = "latent",
        [EW_CACHE_STATE] = "state", [EW_CACHE_CROSS] = "cross",
    };

    return (size_t)kind < EW_COUNT_OF(names) ? names[kind] : "unknown";
}

static uint32_t width_of(const struct ew_program *program, uint32_t slot)
{
    EW_ASSERT(slot < program->n_slots);
    return program->slot_width[slot];
}

static const struct ew_weight *weight_of(const struct ew_program *program, uint32_t weight, bool is_matrix)
{
    EW_ASSERT(weight < program->n_weights);
    EW_ASSERT(program->weights[weight].is_matrix == is_matrix);
    return &program->weights[weight];
}

// An optional vector of exactly n elements.
static void check_vector(const struct ew_program *program, uint32_t weight, uint64_t n)
{
    if (weight == EW_WEIGHT_NONE)
        return;
    EW_ASSERT(weight_of(program, weight, false)->rows == 1);
    EW_ASSERT(program->weights[weight].cols == n);
}

static void check_norm(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t width = width_of(program, op->in), group = op->norm.group ? op->norm.group : width;

    EW_ASSERT(group > 0 && width % group == 0);
    check_vector(program, op->weight, op->norm.weight_per_group ? width : group);
    check_vector(program, op->bias, op->norm.weight_per_group ? width : group);
}

static void check_linear(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_weight *weight = weight_of(program, op->weight, true);

    EW_ASSERT(weight->cols == width_of(program, op->in));
    EW_ASSERT(weight->rows == width_of(program, op->out));
    check_vector(program, op->bias, weight->rows);
    EW_ASSERT(op->in != op->out);
}

static void check_heads(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_weight *weight = weight_of(program, op->weight, true);
    uint32_t n = op->heads.n_heads, rows;

    EW_ASSERT(ew_dtype_info(weight->source.dtype)->block_elements == 1);
    EW_ASSERT(n > 0 && weight->n_heads == n && weight->rows % n == 0 && op->in != op->out);
    rows = (uint32_t)(weight->rows / n);
    EW_ASSERT(width_of(program, op->in) == n * op->heads.in_dim && width_of(program, op->out) == n * op->heads.out_dim);
    EW_ASSERT(weight->cols <= op->heads.in_dim && rows <= op->heads.out_dim);
    EW_ASSERT(op->heads.in_dim - weight->cols == op->heads.out_dim - rows);
}

static void check_route(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t n = op->route.n_experts, groups = op->route.n_groups;

    EW_ASSERT(n > 0 && op->route.n_active > 0 && op->route.n_active <= n && n <= EW_EXPERTS_MAX);
    EW_ASSERT(op->route.n_active <= EW_EXPERTS_ACTIVE_MAX);
    EW_ASSERT(groups <= 1 || (n % groups == 0 && op->route.n_groups_active <= groups &&
                              op->route.n_groups_active * (n / groups) >= op->route.n_active));
    EW_ASSERT(width_of(program, op->in) == n && width_of(program, op->out) == 2 * op->route.n_active);
    check_vector(program, op->bias, n);
}

static void check_experts(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_weight *weight = weight_of(program, op->weight, true);
    uint32_t out = width_of(program, op->out);

    EW_ASSERT(weight->n_experts > 0 && weight->rows == (uint64_t)weight->n_experts * out);
    EW_ASSERT(weight->cols == width_of(program, op->in) && op->in != op->out);
    if (op->bias != EW_WEIGHT_NONE) {
        const struct ew_weight *bias = weight_of(program, op->bias, false);

        EW_ASSERT(bias->rows == weight->n_experts && bias->cols == out);
    }
}

static void check_rope(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_rope *rope;

    EW_ASSERT(op->in == op->out);
    EW_ASSERT(op->rope.table < program->n_ropes);
    rope = &program->ropes[op->rope.table];
    EW_ASSERT(width_of(program, op->in) == op->rope.n_heads * op->rope.head_dim);
    EW_ASSERT(rope->n_dims % 2 == 0 && rope->n_dims > 0 && rope->freq_short);
    EW_ASSERT(op->rope.first + rope->n_dims <= op->rope.head_dim);
}

static void check_attention(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t kv = op->attention.n_kv_heads, heads = op->attention.n_heads, k_dim = op->attention.head_dim;
    const struct ew_cache_group *group = program->n_groups ? &program->groups[op->attention.group] : NULL;

    EW_ASSERT(kv > 0 && heads % kv == 0);
    EW_ASSERT(width_of(program, op->in) == heads * op->attention.head_dim);
    EW_ASSERT(width_of(program, op->out) == heads * op->attention.v_dim);
    EW_ASSERT((op->in2 == EW_SLOT_NONE) == (op->in3 == EW_SLOT_NONE));
    if (group) { // an encoder needs none
        EW_ASSERT(op->attention.group < program->n_groups);
        EW_ASSERT(op->attention.cache_layer < group->n_layers);
        if (group->kind == EW_CACHE_LATENT)
            k_dim -= op->attention.v_dim;
        EW_ASSERT(group->n_kv_heads == kv && group->k_dim == k_dim && group->v_dim == op->attention.v_dim);
    }
    if (op->in2 != EW_SLOT_NONE) {
        EW_ASSERT(width_of(program, op->in2) == kv * k_dim);
        EW_ASSERT(width_of(program, op->in3) == kv * op->attention.v_dim);
    }
    check_vector(program, op->attention.sinks, heads);
}

static void check_pick(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t width = 0;

    EW_ASSERT(op->in != op->out && op->pick.n_pieces <= EW_COUNT_OF(op->pick.first));
    for (uint32_t i = 0; i < op->pick.n_pieces; i++) {
        EW_ASSERT(op->pick.first[i] + op->pick.width[i] <= op->pick.stride);
        width += op->pick.width[i];
    }
    EW_ASSERT(width_of(program, op->in) == op->pick.n_groups * op->pick.stride);
    EW_ASSERT(width_of(program, op->out) == op->pick.n_groups * width);
}

static const struct ew_cache_group *state_of(const struct ew_program *program, uint32_t group, uint32_t layer)
{
    EW_ASSERT(group < program->n_groups && program->groups[group].kind == EW_CACHE_STATE);
    EW_ASSERT(layer < program->groups[group].n_layers);
    return &program->groups[group];
}

static void check_conv(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_cache_group *group = state_of(program, op->conv.group, op->conv.cache_layer);
    uint32_t width = width_of(program, op->out);

    EW_ASSERT(op->conv.n_taps > 0 && op->conv.n_taps <= EW_CONV_TAPS_MAX);
    EW_ASSERT(width_of(program, op->in) == width && op->in != op->out);
    EW_ASSERT((uint64_t)(op->conv.n_taps - 1) * width * sizeof(float) <= group->state_bytes);
    EW_ASSERT(op->weight != EW_WEIGHT_NONE);
    check_vector(program, op->weight, (uint64_t)width * op->conv.n_taps);
    check_vector(program, op->bias, width);
}

static void check_scan(const struct ew_program *program, const struct ew_op *op)
{
    const struct ew_cache_group *group = state_of(program, op->scan.group, op->scan.cache_layer);
    uint32_t heads = op->scan.n_heads, groups = op->scan.n_groups, width = width_of(program, op->in);
    uint64_t state = (uint64_t)heads * op->scan.k_dim * op->scan.v_dim;

    EW_ASSERT(groups > 0 && heads % groups == 0);
    EW_ASSERT(op->scan.q_first + groups * op->scan.k_dim <= width);
    EW_ASSERT(op->scan.k_first + groups * op->scan.k_dim <= width);
    EW_ASSERT(op->scan.v_first + heads * op->scan.v_dim <= width);
    EW_ASSERT(width_of(program, op->in2) == heads);
    EW_ASSERT(!op->scan.is_delta || width_of(program, op->in3) == heads);
    EW_ASSERT(width_of(program, op->out) == heads * op->scan.v_dim && op->out != op->in);
    EW_ASSERT((op->scan.state_first + state) * sizeof(float) <= group->state_bytes);
    EW_ASSERT(op->weight != EW_WEIGHT_NONE && op->bias != EW_WEIGHT_NONE);
    check_vector(program, op->weight, heads);
    check_vector(program, op->bias, heads);
    check_vector(program, op->scan.skip, heads);
}

static void check_op(const struct ew_program *program, const struct ew_op *op)
{
    uint32_t out = width_of(program, op->out);

    switch (op->kind) {
    case EW_OP_EMBED:
        EW_ASSERT(weight_of(program, op->weight, true)->cols == out);
        break;
    case EW_OP_POSITION:
        EW_ASSERT(weight_of(program, op->weight, true)->cols == out && width_of(program, op->in) == out);
        break;
    case EW_OP_NORM:
        EW_ASSERT(width_of(program, op->in) == out);
        check_norm(program, op);
        break;
    case EW_OP_LINEAR:
        check_linear(program, op);
        break;
    case EW_OP_HEADS:
        check_heads(program, op);
        break;
    case EW_OP_ROPE:
        check_rope(program, op);
        break;
    case EW_OP_ATTENTION:
        check_attention(program, op);
        break;
    case EW_OP_ROUTE:
        check_route(program, op);
        break;
    case EW_OP_EXPERTS:
        check_experts(program, op);
        break;
    case EW_OP_DISPATCH:
        EW_ASSERT(width_of(program, op->in) == out && op->in2 != EW_SLOT_NONE && op->in != op->out);
        break;
    case EW_OP_COMBINE:
        EW_ASSERT(width_of(program, op->in) == out && op->in != op->out);
        EW_ASSERT(width_of(program, op->in2) == 2 * op->combine.n_active);
        break;
    case EW_OP_PICK:
        check_pick(program, op);
        break;
    case EW_OP_CONV:
        check_conv(program, op);
        break;
    case EW_OP_SCAN:
        check_scan(program, op);
        break;
    case EW_OP_SCALE_BY:
        EW_ASSERT(width_of(program, op->in) == out && op->scale_by.column < width_of(program, op->in2));
        break;
    case EW_OP_GLU:
    case EW_OP_ADD:
        EW_ASSERT(width_of(program, op->in2) == out);
        EW_ASSERT(width_of(program, op->in) == out);
        break;
    case EW_OP_ACT:
    case EW_OP_SCALE:
    case EW_OP_SOFTCAP:
    case EW_OP_SELECT:
    case EW_OP_ALL_REDUCE:
        EW_ASSERT(width_of(program, op->in) == out);
        break;
    case EW_OP_COUNT:
    default:
        EW_ASSERT(!"a known op");
    }
}

void ew_program_check(const struct ew_program *program)
{
    EW_ASSERT(program->n_ops > 0 && program->n_slots > 0);
    EW_ASSERT(program->logits < program->n_slots);
    for (uint32_t i = 0; i < program->n_slots; i++)
        EW_ASSERT(program->slot_width[i] > 0);
    for (uint32_t i = 0; i < program->n_ops; i++)
        check_op(program, &program->ops[i]);
}
