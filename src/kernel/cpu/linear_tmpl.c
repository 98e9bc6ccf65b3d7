// Products with tile layouts, on the primitives of vec_*.h; included once for each instruction set.
//
// For each group of 32 columns the integer products of the codes of VF rows at a time with one activation's
// 8-bit values are summed exactly; the sum joins a row's f32 total with one rounding for the scale's product
// and one for the addition. Groups are taken in order and rows of activations do not meet, so that the result
// depends neither on how many there are nor on which instruction set computes it (but for its rounding of a *
// b + c).
//
// A few activations multiply with the codes as they come from memory. For many, a slab of a tile is unpacked
// to one byte a code and f32 scales, which stay in the first cache while a block of activations, which stays in
// the second, goes over them.

#include "base/assert.h"
#include "kernel/cpu/cpu_ops.h"

#define VECTORS (EW_CPU_TILE_ROWS / VF)  // of a tile
#define SLAB_GROUPS 32                   // 16 kB of codes
#define SLAB_LEAST (2 * VEC_ACTIVATIONS) // activations for which unpacking first pays
#define BLOCK_ROWS 256
#define BLOCK_BYTES (384u << 10)

// What the code of a layout is specialised on: always a constant where it is inlined.
struct form {
    enum ew_cpu_code code;
    enum ew_cpu_scale scale;
    int offset;
    bool is_slab; // unpacked
};

struct tile {
    const uint8_t *codes, *scales;
    uint32_t n_groups;
};

struct slab {
    _Alignas(64) uint8_t codes[SLAB_GROUPS][8][4 * EW_CPU_TILE_ROWS]; // as part_signed or part_unsigned takes them
    float scales[SLAB_GROUPS][3][EW_CPU_TILE_ROWS];                  // first, second, minimum
};

struct activations { // rows of one call
    const int8_t *q;
    const float *scale, *scaled_sum;
    const int16_t *sum;
    uint32_t q_stride, group_stride;
};

struct scales { // of VF rows and one group, or its two halves
    vf first, second, min;
};

VEC_INLINE bool has_halves(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_S16 || kind == EW_CPU_SCALE_E4M3;
}

VEC_INLINE bool has_minimum(enum ew_cpu_scale kind)
{
    return kind == EW_CPU_SCALE_MIN || kind == EW_CPU_SCALE_K;
}

VEC_INLINE bool is_signed(enum ew_cpu_code code)
{
    return code == EW_CPU_CODE_I8 || code == EW_CPU_CODE_IQ4;
}

// ---- codes --------------------------------------------------------------------------------------

#define E2M1_OFFSET 12 // makes the values of E2M1 unsigned numbers of 5 bits

static const int8_t E2M1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// What products see is larger than the value by this.
VEC_INLINE int offset_of(struct form form)
{
    return form.code == EW_CPU_CODE_E2M1 ? E2M1_OFFSET : is_signed(form.code) ? VEC_BIAS : form.offset;
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
    } else if (code == EW_CPU_CODE_IQ4 || code == EW_CPU_CODE_E2M1) {
        table = code == EW_CPU_CODE_IQ4 ? vb_biased(vb_table(ew_cpu_values_iq4)) : vb_table(E2M1);
        *low = vb_lookup(table, *low);
        *high = vb_lookup(table, *high);
    }
}

VEC_INLINE struct part add_product(enum ew_cpu_code code, struct part part, vb w, vb a)
{
    return is_signed(code) ? part_signed(part, w, a) : part_unsigned(part, w, a);
}

// Whether the 16-bit sums of some instruction sets must be widened after half a group.
VEC_INLINE bool widens_early(enum ew_cpu_code code)
{
    return code == EW_CPU_CODE_U5 || code == EW_CPU_CODE_U6 || code == EW_CPU_CODE_E2M1;
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
    case EW_CPU_CODE_U4:
    case EW_CPU_CODE_IQ4:
    case EW_CPU_CODE_E2M1:
        break;
    }
    return 256;
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

VEC_INLINE struct scales slab_scales(const uint8_t *scales, uint32_t group, uint32_t row)
{
    const float *record = (const float *)scales + (uint64_t)group * 3 * EW_CPU_TILE_ROWS + row;

    return (struct scales){vf_load(record), vf_load(record + EW_CPU_TILE_ROWS),
                           vf_load(record + 2 * EW_CPU_TILE_ROWS)};
}

