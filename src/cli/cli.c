// Parsing of options and the help texts, both from the same tables.

#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "cli/args.h"

#define HELP_COLUMN 28 // where the descriptions of options begin

static const struct ew_opt *next_opt(const struct ew_opt *const *tables, uint32_t *table, uint32_t *index)
{
    for (; tables && tables[*table]; (*table)++, *index = 0)
        if (tables[*table][*index].name)
            return &tables[*table][(*index)++];
    return NULL;
}

static const struct ew_opt *find_opt(const struct ew_command *command, struct ew_str name, char letter)
{
    const struct ew_opt *opt;
    uint32_t table = 0, index = 0;

    while ((opt = next_opt(command->options, &table, &index)))
        if ((letter && opt->letter == letter) || (!letter && ew_str_is(name, opt->name)))
            return opt;
    return NULL;
}

static int check_choice(const struct ew_opt *opt, const char *value, struct ew_error *err)
{
    const char *at = opt->choices;
    size_t len = strlen(value);

    for (; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL) {
        size_t choice = strcspn(at, "|");

        if (choice == len && memcmp(at, value, len) == 0)
            return EW_OK;
    }
    ew_fail(err, EW_ERR_USAGE, "--%s does not know \"%s\"", opt->name, value);
    return ew_remedy(err, EW_ERR_USAGE, "Use one of %s", opt->choices);
}

static int check_number(const struct ew_opt *opt, const char *value, struct ew_error *err)
{
    bool integer = opt->type == EW_OPT_INT;
    double number;
    int64_t whole;

    if (integer ? !ew_str_to_i64(ew_str_of(value), &whole) : !ew_str_to_double(ew_str_of(value), &number))
        return ew_fail(err, EW_ERR_USAGE, "--%s needs %s, not \"%s\"", opt->name,
                       integer ? "a whole number" : "a number", value);
    if (integer)
        number = (double)whole;
    if (!isfinite(number) || ((opt->min != 0 || opt->max != 0) && (number < opt->min || number > opt->max)))
        return ew_fail(err, EW_ERR_USAGE, "--%s must lie between %.10g and %.10g, not %s", opt->name, opt->min,
                       opt->max, value);
    return EW_OK;
}

static int check_value(const struct ew_opt *opt, const char *value, struct ew_error *err)
{
    uint64_t bytes;

    switch (opt->type) {
    case EW_OPT_INT:
    case EW_OPT_FLOAT:
        return check_number(opt, value, err);
    case EW_OPT_BYTES:
        if (!ew_str_to_bytes(ew_str_of(value), &bytes)) {
            ew_fail(err, EW_ERR_USAGE, "--%s needs a size, not \"%s\"", opt->name, value);
            return ew_remedy(err, EW_ERR_USAGE, "Write it as 512M, 1.5G or a number of bytes");
        }
        return EW_OK;
    case EW_OPT_CHOICE:
        return check_choice(opt, value, err);
    default:
        return EW_OK;
    }
}

static int add(struct ew_args *args, const struct ew_opt *opt, const char *value, struct ew_error *err)
{
    int code = value ? check_value(opt, value, err) : EW_OK;

    if (code != EW_OK)
        return code;
    if (args->n_given == EW_ARGS_MAX)
        return ew_fail(err, EW_ERR_USAGE, "more than %d options are given", EW_ARGS_MAX);
    args->given[args->n_given++] = (struct ew_given){opt, value};
    return EW_OK;
}

static int unknown(const struct ew_command *command, const char *word, struct ew_error *err)
{
    ew_fail(err, EW_ERR_USAGE, "%s does not know the option %s", command->name, word);
    return ew_remedy(err, EW_ERR_USAGE, "edgewise help %s lists its options", command->name);
}

// Reads one option that begins at argv[*at]: --name, --name=value, --name value, -n value or -nvalue.
static int parse_option(struct ew_args *args, int argc, char **argv, int *at, struct ew_error *err)
{
    const char *word = argv[*at], *value = NULL;
    const struct ew_opt *opt;

    if (word[1] == '-') {
        size_t len = strcspn(word + 2, "=");

        opt = find_opt(args->command, (struct ew_str){word + 2, len}, 0);
        value = word[2 + len] == '=' ? word + 3 + len : NULL;
    } else {
        opt = find_opt(args->command, (struct ew_str){0}, word[1]);
        value = word[2] ? word + 2 : NULL;
    }
    if (!opt)
        return unknown(args->command, word, err);
    if (opt->type == EW_OPT_FLAG)
        return value ? ew_fail(err, EW_ERR_USAGE, "--%s takes no value", opt->name) : add(args, opt, NULL, err);
    if (!value && *at + 1 >= argc)
        return ew_fail(err, EW_ERR_USAGE, "--%s needs a value (%s)", opt->name, opt->argument);
    return add(args, opt, value ? value : argv[++*at], err);
}

