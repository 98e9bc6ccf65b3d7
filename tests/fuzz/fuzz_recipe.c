// What people write: requirement lists, project files, Dockerfiles, compose files, device profiles. The first byte of
// the input says which.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/assert.h"
#include "doctor/scan.h"
#include "format/profile.h"

static char g_dir[64];
static struct ew_doctor g_doctor;

static void start(void)
{
    struct ew_doctor_options options = {.profile = "jetson-orin-nano-super"};

    snprintf(g_dir, sizeof(g_dir), "/tmp/ew-fuzz-XXXXXX");
    EW_ASSERT(mkdtemp(g_dir));
    EW_ASSERT(ew_doctor_open(&g_doctor, &options, NULL) == EW_OK);
}

static void scan(const char *path)
{
    struct ew_findings findings;
    struct ew_scan run;
    int code;

    ew_findings_init(&findings);
    code = ew_scan_run(&run, &g_doctor, &path, 1, 1, &findings, NULL);
    EW_ASSERT(code == EW_OK);
    ew_scan_fini(&run);
    ew_findings_sort(&findings);
    ew_findings_fini(&findings);
}

static void load_profile(const char *path)
{
    const struct ew_profile *profile;
    struct ew_profiles profiles;
    struct ew_facts facts;

    EW_ASSERT(ew_profiles_load(&profiles, NULL) == EW_OK);
    if (ew_profiles_find(&profiles, path, &profile, NULL) == EW_OK) {
        EW_ASSERT(ew_facts_init(&facts, NULL, NULL) == EW_OK);
        ew_profile_facts(profile, &facts);
        ew_facts_fini(&facts);
    }
    ew_profiles_fini(&profiles);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"requirements.txt", "pyproject.toml", "Dockerfile", "compose.yaml",
                                        "profile.yaml"};
    char path[128];
    size_t which;
    FILE *file;

    if (!g_dir[0])
        start();
    if (size == 0)
        return 0;
    which = data[0] % EW_COUNT_OF(names);
    snprintf(path, sizeof(path), "%s/%s", g_dir, names[which]);
    file = fopen(path, "wb");
    EW_ASSERT(file);
    fwrite(data + 1, 1, size - 1, file);
    fclose(file);
    if (which == 4)
        load_profile(path);
    else
        scan(path);
    unlink(path);
    return 0;
}