VEC_INLINE struct scales load_scales(struct form form, const uint8_t *scales, uint32_t group, uint32_t row)
{
    uint32_t sub = group % EW_CPU_SUPER;
    const uint8_t *record;

    if (form.is_slab)
        return slab_scales(scales, group, row);
    switch (form.scale) {
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

// ---- one group of VF rows -----------------------------------------------------------------------

// Adds the group's share of activation row b to acc.
VEC_INLINE vf join(enum ew_cpu_scale kind, vf acc, struct scales s, struct part first, struct part second,
                   const struct activations *x, uint32_t b, uint32_t group)
{
    uint64_t at = (uint64_t)b * x->group_stride + group;
    vf scale = vf_set1(x->scale[at]), total = vf_of_vi(part_total(first));

    if (has_halves(kind))
        return vf_fma(vf_fma(s.first, total, vf_mul(s.second, vf_of_vi(part_total(second)))), scale, acc);
    acc = vf_fma(vf_mul(s.first, scale), total, acc);
    return has_minimum(kind) ? vf_fma(s.min, vf_set1(x->scaled_sum[at]), acc) : acc;
}

VEC_INLINE void group_rows(struct form form, const struct tile *tile, uint32_t group, uint32_t row,
                           const struct activations *x, uint32_t n, vf *acc)
{
    const uint8_t *codes = tile->codes + (uint64_t)group * code_bytes(form) + 4 * row;
    int offset = offset_of(form);
    struct part first[VEC_ACTIVATIONS], second[VEC_ACTIVATIONS];
    struct scales s = load_scales(form, tile->scales, group, row);
    bool halves = has_halves(form.scale);

    for (uint32_t b = 0; b < n; b++) {
        const int16_t *sum = x->sum + 2 * ((uint64_t)b * x->group_stride + group);

        first[b] = part_from(offset ? vi_less_sums(offset, halves ? 0 : offset, sum) : vi_zero());
        second[b] = part_from(halves && offset ? vi_less_sums(0, offset, sum) : vi_zero());
    }
#pragma GCC unroll 4
    for (uint32_t word = 0; word < 4; word++) {
        vb low, high;

        load_codes(form, codes, word, &low, &high);
        for (uint32_t b = 0; b < n; b++) {
            const int8_t *q = x->q + (uint64_t)b * x->q_stride + group * EW_CPU_GROUP + 4 * word;

            first[b] = add_product(form.code, first[b], low, vb_broadcast(q));
            if (halves)
                second[b] = add_product(form.code, second[b], high, vb_broadcast(q + 16));
            else
                first[b] = add_product(form.code, first[b], high, vb_broadcast(q + 16));
            if (word == 1 && widens_early(form.code)) { // no more fit in 16 bits
                first[b] = part_widen(first[b]);
                second[b] = part_widen(second[b]);
            }
        }
    }
    for (uint32_t b = 0; b < n; b++)
        acc[b] = join(form.scale, acc[b], s, first[b], second[b], x, b, group);
}

// ---- tiles --------------------------------------------------------------------------------------

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

// n activations, from row b on; n is a constant where this is inlined.
VEC_INLINE void tile_rows(struct form form, const struct ew_cpu_linear *job, uint32_t index, const struct tile *tile,
                          uint32_t b, uint32_t n)
{
    struct activations x = rows_from(job->q8, b, 0);
    vf acc[VECTORS][VEC_ACTIVATIONS];
    float sums[EW_CPU_TILE_ROWS];

    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            acc[v][i] = vf_zero();
    }
    for (uint32_t group = 0; group < tile->n_groups; group++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < VECTORS; v++)
            group_rows(form, tile, group, v * VF, &x, n, acc[v]);
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t v = 0; v < VECTORS; v++)
            vf_store(sums + v * VF, acc[v][i]);
        store_row(job, index, b + i, sums);
    }
}

VEC_INLINE struct tile tile_at(const struct ew_cpu_matrix *matrix, uint32_t index)
{
    const uint8_t *data = matrix->data + index * matrix->tile_bytes;

    return (struct tile){data, data + matrix->scale_at, matrix->cols / EW_CPU_GROUP};
}

