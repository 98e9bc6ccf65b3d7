// GGUF: good files, the writer's files read back, split files, and files damaged in every place.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "fixture.h"
#include "format/gguf.h"
#include "scratch.h"

// A file under construction, byte by byte, so that it can be wrong in any way.
static void put32(struct ew_buf *b, uint32_t v) { ew_buf_append(b, &v, 4); }
static void put64(struct ew_buf *b, uint64_t v) { ew_buf_append(b, &v, 8); }

static void put_str(struct ew_buf *b, const char *text)
{
    put64(b, strlen(text));
    ew_buf_append(b, text, strlen(text));
}

static void put_header(struct ew_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
    ew_buf_init(b, 1 << 20);
    ew_buf_append(b, "GGUF", 4);
    put32(b, version);
    put64(b, n_tensors);
    put64(b, n_values);
}

static void put_tensor(struct ew_buf *b, const char *name, uint32_t n_dims, uint64_t dim, uint32_t type,
                       uint64_t offset)
{
    put_str(b, name);
    put32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put64(b, dim);
    put32(b, type);
    put64(b, offset);
}

static void put_data(struct ew_buf *b, size_t bytes)
{
    while (b->len % 32)
        ew_buf_append_char(b, 0);
    while (bytes--)
        ew_buf_append_char(b, 7);
}

// A copy that ends where the bytes end, so that a sanitizer sees any read behind them.
static int parse_exact(const struct ew_buf *b, size_t len, struct ew_gguf *gguf, unsigned char **copy,
                       struct ew_error *err)
{
    *copy = malloc(len ? len : 1);
    assert_non_null(*copy);
    if (len)
        memcpy(*copy, b->ptr, len);
    *err = (struct ew_error){0};
    return ew_gguf_parse(gguf, *copy, len, err);
}

// A message is one sentence that names the file.
static void check_message(const struct ew_error *err, const char *file)
{
    assert_non_null(strstr(err->message, file));
    assert_null(strchr(err->message, '\n'));
    assert_null(strstr(err->message, ". "));
    assert_true(err->message[strlen(err->message) - 1] != '.');
}

static void expect_error(struct ew_buf *b, const char *part)
{
    struct ew_error err;
    struct ew_gguf gguf;
    unsigned char *copy;

    assert_true(ew_buf_ok(b));
    assert_true(parse_exact(b, b->len, &gguf, &copy, &err) < 0);
    if (!strstr(err.message, part))
        fail_msg("expected \"%s\" in \"%s\"", part, err.message);
    check_message(&err, "the GGUF file");
    free(copy);
    ew_buf_fini(b);
}

static void put_sample(struct ew_buf *b)
{
    put_header(b, 3, 2, 4);
    put_str(b, "general.architecture"), put32(b, EW_GGUF_STRING), put_str(b, "llama");
    put_str(b, "list"), put32(b, EW_GGUF_ARRAY), put32(b, EW_GGUF_STRING), put64(b, 2), put_str(b, "x"), put_str(b, "");
    put_str(b, "yes"), put32(b, EW_GGUF_BOOL), ew_buf_append_char(b, 1);
    put_str(b, "ids"), put32(b, EW_GGUF_ARRAY), put32(b, EW_GGUF_I16), put64(b, 1), ew_buf_append(b, "\xFE\xFF", 2);
    put_tensor(b, "a.weight", 2, 4, 0, 0);
    put_tensor(b, "b.weight", 1, 32, 8, 64);
    put_data(b, 64 + 34);
}

