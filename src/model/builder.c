#include "model/builder_parts.h"

#include <math.h>
#include <stdio.h>

#include "base/assert.h"
#include "model/rope.h"

// Upper bounds of what build_* emit; asserted there.
#define OPS_OUTSIDE_LAYERS 20
#define OPS_PER_LAYER 48
#define WEIGHTS_OUTSIDE_LAYERS 16
#define WEIGHTS_PER_LAYER 32
#define GROUPS_MAX 8 // struct ew_backend_sizes has room for these

uint32_t ew__slot_of(struct builder *b, enum role role, uint32_t width)
{
    struct ew_program *program = b->program;

    for (uint32_t i = 0; i < program->n_slots; i++)
        if (b->roles[i] == role && program->slot_width[i] == width)
            return i;
    EW_ASSERT(program->n_slots < SLOTS_MAX);
    b->roles[program->n_slots] = role;
    program->slot_width[program->n_slots] = width;
    return program->n_slots++;
}

struct ew_op *ew__emit(struct builder *b, enum ew_op_kind kind, uint32_t in, uint32_t out)
{
    struct ew_op *op;

    EW_ASSERT(b->program->n_ops < b->ops_max);
    op = &b->program->ops[b->program->n_ops++];
    *op = (struct ew_op){
        .kind = kind,
        .layer = b->layer,
        .in = in,
        .in2 = EW_SLOT_NONE,
        .in3 = EW_SLOT_NONE,
        .out = out,
        .weight = EW_WEIGHT_NONE,
        .bias = EW_WEIGHT_NONE,
    };
    return op;
}

// "blk.3.NAME", or NAME outside layers; with a suffix.
static const char *full_name(struct builder *b, const char *name, const char *suffix)
{
    char text[96], *copy;
    int len;

    if (b->layer == UINT16_MAX)
        len = snprintf(text, sizeof(text), "%s%s", name, suffix);
    else
        len = snprintf(text, sizeof(text), "blk.%u.%s%s", b->layer, name, suffix);
    EW_ASSERT(len > 0 && (size_t)len < sizeof(text));
    copy = ew_arena_copy(b->arena, text, (size_t)len);
    if (!copy)
        b->rc = ew_fail_memory(b->err, (size_t)len, "a weight's name");
    return copy;
}

static uint32_t add_weight(struct builder *b, const struct ew_weight_want *want, enum ew_shard shard)
{
    struct ew_weight *weight = &b->program->weights[b->program->n_weights];

    if (b->rc)
        return EW_WEIGHT_NONE;
    EW_ASSERT(b->program->n_weights < b->weights_max);
    *weight = (struct ew_weight){
        .name = want->name,
        .rows = want->rows,
        .cols = want->cols,
        .n_experts = want->n_experts,
        .n_heads = want->is_matrix ? want->n_heads : 0,
        .is_matrix = want->is_matrix,
        .shard = shard,
    };
    b->rc = b->finder->find(b->finder->ctx, want, &weight->source, b->err);
    return b->rc ? EW_WEIGHT_NONE : b->program->n_weights++;
}

static void place_in_whole(struct ew_weight_want *want, const struct linear *linear)
{
    want->first_row = linear->first_row;
    want->whole_rows = linear->whole_rows;
    want->n_groups = linear->n_groups;
    want->group_rows = linear->group_rows;
    want->group_first = linear->group_first;
}

static uint32_t add_matrix(struct builder *b, const struct linear *linear)
{
    struct ew_weight_want want = {.rows = linear->rows, .cols = linear->cols, .is_matrix = true};

    want.name = full_name(b, linear->name, "");
    if (linear->whole) {
        want.whole = full_name(b, linear->whole, "");
        place_in_whole(&want, linear);
    }
    return add_weight(b, &want, linear->shard);
}

static uint32_t add_bias(struct builder *b, const struct linear *linear)
{
    struct ew_weight_want want = {.rows = 1, .cols = linear->rows};

    want.name = full_name(b, linear->name, ".bias");
    if (linear->whole) {
        want.whole = full_name(b, linear->whole, ".bias");
        place_in_whole(&want, linear);
    }
    return add_weight(b, &want, linear->shard == EW_SHARD_ROW ? EW_SHARD_ROW : EW_SHARD_NONE);
}

uint32_t ew__add_vector(struct builder *b, const char *name, const char *suffix, uint32_t cols, uint32_t n_heads)
{
    struct ew_weight_want want = {.name = full_name(b, name, suffix), .rows = 1, .cols = cols, .n_heads = n_heads};

    return add_weight(b, &want, EW_SHARD_NONE);
}

static uint32_t build_norm(struct builder *b, const char *name, uint32_t in, enum role role)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = b->program->slot_width[in], out = ew__slot_of(b, role, width);
    struct ew_op *op = ew__emit(b, EW_OP_NORM, in, out);

    op->norm.kind = shape->norm;
    op->norm.eps = shape->norm_eps;
    op->norm.weight_offset = shape->norm_weight_offset;
    op->weight = ew__add_vector(b, name, "", width, 0);
    if (shape->norm_bias)
        op->bias = ew__add_vector(b, name, ".bias", width, 0);
    return out;
}

