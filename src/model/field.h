#pragma once
// The fields of a shape by name: what family tables may set and map keys to. One table (field.c) knows each field's
// type, place, range and names of enumerated values; reading a file's key into it is the same code for every
// format.

#include "model/shape.h"
#include "model/value.h"

enum ew_field_kind {
    EW_FIELD_UINT,
    EW_FIELD_FLOAT,
    EW_FIELD_DOUBLE,
    EW_FIELD_RECIPROCAL, // a float that the file states as 1 / x
    EW_FIELD_RSQRT,      // ... as 1 / x^2
    EW_FIELD_BOOL,
    EW_FIELD_NOT,       // a bool that the file states the other way round
    EW_FIELD_ENUM,      // int-sized; a text out of `names`
    EW_FIELD_LAYERS,    // an ENUM or bool of each layer, from a list
    EW_FIELD_LAYER_SET, // a bool of each layer, from a list of those that have it
};

struct ew_field {
    const char *name;
    enum ew_field_kind kind;
    uint32_t offset;          // in ew_shape; LAYERS: of layer 0's member
    double min, max;          // of numbers, as the file states them; a UINT of 0 always means "not given"
    const char *const *names; // ENUM, LAYERS: value names in groups of aliases, NULL-terminated
    uint32_t given_offset;    // LAYERS: the bool that says they were read
};

extern const struct ew_field ew_fields[]; // ended by an entry without name; n_layers stands before everything by layer
const struct ew_field *ew_field_find(struct ew_str name); // NULL where unknown

// Sets the field. Absent values change nothing; null means "none" where the field can say that. `where` names the
// key in messages ("config.json: hidden_size").
int ew_field_set(struct ew_shape *shape, const struct ew_field *field, const struct ew_value *value, const char *where,
                 struct ew_error *err) EW_MUST_CHECK;
