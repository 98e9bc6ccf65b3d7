// Jinja's tests: what may stand behind `is`.

#include <math.h>

#include "text/jinja_builtin.h"
#include "text/jinja_strings.h"

static struct ew_jj_value is_type(struct ew_jj_value self, enum ew_jj_type type)
{
    return ew_jj_bool(self.type == type);
}

EW_JJ_BUILTIN(is_defined)
{
    return ew_jj_bool(self.type != EW_JJ_UNDEFINED);
}

EW_JJ_BUILTIN(is_undefined)
{
    return is_type(self, EW_JJ_UNDEFINED);
}

EW_JJ_BUILTIN(is_none)
{
    return is_type(self, EW_JJ_NONE);
}

EW_JJ_BUILTIN(is_boolean)
{
    return is_type(self, EW_JJ_BOOL);
}

EW_JJ_BUILTIN(is_true)
{
    return ew_jj_bool(self.type == EW_JJ_BOOL && self.boolean);
}

EW_JJ_BUILTIN(is_false)
{
    return ew_jj_bool(self.type == EW_JJ_BOOL && !self.boolean);
}

EW_JJ_BUILTIN(is_integer)
{
    return ew_jj_bool(self.type == EW_JJ_INT || self.type == EW_JJ_BIG);
}

EW_JJ_BUILTIN(is_float)
{
    return is_type(self, EW_JJ_FLOAT);
}

EW_JJ_BUILTIN(is_number)
{
    double unused;

    return ew_jj_bool(ew_jj_is_number(self, &unused));
}

EW_JJ_BUILTIN(is_string)
{
    return is_type(self, EW_JJ_STRING);
}

EW_JJ_BUILTIN(is_mapping)
{
    return is_type(self, EW_JJ_DICT);
}

// What has a length and can be indexed; views of dicts cannot.
EW_JJ_BUILTIN(is_sequence)
{
    int64_t unused;

    if (self.type == EW_JJ_VIEW)
        return ew_jj_bool(strcmp(self.list->label, "range") == 0);
    return ew_jj_bool(ew_jj_length(self, &unused));
}

EW_JJ_BUILTIN(is_iterable)
{
    return ew_jj_bool(ew_jj_is_iterable(self) || self.type == EW_JJ_LOOP);
}

EW_JJ_BUILTIN(is_callable)
{
    return ew_jj_bool(self.type == EW_JJ_BUILTIN || self.type == EW_JJ_METHOD || self.type == EW_JJ_MACRO ||
                      self.type == EW_JJ_LOOP || self.type == EW_JJ_JOINER || self.type == EW_JJ_UNDEFINED);
}

EW_JJ_BUILTIN(is_escaped)
{
    return ew_jj_bool(self.type == EW_JJ_STRING && self.is_markup);
}

EW_JJ_BUILTIN(is_lower)
{
    struct ew_jj_value text = ew_jj_to_string(run, self);

    return ew_jj_bool(run->code == EW_OK && ew_jj_has_case(ew_jj_str(text), EW_JJ_LOWER));
}

EW_JJ_BUILTIN(is_upper)
{
    struct ew_jj_value text = ew_jj_to_string(run, self);

    return ew_jj_bool(run->code == EW_OK && ew_jj_has_case(ew_jj_str(text), EW_JJ_UPPER));
}

static struct ew_jj_value has_remainder(struct ew_jj_run *run, struct ew_jj_value self, struct ew_jj_value by,
                                        int64_t wanted)
{
    struct ew_jj_value remainder = ew_jj_arithmetic(run, '%', self, by);

    return ew_jj_bool(run->code == EW_OK && ew_jj_equal(run, remainder, ew_jj_int(wanted)));
}

EW_JJ_BUILTIN(is_odd)
{
    return has_remainder(run, self, ew_jj_int(2), 1);
}

EW_JJ_BUILTIN(is_even)
{
    return has_remainder(run, self, ew_jj_int(2), 0);
}

