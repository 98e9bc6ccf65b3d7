// What Python's operators say about values: truth, equality, order, membership, length, iteration.

#include <math.h>
#include <stdlib.h>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

const char *ew_jj_type_name(struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_MISSING:
    case EW_JJ_UNDEFINED: return "Undefined";
    case EW_JJ_NONE: return "NoneType";
    case EW_JJ_BOOL: return "bool";
    case EW_JJ_INT:
    case EW_JJ_BIG: return "int";
    case EW_JJ_FLOAT: return "float";
    case EW_JJ_STRING: return v.is_markup ? "Markup" : "str";
    case EW_JJ_LIST: return "list";
    case EW_JJ_TUPLE: return "tuple";
    case EW_JJ_VIEW: return v.list->label;
    case EW_JJ_GENERATOR: return "generator";
    case EW_JJ_DICT: return "dict";
    case EW_JJ_NAMESPACE: return "Namespace";
    case EW_JJ_BUILTIN:
    case EW_JJ_METHOD: return "builtin_function_or_method";
    case EW_JJ_MACRO: return "Macro";
    case EW_JJ_LOOP: return "LoopContext";
    case EW_JJ_CYCLER: return "Cycler";
    case EW_JJ_JOINER: return "Joiner";
    }
    return "object";
}

bool ew_jj_is_integer(struct ew_jj_value v, int64_t *out)
{
    if (v.type != EW_JJ_INT && v.type != EW_JJ_BOOL)
        return false;
    *out = v.type == EW_JJ_INT ? v.integer : v.boolean;
    return true;
}

static double big_to_double(struct ew_jj_value v)
{
    double number = 0;

    return ew_str_to_double(ew_jj_str(v), &number) ? number : INFINITY;
}

bool ew_jj_is_number(struct ew_jj_value v, double *out)
{
    int64_t integer;

    if (ew_jj_is_integer(v, &integer))
        *out = (double)integer;
    else if (v.type == EW_JJ_FLOAT)
        *out = v.number;
    else if (v.type == EW_JJ_BIG)
        *out = big_to_double(v);
    else
        return false;
    return true;
}

bool ew_jj_length(struct ew_jj_value v, int64_t *out)
{
    switch (v.type) {
    case EW_JJ_UNDEFINED: *out = 0; return true;
    case EW_JJ_STRING: *out = (int64_t)ew_jj_string_chars(v); return true;
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
    case EW_JJ_VIEW: *out = v.list->count; return true;
    case EW_JJ_DICT: *out = v.dict->count; return true;
    default: return false;
    }
}

bool ew_jj_truth(struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_MISSING:
    case EW_JJ_UNDEFINED:
    case EW_JJ_NONE: return false;
    case EW_JJ_BOOL: return v.boolean;
    case EW_JJ_INT: return v.integer != 0;
    case EW_JJ_FLOAT: return v.number != 0;
    case EW_JJ_STRING: return v.string->len > 0;
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
    case EW_JJ_VIEW: return v.list->count > 0;
    case EW_JJ_DICT: return v.dict->count > 0;
    default: return true;
    }
}

// Order of an integer and a double, exactly: a double holds only 53 bits. NaN compares as unequal (2).
static int compare_int_double(int64_t a, double b)
{
    if (isnan(b))
        return 2;
    if (b >= 9223372036854775808.0)
        return -1;
    if (b < -9223372036854775808.0)
        return 1;
    if (a != (int64_t)b)
        return a < (int64_t)b ? -1 : 1;
    return b > trunc(b) ? -1 : b < trunc(b) ? 1 : 0;
}

static int sign_of(int order)
{
    return order < 0 ? -1 : order > 0;
}

// Both are past 64 bits: more digits mean more, and with as many the digits decide.
static int compare_bigs(struct ew_str a, struct ew_str b)
{
    bool negative = a.ptr[0] == '-';
    int order;

    if (negative != (b.ptr[0] == '-'))
        return negative ? -1 : 1;
    order = a.len != b.len ? (a.len < b.len ? -1 : 1) : sign_of(ew_str_compare(a, b));
    return negative ? -order : order;
}

