// Products with 2 to 32 rows of activations, the decode of several sequences. As in vector.c weights are read once and
// each warp keeps several pieces of them under way to its own ring in shared memory; here the tensor cores multiply
// them: rows of the matrix are the rows of their tiles, eight tokens the columns. A lane takes 16 bytes of a matrix row
// at a time and decodes them where they are: which of the columns of a tile they are does not matter as long as the
// activations have the same order.
//
// Before them few_stage normalises the activations, narrows them and brings them into the order of the products; or
// the gate that makes them leaves them like that. A block has some rows and, where all the columns' activations are too
// many for its shared memory, a part of the columns, whose activations it copies while the first weights are on their
// way.
//
// Blocks that share rows are a cluster: the sums of a pass over some rows go to the shared memory of the block that
// finishes them, while the next pass begins. Without clusters blocks leave sums in memory, and the last of them to
// arrive joins them. Either is always in the same order. What is done once a pass or launch has few instructions, as
// these have to be fetched first.
//
// A class is a layout, and those that are like it but for numbers: U4_MIN counts as U4, all tables as IQ4 or IQ1_16.
// What a new one needs: COLUMNS stand in 16 bytes, its scales in `ask` (16 bytes for a span of a row), its four columns
// at a time in `decode`, and, if these are not in order, its form in few_job.h. Scales of f8, one for 128 columns, f16
// might not hold: they multiply the sums of each chunk.

#include "kernel/cuda/few_job.h"
#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/codes.h"
#include "kernel/cuda/ptx/gate.h"
#include "kernel/cuda/ptx/normal.h"

#define TILES EW_FEW_TILES
#define STAGES EW_FEW_STAGES
#define TOKEN_TILES_MAX (EW_FEW_TOKENS_MAX / 8)
#define AT_ONCE 4     // reads of partial sums that wait for each other's latency only once

// Columns of a row in 16 bytes (of nibbles where there are planes), by class. A chunk is four times as many, a span the
// columns whose scales come at once.
#define COLUMNS(class) ((class) <= LAYOUT_BF16 ? 8u : (class) == LAYOUT_I8 || (class) == LAYOUT_F8 ? 16u : 32u)
#define PER_LANE(class) (COLUMNS(class) / 8)
#define CHUNKS_OF_SPAN(class) (is_halved(class) ? 1u : (class) == LAYOUT_F8 ? 8u : 64 / COLUMNS(class))
// Planes of scales and minima, and of high bits.
#define PLANES(class) ((class) <= LAYOUT_BF16 ? 0u : (class) == LAYOUT_U4 || (class) == LAYOUT_U5 ? 2u : 1u)
#define BITS(class) ((class) == LAYOUT_U6 ? 2u : (class) == LAYOUT_U5 ? 1u : 0u)
#define STAGE_BYTES(class) (EW_FEW_CODE_BYTES + BITS(class) * EW_FEW_BIT_BYTES)

static SHARED u32 g_last;

// ---- activations --------------------------------------------------------------------------------

// Where the eight columns from `column` on of a token lie, counted in 16 bytes.
INLINE u64 place_of_eight(u32 columns, u32 n_tokens, u32 token, u32 column)
{
    u32 n_tiles = (n_tokens + 7) / 8, chunk = column / (4 * columns), lane = token % 8 * 4 + column / columns % 4;

    return ((chunk * n_tiles + token / 8) * (columns / 8) + column % columns / 8) * 32 + lane;
}

INLINE float clamp_f16(float x) { return max_f32(min_f32(x, 65504), -65504); }

// Four columns in 16 bits.
INLINE u32x2 narrow(u32 form, f32x4 x)
{
    if (form == EW_FEW_BF16)
        return (u32x2){bf16x2_of(x.x, x.y), bf16x2_of(x.z, x.w)};
    x = (f32x4){clamp_f16(x.x), clamp_f16(x.y), clamp_f16(x.z), clamp_f16(x.w)};
    if (form == EW_FEW_F16_EXCHANGED)
        return (u32x2){f16x2_of(x.x, x.z), f16x2_of(x.y, x.w)};
    return (u32x2){f16x2_of(x.x, x.y), f16x2_of(x.z, x.w)};
}

// As find_normal, with several loads under way at once.
INLINE float mean_square(const struct ew_vector_job *job, const f32x4 *x)
{
    float sum = 0;

    ROLL
    for (u32 first = THREAD; first < job->cols / 4; first += EW_FEW_THREADS * AT_ONCE) {
        f32x4 v[AT_ONCE];

        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++)
            v[k] = x[min_u32(first + k * EW_FEW_THREADS, job->cols / 4 - 1)];
        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++) {
            f32x4 square = v[k] * v[k];

            sum += first + k * EW_FEW_THREADS < job->cols / 4 ? square.x + square.y + square.z + square.w : 0;
        }
    }
    return block_sum(EW_FEW_THREADS, sum) / (float)job->cols;
}

