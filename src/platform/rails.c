#include "platform/rails.h"

#include <stdio.h>
#include <string.h>

#include "platform/sysfile.h"

#define HWMONS_MAX 64
#define CHANNELS_MAX 8

static bool number_at(const char *root, uint32_t hwmon, const char *file, uint32_t channel, double *out)
{
    char text[64], name[64];
    long long value;

    snprintf(name, sizeof(name), file, channel);
    if (ew_sysfile_readf(root, text, sizeof(text), "/sys/class/hwmon/hwmon%u/%s", hwmon, name) <= 0 ||
        sscanf(text, "%lld", &value) != 1)
        return false;
    *out = (double)value;
    return true;
}

static void add(struct ew_rail *rails, uint32_t *count, struct ew_rail rail, const char *label)
{
    if (*count == EW_RAILS_MAX)
        return;
    snprintf(rail.label, sizeof(rail.label), "%s", label);
    rail.is_total = strcmp(label, "VDD_IN") == 0 || strcmp(label, "VIN") == 0;
    rails[(*count)++] = rail;
}

// Channel 7 is a sum of shunt voltages, unconnected ones are labelled NC.
static void find_ina3221(const char *root, uint32_t hwmon, struct ew_rail *rails, uint32_t *count)
{
    for (uint32_t i = 1; i < CHANNELS_MAX; i++) {
        char label[48];

        if (ew_sysfile_readf(root, label, sizeof(label), "/sys/class/hwmon/hwmon%u/in%u_label", hwmon, i) <= 0)
            continue;
        label[strcspn(label, "\n")] = '\0';
        if (strcmp(label, "NC") != 0 && strncmp(label, "sum of", 6) != 0)
            add(rails, count, (struct ew_rail){.hwmon = hwmon, .channel = i}, label);
    }
}

uint32_t ew_rails_find(const char *root, struct ew_rail rails[EW_RAILS_MAX])
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < HWMONS_MAX; i++) {
        char name[32];

        if (ew_sysfile_readf(root, name, sizeof(name), "/sys/class/hwmon/hwmon%u/name", i) <= 0)
            continue;
        name[strcspn(name, "\n")] = '\0';
        if (strcmp(name, "ina3221") == 0)
            find_ina3221(root, i, rails, &count);
        else if (strcmp(name, "ina238") == 0)
            add(rails, &count, (struct ew_rail){.hwmon = i, .channel = 1, .is_watts = true}, "VIN");
    }
    return count;
}

bool ew_rail_read_mw(const char *root, const struct ew_rail *rail, double *mw)
{
    double uw, mv, ma;

    if (rail->is_watts) {
        if (!number_at(root, rail->hwmon, "power%u_input", rail->channel, &uw))
            return false;
        *mw = uw / 1000;
        return true;
    }
    if (!number_at(root, rail->hwmon, "in%u_input", rail->channel, &mv) ||
        !number_at(root, rail->hwmon, "curr%u_input", rail->channel, &ma))
        return false;
    *mw = mv * ma / 1000;
    return true;
}

bool ew_rail_read_alarm(const char *root, const struct ew_rail *rail, bool *alarm)
{
    double crit = 0, max = 0;
    bool known = number_at(root, rail->hwmon, "curr%u_crit_alarm", rail->channel, &crit);

    known |= number_at(root, rail->hwmon, "curr%u_max_alarm", rail->channel, &max);
    *alarm = crit > 0 || max > 0;
    return known;
}
