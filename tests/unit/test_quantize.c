// quantize: what it writes, what it refuses, and that failures leave nothing behind.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/rng.h"
#include "format/gguf.h"
#include "format/modelfile.h"
#include "model/quantize.h"
#include "fixture.h"
#include "scratch.h"

#define PATH_BYTES 4096

// Runs quantize from a fixture to `name` in the scratch directory.
static int quantize(const char *dir, const char *fixture, const char *name, struct ew_quantize_options options,
                    struct ew_error *err)
{
    struct ew_quantize_summary summary;
    char in[PATH_BYTES], out[PATH_BYTES];

    if (!fixture_find(in, sizeof(in), fixture))
        skip();
    scratch_path(out, sizeof(out), dir, name);
    options.in = in;
    options.out = out;
    options.n_threads = options.n_threads ? options.n_threads : 2;
    return ew_quantize(&options, &summary, err);
}

static void must_quantize(const char *dir, const char *fixture, const char *name, struct ew_quantize_options options)
{
    struct ew_error err = {0};

    if (quantize(dir, fixture, name, options, &err) != EW_OK)
        fail_msg("%s: %s", fixture, err.message);
}

static void open_scratch(struct ew_gguf *gguf, const char *dir, const char *name)
{
    struct ew_error err = {0};
    char path[PATH_BYTES];

    scratch_path(path, sizeof(path), dir, name);
    if (ew_gguf_open(gguf, path, &err) != EW_OK)
        fail_msg("%s", err.message);
}

static enum ew_dtype type_of(const struct ew_gguf *gguf, const char *name)
{
    const struct ew_tensor *tensor = ew_tensors_find(&gguf->tensors, ew_str_of(name));

    assert_non_null(tensor);
    return tensor->dtype;
}

static void types_follow_the_target(void **state)
{
    static const struct {
        const char *to;
        enum ew_dtype down, head;
    } cases[] = {
        {"f32", EW_DTYPE_F32, EW_DTYPE_F32},    {"f16", EW_DTYPE_F16, EW_DTYPE_F16},
        {"bf16", EW_DTYPE_BF16, EW_DTYPE_BF16}, {"q8_0", EW_DTYPE_Q8_0, EW_DTYPE_Q8_0},
        {"q4_0", EW_DTYPE_Q4_0, EW_DTYPE_Q4_0}, {"q4_k", EW_DTYPE_Q4_K, EW_DTYPE_Q4_K},
        {"q6_k", EW_DTYPE_Q6_K, EW_DTYPE_Q6_K}, {"q4_k_m", EW_DTYPE_Q6_K, EW_DTYPE_Q6_K},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ew_gguf gguf;

        must_quantize(*state, "gguf/llama-q8_0.gguf", "types.gguf",
                      (struct ew_quantize_options){.type = cases[i].to, .overwrite = true});
        open_scratch(&gguf, *state, "types.gguf");
        assert_int_equal(type_of(&gguf, "blk.1.ffn_down.weight"), cases[i].down);
        assert_int_equal(type_of(&gguf, "output.weight"), cases[i].head);
        assert_int_equal(type_of(&gguf, "blk.1.ffn_norm.weight"), EW_DTYPE_F32);
        assert_int_equal(ew_gguf_int(&gguf, "llama.block_count", -1), 2);
        assert_int_equal(ew_gguf_int(&gguf, "general.quantization_version", -1), 2);
        ew_gguf_close(&gguf);
    }
}

static void the_same_type_is_copied(void **state)
{
    struct ew_gguf was, is;
    char path[PATH_BYTES];

    must_quantize(*state, "gguf/llama-q4_0.gguf", "copy.gguf", (struct ew_quantize_options){.type = "q4_0"});
    open_scratch(&is, *state, "copy.gguf");
    assert_true(fixture_find(path, sizeof(path), "gguf/llama-q4_0.gguf"));
    assert_int_equal(ew_gguf_open(&was, path, NULL), EW_OK);
    for (uint64_t i = 0; i < was.tensors.count; i++) {
        const struct ew_tensor *a = &was.tensors.list[i], *b = ew_tensors_find(&is.tensors, a->name);

        assert_non_null(b);
        if (a->dtype == EW_DTYPE_Q4_0)
            assert_memory_equal(a->data, b->data, a->bytes);
    }
    ew_gguf_close(&was);
    ew_gguf_close(&is);
}

