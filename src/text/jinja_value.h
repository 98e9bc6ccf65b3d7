#pragma once
// The values that a template computes with, and the state of one rendering.
//
// Values are those of Python as far as templates can see. Strings are immutable; lists, dicts and namespaces are
// shared by reference. Everything a rendering makes lives in its arena and is freed with it, at once. A failure is
// noted in the run (`code`), after which every function returns quickly with a harmless value: callers check the
// run where they loop or branch.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/error.h"
#include "base/str.h"
#include "format/json.h"

enum ew_jj_type {
    EW_JJ_MISSING,   // an argument that was not given; never seen by templates
    EW_JJ_UNDEFINED,
    EW_JJ_NONE,
    EW_JJ_BOOL,
    EW_JJ_INT,
    EW_JJ_FLOAT,
    EW_JJ_BIG,       // an integer past 64 bits: can be printed and compared for equality, but not calculated with
    EW_JJ_STRING,
    EW_JJ_LIST,
    EW_JJ_TUPLE,
    EW_JJ_VIEW,      // range, dict.items() and the like: a sequence that is no list
    EW_JJ_GENERATOR, // what map, select, items, ... give: can be run through once, is always true, has no length
    EW_JJ_DICT,
    EW_JJ_NAMESPACE,
    EW_JJ_BUILTIN,
    EW_JJ_METHOD,    // a built-in function bound to its object
    EW_JJ_MACRO,
    EW_JJ_LOOP,
    EW_JJ_CYCLER,
    EW_JJ_JOINER,
};

// Bytes with room behind them: appending to a string that ends at `used` extends it in place, so that a template's
// `text = text + more` in a loop costs what it appends.
struct ew_jj_slab {
    size_t used, cap;
    char bytes[];
};

struct ew_jj_string {
    const char *ptr;
    size_t len;
    size_t n_chars;           // SIZE_MAX: not counted yet
    struct ew_jj_slab *slab;  // NULL: the bytes belong to somebody else
};

struct ew_jj_value {
    enum ew_jj_type type;
    bool is_markup; // STRING: marked safe; concatenation escapes what it meets
    union {
        bool boolean;
        int64_t integer;
        double number;
        struct ew_jj_undef *undef;   // NULL: no more is known
        struct ew_jj_string *string; // STRING and BIG
        struct ew_jj_list *list;     // LIST, TUPLE, VIEW, GENERATOR
        struct ew_jj_dict *dict;     // DICT, NAMESPACE
        const struct ew_jj_builtin *builtin;
        struct ew_jj_method *method;
        struct ew_jj_macro *macro;
        struct ew_jj_loop *loop;
        struct ew_jj_cycler *cycler; // CYCLER and JOINER
    };
};

struct ew_jj_undef {
    const char *hint;        // the whole message, or NULL
    const char *object_type; // "dict object"; NULL: a variable
    struct ew_jj_value key;  // what was looked up: a string or an index
};

struct ew_jj_list {
    struct ew_jj_value *items;
    uint32_t count, cap;
    uint32_t at;       // GENERATOR: what has been taken
    const char *label; // VIEW: "dict_items"; "range" prints its bounds instead of its items; TUPLE: "group" of groupby
    int64_t range[3];  // VIEW "range": start, stop, step
};

struct ew_jj_entry {
    struct ew_jj_value key, value;
};

struct ew_jj_dict {
    struct ew_jj_entry *entries; // in order of insertion
    uint32_t count, cap;
    uint32_t *slots;             // hash index: entry + 1, or 0; NULL while the dict is small
    uint32_t n_slots;            // a power of two
};

struct ew_jj_kwarg {
    struct ew_str name;
    struct ew_jj_value value;
};

struct ew_jj_args {
    struct ew_jj_value *pos;
    uint32_t n_pos;
    struct ew_jj_kwarg *kw;
    uint32_t n_kw;
};

struct ew_jj_run;

#define EW_JJ_PARAMS_MAX 8

