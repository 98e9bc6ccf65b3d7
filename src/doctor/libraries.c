// What the machine's own libraries and tools offer, read from their files.

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/doctor.h"
#include "doctor/elf_file.h"
#include "format/json.h"
#include "format/mapfile.h"
#include "platform/packages.h"
#include "platform/sysfile.h"

#define PATH_BYTES_MAX 4096
#define HEADER_BYTES_MAX ((size_t)256 << 10)
#define ELF_ARENA_MAX ((size_t)4 << 20)

static const char *const g_library_dirs[] = {
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
};

// Dotted numbers after the prefix, compared part by part: 3.4.9 comes before 3.4.30.
static int compare_dotted(const char *a, const char *b)
{
    while (*a && *b) {
        char *a_end, *b_end;
        unsigned long x = strtoul(a, &a_end, 10), y = strtoul(b, &b_end, 10);

        if (a_end == a || b_end == b)
            break;
        if (x != y)
            return x < y ? -1 : 1;
        a = *a_end == '.' ? a_end + 1 : a_end;
        b = *b_end == '.' ? b_end + 1 : b_end;
    }
    return (*a != '\0') - (*b != '\0');
}

// The newest version with this prefix that the library defines, into text.
static void newest(const struct ew_elf *elf, const char *prefix, char *text, size_t size)
{
    size_t len = strlen(prefix);

    text[0] = '\0';
    for (uint32_t i = 0; i < elf->n_defines; i++) {
        char version[48];

        if (!ew_str_starts(elf->defines[i], prefix) || elf->defines[i].len - len >= sizeof(version))
            continue;
        snprintf(version, sizeof(version), "%.*s", (int)(elf->defines[i].len - len), elf->defines[i].ptr + len);
        if (version[0] >= '0' && version[0] <= '9' && (!text[0] || compare_dotted(text, version) < 0))
            snprintf(text, size, "%s", version);
    }
}

static bool find_library(const char *root, const char *name, char *path, size_t size)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_library_dirs); i++) {
        snprintf(path, size, "%s%s/%s", root ? root : "", g_library_dirs[i], name);
        if (access(path, R_OK) == 0)
            return true;
    }
    return false;
}

struct version_fact {
    const char *prefix, *fact;
};

static void read_versions(const char *root, const char *name, const struct version_fact *wanted, size_t n,
                          struct ew_facts *facts)
{
    char path[PATH_BYTES_MAX], text[48];
    struct ew_mapfile file;
    struct ew_arena arena;
    struct ew_elf elf;

    if (!find_library(root, name, path, sizeof(path)) || ew_mapfile_open(&file, path, NULL) != EW_OK)
        return;
    ew_arena_init(&arena, ELF_ARENA_MAX);
    if (ew_elf_parse(&elf, &arena, file.data, file.size, NULL) == EW_OK)
        for (size_t i = 0; i < n; i++) {
            newest(&elf, wanted[i].prefix, text, sizeof(text));
            if (text[0])
                ew_facts_set_str(facts, wanted[i].fact, ew_str_of(text), path + (root ? strlen(root) : 0));
        }
    ew_arena_fini(&arena);
    ew_mapfile_close(&file);
}

// "13.0.2" is 1300.
static bool cuda_number(struct ew_str version, double *out)
{
    char text[32];
    unsigned major, minor;

    snprintf(text, sizeof(text), "%.*s", (int)EW_MIN(version.len, sizeof(text) - 1), version.ptr);
    if (sscanf(text, "%u.%u", &major, &minor) != 2)
        return false;
    *out = major * 100 + minor * 10;
    return true;
}

// Toolkits that came as packages of another kind have no version.json: "#define CUDA_VERSION 13000".
static void read_toolkit_header(const char *root, struct ew_facts *facts)
{
    static const char mark[] = "#define CUDA_VERSION ";
    char *text = ew_alloc(HEADER_BYTES_MAX);
    const char *at;
    uint64_t version;

    if (text && ew_sysfile_read(root, "/usr/local/cuda/include/cuda.h", text, HEADER_BYTES_MAX) > 0 &&
        (at = strstr(text, mark)) && ew_sysfile_number(at + strlen(mark), &version) && version < 100000)
        ew_facts_set_number(facts, "tool_cuda", (double)(version / 1000 * 100 + version % 1000),
                            "/usr/local/cuda/include/cuda.h");
    ew_free(text);
}

static void read_toolkit(const char *root, struct ew_facts *facts)
{
    char path[PATH_BYTES_MAX];
    const struct ew_json *tree;
    struct ew_arena arena;
    double version;

    snprintf(path, sizeof(path), "%s/usr/local/cuda/version.json", root ? root : "");
    ew_arena_init(&arena, (size_t)1 << 20);
    if (access(path, R_OK) == 0 && ew_json_parse_file(&arena, path, (size_t)256 << 10, &tree, NULL) == EW_OK &&
        cuda_number(ew_json_str(ew_json_get(ew_json_get(tree, "cuda"), "version"), ""), &version))
        ew_facts_set_number(facts, "tool_cuda", version, "/usr/local/cuda/version.json");
    else
        read_toolkit_header(root, facts);
    ew_arena_fini(&arena);
}

