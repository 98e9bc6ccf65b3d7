// Values as text: str(), repr() and json.dumps() of Python.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

static void append_items(struct ew_jj_run *run, struct ew_buf *buf, const struct ew_jj_list *list)
{
    for (uint32_t i = 0; i < list->count && run->code == EW_OK; i++) {
        ew_buf_append(buf, ", ", i ? 2 : 0);
        ew_jj_append_repr_of(run, buf, list->items[i]);
    }
}

static void append_list(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v)
{
    bool is_list = v.type == EW_JJ_LIST;

    ew_buf_append_char(buf, is_list ? '[' : '(');
    append_items(run, buf, v.list);
    if (!is_list && v.list->count == 1)
        ew_buf_append_char(buf, ',');
    ew_buf_append_char(buf, is_list ? ']' : ')');
}

static void append_view(struct ew_jj_run *run, struct ew_buf *buf, const struct ew_jj_list *view)
{
    if (strcmp(view->label, "range") == 0) {
        ew_buf_printf(buf, "range(%lld, %lld", (long long)view->range[0], (long long)view->range[1]);
        if (view->range[2] != 1)
            ew_buf_printf(buf, ", %lld", (long long)view->range[2]);
        ew_buf_append_char(buf, ')');
        return;
    }
    ew_buf_printf(buf, "%s([", view->label);
    append_items(run, buf, view);
    ew_buf_append(buf, "])", 2);
}

static void append_dict(struct ew_jj_run *run, struct ew_buf *buf, const struct ew_jj_dict *dict)
{
    ew_buf_append_char(buf, '{');
    for (uint32_t i = 0; i < dict->count && run->code == EW_OK; i++) {
        ew_buf_append(buf, ", ", i ? 2 : 0);
        ew_jj_append_repr_of(run, buf, dict->entries[i].key);
        ew_buf_append(buf, ": ", 2);
        ew_jj_append_repr_of(run, buf, dict->entries[i].value);
    }
    ew_buf_append_char(buf, '}');
}

static void append_float(struct ew_buf *buf, double number)
{
    char text[EW_JJ_DOUBLE_CHARS];

    ew_jj_format_double(number, text);
    ew_buf_append_str(buf, ew_str_of(text));
}

static void append_repr(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_MISSING:
    case EW_JJ_UNDEFINED: ew_buf_append_str(buf, EW_STR("Undefined")); break;
    case EW_JJ_NONE: ew_buf_append_str(buf, EW_STR("None")); break;
    case EW_JJ_BOOL: ew_buf_append_str(buf, ew_str_of(v.boolean ? "True" : "False")); break;
    case EW_JJ_INT: ew_buf_printf(buf, "%lld", (long long)v.integer); break;
    case EW_JJ_FLOAT: append_float(buf, v.number); break;
    case EW_JJ_BIG: ew_buf_append_str(buf, ew_jj_str(v)); break;
    case EW_JJ_STRING:
        ew_buf_append_str(buf, ew_str_of(v.is_markup ? "Markup(" : ""));
        ew_jj_append_repr(buf, ew_jj_str(v));
        ew_buf_append_str(buf, ew_str_of(v.is_markup ? ")" : ""));
        break;
    case EW_JJ_LIST:
    case EW_JJ_TUPLE: append_list(run, buf, v); break;
    case EW_JJ_VIEW: append_view(run, buf, v.list); break;
    case EW_JJ_DICT: append_dict(run, buf, v.dict); break;
    case EW_JJ_NAMESPACE:
        ew_buf_append_str(buf, EW_STR("<Namespace "));
        append_dict(run, buf, v.dict);
        ew_buf_append_char(buf, '>');
        break;
    default: ew_buf_printf(buf, "<%s>", ew_jj_type_name(v)); break;
    }
}

void ew_jj_append_repr_of(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v)
{
    if (!ew_jj_enter(run))
        return;
    append_repr(run, buf, v);
    ew_jj_leave(run);
}

void ew_jj_append_str(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v)
{
    if (v.type == EW_JJ_STRING) {
        ew_buf_append_str(buf, ew_jj_str(v));
        ew_jj_step(run, v.string->len / 64);
    } else if (v.type != EW_JJ_UNDEFINED) {
        ew_jj_append_repr_of(run, buf, v);
    }
}

struct ew_jj_value ew_jj_to_string(struct ew_jj_run *run, struct ew_jj_value v)
{
    size_t mark;

    if (v.type == EW_JJ_STRING)
        return v;
    mark = ew_jj_build_begin(run);
    ew_jj_append_str(run, &run->scratch, v);
    return ew_jj_build_end(run, mark);
}

void ew_jj_append_html(struct ew_buf *buf, struct ew_str s)
{
    static const char special[] = "&<>'\"";
    static const char *const names[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};

    for (size_t i = 0; i < s.len; i++) {
        const char *at = s.ptr[i] ? strchr(special, s.ptr[i]) : NULL;

        if (at)
            ew_buf_append_str(buf, ew_str_of(names[at - special]));
        else
            ew_buf_append_char(buf, s.ptr[i]);
    }
}

