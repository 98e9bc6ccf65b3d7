// Products with one row of activations, the decode of one sequence. Weights are read once, at the memory's speed, so
// that everything here serves one aim: that reads never stop.
//
// A block a multiprocessor. Its share of the rows is a run of pieces, dealt to the warps as evenly as pieces allow;
// each warp keeps several under way to its own ring in shared memory. The first of them are asked for before the kernel
// before this one has ended (previous_wait): they are weights and do not change. What stands before the product in the
// program (norm, 8-bit activations) every block does for itself, since that costs less than another kernel; what stands
// behind it (bias, residual, activation of a gate) is done with the sums.

#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/normal.h"
#include "kernel/cuda/ptx/unit.h"

#define WARPS (EW_VECTOR_THREADS / 32)

// Up to U6 with 8-bit activations.
enum { CLASS_U4, CLASS_I8, CLASS_TABLE, CLASS_TABLE_16, CLASS_U5, CLASS_U6, CLASS_F8, CLASS_HALF };

// Of a piece: columns, bytes of codes (of nibbles where there are planes), of all.
struct piece {
    u32 cols, codes, bytes;
};

// Constants once the kernels are made of the templates below.
INLINE struct piece piece_of(u32 class)
{
    switch (class) {
    case CLASS_U4:
        return (struct piece){EW_VECTOR_COLS_U4, EW_VECTOR_COLS_U4 / 2, EW_VECTOR_BYTES_U4};
    case CLASS_I8:
        return (struct piece){EW_VECTOR_COLS_I8, EW_VECTOR_COLS_I8, EW_VECTOR_BYTES_I8};
    case CLASS_TABLE:
        return (struct piece){EW_VECTOR_COLS_TABLE, EW_VECTOR_COLS_TABLE / 2, EW_VECTOR_BYTES_TABLE};
    case CLASS_TABLE_16:
        return (struct piece){EW_VECTOR_COLS_TABLE, EW_VECTOR_COLS_TABLE / 2, EW_VECTOR_BYTES_TABLE_16};
    case CLASS_U5:
        return (struct piece){EW_VECTOR_COLS_U5, EW_VECTOR_COLS_U5 / 2, EW_VECTOR_BYTES_U5};
    case CLASS_U6:
        return (struct piece){EW_VECTOR_COLS_U6, EW_VECTOR_COLS_U6 / 2, EW_VECTOR_BYTES_U6};
    case CLASS_F8:
        return (struct piece){EW_VECTOR_COLS_F8, EW_VECTOR_COLS_F8, EW_VECTOR_BYTES_F8};
    default:
        return (struct piece){EW_VECTOR_COLS_HALF, EW_VECTOR_COLS_HALF * 2, EW_VECTOR_BYTES_HALF};
    }
}

#define COLS(class) (piece_of(class).cols)
#define BYTES(class) (piece_of(class).bytes)
// Units of 16 bytes of codes that a lane has of a piece.
#define UNITS_I8 (EW_VECTOR_COLS_I8 / 512)
// Columns whose activations are 32 bytes (`low` and `high`) in shared memory.
#define PLANE(class) ((class) == CLASS_HALF ? 8 : (class) == CLASS_F8 ? 16 : 32)

// Where the parts of dynamic shared memory lie: rings, activations, sums.
struct places {
    SHARED u8 *ring;    // of this warp
    // For 4 bits columns 0 to 15 of each group of 32, for f8 0 to 7 of 16, for f16 0 to 3 of 8: lanes read neighbours.
    SHARED u32x4 *low;
    SHARED u32x4 *high; // the others; for 8 bits all lie in `low`, in order
    SHARED f32x2 *scales; // scale, and scale times the sum of the codes
    SHARED float *row;    // activations as they are, where a short row is taken in another order
    SHARED float *sums;
    struct halves table; // where the layout is one
};

// This block's share, and its warp's of that. All of it is found before activations are there.
struct share {
    u32 first, n;                   // output rows
    u32 n_pieces_row;               // pieces of a matrix row
    u32 n_slots;                    // of a row's sum: its pieces may lie with several warps
    u32 left;                       // pieces of this warp
    u32 row, piece;                 // of the share, where they begin
    u32 slot;                       // of the first row's sum; of the others it is the first one
};

INLINE struct share find_share(u32 class, const struct ew_vector_job *job)
{
    u32 warp = THREAD / 32, per_warp, total, at;
    struct share s;

    s.first = job->rows * BLOCK_X / N_BLOCKS_X; // the host sees to it that this is less than 2^32
    s.n = job->rows * (BLOCK_X + 1) / N_BLOCKS_X - s.first;
    s.n_pieces_row = (job->cols + COLS(class) - 1) / COLS(class);
    total = s.n * (job->is_glu ? 2 : 1) * s.n_pieces_row;
    per_warp = max_u32((total + WARPS - 1) / WARPS, 1);
    s.n_slots = (s.n_pieces_row - 1) / per_warp + 2;
    at = min_u32(warp * per_warp, total);
    s.left = min_u32(per_warp, total - at);
    s.row = at / s.n_pieces_row;
    s.piece = at - s.row * s.n_pieces_row;
    s.slot = warp - (at - s.piece) / per_warp;
    return s;
}

