// Products with tile layouts on smmla, which multiplies two rows of eight bytes by two others: eight activations by
// four rows of a tile, a group of 32 columns at a time.
//
// Codes are unpacked to signed bytes with eight columns of a row side by side. A group's integers are summed exactly,
// as the other kernels do, and join their f32 totals by the same operations in the same order, so that the bits are
// those of the sdot kernels, which take the activations that do not fill a block.

#include "kernel/cpu/vec_neon.h"

#include "kernel/cpu/tile_tmpl.h"

#define MM_ROWS 8 // activations of a block
#define BLOCK_ROWS 256
#define BLOCK_BYTES (256u << 10) // of activations: half of the second cache of common cores

// ---- unpacking ----------------------------------------------------------------------------------

// Words w and w + 1 of four rows as two pairs of rows of eight columns.
VEC_INLINE void store_pairs(uint8_t *to, vb even, vb odd)
{
    int32x4_t a = vreinterpretq_s32_s8(even), b = vreinterpretq_s32_s8(odd);

    vst1q_s32((int32_t *)to, vzip1q_s32(a, b));
    vst1q_s32((int32_t *)to + 4, vzip2q_s32(a, b));
}

// A group of four rows: 8 columns of 16 rows are 128 bytes of the slab.
VEC_INLINE void unpack_codes(struct form form, const uint8_t *codes, uint32_t row, uint8_t (*to)[4 * EW_CPU_TILE_ROWS])
{
    vb offset = vdupq_n_s8((int8_t)offset_of(form));

#pragma GCC unroll 2
    for (uint32_t word = 0; word < 4; word += 2) {
        vb low[2], high[2];

        for (uint32_t i = 0; i < 2; i++) {
            load_codes(form, codes + 4 * row, word + i, &low[i], &high[i]);
            low[i] = vsubq_s8(low[i], offset), high[i] = vsubq_s8(high[i], offset);
        }
        store_pairs(to[word] + 8 * row, low[0], low[1]);
        store_pairs(to[word + 4] + 8 * row, high[0], high[1]);
    }
}

// Groups [first, first + n) of a tile.
VEC_INLINE void unpack(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    struct factors factors;

    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = tile->codes + (uint64_t)(first + i) * code_bytes(form);

        open_super(form, tile->scales, first + i, &factors);
#pragma GCC unroll 4
        for (uint32_t row = 0; row < EW_CPU_TILE_ROWS; row += VF) {
            struct scales s = load_scales(form, tile->scales, &factors, first + i, row);

            vf_store(slab->scales[i][0] + row, s.first);
            if (has_halves(form.scale))
                vf_store(slab->scales[i][1] + row, s.second);
            if (has_minimum(form.scale))
                vf_store(slab->scales[i][2] + row, s.min);
            if (has_halves(form.scale) && has_minimum(form.scale))
                vf_store(slab->scales[i][3] + row, s.min_second);
            unpack_codes(form, codes, row, slab->codes[i]);
        }
    }
}

// ---- products -----------------------------------------------------------------------------------

struct products { // of two activations: rows 0 and 1 of four by both, rows 2 and 3 by both
    int32x4_t low, high;
};

// Adds eight columns. `w` points at the first of the four rows.
VEC_INLINE struct products add_columns(struct products sum, const uint8_t *w, const struct activations *x, uint32_t b,
                                       uint32_t at)
{
    const int8_t *q = x->q + (uint64_t)b * x->q_stride + at;
    int8x16_t pair = vcombine_s8(vld1_s8(q), vld1_s8(q + x->q_stride));

    sum.low = vmmlaq_s32(sum.low, vb_load(w), pair);
    sum.high = vmmlaq_s32(sum.high, vb_load(w + 16), pair);
    return sum;
}

VEC_INLINE vi total_of(struct products sum, uint32_t which)
{
    return which ? vuzp2q_s32(sum.low, sum.high) : vuzp1q_s32(sum.low, sum.high);
}

// The operations of linear_tmpl.c, in its order.
VEC_INLINE vf join(enum ew_cpu_scale kind, vf acc, struct scales s, vi first, vi second, const struct activations *x,
                   uint32_t b, uint32_t group)
{
    uint64_t at = (uint64_t)b * x->group_stride + group;
    vf scale = vf_set1(x->scale[at]), total = vf_of_vi(first);

    if (has_halves(kind)) {
        acc = vf_fma(vf_fma(s.first, total, vf_mul(s.second, vf_of_vi(second))), scale, acc);
        return has_minimum(kind) ? add_minima(acc, s.min, s.min_second, x, b, group) : acc;
    }
    acc = vf_fma(vf_mul(s.first, scale), total, acc);
    return has_minimum(kind) ? vf_fma(s.min, vf_set1(x->scaled_sum[at]), acc) : acc;
}

