#pragma once
// Rules as data: conditions over facts, with what to say and what to do when they hold. data/rules/*.yaml, and a
// user's own directory, which may replace a rule by its id.

#include "base/alloc.h"
#include "base/buf.h"
#include "base/error.h"
#include "doctor/expr.h"
#include "platform/facts.h"

enum ew_severity { EW_SEVERITY_OK, EW_SEVERITY_WARN, EW_SEVERITY_FAIL };
const char *ew_severity_name(enum ew_severity severity); // "ok", "warn", "fail"

enum ew_subject {
    EW_SUBJECT_MACHINE,
    EW_SUBJECT_FILE,
    EW_SUBJECT_PACKAGE,
    EW_SUBJECT_IMAGE,
    EW_SUBJECT_PLAN,
    EW_SUBJECT_REQUEST,
    EW_SUBJECT_COUNT
};
const char *ew_subject_name(enum ew_subject subject);

struct ew_rule {
    struct ew_str id, on, when_text, message, remedy,
        source; // on: a platform tag ("thor", "dgpu", "k8s"), or empty: everywhere
    struct ew_str build, risk; // how long the remedy's build takes, and low, medium, high; for tables that teams keep
    enum ew_subject subject;
    enum ew_severity severity;
    const struct ew_expr *when;
    struct ew_str file; // where it was read
};

struct ew_rules {
    struct ew_arena arena;
    struct ew_rule *list;
    uint32_t count, cap;
};

// The built-in rules, then those of each *.yaml in user_dir (NULL: none). A malformed rule is an error that names
// file and line.
int ew_rules_load(struct ew_rules *rules, const char *user_dir, struct ew_error *err) EW_MUST_CHECK;
// The rules of one text alone; `file` is what messages call it.
int ew_rules_parse(struct ew_rules *rules, const char *file, struct ew_str text, struct ew_error *err) EW_MUST_CHECK;
void ew_rules_fini(struct ew_rules *rules);
const struct ew_rule *ew_rules_find(const struct ew_rules *rules, struct ew_str id);

struct ew_finding {
    const struct ew_rule *rule;
    struct ew_str about;           // the file or package, or empty
    struct ew_str message, remedy; // holes filled in
    enum ew_severity worst;        // of all findings about the same, once sorted
};

struct ew_unchecked { // one a rule and fact, however many files it concerns
    const struct ew_rule *rule;
    struct ew_str missing; // the fact that is not known
    uint32_t count;        // subjects
};

struct ew_findings {
    struct ew_arena arena;
    struct ew_finding *list;
    uint32_t count, cap;
    struct ew_unchecked *unchecked;
    uint32_t n_unchecked, unchecked_cap;
    uint32_t n_by_severity[3];
    bool failed; // memory ran out
};

void ew_findings_init(struct ew_findings *findings);
void ew_findings_fini(struct ew_findings *findings);
// Applies every rule about this kind of subject that concerns this platform; `platform_tags` is the fact that lists
// the tags.
void ew_rules_apply(const struct ew_rules *rules, enum ew_subject subject, const struct ew_facts *facts,
                    struct ew_str about, struct ew_findings *out);
// What has the worst finding first, with all that was found about it, worst first; then by name and rule id, so that
// reports do not depend on the order of work.
void ew_findings_sort(struct ew_findings *findings);

// Replaces {fact} by its value; {fact:cuda} prints 1300 as 13.0, {fact:cc} 110 as 11.0, {fact:py} 312 as 3.12. Unknown
// ones become "?".
void ew_rule_fill(struct ew_buf *out, struct ew_str text, const struct ew_facts *facts);
