#pragma once
// What cli.c, main.c and the tests share beyond cli.h.

#include "cli/cli.h"

#define EW_ARGS_MAX 64 // options on one command line

struct ew_given {
    const struct ew_opt *opt;
    const char *value; // NULL for flags
};

struct ew_args {
    const struct ew_command *command;
    uint32_t n_given, n_positional;
    struct ew_given given[EW_ARGS_MAX];
    const char *positional[EW_ARGS_POSITIONAL_MAX];
};

// argv without the program's and the command's names. Values are checked here; EW_ERR_USAGE says what is wrong.
int ew_args_parse(struct ew_args *args, const struct ew_command *command, int argc, char **argv,
                  struct ew_error *err) EW_MUST_CHECK;
void ew_command_help(const struct ew_command *command, FILE *to);
void ew_help(FILE *to);

void ew_interrupt_catch(void); // from main, once; ew_interrupted tells afterwards
