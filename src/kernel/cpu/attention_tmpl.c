// The parts of attention: cache rows to and from f32, scores, softmax, sums of values; included once for each
// instruction set.

#include <math.h>

#include "base/half.h"
#include "kernel/cpu/math_tmpl.h"

static void kv_encode(enum ew_kv_dtype dtype, const float *in, uint32_t n, void *out, uint16_t *scale)
{
    uint16_t *half = out;
    uint32_t i = 0;

    if (dtype != EW_KV_F16) { // once a token: the plain code will do
        ew_cpu_ref_kv_encode(dtype, in, n, out, scale);
        return;
    }
    for (; i + VF <= n; i += VF)
        vf_store_f16(half + i, vf_load(in + i));
    for (; i < n; i++)
        half[i] = ew_f16_of_f32(in[i]);
}

VEC_INLINE vf decode_e4m3(const uint8_t *p, vf scale)
{
    vi bits = vi_u8(p);
    vf magnitude = vf_mul(vf_bits(vi_shl(vi_and(bits, vi_set1(0x7F)), 20)),
                          vf_set1(0x1p120f)); // the exponent's bias is 120 less

    return vf_mul(vf_bits(vi_or(vi_bits(magnitude), vi_shl(vi_and(bits, vi_set1(0x80)), 24))), scale);
}

VEC_INLINE void decode_rows(enum ew_kv_dtype dtype, const uint8_t *in, const uint16_t *scale, uint32_t n_tokens,
                            uint32_t n, float *out, uint32_t out_stride)
{
    uint32_t bytes = dtype == EW_KV_F16 ? 2 : 1;

    for (uint32_t t = 0; t < n_tokens; t++, in += (uint64_t)n * bytes, out += out_stride) {
        vf s = vf_set1(dtype == EW_KV_F16 ? 1 : ew_f32_of_f16(scale[t]));

        for (uint32_t i = 0; i < n; i += VF) {
            if (dtype == EW_KV_F16)
                vf_store(out + i, vf_load_f16(in + 2 * i));
            else if (dtype == EW_KV_F8)
                vf_store(out + i, decode_e4m3(in + i, s));
            else
                vf_store(out + i, vf_mul(vf_of_vi(vi_i8(in + i)), s));
        }
    }
}

static void kv_decode(enum ew_kv_dtype dtype, const void *in, const uint16_t *scale, uint32_t n_tokens, uint32_t n,
                      float *out, uint32_t out_stride)
{
    if (n % VF != 0 || dtype == EW_KV_F32)
        ew_cpu_ref_kv_decode(dtype, in, scale, n_tokens, n, out, out_stride);
    else if (dtype == EW_KV_F16)
        decode_rows(EW_KV_F16, in, scale, n_tokens, n, out, out_stride);
    else if (dtype == EW_KV_F8)
        decode_rows(EW_KV_F8, in, scale, n_tokens, n, out, out_stride);
    else
        decode_rows(EW_KV_I8, in, scale, n_tokens, n, out, out_stride);
}

// n_q queries by n_k keys, constants where this is inlined. The lanes of a product are summed in one order, whatever
// is computed beside it.
VEC_INLINE void score_block(float *score, uint32_t score_stride, const float *q, uint32_t n_q, const float *k,
                            uint32_t n_k, uint32_t dim)
{
    vf acc[2][4];

    for (uint32_t a = 0; a < n_q; a++) {
        for (uint32_t j = 0; j < 4; j++)
            acc[a][j] = vf_zero();
    }
    for (uint32_t i = 0; i < dim; i += VF) {
        vf key[4];

        for (uint32_t j = 0; j < n_k; j++)
            key[j] = vf_load(k + (uint64_t)j * dim + i);
        for (uint32_t a = 0; a < n_q; a++) {
            vf x = vf_load(q + (uint64_t)a * dim + i);

            for (uint32_t j = 0; j < n_k; j++)
                acc[a][j] = vf_fma(x, key[j], acc[a][j]);
        }
    }
    for (uint32_t a = 0; a < n_q; a++) {
        float sums[4];

        vf_sum_four(acc[a], sums);
        memcpy(score + (uint64_t)a * score_stride, sums, n_k * sizeof(*sums));
    }
}

