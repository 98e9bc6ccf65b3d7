// Kernels that work on rows of f32 one by one: lookup, norms, rotary positions, activations. One block a row.

#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/block.h"

KERNEL embed(float *out, u32 out_stride, const i32 *token, const u8 *codes, const u16 *scales, const u16 *mins,
             u32 layout, u32 width, float scale)
{
    struct weight w = {codes, scales, mins};
    u64 row = token[BLOCK_X] < 0 ? 0 : (u64)token[BLOCK_X]; // of a step that ran ahead and whose token the host chooses

    kernel_begin();
    out += (u64)BLOCK_X * out_stride;
    for (u32 i = BLOCK_Y * N_THREADS + THREAD; i < width; i += N_BLOCKS_Y * N_THREADS)
        out[i] = scale * weight_at(layout, &w, row, i, width);
}

KERNEL add_position(float *out, u32 out_stride, const float *in, u32 in_stride, const i32 *position, i32 first,
                    const u8 *codes, const u16 *scales, const u16 *mins, u32 layout, u32 width)
{
    struct weight w = {codes, scales, mins};
    u64 row = (u64)(position[BLOCK_X] + first);

    kernel_begin();
    out += (u64)BLOCK_X * out_stride;
    in += (u64)BLOCK_X * in_stride;
    for (u32 i = BLOCK_Y * N_THREADS + THREAD; i < width; i += N_BLOCKS_Y * N_THREADS)
        out[i] = in[i] + weight_at(layout, &w, row, i, width);
}

// A block a group of a row. The mean is zero for RMS norms.
KERNEL norm(float *out, u32 out_stride, const float *in, u32 in_stride, const float *weight, const float *bias,
            u32 group, float eps, float weight_offset, u32 weight_per_group, u32 is_layer)
{
    u32 at = BLOCK_Y * group, skip = weight_per_group ? at : 0;
    float mean = 0, sum = 0, factor;

    kernel_begin();
    in += (u64)BLOCK_X * in_stride + at;
    out += (u64)BLOCK_X * out_stride + at;
    if (is_layer) {
        for (u32 i = THREAD; i < group; i += N_THREADS)
            sum += in[i];
        mean = block_sum(N_THREADS, sum) / (float)group;
        sum = 0;
    }
    for (u32 i = THREAD; i < group; i += N_THREADS)
        sum += (in[i] - mean) * (in[i] - mean);
    factor = rsqrt_f32(block_sum(N_THREADS, sum) / (float)group + eps);
    for (u32 i = THREAD; i < group; i += N_THREADS) {
        float w = weight ? weight[skip + i] + weight_offset : 1, b = bias ? bias[skip + i] : 0;

        out[i] = (in[i] - mean) * factor * w + b;
    }
}

// sin and cos of an angle in turns, |turns| <= 1/2, by quadrant; polynomials of Cephes' sinf and cosf.
INLINE void sin_cos_turns(float turns, float *sine, float *cosine)
{
    i32 quadrant = (i32)__builtin_floorf(turns * 4 + 0.5f);
    float x = (turns - (float)quadrant * 0.25f) * 6.28318530718f, x2 = x * x;
    float s = x + x * x2 * (-1.6666654611e-1f + x2 * (8.3321608736e-3f + x2 * -1.9515295891e-4f));
    float c = 1 - 0.5f * x2 + x2 * x2 * (4.166664568298827e-2f + x2 * (-1.388731625493765e-3f +
              x2 * 2.443315711809948e-5f));
    u32 q = (u32)quadrant & 3;

    *sine = q == 0 ? s : q == 1 ? c : q == 2 ? -s : -c;
    *cosine = q == 0 ? c : q == 1 ? -s : q == 2 ? -c : s;
}

// Cosines, then sines, of every pair of a token. Frequencies are of the token's sequence, in turns; sections are
// counts of neighbouring pairs that share a dimension of the position.
KERNEL rope_table(float *out, const i32 *position, u32 n_tokens, const u32 *token_seq, const double *frequency,
                  const float *scale, u32 half, u32 section0, u32 section1, u32 section2)
{
    u32 token = BLOCK_X, seq = token_seq[token];

    kernel_begin();
    out += (u64)token * 2 * half;
    for (u32 i = THREAD; i < half; i += N_THREADS) {
        u32 d = i < section0 || section0 == 0           ? 0
                : i < section0 + section1               ? 1
                : i < section0 + section1 + section2    ? 2
                                                        : 3;
        double turns = (double)position[d * n_tokens + token] * frequency[(u64)seq * half + i];
        float s, c;

        turns -= __builtin_floor(turns + 0.5);
        sin_cos_turns((float)turns, &s, &c);
        out[i] = c * scale[seq];
        out[half + i] = s * scale[seq];
    }
}

