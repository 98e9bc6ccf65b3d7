#include "format/gguf.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define MAGIC "GGUF"
#define ALIGNMENT_DEFAULT 32u
// The least that one of each takes in a file; bounds counts by what is left of it before anything is allocated.
#define VALUE_BYTES_MIN (8 + 1 + 4 + 1)      // key length, key, type, value
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 4 + 8) // name length, name, dimensions, type, offset
#define ARENA_BYTES_MAX ((size_t)64 << 20)   // EW_GGUF_VALUES_MAX values and EW_GGUF_TENSORS_MAX tensors fit well
#define WHY_BYTES 64

static const uint8_t type_bytes[] = { // 0: not of fixed size
    [EW_GGUF_U8] = 1,   [EW_GGUF_I8] = 1,     [EW_GGUF_U16] = 2,   [EW_GGUF_I16] = 2, [EW_GGUF_U32] = 4,
    [EW_GGUF_I32] = 4,  [EW_GGUF_F32] = 4,    [EW_GGUF_BOOL] = 1,  [EW_GGUF_STRING] = 0,
    [EW_GGUF_ARRAY] = 0, [EW_GGUF_U64] = 8,   [EW_GGUF_I64] = 8,   [EW_GGUF_F64] = 8,
};

// Reads forward through bytes that are not to be trusted.
struct cursor {
    const unsigned char *data;
    uint64_t size, at;
    const char *path;
};

static uint64_t bytes_left(const struct cursor *c)
{
    return c->size - c->at;
}

// The next bytes, or NULL (and EW_ERR_FORMAT in err) past the end.
static const unsigned char *take(struct cursor *c, uint64_t bytes, const char *what, struct ew_error *err)
{
    const unsigned char *taken = c->data + c->at;

    if (bytes > bytes_left(c)) {
        ew_fail(err, EW_ERR_FORMAT, "%s is damaged or truncated: it ends within %s", c->path, what);
        ew_remedy(err, EW_ERR_FORMAT, "download it again");
        return NULL;
    }
    c->at += bytes;
    return taken;
}

static int take_u32(struct cursor *c, uint32_t *out, const char *what, struct ew_error *err)
{
    const unsigned char *bytes = take(c, sizeof(*out), what, err);

    if (!bytes)
        return EW_ERR_FORMAT;
    memcpy(out, bytes, sizeof(*out));
    return EW_OK;
}

static int take_u64(struct cursor *c, uint64_t *out, const char *what, struct ew_error *err)
{
    const unsigned char *bytes = take(c, sizeof(*out), what, err);

    if (!bytes)
        return EW_ERR_FORMAT;
    memcpy(out, bytes, sizeof(*out));
    return EW_OK;
}

static int take_name(struct cursor *c, size_t max, struct ew_str *out, const char *what, struct ew_error *err)
{
    const unsigned char *bytes;
    uint64_t len = 0;
    int code = take_u64(c, &len, what, err);

    if (code != EW_OK)
        return code;
    bytes = take(c, len, what, err);
    if (!bytes)
        return EW_ERR_FORMAT;
    *out = (struct ew_str){(const char *)bytes, (size_t)len};
    code = ew_tensor_name_check(*out, max, err);
    return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s: %s", c->path, what);
}

static int take_strings(struct cursor *c, struct ew_gguf_value *value, struct ew_error *err)
{
    uint64_t start = c->at, len = 0;

    for (uint64_t i = 0; i < value->count; i++) { // ends with the file at the latest: each takes 8 bytes or more
        int code = take_u64(c, &len, "a string", err);

        if (code != EW_OK)
            return code;
        if (!take(c, len, "a string", err))
            return EW_ERR_FORMAT;
    }
    value->bytes = c->at - start;
    return EW_OK;
}

