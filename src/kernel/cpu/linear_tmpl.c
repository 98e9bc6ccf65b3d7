// Products with tile layouts, on the primitives of vec_*.h; included once for each instruction set.
//
// For each group of 32 columns the integer products of the codes of VF rows at a time with one activation's
// 8-bit values are summed exactly; the sum joins a row's f32 total with one rounding for the scale's product
// and one for the addition. Groups are taken in order and rows of activations do not meet, so that the result
// depends neither on how many there are nor on which instruction set computes it (but for its rounding of a *
// b + c).
//
// Weights are read once for every ACTIVATIONS_MAX rows of activations from memory, and a tile stays in the
// first caches for the others.

#include "base/assert.h"
#include "kernel/cpu/cpu_ops.h"

#define VECTORS (EW_CPU_TILE_ROWS / VF) // of a tile
#define ACTIVATIONS_MAX 4

struct tile {
    const uint8_t *codes, *scales;
    uint32_t n_groups;
};

struct activations { // rows of one call
    const int8_t *q;
    const float *scale;
    const int16_t *sum;
    uint32_t q_stride, group_stride;
};

struct scales { // of VF rows and one group, or its two halves
    vf first, second, min;
};

// ---- codes --------------------------------------------------------------------------------------

// Words `word` and `word + 4` of VF rows; `group` points at the first of these rows.
VEC_INLINE void load_codes(enum ew_cpu_code code, const uint8_t *group, uint32_t word, vb *low, vb *high)
{
    const uint8_t *bits = group + 256;
    vb codes = vb_load(group + word * 64), table;
    int shift = (int)word;

    if (code == EW_CPU_CODE_I8) {
        *low = codes;
        *high = vb_load(group + word * 64 + 256);
        return;
    }
    *low = vb_bits(codes, 0, 4, 0);
    *high = vb_bits(codes, 4, 4, 0);
    if (code == EW_CPU_CODE_U5) {
        *low = vb_or(*low, vb_bits(vb_load(bits), shift, 1, 4));
        *high = vb_or(*high, vb_bits(vb_load(bits), shift + 4, 1, 4));
    } else if (code == EW_CPU_CODE_U6) {
        *low = vb_or(*low, vb_bits(vb_load(bits), 2 * shift, 2, 4));
        *high = vb_or(*high, vb_bits(vb_load(bits + 64), 2 * shift, 2, 4));
    } else if (code == EW_CPU_CODE_IQ4 || code == EW_CPU_CODE_E2M1) {
        table = vb_table(code == EW_CPU_CODE_IQ4 ? ew_cpu_values_iq4 : ew_cpu_values_e2m1);
        *low = vb_lookup(table, *low);
        *high = vb_lookup(table, *high);
    }
}

VEC_INLINE struct part add_product(enum ew_cpu_code code, struct part part, vb w, vb a)
{
    switch (code) {
    case EW_CPU_CODE_I8:
    case EW_CPU_CODE_IQ4:
        return part_signed(part, w, a);
    case EW_CPU_CODE_E2M1:
        return part_small(part, w, a);
    case EW_CPU_CODE_U4:
    case EW_CPU_CODE_U5:
    case EW_CPU_CODE_U6:
        break;
    }
    return part_unsigned(part, w, a);
}

// ---- scales -------------------------------------------------------------------------------------

VEC_INLINE vf half_e4m3(const uint8_t *p) // its bits as those of an f32 that is 2^120 times smaller
{
    return vf_mul(vf_bits(vi_shl(vi_u8(p), 20)), vf_set1(0x1p119f));
}

VEC_INLINE vf half_e8m0(const uint8_t *p)
{
    return vf_bits(vi_shl(vi_sub(vi_max(vi_u8(p), vi_set1(1)), vi_set1(1)), 23));
}

VEC_INLINE struct scales k_scales(const uint8_t *record, uint32_t sub, uint32_t row)
{
    vi low = vi_u8(record + 64 + sub * 16 + row),
       high = vi_shr(vi_u8(record + 192 + sub / 2 * 16 + row), (int)(sub % 2 * 4));
    vi scale = vi_or(vi_and(low, vi_set1(15)), vi_shl(vi_and(high, vi_set1(3)), 4));
    vi min = vi_or(vi_shr(low, 4), vi_shl(vi_and(vi_shr(high, 2), vi_set1(3)), 4));

    return (struct scales){
        .first = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(scale)),
        .min = vf_neg(vf_mul(vf_load_f16(record + 32 + 2 * row), vf_of_vi(min))),
    };
}

