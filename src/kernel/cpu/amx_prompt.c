// Products of prompts with the integer layouts on AMX: weights are unpacked to bf16, scales and all, and whole rows are
// summed in the matrix unit.
//
// The 8-bit products of amx_linear.c take as many cycles in the unit (a group of 32 columns fills half of its depth for
// bytes, and all of it for bf16), but their integer sums leave it after every group to be scaled in f32, which costs
// three times as much. Here a tile is unpacked once for a block of activations and its sums stay in the unit. Weights
// and activations err by at most 2^-8 of themselves, less than what 8 bits a group of activations lose.

#include "kernel/cpu/amx_bf16.h"

// Codes become floats without a conversion: a byte moved into the significand of a power of two adds itself to it. One
// multiply-add then scales and takes the power away. Signed codes get 128 added first, and as eight bits do not fit
// behind 2^7, they stand behind 2^15; scale * (2^15 + 128) is exact where scales have 11 bits, or nearly.
#define MAGIC_UNSIGNED 128 // codes in the third byte
#define MAGIC_SIGNED 32768 // in the second
#define BITS_UNSIGNED 0x43000000
#define BITS_SIGNED 0x47000000

// Factors of the 32 lanes of two vectors: rows 0, 0, 1, 1, ..., 7, 7 and 8, 8, ..., 15, 15.
struct line {
    vf scale[2], less[2]; // value = scale * x + less
};

VEC_INLINE vf twice(vf rows, int half)
{
    const vi lanes = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);

    return _mm512_permutexvar_ps(vi_add(lanes, vi_set1(8 * half)), rows);
}

VEC_INLINE struct line line_of(struct form form, vf scale, vf min)
{
    bool biased = is_signed(form.code);
    vf magic = vf_set1(biased ? MAGIC_SIGNED + 128 : (float)(MAGIC_UNSIGNED + offset_of(form)));
    struct line line;

    for (int half = 0; half < 2; half++) {
        line.scale[half] = twice(scale, half);
        line.less[half] = has_minimum(form.scale) ? vf_fnma(line.scale[half], magic, twice(min, half))
                                                  : vf_neg(vf_mul(line.scale[half], magic));
    }
    return line;
}

// Bytes 2 * pair and 2 * pair + 1 of the words of rows [8 * half, 8 * half + 8), each in a lane of its own.
VEC_INLINE vf spread(bool biased, vb words, int pair, int half)
{
    const vi lanes = _mm512_set_epi32(29, 28, 25, 24, 21, 20, 17, 16, 13, 12, 9, 8, 5, 4, 1, 0);
    vi from = vi_add(lanes, vi_set1(32 * half + 2 * pair));

    if (biased)
        return vf_bits(_mm512_mask_permutexvar_epi8(vi_set1(BITS_SIGNED), 0x2222222222222222u, vi_shl(from, 8), words));
    return vf_bits(_mm512_mask_permutexvar_epi8(vi_set1(BITS_UNSIGNED), 0x4444444444444444u, vi_shl(from, 16), words));
}

// Four columns of 16 rows, as two pairs.
VEC_INLINE void write_word(bool biased, vb words, const struct line *line, uint8_t *to)
{
    for (int pair = 0; pair < 2; pair++) {
        vf x = vf_fma(spread(biased, words, pair, 0), line->scale[0], line->less[0]);
        vf y = vf_fma(spread(biased, words, pair, 1), line->scale[1], line->less[1]);

        _mm512_store_si512(to + 64 * pair, (__m512i)_mm512_cvtne2ps_pbh(y, x));
    }
}

VEC_INLINE void unpack(struct form form, const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group,
                       uint32_t n_groups, uint8_t *to)
{
    bool biased = is_signed(form.code);
    vb bias = _mm512_set1_epi8((char)(biased ? 0x80 : 0));
    struct tile tile = tile_at(matrix, index);
    struct factors factors;

    for (uint32_t end = group + n_groups; group < end; group++, to += PART_BYTES) {
        const uint8_t *codes = tile.codes + (uint64_t)group * code_bytes(form);
        struct line first, second;
        struct scales s;

        open_super(form, tile.scales, group, &factors);
        s = load_scales(form, tile.scales, &factors, group, 0);
        first = line_of(form, s.first, s.min);
        second = has_halves(form.scale) ? line_of(form, s.second, s.min_second) : first;
#pragma GCC unroll 4
        for (uint32_t word = 0; word < 4; word++) {
            vb low, high;

            load_codes(form, codes, word, &low, &high);
            write_word(biased, _mm512_xor_si512(low, bias), &first, to + 128 * word);
            write_word(biased, _mm512_xor_si512(high, bias), &second, to + 512 + 128 * word);
        }
    }
}

// FP8: columns of rows become pairs of columns.
static void unpack_fp8(const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group, uint32_t n_groups,
                       uint8_t *to)
{
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    struct tile tile = tile_at(matrix, index);

    for (uint32_t end = group + n_groups; group < end; group++) {
        const uint8_t *codes = tile.codes + (uint64_t)group * EW_CPU_GROUP * EW_CPU_TILE_ROWS;
        uint64_t span = group / (EW_CPU_FP8_SPAN / EW_CPU_GROUP);
        vf scale = vf_mul(vf_load((const float *)tile.scales + span * EW_CPU_TILE_ROWS), vf_set1(FP8_UNIT));

        for (uint32_t column = 0; column < EW_CPU_GROUP; column += FP8_COLUMNS, to += 32 * FP8_COLUMNS) {
            vf w[FP8_COLUMNS];

            vf_load_e4m3(codes + column * EW_CPU_TILE_ROWS, w);
            for (uint32_t i = 0; i < FP8_COLUMNS; i += 2) {
                __m512bh both = _mm512_cvtne2ps_pbh(vf_mul(w[i + 1], scale), vf_mul(w[i], scale));

                _mm512_store_si512(to + 32 * i, _mm512_permutexvar_epi16(pairs, (__m512i)both));
            }
        }
    }
}

#define DEFINE(name, form)                                                                                             \
    static void unpack_##name(const struct ew_cpu_matrix *matrix, uint32_t index, uint32_t group, uint32_t n_groups,   \
                              uint8_t *to)                                                                             \
    {                                                                                                                  \
        unpack(form, matrix, index, group, n_groups, to);                                                              \
    }
DEFINE_ALL

#define X(NAME, name, code, scale, offset, unit) [EW_CPU_##NAME] = {unpack_##name, 1},
static const struct source SOURCES[EW_CPU_LAYOUT_COUNT] = {EW_CPU_CODED_LAYOUTS(X)[EW_CPU_FP8] = {unpack_fp8, 1}};
#undef X

static void linear_prompt(const struct ew_cpu_linear *job, uint32_t index, uint32_t end)
{
    bf16_linear(&SOURCES[job->matrix->layout], job, index, end);
}

void ew_cpu_amx_init_prompt(struct ew_cpu_ops *ops)
{
    ops->isa = "amx";
    ops->prompt_takes_bf16 = true;
    for (int layout = EW_CPU_FP8; layout < EW_CPU_LAYOUT_COUNT; layout++)
        ops->linear_prompt[layout] = linear_prompt;
}
