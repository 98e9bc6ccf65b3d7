// safetensors: one file, shards, and files damaged in every place.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "fixture.h"
#include "format/safetensors.h"
#include "scratch.h"

#define SAMPLE                                                                                                         \
    "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"         \
    "\"b.w\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]},\"s\":{\"shape\":[],\"dtype\":\"I64\","       \
    "\"data_offsets\":[22,30]},\"empty\":{\"dtype\":\"F16\",\"shape\":[0,5],\"data_offsets\":[30,30]},"                \
    "\"conv\":{\"dtype\":\"U8\",\"shape\":[1,2,1,1,1],\"data_offsets\":[30,32]},"                                      \
    "\"new\":{\"dtype\":\"F6_E2M3\",\"shape\":[8],\"data_offsets\":[32,38]}}"
#define SAMPLE_DATA 38

// Fills out with a file of that header and n zero bytes of data; returns its size.
static size_t make(unsigned char *out, const char *header, size_t data)
{
    uint64_t len = strlen(header);

    memcpy(out, &len, 8);
    memcpy(out + 8, header, (size_t)len);
    memset(out + 8 + len, 0, data);
    return 8 + (size_t)len + data;
}

// Parses a copy that ends where the bytes end, reads what it holds, and gives the code.
static int parse_exact(const unsigned char *bytes, size_t size, struct ew_error *err)
{
    unsigned char *copy = malloc(size ? size : 1);
    struct ew_safetensors st;
    volatile unsigned sum = 0;
    int code;

    assert_non_null(copy);
    if (size)
        memcpy(copy, bytes, size);
    *err = (struct ew_error){0};
    code = ew_safetensors_parse(&st, copy, size, err);
    if (code != EW_OK) {
        assert_non_null(strstr(err->message, "the safetensors file"));
        assert_null(strchr(err->message, '\n'));
        assert_null(strstr(err->message, ". "));
    }
    for (uint64_t i = 0; i < st.tensors.count; i++)
        for (uint64_t j = 0; j < st.tensors.list[i].bytes; j++)
            sum += st.tensors.list[i].data[j];
    ew_safetensors_close(&st);
    free(copy);
    return code;
}

static void sample_reads(void **state)
{
    unsigned char bytes[2000];
    const struct ew_tensor *tensor;
    struct ew_safetensors st;
    struct ew_error err;
    size_t size = make(bytes, SAMPLE, SAMPLE_DATA);

    (void)state;
    assert_int_equal(ew_safetensors_parse(&st, bytes, size, &err), EW_OK);
    assert_true(st.tensors.count == 5 && st.tensors.n_refused == 1 && st.tensors.bytes == 32);
    tensor = ew_tensors_find(&st.tensors, EW_STR("b.w"));
    assert_true(tensor && tensor->dtype == EW_DTYPE_BF16 && tensor->n_dims == 1 && tensor->shape[0] == 3 &&
                tensor->shape[1] == 1);
    assert_ptr_equal(tensor->data, bytes + size - SAMPLE_DATA + 16);
    assert_int_equal(ew_tensors_find(&st.tensors, EW_STR("s"))->n_dims, 0);
    assert_int_equal(ew_tensors_find(&st.tensors, EW_STR("conv"))->n_dims, 5);
    assert_int_equal(ew_tensors_need(&st.tensors, EW_STR("new"), &tensor, &err), EW_ERR_UNSUPPORTED);
    assert_string_equal(err.message, "tensor new has the unknown type F6_E2M3");
    ew_safetensors_close(&st);
}

static void every_truncation_is_an_error(void **state)
{
    unsigned char bytes[2000];
    size_t size = make(bytes, SAMPLE, SAMPLE_DATA);
    struct ew_error err;

    (void)state;
    for (size_t len = 0; len < size; len++)
        assert_true(parse_exact(bytes, len, &err) < 0);
    assert_int_equal(parse_exact(bytes, size, &err), EW_OK);
}

