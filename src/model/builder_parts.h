#pragma once
// What the files that build programs share: slots by role, ops and weights as they are added. For builder*.c alone.

#include "model/builder.h"

#define SLOTS_MAX 64

// What a slot holds. The same role has the same slot in every layer, as long as its width is the same.
enum role {
    ROLE_X,
    ROLE_X_NORMED,
    ROLE_NORMED,
    ROLE_NORMED2,
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_Q_LATENT,
    ROLE_KV_LATENT,
    ROLE_KV_NORMED,
    ROLE_Q_ABSORBED,
    ROLE_MIXED_LATENT,
    ROLE_Q_NORMED,
    ROLE_K_NORMED,
    ROLE_MIXED,
    ROLE_ATTN_OUT,
    ROLE_Q_WHOLE,
    ROLE_Q_GATE,
    ROLE_STATE_IN,
    ROLE_STATE_GATES,
    ROLE_STATE_MIXED,
    ROLE_STATE_Z,
    ROLE_STATE_STEP,
    ROLE_STATE_GAIN,
    ROLE_STATE_CONVOLVED,
    ROLE_STATE_OUT,
    ROLE_STATE_NORMED,
    ROLE_GATE,
    ROLE_UP,
    ROLE_FFN_OUT,
    ROLE_ROUTE_LOGITS,
    ROLE_ROUTES,
    ROLE_PAIRS,
    ROLE_EXPERT_GATE,
    ROLE_EXPERT_UP,
    ROLE_EXPERT_OUT,
    ROLE_EXPERT_SUM,
    ROLE_SHARED_GATE,
    ROLE_POST_NORMED,
    ROLE_SELECTED,
    ROLE_FINAL,
    ROLE_CLASS,
    ROLE_CLASS_NORMED,
    ROLE_DENSE, // by turns: of two equally wide ones each reads the other
    ROLE_DENSE_2,
    ROLE_OTHER_LOGIT,
    ROLE_LOGITS
};

struct builder {
    const struct ew_shape *shape;
    const struct ew_weight_finder *finder;
    struct ew_program *program;
    struct ew_arena *arena;
    struct ew_error *err;
    int rc; // the first failure; everything after it does nothing
    uint32_t ops_max, weights_max;
    enum role roles[SLOTS_MAX]; // of each slot
    uint32_t rope_tables[2];    // by ew_mixer
    const float *alibi;         // [n_heads] slopes, or NULL
    uint16_t layer;             // being built, or UINT16_MAX
};

// A dimension of a layer's matrix product, for names and sharding.
struct linear {
    const char *name; // within the layer, or of the model where outside layers
    uint32_t rows, cols;
    bool has_bias;
    enum ew_shard shard;
    const char *whole; // fused with others under this name, or NULL
    uint32_t first_row, whole_rows;
    uint32_t n_groups, group_rows, group_first; // see struct ew_weight_want
};

// Columns of a slot that come in n_groups groups of `stride`: of each group, pieces.
struct piece {
    uint32_t first, width;
};

uint32_t ew__slot_of(struct builder *b, enum role role, uint32_t width);
struct ew_op *ew__emit(struct builder *b, enum ew_op_kind kind, uint32_t in, uint32_t out);
// A vector of the layer; n_heads: of those that hold a part for each head, else 0.
uint32_t ew__add_vector(struct builder *b, const char *name, const char *suffix, uint32_t cols, uint32_t n_heads);
// The cache group that a layer with such caches has: one for all layers that are equal in this.
uint32_t ew__find_group(struct builder *b, const struct ew_cache_group *wanted);
uint32_t ew__build_linear(struct builder *b, const struct linear *linear, uint32_t in, enum role role);
uint32_t ew__build_pick(struct builder *b, uint32_t in, enum role role, uint32_t n_groups, const struct piece *pieces,
                        uint32_t n_pieces);
uint32_t ew__build_glu(struct builder *b, uint32_t gate, uint32_t up, enum ew_act act, uint32_t out);

// reorder.c: what the LINEARs since op `first` make, taken element by element, is read by the last of them alone. Where
// the columns of that one have an order of their own, the rows of the others get it instead.
void ew__order_rows(struct builder *b, uint32_t first);

// builder_state.c: a layer's mixer whose past is a state, from its normed input to what is added to the residual.
uint32_t ew__build_state(struct builder *b, uint32_t in);
