// JSON: the event reader and the tree. Python's json is the oracle of tests/py/test_json.py; here are the rules
// of our own.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "format/json.h"

static const struct ew_json *parse(struct ew_arena *arena, const char *text)
{
    const struct ew_json *root;
    struct ew_error err = {0};

    if (ew_json_parse(arena, ew_str_of(text), &root, &err) != EW_OK)
        fail_msg("%s: %s", text, err.message);
    return root;
}

static void events_come_in_order(void **state)
{
    static const int expected[] = {EW_JSON_OBJECT_BEGIN, EW_JSON_KEY,       EW_JSON_ARRAY_BEGIN, EW_JSON_NUMBER,
                                   EW_JSON_NUMBER,       EW_JSON_ARRAY_END, EW_JSON_KEY,         EW_JSON_OBJECT_BEGIN,
                                   EW_JSON_OBJECT_END,   EW_JSON_KEY,       EW_JSON_STRING,      EW_JSON_OBJECT_END,
                                   EW_JSON_END,          EW_JSON_END};
    struct ew_json_reader reader;

    (void)state;
    ew_json_reader_init(&reader, EW_STR(" {\"a\": [1, -Infinity] , \"b\":{}, \"c\":\"\\ud83d\\ude00\\n\"} "));
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_int_equal(ew_json_next(&reader, NULL), expected[i]);
        if (expected[i] == EW_JSON_STRING)
            assert_true(ew_str_is(reader.text, "\xF0\x9F\x98\x80\n"));
    }
    ew_json_reader_fini(&reader);
}

static void skip_passes_over_whole_values(void **state)
{
    struct ew_json_reader reader;
    struct ew_error err;

    (void)state;
    ew_json_reader_init(&reader, EW_STR("[{\"a\":[[1],{}]}, 2, [3], 4]"));
    assert_int_equal(ew_json_next(&reader, NULL), EW_JSON_ARRAY_BEGIN);
    assert_int_equal(ew_json_skip(&reader, NULL), EW_OK);
    assert_int_equal(ew_json_skip(&reader, NULL), EW_OK);
    assert_int_equal(ew_json_next(&reader, NULL), EW_JSON_ARRAY_BEGIN);
    assert_int_equal(ew_json_leave(&reader, NULL), EW_OK);
    assert_int_equal(ew_json_next(&reader, NULL), EW_JSON_NUMBER);
    assert_int_equal(reader.integer, 4);
    assert_int_equal(ew_json_skip(&reader, &err), EW_ERR_FORMAT);
    ew_json_reader_fini(&reader);
}

