// Mixers whose past is a state (EW_OP_CONV, EW_OP_SCAN), and the choice of columns around them (EW_OP_PICK). States are
// f32 and lie in blocks of a cache group; tokens of a sequence go one after the other, so that chunks, single steps and
// batches compute the same.

#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/state_job.h"

KERNEL pick_columns(float *out, u32 out_stride, const float *in, u32 in_stride, u32 stride, u32 n_groups, u32 first0,
                    u32 width0, u32 first1, u32 width1, u32 first2, u32 width2)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD, begin1 = n_groups * width0, begin2 = begin1 + n_groups * width1;
    u32 at = i < begin1 ? i : i < begin2 ? i - begin1 : i - begin2;
    u32 width = i < begin1 ? width0 : i < begin2 ? width1 : width2;
    u32 first = i < begin1 ? first0 : i < begin2 ? first1 : first2;

    kernel_begin();
    if (i < begin2 + n_groups * width2)
        out[row * out_stride + i] = in[row * in_stride + at / width * stride + first + at % width];
}

INLINE float *state_of(const struct ew_state_place *place, u32 seq)
{
    const u32 *table_at = (const u32 *)place->table_at;
    const i32 *tables = (const i32 *)place->tables;

    return (float *)(place->data + (u64)tables[table_at[seq]] * place->block_bytes + place->layer_at);
}

// A sequence's rows in this step, and the tokens before them.
struct span {
    u32 begin, end, n_past;
};

INLINE struct span span_of(const struct ew_state_place *place, u32 seq)
{
    const u32 *first = (const u32 *)place->seq_first, *index = (const u32 *)place->token_index;

    return (struct span){first[seq], first[seq + 1], index[first[seq]]};
}

// ---- convolution --------------------------------------------------------------------------------

// Channel c of the row that stands `back` rows before `row`.
INLINE float channel_at(const struct ew_conv_job *job, const float *past, struct span span, u32 row, u32 back, u32 c)
{
    const float *in = (const float *)job->in;
    u32 inside = row - span.begin;

    if (back <= inside)
        return in[(u64)(row - back) * job->in_stride + c];
    return span.n_past == 0 ? 0 : past[(u64)(job->n_taps - 1 + inside - back) * job->width + c];
}

// The last rows of what came before and of this step become what came before. What is read stands behind what is
// written.
INLINE void advance(const struct ew_conv_job *job, float *past, struct span span, u32 c)
{
    for (u32 j = 0; j + 1 < job->n_taps; j++)
        past[(u64)j * job->width + c] = channel_at(job, past, span, span.end - 1, job->n_taps - 2 - j, c);
}

// Grid: channels, tokens.
KERNEL conv(struct ew_conv_job job)
{
    u32 c = BLOCK_X * N_THREADS + THREAD, row = BLOCK_Y, seq = ((const u32 *)job.place.token_seq)[row];
    const float *weight = (const float *)job.weight + (u64)c * job.n_taps, *bias = (const float *)job.bias;
    struct span span = span_of(&job.place, seq);
    float *past = state_of(&job.place, seq), sum;

    kernel_begin();
    if (c >= job.width)
        return;
    sum = bias ? bias[c] : 0;
    for (u32 tap = 0; tap < job.n_taps; tap++)
        sum += weight[tap] * channel_at(&job, past, span, row, job.n_taps - 1 - tap, c);
    ((float *)job.out)[(u64)row * job.out_stride + c] = act_one(sum, job.act);
    if (job.advances)
        advance(&job, past, span, c);
}

// Grid: channels, sequences.
KERNEL conv_advance(struct ew_conv_job job)
{
    u32 c = BLOCK_X * N_THREADS + THREAD, seq = BLOCK_Y;

    kernel_begin();
    if (c < job.width)
        advance(&job, state_of(&job.place, seq), span_of(&job.place, seq), c);
}

// ---- recurrence ---------------------------------------------------------------------------------

#define TOKENS 16 // that a block prepares together
#define PARTS 4   // lanes that share a column
#define LANE_COLUMNS (32 / PARTS)
#define WARPS (EW_STATE_THREADS / 32)

static SHARED float g_q[TOKENS][EW_STATE_KEY_DIM_MAX], g_k[TOKENS][EW_STATE_KEY_DIM_MAX];
static SHARED float g_v[TOKENS][EW_STATE_COLUMNS];
static SHARED float g_decay[TOKENS], g_gain[TOKENS];

// log(1 + exp(x)) from log(1 + e) = 2 atanh(e / (2 + e)) with e = exp(-|x|): the series' argument is at most 1/3.
INLINE float softplus(float x)
{
    float e = exp_f32(-abs_f32(x)), s = e / (2 + e), s2 = s * s, r;

    r = 1 + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9 + s2 * (1.0f / 11 +
        s2 * (1.0f / 13 + s2 * (1.0f / 15)))))));
    return max_f32(x, 0) + 2 * s * r;
}

