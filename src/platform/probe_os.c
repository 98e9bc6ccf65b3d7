// The operating system, this process's memory, and what else every Linux machine tells.

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/assert.h"
#include "platform/memory.h"
#include "platform/probe.h"
#include "platform/sysfile.h"

#define CAPTURED_BYTES_MAX 65536

static void read_uname(const char *root, struct ew_facts *facts)
{
    char text[512], *machine;
    struct utsname name;

    if (!root || !root[0]) {
        if (uname(&name) != 0)
            return;
        ew_facts_set_str(facts, "host_kernel", ew_str_of(name.release), "uname");
        ew_facts_set_str(facts, "host_arch", ew_str_of(name.machine), "uname");
        return;
    }
    if (ew_sysfile_read(root, "/.edgewise/uname", text, sizeof(text)) <= 0) // "RELEASE MACHINE"
        return;
    text[strcspn(text, "\n")] = '\0';
    machine = strrchr(text, ' ');
    if (!machine)
        return;
    *machine++ = '\0';
    ew_facts_set_str(facts, "host_kernel", ew_str_of(text), "/.edgewise/uname");
    ew_facts_set_str(facts, "host_arch", ew_str_of(machine), "/.edgewise/uname");
}

// A KEY=value line of os-release(5), quotes removed.
static bool os_release_field(const char *text, const char *key, struct ew_str *out)
{
    size_t len = strlen(key);

    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, key, len) != 0 || line[len] != '=')
            continue;
        line += len + 1;
        *out = (struct ew_str){line, strcspn(line, "\n")};
        if (out->len >= 2 && (line[0] == '"' || line[0] == '\'') && line[out->len - 1] == line[0])
            *out = (struct ew_str){line + 1, out->len - 2};
        return true;
    }
    return false;
}

static void read_os_release(const char *root, struct ew_facts *facts)
{
    static const struct {
        const char *field, *fact;
    } fields[] = {{"PRETTY_NAME", "host_os"}, {"ID", "host_os_id"}, {"VERSION_ID", "host_os_version"}};
    char text[4096];
    struct ew_str value;

    if (ew_sysfile_read(root, "/etc/os-release", text, sizeof(text)) <= 0 &&
        ew_sysfile_read(root, "/usr/lib/os-release", text, sizeof(text)) <= 0)
        return;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (os_release_field(text, fields[i].field, &value))
            ew_facts_set_str(facts, fields[i].fact, value, "/etc/os-release");
}

// What a captured tree cannot hold as files (versions that libraries define, sockets of a desktop) it holds as facts.
static void read_captured(const char *root, struct ew_facts *facts)
{
    char *text = ew_alloc(CAPTURED_BYTES_MAX);

    if (!text)
        facts->failed = true;
    else if (ew_sysfile_read(root, "/.edgewise/facts", text, CAPTURED_BYTES_MAX) > 0)
        ew_facts_parse_lines(facts, text, "/.edgewise/facts");
    ew_free(text);
}

// A display server listens on a socket: X at /tmp/.X11-unix, Wayland in the user's runtime directory.
static void read_desktop(const char *root, struct ew_facts *facts)
{
    static const char *const sockets[] = {"/tmp/.X11-unix/X0", "/tmp/.X11-unix/X1", "/run/user/1000/wayland-0"};
    bool found = false;

    if (root && root[0])
        return;
    for (size_t i = 0; i < EW_COUNT_OF(sockets); i++)
        found |= access(sockets[i], F_OK) == 0;
    ew_facts_set_bool(facts, "desktop_running", found, "sockets of X and Wayland");
}

void ew_probe_os(const char *root, struct ew_facts *facts)
{
    char text[64];

    if (root && root[0])
        read_captured(root, facts);
    read_desktop(root, facts);
    read_uname(root, facts);
    read_os_release(root, facts);
    if (ew_sysfile_read(root, "/sys/class/dmi/id/product_name", text, sizeof(text)) > 0) {
        text[strcspn(text, "\n")] = '\0';
        ew_facts_set_str(facts, "product_name", ew_str_of(text), "/sys/class/dmi/id/product_name");
    }
}

void ew_probe_memory(const char *root, struct ew_facts *facts)
{
    static const struct {
        const char *key, *fact;
    } fields[] = {{"CmaTotal", "cma_total_mib"},
                  {"CmaFree", "cma_free_mib"},
                  {"NvMapMemUsed", "nvmap_used_mib"},
                  {"SwapTotal", "swap_total_mib"},
                  {"HugePages_Total", "huge_pages"}};
    char text[16384];
    struct ew_memory memory;
    uint64_t value, cached, swap_total, swap_free;

    if (ew_memory_read(root, &memory, NULL) == EW_OK) {
        ew_facts_set_number(facts, "host_mem_mib", (double)(memory.total_bytes >> 20), "/proc/meminfo");
        ew_facts_set_number(facts, "host_avail_mib", (double)(memory.available_bytes >> 20),
                            "/proc/meminfo and control groups");
        if (memory.cgroup_limit_bytes)
            ew_facts_set_number(facts, "cgroup_limit_mib", (double)(memory.cgroup_limit_bytes >> 20), "control groups");
    }
    if (ew_sysfile_read(root, "/proc/meminfo", text, sizeof(text)) <= 0)
        return;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (ew_sysfile_field(text, fields[i].key, &value))
            ew_facts_set_number(facts, fields[i].fact, i < 4 ? (double)(value >> 10) : (double)value, "/proc/meminfo");
    if (ew_sysfile_field(text, "Cached", &cached))
        ew_facts_set_number(facts, "page_cache_mib", (double)(cached >> 10), "/proc/meminfo");
    if (ew_sysfile_field(text, "SwapTotal", &swap_total) && ew_sysfile_field(text, "SwapFree", &swap_free) &&
        swap_free <= swap_total)
        ew_facts_set_number(facts, "swap_used_mib", (double)((swap_total - swap_free) >> 10), "/proc/meminfo");
}
