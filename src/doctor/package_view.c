#include "doctor/package_view.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define VIEW_ARENA_MAX ((size_t)64 << 20)
#define KEY_BYTES_MAX 512

static struct ew_str until(struct ew_str text, const char *ends)
{
    size_t len = 0;

    while (len < text.len && !strchr(ends, text.ptr[len]))
        len++;
    return (struct ew_str){text.ptr, len};
}

static struct ew_str base_name(struct ew_str path)
{
    const char *slash = memrchr(path.ptr, '/', path.len);

    return slash ? (struct ew_str){slash + 1, path.len - (size_t)(slash + 1 - path.ptr)} : path;
}

// "torch", "torch-2.5.0.dist-info" and "_cffi_backend.cpython-312-x86_64-linux-gnu.so" are entries of site-packages.
static struct ew_str of_entry(struct ew_str entry)
{
    bool is_info = ew_str_ends(entry, ".dist-info");

    return until(entry, is_info ? "-" : ".");
}

struct ew_str ew_package_of(struct ew_str about)
{
    static const char *const marks[] = {"/site-packages/", "/dist-packages/"};
    ptrdiff_t wheel = ew_str_find(about, EW_STR(".whl"), 0);

    if (wheel >= 0)
        return until(base_name((struct ew_str){about.ptr, (size_t)wheel}), "-");
    for (size_t i = 0; i < EW_COUNT_OF(marks); i++) {
        ptrdiff_t at = ew_str_find(about, ew_str_of(marks[i]), 0);

        if (at < 0)
            continue;
        at += (ptrdiff_t)strlen(marks[i]);
        return of_entry(until((struct ew_str){about.ptr + at, about.len - (size_t)at}, "/"));
    }
    return EW_STR("");
}

static bool make_key(const struct ew_finding *finding, struct ew_str package, char key[KEY_BYTES_MAX])
{
    int len = snprintf(key, KEY_BYTES_MAX, "%.*s/%.*s", (int)finding->rule->id.len, finding->rule->id.ptr,
                       (int)package.len, package.ptr);

    return len > 0 && len < KEY_BYTES_MAX;
}

static bool add_package(struct ew_package_view *view, struct ew_str name, enum ew_severity severity)
{
    uint32_t index;

    if (!ew_map_get(&view->by_name, name, &index)) {
        index = view->n_packages++;
        view->packages[index] = (struct ew_package_verdict){.name = name};
        if (ew_map_put(&view->by_name, name, index, NULL) != EW_OK)
            return false;
    }
    view->packages[index].n_by_severity[severity]++;
    return true;
}

static bool add_rule(struct ew_package_view *view, const struct ew_finding *finding, struct ew_str package)
{
    char key[KEY_BYTES_MAX], *kept;
    uint32_t index;

    if (!make_key(finding, package, key))
        return true; // of an absurd name: stands for itself
    if (!ew_map_get(&view->by_rule, ew_str_of(key), &index)) {
        kept = ew_arena_copy(&view->arena, key, strlen(key));
        index = view->n_rules++;
        view->rules[index] = (struct ew_package_rule){.first = finding};
        if (!kept || ew_map_put(&view->by_rule, ew_str_of(kept), index, NULL) != EW_OK)
            return false;
    }
    view->rules[index].count++;
    return true;
}

int ew_package_view_make(struct ew_package_view *view, const struct ew_findings *findings, struct ew_error *err)
{
    bool ok;

    *view = (struct ew_package_view){0};
    ew_arena_init(&view->arena, VIEW_ARENA_MAX);
    view->packages = ew_alloc_array(findings->count + 1, sizeof(*view->packages));
    view->rules = ew_alloc_array(findings->count + 1, sizeof(*view->rules));
    ok = view->packages && view->rules && ew_map_init(&view->by_name, 64) == EW_OK &&
         ew_map_init(&view->by_rule, 64) == EW_OK;
    for (uint32_t i = 0; ok && i < findings->count; i++) {
        struct ew_str package = ew_package_of(findings->list[i].about);

        if (package.len)
            ok = add_package(view, package, findings->list[i].rule->severity) &&
                 add_rule(view, &findings->list[i], package);
    }
    if (ok)
        return EW_OK;
    ew_package_view_fini(view);
    return ew_fail_memory(err, findings->count * sizeof(*view->packages), "the report");
}

void ew_package_view_fini(struct ew_package_view *view)
{
    ew_map_fini(&view->by_name);
    ew_map_fini(&view->by_rule);
    ew_free(view->packages);
    ew_free(view->rules);
    ew_arena_fini(&view->arena);
    *view = (struct ew_package_view){0};
}

const struct ew_package_rule *ew_package_view_rule(const struct ew_package_view *view,
                                                   const struct ew_finding *finding)
{
    struct ew_str package = ew_package_of(finding->about);
    char key[KEY_BYTES_MAX];
    uint32_t index;

    if (!package.len || !make_key(finding, package, key) || !ew_map_get(&view->by_rule, ew_str_of(key), &index))
        return NULL;
    return &view->rules[index];
}
