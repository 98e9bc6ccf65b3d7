// toolcall: calls in answers cut into pieces of every size, what is no call, and which form templates write.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "fixture.h"
#include "format/mapfile.h"
#include "text/chat.h"
#include "text/toolcall.h"

// What came out, as "content", "{name: arguments}" for calls, in order.
struct seen {
    struct ew_buf out;
    uint32_t n_begun, n_ended, n_pieces;
};

static void on_content(void *ctx, struct ew_str text)
{
    struct seen *seen = ctx;

    assert_int_equal(seen->n_begun, seen->n_ended);
    ew_buf_append_str(&seen->out, text);
}

static void on_begin(void *ctx, uint32_t index, struct ew_str name)
{
    struct seen *seen = ctx;

    assert_int_equal(index, seen->n_begun);
    assert_int_equal(seen->n_begun, seen->n_ended);
    seen->n_begun++;
    ew_buf_printf(&seen->out, "<<%.*s: ", (int)name.len, name.ptr);
}

static void on_arguments(void *ctx, uint32_t index, struct ew_str piece)
{
    struct seen *seen = ctx;

    assert_int_equal(index + 1, seen->n_begun);
    assert_int_not_equal(piece.len, 0);
    seen->n_pieces++;
    ew_buf_append_str(&seen->out, piece);
}

static void on_end(void *ctx, uint32_t index)
{
    struct seen *seen = ctx;

    assert_int_equal(index, seen->n_ended);
    seen->n_ended++;
    ew_buf_printf(&seen->out, ">>");
}

static const struct ew_str g_names[] = {EW_STR("set_fan"), EW_STR("now")};

static uint32_t parse(enum ew_toolcall_kind kind, bool whole, const char *text, size_t step, struct seen *seen)
{
    struct ew_toolcall_sink sink = {on_content, on_begin, on_arguments, on_end, seen};
    struct ew_toolcalls calls;
    size_t len = strlen(text);

    *seen = (struct seen){0};
    ew_buf_init(&seen->out, (size_t)4 << 20);
    ew_buf_append(&seen->out, "", 0);
    ew_toolcalls_init(&calls, kind, &sink);
    calls.whole = whole;
    calls.names = g_names;
    calls.n_names = EW_COUNT_OF(g_names);
    for (size_t at = 0; at < len; at += step)
        assert_true(ew_toolcalls_push(&calls, (struct ew_str){text + at, EW_MIN(step, len - at)}));
    assert_true(ew_toolcalls_end(&calls));
    ew_toolcalls_fini(&calls);
    assert_int_equal(seen->n_begun, seen->n_ended);
    return seen->n_pieces;
}

static void expect(enum ew_toolcall_kind kind, bool whole, const char *text, const char *wanted)
{
    struct seen seen;

    for (size_t step = 1; step <= strlen(text); step++) {
        parse(kind, whole, text, step, &seen);
        assert_string_equal(seen.out.ptr, wanted);
        ew_buf_fini(&seen.out);
    }
}

struct example {
    enum ew_toolcall_kind kind;
    const char *text, *wanted;
};

