#pragma once
// Checks a JSON object as it arrives, byte by byte, for texts that are still being written. It keeps nothing of the
// text: who feeds it looks at `state` and `depth` around each byte. Source: RFC 8259, without the freedoms of
// format/json.h.
// Bytes above 127 are taken for parts of characters; the caller knows that its text is UTF-8.

#include <stdbool.h>
#include <stdint.h>

#define EW_JSONSCAN_DEPTH_MAX 64

enum ew_jsonscan_state {
    EW_JSONSCAN_START, // white space, then the opening brace
    EW_JSONSCAN_FIRST_KEY,
    EW_JSONSCAN_KEY,
    EW_JSONSCAN_COLON,
    EW_JSONSCAN_VALUE,
    EW_JSONSCAN_FIRST_ITEM,
    EW_JSONSCAN_AFTER, // a value has ended: a comma or the container's end
    EW_JSONSCAN_STRING,
    EW_JSONSCAN_ESCAPE,
    EW_JSONSCAN_HEX,
    EW_JSONSCAN_WORD, // true, false, null
    EW_JSONSCAN_MINUS,
    EW_JSONSCAN_ZERO,
    EW_JSONSCAN_INTEGER,
    EW_JSONSCAN_POINT,
    EW_JSONSCAN_FRACTION,
    EW_JSONSCAN_E,
    EW_JSONSCAN_E_SIGN,
    EW_JSONSCAN_EXPONENT,
    EW_JSONSCAN_DONE, // the object is complete
    EW_JSONSCAN_BROKEN,
};

struct ew_jsonscan {
    enum ew_jsonscan_state state;
    uint32_t depth;   // open objects and arrays
    uint64_t arrays;  // bit i: the container at depth i + 1 is an array
    bool is_key;      // STRING, ESCAPE, HEX: the string is a member's name
    uint8_t n_hex;
    const char *word; // what of the word is still to come
};

void ew_jsonscan_init(struct ew_jsonscan *scan);
// Takes one byte. After DONE and BROKEN nothing changes any more.
void ew_jsonscan_push(struct ew_jsonscan *scan, char c);
