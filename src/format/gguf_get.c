// Access to the metadata of an open GGUF file.
#include <string.h>

#include "format/gguf.h"

const struct ew_gguf_value *ew_gguf_find(const struct ew_gguf *gguf, const char *key)
{
    uint32_t at;

    return ew_map_get(&gguf->by_key, ew_str_of(key), &at) ? &gguf->values[at] : NULL;
}

// Loads element i, of at most 8 bytes, zero-extended.
static uint64_t load(const struct ew_gguf_value *value, uint64_t i, uint64_t size)
{
    uint64_t bits = 0;

    memcpy(&bits, value->data + i * size, (size_t)size); // little endian, as this machine is
    return bits;
}

static bool int_at(const struct ew_gguf_value *value, uint64_t i, int64_t *out)
{
    uint64_t bits;

    switch (value->element_type) {
    case EW_GGUF_U8: *out = (int64_t)load(value, i, 1); return true;
    case EW_GGUF_I8: *out = (int8_t)load(value, i, 1); return true;
    case EW_GGUF_U16: *out = (int64_t)load(value, i, 2); return true;
    case EW_GGUF_I16: *out = (int16_t)load(value, i, 2); return true;
    case EW_GGUF_U32: *out = (int64_t)load(value, i, 4); return true;
    case EW_GGUF_I32: *out = (int32_t)load(value, i, 4); return true;
    case EW_GGUF_I64: *out = (int64_t)load(value, i, 8); return true;
    case EW_GGUF_U64:
        bits = load(value, i, 8);
        *out = (int64_t)bits;
        return bits <= INT64_MAX;
    default: return false;
    }
}

static bool number_at(const struct ew_gguf_value *value, uint64_t i, double *out)
{
    int64_t integer;
    uint64_t bits;
    float single;

    switch (value->element_type) {
    case EW_GGUF_F32:
        bits = load(value, i, 4);
        memcpy(&single, &bits, sizeof(single));
        *out = (double)single;
        return true;
    case EW_GGUF_F64:
        bits = load(value, i, 8);
        memcpy(out, &bits, sizeof(*out));
        return true;
    default:
        if (!int_at(value, i, &integer))
            return false;
        *out = (double)integer;
        return true;
    }
}

static const struct ew_gguf_value *scalar(const struct ew_gguf *gguf, const char *key)
{
    const struct ew_gguf_value *value = ew_gguf_find(gguf, key);

    return value && value->type != EW_GGUF_ARRAY ? value : NULL;
}

int64_t ew_gguf_int(const struct ew_gguf *gguf, const char *key, int64_t fallback)
{
    const struct ew_gguf_value *value = scalar(gguf, key);
    int64_t out;

    return value && int_at(value, 0, &out) ? out : fallback;
}

double ew_gguf_number(const struct ew_gguf *gguf, const char *key, double fallback)
{
    const struct ew_gguf_value *value = scalar(gguf, key);
    double out;

    return value && number_at(value, 0, &out) ? out : fallback;
}

bool ew_gguf_bool(const struct ew_gguf *gguf, const char *key, bool fallback)
{
    const struct ew_gguf_value *value = scalar(gguf, key);

    return value && value->type == EW_GGUF_BOOL ? value->data[0] != 0 : fallback;
}

struct ew_str ew_gguf_str(const struct ew_gguf *gguf, const char *key, const char *fallback)
{
    const struct ew_gguf_value *value = scalar(gguf, key);

    if (!value || value->type != EW_GGUF_STRING)
        return ew_str_of(fallback);
    return (struct ew_str){(const char *)value->data + 8, (size_t)(value->bytes - 8)};
}

bool ew_gguf_array_int(const struct ew_gguf_value *array, uint64_t i, int64_t *out)
{
    return array && array->type == EW_GGUF_ARRAY && i < array->count && int_at(array, i, out);
}

bool ew_gguf_array_number(const struct ew_gguf_value *array, uint64_t i, double *out)
{
    return array && array->type == EW_GGUF_ARRAY && i < array->count && number_at(array, i, out);
}

bool ew_gguf_array_next_str(const struct ew_gguf_value *array, uint64_t *cursor, struct ew_str *out)
{
    uint64_t len;

    if (!array || array->type != EW_GGUF_ARRAY || array->element_type != EW_GGUF_STRING || *cursor >= array->bytes)
        return false;
    memcpy(&len, array->data + *cursor, sizeof(len));
    *out = (struct ew_str){(const char *)array->data + *cursor + 8, (size_t)len};
    *cursor += 8 + len; // opening has checked that all strings lie within the array
    return true;
}
