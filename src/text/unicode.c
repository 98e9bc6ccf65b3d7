#include "text/unicode.h"

#include <stddef.h>
#include <utf8proc.h>

#include "base/assert.h"

struct range {
    uint32_t first, last;
};

static bool in_ranges(const struct range *ranges, size_t count, uint32_t c)
{
    for (size_t i = 0; i < count; i++)
        if (c >= ranges[i].first && c <= ranges[i].last)
            return true;
    return false;
}

static bool has_category(uint32_t c, uint32_t mask)
{
    return mask >> utf8proc_category((utf8proc_int32_t)c) & 1;
}

#define MASK(category) (1u << UTF8PROC_CATEGORY_##category)

bool ew_unicode_is_space(uint32_t c)
{
    static const struct range spaces[] = {
        {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
        {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
    };

    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return in_ranges(spaces, EW_COUNT_OF(spaces), c);
}

bool ew_unicode_is_numeric(uint32_t c)
{
    return has_category(c, MASK(ND) | MASK(NL) | MASK(NO));
}

bool ew_unicode_is_decimal(uint32_t c)
{
    return has_category(c, MASK(ND));
}

bool ew_unicode_is_punctuation(uint32_t c)
{
    if (c < 0x80)
        return c > ' ' && c < 0x7F && !(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z');
    return has_category(c, MASK(PC) | MASK(PD) | MASK(PS) | MASK(PE) | MASK(PI) | MASK(PF) | MASK(PO));
}

bool ew_unicode_is_mark(uint32_t c)
{
    return has_category(c, MASK(MN) | MASK(MC) | MASK(ME));
}

bool ew_unicode_is_nonspacing(uint32_t c)
{
    return has_category(c, MASK(MN));
}

bool ew_unicode_is_control(uint32_t c)
{
    return has_category(c, MASK(CC) | MASK(CF) | MASK(CO));
}

bool ew_unicode_is_word(uint32_t c)
{
    static const struct range others[] = { // Other_Alphabetic symbols, and Join_Control
        {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}, {0x200C, 0x200D},
    };

    return has_category(c, MASK(LU) | MASK(LL) | MASK(LT) | MASK(LM) | MASK(LO) | MASK(MN) | MASK(MC) | MASK(ME) |
                               MASK(ND) | MASK(NL) | MASK(PC)) ||
           in_ranges(others, EW_COUNT_OF(others), c);
}

bool ew_unicode_is_chinese(uint32_t c)
{
    static const struct range chinese[] = {
        // U+2B920 is BERT's reference implementation's, for U+2B820
        {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
        {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F},
    };

    return in_ranges(chinese, EW_COUNT_OF(chinese), c);
}

int ew_unicode_lower(uint32_t c, uint32_t out[2])
{
    if (c == 0x130) { // the only character whose lower case is two: i and a dot above
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = c < 0x80 ? (c >= 'A' && c <= 'Z' ? c + 32 : c) : (uint32_t)utf8proc_tolower((utf8proc_int32_t)c);
    return 1;
}
