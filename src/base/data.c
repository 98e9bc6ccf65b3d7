#include "base/data.h"

const struct ew_data_file *ew_data_find(const char *path)
{
    for (const struct ew_data_file *file = ew_data_files; file->path; file++)
        if (strcmp(file->path, path) == 0)
            return file;
    return NULL;
}
