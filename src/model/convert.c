#include "model/convert.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "model/pooling.h"

#define ARENA_BYTES_MAX ((size_t)1 << 30) // a vocabulary of a quarter million tokens with its merges takes some 30 MB
#define NAME_MAX_BYTES 256
#define ROPE_TENSORS_MAX 2
#define SPLIT_PARTS 2         // tensors that one of the input becomes at most
#define FALLBACK_ARCH "llama" // for families that GGUF knows under no name of their own, as Mistral's

// ---- names -----------------------------------------------------------------------------------------------

// A tensor of the input under its canonical name.
struct named {
    char stem[NAME_MAX_BYTES]; // "blk.3.attn_q"
    const char *suffix;        // ".weight" or ".bias"
    uint32_t choice;           // of the names that the family knows for it
    uint32_t part;             // head or expert
    bool is_stack;             // one of a stack with a tensor for each head or expert
};

// Reads the number that stands for N, H or X in a pattern.
static bool read_number(struct ew_str text, size_t *at, uint32_t *out)
{
    size_t start = *at;
    uint64_t number;

    while (*at < text.len && text.ptr[*at] >= '0' && text.ptr[*at] <= '9')
        ++*at;
    if (!ew_str_to_u64((struct ew_str){text.ptr + start, *at - start}, &number) || number > INT32_MAX)
        return false;
    *out = (uint32_t)number;
    return true;
}

static bool is_placeholder(struct ew_str pattern, size_t at)
{
    return (pattern.ptr[at] == 'N' || pattern.ptr[at] == 'H' || pattern.ptr[at] == 'X') &&
           (at == 0 || pattern.ptr[at - 1] == '.') && (at + 1 == pattern.len || pattern.ptr[at + 1] == '.');
}

static bool matches(struct ew_str pattern, struct ew_str text, uint32_t *layer, uint32_t *part)
{
    size_t at = 0;

    for (size_t i = 0; i < pattern.len; i++) {
        if (is_placeholder(pattern, i)) {
            if (!read_number(text, &at, pattern.ptr[i] == 'N' ? layer : part))
                return false;
        } else if (at == text.len || text.ptr[at++] != pattern.ptr[i]) {
            return false;
        }
    }
    return at == text.len;
}

// Of a list of names, *choice tells which.
static bool any_matches(const struct ew_yaml *names, struct ew_str text, uint32_t *layer, uint32_t *part,
                        uint32_t *choice)
{
    *choice = 0;
    if (names->type == EW_YAML_SCALAR)
        return matches(names->text, text, layer, part);
    for (const struct ew_yaml *item = names->child; item; item = item->next, ++*choice)
        if (matches(item->text, text, layer, part))
            return true;
    return false;
}

// Writes the canonical name with its layer number.
static void put_layer(char *out, struct ew_str generic, uint32_t layer)
{
    size_t len = 0;

    for (size_t i = 0; i < generic.len && len + 16 < NAME_MAX_BYTES; i++)
        if (is_placeholder(generic, i))
            len += (size_t)snprintf(out + len, NAME_MAX_BYTES - len, "%u", layer);
        else
            out[len++] = generic.ptr[i];
    out[len] = '\0';
}

// The name as the family's table has it, of one that stands under another root.
static struct ew_str without_root(const struct ew_yaml *root, struct ew_str name, char *out, size_t size)
{
    for (const struct ew_yaml *item = root ? root->child : NULL; item; item = item->next) {
        struct ew_str rest = {name.ptr + item->text.len, name.len - item->text.len};

        if (!ew_str_starts(name, item->text.ptr) || rest.len == 0 || rest.ptr[0] != '.')
            continue;
        snprintf(out, size, "%s" EW_STR_FMT, item->key.ptr, EW_STR_ARG(rest));
        return ew_str_of(out);
    }
    return name;
}

// The end of a weight's name, or NULL.
static const char *suffix_of(struct ew_str name)
{
    return ew_str_ends(name, ".bias") ? ".bias" : ew_str_ends(name, ".weight") ? ".weight" : NULL;
}

// From the file's name to the canonical one. Of a family and its ancestors the nearest that knows the name counts.
// Tables give names with their suffix where a file's have another, or none.
static bool find_name(const struct ew_family *family, const struct ew_yaml *root, struct ew_str name, struct named *out)
{
    char plain[NAME_MAX_BYTES];
    struct ew_str whole = without_root(root, name, plain, sizeof(plain)), stem = whole;
    const char *suffix = suffix_of(name);

    *out = (struct named){0};
    stem.len -= suffix ? strlen(suffix) : 0;
    for (; family; family = family->parent) {
        const struct ew_yaml *tensors = family->sides[EW_FAMILY_HF].tensors;

        for (const struct ew_yaml *item = tensors ? tensors->child : NULL; item; item = item->next) {
            uint32_t layer = 0, part = UINT32_MAX;
            const char *own = suffix_of(item->key);
            struct ew_str key = {item->key.ptr, item->key.len - (own ? strlen(own) : 0)};

            if ((!own && !suffix) || !any_matches(item, own ? whole : stem, &layer, &part, &out->choice))
                continue;
            put_layer(out->stem, key, layer);
            out->suffix = own ? own : suffix;
            out->is_stack = part != UINT32_MAX;
            out->part = out->is_stack ? part : 0;
            return true;
        }
    }
    return false;
}

