#pragma once
// Character classes as the tokenisers' reference implementations understand them. Categories come from utf8proc.

#include <stdbool.h>
#include <stdint.h>

bool ew_unicode_is_space(uint32_t c);       // White_Space
bool ew_unicode_is_numeric(uint32_t c);     // Nd, Nl, No
bool ew_unicode_is_decimal(uint32_t c);     // Nd
bool ew_unicode_is_punctuation(uint32_t c); // P*, and ASCII's symbols with them
bool ew_unicode_is_mark(uint32_t c);        // Mn, Mc, Me
bool ew_unicode_is_nonspacing(uint32_t c);  // Mn
bool ew_unicode_is_control(uint32_t c);     // Cc, Cf, Co
bool ew_unicode_is_word(uint32_t c);        // Alphabetic, marks, Nd, connectors, joiners
bool ew_unicode_is_chinese(uint32_t c);     // as BERT counts them
// Full lower case mapping; one or two characters, their number is returned.
int ew_unicode_lower(uint32_t c, uint32_t out[2]);
