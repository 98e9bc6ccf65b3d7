// Mixers whose past is a state: Mamba-2 (arXiv:2405.21060) and gated delta nets (arXiv:2412.06464). Both are a
// convolution, a recurrence and a gated norm; they differ in the matrices before them, and one gates what the other has
// normed.
#include "model/builder_parts.h"

#include "base/assert.h"

// What goes into a state and what gates its output.
struct state_inputs {
    uint32_t mixed, z, step, gain;      // slots; gain: of the delta rule
    uint32_t q_first, k_first, v_first; // columns of `mixed`
};

// Mamba-2: one matrix for the gate, for v, k and q side by side, and for the steps.
static void build_ssd_inputs(struct builder *b, uint32_t in, struct state_inputs *out)
{
    const struct ew_shape *shape = b->shape;
    uint32_t inner = shape->state_inner, n_k = shape->state_groups * shape->state_k_dim, n_mixed = inner + 2 * n_k;
    struct linear linear = {"ssm_in", inner + n_mixed + shape->state_heads, shape->common.width, shape->state_bias,
                            EW_SHARD_ROW};
    struct piece z = {0, inner}, mixed = {inner, n_mixed}, step = {inner + n_mixed, shape->state_heads};
    uint32_t whole = ew__build_linear(b, &linear, in, ROLE_STATE_IN);

    out->z = ew__build_pick(b, whole, ROLE_STATE_Z, 1, &z, 1);
    out->mixed = ew__build_pick(b, whole, ROLE_STATE_MIXED, 1, &mixed, 1);
    out->step = ew__build_pick(b, whole, ROLE_STATE_STEP, 1, &step, 1);
    out->gain = EW_SLOT_NONE;
    out->v_first = 0, out->k_first = inner, out->q_first = inner + n_k;
}

static void build_delta_gates(struct builder *b, uint32_t in, struct state_inputs *out)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = shape->common.width, n = shape->state_heads, of_group = n / shape->state_groups, whole;
    struct linear both = {"ssm_ba", 2 * n, width, .shard = EW_SHARD_ROW};
    struct linear step = {"ssm_alpha", n, width, .shard = EW_SHARD_ROW};
    struct linear gain = {"ssm_beta", n, width, .shard = EW_SHARD_ROW};
    struct piece gain_piece = {0, of_group}, step_piece = {of_group, of_group};

    if (!shape->state_gates_grouped) {
        out->gain = ew__build_linear(b, &gain, in, ROLE_STATE_GAIN);
        out->step = ew__build_linear(b, &step, in, ROLE_STATE_STEP);
        return;
    }
    whole = ew__build_linear(b, &both, in, ROLE_STATE_GATES);
    out->gain = ew__build_pick(b, whole, ROLE_STATE_GAIN, shape->state_groups, &gain_piece, 1);
    out->step = ew__build_pick(b, whole, ROLE_STATE_STEP, shape->state_groups, &step_piece, 1);
}

static void build_delta_inputs(struct builder *b, uint32_t in, struct state_inputs *out)
{
    const struct ew_shape *shape = b->shape;
    uint32_t groups = shape->state_groups, k = shape->state_k_dim, inner = shape->state_inner, v = inner / groups;
    struct linear whole_linear = {"ssm_in", 2 * (groups * k + inner), shape->common.width, .shard = EW_SHARD_ROW};
    struct linear mixed_linear = {"attn_qkv", 2 * groups * k + inner, shape->common.width, .shard = EW_SHARD_ROW};
    struct linear z_linear = {"attn_gate", inner, shape->common.width, .shard = EW_SHARD_ROW};
    struct piece mixed[] = {{0, k}, {k, k}, {2 * k, v}}, z = {2 * k + v, v};

    if (shape->state_in_grouped) {
        uint32_t whole = ew__build_linear(b, &whole_linear, in, ROLE_STATE_IN);

        out->mixed = ew__build_pick(b, whole, ROLE_STATE_MIXED, groups, mixed, EW_COUNT_OF(mixed));
        out->z = ew__build_pick(b, whole, ROLE_STATE_Z, groups, &z, 1);
    } else {
        out->mixed = ew__build_linear(b, &mixed_linear, in, ROLE_STATE_MIXED);
        out->z = ew__build_linear(b, &z_linear, in, ROLE_STATE_Z);
    }
    build_delta_gates(b, in, out);
    out->q_first = 0, out->k_first = groups * k, out->v_first = 2 * groups * k;
}

