// Products of quantised matrices with some dozens and more rows of activations, on sm_90a, that read the matrices as
// they are: decoding them to memory first takes longer than the product. A block has 256 rows of a matrix and 64 or 128
// tokens. Codes and activations come 64 columns at a time, by the tensor copy engine. Each of two warpgroups decodes
// 64 rows to registers, where they are the left operand of `wgmma`, while its products of the 64 rows before run.
//
// A lane has the columns that stand together in the codes: 8 of each 16. An operand wants others, so activations come
// in another order (`mixed_place` in codes.h), which the kernels that leave them write.

#include "kernel/cuda/ptx/codes.h"
#include "kernel/cuda/ptx/gate.h"
#include "kernel/cuda/ptx/hopper.h"
#include "kernel/cuda/wcoded_job.h"

#define CONSUMERS 256 // threads; one more warpgroup copies, since these need its registers
#define STAGES EW_WCODED_STAGES
#define SLOTS EW_WCODED_SLOTS
#define STEP EW_WCODED_STEP
#define SPAN EW_WCODED_SPAN
#define ROWS EW_WCODED_ROWS
#define BOX EW_WCODED_BOX

// Bytes of a row: of codes without high bits in a step, of its other planes in a span.
#define CODE_BYTES(class) ((class) == LAYOUT_I8 ? STEP : STEP / 2)
#define SCALE_BYTES(class) (is_halved(class) ? 32u : 16u)
#define MIN_BYTES(class) ((class) == LAYOUT_U4 || (class) == LAYOUT_U5 ? 16u : 0u)
#define BIT_BYTES(class) ((class) == LAYOUT_U6 ? 64u : (class) == LAYOUT_U5 ? 32u : 0u)
#define X_BYTES(NT) ((NT) * STEP * 2)
#define STAGE_BYTES(class, NT) (X_BYTES(NT) + ROWS * CODE_BYTES(class))
#define SLOT_BYTES(class) (ROWS * (SCALE_BYTES(class) + MIN_BYTES(class) + BIT_BYTES(class)))

static SHARED barrier g_full[STAGES], g_empty[STAGES];

// What a block has.
struct share {
    const struct ew_wcoded_part *part;
    u32 part_row;                 // of the part, among the rows of all
    u32 token, row;               // the first ones
    u32 split, begin, n;          // steps
};

// Tiles next to each other share rows of the matrix.
INLINE struct share find_share(u32 is_gated, u32 NT, const struct ew_wcoded_job *job)
{
    u32 rows = is_gated ? BOX : ROWS, n_steps = job->cols / STEP, tile = BLOCK_X / job->n_splits;
    u32 token_tiles = (job->n_tokens + NT - 1) / NT, row_tile = tile / token_tiles;
    struct share s = {.part = &job->parts[0], .part_row = 0};

    UNROLL
    for (u32 i = 0; i + 1 < EW_WCODED_PARTS && !is_gated; i++) {
        u32 n = (job->parts[i].rows + rows - 1) / rows;

        if (s.part == &job->parts[i] && row_tile >= n) {
            row_tile -= n;
            s.part_row += job->parts[i].rows;
            s.part = &job->parts[i + 1];
        }
    }
    s.token = tile % token_tiles * NT;
    s.row = row_tile * rows;
    s.split = BLOCK_X % job->n_splits;
    s.begin = n_steps * s.split / job->n_splits;
    s.n = n_steps * (s.split + 1) / job->n_splits - s.begin;
    return s;
}

// ---- copies -------------------------------------------------------------------------------------

// Patterns repeat every 1,024 bytes of the address.
INLINE SHARED u8 *base_of_stages(void)
{
    u32 base = (shared_address(g_dynamic) + 1023) & ~1023u;

    return g_dynamic + (base - shared_address(g_dynamic));
}

INLINE SHARED u8 *stage_at(u32 class, u32 NT, u32 stage) { return base_of_stages() + stage * STAGE_BYTES(class, NT); }

