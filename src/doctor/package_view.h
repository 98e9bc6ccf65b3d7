#pragma once
// Findings about files, seen by package: the verdict of a package is the worst of its files'.

#include "base/map.h"
#include "doctor/rules.h"

struct ew_package_verdict {
    struct ew_str name;        // the folder or module in site-packages, or the wheel; as findings' texts live
    uint32_t n_by_severity[3]; // findings
};

// Findings of one rule in one package.
struct ew_package_rule {
    const struct ew_finding *first;
    uint32_t count;
};

struct ew_package_view {
    struct ew_arena arena;
    struct ew_map by_name, by_rule;
    struct ew_package_verdict *packages; // [n_packages] in the order of the findings, which is worst first
    struct ew_package_rule *rules;       // [n_rules]
    uint32_t n_packages, n_rules;
};

// "/x/site-packages/torch/lib/a.so" is of torch, "/y/torch-2.5-cp312.whl!/b.so" too; empty: of no package.
struct ew_str ew_package_of(struct ew_str about);

// Of sorted findings, which must outlive it.
int ew_package_view_make(struct ew_package_view *view, const struct ew_findings *findings,
                         struct ew_error *err) EW_MUST_CHECK;
void ew_package_view_fini(struct ew_package_view *view);
// The finding's rule in its package, or NULL where it is of no package.
const struct ew_package_rule *ew_package_view_rule(const struct ew_package_view *view,
                                                   const struct ew_finding *finding);
