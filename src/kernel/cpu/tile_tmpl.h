#pragma once
// Tile layouts as products read them, on the primitives of vec_*.h: codes, scales, rows of activations and of results.

#include "base/assert.h"
#include "kernel/cpu/cpu_ops.h"

#define VECTORS (EW_CPU_TILE_ROWS / VF) // of a tile
#define SLAB_GROUPS 32                  // 16 kB of codes

// What the code of a layout is specialised on: always a constant where it is inlined.
struct form {
    enum ew_cpu_code code;
    enum ew_cpu_scale scale;
    int offset;
    float unit;
    bool is_slab; // unpacked
};

// Calls DEFINE(name, form) for each layout with codes and scales.
#define FORM_X(NAME, name, code, scale, offset, unit)                                                                  \
    DEFINE(name, ((struct form){EW_CPU_CODE_##code, EW_CPU_SCALE_##scale, offset, unit, false}))
#define DEFINE_ALL EW_CPU_CODED_LAYOUTS(FORM_X)

struct tile {
    const uint8_t *codes, *scales;
    uint32_t n_groups;
};

struct slab {
    _Alignas(64) uint8_t codes[SLAB_GROUPS][8][4 * EW_CPU_TILE_ROWS]; // as part_signed or part_unsigned takes them
    float scales[SLAB_GROUPS][4][EW_CPU_TILE_ROWS];                   // as struct scales
};

struct activations { // rows of one call
    const int8_t *q;
    const float *scale, *scaled_sum;
    const int16_t *sum;
    uint32_t q_stride, group_stride;
};

struct scales { // of VF rows and one group, or its two halves
    vf first, second, min, min_second;
};

VEC_INLINE bool has_halves(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_S16 || kind == EW_CPU_SCALE_E4M3 || kind == EW_CPU_SCALE_S16_MIN;
}

VEC_INLINE bool has_minimum(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_MIN || kind == EW_CPU_SCALE_K || kind == EW_CPU_SCALE_ZERO ||
           kind == EW_CPU_SCALE_S16_MIN;
}

VEC_INLINE bool is_signed(enum ew_cpu_code code)
{
    return code == EW_CPU_CODE_I8 || (code >= EW_CPU_CODE_IQ4 && !EW_CPU_TABLES[code].offset);
}

// ---- codes --------------------------------------------------------------------------------------

// What products see is larger than the value by this.
VEC_INLINE int offset_of(struct form form)
{
    return is_signed(form.code)           ? VEC_BIAS
           : form.code >= EW_CPU_CODE_IQ4 ? EW_CPU_TABLES[form.code].offset
                                          : form.offset;
}

// Words `word` and `word + 4` of VF rows; `group` points at the first of these rows.
VEC_INLINE void load_codes(struct form form, const uint8_t *group, uint32_t word, vb *low, vb *high)
{
    enum ew_cpu_code code = form.code;
    const uint8_t *bits = group + 256;
    vb codes = vb_load(group + word * 64), table;
    int shift = (int)word;

    if (form.is_slab || code == EW_CPU_CODE_I8) {
        *low = form.is_slab ? codes : vb_biased(codes);
        codes = vb_load(group + word * 64 + 256);
        *high = form.is_slab ? codes : vb_biased(codes);
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
    } else if (code >= EW_CPU_CODE_IQ4) {
        table = vb_table(EW_CPU_TABLES[code].values);
        table = is_signed(code) ? vb_biased(table) : vb_add(table, vb_set1(EW_CPU_TABLES[code].offset));
        *low = vb_lookup(table, *low);
        *high = vb_lookup(table, *high);
    }
}

VEC_INLINE struct part add_product(enum ew_cpu_code code, struct part part, vb w, vb a)
{
    return is_signed(code) ? part_signed(part, w, a) : part_unsigned(part, w, a);
}

// Whether the 16-bit sums of some instruction sets must be widened after half of the words: those of a whole group hold
// four bits a code, those of half a group five.
VEC_INLINE bool widens_early(struct form form)
{
    return form.code == EW_CPU_CODE_U6 ||
           (form.code != EW_CPU_CODE_U4 && !is_signed(form.code) && !has_halves(form.scale));
}

VEC_INLINE uint32_t code_bytes(struct form form)
{
    if (form.is_slab)
        return 512;
    switch (form.code) {
    case EW_CPU_CODE_I8:
        return 512;
    case EW_CPU_CODE_U5:
        return 320;
    case EW_CPU_CODE_U6:
        return 384;
    default:
        return 256;
    }
}

// ---- scales -------------------------------------------------------------------------------------

// Half of e4m3, times a factor: its bits are those of an f32 that is 2^120 times smaller.
VEC_INLINE vf half_e4m3(const uint8_t *p, vf factor)
{
    return vf_mul(vf_bits(vi_shl(vi_u8(p), 20)), vf_mul(factor, vf_set1(0x1p119f)));
}

VEC_INLINE vf half_e8m0(const uint8_t *p)
{
    return vf_bits(vi_shl(vi_sub(vi_max(vi_u8(p), vi_set1(1)), vi_set1(1)), 23));
}

// The 6-bit factors of a super-group as bytes, all its rows and groups at once.
struct factors {
    _Alignas(64) uint8_t scale[EW_CPU_SUPER * EW_CPU_TILE_ROWS], min[EW_CPU_SUPER * EW_CPU_TILE_ROWS];
};

VEC_INLINE void k_factors(const uint8_t *record, struct factors *out)
{
    const uint32_t half = EW_CPU_SUPER / 2 * EW_CPU_TILE_ROWS;
    const uint8_t *low = record + 64, *high = record + 192;

    for (uint32_t i = 0; i < half; i++) {
        out->scale[i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
        out->scale[half + i] = (uint8_t)((low[half + i] & 15) | (high[i] & 0x30));
        out->min[i] = (uint8_t)(low[i] >> 4 | (high[i] & 0x0C) << 2);
        out->min[half + i] = (uint8_t)(low[half + i] >> 4 | (high[i] & 0xC0) >> 2);
    }
}

VEC_INLINE struct scales k_scales(const uint8_t *record, const struct factors *factors, uint32_t sub, uint32_t row)
{
    uint32_t at = sub * EW_CPU_TILE_ROWS + row;

    return (struct scales){
        .first = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_u8(factors->scale + at))),
        .min = vf_neg(vf_mul(vf_load_f16(record + 32 + 2 * row), vf_of_vi(vi_u8(factors->min + at)))),
    };
}

// Before the scales of a group are loaded: what its super-group has in common.
VEC_INLINE void open_super(struct form form, const uint8_t *scales, uint32_t group, struct factors *factors)
{
    if (!form.is_slab && form.scale == EW_CPU_SCALE_K && group % EW_CPU_SUPER == 0)
        k_factors(scales + group / EW_CPU_SUPER * 256, factors);
}

VEC_INLINE struct scales slab_scales(const uint8_t *scales, uint32_t group, uint32_t row)
{
    const float *record = (const float *)scales + (uint64_t)group * 4 * EW_CPU_TILE_ROWS + row;

    return (struct scales){vf_load(record), vf_load(record + EW_CPU_TILE_ROWS), vf_load(record + 2 * EW_CPU_TILE_ROWS),
                           vf_load(record + 3 * EW_CPU_TILE_ROWS)};
}

// VF factors of signed bytes, of 2 * VF or VF rows.
VEC_INLINE vf small_scales(struct form form, const uint8_t *record, const uint8_t *small, uint32_t row)
{
    vf scale = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_i8(small + row)));

    return form.unit == 1 ? scale : vf_mul(scale, vf_set1(form.unit));
}