// Of pictures and sound; GGUF keeps them in a file of their own.
static bool is_of_tower(struct ew_str name)
{
    static const char *const roots[] = {"model.", "thinker."};
    static const char *const towers[] = {"visual.", "vision_tower.", "audio_tower.", "multi_modal_projector.",
                                         "talker.", "code2wav."};
    struct ew_str rest = name;

    for (size_t i = 0; i < EW_COUNT_OF(roots); i++)
        if (ew_str_starts(name, roots[i]))
            rest = (struct ew_str){name.ptr + strlen(roots[i]), name.len - strlen(roots[i])};
    for (size_t i = 0; i < EW_COUNT_OF(towers); i++)
        if (ew_str_starts(rest, towers[i]))
            return true;
    return false;
}

// What checkpoints carry and a language model does not need: towers, buffers that are computed (frequencies, causal
// masks), and a head that repeats the embedding.
static bool is_superfluous(const struct ew_convert *convert, struct ew_str name, const struct named *named)
{
    if (ew_str_ends(name, "rotary_emb.inv_freq") || ew_str_ends(name, "rotary_pos_emb.inv_freq") ||
        ew_str_ends(name, "embeddings.position_ids") || ew_str_ends(name, ".attn.bias") ||
        ew_str_ends(name, ".attn.masked_bias") || ew_str_ends(name, ".attention.bias") ||
        ew_str_ends(name, ".attention.masked_bias"))
        return true;
    if (is_of_tower(name) || ew_str_starts(name, "mtp.")) // predictors of tokens after the next
        return true;
    if (named && (strcmp(named->stem, "cls") == 0 || strcmp(named->stem, "cls.norm") == 0))
        return !convert->shape->classifier; // what BERT was trained with
    return convert->shape->common.tied_head && named && strcmp(named->stem, "output") == 0;
}

// ---- tensors ---------------------------------------------------------------------------------------------

static void set_shape(struct ew_convert_tensor *tensor, const struct ew_tensor *from)
{
    tensor->n_dims = from->n_dims;
    memcpy(tensor->shape, from->shape, sizeof(tensor->shape));
    tensor->dtype = from->dtype;
    tensor->rows = 1;
    for (uint32_t i = 0; i + 1 < from->n_dims; i++)
        tensor->rows *= from->shape[i]; // cannot overflow: the bytes of all elements fit
    tensor->cols = from->n_dims ? from->shape[from->n_dims - 1] : 1;
    if (from->n_dims == 1 && ew_dtype_info(from->dtype)->block_elements == 1) {
        tensor->rows = tensor->cols;
        tensor->cols = 1;
    }
}

static int check_weight(const struct ew_tensor *from, struct ew_error *err)
{
    if (!ew_dtype_info(from->dtype)->decode)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " has the type %s, which no weight can have",
                       EW_STR_ARG(from->name), ew_dtype_name(from->dtype));
    if (from->dtype == EW_DTYPE_F8_E4M3 || from->dtype == EW_DTYPE_F8_E5M2)
        return ew_fail(err, EW_ERR_UNSUPPORTED,
                       "tensor " EW_STR_FMT " is fp8 with scales of its own, which quantize cannot read yet",
                       EW_STR_ARG(from->name));
    return EW_OK;
}

static struct ew_convert_tensor *find_output(struct ew_convert *convert, struct ew_str name)
{
    for (uint32_t i = convert->n_tensors; i-- > 0;)
        if (ew_str_eq(convert->tensors[i].name, name))
            return &convert->tensors[i];
    return NULL;
}

static bool rotates_pairs(const struct ew_family *family, enum ew_family_format format)
{
    const struct ew_yaml *kind = ew_family_constant(family, format, "rope_kind");

    return kind && ew_str_is(kind->text, "pairs");
}

static bool is_layer_part(const char *stem, const char *part)
{
    const char *dot = strrchr(stem, '.');

    return dot && strcmp(dot + 1, part) == 0;
}

// GGUF files of some architectures hold q and k with the rows that are rotated together side by side.
static void set_permutation(const struct ew_convert *convert, const struct ew_family *target,
                            struct ew_convert_tensor *tensor, const char *stem)
{
    const struct ew_shape *shape = convert->shape;

