#include "platform/cgroup.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "platform/sysfile.h"

#define CGROUP_TEXT_MAX 8192
#define DIR_BYTES_MAX 4096

static void visit_levels(const char *root, const char *mount, const char *group, bool v2, ew_cgroup_fn fn, void *ctx)
{
    char dir[DIR_BYTES_MAX], full[DIR_BYTES_MAX * 2];
    size_t mount_len = strlen(mount);
    int len = snprintf(dir, sizeof(dir), "%s%s", mount, strcmp(group, "/") == 0 ? "" : group);

    // outside this namespace: no level of it is visible
    if (len < 0 || (size_t)len >= sizeof(dir) || strstr(group, "/.."))
        len = snprintf(dir, sizeof(dir), "%s", mount);
    for (;;) {
        snprintf(full, sizeof(full), "%s%s", root ? root : "", dir);
        if (access(full, F_OK) == 0)
            fn(ctx, root, dir, v2);
        if (strlen(dir) <= mount_len)
            return;
        *strrchr(dir, '/') = 0;
    }
}

// "name" as one of the comma-separated words of `list`.
static bool list_has(const char *list, const char *name)
{
    size_t len = strlen(name);

    for (const char *at = list; *at; at += strcspn(at, ","), at += *at == ',')
        if (strncmp(at, name, len) == 0 && (at[len] == ',' || at[len] == 0))
            return true;
    return false;
}

// A line is "id:controllers:/path"; version 2 has id 0 and no controllers.
static void visit_line(char *line, const char *root, const char *controller, ew_cgroup_fn fn, void *ctx)
{
    char mount[DIR_BYTES_MAX], *controllers = strchr(line, ':'), *group;

    if (!controllers || !(group = strchr(controllers + 1, ':')))
        return;
    *controllers++ = 0;
    *group++ = 0;
    if (!*controllers) {
        visit_levels(root, "/sys/fs/cgroup", group, true, fn, ctx);
    } else if (list_has(controllers, controller)) { // usually mounted under a name or a link of the controller alone
        snprintf(mount, sizeof(mount), "/sys/fs/cgroup/%s", controller);
        visit_levels(root, mount, group, false, fn, ctx);
    }
}

void ew_cgroup_visit(const char *root, const char *controller, ew_cgroup_fn fn, void *ctx)
{
    char text[CGROUP_TEXT_MAX], *line, *save = NULL;

    if (ew_sysfile_read(root, "/proc/self/cgroup", text, sizeof(text)) < 0)
        return;
    for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        visit_line(line, root, controller, fn, ctx);
}
