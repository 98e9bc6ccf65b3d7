// What --model may name, and the sentence for each thing that people give by mistake.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "fixture.h"
#include "format/modelfile.h"
#include "scratch.h"

static const char weights[] =
    "\x3E\0\0\0\0\0\0\0{\"t\":{\"dtype\":\"U8\",\"shape\":[0000000001],\"data_offsets\":[0,1]}}";
static const char good_weights[] = "\x35\0\0\0\0\0\0\0{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}x";
static const char vocabulary[] = "GGUF\3\0\0\0" "\0\0\0\0\0\0\0\0" "\1\0\0\0\0\0\0\0" "\1\0\0\0\0\0\0\0k\0\0\0\0\1";

// Makes a directory below the scratch one and gives its path.
static const char *folder(void **state, const char *name)
{
    static char path[4096];

    scratch_path(path, sizeof(path), *state, name);
    if (mkdir(path, 0700) != 0)
        fail_msg("cannot make %s", path);
    return path;
}

static void put(const char *dir, const char *name, const char *text)
{
    scratch_write(dir, name, text, strlen(text));
}

static void expect_error(const char *model, const char *message, const char *remedy)
{
    struct ew_modelfile file;
    struct ew_error err = {0};

    assert_true(ew_modelfile_open(&file, model, true, &err) < 0);
    if (!strstr(err.message, message) || !strstr(err.remedy, remedy))
        fail_msg("expected \"%s\" and \"%s\" in \"%s\" and \"%s\"", message, remedy, err.message, err.remedy);
    assert_null(strchr(err.message, '\n'));
    ew_modelfile_close(&file);
}

static void open_good(struct ew_modelfile *file, const char *model, bool need_weights)
{
    struct ew_error err;

    if (ew_modelfile_open(file, model, need_weights, &err) != EW_OK)
        fail_msg("%s", err.message);
}

static void mistakes_have_their_own_sentence(void **state)
{
    char path[4096];
    const char *dir = folder(state, "mistakes");

    expect_error(dir, "mistakes is empty", "config.json");
    put(dir, "notes.txt", "hello");
    expect_error(dir, "holds neither a config.json nor a GGUF file", "config.json");
    scratch_write(dir, "a.gguf", vocabulary, sizeof(vocabulary) - 1);
    expect_error(dir, "holds a vocabulary only", "tokenize");
    put(dir, "b.gguf", "GGUF");
    expect_error(dir, "holds 2 GGUF models", "name one of them");
    scratch_path(path, sizeof(path), dir, "b.gguf");
    expect_error(path, "b.gguf is damaged or truncated", "download it again");
    put(dir, "b.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n");
    expect_error(path, "b.gguf is a Git LFS pointer", "git lfs pull");
    put(dir, "b.gguf", "");
    expect_error(path, "b.gguf is empty", "download it again");
    put(dir, "b.gguf", "lmgg....");
    expect_error(path, "b.gguf is in the format before GGUF", "GGUF form");
    scratch_path(path, sizeof(path), dir, "absent");
    expect_error(path, "absent: No such file", "give a .gguf file");
    expect_error("someone/some-model", "cannot open the model someone/some-model", "model hub");
    expect_error("", "cannot open the model", "give a .gguf file");
}

static void broken_directories_are_named(void **state)
{
    const char *dir = folder(state, "broken");

    put(dir, "config.json", "{\"hidden_size\": 4");
    expect_error(dir, "config.json: line 1 column 18", "");
    put(dir, "config.json", "[]");
    expect_error(dir, "config.json holds no JSON object", "");
    put(dir, "config.json", "{}");
    expect_error(dir, "holds neither model.safetensors nor", "download the weights");
    put(dir, "pytorch_model.bin", "PK");
    expect_error(dir, "PyTorch's .bin or .pt form only", "safetensors");
    scratch_write(dir, "model.safetensors", weights, sizeof(weights) - 1);
    expect_error(dir, "model.safetensors: line 1 column 29: a number begins", "");
    scratch_write(dir, "model.safetensors", good_weights, sizeof(good_weights) - 1);
    put(dir, "tokenizer.json", "version https://git-lfs.github.com/spec/v1");
    expect_error(dir, "tokenizer.json is a Git LFS pointer", "git lfs pull");
}

static void hub_directories_open(void **state)
{
    struct ew_modelfile file;
    char path[4096], inner[4096];
    const char *dir = folder(state, "hub");

    put(dir, "config.json", "{\"model_type\": \"llama\"}");
    open_good(&file, dir, false);
    assert_true(file.kind == EW_MODELFILE_HF && file.tensors->count == 0 && !file.tokenizer && !file.chat_template.ptr);
    ew_modelfile_close(&file);
    scratch_write(dir, "model.safetensors", good_weights, sizeof(good_weights) - 1);
    put(dir, "generation_config.json", "{\"eos_token_id\": [1, 2]}");
    put(dir, "tokenizer.json", "{\"version\": \"1.0\"}");
    put(dir, "tokenizer_config.json", "{\"chat_template\": \"plain\"}");
    scratch_path(path, sizeof(path), dir, "model.safetensors");
    open_good(&file, path, true);
    assert_true(file.tensors->count == 1 && ew_modelfile_map(&file, 0)->size == sizeof(good_weights) - 1);
    assert_true(ew_str_is(ew_json_str(ew_json_get(file.config, "model_type"), ""), "llama"));
    assert_int_equal(ew_json_get(file.generation_config, "eos_token_id")->count, 2);
    assert_true(ew_str_is(file.chat_template, "plain") && !file.chat_template_tools.ptr && file.tokenizer);
    ew_modelfile_drop_tokenizer(&file);
    assert_null(file.tokenizer);
    ew_modelfile_close(&file);
    put(dir, "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": "
        "\"default\", \"template\": \"D\"}]}");
    open_good(&file, dir, true);
    assert_true(ew_str_is(file.chat_template, "D") && ew_str_is(file.chat_template_tools, "T"));
    ew_modelfile_close(&file);
    put(dir, "chat_template.jinja", "J\n");
    scratch_path(inner, sizeof(inner), dir, "chat_templates");
    assert_int_equal(mkdir(inner, 0700), 0);
    put(inner, "tool_use.jinja", "U");
    open_good(&file, dir, true);
    assert_true(ew_str_is(file.chat_template, "J\n") && ew_str_is(file.chat_template_tools, "U"));
    ew_modelfile_close(&file);
}

