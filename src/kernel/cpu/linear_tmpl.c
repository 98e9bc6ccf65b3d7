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

#include "kernel/cpu/tile_tmpl.h"

#define SLAB_LEAST (2 * VEC_ACTIVATIONS) // activations for which unpacking first pays
#define PREFETCH_BYTES 4096
#define BLOCK_ROWS 256
#define BLOCK_BYTES (640u << 10) // of activations

// ---- one group of VF rows -----------------------------------------------------------------------

// Adds the group's share of activation row b to acc.
VEC_INLINE vf join(enum ew_cpu_scale kind, vf acc, struct scales s, struct part first, struct part second,
                   const struct activations *x, uint32_t b, uint32_t group)
{
    uint64_t at = (uint64_t)b * x->group_stride + group;
    vf scale = vf_set1(x->scale[at]), total = vf_of_vi(part_total(first));

    if (has_halves(kind)) {
        acc = vf_fma(vf_fma(s.first, total, vf_mul(s.second, vf_of_vi(part_total(second)))), scale, acc);
        return has_minimum(kind) ? add_minima(acc, s.min, s.min_second, x, b, group) : acc;
    }
    acc = vf_fma(vf_mul(s.first, scale), total, acc);
    return has_minimum(kind) ? vf_fma(s.min, vf_set1(x->scaled_sum[at]), acc) : acc;
}

VEC_INLINE void group_rows(struct form form, const struct tile *tile, const struct factors *factors, uint32_t group,
                           uint32_t row, const struct activations *x, uint32_t n, vf *acc)
{
    const uint8_t *codes = tile->codes + (uint64_t)group * code_bytes(form) + 4 * row;
    int offset = offset_of(form);
    struct part first[VEC_ACTIVATIONS], second[VEC_ACTIVATIONS];
    struct scales s = load_scales(form, tile->scales, factors, group, row);
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
            if (word == 1 && widens_early(form)) { // no more fit in 16 bits
                first[b] = part_widen(first[b]);
                second[b] = part_widen(second[b]);
            }
        }
    }
    for (uint32_t b = 0; b < n; b++)
        acc[b] = join(form.scale, acc[b], s, first[b], second[b], x, b, group);
}

// ---- tiles --------------------------------------------------------------------------------------

// What is computed leaves the CPU too little room to see far enough ahead by itself: asks for codes some tens of lines
// before they are needed, more where n activations take longer, and for the next tile's scales.
VEC_INLINE void prefetch(struct form form, const struct ew_cpu_matrix *matrix, const struct tile *tile, uint32_t group,
                         uint32_t n)
{
    const uint8_t *codes = tile->codes + (uint64_t)group * code_bytes(form) + PREFETCH_BYTES * EW_MAX(1, n / 2);
    uint64_t scale_bytes = (matrix->tile_bytes - matrix->scale_at) / tile->n_groups;

    for (uint32_t at = 0; at < code_bytes(form); at += 64)
        __builtin_prefetch(codes + at);
    __builtin_prefetch(tile->scales + matrix->tile_bytes + group * scale_bytes);
}

// n activations, from row b on; n is a constant where this is inlined.
VEC_INLINE void tile_rows(struct form form, const struct ew_cpu_linear *job, uint32_t index, const struct tile *tile,
                          uint32_t b, uint32_t n)
{
    struct activations x = rows_from(job->q8, b, 0);
    vf acc[VECTORS][VEC_ACTIVATIONS];
    struct factors factors;
    float sums[EW_CPU_TILE_ROWS];

    for (uint32_t v = 0; v < VECTORS; v++) {
        for (uint32_t i = 0; i < n; i++)
            acc[v][i] = vf_zero();
    }
    for (uint32_t group = 0; group < tile->n_groups; group++) {
        prefetch(form, job->matrix, tile, group, n);
        open_super(form, tile->scales, group, &factors);
#pragma GCC unroll 4
        for (uint32_t v = 0; v < VECTORS; v++)
            group_rows(form, tile, &factors, group, v * VF, &x, n, acc[v]);
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t v = 0; v < VECTORS; v++)
            vf_store(sums + v * VF, acc[v][i]);
        store_row(job, index, b + i, sums);
    }
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
typedef void (*unpack_fn)(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab);

