// The plain C kernels: what every other variant is compared with. Compiled with -ffp-contract=off, so that
// they give the same bits on every machine that has the same libm.

#include "kernel/cpu/cpu_ops.h"

#include <math.h>
#include <string.h>

#include "base/assert.h"
#include "base/half.h"

// ---- products -----------------------------------------------------------------------------------

#define LANES 16

// Sums in LANES partial sums of f32, so that the compiler may vectorise without reordering anything, then in double.
// The inner loop counts from zero on pointers that move: GCC 12 makes eight times as fast a loop of that as of one that
// adds its count to an index.
static double dot(const float *a, const float *b, uint32_t n)
{
    const float *end = a + n / LANES * LANES;
    float part[LANES] = {0};
    double sum = 0;

    for (; a < end; a += LANES, b += LANES) {
        for (uint32_t k = 0; k < LANES; k++)
            part[k] += a[k] * b[k];
    }
    for (uint32_t i = 0; i < n % LANES; i++)
        sum += (double)a[i] * b[i];
    for (uint32_t k = 0; k < LANES; k++)
        sum += part[k];
    return sum;
}

static double dot_q8(const struct ew_cpu_q8 *q8, uint32_t row, const float *b, uint32_t n)
{
    const int8_t *q = q8->q + (uint64_t)row * q8->q_stride;
    const float *scale = q8->scale + (uint64_t)row * q8->group_stride;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)q[i] * scale[i / EW_CPU_GROUP] * b[i];
    return sum;
}

static double dot_bf16(const struct ew_cpu_q8 *q8, uint32_t row, const float *b, uint32_t n)
{
    const uint16_t *x = q8->bf16 + (uint64_t)row * q8->q_stride;
    double sum = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)ew_f32_of_bf16(x[i]) * b[i];
    return sum;
}

// Rows are decoded exactly; 8-bit activations stand for q * scale.
static void linear_decoded(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)
{
    const struct ew_cpu_matrix *matrix = job->matrix;
    uint32_t row = tile * EW_CPU_TILE_ROWS, row_end = EW_MIN(tile_end * EW_CPU_TILE_ROWS, matrix->rows);

    for (; row < row_end; row++) {
        ew_cpu_matrix_row(matrix, row, job->scratch);
        for (uint32_t i = 0; i < job->n_rows; i++) {
            const float *x = job->x + (uint64_t)i * job->x_stride;
            double sum = ew_cpu_layout_wants_q8(matrix->layout)     ? dot_q8(job->q8, i, job->scratch, matrix->cols)
                         : ew_cpu_layout_wants_bf16(matrix->layout) ? dot_bf16(job->q8, i, job->scratch, matrix->cols)
                                                                    : dot(x, job->scratch, matrix->cols);

            job->out[(uint64_t)i * job->out_stride + row] = (float)(sum + (job->bias ? job->bias[row] : 0));
        }
    }
}

// ---- rows ---------------------------------------------------------------------------------------

static void norm_rms(float *out, const float *in, const float *weight, const float *bias, uint32_t n, float eps,
                     float weight_offset)
{
    double sum = 0;
    float factor;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)in[i] * in[i];
    factor = (float)(1 / sqrt(sum / n + eps));
    for (uint32_t i = 0; i < n; i++)
        out[i] = in[i] * factor * (weight ? weight[i] + weight_offset : 1) + (bias ? bias[i] : 0);
}

static void norm_layer(float *out, const float *in, const float *weight, const float *bias, uint32_t n, float eps,
                       float weight_offset)
{
    double sum = 0, square = 0, mean;
    float factor;

    for (uint32_t i = 0; i < n; i++)
        sum += in[i];
    mean = sum / n;
    for (uint32_t i = 0; i < n; i++)
        square += (in[i] - mean) * (in[i] - mean);
    factor = (float)(1 / sqrt(square / n + eps));
    for (uint32_t i = 0; i < n; i++)
        out[i] = (float)(in[i] - mean) * factor * (weight ? weight[i] + weight_offset : 1) + (bias ? bias[i] : 0);
}