// Factors and minima of half a group, four bits each.
VEC_INLINE void nibble_scales(const uint8_t *record, const uint8_t *small, uint32_t row, vf *scale, vf *min)
{
    vi factors = vi_u8(small + row);

    *scale = vf_mul(vf_load_f16(record + 2 * row), vf_of_vi(vi_and(factors, vi_set1(15))));
    *min = vf_neg(vf_mul(vf_load_f16(record + 32 + 2 * row), vf_of_vi(vi_shr(factors, 4))));
}

VEC_INLINE struct scales load_scales(struct form form, const uint8_t *scales, const struct factors *factors,
                                     uint32_t group, uint32_t row)
{
    uint32_t sub = group % EW_CPU_SUPER;
    struct scales s = {0};
    const uint8_t *record;
    vf factor;

    if (form.is_slab)
        return slab_scales(scales, group, row);
    switch (form.scale) {
    case EW_CPU_SCALE_F16:
        s.first = vf_load_f16(scales + group * 32 + 2 * row);
        break;
    case EW_CPU_SCALE_MIN:
        record = scales + group * 64 + 2 * row;
        s.first = vf_load_f16(record), s.min = vf_load_f16(record + 32);
        break;
    case EW_CPU_SCALE_ZERO:
        record = scales + group / 2 * 48;
        s.first = vf_load_f16(record + 2 * row);
        s.min = vf_neg(vf_mul(s.first, vf_of_vi(vi_u8(record + 32 + row))));
        break;
    case EW_CPU_SCALE_K:
        return k_scales(scales + group / EW_CPU_SUPER * 256, factors, sub, row);
    case EW_CPU_SCALE_S16:
        record = scales + group / EW_CPU_SUPER * 288;
        s.first = small_scales(form, record, record + 32 + sub * 32, row);
        s.second = small_scales(form, record, record + 48 + sub * 32, row);
        break;
    case EW_CPU_SCALE_S16_MIN:
        record = scales + group / EW_CPU_SUPER * 320;
        nibble_scales(record, record + 64 + sub * 32, row, &s.first, &s.min);
        nibble_scales(record, record + 80 + sub * 32, row, &s.second, &s.min_second);
        break;
    case EW_CPU_SCALE_S32:
        record = scales + group / EW_CPU_SUPER * 160;
        s.first = small_scales(form, record, record + 32 + sub * 16, row);
        break;
    case EW_CPU_SCALE_E8M0:
        s.first = half_e8m0(scales + group * 16 + row);
        break;
    case EW_CPU_SCALE_E4M3:
        record = scales + 64 + group * 32 + row;
        factor = vf_load((const float *)scales + row); // under 2^8: of 2^8 the largest weights would be 688,128
        s.first = half_e4m3(record, factor);
        s.second = half_e4m3(record + 16, factor);
        break;
    }
    return s;
}

