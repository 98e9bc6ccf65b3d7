// Writing GGUF. Metadata and declarations are gathered in memory (a vocabulary makes some 10 MB of them) and go
// out, with the counts that the header begins with, before the first byte of tensor data; the data is streamed.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/buf.h"
#include "format/gguf.h"

#define VERSION 3u
#define ALIGNMENT 32u
#define HEADER_BYTES_MAX ((size_t)1 << 30)
#define NAMES_BYTES_MAX ((size_t)64 << 20)
#define OUT_BYTES ((size_t)1 << 20) // gathered before a write, so that small rows do not cost a system call each
#define NAME_BYTES_MAX 63           // what ggml reads back

struct ew_gguf_writer {
    char *path, *temp;
    int fd;
    struct ew_buf values, tensors; // both parts of the header, encoded
    uint64_t n_values, n_tensors;
    struct ew_arena names;         // the keys of the maps
    struct ew_map keys, tensor_names;
    uint64_t *sizes;               // [n_tensors] bytes of each tensor
    uint64_t offset;               // of the next tensor to be declared
    bool streaming;                // the header is out
    uint64_t current, written;     // the tensor whose data comes, and how much of it came
    unsigned char *out;            // [OUT_BYTES]
    size_t out_len;
};

static uint64_t padding(uint64_t bytes)
{
    return (ALIGNMENT - bytes % ALIGNMENT) % ALIGNMENT;
}

static int cannot_write(const struct ew_gguf_writer *w, struct ew_error *err)
{
    bool full = errno == ENOSPC || errno == EDQUOT;
    int code = ew_fail_errno(err, EW_ERR_IO, "cannot write %s", w->path);

    return full ? ew_remedy(err, code, "free space on that file system, or write elsewhere") : code;
}

// A file beside the final one, so that the rename stays within one file system. The name carries our process id:
// what is there already was left by a process that died.
static int create_temp(struct ew_gguf_writer *w, struct ew_error *err)
{
    size_t size = strlen(w->path) + 32;
    struct stat info;

    if (stat(w->path, &info) == 0 && !S_ISREG(info.st_mode))
        return ew_fail(err, EW_ERR_USAGE, "%s is no regular file, so no model can be written there", w->path);
    w->temp = ew_alloc(size);
    if (!w->temp)
        return ew_fail_memory(err, size, "a file name");
    snprintf(w->temp, size, "%s.%ld.part", w->path, (long)getpid());
    unlink(w->temp);
    w->fd = open(w->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return w->fd < 0 ? cannot_write(w, err) : EW_OK;
}

int ew_gguf_writer_create(const char *path, struct ew_gguf_writer **out, struct ew_error *err)
{
    struct ew_gguf_writer *w = ew_alloc(sizeof(*w));
    int code;

    *out = NULL;
    if (!w)
        return ew_fail_memory(err, sizeof(*w), "a GGUF file");
    w->fd = -1;
    ew_buf_init(&w->values, HEADER_BYTES_MAX);
    ew_buf_init(&w->tensors, HEADER_BYTES_MAX);
    ew_arena_init(&w->names, NAMES_BYTES_MAX);
    w->path = ew_strdup(path);
    w->out = ew_alloc(OUT_BYTES);
    if (!w->path || !w->out || ew_map_init(&w->keys, 64) != EW_OK || ew_map_init(&w->tensor_names, 512) != EW_OK)
        code = ew_fail_memory(err, OUT_BYTES, "a GGUF file");
    else
        code = create_temp(w, err);
    if (code == EW_OK)
        *out = w;
    else
        ew_gguf_writer_abandon(w);
    return code;
}

void ew_gguf_writer_abandon(struct ew_gguf_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->temp);
    }
    ew_buf_fini(&w->values);
    ew_buf_fini(&w->tensors);
    ew_map_fini(&w->keys);
    ew_map_fini(&w->tensor_names);
    ew_arena_fini(&w->names);
    ew_free(w->sizes);
    ew_free(w->out);
    ew_free(w->temp);
    ew_free(w->path);
    ew_free(w);
}