INLINE SHARED u8 *slot_at(u32 class, u32 NT, u32 step)
{
    return stage_at(class, NT, STAGES) + step / SPAN % SLOTS * SLOT_BYTES(class);
}

INLINE u32 has_minima(u32 class, const struct ew_wcoded_job *job) { return MIN_BYTES(class) && has_min(job->layout); }

// Of 128 rows.
INLINE void ask_box(u32 class, u32 NT, const struct ew_wcoded_job *job, const struct ew_wcoded_part *part, u32 row,
                    u32 box, u32 i, u32 step, u32 with_span)
{
    const u8 *maps = (const u8 *)part->maps;
    SHARED barrier *full = &g_full[i % STAGES];
    SHARED u8 *codes = stage_at(class, NT, i % STAGES) + X_BYTES(NT) + box * BOX * CODE_BYTES(class);
    SHARED u8 *slot = slot_at(class, NT, step);
    u32 span = step / SPAN;

    copy_tile(codes, maps, step * CODE_BYTES(class), row, full);
    if (!with_span)
        return;
    copy_tile(slot + box * BOX * SCALE_BYTES(class), maps + EW_WCODED_MAP_BYTES, span * SCALE_BYTES(class), row, full);
    slot += ROWS * SCALE_BYTES(class);
    if (has_minima(class, job))
        copy_tile(slot + box * BOX * MIN_BYTES(class), maps + 2 * EW_WCODED_MAP_BYTES, span * MIN_BYTES(class), row,
                  full);
    slot += ROWS * MIN_BYTES(class);
    if (BIT_BYTES(class))
        copy_tile(slot + box * BOX * BIT_BYTES(class), maps + 3 * EW_WCODED_MAP_BYTES, span * BIT_BYTES(class), row,
                  full);
}

INLINE void ask_weights(u32 class, u32 is_gated, u32 NT, const struct ew_wcoded_job *job, const struct share *s, u32 i)
{
    u32 step = s->begin + i, with_span = i == 0 || step % SPAN == 0;
    u32 span_bytes = ROWS * (SCALE_BYTES(class) + BIT_BYTES(class) + (has_minima(class, job) ? MIN_BYTES(class) : 0));

    barrier_expect(&g_full[i % STAGES], STAGE_BYTES(class, NT) + (with_span ? span_bytes : 0));
    ask_box(class, NT, job, s->part, s->row, 0, i, step, with_span);
    if (is_gated)
        ask_box(class, NT, job, &job->parts[1], s->row, 1, i, step, with_span);
    else
        ask_box(class, NT, job, s->part, s->row + BOX, 1, i, step, with_span);
}

INLINE void ask_x(u32 class, u32 NT, const struct ew_wcoded_job *job, const struct share *s, u32 i)
{
    UNROLL
    for (u32 token = 0; token < NT; token += EW_WCODED_TOKENS)
        copy_tile(stage_at(class, NT, i % STAGES) + token * STEP * 2, (const void *)job->x_map,
                  (s->begin + i) * STEP, s->token + token, &g_full[i % STAGES]);
}

// The first weights are on their way before what made the activations has ended.
INLINE void produce(u32 class, u32 is_gated, u32 NT, const struct ew_wcoded_job *job, const struct share *s)
{
    u32 early = min_u32(s->n, STAGES);

    for (u32 i = 0; i < early; i++)
        ask_weights(class, is_gated, NT, job, s, i);
    previous_wait();
    for (u32 i = 0; i < early; i++)
        ask_x(class, NT, job, s, i);
    for (u32 i = early; i < s->n; i++) {
        barrier_wait(&g_empty[i % STAGES], (i / STAGES - 1) % 2);
        ask_weights(class, is_gated, NT, job, s, i);
        ask_x(class, NT, job, s, i);
    }
}

// ---- operands -----------------------------------------------------------------------------------