// Passes over the strings or numbers of a value, whose key, types and count are known.
static int take_elements(struct cursor *c, struct ew_gguf_value *value, struct ew_error *err)
{
    value->data = c->data + c->at;
    if (value->element_type == EW_GGUF_STRING)
        return take_strings(c, value, err);
    if (__builtin_mul_overflow(value->count, (uint64_t)type_bytes[value->element_type], &value->bytes))
        return ew_fail(err, EW_ERR_FORMAT, "%s: the array " EW_STR_FMT " is larger than any file", c->path,
                       EW_STR_ARG(value->key));
    if (!take(c, value->bytes, "a value", err))
        return EW_ERR_FORMAT;
    for (uint64_t i = 0; value->element_type == EW_GGUF_BOOL && i < value->count; i++)
        if (value->data[i] > 1)
            return ew_fail(err, EW_ERR_FORMAT, "%s: the truth value " EW_STR_FMT " is neither 0 nor 1", c->path,
                           EW_STR_ARG(value->key));
    return EW_OK;
}

static int take_type(struct cursor *c, const struct ew_gguf_value *value, enum ew_gguf_type *out, struct ew_error *err)
{
    uint32_t type = 0;
    int code = take_u32(c, &type, "the type of a value", err);

    if (code == EW_OK && type >= EW_COUNT_OF(type_bytes))
        code = ew_fail(err, EW_ERR_FORMAT, "%s: " EW_STR_FMT " has the unknown type %u", c->path,
                       EW_STR_ARG(value->key), type);
    *out = (enum ew_gguf_type)type;
    return code;
}

static int take_value(struct cursor *c, struct ew_gguf_value *value, struct ew_error *err)
{
    int code = take_name(c, EW_GGUF_KEY_MAX, &value->key, "a metadata key", err);

    if (code == EW_OK)
        code = take_type(c, value, &value->type, err);
    if (code != EW_OK)
        return code;
    value->count = 1;
    value->element_type = value->type;
    if (value->type == EW_GGUF_ARRAY) {
        code = take_type(c, value, &value->element_type, err);
        if (code == EW_OK)
            code = take_u64(c, &value->count, "an array", err);
        if (code == EW_OK && value->element_type == EW_GGUF_ARRAY)
            code = ew_fail(err, EW_ERR_UNSUPPORTED, "%s: " EW_STR_FMT " is an array of arrays, which no model has",
                           c->path, EW_STR_ARG(value->key));
    }
    return code == EW_OK ? take_elements(c, value, err) : code;
}

static int take_values(struct ew_gguf *gguf, struct cursor *c, struct ew_error *err)
{
    bool repeated;
    int code;

    if (gguf->n_values > EW_GGUF_VALUES_MAX || gguf->n_values > bytes_left(c) / VALUE_BYTES_MIN)
        return ew_fail(err, EW_ERR_FORMAT, "%s: the header announces %llu metadata values, more than %s", c->path,
                       (unsigned long long)gguf->n_values,
                       gguf->n_values > EW_GGUF_VALUES_MAX ? "any model has" : "the file can hold");
    gguf->values = ew_arena_array(&gguf->arena, gguf->n_values, sizeof(*gguf->values));
    if (!gguf->values || ew_map_init(&gguf->by_key, gguf->n_values) != EW_OK)
        return ew_fail_memory(err, gguf->n_values * sizeof(*gguf->values), "the metadata");
    for (uint64_t i = 0; i < gguf->n_values; i++) {
        struct ew_gguf_value *value = &gguf->values[i];

        code = take_value(c, value, err);
        if (code != EW_OK)
            return code;
        if (ew_map_put(&gguf->by_key, value->key, (uint32_t)i, &repeated) != EW_OK)
            return ew_fail_memory(err, value->key.len, "the metadata");
        if (repeated)
            return ew_fail(err, EW_ERR_FORMAT, "%s: " EW_STR_FMT " is there twice", c->path, EW_STR_ARG(value->key));
    }
    return EW_OK;
}

