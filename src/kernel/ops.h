#pragma once
// What can be computed: the closed list of operations, tensor references, the program (the operations of one forward
// step) and the batch (what one step works on). Everything a backend needs to know stands in this header.
//
// A program is semantic: it says what, one small op after the other, on per-token rows of f32. A backend lowers it: it
// owns fusion, workspace and layouts. Slots are the rows: slot s holds [n_tokens, slot_width[s]] of the step's tokens
// (or [n_logits, width] after EW_OP_SELECT). An op reads its inputs before it writes its output; in == out is allowed
// for elementwise ops.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "format/dtype.h"

#define EW_SLOT_NONE UINT32_MAX
#define EW_WEIGHT_NONE UINT32_MAX
#define EW_EXPERTS_MAX 4096      // of one layer
#define EW_EXPERTS_ACTIVE_MAX 64 // for one token
#define EW_CONV_TAPS_MAX 16

// ---- weights ------------------------------------------------------------------------------------

// Where the rows of a weight come from. read() fills dst with n_rows rows of ew_dtype_row_bytes(dtype, cols) each,
// starting at row; it may be called from several threads at once. `mapped` is all rows, contiguous in memory, where the
// file allows that.
struct ew_weight_source {
    enum ew_dtype dtype;
    int (*read)(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows, void *dst, struct ew_error *err);
    // Called once rows were copied out and will not be read again, so that their share of a file's mapping
    // stops counting as memory of this process. May be NULL.
    void (*release)(const struct ew_weight_source *source, uint64_t row, uint64_t n_rows);
    const void *mapped;
    const void *ctx;
    uint64_t arg[4]; // the reader's own
    // The same rows in a better type, with their columns in another order: column i of `ordered` is column order[i] of
    // these. A backend that can take an input's elements in that order may read it instead. NULL: there is none.
    const struct ew_weight_source *ordered;
    const uint32_t *order; // [cols]
};

// of a weight over several devices; ROW splits rows (outputs)
enum ew_shard { EW_SHARD_NONE, EW_SHARD_ROW, EW_SHARD_COLUMN };

struct ew_weight {
    const char *name;   // canonical: "blk.3.attn_q"; lives as long as the program
    // a vector is [1, cols]; experts are stacked: rows = n_experts * rows of one, their vectors [n_experts, cols]
    uint64_t rows, cols;
    uint32_t n_experts; // 0: not an expert stack
    uint32_t n_heads;   // 0: not a stack of matrices of heads, of which each token uses all
    bool is_matrix;     // used by LINEAR/EMBED/EXPERTS (may be repacked); otherwise a vector, kept as f32
    enum ew_shard shard;
    struct ew_weight_source source;
};

static inline uint32_t ew_weight_parts(const struct ew_weight *weight) // matrices of the stack, or 1
{
    return weight->n_experts ? weight->n_experts : weight->n_heads ? weight->n_heads : 1;
}

// ---- operations ---------------------------------------------------------------------------------

enum ew_op_kind {
    EW_OP_EMBED,     // out = scale * weight[token], or the batch's embedding row where the token is negative
    EW_OP_POSITION,  // out = in + weight[position + first]: learned absolute positions, or token types
    EW_OP_NORM,      // out = norm(in) * (weight + weight_offset) + bias, over groups of `group` elements
    EW_OP_LINEAR,    // out = in * weight^T + bias
    // Each head by its own matrix: of a head of `in` the first `cols` elements give the first `rows` of that head of
    // `out`, and what follows them is copied. Matrices of f32, f16 or bf16.
    EW_OP_HEADS,
    EW_OP_ROPE,      // rotates the heads of `in` (in == out)
    EW_OP_ATTENTION, // appends k, v to the cache, out = softmax(q k^T) v
    EW_OP_ACT,       // out = act(in)
    EW_OP_GLU,       // out = act(in) * in2
    EW_OP_ADD,       // out = in + scale * in2
    EW_OP_SCALE,     // out = scale * in
    EW_OP_SOFTCAP,   // out = cap * tanh(in / cap)
    EW_OP_SCALE_BY,  // out = in2[column] * in: a gate of the whole row
    EW_OP_PICK,      // out = some columns of in
    // Mixers whose past is a state of fixed size in a cache group of kind STATE.
    EW_OP_CONV,      // out = act(sum over the last n_taps tokens of weight[channel][tap] * in + bias)
    EW_OP_SCAN,      // a linear recurrence over tokens in each head, see op.scan
    // Mixtures of experts. DISPATCH makes a row of every pair of a token and one of its experts, in an order that is
    // the backend's own: [n_tokens, w] -> [n_tokens * n_active, w]; COMBINE leads back.
    EW_OP_ROUTE,     // in: logits [n_tokens, n_experts]; out [n_tokens, 2 * n_active]: experts, then their weights
    EW_OP_DISPATCH,  // out = in of each pair's token; in2: the routes
    EW_OP_EXPERTS,   // out = in * weight[expert]^T + bias[expert] of each pair
    EW_OP_COMBINE,   // out = sum over a token's pairs of weight * in; in2: the routes
    EW_OP_SELECT,    // keeps the rows of tokens with want_logits, or means: [n_tokens, w] -> [n_logits, w]
    EW_OP_ALL_REDUCE,// sums over devices; nothing to do on one
    EW_OP_COUNT
};