    if (rotates_pairs(convert->family, EW_FAMILY_HF) || !rotates_pairs(target, EW_FAMILY_GGUF))
        return;
    if (!is_layer_part(stem, "attn_q") && !is_layer_part(stem, "attn_k") && !is_layer_part(stem, "attn_q_norm") &&
        !is_layer_part(stem, "attn_k_norm"))
        return;
    tensor->head_rows = shape->common.head_dim;
    tensor->rope_rows = shape->ropes[EW_MIXER_FULL].n_dims;
}

// Norms whose weights one format stores less one, as Gemma's.
static void set_offset(const struct ew_convert *convert, const struct ew_family *target,
                       struct ew_convert_tensor *tensor)
{
    const struct ew_yaml *constant = ew_family_constant(target, EW_FAMILY_GGUF, "norm_weight_offset");
    double there = 0;

    if (!ew_str_ends(tensor->name, "_norm.weight") || ew_str_ends(tensor->name, ".ssm_norm.weight") ||
        (constant && !ew_str_to_double(constant->text, &there)))
        return;
    tensor->added = convert->shape->norm_weight_offset - (float)there;
}

// Of a matrix, or of each matrix of a stack.
static void transpose(struct ew_convert_tensor *tensor, const struct ew_tensor *from)
{
    uint64_t rows = from->shape[from->n_dims - 1], cols = from->shape[from->n_dims - 2];

    tensor->shape[from->n_dims - 2] = rows;
    tensor->shape[from->n_dims - 1] = cols;
    tensor->rows = tensor->rows / cols * rows;
    tensor->cols = cols;
    tensor->part_rows = rows;
    tensor->part_stride = rows * cols;
    tensor->row_stride = 1;
    tensor->col_stride = rows;
}

// Matrices of layers that the checkpoint stores otherwise than one row an output, in order.
static int set_storage(const struct ew_convert *convert, struct ew_convert_tensor *tensor, const struct ew_tensor *from,
                       const char *stem, struct ew_error *err)
{
    const struct ew_model_shape *c = &convert->shape->common;
    uint32_t storage = ew_family_storage(convert->family, EW_FAMILY_HF);
    uint32_t q_rows = c->n_heads / c->n_kv_heads * c->head_dim;

    if ((storage & EW_FAMILY_TRANSPOSED) && tensor->n_dims == 2 && strncmp(stem, "blk.", 4) == 0)
        transpose(tensor, from);
    if ((storage & EW_FAMILY_TRANSPOSED_EXPERTS) && tensor->n_dims == 3)
        transpose(tensor, from);
    if ((storage & EW_FAMILY_GROUPED_QKV) && is_layer_part(stem, "attn_qkv")) {
        tensor->n_groups = c->n_kv_heads;
        tensor->group_rows[0] = q_rows;
        tensor->group_rows[1] = c->head_dim;
        tensor->group_rows[2] = convert->shape->v_dim;
    }
    if (tensor->n_groups && tensor->rows != (uint64_t)tensor->n_groups * (q_rows + c->head_dim + convert->shape->v_dim))
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " has %llu rows, which %u groups do not share evenly",
                       EW_STR_ARG(tensor->name), (unsigned long long)tensor->rows, tensor->n_groups);
    return EW_OK;
}

static void set_tiles(const struct ew_convert *convert, const struct ew_family *target,
                      struct ew_convert_tensor *tensor, const char *stem)
{
    const struct ew_shape *shape = convert->shape;
    const struct ew_yaml *tiled = ew_family_constant(target, EW_FAMILY_GGUF, "state_heads_tiled");
    uint32_t keys = 2 * shape->state_groups * shape->state_k_dim;
    const struct {
        const char *part;
        uint32_t first, size;
        bool columns;
    } tiles[] = {
        {"attn_qkv", keys, shape->state_v_dim},
        {"ssm_conv1d", keys, shape->state_v_dim},
        {"attn_gate", 0, shape->state_v_dim},
        {"ssm_out", 0, shape->state_v_dim, true},
        {"ssm_alpha", 0, 1},
        {"ssm_beta", 0, 1},
        {"ssm_a", 0, 1},
        {"ssm_dt", 0, 1},
    };

    if (!tiled || !ew_str_is(tiled->text, "true") || shape->state_heads_tiled)
        return;
    for (size_t i = 0; i < EW_COUNT_OF(tiles); i++) {
        if (!is_layer_part(stem, tiles[i].part))
            continue;
        tensor->tile_size = tiles[i].size;
        tensor->tile_first = tiles[i].first;
        tensor->tile_columns = tiles[i].columns;
        tensor->tile_heads = shape->state_heads;
        tensor->tile_groups = shape->state_groups;
    }
}

