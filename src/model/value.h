#pragma once
// A value as it stands in config.json, in GGUF metadata or in a family table, behind one view: the shape's fields
// are set from all three by the same code.

#include <stdbool.h>
#include <stdint.h>

#include "base/str.h"
#include "format/gguf.h"
#include "format/json.h"
#include "format/yaml_tree.h"

enum ew_value_kind {
    EW_VALUE_ABSENT,
    EW_VALUE_NULL,
    EW_VALUE_BOOL,
    EW_VALUE_INT,
    EW_VALUE_NUMBER,
    EW_VALUE_TEXT,
    EW_VALUE_LIST,
    EW_VALUE_OBJECT
};

struct ew_value {
    enum ew_value_kind kind;
    bool boolean;
    int64_t integer;            // INT
    double number;              // INT and NUMBER
    struct ew_str text;         // TEXT
    uint64_t count;             // LIST
    const struct ew_json *json; // LIST: where it came from; the other one is NULL
    const struct ew_gguf_value *gguf;
};

struct ew_value ew_value_of_json(const struct ew_json *node); // NULL: absent
struct ew_value ew_value_of_gguf(const struct ew_gguf *gguf, const char *key);
struct ew_value ew_value_of_yaml(const struct ew_yaml *scalar);
// Element i of a LIST; absent past its end, and for lists of texts in GGUF files.
struct ew_value ew_value_at(const struct ew_value *list, uint64_t i);
const char *ew_value_kind_name(enum ew_value_kind kind); // "a text", for messages

// The member that a dotted path names ("rope_parameters.rope_theta"), or NULL.
const struct ew_json *ew_json_path(const struct ew_json *root, struct ew_str path);
