#include "doctor/capture.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/library_index.h"
#include "doctor/tar_write.h"
#include "platform/memory.h"
#include "platform/sysfile.h"

#define FILE_BYTES_MAX ((size_t)64 << 10) // of one captured file; those of /proc and /sys are far smaller
#define STATUS_BYTES_MAX ((size_t)32 << 20)
#define NAMES_BYTES_MAX ((size_t)4 << 20)

// Taken as they are. The help of doctor names what is in these lists.
static const char *const g_whole[] = {
    "/etc/os-release",
    "/etc/nv_tegra_release",
    "/etc/nv_boot_control.conf",
    "/etc/nvpmodel.conf",
    "/etc/dgx-release",
    "/usr/local/cuda/version.json",
    "/var/lib/nvpmodel/status",
    "/proc/meminfo",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/proc/driver/nvidia/version",
    "/sys/class/dmi/id/product_name",
    "/sys/module/nvgpu/initstate",
    "/sys/class/hwmon/hwmon*/name",
    "/sys/class/hwmon/hwmon*/in[0-9]_label",
    "/sys/class/hwmon/hwmon*/in[0-9]_input",
    "/sys/class/hwmon/hwmon*/curr[0-9]_input",
    "/sys/class/hwmon/hwmon*/curr[0-9]_*_alarm",
    "/sys/class/hwmon/hwmon*/power1_input",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
    "/sys/class/thermal/thermal_zone*/trip_point_*_type",
    "/sys/class/thermal/thermal_zone*/trip_point_*_temp",
    "/sys/class/thermal/cooling_device*/type",
    "/sys/class/thermal/cooling_device*/cur_state",
    "/sys/class/devfreq/*/cur_freq",
    "/sys/class/devfreq/*/min_freq",
    "/sys/class/devfreq/*/max_freq",
    "/sys/class/devfreq/*/governor",
    "/sys/class/thermal/cooling_device*/stats/time_in_state_ms",
    "/sys/block/[!lzrd]*/queue/rotational",
    "/sys/block/nvme*/device/device/current_link_speed",
    "/sys/block/nvme*/device/device/current_link_width",
    NULL,
};

