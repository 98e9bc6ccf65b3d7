// Products with tile layouts on AMX: 16 rows of activations by the 16 rows of one or two tiles, a unit of columns at a
// time: a group of 32, or half of one where halves have scales of their own.
//
// A tile product sums a unit's integers exactly, as the vector kernels do; then its 256 sums join their f32 totals by
// the same operations in the same order, so that the bits are those of the vector kernels, which take the rows that do
// not fill a tile register. These f32 operations cost more than the tile product (docs/kernels.md counts the cycles).
// So both go on side by side: while the sums of one batch of units join, the tile products of the next are made. Sums
// pass through memory, and loads wait until a stored tile register has reached the cache: a batch later it has.

#include "kernel/cpu/vec_avx512.h"

#include "kernel/cpu/amx_tile.h"
#include "kernel/cpu/tile_tmpl.h"

#define AMX_ROWS 16
#define TILES_MAX 2 // at once: they share the activations' loads
#define UNITS 4     // of a batch
#define GROUPS 16   // of a slab; those of two tiles stay in the first cache
#define BLOCK_ROWS 512
#define BLOCK_BYTES (1u << 20) // of activations: half of the second cache of every CPU that has AMX

// A slab of one tile, with signed codes.
struct weights {
    const uint8_t *codes; // [n_groups][8][64]
    const struct slab *slab;
};

struct products { // of a batch
    _Alignas(64) int32_t sums[UNITS][TILES_MAX][AMX_ROWS][EW_CPU_TILE_ROWS];
};

struct batch_scales {
    struct scales of[TILES_MAX][UNITS]; // of each group
};

// ---- tile products ------------------------------------------------------------------------------

// Tile registers: products 0 ... 3, activations 4 and 5, weights 6 and 7.
#define MULTIPLY(product, x, w, codes, out)                                                                            \
    do {                                                                                                               \
        _tile_loadd(w, codes, 4 * EW_CPU_TILE_ROWS);                                                                   \
        _tile_zero(product);                                                                                           \
        _tile_dpbssd(product, x, w);                                                                                   \
        _tile_stored(product, out, 4 * EW_CPU_TILE_ROWS);                                                              \
    } while (0)

// Unit `at` of the slab becomes unit `unit` of a batch, a constant where this is inlined.
VEC_INLINE void start(bool halves, uint32_t n_tiles, uint32_t unit, uint32_t at, const struct weights *w,
                      const struct activations *x, struct products *out)
{
    uint32_t cols = halves ? EW_CPU_GROUP / 2 : EW_CPU_GROUP;
    const int8_t *q = x->q + (uint64_t)at * cols;
    uint64_t offset = (uint64_t)at * cols * EW_CPU_TILE_ROWS;

    if (unit % 2 == 0) {
        _tile_loadd(4, q, x->q_stride);
        MULTIPLY(0, 4, 6, w[0].codes + offset, out->sums[unit][0]);
        if (n_tiles > 1)
            MULTIPLY(1, 4, 7, w[1].codes + offset, out->sums[unit][1]);
    } else {
        _tile_loadd(5, q, x->q_stride);
        MULTIPLY(2, 5, 6, w[0].codes + offset, out->sums[unit][0]);
        if (n_tiles > 1)
            MULTIPLY(3, 5, 7, w[1].codes + offset, out->sums[unit][1]);
    }
}

// ---- joining the totals -------------------------------------------------------------------------

VEC_INLINE vf sums_at(const struct products *products, uint32_t unit, uint32_t t, uint32_t row)
{
    return vf_of_vi(_mm512_load_si512(products->sums[unit][t][row]));
}

// Adds n groups' sums of one row of activations to the totals of the tiles.
VEC_INLINE void join(bool halves, bool minimum, uint32_t n_tiles, uint32_t n, const struct batch_scales *scales,
                     const struct activations *x, uint32_t row, uint32_t group, const struct products *products,
                     float (*totals)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    uint64_t at = (uint64_t)row * x->group_stride + group;
    vf acc[TILES_MAX];

    for (uint32_t t = 0; t < n_tiles; t++)
        acc[t] = vf_load(totals[t][row]);
    for (uint32_t i = 0; i < n; i++) {
        vf scale = vf_set1(x->scale[at + i]);

        for (uint32_t t = 0; t < n_tiles; t++) {
            struct scales s = scales->of[t][i];

            if (halves) {
                vf both = vf_mul(s.second, sums_at(products, 2 * i + 1, t, row));

                acc[t] = vf_fma(vf_fma(s.first, sums_at(products, 2 * i, t, row), both), scale, acc[t]);
                continue;
            }
            acc[t] = vf_fma(vf_mul(s.first, scale), sums_at(products, i, t, row), acc[t]);
            if (minimum)
                acc[t] = vf_fma(s.min, vf_set1(x->scaled_sum[at + i]), acc[t]);
        }
    }
    for (uint32_t t = 0; t < n_tiles; t++)
        vf_store(totals[t][row], acc[t]);
}