// What belongs to a state, in the dimensions that GGUF's other readers expect.
static void set_state(const struct ew_convert *convert, struct ew_convert_tensor *tensor, const char *stem)
{
    const struct ew_shape *shape = convert->shape;
    bool is_ssd = shape->state_rule == EW_STATE_SSD;

    tensor->is_log = is_layer_part(stem, "ssm_a") &&
                     (ew_family_storage(convert->family, EW_FAMILY_HF) & EW_FAMILY_LOG_DECAY);
    if (is_layer_part(stem, "ssm_conv1d") && tensor->n_dims == 3 && tensor->shape[1] == 1) {
        tensor->n_dims = 2;
        tensor->shape[1] = tensor->shape[2];
    } else if (is_ssd && is_layer_part(stem, "ssm_norm") && tensor->rows % shape->state_groups == 0) {
        tensor->n_dims = 2;
        tensor->shape[0] = shape->state_groups;
        tensor->shape[1] = tensor->rows / shape->state_groups;
    } else if (is_ssd && (is_layer_part(stem, "ssm_a") || is_layer_part(stem, "ssm_d"))) {
        tensor->n_dims = 2;
        tensor->shape[1] = 1;
    }
}

// Without the rows before the first position.
static void set_positions(const struct ew_convert *convert, struct ew_convert_tensor *tensor, const char *stem)
{
    uint64_t skip = convert->shape->position_first;

    if (strcmp(stem, "position_embd") != 0 || tensor->n_dims != 2 || skip == 0 || skip >= tensor->rows)
        return;
    tensor->rows -= skip;
    tensor->shape[0] -= skip;
    tensor->part_rows = tensor->rows;
    tensor->part_stride = tensor->rows * tensor->cols;
    tensor->row_stride = tensor->cols;
    tensor->col_stride = 1;
    tensor->first = skip * tensor->cols;
}

// GGUF's whole name of a tensor.
static bool target_name(const struct ew_family *target, const struct named *named, char *out, size_t size)
{
    char whole[NAME_MAX_BYTES + 8], stem[NAME_MAX_BYTES];

    snprintf(whole, sizeof(whole), "%s%s", named->stem, named->suffix);
    if (ew_family_tensor(target, EW_FAMILY_GGUF, whole, 0, 0, out, size))
        return true;
    // Where both formats have several names for what differs between kinds of a family, they stand in the same order.
    if (!ew_family_tensor(target, EW_FAMILY_GGUF, named->stem, 0, named->choice, stem, sizeof(stem)) &&
        !ew_family_tensor(target, EW_FAMILY_GGUF, named->stem, 0, 0, stem, sizeof(stem)))
        return false;
    snprintf(out, size, "%s%s", stem, named->suffix);
    return true;
}

static int new_tensor(struct ew_convert *convert, const struct ew_tensor *from, const struct named *named,
                      uint32_t n_parts, struct ew_error *err)
{
    struct ew_convert_tensor *tensor = &convert->tensors[convert->n_tensors];
    const struct ew_family *target = ew_family_of_architecture(convert->families, EW_FAMILY_GGUF, convert->arch);
    char name[NAME_MAX_BYTES + 8];
    int code;

    if (!target || !target_name(target, named, name, sizeof(name)))
        return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF has no name for tensor " EW_STR_FMT, EW_STR_ARG(from->name));
    tensor->name = (struct ew_str){ew_arena_copy(&convert->arena, name, strlen(name)), strlen(name)};
    tensor->parts = ew_arena_array(&convert->arena, n_parts, sizeof(struct ew_tensor *));
    if (!tensor->name.ptr || !tensor->parts)
        return ew_fail_memory(err, sizeof(name), "a tensor's name");
    set_shape(tensor, from);
    set_permutation(convert, target, tensor, named->stem);
    set_offset(convert, target, tensor);
    set_state(convert, tensor, named->stem);
    set_tiles(convert, target, tensor, named->stem);
    set_positions(convert, tensor, named->stem);
    code = set_storage(convert, tensor, from, named->stem, err);
    if (code != EW_OK)
        return code;
    if (tensor->head_rows && tensor->rows % tensor->head_rows)
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " has %llu rows, which heads of %u do not divide",
                       EW_STR_ARG(from->name), (unsigned long long)tensor->rows, tensor->head_rows);
    convert->n_tensors++;
    return EW_OK;
}

// How many parts a stack has: experts, or heads.
static uint32_t stack_count(const struct ew_convert *convert, const char *stem)
{
    size_t len = strlen(stem);

    if (len > 5 && strcmp(stem + len - 5, "_exps") == 0)
        return convert->shape->n_experts;
    return is_layer_part(stem, "attn_k_norm") ? convert->shape->common.n_kv_heads : convert->shape->common.n_heads;
}

// Gives a tensor the shape of n_parts like `from`.
static void set_stack(struct ew_convert_tensor *tensor, const struct ew_tensor *from, uint32_t n_parts)
{
    tensor->n_parts = n_parts;
    tensor->n_dims = from->n_dims + 1;
    tensor->shape[0] = n_parts;
    memcpy(tensor->shape + 1, from->shape, from->n_dims * sizeof(from->shape[0]));
    tensor->rows = from->n_dims == 1 ? n_parts : n_parts * from->shape[0];
    tensor->cols = from->shape[from->n_dims - 1];
}

