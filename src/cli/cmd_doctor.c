// doctor: what is wrong with this box, why, and how to mend it.

#include <unistd.h>

#include "cli/cli.h"
#include "cli/selftest.h"
#include "doctor/capture.h"
#include "doctor/package_view.h"
#include "doctor/scan.h"

#define REPORT_BYTES_MAX ((size_t)512 << 20)

static const struct ew_opt g_own[] = {
    {"root", 0, EW_OPT_STRING, "DIR", "read a captured tree instead of this machine"},
    {"profile", 0, EW_OPT_STRING, "NAME", "judge for a device of `edgewise profiles` instead of this machine"},
    {"rules", 0, EW_OPT_STRING, "DIR", "add the rules of DIR/*.yaml; one with a known id replaces it"},
    {"markdown", 0, EW_OPT_FLAG, NULL, "the findings as a table for a repository"},
    EW_OPT_END,
};
static const struct ew_opt g_capture[] = {
    {"capture", 0, EW_OPT_STRING, "FILE",
     "write what doctor reads of this machine into a new tar archive, for --root elsewhere"},
    EW_OPT_END,
};
static const struct ew_opt g_measured[] = {
    {"selftest", 0, EW_OPT_FLAG, NULL, "measure too: memory, disk, GPU, and every kernel against the reference"},
    {"disk", 0, EW_OPT_STRING, "FILE", "with --selftest: the file, of 8 MiB or more, that is read from the disk"},
    EW_OPT_END,
};
static const struct ew_opt g_scan[] = {
    {"list", 0, EW_OPT_FLAG, NULL, "what each library holds, one JSON object a line, instead of findings"},
    {"threads", 't', EW_OPT_INT, "N", "threads that read; default one a core", NULL, 1, 512},
    EW_OPT_END,
};
static const struct ew_opt *const g_options[] = {g_own, ew_opts_common, NULL};
static const struct ew_opt *const g_doctor_options[] = {g_own, g_capture, g_measured, ew_opts_common, NULL};
static const struct ew_opt *const g_scan_options[] = {g_own, g_scan, ew_opts_common, NULL};

static int open_doctor(struct ew_doctor *doctor, const struct ew_args *args, bool measured, struct ew_error *err)
{
    struct ew_selftest selftest = {.disk_file = measured ? ew_args_str(args, "disk", NULL) : NULL};
    struct ew_doctor_options options = {
        .root = ew_args_str(args, "root", NULL),
        .rules_dir = ew_args_str(args, "rules", NULL),
        .profile = ew_args_str(args, "profile", NULL),
    };

    if (measured && (options.root || options.profile)) {
        ew_fail(err, EW_ERR_USAGE, "--selftest measures this machine, not a captured tree or a profile");
        return ew_remedy(err, EW_ERR_USAGE, "Leave out --root and --profile");
    }
    if (measured) {
        options.measure = ew_selftest_measure;
        options.measure_ctx = &selftest;
    }
    return ew_doctor_open(doctor, &options, err);
}

static int print_report(struct ew_doctor *doctor, const struct ew_args *args, struct ew_error *err)
{
    struct ew_package_view view;
    struct ew_buf out;
    int code;

    ew_findings_sort(&doctor->findings);
    code = ew_package_view_make(&view, &doctor->findings, err);
    if (code != EW_OK)
        return code;
    ew_buf_init(&out, REPORT_BYTES_MAX);
    if (ew_args_flag(args, "json"))
        ew_doctor_report_json(doctor, &view, &out);
    else if (ew_args_flag(args, "markdown"))
        ew_doctor_report_markdown(doctor, &view, &out);
    else
        ew_doctor_report_text(doctor, &view, &out, isatty(STDOUT_FILENO), ew_args_flag(args, "verbose"));
    if (ew_buf_ok(&out))
        fwrite(out.ptr, 1, out.len, stdout);
    else
        code = ew_fail_memory(err, out.len, "the report");
    ew_buf_fini(&out);
    ew_package_view_fini(&view);
    if (code == EW_OK && doctor->findings.n_by_severity[EW_SEVERITY_FAIL]) {
        err->message[0] = '\0'; // the report has said it
        code = EW_ERR_MISMATCH;
    }
    return code;
}

static int run(const struct ew_args *args, struct ew_error *err)
{
    struct ew_doctor doctor;
    int code = open_doctor(&doctor, args, ew_args_flag(args, "selftest"), err);

    if (code != EW_OK)
        return code;
    if (ew_args_has(args, "capture"))
        code = ew_capture_write(&doctor, ew_args_str(args, "capture", ""), err);
    else
        code = print_report(&doctor, args, err);
    ew_doctor_close(&doctor);
    return code;
}