static void a_directory_of_one_gguf_opens_it(void **state)
{
    struct ew_modelfile file;
    const char *dir = folder(state, "single");

    scratch_write(dir, "a-00001-of-00002.gguf", vocabulary, sizeof(vocabulary) - 1);
    put(dir, "a-00002-of-00002.gguf", "never opened: the first one does not say that it is split");
    open_good(&file, dir, false);
    assert_true(file.kind == EW_MODELFILE_GGUF && file.gguf.n_values == 1);
    ew_modelfile_close(&file);
}

// Every allocation on the way fails once: an error, never a crash or a leak (the sanitizer builds see leaks).
static void failing_allocations_are_reported(void **state)
{
    static const char index[] = "{\"weight_map\": {\"t\": \"s.safetensors\"}}";
    const char *dir = folder(state, "failing");
    struct ew_modelfile file;
    int code = EW_ERR_MEMORY;

    put(dir, "config.json", "{\"a\": [1, 2, 3]}");
    put(dir, "tokenizer.json", "{\"a\": \"b\"}");
    put(dir, "chat_template.jinja", "text");
    put(dir, "model.safetensors.index.json", index);
    scratch_write(dir, "s.safetensors", good_weights, sizeof(good_weights) - 1);
    for (uint64_t n = 1; code != EW_OK; n++) {
        ew_alloc_fail_at(n);
        code = ew_modelfile_open(&file, dir, true, NULL);
        assert_true((code == EW_OK || code == EW_ERR_MEMORY) && n < 200);
        ew_alloc_fail_at(0);
    }
    assert_int_equal(file.tensors->count, 1);
    ew_modelfile_close(&file);
}

static void demo_resolves(void **state)
{
    struct ew_error err = {0};
    char *path;

    (void)state;
    setenv("EDGEWISE_DEMO", "/somewhere/demo.gguf", 1);
    assert_int_equal(ew_modelfile_resolve("demo", &path, &err), EW_OK);
    assert_string_equal(path, "/somewhere/demo.gguf");
    free(path);
    unsetenv("EDGEWISE_DEMO");
    assert_int_equal(ew_modelfile_resolve("demo.gguf", &path, &err), EW_OK);
    assert_string_equal(path, "demo.gguf");
    free(path);
    if (ew_modelfile_resolve("demo", &path, &err) != EW_OK)
        assert_non_null(strstr(err.remedy, "EDGEWISE_DEMO"));
    free(path);
}

// What is mapped stays; what was read and unmapped may go, and is read again from the file.
static void pages_are_given_back(void **state)
{
    const struct ew_mapfile *map;
    struct ew_modelfile file;
    unsigned char before[256];
    char path[4096];
    uint64_t last;

    if (!fixture_find(path, sizeof(path), "gguf/llama-q8_0.gguf"))
        skip();
    assert_int_equal(ew_modelfile_open(&file, path, true, NULL), EW_OK);
    map = ew_modelfile_map(&file, 0);
    assert_true(ew_modelfile_bytes(&file) == map->size);
    last = map->size - sizeof(before);
    memcpy(before, map->data + last, sizeof(before));
    ew_mapfile_dont_need(map, 0, map->size);
    ew_modelfile_give_back(&file);
    assert_memory_equal(map->data + last, before, sizeof(before));
    ew_modelfile_close(&file);
    assert_int_equal(ew_modelfile_bytes(&file), 0);
    ew_modelfile_give_back(&file);
}

static void fixtures_open(void **state)
{
    static const char *const names[] = {"models/llama_default", "models/qwen3_v5cfg", "gguf/llama-q4_0.gguf"};
    struct ew_modelfile file;
    char path[4096];

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!fixture_find(path, sizeof(path), names[i]))
            skip();
        open_good(&file, path, true);
        assert_true(file.tensors->count > 0);
        ew_modelfile_close(&file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mistakes_have_their_own_sentence),
        cmocka_unit_test(broken_directories_are_named),
        cmocka_unit_test(hub_directories_open),
        cmocka_unit_test(a_directory_of_one_gguf_opens_it),
        cmocka_unit_test(failing_allocations_are_reported),
        cmocka_unit_test(demo_resolves),
        cmocka_unit_test(pages_are_given_back),
        cmocka_unit_test(fixtures_open),
    };

    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