// Of one row, what a lane has of a step: 16 columns of one group of 32.
struct piece {
    u32 words[4];     // as `four_at` takes them
    u32 scale, other; // twice in a register; of the first and the last 16 columns of the group
    u32 min;          // less than zero, twice
};

INLINE struct piece take_piece(u32 class, const struct ew_wcoded_job *job, SHARED const u8 *codes,
                               SHARED const u8 *slot, u32 row, u32 step)
{
    u32 quad = THREAD % 4, group = quad / 2, half = quad % 2, in_span = step % SPAN * 2 + group, pair;
    SHARED const u8 *at = codes + row * CODE_BYTES(class), *bits;
    struct piece p = {.min = 0};
    u32x2 first, second, high = {0, 0};

    if (class == LAYOUT_I8) {
        first = *(SHARED const u32x2 *)(at + group * 32 + half * 8);
        second = *(SHARED const u32x2 *)(at + group * 32 + half * 8 + 16);
    } else if (class == TABLE || class == TABLE_16) {
        first.x = *(SHARED const u32 *)(at + group * 16 + half * 4);
        second.x = *(SHARED const u32 *)(at + group * 16 + half * 4 + 8);
        first.y = first.x >> 16;
        second.y = second.x >> 16;
    } else {
        first = *(SHARED const u32x2 *)(at + quad * 8);
        second = first >> 4 & 0x0F0F0F0F;
        first &= 0x0F0F0F0F;
    }
    if (is_halved(class))
        pair = ((SHARED const u32 *)(slot + row * SCALE_BYTES(class)))[in_span];
    else
        pair = ((SHARED const u16 *)(slot + row * SCALE_BYTES(class)))[in_span];
    if (class == TABLE)
        pair = f16_scales_of_table(job->layout, pair);
    p.scale = twice(pair);
    p.other = is_halved(class) || class == TABLE ? twice(pair >> 16) : p.scale;
    slot += ROWS * SCALE_BYTES(class);
    if (has_minima(class, job))
        p.min = twice(((SHARED const u16 *)(slot + row * MIN_BYTES(class)))[in_span]) ^ 0x80008000;
    bits = slot + ROWS * MIN_BYTES(class) + row * BIT_BYTES(class);
    if (class == LAYOUT_U5) {
        high.x = ((SHARED const u32 *)bits)[in_span] >> half * 2;
        high.y = high.x >> 4;
        first |= (u32x2){high.x << 4 & 0x10101010, high.x << 3 & 0x10101010};
        second |= (u32x2){high.y << 4 & 0x10101010, high.y << 3 & 0x10101010};
    }
    if (class == LAYOUT_U6) {
        high = ((SHARED const u32x2 *)bits)[in_span] >> half * 4;
        first |= (u32x2){high.x << 4 & 0x30303030, high.x << 2 & 0x30303030};
        second |= (u32x2){high.y << 4 & 0x30303030, high.y << 2 & 0x30303030};
    }
    p.words[0] = first.x;
    p.words[1] = second.x;
    p.words[2] = first.y;
    p.words[3] = second.y;
    return p;
}

// Four columns of a lane, in f16.
INLINE u32x2 four_at(u32 class, u32 layout, u32x4 table, const struct piece *p, u32 i)
{
    u32 scale = i % 2 ? p->other : p->scale, word = p->words[i], offset;

    if (class == TABLE || class == TABLE_16)
        word = look_up_four(table, word);
    if (class == LAYOUT_I8)
        word ^= 0x80808080;
    if (class == TABLE || class == TABLE_16 || class == LAYOUT_I8)
        return scaled(low_bytes(word), high_bytes(word), 0xE480E480, scale); // -1152
    if (class == LAYOUT_U6)
        return scaled(low_bytes(word), high_bytes(word), 0xE420E420, scale); // -1056
    offset = layout == LAYOUT_U4 ? 0xE408E408 : layout == LAYOUT_U5 ? 0xE410E410 : 0xE400E400; // -1032, -1040, -1024
    return (u32x2){fma_f16x2(add_f16x2(low_bytes(word), offset), scale, p->min),
                   fma_f16x2(add_f16x2(high_bytes(word), offset), scale, p->min)};
}