// A token a block in x, some of its columns in y. The norm's weights come from memory, while activations are made.
KERNEL few_stage(struct ew_few_job job)
{
    u32 mine = BLOCK_Y * EW_FEW_THREADS + THREAD;
    const f32x4 *x = (const f32x4 *)((const float *)job.v.x + (u64)BLOCK_X * job.x_stride);
    f32x4 *normed = (f32x4 *)((float *)job.v.normed + (u64)BLOCK_X * job.normed_stride);
    struct normal n;

    next_may_start();
    if (job.v.norm_weight && mine < job.v.cols / 8)
        prefetch((const float *)job.v.norm_weight + mine * 8);
    previous_wait();
    if (job.v.norm == EW_VECTOR_RMS)
        n = (struct normal){0, rsqrt_f32(mean_square(&job.v, x) + job.v.eps)};
    else
        n = find_normal(EW_FEW_THREADS, &job.v, x);
    for (u32 i = mine; i < job.v.cols / 8; i += N_BLOCKS_Y * EW_FEW_THREADS) {
        f32x4 first = normal_at(&job.v, x, &n, 2 * i), second = normal_at(&job.v, x, &n, 2 * i + 1);
        u32x2 low = narrow(job.form, first), high = narrow(job.form, second);

        if (job.v.normed) {
            normed[2 * i] = first;
            normed[2 * i + 1] = second;
        }
        ((u32x4 *)job.staged)[place_of_eight(job.columns, job.n_tokens, BLOCK_X, i * 8)] =
            (u32x4){low.x, low.y, high.x, high.y};
    }
}

// ---- shares -------------------------------------------------------------------------------------

// Units are 16 output rows: a tile, or with a gate two of them.
struct share {
    u32 unit, n_units;             // of the block
    u32 chunk, n_chunks;           // of the block
    u32 warp_chunk, n_warp_chunks; // of this warp, within a row
    u32 warps, row_warp, part;
    u32 units_of_warp;             // at once
    u32 n_sources;                 // warps of the cluster that have sums of a unit
    SHARED u8 *ring;               // of this warp
    SHARED u32x4 *x;               // activations: [chunk][token tile][piece of a lane][lane]
    SHARED f32x4 *boxes;           // [turn][item of this block][tile][source][lane]
    // The expert's; of other products all rows.
    u64 matrix_row;
    u32 first_token, n_tokens;
};

// x / n where x n is less than 65,536.
INLINE u32 divide(u32 x, u32 factor) { return x * factor >> 16; }

INLINE struct share find_share(u32 class, const struct ew_few_job *job)
{
    u32 ring_bytes = EW_FEW_RING_BYTES(PLANES(class), BITS(class)), warp = THREAD / 32, more;
    struct share s;

    s.unit = BLOCK_X * job->units + min_u32(BLOCK_X, job->units_more);
    s.n_units = job->units + ((u32)BLOCK_X < job->units_more);
    s.chunk = BLOCK_Z * job->chunks + min_u32(BLOCK_Z, job->chunks_more);
    s.n_chunks = job->chunks + ((u32)BLOCK_Z < job->chunks_more);
    s.warps = N_THREADS / 32;
    s.part = divide(warp, job->row_factor);
    s.row_warp = warp - s.part * job->row_warps;
    s.n_warp_chunks = divide(s.n_chunks, job->part_factor);
    more = s.n_chunks - s.n_warp_chunks * job->n_parts;
    s.warp_chunk = s.chunk + s.part * s.n_warp_chunks + min_u32(s.part, more);
    s.n_warp_chunks += s.part < more;
    s.units_of_warp = job->v.is_glu ? 1 : TILES;
    s.n_sources = job->cluster * job->n_parts;
    s.ring = g_dynamic + warp * ring_bytes;
    s.boxes = (SHARED f32x4 *)(g_dynamic + s.warps * ring_bytes);
    s.x = (SHARED u32x4 *)(s.boxes + job->n_boxes * job->box);
    s.matrix_row = 0;
    s.first_token = 0;
    s.n_tokens = job->n_tokens;
    return s;
}

// Whether the block's expert has rows, as many as this launch takes.
INLINE u32 find_expert(u32 N, const struct ew_few_job *job, struct share *s)
{
    const u32 *rows = (const u32 *)job->expert_rows + BLOCK_Y;

    s->matrix_row = (u64)BLOCK_Y * job->v.rows;
    s->first_token = rows[0];
    s->n_tokens = rows[1] - rows[0];
    return s->n_tokens >= job->least && s->n_tokens <= N * 8;
}

// Where the first row of a tile of 16 lies.
struct tile {
    u64 codes, scales, mins;
};

