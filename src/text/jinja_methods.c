// Methods of dicts, lists, tuples, loops and cyclers. Jinja's sandbox refuses those that change their object; other
// engines allow them, templates in the wild use them, and here they can change nothing but the rendering's own
// copy.

#include "text/jinja_builtin.h"
#include "text/jinja_eval.h"

// Dicts.

static struct ew_jj_value fallback_of(struct ew_jj_value v)
{
    return ew_jj_given(v) ? v : EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(dict_get)
{
    const struct ew_jj_value *found = ew_jj_dict_find(run, self.dict, v[0]);

    return found ? *found : fallback_of(v[1]);
}

static struct ew_jj_value pair(struct ew_jj_run *run, const struct ew_jj_entry *entry)
{
    struct ew_jj_value tuple = ew_jj_list(run, EW_JJ_TUPLE, 2);

    if (run->code == EW_OK && ew_jj_list_push(run, tuple.list, entry->key))
        ew_jj_list_push(run, tuple.list, entry->value);
    return tuple;
}

struct ew_jj_value ew_jj_dict_items(struct ew_jj_run *run, const struct ew_jj_dict *dict, enum ew_jj_type type)
{
    struct ew_jj_value view = ew_jj_list(run, type, dict->count);

    for (uint32_t i = 0; i < dict->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, view.list, pair(run, &dict->entries[i]));
    if (run->code == EW_OK)
        view.list->label = "dict_items";
    return view;
}

EW_JJ_BUILTIN(dict_items)
{
    return ew_jj_dict_items(run, self.dict, EW_JJ_VIEW);
}

static struct ew_jj_value dict_column(struct ew_jj_run *run, const struct ew_jj_dict *dict, bool is_keys)
{
    struct ew_jj_value view = ew_jj_list(run, EW_JJ_VIEW, dict->count);

    for (uint32_t i = 0; i < dict->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, view.list, is_keys ? dict->entries[i].key : dict->entries[i].value);
    if (run->code == EW_OK)
        view.list->label = is_keys ? "dict_keys" : "dict_values";
    return view;
}

EW_JJ_BUILTIN(dict_keys)
{
    return dict_column(run, self.dict, true);
}

EW_JJ_BUILTIN(dict_values)
{
    return dict_column(run, self.dict, false);
}

static void copy_entries(struct ew_jj_run *run, struct ew_jj_dict *to, const struct ew_jj_dict *from)
{
    uint32_t count = from->count; // `from` may be `to`

    for (uint32_t i = 0; i < count && run->code == EW_OK; i++)
        ew_jj_dict_set(run, to, from->entries[i].key, from->entries[i].value);
}

EW_JJ_BUILTIN(dict_copy)
{
    struct ew_jj_value copy = ew_jj_dict(run, EW_JJ_DICT);

    if (run->code == EW_OK)
        copy_entries(run, copy.dict, self.dict);
    return copy;
}

EW_JJ_BUILTIN(dict_update)
{
    if (args->n_pos > 1 || (args->n_pos == 1 && args->pos[0].type != EW_JJ_DICT))
        return ew_jj_fail(run, "update takes one dict and keywords");
    if (args->n_pos)
        copy_entries(run, self.dict, args->pos[0].dict);
    for (uint32_t i = 0; i < args->n_kw && run->code == EW_OK; i++)
        ew_jj_dict_set(run, self.dict, ew_jj_string_view(run, args->kw[i].name), args->kw[i].value);
    return EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(dict_setdefault)
{
    const struct ew_jj_value *found = ew_jj_dict_find(run, self.dict, v[0]);

    if (found)
        return *found;
    ew_jj_dict_set(run, self.dict, v[0], fallback_of(v[1]));
    return fallback_of(v[1]);
}

EW_JJ_BUILTIN(dict_pop)
{
    const struct ew_jj_value *found = ew_jj_dict_find(run, self.dict, v[0]);
    struct ew_jj_value value;

    if (!found)
        return ew_jj_given(v[1]) ? v[1] : ew_jj_fail(run, "pop finds no such key");
    value = *found;
    ew_jj_dict_remove(run, self.dict, v[0]);
    return value;
}

EW_JJ_BUILTIN(dict_clear)
{
    *self.dict = (struct ew_jj_dict){0};
    return EW_JJ_NONE_VALUE;
}

const struct ew_jj_builtin ew_jj_dict_methods[] = {
    {"get", dict_get, "key default", 1},
    {"items", dict_items, "", 0},
    {"keys", dict_keys, "", 0},
    {"values", dict_values, "", 0},
    {"copy", dict_copy, "", 0},
    {"update", dict_update, NULL, 0},
    {"setdefault", dict_setdefault, "key default", 1},
    {"pop", dict_pop, "key default", 1},
    {"clear", dict_clear, "", 0},
    {0},
};

// Lists and tuples.

EW_JJ_BUILTIN(list_append)
{
    ew_jj_list_push(run, self.list, v[0]);
    return EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(list_extend)
{
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, v[0], &items))
        return EW_JJ_UNDEFINED_VALUE;
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++)
        ew_jj_list_push(run, self.list, items.items[i]);
    return EW_JJ_NONE_VALUE;
}

