// What the doctor says: text for people, JSON for programs, Markdown for repositories.

#include <stdio.h>

#include "base/assert.h"
#include "doctor/doctor.h"
#include "doctor/package_view.h"

// The few facts that a reader wants to see first, with the words for them.
static const struct {
    const char *label, *fact, *unit, *style;
} g_summary[] = {
    {"machine", "board_model", "", ""},
    {"machine", "product_name", "", ""},
    {"system", "host_os", "", ""},
    {"kernel", "host_kernel", "", ""},
    {"processor", "host_arch", "", ""},
    {"memory", "host_mem_mib", " MiB", ""},
    {"available", "host_avail_mib", " MiB", ""},
    {"L4T", "l4t", "", ""},
    {"JetPack", "jetpack", "", ""},
    {"driver", "drv_ver", "", ""},
    {"driver's CUDA", "drv_cuda", "", ":cuda"},
    {"GPU", "gpu_name", "", ""},
    {"capability", "gpu_cc", "", ":cc"},
    {"GPU kernels", "kernel_tier", "", ""},
    {"GPU memory", "gpu_mem_mib", " MiB", ""},
    {"bandwidth", "mem_bw_gbs", " GB/s", ""},
    {"profile", "profile", "", ""},
    {"power mode", "pow_name", "", ""},
    {"draw", "power_draw_w", " W", ""},
    {"temperature", "temp_c", " C", ""},
    {"GPU at", "gpu_temp_c", " C", ""},
    {"GPU draws", "gpu_power_w", " W", ""},
    {"no driver", "drv_error", "", ""},
    {"CPU reads", "mem_read_gbs", " GB/s (measured)", ""},
    {"disk reads", "disk_gbs", " GB/s", ""},
    {"no disk speed", "disk_error", "", ""},
    {"GPU round trip", "gpu_round_trip_ms", " ms (measured)", ""},
    {"copies to GPU", "gpu_copy_gbs", " GB/s (measured)", ""},
    {"kernels", "kernels_checked", " checked against the reference", ""},
};

static void append_summary(const struct ew_doctor *doctor, struct ew_buf *out)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_summary); i++) {
        char hole[64];

        if (!ew_facts_get(&doctor->facts, ew_str_of(g_summary[i].fact)))
            continue;
        snprintf(hole, sizeof(hole), "{%s%s}", g_summary[i].fact, g_summary[i].style);
        ew_buf_printf(out, "  %-15s", g_summary[i].label);
        ew_rule_fill(out, ew_str_of(hole), &doctor->facts);
        ew_buf_printf(out, "%s\n", g_summary[i].unit);
    }
}

static void append_finding(struct ew_buf *out, const struct ew_finding *finding, const char *indent, bool colour)
{
    static const char *const colours[] = {"\x1b[32m", "\x1b[33m", "\x1b[31m"};

    ew_buf_printf(out, "%s%s%-4s%s  ", indent, colour ? colours[finding->rule->severity] : "",
                  ew_severity_name(finding->rule->severity), colour ? "\x1b[0m" : "");
    ew_buf_append_str(out, finding->rule->id);
    ew_buf_append_str(out, EW_STR("  "));
    ew_buf_append_str(out, finding->message);
    if (finding->remedy.len)
        ew_buf_printf(out, "\n%s      -> ", indent);
    ew_buf_append_str(out, finding->remedy);
    ew_buf_append_char(out, '\n');
}

// How many files of its package a finding stands for; 0: an earlier one stands for it.
static uint32_t stands_for(const struct ew_package_view *view, const struct ew_finding *finding)
{
    const struct ew_package_rule *rule = ew_package_view_rule(view, finding);

    return !rule ? 1 : rule->first == finding ? rule->count : 0;
}

// Sorted by subject, so that each has one heading.
static void append_findings(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out,
                            bool colour, bool verbose)
{
    struct ew_str heading = EW_STR("");

    for (uint32_t i = 0; i < doctor->findings.count; i++) {
        const struct ew_finding *finding = &doctor->findings.list[i];
        uint32_t count = verbose ? 1 : stands_for(view, finding);

        if (count == 0 || (finding->rule->severity == EW_SEVERITY_OK && !verbose))
            continue;
        if (!ew_str_eq(heading, finding->about)) {
            heading = finding->about;
            ew_buf_append_str(out, heading);
            ew_buf_append_char(out, '\n');
        }
        append_finding(out, finding, heading.len ? "  " : "", colour);
        if (count > 1)
            ew_buf_printf(out, "        the same in %u more file%s of " EW_STR_FMT " (-v lists %s)\n", count - 1,
                          count == 2 ? "" : "s", EW_STR_ARG(ew_package_of(finding->about)), count == 2 ? "it" : "them");
    }
}