VEC_INLINE struct batch_scales load_batch(uint32_t n_tiles, uint32_t n, const struct weights *w, uint32_t group)
{
    struct batch_scales scales = {0};

    for (uint32_t t = 0; t < n_tiles; t++) {
        for (uint32_t i = 0; i < n; i++)
            scales.of[t][i] = slab_scales((const uint8_t *)w[t].slab->scales, group + i, 0);
    }
    return scales;
}

// The groups of a slab that fill no batch: every step waits for the one before it.
VEC_INLINE void multiply_last(bool halves, bool minimum, uint32_t n_tiles, uint32_t group, uint32_t end,
                              const struct weights *w, const struct activations *x, struct products *products,
                              float (*totals)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    for (; group < end; group++) {
        struct batch_scales scales = load_batch(n_tiles, 1, w, group);

        if (halves) {
            start(halves, n_tiles, 0, 2 * group, w, x, products);
            start(halves, n_tiles, 1, 2 * group + 1, w, x, products);
        } else {
            start(halves, n_tiles, 0, group, w, x, products);
        }
        for (uint32_t row = 0; row < AMX_ROWS; row++)
            join(halves, minimum, n_tiles, 1, &scales, x, row, group, products, totals);
    }
}

// 16 rows of activations by a slab of each tile.
VEC_INLINE void multiply(bool halves, bool minimum, uint32_t n_tiles, const struct weights *w, uint32_t n_groups,
                         const struct activations *x, float (*totals)[BLOCK_ROWS][EW_CPU_TILE_ROWS])
{
    uint32_t step = halves ? UNITS / 2 : UNITS, n_batches = n_groups / step;
    struct products products[2];

#pragma GCC unroll 4
    for (uint32_t unit = 0; unit < UNITS; unit++) {
        if (n_batches)
            start(halves, n_tiles, unit, unit, w, x, &products[0]);
    }
    for (uint32_t i = 0; i < n_batches; i++) {
        struct batch_scales scales = load_batch(n_tiles, step, w, i * step);

#pragma GCC unroll 4
        for (uint32_t unit = 0; unit < UNITS; unit++) {
            if (i + 1 < n_batches)
                start(halves, n_tiles, unit, (i + 1) * UNITS + unit, w, x, &products[(i + 1) % 2]);
#pragma GCC unroll 4
            for (uint32_t row = unit * AMX_ROWS / UNITS; row < (unit + 1) * AMX_ROWS / UNITS; row++)
                join(halves, minimum, n_tiles, step, &scales, x, row, i * step, &products[i % 2], totals);
        }
    }
    multiply_last(halves, minimum, n_tiles, n_batches * step, n_groups, w, x, &products[0], totals);
}

#define DEFINE_MULTIPLY(name, halves, minimum, n_tiles)                                                                \
    static void multiply_##name(const struct weights *w, uint32_t n_groups, const struct activations *x,               \
                                float(*totals)[BLOCK_ROWS][EW_CPU_TILE_ROWS])                                          \
    {                                                                                                                  \
        multiply(halves, minimum, n_tiles, w, n_groups, x, totals);                                                    \
    }

DEFINE_MULTIPLY(plain_one, false, false, 1)
DEFINE_MULTIPLY(plain_two, false, false, 2)
DEFINE_MULTIPLY(minimum_one, false, true, 1)
DEFINE_MULTIPLY(minimum_two, false, true, 2)
DEFINE_MULTIPLY(halves_one, true, false, 1)
DEFINE_MULTIPLY(halves_two, true, false, 2)

typedef void (*multiply_fn)(const struct weights *w, uint32_t n_groups, const struct activations *x,
                            float (*totals)[BLOCK_ROWS][EW_CPU_TILE_ROWS]);

static multiply_fn choose_multiply(enum ew_cpu_scale scale, uint32_t n_tiles)
{
    if (has_halves(scale))
        return n_tiles > 1 ? multiply_halves_two : multiply_halves_one;
    if (has_minimum(scale))
        return n_tiles > 1 ? multiply_minimum_two : multiply_minimum_one;
    return n_tiles > 1 ? multiply_plain_two : multiply_plain_one;
}

// ---- unpacking ----------------------------------------------------------------------------------

