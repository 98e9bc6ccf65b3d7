// The third pass: every file's facts over the machine's, and the rules over both.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "doctor/library_index.h"
#include "doctor/scan_internal.h"

#define CLOSURE_MAX 4096 // libraries behind one file; a Python extension of a large framework reaches about 100
#define NOT_FOUND UINT32_MAX

struct judge {
    struct ew_scan *scan;
    struct ew_findings *findings;
    struct ew_library_index machine; // what the machine offers
    struct ew_facts tree;            // what the scanned files say together, over the machine's facts
    struct ew_map by_name;           // base name of a library in the tree to its index
    uint32_t *queue;                 // [CLOSURE_MAX]
    uint8_t *seen;                   // [count] of the closure being walked
};

static uint32_t in_tree(const struct judge *j, struct ew_str name)
{
    uint32_t index;

    return ew_map_get(&j->by_name, name, &index) ? index : NOT_FOUND;
}

// Takes the last folder off; "/a/b" becomes "/a".
static struct ew_str parent_of(struct ew_str path)
{
    const char *slash = memrchr(path.ptr, '/', path.len);

    return (struct ew_str){path.ptr, slash ? (size_t)(slash - path.ptr) : 0};
}

// One entry of a RUNPATH, "$ORIGIN/../lib", against the folder of the library that was found.
static bool entry_leads_to(struct ew_str entry, struct ew_str origin, struct ew_str folder)
{
    char path[4096];
    struct ew_str at = {path, 0};
    size_t skip = ew_str_starts(entry, "$ORIGIN") ? 7 : ew_str_starts(entry, "${ORIGIN}") ? 9 : 0;

    if (skip == 0 || origin.len >= sizeof(path))
        return false;
    memcpy(path, origin.ptr, origin.len);
    at.len = origin.len;
    while (skip < entry.len) {
        struct ew_str part = {entry.ptr + skip, 0};

        while (skip + part.len < entry.len && part.ptr[part.len] != '/')
            part.len++;
        skip += part.len + 1;
        if (ew_str_is(part, ".."))
            at = parent_of(at);
        else if (part.len && !ew_str_is(part, ".") && at.len + 1 + part.len < sizeof(path)) {
            path[at.len] = '/';
            memcpy(path + at.len + 1, part.ptr, part.len);
            at.len += part.len + 1;
        }
    }
    return ew_str_eq(at, folder);
}