// The verdict of each package that has one, worst first.
static void append_packages(const struct ew_package_view *view, struct ew_buf *out)
{
    bool any = false;

    for (int severity = EW_SEVERITY_FAIL; severity > EW_SEVERITY_OK; severity--)
        for (uint32_t i = 0; i < view->n_packages; i++) {
            const struct ew_package_verdict *package = &view->packages[i];

            if (!package->n_by_severity[severity] ||
                (severity < EW_SEVERITY_FAIL && package->n_by_severity[EW_SEVERITY_FAIL]))
                continue;
            ew_buf_printf(out, "%s%-4s  %-28.*s %u fail, %u warn\n", any ? "" : "packages\n",
                          ew_severity_name((enum ew_severity)severity), EW_STR_ARG(package->name),
                          package->n_by_severity[EW_SEVERITY_FAIL], package->n_by_severity[EW_SEVERITY_WARN]);
            any = true;
        }
    if (any)
        ew_buf_append_char(out, '\n');
}

// Of a self-test always: who asks for it wants to know what it left out.
static void append_unchecked(const struct ew_findings *findings, struct ew_buf *out, bool verbose)
{
    for (uint32_t i = 0; i < findings->n_unchecked; i++) {
        const struct ew_unchecked *unchecked = &findings->unchecked[i];

        if (!verbose && !ew_str_starts(unchecked->rule->id, "TEST-"))
            continue;
        ew_buf_append_str(out, EW_STR("not checked  "));
        ew_buf_append_str(out, unchecked->rule->id);
        ew_buf_append_str(out, EW_STR("  needs "));
        ew_buf_append_str(out, unchecked->missing);
        if (unchecked->count > 1)
            ew_buf_printf(out, " (%u times)", unchecked->count);
        ew_buf_append_char(out, '\n');
    }
}

void ew_doctor_report_text(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out,
                           bool colour, bool verbose)
{
    const struct ew_findings *findings = &doctor->findings;
    size_t before;

    append_summary(doctor, out);
    ew_buf_append_char(out, '\n');
    before = out->len;
    append_findings(doctor, view, out, colour, verbose);
    if (out->len > before)
        ew_buf_append_char(out, '\n');
    append_packages(view, out);
    append_unchecked(findings, out, verbose);
    ew_buf_printf(out, "%u fail, %u warn, %u ok", findings->n_by_severity[EW_SEVERITY_FAIL],
                  findings->n_by_severity[EW_SEVERITY_WARN], findings->n_by_severity[EW_SEVERITY_OK]);
    if (findings->n_unchecked)
        ew_buf_printf(out, "; %u rules not checked, because facts are not known here (-v lists them)",
                      findings->n_unchecked);
    ew_buf_append_char(out, '\n');
}

static void json_member(struct ew_buf *out, const char *key, struct ew_str value, bool last)
{
    ew_buf_printf(out, "\"%s\": ", key);
    ew_buf_append_json(out, value);
    ew_buf_append_str(out, last ? EW_STR("}") : EW_STR(", "));
}

static void json_facts(const struct ew_facts *facts, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("  \"facts\": {"));
    for (uint32_t i = 0; i < facts->count; i++) {
        ew_buf_append_str(out, i ? EW_STR(",\n    ") : EW_STR("\n    "));
        ew_buf_append_json(out, facts->list[i].key);
        ew_buf_append_str(out, EW_STR(": {\"value\": "));
        ew_fact_json(out, &facts->list[i]);
        ew_buf_append_str(out, EW_STR(", "));
        json_member(out, "source", facts->list[i].source, true);
    }
    ew_buf_append_str(out, EW_STR("\n  },\n"));
}

