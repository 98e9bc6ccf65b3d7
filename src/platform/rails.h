#pragma once
// The power rails of a Jetson: INA3221 channels (volts times amperes) and INA238 (watts), of which the kernel's hwmon
// tells. Orin Nano and NX measure their whole input as VDD_IN, Thor as VIN; the other rails are parts of it. AGX
// boards have no rail for the whole: there the sum of all rails stands for it.

#include <stdbool.h>
#include <stdint.h>

#define EW_RAILS_MAX 32

struct ew_rail {
    char label[48];
    uint32_t hwmon, channel; // /sys/class/hwmon/hwmonN, inM and currM
    bool is_watts;           // has a power reading of its own
    bool is_total;           // measures the whole box
};

// Looks for them anew: the kernel numbers hwmon devices differently at each start. Returns how many were found.
uint32_t ew_rails_find(const char *root, struct ew_rail rails[EW_RAILS_MAX]);
bool ew_rail_read_mw(const char *root, const struct ew_rail *rail, double *mw);
// Over-current alarms of the channel; false where it tells none.
bool ew_rail_read_alarm(const char *root, const struct ew_rail *rail, bool *alarm);
