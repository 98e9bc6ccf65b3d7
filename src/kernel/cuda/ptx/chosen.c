// The experts that one token chose: their gates, their activation and the sum of their results, in one kernel or two.
// Every block chooses the experts for itself, since that costs less than a kernel of its own; then its warps read rows
// of the chosen ones' matrices and nothing else of them.
//
// A block a multiprocessor. Each warp reads its rows, those of gates and then those of sums, as one run of steps: in
// each its lanes copy two units of weights, which meet the same activations, and what scales them to their own places
// in a ring in shared memory, and use them some steps later. Of gates the two are of both matrices, of sums of two
// rows, whose steps two warps share. The first ones are asked for when the experts are known, and when those of gates
// are used up those of sums are on their way.
//
// What comes once in a kernel has few instructions: each of them has to be fetched first.

#include "kernel/cuda/chosen_job.h"
#include "kernel/cuda/ptx/act.h"
#include "kernel/cuda/ptx/block.h"
#include "kernel/cuda/ptx/route.h"
#include "kernel/cuda/ptx/unit.h"

#define WARPS (EW_CHOSEN_THREADS / 32)
// Times four activations that a thread loads at once: of the gates' and of the sums'.
#define X_QUADS 1
#define HIDDEN_QUADS 2

// Each layout has a kernel, but tables share two: LAYOUT_IQ4 stands for those with a scale for 32 columns,
// LAYOUT_IQ2_16 for those with one for 16, and LAYOUT_NV4 is alone.

#define IS_HALF(layout) ((layout) == LAYOUT_F16 || (layout) == LAYOUT_BF16)
#define IS_U5(layout) ((layout) == LAYOUT_U5 || (layout) == LAYOUT_U5_MIN)
// Whether codes are more than what they stand for, which sums of activations mend.
#define HAS_OFFSET(layout) ((layout) == LAYOUT_U4 || (layout) == LAYOUT_U4_MIN || IS_U5(layout))
// A unit is what 16 bytes of codes (of nibbles, where there are planes) are: so many columns.
#define UNIT(layout) (IS_HALF(layout) ? 8u : (layout) == LAYOUT_I8 || (layout) == LAYOUT_F8 ? 16u : 32u)
// Columns whose activations are 32 bytes (`low` and `high`) in shared memory.
#define PLANE(layout) (IS_HALF(layout) ? 8u : (layout) == LAYOUT_F8 ? 16u : 32u)
// Words that a lane copies beside the codes of a unit: scales of one or two groups, minima, high bits.
#define WORDS(layout) \
    (IS_HALF(layout) ? 0u \
     : (layout) == LAYOUT_U5_MIN || (layout) == LAYOUT_U6 ? 3u \
     : (layout) == LAYOUT_U4_MIN || (layout) == LAYOUT_NV4 || (layout) == LAYOUT_U5 ? 2u : 1u)
#define UNIT_BYTES(layout) (EW_CHOSEN_CODE_BYTES + EW_CHOSEN_WORD_BYTES * WORDS(layout))
#define STAGE_BYTES(layout) (2 * UNIT_BYTES(layout))
// Columns of a warp's units.
#define SPAN(layout) (32 * UNIT(layout))

// Parts of dynamic shared memory; shared_bytes in cuda_chosen.c is their sum.
struct places {
    SHARED u8 *ring;      // of this warp
    SHARED u32x4 *low;    // columns 0 to 15 of each group of 32 in 8 bits; 0 to 7 of 16 in f16; 0 to 3 of 8 in f32
    SHARED u32x4 *high;   // the others; for 8-bit weights all lie in `low`, in order
    SHARED f32x2 *scales; // of 8 bits: scale, and scale times the sum of the codes
    SHARED float *logits;
    SHARED f32x2 *parts;  // of the block's sums, two warps'
    struct route route;
};

// For rows of `cols` activations, whole spans.
INLINE struct places find_places(u32 layout, const struct ew_chosen_job *job, u32 cols)
{
    u32 planes = cols / PLANE(layout), warp_bytes = job->n_stages * STAGE_BYTES(layout);
    SHARED float *at = (SHARED float *)(g_dynamic + WARPS * warp_bytes);
    SHARED u32 *experts = (SHARED u32 *)(at + 3 * job->n_experts + job->n_active);
    struct places p;

    p.ring = g_dynamic + THREAD / 32 * warp_bytes;
    p.logits = at + 2 * job->n_experts;
    p.route = (struct route){job->scores ? (const float *)p.logits : (const float *)job->logits,
                             (const float *)job->choice_bias, job->n_experts, job->n_active,
                             job->score, job->n_groups, job->n_groups_active, job->normalise, job->jitter, job->scale,
                             at, at + job->n_experts, at + 3 * job->n_experts, experts};
    if (chooses_in_warps(&p.route))
        p.route.experts += THREAD / 32 * job->n_active;
    at += (3 * job->n_experts + (1 + WARPS) * job->n_active + 3) / 4 * 4;
    p.parts = (SHARED f32x2 *)at;
    p.low = (SHARED u32x4 *)(at + (job->sums_each + 2) / 2 * 4);
    p.high = p.low + planes;
    p.scales = (SHARED f32x2 *)(p.high + planes);
    return p;
}