// Of q or k, before positions enter.
static uint32_t build_qk_norm(struct builder *b, const char *name, uint32_t in, enum role role, uint32_t n_heads)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = b->program->slot_width[in], out;
    bool own = shape->qk_norm == EW_QK_NORM_HEAD_OWN;
    struct ew_op *op;

    if (shape->qk_norm == EW_QK_NORM_NONE)
        return in;
    if (shape->qk_norm == EW_QK_NORM_PLAIN && shape->layers[b->layer].no_rope)
        return in;
    out = ew__slot_of(b, role, width);
    op = ew__emit(b, EW_OP_NORM, in, out);
    op->norm.kind = shape->norm;
    op->norm.eps = shape->norm_eps;
    op->norm.weight_offset = shape->norm_weight_offset;
    op->norm.group = shape->qk_norm == EW_QK_NORM_ROW ? 0 : shape->common.head_dim;
    op->norm.weight_per_group = own;
    if (shape->qk_norm == EW_QK_NORM_PLAIN)
        return out;
    op->weight = ew__add_vector(b, name, "", shape->qk_norm == EW_QK_NORM_HEAD ? shape->common.head_dim : width,
                                own ? n_heads : 0);
    return out;
}

uint32_t ew__build_linear(struct builder *b, const struct linear *linear, uint32_t in, enum role role)
{
    uint32_t out = ew__slot_of(b, role, linear->rows);
    struct ew_op *op = ew__emit(b, EW_OP_LINEAR, in, out);

    op->weight = add_matrix(b, linear);
    if (linear->has_bias)
        op->bias = add_bias(b, linear);
    if (linear->shard == EW_SHARD_COLUMN) // each device has a part of every sum
        ew__emit(b, EW_OP_ALL_REDUCE, out, out);
    return out;
}

// Keeps a slot's values within +-limit, where there is one.
static void build_clip(struct builder *b, uint32_t slot, float limit)
{
    struct ew_op *op;

    if (!(limit > 0))
        return;
    op = ew__emit(b, EW_OP_ACT, slot, slot);
    op->act.act = EW_ACT_NONE;
    op->act.limit = limit;
}

// Rotates the elements of each head from `first` on.
static void build_rope(struct builder *b, uint32_t slot, uint32_t n_heads, uint32_t first)
{
    const struct ew_layer_shape *layer = &b->shape->layers[b->layer];
    struct ew_op *op;

    if (layer->no_rope)
        return;
    op = ew__emit(b, EW_OP_ROPE, slot, slot);
    op->rope.n_heads = n_heads;
    op->rope.head_dim = b->program->slot_width[slot] / n_heads;
    op->rope.first = first;
    op->rope.table = b->rope_tables[layer->mixer];
}

// The cache group of this layer: one for all layers with equal caches.
uint32_t ew__find_group(struct builder *b, const struct ew_cache_group *wanted)
{
    struct ew_program *program = b->program;

    for (uint32_t i = 0; i < program->n_groups; i++) {
        const struct ew_cache_group *group = &program->groups[i];

        if (group->kind == wanted->kind && group->window == wanted->window && group->n_kv_heads == wanted->n_kv_heads &&
            group->k_dim == wanted->k_dim && group->v_dim == wanted->v_dim && group->state_bytes == wanted->state_bytes)
            return i;
    }
    EW_ASSERT(program->n_groups < GROUPS_MAX); // a shape has three kinds of cache at most
    program->groups[program->n_groups] = *wanted;
    return program->n_groups++;
}

// What the heads of q see of a cache group like `wanted`.
static uint32_t build_cached(struct builder *b, const struct ew_cache_group *wanted, uint32_t q, uint32_t k, uint32_t v,
                             enum role role)
{
    const struct ew_shape *shape = b->shape;
    const struct ew_model_shape *c = &shape->common;
    uint32_t out = ew__slot_of(b, role, c->n_heads * wanted->v_dim);
    struct ew_op *op = ew__emit(b, EW_OP_ATTENTION, q, out);

    op->in2 = k;
    op->in3 = v;
    op->attention.n_heads = c->n_heads;
    op->attention.n_kv_heads = wanted->n_kv_heads;
    op->attention.head_dim = b->program->slot_width[q] / c->n_heads;
    op->attention.v_dim = wanted->v_dim;
    op->attention.scale = shape->attention_scale;
    op->attention.softcap = shape->attention_softcap;
    op->attention.window = wanted->window;
    if (!shape->uncached) {
        op->attention.group = ew__find_group(b, wanted);
        op->attention.cache_layer = b->program->groups[op->attention.group].n_layers++;
    }
    op->attention.mask = shape->encoder ? EW_MASK_BIDIRECTIONAL : EW_MASK_CAUSAL;
    op->attention.sinks = shape->attention_sinks ? ew__add_vector(b, "attn_sinks", "", c->n_heads, 0) : EW_WEIGHT_NONE;
    op->attention.alibi = b->alibi;
    if (!shape->layers[b->layer].no_rope)
        op->attention.chunk = shape->chunk;
    if (shape->q_scale_beta > 0 && (shape->layers[b->layer].no_rope || !shape->q_scale_no_rope_only)) {
        op->attention.q_scale_beta = shape->q_scale_beta;
        op->attention.q_scale_offset = shape->q_scale_offset;
        op->attention.q_scale_floor = shape->q_scale_floor ? shape->q_scale_floor
                                                           : shape->ropes[EW_MIXER_FULL].context_original;
    }
    return out;
}