// One group of four rows by MM_ROWS activations.
VEC_INLINE void multiply_group(enum ew_cpu_scale kind, const struct slab *slab, uint32_t group, uint32_t row,
                               const struct activations *x, vf *acc)
{
    const float(*scales)[EW_CPU_TILE_ROWS] = slab->scales[group];
    struct scales s = {vf_load(scales[0] + row), vf_load(scales[1] + row), vf_load(scales[2] + row),
                       vf_load(scales[3] + row)};
    bool halves = has_halves(kind);

#pragma GCC unroll 4
    for (uint32_t b = 0; b < MM_ROWS; b += 2) {
        struct products first = {vi_zero(), vi_zero()}, second = first;

#pragma GCC unroll 4
        for (uint32_t word = 0; word < 8; word += 2) {
            const uint8_t *w = slab->codes[group][word] + 8 * row;

            if (halves && word >= 4)
                second = add_columns(second, w, x, b, group * EW_CPU_GROUP + 4 * word);
            else
                first = add_columns(first, w, x, b, group * EW_CPU_GROUP + 4 * word);
        }
        for (uint32_t i = 0; i < 2; i++)
            acc[b + i] = join(kind, acc[b + i], s, total_of(first, i), total_of(second, i), x, b + i, group);
    }
}

VEC_INLINE void multiply(enum ew_cpu_scale kind, const struct slab *slab, uint32_t n_groups,
                         const struct activations *x, float (*sums)[EW_CPU_TILE_ROWS])
{
    for (uint32_t row = 0; row < EW_CPU_TILE_ROWS; row += VF) {
        vf acc[MM_ROWS];

        for (uint32_t b = 0; b < MM_ROWS; b++)
            acc[b] = vf_load(sums[b] + row);
        for (uint32_t group = 0; group < n_groups; group++)
            multiply_group(kind, slab, group, row, x, acc);
        for (uint32_t b = 0; b < MM_ROWS; b++)
            vf_store(sums[b] + row, acc[b]);
    }
}

// One tile by activations [first, first + n), whole blocks of them.
VEC_INLINE void multiply_tile(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t first,
                              uint32_t n)
{
    struct tile tile = tile_at(job->matrix, index);
    float sums[BLOCK_ROWS][EW_CPU_TILE_ROWS];
    struct slab slab;

    memset(sums, 0, n * sizeof(*sums));
    for (uint32_t group = 0; group < tile.n_groups; group += SLAB_GROUPS) {
        uint32_t n_groups = EW_MIN(tile.n_groups - group, SLAB_GROUPS);

        unpack(form, &tile, group, n_groups, &slab);
        for (uint32_t b = 0; b < n; b += MM_ROWS) {
            struct activations x = rows_from(job->q8, first + b, group);

            multiply(form.scale, &slab, n_groups, &x, sums + b);
        }
    }
    for (uint32_t b = 0; b < n; b++)
        store_row(job, index, first + b, sums[b]);
}

// The sdot kernels do what remains.
static void multiply_rest(const struct ew_cpu_linear *job, uint32_t index, uint32_t end, uint32_t first)
{
    struct activations x = rows_from(job->q8, first, 0);
    struct ew_cpu_q8 q8 = *job->q8;
    struct ew_cpu_linear rest = *job;

    q8.q = (int8_t *)x.q, q8.scale = (float *)x.scale;
    q8.scaled_sum = (float *)x.scaled_sum, q8.sum = (int16_t *)x.sum;
    rest.q8 = &q8;
    rest.out += (uint64_t)first * job->out_stride;
    rest.n_rows = job->n_rows - first;
    ew_cpu_neon_dotprod_linear(&rest, index, end);
}

VEC_INLINE void tiles(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t n_rows = job->n_rows / MM_ROWS * MM_ROWS;
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / job->matrix->cols & ~(MM_ROWS - 1u), MM_ROWS), BLOCK_ROWS);

    for (uint32_t first = 0; first < n_rows; first += block) {
        for (uint32_t i = index; i < end; i++)
            multiply_tile(form, job, i, first, EW_MIN(n_rows - first, block));
    }
    if (n_rows < job->n_rows)
        multiply_rest(job, index, end, n_rows);
}

#define DEFINE(name, form)                                                                                             \
    static void linear_##name(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)                           \
    {                                                                                                                  \
        tiles(form, job, index, end);                                                                                  \
    }
DEFINE_ALL

#define X(NAME, name, code, scale, offset, unit) [EW_CPU_##NAME] = linear_##name,
static const ew_cpu_linear_fn LINEAR[EW_CPU_LAYOUT_COUNT] = {EW_CPU_CODED_LAYOUTS(X)};
#undef X

void ew_cpu_neon_i8mm_init_linear(struct ew_cpu_ops *ops)
{
    ops->isa = "i8mm";
    for (int layout = EW_CPU_I8; layout < EW_CPU_LAYOUT_COUNT; layout++)
        ops->linear[layout] = LINEAR[layout];
}