// ---- activations --------------------------------------------------------------------------------

// Four columns, of which eight lanes have a group of 32; numbers nearly as in rows.c, quantise.
INLINE void stage_q8(u32 layout, const struct places *p, u32 i, f32x4 v, float weight)
{
    float max = max_f32(max_f32(abs_f32(v.x), abs_f32(v.y)), max_f32(abs_f32(v.z), abs_f32(v.w))), factor, scale;
    u32 word;
    int sum = 0;

    UNROLL
    for (u32 o = 1; o < 8; o *= 2)
        max = max_f32(max, shuffle_xor(max, o));
    factor = max > 1e-30f ? 127 * reciprocal_approx(max) : 0;
    scale = max * (1 / 127.0f) * weight;
    word = four_codes(v, factor);
    if (HAS_OFFSET(layout)) {
        sum = dp4a(word, 0x01010101, 0);
        UNROLL
        for (u32 o = 1; o < 8; o *= 2)
            sum += (int)shuffle_xor_u32((u32)sum, o);
    }
    if (layout == LAYOUT_I8)
        ((SHARED u32 *)p->low)[i] = word;
    else
        ((SHARED u32 *)((i % 8 < 4 ? p->low : p->high) + i / 8))[i % 4] = word;
    if (i % 8 == 0)
        p->scales[i / 8] = (f32x2){scale * sum_unit(layout), scale * (float)(sum * code_offset(layout))};
}

INLINE float clamp_f16(float x) { return max_f32(min_f32(x, 65504), -65504); }

INLINE void stage_quad(u32 layout, const struct places *p, u32 i, f32x4 v, float weight)
{
    if (!IS_HALF(layout) && layout != LAYOUT_F8) {
        stage_q8(layout, p, i, v, weight);
        return;
    }
    v *= weight;
    if (layout == LAYOUT_F8)
        ((SHARED u32x2 *)((i / 2 % 2 ? p->high : p->low) + i / 4))[i % 2] =
            (u32x2){f16x2_of(clamp_f16(v.x), clamp_f16(v.y)), f16x2_of(clamp_f16(v.z), clamp_f16(v.w))};
    else
        ((SHARED f32x4 *)(i % 2 ? p->high : p->low))[i / 2] = v;
}

// Rows of activations one after the other.
struct rows {
    const float *x;
    u32 stride, n_quads, total; // n_quads: of a row
    u32 inverse;                // 2^32 / (4 n_quads), rounded up
};

// Which of the rows has quad i: exact, as the host sees to (cuda_chosen.c).
INLINE u32 row_of(const struct rows *rows, u32 i) { return mul_high(4 * i, rows->inverse); }

// Those of a thread from quad `first` on, asked for together; beyond the last one they repeat it.
INLINE void load_quads(u32 n, const struct rows *rows, u32 first, f32x4 *v)
{
    UNROLL
    for (u32 j = 0; j < n; j++) {
        u32 i = min_u32(first + j * EW_CHOSEN_THREADS, rows->total - 1), row = row_of(rows, i);

        v[j] = *(const f32x4 *)(rows->x + (u64)row * rows->stride + (i - row * rows->n_quads) * 4);
    }
}

// Quads below `end`, of which there are whole warps' of each span: zeros behind the last one. `weights` multiplies each
// row by its own, NULL: 1.
INLINE void stage_quads(u32 layout, u32 n, const struct places *p, const struct rows *rows, u32 first, u32 end,
                        const f32x4 *v, SHARED const float *weights)
{
    UNROLL
    for (u32 j = 0; j < n; j++) {
        u32 i = first + j * EW_CHOSEN_THREADS, is_there = i < rows->total;

        if (i < end)
            stage_quad(layout, p, i, is_there ? v[j] : (f32x4){0, 0, 0, 0},
                       weights && is_there ? weights[row_of(rows, i)] : 1);
    }
}

// The first n of each thread are in `v`.
INLINE void stage(u32 layout, u32 n, const struct places *p, const struct rows *rows, u32 end, f32x4 *v,
                  SHARED const float *weights)
{
    u32 first = THREAD, step = n * EW_CHOSEN_THREADS;

    stage_quads(layout, n, p, rows, first, end, v, weights);
    ROLL
    for (first += step; first < end; first += step) {
        load_quads(n, rows, first, v);
        stage_quads(layout, n, p, rows, first, end, v, weights);
    }
}

// ---- norm and scores, of which the kernel before has left sums -------------------------------------

// What this thread has of the norm that does not wait for that kernel, and its first four columns.
struct ahead {
    f32x4 weight, x;
};

INLINE f32x4 norm_weight_at(const struct ew_chosen_job *job, u32 i)
{
    return ((const f32x4 *)job->norm_weight)[i] + job->norm_offset;
}

