// engine/answer: streamed text never ends inside a character, nor shows what belongs to a stop string.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "base/utf8.h"
#include "engine/answer.h"

static struct ew_arena g_arena;
static struct ew_tokenizer *g_tok; // one token a byte: token t is byte t

// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up.
static void append_byte_symbol(struct ew_buf *json, uint32_t byte)
{
    uint32_t n_before = 0, symbol = byte;
    char text[4];

    for (uint32_t b = 0; b <= byte; b++) {
        bool is_itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;

        if (b == byte && !is_itself)
            symbol = 256 + n_before;
        n_before += !is_itself;
    }
    ew_buf_append_json(json, (struct ew_str){text, ew_utf8_encode(symbol, text)});
}

static int setup(void **state)
{
    const struct ew_json *tree;
    struct ew_buf json;
    int rc;

    (void)state;
    ew_buf_init(&json, 1 << 20);
    ew_buf_append_str(&json, EW_STR("{\"added_tokens\": [{\"id\": 256, \"content\": \"[THINK]\", \"special\": true}], "
                                    "\"normalizer\": null, \"post_processor\": null, "
                                    "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                    "\"use_regex\": false}, \"decoder\": {\"type\": \"ByteLevel\"}, "
                                    "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {"));
    for (uint32_t byte = 0; byte < 256; byte++) {
        ew_buf_append_str(&json, byte ? EW_STR(", ") : EW_STR(""));
        append_byte_symbol(&json, byte);
        ew_buf_printf(&json, ": %u", byte);
    }
    ew_buf_append_str(&json, EW_STR("}}}"));
    ew_arena_init(&g_arena, 1 << 20);
    rc = ew_json_parse(&g_arena, ew_buf_str(&json), &tree, NULL);
    if (rc == 0)
        rc = ew_tokenizer_load_json(tree, NULL, &g_tok, NULL);
    ew_buf_fini(&json);
    return rc;
}

static int teardown(void **state)
{
    (void)state;
    ew_tokenizer_free(g_tok);
    ew_arena_fini(&g_arena);
    return 0;
}

// Feeds bytes until a stop string; collects what was given, with `|` after each token, and the rest.
static void stream(const char *bytes, const struct ew_str *stop, uint32_t n_stop, struct ew_buf *out, bool *stopped)
{
    struct ew_answer answer;

    ew_buf_init(out, 4096);
    assert_int_equal(ew_answer_init(&answer, g_tok, stop, n_stop, NULL), 0);
    *stopped = false;
    for (const char *at = bytes; *at && !*stopped; at++) {
        assert_int_equal(ew_answer_push(&answer, (unsigned char)*at, stopped, NULL), 0);
        ew_buf_append_str(out, ew_buf_str(&answer.given));
        ew_buf_append_char(out, '|');
    }
    ew_buf_append_str(out, ew_answer_end(&answer));
    ew_answer_fini(&answer);
}

static void assert_stream(const char *bytes, const struct ew_str *stop, uint32_t n_stop, const char *expected,
                          bool stops)
{
    struct ew_buf out;
    bool stopped;

    stream(bytes, stop, n_stop, &out, &stopped);
    assert_string_equal(out.ptr, expected);
    assert_int_equal(stopped, stops);
    ew_buf_fini(&out);
}

static void characters_come_whole(void **state)
{
    (void)state;
    assert_stream("a\xc3\xa9z", NULL, 0, "a||\xc3\xa9|z|", false);
    assert_stream("\xf0\x9f\x98\x80", NULL, 0, "|||\xf0\x9f\x98\x80|", false);
    assert_stream("a\xf0\x9f", NULL, 0, "a|||\xef\xbf\xbd", false); // cut off by the end
}

static void stop_strings_are_held_back_and_cut(void **state)
{
    const struct ew_str stop[] = {{"END", 3}};

    (void)state;
    assert_stream("abENDcd", stop, 1, "a|b||||", true);
    assert_stream("aENbc", stop, 1, "a|||ENb|c|", false);
    assert_stream("aEENDx", stop, 1, "a||E|||", true);
    assert_stream("aEN", stop, 1, "a|||EN", false); // it did not complete: part of the answer
}

static void the_earliest_of_several_stops_wins(void **state)
{
    const struct ew_str stop[] = {{"ab", 2}, {"aab", 3}}, accent[] = {{"\xc3\xa9", 2}};

    (void)state;
    assert_stream("aaab", stop, 2, "||a||", true);
    assert_stream("x\xc3\xa8\xc3\xa9", accent, 1, "x||\xc3\xa8|||", true);
}

static void senseless_stops_are_refused(void **state)
{
    const struct ew_str bad[] = {{"", 0}, {"\xa9", 1}};
    const struct ew_str good = {"x", 1};
    struct ew_answer answer;

    (void)state;
    for (uint32_t i = 0; i < EW_COUNT_OF(bad); i++) {
        assert_int_equal(ew_answer_init(&answer, g_tok, &bad[i], 1, NULL), EW_ERR_USAGE);
        ew_answer_fini(&answer);
    }
    assert_int_equal(ew_answer_init(&answer, NULL, &good, 1, NULL), EW_ERR_USAGE);
    ew_answer_fini(&answer);
}

static void special_tokens_are_silent_unless_shown(void **state)
{
    static const int32_t shown[] = {256};
    struct ew_answer answer;
    bool stopped;

    (void)state;
    assert_int_equal(ew_answer_init(&answer, g_tok, NULL, 0, NULL), 0);
    assert_int_equal(ew_answer_push(&answer, 256, &stopped, NULL), 0);
    assert_int_equal(answer.given.len, 0);
    answer.shown = shown;
    answer.n_shown = 1;
    assert_int_equal(ew_answer_push(&answer, 256, &stopped, NULL), 0);
    assert_true(ew_str_is(ew_buf_str(&answer.given), "[THINK]"));
    ew_answer_fini(&answer);
}

static void tokens_without_text_are_silent(void **state)
{
    struct ew_answer answer;
    bool stopped;

    (void)state;
    assert_int_equal(ew_answer_init(&answer, g_tok, NULL, 0, NULL), 0);
    assert_int_equal(ew_answer_push(&answer, 'a', &stopped, NULL), 0);
    assert_int_equal(ew_answer_push(&answer, 5000, &stopped, NULL), 0); // padding of the model's vocabulary
    assert_int_equal(answer.given.len, 0);
    ew_answer_fini(&answer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_come_whole),
        cmocka_unit_test(special_tokens_are_silent_unless_shown),
        cmocka_unit_test(stop_strings_are_held_back_and_cut),
        cmocka_unit_test(the_earliest_of_several_stops_wins),
        cmocka_unit_test(senseless_stops_are_refused),
        cmocka_unit_test(tokens_without_text_are_silent),
    };

    return cmocka_run_group_tests_name("answer", tests, setup, teardown);
}
