#include "model/value.h"

#include <stdio.h>

#include "base/assert.h"

struct ew_value ew_value_of_json(const struct ew_json *node)
{
    static const enum ew_value_kind kinds[] = {
        [EW_JSON_T_NULL] = EW_VALUE_NULL,     [EW_JSON_T_BOOL] = EW_VALUE_BOOL,   [EW_JSON_T_INT] = EW_VALUE_INT,
        [EW_JSON_T_DOUBLE] = EW_VALUE_NUMBER, [EW_JSON_T_STRING] = EW_VALUE_TEXT, [EW_JSON_T_ARRAY] = EW_VALUE_LIST,
        [EW_JSON_T_OBJECT] = EW_VALUE_OBJECT,
    };
    struct ew_value value = {0};

    if (!node)
        return value;
    value.kind = kinds[node->type];
    value.boolean = node->boolean;
    value.integer = node->integer;
    value.number = node->type == EW_JSON_T_INT ? (double)node->integer : node->number;
    value.text = node->text;
    if (value.kind == EW_VALUE_LIST) {
        value.count = node->count;
        value.json = node;
    }
    return value;
}

static bool is_number_type(enum ew_gguf_type type)
{
    return type == EW_GGUF_F32 || type == EW_GGUF_F64;
}

// Element i of a numeric or boolean array.
static struct ew_value gguf_element(const struct ew_gguf_value *from, enum ew_gguf_type type, uint64_t i)
{
    struct ew_value value = {0};

    if (type == EW_GGUF_STRING || type == EW_GGUF_ARRAY || i >= from->count)
        return value;
    if (is_number_type(type)) {
        value.kind = ew_gguf_array_number(from, i, &value.number) ? EW_VALUE_NUMBER : EW_VALUE_ABSENT;
        return value;
    }
    if (!ew_gguf_array_int(from, i, &value.integer))
        return value;
    value.kind = type == EW_GGUF_BOOL ? EW_VALUE_BOOL : EW_VALUE_INT;
    value.boolean = value.integer != 0;
    value.number = (double)value.integer;
    return value;
}

static struct ew_value gguf_scalar(const struct ew_gguf *gguf, const char *key, enum ew_gguf_type type)
{
    struct ew_value value = {0};

    if (type == EW_GGUF_STRING) {
        value.kind = EW_VALUE_TEXT;
        value.text = ew_gguf_str(gguf, key, "");
    } else if (type == EW_GGUF_BOOL) {
        value.kind = EW_VALUE_BOOL;
        value.boolean = ew_gguf_bool(gguf, key, false);
    } else if (is_number_type(type)) {
        value.kind = EW_VALUE_NUMBER;
        value.number = ew_gguf_number(gguf, key, 0);
    } else {
        value.kind = EW_VALUE_INT;
        value.integer = ew_gguf_int(gguf, key, -1); // what fits no int64 is out of every range
        value.number = (double)value.integer;
    }
    return value;
}

struct ew_value ew_value_of_gguf(const struct ew_gguf *gguf, const char *key)
{
    const struct ew_gguf_value *from = ew_gguf_find(gguf, key);
    struct ew_value value = {0};

    if (!from)
        return value;
    if (from->type != EW_GGUF_ARRAY)
        return gguf_scalar(gguf, key, from->type);
    value.kind = EW_VALUE_LIST;
    value.count = from->count;
    value.gguf = from;
    return value;
}

struct ew_value ew_value_of_yaml(const struct ew_yaml *scalar)
{
    struct ew_value value = {.kind = EW_VALUE_TEXT};

    if (!scalar || scalar->type != EW_YAML_SCALAR)
        return (struct ew_value){0};
    value.text = scalar->text;
    if (scalar->quoted)
        return value;
    if (ew_str_is(scalar->text, "true") || ew_str_is(scalar->text, "false")) {
        value.kind = EW_VALUE_BOOL;
        value.boolean = ew_str_is(scalar->text, "true");
    } else if (ew_str_to_i64(scalar->text, &value.integer)) {
        value.kind = EW_VALUE_INT;
        value.number = (double)value.integer;
    } else if (ew_str_to_double(scalar->text, &value.number)) {
        value.kind = EW_VALUE_NUMBER;
    }
    return value;
}

struct ew_value ew_value_at(const struct ew_value *list, uint64_t i)
{
    if (list->kind != EW_VALUE_LIST || i >= list->count)
        return (struct ew_value){0};
    if (list->json)
        return ew_value_of_json(ew_json_at(list->json, (uint32_t)i));
    return gguf_element(list->gguf, list->gguf->element_type, i);
}

const char *ew_value_kind_name(enum ew_value_kind kind)
{
    static const char *const names[] = {
        [EW_VALUE_ABSENT] = "absent",      [EW_VALUE_NULL] = "null",        [EW_VALUE_BOOL] = "true or false",
        [EW_VALUE_INT] = "a whole number", [EW_VALUE_NUMBER] = "a number",  [EW_VALUE_TEXT] = "a text",
        [EW_VALUE_LIST] = "a list",        [EW_VALUE_OBJECT] = "an object",
    };

    EW_ASSERT((unsigned)kind < EW_COUNT_OF(names));
    return names[kind];
}

const struct ew_json *ew_json_path(const struct ew_json *root, struct ew_str path)
{
    while (root && path.len) {
        ptrdiff_t dot = ew_str_find(path, EW_STR("."), 0);
        size_t len = dot < 0 ? path.len : (size_t)dot;
        char key[128];

        if (len >= sizeof(key))
            return NULL;
        memcpy(key, path.ptr, len);
        key[len] = '\0';
        root = ew_json_get(root, key);
        path.ptr += len + (dot >= 0);
        path.len -= len + (dot >= 0);
    }
    return root;
}
