#pragma once
// The command line as tables: commands, their options, help and parsing all come from here.

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "base/str.h"

enum ew_opt_type {
    EW_OPT_FLAG,
    EW_OPT_STRING,
    EW_OPT_INT,
    EW_OPT_FLOAT,
    EW_OPT_BYTES,
    EW_OPT_CHOICE,
    EW_OPT_STRINGS /* may repeat */,
};

struct ew_opt {
    const char *name; // "memory-budget"
    char letter;      // 'm', or 0
    enum ew_opt_type type;
    const char *argument; // "SIZE"; NULL for flags
    const char *help;     // one line; says the default
    const char *choices;  // CHOICE: "auto|cpu|cuda"
    double min, max;      // INT and FLOAT; both 0: unbounded
};

#define EW_OPT_END                                                                                                     \
    {                                                                                                                  \
        0                                                                                                              \
    }

#define EW_ARGS_POSITIONAL_MAX 64 // words on one command line

struct ew_args; // parsed options and positional arguments

struct ew_command {
    const char *name;                                             // "bench speed" for a command with a verb
    const char *usage;                                            // "run -m MODEL [-p TEXT] ..."
    const char *summary;                                          // one line of `help`
    const char *details;                                          // paragraphs of `help NAME`, or NULL
    const struct ew_opt *const *options;                          // NULL-terminated list of option tables
    uint32_t n_args_min, n_args_max;                              // positional
    int (*run)(const struct ew_args *args, struct ew_error *err); // 0, or an ew_code
};

bool ew_args_flag(const struct ew_args *args, const char *name);
const char *ew_args_str(const struct ew_args *args, const char *name, const char *fallback);
int64_t ew_args_int(const struct ew_args *args, const char *name, int64_t fallback);
double ew_args_float(const struct ew_args *args, const char *name, double fallback);
uint64_t ew_args_bytes(const struct ew_args *args, const char *name, uint64_t fallback);
bool ew_args_has(const struct ew_args *args, const char *name);
uint32_t ew_args_count(const struct ew_args *args); // positional arguments
const char *ew_args_at(const struct ew_args *args, uint32_t index);
// Values of an option that may repeat, at most max of them; returns their number.
uint32_t ew_args_strings(const struct ew_args *args, const char *name, const char **out, uint32_t max);

extern const struct ew_opt ew_opts_common[]; // --json, --verbose, --help
extern const struct ew_opt ew_opts_model[];  // -m
extern const struct ew_opt ew_opts_engine[]; // --backend ... --deterministic

// The table of all commands, ended by an entry without a name. Each command lives in cmd_NAME.c.
extern const struct ew_command *const ew_commands[];

// Set by SIGINT; commands poll it. The second one ends the process at once.
bool ew_interrupted(void);
void ew_interrupt_reset(void);
bool ew_terminated(void); // by SIGTERM: who goes on after an interrupt must not
