// The third pass: every file's facts over the machine's, and the rules over both.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/scan_internal.h"

#define CLOSURE_MAX 4096 // libraries behind one file; a Python extension of a large framework reaches about 100
#define NOT_FOUND UINT32_MAX

static const char *const g_system_dirs[] = {
    "/lib",
    "/usr/lib",
    "/lib64",
    "/usr/lib64",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/nvidia",
    "/usr/lib/aarch64-linux-gnu/tegra",
    "/usr/local/cuda/lib64",
    "/opt/nvidia/l4t-gpu-libs/nvgpu",
    "/opt/nvidia/l4t-gpu-libs/openrm",
};

struct judge {
    struct ew_scan *scan;
    struct ew_findings *findings;
    struct ew_map by_name; // base name of a library in the tree to its index
    uint32_t *queue;       // [CLOSURE_MAX]
    uint8_t *seen;         // [count] of the closure being walked
};

static struct ew_str base_name(struct ew_str path)
{
    const char *slash = memrchr(path.ptr, '/', path.len);

    return slash ? (struct ew_str){slash + 1, path.len - (size_t)(slash + 1 - path.ptr)} : path;
}

static bool machine_has(const struct judge *j, struct ew_str name)
{
    const char *root = j->scan->doctor->options.root;
    char path[4096];

    for (size_t i = 0; i < EW_COUNT_OF(g_system_dirs); i++) {
        snprintf(path, sizeof(path), "%s%s/%.*s", root ? root : "", g_system_dirs[i], (int)EW_MIN(name.len, 255),
                 name.ptr);
        if (access(path, F_OK) == 0)
            return true;
    }
    return false;
}

static uint32_t in_tree(const struct judge *j, struct ew_str name)
{
    uint32_t index;

    return ew_map_get(&j->by_name, name, &index) ? index : NOT_FOUND;
}

// Beside the file, or where its own RUNPATH ($ORIGIN/...) leads: then the dynamic linker finds it without help.
static bool reachable(const struct ew_scan_file *from, const struct ew_scan_file *to)
{
    size_t dir = from->path.len - base_name(from->path).len;

    if (to->path.len > dir && memcmp(to->path.ptr, from->path.ptr, dir) == 0 &&
        !memchr(to->path.ptr + dir, '/', to->path.len - dir))
        return true;
    return ew_str_find(from->runpath, EW_STR("$ORIGIN"), 0) >= 0 ||
           ew_str_find(from->runpath, EW_STR("${ORIGIN}"), 0) >= 0;
}

static uint32_t cuda_major(struct ew_str soname)
{
    static const char *const prefixes[] = {"libcudart.so.", "libcublas.so.", "libcublasLt.so.", "libnvrtc.so.",
                                           "libnvJitLink.so."};

    for (size_t i = 0; i < EW_COUNT_OF(prefixes); i++)
        if (ew_str_starts(soname, prefixes[i]) && soname.len - strlen(prefixes[i]) >= 2) {
            const char *digits = soname.ptr + strlen(prefixes[i]);

            return digits[0] >= '1' && digits[0] <= '9' && digits[1] >= '0' && digits[1] <= '9'
                       ? (uint32_t)(digits[0] - '0') * 10 + (uint32_t)(digits[1] - '0')
                       : 0;
        }
    return 0;
}

static uint32_t bit_count(uint64_t bits)
{
    return (uint32_t)__builtin_popcountll(bits);
}

// Distinct CUDA majors that a file and everything it needs inside the tree ask for.
static uint32_t closure_majors(struct judge *j, uint32_t start)
{
    uint32_t head = 0, tail = 0;
    uint64_t majors = 0;

    j->queue[tail++] = start;
    j->seen[start] = 1;
    while (head < tail) {
        const struct ew_scan_file *file = &j->scan->files[j->queue[head++]];

        for (uint32_t i = 0; i < file->n_needed; i++) {
            uint32_t major = cuda_major(file->needed[i]), next = in_tree(j, file->needed[i]);

            majors |= major && major < 64 ? 1ull << major : 0;
            if (next != NOT_FOUND && !j->seen[next] && tail < CLOSURE_MAX) {
                j->seen[next] = 1;
                j->queue[tail++] = next;
            }
        }
    }
    while (tail > 0)
        j->seen[j->queue[--tail]] = 0;
    return bit_count(majors);
}