static float act_one(float x, enum ew_act act)
{
    switch (act) {
    case EW_ACT_SILU:
        return x / (1 + expf(-x));
    case EW_ACT_GELU:
        return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    case EW_ACT_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case EW_ACT_RELU:
        return x > 0 ? x : 0;
    case EW_ACT_RELU2:
        return x > 0 ? x * x : 0;
    case EW_ACT_SIGMOID:
        return 1 / (1 + expf(-x));
    case EW_ACT_TANH:
        return tanhf(x);
    case EW_ACT_NONE:
        break;
    }
    return x;
}

static void act_row(float *out, const float *in, uint32_t n, enum ew_act act)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = act_one(in[i], act);
}

// With a limit the gate is clamped from above and the other side from both; with alpha it is gpt-oss's form,
// gate * sigmoid(alpha * gate) * (up + 1).
static void glu_row(float *out, const float *gate, const float *up, uint32_t n, enum ew_act act, float limit,
                    float alpha)
{
    for (uint32_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i];

        if (limit > 0) {
            g = fminf(g, limit);
            u = fmaxf(fminf(u, limit), -limit);
        }
        out[i] = alpha > 0 ? g / (1 + expf(-alpha * g)) * (u + 1) : act_one(g, act) * u;
    }
}

static void add_row(float *out, const float *a, const float *b, uint32_t n, float scale)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = a[i] + scale * b[i];
}

static void scale_row(float *out, const float *in, uint32_t n, float scale)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = scale * in[i];
}

static void softcap_row(float *out, const float *in, uint32_t n, float cap)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = cap * tanhf(in[i] / cap);
}

static void rope_row(float *x, const float *cos_sin, uint32_t n_dims, uint32_t n_heads, uint32_t head_dim,
                     enum ew_rope_kind kind)
{
    uint32_t half = n_dims / 2, step = kind == EW_ROPE_HALVES ? 1 : 2, apart = kind == EW_ROPE_HALVES ? half : 1;

    for (uint32_t head = 0; head < n_heads; head++, x += head_dim) {
        for (uint32_t i = 0; i < half; i++) {
            float *a = x + i * step, *b = a + apart, c = cos_sin[i], s = cos_sin[half + i], old = *a;

            *a = old * c - *b * s;
            *b = *b * c + old * s;
        }
    }
}

// ---- states -------------------------------------------------------------------------------------

static void conv(float *out, const float *const *rows, const float *weight, uint32_t w_stride, const float *bias,
                 uint32_t n_taps, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        out[i] = bias ? bias[i] : 0;
        for (uint32_t tap = 0; tap < n_taps; tap++)
            out[i] += weight[(uint64_t)tap * w_stride + i] * rows[tap][i];
    }
}

// Column j of the state, which no other column depends on, through one token.
static float scan_column(const struct ew_cpu_scan *job, uint32_t t, uint32_t j)
{
    const float *q = job->q + (uint64_t)t * job->k_dim, *k = job->k + (uint64_t)t * job->k_dim;
    float v = job->v[(uint64_t)t * job->v_stride + j], *s = job->state + j;
    double known = 0, out = 0;
    float u;

    for (uint32_t i = 0; i < job->k_dim && job->is_delta; i++)
        known += (double)k[i] * s[(uint64_t)i * job->v_dim];
    u = (float)(job->gain[t] * (v - job->decay[t] * known));
    for (uint32_t i = 0; i < job->k_dim; i++, s += job->v_dim) {
        *s = job->decay[t] * *s + k[i] * u;
        out += (double)q[i] * *s;
    }
    return (float)(out + job->skip * v);
}

static void scan(const struct ew_cpu_scan *job)
{
    for (uint32_t t = 0; t < job->n_tokens; t++) {
        for (uint32_t j = 0; j < job->v_dim; j++)
            job->out[(uint64_t)t * job->out_stride + j] = scan_column(job, t, j);
    }
}

// ---- caches -------------------------------------------------------------------------------------

static float largest(const float *in, uint32_t n)
{
    float max = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (max == max && !(fabsf(in[i]) <= max)) // a NaN stays
            max = fabsf(in[i]);
    }
    return max;
}