INLINE float norm_factor(const struct ew_chosen_job *job, f32x4 first)
{
    u32 i = THREAD;
    f32x4 squares = i < job->cols / 4 ? first * first : (f32x4){0, 0, 0, 0};

    ROLL
    for (i += EW_CHOSEN_THREADS; i < job->cols / 4; i += EW_CHOSEN_THREADS) {
        f32x4 v = ((const f32x4 *)job->x)[i];

        squares += v * v;
    }
    return rsqrt_approx(block_sum_once(EW_CHOSEN_THREADS, squares.x + squares.y + (squares.z + squares.w)) /
                        (float)job->cols + job->eps);
}

INLINE void stage_normal(u32 layout, const struct ew_chosen_job *job, const struct places *p, u32 end,
                         struct ahead a, float factor)
{
    u32 n_quads = job->cols / 4, first = THREAD;

    ROLL
    for (u32 i = first; i < end; i += EW_CHOSEN_THREADS) {
        u32 is_there = i < n_quads, at = min_u32(i, n_quads - 1);

        if (i != first)
            a = (struct ahead){norm_weight_at(job, at), ((const f32x4 *)job->x)[at]};
        a.x *= a.weight * (is_there ? factor : 0);
        if (job->normed && BLOCK_X == 0 && is_there)
            ((f32x4 *)job->normed)[i] = a.x;
        stage_quad(layout, p, i, a.x, 1);
    }
}

// Without the norm's factor.
INLINE float score_of(const struct ew_chosen_job *job, u32 expert)
{
    return (float)(long long)((const u64 *)job->scores)[EW_SCORE_AT(expert)] * (1 / EW_SCORE_ONE);
}

INLINE float logit_of(const struct ew_chosen_job *job, u32 expert, float score, float factor)
{
    return factor * score + (job->logits_bias ? ((const float *)job->logits_bias)[expert] : 0);
}

// Neither softmax nor the norm's factor changes an order: without biases scores alone tell who is chosen. Warps that
// choose for themselves leave weights for later.
INLINE u32 chooses_by_scores(const struct ew_chosen_job *job, const struct places *p)
{
    return job->scores && job->score == SCORE_SOFTMAX && !job->logits_bias && !job->choice_bias &&
           chooses_in_warps(&p->route);
}

// The scores, where logits are to be.
INLINE void put_scores(const struct ew_chosen_job *job, const struct places *p)
{
    ROLL
    for (u32 i = THREAD; i < job->n_experts; i += EW_CHOSEN_THREADS)
        p->logits[i] = score_of(job, i);
}

// Of the scores there, by the threads that took them, once no thread chooses by scores any more (the norm's sum has a
// barrier). The norm's factor, for the activations.
INLINE float make_logits(const struct ew_chosen_job *job, const struct places *p, const struct ahead *a)
{
    float factor = norm_factor(job, a->x);

    ROLL
    for (u32 i = THREAD; i < job->n_experts; i += EW_CHOSEN_THREADS)
        p->logits[i] = logit_of(job, i, p->logits[i], factor);
    return factor;
}

// Once no block reads them any more.
INLINE void clear_scores(const struct ew_chosen_job *job)
{
    ROLL
    for (u32 i = THREAD; i < job->n_experts && BLOCK_X == 0; i += EW_CHOSEN_THREADS)
        ((u64 *)job->scores)[EW_SCORE_AT(i)] = 0;
}

// ---- weights on their way -------------------------------------------------------------------------

#define WORDS_MAX 3

struct unit {
    u32x4 codes;
    u32 words[WORDS_MAX];
};

// Of which layouts the row of codes ends with planes of higher bits.
#define HAS_PLANES(layout) (IS_U5(layout) || (layout) == LAYOUT_U6)

INLINE const u8 *at_byte(u64 base, u32 i, u32 bytes) { return (const u8 *)base + (u64)i * bytes; }

// A unit of a row of the matrix of all experts to this lane's places in shared memory: as cuda_layout.h has it. Zeros
// where it is not there. Rows have an even number of groups, so that words of two scales are one row's; as many units
// as the matrix has, the host sees to, are a number of 32 bits.
INLINE void copy_unit(u32 layout, const struct ew_chosen_matrix *m, u32 row, u32 unit, u32 n_units, SHARED u8 *to,
                      u32 there)
{
    u32 at = row * n_units + unit, scale = at / 2, planes = row * (code_bytes(layout, n_units * 32) / 16) + n_units;
    SHARED u8 *words = to + EW_CHOSEN_CODE_BYTES + THREAD % 32 * 4;

    if (layout == LAYOUT_I8)
        scale = at / 4;
    if (layout == LAYOUT_F8)
        scale = row * f8_scales(n_units * 16) + unit / 8;
    if (layout == LAYOUT_IQ2_16 || layout == LAYOUT_U6)
        scale = at;
    copy_once_async(to + THREAD % 32 * 16, at_byte(m->codes, HAS_PLANES(layout) ? planes - n_units + unit : at, 16),
                    there, hidden_zero(n_units));
    if (WORDS(layout) > 0)
        copy_word_async(words, at_byte(m->scales, scale, 4), there);
    if (layout == LAYOUT_U4_MIN || layout == LAYOUT_NV4)
        copy_word_async(words + EW_CHOSEN_WORD_BYTES, at_byte(m->mins, layout == LAYOUT_NV4 ? row : at / 2, 4), there);
    if (IS_U5(layout))
        copy_word_async(words + EW_CHOSEN_WORD_BYTES, at_byte(m->codes, planes, 16) + unit * 4, there);
    if (layout == LAYOUT_U5_MIN)
        copy_word_async(words + 2 * EW_CHOSEN_WORD_BYTES, at_byte(m->mins, at / 2, 4), there);
    if (layout == LAYOUT_U6) {
        copy_word_async(words + EW_CHOSEN_WORD_BYTES, at_byte(m->codes, planes, 16) + unit * 8, there);
        copy_word_async(words + 2 * EW_CHOSEN_WORD_BYTES, at_byte(m->codes, planes, 16) + unit * 8 + 4, there);
    }
}