// Remembers a name, which must be new.
static int claim(struct ew_gguf_writer *w, struct ew_map *map, struct ew_str name, size_t max, struct ew_error *err)
{
    int code = ew_tensor_name_check(name, max, err);
    bool repeated = false;
    char *copy;

    if (code != EW_OK)
        return ew_fail_in(err, code, "cannot write %s", w->path);
    copy = ew_arena_copy(&w->names, name.ptr, name.len);
    if (!copy || ew_map_put(map, (struct ew_str){copy, name.len}, 0, &repeated) != EW_OK)
        return ew_fail_memory(err, name.len, "a name");
    return repeated ? ew_fail(err, EW_ERR_USAGE, EW_STR_FMT " is written to %s twice", EW_STR_ARG(name), w->path)
                    : EW_OK;
}

static void put_u32(struct ew_buf *buf, uint32_t value)
{
    ew_buf_append(buf, &value, sizeof(value)); // little endian, as this machine is
}

static void put_u64(struct ew_buf *buf, uint64_t value)
{
    ew_buf_append(buf, &value, sizeof(value));
}

static void put_str(struct ew_buf *buf, struct ew_str text)
{
    put_u64(buf, text.len);
    ew_buf_append_str(buf, text);
}

static int check_buf(const struct ew_gguf_writer *w, const struct ew_buf *buf, struct ew_error *err)
{
    return ew_buf_ok(buf) ? EW_OK
                          : ew_fail(err, EW_ERR_MEMORY, "the header of %s needs more memory than there is", w->path);
}

static int begin_value(struct ew_gguf_writer *w, struct ew_str key, enum ew_gguf_type type, struct ew_error *err)
{
    int code;

    EW_ASSERT(!w->streaming);
    code = claim(w, &w->keys, key, EW_GGUF_KEY_MAX, err);
    if (code != EW_OK)
        return code;
    put_str(&w->values, key);
    put_u32(&w->values, (uint32_t)type);
    w->n_values++;
    return EW_OK;
}

static int put_scalar(struct ew_gguf_writer *w, const char *key, enum ew_gguf_type type, const void *bytes, size_t len,
                      struct ew_error *err)
{
    int code = begin_value(w, ew_str_of(key), type, err);

    if (code != EW_OK)
        return code;
    ew_buf_append(&w->values, bytes, len);
    return check_buf(w, &w->values, err);
}

static int put_array(struct ew_gguf_writer *w, const char *key, enum ew_gguf_type type, const void *items, uint64_t n,
                     size_t size, struct ew_error *err)
{
    int code = begin_value(w, ew_str_of(key), EW_GGUF_ARRAY, err);

    if (code != EW_OK)
        return code;
    put_u32(&w->values, (uint32_t)type);
    put_u64(&w->values, n);
    ew_buf_append(&w->values, items, (size_t)n * size);
    return check_buf(w, &w->values, err);
}

int ew_gguf_write_value(struct ew_gguf_writer *w, const struct ew_gguf_value *value, struct ew_error *err)
{
    int code;

    if (ew_str_is(value->key, "general.alignment")) // the file's own layout, not a property of the model
        return EW_OK;
    code = begin_value(w, value->key, value->type, err);
    if (code != EW_OK)
        return code;
    if (value->type == EW_GGUF_ARRAY) {
        put_u32(&w->values, (uint32_t)value->element_type);
        put_u64(&w->values, value->count);
    }
    ew_buf_append(&w->values, value->data, (size_t)value->bytes);
    return check_buf(w, &w->values, err);
}

int ew_gguf_write_str(struct ew_gguf_writer *w, const char *key, struct ew_str text, struct ew_error *err)
{
    int code = begin_value(w, ew_str_of(key), EW_GGUF_STRING, err);

    if (code != EW_OK)
        return code;
    put_str(&w->values, text);
    return check_buf(w, &w->values, err);
}

int ew_gguf_write_u32(struct ew_gguf_writer *w, const char *key, uint32_t value, struct ew_error *err)
{
    return put_scalar(w, key, EW_GGUF_U32, &value, sizeof(value), err);
}