static int read_alignment(struct ew_gguf *gguf, const struct cursor *c, struct ew_error *err)
{
    int64_t alignment = ew_gguf_int(gguf, "general.alignment", ALIGNMENT_DEFAULT);

    if (alignment < 1 || alignment > EW_GGUF_ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return ew_fail(err, EW_ERR_FORMAT, "%s: the alignment %lld is no power of two up to %u", c->path,
                       (long long)alignment, EW_GGUF_ALIGNMENT_MAX);
    gguf->alignment = (uint32_t)alignment;
    return EW_OK;
}

static int take_shape(struct cursor *c, struct ew_tensor *tensor, struct ew_error *err)
{
    int code = take_u32(c, &tensor->n_dims, "the list of tensors", err);

    for (uint32_t i = 0; i < EW_TENSOR_DIMS_MAX; i++)
        tensor->shape[i] = 1;
    if (code == EW_OK && tensor->n_dims > EW_GGUF_DIMS_MAX)
        return ew_fail(err, EW_ERR_FORMAT, "%s: tensor " EW_STR_FMT " has %u dimensions, more than %u", c->path,
                       EW_STR_ARG(tensor->name), tensor->n_dims, EW_GGUF_DIMS_MAX);
    for (uint32_t i = tensor->n_dims; i-- > 0 && code == EW_OK;) { // the file has the fastest first
        code = take_u64(c, &tensor->shape[i], "the list of tensors", err);
        if (code == EW_OK && tensor->shape[i] == 0)
            code = ew_fail(err, EW_ERR_FORMAT, "%s: tensor " EW_STR_FMT " has a dimension of size 0", c->path,
                           EW_STR_ARG(tensor->name));
    }
    return code;
}

static int refuse(struct ew_gguf *gguf, struct ew_str name, uint32_t type, uint64_t n_tensors, struct ew_error *err)
{
    struct ew_tensors *set = &gguf->tensors;
    char *why = ew_arena_alloc(&gguf->arena, WHY_BYTES);

    if (!set->refused)
        set->refused = ew_arena_array(&gguf->arena, n_tensors, sizeof(*set->refused));
    if (!why || !set->refused)
        return ew_fail_memory(err, n_tensors * sizeof(*set->refused), "the list of tensors");
    snprintf(why, WHY_BYTES, "has the unknown or retired GGUF type %u", type);
    set->refused[set->n_refused++] = (struct ew_tensor_refused){name, why};
    return EW_OK;
}

// Reads one declaration. `data` holds the offset only, until where the data begins is known.
static int take_tensor(struct ew_gguf *gguf, struct cursor *c, uint64_t n_tensors, uint64_t *offset,
                       struct ew_error *err)
{
    struct ew_tensor *tensor = &gguf->tensors.list[gguf->tensors.count];
    uint32_t type = 0;
    int code = take_name(c, EW_GGUF_NAME_MAX, &tensor->name, "a tensor's name", err), dtype;

    if (code == EW_OK)
        code = take_shape(c, tensor, err);
    if (code == EW_OK)
        code = take_u32(c, &type, "the list of tensors", err);
    if (code == EW_OK)
        code = take_u64(c, offset, "the list of tensors", err);
    if (code != EW_OK)
        return code;
    dtype = ew_dtype_by_gguf(type);
    if (dtype < 0)
        return refuse(gguf, tensor->name, type, n_tensors, err);
    tensor->dtype = (enum ew_dtype)dtype;
    if (!ew_tensor_size(tensor->dtype, tensor->n_dims, tensor->shape, &tensor->bytes))
        return ew_fail(err, EW_ERR_FORMAT, "%s: tensor " EW_STR_FMT " has a shape that its type %s cannot have",
                       c->path, EW_STR_ARG(tensor->name), ew_dtype_name(tensor->dtype));
    if (*offset % gguf->alignment)
        return ew_fail(err, EW_ERR_FORMAT,
                       "%s: tensor " EW_STR_FMT " begins at offset %llu, which is not aligned to %u", c->path,
                       EW_STR_ARG(tensor->name), (unsigned long long)*offset, gguf->alignment);
    gguf->tensors.count++;
    return EW_OK;
}

// Turns the offset of each tensor into an address, once it is known that the tensor lies within the file.
static int place_tensors(struct ew_gguf *gguf, struct cursor *c, const uint64_t *offsets, struct ew_error *err)
{
    uint64_t space;

    gguf->data_offset = (c->at + gguf->alignment - 1) & ~(uint64_t)(gguf->alignment - 1);
    space = gguf->data_offset < c->size ? c->size - gguf->data_offset : 0; // a file of metadata alone is not padded
    for (uint64_t i = 0; i < gguf->tensors.count; i++) {
        struct ew_tensor *tensor = &gguf->tensors.list[i];

        if (offsets[i] > space || tensor->bytes > space - offsets[i]) {
            ew_fail(err, EW_ERR_FORMAT, "%s is truncated: tensor " EW_STR_FMT " does not end within its %llu bytes",
                    c->path, EW_STR_ARG(tensor->name), (unsigned long long)c->size);
            return ew_remedy(err, EW_ERR_FORMAT, "download it again");
        }
        tensor->data = c->data + gguf->data_offset + offsets[i];
    }
    return EW_OK;
}

static int take_tensors(struct ew_gguf *gguf, struct cursor *c, uint64_t n_tensors, struct ew_error *err)
{
    uint64_t *offsets;
    int code = EW_OK;

    if (n_tensors > EW_GGUF_TENSORS_MAX || n_tensors > bytes_left(c) / TENSOR_BYTES_MIN)
        return ew_fail(err, EW_ERR_FORMAT, "%s: the header announces %llu tensors, more than %s", c->path,
                       (unsigned long long)n_tensors,
                       n_tensors > EW_GGUF_TENSORS_MAX ? "any model has" : "the file can hold");
    gguf->tensors.list = ew_arena_array(&gguf->arena, n_tensors, sizeof(*gguf->tensors.list));
    offsets = ew_alloc_array(n_tensors, sizeof(*offsets));
    if (!gguf->tensors.list || !offsets)
        code = ew_fail_memory(err, n_tensors * sizeof(*gguf->tensors.list), "the list of tensors");
    for (uint64_t i = 0; i < n_tensors && code == EW_OK; i++)
        code = take_tensor(gguf, c, n_tensors, &offsets[gguf->tensors.count], err);
    if (code == EW_OK)
        code = place_tensors(gguf, c, offsets, err);
    ew_free(offsets);
    if (code != EW_OK)
        return code;
    code = ew_tensors_index(&gguf->tensors, err);
    return code == EW_OK ? EW_OK : ew_fail_in(err, code, "%s", c->path);
}

static int take_version(struct ew_gguf *gguf, struct cursor *c, struct ew_error *err)
{
    const unsigned char *magic;
    int code = ew_file_check(c->path, c->data, (size_t)EW_MIN(c->size, 4096), err);

    if (code != EW_OK)
        return code;
    magic = take(c, 4, "its first bytes", NULL);
    if (!magic || memcmp(magic, MAGIC, 4) != 0) {
        ew_fail(err, EW_ERR_FORMAT, "%s is not a GGUF file: it does not begin with \"GGUF\"", c->path);
        return ew_remedy(err, EW_ERR_FORMAT, "give a .gguf file, or the directory that holds the model's config.json");
    }
    code = take_u32(c, &gguf->version, "the header", err);
    if (code != EW_OK || gguf->version == 2 || gguf->version == 3)
        return code;
    if ((gguf->version & 0xFFFF) == 0 && gguf->version) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "%s is a big-endian GGUF file", c->path);
        return ew_remedy(err, EW_ERR_UNSUPPORTED, "convert it to little endian with gguf-py's gguf_convert_endian.py");
    }
    ew_fail(err, EW_ERR_UNSUPPORTED, "%s has GGUF version %u, and versions 2 and 3 are read", c->path, gguf->version);
    return ew_remedy(err, EW_ERR_UNSUPPORTED, "convert the model again with current tools");
}