INLINE void take_unit(u32 layout, SHARED const u8 *from, struct unit *u)
{
    u->codes = *(SHARED const u32x4 *)(from + THREAD % 32 * 16);
    from += EW_CHOSEN_CODE_BYTES + THREAD % 32 * 4;
    UNROLL
    for (u32 i = 0; i < WORDS(layout); i++)
        u->words[i] = *(SHARED const u32 *)(from + i * EW_CHOSEN_WORD_BYTES);
}

// What is this block's. A gate is a row of both matrices, a pair two rows of all experts; steps are those of a row, or
// of what a warp has of a pair: every other span of columns.
struct share {
    u32 first_gate, end_gate, gate_units, gate_steps;
    u32 first_sum, n_sums, sum_units, sum_steps;
    u32 n_all;   // units of all experts' rows, where sum_units are those of one
    u32 inverse; // 2^32 / sum_units, rounded up
};

INLINE u32 first_of(u32 each, u32 more) { return (u32)BLOCK_X * each + min_u32(BLOCK_X, more); }
INLINE u32 count_of(u32 each, u32 more) { return each + ((u32)BLOCK_X < more); }

INLINE struct share find_share(u32 layout, const struct ew_chosen_job *job)
{
    struct share s = {0};

    s.gate_units = job->cols / UNIT(layout);
    s.sum_units = job->hidden_cols / UNIT(layout);
    s.inverse = job->hidden_inverse * UNIT(layout);
    if (job->does & EW_CHOSEN_GATES) {
        s.first_gate = first_of(job->gates_each, job->gates_more);
        s.end_gate = s.first_gate + count_of(job->gates_each, job->gates_more);
        s.gate_steps = (s.gate_units + 31) / 32;
    }
    if (job->does & EW_CHOSEN_SUMS) {
        s.first_sum = first_of(job->sums_each, job->sums_more);
        s.n_sums = count_of(job->sums_each, job->sums_more);
        s.n_all = job->n_active * s.sum_units;
        s.sum_steps = (s.n_all + 63) / 64;
    }
    return s;
}

// A row of gates, of an expert.
struct gate {
    u32 slot, row;
};

INLINE struct gate find_gate(const struct ew_chosen_job *job, u32 i)
{
    u32 slot = mul_high(i, job->hidden_inverse);

    return (struct gate){slot, i - slot * job->hidden_cols};
}

// The step that a warp asks for next.
struct reader {
    u32 left; // steps of the row or the pair
    u32 unit; // of the lane in its row; of sums, of all experts'
    u32 gate; // as long as there are such
    u32 row;  // of gates, of the matrix; of sums, the first one of a pair among the block's
};

#define FAR 0x80000000u // units behind the last one

INLINE void open_gate(const struct ew_chosen_job *job, const struct share *s, const struct places *p, struct reader *r)
{
    struct gate g = find_gate(job, r->gate);

    r->row = p->route.experts[g.slot] * job->hidden_cols + g.row;
    r->unit = THREAD % 32;
    r->left = s->gate_steps;
}

INLINE void open_pair(const struct share *s, struct reader *r, u32 row)
{
    r->row = row;
    r->unit = row < s->n_sums ? THREAD % 64 : FAR;
    r->left = s->sum_steps;
}

INLINE void open_row(const struct ew_chosen_job *job, const struct share *s, const struct places *p, struct reader *r)
{
    if (r->gate < s->end_gate)
        open_gate(job, s, p, r);
    else
        open_pair(s, r, THREAD / 64 * 2);
}

INLINE void ask_gate(u32 layout, const struct ew_chosen_job *job, const struct share *s, const struct places *p,
                     struct reader *r, u32 to)
{
    u32 there = r->unit < s->gate_units;

    copy_unit(layout, &job->gate, r->row, r->unit, s->gate_units, p->ring + to, there);
    copy_unit(layout, &job->up, r->row, r->unit, s->gate_units, p->ring + to + UNIT_BYTES(layout), there);
    r->unit += 32;
    if (--r->left == 0) {
        r->gate += WARPS;
        open_row(job, s, p, r);
    }
}

INLINE void ask_pair(u32 layout, const struct ew_chosen_job *job, const struct share *s, const struct places *p,
                     struct reader *r, u32 to)
{
    u32 there = r->unit < s->n_all, slot = there ? mul_high(r->unit, s->inverse) : 0;
    u32 row = p->route.experts[slot] * job->cols + s->first_sum + r->row, unit = r->unit - slot * s->sum_units;