INLINE struct tile find_tile(const struct ew_vector_job *v, u32 class, u64 matrix_row, u32 unit, u32 is_up)
{
    u32 begin = 0;
    u64 row = (u64)unit * 16, codes = v->parts[0].codes, scales = v->parts[0].scales, mins = v->parts[0].mins;

    UNROLL
    for (u32 i = 1; i < EW_VECTOR_PARTS_MAX; i++) {
        begin += (u32)v->parts[i - 1].rows;
        if (v->is_glu ? i == 1 && is_up : v->parts[i].rows && unit * 16 >= begin) {
            row = v->is_glu ? row : unit * 16 - begin;
            codes = v->parts[i].codes;
            scales = v->parts[i].scales;
            mins = v->parts[i].mins;
        }
    }
    row += matrix_row;
    return (struct tile){codes + row * code_bytes(class, v->cols), scales + row * scale_words(class, v->cols) * 2,
                         mins + row * (v->cols / 32) * 2};
}

// ---- weights on their way ------------------------------------------------------------------------

// The next chunk to ask for.
struct reader {
    u64 codes[TILES];        // what this lane copies of it: of a row of each tile, and of the one eight rows further on
    u64 bits, scales, mins;  // of one row, from its beginning
    u32 unit, chunk, left;   // left: chunks of all its units
    u32 stage, span;         // places in the ring
};

// A tile that is not there is the one before it: nobody takes its sums.
INLINE void open_tiles(u32 class, const struct ew_few_job *job, const struct share *s, struct reader *r)
{
    u32 lane = THREAD % 32, is_glu = job->v.is_glu, row_bytes = code_bytes(class, job->v.cols);

    UNROLL
    for (u32 i = 0; i < TILES; i++) {
        u32 unit = is_glu ? r->unit : min_u32(r->unit + i, s->unit + s->n_units - 1);
        struct tile tile = find_tile(&job->v, class, s->matrix_row, unit, i);

        r->codes[i] = tile.codes + lane / 4 * row_bytes + lane % 4 * 16 + r->chunk * 64;
        if (lane / 16 == i) {
            r->bits = tile.codes + lane % 16 * row_bytes + job->v.cols / 2;
            r->scales = tile.scales + lane % 16 * scale_words(class, job->v.cols) * 2;
            r->mins = tile.mins + lane % 16 * (job->v.cols / 32) * 2;
        }
    }
}

INLINE u32 next_place(u32 at) { return at + 1 == STAGES ? 0 : at + 1; }

INLINE SHARED u8 *stage_at(u32 class, const struct share *s, u32 stage) { return s->ring + stage * STAGE_BYTES(class); }

INLINE SHARED u8 *scales_at(u32 class, const struct share *s, u32 span)
{
    return s->ring + STAGES * STAGE_BYTES(class) + span * PLANES(class) * EW_FEW_SCALE_BYTES;
}

// Whether a warp's chunk needs other scales than the one before it.
INLINE u32 begins_span(u32 class, const struct share *s, u32 chunk)
{
    return chunk == s->warp_chunk || chunk % CHUNKS_OF_SPAN(class) == 0;
}

// Asks for a chunk, a group of copies of its own whether or not there is one left.
INLINE void ask(u32 class, const struct ew_few_job *job, const struct share *s, struct reader *r)
{
    u32 lane = THREAD % 32, eight_rows = code_bytes(class, job->v.cols) * 8;

    if (r->left) {
        SHARED u8 *to = stage_at(class, s, r->stage) + lane * 16;

        UNROLL
        for (u32 i = 0; i < TILES; i++) {
            copy_async(to + 2 * i * 512, (const u8 *)r->codes[i], 1);
            copy_async(to + (2 * i + 1) * 512, (const u8 *)r->codes[i] + eight_rows, 1);
            r->codes[i] += 64;
        }
        UNROLL
        for (u32 i = 0; i < BITS(class); i++)
            copy_async(to + EW_FEW_CODE_BYTES + lane * 16 * (BITS(class) - 1) + i * 16,
                       (const u8 *)r->bits + (r->chunk * BITS(class) + i) * 16, 1);
        if (PLANES(class) && begins_span(class, s, r->chunk)) {
            u32 at = r->chunk / CHUNKS_OF_SPAN(class) * 16;

            r->span = next_place(r->span);
            copy_async(scales_at(class, s, r->span) + lane * 16, (const u8 *)r->scales + at, 1);
            if (PLANES(class) > 1 && has_min(job->v.layout))
                copy_async(scales_at(class, s, r->span) + EW_FEW_SCALE_BYTES + lane * 16, (const u8 *)r->mins + at, 1);
        }
        r->left--;
        if (++r->chunk == s->warp_chunk + s->n_warp_chunks) {
            r->chunk = s->warp_chunk;
            r->unit += job->row_warps * s->units_of_warp;
            if (r->left)
                open_tiles(class, job, s, r);
        }
    }
    r->stage = next_place(r->stage);
    copy_commit();
}

