// Python's str methods that search, cut and join.

#include <stdlib.h>

#include "text/jinja_builtin.h"
#include "text/jinja_strings.h"
#include "text/jinja_text.h"

// Stripping.

static bool has_char(struct ew_str set, struct ew_str one)
{
    return ew_str_find(set, one, 0) >= 0;
}

// Bytes of the characters of `set` at the start of s.
static size_t set_prefix(struct ew_jj_run *run, struct ew_str s, struct ew_str set)
{
    size_t at = 0, len;
    uint32_t c;

    for (; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (!has_char(set, (struct ew_str){s.ptr + at, len}) || !ew_jj_step(run, set.len / 64))
            break;
    }
    return at;
}

static size_t without_set_suffix(struct ew_jj_run *run, struct ew_str s, struct ew_str set)
{
    while (s.len > 0) {
        size_t at = s.len - 1;

        while (at > 0 && s.len - at < 4 && ((unsigned char)s.ptr[at] & 0xC0) == 0x80)
            at--;
        if (!has_char(set, (struct ew_str){s.ptr + at, s.len - at}) || !ew_jj_step(run, set.len / 64))
            break;
        s.len = at;
    }
    return s.len;
}

struct ew_jj_value ew_jj_strip(struct ew_jj_run *run, struct ew_jj_value self, struct ew_jj_value chars, bool left,
                               bool right)
{
    struct ew_str s = ew_jj_str(self), set = ew_jj_arg_str(run, chars, NULL);
    size_t from = 0, to;

    if (run->code != EW_OK || !ew_jj_step(run, s.len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    if (left)
        from = set.ptr ? set_prefix(run, s, set) : ew_jj_space_prefix(s);
    s = (struct ew_str){s.ptr + from, s.len - from};
    to = s.len;
    if (right)
        to = set.ptr ? without_set_suffix(run, s, set) : ew_jj_without_space_suffix(s);
    return ew_jj_string_sub(run, self, from, from + to);
}

EW_JJ_BUILTIN(strip)
{
    return ew_jj_strip(run, self, v[0], true, true);
}

EW_JJ_BUILTIN(lstrip)
{
    return ew_jj_strip(run, self, v[0], true, false);
}

EW_JJ_BUILTIN(rstrip)
{
    return ew_jj_strip(run, self, v[0], false, true);
}

EW_JJ_BUILTIN(removeprefix)
{
    struct ew_str s = ew_jj_str(self), prefix = ew_jj_arg_str(run, v[0], "");
    bool has = s.len >= prefix.len && ew_str_eq((struct ew_str){s.ptr, prefix.len}, prefix);

    return ew_jj_string_sub(run, self, has ? prefix.len : 0, s.len);
}

EW_JJ_BUILTIN(removesuffix)
{
    struct ew_str s = ew_jj_str(self), suffix = ew_jj_arg_str(run, v[0], "");
    bool has = s.len >= suffix.len && ew_str_eq((struct ew_str){s.ptr + s.len - suffix.len, suffix.len}, suffix);

    return ew_jj_string_sub(run, self, 0, s.len - (has ? suffix.len : 0));
}

// Splitting.

static bool push_sub(struct ew_jj_run *run, struct ew_jj_value list, struct ew_jj_value of, size_t from, size_t to)
{
    return run->code == EW_OK && ew_jj_list_push(run, list.list, ew_jj_string_sub(run, of, from, to));
}

// Bytes of s up to the next white space (or from the last one).
static size_t word_prefix(struct ew_str s)
{
    size_t at = 0, len;
    uint32_t c;

    for (; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (ew_jj_is_space(c))
            break;
    }
    return at;
}

static void split_words(struct ew_jj_run *run, struct ew_jj_value self, int64_t max, struct ew_jj_value list)
{
    struct ew_str s = ew_jj_str(self);
    size_t at = ew_jj_space_prefix(s);

    for (; at < s.len && max != 0; max--) {
        size_t end = at + word_prefix((struct ew_str){s.ptr + at, s.len - at});

        if (!push_sub(run, list, self, at, end))
            return;
        at = end + ew_jj_space_prefix((struct ew_str){s.ptr + end, s.len - end});
    }
    if (at < s.len)
        push_sub(run, list, self, at, ew_jj_without_space_suffix(s));
}

static void split_at(struct ew_jj_run *run, struct ew_jj_value self, struct ew_str separator, int64_t max,
                     struct ew_jj_value list)
{
    struct ew_str s = ew_jj_str(self);
    size_t at = 0;
    ptrdiff_t found;

    for (; max != 0 && (found = ew_str_find(s, separator, at)) >= 0; max--) {
        if (!push_sub(run, list, self, at, (size_t)found))
            return;
        at = (size_t)found + separator.len;
    }
    push_sub(run, list, self, at, s.len);
}

static ptrdiff_t find_last(struct ew_jj_run *run, struct ew_str s, struct ew_str what)
{
    if (what.len > s.len)
        return -1;
    for (size_t at = s.len - what.len + 1; at-- > 0;) {
        if (what.len && s.ptr[at] != what.ptr[0])
            continue;
        if (!ew_jj_step(run, what.len / 64))
            return -1;
        if (ew_str_eq((struct ew_str){s.ptr + at, what.len}, what))
            return (ptrdiff_t)at;
    }
    return -1;
}

static size_t last_word_start(struct ew_str s)
{
    size_t start = 0, len;
    uint32_t c;

    for (size_t at = 0; at < s.len; at += len) {
        len = ew_jj_decode(s, at, &c);
        if (ew_jj_is_space(c))
            start = at + len;
    }
    return start;
}

// From the right; the parts come in reverse order.
static void rsplit_into(struct ew_jj_run *run, struct ew_jj_value self, struct ew_str separator, int64_t max,
                        struct ew_jj_value list)
{
    struct ew_str s = ew_jj_str(self);

    if (!separator.ptr)
        s.len = ew_jj_without_space_suffix(s);
    for (; max != 0 && ew_jj_step(run, 1 + s.len / 64); max--) {
        ptrdiff_t cut = separator.ptr ? find_last(run, s, separator) : (ptrdiff_t)last_word_start(s);

        if (separator.ptr ? cut < 0 : cut == 0)
            break;
        if (!push_sub(run, list, self, (size_t)cut + separator.len, s.len))
            return;
        s.len = (size_t)cut;
        if (!separator.ptr)
            s.len = ew_jj_without_space_suffix(s);
    }
    if (separator.ptr)
        push_sub(run, list, self, 0, s.len);
    else if (s.len > ew_jj_space_prefix(s))
        push_sub(run, list, self, ew_jj_space_prefix(s), s.len);
}

static bool get_separator(struct ew_jj_run *run, struct ew_jj_value v, struct ew_str *out)
{
    *out = ew_jj_arg_str(run, v, NULL);
    if (out->ptr && out->len == 0)
        ew_jj_fail(run, "empty separator");
    return run->code == EW_OK;
}

EW_JJ_BUILTIN(split)
{
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_LIST, 0);
    int64_t max = ew_jj_arg_int(run, v[1], -1);
    struct ew_str separator;

    if (!get_separator(run, v[0], &separator) || !ew_jj_step(run, self.string->len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    if (separator.ptr)
        split_at(run, self, separator, max, list);
    else
        split_words(run, self, max, list);
    return list;
}

EW_JJ_BUILTIN(rsplit)
{
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_LIST, 0);
    int64_t max = ew_jj_arg_int(run, v[1], -1);
    struct ew_str separator;

    if (!get_separator(run, v[0], &separator))
        return EW_JJ_UNDEFINED_VALUE;
    rsplit_into(run, self, separator, max, list);
    for (uint32_t i = 0; run->code == EW_OK && i < list.list->count / 2; i++) {
        struct ew_jj_value *a = &list.list->items[i], *b = &list.list->items[list.list->count - 1 - i], swap = *a;

        *a = *b;
        *b = swap;
    }
    return list;
}

struct ew_jj_value ew_jj_splitlines(struct ew_jj_run *run, struct ew_jj_value self, bool keep_ends)
{
    struct ew_jj_value list = ew_jj_list(run, EW_JJ_LIST, 0);
    struct ew_str s = ew_jj_str(self);
    size_t begin = 0, at = 0;
    uint32_t c;

    while (at < s.len && run->code == EW_OK) {
        size_t end = ew_jj_line_break(s, at);

        if (end == 0) {
            at += ew_jj_decode(s, at, &c);
            continue;
        }
        push_sub(run, list, self, begin, keep_ends ? at + end : at);
        begin = at += end;
    }
    if (begin < s.len)
        push_sub(run, list, self, begin, s.len);
    return list;
}

EW_JJ_BUILTIN(splitlines)
{
    return ew_jj_splitlines(run, self, ew_jj_arg_bool(v[0], false));
}

static struct ew_jj_value partition_at(struct ew_jj_run *run, struct ew_jj_value self, struct ew_jj_value argument,
                                       bool from_right)
{
    struct ew_jj_value tuple = ew_jj_list(run, EW_JJ_TUPLE, 3), empty = ew_jj_string_view(run, EW_STR(""));
    struct ew_str s = ew_jj_str(self), separator;
    ptrdiff_t found;

    if (!get_separator(run, argument, &separator) || !separator.ptr)
        return ew_jj_fail(run, "partition needs a separator");
    found = from_right ? find_last(run, s, separator) : ew_str_find(s, separator, 0);
    if (found >= 0) {
        push_sub(run, tuple, self, 0, (size_t)found);
        push_sub(run, tuple, self, (size_t)found, (size_t)found + separator.len);
        push_sub(run, tuple, self, (size_t)found + separator.len, s.len);
        return tuple;
    }
    for (int i = 0; i < 3 && run->code == EW_OK; i++)
        ew_jj_list_push(run, tuple.list, i == (from_right ? 2 : 0) ? self : empty);
    return tuple;
}

EW_JJ_BUILTIN(partition)
{
    return partition_at(run, self, v[0], false);
}

EW_JJ_BUILTIN(rpartition)
{
    return partition_at(run, self, v[0], true);
}

// Searching. Positions are counted in characters.

struct range {
    struct ew_str text; // the part that is searched
    size_t first;       // the character that it begins with
    bool is_empty;      // start lies behind the end: not even "" is found
};

static int64_t clamp_position(int64_t at, int64_t length)
{
    if (at < 0)
        at = at < -length ? 0 : at + length;
    return at > length ? length : at;
}

static struct range search_range(struct ew_jj_run *run, struct ew_jj_value self, struct ew_jj_value start,
                                 struct ew_jj_value end)
{
    int64_t length = (int64_t)ew_jj_string_chars(self), from = ew_jj_arg_int(run, start, 0);
    int64_t to = clamp_position(ew_jj_arg_int(run, end, length), length);
    struct ew_str s = ew_jj_str(self);
    size_t first, last;
    bool is_empty = from > length;

    from = clamp_position(from, length);
    if (is_empty || from > to)
        return (struct range){.is_empty = true};
    first = ew_jj_char_offset(s, (size_t)from);
    last = ew_jj_char_offset(s, (size_t)to);
    ew_jj_step(run, s.len / 64);
    return (struct range){{s.ptr + first, last - first}, (size_t)from, false};
}

static int64_t find_in(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_value *v, bool from_right)
{
    struct range range = search_range(run, self, v[1], v[2]);
    struct ew_str what = ew_jj_arg_str(run, v[0], "");
    ptrdiff_t found;

    if (range.is_empty)
        return -1;
    found = from_right ? find_last(run, range.text, what) : ew_str_find(range.text, what, 0);
    return found < 0 ? -1 : (int64_t)(range.first + ew_jj_char_count((struct ew_str){range.text.ptr, (size_t)found}));
}

EW_JJ_BUILTIN(find)
{
    return ew_jj_int(find_in(run, self, v, false));
}

EW_JJ_BUILTIN(rfind)
{
    return ew_jj_int(find_in(run, self, v, true));
}

static struct ew_jj_value index_or_fail(struct ew_jj_run *run, int64_t at)
{
    return at < 0 ? ew_jj_fail(run, "substring not found") : ew_jj_int(at);
}

EW_JJ_BUILTIN(index_of)
{
    return index_or_fail(run, find_in(run, self, v, false));
}

EW_JJ_BUILTIN(rindex_of)
{
    return index_or_fail(run, find_in(run, self, v, true));
}

EW_JJ_BUILTIN(count)
{
    struct range range = search_range(run, self, v[1], v[2]);
    struct ew_str what = ew_jj_arg_str(run, v[0], "");
    int64_t n = 0;
    ptrdiff_t found;

    if (range.is_empty)
        return ew_jj_int(0);
    if (what.len == 0)
        return ew_jj_int((int64_t)ew_jj_char_count(range.text) + 1);
    for (size_t at = 0; (found = ew_str_find(range.text, what, at)) >= 0; at = (size_t)found + what.len)
        n++;
    return ew_jj_int(n);
}

static bool has_affix(struct ew_str text, struct ew_str affix, bool at_end)
{
    size_t from = at_end && text.len >= affix.len ? text.len - affix.len : 0;

    return text.len >= affix.len && ew_str_eq((struct ew_str){text.ptr + from, affix.len}, affix);
}

// One affix or a tuple of them.
static struct ew_jj_value test_affix(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_value *v,
                                     bool at_end)
{
    struct range range = search_range(run, self, v[1], v[2]);

    if (range.is_empty)
        return ew_jj_bool(false);
    if (v[0].type != EW_JJ_TUPLE)
        return ew_jj_bool(has_affix(range.text, ew_jj_arg_str(run, v[0], ""), at_end));
    for (uint32_t i = 0; i < v[0].list->count; i++)
        if (has_affix(range.text, ew_jj_arg_str(run, v[0].list->items[i], ""), at_end))
            return ew_jj_bool(true);
    return ew_jj_bool(false);
}

EW_JJ_BUILTIN(startswith)
{
    return test_affix(run, self, v, false);
}

EW_JJ_BUILTIN(endswith)
{
    return test_affix(run, self, v, true);
}

// Building.

static struct ew_jj_value replace_empty(struct ew_jj_run *run, struct ew_str s, struct ew_str new, int64_t max)
{
    size_t mark = ew_jj_build_begin(run), at = 0;
    uint32_t c;

    for (; max != 0 && ew_jj_step(run, 1); max--) {
        size_t len = at < s.len ? ew_jj_decode(s, at, &c) : 0;

        ew_buf_append_str(&run->scratch, new);
        ew_buf_append(&run->scratch, s.ptr + at, len);
        at += len;
        if (len == 0)
            break;
    }
    ew_buf_append(&run->scratch, s.ptr + at, s.len - at);
    return ew_jj_build_end(run, mark);
}

struct ew_jj_value ew_jj_replace(struct ew_jj_run *run, struct ew_jj_value self, struct ew_str old, struct ew_str new,
                                 int64_t max)
{
    struct ew_str s = ew_jj_str(self);
    size_t mark, at = 0;
    ptrdiff_t found;

    if (run->code != EW_OK || !ew_jj_step(run, s.len / 64))
        return EW_JJ_UNDEFINED_VALUE;
    if (old.len == 0)
        return replace_empty(run, s, new, max);
    if (max == 0 || ew_str_find(s, old, 0) < 0)
        return self;
    mark = ew_jj_build_begin(run);
    for (; max != 0 && (found = ew_str_find(s, old, at)) >= 0 && ew_jj_step(run, 1); max--) {
        ew_buf_append(&run->scratch, s.ptr + at, (size_t)found - at);
        ew_buf_append_str(&run->scratch, new);
        at = (size_t)found + old.len;
    }
    ew_buf_append(&run->scratch, s.ptr + at, s.len - at);
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(replace)
{
    struct ew_str old = ew_jj_arg_str(run, v[0], ""), new = ew_jj_arg_str(run, v[1], "");

    return ew_jj_replace(run, self, old, new, ew_jj_arg_int(run, v[2], -1));
}

EW_JJ_BUILTIN(join)
{
    struct ew_jj_items items;
    size_t mark;

    if (!ew_jj_iterate(run, v[0], &items))
        return EW_JJ_UNDEFINED_VALUE;
    mark = ew_jj_build_begin(run);
    for (uint32_t i = 0; i < items.count && ew_jj_step(run, 1); i++) {
        if (items.items[i].type != EW_JJ_STRING)
            return ew_jj_fail(run, "sequence item %u: expected str instance, %s found", i,
                              ew_jj_type_name(items.items[i]));
        if (i)
            ew_buf_append_str(&run->scratch, ew_jj_str(self));
        ew_buf_append_str(&run->scratch, ew_jj_str(items.items[i]));
    }
    return ew_jj_build_end(run, mark);
}

EW_JJ_BUILTIN(format)
{
    return ew_jj_format_braces(run, self, args);
}

const struct ew_jj_builtin ew_jj_str_methods[] = {
    {"strip", strip, "chars", 0},
    {"lstrip", lstrip, "chars", 0},
    {"rstrip", rstrip, "chars", 0},
    {"removeprefix", removeprefix, "prefix", 1},
    {"removesuffix", removesuffix, "suffix", 1},
    {"split", split, "sep maxsplit", 0},
    {"rsplit", rsplit, "sep maxsplit", 0},
    {"splitlines", splitlines, "keepends", 0},
    {"partition", partition, "sep", 1},
    {"rpartition", rpartition, "sep", 1},
    {"find", find, "sub start end", 1},
    {"rfind", rfind, "sub start end", 1},
    {"index", index_of, "sub start end", 1},
    {"rindex", rindex_of, "sub start end", 1},
    {"count", count, "sub start end", 1},
    {"startswith", startswith, "prefix start end", 1},
    {"endswith", endswith, "suffix start end", 1},
    {"replace", replace, "old new count", 2},
    {"join", join, "iterable", 1},
    {"format", format, NULL, 0},
    {0},
};
