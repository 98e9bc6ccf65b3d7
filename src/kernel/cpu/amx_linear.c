// Products with tile layouts on AMX: 16 rows of activations by the 16 rows of a tile, a group of 32 columns (or half of
// one, where halves have scales of their own) at a time.
//
// A tile product sums a group's integers exactly, as the vector kernels do; then every 16 sums join their f32 totals
// by the same operations in the same order, so that the bits are those of the vector kernels, which take the rows that
// do not fill a tile. These f32 operations cost more than the tile product (docs/kernels.md counts the cycles); the
// next group's product runs meanwhile.

#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/amx_tile.h"
#include "kernel/cpu/tile_tmpl.h"

#define AMX_ROWS 16
#define BLOCK_ROWS 512
#define BLOCK_BYTES (1u << 20) // of activations: half of the second cache of every CPU that has AMX

// Tile registers: products 0 ... 3 as [of two groups][half], activations 4 and 5, weights 6 and 7.
#define START(product, x, w, q, q_stride, codes)                                                                       \
    do {                                                                                                               \
        _tile_zero(product);                                                                                           \
        _tile_loadd(x, q, q_stride);                                                                                   \
        _tile_loadd(w, codes, 4 * EW_CPU_TILE_ROWS);                                                                   \
        _tile_dpbssd(product, x, w);                                                                                   \
    } while (0)

struct products {
    _Alignas(64) int32_t half[2][AMX_ROWS][EW_CPU_TILE_ROWS];
};

// A slab with signed codes.
struct weights {
    const uint8_t *codes; // [n_groups][8][64]
    const struct slab *slab;
    uint32_t n_groups;
};

// Starts the product of a group in the registers of `parity`, a constant where this is inlined.
VEC_INLINE void start(bool halves, int parity, const struct weights *w, const struct activations *x, uint32_t group)
{
    const uint8_t *codes = w->codes + (uint64_t)group * 512;
    const int8_t *q = x->q + (uint64_t)group * EW_CPU_GROUP;

    if (!halves && parity == 0) {
        START(0, 4, 6, q, x->q_stride, codes);
    } else if (!halves) {
        START(2, 5, 7, q, x->q_stride, codes);
    } else if (parity == 0) {
        START(0, 4, 6, q, x->q_stride, codes);
        START(1, 5, 7, q + EW_CPU_GROUP / 2, x->q_stride, codes + 256);
    } else {
        START(2, 4, 6, q, x->q_stride, codes);
        START(3, 5, 7, q + EW_CPU_GROUP / 2, x->q_stride, codes + 256);
    }
}

VEC_INLINE void take(bool halves, int parity, struct products *out)
{
    if (parity == 0)
        _tile_stored(0, out->half[0], 4 * EW_CPU_TILE_ROWS);
    else
        _tile_stored(2, out->half[0], 4 * EW_CPU_TILE_ROWS);
    if (halves && parity == 0)
        _tile_stored(1, out->half[1], 4 * EW_CPU_TILE_ROWS);
    else if (halves)
        _tile_stored(3, out->half[1], 4 * EW_CPU_TILE_ROWS);
}

// Adds a finished product to the sums.
VEC_INLINE void finish(bool halves, bool minimum, int parity, const struct weights *w, const struct activations *x,
                       uint32_t group, vf *acc)
{
    const float(*scales)[EW_CPU_TILE_ROWS] = w->slab->scales[group];
    vf first = vf_load(scales[0]), second = vf_load(scales[1]), min = vf_load(scales[2]);
    vf min_second = vf_load(scales[3]);
    struct products product;

    take(halves, parity, &product);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < AMX_ROWS; i++) {
        uint64_t at = (uint64_t)i * x->group_stride + group;
        vf scale = vf_set1(x->scale[at]), total = vf_of_vi(_mm512_load_si512(product.half[0][i]));

        if (halves) {
            total = vf_fma(first, total, vf_mul(second, vf_of_vi(_mm512_load_si512(product.half[1][i]))));
            acc[i] = vf_fma(total, scale, acc[i]);
            if (minimum)
                acc[i] = add_minima(acc[i], min, min_second, x, i, group);
            continue;
        }
        acc[i] = vf_fma(vf_mul(first, scale), total, acc[i]);
        if (minimum)
            acc[i] = vf_fma(min, vf_set1(x->scaled_sum[at]), acc[i]);
    }
}