// A warp's row of q or k, at length `length` under the delta rule; zeros behind it up to `padded`.
INLINE void put_key(SHARED float *to, const float *from, u32 k_dim, u32 padded, u32 is_delta, float length)
{
    u32 lane = THREAD % 32;
    float sum = 0;

    for (u32 i = lane; i < k_dim; i += 32)
        sum += from[i] * from[i];
    // 1e-6 is the published models' and stands beside the sum of squares.
    sum = is_delta ? length * rsqrt_f32(warp_sum(sum) + 1e-6f) : 1;
    for (u32 i = lane; i < padded; i += 32)
        to[i] = i < k_dim ? from[i] * sum : 0;
}

INLINE void put_gates(const struct ew_scan_job *job, u32 head, u32 i, u32 row)
{
    const float *steps = (const float *)job->step + (u64)row * job->step_stride;
    const float *gains = (const float *)job->gain + (u64)row * job->gain_stride;
    float step = softplus(steps[head] + ((const float *)job->bias)[head]);

    g_decay[i] = exp_f32(((const float *)job->rate)[head] * step);
    g_gain[i] = job->is_delta ? 1 / (1 + exp_f32(-gains[head])) : step;
}

// Queries, keys, values and gates of rows [row, row + n).
INLINE void prepare(const struct ew_scan_job *job, u32 head, u32 group, u32 column, u32 padded, u32 row, u32 n)
{
    u32 thread = THREAD, warp = thread / 32, lane = thread % 32;

    for (u32 i = warp; i < n; i += WARPS) {
        const float *in = (const float *)job->in + (u64)(row + i) * job->in_stride;

        put_key(g_q[i], in + job->q_first + group * job->k_dim, job->k_dim, padded, job->is_delta,
                rsqrt_f32((float)job->k_dim));
        put_key(g_k[i], in + job->k_first + group * job->k_dim, job->k_dim, padded, job->is_delta, 1);
        g_v[i][lane] = column + lane < job->v_dim ? in[job->v_first + head * job->v_dim + column + lane] : 0;
    }
    if (thread < n)
        put_gates(job, head, thread, row + thread);
}

// Of the four lanes of a column.
INLINE float column_sum(float v)
{
    UNROLL
    for (u32 o = LANE_COLUMNS; o < 32; o *= 2)
        v += shuffle_xor(v, o);
    return v;
}

// One token: R rows of a column's state in this lane's registers.
INLINE float take_up(u32 R, float *s, u32 t, u32 part, u32 column, u32 is_delta)
{
    float decay = g_decay[t], known = 0, out = 0, u;

    UNROLL
    for (u32 i = 0; i < R; i++) {
        s[i] *= decay;
        known += g_k[t][i * PARTS + part] * s[i];
    }
    u = g_gain[t] * (g_v[t][column] - (is_delta ? column_sum(known) : 0));
    UNROLL
    for (u32 i = 0; i < R; i++) {
        s[i] += g_k[t][i * PARTS + part] * u;
        out += g_q[t][i * PARTS + part] * s[i];
    }
    return column_sum(out);
}

// A block: EW_STATE_COLUMNS columns of a head's state, which the lanes keep in registers, through a sequence's tokens.
INLINE void scan(u32 R, const struct ew_scan_job *job)
{
    u32 splits = (job->v_dim + EW_STATE_COLUMNS - 1) / EW_STATE_COLUMNS, head = BLOCK_X / splits, seq = BLOCK_Y;
    u32 first = BLOCK_X % splits * EW_STATE_COLUMNS, lane = THREAD % 32, part = lane / LANE_COLUMNS;
    u32 column = THREAD / 32 * LANE_COLUMNS + lane % LANE_COLUMNS, has = first + column < job->v_dim;
    u32 group = job->is_tiled ? head % job->n_groups : head / (job->n_heads / job->n_groups);
    struct span span = span_of(&job->place, seq);
    u64 at = job->state_first + (u64)head * job->k_dim * job->v_dim + first + column;
    float *state = state_of(&job->place, seq) + at, *out = (float *)job->out + head * job->v_dim + first + column;
    float s[EW_STATE_KEY_DIM_MAX / PARTS], skip = job->skip ? ((const float *)job->skip)[head] : 0;

    kernel_begin();
    UNROLL
    for (u32 i = 0; i < R; i++) {
        s[i] = 0;
        if (has && span.n_past && i * PARTS + part < job->k_dim)
            s[i] = state[(u64)(i * PARTS + part) * job->v_dim];
    }
    for (u32 row = span.begin; row < span.end; row += TOKENS) {
        u32 n = min_u32(span.end - row, TOKENS);

        block_sync();
        prepare(job, head, group, first, R * PARTS, row, n);
        block_sync();
        for (u32 t = 0; t < n; t++) {
            float sum = take_up(R, s, t, part, column, job->is_delta);

            if (has && part == 0)
                out[(u64)(row + t) * job->out_stride] = sum + skip * g_v[t][column];
        }
    }
    UNROLL
    for (u32 i = 0; i < R; i++)
        if (has && i * PARTS + part < job->k_dim)
            state[(u64)(i * PARTS + part) * job->v_dim] = s[i];
}

// By keys of up to 64, 128 and 256 elements. Grid: heads and parts of their values, sequences.
#define DEFINE(name, R) \
    KERNEL name(struct ew_scan_job job) \
    { \
        scan(R, &job); \
    }

DEFINE(scan_64, 16)
DEFINE(scan_128, 32)
DEFINE(scan_256, 64)