// No other classes have an order (ew_cuda_source_of).
INLINE u32 is_ordered(u32 class, const struct ew_vector_job *job)
{
    return (class == CLASS_U4 || class == CLASS_I8) && job->order;
}

// What scores need lies before all else: the router's columns, and one of activations.
INLINE u32 score_bytes(const struct ew_vector_job *job)
{
    return (job->score.n_experts + 1) * job->score.stride * (u32)sizeof(float);
}

INLINE struct places find_places(u32 class, u32 is_scored, const struct ew_vector_job *job, const struct share *s)
{
    u32 cols = s->n_pieces_row * COLS(class), planes = cols / PLANE(class);
    SHARED u8 *rings = g_dynamic + (is_scored ? score_bytes(job) : 0);
    SHARED u8 *at = rings + WARPS * job->n_stages * BYTES(class);
    struct places p;

    p.ring = rings + THREAD / 32 * job->n_stages * BYTES(class);
    p.low = (SHARED u32x4 *)at;
    p.high = p.low + planes;
    p.scales = (SHARED f32x2 *)(p.high + planes);
    p.row = (SHARED float *)(p.scales + (class >= CLASS_F8 ? 0 : planes));
    p.sums = p.row + (is_ordered(class, job) && job->cols <= EW_VECTOR_COLS_SHORT ? job->cols : 0);
    if (class == CLASS_TABLE || class == CLASS_TABLE_16)
        p.table = halves_of(job->layout, THE_MINUS);
    return p;
}

// ---- weights on their way ------------------------------------------------------------------------

// The next piece to ask for.
struct reader {
    const u8 *row_codes, *codes; // of the row; of this lane in the piece
    const u16 *scales, *mins;    // of the row
    u32 row, rows;               // row: of the share; rows: that follow in the same matrix, this one among them
    u32 first, left;             // column; pieces of this warp
    u32 slot;                    // byte in the warp's ring
};

// One of the layouts of a class: their rows are of one size.
INLINE u32 layout_like(u32 class)
{
    switch (class) {
    case CLASS_U4:
        return LAYOUT_U4;
    case CLASS_I8:
        return LAYOUT_I8;
    case CLASS_TABLE:
        return LAYOUT_IQ4;
    case CLASS_TABLE_16:
        return LAYOUT_U3_16;
    case CLASS_U5:
        return LAYOUT_U5;
    case CLASS_U6:
        return LAYOUT_U6;
    default:
        return class == CLASS_F8 ? LAYOUT_F8 : LAYOUT_F16;
    }
}

INLINE void open_row(u32 class, const struct ew_vector_job *job, const struct share *s, struct reader *r)
{
    u32 layout = layout_like(class), begin = 0, is_second = job->is_glu && r->row >= s->n;
    u32 row = s->first + r->row - (is_second ? s->n : 0);
    u64 codes = job->parts[is_second].codes, scales = job->parts[is_second].scales, mins = job->parts[is_second].mins;

    r->rows = (job->is_glu ? s->first + s->n : (u32)job->parts[0].rows) - row;
    UNROLL
    for (u32 i = 1; i < EW_VECTOR_PARTS_MAX; i++) {
        begin += (u32)job->parts[i - 1].rows;
        if (!job->is_glu && job->parts[i].rows && s->first + r->row >= begin) {
            row = s->first + r->row - begin;
            r->rows = (u32)job->parts[i].rows - row;
            codes = job->parts[i].codes;
            scales = job->parts[i].scales;
            mins = job->parts[i].mins;
        }
    }
    r->row_codes = (const u8 *)codes + (u64)row * code_bytes(layout, job->cols);
    r->scales = (const u16 *)scales + (u64)row * scale_words(layout, job->cols);
    r->mins = (const u16 *)mins + (u64)row * (job->cols / 32);
}

INLINE struct reader begin_reading(u32 class, const struct ew_vector_job *job, const struct share *s)
{
    struct reader r = {.row = s->row, .first = s->piece * COLS(class), .left = s->left};

    if (r.left)
        open_row(class, job, s, &r);
    r.codes = r.row_codes + s->piece * piece_of(class).codes + THREAD % 32 * 16;
    return r;
}

// What is not codes: a lane's 16 bytes of `from`, the copy `i` of those that begin at `at` in the slot and have
// `cols` columns each.
INLINE void ask_16(const struct ew_vector_job *job, SHARED u8 *slot, u32 at, const void *from, u32 first, u32 cols,
                   u32 i)
{
    copy_async(slot + at + i * 16, (const u8 *)from + i * 16, first + i * cols < job->cols);
}

// Scales or minima of 128 columns in f16: rows of them begin at multiples of 8 bytes.
INLINE void ask_8(const struct ew_vector_job *job, SHARED u8 *slot, u32 at, const u16 *of_row, u32 first, u32 i)
{
    copy_8_async(slot + at + i * 8, of_row + first / 32 + i * 4, first + i * 128 < job->cols);
}