static uint32_t build_mixer(struct builder *b, uint32_t q, uint32_t k, uint32_t v)
{
    const struct ew_shape *shape = b->shape;
    bool windowed = shape->layers[b->layer].mixer == EW_MIXER_WINDOW;
    struct ew_cache_group group = {
        .kind = windowed ? EW_CACHE_WINDOW : EW_CACHE_FULL,
        .window = windowed ? shape->window : 0,
        .n_kv_heads = shape->common.n_kv_heads,
        .k_dim = shape->common.head_dim,
        .v_dim = shape->v_dim,
    };

    return build_cached(b, &group, q, k, v, ROLE_MIXED);
}

// ---- attention over latents (DeepSeek 2, arXiv:2405.04434, section 2.1) --------------------------------------------
//
// A token's keys and values are products of its latent, and the cache holds the latent alone, with the rotated part of
// the keys that all heads share. The matrix that makes a head's keys is applied to the head's query instead, and that
// which makes its values to the sum of latents: the same sums in another order, and the same order for prompts and
// single tokens.

// A matrix for each head, part of attn_kv_b where a file has them together.
static uint32_t build_heads(struct builder *b, const struct linear *linear, bool is_transposed, uint32_t in,
                            enum role role)
{
    uint32_t n = b->shape->common.n_heads, in_dim = b->program->slot_width[in] / n,
             out_dim = linear->rows + in_dim - linear->cols, out = ew__slot_of(b, role, n * out_dim);
    struct ew_weight_want want = {.name = full_name(b, linear->name, ""),
                                  .whole = full_name(b, linear->whole, ""),
                                  .rows = (uint64_t)n * linear->rows,
                                  .cols = linear->cols,
                                  .n_heads = n,
                                  .is_matrix = true,
                                  .is_transposed = is_transposed};
    struct ew_op *op = ew__emit(b, EW_OP_HEADS, in, out);

    place_in_whole(&want, linear);
    op->heads.n_heads = n;
    op->heads.in_dim = in_dim;
    op->heads.out_dim = out_dim;
    op->weight = add_weight(b, &want, linear->shard);
    return out;
}

// The queries, from the input or from a latent of their own.
static uint32_t build_latent_q(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    uint32_t n = shape->common.n_heads * shape->common.head_dim;
    struct linear whole = {"attn_q", n, shape->common.width, false, EW_SHARD_ROW};
    struct linear down = {"attn_q_a", shape->q_latent, shape->common.width, shape->bias_qkv};
    struct linear up = {"attn_q_b", n, shape->q_latent, false, EW_SHARD_ROW};

    if (!shape->q_latent)
        return ew__build_linear(b, &whole, in, ROLE_Q);
    in = build_norm(b, "attn_q_a_norm", ew__build_linear(b, &down, in, ROLE_Q_LATENT), ROLE_Q_NORMED);
    return ew__build_linear(b, &up, in, ROLE_Q);
}

static uint32_t build_latent_attention(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    const struct ew_model_shape *c = &shape->common;
    uint32_t latent = shape->kv_latent, rotated = shape->ropes[EW_MIXER_FULL].n_dims, plain = c->head_dim - rotated,
             both = plain + shape->v_dim, kv_rows = latent + rotated;
    struct linear latent_linear = {"attn_kv_a",   latent,          c->width, shape->bias_qkv,
                                   EW_SHARD_NONE, "attn_kv_a_mqa", 0,        kv_rows};
    struct linear rotated_linear = {"attn_k_rope", rotated,         c->width, shape->bias_qkv,
                                    EW_SHARD_NONE, "attn_kv_a_mqa", latent,   kv_rows};
    struct linear k_linear = {"attn_k_b",        latent,     plain, false, EW_SHARD_ROW, "attn_kv_b", 0,
                              c->n_heads * both, c->n_heads, plain, 0};
    struct linear v_linear = {"attn_v_b", shape->v_dim,      latent,     false,        EW_SHARD_ROW, "attn_kv_b",
                              0,          c->n_heads * both, c->n_heads, shape->v_dim, plain};
    struct linear out_linear = {"attn_output", c->width, c->n_heads * shape->v_dim, shape->bias_attn_output,
                                EW_SHARD_COLUMN};
    struct ew_cache_group group = {.kind = EW_CACHE_LATENT, .n_kv_heads = 1, .k_dim = rotated, .v_dim = latent};
    uint32_t q = build_latent_q(b, in), v = ew__build_linear(b, &latent_linear, in, ROLE_KV_LATENT),
             k = ew__build_linear(b, &rotated_linear, in, ROLE_K), out;

    v = build_norm(b, "attn_kv_a_norm", v, ROLE_KV_NORMED);
    q = build_heads(b, &k_linear, true, q, ROLE_Q_ABSORBED);
    build_rope(b, q, c->n_heads, latent);
    build_rope(b, k, 1, 0);
    out = build_cached(b, &group, q, k, v, ROLE_MIXED_LATENT);
    return ew__build_linear(b, &out_linear, build_heads(b, &v_linear, false, out, ROLE_MIXED), ROLE_ATTN_OUT);
}

