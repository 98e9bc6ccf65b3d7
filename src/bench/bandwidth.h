#pragma once
// How fast this machine can read its memory: the limit of decoding, measured in the same run as what is compared with
// it.

#include "base/error.h"

// The best of several passes over a buffer far larger than the last-level cache, by n_threads threads (0: as many as
// usable cores), in GB/s (1e9). Takes about half a second.
int ew_bandwidth_read(unsigned n_threads, double *gb_s, struct ew_error *err) EW_MUST_CHECK;