INLINE void ask_scales(u32 class, const struct ew_vector_job *job, const struct reader *r, SHARED u8 *slot)
{
    u32 lane = THREAD % 32, codes = piece_of(class).codes, n = COLS(class) / 128;
    u32 first = r->first;

    if (class == CLASS_F8 && lane < n / 4)
        ask_16(job, slot, codes, r->scales + first / 64, first, 512, lane);
    if (class <= CLASS_TABLE && lane < n)
        ask_8(job, slot, codes, r->scales, first, lane);
    if (class == CLASS_U4 && lane >= n && lane < 2 * n && job->layout == LAYOUT_U4_MIN)
        ask_8(job, slot, codes + n * 8, r->mins, first, lane - n);
    if (class == CLASS_TABLE_16 && lane < n)
        ask_16(job, slot, codes, r->scales + first / 16, first, 128, lane);
    if (class == CLASS_U5 && lane < n)
        ask_16(job, slot, codes, r->row_codes + job->cols / 2 + first / 8, first, 128, lane);
    if (class == CLASS_U5 && lane >= n && lane < 2 * n)
        ask_8(job, slot, codes + n * 16, r->scales, first, lane - n);
    if (class == CLASS_U5 && lane < n && job->layout == LAYOUT_U5_MIN)
        ask_8(job, slot, codes + n * 24, r->mins, first, lane);
    if (class == CLASS_U6 && lane < 2 * n)
        ask_16(job, slot, codes, r->row_codes + job->cols / 2 + first / 4, first, 64, lane);
    if (class == CLASS_U6 && lane < n)
        ask_16(job, slot, codes + n * 32, r->scales + first / 16, first, 128, lane);
}

INLINE void next_row(u32 class, const struct ew_vector_job *job, const struct share *s, struct reader *r)
{
    u32 row_bytes = code_bytes(layout_like(class), job->cols);

    r->first = 0;
    r->row++;
    if (--r->rows == 0) {
        open_row(class, job, s, r);
        r->codes = r->row_codes + THREAD % 32 * 16;
        return;
    }
    r->row_codes += row_bytes;
    r->codes += (i32)(row_bytes - s->n_pieces_row * piece_of(class).codes); // pieces may have gone beyond the row
    r->scales += scale_words(layout_like(class), job->cols);
    r->mins += job->cols / 32;
}

// Asks for a piece, a group of copies of its own whether or not there is one.
INLINE void ask(u32 class, u32 n_stages, const struct ew_vector_job *job, const struct share *s, SHARED u8 *ring,
                struct reader *r)
{
    u32 codes = piece_of(class).codes;

    if (r->left) {
        SHARED u8 *slot = ring + r->slot;

        UNROLL
        for (u32 j = 0; j < codes / 512; j++)
            copy_once_async(slot + (j * 32 + THREAD % 32) * 16, r->codes + j * 512,
                            r->first + (j * 32 + THREAD % 32) * 16 * COLS(class) / codes < job->cols,
                            hidden_zero(job->cols));
        ask_scales(class, job, r, slot);
        r->codes += codes;
        r->first += COLS(class);
        if (--r->left && r->first >= job->cols)
            next_row(class, job, s, r);
    }
    copy_commit();
    r->slot = r->slot + BYTES(class) == n_stages * BYTES(class) ? 0 : r->slot + BYTES(class);
}

// ---- products -----------------------------------------------------------------------------------

// Groups of 32 columns: of a piece, and of a piece a lane.
#define GROUPS(class) (COLS(class) / 32)
#define LANE_GROUPS(class) (COLS(class) / 1024)

// Scales of activations are as put_q8 leaves them.
INLINE float dot_u4(u32 has_min, SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u32x4 *codes = (SHARED const u32x4 *)slot + THREAD % 32;
    SHARED const u16 *scales = (SHARED const u16 *)(slot + GROUPS(CLASS_U4) * 16) + THREAD % 32;
    u32 first = piece * GROUPS(CLASS_U4) + THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < LANE_GROUPS(CLASS_U4); j++) {
        float scale = f32_of_f16(scales[j * 32]);
        f32x2 x = p->scales[first + j * 32];
        float dot = x.x * (float)dot_nibbles(codes[j * 32], p->low[first + j * 32], p->high[first + j * 32]);

        sum += has_min ? scale * dot - f32_of_f16(scales[j * 32 + GROUPS(CLASS_U4)]) * x.y : scale * (dot - x.y);
    }
    return sum;
}

INLINE float dot_i8(SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u16 *scales = (SHARED const u16 *)(slot + COLS(CLASS_I8)) + THREAD % 32 / 2; // a lane has half a group
    u32 first = piece * UNITS_I8 * 32 + THREAD % 32;
    u32x4 w[UNITS_I8], x[UNITS_I8];
    float scale[UNITS_I8], sum = 0;

    UNROLL
    for (u32 j = 0; j < UNITS_I8; j++) { // all of them before any is waited for
        w[j] = ((SHARED const u32x4 *)slot)[j * 32 + THREAD % 32];
        x[j] = p->low[first + j * 32];
        scale[j] = f32_of_f16(scales[j * 16]) * p->scales[first / 2 + j * 16].x;
    }
    UNROLL
    for (u32 j = 0; j < UNITS_I8; j++)
        sum += scale[j] * (float)dot16(w[j], x[j], 0);
    return sum;
}

