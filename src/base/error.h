#pragma once
// Status codes and the error that travels with them.
//
// Functions that can fail for a reason outside the program return 0 or a negative ew_code and fill the caller's
// struct ew_error at the point of failure. Programmer errors are asserts, never codes. An ew_error may be NULL where
// the caller does not care. Messages are one sentence that names the thing and the cause; the remedy says what to do.

#include <stdarg.h>
#include <stddef.h>

enum ew_code {
    EW_OK = 0,
    EW_ERR_USAGE = -1,       // the caller asked for something that makes no sense (exit status 2)
    EW_ERR_IO = -2,          // a file or socket could not be opened, read or written
    EW_ERR_FORMAT = -3,      // bytes from outside are malformed, truncated or hostile
    EW_ERR_UNSUPPORTED = -4, // well-formed, but not something edgewise can do
    EW_ERR_MEMORY = -5,      // an allocation failed, or the memory budget does not hold
    EW_ERR_LIMIT = -6,       // a bound of ours was reached (context, depth, steps, size)
    EW_ERR_CANCELLED = -7,   // stopped on request
    EW_ERR_DEVICE = -8,      // a device or driver failed
    EW_ERR_MISMATCH = -9,    // results differ from the reference
    EW_ERR_BUSY = -10,       // a queue is full: the same request may succeed later
};

struct ew_error {
    int code;         // an ew_code
    char message[640];
    char remedy[320]; // empty where none is known
};

#define EW_PRINTF(fmt_index, first_arg) __attribute__((format(printf, fmt_index, first_arg)))
#define EW_MUST_CHECK __attribute__((warn_unused_result))

// Fills err (if not NULL) and returns code, so that failures read `return ew_fail(err, EW_ERR_IO, ...)`.
int ew_fail(struct ew_error *err, int code, const char *fmt, ...) EW_PRINTF(3, 4);
// As ew_fail, with strerror(errno) appended to the message.
int ew_fail_errno(struct ew_error *err, int code, const char *fmt, ...) EW_PRINTF(3, 4);
// Adds the remedy to an error that ew_fail has just filled; returns err->code (or code where err is NULL).
int ew_remedy(struct ew_error *err, int code, const char *fmt, ...) EW_PRINTF(3, 4);
// Puts "prefix: " before the message, to say in which file or step it happened. Returns err's code.
int ew_fail_in(struct ew_error *err, int code, const char *fmt, ...) EW_PRINTF(3, 4);
int ew_fail_memory(struct ew_error *err, size_t bytes, const char *what);