static void every_flipped_bit_is_survived(void **state)
{
    unsigned char bytes[2000];
    size_t size = make(bytes, SAMPLE, SAMPLE_DATA);
    struct ew_error err;

    (void)state;
    for (size_t bit = 0; bit < (size - SAMPLE_DATA) * 8; bit++) {
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        (void)parse_exact(bytes, size, &err);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
}

#define ONE(fields) "{\"t\":{" fields "}}"

static void bad_headers_are_named(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *part;
    } cases[] = {
        {ONE("\"dtype\":\"F32\",\"shape\":[1]"), 4, "lacks its dtype, shape or data_offsets"},
        {ONE("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]"), 4, "lacks its dtype"},
        {ONE("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]"), 8, "are not those of its shape in F32"},
        {ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]"), 8, "ends before it begins"},
        {ONE("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"), 7, "truncated: tensor t ends at byte 8"},
        {ONE("\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]"), 4, "no integer from 0 up"},
        {ONE("\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]"), 4, "no integer from 0 up"},
        {ONE("\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]"), 4, "is no number"},
        {ONE("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4294967296],\"data_offsets\":[0,4]"), 4,
         "not those of its shape"},
        {ONE("\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]"), 4, "something else than a name for a dtype"},
        {"{\"t\":[]}", 4, "something else than an object for each tensor"},
        {"{\"\":{}}", 4, "a name is empty"},
        {"{\"a\\nb\":{}}", 4, "control character"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"u\":{\"dtype\":\"U8\",\"shape\":[4],"
         "\"data_offsets\":[3,7]}}", 7, "tensors t and u overlap"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"t\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}", 2, "tensor t is there twice"},
        {"{} {}", 0, "line 1 column 4"},
        {"[]", 0, "no safetensors file"},
        {"{\"t\":", 0, "the document ends"},
    };
    unsigned char bytes[2000];
    struct ew_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_true(parse_exact(bytes, make(bytes, cases[i].header, cases[i].data), &err) < 0);
        if (!strstr(err.message, cases[i].part))
            fail_msg("expected \"%s\" in \"%s\"", cases[i].part, err.message);
    }
    assert_int_equal(parse_exact((const unsigned char *)"version https://git-lfs.github.com/spec/v1\n", 43, &err),
                     EW_ERR_FORMAT);
    assert_non_null(strstr(err.message, "Git LFS pointer"));
}

static void put_shard(const char *dir, const char *name, const char *tensor)
{
    unsigned char bytes[500];
    char header[300];

    snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", tensor);
    scratch_write(dir, name, bytes, make(bytes, header, 4));
}

static void put_index(const char *dir, const char *map)
{
    char text[1000];

    snprintf(text, sizeof(text), "{\"metadata\":{},\"weight_map\":%s}", map);
    scratch_write(dir, "model.safetensors.index.json", text, strlen(text));
}

static void expect_index_error(const char *dir, const char *map, const char *part)
{
    struct ew_safetensors st;
    struct ew_error err = {0};

    put_index(dir, map);
    assert_true(ew_safetensors_open_dir(&st, dir, &err) < 0);
    if (!strstr(err.message, part))
        fail_msg("expected \"%s\" in \"%s\"", part, err.message);
}

static void shards_open_through_their_index(void **state)
{
    struct ew_safetensors st;
    struct ew_error err;

    put_shard(*state, "one.safetensors", "a");
    put_shard(*state, "two.safetensors", "b");
    put_index(*state, "{\"b\":\"two.safetensors\",\"a\":\"one.safetensors\"}");
    assert_int_equal(ew_safetensors_open_dir(&st, *state, &err), EW_OK);
    assert_true(st.n_files == 2 && st.tensors.count == 2 && ew_tensors_find(&st.tensors, EW_STR("a"))->file == 1);
    ew_safetensors_close(&st);
    expect_index_error(*state, "{}", "has no weight_map");
    expect_index_error(*state, "[]", "has no weight_map");
    expect_index_error(*state, "{\"a\":1}", "something else than file names");
    expect_index_error(*state, "{\"a\":\"../one.safetensors\"}", "no plain file name");
    expect_index_error(*state, "{\"a\":\"..\"}", "no plain file name");
    expect_index_error(*state, "{\"a\":\"one.safetensors\",\"b\":\"three.safetensors\",\"c\":\"four.safetensors\"}",
                       "lacks 2 of the 3 files that its index names: three.safetensors, four.safetensors");
    expect_index_error(*state, "{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}",
                       "one.safetensors does not hold tensor b");
    expect_index_error(*state, "{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}", "does not hold tensor a");
    put_shard(*state, "two.safetensors", "a");
    expect_index_error(*state, "{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}", "tensor a is there twice");
}

static void fixtures_open(void **state)
{
    struct ew_safetensors st;
    struct ew_error err;
    char path[4096];

    (void)state;
    if (!fixture_find(path, sizeof(path), "models/qwen2_5_vl/model.safetensors"))
        skip();
    if (ew_safetensors_open(&st, path, &err) != EW_OK)
        fail_msg("%s", err.message);
    assert_true(st.tensors.count > 10 && st.tensors.n_refused == 0);
    ew_safetensors_close(&st);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sample_reads),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(every_flipped_bit_is_survived),
        cmocka_unit_test(bad_headers_are_named),
        cmocka_unit_test(shards_open_through_their_index),
        cmocka_unit_test(fixtures_open),
    };

    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