static int compare_numbers(struct ew_jj_value a, struct ew_jj_value b)
{
    int64_t x = 0, y = 0;
    double p = 0, q = 0;
    bool a_whole = ew_jj_is_integer(a, &x), b_whole = ew_jj_is_integer(b, &y);

    if (a_whole && b_whole)
        return x < y ? -1 : x > y;
    if (a.type == EW_JJ_BIG && b.type == EW_JJ_BIG)
        return compare_bigs(ew_jj_str(a), ew_jj_str(b));
    if (a.type == EW_JJ_BIG && b_whole)
        return ew_jj_str(a).ptr[0] == '-' ? -1 : 1;
    if (b.type == EW_JJ_BIG && a_whole)
        return ew_jj_str(b).ptr[0] == '-' ? 1 : -1;
    ew_jj_is_number(a, &p);
    ew_jj_is_number(b, &q);
    if (a_whole)
        return compare_int_double(x, q);
    if (b_whole) {
        int order = compare_int_double(y, p);

        return order == 2 ? 2 : -order;
    }
    if (isnan(p) || isnan(q))
        return 2;
    return p < q ? -1 : p > q;
}

static bool lists_equal(struct ew_jj_run *run, const struct ew_jj_list *a, const struct ew_jj_list *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++)
        if (!ew_jj_equal(run, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool dicts_equal(struct ew_jj_run *run, const struct ew_jj_dict *a, const struct ew_jj_dict *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++) {
        const struct ew_jj_value *other = ew_jj_dict_find(run, b, a->entries[i].key);

        if (!other || !ew_jj_equal(run, a->entries[i].value, *other))
            return false;
    }
    return true;
}

static bool same_type_equal(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    switch (a.type) {
    case EW_JJ_UNDEFINED:
    case EW_JJ_NONE: return true;
    case EW_JJ_STRING: return ew_str_eq(ew_jj_str(a), ew_jj_str(b));
    case EW_JJ_LIST:
    case EW_JJ_TUPLE: return a.list == b.list || lists_equal(run, a.list, b.list);
    case EW_JJ_VIEW: return a.list == b.list || (a.list->label == b.list->label && lists_equal(run, a.list, b.list));
    case EW_JJ_DICT: return a.dict == b.dict || dicts_equal(run, a.dict, b.dict);
    case EW_JJ_METHOD: return a.method == b.method;
    default: return a.dict == b.dict; // identity: whatever the pointer points to
    }
}

bool ew_jj_equal(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    double unused;
    bool equal;

    if (ew_jj_is_number(a, &unused) && ew_jj_is_number(b, &unused))
        return compare_numbers(a, b) == 0;
    if (a.type != b.type || !ew_jj_enter(run))
        return false;
    equal = same_type_equal(run, a, b);
    ew_jj_leave(run);
    return equal;
}

static int compare_lists(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b, const char *op)
{
    uint32_t i = 0, n = a.list->count < b.list->count ? a.list->count : b.list->count;
    int order = 0;

    while (i < n && run->code == EW_OK && ew_jj_equal(run, a.list->items[i], b.list->items[i]))
        i++;
    if (i == n)
        return a.list->count < b.list->count ? -1 : a.list->count > b.list->count;
    if (ew_jj_enter(run)) {
        order = ew_jj_compare(run, a.list->items[i], b.list->items[i], op);
        ew_jj_leave(run);
    }
    return order;
}

int ew_jj_compare(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b, const char *op)
{
    double unused;

    if (a.type == EW_JJ_UNDEFINED || b.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, a.type == EW_JJ_UNDEFINED ? a : b), 0;
    if (ew_jj_is_number(a, &unused) && ew_jj_is_number(b, &unused))
        return compare_numbers(a, b);
    if (a.type == EW_JJ_STRING && b.type == EW_JJ_STRING)
        return sign_of(ew_str_compare(ew_jj_str(a), ew_jj_str(b))); // UTF-8 sorts as its code points do
    if (a.type == b.type && (a.type == EW_JJ_LIST || a.type == EW_JJ_TUPLE))
        return compare_lists(run, a, b, op);
    ew_jj_fail(run, "'%s' not supported between instances of '%s' and '%s'", op, ew_jj_type_name(a),
               ew_jj_type_name(b));
    return 0;
}

bool ew_jj_is_iterable(struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_UNDEFINED:
    case EW_JJ_STRING:
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
    case EW_JJ_VIEW:
    case EW_JJ_GENERATOR:
    case EW_JJ_DICT: return true;
    default: return false;
    }
}