// Fills everything but `file` and `parts` of a zero-filled gguf. What it made is freed by ew_gguf_close.
static int parse(struct ew_gguf *gguf, const unsigned char *bytes, uint64_t size, const char *path,
                 struct ew_error *err)
{
    struct cursor c = {.data = bytes, .size = size, .path = path};
    uint64_t n_tensors = 0;
    int code;

    ew_arena_init(&gguf->arena, ARENA_BYTES_MAX);
    code = take_version(gguf, &c, err);
    if (code == EW_OK)
        code = take_u64(&c, &n_tensors, "the header", err);
    if (code == EW_OK)
        code = take_u64(&c, &gguf->n_values, "the header", err);
    if (code == EW_OK)
        code = take_values(gguf, &c, err);
    if (code == EW_OK)
        code = read_alignment(gguf, &c, err);
    if (code == EW_OK)
        code = take_tensors(gguf, &c, n_tensors, err);
    return code;
}

static int open_part(struct ew_gguf *gguf, const char *path, struct ew_error *err)
{
    int code = ew_mapfile_open(&gguf->file, path, err);

    return code == EW_OK ? parse(gguf, gguf->file.data, gguf->file.size, path, err) : code;
}

// A split file's name ends in -NNNNN-of-NNNNN.gguf (llama.cpp's gguf-split). Finds the length of what stands
// before.
static bool split_prefix(const char *path, uint32_t count, size_t *len)
{
    char tail[32];
    size_t path_len = strlen(path);
    int tail_len = snprintf(tail, sizeof(tail), "-of-%05u.gguf", count);

    if (path_len <= (size_t)tail_len + 6 || strcmp(path + path_len - (size_t)tail_len, tail) != 0)
        return false;
    *len = path_len - (size_t)tail_len - 6;
    for (size_t i = *len + 1; i < *len + 6; i++)
        if (path[i] < '0' || path[i] > '9')
            return false;
    return path[*len] == '-';
}