enum ew_norm_kind { EW_NORM_RMS, EW_NORM_LAYER };
enum ew_act {
    EW_ACT_NONE, EW_ACT_SILU, EW_ACT_GELU, EW_ACT_GELU_TANH, EW_ACT_RELU, EW_ACT_RELU2,
    EW_ACT_SIGMOID, EW_ACT_TANH,
};
// (x[i], x[i + n/2]) as in NeoX; (x[2i], x[2i+1]) as in GPT-J and llama GGUF
enum ew_rope_kind { EW_ROPE_HALVES, EW_ROPE_PAIRS };

// Rotary frequencies, computed by the model layer (docs in model/rope.h). Angles are position * freq in double.
// A sequence uses `freq_long`/`scale_long` when its rope_span exceeds span_short_max (longrope); with dynamic_base set,
// the frequencies are recomputed for the sequence's rope_span (dynamic NTK).
struct ew_rope {
    enum ew_rope_kind kind;
    uint32_t n_dims;          // rotated elements of each head
    const float *freq_short;  // [n_dims / 2], radians a position
    const float *freq_long;   // NULL: freq_short serves all
    float scale_short, scale_long; // on cos and sin (attention factor of yarn and longrope); 1 where unused
    uint32_t span_short_max;
    // 0: off. Otherwise base' = base * (factor * span / span_short_max - (factor - 1))^(n / (n - 2))
    float dynamic_base;
    float dynamic_factor;
    uint8_t sections[4];      // mrope: pairs of each position dimension; all 0: one dimension
};

// IMAGE_SPAN: causal, but bidirectional inside a span
enum ew_mask { EW_MASK_CAUSAL, EW_MASK_BIDIRECTIONAL, EW_MASK_IMAGE_SPAN };

enum ew_route_score {
    EW_ROUTE_SOFTMAX,     // over all experts
    EW_ROUTE_SIGMOID,     // of each expert alone
    EW_ROUTE_SPARSEMIXER, // PhiMoE's (arXiv:2310.00811, inference): one after the other, softmax over the near ones
};