static void set_needs(struct judge *j, const struct ew_scan_file *file, struct ew_facts *facts)
{
    struct ew_str missing[EW_SCAN_NEEDS_MAX], wheels[EW_SCAN_NEEDS_MAX];
    uint32_t n_missing = 0, n_wheels = 0;

    for (uint32_t i = 0; i < file->n_needed; i++) {
        uint32_t found = in_tree(j, file->needed[i]);

        if (found != NOT_FOUND && !reachable(file, &j->scan->files[found]))
            wheels[n_wheels++] = file->needed[i];
        else if (found == NOT_FOUND && !machine_has(j, file->needed[i]))
            missing[n_missing++] = file->needed[i];
    }
    ew_facts_set_strs(facts, "elf_needed", file->needed, file->n_needed, "DT_NEEDED");
    ew_facts_set_strs(facts, "elf_missing", missing, n_missing, "DT_NEEDED against the tree and the machine");
    ew_facts_set_strs(facts, "elf_only_in_wheels", wheels, n_wheels, "DT_NEEDED against the tree");
}

// A library whose name on disk promises another major than its SONAME: a renamed link that symbol versions will refuse.
static void set_soname_mismatch(const struct ew_scan_file *file, struct ew_facts *facts)
{
    struct ew_str name = base_name(file->path);
    bool versioned = ew_str_find(name, EW_STR(".so."), 0) >= 0;
    uint32_t by_name = cuda_major(name), by_soname = cuda_major(file->soname);

    if (versioned && by_name && by_soname && by_name != by_soname)
        ew_facts_set_strs(facts, "soname_mismatch", &name, 1, "DT_SONAME");
    else
        ew_facts_set_strs(facts, "soname_mismatch", NULL, 0, "DT_SONAME");
}

static void set_version(struct ew_facts *facts, const char *key, struct ew_str version)
{
    // Nothing needed is version 0: older than every machine's.
    ew_facts_set_str(facts, key, version.len ? version : EW_STR("0"), ".gnu.version_r");
}

static void set_elf(struct judge *j, const struct ew_scan_file *file, struct ew_facts *facts)
{
    if (!file->is_elf || file->machine == EW_ELF_MACHINE_CUDA)
        return;
    ew_facts_set_str(facts, "elf_arch", ew_str_of(ew_elf_machine_name(file->machine)), "ELF e_machine");
    ew_facts_set_str(facts, "elf_libc", file->musl ? EW_STR("musl") : EW_STR("glibc"), "DT_NEEDED");
    set_version(facts, "elf_glibc", file->glibc);
    set_version(facts, "elf_glibcxx", file->glibcxx);
    set_version(facts, "elf_cxxabi", file->cxxabi);
    set_needs(j, file, facts);
    set_soname_mismatch(file, facts);
    ew_facts_set_number(facts, "closure_cuda_majors", closure_majors(j, (uint32_t)(file - j->scan->files)),
                        "DT_NEEDED closure");
}