// layout: a constant, LAYOUT_IQ4 for all with a scale of 32 columns in f16, and LAYOUT_IQ2_16 for those of 16.
INLINE float dot_table(u32 layout, SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u32x4 *codes = (SHARED const u32x4 *)slot + THREAD % 32;
    SHARED const u8 *scales_at = slot + GROUPS(CLASS_TABLE) * 16;
    u32 first = piece * GROUPS(CLASS_TABLE) + THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < LANE_GROUPS(CLASS_TABLE); j++) {
        f32x2 scales = table_scales(layout, is_halved(layout)
                                                ? ((SHARED const u32 *)scales_at)[THREAD % 32 + j * 32]
                                                : ((SHARED const u16 *)scales_at)[THREAD % 32 + j * 32]);
        u32x4 w = codes[j * 32];
        u32 is_one = layout == LAYOUT_IQ4 || layout == LAYOUT_MX4; // scale
        int low = dot_table_codes(&p->table, w.xy, p->low[first + j * 32], SUM_BEGIN);
        int high = dot_table_codes(&p->table, w.zw, p->high[first + j * 32], is_one ? 0 : SUM_BEGIN);

        if (is_one)
            sum += p->scales[first + j * 32].x * scales.x * float_of_sum(low + high);
        else
            sum += p->scales[first + j * 32].x * (scales.x * float_of_sum(low) + scales.y * float_of_sum(high));
    }
    return sum;
}

INLINE float dot_u5(u32 has_min, SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u32x4 *codes = (SHARED const u32x4 *)slot + THREAD % 32;
    SHARED const u32 *bits = (SHARED const u32 *)(slot + GROUPS(CLASS_U5) * 16) + THREAD % 32;
    SHARED const u16 *scales = (SHARED const u16 *)(slot + GROUPS(CLASS_U5) * 20) + THREAD % 32;
    u32 first = piece * GROUPS(CLASS_U5) + THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < LANE_GROUPS(CLASS_U5); j++) {
        float scale = f32_of_f16(scales[j * 32]);
        f32x2 x = p->scales[first + j * 32];
        float dot = x.x * (float)dot_u5_codes(codes[j * 32], bits[j * 32], p->low[first + j * 32],
                                              p->high[first + j * 32]);

        sum += has_min ? scale * dot - f32_of_f16(scales[j * 32 + GROUPS(CLASS_U5)]) * x.y : scale * (dot - x.y);
    }
    return sum;
}

INLINE float dot_u6(SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u32x4 *codes = (SHARED const u32x4 *)slot + THREAD % 32;
    SHARED const u32x2 *bits = (SHARED const u32x2 *)(slot + GROUPS(CLASS_U6) * 16) + THREAD % 32;
    SHARED const u32 *scales = (SHARED const u32 *)(slot + GROUPS(CLASS_U6) * 24) + THREAD % 32;
    u32 first = piece * GROUPS(CLASS_U6) + THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < LANE_GROUPS(CLASS_U6); j++) {
        struct u6_sums sums = dot_u6_codes(codes[j * 32], bits[j * 32], p->low[first + j * 32],
                                           p->high[first + j * 32]);

        sum += p->scales[first + j * 32].x *
               (low_f16(scales[j * 32]) * (float)sums.low + high_f16(scales[j * 32]) * (float)sums.high);
    }
    return sum;
}

INLINE float dot_f8(SHARED const u8 *slot, const struct places *p, u32 piece)
{
    SHARED const u32x4 *codes = (SHARED const u32x4 *)slot + THREAD % 32;
    SHARED const float *scales = (SHARED const float *)(slot + COLS(CLASS_F8)) + THREAD % 32 / 8;
    u32 first = piece * (COLS(CLASS_F8) / 16) + THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < COLS(CLASS_F8) / 512; j += 2) {
        u32 at = first + j * 32;
        u32x4 low[2] = {p->low[at], p->low[at + 32]}, high[2] = {p->high[at], p->high[at + 32]};
        f32x2 sums = dot_e4m3_apart(codes[j * 32], codes[j * 32 + 32], low, high);

        sum += scales[j * 4] * sums.x + scales[j * 4 + 4] * sums.y;
    }
    return has_diagonal() ? sum : 0;
}