    copy_unit(layout, &job->down, row, unit, s->sum_units, p->ring + to, there);
    copy_unit(layout, &job->down, row + 1, unit, s->sum_units, p->ring + to + UNIT_BYTES(layout),
              there && r->row + 1 < s->n_sums);
    r->unit += 64;
    if (--r->left == 0)
        open_pair(s, r, r->row + WARPS);
}

// Asks for a step, a group of copies of its own whether or not it is there.
INLINE void ask(u32 layout, const struct ew_chosen_job *job, const struct share *s, const struct places *p,
                struct reader *r, u32 to)
{
    if (r->gate < s->end_gate)
        ask_gate(layout, job, s, p, r, to);
    else
        ask_pair(layout, job, s, p, r, to);
    copy_commit();
}

// The ring: the stage that is used next, and the one that is asked for next, which was used last.
struct ring {
    u32 at, to;
};

INLINE struct ring begin_reading(u32 layout, const struct ew_chosen_job *job, const struct share *s,
                                 const struct places *p, struct reader *r)
{
    u32 to = 0;

    r->gate = s->first_gate + THREAD / 32;
    open_row(job, s, p, r);
    ROLL
    for (; to != (job->n_stages - 1) * STAGE_BYTES(layout); to += STAGE_BYTES(layout))
        ask(layout, job, s, p, r, to);
    return (struct ring){0, to};
}

INLINE void next_step(u32 layout, u32 n_stages, struct ring *ring)
{
    ring->to = ring->at;
    ring->at = ring->at == (n_stages - 1) * STAGE_BYTES(layout) ? 0 : ring->at + STAGE_BYTES(layout);
}

// The oldest step that was asked for, once it is there.
INLINE void take_step(u32 layout, u32 n_stages, const struct places *p, const struct ring *ring, struct unit *u)
{
    copy_wait(n_stages - 2);
    take_unit(layout, p->ring + ring->at, &u[0]);
    take_unit(layout, p->ring + ring->at + UNIT_BYTES(layout), &u[1]);
}

// ---- products -----------------------------------------------------------------------------------

INLINE float low_of(u32 v, u32 layout) { return layout == LAYOUT_BF16 ? low_bf16(v) : low_f16(v); }
INLINE float high_of(u32 v, u32 layout) { return layout == LAYOUT_BF16 ? high_bf16(v) : high_f16(v); }

// Of a word of two scales or minima, that of the lane's units: they are 32 from each other.
INLINE u32 half_of(u32 layout, u32 word)
{
    return word >> (layout == LAYOUT_I8 ? THREAD / 2 : THREAD) % 2 * 16 & 0xFFFF;
}

INLINE float dot_half(u32 layout, u32x4 w, const struct places *p, u32 at)
{
    f32x4 a = ((SHARED const f32x4 *)p->low)[at], b = ((SHARED const f32x4 *)p->high)[at];

    return low_of(w.x, layout) * a.x + high_of(w.x, layout) * a.y + low_of(w.y, layout) * a.z +
           high_of(w.y, layout) * a.w + low_of(w.z, layout) * b.x + high_of(w.z, layout) * b.y +
           low_of(w.w, layout) * b.z + high_of(w.w, layout) * b.w;
}

// A matrix's table, where the layout is one.
struct table {
    u32 layout;
    struct halves halves;
};

INLINE struct table find_table(u32 layout, const struct ew_chosen_matrix *m)
{
    return (struct table){m->layout, is_table(layout) ? halves_of(m->layout, 0xFFFFFFFF) : (struct halves){0}};
}

INLINE float dot_table(u32 layout, const struct table *t, u32x4 w, const u32 *words, const struct places *p, u32 at)
{
    f32x2 scales = table_scales(t->layout, layout == LAYOUT_IQ2_16 ? words[0] : half_of(layout, words[0]));
    float sum = scales.x * float_of_sum(dot_table_codes(&t->halves, w.xy, p->low[at], SUM_BEGIN)) +
                scales.y * float_of_sum(dot_table_codes(&t->halves, w.zw, p->high[at], SUM_BEGIN));

    return p->scales[at].x * (layout == LAYOUT_NV4 ? sum * f32_of_bits(words[1]) : sum);
}

INLINE float dot_u5(u32 layout, u32x4 w, const u32 *words, const struct places *p, u32 at)
{
    float scale = low_f16(half_of(layout, words[0]));
    float dot = p->scales[at].x * (float)dot_u5_codes(w, words[1], p->low[at], p->high[at]);

    if (layout == LAYOUT_U5_MIN)
        return scale * dot - low_f16(half_of(layout, words[2])) * p->scales[at].y;
    return scale * (dot - p->scales[at].y);
}

INLINE float dot_u6(u32x4 w, const u32 *words, const struct places *p, u32 at)
{
    struct u6_sums sums = dot_u6_codes(w, (u32x2){words[1], words[2]}, p->low[at], p->high[at]);

    return p->scales[at].x * (low_f16(words[0]) * (float)sums.low + high_f16(words[0]) * (float)sums.high);
}

