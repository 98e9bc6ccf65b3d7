#include "text/jinja_value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/map.h"
#include "text/jinja_text.h"

#define SLAB_BYTES_MIN 64        // shorter results of a concatenation get no room to grow
#define DICT_INDEX_MIN 8         // entries beyond which a dict is searched by hash
#define ITEMS_MAX (1u << 24)     // of a list or dict

static struct ew_jj_value failed(struct ew_jj_run *run, int code)
{
    run->code = code;
    return EW_JJ_UNDEFINED_VALUE;
}

struct ew_jj_value ew_jj_fail(struct ew_jj_run *run, const char *fmt, ...)
{
    char what[sizeof(run->err->message) - 64];
    va_list args;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    return failed(run, ew_fail(run->err, EW_ERR_FORMAT, "line %u of the chat template: %s", run->line, what));
}

struct ew_jj_value ew_jj_fail_limit(struct ew_jj_run *run, const char *what)
{
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    return failed(run, ew_fail(run->err, EW_ERR_LIMIT, "line %u of the chat template: %s", run->line, what));
}

struct ew_jj_value ew_jj_fail_memory(struct ew_jj_run *run, size_t bytes, const char *what)
{
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    return failed(run, ew_fail_memory(run->err, bytes, what));
}

struct ew_jj_value ew_jj_raise(struct ew_jj_run *run, struct ew_str message)
{
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    return failed(run,
                  ew_fail(run->err, EW_ERR_UNSUPPORTED, "%.*s", (int)EW_MIN(message.len, (size_t)4096), message.ptr));
}

static const char *object_name(struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_NONE: return "None";
    case EW_JJ_STRING: return "str object";
    case EW_JJ_BOOL: return "bool object";
    case EW_JJ_INT:
    case EW_JJ_BIG: return "int object";
    case EW_JJ_FLOAT: return "float object";
    case EW_JJ_LIST: return "list object";
    case EW_JJ_TUPLE: return "tuple object";
    case EW_JJ_DICT: return "dict object";
    case EW_JJ_NAMESPACE: return "namespace object";
    case EW_JJ_LOOP: return "loop object";
    case EW_JJ_GENERATOR: return "generator object";
    default: return "object";
    }
}

struct ew_jj_value ew_jj_fail_undefined(struct ew_jj_run *run, struct ew_jj_value undefined)
{
    const struct ew_jj_undef *undef = undefined.undef;

    if (!undef)
        return ew_jj_fail(run, "an undefined value is used");
    if (undef->hint)
        return ew_jj_fail(run, "%s", undef->hint);
    if (undef->key.type != EW_JJ_STRING)
        return ew_jj_fail(run, "%s has no such element", undef->object_type ? undef->object_type : "an object");
    if (!undef->object_type)
        return ew_jj_fail(run, "'" EW_STR_FMT "' is undefined", EW_STR_ARG(ew_jj_str(undef->key)));
    return ew_jj_fail(run, "'%s' has no attribute '" EW_STR_FMT "'", undef->object_type,
                      EW_STR_ARG(ew_jj_str(undef->key)));
}

bool ew_jj_step(struct ew_jj_run *run, uint64_t cost)
{
    run->steps += cost;
    if (run->steps > run->steps_max)
        ew_jj_fail_limit(run, "it does more work than is allowed");
    return run->code == EW_OK;
}

bool ew_jj_enter(struct ew_jj_run *run)
{
    if (run->depth >= run->depth_max) {
        ew_jj_fail_limit(run, "it is nested, or calls itself, more deeply than is allowed");
        return false;
    }
    run->depth++;
    return ew_jj_step(run, 1) || (run->depth--, false);
}

void ew_jj_leave(struct ew_jj_run *run)
{
    run->depth--;
}

void *ew_jj_alloc(struct ew_jj_run *run, size_t count, size_t size)
{
    void *ptr = ew_arena_array(&run->arena, count, size);
    size_t bytes;

    if (ptr)
        return ptr;
    if (ew_mul_size(count, size, &bytes) && bytes < run->arena.limit - run->arena.used)
        ew_jj_fail_memory(run, bytes, "what the chat template makes");
    else
        ew_jj_fail_limit(run, "it needs more memory than is allowed");
    return NULL;
}

struct ew_jj_value ew_jj_hint(struct ew_jj_run *run, const char *message)
{
    struct ew_jj_undef *undef = ew_jj_alloc(run, 1, sizeof(*undef));

    if (undef)
        undef->hint = message;
    return (struct ew_jj_value){.type = EW_JJ_UNDEFINED, .undef = undef};
}

