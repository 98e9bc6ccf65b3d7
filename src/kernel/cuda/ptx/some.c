// Products of a matrix with some rows of activations, which are in 16 bits, on the tensor cores. What bounds them is
// reading the matrix: a block takes 32 of its rows, whose columns its warps share out; weights go from memory to
// registers, are made f16 there, and are the left operand, so that the tokens come in eights. Warps join their sums at
// the end, in one order whatever the number of tokens.

#include "kernel/cuda/ptx/gpu.h"

#define WARPS 8
#define MT 2            // tiles of 16 rows that a warp takes
#define NT_MAX 8        // and of 8 tokens
#define WORDS 4         // of a row's part of a chunk that a lane holds

struct job {
    float *out;
    const u16 *x; // [n_tokens, cols]
    const float *bias;
    struct weight w;
    u32 out_stride, rows, cols, n_tokens, first_row, n_groups;
};

INLINE u32 is_half(u32 layout) { return layout == LAYOUT_F16 || layout == LAYOUT_BF16; }
// A chunk is one or two groups of 32 columns. Of a group a lane has 8 neighbouring columns, or, of 4-bit codes, 4 and
// the 4 that lie 16 further on.
INLINE u32 groups_of_chunk(u32 layout) { return is_half(layout) ? 1 : 2; }

// What a lane holds of a chunk: rows lane / 4 and 8 more of each 16.
struct chunk {
    u32 words[MT * 2][WORDS];
    u32 scales[MT * 2], mins[MT * 2]; // of two groups
};

// Rows beyond the last one repeat it: nobody stores their results.
INLINE void fetch(u32 layout, const struct job *job, u32 first_group, struct chunk *chunk)
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 m = 0; m < MT * 2; m++) {
        u64 row = min_u32(job->first_row + m * 8 + lane / 4, job->rows - 1), group = row * job->n_groups + first_group;

        if (is_half(layout)) {
            u32x4 v = load_once(job->w.codes + (group * 32 + lane % 4 * 8) * 2);

            chunk->words[m][0] = v.x;
            chunk->words[m][1] = v.y;
            chunk->words[m][2] = v.z;
            chunk->words[m][3] = v.w;
            continue;
        }
        UNROLL
        for (u32 g = 0; g < 2; g++) {
            if (layout == LAYOUT_I8 || layout == LAYOUT_F8) {
                u32x2 v = *(const u32x2 *)(job->w.codes + (group + g) * 32 + lane % 4 * 8);

                chunk->words[m][2 * g] = v.x;
                chunk->words[m][2 * g + 1] = v.y;
            } else {
                chunk->words[m][g] = *(const u32 *)(job->w.codes + (group + g) * 16 + lane % 4 * 4);
            }
        }
        if (layout == LAYOUT_F8) { // f32, one for 128 columns: f16 might not hold it
            chunk->scales[m] = ((const u32 *)job->w.scales)[row * f8_scales(job->cols) + first_group / 4];
            continue;
        }
        chunk->scales[m] = *(const u32 *)(job->w.scales + group);
        if (layout == LAYOUT_U4_MIN)
            chunk->mins[m] = *(const u32 *)(job->w.mins + group);
    }
}

// Codes to f16: 1024 + n has n as its last bits; the difference is exact.
INLINE u32 scaled(u32 layout, u32 pair, u32 scale, u32 min)
{
    if (layout == LAYOUT_I8) // code + 128
        return mul_f16x2(add_f16x2(pair, 0xE480E480), scale);
    if (layout == LAYOUT_U4) // code + 8
        return mul_f16x2(add_f16x2(pair, 0xE408E408), scale);
    return fma_f16x2(add_f16x2(pair, 0xE400E400), scale, min);
}