// By the tensor cores, to which the unit alone is as much work as two.
INLINE float dot_f8(u32x4 w, const u32 *words, const struct places *p, u32 at)
{
    f32x2 sums = dot_e4m3(w, w, p->low[at], p->high[at]);

    return has_diagonal() ? f32_of_bits(words[0]) * sums.x : 0;
}

INLINE float dot_4(u32 layout, u32x4 w, const u32 *words, const struct places *p, u32 at)
{
    float scale = low_f16(half_of(layout, words[0]));
    float dot = p->scales[at].x * (float)dot_nibbles(w, p->low[at], p->high[at]);

    if (layout == LAYOUT_U4_MIN)
        return scale * dot - low_f16(half_of(layout, words[1])) * p->scales[at].y;
    return scale * (dot - p->scales[at].y);
}

// With unit `at` of the activations.
INLINE float dot_unit(u32 layout, const struct table *table, const struct unit *u, const struct places *p, u32 at)
{
    const u32 *words = u->words;
    u32x4 w = u->codes;

    switch (layout) {
    case LAYOUT_F16:
    case LAYOUT_BF16:
        return dot_half(layout, w, p, at);
    case LAYOUT_I8:
        return low_f16(half_of(layout, words[0])) * p->scales[at / 2].x *
               (float)dot16(w, p->low[at], 0);
    case LAYOUT_F8:
        return dot_f8(w, words, p, at);
    case LAYOUT_U5:
    case LAYOUT_U5_MIN:
        return dot_u5(layout, w, words, p, at);
    case LAYOUT_U6:
        return dot_u6(w, words, p, at);
    case LAYOUT_U4:
    case LAYOUT_U4_MIN:
        return dot_4(layout, w, words, p, at);
    default:
        return dot_table(layout, table, w, words, p, at);
    }
}

// Of two units with the same activations. The diagonal of F8 sums up four lanes' columns, which have one scale.
INLINE f32x2 dot_both(u32 layout, const struct table *table, const struct unit *first, const struct unit *second,
                      const struct places *p, u32 at)
{
    f32x2 sums;

    if (layout != LAYOUT_F8)
        return (f32x2){dot_unit(layout, table, first, p, at), dot_unit(layout, table, second, p, at)};
    sums = dot_e4m3(first->codes, second->codes, p->low[at], p->high[at]);
    return (f32x2){f32_of_bits(first->words[0]), f32_of_bits(second->words[0])} * (has_diagonal() ? sums : 0);
}

// ---- gates ----------------------------------------------------------------------------------------

INLINE float bias_at(const struct ew_chosen_matrix *m, u64 row) { return m->bias ? ((const float *)m->bias)[row] : 0; }

// The sums of two numbers over a warp: the first in lanes 0 to 15, the second in the others.
INLINE float warp_sums(f32x2 v)
{
    u32 upper = THREAD & 16;
    float sum = (upper ? v.y : v.x) + shuffle_xor(upper ? v.x : v.y, 16);

    UNROLL
    for (u32 o = 8; o; o >>= 1)
        sum += shuffle_xor(sum, o);
    return sum;
}

// `expert`: its first row in the matrices.
INLINE void finish_gate(const struct ew_chosen_job *job, u32 expert, struct gate g, f32x2 sums)
{
    float gate = warp_sums(sums), up = shuffle_xor(gate, 16);

    if (THREAD % 32)
        return;
    up += bias_at(&job->up, expert + g.row);
    gate += bias_at(&job->gate, expert + g.row);
    ((float *)job->hidden)[(u64)g.slot * job->hidden_stride + g.row] =
        job->no_gate ? act_one(up, job->act) : glu_one(gate, up, job->act, job->limit, job->alpha);
}

INLINE void run_gates(u32 layout, u32 n_stages, const struct ew_chosen_job *job, const struct share *s,
                      const struct places *p, struct reader *r, struct ring *ring)
{
    struct table table = find_table(layout, &job->gate); // and of the other one: both have the same layout

    ROLL
    for (u32 i = s->first_gate + THREAD / 32; i < s->end_gate; i += WARPS) {
        f32x2 sums = {0, 0};
        struct gate g;

        ROLL
        for (u32 at = THREAD % 32, left = s->gate_steps; left; left--, at += 32) {
            struct unit u[2];

            take_step(layout, n_stages, p, ring, u);
            ask(layout, job, s, p, r, ring->to);
            sums += dot_both(layout, &table, &u[0], &u[1], p, at);
            next_step(layout, n_stages, ring);
        }
        g = find_gate(job, i);
        finish_gate(job, p->route.experts[g.slot] * job->hidden_cols, g, sums);
    }
}

// ---- sums -----------------------------------------------------------------------------------------

INLINE void run_pairs(u32 layout, u32 n_stages, const struct ew_chosen_job *job, const struct share *s,
                      const struct places *p, struct reader *r, struct ring *ring)
{
    struct table table = find_table(layout, &job->down);

    ROLL
    for (u32 line = THREAD / 64 * 2; line < s->n_sums; line += WARPS) {
        f32x2 sums = {0, 0};
        float sum;

        ROLL
        for (u32 at = THREAD % 64, left = s->sum_steps; left; left--, at += 64) {
            struct unit u[2];

            take_step(layout, n_stages, p, ring, u);
            ask_pair(layout, job, s, p, r, ring->to);
            copy_commit();
            sums += dot_both(layout, &table, &u[0], &u[1], p, at);
            next_step(layout, n_stages, ring);
        }
        sum = warp_sums(sums);
        if (THREAD % 16 == 0)
            ((SHARED float *)&p->parts[line + THREAD / 16 % 2])[THREAD / 32 % 2] = sum;
    }
}