static void sample_reads(void **state)
{
    const struct ew_gguf_value *list;
    const struct ew_tensor *tensor;
    unsigned char *copy;
    struct ew_error err;
    struct ew_gguf gguf;
    struct ew_str text;
    uint64_t cursor = 0;
    struct ew_buf b;
    int64_t id;

    (void)state;
    put_sample(&b);
    assert_int_equal(parse_exact(&b, b.len, &gguf, &copy, &err), EW_OK);
    assert_true(ew_str_is(ew_gguf_str(&gguf, "general.architecture", "?"), "llama"));
    assert_true(ew_gguf_bool(&gguf, "yes", false) && ew_gguf_int(&gguf, "yes", 5) == 5);
    list = ew_gguf_find(&gguf, "list");
    assert_true(ew_gguf_array_next_str(list, &cursor, &text) && ew_str_is(text, "x"));
    assert_true(ew_gguf_array_next_str(list, &cursor, &text) && text.len == 0);
    assert_false(ew_gguf_array_next_str(list, &cursor, &text));
    assert_true(ew_gguf_array_int(ew_gguf_find(&gguf, "ids"), 0, &id) && id == -2);
    assert_false(ew_gguf_array_int(ew_gguf_find(&gguf, "ids"), 1, &id));
    tensor = ew_tensors_find(&gguf.tensors, EW_STR("b.weight"));
    assert_true(tensor && tensor->bytes == 34 && tensor->data[33] == 7 && tensor->dtype == EW_DTYPE_Q8_0);
    assert_true(gguf.tensors.bytes == 64 + 34);
    ew_gguf_close(&gguf);
    free(copy);
    ew_buf_fini(&b);
}

static void every_truncation_is_an_error(void **state)
{
    unsigned char *copy;
    struct ew_error err;
    struct ew_gguf gguf;
    struct ew_buf b;

    (void)state;
    put_sample(&b);
    for (size_t len = 0; len < b.len; len++) {
        assert_true(parse_exact(&b, len, &gguf, &copy, &err) < 0);
        check_message(&err, "the GGUF file");
        free(copy);
    }
    ew_buf_fini(&b);
}

static void read_everything(const struct ew_gguf *gguf)
{
    volatile unsigned sum = 0;

    for (uint64_t i = 0; i < gguf->n_values; i++)
        for (uint64_t j = 0; j < gguf->values[i].bytes; j++)
            sum += gguf->values[i].data[j];
    for (uint64_t i = 0; i < gguf->tensors.count; i++)
        for (uint64_t j = 0; j < gguf->tensors.list[i].bytes; j++)
            sum += gguf->tensors.list[i].data[j];
}

static void every_flipped_bit_is_survived(void **state)
{
    unsigned char *copy;
    struct ew_error err;
    struct ew_gguf gguf;
    struct ew_buf b;

    (void)state;
    put_sample(&b);
    for (size_t bit = 0; bit < b.len * 8; bit++) {
        b.ptr[bit / 8] ^= (char)(1 << bit % 8);
        if (parse_exact(&b, b.len, &gguf, &copy, &err) == EW_OK) {
            read_everything(&gguf);
            ew_gguf_close(&gguf);
        } else {
            check_message(&err, "the GGUF file");
        }
        free(copy);
        b.ptr[bit / 8] ^= (char)(1 << bit % 8);
    }
    ew_buf_fini(&b);
}

static void bad_headers_are_named(void **state)
{
    struct ew_buf b;

    (void)state;
    ew_buf_init(&b, 100), ew_buf_append(&b, "GGUX", 4), expect_error(&b, "is not a GGUF file");
    ew_buf_init(&b, 100), ew_buf_append(&b, "", 0), expect_error(&b, "is empty");
    ew_buf_init(&b, 100), ew_buf_append(&b, "version https://git-lfs.github.com/spec/v1\n", 43),
        expect_error(&b, "Git LFS pointer");
    ew_buf_init(&b, 100), ew_buf_append(&b, "PK\3\4....", 8), expect_error(&b, "PyTorch");
    put_header(&b, 1, 0, 0), expect_error(&b, "has GGUF version 1");
    put_header(&b, 4, 0, 0), expect_error(&b, "has GGUF version 4");
    put_header(&b, 0x03000000, 0, 0), expect_error(&b, "big-endian");
    put_header(&b, 3, 0, UINT64_MAX), expect_error(&b, "metadata values, more than any model has");
    put_header(&b, 3, 0, 60000), expect_error(&b, "metadata values, more than the file can hold");
    put_header(&b, 3, UINT64_MAX, 0), expect_error(&b, "tensors, more than any model has");
    put_header(&b, 3, 60000, 0), expect_error(&b, "tensors, more than the file can hold");
}