static void set_gpu_code(const struct ew_scan_file *file, struct ew_facts *facts)
{
    const struct ew_gpu_verdict *v = &file->verdict;
    bool cc_known = ew_facts_get(facts, EW_STR("gpu_cc")) != NULL;

    ew_facts_set_number(facts, "fb_total", v->total, "fatbins and cubins");
    if (!file->has_gpu_code)
        return;
    ew_facts_set_numbers(facts, "fb_sms", file->sms, file->n_sms, "fatbin entries");
    ew_facts_set_numbers(facts, "fb_a_sms", file->a_sms, file->n_a_sms, "fatbin entries");
    ew_facts_set_numbers(facts, "fb_f_sms", file->f_sms, file->n_f_sms, "fatbin entries");
    ew_facts_set_bool(facts, "fb_zstd", v->zstd, "fatbin flags");
    ew_facts_set_bool(facts, "fb_lto_only", v->lto_only, "fatbin entries");
    if (file->toolkit)
        ew_facts_set_number(facts, "fb_toolkit", file->toolkit, "cubin notes");
    if (!cc_known)
        return; // what this GPU can run is not known without a GPU
    ew_facts_set_number(facts, "fb_sass", v->sass, "fatbin entries");
    ew_facts_set_number(facts, "fb_jit", v->jit, "fatbin entries");
    ew_facts_set_bool(facts, "fb_blocked_a", v->blocked_a, "fatbin flags");
    ew_facts_set_bool(facts, "fb_blocked_f", v->blocked_f, "fatbin flags");
    ew_facts_set_number(facts, "fb_ptx_cuda", v->ptx_cuda, "PTX versions");
}

// "manylinux_2_28_aarch64.manylinux2014_aarch64": the architecture, and the oldest glibc that any of the tags
// accepts (PEP 600).
static void set_platform_tag(const struct ew_scan_file *file, struct ew_facts *facts)
{
    static const struct {
        const char *tag, *glibc;
    } legacy[] = {{"manylinux1", "2.5"}, {"manylinux2010", "2.12"}, {"manylinux2014", "2.17"}};
    char tag[256], glibc[32] = "0";
    unsigned major, minor;
    const char *at;

    snprintf(tag, sizeof(tag), "%.*s", (int)EW_MIN(file->platform_tag.len, sizeof(tag) - 1), file->platform_tag.ptr);
    if (strcmp(tag, "any") == 0)
        ew_facts_set_str(facts, "whl_arch", EW_STR("any"), "wheel tag");
    else if (strstr(tag, "aarch64") || strstr(tag, "x86_64"))
        ew_facts_set_str(facts, "whl_arch", strstr(tag, "aarch64") ? EW_STR("aarch64") : EW_STR("x86_64"), "wheel tag");
    at = strstr(tag, "manylinux_");
    if (at && sscanf(at, "manylinux_%u_%u", &major, &minor) == 2)
        snprintf(glibc, sizeof(glibc), "%u.%u", major, minor);
    for (size_t i = 0; i < EW_COUNT_OF(legacy); i++)
        if (!at && strstr(tag, legacy[i].tag))
            snprintf(glibc, sizeof(glibc), "%s", legacy[i].glibc);
    ew_facts_set_str(facts, "whl_glibc", ew_str_of(glibc), "wheel tag");
}

// "cp312" is exactly 3.12; "py3" any; with the stable ABI it would be a minimum, which Requires-Python tells as well.
static void set_python(const struct ew_scan_file *file, struct ew_facts *facts)
{
    char tag[64], requires[128];
    unsigned major, minor;
    const char *at;

    snprintf(tag, sizeof(tag), "%.*s", (int)EW_MIN(file->python_tag.len, sizeof(tag) - 1), file->python_tag.ptr);
    snprintf(requires, sizeof(requires), "%.*s", (int)EW_MIN(file->requires_python.len, sizeof(requires) - 1),
             file->requires_python.ptr);
    ew_facts_set_number(facts, "whl_py_exact", sscanf(tag, "cp%1u%u", &major, &minor) == 2 ? major * 100 + minor : 0,
                        "wheel tag");
    at = strstr(requires, ">=");
    ew_facts_set_number(facts, "whl_py_min",
                        at && sscanf(at, ">= %u.%u", &major, &minor) == 2 ? major * 100 + minor : 0, "Requires-Python");
}

