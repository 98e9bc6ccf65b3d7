// chat: probing, built-in formats and the split of reasoning.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "base/data.h"
#include "text/chat.h"

static struct ew_chat_format *compile(const char *source)
{
    struct ew_chat_format *format;
    struct ew_error err = {0};

    if (ew_chat_format_compile(ew_str_of(source), (struct ew_str){0}, "<s>", "</s>", &format, &err) != EW_OK)
        fail_msg("%s", err.message);
    return format;
}

static void probing_shows_what_a_template_understands(void **state)
{
    static const struct {
        const char *source;
        bool system_role, tools, typed_content, enable_thinking;
        const char *open;
    } cases[] = {
        {"{% for m in messages %}{{ m.role + m.content }}{% endfor %}", true, false, false, false, NULL},
        {"{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% "
         "endfor %}",
         false, false, false, false, NULL},
        {"{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson if tools }}", true, true, false, false,
         NULL},
        {"{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ "
         "p.text }}"
         "{% endfor %}{% endif %}{% endfor %}",
         true, false, true, false, NULL},
        {"{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>"
         "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
         true, false, false, true, "<think>"},
        {"{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[THINK]{% endif %}", true,
         false, false, false, "[THINK]"},
        {"{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", true, false, false, false,
         "<think>"},
        {"{% for m in messages %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ "
         "m.content }}{% endfor %}",
         true, false, false, false, "<think>"},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        struct ew_chat_format *format = compile(cases[i].source);
        const struct ew_chat_caps *caps = ew_chat_format_caps(format);

        assert_int_equal(caps->system_role, cases[i].system_role);
        assert_int_equal(caps->tools, cases[i].tools);
        assert_int_equal(caps->typed_content, cases[i].typed_content);
        assert_int_equal(caps->enable_thinking, cases[i].enable_thinking);
        if (cases[i].open)
            assert_string_equal(caps->reasoning_open, cases[i].open);
        else
            assert_null(caps->reasoning_open);
        ew_chat_format_free(format);
    }
}

// Every built-in format renders a conversation, with its parts in order.
static void built_in_formats_work(void **state)
{
    static const char json[] =
        "{\"messages\": [{\"role\": \"system\", \"content\": \"SYS\"}, {\"role\": \"user\", \"content\": \"ONE\"},"
        " {\"role\": \"assistant\", \"content\": \"TWO\"}, {\"role\": \"user\", \"content\": \"THREE\"}],"
        " \"add_generation_prompt\": true}";
    static const char *const parts[] = {"SYS", "ONE", "TWO", "THREE"};
    uint32_t n = 0;

    for (const struct ew_data_file *file = ew_data_files; file->path; file++) {
        struct ew_chat_format *format;
        const struct ew_json *inputs;
        struct ew_arena arena;
        struct ew_buf out;
        ptrdiff_t at = -1;

        if (strncmp(file->path, "templates/", 10) != 0)
            continue;
        n++;
        format = compile(file->text.ptr);
        assert_true(ew_chat_format_caps(format)->system_role);
        ew_arena_init(&arena, 1 << 20);
        ew_buf_init(&out, 1 << 20);
        assert_int_equal(ew_json_parse(&arena, ew_str_of(json), &inputs, NULL), EW_OK);
        assert_int_equal(ew_chat_render(format, inputs, &out, NULL), EW_OK);
        for (size_t i = 0; i < EW_COUNT_OF(parts); i++) {
            ptrdiff_t found = ew_str_find(ew_buf_str(&out), ew_str_of(parts[i]), 0);

            assert_true(found > at);
            at = found;
        }
        ew_buf_fini(&out);
        ew_arena_fini(&arena);
        ew_chat_format_free(format);
    }
    assert_true(n >= 9);
}

static void absent_inputs_are_none(void **state)
{
    struct ew_chat_format *format = compile(
        "{{ tools }}{{ documents is none }}{{ add_generation_prompt }}{{ bos_token }}{{ x is defined }}");
    const struct ew_json *inputs;
    struct ew_arena arena;
    struct ew_buf out;

    ew_arena_init(&arena, 1 << 20);
    ew_buf_init(&out, 1 << 20);
    assert_int_equal(ew_json_parse(&arena, EW_STR("{\"tools\": [1], \"x\": 0}"), &inputs, NULL), EW_OK);
    assert_int_equal(ew_chat_render(format, inputs, &out, NULL), EW_OK);
    assert_string_equal(out.ptr, "[1]TrueFalse<s>True");
    ew_buf_fini(&out);
    ew_arena_fini(&arena);
    ew_chat_format_free(format);
}

// Splits in pieces of every size; what comes must not depend on it.
static void check_split(const char *tail, const char *text, const char *reasoning, const char *content)
{
    static const struct ew_chat_caps caps = {.reasoning_open = "<think>", .reasoning_close = "</think>"};

    for (size_t size = 1; size <= strlen(text) + 1; size++) {
        struct ew_buf why, what;
        struct ew_reasoning split;

        ew_buf_init(&why, 1 << 16);
        ew_buf_init(&what, 1 << 16);
        ew_buf_append(&why, "", 0);
        ew_buf_append(&what, "", 0);
        ew_reasoning_init(&split, &caps, ew_str_of(tail));
        for (size_t at = 0; at < strlen(text); at += size)
            ew_reasoning_push(&split, (struct ew_str){text + at, EW_MIN(size, strlen(text) - at)}, &why, &what);
        ew_reasoning_end(&split, &why, &what);
        assert_string_equal(why.ptr, reasoning);
        assert_string_equal(what.ptr, content);
        ew_reasoning_fini(&split);
        ew_buf_fini(&why);
        ew_buf_fini(&what);
    }
}

static void reasoning_is_split(void **state)
{
    check_split("", "<think>\nwhy\n</think>\n\nanswer", "why", "answer");
    check_split("", " \n<think>a b  c</think> x </think> y", "a b  c", "x </think> y");
    check_split("", "plain <think>no</think>", "", "plain <think>no</think>");
    check_split("", "<thin air", "", "<thin air");
    check_split("", "<think></think>x", "", "x");
    check_split("", "<think>never closed </thi", "never closed </thi", "");
    check_split("", "<think>a </ b < c </think>d", "a </ b < c", "d");
    check_split("", "", "", "");
    check_split("", "  ", "", "  ");
    check_split("<a>\n<think>\n", "why</think>answer", "why", "answer");
    check_split("<a><think>", "<think>\nwhy</think>answer", "why", "answer");
    check_split("<a><think>", " <b> why", "<b> why", "");
    check_split("<think>\n\n</think>\n\n", "answer <think>x</think>", "", "answer <think>x</think>");
}

static void without_markers_all_is_content(void **state)
{
    static const struct ew_chat_caps caps = {0};
    struct ew_reasoning split;
    struct ew_buf why, what;

    ew_buf_init(&why, 1 << 16);
    ew_buf_init(&what, 1 << 16);
    ew_reasoning_init(&split, &caps, EW_STR("<think>"));
    ew_reasoning_push(&split, EW_STR("<think>x</think>y"), &why, &what);
    ew_reasoning_end(&split, &why, &what);
    assert_int_equal(why.len, 0);
    assert_string_equal(what.ptr, "<think>x</think>y");
    ew_reasoning_fini(&split);
    ew_buf_fini(&why);
    ew_buf_fini(&what);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probing_shows_what_a_template_understands),
        cmocka_unit_test(built_in_formats_work),
        cmocka_unit_test(absent_inputs_are_none),
        cmocka_unit_test(reasoning_is_split),
        cmocka_unit_test(without_markers_all_is_content),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
