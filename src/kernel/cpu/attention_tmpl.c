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

#define KEY_VECTORS (EW_CPU_KEYS / VF)
#define SCORE_QUERIES (VF == 16 ? 8 : 2) // whose sums fit in the registers
#define VALUE_QUERIES (VF == 16 ? 4 : 2)

// VF rows of VF elements: after as many rounds as VF has bits, in which each row of the upper half goes between the
// elements of one of the lower half, columns are rows.
VEC_INLINE void transpose_block(const float *k, uint32_t dim, float *out)
{
    vf rows[2][VF];
    int from = 0;

#pragma GCC unroll 16
    for (int i = 0; i < VF; i++)
        rows[0][i] = vf_load(k + (uint64_t)i * dim);
#pragma GCC unroll 4
    for (int n = 1; n < VF; n *= 2, from ^= 1) {
#pragma GCC unroll 8
        for (int i = 0; i < VF / 2; i++) {
            rows[from ^ 1][2 * i] = vf_zip_low(rows[from][i], rows[from][i + VF / 2]);
            rows[from ^ 1][2 * i + 1] = vf_zip_high(rows[from][i], rows[from][i + VF / 2]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < VF; i++)
        vf_store(out + i * EW_CPU_KEYS, rows[from][i]);
}

static void transpose(const float *k, uint32_t dim, float *out)
{
    for (uint32_t d = 0; d < dim; d += VF) {
        for (uint32_t j = 0; j < EW_CPU_KEYS; j += VF)
            transpose_block(k + (uint64_t)j * dim + d, dim, out + (uint64_t)d * EW_CPU_KEYS + j);
    }
}

// n_q queries, a constant where this is inlined. Each score is summed in the order of its elements, whatever is
// computed beside it.
VEC_INLINE void score_queries(float *score, const float *q, uint32_t n_q, const float *keys, uint32_t dim)
{
    vf acc[SCORE_QUERIES][KEY_VECTORS];

    for (uint32_t a = 0; a < n_q; a++) {
        for (uint32_t j = 0; j < KEY_VECTORS; j++)
            acc[a][j] = vf_zero();
    }
    for (uint32_t d = 0; d < dim; d++, keys += EW_CPU_KEYS) {
        vf key[KEY_VECTORS];

        for (uint32_t j = 0; j < KEY_VECTORS; j++)
            key[j] = vf_load(keys + j * VF);
        for (uint32_t a = 0; a < n_q; a++) {
            vf x = vf_set1(q[(uint64_t)a * dim + d]);

            for (uint32_t j = 0; j < KEY_VECTORS; j++)
                acc[a][j] = vf_fma(x, key[j], acc[a][j]);
        }
    }
    for (uint32_t a = 0; a < n_q; a++) {
        for (uint32_t j = 0; j < KEY_VECTORS; j++)
            vf_store(score + a * EW_CPU_KEYS + j * VF, acc[a][j]);
    }
}

static void scores(float *score, const float *q, uint32_t n_q, const float *keys, uint32_t dim)
{
    for (; n_q >= SCORE_QUERIES; n_q -= SCORE_QUERIES, q += SCORE_QUERIES * dim, score += SCORE_QUERIES * EW_CPU_KEYS)
        score_queries(score, q, SCORE_QUERIES, keys, dim);
    for (; SCORE_QUERIES > 4 && n_q >= 4; n_q -= 4, q += 4 * dim, score += 4 * EW_CPU_KEYS)
        score_queries(score, q, SCORE_QUERIES > 4 ? 4 : 1, keys, dim);
    for (; n_q > 0; n_q--, q += dim, score += EW_CPU_KEYS)
        score_queries(score, q, 1, keys, dim);
}

static float largest(const float *x, uint32_t n, float least)
{
    float lanes[VF];
    uint32_t i = 0;

    if (n >= VF) {
        vf most = vf_set1(least);

        for (; i + VF <= n; i += VF)
            most = vf_max(vf_load(x + i), most);
        vf_store(lanes, most);
        for (uint32_t k = 0; k < VF; k++)
            least = lanes[k] > least ? lanes[k] : least;
    }
    for (; i < n; i++)
        least = x[i] > least ? x[i] : least;
    return least;
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
    vf sum[VALUE_QUERIES][4];

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

    for (; i + VALUE_QUERIES <= n_q; i += VALUE_QUERIES)
        value_queries(acc + (uint64_t)i * dim, factor + i, p + (uint64_t)i * p_stride, p_stride, VALUE_QUERIES, v, n_k,
                      dim);
    for (; i < n_q; i++)
        value_queries(acc + (uint64_t)i * dim, factor + i, p + (uint64_t)i * p_stride, p_stride, 1, v, n_k, dim);
}

static void init_attention(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    ops->kv_encode = kv_encode;
    ops->kv_decode = kv_decode;
    ops->transpose = transpose;
    ops->scores = scores;
    ops->largest = largest;
    ops->exp_sum = exp_sum;
    ops->values = values;
}
