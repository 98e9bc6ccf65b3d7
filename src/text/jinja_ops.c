// Arithmetic as Python does it. Integers have 64 bits here: what does not fit is an error, never a wrong number.

#include <math.h>
#include <stdlib.h>

#include "text/jinja_builtin.h"

static struct ew_jj_value fail_types(struct ew_jj_run *run, const char *op, struct ew_jj_value a, struct ew_jj_value b)
{
    if (a.type == EW_JJ_UNDEFINED || b.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, a.type == EW_JJ_UNDEFINED ? a : b);
    if (op[0] == '+' && a.type == EW_JJ_STRING)
        return ew_jj_fail(run, "can only concatenate str (not \"%s\") to str", ew_jj_type_name(b));
    return ew_jj_fail(run, "unsupported operand type(s) for %s: '%s' and '%s'", op, ew_jj_type_name(a),
                      ew_jj_type_name(b));
}

static struct ew_jj_value fail_overflow(struct ew_jj_run *run)
{
    return ew_jj_fail_limit(run, "a number is past 64 bits");
}

static struct ew_jj_value join_lists(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    struct ew_jj_value both = ew_jj_list(run, a.type, a.list->count + b.list->count);

    for (uint32_t i = 0; i < a.list->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, both.list, a.list->items[i]);
    for (uint32_t i = 0; i < b.list->count && run->code == EW_OK; i++)
        ew_jj_list_push(run, both.list, b.list->items[i]);
    return both;
}

struct ew_jj_value ew_jj_add(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b)
{
    int64_t x, y, sum;
    double p, q;

    if (a.type == EW_JJ_STRING && b.type == EW_JJ_STRING)
        return ew_jj_concat(run, a, b);
    if (ew_jj_is_integer(a, &x) && ew_jj_is_integer(b, &y))
        return __builtin_add_overflow(x, y, &sum) ? fail_overflow(run) : ew_jj_int(sum);
    if (a.type == EW_JJ_BIG || b.type == EW_JJ_BIG)
        return ew_jj_is_number(a, &p) && ew_jj_is_number(b, &q) ? fail_overflow(run) : fail_types(run, "+", a, b);
    if (ew_jj_is_number(a, &p) && ew_jj_is_number(b, &q))
        return ew_jj_float(p + q);
    if (a.type == b.type && (a.type == EW_JJ_LIST || a.type == EW_JJ_TUPLE))
        return join_lists(run, a, b);
    return fail_types(run, "+", a, b);
}

static struct ew_jj_value repeat(struct ew_jj_run *run, struct ew_jj_value of, int64_t times)
{
    size_t mark;

    if (times < 0)
        times = 0;
    if (of.type != EW_JJ_STRING) {
        struct ew_jj_value list = ew_jj_list(run, of.type, 0);

        for (int64_t i = 0; i < times && of.list->count && run->code == EW_OK; i++)
            for (uint32_t j = 0; j < of.list->count && run->code == EW_OK; j++)
                ew_jj_list_push(run, list.list, of.list->items[j]);
        return list;
    }
    mark = ew_jj_build_begin(run);
    for (int64_t i = 0; i < times && of.string->len && ew_buf_ok(&run->scratch) && ew_jj_step(run, 1); i++)
        ew_buf_append_str(&run->scratch, ew_jj_str(of));
    return ew_jj_build_end(run, mark);
}

static bool is_repeatable(struct ew_jj_value v)
{
    return v.type == EW_JJ_STRING || v.type == EW_JJ_LIST || v.type == EW_JJ_TUPLE;
}

static struct ew_jj_value fail_zero(struct ew_jj_run *run)
{
    return ew_jj_fail(run, "division by zero");
}

// Rounds towards minus infinity, the remainder has the divisor's sign.
static struct ew_jj_value divide_integers(struct ew_jj_run *run, char op, int64_t x, int64_t y)
{
    int64_t quotient, remainder;

    if (y == 0)
        return fail_zero(run);
    if (y == -1) // the one case that can overflow
        return op == '%' ? ew_jj_int(0) : x == INT64_MIN ? fail_overflow(run) : ew_jj_int(-x);
    quotient = x / y;
    remainder = x % y;
    if (remainder && (remainder < 0) != (y < 0)) {
        quotient--;
        remainder += y;
    }
    return ew_jj_int(op == '%' ? remainder : quotient);
}

