// What a dot and brackets mean: attributes, items and slices, in the order in which Jinja tries them.

#include <stdlib.h>

#include "text/jinja_builtin.h"
#include "text/jinja_eval.h"
#include "text/jinja_text.h"

// Of the views only a range has an order.
static bool is_range(struct ew_jj_value v)
{
    return v.type == EW_JJ_VIEW && strcmp(v.list->label, "range") == 0;
}

static const struct ew_jj_builtin *find_method(struct ew_jj_value object, struct ew_str name)
{
    const struct ew_jj_builtin *method;

    switch (object.type) {
    case EW_JJ_STRING:
        method = ew_jj_find_builtin(ew_jj_str_methods, name);
        return method ? method : ew_jj_find_builtin(ew_jj_str_methods_more, name);
    case EW_JJ_DICT: return ew_jj_find_builtin(ew_jj_dict_methods, name);
    case EW_JJ_LIST: return ew_jj_find_builtin(ew_jj_list_methods, name);
    case EW_JJ_TUPLE: return ew_jj_find_builtin(ew_jj_tuple_methods, name);
    case EW_JJ_VIEW: return is_range(object) ? ew_jj_find_builtin(ew_jj_tuple_methods, name) : NULL;
    case EW_JJ_LOOP: return ew_jj_find_builtin(ew_jj_loop_methods, name);
    case EW_JJ_CYCLER: return ew_jj_find_builtin(ew_jj_cycler_methods, name);
    default: return NULL;
    }
}

static struct ew_jj_value bind_method(struct ew_jj_run *run, struct ew_jj_value self,
                                      const struct ew_jj_builtin *builtin)
{
    struct ew_jj_method *method = ew_jj_alloc(run, 1, sizeof(*method));

    if (!method)
        return EW_JJ_UNDEFINED_VALUE;
    *method = (struct ew_jj_method){self, builtin};
    return (struct ew_jj_value){.type = EW_JJ_METHOD, .method = method};
}

static const struct ew_jj_value g_missing = {.type = EW_JJ_MISSING};

// Attributes that are no methods.
static struct ew_jj_value find_property(struct ew_jj_run *run, struct ew_jj_value object, struct ew_str name)
{
    if (object.type == EW_JJ_LOOP)
        return ew_jj_loop_attr(run, object.loop, name);
    if (object.type == EW_JJ_CYCLER && ew_str_is(name, "current"))
        return object.cycler->items->items[object.cycler->at];
    if (object.type == EW_JJ_TUPLE && object.list->label && object.list->count == 2) { // of groupby
        if (ew_str_is(name, "grouper"))
            return object.list->items[0];
        if (ew_str_is(name, "list"))
            return object.list->items[1];
    }
    if (object.type == EW_JJ_MACRO && ew_str_is(name, "name"))
        return ew_jj_string_view(run, object.macro->params->macro_name);
    return g_missing;
}

static struct ew_jj_value find_attr(struct ew_jj_run *run, struct ew_jj_value object, struct ew_str name)
{
    const struct ew_jj_builtin *method = find_method(object, name);

    return method ? bind_method(run, object, method) : find_property(run, object, name);
}