// Group g of a chunk, rows m and m + 1 in eights: the left operands of two products of 16 columns.
INLINE void widen(u32 layout, const struct chunk *chunk, u32 m, u32 g, u32 (*a)[4])
{
    UNROLL
    for (u32 r = 0; r < 2; r++) {
        const u32 *words = chunk->words[m + r];
        u32 scale = 0, min = 0, w;

        if (!is_half(layout) && layout != LAYOUT_F8)
            scale = byte_permute(chunk->scales[m + r], 0, g ? 0x3232 : 0x1010);
        if (layout == LAYOUT_U4_MIN)
            min = byte_permute(chunk->mins[m + r], 0, g ? 0x3232 : 0x1010) ^ 0x80008000;
        UNROLL
        for (u32 half = 0; half < 2; half++) {
            if (is_half(layout)) {
                a[half][r] = words[2 * half];
                a[half][r + 2] = words[2 * half + 1];
            } else if (layout == LAYOUT_F8) { // bytes 0 and 2, then 1 and 3
                w = words[2 * g + half];
                a[half][r] = e4m3_as_f16(w << 8);
                a[half][r + 2] = e4m3_as_f16(w);
            } else if (layout == LAYOUT_I8) {
                w = words[2 * g + half] ^ 0x80808080;
                a[half][r] = scaled(layout, byte_permute(w, 0x64646464, 0x4140), scale, min);
                a[half][r + 2] = scaled(layout, byte_permute(w, 0x64646464, 0x4342), scale, min);
            } else { // bytes 0 and 2, then 1 and 3
                w = words[g] >> (half * 4);
                a[half][r] = scaled(layout, (w & 0x000F000F) | 0x64006400, scale, min);
                a[half][r + 2] = scaled(layout, (w >> 8 & 0x000F000F) | 0x64006400, scale, min);
            }
        }
    }
}

// The right operands that go with it, of eight tokens.
INLINE void fetch_x(u32 layout, const struct job *job, u32 group, u32 n, u32 *b)
{
    u32 lane = THREAD % 32, token = min_u32(n * 8 + lane / 4, job->n_tokens - 1);
    const u16 *x = job->x + (u64)token * job->cols + group * 32;

    if (layout == LAYOUT_U4 || layout == LAYOUT_U4_MIN) {
        UNROLL
        for (u32 half = 0; half < 2; half++) {
            u32x2 v = *(const u32x2 *)(x + half * 16 + lane % 4 * 4);

            b[2 * half] = byte_permute(v.x, v.y, 0x5410);
            b[2 * half + 1] = byte_permute(v.x, v.y, 0x7632);
        }
    } else {
        u32x4 v = *(const u32x4 *)(x + lane % 4 * 8);

        b[0] = v.x;
        b[1] = v.y;
        b[2] = v.z;
        b[3] = v.w;
        UNROLL
        for (u32 half = 0; half < 2 && layout == LAYOUT_F8; half++) {
            u32 low = b[2 * half], high = b[2 * half + 1];

            b[2 * half] = byte_permute(low, high, 0x5410);
            b[2 * half + 1] = byte_permute(low, high, 0x7632);
        }
    }
}

INLINE void multiply(u32 layout, u32 NT, const struct job *job, u32 first_group, const struct chunk *chunk,
                     float (*acc)[4])
{
    u32 b[2][NT_MAX][4], n_groups = groups_of_chunk(layout), at_once = NT > 3 ? 1 : n_groups;

    UNROLL
    for (u32 g = 0; g < n_groups; g++) {
        u32 a[MT][2][4];

        UNROLL
        for (u32 i = 0; i < at_once * NT && g % at_once == 0; i++) // they come from afar
            fetch_x(layout, job, first_group + g + i / NT, i % NT, b[g + i / NT][i % NT]);
        UNROLL
        for (u32 m = 0; m < MT; m++)
            widen(layout, chunk, 2 * m, g, a[m]);
        UNROLL
        for (u32 i = 0; i < NT * MT * 2; i++) {
            u32 n = i / (MT * 2), m = i % MT, half = i / MT % 2, *x = b[g][n] + 2 * half;

            if (layout == LAYOUT_BF16)
                mma_bf16(acc[m * NT + n], a[m][half], x[0], x[1]);
            else
                mma_f16(acc[m * NT + n], a[m][half], x[0], x[1]);
        }
    }
}

// Of f8: scales multiply the sums of a chunk, since f16 might not hold them.
INLINE void multiply_f8(u32 NT, const struct job *job, u32 first_group, const struct chunk *chunk, float (*acc)[4])
{
    u32 a[2][MT][2][4];

    UNROLL
    for (u32 i = 0; i < 2 * MT; i++)
        widen(LAYOUT_F8, chunk, i % MT * 2, i / MT, a[i / MT][i % MT]);
    UNROLL
    for (u32 n = 0; n < NT; n++) {
        u32 b[2][4];

        UNROLL
        for (u32 g = 0; g < 2; g++)
            fetch_x(LAYOUT_F8, job, first_group + g, n, b[g]);
        UNROLL
        for (u32 m = 0; m < MT; m++) {
            float sums[4] = {0};

            UNROLL
            for (u32 i = 0; i < 4; i++)
                mma_f16(sums, a[i / 2][m][i % 2], b[i / 2][i % 2 * 2], b[i / 2][i % 2 * 2 + 1]);
            UNROLL
            for (u32 i = 0; i < 4; i++)
                acc[m * NT + n][i] += f32_of_bits(chunk->scales[2 * m + i / 2]) * E4M3_UNIT * sums[i];
        }
    }
}

