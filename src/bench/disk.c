#include "bench/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/pool.h"

#define THREADS 4 // blocks under way at once: enough for NVMe, harmless for the rest
#define BLOCK_BYTES ((size_t)1 << 20)
#define SECONDS 0.5

struct reading {
    int fd;
    uint64_t n_blocks; // of the file
    double end_s;
    atomic_uint_fast64_t next, bytes;
    atomic_int failed;    // errno of the first read that failed
    char *buffers;        // [THREADS, BLOCK_BYTES]
};

static void read_blocks(void *ctx, uint32_t thread, uint32_t n_threads)
{
    struct reading *r = ctx;
    char *buffer = r->buffers + thread * BLOCK_BYTES;

    (void)n_threads;
    while (ew_clock_s() < r->end_s && !atomic_load(&r->failed)) {
        uint64_t block = atomic_fetch_add(&r->next, 1) % r->n_blocks;
        ssize_t got = pread(r->fd, buffer, BLOCK_BYTES, (off_t)(block * BLOCK_BYTES));

        if (got <= 0)
            atomic_store(&r->failed, got < 0 ? errno : EIO);
        else
            atomic_fetch_add(&r->bytes, (uint64_t)got);
    }
}

static int measure(struct reading *r, const char *path, double *gb_s, struct ew_error *err)
{
    struct ew_pool *pool = NULL;
    double started_s;
    int rc = ew_pool_create(THREADS, "disk", &pool, err);

    if (rc < 0)
        return rc;
    started_s = ew_clock_s();
    r->end_s = started_s + SECONDS;
    ew_pool_all(pool, read_blocks, r);
    *gb_s = (double)atomic_load(&r->bytes) / (ew_clock_s() - started_s) / 1e9;
    ew_pool_destroy(pool);
    if (atomic_load(&r->failed))
        return ew_fail(err, EW_ERR_UNSUPPORTED, "%s cannot be read past the page cache: %s", path,
                       strerror(atomic_load(&r->failed)));
    return 0;
}

int ew_disk_read(const char *path, double *gb_s, struct ew_error *err)
{
    struct reading r = {.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC)};
    struct stat info;
    int rc = 0;

    if (r.fd < 0)
        return ew_fail_errno(err, errno == EINVAL ? EW_ERR_UNSUPPORTED : EW_ERR_IO,
                             "cannot read %s past the page cache", path);
    if (fstat(r.fd, &info) != 0 || !S_ISREG(info.st_mode) || (uint64_t)info.st_size < EW_DISK_BYTES_MIN)
        rc = ew_fail(err, EW_ERR_UNSUPPORTED, "%s is no file of at least %llu MiB", path, EW_DISK_BYTES_MIN >> 20);
    r.n_blocks = rc == 0 ? (uint64_t)info.st_size / BLOCK_BYTES : 0;
    r.buffers = rc == 0 ? ew_alloc_aligned(THREADS * BLOCK_BYTES + 4096) : NULL;
    if (rc == 0 && !r.buffers)
        rc = ew_fail_memory(err, THREADS * BLOCK_BYTES, "reading a disk");
    if (rc == 0) {
        char *buffers = r.buffers;

        r.buffers += -(uintptr_t)buffers % 4096; // O_DIRECT wants whole pages
        rc = measure(&r, path, gb_s, err);
        r.buffers = buffers;
    }
    ew_free(r.buffers);
    close(r.fd);
    return rc;
}

bool ew_disk_find_file(char *path, size_t size)
{
    static const char *const dirs[] = {"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64",
                                       "/usr/local/cuda/lib64", "/usr/local/lib"};
    off_t largest = (off_t)EW_DISK_BYTES_MIN - 1;
    bool found = false;

    for (size_t i = 0; i < EW_COUNT_OF(dirs); i++) {
        DIR *dir = opendir(dirs[i]);
        struct dirent *entry;
        struct stat info;

        while (dir && (entry = readdir(dir)))
            if (fstatat(dirfd(dir), entry->d_name, &info, 0) == 0 && S_ISREG(info.st_mode) && info.st_size > largest &&
                (size_t)snprintf(path, size, "%s/%s", dirs[i], entry->d_name) < size) {
                largest = info.st_size;
                found = true;
            }
        if (dir)
            closedir(dir);
    }
    return found;
}
