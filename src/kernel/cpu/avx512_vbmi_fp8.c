// Generated tokens with FP8 tiles where VBMI looks bytes up in tables of 128: integer products with 8-bit activations,
// which take half the time of those in f32.
//
// What a code stands for, less its sign, is a whole number of 16 bits times FP8_TABLE_UNIT, and its two bytes are what
// two tables have; the sign goes to the activation. Numbers under 1/16 are rounded to half a unit, 1/65,536 of the
// largest of their span at most: packing moves the exponents of each span up as far as they go (layout_pack.c).

#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/tile_tmpl.h"

#define FP8_TABLE_UNIT (1.0f / 128) // 448 is 57,344 of them
#define AHEAD 4096                  // bytes of codes that are asked for before they are needed
#define AT_ONCE 4                   // rows of activations
#define SPAN_GROUPS (EW_CPU_FP8_SPAN / EW_CPU_GROUP)

struct tables {
    __m512i high[2], low[2]; // bytes of the numbers
    __m512i order;           // from columns in pairs to fours, as products take them
};

// Of an exponent and a significand; half a unit goes to the even neighbour.
#define ROUNDED(quarters) (((quarters) + 1 + ((quarters) >> 2 & 1)) >> 2)
#define NUMBER(e, m) ROUNDED((e) ? (8u + (m)) << ((e) ? (e) - 1 : 0) : (m))
#define HIGH(e, m) NUMBER(e, m) >> 8
#define LOW(e, m) NUMBER(e, m) & 255
#define EIGHT(byte, e) byte(e, 0), byte(e, 1), byte(e, 2), byte(e, 3), byte(e, 4), byte(e, 5), byte(e, 6), byte(e, 7)
#define TABLE(byte) \
    EIGHT(byte, 0), EIGHT(byte, 1), EIGHT(byte, 2), EIGHT(byte, 3), EIGHT(byte, 4), EIGHT(byte, 5), EIGHT(byte, 6), \
        EIGHT(byte, 7), EIGHT(byte, 8), EIGHT(byte, 9), EIGHT(byte, 10), EIGHT(byte, 11), EIGHT(byte, 12), \
        EIGHT(byte, 13), EIGHT(byte, 14), EIGHT(byte, 15)

static const uint8_t HIGH_BYTES[128] = {TABLE(HIGH)}, LOW_BYTES[128] = {TABLE(LOW)};

#define ROW(row) 2 * (row), 2 * (row) + 1, 2 * (row) + 32, 2 * (row) + 33
static const uint8_t ORDER[64] = {ROW(0), ROW(1), ROW(2),  ROW(3),  ROW(4),  ROW(5),  ROW(6),  ROW(7),
                                  ROW(8), ROW(9), ROW(10), ROW(11), ROW(12), ROW(13), ROW(14), ROW(15)};

static struct tables load_tables(void)
{
    return (struct tables){{vb_load(HIGH_BYTES), vb_load(HIGH_BYTES + 64)},
                           {vb_load(LOW_BYTES), vb_load(LOW_BYTES + 64)},
                           vb_load(ORDER)};
}

// Adds a group of 32 columns to `sum`, n activations of 16 rows.
VEC_INLINE void add_group(const struct tables *t, const uint8_t *codes, const struct activations *x, uint32_t group,
                          uint32_t n, vf *sum)
{
    vi high[AT_ONCE], low[AT_ONCE];

    for (uint32_t b = 0; b < n; b++)
        high[b] = low[b] = vi_zero();
#pragma GCC unroll 8
    for (uint32_t word = 0; word < EW_CPU_GROUP / 4; word++) {
        __m512i code = _mm512_permutexvar_epi8(t->order, vb_load(codes + word * 64));
        __m512i w_high = _mm512_permutex2var_epi8(t->high[0], code, t->high[1]);
        __m512i w_low = _mm512_permutex2var_epi8(t->low[0], code, t->low[1]);
        __mmask64 is_negative = _mm512_movepi8_mask(code);

        __builtin_prefetch(codes + word * 64 + AHEAD);
        for (uint32_t b = 0; b < n; b++) {
            vb q = vb_broadcast(x->q + (uint64_t)b * x->q_stride + group * EW_CPU_GROUP + 4 * word);

            q = _mm512_mask_sub_epi8(q, is_negative, vi_zero(), q);
            high[b] = _mm512_dpbusd_epi32(high[b], w_high, q);
            low[b] = _mm512_dpbusd_epi32(low[b], w_low, q);
        }
    }
    for (uint32_t b = 0; b < n; b++)
        sum[b] = vf_fma(vf_of_vi(vi_add(vi_shl(high[b], 8), low[b])),
                        vf_set1(x->scale[(uint64_t)b * x->group_stride + group]), sum[b]);
}

VEC_INLINE void add_tile(const struct tables *t, const struct ew_cpu_linear *job, uint32_t index, uint32_t b,
                         uint32_t n)
{
    struct tile tile = tile_at(job->matrix, index);
    struct activations x = rows_from(job->q8, b, 0);
    float sums[EW_CPU_TILE_ROWS];
    vf total[AT_ONCE];

    for (uint32_t i = 0; i < n; i++)
        total[i] = vf_zero();
    for (uint32_t span = 0; span < tile.n_groups / SPAN_GROUPS; span++) {
        vf scale = vf_mul(vf_load((const float *)tile.scales + (uint64_t)span * EW_CPU_TILE_ROWS),
                          vf_set1(FP8_TABLE_UNIT));
        vf part[AT_ONCE];

        for (uint32_t i = 0; i < n; i++)
            part[i] = vf_zero();
        for (uint32_t group = span * SPAN_GROUPS; group < (span + 1) * SPAN_GROUPS; group++)
            add_group(t, tile.codes + (uint64_t)group * EW_CPU_GROUP * EW_CPU_TILE_ROWS, &x, group, n, part);
        for (uint32_t i = 0; i < n; i++)
            total[i] = vf_fma(part[i], scale, total[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        vf_store(sums, total[i]);
        store_row(job, index, b + i, sums);
    }
}

static void linear_fp8_tables(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    struct tables t = load_tables();

    for (; index < end; index++) {
        uint32_t b = 0;

        for (; b + AT_ONCE <= job->n_rows; b += AT_ONCE)
            add_tile(&t, job, index, b, AT_ONCE);
        for (; b + 2 <= job->n_rows; b += 2)
            add_tile(&t, job, index, b, 2);
        if (b < job->n_rows)
            add_tile(&t, job, index, b, 1);
    }
}

void ew_cpu_avx512_vbmi_init_linear(struct ew_cpu_ops *ops)
{
    ops->isa = "avx512-vbmi";
    ops->linear[EW_CPU_FP8] = linear_fp8_tables;
    ops->linear_prompt[EW_CPU_FP8] = ew_cpu_avx512_vnni_prompt_fp8;
    ops->has_fp8 = true;
}