// Cut to the lines that name one of g_words: the rest may hold registry passwords and tokens.
static const char *const g_cut[] = {
    "/etc/docker/daemon.json",
    "/etc/containerd/config.toml",
    "/etc/crio/crio.conf",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/server/manifests/*.yaml",
    "/var/lib/rancher/k3s/server/manifests/*.yml",
    NULL,
};
static const char *const g_words[] = {
    "nvidia", "RuntimeClass", "timeSlicing:", "mps:", "gpu-operator", "DiscoveryStrategy", "discovery-strategy"};

// Only that they are there.
static const char *const g_present[] = {
    "/etc/cdi/*",           "/var/run/cdi/*",      "/run/cdi/*",  "/etc/rancher/k3s",
    "/var/lib/rancher/k3s", "/etc/kubernetes",     "/.dockerenv", "/run/.containerenv",
    "/usr/bin/docker",      "/usr/bin/containerd", NULL,
};

struct capture {
    const struct ew_doctor *doctor;
    const char *root; // "" for this machine
    FILE *to;
    char *text; // [FILE_BYTES_MAX]
    struct ew_error *err;
};

static int add(struct capture *c, const char *path, struct ew_str content)
{
    return ew_tar_add(c->to, path + 1, content, c->err);
}

static int add_whole(struct capture *c, const char *path)
{
    ptrdiff_t len = ew_sysfile_read(c->root, path, c->text, FILE_BYTES_MAX);

    return len < 0 ? EW_OK : add(c, path, (struct ew_str){c->text, (size_t)len}); // unreadable without root: left out
}

static int add_cut(struct capture *c, const char *path)
{
    ptrdiff_t len = ew_sysfile_read(c->root, path, c->text, FILE_BYTES_MAX);
    struct ew_buf out;
    int code;

    if (len < 0)
        return EW_OK;
    ew_buf_init(&out, FILE_BYTES_MAX);
    ew_buf_append_str(&out, EW_STR("# cut to the lines about NVIDIA\n"));
    for (char *line = c->text, *end; *line; line = end) {
        struct ew_str one;
        bool wanted = false;

        end = line + strcspn(line, "\n");
        one = (struct ew_str){line, (size_t)(end - line)};
        for (size_t i = 0; i < EW_COUNT_OF(g_words); i++)
            wanted |= ew_str_find(one, ew_str_of(g_words[i]), 0) >= 0;
        if (wanted) {
            ew_buf_append_str(&out, one);
            ew_buf_append_char(&out, '\n');
        }
        end += *end == '\n';
    }
    code = ew_buf_ok(&out) ? add(c, path, ew_buf_str(&out)) : ew_fail_memory(c->err, FILE_BYTES_MAX, "a capture");
    ew_buf_fini(&out);
    return code;
}

static int add_presence(struct capture *c, const char *path)
{
    char full[4096];
    struct stat info;

    snprintf(full, sizeof(full), "%s%s", c->root, path);
    if (stat(full, &info) == 0 && S_ISDIR(info.st_mode))
        return ew_tar_add_dir(c->to, path + 1, c->err);
    return add(c, path, EW_STR(""));
}

static int add_matching(struct capture *c, const char *const *patterns, int (*one)(struct capture *, const char *))
{
    int code = EW_OK;

    for (; *patterns && code == EW_OK; patterns++) {
        char full[4096];
        glob_t found;

        snprintf(full, sizeof(full), "%s%s", c->root, *patterns);
        if (glob(full, 0, NULL, &found) != 0)
            continue;
        for (size_t i = 0; i < found.gl_pathc && code == EW_OK; i++)
            code = one(c, found.gl_pathv[i] + strlen(c->root));
        globfree(&found);
    }
    return code;
}

// ---- packages ----

static bool is_wanted_package(struct ew_str paragraph)
{
    static const char *const names[] = {"nvidia-", "cuda-", "libcudnn", "libnvinfer", "libnccl", "tensorrt"};

    for (size_t i = 0; i < EW_COUNT_OF(names); i++) {
        char head[64];

        snprintf(head, sizeof(head), "Package: %s", names[i]);
        if (ew_str_starts(paragraph, head))
            return true;
    }
    return false;
}

static void append_fields(struct ew_buf *out, struct ew_str paragraph)
{
    static const char *const fields[] = {"Package:", "Status:", "Architecture:", "Version:"};
    size_t at = 0;

    while (at < paragraph.len) {
        struct ew_str line = {paragraph.ptr + at, strcspn(paragraph.ptr + at, "\n")};

        for (size_t i = 0; i < EW_COUNT_OF(fields); i++)
            if (ew_str_starts(line, fields[i])) {
                ew_buf_append_str(out, line);
                ew_buf_append_char(out, '\n');
            }
        at += line.len + 1;
    }
    ew_buf_append_char(out, '\n');
}

static int add_packages(struct capture *c)
{
    static const char path[] = "/var/lib/dpkg/status";
    char *text = ew_alloc(STATUS_BYTES_MAX);
    struct ew_buf out;
    int code = EW_OK;

    ew_buf_init(&out, NAMES_BYTES_MAX);
    if (!text)
        code = ew_fail_memory(c->err, STATUS_BYTES_MAX, "the list of packages");
    else if (ew_sysfile_read(c->root, path, text, STATUS_BYTES_MAX) > 0)
        for (char *at = text; *at;) {
            char *end = strstr(at, "\n\n");
            size_t len = end ? (size_t)(end - at) : strlen(at);

            if (is_wanted_package((struct ew_str){at, len}))
                append_fields(&out, (struct ew_str){at, len});
            at += len;
            at += strspn(at, "\n");
        }
    if (code == EW_OK && out.len)
        code = add(c, path, ew_buf_str(&out));
    ew_buf_fini(&out);
    ew_free(text);
    return code;
}

// ---- what is no file ----

static void append_line(struct ew_buf *out, const struct ew_fact *fact)
{
    ew_buf_append_str(out, fact->key);
    if (fact->type == EW_FACT_NUMBER)
        ew_buf_printf(out, "=n:%.17g\n", fact->number);
    else if (fact->type == EW_FACT_BOOL)
        ew_buf_printf(out, "=b:%d\n", fact->boolean);
    else
        ew_buf_printf(out, "=s:" EW_STR_FMT "\n", EW_STR_ARG(fact->text));
}

static bool is_plain(const struct ew_fact *fact)
{
    return fact->type == EW_FACT_NUMBER || fact->type == EW_FACT_BOOL || fact->type == EW_FACT_STRING;
}

static int add_facts(struct capture *c)
{
    static const char *const keys[] = {"tool_cuda",  "host_glibc",      "host_glibcxx",   "host_cxxabi",
                                       "host_libc",  "host_python",     "desktop_running", "compat_present",
                                       "compat_cuda", "compat_ok",      "drv_hangs"};
    const struct ew_facts *facts = &c->doctor->facts;
    struct ew_buf gpu, other;
    int code;

    ew_buf_init(&gpu, FILE_BYTES_MAX);
    ew_buf_init(&other, FILE_BYTES_MAX);
    ew_buf_append_str(&gpu, EW_STR("# what the driver said\n"));
    ew_buf_append_str(&other, EW_STR("# what no file of a tree can tell\n"));
    for (uint32_t i = 0; i < facts->count; i++)
        if (ew_str_is(facts->list[i].source, "driver") && is_plain(&facts->list[i]))
            append_line(&gpu, &facts->list[i]);
    for (size_t i = 0; i < EW_COUNT_OF(keys); i++) {
        const struct ew_fact *fact = ew_facts_get(facts, ew_str_of(keys[i]));

        if (fact && is_plain(fact))
            append_line(&other, fact);
    }
    code = ew_buf_ok(&gpu) && ew_buf_ok(&other) ? EW_OK : ew_fail_memory(c->err, FILE_BYTES_MAX, "a capture");
    code = code == EW_OK ? add(c, "/.edgewise/gpu", ew_buf_str(&gpu)) : code;
    code = code == EW_OK ? add(c, "/.edgewise/facts", ew_buf_str(&other)) : code;
    ew_buf_fini(&other);
    ew_buf_fini(&gpu);
    return code;
}

// The tightest memory limit of this process's control groups, as that of one group without a name: real ones name
// containers and users.
static int add_cgroup(struct capture *c)
{
    static const char dir[] = "/sys/fs/cgroup/captured";
    struct ew_memory memory;
    char text[64], path[96];
    int code;

    if (ew_memory_read(NULL, &memory, NULL) != EW_OK || !memory.cgroup_limit_bytes)
        return EW_OK;
    code = add(c, "/proc/self/cgroup", EW_STR("0::/captured\n"));
    snprintf(path, sizeof(path), "%s/memory.max", dir);
    snprintf(text, sizeof(text), "%llu\n", (unsigned long long)memory.cgroup_limit_bytes);
    code = code == EW_OK ? add(c, path, ew_str_of(text)) : code;
    snprintf(path, sizeof(path), "%s/memory.current", dir);
    snprintf(text, sizeof(text), "%llu\n", (unsigned long long)memory.cgroup_used_bytes);
    return code == EW_OK ? add(c, path, ew_str_of(text)) : code;
}

static int add_uname(struct capture *c)
{
    struct ew_str kernel = ew_facts_str(&c->doctor->facts, "host_kernel", "");
    struct ew_str machine = ew_facts_str(&c->doctor->facts, "host_arch", "");
    char text[512];

    snprintf(text, sizeof(text), EW_STR_FMT " " EW_STR_FMT "\n", EW_STR_ARG(kernel), EW_STR_ARG(machine));
    return add(c, "/.edgewise/uname", ew_str_of(text));
}

static int add_library_names(struct capture *c)
{
    struct ew_library_index index;
    struct ew_buf out;
    int code;

    ew_buf_init(&out, NAMES_BYTES_MAX);
    ew_library_index_read(&index, NULL);
    for (uint32_t i = 0; i < index.count; i++) {
        ew_buf_append_str(&out, index.list[i]);
        ew_buf_append_char(&out, '\n');
    }
    code = index.failed || !ew_buf_ok(&out) ? ew_fail_memory(c->err, NAMES_BYTES_MAX, "the names of libraries")
                                            : add(c, "/.edgewise/libraries", ew_buf_str(&out));
    ew_library_index_fini(&index);
    ew_buf_fini(&out);
    return code;
}

// A captured tree carries these files already.
static int add_edgewise(struct capture *c)
{
    static const char *const own[] = {"/.edgewise/*", "/proc/self/cgroup", "/sys/fs/cgroup/captured/*", NULL};
    int code;

    if (c->root[0])
        return add_matching(c, own, add_whole);
    code = add_uname(c);
    code = code == EW_OK ? add_cgroup(c) : code;
    code = code == EW_OK ? add_facts(c) : code;
    return code == EW_OK ? add_library_names(c) : code;
}

int ew_capture_write(const struct ew_doctor *doctor, const char *path, struct ew_error *err)
{
    struct capture c = {.doctor = doctor, .root = doctor->options.root ? doctor->options.root : "", .err = err};
    int code;

    c.to = fopen(path, "wbxe");
    if (!c.to)
        return ew_fail_errno(err, EW_ERR_IO, "cannot make %s", path);
    c.text = ew_alloc(FILE_BYTES_MAX);
    code = c.text ? EW_OK : ew_fail_memory(err, FILE_BYTES_MAX, "a capture");
    code = code == EW_OK ? add_matching(&c, g_whole, add_whole) : code;
    code = code == EW_OK ? add_matching(&c, g_cut, add_cut) : code;
    code = code == EW_OK ? add_matching(&c, g_present, add_presence) : code;
    code = code == EW_OK ? add_packages(&c) : code;
    code = code == EW_OK ? add_edgewise(&c) : code;
    ew_tar_finish(c.to);
    if (code == EW_OK && ferror(c.to))
        code = ew_fail(err, EW_ERR_IO, "cannot write %s", path);
    if (fclose(c.to) != 0 && code == EW_OK)
        code = ew_fail_errno(err, EW_ERR_IO, "cannot write %s", path);
    if (code != EW_OK)
        unlink(path);
    ew_free(c.text);
    return code;
}
