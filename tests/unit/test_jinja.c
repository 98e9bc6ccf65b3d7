// jinja: what tests/py/test_jinja_oracle.py compares with Jinja2 is here in small, with the errors and limits besides.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "format/json.h"
#include "text/jinja.h"

static const char g_inputs[] =
    "{\"n\": 3, \"f\": 1.0, \"s\": \"a<b\", \"u\": \"\\u00e9\\u6771x\", \"none\": null, \"big\": 123456789012345678901,"
    " \"l\": [3, 1, 2], \"d\": {\"k\": [1, \"two\", null, true]},"
    " \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yo\"}]}";

static int render(const char *source, const struct ew_jinja_limits *limits, struct ew_buf *out, struct ew_error *err)
{
    struct ew_jinja_vars vars = {.bos_token = "<s>", .now = "2025-07-14 09:30:00"};
    struct ew_jinja *tmpl;
    struct ew_arena arena;
    int code = ew_jinja_compile(ew_str_of(source), &tmpl, err);

    ew_buf_init(out, 1 << 20);
    if (code != EW_OK)
        return code;
    ew_arena_init(&arena, 1 << 20);
    assert_int_equal(ew_json_parse(&arena, ew_str_of(g_inputs), &vars.object, err), EW_OK);
    code = ew_jinja_render(tmpl, &vars, limits, out, err);
    ew_arena_fini(&arena);
    ew_jinja_free(tmpl);
    return code;
}

struct example {
    const char *source, *expected;
};

static void check(const struct example *examples, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct ew_error err = {0};
        struct ew_buf out;

        if (render(examples[i].source, NULL, &out, &err) != EW_OK)
            fail_msg("%s: %s", examples[i].source, err.message);
        assert_string_equal(out.ptr ? out.ptr : "", examples[i].expected);
        ew_buf_fini(&out);
    }
}

static void expressions(void **state)
{
    static const struct example examples[] = {
        {"{{ 1 + 2 * 3 ** 2 }}", "19"},
        {"{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }}", "3 -4 2 3.5"},
        {"{{ 1 < n <= 3 }} {{ n not in l }} {{ not n == 3 }}", "True False False"},
        {"{{ 'x' if f else 'y' }}{{ 'x' if none }}", "x"},
        {"{{ s ~ n ~ none ~ f }}", "a<b3None1.0"},
        {"{{ l[1:] }} {{ l[::-1] }} {{ u[1] }} {{ u[::-1] }} {{ s[-1] }}",
         "[1, 2] [2, 1, 3] \xe6\x9d\xb1 x\xe6\x9d\xb1\xc3\xa9 b"},
        {"{{ d.k[1] }} {{ d['k'][-1] }} {{ d.x is defined }} {{ l.0 }}", "two True False 3"},
        {"{{ [none, true, 1.5, 'q', \"it's\", {'a': (1,)}] }}", "[None, True, 1.5, 'q', \"it's\", {'a': (1,)}]"},
        {"{{ big }} {{ [big] }} {{ big == big }} {{ big > n }}",
         "123456789012345678901 [123456789012345678901] True True"},
        {"{{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1e-5 }}", "1e+16 1000000000000000.0 0.30000000000000004 1e-05"},
        {"{{ none or n and s }} {{ n and none }} {{ 0 or '' }}|", "a<b None |"},
        {"{{ bos_token }}{{ eos_token is defined }}", "<s>False"},
    };

    check(examples, EW_COUNT_OF(examples));
}

static void statements(void **state)
{
    static const struct example examples[] = {
        {"{% for m in messages %}{{ loop.index }}{{ m.role }}{% if not loop.last %},{% endif %}{% endfor %}",
         "1user,2assistant"},
        {"{% for x in l if x > 1 %}{{ x }}{% else %}-{% endfor %}{% for x in [] %}{% else %}-{% endfor %}", "32-"},
        {"{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set t %}x{{ a }}{% endset %}{{ t }}", "12x1"},
        {"{% set ns = namespace(i=0) %}{% for x in l %}{% set ns.i = ns.i + x %}{% set y = x %}{% endfor %}"
         "{{ ns.i }}{{ y is defined }}",
         "6False"},
        {"{% macro m(a, b='B', c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, c=2) }}", "1B11B2"},
        {"{% macro m() %}[{{ caller(2) }}]{% endmacro %}{% call(x) m() %}{{ x }}!{% endcall %}", "[2!]"},
        {"{% for x in range(9) %}{% if x == 1 %}{% continue %}{% elif x == 4 %}{% break %}{% endif %}{{ x }}{% endfor "
         "%}",
         "023"},
        {"{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% "
         "endfor %}",
         "(1(2))3"},
        {"{% filter upper %}a{{ s }}{% endfilter %}{% with q = 1 %}{{ q }}{% endwith %}{{ q is defined }}",
         "AA<B1False"},
        {"{% generation %}x{% endgeneration %}{% raw %}{{ y }}{% endraw %}{# z #}", "x{{ y }}"},
    };

    check(examples, EW_COUNT_OF(examples));
}

