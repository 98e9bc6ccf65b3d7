#pragma once
// What the files of the line editor share.

#include <stdbool.h>

struct ew_lineedit;

bool ew__raw_enter(int fd); // false where it is no terminal after all
void ew__raw_leave(void);
void ew__history_load(struct ew_lineedit *edit); // history.c
