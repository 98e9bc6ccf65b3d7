#pragma once
// The CPU kernels as a table of functions: filled by the plain C reference, then overwritten by the instruction sets
// that this machine has, in rising order. All of them work on rows of f32 and never allocate; one call belongs to one
// thread.

#include <stdint.h>

#include "kernel/backend.h"
#include "kernel/cpu/layout.h"

#define EW_CPU_DIM 16  // heads are padded with zeros to a multiple of this: lanes of the widest vectors
#define EW_CPU_KEYS 32 // that attention works on at a time

// Activations as 8-bit integers for the integer layouts: groups of EW_CPU_GROUP with one f32 scale, and the sums of the
// integers of each half group, which products with an offset or a minimum need. Made once for each input of LINEARs.
// Either form is NULL where no layout wants it.
struct ew_cpu_q8 {
    int8_t *q;         // [n_rows, q_stride], zero past the row's end
    float *scale;      // [n_rows, group_stride]
    float *scaled_sum; // [n_rows, group_stride] scale times the whole group's sum
    int16_t *sum;      // [n_rows, 2 * group_stride]
    uint16_t *bf16;    // [n_rows, q_stride] the same rows rounded to bf16, zero to the end of the last group
    uint32_t q_stride, group_stride;
};

// One product out = x * matrix^T + bias of n_rows activations. Works on tiles of EW_CPU_TILE_ROWS rows of the matrix.
struct ew_cpu_linear {
    const struct ew_cpu_matrix *matrix;
    const float *x;             // [n_rows, x_stride]
    const struct ew_cpu_q8 *q8; // the same rows, where the layout wants them
    const float *bias;          // [rows] or NULL
    float *out;                 // [n_rows, out_stride]
    uint32_t n_rows, x_stride, out_stride;
    float *scratch; // of this thread, [cols]
};

// Tokens of one sequence and one head through EW_OP_SCAN's recurrence; rows of q and k follow each other. out is none
// of what is read.
struct ew_cpu_scan {
    float *state;       // [k_dim, v_dim]
    const float *q, *k; // [n_tokens, k_dim]
    const float *v;     // [n_tokens, v_stride]
    const float *decay; // [n_tokens] of the state
    const float *gain;  // [n_tokens] on v, or on what the delta rule makes of it
    float *out;         // [n_tokens, out_stride]
    uint32_t n_tokens, k_dim, v_dim, v_stride, out_stride;
    bool is_delta;
    float skip;
};

typedef void (*ew_cpu_linear_fn)(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end);
typedef void (*ew_cpu_norm_fn)(float *out, const float *in, const float *weight, const float *bias, uint32_t n,
                               float eps, float weight_offset);