VEC_INLINE void multiply(bool halves, bool minimum, const struct weights *w, const struct activations *x,
                         float (*sums)[EW_CPU_TILE_ROWS])
{
    uint32_t group = 0;
    vf acc[AMX_ROWS];

#pragma GCC unroll 16
    for (uint32_t i = 0; i < AMX_ROWS; i++)
        acc[i] = vf_load(sums[i]);
    start(halves, 0, w, x, 0);
    for (; group + 2 < w->n_groups; group += 2) {
        start(halves, 1, w, x, group + 1);
        finish(halves, minimum, 0, w, x, group, acc);
        start(halves, 0, w, x, group + 2);
        finish(halves, minimum, 1, w, x, group + 1, acc);
    }
    if (group + 2 == w->n_groups)
        start(halves, 1, w, x, group + 1);
    finish(halves, minimum, 0, w, x, group, acc);
    if (group + 2 == w->n_groups)
        finish(halves, minimum, 1, w, x, group + 1, acc);
#pragma GCC unroll 16
    for (uint32_t i = 0; i < AMX_ROWS; i++)
        vf_store(sums[i], acc[i]);
}

static void multiply_plain(const struct weights *w, const struct activations *x, float (*sums)[EW_CPU_TILE_ROWS])
{
    multiply(false, false, w, x, sums);
}

static void multiply_minimum(const struct weights *w, const struct activations *x, float (*sums)[EW_CPU_TILE_ROWS])
{
    multiply(false, true, w, x, sums);
}

static void multiply_halves_minimum(const struct weights *w, const struct activations *x,
                                    float (*sums)[EW_CPU_TILE_ROWS])
{
    multiply(true, true, w, x, sums);
}

static void multiply_halves(const struct weights *w, const struct activations *x, float (*sums)[EW_CPU_TILE_ROWS])
{
    multiply(true, false, w, x, sums);
}

// ---- unpacking ----------------------------------------------------------------------------------

// Groups [first, first + n) of a tile, as signed codes; 8-bit codes are used where they are.
VEC_INLINE void unpack(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    vb offset = _mm512_set1_epi8((char)offset_of(form));
    struct factors factors;

    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = tile->codes + (uint64_t)(first + i) * code_bytes(form);
        struct scales s;

        open_super(form, tile->scales, first + i, &factors);
        s = load_scales(form, tile->scales, &factors, first + i, 0);

        vf_store(slab->scales[i][0], s.first);
        if (has_halves(form.scale))
            vf_store(slab->scales[i][1], s.second);
        if (has_minimum(form.scale))
            vf_store(slab->scales[i][2], s.min);
        if (has_halves(form.scale) && has_minimum(form.scale))
            vf_store(slab->scales[i][3], s.min_second);
        if (form.code == EW_CPU_CODE_I8)
            continue;
#pragma GCC unroll 4
        for (uint32_t word = 0; word < 4; word++) {
            vb low, high;

            load_codes(form, codes, word, &low, &high);
            vb_store(slab->codes[i][word], _mm512_sub_epi8(low, offset));
            vb_store(slab->codes[i][word + 4], _mm512_sub_epi8(high, offset));
        }
    }
}

#define DEFINE(name, form)                                                                                             \
    static void unpack_##name(const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)                  \
    {                                                                                                                  \
        unpack(form, tile, first, n, slab);                                                                            \
    }
DEFINE_ALL