VEC_INLINE struct scales load_scales(enum ew_cpu_scale kind, const uint8_t *scales, uint32_t group, uint32_t row)
{
    uint32_t sub = group % EW_CPU_SUPER;
    const uint8_t *record;

    switch (kind) {
    case EW_CPU_SCALE_F16:
        return (struct scales){.first = vf_load_f16(scales + group * 32 + 2 * row)};
    case EW_CPU_SCALE_MIN:
        record = scales + group * 64 + 2 * row;
        return (struct scales){.first = vf_load_f16(record), .min = vf_load_f16(record + 32)};
    case EW_CPU_SCALE_K:
        return k_scales(scales + group / EW_CPU_SUPER * 256, sub, row);
    case EW_CPU_SCALE_S16:
        record = scales + group / EW_CPU_SUPER * 288;
        return (struct scales){
            .first = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_i8(record + 32 + sub * 32 + row))),
            .second = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_i8(record + 48 + sub * 32 + row))),
        };
    case EW_CPU_SCALE_S32:
        record = scales + group / EW_CPU_SUPER * 160;
        return (struct scales){
            .first = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_i8(record + 32 + sub * 16 + row)))};
    case EW_CPU_SCALE_E8M0:
        return (struct scales){.first = half_e8m0(scales + group * 16 + row)};
    case EW_CPU_SCALE_E4M3:
        break;
    }
    return (struct scales){.first = half_e4m3(scales + group * 32 + row),
                           .second = half_e4m3(scales + group * 32 + 16 + row)};
}

VEC_INLINE bool has_halves(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_S16 || kind == EW_CPU_SCALE_E4M3;
}

VEC_INLINE bool has_minimum(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_MIN || kind == EW_CPU_SCALE_K;
}

// ---- one group of VF rows -----------------------------------------------------------------------

VEC_INLINE vf sum_less_offset(struct part part, int offset, int32_t sum)
{
    vi total = part_total(part);

    return vf_of_vi(offset ? vi_sub(total, vi_set1(offset * sum)) : total);
}

// Adds the group's share of activation row b to acc.
VEC_INLINE vf join(enum ew_cpu_scale kind, int offset, vf acc, struct scales s, struct part first, struct part second,
                   const struct activations *x, uint32_t b, uint32_t group)
{
    float scale = x->scale[(uint64_t)b * x->group_stride + group];
    const int16_t *sum = x->sum + 2 * ((uint64_t)b * x->group_stride + group);

    if (has_halves(kind)) {
        vf both = vf_mul(s.second, sum_less_offset(second, offset, sum[1]));

        return vf_fma(vf_fma(s.first, sum_less_offset(first, offset, sum[0]), both), vf_set1(scale), acc);
    }
    acc = vf_fma(vf_mul(s.first, vf_set1(scale)), sum_less_offset(first, offset, sum[0] + sum[1]), acc);
    return has_minimum(kind) ? vf_fma(s.min, vf_set1(scale * (float)(sum[0] + sum[1])), acc) : acc;
}

VEC_INLINE void group_rows(enum ew_cpu_code code, enum ew_cpu_scale kind, int offset, const struct tile *tile,
                           uint32_t group, uint32_t row, const struct activations *x, uint32_t n, vf *acc)
{
    const uint8_t *codes = tile->codes +
                           (uint64_t)group * (code == EW_CPU_CODE_I8   ? 512
                                              : code == EW_CPU_CODE_U5 ? 320
                                              : code == EW_CPU_CODE_U6 ? 384
                                                                       : 256) +
                           4 * row;
    struct part first[ACTIVATIONS_MAX], second[ACTIVATIONS_MAX];
    struct scales s = load_scales(kind, tile->scales, group, row);

    for (uint32_t b = 0; b < n; b++)
        first[b] = second[b] = part_zero();
#pragma GCC unroll 4
    for (uint32_t word = 0; word < 4; word++) {
        vb low, high;

        load_codes(code, codes, word, &low, &high);
        for (uint32_t b = 0; b < n; b++) {
            const int8_t *q = x->q + (uint64_t)b * x->q_stride + group * EW_CPU_GROUP + 4 * word;

            first[b] = add_product(code, first[b], low, vb_broadcast(q));
            if (has_halves(kind))
                second[b] = add_product(code, second[b], high, vb_broadcast(q + 16));
            else
                first[b] = add_product(code, first[b], high, vb_broadcast(q + 16));
            if (word == 1 && (code == EW_CPU_CODE_U5 || code == EW_CPU_CODE_U6)) { // no more fit in 16 bits
                first[b] = part_widen(first[b]);
                second[b] = part_widen(second[b]);
            }
        }
    }
    for (uint32_t b = 0; b < n; b++)
        acc[b] = join(kind, offset, acc[b], s, first[b], second[b], x, b, group);
}

// ---- tiles --------------------------------------------------------------------------------------

