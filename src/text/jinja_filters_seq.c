// Filters over sequences and mappings. What Python computes when it is asked for, these compute at once; the
// difference can be seen only in that a generator prints as one, has no length and is always true.

#include <stdlib.h>

#include "base/assert.h"
#include "text/jinja_builtin.h"
#include "text/jinja_strings.h"

#define KEYS_MAX 8 // of a sort by several attributes

static struct ew_jj_value push_all(struct ew_jj_run *run, enum ew_jj_type type, const struct ew_jj_items *items)
{
    struct ew_jj_value list = ew_jj_list(run, type, items->count);

    for (uint32_t i = 0; i < items->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, list.list, items->items[i]);
    return list;
}

EW_JJ_BUILTIN(to_list)
{
    struct ew_jj_items items;

    return ew_jj_iterate(run, self, &items) ? push_all(run, EW_JJ_LIST, &items) : EW_JJ_UNDEFINED_VALUE;
}

EW_JJ_BUILTIN(length)
{
    int64_t n;

    if (!ew_jj_length(self, &n))
        return ew_jj_fail(run, "object of type '%s' has no len()", ew_jj_type_name(self));
    return ew_jj_int(n);
}

EW_JJ_BUILTIN(first)
{
    struct ew_jj_items items;

    if (self.type == EW_JJ_GENERATOR && self.list->at < self.list->count)
        return self.list->items[self.list->at++];
    if (self.type == EW_JJ_STRING && self.string->len)
        return ew_jj_get_item(run, self, ew_jj_int(0));
    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    return items.count ? items.items[0] : ew_jj_hint(run, "No first item, sequence was empty.");
}

EW_JJ_BUILTIN(last)
{
    struct ew_jj_items items;

    if (self.type == EW_JJ_GENERATOR)
        return ew_jj_fail(run, "'generator' object is not reversible");
    if (self.type == EW_JJ_STRING && self.string->len)
        return ew_jj_get_item(run, self, ew_jj_int(-1));
    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    return items.count ? items.items[items.count - 1] : ew_jj_hint(run, "No last item, sequence was empty.");
}

EW_JJ_BUILTIN(reverse)
{
    struct ew_jj_value list;
    struct ew_jj_items items;

    if (self.type == EW_JJ_STRING) {
        const struct ew_jj_value bounds[] = {EW_JJ_NONE_VALUE, EW_JJ_NONE_VALUE, ew_jj_int(-1)};

        return ew_jj_slice(run, self, bounds);
    }
    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    list = ew_jj_list(run, self.type == EW_JJ_GENERATOR ? EW_JJ_LIST : EW_JJ_GENERATOR, items.count);
    for (uint32_t i = items.count; i-- > 0 && run->code == EW_OK;)
        ew_jj_list_push(run, list.list, items.items[i]);
    return list;
}

// Attributes by path ("function.name", 0).

static struct ew_jj_value get_path(struct ew_jj_run *run, struct ew_jj_value item, struct ew_str path,
                                   struct ew_jj_value otherwise)
{
    size_t at = 0, end;
    uint64_t index;

    for (; at <= path.len && run->code == EW_OK; at = end + 1) {
        struct ew_str part;

        for (end = at; end < path.len && path.ptr[end] != '.'; end++)
            ;
        part = (struct ew_str){path.ptr + at, end - at};
        if (ew_str_to_u64(part, &index) && index <= INT64_MAX)
            item = ew_jj_get_item(run, item, ew_jj_int((int64_t)index));
        else
            item = ew_jj_get_item(run, item, ew_jj_string_view(run, part));
        if (item.type == EW_JJ_UNDEFINED && ew_jj_given(otherwise) && otherwise.type != EW_JJ_NONE)
            item = otherwise;
    }
    return item;
}

static struct ew_jj_value get_by(struct ew_jj_run *run, struct ew_jj_value item, struct ew_jj_value attribute,
                                 struct ew_jj_value otherwise)
{
    if (attribute.type == EW_JJ_STRING)
        return get_path(run, item, ew_jj_str(attribute), otherwise);
    if (!ew_jj_given(attribute) || attribute.type == EW_JJ_NONE)
        return item;
    item = ew_jj_get_item(run, item, attribute);
    return item.type == EW_JJ_UNDEFINED && ew_jj_given(otherwise) && otherwise.type != EW_JJ_NONE ? otherwise : item;
}