VEC_INLINE void unpack(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    struct factors factors;

    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = tile->codes + (uint64_t)(first + i) * code_bytes(form);

        open_super(form, tile->scales, first + i, &factors);

#pragma GCC unroll 4
        for (uint32_t v = 0; v < VECTORS; v++) {
            struct scales s = load_scales(form, tile->scales, &factors, first + i, v * VF);

            vf_store(slab->scales[i][0] + v * VF, s.first);
            if (has_halves(form.scale))
                vf_store(slab->scales[i][1] + v * VF, s.second);
            if (has_minimum(form.scale))
                vf_store(slab->scales[i][2] + v * VF, s.min);
            if (has_halves(form.scale) && has_minimum(form.scale))
                vf_store(slab->scales[i][3] + v * VF, s.min_second);
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
            group_rows(form, slab, NULL, group, row, &x, n, acc);
        for (uint32_t i = 0; i < n; i++)
            vf_store(sums[i] + row, acc[i]);
    }
}

// Activations [first, first + n).
VEC_INLINE void many_rows(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t first, uint32_t n,
                          unpack_fn unpack_groups)
{
    struct form unpacked = {form.code, form.scale, form.offset, form.unit, true};
    struct tile tile = tile_at(job->matrix, index);
    _Alignas(64) float sums[BLOCK_ROWS][EW_CPU_TILE_ROWS];
    struct slab slab;

    memset(sums, 0, n * sizeof(*sums));
    for (uint32_t group = 0; group < tile.n_groups; group += SLAB_GROUPS) {
        struct tile part = {slab.codes[0][0], (const uint8_t *)slab.scales, EW_MIN(tile.n_groups - group, SLAB_GROUPS)};
        uint32_t b = 0;

        unpack_groups(form, &tile, group, part.n_groups, &slab);
        for (; b + VEC_ACTIVATIONS <= n; b += VEC_ACTIVATIONS) {
            if (group + SLAB_GROUPS >= tile.n_groups)
                prefetch_out(job, index, first + b, VEC_ACTIVATIONS);
            slab_rows(unpacked, &part, rows_from(job->q8, first + b, group), VEC_ACTIVATIONS, sums + b);
        }
        for (; b < n; b++)
            slab_rows(unpacked, &part, rows_from(job->q8, first + b, group), 1, sums + b);
    }
    for (uint32_t b = 0; b < n; b++)
        store_row(job, index, first + b, sums[b]);
}

// All activations, a block of them after the other.
VEC_INLINE void many_tiles(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t end,
                           unpack_fn unpack_groups)
{
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / job->matrix->cols & ~15u, 16), BLOCK_ROWS);

    for (uint32_t first = 0; first < job->n_rows; first += block) {
        for (uint32_t i = index; i < end; i++)
            many_rows(form, job, i, first, EW_MIN(job->n_rows - first, block), unpack_groups);
    }
}

VEC_INLINE void tiles(struct form form, const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    if (job->n_rows >= SLAB_LEAST) {
        many_tiles(form, job, index, end, unpack);
        return;
    }
    for (; index < end; index++)
        few_rows(form, job, index);
}

#define DEFINE(name, form)                                                                                             \
    static void linear_##name(const struct ew_cpu_linear *job, uint32_t tile, uint32_t tile_end)                       \
    {                                                                                                                  \
        tiles(form, job, tile, tile_end);                                                                              \
    }
DEFINE_ALL

#define X(NAME, name, code, scale, offset, unit) [EW_CPU_##NAME] = linear_##name,
static const ew_cpu_linear_fn LINEAR[EW_CPU_LAYOUT_COUNT] = {EW_CPU_CODED_LAYOUTS(X)};
#undef X

static void init_linear(struct ew_cpu_ops *ops)
{
    ops->isa = VEC_ISA;
    for (int layout = EW_CPU_I8; layout < EW_CPU_LAYOUT_COUNT; layout++)
        ops->linear[layout] = LINEAR[layout];
}