static void bad_values_are_named(void **state)
{
    struct ew_buf b;

    (void)state;
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, 13), put64(&b, 0), expect_error(&b, "unknown type 13");
    put_header(&b, 3, 0, 1), put_str(&b, ""), put32(&b, 0), put64(&b, 0), expect_error(&b, "name is empty");
    put_header(&b, 3, 0, 1), put_str(&b, "a\x1b[31m"), put32(&b, 0), put64(&b, 0),
        expect_error(&b, "control character");
    put_header(&b, 3, 0, 1), put_str(&b, "a\xFF"), put32(&b, 0), put64(&b, 0), expect_error(&b, "not UTF-8");
    put_header(&b, 3, 0, 1), put64(&b, UINT64_MAX), put64(&b, 0), expect_error(&b, "ends within a metadata key");
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, EW_GGUF_STRING), put64(&b, UINT64_MAX - 7),
        expect_error(&b, "ends within");
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, EW_GGUF_ARRAY), put32(&b, EW_GGUF_ARRAY), put64(&b, 1);
    expect_error(&b, "array of arrays");
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, EW_GGUF_ARRAY), put32(&b, EW_GGUF_STRING),
        put64(&b, UINT64_MAX);
    expect_error(&b, "ends within a string");
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, EW_GGUF_ARRAY), put32(&b, EW_GGUF_F64),
        put64(&b, UINT64_MAX / 2);
    expect_error(&b, "larger than any file");
    put_header(&b, 3, 0, 1), put_str(&b, "k"), put32(&b, EW_GGUF_BOOL), ew_buf_append(&b, "\2   ", 4);
    expect_error(&b, "neither 0 nor 1");
    put_header(&b, 3, 0, 2);
    for (int i = 0; i < 2; i++)
        put_str(&b, "k"), put32(&b, EW_GGUF_U32), put32(&b, 1);
    expect_error(&b, "k is there twice");
    put_header(&b, 3, 0, 1), put_str(&b, "general.alignment"), put32(&b, EW_GGUF_U32), put32(&b, 24);
    expect_error(&b, "alignment 24");
    put_header(&b, 3, 0, 1), put_str(&b, "general.alignment"), put32(&b, EW_GGUF_U32), put32(&b, 0);
    expect_error(&b, "alignment 0");
}

static void bad_tensors_are_named(void **state)
{
    struct ew_buf b;

    (void)state;
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 5, 1, 0, 0), put_data(&b, 4), expect_error(&b, "has 5 dimensions");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, 0, 0, 0), put_data(&b, 4), expect_error(&b, "dimension of size 0");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 4, 1u << 20, 0, 0), put_data(&b, 4),
        expect_error(&b, "shape that its type");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, UINT64_MAX / 2, 0, 0), put_data(&b, 4),
        expect_error(&b, "shape that its type");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, 33, 2, 0), put_data(&b, 64),
        expect_error(&b, "shape that its type q4_0");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, 1, 0, 4), put_data(&b, 64),
        expect_error(&b, "offset 4, which is not aligned");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, 1, 0, UINT64_MAX - 31), put_data(&b, 64),
        expect_error(&b, "is truncated: tensor t");
    put_header(&b, 3, 1, 0), put_tensor(&b, "t", 1, 32, 0, 0), put_data(&b, 127),
        expect_error(&b, "is truncated: tensor t");
    put_header(&b, 3, 2, 0), put_tensor(&b, "t", 1, 16, 0, 0), put_tensor(&b, "u", 1, 8, 0, 32), put_data(&b, 64);
    expect_error(&b, "tensors t and u overlap");
    put_header(&b, 3, 2, 0), put_tensor(&b, "t", 1, 8, 0, 0), put_tensor(&b, "t", 1, 8, 0, 32), put_data(&b, 64);
    expect_error(&b, "tensor t is there twice");
    put_header(&b, 3, 0, 1), put_str(&b, "split.count"), put32(&b, EW_GGUF_U16), ew_buf_append(&b, "\3\0    ", 6);
    expect_error(&b, "part of a split model");
}