int ew_gguf_write_f32(struct ew_gguf_writer *w, const char *key, float value, struct ew_error *err)
{
    return put_scalar(w, key, EW_GGUF_F32, &value, sizeof(value), err);
}

int ew_gguf_write_bool(struct ew_gguf_writer *w, const char *key, bool value, struct ew_error *err)
{
    uint8_t byte = value;

    return put_scalar(w, key, EW_GGUF_BOOL, &byte, sizeof(byte), err);
}

int ew_gguf_write_strs(struct ew_gguf_writer *w, const char *key, const struct ew_str *items, uint64_t n,
                       struct ew_error *err)
{
    int code = put_array(w, key, EW_GGUF_STRING, NULL, n, 0, err);

    for (uint64_t i = 0; i < n && code == EW_OK; i++)
        put_str(&w->values, items[i]);
    return code == EW_OK ? check_buf(w, &w->values, err) : code;
}

int ew_gguf_write_i32s(struct ew_gguf_writer *w, const char *key, const int32_t *items, uint64_t n,
                       struct ew_error *err)
{
    return put_array(w, key, EW_GGUF_I32, items, n, sizeof(*items), err);
}

int ew_gguf_write_f32s(struct ew_gguf_writer *w, const char *key, const float *items, uint64_t n, struct ew_error *err)
{
    return put_array(w, key, EW_GGUF_F32, items, n, sizeof(*items), err);
}

static int remember_size(struct ew_gguf_writer *w, uint64_t bytes, struct ew_error *err)
{
    uint64_t n = w->n_tensors;
    uint64_t *grown;

    if ((n & (n - 1)) == 0) { // 0 and the powers of two
        grown = ew_realloc_array(w->sizes, n ? 2 * n : 1, sizeof(*grown));
        if (!grown)
            return ew_fail_memory(err, 2 * n * sizeof(*grown), "the list of tensors");
        w->sizes = grown;
    }
    w->sizes[w->n_tensors++] = bytes;
    return EW_OK;
}

int ew_gguf_declare_tensor(struct ew_gguf_writer *w, struct ew_str name, enum ew_dtype dtype, uint32_t n_dims,
                           const uint64_t *shape, struct ew_error *err)
{
    int type = ew_dtype_info(dtype)->gguf_type, code;
    uint64_t bytes;

    EW_ASSERT(!w->streaming);
    if (type < 0)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "GGUF has no type for the %s of tensor " EW_STR_FMT,
                       ew_dtype_name(dtype), EW_STR_ARG(name));
    if (n_dims > EW_GGUF_DIMS_MAX)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "tensor " EW_STR_FMT " has %u dimensions, and GGUF allows %u",
                       EW_STR_ARG(name), n_dims, EW_GGUF_DIMS_MAX);
    if (!ew_tensor_size(dtype, n_dims, shape, &bytes) || bytes == 0)
        return ew_fail(err, EW_ERR_UNSUPPORTED, "the shape of tensor " EW_STR_FMT " cannot be stored as %s",
                       EW_STR_ARG(name), ew_dtype_name(dtype));
    code = claim(w, &w->tensor_names, name, NAME_BYTES_MAX, err);
    if (code == EW_OK)
        code = remember_size(w, bytes, err);
    if (code != EW_OK)
        return code;
    put_str(&w->tensors, name);
    put_u32(&w->tensors, n_dims);
    for (uint32_t i = n_dims; i-- > 0;)
        put_u64(&w->tensors, shape[i]);
    put_u32(&w->tensors, (uint32_t)type);
    put_u64(&w->tensors, w->offset);
    w->offset += bytes + padding(bytes);
    return check_buf(w, &w->tensors, err);
}

static int write_out(struct ew_gguf_writer *w, const unsigned char *bytes, uint64_t len, struct ew_error *err)
{
    while (len) {
        ssize_t n = write(w->fd, bytes, (size_t)EW_MIN(len, (uint64_t)1 << 30)); // Linux writes at most 2 GiB at once

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return cannot_write(w, err);
        bytes += n;
        len -= (uint64_t)n;
    }
    return EW_OK;
}

