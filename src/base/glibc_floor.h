#pragma once
// Included before everything else by the compiler's command line (meson.build).
//
// From glibc 2.38 on, _GNU_SOURCE redirects strtol, sscanf and their like to __isoc23_* variants, whose only difference
// is that they accept binary literals, and which older systems lack. Without the redirection a program built on Ubuntu
// 24.04 still runs on glibc 2.34. The macro has had two names (C2X until 2.39, C23 since).

#include <features.h>

#undef __GLIBC_USE_C2X_STRTOL
#define __GLIBC_USE_C2X_STRTOL 0
#undef __GLIBC_USE_C23_STRTOL
#define __GLIBC_USE_C23_STRTOL 0