static const struct example g_right[] = {
    {EW_TOOLCALL_NONE, "<tool_call>{\"name\": \"now\"}</tool_call>", "<tool_call>{\"name\": \"now\"}</tool_call>"},
    {EW_TOOLCALL_HERMES, "Just text, 1 < 2.\n", "Just text, 1 < 2.\n"},
    {EW_TOOLCALL_HERMES, "<tool_call>\n{\"name\": \"set_fan\", \"arguments\": {\"speed\": 50}}\n</tool_call>",
     "<<set_fan: {\"speed\": 50}>>"},
    {EW_TOOLCALL_HERMES, "I look.\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n", "I look.<<now: {}>>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"now\"}</tool_call>", "<<now: {}>>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"arguments\": {\"a\": [1, {\"b\": \"}\"}]}, \"name\": \"x\"}</tool_call> done",
     "<<x: {\"a\": [1, {\"b\": \"}\"}]}>> done"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"x\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
     "<<x: {\"a\": 1}>>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"id\": -1.5e+3, \"ok\": null, \"name\": \"x\", \"arguments\": {}}</tool_call>",
     "<<x: {}>>"},
    {EW_TOOLCALL_HERMES,
     "<tool_call>{\"name\": \"x\", \"arguments\": {\"t\": \"</tool_call>\\\\\"}}</tool_call>\n\n"
     "<tool_call>{\"name\": \"y\", \"arguments\": {}}</tool_call>",
     "<<x: {\"t\": \"</tool_call>\\\\\"}>><<y: {}>>"},
    // The end of the answer may come before the closing mark.
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"x\", \"arguments\": {}}\n</tool", "<<x: {}>>\n</tool"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"x\", \"arguments\": {}}", "<<x: {}>>"},
    {EW_TOOLCALL_LLAMA, "{\"name\": \"set_fan\", \"parameters\": {\"speed\": 2}}", "<<set_fan: {\"speed\": 2}>>"},
    {EW_TOOLCALL_LLAMA, " {\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}", "<<now: {}>>"},
    {EW_TOOLCALL_LLAMA, "<|python_tag|>{\"name\": \"other\", \"parameters\": {\"a\": true}}",
     "<<other: {\"a\": true}>>"},
    {EW_TOOLCALL_LLAMA,
     "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"set_fan\", \"parameters\": {\"speed\": 1}}",
     "<<now: {}>><<set_fan: {\"speed\": 1}>>"},
    {EW_TOOLCALL_LLAMA, "The answer is {\"name\": \"now\"}.", "The answer is {\"name\": \"now\"}."},
    {EW_TOOLCALL_LLAMA, "{\"name\": \"Ada\", \"parameters\": {}}", "{\"name\": \"Ada\", \"parameters\": {}}"},
    {EW_TOOLCALL_LLAMA, "{\"city\": \"now\"}", "{\"city\": \"now\"}"},
    {EW_TOOLCALL_LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {\"x\": 1}, \"id\": \"abcdefghi\"}]",
     "<<a: {\"x\": 1}>>"},
    {EW_TOOLCALL_MISTRAL, "So:[TOOL_CALLS][{\"name\":\"a\",\"arguments\":{}} , {\"name\":\"b\",\"arguments\":{}}] end",
     "So:<<a: {}>><<b: {}>> end"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]a[ARGS]{\"x\": \"[TOOL_CALLS]\"}[TOOL_CALLS]b-c[CALL_ID]abc123[ARGS] {}",
     "<<a: {\"x\": \"[TOOL_CALLS]\"}>><<b-c: {}>>"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]a{\"x\": 1}", "<<a: {\"x\": 1}>>"},
};

// Broken in a place where nothing of it had to leave before: content, wholly.
static const struct example g_broken[] = {
    {EW_TOOLCALL_HERMES, "<tool_call>", "<tool_call>"},
    {EW_TOOLCALL_HERMES, "a <tool_c", "a <tool_c"},
    {EW_TOOLCALL_HERMES, " \n<tool_call>\nname: x</tool_call>", " \n<tool_call>\nname: x</tool_call>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": x}</tool_call>", "<tool_call>{\"name\": x}</tool_call>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"arguments\": {}}</tool_call>!", "<tool_call>{\"arguments\": {}}</tool_call>!"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"\"}</tool_call>", "<tool_call>{\"name\": \"\"}</tool_call>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"x\", \"arguments\": 7}",
     "<tool_call>{\"name\": \"x\", \"arguments\": 7}"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"name\": \"x\", \"name\": \"y\"}",
     "<tool_call>{\"name\": \"x\", \"name\": \"y\"}"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"a\": 01}", "<tool_call>{\"a\": 01}"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"a\": \"\\x\"}", "<tool_call>{\"a\": \"\\x\"}"},
    {EW_TOOLCALL_HERMES, "<tool_call><tool_call>{\"name\": \"x\"}</tool_call>", "<tool_call><<x: {}>>"},
    {EW_TOOLCALL_HERMES, "<tool_call>{\"q\": <tool_call>{\"name\": \"x\"}</tool_call>",
     "<tool_call>{\"q\":<<x: {}>>"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]", "[TOOL_CALLS]"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS][]", "[TOOL_CALLS][]"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]a b", "[TOOL_CALLS]a b"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]a[ARGS]", "[TOOL_CALLS]a[ARGS]"},
    {EW_TOOLCALL_MISTRAL, "[TOOL_CALLS]a[ARGX]{}", "[TOOL_CALLS]a[ARGX]{}"},
    {EW_TOOLCALL_LLAMA, "{\"name\": \"now\", \"parameters\"", "{\"name\": \"now\", \"parameters\""},
    {EW_TOOLCALL_LLAMA, "{", "{"},
};