// Filters, tests, methods and global functions. Given arguments are bound to v[0..n) in the order of `params`;
// those not given are MISSING.
struct ew_jj_builtin {
    const char *name;
    struct ew_jj_value (*fn)(struct ew_jj_run *run, struct ew_jj_value self, const struct ew_jj_value *v,
                             const struct ew_jj_args *args);
    const char *params;  // "indent sort_keys"; "": none; NULL: any, taken from args as they are
    uint32_t n_required; // of params
};

struct ew_jj_method {
    struct ew_jj_value self;
    const struct ew_jj_builtin *builtin;
};

struct ew_jj_cycler {
    struct ew_jj_list *items; // JOINER: the separator alone
    uint32_t at;
};

struct ew_jj_scope {
    struct ew_jj_scope *parent;
    struct ew_jj_slot {
        uint32_t name;
        struct ew_jj_value value;
    } *slots;                   // the root's are indexed by name, the others' are searched
    uint32_t count, cap;
    bool is_captured;           // a macro refers to it, so it must not be reused
};

struct ew_jj_names;

struct ew_jj_run {
    struct ew_arena arena;
    struct ew_buf out;          // the output; macros and block sets take what they added off its end
    struct ew_buf scratch;      // where strings are put together
    struct ew_jj_scope *scope;
    const struct ew_jj_names *names; // of the template; as many slots has the root scope
    uint32_t loop_name;         // the symbol of "loop"
    const char *now;
    uint64_t steps, steps_max;
    uint32_t depth, depth_max;
    uint32_t line;
    enum { EW_JJ_FLOW_NORMAL, EW_JJ_FLOW_BREAK, EW_JJ_FLOW_CONTINUE } flow;
    int code;                   // EW_OK until something failed
    struct ew_error *err;
};

// Failures: all return an undefined value, so that they can be returned in turn. The first one counts.
struct ew_jj_value ew_jj_fail(struct ew_jj_run *run, const char *fmt, ...) EW_PRINTF(2, 3); // says the line
struct ew_jj_value ew_jj_fail_limit(struct ew_jj_run *run, const char *what);
struct ew_jj_value ew_jj_fail_memory(struct ew_jj_run *run, size_t bytes, const char *what); // the machine's ran out
struct ew_jj_value ew_jj_fail_undefined(struct ew_jj_run *run, struct ew_jj_value undefined);
struct ew_jj_value ew_jj_raise(struct ew_jj_run *run, struct ew_str message); // raise_exception: the message as it is
bool ew_jj_step(struct ew_jj_run *run,
                uint64_t cost); // counts work; false where the run has failed or has done too much
bool ew_jj_enter(struct ew_jj_run *run);               // one level deeper; pair with leave where it returned true
void ew_jj_leave(struct ew_jj_run *run);
void *ew_jj_alloc(struct ew_jj_run *run, size_t count, size_t size); // NULL and a failure where memory_max is reached

// Constructors.
#define EW_JJ_NONE_VALUE ((struct ew_jj_value){.type = EW_JJ_NONE})
#define EW_JJ_UNDEFINED_VALUE ((struct ew_jj_value){.type = EW_JJ_UNDEFINED})
static inline struct ew_jj_value ew_jj_bool(bool b) { return (struct ew_jj_value){.type = EW_JJ_BOOL, .boolean = b}; }
static inline struct ew_jj_value ew_jj_int(int64_t i) { return (struct ew_jj_value){.type = EW_JJ_INT, .integer = i}; }
static inline struct ew_jj_value ew_jj_float(double f)
{
    return (struct ew_jj_value){.type = EW_JJ_FLOAT, .number = f};
}
struct ew_jj_value ew_jj_hint(struct ew_jj_run *run, const char *message); // undefined, for the reason given
struct ew_jj_value ew_jj_lookup_failed(struct ew_jj_run *run, struct ew_jj_value object, struct ew_jj_value key);
struct ew_jj_value ew_jj_string_view(struct ew_jj_run *run, struct ew_str bytes); // the bytes outlive the run
struct ew_jj_value ew_jj_string_copy(struct ew_jj_run *run, struct ew_str bytes);
struct ew_jj_value ew_jj_string_sub(struct ew_jj_run *run, struct ew_jj_value of, size_t from,
                                    size_t to);                                                     // bytes; shared