// Left operands of four products: `row` and 8 more.
INLINE void take_weights(u32 class, u32 NT, const struct ew_wcoded_job *job, u32x4 table, u32 stage, u32 step, u32 row,
                         u32 *a)
{
    SHARED const u8 *codes = stage_at(class, NT, stage) + X_BYTES(NT), *slot = slot_at(class, NT, step);

    UNROLL
    for (u32 r = 0; r < 2; r++) {
        struct piece p = take_piece(class, job, codes, slot, row + r * 8, step);

        UNROLL
        for (u32 i = 0; i < 4; i++) {
            u32x2 v = four_at(class, job->layout, table, &p, i);

            a[i * 4 + r] = v.x;
            a[i * 4 + r + 2] = v.y;
        }
    }
}

// ---- results ------------------------------------------------------------------------------------

// A lane's first row of the tile's half `half`: its sums are of that and 8 more; each eight of them is of tokens
// 2 (lane % 4) and the next.
INLINE u32 first_row(u32 is_gated, u32 half)
{
    u32 group = THREAD / 128, box = is_gated ? half : group, in_box = is_gated ? group : half;

    return box * BOX + in_box * 64 + THREAD % 128 / 32 * 16 + THREAD % 32 / 4;
}

// Where a lane's sums of a row go, and what becomes of them before.
struct target {
    float *out;            // of the first token
    const float *residual; // NULL: none
    u32 stride;
    float factor, bias;
};

INLINE struct target find_target(const struct ew_wcoded_job *job, const struct share *s, u32 row)
{
    const struct ew_wcoded_part *part = s->part;
    struct target t = {.stride = job->rows, .factor = 1};

    if (job->n_splits > 1) {
        t.out = (float *)job->partial + (u64)s->split * job->n_tokens * job->rows + s->part_row + row;
        return t;
    }
    t.out = (float *)part->out + row;
    t.stride = part->out_stride;
    if (part->factors)
        t.factor = ((const float *)part->factors)[row];
    if (part->bias)
        t.bias = ((const float *)part->bias)[row];
    if (job->residual)
        t.residual = (const float *)job->residual + row;
    return t;
}

#define AT_ONCE 8

// `acc` are a lane's sums of one row among those of two: elements 4 i and 4 i + 1. The result may stand where the
// residual does: what is read comes first, so that reads do not wait for each other.
INLINE void store_row(u32 NT, const struct ew_wcoded_job *job, const struct target *t, u32 token, const float *acc)
{
    UNROLL
    for (u32 first = 0; first < NT / 4; first += AT_ONCE) {
        float added[AT_ONCE], scale = t->residual ? job->y_scale : 1;

        UNROLL
        for (u32 i = 0; i < AT_ONCE; i++) {
            u32 at = min_u32(token + (first + i) / 2 * 8 + i % 2, job->n_tokens - 1);

            added[i] = t->residual ? job->residual_scale * t->residual[(u64)at * job->residual_stride] : 0;
        }
        UNROLL
        for (u32 i = 0; i < AT_ONCE; i++) {
            u32 at = token + (first + i) / 2 * 8 + i % 2;
            float sum = acc[(first + i) / 2 * 4 + i % 2];

            if (at < job->n_tokens)
                t->out[(u64)at * t->stride] = scale * (sum * t->factor + t->bias) + added[i];
        }
    }
}

INLINE void store_out(u32 NT, const struct ew_wcoded_job *job, const struct share *s, float (*acc)[64])
{
    UNROLL
    for (u32 half = 0; half < 2; half++) {
        UNROLL
        for (u32 r = 0; r < 2; r++) {
            u32 row = s->row + first_row(0, half) + r * 8;

            if (row < s->part->rows) {
                struct target t = find_target(job, s, row);

                store_row(NT, job, &t, s->token + THREAD % 4 * 2, acc[half] + r * 2);
            }
        }
    }
}