INLINE float dot_half(SHARED const u8 *slot, u32 layout, const struct places *p, u32 piece)
{
    u32 lane = THREAD % 32;
    float sum = 0;

    UNROLL
    for (u32 j = 0; j < 2; j++) {
        u32 at = piece * 64 + j * 32 + lane;
        u32x4 w = *(SHARED const u32x4 *)(slot + j * 512 + lane * 16);
        f32x4 a = ((SHARED const f32x4 *)p->low)[at], b = ((SHARED const f32x4 *)p->high)[at];

        if (layout == LAYOUT_BF16)
            sum += low_bf16(w.x) * a.x + high_bf16(w.x) * a.y + low_bf16(w.y) * a.z + high_bf16(w.y) * a.w +
                   low_bf16(w.z) * b.x + high_bf16(w.z) * b.y + low_bf16(w.w) * b.z + high_bf16(w.w) * b.w;
        else
            sum += low_f16(w.x) * a.x + high_f16(w.x) * a.y + low_f16(w.y) * a.z + high_f16(w.y) * a.w +
                   low_f16(w.z) * b.x + high_f16(w.z) * b.y + low_f16(w.w) * b.z + high_f16(w.w) * b.w;
    }
    return sum;
}

INLINE float dot_piece(u32 class, SHARED const u8 *slot, u32 layout, const struct places *p, u32 piece)
{
    switch (class) {
    case CLASS_U4:
        return layout == LAYOUT_U4_MIN ? dot_u4(1, slot, p, piece) : dot_u4(0, slot, p, piece);
    case CLASS_I8:
        return dot_i8(slot, p, piece);
    case CLASS_TABLE:
        return layout == LAYOUT_MX4   ? dot_table(LAYOUT_MX4, slot, p, piece)
               : layout == LAYOUT_NV4 ? dot_table(LAYOUT_NV4, slot, p, piece)
                                      : dot_table(LAYOUT_IQ4, slot, p, piece);
    case CLASS_TABLE_16:
        return dot_table(LAYOUT_IQ2_16, slot, p, piece);
    case CLASS_U5:
        return layout == LAYOUT_U5_MIN ? dot_u5(1, slot, p, piece) : dot_u5(0, slot, p, piece);
    case CLASS_U6:
        return dot_u6(slot, p, piece);
    case CLASS_F8:
        return dot_f8(slot, p, piece);
    default:
        return dot_half(slot, layout, p, piece);
    }
}

// ---- activations --------------------------------------------------------------------------------

// Runs of eight columns, for the quarter of a group of 32, one after the other: a thread has every 512th of them.
struct eight {
    f32x4 first, second;
};

// For others than this kernel; one block does it.
INLINE void keep_normal(const struct ew_vector_job *job, u32 i, struct eight v)
{
    if (job->normed && BLOCK_X == 0 && i < job->cols / 8) {
        ((f32x4 *)job->normed)[2 * i] = v.first;
        ((f32x4 *)job->normed)[2 * i + 1] = v.second;
    }
}

INLINE float greatest(f32x4 v)
{
    return max_f32(max_f32(abs_f32(v.x), abs_f32(v.y)), max_f32(abs_f32(v.z), abs_f32(v.w)));
}

// Columns 8 i to 8 i + 7 to their place. Codes by four lanes a group of 32, numbers nearly as in rows.c, quantise.
// With scales is what code_offset asks for.
INLINE void put_q8(u32 class, u32 layout, const struct places *p, u32 i, struct eight v)
{
    float max = max_f32(greatest(v.first), greatest(v.second)), factor, scale;
    u32 in_group = i % 4;
    u32x2 words;
    int sum = 0;

    UNROLL
    for (u32 o = 1; o < 4; o *= 2)
        max = max_f32(max, shuffle_xor(max, o));
    factor = max > 1e-30f ? 127 * reciprocal_approx(max) : 0;
    scale = max * (1 / 127.0f);
    words = (u32x2){four_codes(v.first, factor), four_codes(v.second, factor)};
    if (class == CLASS_U4 || class == CLASS_U5) {
        sum = dp4a(words.x, 0x01010101, dp4a(words.y, 0x01010101, 0));
        UNROLL
        for (u32 o = 1; o < 4; o *= 2)
            sum += (int)shuffle_xor_u32((u32)sum, o);
    }
    if (class == CLASS_I8)
        ((SHARED u32x2 *)p->low)[i] = words;
    else
        ((SHARED u32x2 *)((in_group < 2 ? p->low : p->high) + i / 4))[in_group % 2] = words;
    if (in_group == 0)
        p->scales[i / 4] = (f32x2){scale * sum_unit(layout), scale * (float)(sum * code_offset(layout))};
}

INLINE float clamp_f16(float x) { return max_f32(min_f32(x, 65504), -65504); }

INLINE u32x2 f16x4_of(f32x4 v)
{
    return (u32x2){f16x2_of(clamp_f16(v.x), clamp_f16(v.y)), f16x2_of(clamp_f16(v.z), clamp_f16(v.w))};
}

INLINE void put(u32 class, const struct ew_vector_job *job, const struct places *p, u32 i, struct eight v)
{
    keep_normal(job, i, v);
    if (class == CLASS_HALF) {
        ((SHARED f32x4 *)p->low)[i] = v.first;
        ((SHARED f32x4 *)p->high)[i] = v.second;
    } else if (class == CLASS_F8) {
        (i % 2 ? p->high : p->low)[i / 2] = (u32x4){f16x4_of(v.first).x, f16x4_of(v.first).y,
                                                    f16x4_of(v.second).x, f16x4_of(v.second).y};
    } else {
        put_q8(class, job->layout, p, i, v);
    }
}

