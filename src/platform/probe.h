#pragma once
// Looking at a machine: each probe reads one part of it into facts. Nothing is run, nothing is written, no root is
// needed.
//
// With a root, the same probes read a captured tree; what a file system cannot show (driver calls, uname) stands
// there under /.edgewise, where `doctor --capture` put it.

#include "platform/facts.h"

struct ew_probe {
    const char *name;
    void (*run)(const char *root, struct ew_facts *facts);
};

extern const struct ew_probe
    ew_probes[]; // ended by an entry without a name; later ones may read the facts of earlier ones

// Runs all of them. facts->failed tells whether memory ran out.
void ew_probe_all(const char *root, struct ew_facts *facts);

// What follows from other facts and from no file: kinds of machine that rules may name, branches of drivers. Part of
// ew_probe_all; by itself for facts that come from a profile.
void ew_probe_derive(struct ew_facts *facts);

void ew_probe_os(const char *root, struct ew_facts *facts); // probe_os.c
void ew_probe_memory(const char *root, struct ew_facts *facts);
void ew_probe_disk(const char *root, struct ew_facts *facts);    // probe_disk.c
void ew_probe_jetson(const char *root, struct ew_facts *facts);  // probe_jetson.c
void ew_probe_power(const char *root, struct ew_facts *facts);   // probe_power.c: modes, rails, clocks
void ew_probe_thermal(const char *root, struct ew_facts *facts); // probe_thermal.c
void ew_probe_nvidia(const char *root,
                     struct ew_facts *facts); // probe_nvidia.c: driver files, PCI, then the driver itself
// Only what changes from second to second (NVML's power, clocks, temperature): no CUDA, so that it takes milliseconds.
void ew_probe_nvidia_derive(struct ew_facts *facts);
void ew_probe_gpu_readings(const char *root, struct ew_facts *facts);
void ew_probe_container(const char *root, struct ew_facts *facts); // probe_container.c
