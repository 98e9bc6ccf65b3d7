// Power modes, rails and clocks of a Jetson. Discrete GPUs report theirs through NVML (probe_nvidia.c).

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "platform/probe.h"
#include "platform/rails.h"
#include "platform/sysfile.h"

#define CONF_BYTES_MAX 65536
#define MODES_MAX 16

// ---- nvpmodel ----

struct mode {
    uint32_t id;
    char name[48];
};

struct modes {
    struct mode list[MODES_MAX];
    uint32_t count;
    int default_id;
};

// "< POWER_MODEL ID=1 NAME=120W >" and "< PM_CONFIG DEFAULT=1 >", as nvpmodel.conf's own header describes.
static void parse_conf(const char *text, struct modes *modes)
{
    unsigned id;

    modes->default_id = -1;
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        struct mode mode;

        if (line[0] != '<')
            continue;
        if (modes->count < MODES_MAX && sscanf(line, "< POWER_MODEL ID=%u NAME=%47[^ >]", &mode.id, mode.name) == 2)
            modes->list[modes->count++] = mode;
        if (sscanf(line, "< PM_CONFIG DEFAULT=%u", &id) == 1)
            modes->default_id = (int)id;
    }
}

// The watts in a mode's name ("15W", "MODE_30W"); 0 where it names none, as MAXN, which has no cap.
static double watts_of(const char *name)
{
    size_t at = strcspn(name, "0123456789");
    char *end;
    double watts = strtod(name + at, &end);

    return name[at] && *end == 'W' ? watts : 0;
}

// The uncapped mode is the fastest; without one, the mode with the most watts. Ids are in no order of speed.
static uint32_t fastest_mode(const struct modes *modes)
{
    uint32_t best = 0;
    double best_watts = -1;

    for (uint32_t i = 0; i < modes->count; i++) {
        double watts = strncmp(modes->list[i].name, "MAXN", 4) == 0 ? 1e9 : watts_of(modes->list[i].name);

        if (watts > best_watts) {
            best = modes->list[i].id;
            best_watts = watts;
        }
    }
    return best;
}

static void read_modes(const char *root, struct ew_facts *facts)
{
    char *conf = ew_alloc(CONF_BYTES_MAX), status[64];
    struct ew_str names[MODES_MAX];
    struct modes modes = {0};
    unsigned current;

    if (!conf) {
        facts->failed = true;
        return;
    }
    if (ew_sysfile_read(root, "/etc/nvpmodel.conf", conf, CONF_BYTES_MAX) > 0)
        parse_conf(conf, &modes);
    ew_free(conf);
    if (!modes.count)
        return;
    for (uint32_t i = 0; i < modes.count; i++)
        names[i] = ew_str_of(modes.list[i].name);
    ew_facts_set_strs(facts, "pow_modes", names, modes.count, "/etc/nvpmodel.conf");
    ew_facts_set_number(facts, "pow_max_id", fastest_mode(&modes), "/etc/nvpmodel.conf");
    if (modes.default_id >= 0)
        ew_facts_set_number(facts, "pow_default_id", modes.default_id, "/etc/nvpmodel.conf");
    if (ew_sysfile_read(root, "/var/lib/nvpmodel/status", status, sizeof(status)) <= 0 ||
        sscanf(status, "pmode:%u", &current) != 1)
        return;
    ew_facts_set_number(facts, "pow_id", current, "/var/lib/nvpmodel/status");
    for (uint32_t i = 0; i < modes.count; i++) {
        if (modes.list[i].id == fastest_mode(&modes))
            ew_facts_set_str(facts, "pow_max_name", names[i], "/etc/nvpmodel.conf");
        if (modes.list[i].id != current)
            continue;
        ew_facts_set_str(facts, "pow_name", names[i], "/etc/nvpmodel.conf");
        if (watts_of(modes.list[i].name) > 0)
            ew_facts_set_number(facts, "pow_cap_w", watts_of(modes.list[i].name), "/etc/nvpmodel.conf");
    }
}

// ---- rails ----

struct draw {
    double total_mw, sum_mw; // total: a rail that measures the whole box
    bool any, has_total, alarm, alarm_known;
    const char *alarm_rail;
};

static void add_rail(struct ew_facts *facts, struct draw *draw, const struct ew_rail *rail, double mw)
{
    char key[96];

    snprintf(key, sizeof(key), "rail_%.60s_mw", rail->label);
    for (char *c = key + 5; *c; c++)
        *c = *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c == ' ' || *c == '-' ? '_' : *c;
    ew_facts_set_number(facts, key, round(mw), "/sys/class/hwmon");
    draw->any = true;
    draw->has_total |= rail->is_total;
    *(rail->is_total ? &draw->total_mw : &draw->sum_mw) += mw;
}

static void read_rails(const char *root, struct ew_facts *facts)
{
    struct draw draw = {.alarm_rail = ""};
    struct ew_rail rails[EW_RAILS_MAX];
    uint32_t count = ew_rails_find(root, rails);

    for (uint32_t i = 0; i < count; i++) {
        bool alarm;
        double mw;

        if (ew_rail_read_mw(root, &rails[i], &mw))
            add_rail(facts, &draw, &rails[i], mw);
        draw.alarm_known |= ew_rail_read_alarm(root, &rails[i], &alarm);
        draw.alarm |= alarm;
        if (alarm)
            draw.alarm_rail = rails[i].label;
    }
    if (draw.any)
        ew_facts_set_number(facts, "power_draw_w", round((draw.has_total ? draw.total_mw : draw.sum_mw) / 100) / 10,
                            "/sys/class/hwmon");
    if (draw.alarm_known) {
        ew_facts_set_bool(facts, "oc_alarm", draw.alarm, "/sys/class/hwmon");
        ew_facts_set_str(facts, "oc_rail", ew_str_of(draw.alarm_rail), "/sys/class/hwmon");
    }
}

// ---- clocks ----

static bool devfreq(const char *root, const char *device, const char *file, double *mhz)
{
    char text[64];
    uint64_t hz;

    if (ew_sysfile_readf(root, text, sizeof(text), "/sys/class/devfreq/%s/%s", device, file) <= 0 ||
        !ew_sysfile_number(text, &hz))
        return false;
    *mhz = (double)hz / 1e6;
    return true;
}

static void read_clocks(const char *root, struct ew_facts *facts)
{
    static const char *const gpus[] = {"gpu-gpc-0", "17000000.gpu",
                                       "17000000.ga10b"}; // Thor; Orin with JetPack 6; with 5
    double now, low, high;

    for (size_t i = 0; i < EW_COUNT_OF(gpus); i++) {
        if (!devfreq(root, gpus[i], "cur_freq", &now))
            continue;
        ew_facts_set_number(facts, "gpu_clock_mhz", now, "/sys/class/devfreq");
        if (devfreq(root, gpus[i], "max_freq", &high) && devfreq(root, gpus[i], "min_freq", &low)) {
            ew_facts_set_number(facts, "gpu_clock_max_mhz", high, "/sys/class/devfreq");
            ew_facts_set_bool(facts, "clk_locked", low == high, "/sys/class/devfreq"); // as jetson_clocks leaves it
        }
        break;
    }
    if (devfreq(root, "bwmgr", "cur_freq", &now))
        ew_facts_set_number(facts, "emc_clock_mhz", now, "/sys/class/devfreq/bwmgr");
}

void ew_probe_power(const char *root, struct ew_facts *facts)
{
    read_modes(root, facts);
    read_rails(root, facts);
    read_clocks(root, facts);
}