INLINE struct reader begin_reading(u32 class, const struct ew_few_job *job, const struct share *s)
{
    u32 step = job->row_warps * s->units_of_warp, skipped = s->row_warp * s->units_of_warp;
    struct reader r = {.unit = s->unit + skipped, .chunk = s->warp_chunk};

    for (u32 at = skipped; at < s->n_units; at += step)
        r.left += s->n_warp_chunks;
    if (r.left)
        open_tiles(class, job, s, &r);
    ROLL
    for (u32 i = 0; i < STAGES - 1; i++)
        ask(class, job, s, &r);
    return r;
}

// Those of the expert's rows, eight columns at a time; beyond the last row it again.
INLINE void stage_expert(u32 class, u32 N, const struct ew_few_job *job, const struct share *s)
{
    u32 n = s->n_chunks * N * PER_LANE(class) * 32;

    ROLL
    for (u32 first = THREAD; first < n; first += N_THREADS * AT_ONCE) {
        f32x4 v[AT_ONCE][2];

        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++) {
            u32 i = min_u32(first + k * N_THREADS, n - 1), lane = i % 32, tile = i / 32 / PER_LANE(class);
            u32 token = s->first_token + min_u32(tile % N * 8 + lane / 4, s->n_tokens - 1);
            u32 column = ((s->chunk + tile / N) * 4 + lane % 4) * COLUMNS(class) + i / 32 % PER_LANE(class) * 8;
            const f32x4 *x = (const f32x4 *)((const float *)job->v.x + (u64)token * job->x_stride + column);

            v[k][0] = x[0];
            v[k][1] = x[1];
        }
        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++) {
            u32x2 low = narrow(job->form, v[k][0]), high = narrow(job->form, v[k][1]);

            if (first + k * N_THREADS < n)
                s->x[first + k * N_THREADS] = (u32x4){low.x, low.y, high.x, high.y};
        }
    }
}

// The activations of the block's columns, and behind them one chunk more.
INLINE void begin(u32 class, u32 N, const struct ew_few_job *job, const struct share *s, struct reader *r)
{
    u32 per_chunk = N * PER_LANE(class) * 32;
    const u32x4 *from = (const u32x4 *)job->staged + s->chunk * per_chunk;

    if (job->expert_rows)
        stage_expert(class, N, job, s);
    ROLL
    for (u32 i = THREAD; !job->expert_rows && i < s->n_chunks * per_chunk; i += N_THREADS)
        copy_async(s->x + i, from + i, 1);
    copy_commit();
    ask(class, job, s, r);
    copy_wait(1);
    block_sync();
}

// ---- products -----------------------------------------------------------------------------------

// What a lane has of a chunk: rows lane / 4 and 8 more of each tile.
struct piece {
    u32x4 codes;
    u32x2 bits;
    u32 scale, other; // twice in a register; other: less than zero the minimum, or the scale of the second half.
                      // Of f8 `scale` has the bits of an f32
};

INLINE struct piece take_piece(u32 class, const struct ew_few_job *job, SHARED const u8 *stage,
                               SHARED const u8 *scales, u32 chunk, u32 i)
{
    u32 lane = THREAD % 32, row = i * 8 + lane / 4, pair;
    u32 group = chunk % CHUNKS_OF_SPAN(class) * (COLUMNS(class) / 8) + lane % 4 * COLUMNS(class) / 32;
    struct piece p = {.codes = *(SHARED const u32x4 *)(stage + i * 512 + lane * 16)};

    if (class == LAYOUT_U5)
        p.bits.x = ((SHARED const u32 *)(stage + EW_FEW_CODE_BYTES))[row * 4 + lane % 4];
    if (class == LAYOUT_U6)
        p.bits = ((SHARED const u32x2 *)(stage + EW_FEW_CODE_BYTES))[row * 4 + lane % 4];
    if (class == LAYOUT_F8) {
        p.scale = ((SHARED const u32 *)scales)[row * 4 + chunk % CHUNKS_OF_SPAN(class) / 2];
    } else if (is_halved(class)) {
        pair = ((SHARED const u32 *)scales)[row * 4 + lane % 4];
        p.scale = twice(pair);
        p.other = twice(pair >> 16);
    } else if (class == TABLE) {
        pair = f16_scales_of_table(job->v.layout, ((SHARED const u16 *)scales)[row * 8 + group]);
        p.scale = twice(pair);
        p.other = twice(pair >> 16);
    } else if (PLANES(class)) {
        p.scale = twice(((SHARED const u16 *)scales)[row * 8 + group]);
    }
    if (PLANES(class) > 1 && has_min(job->v.layout))
        p.other = twice(((SHARED const u16 *)(scales + EW_FEW_SCALE_BYTES))[row * 8 + group]) ^ 0x80008000;
    return p;
}

