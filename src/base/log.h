#pragma once
// Logs and progress go to standard error; standard output is for results.

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum ew_log_level { EW_LOG_ERROR, EW_LOG_WARN, EW_LOG_INFO, EW_LOG_DEBUG };

void ew_log_set_level(enum ew_log_level level); // default WARN
bool ew_log_enabled(enum ew_log_level level);
void ew_log(enum ew_log_level level, const char *fmt, ...) EW_PRINTF(2, 3);
// "edgewise: message. remedy." on standard error.
void ew_log_error(const struct ew_error *err);

// A progress bar for work that may take long. It appears only after half a second, and only on a terminal; otherwise
// one line is logged at INFO when the work ends. update() may be called as often as wanted.
struct ew_progress {
    const char *label;
    uint64_t total, done; // bytes
    double started_s, drawn_s;
    bool drawn;
};

void ew_progress_begin(struct ew_progress *progress, const char *label, uint64_t total);
void ew_progress_update(struct ew_progress *progress, uint64_t done);
void ew_progress_end(struct ew_progress *progress);