static void unknown_types_are_an_error_only_when_asked_for(void **state)
{
    const struct ew_tensor *tensor;
    unsigned char *copy;
    struct ew_error err;
    struct ew_gguf gguf;
    struct ew_buf b;

    (void)state;
    put_header(&b, 3, 2, 0), put_tensor(&b, "new", 1, 8, 99, 0), put_tensor(&b, "t", 1, 8, 0, 32), put_data(&b, 64);
    assert_int_equal(parse_exact(&b, b.len, &gguf, &copy, &err), EW_OK);
    assert_int_equal(ew_tensors_need(&gguf.tensors, EW_STR("t"), &tensor, &err), EW_OK);
    assert_int_equal(ew_tensors_need(&gguf.tensors, EW_STR("new"), &tensor, &err), EW_ERR_UNSUPPORTED);
    assert_string_equal(err.message, "tensor new has the unknown or retired GGUF type 99");
    assert_int_equal(ew_tensors_need(&gguf.tensors, EW_STR("none"), &tensor, &err), EW_ERR_FORMAT);
    assert_string_equal(err.message, "tensor none is missing from the model");
    ew_gguf_close(&gguf);
    free(copy);
    ew_buf_fini(&b);
}

static void fixtures_open(void **state)
{
    static const char *const names[] = {"llama-f16",   "llama-f32",        "llama-iq4_nl", "llama-mixed",
                                        "llama-mxfp4", "llama-q4_0",       "llama-q4_k_m", "llama-q8_0",
                                        "qwen2-q8_0",  "tensors-all-types"};
    char name[100], path[4096];
    struct ew_error err;
    struct ew_gguf gguf;

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(name, sizeof(name), "gguf/%s.gguf", names[i]);
        if (!fixture_find(path, sizeof(path), name))
            skip();
        if (ew_gguf_open(&gguf, path, &err) != EW_OK)
            fail_msg("%s", err.message);
        assert_true(gguf.tensors.count >= 12 && gguf.tensors.n_refused == 0);
        assert_true(ew_gguf_str(&gguf, "general.architecture", "").len > 0);
        read_everything(&gguf);
        ew_gguf_close(&gguf);
    }
}

// The tensors are called tensor.SUFFIX and odd.SUFFIX.
static int write_sample(const char *path, uint32_t part, uint32_t parts, uint32_t suffix, struct ew_error *err)
{
    static const float rows[64] = {1, 2, 3};
    static const uint64_t shape[] = {2, 32};
    const struct ew_str words[] = {EW_STR("one"), EW_STR(""), EW_STR("thr\0ee")};
    struct ew_gguf_writer *w;
    char name[20], odd[20];

    if (ew_gguf_writer_create(path, &w, err) != EW_OK)
        return err->code;
    snprintf(name, sizeof(name), "tensor.%u", suffix);
    snprintf(odd, sizeof(odd), "odd.%u", suffix);
    if (ew_gguf_write_str(w, "general.architecture", EW_STR("llama"), err) ||
        ew_gguf_write_u32(w, "split.no", part, err) || ew_gguf_write_u32(w, "split.count", parts, err) ||
        ew_gguf_write_f32(w, "eps", 1e-5f, err) || ew_gguf_write_bool(w, "yes", true, err) ||
        ew_gguf_write_strs(w, "words", words, 3, err) || ew_gguf_write_i32s(w, "ints", (int32_t[]){-1, 2}, 2, err) ||
        ew_gguf_write_f32s(w, "floats", rows, 3, err) ||
        ew_gguf_declare_tensor(w, ew_str_of(name), EW_DTYPE_F32, 2, shape, err) ||
        ew_gguf_declare_tensor(w, ew_str_of(odd), EW_DTYPE_F16, 1, (uint64_t[]){1}, err) ||
        ew_gguf_write_data(w, rows, 128, err) || ew_gguf_write_data(w, rows + 32, 128, err) ||
        ew_gguf_write_data(w, rows, 2, err)) {
        ew_gguf_writer_abandon(w);
        return err->code;
    }
    return ew_gguf_writer_finish(w, err);
}