uint32_t ew__build_pick(struct builder *b, uint32_t in, enum role role, uint32_t n_groups, const struct piece *pieces,
                        uint32_t n_pieces)
{
    uint32_t width = 0;
    struct ew_op *op;

    for (uint32_t i = 0; i < n_pieces; i++)
        width += pieces[i].width;
    op = ew__emit(b, EW_OP_PICK, in, ew__slot_of(b, role, n_groups * width));
    op->pick.n_groups = n_groups;
    op->pick.stride = b->program->slot_width[in] / n_groups;
    op->pick.n_pieces = n_pieces;
    for (uint32_t i = 0; i < n_pieces; i++)
        op->pick.first[i] = pieces[i].first, op->pick.width[i] = pieces[i].width;
    return op->out;
}

uint32_t ew__build_glu(struct builder *b, uint32_t gate, uint32_t up, enum ew_act act, uint32_t out)
{
    struct ew_op *op = ew__emit(b, EW_OP_GLU, gate, out);

    op->in2 = up;
    op->act.act = act;
    return out;
}

// q's matrix has, after each head, as many rows again: the gate of what that head gives.
static uint32_t build_gated_q(struct builder *b, const struct linear *linear, uint32_t in, uint32_t *gate)
{
    uint32_t n_heads = b->shape->common.n_heads, head_dim = b->shape->common.head_dim, whole;
    struct linear wide = *linear;
    struct piece first = {0, head_dim}, second = {head_dim, head_dim};

    wide.rows *= 2;
    wide.whole = NULL;
    whole = ew__build_linear(b, &wide, in, ROLE_Q_WHOLE);
    *gate = ew__build_pick(b, whole, ROLE_Q_GATE, n_heads, &second, 1);
    return ew__build_pick(b, whole, ROLE_Q, n_heads, &first, 1);
}

static uint32_t build_plain_attention(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    const struct ew_model_shape *c = &shape->common;
    uint32_t n_q = c->n_heads * c->head_dim, n_k = c->n_kv_heads * c->head_dim, n_v = c->n_kv_heads * shape->v_dim,
             whole = n_q + n_k + n_v;
    uint32_t groups = c->n_kv_heads, q_rows = n_q / groups;
    struct linear q_linear = {"attn_q", n_q,    c->width, shape->bias_qkv, EW_SHARD_ROW, "attn_qkv", 0, whole,
                              groups,   q_rows, 0};
    struct linear k_linear = {"attn_k", n_k,   c->width, shape->bias_qkv, EW_SHARD_ROW, "attn_qkv",
                              n_q,      whole, groups,   c->head_dim,     q_rows};
    struct linear v_linear = {"attn_v",  n_v,   c->width, shape->bias_qkv, EW_SHARD_ROW,        "attn_qkv",
                              n_q + n_k, whole, groups,   shape->v_dim,    q_rows + c->head_dim};
    struct linear out_linear = {"attn_output", c->width, c->n_heads * shape->v_dim, shape->bias_attn_output,
                                EW_SHARD_COLUMN};
    uint32_t gate = EW_SLOT_NONE, q, k, v, mixed;

    q = shape->attention_gate ? build_gated_q(b, &q_linear, in, &gate) : ew__build_linear(b, &q_linear, in, ROLE_Q);
    k = ew__build_linear(b, &k_linear, in, ROLE_K);
    v = ew__build_linear(b, &v_linear, in, ROLE_V);

    build_clip(b, q, shape->clip_qkv);
    build_clip(b, k, shape->clip_qkv);
    build_clip(b, v, shape->clip_qkv);
    q = build_qk_norm(b, "attn_q_norm", q, ROLE_Q_NORMED, c->n_heads);
    k = build_qk_norm(b, "attn_k_norm", k, ROLE_K_NORMED, c->n_kv_heads);
    build_rope(b, q, c->n_heads, 0);
    build_rope(b, k, c->n_kv_heads, 0);
    mixed = build_mixer(b, q, k, v);
    if (gate != EW_SLOT_NONE)
        ew__build_glu(b, gate, mixed, EW_ACT_SIGMOID, mixed);
    return ew__build_linear(b, &out_linear, mixed, ROLE_ATTN_OUT);
}

static uint32_t build_attention(struct builder *b, uint32_t in)
{
    return b->shape->kv_latent ? build_latent_attention(b, in) : build_plain_attention(b, in);
}

static uint32_t build_dense(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = shape->common.width,
             n = shape->layers[b->layer].ffn_width ? shape->layers[b->layer].ffn_width : shape->common.ffn_width;
    struct linear gate_linear = {"ffn_gate", n, width, shape->bias_ffn, EW_SHARD_ROW, "ffn_gate_up", 0, 2 * n};
    struct linear up_linear = {"ffn_up", n, width, shape->bias_ffn, EW_SHARD_ROW, "ffn_gate_up", n, 2 * n};
    struct linear down_linear = {"ffn_down", width, n, shape->bias_ffn, EW_SHARD_COLUMN};
    uint32_t gate, up, out, first = b->program->n_ops;
    struct ew_op *op;

    if (shape->ffn_plain) {
        up_linear.whole = NULL;
        gate = up = ew__build_linear(b, &up_linear, in, ROLE_UP);
        op = ew__emit(b, EW_OP_ACT, up, up);
    } else {
        gate = ew__build_linear(b, &gate_linear, in, ROLE_GATE);
        up = ew__build_linear(b, &up_linear, in, ROLE_UP);
        op = ew__emit(b, EW_OP_GLU, gate, gate);
        op->in2 = up;
    }
    op->act.act = shape->act;
    out = ew__build_linear(b, &down_linear, gate, ROLE_FFN_OUT);
    ew__order_rows(b, first);
    return out;
}