// Whether the file's own RUNPATH leads there: then the dynamic linker finds it without help.
static bool reachable(const struct ew_scan_file *from, const struct ew_scan_file *to)
{
    struct ew_str origin = parent_of(from->path), folder = parent_of(to->path);
    size_t at = 0;

    while (at < from->runpath.len) {
        struct ew_str entry = {from->runpath.ptr + at, 0};

        while (at + entry.len < from->runpath.len && entry.ptr[entry.len] != ':')
            entry.len++;
        if (entry_leads_to(entry, origin, folder))
            return true;
        at += entry.len + 1;
    }
    return false;
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

// Families that rules of their own speak about, so that "missing libraries" does not say the same again.
static bool has_own_rule(struct ew_str name)
{
    static const char *const prefixes[] = {"libcudart.so.",   "libcublas",        "libcudnn.so.8",
                                           "libnvinfer.so.8", "libnvinfer.so.10", "libcuda.so.1"};

    for (size_t i = 0; i < EW_COUNT_OF(prefixes); i++)
        if (ew_str_starts(name, prefixes[i]))
            return true;
    return false;
}

static void set_needs(struct judge *j, const struct ew_scan_file *file, struct ew_facts *facts)
{
    struct ew_str missing[EW_SCAN_NEEDS_MAX], other[EW_SCAN_NEEDS_MAX], wheels[EW_SCAN_NEEDS_MAX];
    uint32_t n_missing = 0, n_other = 0, n_wheels = 0;

    for (uint32_t i = 0; i < file->n_needed; i++) {
        uint32_t found = in_tree(j, file->needed[i]);

        if (ew_library_index_has(&j->machine, file->needed[i]))
            continue;
        if (found == NOT_FOUND) {
            missing[n_missing++] = file->needed[i];
            if (!has_own_rule(file->needed[i]))
                other[n_other++] = file->needed[i];
        } else if (!reachable(file, &j->scan->files[found])) {
            wheels[n_wheels++] = file->needed[i];
        }
    }
    ew_facts_set_strs(facts, "elf_needed", file->needed, file->n_needed, "DT_NEEDED");
    if (!j->machine.known)
        return; // a tree that does not tell its libraries
    ew_facts_set_strs(facts, "elf_missing", missing, n_missing, "DT_NEEDED against the tree and the machine");
    ew_facts_set_strs(facts, "elf_missing_other", other, n_other, "elf_missing without those of rules of their own");
    ew_facts_set_strs(facts, "elf_only_in_wheels", wheels, n_wheels, "DT_NEEDED against the tree");
}

// A library whose name on disk promises another major than its SONAME: a renamed link that symbol versions will refuse.
static bool is_renamed(const struct ew_scan_file *file)
{
    struct ew_str name = ew__scan_base_name(file->path);
    bool versioned = ew_str_find(name, EW_STR(".so."), 0) >= 0;
    uint32_t by_name = cuda_major(name), by_soname = cuda_major(file->soname);

    return versioned && by_name && by_soname && by_name != by_soname;
}

static void set_soname_mismatch(const struct ew_scan_file *file, struct ew_facts *facts)
{
    struct ew_str name = ew__scan_base_name(file->path);

    if (is_renamed(file))
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
    else if (strstr(tag, "linux") && (strstr(tag, "aarch64") || strstr(tag, "x86_64")))
        ew_facts_set_str(facts, "whl_arch", strstr(tag, "aarch64") ? EW_STR("aarch64") : EW_STR("x86_64"), "wheel tag");
    else if (tag[0])
        ew_facts_set_str(facts, "whl_arch", ew_str_of(tag), "wheel tag"); // another system, or a rare processor
    if (strstr(tag, "linux_aarch64") && !strstr(tag, "manylinux")) // unaudited: how Jetson's own indexes tag theirs
        ew_facts_set_str(facts, "whl_index", EW_STR("jetson"), "wheel tag");
    else if (strstr(tag, "manylinux"))
        ew_facts_set_str(facts, "whl_index", EW_STR("pypi"), "wheel tag");
    at = strstr(tag, "manylinux_");
    if (at && sscanf(at, "manylinux_%u_%u", &major, &minor) == 2)
        snprintf(glibc, sizeof(glibc), "%u.%u", major, minor);
    for (size_t i = 0; i < EW_COUNT_OF(legacy); i++)
        if (!at && strstr(tag, legacy[i].tag))
            snprintf(glibc, sizeof(glibc), "%s", legacy[i].glibc);
    ew_facts_set_str(facts, "whl_glibc", ew_str_of(glibc), "wheel tag");
}

// "cp312" is exactly 3.12, with the stable ABI (PEP 425, abi3) at least that; "py3" is any.
static void set_python(const struct ew_scan_file *file, struct ew_facts *facts)
{
    char tag[64], requires[128];
    unsigned major, minor, exact = 0, least = 0;
    const char *at;

    snprintf(tag, sizeof(tag), "%.*s", (int)EW_MIN(file->python_tag.len, sizeof(tag) - 1), file->python_tag.ptr);
    snprintf(requires, sizeof(requires), "%.*s", (int)EW_MIN(file->requires_python.len, sizeof(requires) - 1),
             file->requires_python.ptr);
    if (sscanf(tag, "cp%1u%u", &major, &minor) == 2)
        *(ew_str_is(file->abi_tag, "abi3") ? &least : &exact) = major * 100 + minor;
    at = strstr(requires, ">=");
    if (at && sscanf(at, ">= %u.%u", &major, &minor) == 2)
        least = EW_MAX(least, major * 100 + minor);
    ew_facts_set_number(facts, "whl_py_exact", exact, "wheel tag");
    ew_facts_set_number(facts, "whl_py_min", least, "wheel tag, Requires-Python");
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
    ew_facts_set_bool(facts, "pkg_listed", file->kind == EW_SCAN_REQUIREMENTS, "kind of file");
    ew_facts_set_str(facts, "req_torch", file->requires_torch.len ? file->requires_torch : EW_STR("0"),
                     "Requires-Dist");
    if (file->platform_tag.len) {
        ew_facts_set_bool(facts, "pkg_pure", file->pure, "wheel tag");
        set_platform_tag(file, facts);
    } else { // a bare name in a list: what pip will choose for it is not known, and nothing is held against it
        ew_facts_set_str(facts, "whl_arch", EW_STR("any"), "no wheel named");
        ew_facts_set_str(facts, "whl_glibc", EW_STR("0"), "no wheel named");
        ew_facts_set_bool(facts, "pkg_pure", false, "no wheel named");
    }
    set_python(file, facts);
    if (ew_str_is(file->package, "requires-python"))
        ew_facts_set_number(facts, "req_python", ew_facts_number(facts, "whl_py_min", 0), "pyproject.toml");
    else
        ew_facts_set_number(facts, "req_python", 0, "asked by projects only");
    if (file->n_sms)
        ew_facts_set_numbers(facts, "fb_sms", file->sms, file->n_sms, "libraries of the wheel");
}

static void set_image(const struct ew_scan_file *file, struct ew_facts *facts)
{
    const struct ew_scan_image *image = file->image;

    ew_facts_set_str(facts, "image", ew_str_of(image->name), "reference");
    ew_facts_set_number(facts, "img_l4t_major", image->l4t_major, "tag or /etc/nv_tegra_release");
    ew_facts_set_number(facts, "img_ngc_release", image->ngc_release, "tag");
    ew_facts_set_bool(facts, "img_igpu", image->igpu, "tag");
    if (image->l4t_major)
        ew_facts_set_str(facts, "img_l4t", ew_str_of(image->l4t), "tag or /etc/nv_tegra_release");
    if (image->arch[0])
        ew_facts_set_str(facts, "img_arch", ew_str_of(image->arch), "platform, name or dynamic linker");
    if (image->cuda)
        ew_facts_set_number(facts, "img_cuda", image->cuda, "tag or version.json");
    if (image->require_cuda)
        ew_facts_set_number(facts, "require_cuda", image->require_cuda, "tag or environment");
}

static void set_request(const struct ew_scan_file *file, struct ew_facts *facts)
{
    for (uint32_t i = 0; i < file->n_options; i++) {
        const struct ew_scan_option *option = file->options[i];

        if (option->text)
            ew_facts_set_str(facts, option->fact, file->option_values[i], option->option);
        else
            ew_facts_set_number(facts, option->fact, strtod(file->option_values[i].ptr, NULL), option->option);
    }
}

// Recipes and lists are judged by what they name; what could not be read, or is no library, has nothing to judge.
static bool is_judged(const struct ew_scan_file *file)
{
    switch (file->kind) {
    case EW_SCAN_LIBRARY:
        return !file->unreadable && (file->is_elf || file->has_gpu_code) && (!file->alias || is_renamed(file));
    case EW_SCAN_REQUIREMENTS:
        return file->package.len > 0;
    case EW_SCAN_RECIPE:
    case EW_SCAN_COMPOSE:
        return false;
    case EW_SCAN_IMAGE:
        return file->image != NULL;
    default:
        return !file->unreadable;
    }
}

// The Python that a file is installed for, by its folder (lib/python3.12/site-packages): virtual environments, conda
// and uv keep that layout, and what is in them is not for the machine's own Python. 0: by no such folder.
static double python_of(struct ew_str path)
{
    static const char mark[] = "/python3.";
    ptrdiff_t at = -1, next = ew_str_find(path, EW_STR("/python3."), 0);
    uint64_t minor;
    size_t digits = 0;

    while (next >= 0) { // the last one, nearest to the file
        at = next;
        next = ew_str_find(path, EW_STR("/python3."), (size_t)at + 1);
    }
    if (at < 0)
        return 0;
    path = (struct ew_str){path.ptr + at + strlen(mark), path.len - (size_t)at - strlen(mark)};
    while (digits < path.len && path.ptr[digits] >= '0' && path.ptr[digits] <= '9')
        digits++;
    if (digits == path.len || path.ptr[digits] != '/' || !ew_str_to_u64((struct ew_str){path.ptr, digits}, &minor) ||
        minor > 99)
        return 0;
    return 300 + (double)minor;
}

static void set_facts(struct judge *j, const struct ew_scan_file *file, struct ew_facts *facts)
{
    double python = python_of(file->path);

    ew_facts_set_str(facts, "file", file->path, "scan");
    if (python > 0)
        ew_facts_set_number(facts, "host_python", python, "folder");
    switch (file->kind) {
    case EW_SCAN_LIBRARY:
        set_elf(j, file, facts);
        set_gpu_code(file, facts);
        break;
    case EW_SCAN_PLAN:
        ew_facts_set_str(facts, "plan_trt", file->plan_version, "plan header");
        ew_facts_set_numbers(facts, "plan_sms", file->sms, file->n_sms, "cubins in the plan");
        break;
    case EW_SCAN_IMAGE:
        set_image(file, facts);
        break;
    case EW_SCAN_REQUEST:
        set_request(file, facts);
        break;
    default:
        set_package(file, facts);
    }
}

// What findings are about: the file, and in lists the package or image that it names.
static struct ew_str about(const struct ew_scan_file *file, char *text, size_t size)
{
    struct ew_str what = file->kind == EW_SCAN_REQUIREMENTS ? file->package
                         : file->image                      ? ew_str_of(file->image->name)
                                                            : EW_STR("");

    if (!what.len || ew_str_eq(what, file->path))
        return file->path;
    snprintf(text, size, EW_STR_FMT ": " EW_STR_FMT, EW_STR_ARG(file->path), EW_STR_ARG(what));
    return ew_str_of(text);
}

static void judge_file(struct judge *j, const struct ew_scan_file *file)
{
    static const enum ew_subject subjects[] = {
        [EW_SCAN_LIBRARY] = EW_SUBJECT_FILE,    [EW_SCAN_WHEEL] = EW_SUBJECT_PACKAGE,
        [EW_SCAN_PACKAGE] = EW_SUBJECT_PACKAGE, [EW_SCAN_REQUIREMENTS] = EW_SUBJECT_PACKAGE,
        [EW_SCAN_PLAN] = EW_SUBJECT_PLAN,       [EW_SCAN_IMAGE] = EW_SUBJECT_IMAGE,
        [EW_SCAN_REQUEST] = EW_SUBJECT_REQUEST,
    };
    struct ew_facts facts;
    char text[8192];

    if (!is_judged(file) || ew_facts_init(&facts, &j->tree, NULL) != EW_OK)
        return;
    set_facts(j, file, &facts);
    ew_rules_apply(&j->scan->doctor->rules, subjects[file->kind], &facts, about(file, text, sizeof(text)), j->findings);
    j->findings->failed |= facts.failed;
    ew_facts_fini(&facts);
}

// Which frameworks stand in the tree: known only where installed packages were scanned.
static void set_tree(struct judge *j)
{
    const struct ew_scan *scan = j->scan;
    struct ew_str torch = EW_STR("");
    bool packages = false, triton = false;

    for (uint32_t i = 0; i < scan->count; i++) {
        const struct ew_scan_file *file = &scan->files[i];

        if (file->ptxas_cuda && ew_str_find(file->path, EW_STR("triton/"), 0) >= 0)
            ew_facts_set_number(&j->tree, "triton_ptxas_cuda", file->ptxas_cuda, "release string of Triton's ptxas");
        if (file->kind != EW_SCAN_PACKAGE)
            continue;
        packages = true;
        triton |= ew_str_is(file->package, "triton");
        if (ew_str_is(file->package, "torch"))
            torch = file->version;
    }
    if (packages)
        ew_facts_set_bool(&j->tree, "have_triton", triton, "installed packages");
    if (torch.len)
        ew_facts_set_str(&j->tree, "have_torch", torch, "installed packages");
}

static int by_path(const void *a, const void *b)
{
    const struct ew_scan_file *x = a, *y = b;

    return ew_str_compare(x->path, y->path);
}

static void read_libraries(struct judge *j)
{
    struct ew_library_index machine;

    if (j->scan->doctor->options.profile)
        ew_library_index_of_facts(&j->machine, &j->scan->doctor->facts);
    else
        ew_library_index_read(&j->machine, j->scan->doctor->options.root);
    if (j->scan->image_root.len) {
        machine = j->machine;
        ew_library_index_read(&j->machine, j->scan->image_root.ptr);
        ew_library_index_add_driver(&j->machine, &machine);
        ew_library_index_fini(&machine);
    }
    j->scan->failed |= j->machine.failed;
}

void ew__scan_judge(struct ew_scan *scan, struct ew_findings *findings)
{
    struct judge j = {.scan = scan, .findings = findings};

    if (scan->count)
        qsort(scan->files, scan->count, sizeof(*scan->files), by_path); // the order of threads must not show
    read_libraries(&j);
    j.queue = ew_alloc_array(CLOSURE_MAX, sizeof(*j.queue));
    j.seen = ew_alloc_array(scan->count, 1);
    if (ew_facts_init(&j.tree, &scan->doctor->facts, NULL) != EW_OK || !j.queue || !j.seen ||
        ew_map_init(&j.by_name, scan->count) != EW_OK) {
        scan->failed = true;
        goto out;
    }
    for (uint32_t i = 0; i < scan->count; i++)
        if (scan->files[i].is_elf && ew_map_put(&j.by_name, ew__scan_base_name(scan->files[i].path), i, NULL) != EW_OK)
            scan->failed = true;
    if (scan->image_root.len) // the image's own libc, Python and CUDA count, not the machine's
        ew_doctor_probe_libraries(scan->image_root.ptr, &j.tree);
    set_tree(&j);
    for (uint32_t i = 0; i < scan->count; i++)
        judge_file(&j, &scan->files[i]);
    ew_map_fini(&j.by_name);
out:
    ew_facts_fini(&j.tree);
    ew_library_index_fini(&j.machine);
    ew_free(j.seen);
    ew_free(j.queue);
}