INLINE float residual_at(const struct ew_chosen_job *job, const struct share *s, u32 line)
{
    return job->residual && line < s->n_sums ? ((const float *)job->residual)[s->first_sum + line] : 0;
}

// `residual`: of the thread's first row.
INLINE void finish_sums(const struct ew_chosen_job *job, const struct share *s, const struct places *p, float residual)
{
    ROLL
    for (u32 line = THREAD; line < s->n_sums; line += EW_CHOSEN_THREADS) {
        u32 row = s->first_sum + line;
        float sum = p->parts[line].x + p->parts[line].y;

        ROLL
        for (u32 j = 0; j < job->n_active && job->down.bias; j++)
            sum += (job->is_plain ? 1 : p->route.weights[j]) *
                   bias_at(&job->down, (u64)p->route.experts[j] * job->cols + row);
        if (line != (u32)THREAD)
            residual = residual_at(job, s, line);
        ((float *)job->out)[row] = job->residual ? job->y_scale * sum + job->residual_scale * residual : sum;
    }
}

// All blocks have written what they write before, once this returns. Blocks are all there at once: one fits on each
// multiprocessor, whatever else lies there ends without waiting for this kernel, and what was started early was started
// when all of them were there.
INLINE void wait_for_all(const struct ew_chosen_job *job)
{
    block_sync();
    if (THREAD == 0) {
        add_ordered((u32 *)job->arrived, 1);
        wait_until((u32 *)job->arrived, N_BLOCKS_X);
    }
    block_sync();
}

// The last block that has waited makes the counters ready for the next layer. In two parts, as the answer takes time.
INLINE u32 leave_all(const struct ew_chosen_job *job)
{
    return THREAD == 0 ? atomic_add((u32 *)job->arrived + 1, 1) : 0;
}

INLINE void clear_arrived(const struct ew_chosen_job *job, u32 left_before)
{
    if (THREAD == 0 && left_before == N_BLOCKS_X - 1)
        ((u32 *)job->arrived)[0] = ((u32 *)job->arrived)[1] = 0;
}

INLINE void sum_up(u32 layout, u32 n_stages, const struct ew_chosen_job *job, const struct share *s,
                   struct reader *r, struct ring *ring)
{
    u32 end = s->sum_steps * (2 * SPAN(layout) / 4), left_before = 0;
    struct places p = find_places(layout, job, end * 4);
    struct rows rows = {(const float *)job->hidden, job->hidden_stride, job->hidden_cols / 4,
                        job->n_active * job->hidden_cols / 4, job->hidden_inverse};
    float residual = residual_at(job, s, THREAD);
    f32x4 quads[HIDDEN_QUADS];

    if (THREAD / 32 == WARPS - 1) // which has no more rows of gates than others
        weigh(&p.route);
    if (job->does & EW_CHOSEN_GATES) {
        wait_for_all(job);
        left_before = leave_all(job);
    } else {
        block_sync();
        previous_wait();
    }
    load_quads(HIDDEN_QUADS, &rows, THREAD, quads);
    stage(layout, HIDDEN_QUADS, &p, &rows, end, quads, job->is_plain ? 0 : p.route.weights);
    block_sync();
    run_pairs(layout, n_stages, job, s, &p, r, ring);
    block_sync();
    finish_sums(job, s, &p, residual);
    if (job->does & EW_CHOSEN_GATES) {
        if (job->scores)
            clear_scores(job);
        clear_arrived(job, left_before);
    }
}

// With the ring's length known.
INLINE void run_ring(u32 layout, u32 n_stages, const struct ew_chosen_job *job, const struct share *s,
                     const struct places *p, struct reader *r, struct ring *ring)
{
    u32 does_all = job->does == (EW_CHOSEN_GATES | EW_CHOSEN_SUMS);

    if (job->does & EW_CHOSEN_GATES)
        run_gates(layout, n_stages, job, s, p, r, ring);
    if (does_all)
        next_may_start();
    if (job->does & EW_CHOSEN_SUMS)
        sum_up(layout, n_stages, job, s, r, ring);
}