static struct ew_jj_value at_index(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key,
                                   int64_t index)
{
    int64_t length = 0;
    size_t from, len;
    uint32_t unused;

    ew_jj_length(object, &length);
    if (index < 0)
        index += length;
    if (index < 0 || index >= length)
        return ew_jj_lookup_failed(run, object, key);
    if (object.type != EW_JJ_STRING)
        return object.list->items[index];
    if (!ew_jj_step(run, object.string->len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    from = (size_t)length == object.string->len ? (size_t)index : ew_jj_char_offset(ew_jj_str(object), (size_t)index);
    len = ew_jj_decode(ew_jj_str(object), from, &unused);
    return ew_jj_string_sub(run, object, from, from + len);
}

// object[key] without the fallback to attributes; MISSING where Python would raise.
static struct ew_jj_value find_item(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key)
{
    const struct ew_jj_value *found;
    int64_t index;

    switch (object.type) {
    case EW_JJ_DICT:
        if (key.type == EW_JJ_LIST || key.type == EW_JJ_DICT)
            return g_missing;
        found = ew_jj_dict_find(run, object.dict, key);
        return found ? *found : g_missing;
    case EW_JJ_STRING:
    case EW_JJ_LIST:
    case EW_JJ_TUPLE: return ew_jj_is_integer(key, &index) ? at_index(run, object, key, index) : g_missing;
    case EW_JJ_VIEW:
        return is_range(object) && ew_jj_is_integer(key, &index) ? at_index(run, object, key, index) : g_missing;
    default: return g_missing;
    }
}

struct ew_jj_value ew_jj_get_attr(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value name)
{
    const struct ew_jj_value *own;
    struct ew_jj_value found;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    if (object.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, object);
    if (object.type == EW_JJ_NAMESPACE) {
        own = ew_jj_dict_find(run, object.dict, name);
        return own ? *own : ew_jj_lookup_failed(run, object, name);
    }
    found = find_attr(run, object, ew_jj_str(name));
    if (found.type == EW_JJ_MISSING)
        found = find_item(run, object, name);
    return found.type == EW_JJ_MISSING ? ew_jj_lookup_failed(run, object, name) : found;
}

struct ew_jj_value ew_jj_get_item(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key)
{
    struct ew_jj_value found;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    if (object.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, object);
    if (object.type == EW_JJ_NAMESPACE && key.type == EW_JJ_STRING)
        return ew_jj_get_attr(run, object, key);
    found = find_item(run, object, key);
    if (found.type == EW_JJ_MISSING && key.type == EW_JJ_STRING)
        found = find_attr(run, object, ew_jj_str(key));
    return found.type == EW_JJ_MISSING ? ew_jj_lookup_failed(run, object, key) : found;
}

// Slices.

struct bounds {
    int64_t start, stop, step, count; // count: of the items taken
};

static int64_t clamp(int64_t at, int64_t length, int64_t low, int64_t high)
{
    if (at < 0)
        at = at < -length ? low : at + length; // cannot overflow: at >= -length
    return at < low ? low : at > high ? high : at;
}

// Python's rules (slice.indices): with a negative step the bounds lie between -1 and length - 1.
static bool resolve(struct ew_jj_run *run, const struct ew_jj_value given[3], int64_t length, struct bounds *to)
{
    int64_t values[3];

    for (int i = 0; i < 3; i++)
        if (given[i].type != EW_JJ_NONE && !ew_jj_is_integer(given[i], &values[i])) {
            ew_jj_fail(run, "slice indices must be integers or None");
            return false;
        }
    to->step = given[2].type == EW_JJ_NONE ? 1 : values[2];
    if (to->step == 0) {
        ew_jj_fail(run, "slice step cannot be zero");
        return false;
    }
    if (to->step > 0) {
        to->start = given[0].type == EW_JJ_NONE ? 0 : clamp(values[0], length, 0, length);
        to->stop = given[1].type == EW_JJ_NONE ? length : clamp(values[1], length, 0, length);
        to->count = to->stop > to->start ? (to->stop - to->start - 1) / to->step + 1 : 0;
    } else {
        to->start = given[0].type == EW_JJ_NONE ? length - 1 : clamp(values[0], length, -1, length - 1);
        to->stop = given[1].type == EW_JJ_NONE ? -1 : clamp(values[1], length, -1, length - 1);
        to->count = to->start > to->stop ? (to->stop - to->start + 1) / to->step + 1 : 0;
    }
    return true;
}

static int64_t wrapping(int64_t start, int64_t at, int64_t step)
{
    return (int64_t)((uint64_t)start + (uint64_t)at * (uint64_t)step);
}

static struct ew_jj_value slice_list(struct ew_jj_run *run, struct ew_jj_value object, const struct bounds *bounds)
{
    struct ew_jj_value part = ew_jj_list(run, object.type, (uint32_t)bounds->count);
    const int64_t *range = object.list->range;

    for (int64_t i = 0; i < bounds->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, part.list, object.list->items[bounds->start + i * bounds->step]);
    if (run->code != EW_OK || object.type != EW_JJ_VIEW)
        return part;
    part.list->label = "range"; // a part of a range is one, too; the bounds wrap where nothing sees them
    part.list->range[0] = wrapping(range[0], bounds->start, range[2]);
    part.list->range[1] = wrapping(range[0], bounds->stop, range[2]);
    part.list->range[2] = wrapping(0, bounds->step, range[2]);
    return part;
}

static struct ew_jj_value slice_string(struct ew_jj_run *run, struct ew_jj_value object, const struct bounds *bounds)
{
    struct ew_str s = ew_jj_str(object);
    struct ew_jj_items chars;
    size_t from, mark;

    if (bounds->step == 1) {
        bool is_ascii = ew_jj_string_chars(object) == s.len;

        if (!ew_jj_step(run, s.len / 64))
            return EW_JJ_UNDEFINED_VALUE;
        from = is_ascii ? (size_t)bounds->start : ew_jj_char_offset(s, (size_t)bounds->start);
        s = (struct ew_str){s.ptr + from, s.len - from};
        return ew_jj_string_sub(
            run, object, from, from + (is_ascii ? (size_t)bounds->count : ew_jj_char_offset(s, (size_t)bounds->count)));
    }
    if (!ew_jj_iterate(run, object, &chars))
        return EW_JJ_UNDEFINED_VALUE;
    mark = ew_jj_build_begin(run);
    for (int64_t i = 0; i < bounds->count; i++)
        ew_buf_append_str(&run->scratch, ew_jj_str(chars.items[bounds->start + i * bounds->step]));
    return ew_jj_build_end(run, mark);
}

struct ew_jj_value ew_jj_slice(struct ew_jj_run *run, struct ew_jj_value object, const struct ew_jj_value given[3])
{
    struct bounds bounds;
    int64_t length;

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    switch (object.type) {
    case EW_JJ_UNDEFINED:
        return ew_jj_fail_undefined(run, object);
    case EW_JJ_STRING:
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
        break;
    case EW_JJ_VIEW:
        if (is_range(object))
            break;
        // fallthrough
    default:
        return ew_jj_hint(run, "a value that has no order is sliced");
    }
    ew_jj_length(object, &length);
    if (!resolve(run, given, length, &bounds))
        return EW_JJ_UNDEFINED_VALUE;
    return object.type == EW_JJ_STRING ? slice_string(run, object, &bounds) : slice_list(run, object, &bounds);
}