EW_JJ_BUILTIN(is_divisibleby)
{
    return has_remainder(run, self, v[0], 0);
}

// Python's `is`: the same object. Small integers and short strings are the same objects there when they are equal.
EW_JJ_BUILTIN(is_sameas)
{
    if (self.type != v[0].type)
        return ew_jj_bool(false);
    switch (self.type) {
    case EW_JJ_LIST:
    case EW_JJ_TUPLE:
    case EW_JJ_DICT:
    case EW_JJ_NAMESPACE: return ew_jj_bool(self.list == v[0].list);
    default: return ew_jj_bool(ew_jj_equal(run, self, v[0]));
    }
}

EW_JJ_BUILTIN(is_in)
{
    return ew_jj_bool(ew_jj_contains(run, v[0], self));
}

EW_JJ_BUILTIN(is_eq)
{
    return ew_jj_bool(ew_jj_equal(run, self, v[0]));
}

EW_JJ_BUILTIN(is_ne)
{
    return ew_jj_bool(!ew_jj_equal(run, self, v[0]));
}

EW_JJ_BUILTIN(is_lt)
{
    return ew_jj_bool(ew_jj_compare(run, self, v[0], "<") == -1);
}

EW_JJ_BUILTIN(is_gt)
{
    return ew_jj_bool(ew_jj_compare(run, self, v[0], ">") == 1);
}

EW_JJ_BUILTIN(is_le)
{
    int order = ew_jj_compare(run, self, v[0], "<=");

    return ew_jj_bool(order == -1 || order == 0);
}

EW_JJ_BUILTIN(is_ge)
{
    int order = ew_jj_compare(run, self, v[0], ">=");

    return ew_jj_bool(order == 1 || order == 0);
}

EW_JJ_BUILTIN(is_filter)
{
    return ew_jj_bool(self.type == EW_JJ_STRING && ew_jj_find_filter(ew_jj_str(self)));
}

EW_JJ_BUILTIN(is_test)
{
    return ew_jj_bool(self.type == EW_JJ_STRING && ew_jj_find_test(ew_jj_str(self)));
}

const struct ew_jj_builtin ew_jj_tests[] = {
    {"defined", is_defined, "", 0},
    {"undefined", is_undefined, "", 0},
    {"none", is_none, "", 0},
    {"boolean", is_boolean, "", 0},
    {"true", is_true, "", 0},
    {"false", is_false, "", 0},
    {"integer", is_integer, "", 0},
    {"float", is_float, "", 0},
    {"number", is_number, "", 0},
    {"string", is_string, "", 0},
    {"mapping", is_mapping, "", 0},
    {"sequence", is_sequence, "", 0},
    {"iterable", is_iterable, "", 0},
    {"callable", is_callable, "", 0},
    {"escaped", is_escaped, "", 0},
    {"lower", is_lower, "", 0},
    {"upper", is_upper, "", 0},
    {"odd", is_odd, "", 0},
    {"even", is_even, "", 0},
    {"divisibleby", is_divisibleby, "num", 1},
    {"sameas", is_sameas, "other", 1},
    {"in", is_in, "seq", 1},
    {"eq", is_eq, "other", 1},
    {"equalto", is_eq, "other", 1},
    {"==", is_eq, "other", 1},
    {"ne", is_ne, "other", 1},
    {"!=", is_ne, "other", 1},
    {"lt", is_lt, "other", 1},
    {"lessthan", is_lt, "other", 1},
    {"<", is_lt, "other", 1},
    {"gt", is_gt, "other", 1},
    {"greaterthan", is_gt, "other", 1},
    {">", is_gt, "other", 1},
    {"le", is_le, "other", 1},
    {"<=", is_le, "other", 1},
    {"ge", is_ge, "other", 1},
    {">=", is_ge, "other", 1},
    {"filter", is_filter, "", 0},
    {"test", is_test, "", 0},
    {0},
};