// The tensors of a stack arrive in any order and become one with a leading dimension.
static int add_part(struct ew_convert *convert, const struct ew_tensor *from, const struct named *named,
                    struct ew_error *err)
{
    char name[NAME_MAX_BYTES + 8];
    uint32_t n_parts = stack_count(convert, named->stem);
    struct ew_convert_tensor *tensor;

    snprintf(name, sizeof(name), "%.*s%s", NAME_MAX_BYTES - 1, named->stem, named->suffix); // GCC 11 warns without
    if (named->part >= n_parts || from->n_dims < 1 || from->n_dims > 2)
        return ew_fail(err, EW_ERR_FORMAT, "tensor " EW_STR_FMT " is none of the %u parts of a stack",
                       EW_STR_ARG(from->name), n_parts);
    tensor = find_output(convert, ew_str_of(name));
    if (!tensor) {
        int code = new_tensor(convert, from, named, n_parts, err);

        if (code != EW_OK)
            return code;
        tensor = &convert->tensors[convert->n_tensors - 1];
        set_stack(tensor, from, n_parts);
    }
    if (from->n_dims + 1 != tensor->n_dims || from->dtype != tensor->dtype ||
        memcmp(from->shape, tensor->shape + 1, from->n_dims * sizeof(from->shape[0])) != 0)
        return ew_fail(err, EW_ERR_FORMAT,
                       "tensor " EW_STR_FMT " differs in shape or type from the others of its stack",
                       EW_STR_ARG(from->name));
    tensor->parts[named->part] = from;
    return EW_OK;
}

// ---- tensors that GGUF has in two parts ----------------------------------------------------------------------------

// Half of the rows of each expert: those of the gate or of what it multiplies.
static void place_expert_half(const struct ew_convert *convert, struct ew_convert_tensor *tensor,
                              const struct ew_tensor *from, uint32_t part)
{
    uint32_t storage = ew_family_storage(convert->family, EW_FAMILY_HF);
    bool is_matrix = from->n_dims == 3, transposed = is_matrix && (storage & EW_FAMILY_TRANSPOSED_EXPERTS);
    uint64_t whole = from->shape[transposed ? 2 : 1], n = whole / 2, step = storage & EW_FAMILY_PAIRED_EXPERTS ? 2 : 1;
    uint64_t cols = is_matrix ? from->shape[transposed ? 1 : 2] : 1, first = step == 2 ? part : part * n;

    tensor->shape[0] = from->shape[0];
    tensor->shape[1] = n;
    tensor->shape[2] = cols;
    tensor->rows = from->shape[0] * (is_matrix ? n : 1);
    tensor->cols = is_matrix ? cols : n;
    tensor->part_rows = is_matrix ? n : 1;
    tensor->part_stride = whole * cols;
    tensor->first = first * (transposed ? 1 : cols);
    tensor->row_stride = step * (transposed ? 1 : cols);
    tensor->col_stride = transposed ? whole : is_matrix ? 1 : step;
}

// Of the rows that make a head's keys and values from the latent those of the keys, transposed, or those of the values.
static void place_head_part(const struct ew_convert *convert, struct ew_convert_tensor *tensor,
                            const struct ew_tensor *from, uint32_t part)
{
    const struct ew_shape *shape = convert->shape;
    uint64_t n_heads = shape->common.n_heads, latent = shape->kv_latent, values = shape->v_dim;
    uint64_t plain = from->shape[0] / n_heads - values;

    tensor->n_dims = 3;
    tensor->shape[0] = n_heads;
    tensor->shape[1] = part ? values : latent;
    tensor->shape[2] = part ? latent : plain;
    tensor->rows = n_heads * tensor->shape[1];
    tensor->cols = tensor->shape[2];
    tensor->part_rows = tensor->shape[1];
    tensor->part_stride = (plain + values) * latent;
    tensor->first = part ? plain * latent : 0;
    tensor->row_stride = part ? latent : 1;
    tensor->col_stride = part ? 1 : latent;
}

static const struct split {
    const char *whole, *parts[SPLIT_PARTS];
    void (*place)(const struct ew_convert *convert, struct ew_convert_tensor *tensor, const struct ew_tensor *from,
                  uint32_t part);
} g_splits[] = {
    {"ffn_gate_up_exps", {"ffn_gate_exps", "ffn_up_exps"}, place_expert_half},
    {"attn_kv_b", {"attn_k_b", "attn_v_b"}, place_head_part},
};

static const struct split *split_of(const char *stem)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_splits); i++)
        if (is_layer_part(stem, g_splits[i].whole))
            return &g_splits[i];
    return NULL;
}

static int add_single(struct ew_convert *convert, const struct ew_tensor *from, const struct named *named,
                      struct ew_error *err)
{
    int code = new_tensor(convert, from, named, 1, err);

