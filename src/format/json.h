#pragma once
// JSON of model files, as Python writes it: Infinity, NaN, integers past 64 bits and lone surrogates are accepted.
//
// Two layers. The event reader is a pull parser over bytes in memory: no recursion, no allocation but its string
// buffer, bounded depth. The tree is built from it in an arena, for files small enough to hold (config,
// tokenizer, templates). Source: RFC 8259; deviations are those of Python's json.loads (the test oracle) on the
// bytes decoded as strict UTF-8: one leading byte order mark is passed over, anything that is not UTF-8 is
// refused. Errors say "line L column C: what", the column counted in characters from 1.

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"

#define EW_JSON_DEPTH_MAX 512

enum ew_json_event {
    EW_JSON_END = 0,      // the document ended; nothing but white space followed
    EW_JSON_OBJECT_BEGIN, // then KEY, value, KEY, value, ..., OBJECT_END
    EW_JSON_OBJECT_END,
    EW_JSON_ARRAY_BEGIN,
    EW_JSON_ARRAY_END,
    EW_JSON_KEY,          // text
    EW_JSON_STRING,       // text
    EW_JSON_NUMBER,       // text as written (also NaN, Infinity, -Infinity); is_integer, integer, number
    EW_JSON_TRUE,
    EW_JSON_FALSE,
    EW_JSON_NULL,
};

struct ew_json_reader {
    struct ew_str input; // must outlive the reader
    size_t at;           // behind the newest event; behind the colon for KEY
    uint32_t depth;
    // Of the newest event:
    size_t start;       // offset of its first byte, so that input[start..at) is a scalar as written
    // borrowed from the input, or from the reader's own buffer where escapes were resolved; valid until next()
    struct ew_str text;
    bool is_integer;    // a NUMBER without fraction or exponent that fits int64
    int64_t integer;
    double number;
    // Private.
    struct ew_buf scratch;
    uint8_t state;
    uint8_t stack[EW_JSON_DEPTH_MAX / 8];
};

void ew_json_reader_init(struct ew_json_reader *reader, struct ew_str input);
void ew_json_reader_fini(struct ew_json_reader *reader);
// Returns the next event (>= 0) or a negative ew_code with the line and column in err. END repeats; an error
// stays an error.
int ew_json_next(struct ew_json_reader *reader, struct ew_error *err) EW_MUST_CHECK;
// Skips the value that comes next (after KEY or inside an array), however deep. EW_ERR_FORMAT where none comes.
int ew_json_skip(struct ew_json_reader *reader, struct ew_error *err) EW_MUST_CHECK;
// After OBJECT_BEGIN or ARRAY_BEGIN was returned: skips to behind its end.
int ew_json_leave(struct ew_json_reader *reader, struct ew_error *err) EW_MUST_CHECK;

enum ew_json_type {
    EW_JSON_T_NULL, EW_JSON_T_BOOL, EW_JSON_T_INT, EW_JSON_T_DOUBLE, EW_JSON_T_STRING,
    EW_JSON_T_ARRAY, EW_JSON_T_OBJECT,
};

// A node of the tree. Lives in the arena; texts and keys too (NUL-terminated there; lone surrogates as 3-byte
// WTF-8).
struct ew_json {
    enum ew_json_type type : 8;    // narrow, so that a node has 72 bytes: large vocabularies make two million
    bool boolean;
    uint32_t count;                // children of ARRAY and OBJECT
    struct ew_str key;             // set where the parent is an object
    int64_t integer;               // INT
    double number;                 // INT and DOUBLE; an integer past 64 bits is a DOUBLE whose `text` has all digits
    struct ew_str text;            // STRING; for INT and DOUBLE as written
    const struct ew_json *child;   // first child
    const struct ew_json *next;    // sibling; as in a Python dict, a repeated key stands once: first place, last value
};

// The arena's limit bounds the tree: the size of the document and 72 bytes a node. The input need not outlive it.
int ew_json_parse(struct ew_arena *arena, struct ew_str input, const struct ew_json **out,
                  struct ew_error *err) EW_MUST_CHECK;
// Reads the whole file (at most max bytes) and parses it.
int ew_json_parse_file(struct ew_arena *arena, const char *path, size_t max, const struct ew_json **out,
                       struct ew_error *err) EW_MUST_CHECK;

// Lookups; NULL-safe: a NULL or wrong-typed node gives NULL or the default. Lookups walk the list: iterate over
// large objects and arrays by child and next instead.
const struct ew_json *ew_json_get(const struct ew_json *object, const char *key);
const struct ew_json *ew_json_at(const struct ew_json *array, uint32_t index);
bool ew_json_is_null(const struct ew_json *node); // absent or null
int64_t ew_json_int(const struct ew_json *node, int64_t fallback); // also a DOUBLE that is a whole number within int64
double ew_json_number(const struct ew_json *node, double fallback);
bool ew_json_bool(const struct ew_json *node, bool fallback);
struct ew_str ew_json_str(const struct ew_json *node, const char *fallback);
