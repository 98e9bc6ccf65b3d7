// What works on single rows: norms, activations, rotary positions, quantisation; included once for each
// instruction set.
//
// Rows may have any length: the last few elements go through a padded copy, so that each element's arithmetic
// is the same wherever it stands.

#include <math.h>

#include "kernel/cpu/math_tmpl.h"

VEC_INLINE vf load_some(const float *p, uint32_t n, float fill)
{
    float padded[VF];

    if (n >= VF)
        return vf_load(p);
    for (uint32_t i = 0; i < VF; i++)
        padded[i] = i < n ? p[i] : fill;
    return vf_load(padded);
}

VEC_INLINE void store_some(float *p, uint32_t n, vf v)
{
    float padded[VF];

    if (n >= VF) {
        vf_store(p, v);
        return;
    }
    vf_store(padded, v);
    memcpy(p, padded, n * sizeof(*p));
}

// ---- norms --------------------------------------------------------------------------------------

VEC_INLINE float sum_of(const float *in, uint32_t n)
{
    vf a = vf_zero(), b = vf_zero();
    uint32_t i = 0;

    for (; i + 2 * VF <= n; i += 2 * VF) {
        a = vf_add(a, vf_load(in + i));
        b = vf_add(b, vf_load(in + i + VF));
    }
    for (; i < n; i += VF)
        a = vf_add(a, load_some(in + i, n - i, 0));
    return vf_sum(vf_add(a, b));
}

// Sum of (in - mean)^2.
VEC_INLINE float square_sum(const float *in, uint32_t n, float mean)
{
    vf m = vf_set1(mean), a = vf_zero(), b = vf_zero(), x;
    uint32_t i = 0;

    for (; i + 2 * VF <= n; i += 2 * VF) {
        x = vf_sub(vf_load(in + i), m);
        a = vf_fma(x, x, a);
        x = vf_sub(vf_load(in + i + VF), m);
        b = vf_fma(x, x, b);
    }
    for (; i < n; i += VF) {
        x = vf_sub(load_some(in + i, n - i, mean), m);
        a = vf_fma(x, x, a);
    }
    return vf_sum(vf_add(a, b));
}

VEC_INLINE void norm_with(float *out, const float *in, const float *weight, const float *bias, uint32_t n, float mean,
                          float factor, float weight_offset)
{
    vf m = vf_set1(mean), f = vf_set1(factor), offset = vf_set1(weight_offset);

    for (uint32_t i = 0; i < n; i += VF) {
        vf x = vf_mul(vf_sub(load_some(in + i, n - i, 0), m), f);

        if (weight)
            x = vf_mul(x, vf_add(load_some(weight + i, n - i, 0), offset));
        if (bias)
            x = vf_add(x, load_some(bias + i, n - i, 0));
        store_some(out + i, n - i, x);
    }
}

static void norm_rms(float *out, const float *in, const float *weight, const float *bias, uint32_t n, float eps,
                     float weight_offset)
{
    float factor = 1 / sqrtf(square_sum(in, n, 0) / (float)n + eps);

    norm_with(out, in, weight, bias, n, 0, factor, weight_offset);
}

static void norm_layer(float *out, const float *in, const float *weight, const float *bias, uint32_t n, float eps,
                       float weight_offset)
{
    float mean = sum_of(in, n) / (float)n;
    float factor = 1 / sqrtf(square_sum(in, n, mean) / (float)n + eps);

    norm_with(out, in, weight, bias, n, mean, factor, weight_offset);
}

// ---- elementwise --------------------------------------------------------------------------------

VEC_INLINE void act_row_of(float *out, const float *in, uint32_t n, enum ew_act act)
{
    for (uint32_t i = 0; i < n; i += VF)
        store_some(out + i, n - i, vf_act(act, load_some(in + i, n - i, 0)));
}

static void act_row(float *out, const float *in, uint32_t n, enum ew_act act)
{
    switch (act) { // one loop each, without a choice inside
    case EW_ACT_NONE:
        act_row_of(out, in, n, EW_ACT_NONE);
        break;
    case EW_ACT_SILU:
        act_row_of(out, in, n, EW_ACT_SILU);
        break;
    case EW_ACT_GELU:
        act_row_of(out, in, n, EW_ACT_GELU);
        break;
    case EW_ACT_GELU_TANH:
        act_row_of(out, in, n, EW_ACT_GELU_TANH);
        break;
    case EW_ACT_RELU:
        act_row_of(out, in, n, EW_ACT_RELU);
        break;
    case EW_ACT_RELU2:
        act_row_of(out, in, n, EW_ACT_RELU2);
        break;
    case EW_ACT_SIGMOID:
        act_row_of(out, in, n, EW_ACT_SIGMOID);
        break;
    case EW_ACT_TANH:
        act_row_of(out, in, n, EW_ACT_TANH);
        break;
    }
}

VEC_INLINE void glu_row_of(float *out, const float *gate, const float *up, uint32_t n, enum ew_act act)
{
    for (uint32_t i = 0; i < n; i += VF)
        store_some(out + i, n - i, vf_mul(vf_act(act, load_some(gate + i, n - i, 0)), load_some(up + i, n - i, 0)));
}