static bool iterate_string(struct ew_jj_run *run, struct ew_jj_value v, struct ew_jj_items *out)
{
    size_t n = ew_jj_string_chars(v), at = 0, len;
    struct ew_jj_value *items = ew_jj_alloc(run, n, sizeof(*items));
    uint32_t c;

    if (!items || n > UINT32_MAX)
        return false;
    for (size_t i = 0; i < n && ew_jj_step(run, 1); i++, at += len) {
        len = ew_jj_decode(ew_jj_str(v), at, &c);
        items[i] = ew_jj_string_sub(run, v, at, at + len);
        items[i].is_markup = false;
    }
    *out = (struct ew_jj_items){items, (uint32_t)n};
    return run->code == EW_OK;
}

static bool iterate_dict(struct ew_jj_run *run, const struct ew_jj_dict *dict, struct ew_jj_items *out)
{
    struct ew_jj_value *items = ew_jj_alloc(run, dict->count, sizeof(*items));

    if (!items || !ew_jj_step(run, dict->count))
        return false;
    for (uint32_t i = 0; i < dict->count; i++)
        items[i] = dict->entries[i].key;
    *out = (struct ew_jj_items){items, dict->count};
    return true;
}

bool ew_jj_iterate(struct ew_jj_run *run, struct ew_jj_value v, struct ew_jj_items *out)
{
    *out = (struct ew_jj_items){0};
    switch (v.type) {
    case EW_JJ_UNDEFINED:
        return true;
    case EW_JJ_STRING:
        return iterate_string(run, v, out);
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
    case EW_JJ_VIEW:
        *out = (struct ew_jj_items){v.list->items, v.list->count};
        return true;
    case EW_JJ_GENERATOR:
        if (v.list->count)
            *out = (struct ew_jj_items){v.list->items + v.list->at, v.list->count - v.list->at};
        v.list->at = v.list->count;
        return true;
    case EW_JJ_DICT:
        return iterate_dict(run, v.dict, out);
    default:
        ew_jj_fail(run, "'%s' object is not iterable", ew_jj_type_name(v));
        return false;
    }
}

bool ew_jj_contains(struct ew_jj_run *run, struct ew_jj_value container, struct ew_jj_value item)
{
    struct ew_jj_items items;

    if (container.type == EW_JJ_STRING) {
        if (item.type != EW_JJ_STRING) {
            ew_jj_fail(run, "'in <string>' requires string as left operand, not %s", ew_jj_type_name(item));
            return false;
        }
        ew_jj_step(run, container.string->len / 64);
        return ew_str_find(ew_jj_str(container), ew_jj_str(item), 0) >= 0;
    }
    if (container.type == EW_JJ_DICT)
        return ew_jj_dict_find(run, container.dict, item) != NULL;
    if (!ew_jj_is_iterable(container)) {
        ew_jj_fail(run, "argument of type '%s' is not iterable", ew_jj_type_name(container));
        return false;
    }
    if (!ew_jj_iterate(run, container, &items))
        return false;
    for (uint32_t i = 0; i < items.count && ew_jj_step(run, 1); i++)
        if (ew_jj_equal(run, items.items[i], item))
            return true;
    return false;
}