// Lists that change get a new array, so that loops over the old one go on undisturbed.
static bool detach(struct ew_jj_run *run, struct ew_jj_list *list)
{
    struct ew_jj_value *copy = ew_jj_alloc(run, (size_t)list->count + 1, sizeof(*copy));

    if (!copy || !ew_jj_step(run, list->count))
        return false;
    if (list->count)
        memcpy(copy, list->items, list->count * sizeof(*copy));
    list->items = copy;
    list->cap = list->count + 1;
    return true;
}

EW_JJ_BUILTIN(list_insert)
{
    struct ew_jj_list *list = self.list;
    int64_t at = ew_jj_arg_int(run, v[0], 0);

    if (run->code != EW_OK || !detach(run, list))
        return EW_JJ_UNDEFINED_VALUE;
    if (at < 0)
        at = at < -(int64_t)list->count ? 0 : at + list->count;
    if (at > list->count)
        at = list->count;
    memmove(list->items + at + 1, list->items + at, (list->count - (size_t)at) * sizeof(*list->items));
    list->items[at] = v[1];
    list->count++;
    return EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(list_pop)
{
    struct ew_jj_list *list = self.list;
    int64_t at = ew_jj_arg_int(run, v[0], -1);
    struct ew_jj_value value;

    if (at < 0)
        at += list->count;
    if (run->code != EW_OK || at < 0 || at >= list->count)
        return ew_jj_fail(run, "pop index out of range");
    if (!detach(run, list))
        return EW_JJ_UNDEFINED_VALUE;
    value = list->items[at];
    list->count--;
    memmove(list->items + at, list->items + at + 1, (list->count - (size_t)at) * sizeof(*list->items));
    return value;
}

EW_JJ_BUILTIN(list_reverse)
{
    struct ew_jj_list *list = self.list;

    if (!detach(run, list))
        return EW_JJ_UNDEFINED_VALUE;
    for (uint32_t i = 0; i < list->count / 2; i++) {
        struct ew_jj_value swap = list->items[i];

        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
    return EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(list_copy)
{
    struct ew_jj_value copy = ew_jj_list(run, EW_JJ_LIST, self.list->count);

    for (uint32_t i = 0; i < self.list->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, copy.list, self.list->items[i]);
    return copy;
}

EW_JJ_BUILTIN(list_clear)
{
    *self.list = (struct ew_jj_list){0};
    return EW_JJ_NONE_VALUE;
}

EW_JJ_BUILTIN(list_index)
{
    for (uint32_t i = 0; i < self.list->count && run->code == EW_OK; i++)
        if (ew_jj_equal(run, self.list->items[i], v[0]))
            return ew_jj_int(i);
    return ew_jj_fail(run, "the value is not in the list");
}

EW_JJ_BUILTIN(list_count)
{
    int64_t n = 0;

    for (uint32_t i = 0; i < self.list->count && run->code == EW_OK; i++)
        n += ew_jj_equal(run, self.list->items[i], v[0]);
    return ew_jj_int(n);
}

const struct ew_jj_builtin ew_jj_list_methods[] = {
    {"append", list_append, "object", 1},
    {"extend", list_extend, "iterable", 1},
    {"insert", list_insert, "index object", 2},
    {"pop", list_pop, "index", 0},
    {"reverse", list_reverse, "", 0},
    {"copy", list_copy, "", 0},
    {"clear", list_clear, "", 0},
    {"index", list_index, "value", 1},
    {"count", list_count, "value", 1},
    {0},
};

const struct ew_jj_builtin ew_jj_tuple_methods[] = {
    {"index", list_index, "value", 1},
    {"count", list_count, "value", 1},
    {0},
};

// Loops and cyclers.

EW_JJ_BUILTIN(loop_cycle)
{
    if (args->n_pos == 0)
        return ew_jj_fail(run, "no items for cycling given");
    return args->pos[self.loop->index % args->n_pos];
}

EW_JJ_BUILTIN(loop_changed)
{
    struct ew_jj_value now = ew_jj_list(run, EW_JJ_TUPLE, args->n_pos);
    struct ew_jj_value before = self.loop->changed;

    for (uint32_t i = 0; i < args->n_pos && run->code == EW_OK; i++)
        ew_jj_list_push(run, now.list, args->pos[i]);
    self.loop->changed = now;
    return ew_jj_bool(before.type == EW_JJ_MISSING || !ew_jj_equal(run, before, now));
}

const struct ew_jj_builtin ew_jj_loop_methods[] = {
    {"cycle", loop_cycle, NULL, 0},
    {"changed", loop_changed, NULL, 0},
    {0},
};

EW_JJ_BUILTIN(cycler_next)
{
    struct ew_jj_cycler *cycler = self.cycler;
    struct ew_jj_value value = cycler->items->items[cycler->at];

    cycler->at = (cycler->at + 1) % cycler->items->count;
    return value;
}

EW_JJ_BUILTIN(cycler_reset)
{
    self.cycler->at = 0;
    return EW_JJ_NONE_VALUE;
}

const struct ew_jj_builtin ew_jj_cycler_methods[] = {
    {"next", cycler_next, "", 0},
    {"reset", cycler_reset, "", 0},
    {0},
};