static void white_space(void **state)
{
    static const struct example examples[] = {
        {"a\n  {% if 1 %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
        {"a  {%- if 1 -%}  b  {%- endif %}  c", "ab  c"},
        {"  {%+ if 1 %}x{% endif +%}\ny", "  x\ny"},
        {" {{ n }} \n {{- n -}} \n x", " 33x"},
        {"a\r\nb\rc\n\n", "a\nb\nc\n"},
        {"  {# c #}\nx", "x"},
    };

    check(examples, EW_COUNT_OF(examples));
}

static void builtins(void **state)
{
    static const struct example examples[] = {
        {"{{ d | tojson }} {{ u | tojson(ensure_ascii=true) }}",
         "{\"k\": [1, \"two\", null, true]} \"\\u00e9\\u6771x\""},
        {"{{ {'b': [], 'a': 1} | tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": 1,\n  \"b\": []\n}"},
        {"{{ l | sort | join('-') }} {{ l | max }} {{ l | sum }} {{ l | first }}{{ l | last }} {{ l | length }}",
         "1-2-3 3 6 32 3"},
        {"{{ messages | map(attribute='role') | list }}", "['user', 'assistant']"},
        {"{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}", "Hi"},
        {"{{ ' x ' | trim }}|{{ '  x'.lstrip() }}|{{ 'a,b'.split(',') }}|{{ 'abc'.startswith('ab') }}",
         "x|x|['a', 'b']|True"},
        {"{{ none | default('d') }} {{ x | d('d') }} {{ none | d('d', true) }}", "None d d"},
        {"{{ '%s=%03d' % ('a', 7) }} {{ '{:>4}|{x}'.format(1, x='y') }} {{ '%.1f' | format(2.55) }}",
         "a=007    1|y 2.5"},
        {"{{ 'a\nb' | indent(2) }}", "a\n  b"},
        {"{{ s | e }} {{ 'HELLO wORLD' | title }} {{ 'stra\xc3\x9f"
         "e'.upper() }}",
         "a&lt;b Hello World STRASSE"},
        {"{{ d.items() | list }} {{ d.get('z', 0) }} {{ d.keys() }}",
         "[('k', [1, 'two', None, True])] 0 dict_keys(['k'])"},
        {"{{ strftime_now('%d %b %Y') }} {{ range(2, 9, 3) | list }}", "14 Jul 2025 [2, 5, 8]"},
        {"{{ '4.7' | int }} {{ 2.5 | round }} {{ -3 | abs }} {{ '1' | float }}", "4 2.0 3 1.0"},
        {"{% set c = [] %}{% set x = c.append(1) %}{{ c }}", "[1]"}, // Jinja2's sandbox refuses it, templates use it
    };

    check(examples, EW_COUNT_OF(examples));
}

static void failures_say_where_and_why(void **state)
{
    static const struct {
        const char *source, *message;
        int code;
    } cases[] = {
        {"\n{{ nope.x }}", "line 2 of the chat template: 'nope' is undefined", EW_ERR_FORMAT},
        {"{{ d.nope.x }}", "line 1 of the chat template: 'dict object' has no attribute 'nope'", EW_ERR_FORMAT},
        {"{{ s + 1 }}", "line 1 of the chat template: can only concatenate str (not \"int\") to str", EW_ERR_FORMAT},
        {"{{ 1 // 0 }}", "line 1 of the chat template: division by zero", EW_ERR_FORMAT},
        {"{{ s | nope }}", "line 1 of the chat template: there is no filter named 'nope'", EW_ERR_FORMAT},
        {"{{ raise_exception('Only \"user\", please!') }}", "Only \"user\", please!", EW_ERR_UNSUPPORTED},
        {"a\n{% if 1 %}", "line 2 of the chat template: the template ends where one of elif|else|endif is expected",
         EW_ERR_FORMAT},
        {"{% include 'x' %}",
         "line 1 of the chat template: \"include\" needs other templates, which a chat template does not have",
         EW_ERR_FORMAT},
        {"{{ 9223372036854775807 + 1 }}", "line 1 of the chat template: a number is past 64 bits", EW_ERR_LIMIT},
        {"{{ big + 1 }}", "line 1 of the chat template: a number is past 64 bits", EW_ERR_LIMIT},
        {"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
         "line 1 of the chat template: it is nested, or calls itself, more deeply than is allowed", EW_ERR_LIMIT},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        struct ew_error err = {0};
        struct ew_buf out;

        assert_int_equal(render(cases[i].source, NULL, &out, &err), cases[i].code);
        assert_string_equal(err.message, cases[i].message);
        assert_int_equal(out.len, 0);
        ew_buf_fini(&out);
    }
}

static void limits_hold(void **state)
{
    static const struct {
        const char *source;
        struct ew_jinja_limits limits;
    } cases[] = {
        {"{% for i in range(1000) %}{{ i }}{% endfor %}", {.steps_max = 1000}},
        {"{% for i in range(1000) %}{{ i }}{% endfor %}", {.output_max = 1000}},
        {"{{ range(50000) | list | length }}", {.memory_max = 100000}},
        {"{{ ((((((((1)))))))) + (((1))) * 2 - -1 }}", {.depth_max = 3}},
    };

    for (size_t i = 0; i < EW_COUNT_OF(cases); i++) {
        struct ew_error err = {0};
        struct ew_buf out;

        assert_int_equal(render(cases[i].source, &cases[i].limits, &out, &err), EW_ERR_LIMIT);
        ew_buf_fini(&out);
    }
}

static void every_failing_allocation_is_survived(void **state)
{
    static const char source[] = "{% macro m(x) %}{{ x | upper }}{% endmacro %}{% for m2 in messages %}{{ m(m2.role) }}"
                                 "{{ m2 | tojson(indent=1) }}{% endfor %}{{ l | sort }}{{ 'x' * 5000 }}";
    int code;

    for (uint64_t n = 1;; n++) {
        struct ew_jinja_vars vars = {0};
        struct ew_error err = {0};
        struct ew_jinja *tmpl;
        struct ew_buf out;

        ew_buf_init(&out, 1 << 20);
        ew_alloc_fail_at(n);
        code = ew_jinja_compile(ew_str_of(source), &tmpl, &err);
        if (code == EW_OK) {
            code = ew_jinja_render(tmpl, &vars, NULL, &out, &err);
            ew_jinja_free(tmpl);
        }
        ew_alloc_fail_at(0);
        ew_buf_fini(&out);
        if (code == EW_OK)
            break;
        assert_true(code == EW_ERR_LIMIT || code == EW_ERR_MEMORY);
        assert_true(n < 1000);
    }
}

// Fifty messages through a template as hubs have them. The bound is far above what it takes, for busy machines.
static void a_conversation_renders_fast(void **state)
{
    static const char source[] =
        "{%- for message in messages %}{%- if message.role == 'system' and loop.first %}{%- set sys = message.content "
        "%}"
        "{%- elif message.role == 'assistant' and message.tool_calls is defined %}{{- message.tool_calls | tojson }}"
        "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}{%- endif "
        "%}{%- endfor %}";
    struct ew_jinja_vars vars = {0};
    struct ew_jinja *tmpl;
    struct ew_arena arena;
    struct ew_buf json, out;
    double begin;

    ew_buf_init(&json, 1 << 20);
    ew_buf_init(&out, 1 << 20);
    ew_arena_init(&arena, 1 << 20);
    for (int i = 0; i < 50; i++)
        ew_buf_printf(&json, "%s{\"role\": \"%s\", \"content\": \" message %d \"}", i ? ", " : "{\"messages\": [",
                      i % 2 ? "assistant" : "user", i);
    ew_buf_append_str(&json, EW_STR("]}"));
    assert_int_equal(ew_json_parse(&arena, ew_buf_str(&json), &vars.object, NULL), EW_OK);
    assert_int_equal(ew_jinja_compile(ew_str_of(source), &tmpl, NULL), EW_OK);
    begin = ew_clock_s();
    for (int i = 0; i < 100; i++) {
        ew_buf_reset(&out);
        assert_int_equal(ew_jinja_render(tmpl, &vars, NULL, &out, NULL), EW_OK);
    }
    print_message("50 messages in %.3f ms\n", (ew_clock_s() - begin) * 10);
    assert_true(ew_clock_s() - begin < 100 * 0.02);
    ew_jinja_free(tmpl);
    ew_arena_fini(&arena);
    ew_buf_fini(&out);
    ew_buf_fini(&json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(expressions),
        cmocka_unit_test(statements),
        cmocka_unit_test(white_space),
        cmocka_unit_test(builtins),
        cmocka_unit_test(failures_say_where_and_why),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(every_failing_allocation_is_survived),
        cmocka_unit_test(a_conversation_renders_fast),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
