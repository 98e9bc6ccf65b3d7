// Finds the command, parses its options, runs it, turns its result into an exit status; nothing else.

#include <errno.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cli/args.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

// For tests: the n-th allocation fails.
static void inject_failure(void)
{
    const char *text = getenv("EW_ALLOC_FAIL_AT");
    uint64_t n;

    if (text && ew_str_to_u64(ew_str_of(text), &n))
        ew_alloc_fail_at(n);
}

// Commands with a verb have names of two words; both must be there.
static const struct ew_command *find_command(int argc, char **argv, int *n_words)
{
    for (const struct ew_command *const *at = ew_commands; *at; at++) {
        const char *name = (*at)->name, *verb = strchr(name, ' ');
        size_t len = verb ? (size_t)(verb - name) : strlen(name);

        if (strlen(argv[0]) != len || memcmp(argv[0], name, len) != 0)
            continue;
        if (verb && (argc < 2 || strcmp(argv[1], verb + 1) != 0))
            continue;
        *n_words = verb ? 2 : 1;
        return *at;
    }
    return NULL;
}

static int unknown_command(int argc, char **argv)
{
    size_t len = strlen(argv[0]);
    bool verb_missing = false;

    for (const struct ew_command *const *at = ew_commands; *at; at++)
        if (strncmp((*at)->name, argv[0], len) == 0 && (*at)->name[len] == ' ') {
            if (!verb_missing)
                fprintf(stderr, "edgewise: %s %s\n", argv[0],
                        argc > 1 ? "does not know that verb. It has:" : "needs a verb. It has:");
            fprintf(stderr, "  edgewise %s\n", (*at)->usage);
            verb_missing = true;
        }
    if (!verb_missing)
        fprintf(stderr, "edgewise: there is no command \"%s\". edgewise help lists them.\n", argv[0]);
    return EXIT_USAGE;
}

static int finish(int code, const struct ew_error *err)
{
    if (fflush(stdout) != 0 && errno != EPIPE && code == EW_OK) {
        fprintf(stderr, "edgewise: cannot write to standard output: %s.\n", strerror(errno));
        return EXIT_FAILED;
    }
    if (code == EW_OK)
        return EXIT_DONE;
    if (err->message[0])
        ew_log_error(err);
    return code == EW_ERR_USAGE ? EXIT_USAGE : EXIT_FAILED;
}

static int help(int argc, char **argv)
{
    const struct ew_command *command;
    int n_words;

    if (argc == 0) {
        ew_help(stdout);
        return EXIT_DONE;
    }
    command = find_command(argc, argv, &n_words);
    if (!command)
        return unknown_command(argc, argv);
    ew_command_help(command, stdout);
    return EXIT_DONE;
}

static int dispatch(int argc, char **argv)
{
    struct ew_error err = {0};
    const struct ew_command *command;
    struct ew_args args;
    int n_words, code;

    command = find_command(argc, argv, &n_words);
    if (!command)
        return unknown_command(argc, argv);
    code = ew_args_parse(&args, command, argc - n_words, argv + n_words, &err);
    if (code != EW_OK)
        return finish(code, &err);
    if (ew_args_flag(&args, "help")) {
        ew_command_help(command, stdout);
        return EXIT_DONE;
    }
    if (ew_args_flag(&args, "verbose"))
        ew_log_set_level(EW_LOG_INFO);
    if (ew_args_flag(&args, "debug"))
        ew_log_set_level(EW_LOG_DEBUG);
    code = command->run(&args, &err);
    return finish(code, &err);
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, ""); // terminals: character widths. Numbers stay in the C locale
    ew_interrupt_catch();
    inject_failure();
    if (argc < 2) {
        ew_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return help(argc - 2, argv + 2);
    if (strcmp(argv[1], "--version") == 0)
        argv[1] += 2;
    return dispatch(argc - 1, argv + 1);
}