static int flush(struct ew_gguf_writer *w, struct ew_error *err)
{
    size_t len = w->out_len;

    w->out_len = 0;
    return write_out(w, w->out, len, err);
}

static int emit(struct ew_gguf_writer *w, const void *bytes, uint64_t len, struct ew_error *err)
{
    int code = len > OUT_BYTES - w->out_len ? flush(w, err) : EW_OK;

    if (code != EW_OK || len > OUT_BYTES)
        return code == EW_OK ? write_out(w, bytes, len, err) : code;
    if (len)
        memcpy(w->out + w->out_len, bytes, (size_t)len);
    w->out_len += (size_t)len;
    return EW_OK;
}

static int emit_padding(struct ew_gguf_writer *w, uint64_t behind, struct ew_error *err)
{
    static const unsigned char zeros[ALIGNMENT];

    return emit(w, zeros, padding(behind), err);
}

static int emit_header(struct ew_gguf_writer *w, struct ew_error *err)
{
    unsigned char head[24] = "GGUF";
    uint32_t version = VERSION;
    int code;

    memcpy(head + 4, &version, sizeof(version));
    memcpy(head + 8, &w->n_tensors, sizeof(w->n_tensors));
    memcpy(head + 16, &w->n_values, sizeof(w->n_values));
    code = emit(w, head, sizeof(head), err);
    if (code == EW_OK)
        code = emit(w, w->values.ptr, w->values.len, err);
    if (code == EW_OK)
        code = emit(w, w->tensors.ptr, w->tensors.len, err);
    if (code == EW_OK)
        code = emit_padding(w, sizeof(head) + w->values.len + w->tensors.len, err);
    ew_buf_fini(&w->values);
    ew_buf_fini(&w->tensors);
    w->streaming = true;
    return code;
}

int ew_gguf_write_data(struct ew_gguf_writer *w, const void *bytes, uint64_t len, struct ew_error *err)
{
    int code = w->streaming ? EW_OK : emit_header(w, err);

    if (code != EW_OK)
        return code;
    if (w->current == w->n_tensors || len > w->sizes[w->current] - w->written)
        return ew_fail(err, EW_ERR_USAGE, "more data is written to %s than its tensors were declared to hold", w->path);
    code = emit(w, bytes, len, err);
    w->written += len;
    if (code != EW_OK || w->written < w->sizes[w->current])
        return code;
    w->current++;
    w->written = 0;
    return emit_padding(w, w->sizes[w->current - 1], err);
}

// Makes the rename itself survive a power failure; file systems that cannot sync a directory do it on their own.
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = ew_strdup(slash ? path : ".");
    int fd;

    if (!dir)
        return;
    if (slash)
        dir[slash == path ? 1 : slash - path] = '\0';
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    ew_free(dir);
}

static int put_in_place(struct ew_gguf_writer *w, struct ew_error *err)
{
    int closed;

    if (fsync(w->fd) != 0 && errno != EINVAL) // EINVAL: a file system without it
        return cannot_write(w, err);
    closed = close(w->fd); // network file systems report a full disk here
    w->fd = -1;
    if (closed != 0 || rename(w->temp, w->path) != 0) {
        int code = cannot_write(w, err);

        unlink(w->temp);
        return code;
    }
    sync_directory(w->path);
    return EW_OK;
}

int ew_gguf_writer_finish(struct ew_gguf_writer *w, struct ew_error *err)
{
    int code = w->streaming ? EW_OK : emit_header(w, err);

    if (code == EW_OK && w->current < w->n_tensors)
        code = ew_fail(err, EW_ERR_USAGE, "%s lacks the data of %llu of its %llu tensors", w->path,
                       (unsigned long long)(w->n_tensors - w->current), (unsigned long long)w->n_tensors);
    if (code == EW_OK)
        code = flush(w, err);
    if (code == EW_OK)
        code = put_in_place(w, err);
    ew_gguf_writer_abandon(w);
    return code;
}