#define PITCH (BOX + 8) // elements of a token, so that a warp's lanes meet different banks

// f16 stops at its largest number.
INLINE u16 narrowed(float y) { return f16_of_f32(max_f32(min_f32(y, 65504), -65504)); }

// To shared memory, in place of the stages, in the order of the next product; from there whole rows.
INLINE void leave_gated(u32 NT, const struct ew_wcoded_job *job, const struct share *s, float (*acc)[64])
{
    u32 in_tile = first_row(1, 0);
    SHARED u16 *to = (SHARED u16 *)base_of_stages() + THREAD % 4 * 2 * PITCH;

    UNROLL
    for (u32 r = 0; r < 2; r++) {
        u32 row = min_u32(s->row + in_tile + r * 8, s->part->rows - 1);
        const struct ew_wcoded_part *up = &job->parts[1];
        float gate_bias = s->part->bias ? ((const float *)s->part->bias)[row] : 0;
        float up_bias = up->bias ? ((const float *)up->bias)[row] : 0;
        float gate_factor = s->part->factors ? ((const float *)s->part->factors)[row] : 1;
        float up_factor = up->factors ? ((const float *)up->factors)[row] : 1;
        u32 place = mixed_place(in_tile + r * 8);

        UNROLL
        for (u32 i = 0; i < NT / 4; i++) {
            u32 e = i / 2 * 4 + r * 2 + i % 2;

            to[(i / 2 * 8 + i % 2) * PITCH + place] =
                narrowed(gate_of(acc[0][e] * gate_factor + gate_bias, acc[1][e] * up_factor + up_bias,
                                 job->gate_linear, job->gate_cubic));
        }
    }
}

// 64 divides the rows.
INLINE void store_gated(u32 NT, const struct ew_wcoded_job *job, const struct share *s)
{
    for (u32 i = THREAD; i < NT * (BOX / 8); i += CONSUMERS) {
        u32 token = i / (BOX / 8), place = i % (BOX / 8) * 8;

        if (s->token + token < job->n_tokens && s->row + place < s->part->rows)
            *(u32x4 *)((u16 *)s->part->out + (u64)(s->token + token) * s->part->out_stride + s->row + place) =
                *(SHARED const u32x4 *)((SHARED const u16 *)base_of_stages() + token * PITCH + place);
    }
}

INLINE void products(u32 NT, float *acc, const u32 *a, u64 x, u32 add)
{
    if (NT == 128)
        warpgroup_codes_128(acc, a, x, add);
    else
        warpgroup_codes_64(acc, a, x, add);
}

INLINE void consume(u32 class, u32 is_gated, u32 NT, const struct ew_wcoded_job *job, const struct share *s,
                    float (*acc)[64])
{
    u32x4 table = class == TABLE || class == TABLE_16 ? table_of(job->layout) ^ 0x80808080 : (u32x4){0};
    u32 a[2][16];

    for (u32 i = 0; i < s->n; i++) {
        u32 stage = i % STAGES;
        u64 x = tile_descriptor(stage_at(class, NT, stage));

        barrier_wait(&g_full[stage], i / STAGES % 2);
        UNROLL
        for (u32 half = 0; half < 2; half++) {
            take_weights(class, NT, job, table, stage, s->begin + i, first_row(is_gated, half), a[half]);
            products(NT, acc[half], a[half], x, i);
            warpgroup_wait(1);
            if (half == 0 && i > 0 && THREAD % 32 == 0)
                barrier_arrive(&g_empty[(i - 1) % STAGES]);
        }
    }
    UNROLL
    for (u32 half = 0; half < 2; half++) {
        if (NT == 128)
            warpgroup_wait_sums(acc[half]);
        else
            warpgroup_wait_sums_32(acc[half]);
    }
}