VEC_INLINE void score_queries(float *score, uint32_t score_stride, const float *q, uint32_t n_q, const float *k,
                              uint32_t n_k, uint32_t dim)
{
    uint32_t j = 0;

    for (; j + 4 <= n_k; j += 4)
        score_block(score + j, score_stride, q, n_q, k + (uint64_t)j * dim, 4, dim);
    for (; j < n_k; j++)
        score_block(score + j, score_stride, q, n_q, k + (uint64_t)j * dim, 1, dim);
}

static void scores(float *score, uint32_t score_stride, const float *q, uint32_t n_q, const float *k, uint32_t n_k,
                   uint32_t dim)
{
    uint32_t i = 0;

    for (; i + 2 <= n_q; i += 2)
        score_queries(score + (uint64_t)i * score_stride, score_stride, q + (uint64_t)i * dim, 2, k, n_k, dim);
    if (i < n_q)
        score_queries(score + (uint64_t)i * score_stride, score_stride, q + (uint64_t)i * dim, 1, k, n_k, dim);
}

static float exp_sum(float *x, uint32_t n, float max)
{
    vf m = vf_set1(max), sum = vf_zero();
    float last[VF];
    uint32_t i = 0;

    for (; i + VF <= n; i += VF) {
        vf p = vf_exp(vf_sub(vf_load(x + i), m));

        vf_store(x + i, p);
        sum = vf_add(sum, p);
    }
    if (i < n) {
        for (uint32_t k = 0; k < VF; k++)
            last[k] = i + k < n ? x[i + k] : -INFINITY;
        vf_store(last, vf_exp(vf_sub(vf_load(last), m)));
        memcpy(x + i, last, (n - i) * sizeof(*x));
        sum = vf_add(sum, vf_load(last));
    }
    return vf_sum(sum);
}

// n_vec vectors of the sums of n_q queries, constants where this is inlined.
VEC_INLINE void value_block(float *acc, const float *factor, const float *p, uint32_t p_stride, uint32_t n_q,
                            const float *v, uint32_t n_k, uint32_t dim, uint32_t n_vec)
{
    vf sum[2][4];

    for (uint32_t a = 0; a < n_q; a++) {
        for (uint32_t k = 0; k < n_vec; k++)
            sum[a][k] = vf_mul(vf_load(acc + (uint64_t)a * dim + k * VF), vf_set1(factor[a]));
    }
    for (uint32_t j = 0; j < n_k; j++, v += dim) {
        for (uint32_t a = 0; a < n_q; a++) {
            vf x = vf_set1(p[(uint64_t)a * p_stride + j]);

            for (uint32_t k = 0; k < n_vec; k++)
                sum[a][k] = vf_fma(x, vf_load(v + k * VF), sum[a][k]);
        }
    }
    for (uint32_t a = 0; a < n_q; a++) {
        for (uint32_t k = 0; k < n_vec; k++)
            vf_store(acc + (uint64_t)a * dim + k * VF, sum[a][k]);
    }
}

VEC_INLINE void value_queries(float *acc, const float *factor, const float *p, uint32_t p_stride, uint32_t n_q,
                              const float *v, uint32_t n_k, uint32_t dim)
{
    uint32_t d = 0;

    for (; d + 4 * VF <= dim; d += 4 * VF)
        value_block(acc + d, factor, p, p_stride, n_q, v + d, n_k, dim, 4);
    for (; d < dim; d += VF)
        value_block(acc + d, factor, p, p_stride, n_q, v + d, n_k, dim, 1);
}

static void values(float *acc, const float *factor, const float *p, uint32_t p_stride, uint32_t n_q, const float *v,
                   uint32_t n_k, uint32_t dim)
{
    uint32_t i = 0;

    for (; i + 2 <= n_q; i += 2)
        value_queries(acc + (uint64_t)i * dim, factor + i, p + (uint64_t)i * p_stride, p_stride, 2, v, n_k, dim);
    if (i < n_q)
        value_queries(acc + (uint64_t)i * dim, factor + i, p + (uint64_t)i * p_stride, p_stride, 1, v, n_k, dim);
}

static void init_attention(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    ops->kv_encode = kv_encode;
    ops->kv_decode = kv_decode;
    ops->scores = scores;
    ops->exp_sum = exp_sum;
    ops->values = values;
}