#define PLAIN_EIGHTS 2 // that a thread asks for at once

// What staging needs that does not wait for the kernel before: a thread's eight columns of a short row.
struct ahead {
    struct eight weight;
    float per_column;
    u32x4 order; // two a word; where the job has one
};

// Rows of which each thread has one eight.
INLINE u32 is_short(u32 class, const struct ew_vector_job *job)
{
    return job->cols <= EW_VECTOR_COLS_SHORT && !job->norm_bias &&
           (job->norm == EW_VECTOR_RMS || (job->norm == EW_VECTOR_PLAIN && is_ordered(class, job)));
}

INLINE u32 packed_pair(u32 a, u32 b) { return a | b << 16; }

#define FOUR_OF(row, first, second) \
    ((f32x4){(row)[(first) & 0xFFFF], (row)[(first) >> 16], (row)[(second) & 0xFFFF], (row)[(second) >> 16]})
#define EIGHT_OF(row, order) \
    ((struct eight){FOUR_OF(row, (order).x, (order).y), FOUR_OF(row, (order).z, (order).w)})

INLINE void load_ahead(u32 class, const struct ew_vector_job *job, struct ahead *a)
{
    u32 i = THREAD;

    *a = (struct ahead){.weight = {{1, 1, 1, 1}, {1, 1, 1, 1}}, .per_column = 1 / (float)job->cols};
    if (!is_short(class, job) || i >= job->cols / 8)
        return;
    if (is_ordered(class, job)) {
        const u32x4 *order = (const u32x4 *)job->order + 2 * i;
        u32x4 first = order[0], second = order[1];

        a->order = (u32x4){packed_pair(first.x, first.y), packed_pair(first.z, first.w),
                           packed_pair(second.x, second.y), packed_pair(second.z, second.w)};
    }
    if (job->norm_weight) {
        const f32x4 *weight = (const f32x4 *)job->norm_weight + 2 * i;

        a->weight = (struct eight){weight[0], weight[1]};
        a->weight.first += job->norm_offset;
        a->weight.second += job->norm_offset;
    }
}

INLINE struct eight load_eight(const struct ew_vector_job *job, u32 i)
{
    const f32x4 *x = (const f32x4 *)job->x + 2 * i;

    return i < job->cols / 8 ? (struct eight){x[0], x[1]} : (struct eight){{0, 0, 0, 0}, {0, 0, 0, 0}};
}

INLINE void stage_short(u32 class, const struct ew_vector_job *job, const struct places *p, u32 n_eights,
                        const struct ahead *a)
{
    u32 i = THREAD, is_in_order = is_ordered(class, job), has_eight = i < job->cols / 8;
    struct eight v = load_eight(job, i);
    float factor = 1;

    // Through shared memory: of the first cache each lane would have a turn of its own.
    if (is_in_order && has_eight) {
        ((SHARED f32x4 *)p->row)[2 * i] = v.first;
        ((SHARED f32x4 *)p->row)[2 * i + 1] = v.second;
    }
    if (job->norm == EW_VECTOR_RMS) {
        f32x4 squares = v.first * v.first + v.second * v.second;
        float sum = block_sum_once(EW_VECTOR_THREADS, squares.x + squares.y + (squares.z + squares.w));

        factor = rsqrt_approx(sum * a->per_column + job->eps);
    } else {
        block_sync();
    }
    if (is_in_order && has_eight)
        v = EIGHT_OF(p->row, a->order);
    v.first *= factor * a->weight.first;
    v.second *= factor * a->weight.second;
    if (i < n_eights)
        put(class, job, p, i, v);
}

INLINE void stage_plain(u32 class, const struct ew_vector_job *job, const struct places *p, u32 n_eights)
{
    for (u32 first = THREAD; first < n_eights; first += PLAIN_EIGHTS * EW_VECTOR_THREADS) {
        struct eight v[PLAIN_EIGHTS];

        UNROLL
        for (u32 j = 0; j < PLAIN_EIGHTS; j++)
            v[j] = load_eight(job, first + j * EW_VECTOR_THREADS);
        UNROLL
        for (u32 j = 0; j < PLAIN_EIGHTS; j++) {
            if (first + j * EW_VECTOR_THREADS < n_eights)
                put(class, job, p, first + j * EW_VECTOR_THREADS, v[j]);
        }
    }
}

INLINE void stage_any(u32 class, const struct ew_vector_job *job, const struct places *p, u32 n_eights)
{
    const f32x4 *x = (const f32x4 *)job->x;
    struct normal n = find_normal(EW_VECTOR_THREADS, job, x);

    ROLL
    for (u32 i = THREAD; i < n_eights; i += EW_VECTOR_THREADS)
        put(class, job, p, i, (struct eight){normal_at(job, x, &n, 2 * i), normal_at(job, x, &n, 2 * i + 1)});
}

// Activations to shared memory, zeros behind the last column; whole warps have columns or none.
INLINE void stage(u32 class, const struct ew_vector_job *job, const struct places *p, u32 n_eights,
                  const struct ahead *a)
{
    if (is_short(class, job))
        stage_short(class, job, p, n_eights, a);
    else if (job->norm == EW_VECTOR_PLAIN && !job->order)
        stage_plain(class, job, p, n_eights);
    else
        stage_any(class, job, p, n_eights);
}

