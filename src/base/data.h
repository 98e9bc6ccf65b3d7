#pragma once
// The files of data/ as compiled into the binary (tools/embed.py).

#include "base/str.h"

struct ew_data_file {
    const char *path; // "families/llama.yaml", relative to data/
    struct ew_str text;
};

extern const struct ew_data_file ew_data_files[]; // ended by an entry with path NULL
const struct ew_data_file *ew_data_find(const char *path); // NULL where absent
