// The Pythons of a machine: of the system, on the search path, in virtual environments, of conda, uv and pyenv. Only
// names of files and pyvenv.cfg are read: an interpreter that is broken, or for another processor, is found as well.

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/doctor.h"
#include "platform/sysfile.h"

#define PATH_BYTES_MAX 4096
#define FOUND_MAX 64
#define DIRS_MAX 64
#define TEXT_MAX 320

struct pythons {
    const char *root;
    char texts[FOUND_MAX][TEXT_MAX]; // "PATH (3.12)"
    uint32_t count;
};

static void add(struct pythons *p, const char *path, unsigned major, unsigned minor)
{
    char text[TEXT_MAX];
    int len = snprintf(text, sizeof(text), "%s (%u.%u)", path, major, minor);

    if (len < 0 || (size_t)len >= sizeof(text) || p->count == FOUND_MAX)
        return;
    for (uint32_t i = 0; i < p->count; i++)
        if (strcmp(p->texts[i], text) == 0)
            return;
    memcpy(p->texts[p->count++], text, sizeof(text));
}

// "python3" is a link to "python3.N" in every installation; the name decides.
static bool version_of(const char *root, const char *path, unsigned *major, unsigned *minor)
{
    char full[PATH_BYTES_MAX], target[PATH_BYTES_MAX];
    const char *name = strrchr(path, '/');
    ssize_t len;

    if (name && sscanf(name, "/python%u.%u", major, minor) == 2)
        return true;
    snprintf(full, sizeof(full), "%s%s", root, path);
    len = readlink(full, target, sizeof(target) - 1);
    if (len <= 0)
        return false;
    target[len] = '\0';
    name = strrchr(target, '/');
    return sscanf(name ? name + 1 : target, "python%u.%u", major, minor) == 2;
}

static void look_in(struct pythons *p, const char *dir)
{
    char path[PATH_BYTES_MAX], full[2 * PATH_BYTES_MAX];
    unsigned major, minor;

    snprintf(path, sizeof(path), "%s/python3", dir);
    snprintf(full, sizeof(full), "%s%s", p->root, path);
    if (access(full, F_OK) == 0 && version_of(p->root, path, &major, &minor))
        add(p, path, major, minor);
}

static void look_in_search_path(struct pythons *p)
{
    const char *path = getenv("PATH");

    for (uint32_t n = 0; path && *path && n < DIRS_MAX; n++) {
        size_t len = strcspn(path, ":");
        char dir[PATH_BYTES_MAX], target[8];

        if (path[0] == '/' && len < sizeof(dir)) {
            snprintf(dir, sizeof(dir), "%.*s", (int)len, path);
            if (readlink(dir, target, sizeof(target)) < 0) // /bin leads to /usr/bin
                look_in(p, dir);
        }
        path += len + (path[len] == ':');
    }
}

// pyvenv.cfg: "version = 3.12.3", or of uv and virtualenv "version_info = 3.12.3".
static void add_venv(struct pythons *p, const char *config, size_t root_len)
{
    char text[4096], dir[PATH_BYTES_MAX];
    unsigned major, minor;

    if (ew_sysfile_read(NULL, config, text, sizeof(text)) <= 0)
        return;
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (sscanf(line, "version = %u.%u", &major, &minor) == 2 ||
            sscanf(line, "version_info = %u.%u", &major, &minor) == 2) {
            snprintf(dir, sizeof(dir), "%.*s", (int)(strlen(config) - strlen("/pyvenv.cfg") - root_len),
                     config + root_len);
            add(p, dir, major, minor);
            return;
        }
}

// conda-meta/python-3.11.5-h955ad1f_0.json: each installed package has such a file.
static void add_conda(struct pythons *p, const char *meta, size_t root_len)
{
    const char *name = strrchr(meta, '/');
    char dir[PATH_BYTES_MAX];
    unsigned major, minor;

    if (sscanf(name, "/python-%u.%u", &major, &minor) != 2)
        return;
    snprintf(dir, sizeof(dir), "%.*s", (int)((size_t)(name - meta) - strlen("/conda-meta") - root_len),
             meta + root_len);
    add(p, dir, major, minor);
}