static void calls_are_found_in_pieces_of_any_size(void **state)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_right); i++) {
        expect(g_right[i].kind, true, g_right[i].text, g_right[i].wanted);
        expect(g_right[i].kind, false, g_right[i].text, g_right[i].wanted);
    }
}

static void what_is_no_call_is_content(void **state)
{
    for (size_t i = 0; i < EW_COUNT_OF(g_broken); i++) {
        expect(g_broken[i].kind, true, g_broken[i].text, g_broken[i].wanted);
        expect(g_broken[i].kind, false, g_broken[i].text, g_broken[i].wanted);
    }
}

static void arguments_leave_as_they_come(void **state)
{
    static const char text[] = "<tool_call>{\"name\": \"x\", \"arguments\": {\"a\": \"0123456789\"}}</tool_call>";
    struct seen seen;

    assert_true(parse(EW_TOOLCALL_HERMES, false, text, 1, &seen) >= 10);
    ew_buf_fini(&seen.out);
    assert_int_equal(parse(EW_TOOLCALL_HERMES, true, text, 1, &seen), 1);
    ew_buf_fini(&seen.out);
}

// Broken behind what has left already: the call ends there. Where calls are given whole, it is content.
static void arguments_that_break_off_are_not_lost(void **state)
{
    static const char text[] = "<tool_call>{\"name\": \"x\", \"arguments\": {\"a\": oh</tool_call>";
    struct seen seen;

    parse(EW_TOOLCALL_HERMES, false, text, 1, &seen);
    assert_string_equal(seen.out.ptr, "<<x: {\"a\": >>oh</tool_call>");
    ew_buf_fini(&seen.out);
    expect(EW_TOOLCALL_HERMES, true, text, text);
}

static void what_is_held_is_bounded(void **state)
{
    static const char begin[] = "<tool_call>{\"name\": \"x\", \"arguments\": {\"a\": \"";
    struct ew_buf text;
    struct seen seen;

    ew_buf_init(&text, 2 * EW_TOOLCALL_BYTES_MAX);
    ew_buf_append_str(&text, EW_STR(begin));
    while (text.len < EW_TOOLCALL_BYTES_MAX + 4096)
        ew_buf_append_str(&text, EW_STR("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"));
    parse(EW_TOOLCALL_HERMES, true, text.ptr, 4096, &seen);
    assert_int_equal(seen.n_begun, 0);
    assert_string_equal(seen.out.ptr, text.ptr);
    ew_buf_fini(&seen.out);
    parse(EW_TOOLCALL_HERMES, false, text.ptr, 4096, &seen);
    assert_int_equal(seen.n_begun, 1);
    ew_buf_fini(&seen.out);
    ew_buf_fini(&text);
}