    if (code != EW_OK)
        return code;
    convert->tensors[convert->n_tensors - 1].n_parts = 1;
    convert->tensors[convert->n_tensors - 1].parts[0] = from;
    return EW_OK;
}

// The model was opened before: its tensors have the shapes that the configuration asks for.
static int add_split(struct ew_convert *convert, const struct ew_tensor *from, const struct named *named,
                     const struct split *split, struct ew_error *err)
{
    size_t prefix = strlen(named->stem) - strlen(split->whole);
    int code = EW_OK;

    for (uint32_t i = 0; i < SPLIT_PARTS && code == EW_OK; i++) {
        struct named part = *named;

        snprintf(part.stem + prefix, sizeof(part.stem) - prefix, "%s", split->parts[i]);
        code = add_single(convert, from, &part, err);
        if (code == EW_OK)
            split->place(convert, &convert->tensors[convert->n_tensors - 1], from, i);
    }
    return code;
}

static int add_hf(struct ew_convert *convert, const struct ew_tensor *from, struct ew_error *err)
{
    struct named named;
    bool known = find_name(convert->family, convert->root, from->name, &named);
    int code;

    if (is_superfluous(convert, from->name, known ? &named : NULL))
        return EW_OK;
    if (!known) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " is none that a model of the family %s has",
                EW_STR_ARG(from->name), convert->family->name);
        return ew_remedy(err, EW_ERR_UNSUPPORTED,
                         "quantize reads checkpoints in f32, f16 and bf16; of a quantised one use the original");
    }
    code = check_weight(from, err);
    if (code != EW_OK)
        return code;
    if (named.is_stack)
        return add_part(convert, from, &named, err);
    return split_of(named.stem) ? add_split(convert, from, &named, split_of(named.stem), err)
                                : add_single(convert, from, &named, err);
}

static int check_stacks(const struct ew_convert *convert, struct ew_error *err)
{
    for (uint32_t i = 0; i < convert->n_tensors; i++)
        for (uint32_t part = 0; part < convert->tensors[i].n_parts; part++)
            if (!convert->tensors[i].parts[part])
                return ew_fail(err, EW_ERR_FORMAT, "the part of " EW_STR_FMT " with number %u is missing",
                               EW_STR_ARG(convert->tensors[i].name), part);
    return EW_OK;
}

static int add_gguf(struct ew_convert *convert, const struct ew_tensor *from, struct ew_error *err)
{
    struct ew_convert_tensor *tensor = &convert->tensors[convert->n_tensors];

    set_shape(tensor, from);
    tensor->name = from->name;
    tensor->n_parts = 1;
    tensor->parts = ew_arena_array(&convert->arena, 1, sizeof(struct ew_tensor *));
    if (!tensor->parts)
        return ew_fail_memory(err, sizeof(*tensor->parts), "a tensor");
    tensor->parts[0] = from;
    convert->n_tensors++;
    return EW_OK;
}

// Names of GGUF files are not NUL-terminated.
bool ew_convert_layer(struct ew_str name, uint32_t *layer)
{
    size_t at = strlen("blk.");

    return ew_str_starts(name, "blk.") && read_number(name, &at, layer) && at < name.len && name.ptr[at] == '.';
}

// Layers in the order of computation; readers that stream then read forward.
static int64_t place_of(struct ew_str name)
{
    uint32_t layer;

    if (ew_convert_layer(name, &layer))
        return layer;
    return ew_str_starts(name, "output") ? INT64_MAX : -1;
}

static int compare_tensors(const void *a, const void *b)
{
    struct ew_str name_a = ((const struct ew_convert_tensor *)a)->name,
                  name_b = ((const struct ew_convert_tensor *)b)->name;
    int64_t place_a = place_of(name_a), place_b = place_of(name_b);

    if (place_a != place_b)
        return place_a < place_b ? -1 : 1;
    return ew_str_compare(name_a, name_b);
}

// ---- opening ---------------------------------------------------------------------------------------------

// Of two architectures the second one is that with experts.
static struct ew_str target_arch(const struct ew_family *family, bool has_experts)
{
    for (; family; family = family->parent) {
        const struct ew_yaml *list = family->sides[EW_FAMILY_GGUF].architectures;

        if (list && has_experts && list->child->next && ew_str_ends(list->child->next->text, "_moe"))
            return list->child->next->text;
        if (list)
            return list->child->text;
    }
    return EW_STR(FALLBACK_ARCH);
}

// GGUF may know the encoder of a family of decoders under another name, which is a family that extends it.
static const struct ew_family *encoder_of(const struct ew_families *families, const struct ew_family *family)
{
    for (uint32_t i = 0; i < families->count; i++)
        if (families->list[i].parent == family && families->list[i].sides[EW_FAMILY_GGUF].architectures &&
            ew_family_constant(&families->list[i], EW_FAMILY_GGUF, "encoder"))
            return &families->list[i];
    return family;
}