static const struct ew_jj_value g_not_given = {.type = EW_JJ_MISSING};

static struct ew_jj_value without_case(struct ew_jj_run *run, struct ew_jj_value v, bool case_sensitive)
{
    return case_sensitive || v.type != EW_JJ_STRING ? v : ew_jj_all_cased(run, v, EW_JJ_LOWER);
}

// Sorting. Equal keys keep their order, also in reverse.

struct keyed {
    struct ew_jj_value key, item;
    uint32_t place;
};

struct sorting {
    struct ew_jj_run *run;
    bool is_reverse;
};

static int compare_keyed(const void *a, const void *b, void *context)
{
    const struct sorting *sorting = context;
    const struct keyed *left = a, *right = b;
    int order = 0;

    if (ew_jj_step(sorting->run, 1))
        order = ew_jj_compare(sorting->run, left->key, right->key, "<");
    if (order == 0 || order == 2) // 2: NaN, which has no place
        return left->place < right->place ? -1 : left->place > right->place;
    return sorting->is_reverse ? -order : order;
}

// "a,b" sorts by a, then by b: the key is a list.
static struct ew_jj_value sort_key(struct ew_jj_run *run, struct ew_jj_value item, struct ew_jj_value attribute,
                                   bool case_sensitive)
{
    struct ew_jj_value key = ew_jj_list(run, EW_JJ_LIST, 0);
    struct ew_str names;
    size_t at = 0, end;

    if (attribute.type != EW_JJ_STRING) {
        if (run->code == EW_OK)
            ew_jj_list_push(run, key.list,
                            without_case(run, get_by(run, item, attribute, g_not_given), case_sensitive));
        return key;
    }
    names = ew_jj_str(attribute);
    for (uint32_t n = 0; at <= names.len && n < KEYS_MAX && run->code == EW_OK; n++, at = end + 1) {
        struct ew_jj_value part;

        for (end = at; end < names.len && names.ptr[end] != ','; end++)
            ;
        part = get_path(run, item, (struct ew_str){names.ptr + at, end - at}, g_not_given);
        ew_jj_list_push(run, key.list, without_case(run, part, case_sensitive));
    }
    return key;
}

static struct ew_jj_value sort_keyed(struct ew_jj_run *run, struct keyed *keyed, uint32_t n, bool is_reverse)
{
    struct sorting sorting = {run, is_reverse};
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_LIST, n);

    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    qsort_r(keyed, n, sizeof(*keyed), compare_keyed, &sorting);
    for (uint32_t i = 0; i < n && run->code == EW_OK; i++)
        ew_jj_list_push(run, list.list, keyed[i].item);
    return list;
}

static struct ew_jj_value sort_by(struct ew_jj_run *run, struct ew_jj_value of, bool is_reverse, bool case_sensitive,
                                  struct ew_jj_value attribute)
{
    struct ew_jj_items items;
    struct keyed *keyed;

    if (!ew_jj_iterate(run, of, &items))
        return EW_JJ_UNDEFINED_VALUE;
    keyed = ew_jj_alloc(run, items.count, sizeof(*keyed));
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++)
        keyed[i] = (struct keyed){sort_key(run, items.items[i], attribute, case_sensitive), items.items[i], i};
    return run->code == EW_OK ? sort_keyed(run, keyed, items.count, is_reverse) : EW_JJ_UNDEFINED_VALUE;
}

EW_JJ_BUILTIN(sort)
{
    return sort_by(run, self, ew_jj_arg_bool(v[0], false), ew_jj_arg_bool(v[1], false), v[2]);
}