static void the_template_tells_the_form(void **state)
{
#define CALLS(body) "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}" body "{% endfor %}{% endfor %}"
    static const struct {
        const char *source;
        enum ew_toolcall_kind kind;
        bool as_text;
    } cases[] = {
        {"{% for m in messages %}{{ m.content }}{% endfor %}", EW_TOOLCALL_NONE, false},
        {"{% if tools %}Say <tool_call>{\"name\": NAME}</tool_call>{% endif %}" CALLS(
             "<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}"
             "</tool_call>"),
         EW_TOOLCALL_HERMES, false},
        {CALLS("<tool_call>{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ '' + c.function.arguments }}}"
               "</tool_call>"),
         EW_TOOLCALL_HERMES, true},
        {CALLS("<tool_call>{{ c.function.name }}<arg>{{ c.function.arguments.x }}</arg></tool_call>"),
         EW_TOOLCALL_NONE, false},
        {CALLS("{\"name\": \"{{ c.function.name }}\", \"parameters\": {{ c.function.arguments | tojson }}}"),
         EW_TOOLCALL_LLAMA, false},
        {CALLS("[TOOL_CALLS][{\"name\": \"{{ c.function.name }}\","
               " \"arguments\": {{ c.function.arguments | tojson }}}]"),
         EW_TOOLCALL_MISTRAL, false},
        {CALLS("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"), EW_TOOLCALL_MISTRAL,
         false},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        struct ew_chat_format *chat;
        struct ew_toolcall_format format;

        assert_int_equal(
            ew_chat_format_compile(ew_str_of(cases[i].source), (struct ew_str){0}, NULL, NULL, &chat, NULL), 0);
        format = ew_toolcall_detect(chat);
        assert_int_equal(format.kind, cases[i].kind);
        assert_int_equal(format.arguments_as_text, cases[i].as_text);
        ew_chat_format_free(chat);
    }
}

// Of real models: those whose form can be read, and one whose form must not be mistaken for another.
static void real_templates_tell_the_form(void **state)
{
    static const struct {
        const char *name;
        enum ew_toolcall_kind kind;
    } cases[] = {
        {"Qwen-Qwen2.5-7B-Instruct", EW_TOOLCALL_HERMES},
        {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use", EW_TOOLCALL_HERMES},
        {"meta-llama-Llama-3.2-3B-Instruct", EW_TOOLCALL_LLAMA},
        {"meta-llama-Llama-3.3-70B-Instruct", EW_TOOLCALL_LLAMA},
        {"Mistral-Small-3.2-24B-Instruct-2506", EW_TOOLCALL_MISTRAL},
        {"mistralai-Ministral-3-14B-Reasoning-2512", EW_TOOLCALL_MISTRAL},
        {"Qwen3-Coder", EW_TOOLCALL_NONE},
        {"GLM-4.6", EW_TOOLCALL_NONE},
        {"google-gemma-2-2b-it", EW_TOOLCALL_NONE},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        char name[256], path[1024], *source;
        struct ew_chat_format *chat;
        size_t len;

        snprintf(name, sizeof(name), "templates/src/%s.jinja", cases[i].name);
        if (!fixture_find(path, sizeof(path), name))
            skip();
        assert_int_equal(ew_file_read(path, 1 << 20, &source, &len, NULL), 0);
        assert_int_equal(
            ew_chat_format_compile((struct ew_str){source, len}, (struct ew_str){0}, "<s>", "</s>", &chat, NULL), 0);
        assert_int_equal(ew_toolcall_detect(chat).kind, cases[i].kind);
        ew_chat_format_free(chat);
        ew_free(source);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_found_in_pieces_of_any_size),
        cmocka_unit_test(what_is_no_call_is_content),
        cmocka_unit_test(arguments_leave_as_they_come),
        cmocka_unit_test(arguments_that_break_off_are_not_lost),
        cmocka_unit_test(what_is_held_is_bounded),
        cmocka_unit_test(the_template_tells_the_form),
        cmocka_unit_test(real_templates_tell_the_form),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
