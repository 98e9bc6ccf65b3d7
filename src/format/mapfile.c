#include "format/mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/buf.h"

#define READ_BYTES 65536 // the least by which the buffer of a file of unknown size grows

static int open_file(const char *path, int flags, int *fd, struct stat *info, struct ew_error *err)
{
    int code;

    *fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (*fd < 0) {
        code = ew_fail_errno(err, EW_ERR_IO, "cannot open %s", path);
        return errno == ENOENT ? ew_remedy(err, code, "check the path") : code;
    }
    if (fstat(*fd, info) != 0)
        code = ew_fail_errno(err, EW_ERR_IO, "cannot examine %s", path);
    else if (S_ISDIR(info->st_mode))
        code = ew_fail(err, EW_ERR_IO, "%s is a directory, not a file", path);
    else
        return EW_OK;
    close(*fd);
    return code;
}

static int map(struct ew_mapfile *file, struct ew_error *err)
{
    void *data;

    if (file->size == 0) { // nothing can be mapped
        file->data = (const unsigned char *)"";
        return EW_OK;
    }
    if (file->size > SIZE_MAX)
        return ew_fail(err, EW_ERR_LIMIT, "%s is larger than the address space", file->path);
    data = mmap(NULL, (size_t)file->size, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (data == MAP_FAILED)
        return ew_fail_errno(err, EW_ERR_IO, "cannot map %s", file->path);
    file->data = data;
    return EW_OK;
}

int ew_mapfile_open(struct ew_mapfile *file, const char *path, struct ew_error *err)
{
    struct stat info;
    int fd, code = open_file(path, O_NONBLOCK, &fd, &info, err); // does not wait for a pipe's writer

    *file = (struct ew_mapfile){0};
    if (code != EW_OK)
        return code;
    file->fd = fd;
    file->size = (uint64_t)info.st_size;
    file->path = ew_strdup(path);
    if (!file->path)
        code = ew_fail_memory(err, strlen(path), "a file name");
    else if (!S_ISREG(info.st_mode))
        code = ew_fail(err, EW_ERR_IO, "%s is not a regular file, so it cannot be mapped", path);
    else
        code = map(file, err);
    if (code != EW_OK) {
        close(fd);
        ew_free(file->path);
        *file = (struct ew_mapfile){0};
    }
    return code;
}

void ew_mapfile_close(struct ew_mapfile *file)
{
    if (file->path) {
        if (file->size)
            munmap((void *)file->data, (size_t)file->size);
        close(file->fd);
        ew_free(file->path);
    }
    *file = (struct ew_mapfile){0};
}

// madvise wants whole pages: the range is widened for reading ahead and narrowed for forgetting.
static void advise(const struct ew_mapfile *file, uint64_t offset, uint64_t len, int advice)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end;

    if (!file->path || offset >= file->size)
        return;
    end = len < file->size - offset ? offset + len : file->size;
    if (advice == MADV_DONTNEED) {
        offset = (offset + page - 1) & ~(page - 1);
        end &= ~(page - 1);
    } else {
        offset &= ~(page - 1);
    }
    if (offset < end)
        madvise((void *)(file->data + offset), (size_t)(end - offset), advice);
}

void ew_mapfile_will_need(const struct ew_mapfile *file, uint64_t offset, uint64_t len)
{
    advise(file, offset, len, MADV_WILLNEED);
}

void ew_mapfile_dont_need(const struct ew_mapfile *file, uint64_t offset, uint64_t len)
{
    advise(file, offset, len, MADV_DONTNEED);
}

void ew_mapfile_dont_need_at(const void *data, uint64_t len)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)data, end = start + len;

    start = (start + page - 1) & ~(page - 1);
    end &= ~(page - 1);
    if (start < end)
        madvise((void *)start, (size_t)(end - start), MADV_DONTNEED);
}

static int read_all(int fd, const char *path, struct ew_buf *buf, size_t expected, struct ew_error *err)
{
    size_t room = expected ? expected + 1 : READ_BYTES; // one more than expected, so that the end shows without growing
    ssize_t n;

    for (;;) {
        room = EW_MIN(room, buf->max - buf->len);
        if (room == 0)
            return ew_fail(err, EW_ERR_LIMIT, "%s is larger than the %zu bytes allowed for it", path, buf->max - 1);
        if (!ew_buf_reserve(buf, room))
            return ew_fail_memory(err, buf->len + room, path);
        n = read(fd, buf->ptr + buf->len, room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ew_fail_errno(err, EW_ERR_IO, "cannot read %s", path);
        if (n == 0)
            return EW_OK;
        buf->len += (size_t)n;
        buf->ptr[buf->len] = '\0';
        room = (size_t)n < room ? room - (size_t)n : EW_MAX(buf->len, READ_BYTES);
    }
}

int ew_file_read(const char *path, size_t max, char **out, size_t *len, struct ew_error *err)
{
    struct ew_buf buf;
    struct stat info;
    int fd, code = open_file(path, 0, &fd, &info, err);

    *out = NULL;
    *len = 0;
    if (code != EW_OK)
        return code;
    ew_buf_init(&buf, max < SIZE_MAX - 1 ? max + 1 : max); // a byte past the maximum tells that the file is too large
    code = read_all(fd, path, &buf, S_ISREG(info.st_mode) ? (size_t)info.st_size : 0, err);
    close(fd);
    if (code == EW_OK) {
        *len = buf.len;
        *out = ew_buf_take(&buf);
        if (!*out)
            code = ew_fail_memory(err, 1, path);
    }
    ew_buf_fini(&buf);
    return code;
}

static const struct {
    const char *start, *what, *remedy;
} impostors[] = {
    {"version https://git-lfs", "is a Git LFS pointer, not the file that it stands for",
     "run `git lfs pull` in that repository, or download the file itself"},
    {"<!DOCTYPE html", "is a web page, not a model's file", "download it again; the page may say why that failed"},
    {"<!doctype html", "is a web page, not a model's file", "download it again; the page may say why that failed"},
    {"<html", "is a web page, not a model's file", "download it again; the page may say why that failed"},
    {"PK\3\4", "is a zip archive, as PyTorch checkpoints are", "get or make a safetensors or GGUF form of the model"},
    {"\x1F\x8B", "is compressed", "unpack it first"},
    // 'ggml', 'ggmf', 'ggjt' and 'ggla' as little-endian words.
    {"lmgg", "is in the format before GGUF", "get or make a GGUF form of the model"},
    {"fmgg", "is in the format before GGUF", "get or make a GGUF form of the model"},
    {"tjgg", "is in the format before GGUF", "get or make a GGUF form of the model"},
    {"algg", "is a GGLA adapter, not a model", "get or make a GGUF form of it"},
};

int ew_file_check(const char *path, const void *bytes, size_t len, struct ew_error *err)
{
    if (len == 0) {
        ew_fail(err, EW_ERR_FORMAT, "%s is empty", path);
        return ew_remedy(err, EW_ERR_FORMAT, "download it again");
    }
    for (size_t i = 0; i < EW_COUNT_OF(impostors); i++) {
        if (!ew_str_starts((struct ew_str){bytes, len}, impostors[i].start))
            continue;
        ew_fail(err, EW_ERR_FORMAT, "%s %s", path, impostors[i].what);
        return ew_remedy(err, EW_ERR_FORMAT, "%s", impostors[i].remedy);
    }
    return EW_OK;
}