KERNEL rope(float *x, u32 stride, const float *table, u32 n_dims, u32 first, u32 n_heads, u32 head_dim, u32 pairs)
{
    u32 half = n_dims / 2;

    kernel_begin();
    x += (u64)BLOCK_X * stride + first;
    table += (u64)BLOCK_X * n_dims;
    for (u32 i = THREAD; i < n_heads * half; i += N_THREADS) {
        u32 head = i / half, pair = i % half;
        float *a = x + (u64)head * head_dim + (pairs ? 2 * pair : pair), *b = a + (pairs ? 1 : half);
        float c = table[pair], s = table[half + pair], old = *a;

        *a = old * c - *b * s;
        *b = *b * c + old * s;
    }
}

KERNEL act(float *out, u32 out_stride, const float *in, u32 in_stride, u32 width, u32 kind, float limit)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;
    float x;

    kernel_begin();
    if (i >= width)
        return;
    x = act_one(in[row * in_stride + i], kind);
    out[row * out_stride + i] = limit > 0 ? max_f32(min_f32(x, limit), -limit) : x;
}

KERNEL glu(float *out, u32 out_stride, const float *gate, u32 gate_stride, const float *up, u32 up_stride, u32 width,
           u32 kind, float limit, float alpha)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;

    kernel_begin();
    if (i >= width)
        return;
    out[row * out_stride + i] = glu_one(gate[row * gate_stride + i], up[row * up_stride + i], kind, limit, alpha);
}

KERNEL add(float *out, u32 out_stride, const float *a, u32 a_stride, const float *b, u32 b_stride, u32 width,
           float scale)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;

    kernel_begin();
    if (i < width)
        out[row * out_stride + i] = a[row * a_stride + i] + scale * b[row * b_stride + i];
}

// `by`: NULL, or rows whose `column` multiplies the whole row.
KERNEL scale(float *out, u32 out_stride, const float *in, u32 in_stride, const float *by, u32 by_stride, u32 column,
             u32 width, float factor)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;

    kernel_begin();
    if (i < width)
        out[row * out_stride + i] = in[row * in_stride + i] * (by ? by[row * by_stride + column] : factor);
}

KERNEL softcap(float *out, u32 out_stride, const float *in, u32 in_stride, u32 width, float cap)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;

    kernel_begin();
    if (i < width)
        out[row * out_stride + i] = cap * tanh_f32(in[row * in_stride + i] / cap);
}

// Row i of the result is row from[i], or row i where from is NULL.
KERNEL gather(float *out, u32 out_stride, const float *in, u32 in_stride, const u32 *from, u32 width)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD;

    kernel_begin(); // what comes from where may be an earlier kernel's work, too
    if (i < width)
        out[row * out_stride + i] = in[(from ? from[row] : row) * in_stride + i];
}

// Row i of the result is the mean over the sequence of token from[i]; sequence s has the rows [first[s], first[s + 1]).
KERNEL gather_mean(float *out, u32 out_stride, const float *in, u32 in_stride, const u32 *from, const u32 *token_seq,
                   const u32 *first, u32 width)
{
    u64 row = BLOCK_Y;
    u32 i = BLOCK_X * N_THREADS + THREAD, seq = token_seq[from[row]], begin = first[seq], end = first[seq + 1];
    float sum = 0;

    kernel_begin();
    if (i >= width)
        return;
    for (u32 t = begin; t < end; t++)
        sum += in[(u64)t * in_stride + i];
    out[row * out_stride + i] = sum / (float)(end - begin);
}

// Rows to 8 bits, a scale a group of 32 columns: one warp a group. `sums` is the scale times the sum of a group's
// codes. `order`: NULL, or which element of its row each column is.
KERNEL quantise(i8 *codes, float *scales, float *sums, const float *in, u32 in_stride, u32 width, const u32 *order)
{
    u32 group = BLOCK_X * (N_THREADS / 32) + THREAD / 32, lane = THREAD % 32, n_groups = width / 32;
    u64 row = BLOCK_Y;
    float x, max, code;

    kernel_begin();
    if (group >= n_groups)
        return;
    x = in[row * in_stride + (order ? order[group * 32 + lane] : group * 32 + lane)];
    max = warp_max(abs_f32(x));
    code = max > 1e-30f ? __builtin_rintf(x * (127 / max)) : 0;
    codes[row * width + group * 32 + lane] = (i8)code;
    code = warp_sum(code);
    if (lane == 0) {
        scales[row * n_groups + group] = max / 127;
        sums[row * n_groups + group] = max / 127 * code;
    }
}