static int print_inventory(const struct ew_scan *scan, struct ew_error *err)
{
    struct ew_buf out;
    int code = EW_OK;

    ew_buf_init(&out, REPORT_BYTES_MAX);
    ew_scan_inventory(scan, &out);
    if (ew_buf_ok(&out))
        fwrite(out.ptr ? out.ptr : "", 1, out.len, stdout);
    else
        code = ew_fail_memory(err, out.len, "the list");
    ew_buf_fini(&out);
    return code;
}

static int run_scan(const struct ew_args *args, struct ew_error *err)
{
    const char *paths[EW_ARGS_POSITIONAL_MAX];
    struct ew_doctor doctor;
    struct ew_scan scan;
    int code = open_doctor(&doctor, args, false, err);

    if (code != EW_OK)
        return code;
    for (uint32_t i = 0; i < ew_args_count(args); i++)
        paths[i] = ew_args_at(args, i);
    code = ew_scan_run(&scan, &doctor, paths, ew_args_count(args), (uint32_t)ew_args_int(args, "threads", 0),
                       &doctor.findings, err);
    if (code == EW_OK && ew_args_flag(args, "list"))
        code = print_inventory(&scan, err);
    else if (code == EW_OK)
        code = print_report(&doctor, args, err);
    ew_scan_fini(&scan);
    ew_doctor_close(&doctor);
    return code;
}

static int run_rules(const struct ew_args *args, struct ew_error *err)
{
    struct ew_rules rules;
    int code = ew_rules_load(&rules, ew_args_str(args, "rules", NULL), err);

    if (code != EW_OK)
        return code;
    for (uint32_t i = 0; i < rules.count; i++) {
        const struct ew_rule *rule = &rules.list[i];

        printf("%.*s\t%s\t%s\t%.*s\t%.*s\n", (int)rule->id.len, rule->id.ptr, ew_severity_name(rule->severity),
               ew_subject_name(rule->subject), rule->on.len ? (int)rule->on.len : 3,
               rule->on.len ? rule->on.ptr : "any", (int)rule->when_text.len, rule->when_text.ptr);
    }
    ew_rules_fini(&rules);
    return EW_OK;
}

const struct ew_command ew_cmd_doctor = {
    .name = "doctor",
    .usage = "doctor [--profile NAME | --root DIR] [--selftest] [--json | --markdown | --capture FILE]",
    .summary = "Say what is wrong with this box and how to mend it",
    .details = "Reads the box's own files and asks the NVIDIA driver in a child process with a\n"
               "time limit. Runs nothing of what it judges, writes nothing, needs no root. Exit\n"
               "status 1 when a finding is a failure.\n\n"
               "--selftest measures how fast the CPU reads memory and the disk a file, whether the\n"
               "GPU computes, and checks every kernel against the reference; seconds, not minutes.\n\n"
               "--capture takes: os-release, nv_tegra_release, nv_boot_control.conf, nvpmodel.conf\n"
               "and its status, dgx-release, the versions of CUDA and of the driver; /proc/meminfo\n"
               "and the tightest memory limit; model and compatible of the device tree; the DMI\n"
               "product name; hwmon rails, thermal zones, coolers, devfreq clocks; kinds and links\n"
               "of disks; the kernel's release and processor; the names of system libraries and\n"
               "the versions they define; the driver's answers (name, clocks, memory, power,\n"
               "links). Of container engines' and Kubernetes' files only the lines that name\n"
               "NVIDIA, of the package list only NVIDIA's. No serial numbers, UUIDs, host names,\n"
               "addresses, environment or home directories.",
    .options = g_doctor_options,
    .run = run,
};

const struct ew_command ew_cmd_doctor_scan = {
    .name = "doctor scan",
    .usage = "doctor scan PATH... [--profile NAME | --root DIR] [--json | --markdown | --list]",
    .summary = "Judge libraries, wheels, site-packages, TensorRT plans without running them",
    .details = "Follows what each file needs (libraries, symbol versions, GPU code, Python) and\n"
               "says whether this box has it, or the device that --profile names, or the one whose\n"
               "tree --root names. Every finding of the chain is told, not only the first that a\n"
               "user would meet.",
    .options = g_scan_options,
    .n_args_min = 1,
    .n_args_max = EW_ARGS_POSITIONAL_MAX,
    .run = run_scan,
};

const struct ew_command ew_cmd_doctor_rules = {
    .name = "doctor rules",
    .usage = "doctor rules [--rules DIR]",
    .summary = "List the compatibility rules",
    .options = g_options,
    .run = run_rules,
};
