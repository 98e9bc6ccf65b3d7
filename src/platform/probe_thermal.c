// Temperatures against their trip points, and throttling that is going on.
//
// Zone numbers change from boot to boot, so zones go by their type. A power-gated GPU answers EAGAIN: that zone is
// skipped, and the junction zone (tj) stands for it.

#include <stdio.h>
#include <string.h>

#include "platform/probe.h"
#include "platform/sysfile.h"

#define ZONES_MAX 64
#define TRIPS_MAX 16
#define COOLERS_MAX 128

static bool read_signed(const char *root, const char *fmt, uint32_t a, uint32_t b, double *out)
{
    char path[128], text[64];
    long long value;

    snprintf(path, sizeof(path), fmt, a, b);
    if (ew_sysfile_read(root, path, text, sizeof(text)) <= 0 || sscanf(text, "%lld", &value) != 1)
        return false;
    *out = (double)value;
    return true;
}

static bool read_line(const char *root, const char *fmt, uint32_t a, uint32_t b, char *out, size_t size)
{
    char path[128];

    snprintf(path, sizeof(path), fmt, a, b);
    if (ew_sysfile_read(root, path, out, size) <= 0)
        return false;
    out[strcspn(out, "\n")] = '\0';
    return true;
}

struct hottest {
    double temp_c, trip_c, margin_c; // of the zone closest to its lowest trip
    char zone[64];
    bool found;
};

// The lowest trip that slows or stops the box; active ones only turn a fan on.
static bool lowest_trip(const char *root, uint32_t zone, double *trip_c)
{
    bool found = false;

    for (uint32_t i = 0; i < TRIPS_MAX; i++) {
        char type[32];
        double temp;

        if (!read_line(root, "/sys/class/thermal/thermal_zone%u/trip_point_%u_type", zone, i, type, sizeof(type)))
            break;
        if (strcmp(type, "active") == 0 ||
            !read_signed(root, "/sys/class/thermal/thermal_zone%u/trip_point_%u_temp", zone, i, &temp) || temp <= 0)
            continue;
        if (!found || temp / 1000 < *trip_c)
            *trip_c = temp / 1000;
        found = true;
    }
    return found;
}

static void read_zone(const char *root, struct ew_facts *facts, uint32_t zone, const char *type,
                      struct hottest *hottest)
{
    char key[96];
    double temp, trip_c = 0;

    if (!read_signed(root, "/sys/class/thermal/thermal_zone%u/temp", zone, 0, &temp) || temp < -273150)
        return;
    snprintf(key, sizeof(key), "temp_%.60s_c", type);
    for (char *c = key; *c; c++)
        if (*c == '-')
            *c = '_';
    ew_facts_set_number(facts, key, temp / 1000, "/sys/class/thermal");
    if (!lowest_trip(root, zone, &trip_c))
        return;
    if (!hottest->found || trip_c - temp / 1000 < hottest->margin_c) {
        *hottest = (struct hottest){
            .temp_c = temp / 1000, .trip_c = trip_c, .margin_c = trip_c - temp / 1000, .found = true};
        snprintf(hottest->zone, sizeof(hottest->zone), "%s", type);
    }
}

// Milliseconds that a cooling device has spent in states other than 0 since the start, where the kernel keeps
// statistics: lines "state3<tab>12345".
static bool active_ms(const char *root, uint32_t cooler, double *ms)
{
    char text[4096];
    unsigned state;
    unsigned long long spent;
    bool known = false;

    if (ew_sysfile_readf(root, text, sizeof(text), "/sys/class/thermal/cooling_device%u/stats/time_in_state_ms",
                         cooler) <= 0)
        return false;
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (sscanf(line, "state%u %llu", &state, &spent) == 2) {
            known = true;
            *ms += state > 0 ? (double)spent : 0;
        }
    return known;
}

// Tegra reports throttling as cooling devices: alerts of the SoC's own thermal unit, and a capped GPU clock.
static void read_coolers(const char *root, struct ew_facts *facts)
{
    char type[64], active[512] = "";
    double state, longest_ms = 0;
    bool any = false, timed = false;

    for (uint32_t i = 0; i < COOLERS_MAX; i++) {
        struct ew_str name;
        double ms = 0;

        if (!read_line(root, "/sys/class/thermal/cooling_device%u/type", i, 0, type, sizeof(type)))
            continue;
        name = ew_str_of(type);
        if (!ew_str_ends(name, "-throttle-alert") && !ew_str_starts(name, "devfreq-gpu") &&
            !ew_str_starts(name, "devfreq-17000000"))
            continue;
        any = true;
        timed |= active_ms(root, i, &ms);
        longest_ms = ms > longest_ms ? ms : longest_ms; // they act together
        if (read_signed(root, "/sys/class/thermal/cooling_device%u/cur_state", i, 0, &state) && state > 0)
            snprintf(active + strlen(active), sizeof(active) - strlen(active), "%s%s", active[0] ? ", " : "", type);
    }
    if (!any)
        return; // no such devices: throttling is not known, rather than absent
    ew_facts_set_bool(facts, "throttle_active", active[0] != '\0', "/sys/class/thermal/cooling_device*");
    ew_facts_set_str(facts, "throttle_which", ew_str_of(active), "/sys/class/thermal/cooling_device*");
    if (timed)
        ew_facts_set_number(facts, "throttled_heat_s", (double)(long long)(longest_ms / 100) / 10,
                            "/sys/class/thermal/cooling_device*/stats");
}

void ew_probe_thermal(const char *root, struct ew_facts *facts)
{
    struct hottest hottest = {0};
    char type[64];

    for (uint32_t i = 0; i < ZONES_MAX; i++)
        if (read_line(root, "/sys/class/thermal/thermal_zone%u/type", i, 0, type, sizeof(type)))
            read_zone(root, facts, i, type, &hottest);
    if (hottest.found) {
        ew_facts_set_number(facts, "temp_c", hottest.temp_c, "/sys/class/thermal");
        ew_facts_set_number(facts, "trip_c", hottest.trip_c, "/sys/class/thermal");
        ew_facts_set_str(facts, "temp_zone", ew_str_of(hottest.zone), "/sys/class/thermal");
    }
    read_coolers(root, facts);
}