static int open_split_part(struct ew_gguf *part, const char *path, size_t prefix, uint32_t i, uint32_t count,
                           struct ew_error *err)
{
    char name[4096];
    int code, len = snprintf(name, sizeof(name), "%.*s-%05u-of-%05u.gguf", (int)prefix, path, i + 1, count);

    if (len < 0 || (size_t)len >= sizeof(name))
        return ew_fail(err, EW_ERR_LIMIT, "the file name %.200s... is too long", path);
    code = open_part(part, name, err);
    if (code == EW_ERR_IO)
        return ew_remedy(err, code, "put all %u files of the split model into one directory", count);
    if (code == EW_OK && (ew_gguf_int(part, "split.no", -1) != i || ew_gguf_int(part, "split.count", -1) != count))
        return ew_fail(err, EW_ERR_FORMAT, "%s does not say that it is part %u of %u, as its name does", name, i + 1,
                       count);
    return code;
}

// Makes the one list of tensors out of those of all parts.
static int join_parts(struct ew_gguf *gguf, struct ew_error *err)
{
    struct ew_tensors all = {0};
    uint64_t at = 0, count = gguf->tensors.count, refused = gguf->tensors.n_refused;

    for (uint32_t i = 0; i < gguf->n_parts; i++) {
        count += gguf->parts[i].tensors.count;
        refused += gguf->parts[i].tensors.n_refused;
    }
    gguf->arena.limit += count * sizeof(*all.list) + refused * sizeof(*all.refused) + 32;
    all.list = ew_arena_array(&gguf->arena, count, sizeof(*all.list));
    all.refused = ew_arena_array(&gguf->arena, refused, sizeof(*all.refused));
    if (!all.list || !all.refused || count > UINT32_MAX)
        return ew_fail_memory(err, count * sizeof(*all.list), "the list of tensors");
    for (uint32_t i = 0; i <= gguf->n_parts; i++) {
        const struct ew_tensors *part = i ? &gguf->parts[i - 1].tensors : &gguf->tensors;

        for (uint64_t j = 0; j < part->count; j++, at++) {
            all.list[at] = part->list[j];
            all.list[at].file = i;
        }
        if (part->n_refused)
            memcpy(&all.refused[all.n_refused], part->refused, part->n_refused * sizeof(*all.refused));
        all.n_refused += part->n_refused;
    }
    all.count = at;
    ew_tensors_fini(&gguf->tensors);
    gguf->tensors = all;
    return ew_tensors_index(&gguf->tensors, err);
}