struct ew_cpu_ops {
    const char *isa; // the last initialiser that filled something
    // Multiplies and adds as fast as it can, for `bench kernels`; returns how many of both.
    double (*multiply_add)(uint64_t n_rounds, float *sink);
    ew_cpu_linear_fn linear[EW_CPU_LAYOUT_COUNT];
    // Of prompts, where other arithmetic is faster: weights and activations rounded to bf16 for a matrix unit, or FP8
    // to 8 bits with 8-bit activations. NULL: none.
    ew_cpu_linear_fn linear_prompt[EW_CPU_LAYOUT_COUNT];
    bool prompt_takes_bf16;
    bool has_fp8;        // FP8 tiles; else FP8 is held as I8
    bool has_bf16_tiles; // a matrix unit takes tiles of f16 and bf16
    void (*round_bf16)(const float *x, uint32_t n, uint16_t *out); // one row; writes whole groups
    void (*quantise)(const float *x, uint32_t n, int8_t *q, float *scale, int16_t *sum); // one row; writes whole groups
    ew_cpu_norm_fn norm[2]; // enum ew_norm_kind; weight and bias may be NULL
    void (*act)(float *out, const float *in, uint32_t n, enum ew_act act);
    void (*glu)(float *out, const float *gate, const float *up, uint32_t n, enum ew_act act, float limit, float alpha);
    void (*add)(float *out, const float *a, const float *b, uint32_t n, float scale); // a + scale * b
    void (*scale)(float *out, const float *in, uint32_t n, float scale);
    void (*softcap)(float *out, const float *in, uint32_t n, float cap);
    // Rotates n_dims elements of each head; cos_sin holds n_dims / 2 cosines, then as many sines.
    void (*rope)(float *x, const float *cos_sin, uint32_t n_dims, uint32_t n_heads, uint32_t head_dim,
                 enum ew_rope_kind kind);
    // out = bias + sum over n_taps rows of weight[tap] * row; weight [n_taps, w_stride], bias may be NULL.
    void (*conv)(float *out, const float *const *rows, const float *weight, uint32_t w_stride, const float *bias,
                 uint32_t n_taps, uint32_t n);
    void (*scan)(const struct ew_cpu_scan *job);
    // Cache rows: one token and head. Scales are f16 and only used by the 8-bit types.
    void (*kv_encode)(enum ew_kv_dtype dtype, const float *in, uint32_t n, void *out, uint16_t *scale);
    // n_tokens consecutive rows of n elements; what lies between the end of a row and the stride is left alone.
    void (*kv_decode)(enum ew_kv_dtype dtype, const void *in, const uint16_t *scale, uint32_t n_tokens, uint32_t n,
                      float *out, uint32_t out_stride);
    // One tile of keys [EW_CPU_KEYS, dim] to [dim, EW_CPU_KEYS]: then keys are lanes, and nothing has to be summed
    // across a register. dim is a multiple of EW_CPU_DIM, here and below.
    void (*transpose)(const float *k, uint32_t dim, float *out);
    // score[i][j] = q[i] . k[j] of n_q queries [n_q, dim] and a whole transposed tile; score [n_q, EW_CPU_KEYS].
    void (*scores)(float *score, const float *q, uint32_t n_q, const float *keys, uint32_t dim);
    float (*largest)(const float *x, uint32_t n, float least); // of x and `least`; NaNs do not count
    // x[i] = exp(x[i] - max), returns their sum; -INFINITY gives 0.
    float (*exp_sum)(float *x, uint32_t n, float max);
    // acc[i] = factor[i] * acc[i] + sum over j of p[i][j] * v[j].
    void (*values)(float *acc, const float *factor, const float *p, uint32_t p_stride, uint32_t n_q, const float *v,
                   uint32_t n_k, uint32_t dim);
};

void ew_cpu_ops_init_reference(struct ew_cpu_ops *ops);
// The reference, and over it everything that the instruction sets of the mask have (isa.c of this architecture).
void ew_cpu_ops_init(struct ew_cpu_ops *ops, uint32_t isa_mask);

// Fills one row of q8 from n elements.
void ew_cpu_quantise_row(const struct ew_cpu_ops *ops, const float *x, uint32_t n, const struct ew_cpu_q8 *q8,
                         uint32_t row);

// Plain forms that others fall back to.
void ew_cpu_ref_kv_encode(enum ew_kv_dtype dtype, const float *in, uint32_t n, void *out, uint16_t *scale);
void ew_cpu_ref_kv_decode(enum ew_kv_dtype dtype, const void *in, const uint16_t *scale, uint32_t n_tokens, uint32_t n,
                          float *out, uint32_t out_stride);

// Tile layouts of any kind, for the rows that matrix units leave over.
void ew_cpu_avx512_vnni_linear(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end);
void ew_cpu_avx512_vnni_prompt_fp8(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end);
void ew_cpu_neon_dotprod_linear(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end);

// Initialisers, one for each file that is compiled for an instruction set.
void ew_cpu_avx2_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_avx2_init_dense(struct ew_cpu_ops *ops);
void ew_cpu_avx2_init_rows(struct ew_cpu_ops *ops);
void ew_cpu_avx2_init_attention(struct ew_cpu_ops *ops);
void ew_cpu_avx512_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_avx512_init_dense(struct ew_cpu_ops *ops);
void ew_cpu_avx512_init_rows(struct ew_cpu_ops *ops);
void ew_cpu_avx512_init_attention(struct ew_cpu_ops *ops);
void ew_cpu_avx512_vbmi_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_avx512_vnni_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_amx_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_amx_init_dense(struct ew_cpu_ops *ops);
void ew_cpu_amx_init_prompt(struct ew_cpu_ops *ops);
void ew_cpu_neon_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_neon_init_dense(struct ew_cpu_ops *ops);
void ew_cpu_neon_init_rows(struct ew_cpu_ops *ops);
void ew_cpu_neon_init_attention(struct ew_cpu_ops *ops);
void ew_cpu_neon_dotprod_init_linear(struct ew_cpu_ops *ops);
void ew_cpu_neon_i8mm_init_linear(struct ew_cpu_ops *ops);