static void encode_8bit(enum ew_kv_dtype dtype, const float *in, uint32_t n, uint8_t *out, uint16_t *scale)
{
    float limit = dtype == EW_KV_F8 ? 448 : 127, step, inverse;

    *scale = ew_f16_of_f32(largest(in, n) / limit);
    step = ew_f32_of_f16(*scale);
    if (!(step > 0 && step < INFINITY)) { // all zero, too small for f16, or not finite: the scale carries it
        memset(out, 0, n);
        return;
    }
    inverse = 1 / step;
    for (uint32_t i = 0; i < n; i++) {
        float x = in[i] * inverse;

        out[i] = dtype == EW_KV_F8 ? ew_e4m3_of_f32(x) : (uint8_t)(int8_t)lrintf(fmaxf(fminf(x, 127), -127));
    }
}

void ew_cpu_ref_kv_encode(enum ew_kv_dtype dtype, const float *in, uint32_t n, void *out, uint16_t *scale)
{
    uint16_t *half = out;

    switch (dtype) {
    case EW_KV_F32:
        memcpy(out, in, n * sizeof(*in));
        break;
    case EW_KV_F16:
        for (uint32_t i = 0; i < n; i++)
            half[i] = ew_f16_of_f32(in[i]);
        break;
    case EW_KV_F8:
    case EW_KV_I8:
        encode_8bit(dtype, in, n, out, scale);
        break;
    }
}

static void decode_row(enum ew_kv_dtype dtype, const void *in, float scale, uint32_t n, float *out)
{
    const uint16_t *half = in;
    const uint8_t *byte = in;

    switch (dtype) {
    case EW_KV_F32:
        memcpy(out, in, n * sizeof(*out));
        break;
    case EW_KV_F16:
        for (uint32_t i = 0; i < n; i++)
            out[i] = ew_f32_of_f16(half[i]);
        break;
    case EW_KV_F8:
        for (uint32_t i = 0; i < n; i++)
            out[i] = ew_f32_of_e4m3(byte[i]) * scale;
        break;
    case EW_KV_I8:
        for (uint32_t i = 0; i < n; i++)
            out[i] = (float)(int8_t)byte[i] * scale;
        break;
    }
}

void ew_cpu_ref_kv_decode(enum ew_kv_dtype dtype, const void *in, const uint16_t *scale, uint32_t n_tokens, uint32_t n,
                          float *out, uint32_t out_stride)
{
    uint64_t row_bytes = (uint64_t)n * (dtype == EW_KV_F32 ? 4 : dtype == EW_KV_F16 ? 2 : 1);
    bool scaled = dtype == EW_KV_F8 || dtype == EW_KV_I8;

    for (uint32_t i = 0; i < n_tokens; i++)
        decode_row(dtype, (const uint8_t *)in + i * row_bytes, scaled ? ew_f32_of_f16(scale[i]) : 1, n,
                   out + (uint64_t)i * out_stride);
}

// ---- attention ----------------------------------------------------------------------------------

static void transpose(const float *k, uint32_t dim, float *out)
{
    for (uint32_t j = 0; j < EW_CPU_KEYS; j++) {
        for (uint32_t d = 0; d < dim; d++)
            out[(uint64_t)d * EW_CPU_KEYS + j] = k[(uint64_t)j * dim + d];
    }
}

static void scores(float *score, const float *q, uint32_t n_q, const float *keys, uint32_t dim)
{
    for (uint32_t i = 0; i < n_q; i++) {
        for (uint32_t j = 0; j < EW_CPU_KEYS; j++) {
            double sum = 0;

            for (uint32_t d = 0; d < dim; d++)
                sum += (double)q[(uint64_t)i * dim + d] * keys[(uint64_t)d * EW_CPU_KEYS + j];
            score[i * EW_CPU_KEYS + j] = (float)sum;
        }
    }
}

static float largest_of(const float *x, uint32_t n, float least)
{
    for (uint32_t i = 0; i < n; i++)
        least = x[i] > least ? x[i] : least;
    return least;
}

