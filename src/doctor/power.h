#pragma once
// Power and heat: modes, draw, clocks, temperatures against their trip points, throttling. From a Jetson's own files
// and, for discrete GPUs, from NVML.

#include "doctor/doctor.h"

// Everything known, with advice: the findings of the PERF rules.
void ew_power_report(const struct ew_doctor *doctor, struct ew_buf *out);
void ew_power_json(const struct ew_facts *facts, struct ew_buf *out); // the readings as one object, one line

// Reads anew what changes; facts must be fresh.
void ew_power_read(const char *root, struct ew_facts *facts);
// Whether the box holds its clocks down now, and by what; false also where that is not known.
bool ew_power_throttles(const struct ew_facts *facts, struct ew_buf *why);
// One line for one reading: "19.8 W  VDD_GPU 2.0 ...  GPU 314 MHz  tj 38.9 C (trip 114.5)".
void ew_power_line(const struct ew_facts *facts, struct ew_buf *out);
