#pragma once
// How much energy this box has used since a moment: what joules per token are computed from.
//
// From the first of these that there is:
//   the rails of a Jetson, sampled ten times a second by a thread of its own (INA sensors count nothing);
//   for work on NVIDIA GPUs, NVML's energy counters of all of them, or its power, sampled, where a GPU has no counter;
//   for work on the CPU, and besides NVML, the packages' RAPL counters, where this user may read them.
// A box that tells nothing of the kind has no meter: *out is NULL, which every function here takes.

#include <stdbool.h>

#include "base/error.h"

struct ew_energy;

// `on_gpu`: whether the work to be measured is done by NVIDIA GPUs; then, and only then, this process loads NVML.
// `root` as in platform/sysfile.h. Fails only for want of memory or threads.
int ew_energy_open(const char *root, bool on_gpu, struct ew_energy **out, struct ew_error *err) EW_MUST_CHECK;
void ew_energy_close(struct ew_energy *energy);

// Any thread may ask, as often as it likes: sensors are read at most a hundred times a second.
double ew_energy_joules(struct ew_energy *energy); // since ew_energy_open, never falling; 0 without a meter
double ew_energy_watts(struct ew_energy *energy);  // the mean of the last whole second or so
// For how long, since ew_energy_open, a GPU's clocks have been lower than they could be because of its power limit: of
// the GPU that this was longest. Less than 0: nobody tells.
double ew_energy_held_s(struct ew_energy *energy);
// "rails", "NVML", "NVML and RAPL", "RAPL"; NULL: no meter
const char *ew_energy_source(const struct ew_energy *energy);
