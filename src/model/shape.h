#pragma once
// The shape of a model: everything that the program builder needs to know, whichever file format and family it came
// from.
//
// A shape is filled in three steps, each overriding the one before: the family's constants (data/families), what
// the presence of tensors says, and the file's own keys. ew_shape_finish derives the rest and checks all of it;
// only then it may be used. No member is a pointer: a shape is plain data, and two that were read from equal models
// compare equal by memcmp.

#include <stdbool.h>
#include <stdint.h>

#include "kernel/ops.h"
#include "model/model.h"

// Hard limits on what a file may ask for: far above every published model, low enough that no product of two overflows.
#define EW_WIDTH_MAX (1u << 20) // of the residual stream, of all heads together
#define EW_FFN_WIDTH_MAX (1u << 22)
#define EW_VOCAB_MAX (1u << 24)
#define EW_HEADS_MAX 2048
#define EW_HEAD_DIM_MAX 2048
#define EW_CONTEXT_MAX (1u << 30)
#define EW_ROPE_PAIRS_MAX 512 // rotated pairs of one head

enum ew_norm_place {
    EW_NORM_PLACE_PRE,      // x + f(norm(x)): llama
    EW_NORM_PLACE_POST,     // x + norm(f(x)): olmo2
    EW_NORM_PLACE_SANDWICH, // x + norm(f(norm(x))): gemma2
    EW_NORM_PLACE_AROUND,   // norm(x + f(x)): bert
};

enum ew_qk_norm {
    EW_QK_NORM_NONE,
    EW_QK_NORM_HEAD,     // each head alone, one weight for all: qwen3
    EW_QK_NORM_HEAD_OWN, // each head alone, with its own weight: stablelm 2 12b
    EW_QK_NORM_ROW,      // all heads together: olmo2
    EW_QK_NORM_PLAIN,    // each head alone, without a weight, where positions enter: llama 4
};

// What stands behind the last layer.
enum ew_head {
    EW_HEAD_LOGITS,
    EW_HEAD_HIDDEN, // nothing: the result is the final hidden state
    EW_HEAD_SCORES, // a classifier's scores, of n_labels or of words
};

// What mixes tokens in a layer; the first two rotate by tables of their own.
enum ew_mixer { EW_MIXER_FULL, EW_MIXER_WINDOW, EW_MIXER_STATE, EW_MIXER_NONE };

// How a state takes a token up, see struct ew_op: scan.
enum ew_state_rule {
    EW_STATE_SSD,   // Mamba-2's: its output is gated, then normed
    EW_STATE_DELTA, // the gated delta rule's: normed, then gated
};

enum ew_rope_scaling {
    EW_ROPE_SCALING_NONE,
    EW_ROPE_SCALING_LINEAR,
    EW_ROPE_SCALING_DYNAMIC,
    EW_ROPE_SCALING_YARN,
    EW_ROPE_SCALING_LLAMA3,
    EW_ROPE_SCALING_LONGROPE,
};

// Rotary embedding as configured; model/rope.h turns it into frequencies.
struct ew_rope_shape {
    enum ew_rope_scaling scaling;
    uint32_t n_dims; // rotated elements of a head
    uint32_t context_trained;
    uint32_t context_original; // that the scaling starts from; 0: the trained context
    bool truncate;             // yarn: whole dimensions as the ramp's ends
    double theta;
    double partial;                           // n_dims / head_dim, where the model's rope_dims is not given
    double factor;                            // 0: trained context / original context
    double attention_multiplier;              // GGUF's yarn: on top of the rule; 0: none
    double attention_factor;                  // on cos and sin; 0: by the scaling's own rule
    double short_mscale, long_mscale;         // longrope: its factors in the two ranges, where they are given
    double beta_fast, beta_slow;              // yarn
    double mscale, mscale_all_dim;            // yarn, both or none
    double low_freq_factor, high_freq_factor; // llama3
    uint32_t n_short, n_long;                 // given divisors: all n_dims / 2 or none
    double short_factor[EW_ROPE_PAIRS_MAX];   // longrope's, or GGUF's rope_freqs
    double long_factor[EW_ROPE_PAIRS_MAX];    // longrope's
};