INLINE void wgmma_coded(u32 class, u32 is_gated, u32 NT, const struct ew_wcoded_job *job)
{
    struct share s = find_share(is_gated, NT, job);
    float acc[2][64];

    next_may_start();
    if (THREAD == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(&g_full[i], 1);
            barrier_init(&g_empty[i], CONSUMERS / 32); // a thread of each warp: all of them read codes
        }
        barrier_init_done();
    }
    block_sync();
    if (THREAD >= CONSUMERS) {
        registers_shrink(40);
        if (THREAD == CONSUMERS)
            produce(class, is_gated, NT, job, &s);
    } else {
        registers_grow(232);
        consume(class, is_gated, NT, job, &s, acc);
        previous_wait(); // what it reads may lie where results go
        if (!is_gated) {
            store_out(NT, job, &s, acc);
        } else {
            threads_sync(CONSUMERS); // none reads the stages any more
            leave_gated(NT, job, &s, acc);
            threads_sync(CONSUMERS);
            store_gated(NT, job, &s);
        }
    }
}

#define DEFINE(name, class) \
    KERNEL wgmma_##name##_64(struct ew_wcoded_job job) { wgmma_coded(class, 0, 64, &job); } \
    KERNEL wgmma_##name##_128(struct ew_wcoded_job job) { wgmma_coded(class, 0, 128, &job); } \
    KERNEL wgmma_##name##_64_gated(struct ew_wcoded_job job) { wgmma_coded(class, 1, 64, &job); } \
    KERNEL wgmma_##name##_128_gated(struct ew_wcoded_job job) { wgmma_coded(class, 1, 128, &job); }

DEFINE(i8, LAYOUT_I8)
DEFINE(u4, LAYOUT_U4)
DEFINE(table, TABLE)
DEFINE(table_16, TABLE_16)
DEFINE(u5, LAYOUT_U5)
DEFINE(u6, LAYOUT_U6)

#define JOINED_AT_ONCE 4

// Four rows of a token a thread, of what was shared out by columns; 4 divides the rows of each part.
KERNEL wcoded_join(struct ew_wcoded_job job)
{
    u32 row = (BLOCK_X * N_THREADS + THREAD) * 4;
    const float *from = (const float *)job.partial + (u64)BLOCK_Y * job.rows + row;
    struct ew_wcoded_part part = job.parts[0];
    f32x4 sum = {0, 0, 0, 0}, added = {0, 0, 0, 0};

    next_may_start();
    previous_wait();
    if (row >= job.rows)
        return;
    UNROLL
    for (u32 i = 1; i < EW_WCODED_PARTS; i++) {
        if (row >= part.rows) {
            row -= part.rows;
            part = job.parts[i];
        }
    }
    if (job.residual)
        added = *(const f32x4 *)((const float *)job.residual + (u64)BLOCK_Y * job.residual_stride + row);
    for (u32 s = 0; s < job.n_splits; s += JOINED_AT_ONCE) {
        f32x4 some[JOINED_AT_ONCE];

        UNROLL
        for (u32 i = 0; i < JOINED_AT_ONCE; i++)
            some[i] = *(const f32x4 *)(from + (u64)min_u32(s + i, job.n_splits - 1) * job.n_tokens * job.rows);
        UNROLL
        for (u32 i = 0; i < JOINED_AT_ONCE; i++)
            sum += s + i < job.n_splits ? some[i] : (f32x4){0, 0, 0, 0};
    }
    if (part.factors)
        sum *= *(const f32x4 *)((const float *)part.factors + row);
    if (part.bias)
        sum += *(const f32x4 *)((const float *)part.bias + row);
    if (job.residual)
        sum = job.y_scale * sum + job.residual_scale * added;
    *(f32x4 *)((float *)part.out + (u64)BLOCK_Y * part.out_stride + row) = sum;
}