// Bits 4 i to 4 i + 3 of a lane's four bytes 4 w to 4 w + 3, and what stands above them in `bits` from bit `at` of each
// byte on: bytes 0 and 2, then 1 and 3.
INLINE u32x2 nibbles(u32 class, u32 word, u32 bits, u32 at)
{
    u32 mask = class == LAYOUT_U6 ? 0x00300030 : 0x00100010;
    u32x2 v = {(word & 0x000F000F) | 0x64006400, (word >> 8 & 0x000F000F) | 0x64006400};

    if (BITS(class)) {
        v.x |= (at < 4 ? bits << (4 - at) : bits >> (at - 4)) & mask;
        v.y |= bits >> (4 + at) & mask;
    }
    return v;
}

// Columns 4 i to 4 i + 3 of a lane, in 16 bits.
INLINE u32x2 decode(u32 class, u32 layout, u32x4 table, const struct piece *p, u32 i)
{
    u32 word = p->codes[i % 4] >> i / 4 * 4, offset;
    u32x2 v;

    if (class <= LAYOUT_BF16)
        return (u32x2){p->codes[2 * i], p->codes[2 * i + 1]};
    if (class == LAYOUT_F8)
        return (u32x2){e4m3_as_f16(p->codes[i] << 8), e4m3_as_f16(p->codes[i])};
    if (class == TABLE || class == TABLE_16) {
        word = look_up_four(table, p->codes[i / 2] >> i % 2 * 16);
        return scaled(low_bytes(word), high_bytes(word), 0xE480E480, i < 4 ? p->scale : p->other);
    }
    if (class == LAYOUT_I8) { // 1024 + code + 128, less 1152
        word = p->codes[i] ^ 0x80808080;
        return scaled(low_bytes(word), high_bytes(word), 0xE480E480, p->scale);
    }
    if (class == LAYOUT_U6) {
        v = nibbles(class, word, i < 4 ? p->bits.x : p->bits.y, i % 4 * 2);
        return scaled(v.x, v.y, 0xE420E420, i < 4 ? p->scale : p->other); // -1056
    }
    v = nibbles(class, word, p->bits.x, i);
    offset = layout == LAYOUT_U4 ? 0xE408E408 : layout == LAYOUT_U5 ? 0xE410E410 : 0xE400E400; // -1032, -1040, -1024
    return (u32x2){fma_f16x2(add_f16x2(v.x, offset), p->scale, p->other),
                   fma_f16x2(add_f16x2(v.y, offset), p->scale, p->other)};
}

// b: eight columns of a lane, of each token tile.
INLINE void multiply_piece(u32 class, u32 N, u32 layout, u32x4 table, const struct piece *pieces, u32 j,
                           const u32x4 *b, float (*acc)[TOKEN_TILES_MAX][4])
{
    UNROLL
    for (u32 i = 0; i < 2 * TILES; i++) {
        u32 tile = i / 2, k = i % 2;
        u32x2 upper = decode(class, layout, table, &pieces[2 * tile], 2 * j + k);
        u32x2 lower = decode(class, layout, table, &pieces[2 * tile + 1], 2 * j + k);
        u32 a[4] = {upper.x, lower.x, upper.y, lower.y};

        UNROLL
        for (u32 t = 0; t < N; t++) {
            if (class == LAYOUT_BF16)
                mma_bf16(acc[tile][t], a, b[t][2 * k], b[t][2 * k + 1]);
            else
                mma_f16(acc[tile][t], a, b[t][2 * k], b[t][2 * k + 1]);
        }
    }
}

// Of f8: a chunk's sums by its scales. Rows lane / 4 of a tile are elements 0 and 1, the 8 more are 2 and 3.
INLINE void add_scaled(u32 N, const struct piece *pieces, float (*chunk)[TOKEN_TILES_MAX][4],
                       float (*acc)[TOKEN_TILES_MAX][4])
{
    UNROLL
    for (u32 i = 0; i < TILES * N * 4; i++) {
        u32 tile = i / 4 / N, t = i / 4 % N, e = i % 4;

        acc[tile][t][e] += f32_of_bits(pieces[2 * tile + e / 2].scale) * E4M3_UNIT * chunk[tile][t][e];
    }
}

// Where the next chunk lies that this warp takes to its registers.
struct place {
    u32 chunk, stage, span;
};

// What has come of the ring's next chunk; the warp has waited for it. Beyond the last one, anything.
INLINE void take_chunk(u32 class, const struct ew_few_job *job, const struct share *s, struct place *p,
                       struct piece *pieces)
{
    if (begins_span(class, s, p->chunk))
        p->span = next_place(p->span);
    UNROLL
    for (u32 i = 0; i < TILES * 2; i++)
        pieces[i] = take_piece(class, job, stage_at(class, s, p->stage), scales_at(class, s, p->span), p->chunk, i);
    p->stage = next_place(p->stage);
    if (++p->chunk == s->warp_chunk + s->n_warp_chunks)
        p->chunk = s->warp_chunk;
}