static void threads_do_not_change_the_bits(void **state)
{
    struct ew_gguf one, four;

    must_quantize(*state, "gguf/llama-f16.gguf", "one.gguf",
                  (struct ew_quantize_options){.type = "q4_k", .n_threads = 1});
    must_quantize(*state, "gguf/llama-f16.gguf", "four.gguf",
                  (struct ew_quantize_options){.type = "q4_k", .n_threads = 4});
    open_scratch(&one, *state, "one.gguf");
    open_scratch(&four, *state, "four.gguf");
    assert_int_equal(one.file.size, four.file.size);
    assert_memory_equal(one.file.data, four.file.data, one.file.size);
    ew_gguf_close(&one);
    ew_gguf_close(&four);
}

struct figures {
    uint32_t n, n_fell_back;
    double worst_rms;
};

static void note(void *ctx, const struct ew_quantize_tensor *tensor)
{
    struct figures *figures = ctx;

    figures->n++;
    figures->n_fell_back += tensor->fell_back;
    figures->worst_rms = fmax(figures->worst_rms, tensor->rms_error);
    if (tensor->fell_back)
        assert_true(tensor->to == EW_DTYPE_Q5_0 || tensor->to == EW_DTYPE_Q8_0 || tensor->to == EW_DTYPE_F16);
}

static void rows_that_do_not_divide_fall_back(void **state)
{
    struct figures figures = {0};
    struct ew_gguf gguf;

    must_quantize(*state, "models/llama_default", "fall.gguf",
                  (struct ew_quantize_options){.type = "q4_k", .on_tensor = note, .ctx = &figures});
    assert_true(figures.n_fell_back > 0);
    assert_true(figures.worst_rms > 0 && figures.worst_rms < 0.05); // q5_0's error
    open_scratch(&gguf, *state, "fall.gguf");
    assert_int_equal(gguf.tensors.count, figures.n);
    ew_gguf_close(&gguf);
}

static void an_existing_file_stays(void **state)
{
    struct ew_error err = {0};
    char path[PATH_BYTES], *text;
    size_t len;

    scratch_write(*state, "mine.gguf", "mine", 4);
    assert_int_equal(
        quantize(*state, "gguf/llama-f16.gguf", "mine.gguf", (struct ew_quantize_options){.type = "q8_0"}, &err),
        EW_ERR_USAGE);
    assert_non_null(strstr(err.remedy, "--force"));
    scratch_path(path, sizeof(path), *state, "mine.gguf");
    assert_int_equal(ew_file_read(path, 100, &text, &len, &err), EW_OK);
    assert_string_equal(text, "mine");
    ew_free(text);
    must_quantize(*state, "gguf/llama-f16.gguf", "mine.gguf",
                  (struct ew_quantize_options){.type = "q8_0", .overwrite = true});
}

static int g_polls_left;

static bool soon(void)
{
    return g_polls_left-- <= 0;
}

static void interruption_leaves_nothing(void **state)
{
    struct ew_quantize_options options = {.type = "q4_k", .interrupted = soon};

    for (int polls = 0; polls < 8; polls += 3) {
        struct ew_error err = {0};

        g_polls_left = polls;
        assert_int_equal(quantize(*state, "gguf/llama-f16.gguf", "stopped.gguf", options, &err), EW_ERR_CANCELLED);
        assert_int_equal(scratch_count(*state, "stopped"), 0);
    }
}