// Whether the configuration and the tensors make a model: nothing missing, nothing of another shape.
static int check_model(const char *path, struct ew_error *err)
{
    struct ew_model *model;
    int code = ew_model_open(path, &model, err);

    if (code == EW_OK)
        ew_model_close(model);
    return code;
}

static int read_hf(struct ew_convert *convert, struct ew_error *err)
{
    const struct ew_family *target;
    int code = check_model(convert->file.path, err);

    if (code != EW_OK)
        return code;
    convert->families = ew_alloc(sizeof(*convert->families));
    convert->shape = ew_alloc(sizeof(*convert->shape));
    if (!convert->families || !convert->shape)
        return ew_fail_memory(err, sizeof(*convert->families), "the table of families");
    code = ew_families_load(convert->families, err);
    if (code == EW_OK)
        code = ew_shape_from_config(convert->shape, convert->families, convert->file.config, convert->file.tensors,
                                    &convert->family, err);
    if (code == EW_OK)
        code = ew_pooling_read(&convert->file, convert->shape, &convert->pooling, err);
    if (code != EW_OK)
        return code;
    target = convert->family;
    if (convert->shape->encoder && !ew_family_constant(target, EW_FAMILY_GGUF, "encoder"))
        target = encoder_of(convert->families, target);
    convert->arch = target_arch(target, convert->shape->n_experts > 0);
    convert->root = ew_family_root(convert->family, EW_FAMILY_HF, convert->file.tensors);
    for (uint64_t i = 0; i < convert->file.tensors->count && code == EW_OK; i++)
        code = add_hf(convert, &convert->file.tensors->list[i], err);
    if (code == EW_OK)
        code = check_stacks(convert, err);
    if (code == EW_OK)
        code = ew_convert_add_rope(convert, err);
    qsort(convert->tensors, convert->n_tensors, sizeof(*convert->tensors), compare_tensors);
    return code;
}

static int read_gguf(struct ew_convert *convert, struct ew_error *err)
{
    int code = EW_OK;

    convert->arch = ew_gguf_str(&convert->file.gguf, "general.architecture", "");
    for (uint64_t i = 0; i < convert->file.tensors->count && code == EW_OK; i++)
        code = add_gguf(convert, &convert->file.tensors->list[i], err);
    return code;
}

int ew_convert_open(struct ew_convert *convert, const char *model, struct ew_error *err)
{
    const struct ew_tensors *tensors;
    int code;

    *convert = (struct ew_convert){0};
    ew_arena_init(&convert->arena, ARENA_BYTES_MAX);
    code = ew_modelfile_open(&convert->file, model, true, err);
    if (code != EW_OK)
        return code;
    tensors = convert->file.tensors;
    if (tensors->n_refused) {
        code = ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " %s", EW_STR_ARG(tensors->refused[0].name),
                       tensors->refused[0].why);
        goto out;
    }
    convert->tensors = ew_alloc_array(SPLIT_PARTS * tensors->count + ROPE_TENSORS_MAX, sizeof(*convert->tensors));
    if (!convert->tensors) {
        code = ew_fail_memory(err, tensors->count * sizeof(*convert->tensors), "the list of tensors");
        goto out;
    }
    code = convert->file.kind == EW_MODELFILE_HF ? read_hf(convert, err) : read_gguf(convert, err);
out:
    if (code == EW_OK)
        return EW_OK;
    ew_convert_close(convert);
    return ew_fail_in(err, code, "%s", model);
}

void ew_convert_close(struct ew_convert *convert)
{
    if (convert->families)
        ew_families_free(convert->families);
    ew_free(convert->families);
    ew_free(convert->shape);
    ew_free(convert->tensors);
    ew_modelfile_close(&convert->file);
    ew_arena_fini(&convert->arena);
    *convert = (struct ew_convert){0};
}

// ---- contents --------------------------------------------------------------------------------------------

static uint64_t grouped_row(const struct ew_convert_tensor *tensor, uint64_t row)
{
    const uint32_t *rows = tensor->group_rows;
    uint64_t before = 0, stride = (uint64_t)rows[0] + rows[1] + rows[2];
    int part = 0;

    for (; part < 2 && row >= (uint64_t)tensor->n_groups * rows[part]; part++) {
        row -= (uint64_t)tensor->n_groups * rows[part];
        before += rows[part];
    }
    return row / rows[part] * stride + before + row % rows[part];
}

// Where the source has what stands at `at` after heads were tiled.
static uint64_t untiled(const struct ew_convert_tensor *tensor, uint64_t at)
{
    uint64_t head = (at - tensor->tile_first) / tensor->tile_size, of_group = tensor->tile_heads / tensor->tile_groups;
    uint64_t from = head % tensor->tile_groups * of_group + head / tensor->tile_groups;

    return tensor->tile_first + from * tensor->tile_size + (at - tensor->tile_first) % tensor->tile_size;
}