INLINE void multiply_chunk(u32 class, u32 N, const struct ew_few_job *job, const struct share *s, u32x4 table,
                           u32 chunk, const struct piece *pieces, float (*acc)[TOKEN_TILES_MAX][4])
{
    SHARED const u32x4 *x = s->x + (chunk - s->chunk) * N * PER_LANE(class) * 32 + THREAD % 32;
    float sums[TILES][TOKEN_TILES_MAX][4] = {0};

    UNROLL
    for (u32 j = 0; j < PER_LANE(class); j++) {
        u32x4 b[TOKEN_TILES_MAX];

        UNROLL
        for (u32 t = 0; t < N; t++)
            b[t] = x[(t * PER_LANE(class) + j) * 32];
        multiply_piece(class, N, job->v.layout, table, pieces, j, b, class == LAYOUT_F8 ? sums : acc);
    }
    if (class == LAYOUT_F8)
        add_scaled(N, pieces, sums, acc);
}

// ---- results ------------------------------------------------------------------------------------

INLINE float with_bias(u64 bias, u64 row, float sum) { return bias ? sum + ((const float *)bias)[row] : sum; }

// NV4 has a scale for each row, too.
INLINE float with_row(const struct ew_few_job *job, u64 mins, u64 row, float sum)
{
    return job->v.layout == LAYOUT_NV4 ? sum * ((const float *)mins)[row] : sum;
}

// Where a unit's sums of eight tokens go. Of a lane these are rows lane / 4 (elements 0 and 1) and 8 more, tokens
// 2 (lane % 4) and the next.
struct target {
    u32 row, token;             // of element 0; the row within its part
    u64 out, mins, bias;
    u32 stride;
};

INLINE struct target find_target(const struct ew_few_job *job, u32 unit, u32 t)
{
    const struct ew_vector_job *v = &job->v;
    struct target to = {unit * 16, t * 8 + THREAD % 4 * 2, v->parts[0].out, v->parts[0].mins, v->parts[0].bias,
                        job->out_strides[0]};
    u32 begin = 0;

    if (!v->is_glu && v->parts[1].rows) {
        UNROLL
        for (u32 i = 1; i < EW_VECTOR_PARTS_MAX; i++) {
            begin += (u32)v->parts[i - 1].rows;
            if (v->parts[i].rows && unit * 16 >= begin)
                to = (struct target){unit * 16 - begin, to.token, v->parts[i].out, v->parts[i].mins, v->parts[i].bias,
                                     job->out_strides[i]};
        }
    }
    to.row += THREAD % 32 / 4;
    return to;
}

INLINE f32x4 with_rows(const struct ew_few_job *job, u64 mins, u64 bias, u64 row, f32x4 sums)
{
    UNROLL
    for (u32 e = 0; e < 4; e++)
        sums[e] = with_bias(bias, row + e / 2 * 8, with_row(job, mins, row + e / 2 * 8, sums[e]));
    return sums;
}

// The usual activation in few instructions: they come once a launch or pass, and take as long to fetch as to do.
INLINE f32x4 glu_four(const struct ew_vector_job *v, f32x4 gate, f32x4 up)
{
    if (v->act == ACT_SILU && v->limit <= 0 && v->alpha <= 0) {
        UNROLL
        for (u32 e = 0; e < 4; e++)
            gate[e] = gate_of(gate[e], up[e], 1, 0);
        return gate;
    }
    UNROLL
    for (u32 e = 0; e < 4; e++)
        gate[e] = glu_one(gate[e], up[e], v->act, v->limit, v->alpha);
    return gate;
}

INLINE f32x4 add_residual(const struct ew_few_job *job, const struct share *s, const struct target *to, f32x4 sums)
{
    const float *first = (const float *)job->v.residual + to->row;
    u64 a = (u64)min_u32(to->token, s->n_tokens - 1) * job->residual_stride;
    u64 b = (u64)min_u32(to->token + 1, s->n_tokens - 1) * job->residual_stride;
    f32x4 residual = {first[a], first[b], first[a + 8], first[b + 8]};

    return job->v.y_scale * sums + job->v.residual_scale * residual;
}

// What a gate leaves for the product behind it: as narrow and place_of_eight would, of columns that are rows here.
INLINE void stage_four(u32 N, const struct ew_few_job *job, const struct share *s, const struct target *to, f32x4 y)
{
    u32 log = job->out_log, i = to->row % 8, mask = (1u << log) - 1, e;
    u32 piece = (((to->row >> (log + 2)) * N + to->token / 8) << (log - 3)) + ((to->row & mask) >> 3);
    u32 lane = to->token % 8 * 4 + (to->row >> log) % 4, next_eight = log == 3 ? 8 : 256;
    u16 *at;

    if (job->out_form == EW_FEW_F16_EXCHANGED && (i % 4 == 1 || i % 4 == 2))
        i ^= 3; // the second and the third of four
    at = (u16 *)job->staged_out + (u64)(piece * 32 + lane) * 8 + i;
    UNROLL
    for (e = 0; e < 4; e++) {
        u32 bits = job->out_form == EW_FEW_BF16 ? bf16x2_of(y[e], 0) : f16x2_of(clamp_f16(y[e]), 0);

        if (to->token + e % 2 < s->n_tokens)
            at[e % 2 * 32 + e / 2 * next_eight] = (u16)bits;
    }
}