// ---- mixtures of experts ------------------------------------------------------------------------

// One matrix of every expert; rows and cols are of one. `whole`: all of them side by side with others, as above.
static uint32_t build_experts(struct builder *b, const struct linear *linear, uint32_t in, enum role role)
{
    uint32_t n = b->shape->n_experts, out = ew__slot_of(b, role, linear->rows);
    struct ew_weight_want want = {.rows = (uint64_t)n * linear->rows,
                                  .cols = linear->cols,
                                  .n_experts = n,
                                  .is_matrix = true,
                                  .name = full_name(b, linear->name, "")};
    struct ew_op *op = ew__emit(b, EW_OP_EXPERTS, in, out);

    if (linear->whole)
        want.whole = full_name(b, linear->whole, "");
    place_in_whole(&want, linear);
    op->weight = add_weight(b, &want, linear->shard);
    if (!linear->has_bias)
        return out;
    want.name = full_name(b, linear->name, ".bias");
    want.whole = linear->whole ? full_name(b, linear->whole, ".bias") : NULL;
    want.rows = n;
    want.cols = linear->rows;
    want.is_matrix = false;
    op->bias = add_weight(b, &want, linear->shard);
    return out;
}

static uint32_t build_route(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    struct linear linear = {"ffn_gate_inp", shape->n_experts, shape->common.width, shape->bias_route};
    uint32_t logits = ew__build_linear(b, &linear, in, ROLE_ROUTE_LOGITS);
    uint32_t out = ew__slot_of(b, ROLE_ROUTES, 2 * shape->n_experts_active);
    struct ew_op *op = ew__emit(b, EW_OP_ROUTE, logits, out);

    op->route.n_experts = shape->n_experts;
    op->route.n_active = shape->n_experts_active;
    op->route.score = shape->route_score;
    op->route.normalise = shape->route_normalise;
    op->route.scale = shape->route_scale;
    op->route.jitter = shape->route_jitter;
    op->route.n_groups = shape->route_groups;
    op->route.n_groups_active = shape->route_groups_active;
    if (shape->route_choice_bias)
        op->bias = ew__add_vector(b, "exp_probs_b", ".bias", shape->n_experts, 0);
    return out;
}

static void set_glu(struct builder *b, struct ew_op *op, uint32_t up)
{
    op->in2 = up;
    op->act.act = b->shape->act;
    op->act.limit = b->shape->glu_limit;
    op->act.alpha = b->shape->glu_alpha;
}

static uint32_t build_routed(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = shape->common.width, n = shape->expert_width, routes = build_route(b, in);
    struct linear gate_linear = {"ffn_gate_exps",    n, width, shape->bias_experts, EW_SHARD_ROW,
                                 "ffn_gate_up_exps", 0, 2 * n, .n_groups = n,       .group_rows = 1,
                                 .group_first = 0};
    struct linear up_linear = {"ffn_up_exps",      n, width, shape->bias_experts, EW_SHARD_ROW,
                               "ffn_gate_up_exps", n, 2 * n, .n_groups = n,       .group_rows = 1,
                               .group_first = 1};
    struct linear down_linear = {"ffn_down_exps", width, n, shape->bias_experts, EW_SHARD_COLUMN};
    uint32_t pairs = ew__slot_of(b, ROLE_PAIRS, width), gate, up, out;
    struct ew_op *op;

    if (shape->route_input) { // one expert a token: checked by finish
        op = ew__emit(b, EW_OP_SCALE_BY, in, ew__slot_of(b, ROLE_EXPERT_SUM, width));
        op->in2 = routes;
        op->scale_by.column = shape->n_experts_active;
        in = op->out;
    }
    ew__emit(b, EW_OP_DISPATCH, in, pairs)->in2 = routes;
    if (shape->ffn_plain) {
        up_linear.whole = NULL;
        gate = build_experts(b, &up_linear, pairs, ROLE_EXPERT_UP);
        ew__emit(b, EW_OP_ACT, gate, gate)->act.act = shape->act;
    } else {
        gate = build_experts(b, &gate_linear, pairs, ROLE_EXPERT_GATE);
        up = build_experts(b, &up_linear, pairs, ROLE_EXPERT_UP);
        set_glu(b, ew__emit(b, EW_OP_GLU, gate, gate), up);
    }
    out = build_experts(b, &down_linear, gate, ROLE_EXPERT_OUT);
    op = ew__emit(b, EW_OP_COMBINE, out, ew__slot_of(b, ROLE_FFN_OUT, width));
    op->in2 = routes;
    op->combine.n_active = shape->n_experts_active;
    op->combine.is_plain = shape->route_input;
    return op->out;
}