struct ew_jj_value ew_jj_concat(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b); // two STRINGs
struct ew_jj_value ew_jj_list(struct ew_jj_run *run, enum ew_jj_type type, uint32_t cap);
bool ew_jj_list_push(struct ew_jj_run *run, struct ew_jj_list *list, struct ew_jj_value item);
struct ew_jj_value ew_jj_dict(struct ew_jj_run *run, enum ew_jj_type type);
bool ew_jj_dict_set(struct ew_jj_run *run, struct ew_jj_dict *dict, struct ew_jj_value key, struct ew_jj_value value);
struct ew_jj_value *ew_jj_dict_find(struct ew_jj_run *run, const struct ew_jj_dict *dict,
                                    struct ew_jj_value key); // or NULL
bool ew_jj_dict_remove(struct ew_jj_run *run, struct ew_jj_dict *dict, struct ew_jj_value key);
struct ew_jj_value ew_jj_from_json(struct ew_jj_run *run, const struct ew_json *node);

// strings are built in run->scratch: begin remembers where, end makes the value and takes it off again. They nest.
size_t ew_jj_build_begin(struct ew_jj_run *run);
struct ew_jj_value ew_jj_build_end(struct ew_jj_run *run, size_t mark);

// Views.
static inline struct ew_str ew_jj_str(struct ew_jj_value v) { return (struct ew_str){v.string->ptr, v.string->len}; }
static inline bool ew_jj_given(struct ew_jj_value v) { return v.type != EW_JJ_MISSING; }
size_t ew_jj_string_chars(struct ew_jj_value string);
const char *ew_jj_type_name(struct ew_jj_value v); // "str", "NoneType"
bool ew_jj_truth(struct ew_jj_value v);
bool ew_jj_equal(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b);
// -1, 0, 1, or 2 where neither is less (NaN); fails where Python has no order between the two. `op` ("<") is for
// the message.
int ew_jj_compare(struct ew_jj_run *run, struct ew_jj_value a, struct ew_jj_value b, const char *op);
bool ew_jj_contains(struct ew_jj_run *run, struct ew_jj_value container, struct ew_jj_value item);
bool ew_jj_is_integer(struct ew_jj_value v, int64_t *out);  // INT or BOOL
bool ew_jj_is_number(struct ew_jj_value v, double *out);    // INT, BOOL, FLOAT or BIG
bool ew_jj_length(struct ew_jj_value v, int64_t *out);      // len(); false where there is none
bool ew_jj_is_iterable(struct ew_jj_value v);

// What iterating gives; a generator is used up by it. False (and a failure) where the value cannot be iterated.
struct ew_jj_items {
    const struct ew_jj_value *items;
    uint32_t count;
};
bool ew_jj_iterate(struct ew_jj_run *run, struct ew_jj_value v, struct ew_jj_items *out);

// str(v), repr(v) and json.dumps(v), appended to buf.
void ew_jj_append_str(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v);
void ew_jj_append_repr_of(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v);
struct ew_jj_value ew_jj_to_string(struct ew_jj_run *run, struct ew_jj_value v); // str(v), a STRING
void ew_jj_append_html(struct ew_buf *buf, struct ew_str s);

struct ew_jj_json_style {
    const char *indent;  // one level's; NULL: all on one line
    struct ew_str item_separator, key_separator;
    bool ascii, sort_keys;
};
void ew_jj_append_json_of(struct ew_jj_run *run, struct ew_buf *buf, struct ew_jj_value v,
                          const struct ew_jj_json_style *style);