INLINE void finish(u32 N, const struct ew_few_job *job, const struct share *s, u32 unit, u32 t, f32x4 value, f32x4 up)
{
    const struct ew_vector_job *v = &job->v;
    struct target to = find_target(job, unit, t);
    u64 row = s->matrix_row + to.row;
    float *out;

    value = with_rows(job, to.mins, to.bias, row, value);
    if (v->is_glu)
        value = glu_four(v, value, with_rows(job, v->parts[1].mins, v->parts[1].bias, row, up));
    else if (v->residual)
        value = add_residual(job, s, &to, value);
    if (job->staged_out) {
        stage_four(N, job, s, &to, value);
        return;
    }
    out = (float *)to.out + (u64)(s->first_token + to.token) * to.stride + to.row;
    UNROLL
    for (u32 e = 0; e < 4; e++) {
        if (to.token + e % 2 < s->n_tokens)
            out[e % 2 * to.stride + e / 2 * 8] = value[e];
    }
}

// Where a split's sums of a unit and eight tokens lie, of a GLU those of up behind those of the gate.
INLINE f32x4 *partial_at(u32 N, const struct ew_few_job *job, u32 split, u32 unit, u32 t)
{
    u32 per_unit = job->v.is_glu ? 2 : 1;

    return (f32x4 *)job->partial + ((((u64)split * (job->v.rows / 16) + unit) * N + t) * per_unit) * 32 + THREAD % 32;
}

// Of all sources, always in the same order.
INLINE f32x4 sum_of(SHARED const f32x4 *from, u32 n)
{
    f32x4 sum = {0};

    ROLL
    for (u32 k = 0; k < n; k += 2) {
        f32x4 a = from[k * 32], b = {0};

        if (k + 1 < n)
            b = from[k * 32 + 32];
        sum += a;
        sum += b;
    }
    return sum;
}

INLINE f32x4 sum_of_splits(u32 N, const struct ew_few_job *job, u32 unit, u32 t, u32 at)
{
    f32x4 sum = {0};

    ROLL
    for (u32 first = 0; first < N_BLOCKS_Z; first += AT_ONCE) {
        f32x4 v[AT_ONCE];

        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++)
            v[k] = partial_at(N, job, min_u32(first + k, N_BLOCKS_Z - 1), unit, t)[at];
        UNROLL
        for (u32 k = 0; k < AT_ONCE; k++)
            sum += first + k < N_BLOCKS_Z ? v[k] : 0;
    }
    return sum;
}

// Items are the sums of a unit and eight tokens, which blocks of a cluster have by turns. Those of the pass that began
// with unit `first`: where nothing is joined, those of this warp. Or, `splits`, all of the block's units, of the blocks
// that left them in memory.
INLINE void finish_items(u32 N, const struct ew_few_job *job, const struct share *s, u32 first, u32 turn, u32 splits)
{
    u32 of_warp = s->units_of_warp * N, is_own = s->n_sources == 1 && !splits;
    u32 cluster = splits ? 1 : job->cluster, rank = splits || cluster == 1 ? 0 : BLOCK_Z;
    u32 i = is_own ? s->row_warp * of_warp : THREAD / 32, step = is_own ? 1 : s->warps;
    u32 n_left = s->unit + s->n_units - first, n_items = (splits ? n_left : job->row_warps * s->units_of_warp) * N;
    u32 per_item = TILES / s->units_of_warp * s->n_sources * 32;

    n_items = min_u32(is_own ? i + of_warp : n_items, n_left * N);
    ROLL
    for (; i * cluster + rank < n_items; i += step) {
        u32 unit = first + (i * cluster + rank) / N, t = (i * cluster + rank) % N;
        SHARED const f32x4 *from = s->boxes + turn * job->box + i * per_item + THREAD % 32;
        f32x4 value, up = {0};

        value = splits ? sum_of_splits(N, job, unit, t, 0) : sum_of(from, s->n_sources);
        if (job->v.is_glu)
            up = splits ? sum_of_splits(N, job, unit, t, 32) : sum_of(from + s->n_sources * 32, s->n_sources);
        if (splits || N_BLOCKS_Z == cluster) {
            finish(N, job, s, unit, t, value, up);
            continue;
        }
        partial_at(N, job, BLOCK_Z, unit, t)[0] = value;
        if (job->v.is_glu)
            partial_at(N, job, BLOCK_Z, unit, t)[32] = up;
    }
}