static float exp_sum(float *x, uint32_t n, float max)
{
    double sum = 0;

    for (uint32_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    return (float)sum;
}

static void values(float *acc, const float *factor, const float *p, uint32_t p_stride, uint32_t n_q, const float *v,
                   uint32_t n_k, uint32_t dim)
{
    for (uint32_t i = 0; i < n_q; i++, acc += dim, p += p_stride) {
        for (uint32_t d = 0; d < dim; d++)
            acc[d] *= factor[i];
        for (uint32_t j = 0; j < n_k; j++) {
            for (uint32_t d = 0; d < dim; d++)
                acc[d] += p[j] * v[(uint64_t)j * dim + d];
        }
    }
}

static void quantise(const float *x, uint32_t n, int8_t *q, float *scale, int16_t *sum)
{
    for (uint32_t at = 0; at < n; at += EW_CPU_GROUP, q += EW_CPU_GROUP, scale++, sum += 2) {
        uint32_t len = EW_MIN(n - at, EW_CPU_GROUP);
        float max = largest(x + at, len), inverse = max >= 1e-30f && max < INFINITY ? 127 / max : 0;

        *scale = max < INFINITY ? max / 127 : NAN; // what is not finite must not look like a number
        sum[0] = sum[1] = 0;
        for (uint32_t i = 0; i < EW_CPU_GROUP; i++) {
            q[i] = (int8_t)(i < len && inverse > 0 ? lrintf(x[at + i] * inverse) : 0);
            sum[i / (EW_CPU_GROUP / 2)] = (int16_t)(sum[i / (EW_CPU_GROUP / 2)] + q[i]);
        }
    }
}

static void round_bf16(const float *x, uint32_t n, uint16_t *out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = ew_bf16_of_f32(x[i]);
    for (uint32_t i = n; i % EW_CPU_GROUP; i++)
        out[i] = 0;
}

void ew_cpu_quantise_row(const struct ew_cpu_ops *ops, const float *x, uint32_t n, const struct ew_cpu_q8 *q8,
                         uint32_t row)
{
    uint64_t first = (uint64_t)row * q8->group_stride;
    const int16_t *sum;

    if (q8->bf16)
        ops->round_bf16(x, n, q8->bf16 + (uint64_t)row * q8->q_stride);
    if (!q8->q)
        return;
    sum = q8->sum + 2 * first;
    ops->quantise(x, n, q8->q + (uint64_t)row * q8->q_stride, q8->scale + first, q8->sum + 2 * first);
    for (uint32_t i = 0; i * EW_CPU_GROUP < n; i++)
        q8->scaled_sum[first + i] = q8->scale[first + i] * (float)(sum[2 * i] + sum[2 * i + 1]);
}

// ---- the machine's peak -------------------------------------------------------------------------

static double multiply_add(uint64_t n_rounds, float *sink)
{
    float sum[LANES], a = *sink;

    for (uint32_t i = 0; i < LANES; i++)
        sum[i] = (float)i;
    for (uint64_t n = 0; n < n_rounds; n++) {
        for (uint32_t i = 0; i < LANES; i++)
            sum[i] = sum[i] * 0.5f + a;
    }
    *sink = 0;
    for (uint32_t i = 0; i < LANES; i++)
        *sink += sum[i];
    return 2.0 * LANES * (double)n_rounds;
}

void ew_cpu_ops_init_reference(struct ew_cpu_ops *ops)
{
    *ops = (struct ew_cpu_ops){
        .isa = "reference",
        .multiply_add = multiply_add,
        .round_bf16 = round_bf16,
        .quantise = quantise,
        .norm = {[EW_NORM_RMS] = norm_rms, [EW_NORM_LAYER] = norm_layer},
        .act = act_row,
        .glu = glu_row,
        .add = add_row,
        .scale = scale_row,
        .softcap = softcap_row,
        .rope = rope_row,
        .conv = conv,
        .scan = scan,
        .kv_encode = ew_cpu_ref_kv_encode,
        .kv_decode = ew_cpu_ref_kv_decode,
        .transpose = transpose,
        .scores = scores,
        .largest = largest_of,
        .exp_sum = exp_sum,
        .values = values,
    };
    for (int layout = 0; layout < EW_CPU_LAYOUT_COUNT; layout++)
        ops->linear[layout] = linear_decoded;
}