static uint32_t build_conv(struct builder *b, uint32_t in, uint32_t group, uint32_t cache_layer)
{
    uint32_t width = b->program->slot_width[in];
    struct ew_op *op = ew__emit(b, EW_OP_CONV, in, ew__slot_of(b, ROLE_STATE_CONVOLVED, width));

    op->weight = ew__add_vector(b, "ssm_conv1d", "", width * b->shape->state_taps, 0);
    if (b->shape->state_conv_bias)
        op->bias = ew__add_vector(b, "ssm_conv1d", ".bias", width, 0);
    op->conv.n_taps = b->shape->state_taps;
    op->conv.act = EW_ACT_SILU;
    op->conv.group = group;
    op->conv.cache_layer = cache_layer;
    return op->out;
}

static uint32_t build_recurrence(struct builder *b, const struct state_inputs *in)
{
    const struct ew_shape *shape = b->shape;
    uint32_t n_heads = shape->state_heads, n_past = (shape->state_taps - 1) * b->program->slot_width[in->mixed];
    struct ew_cache_group wanted = {.kind = EW_CACHE_STATE,
                                    .state_bytes = (n_past + (uint64_t)shape->state_inner * shape->state_k_dim) *
                                                   sizeof(float)};
    uint32_t group = ew__find_group(b, &wanted), cache_layer = b->program->groups[group].n_layers++;
    uint32_t mixed = build_conv(b, in->mixed, group, cache_layer);
    struct ew_op *op = ew__emit(b, EW_OP_SCAN, mixed, ew__slot_of(b, ROLE_STATE_OUT, shape->state_inner));

    op->in2 = in->step;
    op->in3 = in->gain;
    op->weight = ew__add_vector(b, "ssm_a", "", n_heads, 0);
    op->bias = ew__add_vector(b, "ssm_dt", ".bias", n_heads, 0);
    op->scan.n_heads = n_heads;
    op->scan.n_groups = shape->state_groups;
    op->scan.k_dim = shape->state_k_dim;
    op->scan.v_dim = shape->state_v_dim;
    op->scan.q_first = in->q_first, op->scan.k_first = in->k_first, op->scan.v_first = in->v_first;
    op->scan.is_delta = shape->state_rule == EW_STATE_DELTA;
    op->scan.is_tiled = shape->state_heads_tiled;
    op->scan.skip = op->scan.is_delta ? EW_WEIGHT_NONE : ew__add_vector(b, "ssm_d", "", n_heads, 0);
    op->scan.state_first = n_past;
    op->scan.group = group;
    op->scan.cache_layer = cache_layer;
    return op->out;
}

// Its weights are stored whole also where those of the other norms are not.
static uint32_t build_state_norm(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    bool by_head = shape->state_rule == EW_STATE_DELTA;
    struct ew_op *op = ew__emit(b, EW_OP_NORM, in, ew__slot_of(b, ROLE_STATE_NORMED, shape->state_inner));

    op->norm.kind = EW_NORM_RMS;
    op->norm.eps = shape->norm_eps;
    op->norm.group = by_head ? shape->state_v_dim : shape->state_inner / shape->state_groups;
    op->norm.weight_per_group = !by_head;
    op->weight = ew__add_vector(b, "ssm_norm", "", by_head ? shape->state_v_dim : shape->state_inner, 0);
    return op->out;
}

uint32_t ew__build_state(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    struct linear out_linear = {"ssm_out", shape->common.width, shape->state_inner, shape->state_bias, EW_SHARD_COLUMN};
    struct state_inputs inputs;
    uint32_t out;

    if (shape->state_rule == EW_STATE_DELTA) {
        build_delta_inputs(b, in, &inputs);
        out = build_state_norm(b, build_recurrence(b, &inputs));
        ew__build_glu(b, inputs.z, out, EW_ACT_SILU, out);
    } else {
        build_ssd_inputs(b, in, &inputs);
        out = build_recurrence(b, &inputs);
        out = build_state_norm(b, ew__build_glu(b, inputs.z, out, EW_ACT_SILU, out));
    }
    return ew__build_linear(b, &out_linear, out, ROLE_ATTN_OUT);
}