static uint32_t build_shared(struct builder *b, uint32_t in)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = shape->common.width, n = shape->shared_width, gate, up, out, weight;
    struct linear gate_linear = {"ffn_gate_shexp", n, width, false, EW_SHARD_ROW};
    struct linear up_linear = {"ffn_up_shexp", n, width, false, EW_SHARD_ROW};
    struct linear down_linear = {"ffn_down_shexp", width, n, false, EW_SHARD_COLUMN};
    struct linear weight_linear = {"ffn_gate_inp_shexp", 1, width};
    struct ew_op *op;

    if (shape->ffn_plain) {
        gate = ew__build_linear(b, &up_linear, in, ROLE_UP);
        ew__emit(b, EW_OP_ACT, gate, gate)->act.act = shape->act;
    } else {
        gate = ew__build_linear(b, &gate_linear, in, ROLE_GATE);
        up = ew__build_linear(b, &up_linear, in, ROLE_UP);
        set_glu(b, ew__emit(b, EW_OP_GLU, gate, gate), up);
    }
    out = ew__build_linear(b, &down_linear, gate, ROLE_EXPERT_SUM);
    if (!shape->shared_gate)
        return out;
    weight = ew__build_linear(b, &weight_linear, in, ROLE_SHARED_GATE);
    ew__emit(b, EW_OP_ACT, weight, weight)->act.act = EW_ACT_SIGMOID;
    op = ew__emit(b, EW_OP_SCALE_BY, out, out);
    op->in2 = weight;
    return out;
}

static uint32_t build_moe(struct builder *b, uint32_t in)
{
    uint32_t out = build_routed(b, in), shared;
    struct ew_op *op;

    if (!b->shape->shared_width)
        return out;
    shared = build_shared(b, in);
    op = ew__emit(b, EW_OP_ADD, out, out);
    op->in2 = shared;
    op->add.scale = 1;
    return out;
}

static uint32_t build_ffn(struct builder *b, uint32_t in)
{
    bool has_experts = b->shape->n_experts && !b->shape->layers[b->layer].dense;

    return has_experts ? build_moe(b, in) : build_dense(b, in);
}

static void build_residual(struct builder *b, uint32_t x, uint32_t add)
{
    struct ew_op *op = ew__emit(b, EW_OP_ADD, x, x);

    op->in2 = add;
    op->add.scale = b->shape->residual_scale;
}

static void build_parallel_layer(struct builder *b, uint32_t x)
{
    uint32_t normed = build_norm(b, "attn_norm", x, ROLE_NORMED);
    uint32_t ffn_in = b->shape->parallel_own_norm ? build_norm(b, "ffn_norm", x, ROLE_NORMED2) : normed;
    uint32_t attention = build_attention(b, normed), ffn = build_ffn(b, ffn_in);

    build_residual(b, x, attention);
    build_residual(b, x, ffn);
}

static void build_sequential_layer(struct builder *b, uint32_t x)
{
    const struct ew_layer_shape *layer = &b->shape->layers[b->layer];
    bool pre = b->shape->norm_place != EW_NORM_PLACE_POST, post = b->shape->norm_place != EW_NORM_PLACE_PRE;
    bool plain = !pre || (b->shape->first_norm_none && b->layer == 0);
    uint32_t part, in;

    if (layer->mixer != EW_MIXER_NONE) {
        in = plain ? x : build_norm(b, "attn_norm", x, ROLE_NORMED);
        part = layer->mixer == EW_MIXER_STATE ? ew__build_state(b, in) : build_attention(b, in);
        build_residual(b, x, post ? build_norm(b, "post_attention_norm", part, ROLE_POST_NORMED) : part);
    }
    if (layer->no_ffn)
        return;
    in = pre ? build_norm(b, b->shape->single_part ? "attn_norm" : "ffn_norm", x, ROLE_NORMED) : x;
    part = build_ffn(b, in);
    build_residual(b, x, post ? build_norm(b, "post_ffw_norm", part, ROLE_POST_NORMED) : part);
}

// Both norms stand behind the sums: bert.
static uint32_t build_around_layer(struct builder *b, uint32_t x)
{
    uint32_t normed;

    build_residual(b, x, build_attention(b, x));
    normed = build_norm(b, "attn_output_norm", x, ROLE_NORMED);
    build_residual(b, normed, build_ffn(b, normed));
    return build_norm(b, "layer_output_norm", normed, ROLE_X_NORMED);
}

static uint32_t build_embedding(struct builder *b, uint32_t *weight)
{
    const struct ew_model_shape *c = &b->shape->common;
    struct linear embed = {"token_embd", c->n_vocab, c->width};
    uint32_t x = ew__slot_of(b, ROLE_X, c->width);
    struct ew_op *op = ew__emit(b, EW_OP_EMBED, EW_SLOT_NONE, x);

    op->embed.scale = b->shape->embed_scale;
    op->weight = *weight = add_matrix(b, &embed);
    if (b->shape->position_learned) {
        struct linear positions = {"position_embd", c->context_trained + b->shape->position_first, c->width};

        op = ew__emit(b, EW_OP_POSITION, x, x);
        op->position.first = (int32_t)b->shape->position_first;
        op->weight = add_matrix(b, &positions);
    }
    if (b->shape->n_segments) {
        struct linear segments = {"token_types", b->shape->n_segments, c->width};

        op = ew__emit(b, EW_OP_POSITION, x, x);
        op->position.by_segment = true;
        op->weight = add_matrix(b, &segments);
    }
    return b->shape->embed_norm ? build_norm(b, "token_embd_norm", x, ROLE_X_NORMED) : x;
}

