#include "cli/cli.h"

#include <gnu/libc-version.h>

static int run(const struct ew_args *args, struct ew_error *err)
{
    if (ew_args_flag(args, "json"))
        printf("{\"version\": \"%s\", \"libc\": \"%s\", \"compiler\": \"%s\"}\n", EW_VERSION, gnu_get_libc_version(),
               __VERSION__);
    else
        printf("edgewise %s\n", EW_VERSION);
    return EW_OK;
}

static const struct ew_opt *const g_options[] = {ew_opts_common, NULL};

const struct ew_command ew_cmd_version = {
    .name = "version",
    .usage = "version [--json]",
    .summary = "Print the version",
    .options = g_options,
    .run = run,
};
