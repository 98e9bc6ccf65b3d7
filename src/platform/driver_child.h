#pragma once
// Asking the NVIDIA driver in a child process with a time limit, because a broken driver can hang whoever calls it.
// What the child says travels as text, one "key=TYPE:value" a line (ew_facts_parse_lines).

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define EW_DRIVER_REPORT_BYTES_MAX 65536

// Runs say in a child whose output is collected into text. False where it did not finish in time: then it was killed,
// and text holds what it had said until then.
bool ew_driver_ask(void (*say)(FILE *to), double limit_s, char *text, size_t size);

void ew_say_number(FILE *to, const char *key, double value);
void ew_say_text(FILE *to, const char *key, const char *value);