static void add_interpreter(struct pythons *p, const char *path, size_t root_len)
{
    unsigned major, minor;

    if (version_of(p->root, path + root_len, &major, &minor))
        add(p, path + root_len, major, minor);
}

static void look_for(struct pythons *p, const char *prefix, const char *pattern,
                     void (*one)(struct pythons *, const char *, size_t))
{
    char full[2 * PATH_BYTES_MAX];
    glob_t found;

    snprintf(full, sizeof(full), "%s%s%s", p->root, prefix, pattern);
    if (glob(full, 0, NULL, &found) != 0)
        return;
    for (size_t i = 0; i < found.gl_pathc && i < FOUND_MAX; i++)
        one(p, found.gl_pathv[i], strlen(p->root));
    globfree(&found);
}

// Where environments are made: tools' own folders, /opt, the working directory.
static void look_for_environments(struct pythons *p)
{
    static const char *const venvs[] = {"/opt/venv/pyvenv.cfg", "/opt/*/pyvenv.cfg", "/opt/*/.venv/pyvenv.cfg",
                                        "/opt/*/venv/pyvenv.cfg", "/venv/pyvenv.cfg", "/app/.venv/pyvenv.cfg"};
    static const char *const condas[] = {"/opt/*conda*/conda-meta/python-3*.json",
                                         "/opt/conda/envs/*/conda-meta/python-3*.json"};
    static const char *const home_condas[] = {
        "/*conda*/conda-meta/python-3*.json", "/*forge*/conda-meta/python-3*.json",
        "/*conda*/envs/*/conda-meta/python-3*.json", "/*forge*/envs/*/conda-meta/python-3*.json"};
    const char *home = p->root[0] ? NULL : getenv("HOME"), *active = p->root[0] ? NULL : getenv("VIRTUAL_ENV");
    const char *conda = p->root[0] ? NULL : getenv("CONDA_PREFIX");
    char here[PATH_BYTES_MAX];

    for (size_t i = 0; i < EW_COUNT_OF(venvs); i++)
        look_for(p, "", venvs[i], add_venv);
    for (size_t i = 0; i < EW_COUNT_OF(condas); i++)
        look_for(p, "", condas[i], add_conda);
    if (active)
        look_for(p, active, "/pyvenv.cfg", add_venv);
    if (conda)
        look_for(p, conda, "/conda-meta/python-3*.json", add_conda);
    if (home) {
        look_for(p, home, "/.pyenv/versions/*/bin/python3", add_interpreter);
        look_for(p, home, "/.local/share/uv/python/*/bin/python3", add_interpreter);
        for (size_t i = 0; i < EW_COUNT_OF(home_condas); i++)
            look_for(p, home, home_condas[i], add_conda);
    }
    if (!p->root[0] && getcwd(here, sizeof(here))) {
        look_for(p, here, "/.venv/pyvenv.cfg", add_venv);
        look_for(p, here, "/venv/pyvenv.cfg", add_venv);
    }
}

void ew_doctor_probe_pythons(const char *root, struct ew_facts *facts)
{
    struct pythons *p = ew_alloc(sizeof(*p));
    struct ew_str list[FOUND_MAX];
    unsigned major, minor;

    if (!p) {
        facts->failed = true;
        return;
    }
    p->root = root ? root : "";
    if (version_of(p->root, "/usr/bin/python3", &major, &minor))
        ew_facts_set_number(facts, "host_python", major * 100 + minor, "/usr/bin/python3");
    look_in(p, "/usr/bin");
    look_in(p, "/usr/local/bin");
    if (!p->root[0])
        look_in_search_path(p);
    look_for_environments(p);
    for (uint32_t i = 0; i < p->count; i++)
        list[i] = ew_str_of(p->texts[i]);
    if (p->count)
        ew_facts_set_strs(facts, "pythons", list, p->count, "names of files");
    ew_free(p);
}
