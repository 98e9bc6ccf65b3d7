#pragma once
// YAML data as a tree: the tables that edgewise carries (data/) and the ones that a user puts beside them.
//
// A strict subset: one document; mappings, sequences and plain or quoted scalars; no anchors, aliases, tags or
// repeated keys. Every node knows its line, so that whoever reads a table can say where it is wrong.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/str.h"

#define EW_YAML_DEPTH_MAX 16

enum ew_yaml_type { EW_YAML_SCALAR, EW_YAML_LIST, EW_YAML_MAP };

struct ew_yaml {
    enum ew_yaml_type type;
    uint32_t line;               // from 1
    uint32_t count;              // children of LIST and MAP
    bool quoted;                 // a SCALAR in quotes is text, whatever it looks like
    struct ew_str key;           // set where the parent is a MAP
    struct ew_str text;          // SCALAR; NUL-terminated
    const struct ew_yaml *child; // first child
    const struct ew_yaml *next;
};

// Parses into the arena; `name` is what messages call the text ("families/llama.yaml"). The text need not outlive
// the call.
int ew_yaml_parse(struct ew_arena *arena, const char *name, struct ew_str text, const struct ew_yaml **out,
                  struct ew_error *err) EW_MUST_CHECK;
const struct ew_yaml *ew_yaml_get(const struct ew_yaml *map, const char *key); // NULL where absent, or map is none