// The kernel before one that only sums lets it start when the scores are there: so its choice, and its first weights,
// need not wait for that one's end. One that does all lets the next layer's start when its last weights are asked for:
// they come first.
INLINE void run(u32 layout, const struct ew_chosen_job *job)
{
    struct share s = find_share(layout, job);
    u32 x_end = s.gate_steps * (SPAN(layout) / 4);
    struct places p = find_places(layout, job, x_end * 4);
    struct rows rows = {(const float *)job->x, 0, job->cols / 4, job->cols / 4, 0};
    struct reader r;
    struct ring ring;
    struct ahead ahead;
    f32x4 quads[X_QUADS];
    float factor = 0;
    u32 does_gates = job->does & EW_CHOSEN_GATES, does_all = job->does == (EW_CHOSEN_GATES | EW_CHOSEN_SUMS);
    u32 by_scores = chooses_by_scores(job, &p);

    if (job->scores)
        ahead.weight = norm_weight_at(job, min_u32(THREAD, job->cols / 4 - 1));
    if (does_gates)
        previous_wait();
    if (!does_all)
        next_may_start();
    if (job->scores) {
        ahead.x = ((const f32x4 *)job->x)[min_u32(THREAD, job->cols / 4 - 1)];
        put_scores(job, &p);
        if (!by_scores)
            factor = make_logits(job, &p, &ahead);
        block_sync();
    } else if (does_gates) {
        load_quads(X_QUADS, &rows, THREAD, quads);
    }
    choose_together(&p.route);
    ring = begin_reading(layout, job, &s, &p, &r);
    if (by_scores)
        factor = make_logits(job, &p, &ahead);
    if (does_gates) {
        if (job->scores)
            stage_normal(layout, job, &p, x_end, ahead, factor);
        else
            stage(layout, X_QUADS, &p, &rows, x_end, quads, 0);
        block_sync();
    }
    if (job->n_stages == EW_CHOSEN_STAGES)
        run_ring(layout, EW_CHOSEN_STAGES, job, &s, &p, &r, &ring);
    else
        run_ring(layout, EW_CHOSEN_STAGES_FEW, job, &s, &p, &r, &ring);
}

KERNEL chosen_f16(struct ew_chosen_job job) { run(LAYOUT_F16, &job); }
KERNEL chosen_bf16(struct ew_chosen_job job) { run(LAYOUT_BF16, &job); }
KERNEL chosen_i8(struct ew_chosen_job job) { run(LAYOUT_I8, &job); }
KERNEL chosen_u4(struct ew_chosen_job job) { run(LAYOUT_U4, &job); }
KERNEL chosen_u4_min(struct ew_chosen_job job) { run(LAYOUT_U4_MIN, &job); }
KERNEL chosen_f8(struct ew_chosen_job job) { run(LAYOUT_F8, &job); }
KERNEL chosen_table(struct ew_chosen_job job) { run(LAYOUT_IQ4, &job); }
KERNEL chosen_nv4(struct ew_chosen_job job) { run(LAYOUT_NV4, &job); }
KERNEL chosen_table_16(struct ew_chosen_job job) { run(LAYOUT_IQ2_16, &job); }
KERNEL chosen_u5(struct ew_chosen_job job) { run(LAYOUT_U5, &job); }
KERNEL chosen_u5_min(struct ew_chosen_job job) { run(LAYOUT_U5_MIN, &job); }
KERNEL chosen_u6(struct ew_chosen_job job) { run(LAYOUT_U6, &job); }

// For who looks on, one block: makes of the sums what the steps of the program would have left, and of that, which may
// have been changed, the sums.
KERNEL show_scores(struct ew_chosen_job job)
{
    const f32x4 *x = (const f32x4 *)job.x;
    float factor;

    kernel_begin();
    factor = norm_factor(&job, x[min_u32(THREAD, job.cols / 4 - 1)]);
    for (u32 i = THREAD; i < job.cols / 4; i += EW_CHOSEN_THREADS)
        ((f32x4 *)job.normed)[i] = x[i] * norm_weight_at(&job, i) * factor;
    for (u32 i = THREAD; i < job.n_experts; i += EW_CHOSEN_THREADS)
        ((float *)job.logits)[i] = logit_of(&job, i, score_of(&job, i), factor);
}

KERNEL take_scores(struct ew_chosen_job job)
{
    float factor;

    kernel_begin();
    factor = norm_factor(&job, ((const f32x4 *)job.x)[min_u32(THREAD, job.cols / 4 - 1)]);
    for (u32 i = THREAD; i < job.n_experts; i += EW_CHOSEN_THREADS) {
        float logit = ((const float *)job.logits)[i] - (job.logits_bias ? ((const float *)job.logits_bias)[i] : 0);

        ((u64 *)job.scores)[EW_SCORE_AT(i)] = (u64)(long long)(logit / factor * EW_SCORE_ONE);
    }
}

// The router's columns of each block of the kernel that makes the scores.
KERNEL lay_router(struct ew_router_job job)
{
    struct weight w = {(const u8 *)job.codes, (const u16 *)job.scales, (const u16 *)job.mins};
    u32 first = (u32)((u64)job.rows * BLOCK_X / N_BLOCKS_X);
    u32 n = (u32)((u64)job.rows * (BLOCK_X + 1) / N_BLOCKS_X) - first;
    float *out = (float *)job.out + (u64)BLOCK_X * job.n_experts * job.stride;

    kernel_begin();
    for (u32 i = THREAD; i < job.n_experts * job.stride; i += EW_CHOSEN_THREADS) {
        u32 expert = i / job.stride, row = i % job.stride;

        out[i] = row < n ? weight_at(job.layout, &w, expert, first + row, job.rows) *
                               (((const float *)job.norm_weight)[first + row] + job.norm_offset) : 0;
    }
}