EW_JJ_BUILTIN(dictsort)
{
    struct ew_str by = ew_jj_arg_str(run, v[1], "key");
    struct ew_jj_value pairs;

    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, self);
    if (self.type != EW_JJ_DICT)
        return ew_jj_fail(run, "dictsort needs a mapping, not %s", ew_jj_type_name(self));
    if (!ew_str_is(by, "key") && !ew_str_is(by, "value"))
        return ew_jj_fail(run, "You can only sort by either \"key\" or \"value\"");
    pairs = ew_jj_dict_items(run, self.dict, EW_JJ_LIST);
    return sort_by(run, pairs, ew_jj_arg_bool(v[2], false), ew_jj_arg_bool(v[0], false),
                   ew_jj_int(ew_str_is(by, "value")));
}

EW_JJ_BUILTIN(items)
{
    if (self.type == EW_JJ_UNDEFINED)
        return ew_jj_list(run, EW_JJ_GENERATOR, 0);
    if (self.type != EW_JJ_DICT)
        return ew_jj_fail(run, "Can only get item pairs from a mapping.");
    return ew_jj_dict_items(run, self.dict, EW_JJ_GENERATOR);
}

EW_JJ_BUILTIN(unique)
{
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_GENERATOR, 0), seen = ew_jj_dict(run, EW_JJ_DICT);
    bool case_sensitive = ew_jj_arg_bool(v[0], false);
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++) {
        struct ew_jj_value key = without_case(run, get_by(run, items.items[i], v[1], g_not_given), case_sensitive);
        uint32_t before = seen.dict->count;

        if (run->code == EW_OK && ew_jj_dict_set(run, seen.dict, key, EW_JJ_NONE_VALUE) && seen.dict->count > before)
            ew_jj_list_push(run, list.list, items.items[i]);
    }
    return list;
}

static struct ew_jj_value new_group(struct ew_jj_run *run, struct ew_jj_value key)
{
    struct ew_jj_value group = ew_jj_list(run, EW_JJ_TUPLE, 2);

    if (run->code != EW_OK)
        return group;
    group.list->label = "group";
    ew_jj_list_push(run, group.list, key);
    ew_jj_list_push(run, group.list, ew_jj_list(run, EW_JJ_LIST, 0));
    return group;
}

EW_JJ_BUILTIN(groupby)
{
    bool case_sensitive = ew_jj_arg_bool(v[2], false);
    struct ew_jj_value groups = ew_jj_list(run, EW_JJ_LIST, 0), sorted, before = {.type = EW_JJ_MISSING},
                       group = groups;
    struct ew_jj_items items;
    struct keyed *keyed;

    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    keyed = ew_jj_alloc(run, items.count, sizeof(*keyed));
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++)
        keyed[i] = (struct keyed){without_case(run, get_by(run, items.items[i], v[0], v[1]), case_sensitive),
                                  items.items[i], i};
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    sorted = sort_keyed(run, keyed, items.count, false);
    for (uint32_t i = 0; run->code == EW_OK && i < sorted.list->count; i++) {
        if (before.type == EW_JJ_MISSING || !ew_jj_equal(run, before, keyed[i].key)) {
            group = new_group(run, get_by(run, sorted.list->items[i], v[0], v[1]));
            ew_jj_list_push(run, groups.list, group);
            before = keyed[i].key;
        }
        if (run->code == EW_OK)
            ew_jj_list_push(run, group.list->items[1].list, sorted.list->items[i]);
    }
    return groups;
}

static struct ew_jj_value extreme(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_value *v,
                                  int wanted)
{
    bool case_sensitive = ew_jj_arg_bool(v[0], false);
    struct ew_jj_value best = EW_JJ_UNDEFINED_VALUE, best_key = best;
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    if (items.count == 0)
        return ew_jj_hint(run, "No aggregated item, sequence was empty.");
    for (uint32_t i = 0; i < items.count && ew_jj_step(run, 1); i++) {
        struct ew_jj_value key = without_case(run, get_by(run, items.items[i], v[1], g_not_given), case_sensitive);

        if (i > 0 && ew_jj_compare(run, key, best_key, wanted < 0 ? "<" : ">") != wanted)
            continue;
        best = items.items[i];
        best_key = key;
    }
    return best;
}