static void written_files_read_back(void **state)
{
    const struct ew_tensor *tensor;
    struct ew_gguf gguf, copy;
    struct ew_gguf_writer *w;
    struct ew_error err;
    char path[200], path2[200];
    struct stat info;

    scratch_path(path, sizeof(path), *state, "written.gguf");
    scratch_path(path2, sizeof(path2), *state, "copied.gguf");
    assert_int_equal(write_sample(path, 0, 1, 0, &err), EW_OK);
    assert_int_equal(ew_gguf_open(&gguf, path, &err), EW_OK);
    assert_true(gguf.version == 3 && gguf.n_values == 8 && gguf.tensors.count == 2);
    tensor = ew_tensors_find(&gguf.tensors, EW_STR("tensor.0"));
    assert_true(tensor && tensor->shape[0] == 2 && tensor->shape[1] == 32 && tensor->bytes == 256);
    assert_true(ew_gguf_number(&gguf, "eps", 0) == (double)1e-5f);
    assert_true(stat(path, &info) == 0 && (info.st_mode & 0400));
    assert_int_equal(ew_gguf_writer_create(path2, &w, &err), EW_OK); // a copy of all values is the same again
    for (uint64_t i = 0; i < gguf.n_values; i++)
        assert_int_equal(ew_gguf_write_value(w, &gguf.values[i], &err), EW_OK);
    assert_int_equal(ew_gguf_writer_finish(w, &err), EW_OK);
    assert_int_equal(ew_gguf_open(&copy, path2, &err), EW_OK);
    assert_int_equal(copy.n_values, gguf.n_values);
    for (uint64_t i = 0; i < gguf.n_values; i++) {
        assert_true(copy.values[i].bytes == gguf.values[i].bytes);
        assert_memory_equal(copy.values[i].data, gguf.values[i].data, (size_t)gguf.values[i].bytes);
    }
    ew_gguf_close(&copy);
    ew_gguf_close(&gguf);
}

static void misuse_of_the_writer_is_an_error(void **state)
{
    struct ew_gguf_writer *w;
    struct ew_error err;
    char path[200], bytes[8] = {0};

    scratch_path(path, sizeof(path), *state, "never.gguf");
    assert_int_equal(ew_gguf_writer_create(path, &w, &err), EW_OK);
    assert_int_equal(ew_gguf_write_u32(w, "k", 1, &err), EW_OK);
    assert_int_equal(ew_gguf_write_u32(w, "k", 2, &err), EW_ERR_USAGE);
    assert_int_equal(ew_gguf_declare_tensor(w, EW_STR("t"), EW_DTYPE_Q4_0, 1, (uint64_t[]){33}, &err),
                     EW_ERR_UNSUPPORTED);
    assert_int_equal(ew_gguf_declare_tensor(w, EW_STR("t"), EW_DTYPE_F32, 1, (uint64_t[]){1}, &err), EW_OK);
    assert_int_equal(ew_gguf_declare_tensor(w, EW_STR("t"), EW_DTYPE_F32, 1, (uint64_t[]){1}, &err), EW_ERR_USAGE);
    assert_int_equal(ew_gguf_write_data(w, bytes, 8, &err), EW_ERR_USAGE);
    assert_int_equal(ew_gguf_writer_finish(w, &err), EW_ERR_USAGE);
    check_message(&err, "never.gguf");
    assert_int_equal(ew_gguf_writer_create("/dev/full", &w, &err), EW_ERR_USAGE);
    assert_int_equal(ew_gguf_writer_create("/nonexistent/x.gguf", &w, &err), EW_ERR_IO);
    assert_int_equal(scratch_count(*state, "never.gguf"), 0);
}

// A file size limit stands in for the full disk.
static void a_full_disk_leaves_nothing_behind(void **state)
{
    struct rlimit old, small;
    struct ew_error err;
    char path[200];

    scratch_path(path, sizeof(path), *state, "full.gguf");
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){100, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    assert_int_equal(write_sample(path, 0, 1, 0, &err), EW_ERR_IO);
    setrlimit(RLIMIT_FSIZE, &old);
    check_message(&err, "cannot write");
    assert_int_equal(scratch_count(*state, "full.gguf"), 0);
}