struct ew_layer_shape {
    enum ew_mixer mixer;
    bool no_rope;       // positions do not enter this layer
    bool dense;         // no experts, whatever the other layers have
    bool no_ffn;        // the mixer is all there is
    uint32_t ffn_width; // 0: the model's
};

struct ew_shape {
    struct ew_model_shape common;
    enum ew_head head;
    bool encoder;      // every token sees all others
    bool uncached;     // texts are computed whole, in one step: encoders, and decoders that only make vectors
    bool classifier;   // with the scores of EW_HEAD_SCORES
    uint32_t n_labels; // of them
    bool class_direct; // no dense layer stands before the scores
    bool class_norm;   // a norm stands behind that layer
    bool bias_class, bias_labels; // of that layer and of the scores
    enum ew_act class_act;
    // Instead of labels: a score is the logit of the first of these tokens, less that of the second where there is one.
    int32_t class_tokens[2];      // -1: there is none
    bool select_mean;             // what stands behind the last layer works on the mean of a text
    uint32_t n_dense;
    struct ew_dense_shape {
        uint32_t width;
        enum ew_act act;
        bool bias;
    } dense[EW_DENSE_MAX]; // matrices behind the hidden state of EW_HEAD_HIDDEN

    // Norms.
    enum ew_norm_kind norm;
    enum ew_norm_place norm_place;
    bool norm_bias;
    float norm_eps;
    float norm_weight_offset; // gemma: 1
    bool first_norm_none;     // the first layer's attention reads its input as it is: modernbert
    enum ew_qk_norm qk_norm;
    bool qk_norm_off; // this member of the family has none

    // Attention.
    uint32_t v_dim; // of a head's value; 0: head_dim
    uint32_t kv_latent;          // width of what keys and values are made from, cached in their place; 0: not so
    uint32_t q_latent;           // of what queries are made from then; 0: the input
    uint32_t plain_dim;          // of a head's elements those that do not rotate, where head_dim is not given
    bool bias_qkv, bias_attn_output;
    bool multi_query;            // one head of keys and values serves all queries ...
    bool multi_query_off;        // ... unless the model groups them
    float clip_qkv;              // q, k and v are kept within +- this; 0: not
    bool alibi;                  // positions are distances, added to the scores (Press et al., arXiv:2108.12409)
    uint32_t alibi_scaled;       // ... times attention_scale, as often as this says; 0: as they are
    float alibi_bias_max;        // the slopes fall from near 1 to 2^-alibi_bias_max
    float attention_scale;       // on q k; 0: 1 / sqrt(head_dim)
    float attention_softcap;     // 0: none
    bool attention_sinks;        // each head has a learned logit that takes part in the softmax and nothing else
    float q_scale_beta;          // llama 4 and ministral 3: q grows with the logarithm of the position; 0: off
    uint32_t q_scale_floor;      // tokens that it grows in steps of; 0: the rope's original context
    uint32_t q_scale_offset;     // of the position
    bool q_scale_off;            // this member of the family does not
    bool q_scale_no_rope_only;   // only layers without positions do
    uint32_t chunk;              // layers with positions see only tokens of their own chunk of this many; 0: all
    uint32_t window;             // tokens that a window layer sees, the own one included; 0: none
    bool window_off;             // the configured window is not in use
    uint32_t window_first_layer; // layers before it are full
    uint32_t window_period;      // every n-th layer is full; 0: none is
    bool window_full_first;      // ... beginning with the first layer, not ending with the n-th
    bool no_rope_full;           // full layers have no positions, window layers have
    uint32_t no_rope_period;     // every n-th layer has no positions; 0: all have
    enum ew_rope_kind rope_kind;
    double rope_theta, rope_partial; // what a rope without its own has
    uint32_t rope_dims;              // rotated elements of a head; 0: rope_partial * head_dim
    uint32_t context_original;       // before the context was stretched; 0: not given
    bool rope_scaled_full_only;      // the scaling serves full layers; window layers have plain frequencies
    bool rope_long_off;              // longrope's short factors serve all lengths
    double rope_theta_ratio;         // rope_theta is multiplied by it
    double rope_theta_window;        // of window layers; 0: rope_theta
    bool rope_truncate_off;          // yarn's ramp ends between dimensions, where a file does not say
    double rope_mscale_ratio;        // what GGUF's yarn_log_multiplier is to be multiplied by
    struct ew_rope_shape ropes[2];   // by ew_mixer
    bool attention_gate; // sigmoids of further outputs of q's matrix, beside each head's, weigh what attention gives