static void errors_say_where_and_stay(void **state)
{
    static const struct { const char *text, *message; } cases[] = {
        {"", "line 1 column 1: the document ends where a value should stand"},
        {"[1,\n 2,]", "line 2 column 4: expected a value"},
        {"{\"\xC3\xA9\": 1,}", "line 1 column 9: expected a key in double quotes"},
        {"[01]", "line 1 column 2: a number begins with a superfluous zero"},
        {"\"\x01\"", "line 1 column 2: a control character stands in a string without an escape"},
        {"\"\xFF\"", "line 1 column 2: the bytes are not UTF-8"},
        {"\"\\x\"", "line 1 column 2: the escape sequence is unknown"},
        {"[1 2]", "line 1 column 4: expected ',' or ']' after an element"},
        {"1 1", "line 1 column 3: more text follows the end of the document"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ew_json_reader reader;
        struct ew_error err = {0};
        int event;

        ew_json_reader_init(&reader, ew_str_of(cases[i].text));
        while ((event = ew_json_next(&reader, &err)) > 0)
            ;
        assert_int_equal(event, EW_ERR_FORMAT);
        assert_string_equal(err.message, cases[i].message);
        assert_int_equal(ew_json_next(&reader, &err), EW_ERR_FORMAT);
        ew_json_reader_fini(&reader);
    }
}

static void depth_is_bounded(void **state)
{
    char text[2 * EW_JSON_DEPTH_MAX + 3];
    const struct ew_json *root;
    struct ew_arena arena;

    (void)state;
    ew_arena_init(&arena, 1 << 20);
    for (size_t n = EW_JSON_DEPTH_MAX; n <= EW_JSON_DEPTH_MAX + 1; n++) {
        memset(text, '[', n);
        memset(text + n, ']', n);
        assert_int_equal(ew_json_parse(&arena, (struct ew_str){text, 2 * n}, &root, NULL),
                         n == EW_JSON_DEPTH_MAX ? EW_OK : EW_ERR_LIMIT);
    }
    ew_arena_fini(&arena);
}

static void numbers_keep_their_kind(void **state)
{
    const struct ew_json *root;
    struct ew_arena arena;

    (void)state;
    ew_arena_init(&arena, 1 << 20);
    root = parse(&arena,
                 "[9223372036854775807, -9223372036854775808, 9223372036854775808, 1e3, 1E400, NaN, -0.0, 4.5]");
    assert_true(ew_json_at(root, 0)->integer == INT64_MAX && ew_json_at(root, 1)->integer == INT64_MIN);
    assert_int_equal(ew_json_at(root, 2)->type, EW_JSON_T_DOUBLE);
    assert_string_equal(ew_json_at(root, 2)->text.ptr, "9223372036854775808");
    assert_int_equal(ew_json_int(ew_json_at(root, 2), 7), 7);
    assert_int_equal(ew_json_int(ew_json_at(root, 3), 7), 1000);
    assert_true(isinf(ew_json_at(root, 4)->number) && isnan(ew_json_at(root, 5)->number));
    assert_true(signbit(ew_json_number(ew_json_at(root, 6), 1)));
    assert_int_equal(ew_json_int(ew_json_at(root, 7), 7), 7);
    assert_null(ew_json_at(root, 8));
    ew_arena_fini(&arena);
}

static void repeated_keys_keep_the_last_value(void **state)
{
    const struct ew_json *root, *member;
    struct ew_arena arena;
    char text[2000] = "{", *at = text + 1;

    (void)state;
    ew_arena_init(&arena, 1 << 20);
    root = parse(&arena, "{\"a\": 1, \"b\": 2, \"a\": [3], \"c\": 4, \"a\": {\"d\": 5}}");
    assert_int_equal(root->count, 3);
    assert_int_equal(ew_json_int(ew_json_get(ew_json_get(root, "a"), "d"), 0), 5);
    assert_true(ew_str_is(root->child->key, "a") && ew_str_is(root->child->next->next->key, "c"));
    for (int i = 0; i < 100; i++)
        at += sprintf(at, "\"k%d\": %d,", i % 60, i);
    strcpy(at, "\"k0\":0}");
    root = parse(&arena, text);
    assert_int_equal(root->count, 60);
    member = root->child;
    for (int i = 0; i < 60; i++, member = member->next)
        assert_int_equal(member->integer, i == 0 ? 0 : i < 40 ? i + 60 : i);
    assert_null(member);
    ew_arena_fini(&arena);
}

static void texts_are_terminated_and_whole(void **state)
{
    const struct ew_json *root;
    struct ew_arena arena;

    (void)state;
    ew_arena_init(&arena, 1 << 20);
    root = parse(&arena, "\xEF\xBB\xBF{\"k\\u00e9y\":\"\\ud800x\",\"n\":12,\"e\":\"\",\"\":[\"a\\\\\"]}");
    assert_string_equal(root->child->key.ptr, "k\xC3\xA9y");
    assert_string_equal(root->child->text.ptr, "\xED\xA0\x80x");
    assert_string_equal(ew_json_get(root, "n")->text.ptr, "12");
    assert_string_equal(ew_json_str(ew_json_get(root, "e"), "?").ptr, "");
    assert_string_equal(ew_json_at(ew_json_get(root, ""), 0)->text.ptr, "a\\");
    assert_true(ew_json_is_null(ew_json_get(root, "absent")) && ew_json_bool(NULL, true));
    ew_arena_fini(&arena);
}

static void memory_stops_at_the_limit(void **state)
{
    const struct ew_json *root = NULL;
    struct ew_error err = {0};
    struct ew_arena arena;

    (void)state;
    ew_arena_init(&arena, 1000);
    assert_int_equal(ew_json_parse(&arena, EW_STR("[1]"), &root, &err), EW_ERR_MEMORY);
    assert_non_null(strstr(err.message, "1000"));
    assert_null(root);
    ew_arena_fini(&arena);
}

// Every allocation on the way fails once: an error, never a crash or a leak (the sanitizer builds see leaks).
static void failing_allocations_are_reported(void **state)
{
    static const char text[] =
        "{\"\\n\": 1.2345678901234567, \"1\":1,\"2\":1,\"3\":1,\"4\":1,\"5\":1,\"6\":1,\"7\":1,\"8\":1,\"1\":2}";
    int code = EW_ERR_MEMORY;

    (void)state;
    for (uint64_t n = 1; code != EW_OK; n++) {
        const struct ew_json *root;
        struct ew_arena arena;

        ew_arena_init(&arena, 1 << 20);
        ew_alloc_fail_at(n);
        code = ew_json_parse(&arena, ew_str_of(text), &root, NULL);
        ew_alloc_fail_at(0);
        assert_true(code == EW_OK || code == EW_ERR_MEMORY);
        ew_arena_fini(&arena);
        assert_true(n < 100);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(events_come_in_order),
        cmocka_unit_test(skip_passes_over_whole_values),
        cmocka_unit_test(errors_say_where_and_stay),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(numbers_keep_their_kind),
        cmocka_unit_test(repeated_keys_keep_the_last_value),
        cmocka_unit_test(texts_are_terminated_and_whole),
        cmocka_unit_test(memory_stops_at_the_limit),
        cmocka_unit_test(failing_allocations_are_reported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