static int open_split(struct ew_gguf *gguf, const char *path, uint32_t count, struct ew_error *err)
{
    size_t prefix;
    int code;

    if (count > EW_GGUF_SPLITS_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "%s is split into %u files, more than %u", path, count, EW_GGUF_SPLITS_MAX);
    if (!split_prefix(path, count, &prefix)) {
        ew_fail(err, EW_ERR_FORMAT,
                "%s is one of the %u files of a split model, but its name does not end in -NNNNN-of-%05u.gguf", path,
                count, count);
        return ew_remedy(err, EW_ERR_FORMAT, "give the files their original names back");
    }
    ew_gguf_close(gguf); // maybe it was not the first
    code = open_split_part(gguf, path, prefix, 0, count, err);
    if (code != EW_OK)
        return code;
    gguf->parts = ew_alloc_array(count - 1, sizeof(*gguf->parts));
    if (!gguf->parts)
        return ew_fail_memory(err, count * sizeof(*gguf->parts), "the parts of the model");
    while (gguf->n_parts < count - 1 && code == EW_OK) {
        gguf->n_parts++; // counted first, so that a part that failed halfway is closed
        code = open_split_part(&gguf->parts[gguf->n_parts - 1], path, prefix, gguf->n_parts, count, err);
    }
    if (code == EW_OK && (code = join_parts(gguf, err)) != EW_OK)
        ew_fail_in(err, code, "%s", path);
    return code;
}

static uint32_t split_count(const struct ew_gguf *gguf)
{
    int64_t count = ew_gguf_int(gguf, "split.count", 1);

    return count < 1 ? 1 : (uint32_t)EW_MIN(count, UINT32_MAX);
}

int ew_gguf_open(struct ew_gguf *gguf, const char *path, struct ew_error *err)
{
    int code;

    *gguf = (struct ew_gguf){0};
    code = open_part(gguf, path, err);
    if (code == EW_OK && split_count(gguf) > 1)
        code = open_split(gguf, path, split_count(gguf), err);
    if (code != EW_OK)
        ew_gguf_close(gguf);
    return code;
}

int ew_gguf_parse(struct ew_gguf *gguf, const unsigned char *bytes, uint64_t size, struct ew_error *err)
{
    int code;

    *gguf = (struct ew_gguf){0};
    code = parse(gguf, bytes, size, "the GGUF file", err);
    if (code == EW_OK && split_count(gguf) > 1)
        code = ew_fail(err, EW_ERR_UNSUPPORTED,
                       "the GGUF file is a part of a split model, whose other files are unknown");
    if (code != EW_OK)
        ew_gguf_close(gguf);
    return code;
}

void ew_gguf_close(struct ew_gguf *gguf)
{
    for (uint32_t i = 0; i < gguf->n_parts; i++)
        ew_gguf_close(&gguf->parts[i]); // parts have no parts: one level
    ew_free(gguf->parts);
    ew_tensors_fini(&gguf->tensors);
    ew_map_fini(&gguf->by_key);
    ew_arena_fini(&gguf->arena);
    ew_mapfile_close(&gguf->file);
    *gguf = (struct ew_gguf){0};
}
