// Functions that every template can call.

#include <stdlib.h>
#include <time.h>

#include "text/jinja_builtin.h"

#define RANGE_MAX 100000  // as in Jinja's sandbox
#define DATE_BYTES_MAX 4096

EW_JJ_BUILTIN(range)
{
    int64_t start = 0, stop, step = ew_jj_arg_int(run, v[2], 1), count = 0;
    struct ew_jj_value view;

    stop = ew_jj_arg_int(run, v[0], 0);
    if (ew_jj_given(v[1])) {
        start = stop;
        stop = ew_jj_arg_int(run, v[1], 0);
    }
    if (step == 0)
        return ew_jj_fail(run, "range() arg 3 must not be zero");
    if (step > 0 && stop > start)
        count = (int64_t)(((uint64_t)stop - (uint64_t)start - 1) / (uint64_t)step) + 1;
    else if (step < 0 && start > stop)
        count = (int64_t)(((uint64_t)start - (uint64_t)stop - 1) / (0 - (uint64_t)step)) + 1;
    if (count > RANGE_MAX || count < 0)
        return ew_jj_fail_limit(run, "a range has more than 100000 items");
    view = ew_jj_list(run, EW_JJ_VIEW, (uint32_t)count);
    for (int64_t i = 0; i < count && run->code == EW_OK; i++)
        ew_jj_list_push(run, view.list, ew_jj_int(start + i * step));
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    view.list->label = "range";
    memcpy(view.list->range, (const int64_t[]){start, stop, step}, sizeof(view.list->range));
    return view;
}

static void set_pair(struct ew_jj_run *run, struct ew_jj_dict *dict, struct ew_jj_value pair)
{
    struct ew_jj_items items;

    if (!ew_jj_iterate(run, pair, &items))
        return;
    if (items.count != 2)
        ew_jj_fail(run, "a dict is made from pairs");
    else
        ew_jj_dict_set(run, dict, items.items[0], items.items[1]);
}

// dict(mapping or pairs, key=value, ...), also of namespace.
static struct ew_jj_value make_dict(struct ew_jj_run *run, enum ew_jj_type type, const struct ew_jj_args *args)
{
    struct ew_jj_value made = ew_jj_dict(run, type);
    struct ew_jj_items items = {0};

    if (args->n_pos > 1)
        return ew_jj_fail(run, "dict expected at most 1 argument, got %u", args->n_pos);
    if (args->n_pos && args->pos[0].type == EW_JJ_DICT) {
        const struct ew_jj_dict *from = args->pos[0].dict;

        for (uint32_t i = 0; i < from->count && run->code == EW_OK; i++)
            ew_jj_dict_set(run, made.dict, from->entries[i].key, from->entries[i].value);
    } else if (args->n_pos) {
        ew_jj_iterate(run, args->pos[0], &items);
    }
    for (uint32_t i = 0; i < items.count && run->code == EW_OK; i++)
        set_pair(run, made.dict, items.items[i]);
    for (uint32_t i = 0; i < args->n_kw && run->code == EW_OK; i++)
        ew_jj_dict_set(run, made.dict, ew_jj_string_view(run, args->kw[i].name), args->kw[i].value);
    return made;
}

EW_JJ_BUILTIN(dict)
{
    return make_dict(run, EW_JJ_DICT, args);
}

EW_JJ_BUILTIN(namespace)
{
    return make_dict(run, EW_JJ_NAMESPACE, args);
}

EW_JJ_BUILTIN(raise_exception)
{
    struct ew_jj_value message = ew_jj_to_string(run, v[0]);

    return run->code == EW_OK ? ew_jj_raise(run, ew_jj_str(message)) : EW_JJ_UNDEFINED_VALUE;
}

// The moment that dates are made from: the one given ("2025-07-14 09:30:00"), or now.
static bool get_now(const char *given, struct tm *out)
{
    time_t seconds;

    if (!given) {
        seconds = time(NULL);
        return localtime_r(&seconds, out) != NULL;
    }
    *out = (struct tm){0};
    if (!strptime(given, "%Y-%m-%d %H:%M:%S", out))
        return false;
    seconds = timegm(out);
    return gmtime_r(&seconds, out) != NULL; // fills in the days of the week and the year
}

EW_JJ_BUILTIN(strftime_now)
{
    struct ew_str given = ew_jj_arg_str(run, v[0], "");
    char format[512], text[DATE_BYTES_MAX];
    struct tm now;
    size_t n = 0;

    if (run->code != EW_OK || given.len >= sizeof(format) / 4)
        return ew_jj_fail(run, "strftime_now is given a format that is too long");
    if (!get_now(run->now, &now))
        return ew_jj_fail(run, "the time is not written as YYYY-MM-DD HH:MM:SS");
    for (size_t i = 0; i < given.len; i++) {
        bool is_microseconds = given.ptr[i] == '%' && i + 1 < given.len && given.ptr[i + 1] == 'f'; // C has none

        if (given.ptr[i] == '%' && i + 1 < given.len && given.ptr[i + 1] == '%')
            format[n++] = given.ptr[i++];
        if (is_microseconds)
            memcpy(format + n, "000000", 6);
        else
            format[n] = given.ptr[i];
        n += is_microseconds ? 6 : 1;
        i += is_microseconds;
    }
    format[n] = '\0';
    return ew_jj_string_copy(run, (struct ew_str){text, strftime(text, sizeof(text), format, &now)});
}

static struct ew_jj_value new_cycler(struct ew_jj_run *run, enum ew_jj_type type, const struct ew_jj_value *items,
                                     uint32_t n)
{
    struct ew_jj_cycler *cycler = ew_jj_alloc(run, 1, sizeof(*cycler));
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_TUPLE, n);

    for (uint32_t i = 0; i < n && run->code == EW_OK; i++)
        ew_jj_list_push(run, list.list, items[i]);
    if (run->code != EW_OK)
        return EW_JJ_UNDEFINED_VALUE;
    cycler->items = list.list;
    return (struct ew_jj_value){.type = type, .cycler = cycler};
}

EW_JJ_BUILTIN(cycler)
{
    if (args->n_pos == 0 || args->n_kw)
        return ew_jj_fail(run, "a cycler needs items");
    return new_cycler(run, EW_JJ_CYCLER, args->pos, args->n_pos);
}

EW_JJ_BUILTIN(joiner)
{
    struct ew_jj_value separator = ew_jj_given(v[0]) ? v[0] : ew_jj_string_view(run, EW_STR(", "));

    return new_cycler(run, EW_JJ_JOINER, &separator, 1);
}

const struct ew_jj_builtin ew_jj_globals[] = {
    {"range", range, "start stop step", 1},
    {"dict", dict, NULL, 0},
    {"namespace", namespace, NULL, 0},
    {"raise_exception", raise_exception, "message", 1},
    {"strftime_now", strftime_now, "format", 1},
    {"cycler", cycler, NULL, 0},
    {"joiner", joiner, "sep", 0},
    {0},
};