#define X(NAME, name, code, scale, offset, unit) [EW_CPU_##NAME] = unpack_##name,
static void (*const UNPACK[EW_CPU_LAYOUT_COUNT])(const struct tile *tile, uint32_t first, uint32_t n,
                                                 struct slab *slab) = {EW_CPU_CODED_LAYOUTS(X)};
#undef X

// [has_halves][has_minimum]
static void (*const MULTIPLY[2][2])(const struct weights *w, const struct activations *x,
                                    float (*sums)[EW_CPU_TILE_ROWS]) = {{multiply_plain, multiply_minimum},
                                                                        {multiply_halves, multiply_halves_minimum}};

// ---- tiles --------------------------------------------------------------------------------------

// One tile by activations [first, first + n), whole tile registers of them.
static void multiply_block(const struct ew_cpu_linear *job, uint32_t index, uint32_t first, uint32_t n)
{
    enum ew_cpu_scale kind = ew_cpu_layout_info(job->matrix->layout)->scale;
    bool in_place = job->matrix->layout == EW_CPU_I8;
    struct tile tile = tile_at(job->matrix, index);
    _Alignas(64) float sums[BLOCK_ROWS][EW_CPU_TILE_ROWS];
    struct slab slab;

    memset(sums, 0, n * sizeof(*sums));
    for (uint32_t group = 0; group < tile.n_groups; group += SLAB_GROUPS) {
        uint32_t n_groups = EW_MIN(tile.n_groups - group, SLAB_GROUPS);
        struct weights w = {in_place ? tile.codes + (uint64_t)group * 512 : slab.codes[0][0], &slab, n_groups};

        UNPACK[job->matrix->layout](&tile, group, n_groups, &slab);
        amx_fence();
        for (uint32_t b = 0; b < n; b += AMX_ROWS) {
            struct activations x = rows_from(job->q8, first + b, group);

            if (group + n_groups == tile.n_groups)
                prefetch_out(job, index, first + b, AMX_ROWS);
            MULTIPLY[has_halves(kind)][has_minimum(kind)](&w, &x, sums + b);
        }
    }
    for (uint32_t b = 0; b < n; b++)
        store_row(job, index, first + b, sums[b]);
}

static void multiply_tiles(const struct ew_cpu_linear *job, uint32_t index, uint32_t end, uint32_t n_rows)
{
    bool halves = has_halves(ew_cpu_layout_info(job->matrix->layout)->scale);
    uint32_t width = halves ? EW_CPU_GROUP / 2 : EW_CPU_GROUP;
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / job->matrix->cols & ~(AMX_ROWS - 1u), AMX_ROWS), BLOCK_ROWS);
    struct amx_tiles tiles = {0};

    for (unsigned i = 0; i < 4; i++)
        amx_set(&tiles, i, AMX_ROWS, 4 * EW_CPU_TILE_ROWS);
    for (unsigned i = 4; i < 6; i++)
        amx_set(&tiles, i, AMX_ROWS, width);
    for (unsigned i = 6; i < 8; i++)
        amx_set(&tiles, i, width / 4, 4 * EW_CPU_TILE_ROWS);
    amx_begin(&tiles);
    for (uint32_t first = 0; first < n_rows; first += block) {
        for (uint32_t i = index; i < end; i++)
            multiply_block(job, i, first, EW_MIN(n_rows - first, block));
    }
    amx_end();
}

// The vector kernels do what remains.
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
    ew_cpu_avx512_vnni_linear(&rest, index, end);
}

static void linear_amx(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    uint32_t n_rows = job->n_rows / AMX_ROWS * AMX_ROWS;

    if (n_rows)
        multiply_tiles(job, index, end, n_rows);
    if (n_rows < job->n_rows)
        multiply_rest(job, index, end, n_rows);
}

void ew_cpu_amx_init_linear(struct ew_cpu_ops *ops)
{
    ops->isa = "amx";
    for (int layout = EW_CPU_I8; layout < EW_CPU_LAYOUT_COUNT; layout++)
        ops->linear[layout] = linear_amx;
}