VEC_INLINE void glu_row_limited(float *out, const float *gate, const float *up, uint32_t n, enum ew_act act,
                                float limit, float alpha)
{
    vf most = vf_set1(limit > 0 ? limit : INFINITY), least = vf_neg(most);

    for (uint32_t i = 0; i < n; i += VF) {
        vf g = vf_min(most, load_some(gate + i, n - i, 0)),
           u = vf_max(least, vf_min(most, load_some(up + i, n - i, 0)));

        if (alpha > 0)
            g = vf_mul(vf_mul(g, vf_sigmoid(vf_mul(vf_set1(alpha), g))), vf_add(u, vf_set1(1)));
        else
            g = vf_mul(vf_act(act, g), u);
        store_some(out + i, n - i, g);
    }
}

static void glu_row(float *out, const float *gate, const float *up, uint32_t n, enum ew_act act, float limit,
                    float alpha)
{
    if (limit > 0 || alpha > 0)
        glu_row_limited(out, gate, up, n, act, limit, alpha);
    else if (act == EW_ACT_SILU)
        glu_row_of(out, gate, up, n, EW_ACT_SILU);
    else if (act == EW_ACT_GELU_TANH)
        glu_row_of(out, gate, up, n, EW_ACT_GELU_TANH);
    else
        glu_row_of(out, gate, up, n, act);
}

static void add_row(float *out, const float *a, const float *b, uint32_t n, float scale)
{
    vf s = vf_set1(scale);

    for (uint32_t i = 0; i < n; i += VF)
        store_some(out + i, n - i, vf_fma(s, load_some(b + i, n - i, 0), load_some(a + i, n - i, 0)));
}

static void scale_row(float *out, const float *in, uint32_t n, float scale)
{
    vf s = vf_set1(scale);

    for (uint32_t i = 0; i < n; i += VF)
        store_some(out + i, n - i, vf_mul(s, load_some(in + i, n - i, 0)));
}

static void softcap_row(float *out, const float *in, uint32_t n, float cap)
{
    vf c = vf_set1(cap), inverse = vf_set1(1 / cap);

    for (uint32_t i = 0; i < n; i += VF)
        store_some(out + i, n - i, vf_mul(c, vf_tanh(vf_mul(inverse, load_some(in + i, n - i, 0)))));
}

// ---- rotary positions ---------------------------------------------------------------------------

static void rotate_halves(float *x, const float *cosines, const float *sines, uint32_t half)
{
    for (uint32_t i = 0; i < half; i += VF) {
        uint32_t n = half - i;
        vf a = load_some(x + i, n, 0), b = load_some(x + half + i, n, 0);
        vf c = load_some(cosines + i, n, 0), s = load_some(sines + i, n, 0);

        store_some(x + i, n, vf_fnma(b, s, vf_mul(a, c)));
        store_some(x + half + i, n, vf_fma(a, s, vf_mul(b, c)));
    }
}

static void rotate_pairs(float *x, const float *cosines, const float *sines, uint32_t half)
{
    for (uint32_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1];

        x[2 * i] = a * cosines[i] - b * sines[i];
        x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
}

static void rope_row(float *x, const float *cos_sin, uint32_t n_dims, uint32_t n_heads, uint32_t head_dim,
                     enum ew_rope_kind kind)
{
    uint32_t half = n_dims / 2;

    for (uint32_t head = 0; head < n_heads; head++, x += head_dim) {
        if (kind == EW_ROPE_HALVES)
            rotate_halves(x, cos_sin, cos_sin + half, half);
        else
            rotate_pairs(x, cos_sin, cos_sin + half, half);
    }
}

// ---- states -------------------------------------------------------------------------------------

static void conv(float *out, const float *const *rows, const float *weight, uint32_t w_stride, const float *bias,
                 uint32_t n_taps, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += VF) {
        vf sum = bias ? load_some(bias + i, n - i, 0) : vf_zero();

        for (uint32_t tap = 0; tap < n_taps; tap++)
            sum = vf_fma(load_some(weight + (uint64_t)tap * w_stride + i, n - i, 0), load_some(rows[tap] + i, n - i, 0),
                         sum);
        store_some(out + i, n - i, sum);
    }
}

#define SCAN_VECTORS 4 // columns of the state that are worked on together: as many sums hide most of the latency