// The logit of one token: a row of the head's matrix.
static uint32_t build_logit(struct builder *b, uint32_t hidden, int32_t token, enum role role)
{
    const struct ew_shape *shape = b->shape;
    struct linear row = {"cls.token", 1, shape->common.width, shape->bias_head,
                         .whole = shape->common.tied_head ? "token_embd" : "output",
                         .first_row = (uint32_t)token, .whole_rows = shape->common.n_vocab};
    uint32_t logit = ew__build_linear(b, &row, hidden, role);

    if (shape->logit_scale != 1)
        ew__emit(b, EW_OP_SCALE, logit, logit)->mul.scale = shape->logit_scale;
    if (shape->logit_softcap > 0)
        ew__emit(b, EW_OP_SOFTCAP, logit, logit)->softcap.cap = shape->logit_softcap;
    return logit;
}

static uint32_t build_token_score(struct builder *b, uint32_t hidden)
{
    const int32_t *tokens = b->shape->class_tokens;
    uint32_t score = build_logit(b, hidden, tokens[0], ROLE_LOGITS), other;
    struct ew_op *op;

    if (tokens[1] < 0)
        return score;
    other = build_logit(b, hidden, tokens[1], ROLE_OTHER_LOGIT);
    op = ew__emit(b, EW_OP_ADD, score, score);
    op->in2 = other;
    op->add.scale = -1;
    return score;
}

static uint32_t build_classifier(struct builder *b, uint32_t hidden)
{
    const struct ew_shape *shape = b->shape;
    uint32_t width = shape->common.width;
    struct linear dense = {"cls", width, width, shape->bias_class};
    struct linear output = {"cls.output", shape->n_labels, width, shape->bias_labels};

    if (!shape->class_direct) {
        hidden = ew__build_linear(b, &dense, hidden, ROLE_CLASS);
        ew__emit(b, EW_OP_ACT, hidden, hidden)->act.act = shape->class_act;
    }
    if (!shape->class_direct && shape->class_norm)
        hidden = build_norm(b, "cls.norm", hidden, ROLE_CLASS_NORMED);
    return ew__build_linear(b, &output, hidden, ROLE_LOGITS);
}

// sentence-transformers' Dense modules.
static uint32_t build_further(struct builder *b, uint32_t hidden)
{
    for (uint32_t i = 0; i < b->shape->n_dense; i++) {
        const struct ew_dense_shape *shape = &b->shape->dense[i];
        char name[16];
        struct linear dense = {name, shape->width, b->program->slot_width[hidden], shape->bias};

        snprintf(name, sizeof(name), "dense_%u", i + 2);
        hidden = ew__build_linear(b, &dense, hidden, i % 2 ? ROLE_DENSE_2 : ROLE_DENSE);
        if (shape->act != EW_ACT_NONE)
            ew__emit(b, EW_OP_ACT, hidden, hidden)->act.act = shape->act;
    }
    return hidden;
}

// The hidden state of the wanted tokens or the mean of it, and what a classifier or further modules make of that.
static void build_hidden(struct builder *b, uint32_t x)
{
    const struct ew_shape *shape = b->shape;
    uint32_t selected = ew__slot_of(b, ROLE_SELECTED, shape->common.width);
    bool has_norm = shape->norm_place != EW_NORM_PLACE_AROUND;

    if (has_norm && shape->select_mean) // of what is normed
        x = build_norm(b, "output_norm", x, ROLE_FINAL);
    ew__emit(b, EW_OP_SELECT, x, selected)->select.is_mean = shape->select_mean;
    if (has_norm && !shape->select_mean)
        selected = build_norm(b, "output_norm", selected, ROLE_FINAL);
    if (shape->head == EW_HEAD_SCORES)
        b->program->logits = shape->class_tokens[0] < 0 ? build_classifier(b, selected)
                                                        : build_token_score(b, selected);
    else
        b->program->logits = build_further(b, selected);
}

static void build_head(struct builder *b, uint32_t x, uint32_t embedding)
{
    const struct ew_shape *shape = b->shape;
    struct linear head = {"output", shape->common.n_vocab, shape->common.width, shape->bias_head, EW_SHARD_ROW};
    uint32_t selected = ew__slot_of(b, ROLE_SELECTED, shape->common.width),
             logits = ew__slot_of(b, ROLE_LOGITS, shape->common.n_vocab), normed;
    struct ew_op *op;

    ew__emit(b, EW_OP_SELECT, x, selected);
    normed = build_norm(b, "output_norm", selected, ROLE_FINAL);
    op = ew__emit(b, EW_OP_LINEAR, normed, logits);
    op->weight = shape->common.tied_head ? embedding : add_matrix(b, &head);
    if (shape->bias_head)
        op->bias = add_bias(b, &head);
    if (shape->logit_scale != 1)
        ew__emit(b, EW_OP_SCALE, logits, logits)->mul.scale = shape->logit_scale;
    if (shape->logit_softcap > 0)
        ew__emit(b, EW_OP_SOFTCAP, logits, logits)->softcap.cap = shape->logit_softcap;
    b->program->logits = logits;
}