// ---- results ------------------------------------------------------------------------------------

INLINE float sum_of(const struct share *s, const struct places *p, u32 row)
{
    float sum = 0;

    ROLL // what a block does once costs the fetching of its instructions more than anything else
    for (u32 i = 0; i < s->n_slots; i++)
        sum += p->sums[row * s->n_slots + i];
    return sum;
}

// NV4 has a scale for each row, too.
INLINE float scaled(const struct ew_vector_job *job, u64 mins, u32 row, float sum)
{
    return job->layout == LAYOUT_NV4 ? sum * ((const float *)mins)[row] : sum;
}

INLINE float with_bias(u64 bias, u32 row, float sum) { return bias ? sum + ((const float *)bias)[row] : sum; }

// residual: of the row, if the job has one. What it has left, too.
INLINE float finish(const struct ew_vector_job *job, const struct share *s, const struct places *p, u32 i,
                    float residual)
{
    u32 row = s->first + i, begin = 0;
    u64 out = job->parts[0].out, bias = job->parts[0].bias, mins = job->parts[0].mins;
    float value = sum_of(s, p, i);

    if (job->is_glu) {
        float up = scaled(job, job->parts[1].mins, row, sum_of(s, p, s->n + i));

        up = with_bias(job->parts[1].bias, row, up);
        value = glu_one(with_bias(bias, row, scaled(job, mins, row, value)), up, job->act, job->limit, job->alpha);
        ((float *)out)[row] = value;
        return value;
    }
    UNROLL
    for (u32 part = 1; part < EW_VECTOR_PARTS_MAX; part++) {
        begin += (u32)job->parts[part - 1].rows;
        if (job->parts[part].rows && s->first + i >= begin) {
            row = s->first + i - begin;
            out = job->parts[part].out;
            bias = job->parts[part].bias;
            mins = job->parts[part].mins;
        }
    }
    value = with_bias(bias, row, scaled(job, mins, row, value));
    if (job->residual)
        value = job->y_scale * value + job->residual_scale * residual;
    ((float *)out)[row] = value;
    return value;
}

INLINE float residual_at(const struct ew_vector_job *job, const struct share *s, u32 i)
{
    return job->residual && i < s->n ? ((const float *)job->residual)[s->first + i] : 0;
}

// ---- scores of experts, of which these rows are the input -----------------------------------------

// With the first piece of weights; nothing of it waits for the kernel before.
INLINE void ask_router(const struct ew_vector_job *job)
{
    u32 n_quads = job->score.n_experts * job->score.stride / 4;
    const u8 *from = (const u8 *)job->score.router + (u64)BLOCK_X * n_quads * 16;

    for (u32 i = THREAD; i < n_quads; i += EW_VECTOR_THREADS)
        copy_async(g_dynamic + i * 16, from + (u64)i * 16, 1);
}

// What the rows have become, and zeros behind them: behind the router's columns.
INLINE SHARED float *values_of(const struct ew_vector_job *job)
{
    return (SHARED float *)g_dynamic + job->score.n_experts * job->score.stride;
}

// Four threads an expert.
INLINE void add_scores(const struct ew_vector_job *job)
{
    const struct ew_score_job *score = &job->score;
    SHARED const f32x4 *values = (SHARED const f32x4 *)values_of(job);

    ROLL
    for (u32 first = THREAD / 32 * 8; first < score->n_experts; first += WARPS * 8) {
        u32 expert = first + THREAD % 32 / 4, n = score->stride / 4;
        SHARED const f32x4 *row = (SHARED const f32x4 *)g_dynamic + min_u32(expert, score->n_experts - 1) * n;
        f32x4 product = {0, 0, 0, 0};
        float sum;

        for (u32 i = THREAD % 4; i < n; i += 4)
            product += row[i] * values[i];
        sum = product.x + product.y + (product.z + product.w);
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        sum = max_f32(min_f32(sum, EW_SCORE_MOST), -EW_SCORE_MOST);
        if (THREAD % 4 == 0 && expert < score->n_experts)
            atomic_add_u64((u64 *)score->sums + EW_SCORE_AT(expert), (u64)(long long)(sum * EW_SCORE_ONE));
    }
}

// What is left of the rows, of which a thread has one, and their scores.
INLINE void finish_scored(const struct ew_vector_job *job, const struct share *s, const struct places *p,
                          float residual)
{
    for (u32 i = THREAD; i < job->score.stride; i += EW_VECTOR_THREADS)
        values_of(job)[i] =
            i < s->n ? finish(job, s, p, i, i < EW_VECTOR_THREADS ? residual : residual_at(job, s, i)) : 0;
    block_sync();
    add_scores(job);
}