static void set_package(const struct ew_scan_file *file, struct ew_facts *facts)
{
    char name[128];
    size_t len = EW_MIN(file->package.len, sizeof(name) - 1);

    for (size_t i = 0; i < len; i++) { // PEP 503: case and separators do not matter
        char c = file->package.ptr[i];

        name[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c == '_' || c == '.' ? '-' : c;
    }
    ew_facts_set_str(facts, "pkg", (struct ew_str){name, len}, "metadata");
    if (file->version.len)
        ew_facts_set_str(facts, "pkg_ver", file->version, "metadata");
    ew_facts_set_number(facts, "pkg_cuda", file->package_cuda, "metadata");
    ew_facts_set_bool(facts, "pkg_prefix_nvidia_cu",
                      len > 7 && strncmp(name, "nvidia-", 7) == 0 && strstr((name[len] = '\0', name), "-cu"),
                      "metadata");
    if (file->kind == EW_SCAN_WHEEL) {
        ew_facts_set_bool(facts, "pkg_pure", file->pure, "wheel tag");
        set_platform_tag(file, facts);
        set_python(file, facts);
    }
}

static void judge_file(struct judge *j, const struct ew_scan_file *file)
{
    static const enum ew_subject subjects[] = {
        [EW_SCAN_LIBRARY] = EW_SUBJECT_FILE,    [EW_SCAN_WHEEL] = EW_SUBJECT_PACKAGE,
        [EW_SCAN_PACKAGE] = EW_SUBJECT_PACKAGE, [EW_SCAN_REQUIREMENTS] = EW_SUBJECT_PACKAGE,
        [EW_SCAN_PLAN] = EW_SUBJECT_PLAN,
    };
    struct ew_facts facts;

    if (file->unreadable || (file->kind == EW_SCAN_LIBRARY && !file->is_elf && !file->has_gpu_code) ||
        (file->kind == EW_SCAN_REQUIREMENTS && !file->package.len) ||
        ew_facts_init(&facts, &j->scan->doctor->facts, NULL) != EW_OK)
        return;
    ew_facts_set_str(&facts, "file", file->path, "scan");
    if (file->kind == EW_SCAN_LIBRARY) {
        set_elf(j, file, &facts);
        set_gpu_code(file, &facts);
    } else if (file->kind == EW_SCAN_PLAN) {
        ew_facts_set_str(&facts, "plan_trt", file->plan_version, "plan header");
        ew_facts_set_numbers(&facts, "plan_sms", file->sms, file->n_sms, "cubins in the plan");
    } else {
        set_package(file, &facts);
    }
    ew_rules_apply(&j->scan->doctor->rules, subjects[file->kind], &facts, file->path, j->findings);
    j->findings->failed |= facts.failed;
    ew_facts_fini(&facts);
}

static int by_path(const void *a, const void *b)
{
    const struct ew_scan_file *x = a, *y = b;

    return ew_str_compare(x->path, y->path);
}

void ew__scan_judge(struct ew_scan *scan, struct ew_findings *findings)
{
    struct judge j = {.scan = scan, .findings = findings};

    if (scan->count)
        qsort(scan->files, scan->count, sizeof(*scan->files), by_path); // the order of threads must not show
    j.queue = ew_alloc_array(CLOSURE_MAX, sizeof(*j.queue));
    j.seen = ew_alloc_array(scan->count, 1);
    if (!j.queue || !j.seen || ew_map_init(&j.by_name, scan->count) != EW_OK) {
        scan->failed = true;
        goto out;
    }
    for (uint32_t i = 0; i < scan->count; i++)
        if (scan->files[i].is_elf && ew_map_put(&j.by_name, base_name(scan->files[i].path), i, NULL) != EW_OK)
            scan->failed = true;
    for (uint32_t i = 0; i < scan->count; i++)
        judge_file(&j, &scan->files[i]);
    ew_map_fini(&j.by_name);
out:
    ew_free(j.seen);
    ew_free(j.queue);
}