// One frequency table for each kind of layer that rotates; equal ones are shared.
static void build_rope_tables(struct builder *b)
{
    const struct ew_shape *shape = b->shape;
    bool used[2] = {false, false};

    for (uint32_t i = 0; i < shape->common.n_layers; i++)
        if (!shape->layers[i].no_rope && shape->layers[i].mixer <= EW_MIXER_WINDOW)
            used[shape->layers[i].mixer] = true;
    for (int kind = 0; kind < 2 && !b->rc; kind++) {
        if (!used[kind])
            continue;
        if (kind == EW_MIXER_WINDOW && used[EW_MIXER_FULL] &&
            memcmp(&shape->ropes[0], &shape->ropes[1], sizeof(shape->ropes[0])) == 0) {
            b->rope_tables[kind] = b->rope_tables[EW_MIXER_FULL];
            continue;
        }
        b->rope_tables[kind] = b->program->n_ropes;
        b->rc = ew_rope_build(b->arena, &shape->ropes[kind], shape->rope_kind,
                              &b->program->ropes[b->program->n_ropes++], b->err);
    }
}

// Powers of 2^(-bias_max / n) for n heads, where n is a power of two; the heads beyond it take the odd powers that
// twice as many would have. Section 3 of arXiv:2108.12409 and its published code.
static void build_alibi(struct builder *b)
{
    const struct ew_shape *shape = b->shape;
    uint32_t n_heads = shape->common.n_heads, n = 1;
    double bias_max = (double)shape->alibi_bias_max,
           scale = shape->alibi_scaled ? shape->alibi_scaled * (double)shape->attention_scale : 1;
    float *slopes;

    if (!shape->alibi)
        return;
    slopes = ew_arena_array(b->arena, n_heads, sizeof(*slopes));
    if (!slopes) {
        b->rc = ew_fail_memory(b->err, n_heads * sizeof(*slopes), "the slopes of the heads");
        return;
    }
    while (2 * n <= n_heads)
        n *= 2;
    for (uint32_t i = 0; i < n_heads; i++) {
        double power = i < n ? (i + 1.0) / n : (2.0 * (i - n) + 1) / (2.0 * n);

        slopes[i] = (float)(scale * exp2(-bias_max * power));
    }
    b->alibi = slopes;
}

static int allocate(struct builder *b)
{
    struct ew_program *program = b->program;
    uint32_t n_layers = b->shape->common.n_layers;

    b->ops_max = OPS_OUTSIDE_LAYERS + n_layers * OPS_PER_LAYER;
    b->weights_max = WEIGHTS_OUTSIDE_LAYERS + n_layers * WEIGHTS_PER_LAYER;
    program->ops = ew_arena_array(b->arena, b->ops_max, sizeof(*program->ops));
    program->weights = ew_arena_array(b->arena, b->weights_max, sizeof(*program->weights));
    program->slot_width = ew_arena_array(b->arena, SLOTS_MAX, sizeof(*program->slot_width));
    program->ropes = ew_arena_array(b->arena, EW_COUNT_OF(b->rope_tables), sizeof(*program->ropes));
    program->groups = ew_arena_array(b->arena, GROUPS_MAX, sizeof(*program->groups));
    if (!program->ops || !program->weights || !program->slot_width || !program->ropes || !program->groups)
        return ew_fail_memory(b->err, b->ops_max * sizeof(*program->ops), "the program");
    return 0;
}

// Returns the slot of what the last layer leaves.
static uint32_t build_layers(struct builder *b, uint32_t x)
{
    for (uint32_t i = 0; i < b->shape->common.n_layers && !b->rc; i++) {
        b->layer = (uint16_t)i;
        if (b->shape->parallel)
            build_parallel_layer(b, x);
        else if (b->shape->norm_place == EW_NORM_PLACE_AROUND)
            x = build_around_layer(b, x);
        else
            build_sequential_layer(b, x);
    }
    b->layer = UINT16_MAX;
    return x;
}

int ew_program_build(struct ew_program *program, const struct ew_shape *shape, const struct ew_weight_finder *finder,
                     struct ew_arena *arena, struct ew_error *err)
{
    struct builder b = {
        .shape = shape, .finder = finder, .program = program, .arena = arena, .err = err, .layer = UINT16_MAX};
    uint32_t x, embedding;

    *program = (struct ew_program){.name = shape->common.arch,
                                   .n_vocab = shape->common.n_vocab,
                                   .width = shape->common.width,
                                   .n_position_dims = 1};
    b.rc = allocate(&b);
    if (!b.rc)
        build_rope_tables(&b);
    if (!b.rc)
        build_alibi(&b);
    if (b.rc)
        return b.rc;
    x = build_embedding(&b, &embedding);
    x = build_layers(&b, x);
    if (!b.rc && shape->head == EW_HEAD_LOGITS)
        build_head(&b, x, embedding);
    else if (!b.rc)
        build_hidden(&b, x);
    if (!b.rc)
        ew_program_check(program);
    return b.rc;
}