// The pieces of this warp, each one replaced by the next one that is to be asked for. n_stages: a constant, since how
// many pieces may still be under way is a part of the instruction that waits.
INLINE void sum_pieces(u32 class, u32 n_stages, const struct ew_vector_job *job, const struct share *s,
                       const struct places *p, struct reader *r)
{
    SHARED float *to = p->sums + s->row * s->n_slots + s->slot, *next = p->sums + (s->row + 1) * s->n_slots;
    u32 piece = s->piece, slot = 0;
    float sum = 0;

    for (u32 left = s->left; left; left--) {
        copy_wait(n_stages - 2);
        warp_sync();
        ask(class, n_stages, job, s, p->ring, r);
        sum += dot_piece(class, p->ring + slot, job->layout, p, piece);
        slot = slot + BYTES(class) == n_stages * BYTES(class) ? 0 : slot + BYTES(class);
        if (++piece < s->n_pieces_row && left > 1)
            continue;
        sum = warp_sum(sum);
        if (THREAD % 32 == 0)
            *to = sum;
        to = next;
        next += s->n_slots;
        sum = 0;
        piece = 0;
    }
}

INLINE void sum_all(u32 class, const struct ew_vector_job *job, const struct share *s, const struct places *p,
                    struct reader *r)
{
    switch (job->n_stages) {
    case EW_VECTOR_STAGES_MIN:
        sum_pieces(class, EW_VECTOR_STAGES_MIN, job, s, p, r);
        break;
    case 5:
        sum_pieces(class, 5, job, s, p, r);
        break;
    case 6:
        sum_pieces(class, 6, job, s, p, r);
        break;
    case 7:
        sum_pieces(class, 7, job, s, p, r);
        break;
    default:
        sum_pieces(class, EW_VECTOR_STAGES_MAX, job, s, p, r);
        break;
    }
}

// is_scored: a constant, as the class is: products without scores are not to have registers taken by them.
INLINE void multiply(u32 class, u32 is_scored, const struct ew_vector_job *job)
{
    struct share s = find_share(class, job);
    struct places p = find_places(class, is_scored, job, &s);
    struct reader r = begin_reading(class, job, &s);
    u32 n_rows = s.n * (job->is_glu ? 2 : 1);
    struct ahead ahead;
    float residual;

    next_may_start();
    if (is_scored)
        ask_router(job);
    ROLL
    for (u32 i = 0; i < job->n_early; i++)
        ask(class, job->n_stages, job, &s, p.ring, &r);
    load_ahead(class, job, &ahead);
    ROLL
    for (u32 i = THREAD; i < n_rows * s.n_slots; i += EW_VECTOR_THREADS)
        p.sums[i] = 0;
    previous_wait();
    stage(class, job, &p, s.n_pieces_row * COLS(class) / 8, &ahead);
    residual = residual_at(job, &s, THREAD); // while weights are multiplied
    block_sync();
    ROLL
    for (u32 i = job->n_early + 1; i < job->n_stages; i++)
        ask(class, job->n_stages, job, &s, p.ring, &r);
    sum_all(class, job, &s, &p, &r);
    if (is_scored) {
        copy_wait(0); // warps without pieces have waited for nothing
        block_sync();
        finish_scored(job, &s, &p, residual);
        return;
    }
    block_sync();
    ROLL
    for (u32 i = THREAD; i < s.n; i += EW_VECTOR_THREADS)
        finish(job, &s, &p, i, i < EW_VECTOR_THREADS ? residual : residual_at(job, &s, i));
}

KERNEL vector_u4(struct ew_vector_job job) { multiply(CLASS_U4, 0, &job); }
KERNEL vector_i8(struct ew_vector_job job) { multiply(CLASS_I8, 0, &job); }
KERNEL vector_table(struct ew_vector_job job) { multiply(CLASS_TABLE, 0, &job); }
KERNEL vector_table_16(struct ew_vector_job job) { multiply(CLASS_TABLE_16, 0, &job); }
KERNEL vector_u5(struct ew_vector_job job) { multiply(CLASS_U5, 0, &job); }
KERNEL vector_u6(struct ew_vector_job job) { multiply(CLASS_U6, 0, &job); }
KERNEL vector_f8(struct ew_vector_job job) { multiply(CLASS_F8, 0, &job); }
KERNEL vector_half(struct ew_vector_job job) { multiply(CLASS_HALF, 0, &job); }

KERNEL vector_u4_scored(struct ew_vector_job job) { multiply(CLASS_U4, 1, &job); }
KERNEL vector_i8_scored(struct ew_vector_job job) { multiply(CLASS_I8, 1, &job); }
KERNEL vector_table_scored(struct ew_vector_job job) { multiply(CLASS_TABLE, 1, &job); }
KERNEL vector_table_16_scored(struct ew_vector_job job) { multiply(CLASS_TABLE_16, 1, &job); }
KERNEL vector_u5_scored(struct ew_vector_job job) { multiply(CLASS_U5, 1, &job); }
KERNEL vector_u6_scored(struct ew_vector_job job) { multiply(CLASS_U6, 1, &job); }
KERNEL vector_f8_scored(struct ew_vector_job job) { multiply(CLASS_F8, 1, &job); }
KERNEL vector_half_scored(struct ew_vector_job job) { multiply(CLASS_HALF, 1, &job); }