EW_JJ_BUILTIN(min)
{
    return extreme(run, self, v, -1);
}

EW_JJ_BUILTIN(max)
{
    return extreme(run, self, v, 1);
}

EW_JJ_BUILTIN(sum)
{
    struct ew_jj_value total = ew_jj_given(v[1]) ? v[1] : ew_jj_int(0);
    struct ew_jj_items items;

    if (total.type == EW_JJ_STRING)
        return ew_jj_fail(run, "sum() can't sum strings [use ''.join(seq) instead]");
    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    for (uint32_t i = 0; i < items.count && ew_jj_step(run, 1); i++)
        total = ew_jj_add(run, total, get_by(run, items.items[i], v[0], g_not_given));
    return total;
}

EW_JJ_BUILTIN(join)
{
    struct ew_jj_value separator = ew_jj_given(v[0]) ? ew_jj_to_string(run, v[0]) : ew_jj_string_view(run, EW_STR(""));
    struct ew_jj_items items;
    size_t mark;

    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    mark = ew_jj_build_begin(run);
    for (uint32_t i = 0; i < items.count && ew_jj_step(run, 1); i++) {
        if (i)
            ew_buf_append_str(&run->scratch, ew_jj_str(separator));
        ew_jj_append_str(run, &run->scratch, get_by(run, items.items[i], v[1], g_not_given));
    }
    return run->code == EW_OK ? ew_jj_build_end(run, mark) : EW_JJ_UNDEFINED_VALUE;
}

EW_JJ_BUILTIN(batch)
{
    struct ew_jj_value rows = ew_jj_list(run, EW_JJ_GENERATOR, 0), row = rows;
    int64_t width = ew_jj_arg_int(run, v[0], 1);
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++) {
        if (i == 0 || row.list->count == width) {
            row = ew_jj_list(run, EW_JJ_LIST, 0);
            ew_jj_list_push(run, rows.list, row);
        }
        if (run->code == EW_OK)
            ew_jj_list_push(run, row.list, items.items[i]);
    }
    while (run->code == EW_OK && items.count && ew_jj_given(v[1]) && v[1].type != EW_JJ_NONE && row.list->count < width)
        ew_jj_list_push(run, row.list, v[1]);
    return rows;
}

EW_JJ_BUILTIN(slice)
{
    struct ew_jj_value columns = ew_jj_list(run, EW_JJ_GENERATOR, 0);
    int64_t n = ew_jj_arg_int(run, v[0], 1), at = 0;
    struct ew_jj_items items;

    if (n <= 0)
        return ew_jj_fail(run, "a sequence is sliced into at least one part");
    if (!ew_jj_iterate(run, self, &items))
        return EW_JJ_UNDEFINED_VALUE;
    for (int64_t i = 0; i < n && run->code == EW_OK; i++) {
        bool is_long = i < items.count % n;
        int64_t end = at + items.count / n + is_long;
        struct ew_jj_value column = ew_jj_list(run, EW_JJ_LIST, 0);

        for (; at < end && run->code == EW_OK; at++)
            ew_jj_list_push(run, column.list, items.items[at]);
        if (!is_long && ew_jj_given(v[1]) && v[1].type != EW_JJ_NONE && run->code == EW_OK)
            ew_jj_list_push(run, column.list, v[1]);
        ew_jj_list_push(run, columns.list, column);
    }
    return columns;
}

// map, select and reject with another filter's or test's name.

static struct ew_jj_value find_kwarg(const struct ew_jj_args *args, const char *name)
{
    for (uint32_t i = 0; i < args->n_kw; i++)
        if (ew_str_is(args->kw[i].name, name))
            return args->kw[i].value;
    return g_not_given;
}

// The arguments behind the first n.
static struct ew_jj_args rest_of(const struct ew_jj_args *args, uint32_t n)
{
    return (struct ew_jj_args){args->pos + n, args->n_pos - n, args->kw, args->n_kw};
}