// One token through columns [c, c + n) of the state, n_vectors vectors of them.
VEC_INLINE void scan_token(const struct ew_cpu_scan *job, uint32_t t, uint32_t c, uint32_t n, uint32_t n_vectors)
{
    const float *q = job->q + (uint64_t)t * job->k_dim, *k = job->k + (uint64_t)t * job->k_dim,
                *v = job->v + (uint64_t)t * job->v_stride + c;
    float *out = job->out + (uint64_t)t * job->out_stride + c, *s = job->state + c;
    vf decay = vf_set1(job->decay[t]), gain = vf_set1(job->gain[t]), skip = vf_set1(job->skip);
    vf u[SCAN_VECTORS], sum[SCAN_VECTORS];

    for (uint32_t j = 0; j < n_vectors; j++)
        sum[j] = vf_zero();
    for (uint32_t i = 0; i < job->k_dim && job->is_delta; i++) {
        for (uint32_t j = 0; j < n_vectors; j++)
            sum[j] = vf_fma(vf_set1(k[i]), load_some(s + (uint64_t)i * job->v_dim + j * VF, n - j * VF, 0), sum[j]);
    }
    for (uint32_t j = 0; j < n_vectors; j++) {
        u[j] = vf_mul(gain, vf_fnma(decay, sum[j], load_some(v + j * VF, n - j * VF, 0)));
        sum[j] = vf_mul(skip, load_some(v + j * VF, n - j * VF, 0));
    }
    for (uint32_t i = 0; i < job->k_dim; i++, s += job->v_dim) {
        for (uint32_t j = 0; j < n_vectors; j++) {
            vf x = vf_fma(vf_set1(k[i]), u[j], vf_mul(decay, load_some(s + j * VF, n - j * VF, 0)));

            store_some(s + j * VF, n - j * VF, x);
            sum[j] = vf_fma(vf_set1(q[i]), x, sum[j]);
        }
    }
    for (uint32_t j = 0; j < n_vectors; j++)
        store_some(out + j * VF, n - j * VF, sum[j]);
}

// All tokens go through some columns before the next ones: these stay in the innermost cache.
static void scan(const struct ew_cpu_scan *job)
{
    uint32_t c = 0;

    for (; c + SCAN_VECTORS * VF <= job->v_dim; c += SCAN_VECTORS * VF) {
        for (uint32_t t = 0; t < job->n_tokens; t++)
            scan_token(job, t, c, SCAN_VECTORS * VF, SCAN_VECTORS);
    }
    for (; c < job->v_dim; c += VF) {
        for (uint32_t t = 0; t < job->n_tokens; t++)
            scan_token(job, t, c, job->v_dim - c, 1);
    }
}

// ---- 8-bit activations --------------------------------------------------------------------------

VEC_INLINE void quantise_group(const float *x, int8_t *q, float *scale, int16_t *sum)
{
    vf v[EW_CPU_GROUP / VF], factor;
    vi largest = vi_zero(), sums[2] = {vi_zero(), vi_zero()};
    float max;

    for (uint32_t i = 0; i < EW_CPU_GROUP / VF; i++) {
        v[i] = vf_load(x + i * VF);
        largest = vi_max(largest, vi_bits(vf_abs(v[i]))); // magnitudes order as integers do, NaN last
    }
    max = ew_f32_of_bits((uint32_t)vi_largest(largest));
    *scale = max < INFINITY ? max / 127 : NAN;
    factor = vf_set1(max >= 1e-30f && max < INFINITY ? 127 / max : 0);
    for (uint32_t i = 0; i < EW_CPU_GROUP / VF; i++) {
        vi whole = max < INFINITY ? vi_round(vf_mul(v[i], factor)) : vi_zero();

        sums[i / (EW_CPU_GROUP / 2 / VF)] = vi_add(sums[i / (EW_CPU_GROUP / 2 / VF)], whole);
        vi_store_i8(q + i * VF, whole);
    }
    sum[0] = (int16_t)vi_sum(sums[0]);
    sum[1] = (int16_t)vi_sum(sums[1]);
}

static void quantise(const float *x, uint32_t n, int8_t *q, float *scale, int16_t *sum)
{
    float last[EW_CPU_GROUP] = {0};
    uint32_t i = 0;

    for (; i + EW_CPU_GROUP <= n; i += EW_CPU_GROUP, q += EW_CPU_GROUP, sum += 2)
        quantise_group(x + i, q, scale++, sum);
    if (i == n)
        return;
    memcpy(last, x + i, (n - i) * sizeof(*x));
    quantise_group(last, q, scale, sum);
}

// ---- the machine's peak -------------------------------------------------------------------------

#define CHAINS 12 // independent sums: latency times throughput of the units there are

static double multiply_add(uint64_t n_rounds, float *sink)
{
    vf sum[CHAINS], a = vf_set1(*sink), b = vf_set1(0.5f);

    for (uint32_t i = 0; i < CHAINS; i++)
        sum[i] = vf_set1((float)i);
    for (uint64_t n = 0; n < n_rounds; n++) {
        for (uint32_t i = 0; i < CHAINS; i++)
            sum[i] = vf_fma(sum[i], b, a);
    }
    for (uint32_t i = 1; i < CHAINS; i++)
        sum[0] = vf_add(sum[0], sum[i]);
    *sink = vf_sum(sum[0]);
    return 2.0 * VF * CHAINS * (double)n_rounds;
}

static void init_rows(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    ops->multiply_add = multiply_add;
    ops->quantise = quantise;
    ops->norm[EW_NORM_RMS] = norm_rms;
    ops->norm[EW_NORM_LAYER] = norm_layer;
    ops->act = act_row;
    ops->glu = glu_row;
    ops->add = add_row;
    ops->scale = scale_row;
    ops->softcap = softcap_row;
    ops->rope = rope_row;
    ops->conv = conv;
    ops->scan = scan;
}