struct ew_op {
    enum ew_op_kind kind;
    uint16_t layer;           // for traces; UINT16_MAX outside layers
    // slots; EW_SLOT_NONE where unused. ATTENTION: q, k, v; k and v NONE: reads what an earlier op of the same cache
    // layer appended; with a LATENT cache a key is its v and, after it, its k
    uint32_t in, in2, in3;
    uint32_t out;
    uint32_t weight, bias;    // indices into the program's weights
    union {
        struct { float scale; } embed, add, mul;      // EMBED, ADD, SCALE
        struct { int32_t first; bool by_segment; } position; // by_segment: the row is the token's segment
        struct { enum ew_norm_kind kind; uint32_t group; float eps, weight_offset; bool weight_per_group; } norm;
        // norm.group: elements normalised together (0: the whole row). weight has `group` elements, or the whole row's
        // when weight_per_group.
        // ACT and GLU. ACT's limit > 0 clamps its result to +-limit; GLU's clamps in from above and in2 from both
        // sides; alpha > 0 is gpt-oss's form, in * sigmoid(alpha * in) * (in2 + 1).
        struct { enum ew_act act; float limit, alpha; } act;
        struct { float cap; } softcap;
        struct { uint32_t column; } scale_by;
        // `in` is n_groups groups of `stride` columns; out has, of piece after piece, its columns of each group.
        struct { uint32_t n_groups, stride, n_pieces, first[3], width[3]; } pick;
        // The state of a layer begins with the last n_taps - 1 rows of CONV's input, oldest first; SCAN's
        // [n_heads, k_dim, v_dim] follow at `state_first`.
        struct { uint32_t n_taps; enum ew_act act; uint32_t group, cache_layer; } conv;
        // Of each head, with q, k and v in columns of `in` and row vectors throughout:
        //   step = softplus(in2 + bias), decay = exp(weight * step)
        //   S = decay S + k^T u,  out = q S + skip v
        // SSD (Mamba-2, arXiv:2405.21060): u = step v. The gated delta rule (arXiv:2412.06464):
        // u = sigmoid(in3) (v - k decay S), with q and k of length 1 and q / sqrt(k_dim).
        struct {
            uint32_t n_heads, n_groups;         // a group of heads shares q and k
            uint32_t k_dim, v_dim;              // of a head
            uint32_t q_first, k_first, v_first; // columns of `in`
            bool is_delta;
            bool is_tiled;                      // head i is of group i % n_groups, not i / (n_heads / n_groups)
            uint32_t skip;                      // weight [n_heads], or EW_WEIGHT_NONE
            uint32_t state_first;               // element of the layer's state
            uint32_t group, cache_layer;
        } scan;                                 // weight, bias: [n_heads]
        struct {
            uint32_t n_experts, n_active;
            enum ew_route_score score;
            bool normalise;        // the weights of the chosen ones sum to 1 ...
            float scale;           // ... before this multiplies them
            float jitter;          // SPARSEMIXER: relative distance from the best that still counts is twice this
            // > 1: only experts of the best n_groups_active groups are chosen from; a group is as good as its best
            // expert, or as the sum of its two best where `bias` takes part in the choice (DeepSeek 2, 3).
            uint32_t n_groups, n_groups_active;
        } route;                   // bias: [n_experts], added to the scores for the choice alone
        struct { uint32_t n_active; bool is_plain; } combine; // plain: an unweighted sum
        struct { bool is_mean; } select; // of all rows that the wanted token's sequence has in this step
        // table: index into program.ropes; first: of a head's elements that it rotates
        struct { uint32_t n_heads, head_dim, first; uint32_t table; } rope;
        struct { uint32_t n_heads, in_dim, out_dim; } heads; // dims of a head of `in` and of `out`
        struct {
            uint32_t n_heads, n_kv_heads, head_dim, v_dim;
            float scale, softcap;       // softcap 0: none
            uint32_t group, cache_layer; // which cache group of the program, and which of its layers
            // tokens seen, the own one included; BIDIRECTIONAL: window / 2 to each side; 0: all
            uint32_t window;
            uint32_t chunk;             // > 0: only tokens of the same chunk of this many positions
            enum ew_mask mask;
            // q *= 1 + beta * ln(1 + floor((pos + offset) / floor)); beta 0: off
            float q_scale_beta; uint32_t q_scale_floor, q_scale_offset;
            const float *alibi;         // [n_heads] slopes, or NULL
            uint32_t sinks;             // weight [n_heads] of learned sink logits, or EW_WEIGHT_NONE
        } attention;
    };
};

const char *ew_op_name(enum ew_op_kind kind);
struct ew_program;
struct ew_op;
// "linear ffn_down": the op, and its weight without the layer's number.
void ew_op_label(const struct ew_program *program, const struct ew_op *op, char *out, size_t size);

// ---- caches -------------------------------------------------------------------------------------

enum ew_cache_kind { EW_CACHE_FULL, EW_CACHE_WINDOW, EW_CACHE_LATENT, EW_CACHE_STATE, EW_CACHE_CROSS };
const char *ew_cache_kind_name(enum ew_cache_kind kind);
// F8 (e4m3) and I8: one f16 scale a token and KV head, K and V each
enum ew_kv_dtype { EW_KV_F32, EW_KV_F16, EW_KV_F8, EW_KV_I8 };

