// Containers and Kubernetes: whether this is one, and what the machine offers to them. Configuration files are
// searched for the words that matter, not interpreted: their syntaxes are many (JSON, TOML, YAML) and a wrong
// reading would be worse than none.

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "platform/packages.h"
#include "platform/probe.h"
#include "platform/sysfile.h"

#define FILE_BYTES_MAX ((size_t)256 << 10)
#define MANIFESTS_DIR "/var/lib/rancher/k3s/server/manifests"
#define MANIFESTS_MAX 200

static bool exists(const char *root, const char *path)
{
    char full[4096];
    DIR *dir;
    FILE *file;

    snprintf(full, sizeof(full), "%s%s", root ? root : "", path);
    dir = opendir(full);
    if (dir) {
        closedir(dir);
        return true;
    }
    file = fopen(full, "re");
    if (file)
        fclose(file);
    return file != NULL;
}

static bool mentions(const char *root, const char *path, const char *word, bool *readable)
{
    char *text = ew_alloc(FILE_BYTES_MAX);
    bool read = text && ew_sysfile_read(root, path, text, FILE_BYTES_MAX) > 0;
    bool found = read && strstr(text, word);

    ew_free(text);
    *readable |= read;
    return found;
}

static bool dir_has_files(const char *root, const char *path)
{
    char full[4096];
    struct dirent *entry;
    bool found = false;
    DIR *dir;

    snprintf(full, sizeof(full), "%s%s", root ? root : "", path);
    dir = opendir(full);
    while (dir && !found && (entry = readdir(dir)))
        found = entry->d_name[0] != '.';
    if (dir)
        closedir(dir);
    return found;
}

static void read_runtime(const char *root, struct ew_facts *facts)
{
    static const char *const configs[] = {"/etc/docker/daemon.json", "/etc/containerd/config.toml",
                                          "/etc/crio/crio.conf",
                                          "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"};
    struct ew_packages packages;
    struct ew_str toolkit;
    bool found = false, readable = false;

    for (size_t i = 0; i < EW_COUNT_OF(configs); i++)
        found |= mentions(root, configs[i], "nvidia", &readable);
    ew_facts_set_bool(facts, "ctr_nvidia_runtime", found, "configuration of docker, containerd, cri-o, k3s");
    ew_facts_set_bool(facts, "ctr_cdi",
                      dir_has_files(root, "/etc/cdi") || dir_has_files(root, "/var/run/cdi") ||
                          dir_has_files(root, "/run/cdi"),
                      "/etc/cdi, /var/run/cdi");
    ew_packages_read(root, &packages);
    toolkit = ew_package_upstream(ew_package_version(&packages, "nvidia-container-toolkit"));
    if (toolkit.len)
        ew_facts_set_str(facts, "ctr_toolkit", toolkit, "package nvidia-container-toolkit");
    ew_packages_free(&packages);
    ew_facts_set_bool(facts, "ctr_engine",
                      readable || exists(root, "/usr/bin/docker") || exists(root, "/usr/bin/containerd"),
                      "files of container engines");
}

// What manifests that k3s applies by itself say of the GPU.
struct manifests {
    bool any, runtime_class, time_slicing, mps, gpu_operator, nvml_strategy, tegra_strategy, plugin;
    char plugin_version[32]; // of the tag in "k8s-device-plugin:v0.17.1"
};

static void read_manifest(const char *root, const char *name, struct manifests *m)
{
    char path[512], *text = ew_alloc(FILE_BYTES_MAX);
    const char *tag;

    snprintf(path, sizeof(path), MANIFESTS_DIR "/%s", name);
    if (text && ew_sysfile_read(root, path, text, FILE_BYTES_MAX) > 0) {
        m->any = true;
        m->runtime_class |= strstr(text, "RuntimeClass") && strstr(text, "nvidia");
        m->time_slicing |= strstr(text, "timeSlicing:") != NULL;
        m->mps |= strstr(text, "mps:") != NULL;
        m->gpu_operator |= strstr(text, "gpu-operator") != NULL;
        m->plugin |= strstr(text, "k8s-device-plugin") != NULL;
        tag = strstr(text, "k8s-device-plugin:v");
        if (tag) {
            tag += strlen("k8s-device-plugin:v");
            snprintf(m->plugin_version, sizeof(m->plugin_version), "%.*s", (int)EW_MIN(strspn(tag, "0123456789."), 31),
                     tag);
        }
        m->nvml_strategy |= strstr(text, "strategy=nvml") || strstr(text, "deviceDiscoveryStrategy: nvml");
        m->tegra_strategy |= strstr(text, "strategy=tegra") || strstr(text, "deviceDiscoveryStrategy: tegra");
    }
    ew_free(text);
}

static void read_k3s(const char *root, struct ew_facts *facts)
{
    struct manifests m = {0};
    char full[4096];
    struct dirent *entry;
    DIR *dir;

    snprintf(full, sizeof(full), "%s%s", root ? root : "", MANIFESTS_DIR);
    dir = opendir(full);
    for (uint32_t n = 0; dir && n < MANIFESTS_MAX && (entry = readdir(dir)); n++)
        if (ew_str_ends(ew_str_of(entry->d_name), ".yaml") || ew_str_ends(ew_str_of(entry->d_name), ".yml"))
            read_manifest(root, entry->d_name, &m);
    if (dir)
        closedir(dir);
    if (!m.any)
        return; // not readable without root, or no server here: nothing is known
    ew_facts_set_bool(facts, "k8s_runtimeclass", m.runtime_class, MANIFESTS_DIR);
    ew_facts_set_bool(facts, "share_timeslicing", m.time_slicing, MANIFESTS_DIR);
    ew_facts_set_bool(facts, "share_mps", m.mps, MANIFESTS_DIR);
    ew_facts_set_bool(facts, "gpu_operator", m.gpu_operator, MANIFESTS_DIR);
    if (m.plugin_version[0])
        ew_facts_set_str(facts, "plugin_ver", ew_str_of(m.plugin_version), MANIFESTS_DIR);
    if (m.plugin || m.nvml_strategy || m.tegra_strategy)
        ew_facts_set_str(facts, "k8s_strategy",
                         ew_str_of(m.nvml_strategy    ? "nvml"
                                   : m.tegra_strategy ? "tegra"
                                                      : "auto"),
                         MANIFESTS_DIR);
}

void ew_probe_container(const char *root, struct ew_facts *facts)
{
    bool k3s = exists(root, "/etc/rancher/k3s") || exists(root, "/var/lib/rancher/k3s");

    ew_facts_set_bool(facts, "in_container", exists(root, "/.dockerenv") || exists(root, "/run/.containerenv"),
                      "/.dockerenv, /run/.containerenv");
    ew_facts_set_bool(facts, "is_k3s", k3s, "/etc/rancher/k3s");
    ew_facts_set_bool(facts, "is_k8s", k3s || exists(root, "/etc/kubernetes"), "/etc/kubernetes");
    read_runtime(root, facts);
    if (k3s)
        read_k3s(root, facts);
}