// The minima of both halves, with the sums of theirs of activation row b.
VEC_INLINE vf add_minima(vf acc, vf first, vf second, const struct activations *x, uint32_t b, uint32_t group)
{
    uint64_t at = (uint64_t)b * x->group_stride + group;
    vf low = vf_set1(x->scale[at] * (float)x->sum[2 * at]), high = vf_set1(x->scale[at] * (float)x->sum[2 * at + 1]);

    return vf_fma(second, high, vf_fma(first, low, acc));
}

// ---- tiles and rows -----------------------------------------------------------------------------

VEC_INLINE struct tile tile_at(const struct ew_cpu_matrix *matrix, uint32_t index)
{
    const uint8_t *data = matrix->data + index * matrix->tile_bytes;

    return (struct tile){data, data + matrix->scale_at, matrix->cols / EW_CPU_GROUP};
}

VEC_INLINE struct activations rows_from(const struct ew_cpu_q8 *q8, uint32_t b, uint32_t group)
{
    uint64_t at = (uint64_t)b * q8->group_stride + group;

    return (struct activations){.q = q8->q + (uint64_t)b * q8->q_stride + (uint64_t)group * EW_CPU_GROUP,
                                .scale = q8->scale + at,
                                .scaled_sum = q8->scaled_sum + at,
                                .sum = q8->sum + 2 * at,
                                .q_stride = q8->q_stride,
                                .group_stride = q8->group_stride};
}

VEC_INLINE void store_row(const struct ew_cpu_linear *job, uint32_t tile, uint32_t b, const float *sums)
{
    uint32_t row = tile * EW_CPU_TILE_ROWS, n = EW_MIN(job->matrix->rows - row, EW_CPU_TILE_ROWS);
    float *out = job->out + (uint64_t)b * job->out_stride + row;

    if (n == EW_CPU_TILE_ROWS && !job->bias) {
        memcpy(out, sums, EW_CPU_TILE_ROWS * sizeof(*out));
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = job->bias ? sums[i] + job->bias[row + i] : sums[i];
}

// Results are written once, to lines that no cache holds: asks for those of n rows in time.
VEC_INLINE void prefetch_out(const struct ew_cpu_linear *job, uint32_t index, uint32_t b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        __builtin_prefetch(job->out + (uint64_t)(b + i) * job->out_stride + index * EW_CPU_TILE_ROWS, 1);
}