// A sequence has blocks of each group; a block holds block_tokens tokens of all the group's layers. STATE blocks hold
// one snapshot of state_bytes each instead of tokens. Contents are the backend's own.
struct ew_cache_group {
    enum ew_cache_kind kind;
    uint32_t n_layers;
    uint32_t window;           // WINDOW: tokens seen; blocks wholly before it may be given back
    // of one head. LATENT: one head, v_dim the width of the latent, which is the value and begins the key, k_dim that
    // of the rest of the key
    uint32_t n_kv_heads, k_dim, v_dim;
    uint64_t state_bytes;      // STATE: of one layer
};

// ---- program ------------------------------------------------------------------------------------

struct ew_program {
    const char *name;
    uint32_t n_ops, n_slots, n_weights, n_ropes, n_groups;
    struct ew_op *ops;
    uint32_t *slot_width;      // [n_slots]
    struct ew_weight *weights;
    struct ew_rope *ropes;
    struct ew_cache_group *groups;
    // slot of the result: [n_logits, n_vocab], or of programs that pool [n_logits, slot_width[logits]]
    uint32_t logits;
    uint32_t n_vocab, width;   // width of the residual stream, of embedding rows
    uint32_t n_position_dims;  // 1, or 3 for mrope
};

// Checks slots, weights, groups and widths of every op: our own invariants, asserted; call it once after building.
void ew_program_check(const struct ew_program *program);

// ---- batch --------------------------------------------------------------------------------------

// One sequence's part of a step: a prompt chunk, a decoding token, or proposals to verify. The cache already holds the
// tokens before `position` of its first token.
struct ew_batch_seq {
    uint32_t first, n_tokens;   // its tokens are [first, first + n_tokens) of the batch
    uint32_t n_past;            // tokens in its caches before this step
    uint32_t n_proposed;        // the last n_proposed of its tokens are proposals (speculation); all want logits
    uint32_t adapter;           // adapter slot, 0: none
    // tokens this sequence was admitted for: chooses long or dynamic rotary frequencies, once
    uint32_t rope_span;
    bool no_cache;              // encoders: attends only inside the step, appends nothing
    // A chunk of a prompt: a backend may compute its rows by other arithmetic than those of generated tokens.
    bool is_prompt;
    // [n_groups] block tables; table[i] is the pool block of tokens [i * block_tokens, ...), -1: given back. A state's
    // has one block, which holds the state after n_past tokens and is changed by the step; whatever it holds
    // counts for nothing where n_past is 0.
    const int32_t *const *blocks;
};

// How one row of logits becomes a token where the device chooses; the meaning of each field is engine/sampler.h's.
struct ew_pick_adjust { // logit += bias, then divided or multiplied by `repetition`, then less `subtract`
    int32_t token;
    float bias, subtract;
    uint32_t is_repeated;
};

#define EW_PICK_ADJUST_MAX 16384 // of all rows of a step together
#define EW_PICK_BY_HOST (-1)

struct ew_pick {
    float temperature, top_p, min_p, repetition;
    uint32_t top_k;                      // 0: off
    uint32_t n_adjust;
    const struct ew_pick_adjust *adjust; // each token once
    const uint32_t *mask;                // bit t % 32 of word t / 32: token t is allowed; NULL: all are
    double unit;                         // the random number, in [0, 1)
    bool by_host;                        // the device leaves this row alone
};

struct ew_batch {
    uint32_t n_tokens, n_seqs, n_logits;
    const int32_t *token;       // [n_tokens]; negative: row -1 - token of `embedding`
    const float *embedding;     // [*, width] or NULL
    const int32_t *position;    // [n_position_dims, n_tokens]
    const uint8_t *want_logits; // [n_tokens]; n_logits of them are set
    const uint8_t *segment;     // [n_tokens] token types of encoders, or NULL: all 0
    const uint8_t *span;        // [n_tokens] image span number of the token, 0: none; or NULL
    const struct ew_batch_seq *seqs; // [n_seqs], in the order of their tokens
    bool follows; // every token is what the step before, still under way, picks in the same row; `token` holds zeros.
                  // Only where the backend runs_ahead
    const struct ew_pick *picks; // [n_logits] tokens are to come back instead of logits; NULL: logits. Only where the
                                 // backend has picked(), and n_logits is at most n_seqs_max
};
