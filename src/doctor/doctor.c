#include "doctor/doctor.h"

#include <sys/stat.h>

#include "format/profile.h"
#include "platform/probe.h"

static int check_root(const char *root, struct ew_error *err)
{
    struct stat info;

    if (!root || (stat(root, &info) == 0 && S_ISDIR(info.st_mode)))
        return EW_OK;
    ew_fail(err, EW_ERR_IO, "%s is no directory with a captured tree", root);
    return ew_remedy(err, EW_ERR_IO, "Make one on the box with edgewise doctor --capture FILE and unpack it");
}

static int read_profile(struct ew_doctor *doctor, struct ew_error *err)
{
    const struct ew_profile *profile;
    struct ew_profiles profiles;
    int code = ew_profiles_load(&profiles, err);

    if (code != EW_OK)
        return code;
    code = ew_profiles_find(&profiles, doctor->options.profile, &profile, err);
    if (code == EW_OK) {
        ew_profile_facts(profile, &doctor->facts);
        ew_probe_derive(&doctor->facts);
    }
    ew_profiles_fini(&profiles);
    return code;
}

// Which profile this machine has, and what it says of the device that no probe can read.
static int recognise(struct ew_doctor *doctor, struct ew_error *err)
{
    const struct ew_profile *profile;
    struct ew_profiles profiles;
    int code = ew_profiles_load(&profiles, err);

    if (code != EW_OK)
        return code;
    profile = ew_profiles_match(&profiles, &doctor->facts);
    ew_facts_set_str(&doctor->facts, "profile", profile->id, "recognised");
    if (ew_profile_number(profile, "bandwidth_gb_s", 0) > 0)
        ew_facts_set_number(&doctor->facts, "mem_bw_gbs", ew_profile_number(profile, "bandwidth_gb_s", 0), "profile");
    ew_profiles_fini(&profiles);
    return EW_OK;
}

static int gather(struct ew_doctor *doctor, struct ew_error *err)
{
    const struct ew_doctor_options *options = &doctor->options;
    int code;

    if (options->profile && options->root)
        return ew_fail(err, EW_ERR_USAGE, "--root and --profile both say whose facts count");
    ew_facts_set_bool(&doctor->facts, "selftest", options->measure != NULL, "asked for");
    if (options->profile)
        return read_profile(doctor, err);
    ew_probe_all(options->root, &doctor->facts);
    ew_doctor_probe_libraries(options->root, &doctor->facts);
    code = recognise(doctor, err);
    if (code != EW_OK)
        return code;
    return options->measure ? options->measure(options->measure_ctx, &doctor->facts, err) : EW_OK;
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
    code = gather(doctor, err);
    if (code != EW_OK)
        goto close;
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