static uint64_t source_row(const struct ew_convert_tensor *tensor, uint64_t row)
{
    uint64_t in_head = tensor->head_rows ? row % tensor->head_rows : 0;

    if (tensor->n_groups > 1)
        return grouped_row(tensor, row);
    if (tensor->tile_size && !tensor->tile_columns && row >= tensor->tile_first)
        return untiled(tensor, row);
    if (!tensor->head_rows || in_head >= tensor->rope_rows)
        return row;
    return row - in_head + in_head / 2 + in_head % 2 * (tensor->rope_rows / 2);
}

static void read_elements(const struct ew_convert_tensor *tensor, uint64_t row, uint64_t n_rows, float *out)
{
    const struct ew_dtype_info *info = ew_dtype_info(tensor->dtype);
    uint64_t size = ew_dtype_row_bytes(tensor->dtype, 1);

    for (uint64_t i = row; i < row + n_rows; i++) {
        uint64_t at = tensor->first + i / tensor->part_rows * tensor->part_stride +
                      i % tensor->part_rows * tensor->row_stride;

        for (uint64_t c = 0; c < tensor->cols; c++, at += tensor->col_stride)
            info->decode(tensor->parts[0]->data + at * size, out++, 1);
    }
}

static bool is_in_order(const struct ew_convert_tensor *tensor)
{
    return tensor->n_parts == 1 && !tensor->head_rows && tensor->n_groups <= 1 && !tensor->part_rows &&
           !tensor->tile_size;
}

// A row whose columns are tiled; its elements are no blocks, as in all checkpoints.
static void read_tiles(const struct ew_convert_tensor *tensor, const unsigned char *row, float *out)
{
    uint64_t size = ew_dtype_row_bytes(tensor->dtype, 1);

    for (uint64_t at = 0; at < tensor->cols; at += tensor->tile_size)
        ew_dtype_info(tensor->dtype)->decode(row + untiled(tensor, at) * size, out + at, tensor->tile_size);
}

static void read_by_rows(const struct ew_convert_tensor *tensor, uint64_t row, uint64_t n_rows, float *out)
{
    const struct ew_dtype_info *info = ew_dtype_info(tensor->dtype);
    uint64_t row_bytes = ew_dtype_row_bytes(tensor->dtype, tensor->cols), part_rows = tensor->rows / tensor->n_parts;

    for (uint64_t i = 0; i < n_rows; i++) {
        uint64_t from = source_row(tensor, row + i);
        const unsigned char *data = tensor->parts[from / part_rows]->data + from % part_rows * row_bytes;

        if (tensor->tile_columns)
            read_tiles(tensor, data, out + i * tensor->cols);
        else
            info->decode(data, out + i * tensor->cols, (size_t)tensor->cols);
    }
}

void ew_convert_read(const struct ew_convert_tensor *tensor, uint64_t row, uint64_t n_rows, float *out)
{
    uint64_t row_bytes = ew_dtype_row_bytes(tensor->dtype, tensor->cols);
    size_t n = (size_t)(n_rows * tensor->cols);

    EW_ASSERT(row + n_rows <= tensor->rows && row_bytes > 0);
    if (!tensor->n_parts)
        memcpy(out, tensor->values + row * tensor->cols, n * sizeof(*out));
    else if (tensor->part_rows)
        read_elements(tensor, row, n_rows, out);
    else if (is_in_order(tensor))
        ew_dtype_info(tensor->dtype)->decode(tensor->parts[0]->data + row * row_bytes, out, n);
    else
        read_by_rows(tensor, row, n_rows, out);
    for (size_t i = 0; i < n && tensor->added != 0; i++)
        out[i] += tensor->added;
    for (size_t i = 0; i < n && tensor->is_log; i++)
        out[i] = -expf(out[i]);
}

bool ew_convert_is_verbatim(const struct ew_convert_tensor *tensor)
{
    return is_in_order(tensor) && tensor->added == 0 && !tensor->is_log;
}

// ---- metadata --------------------------------------------------------------------------------------------

// What describes the input file rather than the model.
static bool is_of_file(struct ew_str key)
{
    return ew_str_is(key, "general.file_type") || ew_str_is(key, "general.quantization_version") ||
           ew_str_starts(key, "split.");
}

int ew_convert_write_metadata(const struct ew_convert *convert, const char *pre_name, struct ew_gguf_writer *w,
                              struct ew_error *err)
{
    int code = EW_OK;

    if (convert->file.kind == EW_MODELFILE_HF) {
        code = ew_convert_write_shape(convert, w, err);
        if (code == EW_OK)
            code = ew_convert_write_vocab(convert, pre_name, w, err);
        return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s", convert->file.path);
    }
    for (uint64_t i = 0; i < convert->file.gguf.n_values && code == EW_OK; i++)
        if (!is_of_file(convert->file.gguf.values[i].key))
            code = ew_gguf_write_value(w, &convert->file.gguf.values[i], err);
    return code;
}