// Each warp puts its sums where they are joined.
INLINE void put_sums(u32 N, const struct ew_few_job *job, const struct share *s, u32 turn,
                     float (*acc)[TOKEN_TILES_MAX][4])
{
    u32 source = (job->cluster > 1 ? BLOCK_Z * job->n_parts : 0) + s->part, per_item = TILES / s->units_of_warp;

    UNROLL
    for (u32 i = 0; i < TILES * N; i++) {
        u32 tile = job->v.is_glu ? i / N : 0, t = i % N;
        u32 item = job->v.is_glu ? s->row_warp * N + t : s->row_warp * TILES * N + i;
        u32 of_block = divide(item, job->cluster_factor);
        u32 at = ((of_block * per_item + tile) * s->n_sources + source) * 32 + THREAD % 32;
        float *a = acc[i / N][t];

        cluster_store_four((SHARED float *)(s->boxes + turn * job->box + at), item - of_block * job->cluster,
                         (f32x4){a[0], a[1], a[2], a[3]});
    }
}

// Whether this block is the last of those with its rows; the counter is zero again then. Blocks do not wait for each
// other: those of another program on the same GPU might hold the places of some.
INLINE u32 is_last(const struct ew_few_job *job)
{
    u32 *arrived = (u32 *)job->arrived + BLOCK_X;

    block_sync();
    if (THREAD == 0) {
        g_last = atomic_add_ordered(arrived, 1) == N_BLOCKS_Z - 1;
        if (g_last)
            *arrived = 0;
    }
    block_sync();
    return g_last;
}

// ---- kernels ------------------------------------------------------------------------------------

INLINE void few(u32 class, u32 N, const struct ew_few_job *job)
{
    struct share s = find_share(class, job);
    struct reader r;
    struct place place = {.chunk = s.warp_chunk};
    struct piece pieces[TILES * 2];
    u32 step = job->row_warps * s.units_of_warp, turn = 0, splits = 0;
    u32x4 table = class == TABLE || class == TABLE_16 ? table_of(job->v.layout) ^ 0x80808080 : (u32x4){0};

    if (job->expert_rows) {
        previous_wait();
        if (!find_expert(N, job, &s))
            return;
    }
    if (s.n_sources > 1)
        cluster_release(); // that all blocks of it are there
    r = begin_reading(class, job, &s);
    next_may_start();
    previous_wait();
    begin(class, N, job, &s, &r);
    take_chunk(class, job, &s, &place, pieces);
    ROLL
    for (u32 first = s.unit;; first += step) {
        u32 unit = first + s.row_warp * s.units_of_warp;
        u32 end = s.warp_chunk + (unit < s.unit + s.n_units ? s.n_warp_chunks : 0);
        float acc[TILES][TOKEN_TILES_MAX][4];

        UNROLL
        for (u32 i = 0; i < TILES * N * 4; i++)
            acc[i / 4 / N][i / 4 % N][i % 4] = 0;
        ROLL
        for (u32 chunk = s.warp_chunk; chunk < end; chunk++) {
            struct piece next[TILES * 2];

            copy_wait(STAGES - 2); // the oldest chunk that was asked for is there, and all have read the one before
            warp_sync();
            ask(class, job, &s, &r);
            take_chunk(class, job, &s, &place, next);
            multiply_chunk(class, N, job, &s, table, chunk, pieces, acc);
            UNROLL
            for (u32 i = 0; i < TILES * 2; i++)
                pieces[i] = next[i];
        }
        if (s.n_sources > 1 && !splits)
            cluster_acquire(); // what the pass before left
        if (first > s.unit)
            finish_items(N, job, &s, splits ? s.unit : first - step, turn ^ (job->n_boxes - 1), splits);
        if (first >= s.unit + s.n_units) {
            if (splits || N_BLOCKS_Z == job->cluster || !is_last(job))
                break;
            splits = 1;
            continue;
        }
        put_sums(N, job, &s, turn, acc);
        if (s.n_sources > 1)
            cluster_release();
        turn ^= job->n_boxes - 1;
    }
}

#define DEFINE(name, class) \
    KERNEL few_##name##_1(struct ew_few_job job) { few(class, 1, &job); } \
    KERNEL few_##name##_2(struct ew_few_job job) { few(class, 2, &job); } \
    KERNEL few_##name##_3(struct ew_few_job job) { few(class, 3, &job); } \
    KERNEL few_##name##_4(struct ew_few_job job) { few(class, 4, &job); }

DEFINE(f16, LAYOUT_F16)
DEFINE(bf16, LAYOUT_BF16)
DEFINE(i8, LAYOUT_I8)
DEFINE(u4, LAYOUT_U4)
DEFINE(f8, LAYOUT_F8)
DEFINE(table, TABLE)
DEFINE(table_16, TABLE_16)
DEFINE(u5, LAYOUT_U5)
DEFINE(u6, LAYOUT_U6)