EW_JJ_BUILTIN(map)
{
    struct ew_jj_value mapped = ew_jj_list(run, EW_JJ_GENERATOR, 0), attribute = find_kwarg(args, "attribute");
    const struct ew_jj_builtin *filter = NULL;
    struct ew_jj_args rest;
    struct ew_jj_items items;

    if (!ew_jj_truth(self) || !ew_jj_iterate(run, self, &items) || items.count == 0)
        return mapped; // of none, too
    if (args->n_pos) {
        struct ew_str name = ew_jj_arg_str(run, args->pos[0], "");

        filter = ew_jj_find_filter(name);
        if (!filter)
            return ew_jj_fail(run, "there is no filter named '" EW_STR_FMT "'", EW_STR_ARG(name));
        rest = rest_of(args, 1);
    } else if (!ew_jj_given(attribute)) {
        return ew_jj_fail(run, "map requires a filter argument");
    }
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++) {
        struct ew_jj_value one = filter ? ew_jj_call_builtin(run, filter, items.items[i], &rest)
                                        : get_by(run, items.items[i], attribute, find_kwarg(args, "default"));

        if (run->code == EW_OK)
            ew_jj_list_push(run, mapped.list, one);
    }
    return mapped;
}

static struct ew_jj_value keep_where(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_args *args,
                                     bool keeps, bool by_attribute)
{
    struct ew_jj_value kept = ew_jj_list(run, EW_JJ_GENERATOR, 0);
    const struct ew_jj_builtin *test = NULL;
    uint32_t skip = by_attribute ? 1 : 0;
    struct ew_jj_args rest = {0};
    struct ew_jj_items items;

    if (!ew_jj_truth(self) || !ew_jj_iterate(run, self, &items) || items.count == 0)
        return kept;
    if (args->n_pos < skip)
        return ew_jj_fail(run, "Missing parameter for attribute name");
    if (args->n_pos > skip) {
        struct ew_str name = ew_jj_arg_str(run, args->pos[skip], "");

        test = ew_jj_find_test(name);
        if (!test)
            return ew_jj_fail(run, "there is no test named '" EW_STR_FMT "'", EW_STR_ARG(name));
        rest = rest_of(args, skip + 1);
    }
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++) {
        struct ew_jj_value on = by_attribute ? get_by(run, items.items[i], args->pos[0], g_not_given) : items.items[i];
        struct ew_jj_value verdict = test && run->code == EW_OK ? ew_jj_call_builtin(run, test, on, &rest) : on;

        if (run->code == EW_OK && ew_jj_truth(verdict) == keeps)
            ew_jj_list_push(run, kept.list, items.items[i]);
    }
    return kept;
}

EW_JJ_BUILTIN(select_items)
{
    return keep_where(run, self, args, true, false);
}

EW_JJ_BUILTIN(reject_items)
{
    return keep_where(run, self, args, false, false);
}

EW_JJ_BUILTIN(select_by)
{
    return keep_where(run, self, args, true, true);
}

EW_JJ_BUILTIN(reject_by)
{
    return keep_where(run, self, args, false, true);
}

const struct ew_jj_builtin ew_jj_sequence_filters[] = {
    {"length", length, "", 0},
    {"count", length, "", 0},
    {"list", to_list, "", 0},
    {"items", items, "", 0},
    {"first", first, "", 0},
    {"last", last, "", 0},
    {"join", join, "d attribute", 0},
    {"map", map, NULL, 0},
    {"select", select_items, NULL, 0},
    {"reject", reject_items, NULL, 0},
    {"selectattr", select_by, NULL, 0},
    {"rejectattr", reject_by, NULL, 0},
    {"sort", sort, "reverse case_sensitive attribute", 0},
    {"dictsort", dictsort, "case_sensitive by reverse", 0},
    {"reverse", reverse, "", 0},
    {"unique", unique, "case_sensitive attribute", 0},
    {"groupby", groupby, "attribute default case_sensitive", 1},
    {"min", min, "case_sensitive attribute", 0},
    {"max", max, "case_sensitive attribute", 0},
    {"sum", sum, "attribute start", 0},
    {"batch", batch, "linecount fill_with", 1},
    {"slice", slice, "slices fill_with", 1},
    {0},
};