// Groups [first, first + n) of a tile, as signed codes; 8-bit codes are used where they are.
VEC_INLINE void unpack(struct form form, const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)
{
    vb offset = _mm512_set1_epi8((char)offset_of(form));

    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *codes = tile->codes + (uint64_t)(first + i) * code_bytes(form);
        struct scales s = load_scales(form, tile->scales, first + i, 0);

        vf_store(slab->scales[i][0], s.first);
        if (has_halves(form.scale))
            vf_store(slab->scales[i][1], s.second);
        if (has_minimum(form.scale))
            vf_store(slab->scales[i][2], s.min);
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

#define DEFINE(name, code, scale, offset)                                                                              \
    static void unpack_##name(const struct tile *tile, uint32_t first, uint32_t n, struct slab *slab)                  \
    {                                                                                                                  \
        unpack((struct form){code, scale, offset, false}, tile, first, n, slab);                                       \
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

static void (*const UNPACK[EW_CPU_LAYOUT_COUNT])(const struct tile *tile, uint32_t first, uint32_t n,
                                                 struct slab *slab) = {
    [EW_CPU_I8] = unpack_i8,         [EW_CPU_U4] = unpack_u4,       [EW_CPU_U4_MIN] = unpack_u4_min,
    [EW_CPU_U4_K] = unpack_u4_k,     [EW_CPU_U5] = unpack_u5,       [EW_CPU_U5_MIN] = unpack_u5_min,
    [EW_CPU_U5_K] = unpack_u5_k,     [EW_CPU_U6_K] = unpack_u6_k,   [EW_CPU_IQ4] = unpack_iq4,
    [EW_CPU_IQ4_XS] = unpack_iq4_xs, [EW_CPU_MXFP4] = unpack_mxfp4, [EW_CPU_NVFP4] = unpack_nvfp4,
};

// ---- tiles --------------------------------------------------------------------------------------

// Tiles [index, index + n_tiles) by activations [first, first + n), whole tile registers of them.
static void multiply_block(const struct ew_cpu_linear *job, uint32_t index, uint32_t n_tiles, uint32_t first,
                           uint32_t n)
{
    enum ew_cpu_layout layout = job->matrix->layout;
    multiply_fn multiply_rows = choose_multiply(ew_cpu_layout_info(layout)->scale, n_tiles);
    uint32_t n_groups = job->matrix->cols / EW_CPU_GROUP;
    _Alignas(64) float totals[TILES_MAX][BLOCK_ROWS][EW_CPU_TILE_ROWS];
    struct slab slabs[TILES_MAX];
    struct weights w[TILES_MAX];

    for (uint32_t t = 0; t < n_tiles; t++)
        memset(totals[t], 0, n * sizeof(*totals[t]));
    for (uint32_t group = 0; group < n_groups; group += GROUPS) {
        uint32_t n_slab = EW_MIN(n_groups - group, GROUPS);

        for (uint32_t t = 0; t < n_tiles; t++) {
            struct tile tile = tile_at(job->matrix, index + t);

            UNPACK[layout](&tile, group, n_slab, &slabs[t]);
            w[t].codes = layout == EW_CPU_I8 ? tile.codes + (uint64_t)group * 512 : slabs[t].codes[0][0];
            w[t].slab = &slabs[t];
        }
        amx_fence();
        for (uint32_t b = 0; b < n; b += AMX_ROWS) {
            struct activations x = rows_from(job->q8, first + b, group);

            multiply_rows(w, n_slab, &x, (float(*)[BLOCK_ROWS][EW_CPU_TILE_ROWS])totals[0][b]);
        }
    }
    for (uint32_t b = 0; b < n; b++) {
        for (uint32_t t = 0; t < n_tiles; t++)
            store_row(job, index + t, first + b, totals[t][b]);
    }
}

static void configure(struct amx_tiles *tiles, enum ew_cpu_scale scale)
{
    uint32_t cols = has_halves(scale) ? EW_CPU_GROUP / 2 : EW_CPU_GROUP;

    *tiles = (struct amx_tiles){0};
    for (unsigned i = 0; i < 4; i++)
        amx_set(tiles, i, AMX_ROWS, 4 * EW_CPU_TILE_ROWS);
    for (unsigned i = 4; i < 6; i++)
        amx_set(tiles, i, AMX_ROWS, cols);
    for (unsigned i = 6; i < 8; i++)
        amx_set(tiles, i, cols / 4, 4 * EW_CPU_TILE_ROWS);
}

static void multiply_tiles(const struct ew_cpu_linear *job, uint32_t index, uint32_t end, uint32_t n_rows)
{
    uint32_t block = EW_MIN(EW_MAX(BLOCK_BYTES / job->matrix->cols & ~(AMX_ROWS - 1u), AMX_ROWS), BLOCK_ROWS);
    struct amx_tiles tiles;

    configure(&tiles, ew_cpu_layout_info(job->matrix->layout)->scale);
    amx_begin(&tiles);
    for (uint32_t first = 0; first < n_rows; first += block) {
        for (uint32_t i = index; i < end; i += TILES_MAX)
            multiply_block(job, i, EW_MIN(end - i, TILES_MAX), first, EW_MIN(n_rows - first, block));
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
