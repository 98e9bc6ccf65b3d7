#include "doctor/doctor.h"

#include <sys/stat.h>

#include "platform/probe.h"

static int check_root(const char *root, struct ew_error *err)
{
    struct stat info;

    if (!root || (stat(root, &info) == 0 && S_ISDIR(info.st_mode)))
        return EW_OK;
    ew_fail(err, EW_ERR_IO, "%s is no directory with a captured tree", root);
    return ew_remedy(err, EW_ERR_IO, "Make one on the box with edgewise doctor --capture FILE and unpack it");
}

int ew_doctor_open(struct ew_doctor *doctor, const struct ew_doctor_options *options, struct ew_error *err)
{
    int code;

    *doctor = (struct ew_doctor){.options = *options};
    code = check_root(options->root, err);
    if (code == EW_OK)
        code = ew_facts_init(&doctor->facts, NULL, err);
    if (code != EW_OK)
        return code;
    ew_findings_init(&doctor->findings);
    code = ew_rules_load(&doctor->rules, options->rules_dir, err);
    if (code != EW_OK)
        goto close;
    ew_probe_all(options->root, &doctor->facts);
    ew_doctor_probe_libraries(options->root, &doctor->facts);
    ew_rules_apply(&doctor->rules, EW_SUBJECT_MACHINE, &doctor->facts, EW_STR(""), &doctor->findings);
    if (!doctor->facts.failed && !doctor->findings.failed)
        return EW_OK;
    code = ew_fail_memory(err, doctor->facts.arena.used, "facts and findings");
close:
    ew_doctor_close(doctor);
    return code;
}

void ew_doctor_close(struct ew_doctor *doctor)
{
    ew_findings_fini(&doctor->findings);
    ew_rules_fini(&doctor->rules);
    ew_facts_fini(&doctor->facts);
}