static struct ew_jj_value power_integers(struct ew_jj_run *run, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    if (exponent < 0)
        return base == 0 ? fail_zero(run) : ew_jj_float(pow((double)base, (double)exponent));
    if (base == 0 || base == 1)
        return ew_jj_int(exponent == 0 ? 1 : base);
    if (base == -1)
        return ew_jj_int(exponent % 2 ? -1 : 1);
    for (; exponent > 0; exponent--) // ends after 63 turns at the latest
        if (__builtin_mul_overflow(result, base, &result))
            return fail_overflow(run);
    return ew_jj_int(result);
}

static struct ew_jj_value integer_op(struct ew_jj_run *run, char op, int64_t x, int64_t y)
{
    int64_t result;

    switch (op) {
    case '-': return __builtin_sub_overflow(x, y, &result) ? fail_overflow(run) : ew_jj_int(result);
    case '*': return __builtin_mul_overflow(x, y, &result) ? fail_overflow(run) : ew_jj_int(result);
    case '/': return y == 0 ? fail_zero(run) : ew_jj_float((double)x / (double)y);
    case 'P': return power_integers(run, x, y);
    default: return divide_integers(run, op, x, y);
    }
}

static double floor_remainder(double p, double q)
{
    double remainder = fmod(p, q);

    if (remainder == 0)
        return copysign(0, q);
    return (remainder < 0) != (q < 0) ? remainder + q : remainder;
}

// As CPython's float_floor_div: the quotient is derived from the remainder, so that the two always fit together.
static double floor_divide(double p, double q)
{
    double remainder = fmod(p, q), quotient = (p - remainder) / q, whole;

    if (remainder && (remainder < 0) != (q < 0))
        quotient -= 1;
    if (quotient == 0)
        return copysign(0, p / q);
    whole = floor(quotient);
    return quotient - whole > 0.5 ? whole + 1 : whole;
}

static struct ew_jj_value float_op(struct ew_jj_run *run, char op, double p, double q)
{
    double result;

    if (strchr("/F%", op) && q == 0)
        return fail_zero(run);
    switch (op) {
    case '-': return ew_jj_float(p - q);
    case '*': return ew_jj_float(p * q);
    case '/': return ew_jj_float(p / q);
    case '%': return ew_jj_float(floor_remainder(p, q));
    case 'F': return ew_jj_float(floor_divide(p, q));
    default: break;
    }
    if (p == 0 && q < 0)
        return fail_zero(run);
    result = pow(p, q);
    if (isfinite(p) && isfinite(q) && !isfinite(result))
        return ew_jj_fail(run, "the result of ** is no finite real number");
    return ew_jj_float(result);
}

static const char *op_name(char op)
{
    switch (op) {
    case '-': return "-";
    case '*': return "*";
    case '/': return "/";
    case '%': return "%";
    case 'F': return "//";
    default: return "** or pow()";
    }
}

struct ew_jj_value ew_jj_arithmetic(struct ew_jj_run *run, char op, struct ew_jj_value a, struct ew_jj_value b)
{
    int64_t x, y;
    double p, q;

    if (op == '%' && a.type == EW_JJ_STRING)
        return ew_jj_format_percent(run, a, b);
    if (ew_jj_is_integer(a, &x) && ew_jj_is_integer(b, &y))
        return integer_op(run, op, x, y);
    if (op == '*' && is_repeatable(a) && ew_jj_is_integer(b, &y))
        return repeat(run, a, y);
    if (op == '*' && is_repeatable(b) && ew_jj_is_integer(a, &x))
        return repeat(run, b, x);
    if (!ew_jj_is_number(a, &p) || !ew_jj_is_number(b, &q))
        return fail_types(run, op_name(op), a, b);
    if (a.type == EW_JJ_BIG || b.type == EW_JJ_BIG)
        return fail_overflow(run);
    return float_op(run, op, p, q);
}

struct ew_jj_value ew_jj_negate(struct ew_jj_run *run, struct ew_jj_value a)
{
    int64_t x;

    if (a.type == EW_JJ_UNDEFINED)
        return ew_jj_fail_undefined(run, a);
    if (a.type == EW_JJ_FLOAT)
        return ew_jj_float(-a.number);
    if (a.type == EW_JJ_BIG)
        return fail_overflow(run);
    if (!ew_jj_is_integer(a, &x))
        return ew_jj_fail(run, "bad operand type for unary -: '%s'", ew_jj_type_name(a));
    return x == INT64_MIN ? fail_overflow(run) : ew_jj_int(-x);
}