// JSON.

struct dump {
    struct ew_jj_run *run;
    struct ew_buf *buf;
    const struct ew_jj_json_style *style;
    uint32_t level;
};

static void dump_value(struct dump *dump, struct ew_jj_value v);

static void dump_newline(struct dump *dump)
{
    if (!dump->style->indent)
        return;
    ew_buf_append_char(dump->buf, '\n');
    for (uint32_t i = 0; i < dump->level; i++)
        ew_buf_append_str(dump->buf, ew_str_of(dump->style->indent));
}

static void dump_list(struct dump *dump, const struct ew_jj_list *list)
{
    ew_buf_append_char(dump->buf, '[');
    dump->level++;
    for (uint32_t i = 0; i < list->count && dump->run->code == EW_OK; i++) {
        if (i)
            ew_buf_append_str(dump->buf, dump->style->item_separator);
        dump_newline(dump);
        dump_value(dump, list->items[i]);
    }
    dump->level--;
    if (list->count)
        dump_newline(dump);
    ew_buf_append_char(dump->buf, ']');
}

static void dump_float(struct ew_buf *buf, double number)
{
    if (isfinite(number))
        append_float(buf, number);
    else
        ew_buf_append_str(buf, ew_str_of(isnan(number) ? "NaN" : number < 0 ? "-Infinity" : "Infinity"));
}

// Keys that are no strings become the text of their JSON.
static void dump_key(struct dump *dump, struct ew_jj_value key)
{
    bool is_text = key.type == EW_JJ_STRING;

    if (!is_text && (key.type < EW_JJ_NONE || key.type > EW_JJ_BIG)) {
        ew_jj_fail(dump->run, "keys must be str, int, float, bool or None, not %s", ew_jj_type_name(key));
        return;
    }
    if (is_text) {
        dump_value(dump, key);
        return;
    }
    ew_buf_append_char(dump->buf, '"');
    dump_value(dump, key);
    ew_buf_append_char(dump->buf, '"');
}

static int compare_keys(const void *a, const void *b, void *run)
{
    const struct ew_jj_entry *left = a, *right = b;

    return ew_jj_compare(run, left->key, right->key, "<");
}

static const struct ew_jj_entry *sorted_entries(struct ew_jj_run *run, const struct ew_jj_dict *dict)
{
    struct ew_jj_entry *copy = ew_jj_alloc(run, dict->count, sizeof(*copy));

    if (!copy)
        return NULL;
    if (dict->count)
        memcpy(copy, dict->entries, dict->count * sizeof(*copy));
    qsort_r(copy, dict->count, sizeof(*copy), compare_keys, run);
    return copy;
}

static void dump_dict(struct dump *dump, const struct ew_jj_dict *dict)
{
    const struct ew_jj_entry *entries = dump->style->sort_keys ? sorted_entries(dump->run, dict) : dict->entries;

    ew_buf_append_char(dump->buf, '{');
    dump->level++;
    for (uint32_t i = 0; i < dict->count && dump->run->code == EW_OK; i++) {
        if (i)
            ew_buf_append_str(dump->buf, dump->style->item_separator);
        dump_newline(dump);
        dump_key(dump, entries[i].key);
        ew_buf_append_str(dump->buf, dump->style->key_separator);
        dump_value(dump, entries[i].value);
    }
    dump->level--;
    if (dict->count)
        dump_newline(dump);
    ew_buf_append_char(dump->buf, '}');
}

static void dump_one(struct dump *dump, struct ew_jj_value v)
{
    switch (v.type) {
    case EW_JJ_NONE: ew_buf_append_str(dump->buf, EW_STR("null")); break;
    case EW_JJ_BOOL: ew_buf_append_str(dump->buf, ew_str_of(v.boolean ? "true" : "false")); break;
    case EW_JJ_INT: ew_buf_printf(dump->buf, "%lld", (long long)v.integer); break;
    case EW_JJ_BIG: ew_buf_append_str(dump->buf, ew_jj_str(v)); break;
    case EW_JJ_FLOAT: dump_float(dump->buf, v.number); break;
    case EW_JJ_STRING: ew_jj_append_json(dump->buf, ew_jj_str(v), dump->style->ascii); break;
    case EW_JJ_LIST:
    case EW_JJ_TUPLE: dump_list(dump, v.list); break;
    case EW_JJ_DICT: dump_dict(dump, v.dict); break;
    default: ew_jj_fail(dump->run, "Object of type %s is not JSON serializable", ew_jj_type_name(v)); break;
    }
}

static void dump_value(struct dump *dump, struct ew_jj_value v)
{
    if (!ew_jj_enter(dump->run))
        return;
    dump_one(dump, v);
    ew_jj_leave(dump->run);
}

void ew_jj_append_json_of(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v,
                          const struct ew_jj_json_style *style)
{
    struct dump dump = {run, buf, style, 0};

    dump_value(&dump, v);
}