static int parse_word(struct ew_args *args, const char *word, struct ew_error *err)
{
    if (args->n_positional >= args->command->n_args_max) {
        ew_fail(err, EW_ERR_USAGE, "%s does not expect \"%s\"", args->command->name, word);
        return ew_remedy(err, EW_ERR_USAGE, "Usage: edgewise %s", args->command->usage);
    }
    args->positional[args->n_positional++] = word;
    return EW_OK;
}

int ew_args_parse(struct ew_args *args, const struct ew_command *command, int argc, char **argv, struct ew_error *err)
{
    bool only_words = false;
    int code = EW_OK;

    EW_ASSERT(command->n_args_max <= EW_ARGS_POSITIONAL_MAX);
    *args = (struct ew_args){.command = command};
    for (int i = 0; i < argc && code == EW_OK; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0)
            only_words = true;
        else if (!only_words && argv[i][0] == '-' && argv[i][1])
            code = parse_option(args, argc, argv, &i, err);
        else
            code = parse_word(args, argv[i], err);
    }
    if (code != EW_OK || ew_args_flag(args, "help"))
        return code;
    if (args->n_positional < command->n_args_min) {
        ew_fail(err, EW_ERR_USAGE, "%s needs %u argument%s", command->name, command->n_args_min,
                command->n_args_min == 1 ? "" : "s");
        return ew_remedy(err, EW_ERR_USAGE, "Usage: edgewise %s", command->usage);
    }
    return EW_OK;
}

// The last one given wins, as users of shells expect.
static const struct ew_given *find_given(const struct ew_args *args, const char *name)
{
    for (uint32_t i = args->n_given; i-- > 0;)
        if (strcmp(args->given[i].opt->name, name) == 0)
            return &args->given[i];
    return NULL;
}

bool ew_args_has(const struct ew_args *args, const char *name)
{
    return find_given(args, name) != NULL;
}

bool ew_args_flag(const struct ew_args *args, const char *name)
{
    return ew_args_has(args, name);
}

const char *ew_args_str(const struct ew_args *args, const char *name, const char *fallback)
{
    const struct ew_given *given = find_given(args, name);

    return given ? given->value : fallback;
}

int64_t ew_args_int(const struct ew_args *args, const char *name, int64_t fallback)
{
    const struct ew_given *given = find_given(args, name);
    int64_t value = fallback;

    return given && ew_str_to_i64(ew_str_of(given->value), &value) ? value : fallback;
}

double ew_args_float(const struct ew_args *args, const char *name, double fallback)
{
    const struct ew_given *given = find_given(args, name);
    double value = fallback;

    return given && ew_str_to_double(ew_str_of(given->value), &value) ? value : fallback;
}

uint64_t ew_args_bytes(const struct ew_args *args, const char *name, uint64_t fallback)
{
    const struct ew_given *given = find_given(args, name);
    uint64_t value = fallback;

    return given && ew_str_to_bytes(ew_str_of(given->value), &value) ? value : fallback;
}

uint32_t ew_args_count(const struct ew_args *args)
{
    return args->n_positional;
}

const char *ew_args_at(const struct ew_args *args, uint32_t index)
{
    return index < args->n_positional ? args->positional[index] : NULL;
}

uint32_t ew_args_strings(const struct ew_args *args, const char *name, const char **out, uint32_t max)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < args->n_given && count < max; i++)
        if (strcmp(args->given[i].opt->name, name) == 0)
            out[count++] = args->given[i].value;
    return count;
}

static void print_opt(const struct ew_opt *opt, FILE *to)
{
    char left[96];
    int len = snprintf(left, sizeof(left), "  %c%c%s --%s%s%s", opt->letter ? '-' : ' ',
                       opt->letter ? opt->letter : ' ', opt->letter ? "," : " ", opt->name, opt->argument ? " " : "",
                       opt->argument ? opt->argument : "");

    fprintf(to, "%-*s%s%*s%s", HELP_COLUMN, left, len >= HELP_COLUMN ? "\n" : "", len >= HELP_COLUMN ? HELP_COLUMN : 0,
            "", opt->help);
    if (opt->type == EW_OPT_CHOICE)
        fprintf(to, " [%s]", opt->choices);
    fputc('\n', to);
}

void ew_command_help(const struct ew_command *command, FILE *to)
{
    const struct ew_opt *opt;
    uint32_t table = 0, index = 0;

    fprintf(to, "edgewise %s\n\n%s.\n", command->usage, command->summary);
    if (command->details)
        fprintf(to, "\n%s\n", command->details);
    fputs("\nOptions:\n", to);
    while ((opt = next_opt(command->options, &table, &index)))
        print_opt(opt, to);
}

void ew_help(FILE *to)
{
    fputs("edgewise runs and measures language models with nothing installed but the C library.\n\n"
          "Usage: edgewise COMMAND [OPTIONS]\n\nCommands:\n",
          to);
    for (const struct ew_command *const *command = ew_commands; *command; command++)
        fprintf(to, "  %-18s%s\n", (*command)->name, (*command)->summary);
    fprintf(to, "  %-18s%s\n", "help", "Explain a command");
    fputs("\nedgewise help COMMAND explains one. Start with: edgewise run -m demo -p \"How do I list files?\"\n", to);
}
