#pragma once
// What is known about a machine, flattened to key and value: what rules, reports and profiles read.
//
// A fact that was looked for and not found is absent or UNKNOWN: the two mean the same, "not known", and never "no".
// Keys are snake_case with the unit last (docs/facts.md lists them). Everything lives in the set's arena.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/map.h"
#include "base/str.h"

enum ew_fact_type { EW_FACT_UNKNOWN, EW_FACT_BOOL, EW_FACT_NUMBER, EW_FACT_STRING, EW_FACT_NUMBERS, EW_FACT_STRINGS };

struct ew_fact {
    struct ew_str key;
    enum ew_fact_type type;
    bool boolean;
    double number; // integers are exact up to 2^53
    struct ew_str text;
    const double *numbers;      // [count]
    const struct ew_str *texts; // [count]
    uint32_t count;
    struct ew_str source; // where it was read: a path, "NVML", a computation
};

struct ew_facts {
    struct ew_arena arena;
    struct ew_map by_key; // key to index in list
    struct ew_fact *list;
    uint32_t count, cap;
    const struct ew_facts *parent; // looked in where a key is absent here: a file's facts over the machine's
    bool failed;                   // memory ran out; checked once, at the end
};

int ew_facts_init(struct ew_facts *facts, const struct ew_facts *parent, struct ew_error *err) EW_MUST_CHECK;
void ew_facts_fini(struct ew_facts *facts);

// Setters copy key, value and source; a later one replaces an earlier one of the same key.
void ew_facts_set_bool(struct ew_facts *facts, const char *key, bool value, const char *source);
void ew_facts_set_number(struct ew_facts *facts, const char *key, double value, const char *source);
void ew_facts_set_str(struct ew_facts *facts, const char *key, struct ew_str value, const char *source);
void ew_facts_set_numbers(struct ew_facts *facts, const char *key, const double *values, uint32_t count,
                          const char *source);
void ew_facts_set_strs(struct ew_facts *facts, const char *key, const struct ew_str *values, uint32_t count,
                       const char *source);

// The fact, from here or a parent; NULL where it is not known.
const struct ew_fact *ew_facts_get(const struct ew_facts *facts, struct ew_str key);
bool ew_facts_has_own(const struct ew_facts *facts, const char *key); // known here, whatever a parent knows
double ew_facts_number(const struct ew_facts *facts, const char *key, double fallback);
bool ew_facts_bool(const struct ew_facts *facts, const char *key, bool fallback);
struct ew_str ew_facts_str(const struct ew_facts *facts, const char *key, const char *fallback);

// Facts as text, one "key=TYPE:value" a line (TYPE n, b or s): what the driver's child process and captured trees hold.
// Changes the text; lines that are no facts are passed over.
void ew_facts_parse_lines(struct ew_facts *facts, char *text, const char *source);

void ew_fact_print(struct ew_buf *out, const struct ew_fact *fact); // for people: "1300", "a, b", "yes", "none"
void ew_fact_json(struct ew_buf *out, const struct ew_fact *fact);  // the value as JSON