VEC_INLINE void store_row(const struct ew_cpu_linear *job, uint32_t tile, uint32_t b, const float *sums)
{
    uint32_t row = tile * EW_CPU_TILE_ROWS, n = EW_MIN(job->matrix->rows - row, EW_CPU_TILE_ROWS);
    float *out = job->out + (uint64_t)b * job->out_stride + row;

    for (uint32_t i = 0; i < n; i++)
        out[i] = job->bias ? sums[i] + job->bias[row + i] : sums[i];
}

// n activations, from row b on; n is a constant where this is inlined.
VEC_INLINE void tile_rows(enum ew_cpu_code code, enum ew_cpu_scale kind, int offset, const struct ew_cpu_linear *job,
                          uint32_t index, const struct tile *tile, uint32_t b, uint32_t n)
{
    const struct ew_cpu_q8 *q8 = job->q8;
    struct activations x = {q8->q + (uint64_t)b * q8->q_stride, q8->scale + (uint64_t)b * q8->group_stride,
                            q8->sum + 2 * (uint64_t)b * q8->group_stride, q8->q_stride, q8->group_stride};
    vf acc[VECTORS][ACTIVATIONS_MAX];
    float sums[EW_CPU_TILE_ROWS];

    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            acc[v][i] = vf_zero();
    }
    for (uint32_t group = 0; group < tile->n_groups; group++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < VECTORS; v++)
            group_rows(code, kind, offset, tile, group, v * VF, &x, n, acc[v]);
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t v = 0; v < VECTORS; v++)
            vf_store(sums + v * VF, acc[v][i]);
        store_row(job, index, b + i, sums);
    }
}

VEC_INLINE void tiles(enum ew_cpu_code code, enum ew_cpu_scale kind, int offset, const struct ew_cpu_linear *job,
                      uint32_t index, uint32_t end)
{
    const struct ew_cpu_matrix *matrix = job->matrix;

    for (; index < end; index++) {
        const uint8_t *data = matrix->data + index * matrix->tile_bytes;
        struct tile tile = {data, data + matrix->scale_at, matrix->cols / EW_CPU_GROUP};
        uint32_t b = 0;

        for (; b + 4 <= job->n_rows; b += 4)
            tile_rows(code, kind, offset, job, index, &tile, b, 4);
        for (; b + 2 <= job->n_rows; b += 2)
            tile_rows(code, kind, offset, job, index, &tile, b, 2);
        if (b < job->n_rows)
            tile_rows(code, kind, offset, job, index, &tile, b, 1);
    }
}

#define DEFINE(name, code, scale, offset)                                                                              \
    static void linear_##name(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)                       \
    {                                                                                                                  \
        tiles(code, scale, offset, job, tile, tile_end);                                                               \
    }

DEFINE(i8, EW_CPU_CODE_I8, EW_CPU_SCALE_F16, 0)
DEFINE(u4, EW_CPU_CODE_U4, EW_CPU_SCALE_F16, 8)
DEFINE(u4_min, EW_CPU_CODE_U4, EW_CPU_SCALE_MIN, 0)
DEFINE(u4_k, EW_CPU_CODE_U4, EW_CPU_SCALE_K, 0)
DEFINE(u5, EW_CPU_CODE_U5, EW_CPU_SCALE_F16, 16)
DEFINE(u5_min, EW_CPU_CODE_U5, EW_CPU_SCALE_MIN, 0)
DEFINE(u5_k, EW_CPU_CODE_U5, EW_CPU_SCALE_K, 0)
DEFINE(u6_k, EW_CPU_CODE_U6, EW_CPU_SCALE_S16, 32)
DEFINE(iq4, EW_CPU_CODE_IQ4, EW_CPU_SCALE_F16, 0)
DEFINE(iq4_xs, EW_CPU_CODE_IQ4, EW_CPU_SCALE_S32, 0)
DEFINE(mxfp4, EW_CPU_CODE_E2M1, EW_CPU_SCALE_E8M0, 0)
DEFINE(nvfp4, EW_CPU_CODE_E2M1, EW_CPU_SCALE_E4M3, 0)

static void init_linear(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    ops->linear[EW_CPU_I8] = linear_i8;
    ops->linear[EW_CPU_U4] = linear_u4;
    ops->linear[EW_CPU_U4_MIN] = linear_u4_min;
    ops->linear[EW_CPU_U4_K] = linear_u4_k;
    ops->linear[EW_CPU_U5] = linear_u5;
    ops->linear[EW_CPU_U5_MIN] = linear_u5_min;
    ops->linear[EW_CPU_U5_K] = linear_u5_k;
    ops->linear[EW_CPU_U6_K] = linear_u6_k;
    ops->linear[EW_CPU_IQ4] = linear_iq4;
    ops->linear[EW_CPU_IQ4_XS] = linear_iq4_xs;
    ops->linear[EW_CPU_MXFP4] = linear_mxfp4;
    ops->linear[EW_CPU_NVFP4] = linear_nvfp4;
}