    // Layers with a state.
    enum ew_state_rule state_rule;
    uint32_t state_heads, state_groups; // a group of heads shares what a state is read and written with
    uint32_t state_k_dim, state_v_dim;  // of a head
    uint32_t state_inner;               // all heads' v_dim
    uint32_t state_taps;                // tokens that the convolution before it sees
    uint32_t state_period;              // every n-th layer has full attention, the others have states; 0: no rule
    bool state_conv_bias, state_bias;   // state_bias: of the matrices in and out
    bool state_in_grouped;    // inputs and gates of a group stand together in ssm_in, not in attn_qkv and attn_gate
    bool state_gates_grouped; // ssm_ba has a group's two gates together; else ssm_beta and ssm_alpha are apart
    bool state_heads_tiled;   // head i is of group i % state_groups
    bool single_part;         // a layer is a mixer or a feed-forward: nemotron h

    // Feed-forward.
    uint32_t ffn_ratio; // ffn_width in widths, where the file gives no ffn_width
    bool ffn_plain;     // act(up) without a gate
    bool bias_ffn;
    enum ew_act act;
    float glu_limit, glu_alpha; // see struct ew_op: act.limit, act.alpha

    // Mixture of experts.
    uint32_t n_experts; // 0: dense
    uint32_t n_experts_active;
    uint32_t expert_width;         // of one expert's feed-forward; 0: ffn_width
    uint32_t shared_width;         // of the expert that serves every token; 0: there is none
    uint32_t n_shared;             // shared_width in expert_widths, where it is not given
    bool shared_gate;              // sigmoid of a product of the input weighs it: qwen 2
    bool bias_experts, bias_route; // bias_route: of the logits
    bool route_choice_bias;        // added to the scores for the choice alone: deepseek 3
    bool route_input;              // weights scale the experts' input, not their output: llama 4
    enum ew_route_score route_score;
    bool route_normalise;
    float route_scale, route_jitter;
    uint32_t route_groups, route_groups_active; // see struct ew_op: route
    uint32_t moe_first_layer;                   // layers before it are dense
    uint32_t moe_period;                        // every n-th layer has experts, the others are dense

    // Residual stream.
    bool parallel;          // attention and feed-forward read the same input
    bool parallel_own_norm; // ... each through its own norm
    float embed_scale, residual_scale;
    bool embed_sqrt_width;            // embed_scale is the width's square root
    bool embed_norm;                  // embeddings pass a norm: bloom
    bool position_learned;            // absolute positions are rows of a matrix: gpt2
    uint32_t position_after;          // the first position's row is the one after this padding's; 0: row 0 (roberta)
    uint32_t position_first;          // derived: the first position's row
    uint32_t n_segments;              // token types, whose embeddings are added too; 0: none
    bool bias_head;                   // the logits have a bias: gptj
    float logit_scale, logit_softcap; // softcap 0: none

    // By layer; entries past n_layers are zero.
    bool layers_given; // layers[].mixer were read, not derived
    bool no_rope_given;
    struct ew_layer_shape layers[EW_LAYERS_MAX];
};

struct ew_families;
struct ew_family;

// Llama's mathematics without any size.
void ew_shape_init(struct ew_shape *shape);
// The part of config.json that describes the language model: for models with towers one inside, else all of it.
const struct ew_json *ew_config_of_text(const struct ew_json *config);
// These give finished shapes. config.json: old and new form. tensors may be NULL (then their presence decides nothing).
// *family tells whose tables were used.
int ew_shape_from_config(struct ew_shape *shape, const struct ew_families *families, const struct ew_json *config,
                         const struct ew_tensors *tensors, const struct ew_family **family,
                         struct ew_error *err) EW_MUST_CHECK;
int ew_shape_from_gguf(struct ew_shape *shape, const struct ew_families *families, const struct ew_gguf *gguf,
                       const struct ew_family **family, struct ew_error *err) EW_MUST_CHECK;
// For shapes that were filled by hand: derives what was left open and checks everything. Once only.
int ew_shape_finish(struct ew_shape *shape, struct ew_error *err) EW_MUST_CHECK;