static void split_models_open_by_any_part(void **state)
{
    char paths[3][200], other[200], name[40];
    struct ew_error err;
    struct ew_gguf gguf;

    for (uint32_t i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "m-%05u-of-00003.gguf", i + 1);
        scratch_path(paths[i], sizeof(paths[i]), *state, name);
        assert_int_equal(write_sample(paths[i], i, 3, i, &err), EW_OK);
    }
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(ew_gguf_open(&gguf, paths[i], &err), EW_OK);
        assert_true(gguf.tensors.count == 6 && gguf.tensors.bytes == 3 * 258 && gguf.n_parts == 2);
        assert_int_equal(ew_tensors_find(&gguf.tensors, EW_STR("odd.2"))->file, 2);
        assert_int_equal(ew_gguf_int(&gguf, "split.no", 9), 0);
        read_everything(&gguf);
        ew_gguf_close(&gguf);
    }
    assert_int_equal(write_sample(paths[2], 2, 3, 0, &err), EW_OK);
    assert_int_equal(ew_gguf_open(&gguf, paths[0], &err), EW_ERR_FORMAT);
    assert_non_null(strstr(err.message, "tensor tensor.0 is there twice"));
    check_message(&err, "m-0000");
    scratch_path(other, sizeof(other), *state, "renamed.gguf");
    assert_int_equal(rename(paths[2], other), 0);
    assert_int_equal(ew_gguf_open(&gguf, paths[1], &err), EW_ERR_IO);
    assert_non_null(strstr(err.message, "m-00003-of-00003.gguf"));
    assert_non_null(strstr(err.remedy, "one directory"));
    assert_int_equal(ew_gguf_open(&gguf, other, &err), EW_ERR_FORMAT);
    assert_non_null(strstr(err.message, "renamed.gguf is one of the 3 files of a split model"));
    assert_int_equal(write_sample(paths[2], 1, 3, 2, &err), EW_OK);
    assert_int_equal(ew_gguf_open(&gguf, paths[0], &err), EW_ERR_FORMAT);
    assert_non_null(strstr(err.message, "does not say that it is part 3 of 3"));
}

// Every allocation on the way fails once: an error, never a crash or a leak (the sanitizer builds see leaks).
static void failing_allocations_are_reported(void **state)
{
    char path[200], copy[200];
    struct ew_error err;
    struct ew_gguf gguf;
    int code = EW_ERR_MEMORY, written = EW_ERR_MEMORY;

    scratch_path(path, sizeof(path), *state, "a-00001-of-00002.gguf");
    assert_int_equal(write_sample(path, 0, 2, 0, &err), EW_OK);
    scratch_path(copy, sizeof(copy), *state, "a-00002-of-00002.gguf");
    for (uint64_t n = 1; written != EW_OK; n++) {
        ew_alloc_fail_at(n);
        written = write_sample(copy, 1, 2, 1, &err);
        assert_true((written == EW_OK || written == EW_ERR_MEMORY) && n < 100);
        ew_alloc_fail_at(0);
    }
    for (uint64_t n = 1; code != EW_OK; n++) {
        ew_alloc_fail_at(n);
        code = ew_gguf_open(&gguf, path, &err);
        assert_true((code == EW_OK || code == EW_ERR_MEMORY) && n < 100);
        ew_alloc_fail_at(0);
    }
    assert_int_equal(gguf.tensors.count, 4);
    ew_gguf_close(&gguf);
}

static void memory_stayed_small(void **state)
{
    struct rusage usage;

    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#endif
    getrusage(RUSAGE_SELF, &usage);
    assert_true(usage.ru_maxrss < 100 * 1024); // KiB; no damaged file above may have asked for much
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sample_reads),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(every_flipped_bit_is_survived),
        cmocka_unit_test(bad_headers_are_named),
        cmocka_unit_test(bad_values_are_named),
        cmocka_unit_test(bad_tensors_are_named),
        cmocka_unit_test(unknown_types_are_an_error_only_when_asked_for),
        cmocka_unit_test(fixtures_open),
        cmocka_unit_test(written_files_read_back),
        cmocka_unit_test(misuse_of_the_writer_is_an_error),
        cmocka_unit_test(a_full_disk_leaves_nothing_behind),
        cmocka_unit_test(split_models_open_by_any_part),
        cmocka_unit_test(failing_allocations_are_reported),
        cmocka_unit_test(memory_stayed_small),
    };

    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
