// Stands in for libFuzzer where there is none: gives every file of the named files and directories to the fuzz entry.
// The last name printed is the input that brought it down.
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#define INPUT_BYTES_MAX (1 << 20)
#define PATH_BYTES_MAX 4096

static int fail(const char *path)
{
    fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
    return 1;
}

// The copy has exactly the input's size, so that a sanitizer sees a read past its end.
static int replay_file(const char *path)
{
    static uint8_t bytes[INPUT_BYTES_MAX];
    FILE *file = fopen(path, "rb");
    uint8_t *exact;
    size_t size;

    if (!file)
        return fail(path);
    size = fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    exact = malloc(size ? size : 1);
    if (!exact)
        return fail(path);
    memcpy(exact, bytes, size);
    printf("%s (%zu bytes)\n", path, size);
    fflush(stdout);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
    return 0;
}

static int replay_directory(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    char name[PATH_BYTES_MAX];
    int failed = 0;

    if (!dir)
        return fail(path);
    while (!failed && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        failed = replay_file(name);
    }
    closedir(dir);
    return failed;
}

int main(int argc, char **argv)
{
    struct stat info;
    int failed = LLVMFuzzerTestOneInput((const uint8_t *)"", 0);

    for (int i = 1; i < argc && !failed; i++) {
        if (stat(argv[i], &info) != 0)
            failed = fail(argv[i]);
        else
            failed = S_ISDIR(info.st_mode) ? replay_directory(argv[i]) : replay_file(argv[i]);
    }
    return failed;
}