// TensorRT and cuDNN as the package manager knows them.
static void read_packages(const char *root, struct ew_facts *facts)
{
    static const struct {
        const char *package, *fact;
    } wanted[] = {{"libnvinfer10", "trt_ver"},
                  {"libnvinfer8", "trt_ver"},
                  {"libcudnn9-cuda-13", "cudnn_ver"},
                  {"libcudnn9-cuda-12", "cudnn_ver"},
                  {"libcudnn8", "cudnn_ver"}};
    struct ew_packages packages;

    ew_packages_read(root, &packages);
    for (size_t i = 0; i < EW_COUNT_OF(wanted); i++) {
        struct ew_str version = ew_package_upstream(ew_package_version(&packages, wanted[i].package));

        if (version.len && !ew_facts_has_own(facts, wanted[i].fact))
            ew_facts_set_str(facts, wanted[i].fact, version, wanted[i].package);
    }
    ew_packages_free(&packages);
}

// ---- forward compatibility packages ----

// The note of a compat libcuda: JSON with the CUDA version and, for discrete GPUs, the driver branches it works with
// (NVIDIA container toolkit, issue 1271). A note without branches is one for Jetson.
static void read_compat_note(struct ew_facts *facts, const char *json)
{
    const char *version = strstr(json, "\"CUDA version\":\""), *drivers = strstr(json, "\"driver\":[");
    double branch = ew_facts_number(facts, "drv_branch", 0), cuda;
    bool listed = drivers == NULL;

    if (!version || !cuda_number(ew_str_of(version + strlen("\"CUDA version\":\"")), &cuda))
        return;
    ew_facts_set_number(facts, "compat_cuda", cuda, "note of the compat libcuda");
    if (!listed && branch == 0)
        return; // which driver there is, is not known: neither is whether they fit
    for (const char *at = drivers ? drivers + strlen("\"driver\":[") : ""; *at && *at != ']';) {
        char *end;

        listed |= strtod(at, &end) == branch;
        at = end + (*end == ',');
        if (end == at)
            break;
    }
    ew_facts_set_bool(facts, "compat_ok", listed, "note of the compat libcuda");
}

static bool read_compat(const char *root, const char *dir, struct ew_facts *facts)
{
    static const char mark[] = "{\"format\":";
    char path[PATH_BYTES_MAX], json[1024];
    struct ew_mapfile file;
    const unsigned char *at;

    snprintf(path, sizeof(path), "%s%s/libcuda.so.1", root ? root : "", dir);
    if (ew_mapfile_open(&file, path, NULL) != EW_OK)
        return false;
    ew_facts_set_bool(facts, "compat_present", true, dir);
    at = memmem(file.data, file.size, mark, sizeof(mark) - 1);
    if (at) {
        snprintf(json, sizeof(json), "%.*s", (int)EW_MIN(file.size - (uint64_t)(at - file.data), sizeof(json) - 1),
                 (const char *)at);
        read_compat_note(facts, json);
    }
    ew_mapfile_close(&file);
    return true;
}

static void read_compats(const char *root, struct ew_facts *facts)
{
    static const char *const patterns[] = {"/usr/local/cuda/compat", "/usr/local/cuda/compat_orin",
                                           "/usr/local/cuda-*/compat", "/usr/local/cuda-*/compat_orin"};
    size_t root_len = root ? strlen(root) : 0;

    if (ew_facts_has_own(facts, "compat_present"))
        return; // captured
    for (size_t i = 0; i < EW_COUNT_OF(patterns); i++) {
        char full[PATH_BYTES_MAX];
        bool found = false;
        glob_t dirs;

        snprintf(full, sizeof(full), "%s%s", root ? root : "", patterns[i]);
        if (glob(full, 0, NULL, &dirs) != 0)
            continue;
        for (size_t k = dirs.gl_pathc; k > 0 && !found; k--) // the newest toolkit is the last
            found = read_compat(root, dirs.gl_pathv[k - 1] + root_len, facts);
        globfree(&dirs);
        if (found)
            return;
    }
    ew_facts_set_bool(facts, "compat_present", false, "/usr/local/cuda/compat");
    ew_facts_set_bool(facts, "compat_ok", false, "/usr/local/cuda/compat");
}

void ew_doctor_probe_libraries(const char *root, struct ew_facts *facts)
{
    static const struct version_fact libc[] = {{"GLIBC_", "host_glibc"}};
    static const struct version_fact libstdcxx[] = {{"GLIBCXX_", "host_glibcxx"}, {"CXXABI_", "host_cxxabi"}};

    read_versions(root, "libc.so.6", libc, EW_COUNT_OF(libc), facts);
    read_versions(root, "libstdc++.so.6", libstdcxx, EW_COUNT_OF(libstdcxx), facts);
    if (ew_facts_get(facts, EW_STR("host_glibc")) && !ew_facts_has_own(facts, "host_libc"))
        ew_facts_set_str(facts, "host_libc", EW_STR("glibc"), "libc.so.6");
    read_toolkit(root, facts);
    ew_doctor_probe_pythons(root, facts);
    read_packages(root, facts);
    read_compats(root, facts);
}