struct ew_jj_value ew_jj_lookup_failed(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key)
{
    struct ew_jj_undef *undef = ew_jj_alloc(run, 1, sizeof(*undef));

    if (undef) {
        undef->object_type = object_name(object);
        undef->key = key;
    }
    return (struct ew_jj_value){.type = EW_JJ_UNDEFINED, .undef = undef};
}

// Strings.

static struct ew_jj_value new_string(struct ew_jj_run *run, const char *ptr, size_t len, struct ew_jj_slab *slab)
{
    struct ew_jj_string *string = ew_jj_alloc(run, 1, sizeof(*string));

    if (!string)
        return EW_JJ_UNDEFINED_VALUE;
    *string = (struct ew_jj_string){ptr, len, SIZE_MAX, slab};
    return (struct ew_jj_value){.type = EW_JJ_STRING, .string = string};
}

struct ew_jj_value ew_jj_string_view(struct ew_jj_run *run, struct ew_str bytes)
{
    return new_string(run, bytes.len ? bytes.ptr : "", bytes.len, NULL);
}

struct ew_jj_value ew_jj_string_copy(struct ew_jj_run *run, struct ew_str bytes)
{
    char *copy = ew_jj_alloc(run, bytes.len + 1, 1);

    if (!copy || !ew_jj_step(run, bytes.len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    if (bytes.len)
        memcpy(copy, bytes.ptr, bytes.len);
    return new_string(run, copy, bytes.len, NULL);
}

struct ew_jj_value ew_jj_string_sub(struct ew_jj_run *run, struct ew_jj_value of, size_t from, size_t to)
{
    struct ew_jj_value sub;

    if (from == 0 && to == of.string->len)
        return of;
    sub = new_string(run, of.string->ptr + from, to - from, NULL);
    sub.is_markup = of.is_markup;
    return sub;
}

static struct ew_jj_value concat_fresh(struct ew_jj_run *run, struct ew_str a, struct ew_str b)
{
    size_t len = a.len + b.len, cap = len >= SLAB_BYTES_MIN ? len * 2 : len;
    struct ew_jj_slab *slab = ew_jj_alloc(run, sizeof(*slab) + cap, 1);

    if (!slab || !ew_jj_step(run, len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    if (a.len)
        memcpy(slab->bytes, a.ptr, a.len);
    if (b.len)
        memcpy(slab->bytes + a.len, b.ptr, b.len);
    slab->used = len;
    slab->cap = cap;
    return new_string(run, slab->bytes, len, slab);
}

static struct ew_jj_value escaped(struct ew_jj_run *run, struct ew_jj_value v)
{
    size_t mark = ew_jj_build_begin(run);

    ew_jj_append_html(&run->scratch, ew_jj_str(v));
    return ew_jj_build_end(run, mark);
}

static struct ew_jj_value concat_plain(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    struct ew_jj_slab *slab = a.string->slab;
    struct ew_str more = ew_jj_str(b);

    if (more.len == 0)
        return a;
    if (a.string->len == 0)
        return b;
    if (!slab || a.string->ptr + a.string->len != slab->bytes + slab->used || more.len > slab->cap - slab->used)
        return concat_fresh(run, ew_jj_str(a), more);
    memcpy(slab->bytes + slab->used, more.ptr, more.len);
    slab->used += more.len;
    ew_jj_step(run, more.len / 64);
    return new_string(run, a.string->ptr, a.string->len + more.len, slab);
}

struct ew_jj_value ew_jj_concat(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    bool is_markup = a.is_markup || b.is_markup;
    struct ew_jj_value both;

    if (is_markup && !a.is_markup)
        a = escaped(run, a);
    if (is_markup && !b.is_markup)
        b = escaped(run, b);
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    both = concat_plain(run, a, b);
    both.is_markup = is_markup;
    return both;
}

size_t ew_jj_string_chars(struct ew_jj_value v)
{
    if (v.string->n_chars == SIZE_MAX)
        v.string->n_chars = ew_jj_char_count(ew_jj_str(v));
    return v.string->n_chars;
}

size_t ew_jj_build_begin(struct ew_jj_run *run)
{
    return run->scratch.len;
}

struct ew_jj_value ew_jj_build_end(struct ew_jj_run *run, size_t mark)
{
    struct ew_buf *buf = &run->scratch;
    struct ew_jj_value made;

    if (buf->no_memory)
        return ew_jj_fail_memory(run, buf->len, "a string of the chat template");
    if (!ew_buf_ok(buf))
        return ew_jj_fail_limit(run, "it builds a longer string than is allowed");
    made = ew_jj_string_copy(run, (struct ew_str){buf->ptr ? buf->ptr + mark : "", buf->len - mark});
    buf->len = mark;
    return made;
}

// Lists.

struct ew_jj_value ew_jj_list(struct ew_jj_run *run, enum ew_jj_type type, uint32_t cap)
{
    struct ew_jj_list *list = ew_jj_alloc(run, 1, sizeof(*list));

    if (!list)
        return EW_JJ_UNDEFINED_VALUE;
    if (cap) {
        list->items = ew_jj_alloc(run, cap, sizeof(*list->items));
        list->cap = list->items ? cap : 0;
    }
    return (struct ew_jj_value){.type = type, .list = list};
}

// New items are put into a new array when the old one is full: whoever iterates keeps reading the old one.
bool ew_jj_list_push(struct ew_jj_run *run, struct ew_jj_list *list, struct ew_jj_value item)
{
    if (!ew_jj_step(run, 1))
        return false;
    if (list->count == list->cap) {
        uint32_t cap = list->cap ? list->cap * 2 : 4;
        struct ew_jj_value *grown = cap <= ITEMS_MAX ? ew_jj_alloc(run, cap, sizeof(*grown)) : NULL;

        if (!grown)
            return false;
        if (list->count)
            memcpy(grown, list->items, list->count * sizeof(*grown));
        list->items = grown;
        list->cap = cap;
    }
    list->items[list->count++] = item;
    return true;
}

// Dicts.

struct ew_jj_value ew_jj_dict(struct ew_jj_run *run, enum ew_jj_type type)
{
    struct ew_jj_dict *dict = ew_jj_alloc(run, 1, sizeof(*dict));

    return dict ? (struct ew_jj_value){.type = type, .dict = dict} : EW_JJ_UNDEFINED_VALUE;
}

static uint64_t hash_number(double number)
{
    return ew_hash_bytes(&number, sizeof(number), 1);
}

// Equal values have equal hashes: numbers are hashed as doubles whatever their type. False for what cannot be a key.
static bool hash(struct ew_jj_run *run, struct ew_jj_value v, uint64_t *out)
{
    double number;

    *out = v.type;
    if (ew_jj_is_number(v, &number) && v.type != EW_JJ_BIG) {
        *out = hash_number(number == 0 ? 0 : number); // -0.0 equals 0
    } else if (v.type == EW_JJ_STRING || v.type == EW_JJ_BIG) {
        *out = ew_hash_bytes(v.string->ptr, v.string->len, 0);
    } else if (v.type == EW_JJ_TUPLE) {
        uint64_t one;

        if (!ew_jj_enter(run))
            return false;
        for (uint32_t i = 0; i < v.list->count && hash(run, v.list->items[i], &one); i++)
            *out = *out * 0x9E3779B97F4A7C15u + one;
        ew_jj_leave(run);
    } else if (v.type == EW_JJ_LIST || v.type == EW_JJ_DICT) {
        ew_jj_fail(run, "unhashable type: '%s'", ew_jj_type_name(v));
    }
    return run->code == EW_OK;
}

static void index_entry(struct ew_jj_dict *dict, uint64_t key_hash, uint32_t entry)
{
    uint32_t mask = dict->n_slots - 1, at = (uint32_t)key_hash & mask;

    while (dict->slots[at])
        at = (at + 1) & mask;
    dict->slots[at] = entry + 1;
}

static bool rebuild_index(struct ew_jj_run *run, struct ew_jj_dict *dict)
{
    uint64_t key_hash;

    dict->n_slots = dict->cap * 2;
    dict->slots = ew_jj_alloc(run, dict->n_slots, sizeof(*dict->slots));
    if (!dict->slots)
        return false;
    for (uint32_t i = 0; i < dict->count; i++) {
        if (!hash(run, dict->entries[i].key, &key_hash))
            return false;
        index_entry(dict, key_hash, i);
    }
    return ew_jj_step(run, dict->count);
}

static bool keys_equal(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    if (a.type == EW_JJ_STRING && b.type == EW_JJ_STRING)
        return ew_str_eq(ew_jj_str(a), ew_jj_str(b));
    return ew_jj_equal(run, a, b);
}

static uint32_t find_entry(struct ew_jj_run *run, const struct ew_jj_dict *dict, struct ew_jj_value key)
{
    uint64_t key_hash;

    if (!dict->slots) {
        for (uint32_t i = 0; i < dict->count; i++)
            if (keys_equal(run, dict->entries[i].key, key))
                return i;
        return UINT32_MAX;
    }
    if (!hash(run, key, &key_hash))
        return UINT32_MAX;
    for (uint32_t mask = dict->n_slots - 1, at = (uint32_t)key_hash & mask; dict->slots[at]; at = (at + 1) & mask)
        if (keys_equal(run, dict->entries[dict->slots[at] - 1].key, key))
            return dict->slots[at] - 1;
    return UINT32_MAX;
}

struct ew_jj_value *ew_jj_dict_find(struct ew_jj_run *run, const struct ew_jj_dict *dict, struct ew_jj_value key)
{
    uint32_t at = find_entry(run, dict, key);

    return at == UINT32_MAX ? NULL : &dict->entries[at].value;
}

static bool dict_grow(struct ew_jj_run *run, struct ew_jj_dict *dict)
{
    uint32_t cap = dict->cap ? dict->cap * 2 : 4;
    struct ew_jj_entry *grown = cap <= ITEMS_MAX ? ew_jj_alloc(run, cap, sizeof(*grown)) : NULL;

    if (!grown)
        return false;
    if (dict->count)
        memcpy(grown, dict->entries, dict->count * sizeof(*grown));
    dict->entries = grown;
    dict->cap = cap;
    return cap <= DICT_INDEX_MIN || rebuild_index(run, dict);
}

bool ew_jj_dict_set(struct ew_jj_run *run, struct ew_jj_dict *dict, struct ew_jj_value key, struct ew_jj_value value)
{
    uint64_t key_hash;
    uint32_t at;

    if (!ew_jj_step(run, 1) || !hash(run, key, &key_hash))
        return false;
    at = find_entry(run, dict, key);
    if (at != UINT32_MAX) {
        dict->entries[at].value = value;
        return true;
    }
    if (dict->count == dict->cap && !dict_grow(run, dict))
        return false;
    dict->entries[dict->count] = (struct ew_jj_entry){key, value};
    if (dict->slots)
        index_entry(dict, key_hash, dict->count);
    dict->count++;
    return true;
}

bool ew_jj_dict_remove(struct ew_jj_run *run, struct ew_jj_dict *dict, struct ew_jj_value key)
{
    uint32_t at = find_entry(run, dict, key);

    if (at == UINT32_MAX)
        return false;
    memmove(dict->entries + at, dict->entries + at + 1, (dict->count - at - 1) * sizeof(*dict->entries));
    dict->count--;
    return !dict->slots || rebuild_index(run, dict);
}

// From JSON.

static struct ew_jj_value from_json_array(struct ew_jj_run *run, const struct ew_json *node)
{
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_LIST, node->count);

    for (const struct ew_json *child = node->child; child && run->code == EW_OK; child = child->next)
        ew_jj_list_push(run, list.list, ew_jj_from_json(run, child));
    return list;
}

static struct ew_jj_value from_json_object(struct ew_jj_run *run, const struct ew_json *node)
{
    struct ew_jj_value dict = ew_jj_dict(run, EW_JJ_DICT);

    for (const struct ew_json *child = node->child; child && run->code == EW_OK; child = child->next) {
        struct ew_jj_value key = ew_jj_string_view(run, child->key);

        ew_jj_dict_set(run, dict.dict, key, ew_jj_from_json(run, child));
    }
    return dict;
}

// Integers past 64 bits come as doubles whose text has nothing but digits.
static struct ew_jj_value from_json_double(struct ew_jj_run *run, const struct ew_json *node)
{
    struct ew_jj_value big;

    for (size_t i = 0; i < node->text.len; i++)
        if (strchr("0123456789-", node->text.ptr[i]) == NULL)
            return ew_jj_float(node->number);
    if (node->text.len == 0)
        return ew_jj_float(node->number);
    big = ew_jj_string_view(run, node->text);
    big.type = EW_JJ_BIG;
    return big;
}

struct ew_jj_value ew_jj_from_json(struct ew_jj_run *run, const struct ew_json *node)
{
    struct ew_jj_value v = EW_JJ_NONE_VALUE;

    if (!ew_jj_enter(run))
        return EW_JJ_UNDEFINED_VALUE;
    switch (node->type) {
    case EW_JSON_T_NULL: break;
    case EW_JSON_T_BOOL: v = ew_jj_bool(node->boolean); break;
    case EW_JSON_T_INT: v = ew_jj_int(node->integer); break;
    case EW_JSON_T_DOUBLE: v = from_json_double(run, node); break;
    case EW_JSON_T_STRING: v = ew_jj_string_view(run, node->text); break;
    case EW_JSON_T_ARRAY: v = from_json_array(run, node); break;
    case EW_JSON_T_OBJECT: v = from_json_object(run, node); break;
    }
    ew_jj_leave(run);
    return v;
}
