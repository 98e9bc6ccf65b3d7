#pragma once
// The doctor: facts about a machine, rules over them, findings with remedies. It uses platform and format only, so
// that it works where nothing else does; it runs nothing of what it judges and writes nothing.

#include "doctor/rules.h"
#include "platform/facts.h"

struct ew_doctor_options {
    const char *root;      // a captured tree instead of this machine; NULL: this one
    const char *rules_dir; // the user's own rules, or NULL
    const char *profile;   // a device of data/profiles instead of this machine; not together with root
    // NULL, or what adds measured facts after the probes and before the rules.
    int (*measure)(void *ctx, struct ew_facts *facts, struct ew_error *err);
    void *measure_ctx;
};

struct ew_doctor {
    struct ew_doctor_options options;
    struct ew_facts facts;
    struct ew_rules rules;
    struct ew_findings findings;
};

// Probes, loads the rules, applies those about the machine.
int ew_doctor_open(struct ew_doctor *doctor, const struct ew_doctor_options *options,
                   struct ew_error *err) EW_MUST_CHECK;
void ew_doctor_close(struct ew_doctor *doctor);

// What the machine's own libraries offer: host_glibc, host_glibcxx, host_cxxabi, tool_cuda, host_python, ...
void ew_doctor_probe_libraries(const char *root, struct ew_facts *facts);
// host_python, and the environments beside it, from names of files: nothing is run.
void ew_doctor_probe_pythons(const char *root, struct ew_facts *facts);

// Reports: worst first, the remedy as what to do. colour is for terminals.
// Without verbose, what a rule finds in many files of one package is told once, with their number. Findings are sorted.
struct ew_package_view;
void ew_doctor_report_text(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out,
                           bool colour, bool verbose);
void ew_doctor_report_json(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out);
void ew_doctor_report_markdown(const struct ew_doctor *doctor, const struct ew_package_view *view, struct ew_buf *out);
