#include "format/jsonscan.h"

#include <string.h>

void ew_jsonscan_init(struct ew_jsonscan *scan)
{
    *scan = (struct ew_jsonscan){.state = EW_JSONSCAN_START};
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_hex(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool in_array(const struct ew_jsonscan *scan)
{
    return scan->arrays >> (scan->depth - 1) & 1;
}

static enum ew_jsonscan_state open_container(struct ew_jsonscan *scan, bool is_array)
{
    if (scan->depth == EW_JSONSCAN_DEPTH_MAX)
        return EW_JSONSCAN_BROKEN;
    scan->arrays &= ~(UINT64_C(1) << scan->depth);
    scan->arrays |= (uint64_t)is_array << scan->depth;
    scan->depth++;
    return is_array ? EW_JSONSCAN_FIRST_ITEM : EW_JSONSCAN_FIRST_KEY;
}

static enum ew_jsonscan_state close_container(struct ew_jsonscan *scan)
{
    scan->depth--;
    return scan->depth ? EW_JSONSCAN_AFTER : EW_JSONSCAN_DONE;
}

static enum ew_jsonscan_state open_string(struct ew_jsonscan *scan, bool is_key)
{
    scan->is_key = is_key;
    return EW_JSONSCAN_STRING;
}

static enum ew_jsonscan_state open_word(struct ew_jsonscan *scan, const char *rest)
{
    scan->word = rest;
    return EW_JSONSCAN_WORD;
}

static enum ew_jsonscan_state value(struct ew_jsonscan *scan, char c)
{
    switch (c) {
    case '{':
        return open_container(scan, false);
    case '[':
        return open_container(scan, true);
    case '"':
        return open_string(scan, false);
    case 't':
        return open_word(scan, "rue");
    case 'f':
        return open_word(scan, "alse");
    case 'n':
        return open_word(scan, "ull");
    case '-':
        return EW_JSONSCAN_MINUS;
    case '0':
        return EW_JSONSCAN_ZERO;
    default:
        return is_digit(c) ? EW_JSONSCAN_INTEGER : EW_JSONSCAN_BROKEN;
    }
}

static enum ew_jsonscan_state after(struct ew_jsonscan *scan, char c)
{
    if (c == ',')
        return in_array(scan) ? EW_JSONSCAN_VALUE : EW_JSONSCAN_KEY;
    return c == (in_array(scan) ? ']' : '}') ? close_container(scan) : EW_JSONSCAN_BROKEN;
}

static enum ew_jsonscan_state string(struct ew_jsonscan *scan, char c)
{
    if (c == '"')
        return scan->is_key ? EW_JSONSCAN_COLON : EW_JSONSCAN_AFTER;
    if (c == '\\')
        return EW_JSONSCAN_ESCAPE;
    return (unsigned char)c < 0x20 ? EW_JSONSCAN_BROKEN : EW_JSONSCAN_STRING;
}

static enum ew_jsonscan_state escape(struct ew_jsonscan *scan, char c)
{
    scan->n_hex = 0;
    if (c == 'u')
        return EW_JSONSCAN_HEX;
    return c && strchr("\"\\/bfnrt", c) ? EW_JSONSCAN_STRING : EW_JSONSCAN_BROKEN;
}

static enum ew_jsonscan_state hex(struct ew_jsonscan *scan, char c)
{
    if (!is_hex(c))
        return EW_JSONSCAN_BROKEN;
    return ++scan->n_hex == 4 ? EW_JSONSCAN_STRING : EW_JSONSCAN_HEX;
}

static enum ew_jsonscan_state word(struct ew_jsonscan *scan, char c)
{
    if (c != *scan->word)
        return EW_JSONSCAN_BROKEN;
    return *++scan->word ? EW_JSONSCAN_WORD : EW_JSONSCAN_AFTER;
}

// A number has no end of its own: the byte behind it is looked at again, as what follows a value.
static enum ew_jsonscan_state number_end(struct ew_jsonscan *scan, char c)
{
    return is_space(c) ? EW_JSONSCAN_AFTER : after(scan, c);
}

static enum ew_jsonscan_state number(struct ew_jsonscan *scan, char c)
{
    bool is_e = c == 'e' || c == 'E';

    switch (scan->state) {
    case EW_JSONSCAN_MINUS:
        return c == '0' ? EW_JSONSCAN_ZERO : is_digit(c) ? EW_JSONSCAN_INTEGER : EW_JSONSCAN_BROKEN;
    case EW_JSONSCAN_INTEGER:
        if (is_digit(c))
            return EW_JSONSCAN_INTEGER;
        // fall through
    case EW_JSONSCAN_ZERO:
        return c == '.' ? EW_JSONSCAN_POINT : is_e ? EW_JSONSCAN_E : number_end(scan, c);
    case EW_JSONSCAN_POINT:
        return is_digit(c) ? EW_JSONSCAN_FRACTION : EW_JSONSCAN_BROKEN;
    case EW_JSONSCAN_FRACTION:
        return is_digit(c) ? EW_JSONSCAN_FRACTION : is_e ? EW_JSONSCAN_E : number_end(scan, c);
    case EW_JSONSCAN_E:
        if (c == '+' || c == '-')
            return EW_JSONSCAN_E_SIGN;
        // fall through
    case EW_JSONSCAN_E_SIGN:
        return is_digit(c) ? EW_JSONSCAN_EXPONENT : EW_JSONSCAN_BROKEN;
    default:
        return is_digit(c) ? EW_JSONSCAN_EXPONENT : number_end(scan, c);
    }
}

static enum ew_jsonscan_state between(struct ew_jsonscan *scan, char c)
{
    switch (scan->state) {
    case EW_JSONSCAN_START:
        return c == '{' ? open_container(scan, false) : EW_JSONSCAN_BROKEN;
    case EW_JSONSCAN_FIRST_KEY:
        if (c == '}')
            return close_container(scan);
        // fall through
    case EW_JSONSCAN_KEY:
        return c == '"' ? open_string(scan, true) : EW_JSONSCAN_BROKEN;
    case EW_JSONSCAN_COLON:
        return c == ':' ? EW_JSONSCAN_VALUE : EW_JSONSCAN_BROKEN;
    case EW_JSONSCAN_FIRST_ITEM:
        return c == ']' ? close_container(scan) : value(scan, c);
    case EW_JSONSCAN_VALUE:
        return value(scan, c);
    default:
        return after(scan, c);
    }
}

void ew_jsonscan_push(struct ew_jsonscan *scan, char c)
{
    switch (scan->state) {
    case EW_JSONSCAN_DONE:
    case EW_JSONSCAN_BROKEN:
        return;
    case EW_JSONSCAN_STRING:
        scan->state = string(scan, c);
        return;
    case EW_JSONSCAN_ESCAPE:
        scan->state = escape(scan, c);
        return;
    case EW_JSONSCAN_HEX:
        scan->state = hex(scan, c);
        return;
    case EW_JSONSCAN_WORD:
        scan->state = word(scan, c);
        return;
    default:
        if (scan->state >= EW_JSONSCAN_MINUS)
            scan->state = number(scan, c);
        else if (!is_space(c))
            scan->state = between(scan, c);
    }
}
