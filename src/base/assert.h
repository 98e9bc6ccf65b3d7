#pragma once
// Asserts for our own invariants; always on, never used on input.

_Noreturn void ew_assert_failed(const char *file, int line, const char *what);

#define EW_ASSERT(cond) ((cond) ? (void)0 : ew_assert_failed(__FILE__, __LINE__, #cond))
#define EW_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define EW_MIN(a, b) ((a) < (b) ? (a) : (b))
#define EW_MAX(a, b) ((a) > (b) ? (a) : (b))
