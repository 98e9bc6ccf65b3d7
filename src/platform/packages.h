#pragma once
// Installed Debian packages, from dpkg's status file: no process is started.

#include <stddef.h>

#include "base/str.h"

struct ew_packages {
    char *status; // the file, or NULL where there is none
};

void ew_packages_read(const char *root, struct ew_packages *out);
void ew_packages_free(struct ew_packages *packages);
// The version, a view that lives as long as the packages; empty where the package is not installed.
struct ew_str ew_package_version(const struct ew_packages *packages, const char *name);
// "1:38.4.0-2025+b1" without epoch and revision: "38.4.0".
struct ew_str ew_package_upstream(struct ew_str version);
