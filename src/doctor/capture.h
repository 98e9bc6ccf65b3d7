#pragma once
// A captured tree: the few files of a machine that the doctor reads, as a tar archive that `doctor --root` reads
// elsewhere once it is unpacked. What a file system cannot show (uname, the driver's answers, versions that libraries
// define) goes into files under /.edgewise.
//
// No secrets: configuration of container engines and Kubernetes is cut to the lines that name NVIDIA, the package
// list to NVIDIA's packages; no serial numbers, UUIDs, host names, addresses, environment or home directories.

#include "doctor/doctor.h"

// Writes the archive to a new file at path; fails where one exists already.
int ew_capture_write(const struct ew_doctor *doctor, const char *path, struct ew_error *err) EW_MUST_CHECK;