static void json_packages(const struct ew_package_view *view, struct ew_buf *out)
{
    ew_buf_append_str(out, EW_STR("\n  ],\n  \"packages\": ["));
    for (uint32_t i = 0; i < view->n_packages; i++) {
        const struct ew_package_verdict *package = &view->packages[i];
        enum ew_severity worst = package->n_by_severity[EW_SEVERITY_FAIL]   ? EW_SEVERITY_FAIL
                                 : package->n_by_severity[EW_SEVERITY_WARN] ? EW_SEVERITY_WARN
                                                                            : EW_SEVERITY_OK;

        ew_buf_append_str(out, i ? EW_STR(",\n    {") : EW_STR("\n    {"));
        json_member(out, "name", package->name, false);
        json_member(out, "verdict", ew_str_of(ew_severity_name(worst)), false);
        ew_buf_printf(out, "\"fail\": %u, \"warn\": %u}", package->n_by_severity[EW_SEVERITY_FAIL],
                      package->n_by_severity[EW_SEVERITY_WARN]);
    }
}

void ew_doctor_report_json(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out)
{
    const struct ew_findings *findings = &doctor->findings;

    ew_buf_append_str(out, EW_STR("{\n"));
    json_facts(&doctor->facts, out);
    ew_buf_append_str(out, EW_STR("  \"findings\": ["));
    for (uint32_t i = 0; i < findings->count; i++) {
        const struct ew_finding *finding = &findings->list[i];

        ew_buf_append_str(out, i ? EW_STR(",\n    {") : EW_STR("\n    {"));
        json_member(out, "id", finding->rule->id, false);
        json_member(out, "severity", ew_str_of(ew_severity_name(finding->rule->severity)), false);
        json_member(out, "subject", ew_str_of(ew_subject_name(finding->rule->subject)), false);
        json_member(out, "about", finding->about, false);
        json_member(out, "message", finding->message, false);
        json_member(out, "remedy", finding->remedy, false);
        json_member(out, "source", finding->rule->source, true);
    }
    json_packages(view, out);
    ew_buf_append_str(out, EW_STR("\n  ],\n  \"unchecked\": ["));
    for (uint32_t i = 0; i < findings->n_unchecked; i++) {
        ew_buf_append_str(out, i ? EW_STR(",\n    {") : EW_STR("\n    {"));
        json_member(out, "id", findings->unchecked[i].rule->id, false);
        json_member(out, "missing", findings->unchecked[i].missing, false);
        ew_buf_printf(out, "\"count\": %u}", findings->unchecked[i].count);
    }
    ew_buf_printf(out, "\n  ],\n  \"fail\": %u, \"warn\": %u, \"ok\": %u\n}\n",
                  findings->n_by_severity[EW_SEVERITY_FAIL], findings->n_by_severity[EW_SEVERITY_WARN],
                  findings->n_by_severity[EW_SEVERITY_OK]);
}

// A cell must not end its table.
static void append_cell(struct ew_buf *out, struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] == '|')
            ew_buf_append_char(out, '\\');
        ew_buf_append_char(out, text.ptr[i] == '\n' ? ' ' : text.ptr[i]);
    }
    ew_buf_append_str(out, EW_STR(" | "));
}

// A compatibility matrix as teams keep them: one row a rule and package, worst first.
void ew_doctor_report_markdown(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out)
{
    const struct ew_findings *findings = &doctor->findings;

    ew_buf_append_str(out, EW_STR("| component | status | finding | action | build time | risk | rule |\n"
                                  "| --- | --- | --- | --- | --- | --- | --- |\n"));
    for (uint32_t i = 0; i < findings->count; i++) {
        const struct ew_finding *finding = &findings->list[i];
        struct ew_str package = ew_package_of(finding->about);
        uint32_t count = stands_for(view, finding);

        if (count == 0)
            continue;
        ew_buf_append_str(out, EW_STR("| "));
        append_cell(out, package.len          ? package
                         : finding->about.len ? finding->about
                                              : EW_STR("machine"));
        append_cell(out, ew_str_of(ew_severity_name(finding->rule->severity)));
        if (count > 1)
            ew_buf_printf(out, "%u files, such as: ", count);
        append_cell(out, finding->message);
        append_cell(out, finding->remedy.len ? finding->remedy : EW_STR("none"));
        append_cell(out, finding->rule->build.len ? finding->rule->build : EW_STR("none"));
        append_cell(out, finding->rule->risk);
        append_cell(out, finding->rule->id);
        ew_buf_append_char(out, '\n');
    }
}
