// doctor power: modes, draw, heat and throttling, once or every second.

#include <time.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "doctor/power.h"

#define REPORT_BYTES_MAX ((size_t)1 << 20)

static const struct ew_opt g_own[] = {
    {"root", 0, EW_OPT_STRING, "DIR", "read a captured tree instead of this machine"},
    {"watch", 'w', EW_OPT_FLAG, NULL, "a reading every second until Ctrl-C"},
    {"count", 'n', EW_OPT_INT, "N", "with --watch: end after N readings", NULL, 1, 1000000000},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_common, NULL};

struct watch {
    const char *root;
    bool json;
    double throttled_since_s; // 0: not throttled at the last reading
};

static int print(struct ew_buf *out, struct ew_error *err)
{
    if (!ew_buf_ok(out))
        return ew_fail_memory(err, out->len, "the report");
    fwrite(out->ptr, 1, out->len, stdout);
    fflush(stdout);
    return EW_OK;
}

static void append_throttling(struct watch *watch, const struct ew_facts *facts, struct ew_buf *out)
{
    struct ew_buf why;

    ew_buf_init(&why, 4096);
    if (!ew_power_throttles(facts, &why)) {
        watch->throttled_since_s = 0;
    } else {
        if (watch->throttled_since_s == 0)
            watch->throttled_since_s = ew_clock_s();
        ew_buf_printf(out, "  THROTTLING for %.0f s: %s", ew_clock_s() - watch->throttled_since_s, why.ptr);
    }
    ew_buf_fini(&why);
}

static int print_reading(struct watch *watch, struct ew_error *err)
{
    struct ew_facts facts;
    struct ew_buf out;
    char clock[16];
    time_t now = time(NULL);
    struct tm local;
    size_t before;
    int code = ew_facts_init(&facts, NULL, err);

    if (code != EW_OK)
        return code;
    ew_buf_init(&out, REPORT_BYTES_MAX);
    ew_power_read(watch->root, &facts);
    if (watch->json) {
        ew_power_json(&facts, &out);
    } else {
        strftime(clock, sizeof(clock), "%H:%M:%S  ", localtime_r(&now, &local));
        ew_buf_append_str(&out, ew_str_of(clock));
        before = out.len;
        ew_power_line(&facts, &out);
        if (out.len == before)
            code = ew_fail(err, EW_ERR_IO,
                           "this machine tells nothing about power: no rails, no thermal zones, no NVML");
        append_throttling(watch, &facts, &out);
        ew_buf_append_char(&out, '\n');
    }
    if (code == EW_OK)
        code = facts.failed ? ew_fail_memory(err, REPORT_BYTES_MAX, "facts") : print(&out, err);
    ew_buf_fini(&out);
    ew_facts_fini(&facts);
    return code;
}

// Waits until the next whole second since the start, so that readings do not drift.
static void wait_until(double at_s)
{
    while (!ew_interrupted() && ew_clock_s() < at_s) {
        struct timespec nap = {.tv_nsec = 20000000};

        nanosleep(&nap, NULL);
    }
}

static int follow(const struct ew_args *args, struct ew_error *err)
{
    struct watch watch = {.root = ew_args_str(args, "root", NULL), .json = ew_args_flag(args, "json")};
    int64_t count = ew_args_int(args, "count", INT64_MAX);
    double start_s = ew_clock_s();
    int code = EW_OK;

    for (int64_t i = 0; i < count && code == EW_OK && !ew_interrupted(); i++) {
        wait_until(start_s + (double)i);
        if (!ew_interrupted())
            code = print_reading(&watch, err);
    }
    return code;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_doctor_options options = {.root = ew_args_str(args, "root", NULL)};
    struct ew_doctor doctor;
    struct ew_buf out;
    int code;

    if (ew_args_flag(args, "watch"))
        return follow(args, err);
    code = ew_doctor_open(&doctor, &options, err);
    if (code != EW_OK)
        return code;
    ew_findings_sort(&doctor.findings);
    ew_buf_init(&out, REPORT_BYTES_MAX);
    if (ew_args_flag(args, "json"))
        ew_power_json(&doctor.facts, &out);
    else
        ew_power_report(&doctor, &out);
    code = print(&out, err);
    ew_buf_fini(&out);
    ew_doctor_close(&doctor);
    return code;
}

const struct ew_command ew_cmd_doctor_power = {
    .name = "doctor power",
    .usage = "doctor power [--watch] [--json] [--root DIR]",
    .summary = "Power modes, draw by rail, temperatures against trip points, throttling, advice",
    .details = "Of a Jetson from nvpmodel's configuration, the INA sensors and the thermal zones; of discrete GPUs "
               "through NVML. No root needed.",
    .options = g_options,
    .run = run,
};