VEC_INLINE void few_rows(struct form form, const struct ew_cpu_linear *job, uint32_t index)
{
    struct tile tile = tile_at(job->matrix, index);
    uint32_t b = 0;

    for (; VEC_ACTIVATIONS == 8 && b + 8 <= job->n_rows; b += 8)
        tile_rows(form, job, index, &tile, b, 8);
    for (; b + 4 <= job->n_rows; b += 4)
        tile_rows(form, job, index, &tile, b, 4);
    for (; b + 2 <= job->n_rows; b += 2)
        tile_rows(form, job, index, &tile, b, 2);
    if (b < job->n_rows)
        tile_rows(form, job, index, &tile, b, 1);
}

// ---- slabs --------------------------------------------------------------------------------------

// Groups [first, first + n) of a tile.
VEC_INLINE void unpack(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = tile->codes + (uint64_t)(first + i) * code_bytes(form);

#pragma GCC unroll 4
        for (uint32_t v = 0; v < VECTORS; v++) {
            struct scales s = load_scales(form, tile->scales, first + i, v * VF);

            vf_store(slab->scales[i][0] + v * VF, s.first);
            if (has_halves(form.scale))
                vf_store(slab->scales[i][1] + v * VF, s.second);
            if (has_minimum(form.scale))
                vf_store(slab->scales[i][2] + v * VF, s.min);
#pragma GCC unroll 4
            for (uint32_t word = 0; word < 4; word++) {
                vb low, high;

                load_codes(form, codes + 4 * v * VF, word, &low, &high);
                vb_store(slab->codes[i][word] + 4 * v * VF, low);
                vb_store(slab->codes[i][word + 4] + 4 * v * VF, high);
            }
        }
    }
}

// Adds the products of one slab to the sums of n activations, a constant where this is inlined.
VEC_INLINE void slab_rows(struct form form, const struct tile *slab, struct activations x, uint32_t n,
                          float (*sums)[EW_CPU_TILE_ROWS])
{
    vf acc[VEC_ACTIVATIONS];

    for (uint32_t row = 0; row < EW_CPU_TILE_ROWS; row += VF) {
        for (uint32_t i = 0; i < n; i++)
            acc[i] = vf_load(sums[i] + row);
        for (uint32_t group = 0; group < slab->n_groups; group++)
            group_rows(form, slab, group, row, &x, n, acc);
        for (uint32_t i = 0; i < n; i++)
            vf_store(sums[i] + row, acc[i]);
    }
}

// Activations [first, first + n).
VEC_INLINE void many_rows(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t first, uint32_t n)
{
    struct form unpacked = {form.code, form.scale, form.offset, true};
    struct tile tile = tile_at(job->matrix, index);
    _Alignas(64) float sums[BLOCK_ROWS][EW_CPU_TILE_ROWS];
    struct slab slab;

    memset(sums, 0, n * sizeof(*sums));
    for (uint32_t group = 0; group < tile.n_groups; group += SLAB_GROUPS) {
        struct tile part = {slab.codes[0][0], (const uint8_t *)slab.scales, EW_MIN(tile.n_groups - group, SLAB_GROUPS)};
        uint32_t b = 0;

        unpack(form, &tile, group, part.n_groups, &slab);
        for (; b + VEC_ACTIVATIONS <= n; b += VEC_ACTIVATIONS)
            slab_rows(unpacked, &part, rows_from(job->q8, first + b, group), VEC_ACTIVATIONS, sums + b);
        for (; b < n; b++)
            slab_rows(unpacked, &part, rows_from(job->q8, first + b, group), 1, sums + b);
    }
    for (uint32_t b = 0; b < n; b++)
        store_row(job, index, first + b, sums[b]);
}

VEC_INLINE void tiles(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / job->matrix->cols & ~15u, 16), BLOCK_ROWS);

    if (job->n_rows < SLAB_LEAST) {
        for (; index < end; index++)
            few_rows(form, job, index);
        return;
    }
    for (uint32_t first = 0; first < job->n_rows; first += block) {
        for (uint32_t i = index; i < end; i++)
            many_rows(form, job, i, first, EW_MIN(job->n_rows - first, block));
    }
}

#define DEFINE(name, code, scale, offset)                                                                              \
    static void linear_##name(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)                       \
    {                                                                                                                  \
        tiles((struct form){code, scale, offset, false}, job, tile, tile_end);                                         \
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