static SHARED f32x4 g_sums[WARPS / 2][(MT * NT_MAX)][32];

// The upper half of the warps hand theirs to the lower half, until one has them all.
INLINE void join(u32 n_tiles, float (*acc)[4])
{
    u32 warp = THREAD / 32, lane = THREAD % 32;

    UNROLL
    for (u32 n = WARPS / 2; n; n /= 2) {
        if (warp >= n && warp < 2 * n) {
            UNROLL
            for (u32 i = 0; i < n_tiles; i++)
                g_sums[warp - n][i][lane] = (f32x4){acc[i][0], acc[i][1], acc[i][2], acc[i][3]};
        }
        block_sync();
        if (warp < n) {
            UNROLL
            for (u32 i = 0; i < n_tiles; i++) {
                f32x4 v = g_sums[warp][i][lane];

                acc[i][0] += v.x;
                acc[i][1] += v.y;
                acc[i][2] += v.z;
                acc[i][3] += v.w;
            }
        }
        block_sync();
    }
}

INLINE void store_out(u32 NT, const struct job *job, float (*acc)[4])
{
    u32 lane = THREAD % 32;

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++) {
        u32 tile = i / 4, row = job->first_row + tile / NT * 16 + lane / 4 + i % 4 / 2 * 8;
        u32 token = tile % NT * 8 + lane % 4 * 2 + i % 2;

        if (token < job->n_tokens && row < job->rows)
            job->out[(u64)token * job->out_stride + row] = acc[tile][i % 4] + (job->bias ? job->bias[row] : 0);
    }
}

INLINE void some(u32 layout, u32 NT, const struct job *job)
{
    u32 per_chunk = groups_of_chunk(layout), step = WARPS * per_chunk, group = THREAD / 32 * per_chunk;
    struct chunk chunk, next;
    float acc[(MT * NT_MAX)][4];

    UNROLL
    for (u32 i = 0; i < MT * NT * 4; i++)
        acc[i / 4][i % 4] = 0;
    if (group < job->n_groups)
        fetch(layout, job, group, &chunk);
    for (; group < job->n_groups; group += step) {
        if (group + step < job->n_groups)
            fetch(layout, job, group + step, &next);
        if (layout == LAYOUT_F8)
            multiply_f8(NT, job, group, &chunk, acc);
        else
            multiply(layout, NT, job, group, &chunk, acc);
        chunk = next;
    }
    join(MT * NT, acc);
    if (THREAD < 32)
        store_out(NT, job, acc);
}

// cols is a multiple of 64 (of 32 in f16 and bf16); n_tokens at most 8 NT.
#define DEFINE(name, layout, NT) \
    KERNEL name(float *out, u32 out_stride, const u16 *x, const u8 *codes, const u16 *scales, const u16 *mins, \
                const float *bias, u32 rows, u32 cols, u32 n_tokens) \
    { \
        struct job job = {out,  x,    bias,     {codes, scales, mins}, out_stride, \
                          rows, cols, n_tokens, BLOCK_X * MT * 16,     cols / 32}; \
                                                                                                                       \
        some(layout, NT, &job); \
    }

#define DEFINE_OF(name, layout) \
    DEFINE(some_##name##_16, layout, 2) \
    DEFINE(some_##name##_24, layout, 3) \
    DEFINE(some_##name##_32, layout, 4) \
    DEFINE(some_##name##_64, layout, 8)

DEFINE_OF(f16, LAYOUT_F16)
DEFINE_OF(bf16, LAYOUT_BF16)
DEFINE_OF(i8, LAYOUT_I8)
DEFINE_OF(u4, LAYOUT_U4)
DEFINE_OF(f8, LAYOUT_F8)
// With minima, registers for 32 tokens do not quite suffice.
DEFINE(some_u4_min_16, LAYOUT_U4_MIN, 2)
DEFINE(some_u4_min_24, LAYOUT_U4_MIN, 3)
DEFINE(some_u4_min_64, LAYOUT_U4_MIN, 8)