static void failing_allocations_leave_nothing(void **state)
{
    static const char *const inputs[] = {"gguf/llama-f16.gguf", "models/stablelm2_12b"};

    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++)
        for (uint64_t n = 1;; n += 1 + n / 16) {
            struct ew_error err = {0};
            int code;

            ew_alloc_fail_at(n);
            code = quantize(*state, inputs[i], "memory.gguf",
                            (struct ew_quantize_options){.type = "q8_0", .overwrite = true}, &err);
            ew_alloc_fail_at(0);
            if (code == EW_OK)
                break;
            assert_true(err.message[0]);
            assert_int_equal(scratch_count(*state, "memory.gguf."), 0);
            assert_true(n < 100000);
        }
}

static void a_full_disk_is_noticed_before(void **state)
{
    struct ew_quantize_summary summary;
    struct ew_error err = {0};
    char in[PATH_BYTES];
    struct ew_quantize_options options = {.in = in, .out = "/proc/full.gguf", .type = "q8_0", .n_threads = 1};

    (void)state;
    if (!fixture_find(in, sizeof(in), "gguf/llama-f16.gguf"))
        skip();
    assert_int_equal(ew_quantize(&options, &summary, &err), EW_ERR_IO);
    assert_non_null(strstr(err.message, "left"));
}

// Header bytes of a file with every type are changed at random: whatever comes, an error or a model, comes in order.
static void damaged_files_end_in_order(void **state)
{
    char in[PATH_BYTES], out[PATH_BYTES], damaged[PATH_BYTES], *bytes;
    struct ew_quantize_options options = {.in = damaged, .out = out, .type = "q8_0", .overwrite = true, .n_threads = 1};
    struct ew_quantize_summary summary;
    struct ew_error err = {0};
    size_t len;

    if (!fixture_find(in, sizeof(in), "gguf/tensors-all-types.gguf"))
        skip();
    assert_int_equal(ew_file_read(in, (size_t)1 << 20, &bytes, &len, &err), EW_OK);
    scratch_path(out, sizeof(out), *state, "damaged.out");
    scratch_path(damaged, sizeof(damaged), *state, "damaged.gguf");
    for (uint64_t round = 0; round < 150; round++) {
        struct ew_rng rng = ew_rng_at(1, round);
        uint32_t at = ew_rng_below(&rng, 1568); // where data begins
        char was = bytes[at];

        bytes[at] = (char)ew_rng_u32(&rng);
        scratch_write(*state, "damaged.gguf", bytes, len);
        bytes[at] = was;
        if (ew_quantize(&options, &summary, &err) != EW_OK)
            assert_true(err.message[0]);
    }
    ew_free(bytes);
}

static void what_gguf_cannot_say_is_refused(void **state)
{
    static const char *const models[] = {"models/llama_rope_dynamic", "models/ministral_swa_mix"};

    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]); i++) {
        struct ew_error err = {0};

        assert_int_equal(quantize(*state, models[i], "cannot.gguf", (struct ew_quantize_options){.type = "f32"}, &err),
                         EW_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.message, "GGUF cannot express"));
        assert_int_equal(scratch_count(*state, "cannot"), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_follow_the_target),
        cmocka_unit_test(the_same_type_is_copied),
        cmocka_unit_test(threads_do_not_change_the_bits),
        cmocka_unit_test(rows_that_do_not_divide_fall_back),
        cmocka_unit_test(an_existing_file_stays),
        cmocka_unit_test(interruption_leaves_nothing),
        cmocka_unit_test(failing_allocations_leave_nothing),
        cmocka_unit_test(a_full_disk_is_noticed_before),
        cmocka_unit_test(damaged_files_end_in_order),
        cmocka_unit_test(what_gguf_cannot_say_is_refused),
    };

    ew_log_set_level(EW_LOG_ERROR); // the fixtures have no vocabulary, which quantize says each time
    return cmocka_run_group_tests_name("quantize", tests, scratch_make, scratch_remove);
}
